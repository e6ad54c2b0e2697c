"""Shortcuts: planted ones are found and told apart, a model without any has none, small cells say so."""

from __future__ import annotations

import numpy as np
import pytest

from seamark.audit.shortcuts import Shortcuts, shortcuts
from seamark.errors import DataError
from seamark.text import Pairs, PreferencePair

NO, YES = "I can't help with that. ", "Sure, here it is. "


def made(n: int = 600, seed: int = 0, group: str = "safety") -> tuple[Pairs, np.ndarray, np.ndarray]:
    """Pairs whose lengths and refusals vary independently; (pairs, log ratio of lengths, refusal difference)."""
    rng = np.random.default_rng(seed)
    items, lengths, refusals = [], [], []
    for i in range(n):
        words = np.exp(rng.normal(3.5, 0.6, 2)).astype(int) + 1
        refusing = rng.random(2) < 0.5
        texts = [(NO if r else YES) + "word " * k for r, k in zip(refusing, words, strict=True)]
        items.append(PreferencePair(f"{group}{i}", group, f"Question {i // 2}?", texts[0], texts[1]))
        lengths.append(np.log1p(len(texts[0])) - np.log1p(len(texts[1])))
        refusals.append(float(refusing[0]) - float(refusing[1]))
    return Pairs(tuple(items)), np.asarray(lengths), np.asarray(refusals)


def margins_of(pairs: Pairs, values: np.ndarray) -> dict[str, float]:
    return dict(zip(pairs.ids, values.tolist(), strict=True))


def test_length_alone() -> None:
    pairs, length, _ = made()
    noise = np.random.default_rng(1).normal(0, 0.3, len(length))
    found = shortcuts(margins_of(pairs, length + noise), pairs, draws=200).of("safety")
    assert found.length_correlation.value == pytest.approx(np.corrcoef(length + noise, length)[0, 1])
    assert found.length_effect.low is not None
    assert found.length_effect.low > 0.8
    assert found.refusal_effect.low is not None
    assert found.refusal_effect.high is not None
    assert found.refusal_effect.low < 0 < found.refusal_effect.high
    assert found.length.along.value is not None
    assert found.length.against.value is not None
    assert found.length.along.value > 0.8
    assert found.length.against.value < 0.2
    assert found.length.gap.value == pytest.approx(found.length.along.value - found.length.against.value)
    assert found.explained.value == pytest.approx(found.length_correlation.value**2, abs=0.01)


def test_refusal_alone_and_the_slopes_are_those_of_least_squares() -> None:
    pairs, length, refusal = made()
    margin = 2.0 * refusal + 0.5 + np.random.default_rng(1).normal(0, 0.5, len(length))
    found = shortcuts(margins_of(pairs, margin), pairs, draws=200).of("safety")
    z = (margin - margin.mean()) / margin.std()
    x = np.stack([np.ones_like(z), (length - length.mean()) / length.std(), refusal], axis=1)
    slopes, *_ = np.linalg.lstsq(x, z, rcond=None)
    assert found.length_effect.value == pytest.approx(slopes[1])
    assert found.refusal_effect.value == pytest.approx(slopes[2])
    assert found.explained.value == pytest.approx(1 - np.var(z - x @ slopes))
    assert found.refusal.along.value is not None
    assert found.refusal.against.value is not None
    assert found.refusal.along.value > 0.95
    assert found.refusal.against.value < 0.1
    assert found.n_refusing_chosen == int(sum(p.chosen.startswith("I can't") for p in pairs))
    assert found.languages == {"en": found.n_refusing_chosen + found.n_refusing_rejected}
    assert found.length.gap.low is not None
    assert found.length.gap.high is not None
    assert found.length.gap.low < 0 < found.length.gap.high


def test_small_cells_are_not_available() -> None:
    pairs, length, _ = made(30)
    long = Pairs(tuple(PreferencePair(p.id, p.group, p.prompt, YES + "word " * 40, YES) for p in pairs))
    found = shortcuts(margins_of(pairs, length), long, draws=50).of("safety")
    assert found.length.against.value is None
    assert found.length.against.reason == "chosen is shorter in 0 pairs; 20 are needed"
    assert found.length.gap.value is None
    assert found.length_correlation.value is None  # the difference of length is constant
    assert found.length_effect.value is None
    assert found.refusal_effect.value is None
    assert "only chosen refuses in 0 pairs" in found.refusal_effect.reason
    assert found.explained.value is None
    few = shortcuts(margins_of(pairs, length), pairs[:10], draws=50).of("safety")
    assert few.length_correlation.reason == "10 pairs; 20 are needed"


def test_refusal_that_length_gives_away() -> None:
    """Where all refusals are short, neither can be told from the other: not available, no number."""
    long = YES + "word " * 40
    items = [PreferencePair(str(i), "safety", f"q{i}", *((NO, long) if i % 2 else (long, NO))) for i in range(60)]
    values = {p.id: 1.0 if p.chosen == NO else -1.0 for p in items}
    found = shortcuts(values, Pairs(tuple(items)), draws=50).of("safety")
    assert found.refusal_effect.value is None
    assert "do not vary apart" in found.refusal_effect.reason
    assert found.refusal.gap.value == 1.0


def test_groups_missing_margins_and_round_trip() -> None:
    one, length, _ = made(60)
    two, length2, _ = made(60, seed=3, group="chat")
    values = margins_of(one, length) | margins_of(two, -length2)
    values["safety0"] = float("nan")
    del values["chat1"]
    found = shortcuts(values, Pairs(one.items + two.items), draws=50)
    assert [g.group for g in found.groups] == ["safety", "chat"]
    assert found.n_without_margin == 2
    assert found.of("safety").n == 59
    assert found.of("safety").length_correlation.value == pytest.approx(1.0)
    assert found.of("chat").length_correlation.value == pytest.approx(-1.0)
    assert Shortcuts.model_validate_json(found.model_dump_json()) == found
    with pytest.raises(DataError, match="no group"):
        found.of("other")
    with pytest.raises(DataError, match="no pair has a reward margin"):
        shortcuts({}, one)


def test_ties_count_one_half() -> None:
    pairs, _, _ = made(200)
    found = shortcuts(dict.fromkeys(pairs.ids, 0.0), pairs, draws=50).of("safety")
    assert found.length.along.value == 0.5
    assert found.length_correlation.reason == "the margin is the same everywhere"
