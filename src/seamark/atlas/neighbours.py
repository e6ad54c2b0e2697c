"""Features whose decoder directions are near: exact cosines, block by block."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from seamark.errors import DataError

K = 10
BLOCK_VALUES = 1 << 24
"""Cosines held at once (64 MiB of float32), however many features there are."""


def nearest(decoder_FD: NDArray[np.floating], k: int = K) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """The k features whose directions have the largest cosine with each feature's, largest first.

    Give features of one hookpoint together: directions of different hookpoints lie in different spaces.

    Args:
        decoder_FD: a direction each [F, D]; lengths do not matter.
        k: neighbours of a feature.

    Returns:
        Indices [F, min(k, F - 1)] and cosines of the same shape, in float32. Of equal cosines the lower index comes
        first. A direction that is zero or not finite has no neighbours and is nobody's: index -1 and cosine NaN stand
        where there is none.

    Raises:
        DataError: `decoder_FD` is no matrix.
    """
    if decoder_FD.ndim != 2:
        raise DataError(f"decoder directions of {decoder_FD.ndim} dimensions, not features by width")
    width = max(0, min(k, len(decoder_FD) - 1))
    indices = np.full((len(decoder_FD), width), -1, dtype=np.int64)
    cosines = np.full((len(decoder_FD), width), np.nan, dtype=np.float32)
    rows, unit_GD = _unit(decoder_FD)
    width = min(width, len(rows) - 1)
    if width <= 0:
        return indices, cosines
    step = max(1, BLOCK_VALUES // len(rows))
    for start in range(0, len(rows), step):
        block = slice(start, min(start + step, len(rows)))
        found_BG = unit_GD[block] @ unit_GD.T
        found_BG[np.arange(len(found_BG)), np.arange(block.start, block.stop)] = -np.inf  # nobody is its own neighbour
        chosen = _largest(found_BG, width)
        indices[rows[block], :width] = rows[chosen]
        cosines[rows[block], :width] = np.clip(np.take_along_axis(found_BG, chosen, axis=1), -1.0, 1.0)
    return indices, cosines


def _unit(decoder_FD: NDArray[np.floating]) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Which directions are directions [G], and those at length 1 in float32 [G, D]."""
    if not decoder_FD.size:
        return np.zeros(0, dtype=np.int64), np.zeros((0, decoder_FD.shape[1]), dtype=np.float32)
    largest = np.maximum(decoder_FD.max(axis=1), -decoder_FD.min(axis=1))
    rows = np.flatnonzero(np.isfinite(largest) & (largest > 0))
    unit_GD = np.empty((len(rows), decoder_FD.shape[1]), dtype=np.float32)
    for start in range(0, len(rows), 4096):
        part = rows[start : start + 4096]
        scaled = decoder_FD[part] / largest[part, None]  # squares neither overflow nor vanish
        unit_GD[start : start + 4096] = scaled / np.linalg.norm(scaled, axis=1, keepdims=True)
    return rows, unit_GD


def _largest(values_BG: NDArray[np.float32], k: int) -> NDArray[np.int64]:
    """Columns of each row's k < G largest values, largest first, of equal ones the lower column first [B, k]."""
    chosen = np.argpartition(values_BG, -k, axis=1)[:, -k:]
    smallest = np.take_along_axis(values_BG, chosen, axis=1).min(axis=1, keepdims=True)
    tied = np.flatnonzero((values_BG >= smallest).sum(axis=1) > k)  # partition took any of the equal ones
    for row in tied:
        above = np.flatnonzero(values_BG[row] > smallest[row])
        equal = np.flatnonzero(values_BG[row] == smallest[row])
        chosen[row] = np.concatenate([above, equal])[:k]
    values = np.take_along_axis(values_BG, chosen, axis=1)
    order = np.lexsort((chosen, -values), axis=1)
    return np.take_along_axis(chosen, order, axis=1)
