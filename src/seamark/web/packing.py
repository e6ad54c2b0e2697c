"""The points of a landscape in few bytes: a JSON header that describes the arrays behind it.

    4 bytes        length of the header H, little-endian
    H bytes        JSON, UTF-8, padded with spaces so that 4 + H divides by 4
    arrays         one after another, little-endian, in the header's order; each begins at a multiple of 4

An array of the header is `{name, type, start, step}`: what it stands for is `start + step * stored` (where `step` is
null: the stored number). 14 bytes a point.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

FULL = 65_535
"""The largest uint16; among scores: not available."""
VERSION = 1


def pack(header: Mapping[str, Any], arrays: Sequence[tuple[dict[str, Any], NDArray[Any]]]) -> bytes:
    """Header and arrays as bytes; `arrays` as the functions below make them."""
    about = json.dumps({"version": VERSION, **header, "arrays": [a for a, _ in arrays]}).encode()
    about += b" " * (-(4 + len(about)) % 4)
    parts = [struct.pack("<I", len(about)), about]
    for _, values in arrays:
        content = values.astype(values.dtype.newbyteorder("<")).tobytes()
        parts += [content, b"\0" * (-len(content) % 4)]
    return b"".join(parts)


def coordinates(name: str, values: NDArray[np.float32]) -> tuple[dict[str, Any], NDArray[Any]]:
    """Numbers [n] as uint16 over their own range: exact to 1/65535 of it. What is not finite becomes 0."""
    values = np.nan_to_num(values, nan=0.0, posinf=0.0, neginf=0.0)
    low, high = (float(values.min()), float(values.max())) if len(values) else (0.0, 1.0)
    step = (high - low) / FULL or 1.0
    stored = np.rint((values.astype(np.float64) - low) / step).clip(0, FULL).astype(np.uint16)
    return {"name": name, "type": "uint16", "start": low, "step": step}, stored


def scores(name: str, values: NDArray[np.float32]) -> tuple[dict[str, Any], NDArray[Any]]:
    """Correlations [n] in -1 to 1 as uint16; NaN as 65535."""
    step = 2.0 / (FULL - 1)
    known = np.isfinite(values)
    stored = np.full(len(values), FULL, dtype=np.uint16)
    stored[known] = np.rint((values[known].astype(np.float64).clip(-1, 1) + 1.0) / step).astype(np.uint16)
    return {"name": name, "type": "uint16", "start": -1.0, "step": step}, stored


def numbers(name: str, values: NDArray[Any]) -> tuple[dict[str, Any], NDArray[Any]]:
    """Whole numbers [n]: int16 where they fit, else int32, else float64 (ids beyond 2^31)."""
    low, high = (int(values.min()), int(values.max())) if len(values) else (0, 0)
    kind = next((k for k in (np.int16, np.int32) if np.iinfo(k).min <= low and high <= np.iinfo(k).max), np.float64)
    stored: NDArray[Any] = values.astype(kind)
    return {"name": name, "type": stored.dtype.name, "start": 0.0, "step": None}, stored
