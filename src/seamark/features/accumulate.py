"""What a scan keeps of one autoencoder: pooled latents of every text, statistics of every feature, bins for Q_f."""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from seamark.features.entries import Groups, pool, sort_entries
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
        n = len(latents)
        value = latents.values.flatten().float().cpu().numpy()
        fires = value > 0
        owner = np.repeat(np.arange(n, dtype=np.int64), np.diff(latents.bounds.cpu().numpy()))[fires]
        latent = latents.indices.flatten().cpu().numpy().astype(np.int32, copy=False)[fires]
        owner, latent, value = sort_entries(owner, latent, value[fires], latents.d_sae)
        bounds = np.zeros(n + 1, np.int64)
        np.cumsum(np.bincount(owner, minlength=n), out=bounds[1:])
        return cls(bounds, latent, value)


@dataclass(frozen=True)
class Pooled:
    """Latents of texts, pooled over their scoring positions: CSR with `indptr` [texts + 1], sorted by latent.

    `read_*`: the same over all positions that were read; empty arrays where those are the scoring ones.
    """

    indptr: NDArray[np.int64]
    latent: NDArray[np.int32]
    sum: NDArray[np.float32]
    max: NDArray[np.float32]
    count: NDArray[np.int32]
    read_indptr: NDArray[np.int64]
    read_latent: NDArray[np.int32]
    read_max: NDArray[np.float32]

    def arrays(self) -> dict[str, NDArray[np.generic]]:
        """For a file."""
        return {f.name: getattr(self, f.name) for f in fields(self)}


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


@dataclass
class Totals:
    """Sums over texts from which `FeatureStats` follow; those of parts add up to those of the whole."""

    count: NDArray[np.int64]
    sum: NDArray[np.float64]
    sumsq: NDArray[np.float64]
    max: NDArray[np.float32]
    texts: NDArray[np.int64]
    largest: NDArray[np.float32]
    """Largest value at a response token that was read."""
    bins: LogBins

    @classmethod
    def none(cls, d_sae: int) -> Totals:
        whole, real = np.zeros(d_sae, np.int64), np.zeros(d_sae)
        single = np.zeros(d_sae, np.float32)
        return cls(whole, real, real.copy(), single, whole.copy(), single.copy(), LogBins())

    def add(self, other: Totals) -> None:
        """Add another part's; the order of parts decides the last bits of the sums."""
        for name in ("count", "sum", "sumsq", "texts"):
            getattr(self, name).__iadd__(getattr(other, name))
        for name in ("max", "largest"):
            np.maximum(getattr(self, name), getattr(other, name), out=getattr(self, name))
        self.bins.merge(other.bins)

    def stats(self) -> FeatureStats:
        q = self.bins.quantiles(len(self.count), self.largest)
        return FeatureStats(self.count, self.sum, self.sumsq, self.max, self.texts, q)

    def arrays(self) -> dict[str, NDArray[np.generic]]:
        """For a file."""
        found = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "bins"}
        return found | {"bin_keys": self.bins.keys, "bin_counts": self.bins.counts}

    @classmethod
    def of(cls, arrays: dict[str, NDArray[np.generic]]) -> Totals:
        """What `arrays` gave."""
        own = {f.name: arrays[f.name].copy() for f in fields(cls) if f.name != "bins"}
        return cls(**own, bins=LogBins(arrays["bin_keys"].copy(), arrays["bin_counts"].copy()))  # type: ignore[arg-type]


class Accumulator:
    """Sums up batches of one autoencoder's firings on one part of the corpus.

    Args:
        d_sae: latents of the autoencoder.
        read_apart: whether positions are read that are not scored, so that they are pooled of their own.
    """

    def __init__(self, d_sae: int, *, read_apart: bool = True) -> None:
        self.d_sae, self.read_apart = d_sae, read_apart
        self._scored: list[Groups] = []
        self._read: list[_Maxima] = []

    @cached_property
    def totals(self) -> Totals:
        """Made with the first batch: a part that waits for its turn takes no memory by the number of features."""
        return Totals.none(self.d_sae)

    def add(self, stored: StoredPositions, firings: Firings) -> None:
        """Add a batch; each text comes whole in one batch."""
        place = np.repeat(np.arange(len(stored.text)), np.diff(firings.bounds))
        flags, owner = stored.flags[place], stored.text.astype(np.int64)[place]
        inside = (flags & RESPONSE) != 0
        self.totals.bins.add(firings.latent[inside], firings.value[inside])
        np.maximum.at(self.totals.largest, firings.latent[inside], firings.value[inside])
        if self.read_apart:
            self._read.append(_Maxima.of(pool(owner, firings.latent, firings.value, self.d_sae)))
        scored = (flags & SCORING) != 0
        groups = pool(owner[scored], firings.latent[scored], firings.value[scored], self.d_sae)
        self._scored.append(groups._replace(owner=groups.owner.astype(np.int32)))

    def close(self, n_texts: int) -> Pooled:
        """Everything pooled, in the order of the texts; `totals` are complete after it."""
        found, totals = Groups(*_joined(Groups, self._scored)), self.totals
        totals.count += np.bincount(found.latent, weights=found.times, minlength=self.d_sae).astype(np.int64)
        totals.sum += np.bincount(found.latent, weights=found.sum, minlength=self.d_sae)
        totals.sumsq += np.bincount(found.latent, weights=found.square, minlength=self.d_sae)
        totals.texts += np.bincount(found.latent, minlength=self.d_sae)
        np.maximum.at(totals.max, found.latent, found.max)
        read = _Maxima(*_joined(_Maxima, self._read))
        read_indptr = _indptr(read.owner, n_texts) if self.read_apart else np.empty(0, np.int64)
        return Pooled(_indptr(found.owner, n_texts), found.latent, found.sum.astype(np.float32), found.max, found.times,
                      read_indptr, read.latent, read.max)  # fmt: skip


class _Maxima(NamedTuple):
    """What is kept of `Groups` where the largest value is all that counts."""

    owner: NDArray[np.int32]
    latent: NDArray[np.int32]
    max: NDArray[np.float32]

    @classmethod
    def of(cls, groups: Groups) -> _Maxima:
        return cls(groups.owner.astype(np.int32), groups.latent, groups.max)


def _joined(kind: type[Groups | _Maxima], batches: list[Groups] | list[_Maxima]) -> list[Any]:
    """The columns of all batches, in the order of owners. The list is emptied: each column goes as it is joined."""
    nothing = np.empty(0, np.int64)
    none = pool(nothing, nothing.astype(np.int32), nothing.astype(np.float32), 1)
    held = {name: [getattr(b, name) for b in (none, *batches)] for name in kind._fields}
    batches.clear()
    order = np.argsort(np.concatenate(held["owner"]), kind="stable")
    return [np.concatenate(held.pop(name))[order] for name in kind._fields]


def _indptr(owner: NDArray[np.integer], n: int) -> NDArray[np.int64]:
    return np.concatenate([[0], np.bincount(owner, minlength=n).cumsum()]).astype(np.int64)
