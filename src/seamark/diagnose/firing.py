"""What fires at the tokens of one text: which features are strongest, and how strongly a set of them fires."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from seamark.features.accumulate import Firings

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Entries:
    """Firings of one autoencoder's features in one text, all arrays [entries]."""

    sae: str
    hookpoint: str
    token: Integers
    """Where, ascending."""
    latent: NDArray[np.int32]
    value: NDArray[np.float32]
    """z > 0, in the autoencoder's units."""
    normalised: Floats
    """z / Q_f; NaN: Q_f is not available."""

    @classmethod
    def of(cls, sae: str, hookpoint: str, firings: Firings, units: Floats) -> Entries:
        """From what fires at each position; `units` [d_sae] is Q_f, above 0 or NaN."""
        token = np.repeat(np.arange(len(firings.bounds) - 1), np.diff(firings.bounds))
        return cls(sae, hookpoint, token, firings.latent, firings.value, firings.value / units[firings.latent])


class Strongest(NamedTuple):
    """Which entries are shown, token by token, the strongest first."""

    entries: list[tuple[int, int]]
    """(which of the given `Entries`, which entry of it)"""
    tokens: list[int]
    """Of each of `entries`."""
    firing: Integers
    """[tokens] how many entries there are, those not shown too."""


def strongest(found: Sequence[Entries], n: int, top: int) -> Strongest:
    """Of every token and hookpoint the `top` strongest entries with a Q_f, and the `top` strongest without.

    Those with come first, by normalised activation over all hookpoints; those without follow by plain activation, which
    compares with nothing. Ties go by the order of autoencoders, then by latent.

    Args:
        found: one for each autoencoder.
        n: tokens of the text.
    """
    firing = sum((np.bincount(e.token, minlength=n) for e in found), np.zeros(n, np.int64))
    kept = []
    for hookpoint in dict.fromkeys(e.hookpoint for e in found):
        here = _Ranking.of([(i, e) for i, e in enumerate(found) if e.hookpoint == hookpoint])
        kept.append(here.best(top))
    ordered = _Ranking.join(kept)
    return Strongest(list(zip(ordered.source.tolist(), ordered.entry.tolist(), strict=True)), ordered.token.tolist(),
                     firing)  # fmt: skip


def heat(parts: Iterable[tuple[Entries, Sequence[int]]], n: int) -> list[float | None]:
    """For each of n tokens the largest normalised activation of the latents given of each autoencoder.

    0: none of them fires; None: only some without Q_f do.
    """
    best, unknown = np.zeros(n), np.zeros(n, np.bool_)
    for e, latents in parts:
        mine = np.isin(e.latent, list(latents))
        token, value = e.token[mine], e.normalised[mine]
        known = ~np.isnan(value)
        np.maximum.at(best, token[known], value[known])
        unknown[token[~known]] = True
    return [None if u and b == 0 else b for b, u in zip(best.tolist(), unknown.tolist(), strict=True)]


@dataclass(frozen=True, eq=False)
class _Ranking:
    """Entries of several autoencoders in the order of `strongest`, all arrays [entries]."""

    source: Integers
    entry: Integers
    token: Integers
    latent: Integers
    without: NDArray[np.bool_]
    """Those without Q_f."""
    strength: Floats

    @classmethod
    def of(cls, found: Sequence[tuple[int, Entries]]) -> _Ranking:
        columns = []
        for i, e in found:
            size, without = len(e.token), np.isnan(e.normalised)
            columns.append(cls(np.full(size, i), np.arange(size), e.token, e.latent.astype(np.int64), without,
                               np.where(without, e.value, e.normalised)))  # fmt: skip
        return cls.join(columns)

    @classmethod
    def join(cls, parts: Sequence[_Ranking]) -> _Ranking:
        columns = [np.concatenate([getattr(p, name) for p in parts]) for name in cls.__dataclass_fields__]
        source, _, token, latent, without, strength = columns
        return cls(*(column[np.lexsort((latent, source, -strength, without, token))] for column in columns))

    def best(self, top: int) -> _Ranking:
        """The first `top` of each token with a Q_f, and without."""
        group = self.token * 2 + self.without
        first = np.flatnonzero(np.r_[True, group[1:] != group[:-1]]) if len(group) else np.empty(0, np.int64)
        rank = np.arange(len(group)) - np.repeat(first, np.diff(np.r_[first, len(group)]))
        kept = rank < top
        return _Ranking(*(getattr(self, name)[kept] for name in self.__dataclass_fields__))
