"""A shuffled stream of activations at chosen positions: from memory where an epoch fits, else read again each epoch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from seamark.features.gather import Positions, gather
from seamark.model.batching import plan_batches
from seamark.model.loading import HookedModel
from seamark.model.precision import Precision
from seamark.run import progress
from seamark.text.rendering import Rendered

CHUNK = 16384
"""Positions handed out at once."""
WINDOW = 1024
"""Texts that are sorted by length together when an epoch is read in shuffled order."""


class ActivationStream:
    """Activations [n, d_in] of texts at their positions, `epochs` times, shuffled by `seed`.

    An epoch of at most `buffer_tokens` positions is read once and kept; a larger one is read again every epoch, its
    texts in another order, through a shuffle buffer of that size. Either way memory is bounded by the buffer (and one
    half of it while it is reordered), and the same arguments give the same stream.
    """

    def __init__(
        self, model: HookedModel, texts: Sequence[Rendered], positions: Sequence[Positions], hookpoint: str, *,
        epochs: int = 1, batch_tokens: int = 8192, buffer_tokens: int = 1 << 18, seed: int = 0,
        precision: Precision = "fp32",
    ) -> None:  # fmt: skip
        kept = [i for i, p in enumerate(positions) if len(p)]
        self.model, self.hookpoint = model, hookpoint
        self.texts, self.positions = [texts[i] for i in kept], [positions[i] for i in kept]
        self.epochs, self.batch_tokens, self.seed = epochs, batch_tokens, seed
        self.precision: Precision = precision
        self.buffer_tokens = max(buffer_tokens, 2)
        self.per_epoch = sum(len(p) for p in self.positions)
        self._cache: Tensor | None = None

    @property
    def total(self) -> int:
        """Positions the stream gives in all epochs."""
        return self.per_epoch * self.epochs

    @property
    def fits(self) -> bool:
        return self.per_epoch <= self.buffer_tokens

    def load(self, title: str) -> None:
        """Read the epoch into memory, if it fits there."""
        if not self.fits or self._cache is not None or self.per_epoch == 0:
            return
        plan = plan_batches([len(t) for t in self.texts], self.batch_tokens)
        cache = torch.empty(self.per_epoch, self.model.d_model(self.hookpoint))
        at = 0
        with progress(title, len(self.texts), "texts") as advance:
            for rows in plan:
                h_ND = self._read(rows)
                cache[at : at + len(h_ND)] = h_ND
                at += len(h_ND)
                advance(len(rows))
        self._cache = cache

    def __iter__(self) -> Iterator[Tensor]:
        self.load("Read activations")
        for epoch in range(self.epochs):
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
            if self._cache is None:
                yield from self._through_buffer(epoch, generator)
                continue
            for part in torch.randperm(self.per_epoch, generator=generator).split(CHUNK):
                yield self._cache[part]

    def _read(self, rows: Sequence[int]) -> Tensor:
        got = gather(self.model, self.texts, rows, [self.positions[r] for r in rows], [self.hookpoint],
                     precision=self.precision)  # fmt: skip
        return got.activations[self.hookpoint].cpu()

    def _shuffled_plan(self, epoch: int) -> list[list[int]]:
        """Batches of texts in random order; only texts of one window are sorted by length together."""
        rng = np.random.default_rng([self.seed, epoch])
        order = rng.permutation(len(self.texts))
        plan = []
        for start in range(0, len(order), WINDOW):
            window = order[start : start + WINDOW]
            batches = plan_batches([len(self.texts[i]) for i in window], self.batch_tokens)
            plan += [[int(window[i]) for i in batches[b]] for b in rng.permutation(len(batches))]
        return plan

    def _through_buffer(self, epoch: int, generator: torch.Generator) -> Iterator[Tensor]:
        """Fill the buffer, hand out a random half, fill it again; at the end hand out the rest."""
        buffer = torch.empty(self.buffer_tokens, self.model.d_model(self.hookpoint))
        filled = 0
        for rows in self._shuffled_plan(epoch):
            h_ND = self._read(rows)
            while len(h_ND):
                part, h_ND = h_ND[: len(buffer) - filled], h_ND[len(buffer) - filled :]
                buffer[filled : filled + len(part)] = part
                filled += len(part)
                if filled == len(buffer):
                    order = torch.randperm(filled, generator=generator)
                    half = (filled + 1) // 2
                    for out in order[:half].split(CHUNK):
                        yield buffer[out]
                    filled -= half
                    buffer[:filled] = buffer[order[half:]]
        for out in torch.randperm(filled, generator=generator).split(CHUNK):
            yield buffer[out]
