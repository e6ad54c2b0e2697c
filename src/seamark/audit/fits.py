"""Correlation and least squares with intervals that resample prompts."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from seamark.stats import Estimate, Floats, bootstrap_of_sums

SAME = 1e-12
"""Variance, as a share of the mean square, below which values count as all the same."""


def is_constant(values: Floats) -> bool:
    """Whether values [n] are all the same but for rounding."""
    return bool(values.var() <= SAME * float(np.square(values).mean()))


def standard(values: Floats) -> Floats:
    """Values with mean 0 and variance 1. Not for constant ones."""
    found: Floats = (values - values.mean()) / values.std()
    return found


def correlation(
    x: Floats, y: Floats, clusters: NDArray[np.int64], names: tuple[str, str], *, draws: int = 1000, seed: int = 0
) -> Estimate:
    """Pearson correlation of x and y [n]; not available where one of them, called by its name, is constant."""
    for name, side in zip(names, (x, y), strict=True):
        if is_constant(side):
            return Estimate.not_available(f"{name} is the same everywhere", len(x))

    def pearson(sums: Floats) -> float | None:
        (mx, my, xx, yy, xy) = sums[1:] / sums[0]
        vx, vy = xx - mx * mx, yy - my * my
        return float((xy - mx * my) / np.sqrt(vx * vy)) if vx > SAME and vy > SAME else None

    x, y = standard(x), standard(y)
    lines = np.stack([np.ones_like(x), x, y, x * x, y * y, x * y])
    return bootstrap_of_sums(pearson, lines, clusters, draws=draws, seed=seed)


def partial_slopes(
    columns: Sequence[Floats], y: Floats, clusters: NDArray[np.int64], *, draws: int = 1000, seed: int = 0
) -> tuple[tuple[Estimate, ...], Estimate]:
    """Least squares of y on all `columns` with an intercept: (slope of each, the others held; share of variance
    explained, R²). Not available where the columns do not differ from each other or from a constant."""
    n, m = len(y), len(columns) + 1
    design = np.stack([np.ones(n), *columns])
    lines = np.concatenate([(design[:, None] * design).reshape(m * m, n), design * y, (y * y)[None]])

    def solve(sums: Floats) -> tuple[Floats, float] | None:
        gram, right, total = sums[: m * m].reshape(m, m), sums[m * m : -1], float(sums[-1])
        scale = np.sqrt(np.maximum(np.diag(gram), SAME))
        if np.linalg.cond(gram / np.outer(scale, scale)) > 1e8:
            return None
        slopes: Floats = np.asarray(np.linalg.solve(gram, right), dtype=np.float64)
        spread = total - right[0] ** 2 / gram[0, 0]
        return (slopes, (float(slopes @ right) - right[0] ** 2 / gram[0, 0]) / spread) if spread > SAME else None

    def one(place: int) -> Estimate:
        def statistic(sums: Floats) -> float | None:
            found = solve(sums)
            return None if found is None else float(found[0][place] if place else found[1])

        return bootstrap_of_sums(statistic, lines, clusters, draws=draws, seed=seed,
                                 undefined="the explaining numbers do not vary apart from each other")  # fmt: skip

    return tuple(one(i) for i in range(1, m)), one(0)
