"""Which pairs to look at first: a ranking over several scores, and the probability that a label is wrong."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.special import expit
from scipy.stats import rankdata

from seamark.audit.scores import PairScores
from seamark.stats import Estimate

RULE = ("margin", "latents")
"""Methods whose ranks are averaged unless one is asked for: one looks at the model's verdict, one at its insides."""
SUSPICION = "mean rank"
UNKNOWN = 0.5
"""Rank of a pair that no method could score: neither suspicious nor clear."""


def mean_rank(scores: Mapping[str, Mapping[str, float]], ids: Sequence[str], methods: Collection[str]) -> PairScores:
    """Mean over methods of a pair's rank within `ids`, 0 (most suspicious) to 1; ties share their mean rank.

    Ranks make methods of different scales comparable. A pair that a method could not score counts by the others; one
    that none could score gets the middle rank.

    Args:
        scores: {method: {pair id: score}}, higher = label more clearly right.
        ids: pairs to rank, those of one group.
        methods: which of the scores count.
    """
    ranks = np.stack([_ranks(scores[m], ids) for m in methods])
    known = np.isfinite(ranks)
    n = known.sum(0)
    mean = np.where(n > 0, np.where(known, ranks, 0.0).sum(0) / np.maximum(n, 1), UNKNOWN)
    return PairScores(method=SUSPICION, values=dict(zip(ids, mean.tolist(), strict=True)))


def _ranks(values: Mapping[str, float], ids: Sequence[str]) -> NDArray[np.float64]:
    """[ids]: rank / (n − 1) among those that have a value; NaN for the others."""
    numbers = np.asarray([values.get(i, np.nan) for i in ids], dtype=np.float64)
    known = np.isfinite(numbers)
    found = np.full(len(ids), np.nan)
    if known.any():
        found[known] = (rankdata(numbers[known]) - 1) / max(1, int(known.sum()) - 1)
    return found


def wrong_probability(log_odds: Mapping[str, float], share: Estimate) -> dict[str, float]:
    """{pair id: probability that its label is wrong}, from out-of-fold scores that labels are as they are.

    Labels are taken to be turned round with one probability ρ, whatever the pair (class-conditional noise). The chance
    η = σ(a·s) that the label as it stands is the true one comes from the score s by one number a (Platt's scaling
    without an intercept: scores are antisymmetric), which makes the labels as they stand most likely, each with
    p = (1 − ρ)η + ρ(1 − η). Then P(wrong) = ρ(1 − η) / p. As good as ρ is: with too high a one from a weak judge, pairs
    that the judge is unsure of get too high a probability.

    Args:
        log_odds: out-of-fold antisymmetric scores (`margin_crossfit`, `latents`, `probe`).
        share: ρ of the same pairs (`share.wrong_share`); empty result where it is not available or not below one half.
    """
    rho = share.value
    if rho is None or not 0 <= rho < 0.5 or not log_odds:
        return {}
    s = np.asarray(list(log_odds.values()), dtype=np.float64)
    right = expit(_stretch(s, rho) * s)
    p = np.maximum((1 - rho) * right + rho * (1 - right), 1e-12)
    return dict(zip(log_odds, (rho * (1 - right) / p).tolist(), strict=True))


def _stretch(scores: NDArray[np.float64], rho: float) -> float:
    """The a ≥ 0 that makes the labels most likely, of which a share ρ was turned round whatever a·s says.

    Without ρ in it a few sure pairs of wrong labels would hold a down, and σ(a·s) would say little of any pair.
    """
    size = float(np.sqrt((scores**2).mean())) or 1.0

    def loss(a: float) -> float:
        right = expit(a * scores / size)
        return -float(np.log(np.maximum((1 - rho) * right + rho * (1 - right), 1e-300)).mean())

    return float(minimize_scalar(loss, bounds=(0.0, 100.0), method="bounded").x) / size
