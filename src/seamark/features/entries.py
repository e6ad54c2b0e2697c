"""Sorting and pooling of active entries (owner, latent, value > 0), many millions of them a minute."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class Groups(NamedTuple):
    """Entries summed by (owner, latent), in that order."""

    owner: NDArray[np.integer]
    latent: NDArray[np.int32]
    sum: NDArray[np.float64]
    square: NDArray[np.float64]
    """Σ value²."""
    max: NDArray[np.float32]
    times: NDArray[np.int32]


def sort_entries(
    owner: NDArray[np.int64], latent: NDArray[np.int32], value: NDArray[np.float32], d_sae: int
) -> tuple[NDArray[np.int64], NDArray[np.int32], NDArray[np.float32]]:
    """The entries in the order of owner, latent and value; all [n], owners ≥ 0, values > 0.

    Positive floats are ordered as their bits are, so where the three fit into 64 bits they are sorted as one number,
    which is several times as fast as sorting places.
    """
    width = max(1, (d_sae - 1).bit_length())
    if len(owner) and int(owner.max()) >> (32 - width):
        order = np.lexsort((value, latent, owner))
        return owner[order], latent[order], value[order]
    key = (owner << np.int64(width)) | latent
    packed = (key.view(np.uint64) << np.uint64(32)) | np.ascontiguousarray(value, np.float32).view(np.uint32)
    packed.sort()
    key = (packed >> np.uint64(32)).view(np.int64)
    bits = packed.astype(np.uint32)
    return key >> np.int64(width), (key & np.int64((1 << width) - 1)).astype(np.int32), bits.view(np.float32)


def pool(owner: NDArray[np.int64], latent: NDArray[np.int32], value: NDArray[np.float32], d_sae: int) -> Groups:
    """Sum, squares, maximum and count of the entries of each (owner, latent).

    Sums are taken over values in ascending order: they do not depend on the order in which entries come.
    """
    owner, latent, value = sort_entries(owner, latent, value, d_sae)
    if not len(owner):
        none = np.empty(0, np.float64)
        return Groups(owner, latent, none, none, value, np.empty(0, np.int32))
    new = np.concatenate([[True], (owner[1:] != owner[:-1]) | (latent[1:] != latent[:-1])])
    first = np.flatnonzero(new)
    last = np.append(first[1:], len(owner)) - 1
    exact = value.astype(np.float64)
    return Groups(
        owner[first], latent[first], np.add.reduceat(exact, first), np.add.reduceat(exact * exact, first),
        value[last], (last - first + 1).astype(np.int32),
    )  # fmt: skip
