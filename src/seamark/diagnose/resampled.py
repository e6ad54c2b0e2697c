"""Pairs of one side of a comparison, and resamples of their prompts: the same for all that is measured on them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from seamark.diagnose.retention import Draws
from seamark.stats import Estimate, Floats, cluster_codes

NO_OTHERS = "no pairs of other groups"


class Side:
    """Pairs of the target group, or of the others.

    Attributes:
        rows: which of all pairs they are; the texts of pair i are 2i (chosen) and 2i + 1 (rejected).
        codes: the prompt of each.
    """

    def __init__(self, name: str, rows: NDArray[np.int64], prompts: Sequence[str], draws: int, seed: int) -> None:
        self.name, self.rows, self.prompts = name, rows, prompts
        self.codes = cluster_codes([prompts[i] for i in rows])
        self.draws = Draws.of(int(self.codes.max()) + 1, draws, seed)

    def some(self, most: int, seed: int) -> NDArray[np.int64]:
        """A sample of at most so many of its pairs: places among them, ascending. A smaller one is part of a larger."""
        return np.sort(np.random.default_rng(seed).permutation(len(self.rows))[:most])

    def sample(self, most: int, seed: int) -> Side:
        """Those pairs as a side of their own."""
        n_draws = self.draws.times.shape[1] - 1
        return Side(self.name, self.rows[self.some(most, seed)], self.prompts, n_draws, seed)

    @property
    def texts(self) -> NDArray[np.int64]:
        """Their answers' rows, ascending."""
        return np.sort(np.concatenate([2 * self.rows, 2 * self.rows + 1]))

    def both(self, by_text: Floats) -> Floats:
        """Of values by text: [pairs, 2], chosen and rejected."""
        return np.stack([by_text[2 * self.rows], by_text[2 * self.rows + 1]], 1)

    def drawn(self, values: Floats, some: NDArray[np.int64] | None = None) -> Floats:
        """Mean over pairs of values [pairs] in the sample and in every draw, [1 + draws]. `some`: which of the pairs
        the values are of; NaN where a draw has none of them."""
        codes = self.codes if some is None else self.codes[some]
        sums, sizes = (np.bincount(codes, weights=w, minlength=self.draws.n) for w in (values, np.ones(len(codes))))
        with np.errstate(invalid="ignore"):
            means: Floats = (sums @ self.draws.times) / (sizes @ self.draws.times)
        return means

    def mean(self, values: Floats, some: NDArray[np.int64] | None = None) -> Estimate:
        """Mean of values [pairs] with its interval."""
        return self.estimate(self.drawn(values, some), len(values))

    def estimate(self, drawn: Floats, n: int) -> Estimate:
        """From a statistic of the sample and of every draw."""
        return self.draws.estimate(drawn, n, "no pairs")


def difference(sides: Sequence[Side], drawn: Sequence[Floats]) -> Estimate:
    """Target − others, from a statistic of the sample and of every draw of both; resampled apart."""
    if len(sides) < 2:
        return Estimate.not_available(NO_OTHERS)
    fewest = min(sides, key=lambda side: side.draws.n)
    return fewest.estimate(drawn[0] - drawn[1], sum(len(side.rows) for side in sides))
