"""Numbers with their doubt: estimates, bootstrap intervals by prompt, and "not available" instead of zero."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

Floats = NDArray[np.float64]
Z95 = 1.959964
"""Standard errors of a 95 % interval."""


class Estimate(BaseModel):
    """A measured quantity: `value` with a 95 % interval, or `None` with the `reason` why it is not available."""

    model_config = ConfigDict(frozen=True)

    value: float | None
    low: float | None = None
    high: float | None = None
    n: int = 0
    reason: str = ""

    @classmethod
    def not_available(cls, reason: str, n: int = 0) -> Estimate:
        """The quantity could not be computed; `reason` says why. Never stands for 0."""
        return cls(value=None, reason=reason, n=n)

    @property
    def available(self) -> bool:
        return self.value is not None


def wilson(over: Floats, under: Floats, z: float = Z95) -> tuple[Floats, Floats]:
    """Bounds of shares over / under by Wilson's score (JASA 22, 1927), each of the arguments' shape.

    Unlike a bootstrap's they leave room where all or none of a few are counted: 10 of 10 may be 72 %. NaN where nothing
    is under.

    Args:
        over: counts, or sums of weights.
        under: out of how many.
        z: standard errors; by default of 95 %.
    """
    n = np.where(under > 0, under, np.nan)
    p = over / n
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * np.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    low, high = np.minimum(middle - half, p), np.maximum(middle + half, p)  # rounding must not part them from the share
    return np.clip(low, 0.0, 1.0), np.clip(high, 0.0, 1.0)


def cluster_codes(labels: Sequence[str]) -> NDArray[np.int64]:
    """Integer code of each label, by first appearance: clusters for a bootstrap by prompt. Shape [n]."""
    seen: dict[str, int] = {}
    return np.asarray([seen.setdefault(label, len(seen)) for label in labels], dtype=np.int64)


def bootstrap_by_cluster(values: Floats, clusters: NDArray[np.int64], *, draws: int = 2000, seed: int = 0) -> Estimate:
    """Mean of `values` [n] with a percentile interval from resampling whole clusters (prompts), not rows."""
    return bootstrap_matrix(values[None, :], clusters, draws=draws, seed=seed)


def bootstrap_matrix(values: Floats, clusters: NDArray[np.int64], *, draws: int = 2000, seed: int = 0) -> Estimate:
    """Mean of a [seeds, n] matrix, resampling seeds and clusters (columns grouped by prompt) together.

    A two-way bootstrap: every draw picks seeds with replacement and prompts with replacement, so the interval
    holds both the doubt of training and that of the test prompts. Codes of clusters may have gaps.
    """
    n_seeds, n = values.shape
    if n == 0 or n_seeds == 0:
        return Estimate.not_available("no items")
    if n_bad := int((~np.isfinite(values)).any(axis=0).sum()):
        return Estimate.not_available(f"{n_bad} of {n} values are no finite numbers", n)
    # A code that nobody has would be drawn as a prompt without rows, and count as 0.
    clusters = np.unique(clusters, return_inverse=True)[1]
    n_clusters = int(clusters.max()) + 1
    if n_clusters == 1 and n_seeds == 1:
        return Estimate(value=float(values.mean()), n=n, reason="no interval: all items belong to one prompt")
    sums = np.stack([np.bincount(clusters, weights=row, minlength=n_clusters) for row in values])
    sizes = np.bincount(clusters, minlength=n_clusters).astype(np.float64)
    rng = np.random.default_rng(seed)
    means = np.empty(draws)
    for i in range(draws):
        weight = np.bincount(rng.integers(0, n_clusters, n_clusters), minlength=n_clusters)
        rows = rng.integers(0, n_seeds, n_seeds)
        means[i] = (sums[rows] @ weight).mean() / float(sizes @ weight)
    low, high = np.quantile(means, [0.025, 0.975])
    return Estimate(value=float(values.mean()), low=float(low), high=float(high), n=n)


def bootstrap(
    statistic: Callable[[NDArray[np.int64]], float | None], n: int, *, draws: int = 1000, seed: int = 0
) -> Estimate:
    """Percentile interval of any `statistic(row_indices) -> float`; draws where it is None or NaN are left out."""
    if n == 0:
        return Estimate.not_available("no items")
    value = statistic(np.arange(n))
    if value is None or not np.isfinite(value):
        return Estimate.not_available("undefined on the full sample", n)
    rng = np.random.default_rng(seed)
    drawn = [statistic(rng.integers(0, n, n)) for _ in range(draws)]
    return _with_interval(value, drawn, n)


def bootstrap_of_sums(
    statistic: Callable[[Floats], float | None], values: Floats, clusters: NDArray[np.int64], *, draws: int = 1000,
    seed: int = 0, undefined: str = "undefined on the full sample",
) -> Estimate:  # fmt: skip
    """Any function of sums over rows (a ratio of means, a correlation), with an interval from resampling clusters.

    Args:
        statistic: takes the sums [m] of each line of `values`; None or NaN where it is undefined. Draws where it is are
            left out of the interval.
        values: [m, n], or [m, seeds, n]: then sums are their means over seeds, and every draw picks seeds with
            replacement as well, so that the interval holds the doubt of training, too.
        clusters: [n] codes, as of `cluster_codes`.
        undefined: the reason given where the statistic is undefined on all rows.
    """
    n_seeds, n = 1 if values.ndim == 2 else values.shape[1], values.shape[-1]
    if n == 0 or n_seeds == 0:
        return Estimate.not_available("no items")
    value = statistic(values.reshape(len(values), n_seeds, n).mean(1).sum(1))
    if value is None or not np.isfinite(value):
        return Estimate.not_available(undefined, n)
    codes = np.unique(clusters, return_inverse=True)[1]
    n_clusters = int(codes.max()) + 1
    if n_clusters == 1 and n_seeds == 1:
        return Estimate(value=value, n=n, reason="no interval: all items belong together")
    lines = [np.bincount(codes, weights=line, minlength=n_clusters) for line in values.reshape(-1, n)]
    sums = np.stack(lines).reshape(len(values), n_seeds, n_clusters)
    rng = np.random.default_rng(seed)

    def draw() -> float | None:
        weight = np.bincount(rng.integers(0, n_clusters, n_clusters), minlength=n_clusters)
        of_seeds = sums[:, rng.integers(0, n_seeds, n_seeds)].mean(1) if n_seeds > 1 else sums[:, 0]
        return statistic(np.asarray(of_seeds @ weight))

    return _with_interval(value, [draw() for _ in range(draws)], n)


def _with_interval(value: float, drawn: Sequence[float | None], n: int) -> Estimate:
    """The estimate with the interval of those draws that are finite numbers, if they are half of all at least."""
    kept = [d for d in drawn if d is not None and np.isfinite(d)]
    if not kept or len(kept) < len(drawn) // 2:
        return Estimate(value=value, n=n, reason="interval undefined: too few valid resamples")
    low, high = np.quantile(kept, [0.025, 0.975])
    return Estimate(value=value, low=float(low), high=float(high), n=n)
