"""`SparseLatents`: the few latents active at each position, in place of a dense [positions × d_sae]."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Scale:
    """What `layer_norm` took away from each position: `mean` [n] and `std` [n], in the hookpoint's units."""

    mean: Tensor
    std: Tensor


@dataclass(frozen=True, eq=False)
class SparseLatents:
    """Active latents of n positions.

    Attributes:
        indices: int32, [n, k] where every position has k latents, else flat [nnz] with `offsets`.
        values: float, shape of `indices`. May be negative: reconstruction uses all, scores only `positive()`.
        d_sae: number of latents of the autoencoder.
        offsets: int64 [n + 1]; position i owns entries offsets[i]:offsets[i+1]. None for the [n, k] form.
        scale: what normalisation took away, so that `decode` can give it back; None where nothing was.
    """

    indices: Tensor
    values: Tensor
    d_sae: int
    offsets: Tensor | None = None
    scale: Scale | None = None

    def __len__(self) -> int:
        return int(self.indices.shape[0]) if self.offsets is None else int(self.offsets.shape[0]) - 1

    @property
    def bounds(self) -> Tensor:
        """Offsets int64 [n + 1] of either form."""
        if self.offsets is not None:
            return self.offsets
        n, k = self.indices.shape
        return torch.arange(0, n * k + 1, k, device=self.indices.device)

    def rows(self) -> Tensor:
        """The position of every flat entry, int64 [nnz], ascending."""
        counts = self.bounds.diff()
        return torch.repeat_interleave(torch.arange(len(self), device=counts.device), counts)

    def positive(self) -> SparseLatents:
        """Only the entries that fire (value > 0), flat, sorted by latent inside each position."""
        rows, latents, values = self.rows(), self.indices.flatten(), self.values.flatten()
        fires = values > 0
        rows, latents, values = rows[fires], latents[fires], values[fires]
        order = torch.argsort(rows * self.d_sae + latents, stable=True)
        offsets = torch.zeros(len(self) + 1, dtype=torch.int64, device=rows.device)
        offsets[1:] = torch.bincount(rows, minlength=len(self)).cumsum(0)
        return replace(self, indices=latents[order], values=values[order], offsets=offsets)

    def dense(self) -> Tensor:
        """[n, d_sae]. For small tests and for looking; nothing in Seamark's paths calls it."""
        out = self.values.new_zeros(len(self), self.d_sae)
        out[self.rows(), self.indices.flatten().long()] = self.values.flatten()
        return out
