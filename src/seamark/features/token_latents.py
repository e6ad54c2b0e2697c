"""Token-level latents on disk: one file for a part of a scan, written as batches come, read a text at a time."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from seamark.errors import FormatError
from seamark.features.accumulate import Firings, StoredPositions
from seamark.features.arrays import map_arrays, safetensors_header

FILE = "tokens.safetensors"


class TokenWriter:
    """Writes `tokens.safetensors`: what fires at every position that was read, text by text as they come.

    Arrays: `start` and `end` [texts], the positions of each text; `position` and `flags` [positions]; and for every
    autoencoder `bounds/<id>` [positions + 1], `latent/<id>` and `value/<id>` [entries]. They grow in files of their
    own and are joined at the end, so nothing of them stays in memory.
    """

    def __init__(self, folder: Path, n_texts: int) -> None:
        self.folder, self._positions = folder, 0
        self._place = {"start": np.zeros(n_texts, np.int64), "end": np.zeros(n_texts, np.int64)}
        self._growing: dict[str, _Growing] = {}

    def add(self, stored: StoredPositions, firings: Mapping[str, Firings]) -> None:
        """Add a batch: its positions, and for each autoencoder what fires there."""
        texts, first, counts = np.unique(stored.text, return_index=True, return_counts=True)
        self._place["start"][texts] = first + self._positions
        self._place["end"][texts] = first + counts + self._positions
        self._positions += len(stored.text)
        self._append("position", stored.position)
        self._append("flags", stored.flags)
        for sae_id, found in firings.items():
            bounds = self._grow(f"bounds/{sae_id}", np.dtype(np.int64))
            if not bounds.n:
                bounds.add(np.zeros(1, np.int64))
            latent = self._grow(f"latent/{sae_id}", np.dtype(np.int32))
            bounds.add(found.bounds[1:] + latent.n)
            latent.add(found.latent)
            self._append(f"value/{sae_id}", found.value)

    def close(self) -> None:
        """Join the arrays; their own files go."""
        for name, array in self._place.items():
            self._append(name, array)
        for growing in self._growing.values():
            growing.file.close()
        header = safetensors_header({name: (g.dtype, (g.n,)) for name, g in self._growing.items()})
        with (self.folder / FILE).open("wb") as out:
            out.write(header)
            for growing in self._growing.values():
                with growing.path.open("rb") as one:
                    shutil.copyfileobj(one, out)
                growing.path.unlink()
            out.flush()
            os.fsync(out.fileno())

    def _grow(self, name: str, dtype: np.dtype[Any]) -> _Growing:
        if name not in self._growing:
            self._growing[name] = _Growing(self.folder / f".{len(self._growing)}.array", dtype)
        return self._growing[name]

    def _append(self, name: str, array: NDArray[Any]) -> None:
        self._grow(name, array.dtype).add(array)


class _Growing:
    """An array that grows in a file."""

    def __init__(self, path: Path, dtype: np.dtype[Any]) -> None:
        self.path, self.dtype, self.n = path, dtype, 0
        self.file: BinaryIO = path.open("wb")

    def add(self, array: NDArray[Any]) -> None:
        self.file.write(np.ascontiguousarray(array).data)
        self.n += len(array)


class TokenLatents:
    """Reads what a `TokenWriter` wrote in `folder`."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / FILE

    @cached_property
    def _arrays(self) -> dict[str, NDArray[Any]]:
        return map_arrays(self.path)

    def positions(self, row: int) -> StoredPositions:
        """Stored positions of text `row`; none for a text where nothing was read."""
        start, end = self._place(row)
        position, flags = self._array("position")[start:end], self._array("flags")[start:end]
        return StoredPositions(np.full(end - start, row, np.int32), np.asarray(position), np.asarray(flags))

    def read(self, row: int, sae_id: str) -> tuple[StoredPositions, Firings]:
        """Stored positions of text `row`, and what fires there."""
        start, end = self._place(row)
        bounds = np.asarray(self._array(f"bounds/{sae_id}")[start : end + 1])
        inside = slice(int(bounds[0]), int(bounds[-1]))
        latent, value = (np.asarray(self._array(f"{name}/{sae_id}")[inside]) for name in ("latent", "value"))
        return self.positions(row), Firings(bounds - bounds[0], latent, value)

    def _place(self, row: int) -> tuple[int, int]:
        return int(self._array("start")[row]), int(self._array("end")[row])

    def _array(self, name: str) -> NDArray[Any]:
        try:
            return self._arrays[name]
        except KeyError:
            raise FormatError(f"holds no {name}", where=str(self.path), fix="Scan again") from None
