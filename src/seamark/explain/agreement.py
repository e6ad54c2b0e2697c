"""How far ratings of the same features agree: shares, Cohen's kappa, and intervals that resample features.

Kappa is agreement beyond what two raters with these habits reach by chance: 1 for full agreement, 0 for none beyond
chance; weighted, a disagreement counts by its distance (linear) or the square of it (quadratic). What is undefined is
not available, with the reason. Where all ratings agree, or none do, resampling gives an interval without width: a share
then has the exact one of Clopper and Pearson over its features, kappa has none.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from seamark.stats import Estimate, bootstrap_of_sums, cluster_codes

RATINGS = (1, 2, 3, 4, 5)
RELEVANT = 5
"""Rating from which a feature counts as safety-relevant: SAFER keeps those rated 5."""
MIN_AGREEMENT, MAX_DISAGREEMENT, FEATURES = 0.80, 0.30, 100
"""METHODS §1.9 after SAFER: more than 80 % agreement on 100 features; more than 30 % disagreement is a failure sign."""
TAIL = 0.025
"""Probability beyond each end of a 95 % interval."""
Weights = Literal["none", "linear", "quadratic"]
Floats = NDArray[np.float64]

_I, _J = np.meshgrid(RATINGS, RATINGS, indexing="ij")
_COST: Mapping[Weights, Floats] = {
    "none": (_I != _J).astype(np.float64),
    "linear": np.abs(_I - _J).astype(np.float64),
    "quadratic": ((_I - _J) ** 2).astype(np.float64),
}


class Pair(NamedTuple):
    """Two ratings, 1-5, of one feature."""

    code: str
    first: int
    second: int


class Comparison(BaseModel):
    """Agreement of two sides, `first` and `second`. `n` of each estimate: pairs of ratings."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    first: str
    second: str
    n: int
    """Pairs of ratings: of features, or of features and raters where `second` stands for several."""
    n_features: int
    exact: Estimate
    """Share of equal ratings."""
    within_one: Estimate
    """Share of ratings at most one apart."""
    relevant: Estimate
    """Share that agree on whether the rating is `RELEVANT`."""
    relevant_kappa: Estimate
    kappa: Estimate
    kappa_linear: Estimate
    kappa_quadratic: Estimate
    confusion: tuple[tuple[int, ...], ...]
    """[5][5] counts: row is first's rating 1-5, column second's."""
    by_level: dict[int, Estimate]
    """Exact agreement among what first rated 1 … 5."""


