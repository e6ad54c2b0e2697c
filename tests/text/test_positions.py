"""Token positions of clause ends: the paper's rule counted by hand, and what the default rule promises."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seamark.errors import ConfigError
from seamark.text.pairs import Message
from seamark.text.positions import DEFAULT_SPACING, clause_positions, positions
from seamark.text.rendering import Rendered, Renderer
from tiny import tiny_tokenizer

ANSWER = "No, I can't help with that. It is toxic, e.g. 3.14 parts; never do it! Ask Dr. Smith"


def by_hand(words: str, prompt: int = 0) -> Rendered:
    """One token a word; the first `prompt` words are the prompt."""
    offsets, at = [], 0
    for word in words.split(" "):
        offsets.append((at, at + len(word)))
        at += len(word) + 1
    n = len(offsets)
    return Rendered(
        "t", np.arange(n, dtype=np.int32), np.asarray(offsets, dtype=np.int32), words, (0, prompt), (prompt, n),
        np.zeros(n, dtype=np.bool_),
    )  # fmt: skip


def render(kind: str, response: str, prompt: Any = "Is it safe?") -> Rendered:
    return Renderer(tiny_tokenizer(kind), None).render(prompt, response, "t")


def test_paper_rule_counts_tokens() -> None:
    r = by_hand("0 1 2. 3 4 5, 6 7 8? 9 10! 11 12\n 13")
    # 2 is before token 5; 8 is three after 5; 10 is five after 5; 12 two after 10.
    assert clause_positions(r, "paper").tolist() == [5, 10]
    assert clause_positions(by_hand("a, b, c."), "paper").tolist() == []
    assert clause_positions(by_hand("0 1 2 3 4, 5"), "paper").tolist() == []


def test_paper_rule_counts_within_the_scope() -> None:
    r = by_hand("0 1 2 3 4 5. 6 7 8, 9 10 11. 12", prompt=6)
    assert clause_positions(r, "paper", "response").tolist() == [11]
    assert clause_positions(r, "paper", "all").tolist() == [5, 11]


def test_paper_rule_splits_what_the_default_does_not() -> None:
    r = by_hand("it costs you only about 3.14 euros e.g. 4 5 6 7 8")
    assert 5 not in clause_positions(r, "default")
    assert clause_positions(by_hand("0 1 2 3 4 5 6. 7"), "paper").tolist() == [6]


def test_default_rule_spaces_clauses_and_ends_at_the_last_token() -> None:
    r = by_hand("a, b c. d e f g, h i.")
    assert clause_positions(r).tolist() == [2, 8]
    assert clause_positions(by_hand("a")).tolist() == [0]
    assert clause_positions(by_hand("0 1 2. 3 4 5")).tolist() == [2, 5]


def test_default_scope_all_ends_the_prompt_too() -> None:
    r = by_hand("0 1 2 3 4 5 6 7", prompt=4)
    assert clause_positions(r, scope="all").tolist() == [3, 7]


@pytest.mark.parametrize("kind", ["llama", "qwen", "bert", "gpt2", "mistral"])
def test_ends_on_real_tokens(kind: str) -> None:
    r = render(kind, ANSWER)
    at = clause_positions(r)
    pieces = [r.text[a:b].strip() for a, b in r.offsets[at]]
    assert at[-1] == r.response_span[1] - 1
    assert "".join(pieces[:-1]).replace(" ", "")[0] == "."
    assert all(r.response_span[0] <= p < r.response_span[1] for p in at)
    assert {".", ";", "!"} <= {c for p in pieces for c in p}
    assert positions(r, "last").tolist() == [r.response_span[1] - 1]
    assert positions(r, "tokens").tolist() == list(range(*r.response_span))


@pytest.mark.parametrize("kind", ["llama", "bert"])
def test_all_tokens_are_without_special_ones(kind: str) -> None:
    chat = (Message("user", "Hi"), Message("assistant", "Yes?"), Message("user", "Mix it."))
    r = render(kind, "No.", chat)
    at = positions(r, "tokens", scope="all")
    assert not r.special[at].any()
    assert set(range(*r.response_span)) <= set(at.tolist())
    for rule in ("default", "paper"):
        assert not r.special[clause_positions(r, rule, "all")].any()


def test_sentences_are_among_the_clauses_of_long_sentences() -> None:
    r = by_hand("one two three, four five six. seven eight nine; ten eleven twelve? x y z")
    assert positions(r, "sentences").tolist() == [5, 11, 14]
    assert positions(r, "clauses").tolist() == [2, 5, 8, 11, 14]


def test_sentences_by_the_papers_rule() -> None:
    """Its spacing and its runs; a run of commas and semicolons alone ends a clause only."""
    r = by_hand("one two three four five, six seven eight nine ten. a b c d e; f g h i 3.5 j k l m n?! x")
    clauses, sentences = (positions(r, kind, "paper").tolist() for kind in ("clauses", "sentences"))
    tokens = [r.text[a:b] for a, b in r.offsets]
    assert [tokens[i][-1] for i in sentences] == [".", "5", "!"]  # a decimal ends one, as in the paper's code
    assert set(sentences) < set(clauses)
    assert positions(r, "sentences").tolist() != sentences


def test_newlines_that_no_token_holds() -> None:
    r = render("bert", "bake the bread now\nwait an hour here")
    first = int(clause_positions(r)[0])
    assert r.text[: r.offsets[first, 1]].endswith("now")


def test_characters_of_several_tokens_end_at_the_last() -> None:
    r = render("gpt2", "我可以帮助你但是不要做。我可以帮助你但是")
    stop = r.text.index("。")
    tokens = [i for i in range(len(r)) if r.offsets[i].tolist() == [stop, stop + 1]]
    assert len(tokens) > 1
    assert tokens[-1] in clause_positions(r)


@pytest.mark.parametrize("kind", ["llama", "bert"])
@pytest.mark.parametrize("what", ["tokens", "clauses", "sentences", "last"])
def test_empty_response_has_no_positions(kind: str, what: Any) -> None:
    at = positions(render(kind, ""), what)
    assert at.dtype == np.int32
    assert at.shape == (0,)


def test_truncated_texts_have_ends_in_what_is_left() -> None:
    r = Renderer(tiny_tokenizer("llama"), 40).render("Hi", ANSWER * 5, "t")
    at = clause_positions(r)
    assert at[-1] == r.response_span[1] - 1
    assert at[0] >= r.response_span[0]


def test_unknown_words_are_refused() -> None:
    r = by_hand("a b")
    with pytest.raises(ConfigError, match="kind"):
        positions(r, "words")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="rule"):
        clause_positions(r, "mine")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="scope"):
        positions(r, scope="prompt")  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["llama", "bert", "mistral"])
@settings(max_examples=60, deadline=None)
@given(response=st.text(alphabet=st.sampled_from("ab cd.,;!?\n。<>[]é"), max_size=80))
def test_invariants(kind: str, response: str) -> None:
    r = render(kind, response)
    start, end = r.response_span
    at = clause_positions(r)
    assert at.tolist() == sorted(set(at.tolist()))
    assert (len(at) > 0) == (start < end)
    assert all(start <= p < end for p in at)
    if len(at):
        assert at[-1] == end - 1
        gaps = np.diff(at)
        assert (gaps >= DEFAULT_SPACING).all()
    paper = clause_positions(r, "paper", "all")
    assert (np.diff(paper) >= 5).all()
    assert (paper >= 5).all()
    assert set(positions(r, "sentences").tolist()) <= set(range(start, end))
