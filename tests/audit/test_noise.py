"""Wrong labels on purpose: how many, which, and the way back."""

from __future__ import annotations

from collections import Counter

import pytest

from seamark.audit.editing import undo
from seamark.audit.noise import NoiseKind, make_noise
from seamark.audit.scores import PairScores
from seamark.errors import ConfigError, DataError
from seamark.text.pairs import Pairs, PreferencePair

PAIRS = Pairs(tuple(
    PreferencePair(f"{g}{i}", g, f"q{i}", f"yes {i}", f"no {i}", category=("fraud", "theft", "", "spam")[i % 4])
    for g in ("safety", "chat") for i in range(80)
))  # fmt: skip
SCORES = PairScores(method="safer", values={i: float(n) for n, i in enumerate(PAIRS.ids)})


@pytest.mark.parametrize("kind", ["random", "category", "safer", "margin"])
def test_flips_are_named_counted_and_undone(kind: NoiseKind) -> None:
    edit = make_noise(PAIRS, kind, 0.1, seed=3, scores=SCORES)
    wrong = edit.manifest.flipped
    assert len(wrong) == 8
    assert all(i.startswith("safety") for i in wrong)
    by_id = {p.id: p for p in PAIRS}
    assert all((p == by_id[p.id].flipped()) == (p.id in wrong) for p in edit.pairs)
    assert undo(edit.pairs, edit.manifest).items == PAIRS.items
    assert edit.manifest.method == ("noise" if kind == "random" else f"noise-{kind}")
    back = make_noise(Pairs(PAIRS.items[::-1]), kind, 0.1, seed=3, scores=SCORES)
    assert set(back.manifest.flipped) == set(wrong), "the order of pairs decides nothing"
    if kind in ("random", "category"):
        assert set(make_noise(PAIRS, kind, 0.1, seed=4).manifest.flipped) != set(wrong)


def test_targeted_noise_takes_what_scores_highest() -> None:
    flipped = make_noise(PAIRS, "safer", 0.05, scores=SCORES).manifest.flipped
    assert set(flipped) == {"safety76", "safety77", "safety78", "safety79"}


def test_noise_by_category() -> None:
    category = {p.id: p.category for p in PAIRS}
    named = make_noise(PAIRS, "category", 0.2, category="theft").manifest.flipped
    assert {category[i] for i in named} == {"theft"}
    assert len(named) == 16
    with pytest.raises(DataError, match="24 labels to flip, but only 20"):
        make_noise(PAIRS, "category", 0.3, category="theft")
    drawn = Counter(category[i] for i in make_noise(PAIRS, "category", 0.2, seed=1).manifest.flipped)
    assert sorted(drawn.values()) == [6, 10], "half of one category, and what is missing from the next"
    assert "" not in drawn
    with pytest.raises(ConfigError, match="fraud, spam, theft"):
        make_noise(PAIRS, "category", 0.2, category="arson")


def test_clear_noise_errors() -> None:
    with pytest.raises(ConfigError, match="kinds are: random, category, safer, margin"):
        make_noise(PAIRS, "loud", 0.1)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="needs the scores"):
        make_noise(PAIRS, "margin", 0.1)
    with pytest.raises(ConfigError, match="rate"):
        make_noise(PAIRS, "random", 1.5)
    with pytest.raises(DataError, match="no pairs in group"):
        make_noise(PAIRS, "category", 0.1, group="x")
    with pytest.raises(DataError, match="have no 'noise-safer' score"):
        make_noise(PAIRS, "safer", 0.1, scores=PairScores(method="safer", values={"safety1": 1.0}))
