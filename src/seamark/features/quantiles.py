"""Q_f, the unit of a feature's activations: a high quantile over its firings, from fixed logarithmic bins.

Bins are the same for every feature and every corpus, so counts of shards merge exactly, in any order.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

PER_OCTAVE = 40
"""Bins from v to 2v: a bin's geometric middle is within 0.87 % of everything in it."""
LOWEST, HIGHEST = -30, 30
"""Powers of two between which values are told apart; what lies outside counts in the first or last bin."""
N_BINS = (HIGHEST - LOWEST) * PER_OCTAVE
LEVEL = 0.999
MIN_FIRINGS = 10
"""With fewer firings Q_f is not available."""

Keys = NDArray[np.int64]


WAITING = 1 << 17
"""Firings counted together: sorting few large arrays beats merging many small ones."""


class LogBins:
    """Counts of positive values by (latent, bin); only bins that hold something take memory."""

    def __init__(self, keys: Keys | None = None, counts: Keys | None = None) -> None:
        self._keys = np.empty(0, np.int64) if keys is None else keys
        self._counts = np.empty(0, np.int64) if counts is None else counts
        self._waiting: list[Keys] = []
        self._coming: list[tuple[Keys, Keys]] = []
        self._n_waiting = self._n_coming = 0

    @property
    def keys(self) -> Keys:
        """latent × N_BINS + bin, ascending."""
        self._count()
        return self._keys

    @property
    def counts(self) -> Keys:
        self._count()
        return self._counts

    def add(self, latents: NDArray[np.integer], values: NDArray[np.floating]) -> None:
        """Count firings: `values` > 0 of `latents`, both [n]."""
        bins = np.floor((np.log2(values.astype(np.float64)) - LOWEST) * PER_OCTAVE).astype(np.int64)
        self._waiting.append(latents.astype(np.int64) * N_BINS + bins.clip(0, N_BINS - 1))
        self._n_waiting += len(latents)
        if self._n_waiting >= WAITING:
            self._count()

    def merge(self, other: LogBins) -> None:
        """Add another corpus's counts. Exact, whatever the order."""
        self._take(other.keys, other.counts)

    def _count(self) -> None:
        if self._waiting:
            found = np.unique(np.concatenate(self._waiting), return_counts=True)
            self._waiting, self._n_waiting = [], 0
            self._take(*found)
        if self._coming:
            columns = zip((self._keys, self._counts), *self._coming, strict=True)
            keys, counts = (np.concatenate(column) for column in columns)
            self._coming, self._n_coming = [], 0
            self._keys, where = np.unique(keys, return_inverse=True)
            self._counts = np.zeros(len(self._keys), np.int64)
            np.add.at(self._counts, where, counts)

    def _take(self, keys: Keys, counts: Keys) -> None:
        """Counts are joined once as many have come as there are: each is sorted a few times, however many parts."""
        self._coming.append((keys, counts))
        self._n_coming += len(keys)
        if self._n_coming > max(WAITING, len(self._keys)):
            self._count()

    def histogram(self, latent: int) -> tuple[NDArray[np.float64], Keys]:
        """(edges [bins + 1], counts [bins]) of a latent, from its first bin to its last; empty where it never fires."""
        first, last = np.searchsorted(self.keys, [latent * N_BINS, (latent + 1) * N_BINS])
        if first == last:
            return np.empty(0), np.empty(0, np.int64)
        bins = self._keys[first:last] - latent * N_BINS
        counts = np.zeros(int(bins[-1] - bins[0]) + 1, np.int64)
        counts[bins - bins[0]] = self._counts[first:last]
        edges: NDArray[np.float64] = 2.0 ** (np.arange(bins[0], bins[-1] + 2) / PER_OCTAVE + LOWEST)
        return edges, counts

    def quantiles(self, d_sae: int, maxima: NDArray[np.floating], level: float = LEVEL) -> NDArray[np.float64]:
        """The `level` quantile over each latent's firings [d_sae], relative error ≤ 1 %; NaN below 10 firings.

        `maxima` [d_sae] are the largest values counted: a quantile never exceeds them.
        """
        self._count()
        latents = self._keys // N_BINS
        firings = np.bincount(latents, weights=self._counts, minlength=d_sae).astype(np.int64)
        before = np.concatenate([[0], firings.cumsum()[:-1]])
        rank = np.ceil(level * firings - 1e-9).astype(np.int64).clip(1)
        out = np.full(d_sae, np.nan)
        known = np.flatnonzero(firings >= MIN_FIRINGS)
        at = np.searchsorted(self._counts.cumsum(), (before + rank)[known], side="left")
        middle = 2.0 ** ((self._keys[at] % N_BINS + 0.5) / PER_OCTAVE + LOWEST)
        out[known] = np.minimum(middle, maxima[known])
        return out
