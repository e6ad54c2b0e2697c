"""A shuffled stream of activations, block by block, that can be entered anywhere.

Each epoch the texts are shuffled over the whole corpus and cut into blocks of positions. A block is read, given out in
a random order of its own, and forgotten: between blocks the stream has no state, and within one it is known from
(seed, epoch, block) and the position.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from seamark.features.blocks import Pieces, Reader, Source, check_spill, empty_block
from seamark.features.cache import ActivationCache
from seamark.features.tokens import TokenTexts
from seamark.model.loading import HookedModel
from seamark.model.precision import Precision, resolve_precision
from seamark.run import progress

CHUNK = 2048
"""Positions handed out at once, at most."""


class ActivationStream:
    """Chunks {hookpoint: float32 [n, d_in]} of texts at their positions, `epochs` times; rows match between hookpoints.

    Memory is bounded by one block. An epoch that fits into a block is read once and kept for all epochs; of a larger
    one every block is read anew each epoch, or taken from the cache. The same arguments give the same bytes, from the
    beginning or from any position on.

    Args:
        model: it runs no further than the deepest hookpoint, and one pass feeds all of them.
        texts: token ids and positions.
        hookpoints: where to read.
        epochs: times each position is given.
        seed: of the order.
        batch_tokens: padded tokens in a batch of the model.
        block: positions in a block: 4 bytes × width × hookpoints each.
        precision: number format of the model's pass.
        spill: folder for the block, in a file mapped into memory, where it may be larger than memory.
        cache: folder where an epoch's activations are kept: later epochs and runs never run the model.
        device: where the block is held (not with `spill`).

    Raises:
        ModelError: no such hookpoint.
        RunError: a folder that cannot be written to.
    """

    def __init__(
        self, model: HookedModel, texts: TokenTexts, hookpoints: Sequence[str], *, epochs: int = 1, seed: int = 0,
        batch_tokens: int = 8192, block: int = 1 << 18, precision: Precision = "fp32", spill: Path | None = None,
        cache: Path | None = None, device: torch.device | str = "cpu",
    ) -> None:  # fmt: skip
        self.model, self.texts, self.epochs, self.seed = model, texts, epochs, seed
        self.widths = {name: model.d_model(name) for name in dict.fromkeys(hookpoints)}
        self.per_epoch = texts.n_positions
        self.block = max(1, min(block, self.per_epoch))
        self.spill, self.device = spill, "cpu" if spill else device
        check_spill(spill)
        reader = Reader(model, texts, tuple(self.widths), batch_tokens, resolve_precision(precision, model.device.type))
        self._cache = None if cache is None else ActivationCache(cache, reader)
        self._source: Source = self._cache or reader
        self._kept: dict[str, Tensor] | None = None
        self.told: Callable[[int, int], None] = lambda done, of: None
        """Told of texts read, of how many, while a block is read in the middle of the stream."""

    @property
    def total(self) -> int:
        """Positions the stream gives in all epochs."""
        return self.per_epoch * self.epochs

    @property
    def fits(self) -> bool:
        """Whether an epoch is one block."""
        return self.per_epoch <= self.block

    def load(self, title: str) -> None:
        """Read what is read once: the cache, or an epoch that fits. Called by itself when first needed."""
        if self.per_epoch == 0:
            return
        if self._cache is not None:
            self._cache.load(title)
        if self.fits and self._kept is None:
            with progress(title, len(self.texts), "texts") as advance:
                pieces = Pieces.cut(self._order(0), self.texts.counts, 0, self.per_epoch)
                kept = self._room()
                self._source.fill(pieces, kept, advance)
            self._kept = kept

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        return self.start_at(0)

    def start_at(self, position: int) -> Iterator[dict[str, Tensor]]:
        """What follows after `position` positions, byte for byte; only the block it lies in is read again."""
        self.load("Read activations")
        block, room = self.block, None
        for epoch in range(position // max(self.per_epoch, 1), self.epochs):
            order = None if self.fits else self._order(epoch)
            begin = max(position - epoch * self.per_epoch, 0)
            for number in range(begin // block, -(-self.per_epoch // block)):
                start, stop = number * block, min((number + 1) * block, self.per_epoch)
                if order is None:
                    room = self._kept
                else:
                    room = room or self._room()
                    self._read(Pieces.cut(order, self.texts.counts, start, stop), room)
                assert room is not None  # noqa: S101  (`load` has kept it)
                mixed = _permutation(stop - start, self.seed, epoch, number).to(self.device)
                for part in mixed[max(begin - start, 0) :].split(CHUNK):
                    yield {hookpoint: h_ND.index_select(0, part) for hookpoint, h_ND in room.items()}

    def _read(self, pieces: Pieces, room: Mapping[str, Tensor]) -> None:
        done = 0

        def advance(n: int) -> None:
            nonlocal done
            done += n
            self.told(done, len(pieces.rows))

        self._source.fill(pieces, room, advance)

    def _room(self) -> dict[str, Tensor]:
        return {h: empty_block(self.block, d, device=self.device, spill=self.spill) for h, d in self.widths.items()}

    def _order(self, epoch: int) -> NDArray[np.int64]:
        """Texts of an epoch; as they come where the epoch is one block, whose positions are mixed anyway."""
        if self.fits:
            return np.arange(len(self.texts), dtype=np.int64)
        return np.random.default_rng([self.seed, epoch]).permutation(len(self.texts)).astype(np.int64)


def _permutation(n: int, *seed: int) -> Tensor:
    """A permutation of n, decided by the numbers of `seed`."""
    state = int(np.random.SeedSequence(seed).generate_state(1, np.uint64)[0])
    return torch.randperm(n, generator=torch.Generator().manual_seed(state & (2**63 - 1)))