class Check(BaseModel):
    """A threshold and the number that decides it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    status: Literal["pass", "warn", "undecided", "not available"]
    """pass: the interval is on the good side of the threshold, on 100 features or more; warn: it is on the bad side,
    however few they are; undecided: neither."""
    value: Estimate
    note: str = ""
    """Why it is undecided, and how many features there are if too few."""


def compare(first: str, second: str, pairs: Sequence[Pair], *, draws: int = 1000, seed: int = 0) -> Comparison:
    """Agreement between two sides; intervals resample features, so a feature rated by several people moves as one.

    Args:
        first: name of one side.
        second: name of the other.
        pairs: both sides' ratings, a row for each feature (and rater).
        draws: resamples.
        seed: of the resampling.
    """
    cells = np.zeros((len(RATINGS) ** 2, len(pairs)))
    for i, pair in enumerate(pairs):
        cells[(pair.first - 1) * len(RATINGS) + pair.second - 1, i] = 1.0
    codes = cluster_codes([pair.code for pair in pairs])

    def estimate(statistic: Callable[[Floats], float | None], undefined: str = "") -> Estimate:
        if not pairs:
            return Estimate.not_available("no feature was rated by both")
        return bootstrap_of_sums(lambda s: statistic(s.reshape(5, 5)), cells, codes, draws=draws, seed=seed,
                                 undefined=undefined)  # fmt: skip

    def share(counted: NDArray[np.bool_], fold: Callable[[Floats], Floats] = lambda t: t) -> Estimate:
        return _share_with_width(estimate(lambda t: _share(fold(t), counted)), n_features)

    def coefficient(of: Callable[[Floats], float | None], undefined: str) -> Estimate:
        return _without_empty_interval(estimate(of, undefined))

    def of_level(level: int) -> Estimate:
        found = estimate(partial(_of_level, level=level), f"{first} rated none of them {level}")
        return _share_with_width(found, len({pair.code for pair in pairs if pair.first == level}))

    n_features = len(set(codes.tolist()))
    table = cells.sum(1).reshape(5, 5)
    constant, constant_binary = (_constant(t, first, second) for t in (table, _binary(table)))
    return Comparison(
        first=first,
        second=second,
        n=len(pairs),
        n_features=n_features,
        exact=share(_COST["none"] == 0),
        within_one=share(_COST["linear"] <= 1),
        relevant=share(np.eye(5, dtype=np.bool_), _binary),
        relevant_kappa=coefficient(lambda t: kappa(_binary(t)), constant_binary),
        kappa=coefficient(kappa, constant),
        kappa_linear=coefficient(lambda t: kappa(t, "linear"), constant),
        kappa_quadratic=coefficient(lambda t: kappa(t, "quadratic"), constant),
        confusion=tuple(tuple(int(n) for n in row) for row in table),
        by_level={level: of_level(level) for level in RATINGS},
    )


def kappa(table: Floats, weights: Weights = "none") -> float | None:
    """Cohen's kappa of a [5, 5] table of counts: `sklearn.metrics.cohen_kappa_score`, without its cost per call.

    None where a side gave only one rating: kappa would be 0 (or 0/0) whatever the other side says.
    """
    rows, columns = table.sum(1), table.sum(0)
    if np.count_nonzero(rows) < 2 or np.count_nonzero(columns) < 2:
        return None
    expected = np.outer(rows, columns) / table.sum()
    return float(1.0 - (_COST[weights] * table).sum() / (_COST[weights] * expected).sum())


def population_agreement(
    pairs: Sequence[Pair], population: Mapping[int, int], *, draws: int = 1000, seed: int = 0
) -> Estimate:
    """Exact agreement to expect among all features, from a sample that took each level in another share.

    Args:
        pairs: ratings; `first` is what the sample was stratified by.
        population: {level: how many features have it}.
        draws: resamples of features.
        seed: of the resampling.
    """
    if not pairs:
        return Estimate.not_available("no feature was rated by both")
    counts = np.asarray([population.get(level, 0) for level in RATINGS], np.float64)
    lines = np.zeros((10, len(pairs)))
    for i, pair in enumerate(pairs):
        lines[pair.first - 1, i], lines[pair.first + 4, i] = float(pair.first == pair.second), 1.0

    def statistic(sums: Floats) -> float | None:
        agree, rated = sums[:5], sums[5:]
        if ((counts > 0) & (rated == 0)).any():
            return None
        return float((counts * agree / np.maximum(rated, 1.0)).sum() / counts.sum())

    codes = cluster_codes([pair.code for pair in pairs])
    found = bootstrap_of_sums(statistic, lines, codes, draws=draws, seed=seed,
                              undefined="of some level with features none was rated")  # fmt: skip
    if found.value is None:
        return found
    # A level that was sampled thinly for its weight decides: a sample in proportion of so many tells no more than this.
    rated = [len({pair.code for pair in pairs if pair.first == level}) for level in RATINGS]
    return _share_with_width(found, min(n * counts.sum() / c for n, c in zip(rated, counts, strict=True) if c))


def _share_with_width(found: Estimate, n: float) -> Estimate:
    """A share of 0 or 1 among `n` features with its Clopper-Pearson interval; others as they are."""
    if found.value not in (0.0, 1.0) or n <= 0:
        return found
    bound = TAIL ** (1 / n)
    low, high = (bound, 1.0) if found.value else (0.0, 1.0 - bound)
    return Estimate(value=found.value, low=low, high=high, n=found.n)


def _without_empty_interval(found: Estimate) -> Estimate:
    """A coefficient without the interval where every resample gave the same."""
    if found.low is None or found.low != found.high:
        return found
    return Estimate(value=found.value, n=found.n, reason="no interval: all resamples give the same")


def checks(comparison: Comparison) -> tuple[Check, Check]:
    """METHODS §1.9: more than 80 % of exact agreement on 100 features, and no more than 30 % of disagreement."""
    exact = comparison.exact
    if exact.value is None:
        return (Check(name=_AGREEMENT, status="not available", value=exact),
                Check(name=_FAILURE, status="not available", value=exact))  # fmt: skip
    right = sum(comparison.confusion[i][i] for i in range(5))
    low, high = (None if bound is None else 1.0 - bound for bound in (exact.high, exact.low))
    wrong = Estimate(value=(comparison.n - right) / comparison.n, low=low, high=high, n=exact.n, reason=exact.reason)
    n = comparison.n_features
    return (_check(_AGREEMENT, exact, MIN_AGREEMENT, n, above=True),
            _check(_FAILURE, wrong, MAX_DISAGREEMENT, n, above=False))  # fmt: skip


_AGREEMENT = f"agreement above {MIN_AGREEMENT:.0%}".replace("%", " %")
_FAILURE = f"disagreement not above {MAX_DISAGREEMENT:.0%} (else a failure sign)".replace("%", " %")


def _check(name: str, value: Estimate, threshold: float, n_features: int, *, above: bool) -> Check:
    """Whether `value` is, beyond doubt, `above` the threshold, or else below it."""
    few = "" if n_features >= FEATURES else f"on {n_features} features, not {FEATURES}"
    status: Literal["pass", "warn", "undecided"] = "undecided"
    if value.low is None or value.high is None:
        open_ = value.reason
    elif value.low <= threshold <= value.high:
        open_ = "the interval holds the threshold"
    else:
        open_ = ""
        if (value.low > threshold) != above:
            status = "warn"
        elif not few:
            status = "pass"
    return Check(name=name, status=status, value=value, note="; ".join(filter(None, (few, open_))))


def _share(table: Floats, counted: NDArray[np.bool_]) -> float | None:
    return float(table[counted].sum() / table.sum()) if table.sum() else None


def _of_level(table: Floats, level: int) -> float | None:
    """Exact agreement among what the first side rated `level`."""
    row = table[level - 1]
    return float(row[level - 1] / row.sum()) if row.sum() else None


def _binary(table: Floats) -> Floats:
    """The table of below `RELEVANT` (as rating 1) and from it on (as rating 5)."""
    at, found = RELEVANT - 1, np.zeros((5, 5))
    found[0, 0], found[0, 4] = table[:at, :at].sum(), table[:at, at:].sum()
    found[4, 0], found[4, 4] = table[at:, :at].sum(), table[at:, at:].sum()
    return found


def _constant(table: Floats, first: str, second: str) -> str:
    """Why kappa is undefined; empty where it is defined."""
    sides = [name for name, sums in ((first, table.sum(1)), (second, table.sum(0))) if np.count_nonzero(sums) == 1]
    return f"only one rating was given by {' and by '.join(sides)}" if sides else ""
