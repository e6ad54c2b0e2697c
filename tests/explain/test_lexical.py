"""The lexical explainer and simulator, on features whose rule is known."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import fisher_exact

from planted_contexts import (
    NOUNS,
    Rule,
    at_random,
    context,
    half_of,
    make_texts,
    on_bigram,
    on_word,
    plant,
    within,
)
from seamark.errors import DataError
from seamark.explain.lexical import NO_LEXICON, NO_RATING, LexicalSimulator, explain_lexical
from seamark.explain.lexicon import ANY, chance, learn_lexicon
from seamark.explain.ratings import Rating
from seamark.explain.records import Explanation
from seamark.explain.simulating import simulate
from seamark.explain.taxonomy import Tag, Taxonomy
from seamark.features.context_sets import ContextHalf, FeatureContexts

TAXONOMY = Taxonomy.model_validate({"domains": {
    "politics": {"keywords": ["government", "选举"], "concepts": {"event": {"keywords": ["vote", "election day"]}}},
    "sea": {"keywords": ["harbor", "ships"]},
}})  # fmt: skip


def explained(feature: FeatureContexts) -> Explanation:
    return explain_lexical(feature, TAXONOMY)


def score(feature: FeatureContexts, level: str = "segment") -> float | None:
    key = (feature.sae_id, feature.latent)
    return simulate({key: feature}, {key: explained(feature)}, level=level)[0].correlation.value  # type: ignore[arg-type]


def ngrams(found: Explanation) -> list[tuple[str, ...]]:
    return [e.ngram for e in found.lexicon]


@pytest.mark.parametrize(
    ("rule", "extra", "said", "pattern"),
    [
        (on_word("vote"), ["vote", "poll"], 'Fires on "vote".', ("vote",)),
        (on_bigram("election", "day"), ["election day", "day", "election"], 'Fires on "election day".',
         ("election", "day")),
        (within("vote", "government"), ["vote", "vote", "government", "government"],
         'Fires on "vote" in texts with "government".', ("government", "…", "vote")),
    ],
)  # fmt: skip
def test_a_planted_rule_is_found_and_simulated(
    rule: Rule, extra: Sequence[str], said: str, pattern: tuple[str, ...]
) -> None:
    feature = plant(rule, extra)
    found = explained(feature)
    assert found.text == said
    assert ngrams(found) == [pattern, ANY]
    assert found.method == "lexical"
    assert found.model is None
    assert (found.rating, found.rating_reason) == (None, NO_RATING)
    for level in ("segment", "token"):
        assert (score(feature, level) or 0) >= 0.9


def test_a_feature_of_several_words_and_a_weak_one() -> None:
    words = {"vote": 9.0, "poll": 8.0, "ballot": 7.0}
    rng = random.Random(3)
    feature = plant(lambda text: [words.get(w, 4.0 * (w == "music" and rng.random() < 0.3)) for w in text], [*words])
    found = explained(feature)
    assert found.text is not None
    assert found.text.startswith("Fires on ")
    assert all(f'"{word}"' in found.text.split(";")[0] for word in words)
    assert found.text.endswith('; now and then on "music".')
    weight = {e.ngram: e.weight for e in found.lexicon}
    assert weight["vote",] == pytest.approx(9, abs=0.6)
    assert weight["ballot",] == pytest.approx(7, abs=1)
    assert weight["music",] < 4
    assert (score(feature, "token") or 0) >= 0.9
    assert [*map(str, found.tags)] == ["politics/event"]


def test_anywhere_in_texts_that_hold_a_word() -> None:
    feature = plant(lambda words: [5.0 * ("government" in words)] * len(words), ["government"])
    found = explained(feature)
    assert found.text == 'Fires anywhere in texts with "government".'
    assert ngrams(found) == [("government", "…"), ANY]
    assert score(feature, "token") == pytest.approx(1)
    assert found.tags == (Tag("politics"),)


@pytest.mark.parametrize("seed", range(6))
def test_chance_is_not_explained(seed: int) -> None:
    feature = plant(at_random(seed), seed=seed)
    value = score(feature)
    assert value is None or abs(value) < 0.15
    if value is None:
        assert explained(feature).text is None


def test_only_the_explain_half_is_looked_at() -> None:
    feature, other = plant(on_word("vote"), ["vote"]), plant(on_word("bread"), seed=4)
    assert explained(replace(feature, simulate=other.simulate)) == explained(feature)


def test_the_order_of_texts_changes_nothing() -> None:
    feature = plant(lambda words: [7.0 * (w in ("vote", "poll", "harbour")) for w in words], ["vote", "poll"])
    assert explained(feature) == explained(plant(
        lambda words: [7.0 * (w in ("vote", "poll", "harbour")) for w in words], ["vote", "poll"]))  # fmt: skip
    half = feature.explain
    turned = ContextHalf(half.top[::-1], {k: v[::-1] for k, v in half.levels.items()}, half.silent[::-1],
                         half.near_miss[::-1])  # fmt: skip
    one, two = explained(feature), explained(replace(feature, explain=turned))
    assert sorted(map(repr, one.lexicon)) == sorted(map(repr, two.lexicon))
    assert set(one.tags) == set(two.tags)


def test_chinese() -> None:
    rng = random.Random(0)
    other = "天地人水火山石风雨雪花草木鸟鱼"
    texts = []
    for _ in range(300):
        some = [rng.choice(other) for _ in range(24)]
        for word in ("选举", "选", "举"):
            if rng.random() < 0.3:
                at = rng.randrange(20)
                some[at:at] = list(word)
        texts.append((*some[:12], "，", *some[12:], "。"))
    feature = plant(on_bigram("选", "举"), texts=texts)
    found = explained(feature)
    assert found.text == 'Fires on "选举".'
    assert found.tags == (Tag("politics"),)
    assert (score(feature) or 0) >= 0.9


def test_pieces_of_words() -> None:
    """A feature on the first piece of a word, and one on its last."""
    texts = [tuple(piece for t in tokens for piece in ((" anti", "dote") if t.strip() == "vote" else (t,)))
             for tokens in make_texts(["vote", "anti"])]  # fmt: skip
    first = plant(lambda t: [9.0 * (w == "anti" and t[i + 1 : i + 2] == ["dote"]) for i, w in enumerate(t)],
                  texts=texts)  # fmt: skip
    assert ngrams(explained(first))[0] == ("anti…",)
    assert score(first, "token") == pytest.approx(1)
    last = plant(on_word("dote"), texts=texts)
    assert ngrams(explained(last))[0] == ("antidote",)


def test_hostile_text_stays_text() -> None:
    nasty = 'IGNORE"; DROP\u202etable\x00<script>{{x}}${y}'
    texts = [tuple(f" {nasty}" if t.strip() == "vote" else t for t in tokens) for tokens in make_texts(["vote"])]
    feature = plant(lambda words: [9.0 * ("drop" in w) for w in words], texts=texts)
    found = explained(feature)
    assert found.text is not None
    assert "\u202e" not in found.text
    assert "\x00" not in found.text
    assert (score(feature) or 0) >= 0.9
    ellipsis = [tuple(" …" if t.strip() == "vote" else t for t in tokens) for tokens in make_texts(["vote"])]
    points = plant(on_word("…"), texts=ellipsis)
    assert ngrams(explained(points)) == [("...",), ANY]
    assert (score(points) or 0) >= 0.9


def test_tags_need_a_share_of_the_firings() -> None:
    words = ["vote", *NOUNS[1:7]]
    some = explained(plant(lambda text: [8.0 * (w in words) for w in text], ["vote"] * 2))
    assert some.text is not None
    assert ("vote",) in ngrams(some)
    assert Tag("politics", "event") not in some.tags
    spelt = explained(plant(on_word("harbour")))
    assert spelt.tags == (Tag("sea"),)  # British and American are one
    assert explained(plant(on_word("bread"))).tags == ()


def test_ratings_come_from_the_statistical_rater_alone() -> None:
    feature = plant(on_word("vote"), ["vote"])
    rating = Rating(sae="sae", latent=7, rating=4, why="fires in safety texts")
    found = explain_lexical(feature, TAXONOMY, rating=rating)
    assert (found.rating, found.rating_reason) == (4, "fires in safety texts")
    with pytest.raises(DataError, match="the rating is of sae/8"):
        explain_lexical(feature, TAXONOMY, rating=rating.model_copy(update={"latent": 8}))


def test_no_explanation_has_a_reason() -> None:
    rare = FeatureContexts(
        "sae", 1, None, "the feature fires at fewer than 10 response tokens", ContextHalf(), ContextHalf()
    )
    assert explained(rare).reason == rare.reason
    none = FeatureContexts("sae", 1, 2.0, "", ContextHalf(), ContextHalf())
    assert "no texts" in explained(none).reason
    silent = half_of([context(f"t{i}", ["a", " b"], [0, 0]) for i in range(9)])
    assert explained(replace(none, explain=silent)).reason == NO_LEXICON
    always = half_of([context(f"t{i}", ["a", " b"], [5, 5]) for i in range(9)])
    assert explained(replace(none, explain=always)).reason == NO_LEXICON
    empty = half_of([context("t", [], [])])
    assert explained(replace(none, explain=empty)).text is None
    for found in (explained(rare), explained(none)):
        assert (found.text, found.lexicon, found.tags, found.rating) == (None, (), (), None)


def test_unread_tokens_are_no_evidence() -> None:
    """Prompts are not read: 0 there does not speak against a word."""
    feature = plant(on_word("vote"), ["vote"])

    def behind_a_prompt(half: ContextHalf) -> ContextHalf:
        def longer(c):  # type: ignore[no-untyped-def]
            return replace(c, tokens=(*[" vote"] * 19, ".", *c.tokens), activations=(0.0,) * 20 + c.activations,
                           read=(False,) * 20 + c.read, scoring=(False,) * 20 + c.scoring)  # fmt: skip

        levels = {k: tuple(map(longer, v)) for k, v in half.levels.items()}
        return ContextHalf(*(tuple(map(longer, some)) for some in (half.top,)), levels, tuple(map(longer, half.silent)),
                           tuple(map(longer, half.near_miss)))  # fmt: skip

    prompted = replace(feature, explain=behind_a_prompt(feature.explain))
    assert explained(prompted).text == 'Fires on "vote".'
    assert explained(prompted).lexicon == explained(feature).lexicon


def test_counts_say_what_each_entry_decides() -> None:
    feature = plant(on_word("day"), ["election day", "day", "vote"])
    entries = learn_lexicon(feature.explain.contexts)
    seen = [t.strip().lower() for c in feature.explain.contexts for t in c.tokens]
    assert sum(e.seen for e in entries) == len(seen)
    assert next(e for e in entries if e.ngram == ("day",)).fires == seen.count("day")
    assert entries[-1].ngram == ANY
    assert entries[-1].fires == 0


def test_what_more_specific_entries_leave_of_another_falls_to_the_less_specific() -> None:
    """It fires on "day" now and then, on "the/our/old election day" always, on "of election day" never: "election day"
    is found before its three cases, which leave only silent tokens of it. "day" tells those, as in simulation."""
    rng = random.Random(2)
    texts, others = [], list[float]()
    for i in range(240):
        words, levels, kind = [rng.choice(NOUNS) for _ in range(10)], [0.0] * 10, i % 20
        if kind < 8:
            words[3:6], levels[5] = [rng.choice(["the", "our", "old"]), "election", "day"], 10.0
        elif kind < 12:
            words[3:6] = [rng.choice(["of", "and", "under", "before"]), "election", "day"]
        elif kind < 19:
            words[4], levels[4] = "day", 6.0 * (i % 2)
        others += [level for word, level in zip(words, levels, strict=True) if word == "day" and level < 10]
        texts.append(context(f"t{i}", [f" {w}" for w in words], levels))
    entries = learn_lexicon(texts)
    assert sorted(len(e.ngram) for e in entries) == [1, 1, 3, 3, 3]
    day = next(e for e in entries if e.ngram == ("day",))
    assert (day.seen, day.fires) == (len(others), sum(level > 0 for level in others))
    assert day.weight == pytest.approx(sum(others) / (len(others) + 1), abs=1e-6)
    assert sum(e.seen for e in entries) == 2400


def test_fishers_test() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        hits, misses, more, rest = rng.integers(0, 12, 4)
        expected = fisher_exact([[hits, misses], [more, rest]], alternative="greater").pvalue
        found = chance(np.array([hits]), np.array([misses]), np.array([hits + more]), np.array([misses + rest]))
        assert found[0] == pytest.approx(expected, abs=1e-9)


def test_a_simulator_needs_a_lexicon() -> None:
    spoken = Explanation(sae="s", latent=1, text="Ships.", rating_reason="none", language="en", method="llm")
    with pytest.raises(DataError, match="s/1: no lexicon"):
        LexicalSimulator(spoken)


def test_the_most_specific_entry_decides() -> None:
    def entry(*ngram: str, weight: float) -> dict[str, object]:
        return {"ngram": ngram, "weight": weight, "fires": int(weight), "seen": 10}

    made = Explanation.model_validate({
        "sae": "s", "latent": 1, "text": "x", "rating_reason": "none", "language": "en", "method": "lexical",
        "lexicon": [entry("day", weight=5), entry("senate", "…", "day", weight=8), entry("last", "day", weight=2),
                    entry("senate", "…", weight=1), entry("…", weight=0)],
    })  # fmt: skip
    simulator = LexicalSimulator(made)
    assert simulator.levels(["The", " day"]) == [0, 5]
    assert simulator.levels(["The", " DAY", " senate"]) == [1, 8, 1]
    assert simulator.levels(["last", " day"]) == [0, 2]
    assert simulator.levels(["senate", " last", " day"]) == [1, 1, 2]
    assert simulator.levels(["day", "s"]) == [0, 0]
    assert simulator.levels([]) == []
    # Cuts: at 8, 8 of 10 fire, 8 of 16 are found; at 5, 13 of 20 and 13 of 16.
    assert simulator.threshold == 5
    assert simulator.segments([0, 5, 0, 2], [(0, 2), (2, 4)]) == [1, 0]
    assert not simulator.fires([])
