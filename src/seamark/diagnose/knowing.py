"""Features that differ between two kinds of entities, beyond chance and beyond frequency and length."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix
from scipy.special import ndtr
from scipy.stats import rankdata

from seamark.diagnose.risk_metrics import Weighted, auroc, estimates
from seamark.features.significance import adjusted
from seamark.stats import Estimate

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
FOLDS = 5
RIDGE = 1.0
"""Penalty (1 / C) of the logistic regressions that predict entities held out, on standardised columns."""
NULL_RIDGE = 0.1
"""The same of the score test's null fit: only so much that it exists where the covariates separate the classes."""


@dataclass(frozen=True, eq=False)
class Separation:
    """Every feature on its own; all [d_sae], NaN: it fires for too few entities."""

    fired: Integers
    """Entities for which it fires."""
    known: Floats
    """Mean activation / Q_f over the known entities."""
    unknown: Floats
    auroc: Floats
    """Share of pairs (a known entity, an unknown one) in which the known one's activation is higher; ties ½."""
    p: Floats
    """Two-sided p of the rank-sum test, normal approximation with ties."""
    q_value: Floats
    """`p` by Benjamini-Hochberg."""
    controlled_p: Floats
    """Two-sided p of the score test for the feature in a logistic regression that knows frequency and length."""
    controlled_q: Floats


def separate(x: csr_matrix, y: Integers, covariates: Floats, least: int) -> Separation:
    """Test every feature.

    Args:
        x: activation / Q_f of each entity [entities, d_sae].
        y: 1: known, 0: unknown.
        covariates: [entities, n], of no unit.
        least: entities for which a feature must fire.
    """
    columns = x.tocsc()
    fired = np.diff(columns.indptr).astype(np.int64)
    n, d = x.shape
    n_known = int(y.sum())
    area, p, controlled = np.full(d, np.nan), np.full(d, np.nan), np.full(d, np.nan)
    tested = np.flatnonzero(fired >= least)
    for f in tested.tolist():
        inside = slice(columns.indptr[f], columns.indptr[f + 1])
        area[f], p[f] = _rank_sum(columns.data[inside], y[columns.indices[inside]] == 1, n, n_known)
    if len(tested):
        controlled[tested] = score_test(columns[:, tested], y, covariates)
    known, unknown = (np.asarray(x[y == side].mean(0)).ravel() for side in (1, 0))
    return Separation(fired, known, unknown, area, p, adjusted(p), controlled, adjusted(controlled))


def _rank_sum(values: Floats, known: NDArray[np.bool_], n: int, n_known: int) -> tuple[float, float]:
    """(AUROC, p) of a feature from the entities for which it fires; it is 0 for the others."""
    silent = n - len(values)
    ranks = rankdata(values) + silent
    total = ranks[known].sum() + (n_known - known.sum()) * (silent + 1) / 2
    n_unknown = n - n_known
    u = total - n_known * (n_known + 1) / 2
    runs = np.unique(values, return_counts=True)[1].astype(np.float64)
    ties = (runs**3 - runs).sum() + (float(silent) ** 3 - silent)
    spread = n_known * n_unknown / 12 * (n + 1 - ties / (n * (n - 1)))
    if spread <= 0:
        return float(u / (n_known * n_unknown)), np.nan
    z = max(abs(u - n_known * n_unknown / 2) - 0.5, 0.0) / np.sqrt(spread)
    return float(u / (n_known * n_unknown)), float(2 * ndtr(-z))


def score_test(x: csr_matrix, y: Integers, covariates: Floats) -> Floats:
    """p of adding each column of x [entities, features] to a logistic regression on the covariates [features].

    Rao's score test by the efficient score: U = x̃ᵀ(y − p̂) with x̃ = x − Z (ZᵀWZ)⁻¹ ZᵀWx and W = p̂(1 − p̂). p̂ is of a
    ridge fit, for which Zᵀ(y − p̂) is not 0, so that xᵀ(y − p̂) would hold a part of what the covariates explain: a
    feature that merely follows them would be found. As x̃ᵀWZ = 0, U does not change with the coefficients of the fit to
    first order, whatever the ridge, and V = x̃ᵀWx̃ = xᵀWx − xᵀWZ (ZᵀWZ)⁻¹ ZᵀWx is its variance with or without one.
    U²/V is χ² with one degree of freedom. NaN where the covariates leave no variance.
    """
    z = np.hstack([np.ones((len(y), 1)), standard(covariates)])
    fitted = _logistic(z[:, 1:], y, NULL_RIDGE).predict_proba(z[:, 1:])[:, 1]
    w = fitted * (1 - fitted)
    xwz = np.asarray(x.T @ (z * w[:, None]))
    inverse = np.linalg.pinv(z.T @ (z * w[:, None]))
    gained = np.asarray(x.T @ (y - fitted)).ravel() - xwz @ (inverse @ (z.T @ (y - fitted)))
    own = np.asarray(x.multiply(x).T @ w).ravel()
    spread = own - np.einsum("fi,ij,fj->f", xwz, inverse, xwz)
    with np.errstate(divide="ignore", invalid="ignore"):
        chi = np.where(spread > 1e-9 * np.maximum(own, 1e-30), gained / np.sqrt(np.maximum(spread, 1e-300)), np.nan)
    found: Floats = 2 * ndtr(-np.abs(chi))
    return found


