"""The ranking over several scores, and the probability that a label is wrong."""

from __future__ import annotations

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


def test_probabilities_are_calibrated_where_labels_are_turned_round_at_random() -> None:
    rng = np.random.default_rng(0)
    n, rho = 20_000, 0.15
    truth = rng.normal(1.5, 1.7, n)  # log-odds that the answer called better is the better one
    true_label = rng.random(n) < 1 / (1 + np.exp(-truth))
    x = np.where(true_label, truth, -truth)  # the pair in the order of its true label
    wrong = rng.random(n) < rho
    seen = np.where(wrong, -x, x)
    p_seen = (1 - rho) / (1 + np.exp(-seen)) + rho / (1 + np.exp(seen))
    odds = {str(i): 3.0 * v for i, v in enumerate(np.log(p_seen / (1 - p_seen)))}  # a scale that has to be found
    found = np.asarray(list(wrong_probability(odds, Estimate(value=rho)).values()))
    assert found.mean() == pytest.approx(wrong.mean(), abs=0.02)
    for low, high in ((0.0, 0.05), (0.05, 0.2), (0.2, 0.6), (0.6, 1.01)):
        inside = (found >= low) & (found < high)
        assert inside.sum() > 200
        assert wrong[inside].mean() == pytest.approx(found[inside].mean(), abs=0.06)


@pytest.mark.parametrize("share", [Estimate.not_available("few"), Estimate(value=0.5)])
def test_without_a_share_there_is_no_probability(share: Estimate) -> None:
    assert wrong_probability({"a": 1.0}, share) == {}
