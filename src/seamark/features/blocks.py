"""Blocks of positions: which texts a block is made of, where it is held, how it is filled from a model."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from seamark.errors import RunError
from seamark.features.gather import gather
from seamark.features.tokens import TokenTexts
from seamark.model.batching import plan_batches
from seamark.model.loading import HookedModel
from seamark.model.precision import Precision
from seamark.run import ranks

Advance = Callable[[int], None]
"""Told of texts that were read."""


@dataclass(frozen=True)
class Pieces:
    """Positions one behind the other: of text rows[i] those from first[i] to last[i] (exclusive) of its chosen ones."""

    rows: NDArray[np.int64]
    first: NDArray[np.int64]
    last: NDArray[np.int64]

    @classmethod
    def cut(cls, order: NDArray[np.int64], counts: NDArray[np.int64], start: int, stop: int) -> Pieces:
        """Positions `start` to `stop` of the texts laid out in `order`; `counts` are positions by text."""
        ends = np.cumsum(counts[order])
        begins = ends - counts[order]
        inside = slice(int(np.searchsorted(ends, start, "right")), int(np.searchsorted(begins, stop, "left")))
        rows = order[inside]
        first = np.maximum(start - begins[inside], 0)
        return cls(rows, first, np.minimum(stop - begins[inside], counts[rows]))

    @property
    def offsets(self) -> NDArray[np.int64]:
        """[texts + 1]: where each text's positions lie in the block."""
        return np.concatenate([np.zeros(1, np.int64), np.cumsum(self.last - self.first)])

    def __len__(self) -> int:
        return int((self.last - self.first).sum())


class Source(Protocol):
    """Where activations of pieces come from."""

    def fill(self, pieces: Pieces, into: Mapping[str, Tensor], advance: Advance) -> None:
        """Write the activations of `pieces` into the first rows of `into` {hookpoint: [n, d_in]}."""
        ...


@dataclass(frozen=True)
class Reader:
    """Reads pieces of texts through the model: one pass for all hookpoints, no further than the deepest.

    Under torchrun rank r runs batches r, r + W, … of the plan, and every rank gets all activations: the plan does not
    depend on the number of ranks, so neither do the numbers.
    """

    model: HookedModel
    texts: TokenTexts
    hookpoints: Sequence[str]
    batch_tokens: int = 8192
    precision: Precision = "fp32"

    def fill(self, pieces: Pieces, into: Mapping[str, Tensor], advance: Advance) -> None:
        """As in `Source`. Raises `DataError` on NaN or infinite activations, naming hookpoint and text."""
        offsets = pieces.offsets
        plan = plan_batches(self.texts.lengths[pieces.rows].tolist(), self.batch_tokens)
        for at in range(0, len(plan), ranks.world()):
            group = plan[at : at + ranks.world()]
            got = ranks.together(lambda group=group: self._read_mine(pieces, group))  # type: ignore[misc]
            for owner, batch in enumerate(group):
                place = torch.from_numpy(np.concatenate([np.arange(offsets[i], offsets[i + 1]) for i in batch]))
                for hookpoint, held_ND in into.items():
                    h_ND = got[hookpoint] if owner == ranks.rank() else self._room(len(place), hookpoint)
                    ranks.share(h_ND, owner)
                    held_ND.index_copy_(0, place.to(held_ND.device), h_ND.to(held_ND.device))
                advance(len(batch))

    def _read_mine(self, pieces: Pieces, group: Sequence[Sequence[int]]) -> dict[str, Tensor]:
        if ranks.rank() >= len(group):
            return {}
        batch = group[ranks.rank()]
        texts = [self.texts.text(int(pieces.rows[i])) for i in batch]
        chosen = [self.texts.positions(int(pieces.rows[i]))[pieces.first[i] : pieces.last[i]] for i in batch]
        got = gather(self.model, texts, range(len(batch)), chosen, self.hookpoints, precision=self.precision)
        return got.activations

    def _room(self, n: int, hookpoint: str) -> Tensor:
        return torch.empty(n, self.model.d_model(hookpoint), device=self.model.device)


def empty_block(n: int, width: int, *, device: torch.device | str = "cpu", spill: Path | None = None) -> Tensor:
    """Room for activations, float32 [n, width]: in memory, or in a file of the folder `spill` without a name.

    The file is gone with the process, however it ends, and its space is claimed at once: a full disk is an error here,
    not a crash later.

    Raises:
        RunError: the folder cannot be written to, or has no room.
    """
    if spill is None:
        return torch.empty(n, width, device=device)
    size = 4 * n * width
    with _spill_errors(spill, size):
        spill.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=spill, prefix=".activations-") as file:
            if size:
                _claim(file.fileno(), size)
            held = np.memmap(file, dtype=np.float32, mode="r+", shape=(n, width)) if size else np.empty((n, width))
    return torch.from_numpy(held)


def check_spill(spill: Path | None) -> None:
    """Fail now where `empty_block` would fail after hours. Raises `RunError`."""
    if spill is not None:
        with _spill_errors(spill, 0):
            spill.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=spill, prefix=".activations-") as file:
                file.write(b"1")


def _claim(descriptor: int, size: int) -> None:
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(descriptor, 0, size)
    else:  # macOS
        os.ftruncate(descriptor, size)


@contextlib.contextmanager
def _spill_errors(spill: Path, size: int) -> Iterator[None]:
    try:
        yield
    except OSError as e:
        what = f"{size / 2**30:,.1f} GiB of activations cannot be kept there" if size else "cannot be written to"
        raise RunError(f"{what} ({e.strerror})", where=f"spill folder {spill}",
                       fix="Choose another folder or a smaller buffer") from e  # fmt: skip