def standard(x: Floats) -> Floats:
    """Columns with mean 0 and spread 1; constant ones are 0."""
    spread = x.std(0)
    found: Floats = (x - x.mean(0)) / np.where(spread > 0, spread, 1.0)
    return found


def folds_of(y: Integers, seed: int) -> Integers:
    """[entities] the fold of each, both kinds spread evenly."""
    rng, found = np.random.default_rng(seed), np.zeros(len(y), np.int64)
    for side in (0, 1):
        rows = rng.permutation(np.flatnonzero(y == side))
        found[rows] = np.arange(len(rows)) % FOLDS
    return found


@dataclass(frozen=True, eq=False)
class Doubt:
    """How intervals are made: entities are drawn."""

    y: Integers
    fold: Integers
    draws: int
    seed: int

    def area(self, score: Floats, *, by_fold: bool = False) -> Estimate:
        """AUROC of a score [entities]; `by_fold`: over pairs from the same fold."""
        strata = self.fold if by_fold else np.zeros(len(self.y), np.int64)
        return self._made({"area": auroc(self.y, score, strata)})

    def difference(self, score: Floats, other: Floats) -> Estimate:
        """AUROC of one less that of the other, by fold, on the same draws."""
        a, b = auroc(self.y, score, self.fold), auroc(self.y, other, self.fold)
        return self._made({"area": lambda w: a(w) - b(w)})

    def mean_difference(self, value: Floats) -> Estimate:
        """Mean of the known − mean of the unknown."""
        yes, no = (self.y == 1).astype(np.float64), (self.y == 0).astype(np.float64)

        def statistic(w: Floats) -> Floats:
            with np.errstate(divide="ignore", invalid="ignore"):
                found: Floats = (w * yes) @ value / (w @ yes) - (w * no) @ value / (w @ no)
            return found

        return self._made({"area": statistic})

    def _made(self, wanted: Mapping[str, Weighted]) -> Estimate:
        found = estimates(wanted, np.arange(len(self.y)), draws=self.draws, seed=self.seed)
        return found["area"]


def out_of_fold(x: Floats, y: Integers, fold: Integers) -> Floats:
    """Log-odds of each entity by a logistic regression [entities] that was fitted on the other folds."""
    score = np.zeros(len(y))
    for k in range(FOLDS):
        train, test = fold != k, fold == k
        if test.any() and 0 < y[train].sum() < train.sum():
            centre, spread = x[train].mean(0), x[train].std(0)
            spread = np.where(spread > 0, spread, 1.0)
            model = _logistic((x[train] - centre) / spread, y[train])
            score[test] = model.decision_function((x[test] - centre) / spread)
    return score


def held_out_best(x: csr_matrix, y: Integers, fold: Integers, least: int) -> Floats:
    """Of every entity, the activation of the feature that separates best in the other folds, with the sign it has
    there [entities]."""
    score = np.zeros(len(y))
    for k in range(FOLDS):
        train, test = fold != k, fold == k
        if not test.any() or not 0 < y[train].sum() < train.sum():
            continue
        found = separate(x[train], y[train], np.zeros((int(train.sum()), 1)), least).auroc
        strength = np.where(np.isnan(found), 0.0, np.abs(found - 0.5))
        best = int(np.argmax(strength))
        sign = -1.0 if found[best] < 0.5 else 1.0
        score[test] = sign * x[test][:, [best]].toarray().ravel()
    return score


def _logistic(x: Floats, y: Integers, ridge: float = RIDGE) -> Any:
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression(C=1 / ridge, max_iter=300).fit(x, y)
