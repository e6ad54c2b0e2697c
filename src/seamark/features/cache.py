"""An epoch's activations on disk: read from the model once, for all epochs and later runs.

    <cache>/<key>/<hookpoint>/00000.safetensors      activations [n, d_in] of consecutive texts' positions

The key covers the model's weights, the texts' tokens and positions, the number format and the batches, so a changed one
of these never meets old activations; another hookpoint or suite of the same corpus lies beside. Shards are written
whole: a reading that was cut short goes on where it was.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from contextlib import ExitStack
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from torch import Tensor

from seamark.errors import FormatError, RunError
from seamark.features.blocks import Advance, Pieces, Reader
from seamark.run import digest, disk_errors, progress, ranks, write_atomic

SHARD = 1 << 15
"""Positions in a shard, about: 256 MiB at width 2,048 in float32."""
VERSION = 1


class ActivationCache:
    """A `Source` that has read everything before it is asked. Rank 0 alone touches the disk; it tells the others.

    Args:
        folder: where caches lie, one folder for each key.
        reader: how activations are read where they are missing.

    Raises:
        RunError: the folder cannot be written to or has no room, when activations are read.
        FormatError: a damaged shard.
    """

    def __init__(self, folder: Path, reader: Reader, shard: int = SHARD) -> None:
        self.reader, self.texts, self.shard = reader, reader.texts, shard
        self._parent = folder
        self._ends: NDArray[np.int64] = np.cumsum(self.texts.counts)
        self._loaded = False

    @cached_property
    def folder(self) -> Path:
        """The folder of this model, these texts and this number format."""
        r = self.reader
        return self._parent / digest({
            "version": VERSION, "model": r.model.fingerprint(), "texts": r.texts.digest(), "precision": r.precision,
            "batch_tokens": r.batch_tokens, "shard": self.shard,
        })[:24]  # fmt: skip

    def load(self, title: str) -> None:
        """Read and write every shard that is missing at a hookpoint asked for."""
        if self._loaded:
            return
        with progress(title, len(self.texts), "texts") as advance:
            todo = ranks.told(self._missing() if ranks.rank() == 0 else {})
            advance(len(self.texts) - sum(len(self._texts_of(shard)) for shard in todo))
            if ranks.rank() == 0 and todo:
                self._check_room(todo)
            for shard, hookpoints in todo.items():
                self._write(shard, hookpoints, advance)
        self._loaded = True

    def fill(self, pieces: Pieces, into: Mapping[str, Tensor], advance: Advance) -> None:
        """As in `Source`, from disk."""
        n = len(pieces)
        ranks.by_first(lambda: self._read(pieces, into, advance))
        for held_ND in into.values():
            ranks.share(held_ND[:n], 0)

    def _missing(self) -> dict[int, list[str]]:
        """{shard: hookpoints that lack it}."""
        shards = range(-(-int(self._ends[-1]) // self.shard)) if len(self.texts) else range(0)
        lacking = {s: [h for h in self.reader.hookpoints if not self._path(h, s).is_file()] for s in shards}
        return {s: hookpoints for s, hookpoints in lacking.items() if hookpoints and len(self._texts_of(s))}

    def _texts_of(self, shard: int) -> NDArray[np.int64]:
        """Texts that begin in a shard's range of positions."""
        begins = self._ends - self.texts.counts
        first, last = np.searchsorted(begins, [shard * self.shard, (shard + 1) * self.shard])
        return np.arange(first, last, dtype=np.int64)

    def _path(self, hookpoint: str, shard: int) -> Path:
        return self.folder / hookpoint / f"{shard:05d}.safetensors"

    def _write(self, shard: int, hookpoints: list[str], advance: Advance) -> None:
        rows = self._texts_of(shard)
        counts = self.texts.counts[rows]
        pieces = Pieces(rows, np.zeros_like(rows), counts)
        reader = Reader(self.reader.model, self.texts, hookpoints, self.reader.batch_tokens, self.reader.precision)
        into = {h: torch.empty(len(pieces), reader.model.d_model(h)) for h in hookpoints}
        reader.fill(pieces, into, advance)
        ranks.by_first(lambda: self._save(shard, into))

    def _save(self, shard: int, into: Mapping[str, Tensor]) -> None:
        with disk_errors(self.folder):
            for hookpoint, h_ND in into.items():
                write_atomic(self._path(hookpoint, shard), safetensors.torch.save({"activations": _lossless(h_ND)}))
            about = self.folder / "about.json"
            if not about.exists():
                write_atomic(about, json.dumps({"model": self.reader.model.name, "texts": len(self.texts),
                                                "positions": self.texts.n_positions}) + "\n")  # fmt: skip

    def _check_room(self, todo: Mapping[int, list[str]]) -> None:
        """Fail before hours of reading where the disk is plainly too small (16-bit models need half)."""
        with disk_errors(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
        widths = {h: self.reader.model.d_model(h) for h in self.reader.hookpoints}
        size = min(p.element_size() for p in self.reader.model.hf.parameters())
        positions = {s: int(self.texts.counts[self._texts_of(s)].sum()) for s in todo}
        needed = sum(positions[s] * widths[h] * min(size, 4) for s, hookpoints in todo.items() for h in hookpoints)
        free = shutil.disk_usage(self.folder).free
        if needed > free:
            raise RunError(
                f"the cache needs about {needed / 2**30:,.1f} GiB, there are {free / 2**30:,.1f} GiB",
                where=str(self._parent), fix="Choose another folder, fewer positions, or no cache",
            )  # fmt: skip

    def _read(self, pieces: Pieces, into: Mapping[str, Tensor], advance: Advance) -> None:
        """Copy rows from the shards, shard by shard."""
        begins = self._ends - self.texts.counts
        shard_of = begins[pieces.rows] // self.shard
        offsets = pieces.offsets
        for shard in np.unique(shard_of).tolist():
            shard_begin = int(begins[self._texts_of(shard)[0]])
            wanted = np.flatnonzero(shard_of == shard)
            with ExitStack() as stack:
                for hookpoint, held_ND in into.items():
                    stored = stack.enter_context(_Shard(self._path(hookpoint, shard)))
                    for i in wanted.tolist():
                        begin = int(begins[pieces.rows[i]]) - shard_begin
                        rows = stored[begin + int(pieces.first[i]) : begin + int(pieces.last[i])]
                        held_ND[int(offsets[i]) : int(offsets[i + 1])].copy_(rows)
            advance(len(wanted))


class _Shard:
    """A shard of the cache, mapped into memory; `shard[a:b]` are rows."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> Any:
        try:
            self._file = safe_open(str(self.path), framework="pt")
            return self._file.get_slice("activations")
        except (SafetensorError, OSError) as e:
            raise FormatError(f"damaged activations ({e})", where=str(self.path),
                              fix="Delete the file and run again: it is read anew") from e  # fmt: skip

    def __exit__(self, *_: object) -> None:
        del self._file


def _lossless(h_ND: Tensor) -> Tensor:
    """In 16 bits where every number survives, as those of a 16-bit model do."""
    for dtype in (torch.bfloat16, torch.float16):
        small = h_ND.to(dtype)
        if torch.equal(small.float(), h_ND):
            return small
    return h_ND
