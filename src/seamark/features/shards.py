"""Token-level latents on disk: shards of whole texts, and an index that finds a text in them."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from seamark.errors import FormatError
from seamark.features.accumulate import Firings, StoredPositions
from seamark.features.arrays import load_arrays
from seamark.run import write_atomic

SHARD_ENTRIES = 1 << 20
"""Entries after which a shard is written: about 8 MiB of latents and values."""
INDEX = "index.safetensors"


class ShardWriter:
    """Collects batches and writes `00000.safetensors`, …; never holds more than a shard in memory."""

    def __init__(self, folder: Path, n_texts: int, entries: int = SHARD_ENTRIES) -> None:
        self.folder, self._limit = folder, entries
        self._index: dict[str, Any] = {
            "shard": np.full(n_texts, -1, np.int32),
            "start": np.zeros(n_texts, np.int64),
            "end": np.zeros(n_texts, np.int64),
        }
        self._shard = 0
        self._clear()

    def _clear(self) -> None:
        self._stored: list[StoredPositions] = []
        self._firings: list[Mapping[str, Firings]] = []
        self._positions = self._entries = 0

    def add(self, stored: StoredPositions, firings: Mapping[str, Firings]) -> None:
        """Add a batch: its positions, and for each autoencoder what fires there."""
        texts, first, counts = np.unique(stored.text, return_index=True, return_counts=True)
        self._index["shard"][texts] = self._shard
        self._index["start"][texts] = first + self._positions
        self._index["end"][texts] = first + counts + self._positions
        self._stored.append(stored)
        self._firings.append(firings)
        self._positions += len(stored.text)
        self._entries += sum(len(f.latent) for f in firings.values())
        if self._entries >= self._limit:
            self._write()

    def _write(self) -> None:
        if not self._stored:
            return
        arrays: dict[str, NDArray[np.generic]] = {
            name: np.concatenate([getattr(s, name) for s in self._stored]) for name in ("text", "position", "flags")
        }
        for sae_id in self._firings[0]:
            parts = [f[sae_id] for f in self._firings]
            counts = np.concatenate([np.diff(p.bounds) for p in parts])
            arrays[f"bounds/{sae_id}"] = np.concatenate([[0], counts.cumsum()]).astype(np.int64)
            arrays[f"latent/{sae_id}"] = np.concatenate([p.latent for p in parts])
            arrays[f"value/{sae_id}"] = np.concatenate([p.value for p in parts])
        write_atomic(self.folder / f"{self._shard:05d}.safetensors", safetensors.numpy.save(arrays))
        self._shard += 1
        self._clear()

    def close(self) -> None:
        """Write what is left, and the index."""
        self._write()
        write_atomic(self.folder / INDEX, safetensors.numpy.save(self._index))


class TokenShards:
    """Reads token-level latents of single texts."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @cached_property
    def _index(self) -> dict[str, NDArray[np.int64]]:
        index: dict[str, NDArray[np.int64]] = load_arrays(self.folder / INDEX)
        return index

    def positions(self, row: int) -> StoredPositions:
        """Stored positions of text `row`; none for a text where nothing was read."""
        shard, start, end = self._place(row)
        if shard < 0:
            return StoredPositions(np.empty(0, np.int32), np.empty(0, np.int32), np.empty(0, np.uint8))
        names = ("text", "position", "flags")
        return StoredPositions(*self._slices(shard, dict.fromkeys(names, (start, end))))

    def read(self, row: int, sae_id: str) -> tuple[StoredPositions, Firings]:
        """Stored positions of text `row`, and what fires there."""
        shard, start, end = self._place(row)
        if shard < 0:
            nothing = Firings(np.zeros(1, np.int64), np.empty(0, np.int32), np.empty(0, np.float32))
            return self.positions(row), nothing
        (bounds,) = self._slices(shard, {f"bounds/{sae_id}": (start, end + 1)})
        inside = int(bounds[0]), int(bounds[-1])
        latent, value = self._slices(shard, {f"latent/{sae_id}": inside, f"value/{sae_id}": inside})
        return self.positions(row), Firings(bounds - inside[0], latent, value)

    def _place(self, row: int) -> tuple[int, int, int]:
        shard, start, end = (int(self._index[key][row]) for key in ("shard", "start", "end"))
        return shard, start, end

    def _slices(self, shard: int, wanted: Mapping[str, tuple[int, int]]) -> list[Any]:
        path = self.folder / f"{shard:05d}.safetensors"
        try:
            with safe_open(path, framework="numpy") as f:
                return [f.get_slice(name)[start:end] for name, (start, end) in wanted.items()]
        except (SafetensorError, OSError) as e:
            raise FormatError(f"damaged shard ({e})", where=str(path), fix="Scan again") from e
