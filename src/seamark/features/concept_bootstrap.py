"""Doubt of concept metrics: pairs are resampled within their concepts, the same ones for every autoencoder."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from seamark.stats import Estimate
from seamark.text.pairs import hash_unit

Floats = NDArray[np.float64]
Key = tuple[str, str]
"""(domain, concept)."""


def resampled(
    values: Floats, keys: Sequence[Key], ids: Sequence[str], *, draws: int, seed: int
) -> Iterator[tuple[Key, Floats, Floats]]:
    """For every concept, by first appearance: (key, means over its pairs [m], the same over each draw of them
    [draws, m]).

    A draw takes as many pairs of the concept as there are, with replacement. It depends on seed, concept and ids alone:
    neither the order of pairs nor other concepts change it, and all columns share it, so they can be compared.

    Args:
        values: [pairs, m].
        keys: the concept of each pair.
        ids: the id of each pair.
    """
    of_concept: dict[Key, list[int]] = {}
    for i in sorted(range(len(keys)), key=lambda i: ids[i]):
        of_concept.setdefault(keys[i], []).append(i)
    for key in dict.fromkeys(keys):
        mine = values[of_concept[key]]
        n = len(mine)
        rng = np.random.default_rng([seed, int(hash_unit(json.dumps(key)) * 2**53)])
        times = rng.multinomial(n, np.full(n, 1 / n), size=draws)  # [draws, n]: how often each pair is drawn
        yield key, mine.mean(0), times @ mine / n


class Mean:
    """The mean over concepts, of values and of draws, and why it may have no interval."""

    def __init__(self) -> None:
        self.value: Floats = np.zeros(0)
        self.drawn: Floats = np.zeros(0)
        self.n = self.n_pairs = 0
        self.alone: list[str] = []
        """Concepts of one pair: nothing is known of how they vary."""

    def add(self, key: Key, n_pairs: int, value: Floats, drawn: Floats) -> None:
        """Add a concept: its means [m], and those of every draw [draws, m]."""
        self.value = value + self.value if self.n else value.copy()
        self.drawn = drawn + self.drawn if self.n else drawn.copy()
        self.n, self.n_pairs = self.n + 1, self.n_pairs + n_pairs
        if n_pairs == 1:
            self.alone.append(key[1])

    @property
    def no_interval(self) -> str:
        """Why there is no interval; empty where there is one."""
        if not self.alone:
            return ""
        names = ", ".join(self.alone[:3]) + (", …" if len(self.alone) > 3 else "")
        return f"no interval: {len(self.alone)} of {self.n} concepts have one pair ({names})"

    def estimates(self, columns: Floats) -> list[Estimate]:
        """Linear combinations `columns` [m, c] of the means, each with its 95 % percentile interval."""
        values, drawn = self.value / self.n @ columns, self.drawn / self.n @ columns
        if self.alone:
            return [Estimate(value=float(v), n=self.n_pairs, reason=self.no_interval) for v in values]
        low, high = np.quantile(drawn, [0.025, 0.975], axis=0)
        return [Estimate(value=float(v), low=float(a), high=float(b), n=self.n_pairs)
                for v, a, b in zip(values, low, high, strict=True)]  # fmt: skip
