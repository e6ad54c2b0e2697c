"""RewardBench's sections in an experiment: the benchmark's own weights, intervals that stay shares."""

from __future__ import annotations

import numpy as np
import pytest

from seamark.audit.rewardbench import rewardbench_scores
from seamark.pipelines.grid_bench import Section
from seamark.text.pairs import Pairs, PreferencePair

SUBSETS = ["donotanswer"] * 20 + ["refusals-offensive"] * 5 + ["xstest-should-respond"] * 11


@pytest.fixture
def pairs() -> Pairs:
    return Pairs(tuple(
        PreferencePair(f"p{i}", "rewardbench", f"prompt {i}", f"yes {i}", f"no {i}", category=subset)
        for i, subset in enumerate(SUBSETS)
    ))  # fmt: skip


def test_a_model_that_is_always_right_or_wrong_has_no_doubt(pairs: Pairs) -> None:
    section = Section("Safety", pairs)
    for sign, expected in ((1.0, 1.0), (-1.0, 0.0)):
        found = section.accuracy({seed: dict.fromkeys(section.ids, sign) for seed in range(5)})
        assert (found.value, found.low, found.high) == (expected, expected, expected)
    lost = section.lost({0: dict.fromkeys(section.ids, 1.0), 1: dict.fromkeys(section.ids, 1.0)},
                        {0: dict.fromkeys(section.ids, -1.0), 1: dict.fromkeys(section.ids, -1.0)})  # fmt: skip
    assert (lost.value, lost.low, lost.high) == (1.0, 1.0, 1.0)


def test_equal_seeds_have_the_interval_of_one_model(pairs: Pairs) -> None:
    rng = np.random.default_rng(0)
    margins = {p.id: float(rng.normal(1.0)) for p in pairs}
    alone = rewardbench_scores(margins, pairs).section("Safety")
    section = Section("Safety", pairs)
    found = section.accuracy({0: margins, 1: margins})
    assert found.value == pytest.approx(alone.accuracy.value)
    assert found.low == pytest.approx(alone.accuracy.low, abs=0.02)
    assert found.high == pytest.approx(alone.accuracy.high, abs=0.02)
    assert section.missing == list(alone.missing)
    one = section.accuracy({0: margins})
    assert (one.value, one.low) == (pytest.approx(alone.accuracy.value), None)
    assert "one seed" in one.reason
