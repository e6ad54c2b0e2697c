"""Words that ordinary texts are full of do not make a feature one of politics, sex, violence or terror."""

from __future__ import annotations

import pytest

from planted_contexts import on_bigram, on_word, plant
from seamark.explain import Tag, Taxonomy
from seamark.explain.lexical import explain_lexical
from seamark.explain.taxonomy import fold

ORDINARY = [
    "date", "tax", "hit", "beat", "strike", "kick", "punch", "fight", "shoot", "blood", "virus", "exploit", "breach",
    "hack", "candidate", "summit", "demonstration", "sanction", "welfare", "guru", "escort", "grooming", "affair",
    "mock", "hate", "forge", "launder", "armed", "conflict", "radical", "recruit", "nuclear", "knife",
    "性", "宣传", "钓鱼", "病毒", "冲突",
]  # fmt: skip


def test_ordinary_words_are_no_keywords() -> None:
    keywords = Taxonomy.default().keywords
    assert [word for word in ORDINARY if fold(word) in keywords] == []


@pytest.mark.parametrize("word", ["date", "hit", "strike"])
def test_a_feature_of_an_ordinary_word_has_no_tag(word: str) -> None:
    found = explain_lexical(plant(on_word(word), [word]), Taxonomy.default())
    assert any(word in entry.ngram for entry in found.lexicon)
    assert found.tags == ()


def test_a_phrase_still_tags() -> None:
    contexts = plant(on_bigram("general", "strike"), ["general strike", "general", "strike"])
    found = explain_lexical(contexts, Taxonomy.default())
    assert found.tags == (Tag("politics", "event"),)
