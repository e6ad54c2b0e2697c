"""Features that differ between two kinds of entities, beyond chance and beyond frequency and length."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.sparse import csr_matrix
from scipy.special import expit, ndtr
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
EXPECTED = 5.0
"""Entities of the rarer kind that the covariates must expect among those for which a feature fires, for a p."""
SADDLE = 2.0
"""Standard errors from which on p comes of the saddle point instead of the normal distribution."""


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
    direction: Floats
    """Sign of the feature's effect in that test: + for known entities; NaN where it was not tested."""
    expected: Floats
    """Entities of the rarer kind that frequency and length expect among its firings (`ScoreTest.expected`)."""

    def why_no_control(self, f: int) -> str:
        """The reason why a feature has no `controlled_p`; empty where it has one, or was not tested at all."""
        if np.isnan(self.p[f]) or np.isfinite(self.controlled_p[f]):
            return ""
        if self.expected[f] < EXPECTED:
            return (f"among the {self.fired[f]} entities for which it fires, {self.expected[f]:.1f} of the rarer kind "
                    f"are expected; {EXPECTED:.0f} are needed")  # fmt: skip
        return "frequency and length leave no variance"


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
    area, p, controlled, direction, expected = (np.full(d, np.nan) for _ in range(5))
    tested = np.flatnonzero(fired >= least)
    for f in tested.tolist():
        inside = slice(columns.indptr[f], columns.indptr[f + 1])
        area[f], p[f] = _rank_sum(columns.data[inside], y[columns.indices[inside]] == 1, n, n_known)
    if len(tested):
        test = score_test(columns[:, tested], y, covariates)
        controlled[tested], direction[tested], expected[tested] = test.p, test.direction, test.expected
    known, unknown = (np.asarray(x[y == side].mean(0)).ravel() for side in (1, 0))
    return Separation(fired, known, unknown, area, p, adjusted(p), controlled, adjusted(controlled), direction,
                      expected)  # fmt: skip


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


@dataclass(frozen=True, eq=False)
class ScoreTest:
    """Of every feature; all [features]."""

    p: Floats
    """Two-sided; NaN where `expected` is too low or the covariates leave no variance."""
    direction: Floats
    """Sign of U: + where the feature is stronger for y = 1 than the covariates let expect."""
    expected: Floats
    """Entities of the rarer kind expected where the feature fires: the sum of min(p̂, 1 − p̂) over its firings."""


def score_test(x: csr_matrix, y: Integers, covariates: Floats) -> ScoreTest:
    """Add each column of x [entities, features] to a logistic regression on the covariates.

    Rao's score test by the efficient score: U = x̃ᵀ(y − p̂) with x̃ = x − Z (ZᵀWZ)⁻¹ ZᵀWx and W = p̂(1 − p̂). p̂ is of a
    ridge fit, for which Zᵀ(y − p̂) is not 0, so that xᵀ(y − p̂) would hold a part of what the covariates explain: a
    feature that merely follows them would be found. As x̃ᵀWZ = 0, U does not change with the coefficients of the fit to
    first order, whatever the ridge, and V = x̃ᵀWx̃ = xᵀWx − xᵀWZ (ZᵀWZ)⁻¹ ZᵀWx is its variance with or without one.
    U²/V is χ² with one degree of freedom, as long as U is a sum of many terms; its tails beyond two standard errors are
    the saddle point's (`upper_tail`). A feature that fires for a few entities, all but certain by the covariates, has a
    U of one or two of them. So p is not available where fewer than `EXPECTED` of the rarer kind are expected among its
    firings.
    """
    z = np.hstack([np.ones((len(y), 1)), standard(covariates)])
    fitted = _logistic(z[:, 1:], y, NULL_RIDGE).predict_proba(z[:, 1:])[:, 1]
    w = fitted * (1 - fitted)
    xwz = np.asarray(x.T @ (z * w[:, None]))
    inverse = np.linalg.pinv(z.T @ (z * w[:, None]))
    gained = np.asarray(x.T @ (y - fitted)).ravel() - xwz @ (inverse @ (z.T @ (y - fitted)))
    own = np.asarray(x.multiply(x).T @ w).ravel()
    spread = own - np.einsum("fi,ij,fj->f", xwz, inverse, xwz)
    expected = np.asarray((x != 0).T @ np.minimum(fitted, 1 - fitted)).ravel()
    enough = (spread > 1e-9 * np.maximum(own, 1e-30)) & (expected >= EXPECTED)
    chi = np.where(enough, gained / np.sqrt(np.maximum(spread, 1e-300)), np.nan)
    p: Floats = 2 * ndtr(-np.abs(chi))
    columns = x.tocsc()
    for f in np.flatnonzero(np.abs(chi) > SADDLE).tolist():
        rest = columns[:, [f]].toarray().ravel() - z @ (inverse @ xwz[f])
        p[f] = min(upper_tail(rest, fitted, abs(gained[f])) + upper_tail(-rest, fitted, abs(gained[f])), 1.0)
    return ScoreTest(p, np.sign(chi), expected)


def upper_tail(a: Floats, p: Floats, u: float) -> float:
    """P(Σ a (y − p) ≥ u) of independent y that are 1 with the probabilities p, by the saddle point; u > 0.

    Barndorff-Nielsen's formula with the exact cumulants, as in the score tests of genome scans (Dey et al., AJHG 101,
    2017), since the normal tail is far too small where the sum is skewed.

    Args:
        a: [n].
        p: [n], in (0, 1).
        u: in the units of a.
    """
    yes, no, mean = np.log(np.maximum(p, 1e-300)), np.log1p(-np.minimum(p, 1 - 1e-16)), float(a @ p)
    most = float(np.maximum(a, 0).sum()) - mean
    if u > most * (1 + 1e-9):
        return 0.0
    at_most = float(np.exp(yes[a > 0].sum() + no[a < 0].sum()))

    def slope(t: float) -> float:
        return float(a @ expit(a * t + yes - no)) - mean - u

    high = u / float(a * a @ (p * (1 - p)))
    while slope(high) < 0 and high * u < 1e9:
        high *= 2
    if u >= most * (1 - 1e-9) or slope(high) < 0:
        return at_most
    t = float(brentq(slope, 0.0, high))
    tilted = expit(a * t + yes - no)
    cumulant = float(np.logaddexp(no, yes + a * t).sum()) - t * mean
    w = np.sqrt(max(2 * (t * u - cumulant), 1e-300))
    v = t * np.sqrt(float(a * a @ (tilted * (1 - tilted))))
    return float(ndtr(-(w + np.log(v / w) / w)))


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
