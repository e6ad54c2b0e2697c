"""The ranking over several scores, and the probability that a label is wrong."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from seamark.audit.suspicion import UNKNOWN, mean_rank, wrong_probability
from seamark.stats import Estimate


def test_ranks_are_averaged_whatever_the_scales() -> None:
    scores = {"margin": {"a": -900.0, "b": 0.0, "c": 5.0}, "latents": {"a": 0.1, "b": -0.2, "c": 0.3, "x": 9.0}}
    ranked = mean_rank(scores, ["a", "b", "c"], ["margin", "latents"])
    assert ranked.values == {"a": 0.25, "b": 0.25, "c": 1.0}
    assert mean_rank(scores, ["c", "b", "a"], ["margin"]).lowest(1) == ["a"]


def test_a_pair_without_scores_is_neither_first_nor_last() -> None:
    scores = {"margin": {"a": 1.0, "b": 2.0, "c": 3.0}, "latents": {"a": 1.0, "d": 0.0}}
    ranked = mean_rank(scores, ["a", "b", "c", "d", "e"], ["margin", "latents"]).values
    assert ranked["e"] == UNKNOWN
    assert ranked["d"] == 0.0
    assert ranked["a"] == 0.5  # first by one, last by the other


def planted(rho: float, spread: float, n: int = 20_000) -> tuple[dict[str, float], Any]:
    """Scores of labels of which a share was turned round, on a scale that has to be found; which are wrong."""
    rng = np.random.default_rng(0)
    truth = rng.normal(1.5, spread, n)  # log-odds that the answer called better is the better one
    true_label = rng.random(n) < 1 / (1 + np.exp(-truth))
    x = np.where(true_label, truth, -truth)  # the pair in the order of its true label
    wrong = rng.random(n) < rho
    return {str(i): 0.3 * v for i, v in enumerate(np.where(wrong, -x, x))}, wrong


@pytest.mark.parametrize(("rho", "spread"), [(0.15, 1.7), (0.02, 1.0), (0.3, 4.0)])
def test_probabilities_are_calibrated_where_labels_are_turned_round_at_random(rho: float, spread: float) -> None:
    odds, wrong = planted(rho, spread)
    found = np.asarray(list(wrong_probability(odds, Estimate(value=rho)).values()))
    assert found.mean() == pytest.approx(wrong.mean(), abs=0.01)
    looked_at = 0
    for low, high in ((0.0, 0.05), (0.05, 0.2), (0.2, 0.5), (0.5, 0.9), (0.9, 1.01)):
        inside = (found >= low) & (found < high)
        if inside.sum() >= 100:
            looked_at += 1
            assert wrong[inside].mean() == pytest.approx(found[inside].mean(), abs=0.06)
    assert looked_at >= 3


def test_nothing_is_said_to_be_surely_wrong_on_moderate_evidence() -> None:
    """A slope fitted as if no label were wrong calls dozens of labels wrong with certainty here."""
    odds, wrong = planted(0.02, 1.0, n=1000)
    found = np.asarray(list(wrong_probability(odds, Estimate(value=0.02)).values()))
    assert found.max() < 0.97
    worst = np.argsort(-found)[:30]
    assert found[worst].mean() == pytest.approx(wrong[worst].mean(), abs=0.25)


def test_no_wrong_labels_and_scores_that_say_nothing() -> None:
    odds, _ = planted(0.1, 1.0, n=50)
    assert set(wrong_probability(odds, Estimate(value=0.0)).values()) == {0.0}
    assert list(wrong_probability({"a": 0.0, "b": 0.0}, Estimate(value=0.1)).values()) == pytest.approx([0.1, 0.1])


@pytest.mark.parametrize("share", [Estimate.not_available("few"), Estimate(value=0.5)])
def test_without_a_share_there_is_no_probability(share: Estimate) -> None:
    assert wrong_probability({"a": 1.0}, share) == {}
