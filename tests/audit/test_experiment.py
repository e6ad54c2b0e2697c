"""What an experiment says of planted margins, against numbers worked out by hand."""

from __future__ import annotations

import pytest

from seamark.audit.experiment import ONE_SEED, Cell, Experiment
from seamark.text.pairs import Pairs, PreferencePair

SAFETY, CHAT = [f"s{i}" for i in range(10)], [f"c{i}" for i in range(4)]
TEST = Pairs(tuple(PreferencePair(i, "safety" if i[0] == "s" else "chat", f"prompt {i}", "yes", "no")
                   for i in [*SAFETY, *CHAT]))  # fmt: skip


def margins(n_safety: int, n_chat: int = 4, tie: bool = False) -> dict[str, float]:
    """Right on the first pairs of each group, wrong on the others; `tie` makes the last wrong one equal."""
    found = {i: 1.0 if n < n_safety else -1.0 for n, i in enumerate(SAFETY)}
    return found | {i: 2.0 if n < n_chat else -2.0 for n, i in enumerate(CHAT)} | ({SAFETY[-1]: 0.0} if tie else {})


def grid(**runs: dict[int, dict[str, float]]) -> Experiment:
    """`safer={seed: margins}`; all edited ones at rate 0.05."""
    cells = {Cell(method=m, rate=0.0 if m == "none" else 0.05, seed=seed): found
             for m, by_seed in runs.items() for seed, found in by_seed.items()}  # fmt: skip
    return Experiment("poison", TEST, cells, "safety")


def test_the_effect_is_what_safer_costs_beyond_the_baseline() -> None:
    e = grid(none={0: margins(10), 1: margins(9)}, safer={0: margins(6), 1: margins(7)},
             random={0: margins(9), 1: margins(8, tie=True)})  # fmt: skip
    assert e.accuracy("none", 0.0, "safety").value == pytest.approx(0.95)
    assert e.lost("safer", 0.05, "safety").value == pytest.approx((0.4 + 0.2) / 2)
    assert e.lost("random", 0.05, "safety").value == pytest.approx((0.1 + 0.05) / 2)  # a tie counts one half
    effect = e.effect(0.05, "safer", "random")
    assert effect.value == pytest.approx(0.30 - 0.075)
    assert effect.low is not None
    assert effect.high is not None
    assert effect.low < 0.225 < effect.high
    assert e.kept("safer", 0.05, "safety").value == pytest.approx((0.65 - 0.5) / (0.95 - 0.5))
    assert e.kept("safer", 0.05, "chat").value == pytest.approx(1.0)
    assert "not both run" in e.effect(0.05, "safer", "margin").reason


def test_recovery_is_the_share_of_the_damage_undone() -> None:
    clean = grid(none={0: margins(10), 1: margins(10)})
    e = grid(none={0: margins(6), 1: margins(8)}, safer={0: margins(8), 1: margins(9)}, random={0: margins(6)})
    assert e.recovery("safer", 0.05, clean).value == pytest.approx((0.85 - 0.7) / (1.0 - 0.7))
    assert e.recovery("random", 0.05, clean).value == pytest.approx(0.0)  # of seed 0 alone
    harmless = grid(none={0: margins(10), 1: margins(10)}, safer={0: margins(10), 1: margins(10)})
    assert "cost only 0.000 < 0.03" in harmless.recovery("safer", 0.05, clean).reason


def test_a_share_of_what_may_be_nothing_has_no_interval() -> None:
    """A damage of 10 points in one seed and none in the other: in many resamples there is none to recover from."""
    clean = grid(none={0: margins(10), 1: margins(10)})
    e = grid(none={0: margins(8), 1: margins(10)}, safer={0: margins(9), 1: margins(10)})
    found = e.recovery("safer", 0.05, clean)
    assert found.value == pytest.approx(0.5)
    assert found.low is found.high is None
    assert "may be 0" in found.reason


def test_half_a_grid_compares_the_seeds_that_both_have() -> None:
    e = grid(none={0: margins(10), 1: margins(9), 2: margins(10)}, safer={0: margins(5), 2: margins(7)},
             random={0: margins(9), 1: margins(2)})  # fmt: skip
    assert e.seeds_of(("safer", 0.05)) == [0, 2]
    assert e.lost("safer", 0.05, "safety").value == pytest.approx((0.5 + 0.3) / 2)
    assert e.effect(0.05).value == pytest.approx(0.4)  # seed 0 alone; seed 1's bad luck of `random` plays no part
    assert not e.lost("margin", 0.05, "safety").available


def test_one_seed_has_no_interval() -> None:
    e = grid(none={3: margins(10)}, safer={3: margins(6)}, random={3: margins(9)})
    found = (e.accuracy("safer", 0.05, "safety"), e.effect(0.05), e.kept("safer", 0.05, "safety"))
    assert [f.value for f in found] == [pytest.approx(0.6), pytest.approx(0.3), pytest.approx(0.2)]
    assert all(f.low is None and f.high is None and f.reason == ONE_SEED for f in found)
