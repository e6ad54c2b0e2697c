"""What a scan keeps of one autoencoder: pooled latents of every text, statistics of every feature, bins for Q_f."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from seamark.features.quantiles import LogBins
from seamark.sae import SparseLatents

SCORING, RESPONSE = 1, 2
"""Flags of a stored position: it is scored; it belongs to the response."""


@dataclass(frozen=True)
class StoredPositions:
    """The positions of one batch that are read: text row, token position and flags, each [n]."""

    text: NDArray[np.int32]
    position: NDArray[np.int32]
    flags: NDArray[np.uint8]


@dataclass(frozen=True)
class Firings:
    """Positive latents of n positions: entries of position i are bounds[i]:bounds[i+1]; latents ascend inside."""

    bounds: NDArray[np.int64]
    latent: NDArray[np.int32]
    value: NDArray[np.float32]

    @classmethod
    def of(cls, latents: SparseLatents) -> Firings:
        positive = latents.positive()
        return cls(positive.bounds.cpu().numpy(), positive.indices.cpu().numpy(), positive.values.float().cpu().numpy())


@dataclass(frozen=True)
class Pooled:
    """Latents of texts, pooled over their scoring positions: CSR with `indptr` [texts + 1], sorted by latent."""

    indptr: NDArray[np.int64]
    latent: NDArray[np.int32]
    sum: NDArray[np.float32]
    max: NDArray[np.float32]
    count: NDArray[np.int32]


@dataclass(frozen=True)
class FeatureStats:
    """Each feature over the scoring positions of a corpus, all [d_sae]; `q` over every response token that was read."""

    count: NDArray[np.int64]
    """Positions where it fires."""
    sum: NDArray[np.float64]
    sumsq: NDArray[np.float64]
    max: NDArray[np.float32]
    texts: NDArray[np.int64]
    """Texts where it fires."""
    q: NDArray[np.float64]
    """Q_f; NaN: not available (fewer than 10 firings)."""


class Accumulator:
    """Sums up batches of one autoencoder's firings; memory grows with texts × features, not tokens."""

    def __init__(self, d_sae: int) -> None:
        self.d_sae = d_sae
        self.bins = LogBins()
        self._count = np.zeros(d_sae, np.int64)
        self._sum, self._sumsq = np.zeros(d_sae), np.zeros(d_sae)
        self._max = np.zeros(d_sae, np.float32)
        self._largest = np.zeros(d_sae, np.float32)
        self._texts: list[NDArray[np.int32]] = []
        self._pools: list[tuple[NDArray[np.int32], NDArray[np.float32], NDArray[np.float32], NDArray[np.int32]]] = []

    def add(self, stored: StoredPositions, firings: Firings) -> None:
        """Add a batch; each text comes whole in one batch."""
        place = np.repeat(np.arange(len(stored.text)), np.diff(firings.bounds))
        flags = stored.flags[place]
        inside = (flags & RESPONSE) != 0
        self.bins.add(firings.latent[inside], firings.value[inside])
        np.maximum.at(self._largest, firings.latent[inside], firings.value[inside])
        scored = (flags & SCORING) != 0
        self._pool(stored.text[place[scored]], firings.latent[scored], firings.value[scored])

    def _pool(self, text: NDArray[np.int32], latent: NDArray[np.int32], value: NDArray[np.float32]) -> None:
        if len(text) == 0:
            return
        exact = value.astype(np.float64)
        self._count += np.bincount(latent, minlength=self.d_sae)
        self._sum += np.bincount(latent, weights=exact, minlength=self.d_sae)
        self._sumsq += np.bincount(latent, weights=exact**2, minlength=self.d_sae)
        np.maximum.at(self._max, latent, value)
        key = text.astype(np.int64) * self.d_sae + latent
        order = np.argsort(key, kind="stable")
        key = key[order]
        first = np.flatnonzero(np.concatenate([[True], key[1:] != key[:-1]]))
        self._texts.append((key[first] // self.d_sae).astype(np.int32))
        self._pools.append((
            (key[first] % self.d_sae).astype(np.int32),
            np.add.reduceat(exact[order], first).astype(np.float32),
            np.maximum.reduceat(value[order], first),
            np.diff(np.append(first, len(key))).astype(np.int32),
        ))  # fmt: skip

    def pooled(self, n_texts: int) -> Pooled:
        """Everything pooled so far, in the order of the texts."""
        text = np.concatenate([np.empty(0, np.int32), *self._texts])
        order = np.argsort(text, kind="stable")
        empty = (np.empty(0, np.int32), np.empty(0, np.float32), np.empty(0, np.float32), np.empty(0, np.int32))
        latent, total, largest, count = (np.concatenate(c)[order] for c in zip(empty, *self._pools, strict=True))
        indptr = np.concatenate([[0], np.bincount(text, minlength=n_texts).cumsum()]).astype(np.int64)
        return Pooled(indptr, latent, total, largest, count)

    def stats(self) -> FeatureStats:
        """Statistics of everything added so far."""
        latents = np.concatenate([np.empty(0, np.int32), *(p[0] for p in self._pools)])
        texts = np.bincount(latents, minlength=self.d_sae).astype(np.int64)
        q = self.bins.quantiles(self.d_sae, self._largest)
        return FeatureStats(self._count, self._sum, self._sumsq, self._max, texts, q)
