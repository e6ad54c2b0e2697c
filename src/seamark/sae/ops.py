"""The sparse operations of an autoencoder, on the CPU by torch's own kernels, on CUDA by Triton where it is installed.

Active (position, latent) entries come in two orders. *Position-major* (as the encoder finds them) serves the decoder;
*latent-major* (CSR pattern [d_sae, n]) serves everything that visits a latent's weights: its row is then read once and
the positions, far fewer bytes than the weights, stay in the cache. No tensor of entries × d_in ever exists.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from seamark.sae import kernels

SUM_BYTES, DECODE_BYTES = 1 << 20, 4 << 20
"""Sums of rows take some columns at a time: the rows stay in a core's own cache, whoever else uses the shared one (a
position is visited many times, a decoder row a few), and malloc can reuse the blocks of the result."""


class ByLatent(NamedTuple):
    """Entries in the order of their latents (positions ascend inside a latent): a CSR pattern [d_sae, n]."""

    order: Tensor
    """int64 [m]: place of each entry in position-major order."""
    latents: Tensor
    """int64 [m], ascending."""
    positions: Tensor
    """int64 [m]."""
    offsets: Tensor
    """int64 [d_sae + 1]: entries of latent i are offsets[i]:offsets[i+1]."""

    def keep(self, mask: Tensor) -> ByLatent:
        """The entries where `mask` [m] (in this order) is true. `order` still names the places before the choice."""
        kept = torch.zeros(mask.shape[0] + 1, dtype=torch.int64, device=mask.device)
        torch.cumsum(mask, 0, out=kept[1:])
        chosen = mask.nonzero().squeeze(1)
        return ByLatent(self.order[chosen], self.latents[chosen], self.positions[chosen], kept[self.offsets])


def sort_by_latent(latents: Tensor, positions: Tensor | int, d_sae: int) -> ByLatent:
    """Bring position-major entries into the order of their latents.

    Args:
        latents: int [m] (or [n, k]).
        positions: int64 [m], or k where every position has k entries.
        d_sae: number of latents.
    """
    flat = latents.flatten()
    ascending, order = torch.sort(flat, stable=True)
    offsets = torch.zeros(d_sae + 1, dtype=torch.int64, device=flat.device)
    torch.cumsum(torch.bincount(flat, minlength=d_sae), 0, out=offsets[1:])
    owners = order // positions if isinstance(positions, int) else positions[order]
    return ByLatent(order, ascending, owners, offsets)


def decode_rows(indices: Tensor, values: Tensor, W_dec_FD: Tensor, offsets: Tensor | None = None) -> Tensor:
    """Σ values · W_dec[indices] for every position, [n, d_in]; [n, k] entries, or flat ones with `offsets` [n + 1]."""
    if kernels.usable(W_dec_FD):
        return kernels.decode_rows(indices, values, W_dec_FD, offsets)
    few = indices.numel() <= W_dec_FD.shape[0]
    blocks = _columns(W_dec_FD, W_dec_FD.nbytes if few else DECODE_BYTES)
    if len(blocks) == 1:
        return _bags(indices, W_dec_FD, offsets, values)
    n = indices.shape[0] if offsets is None else offsets.shape[0] - 1
    out = W_dec_FD.new_empty(n, W_dec_FD.shape[1])
    for block in blocks:
        out[:, block] = _bags(indices, W_dec_FD[:, block].contiguous(), offsets, values)
    return out


def _bags(indices: Tensor, rows: Tensor, offsets: Tensor | None, weights: Tensor) -> Tensor:
    last = {"include_last_offset": True} if offsets is not None else {}
    return embedding_bag(indices, rows, offsets, mode="sum", per_sample_weights=weights, **last)


def _columns(x: Tensor, size: int) -> list[slice]:
    """The columns of a matrix cut into blocks of about `size` bytes."""
    width = max(16, size // max(1, x.shape[0] * x.element_size()) // 16 * 16)
    return [slice(low, min(low + width, x.shape[1])) for low in range(0, x.shape[1], width)]


def sampled_products(entries: ByLatent, W_FD: Tensor, G_ND: Tensor) -> Tensor:
    """W[latent] · G[position] for every entry, [m] in latent order."""
    if kernels.usable(W_FD):
        return kernels.sampled_products(entries, W_FD, G_ND)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch calls its CSR tensors "beta" once a process
        pattern = torch.sparse_csr_tensor(
            entries.offsets, entries.positions, G_ND.new_zeros(entries.positions.shape[0]),
            (W_FD.shape[0], G_ND.shape[0]), check_invariants=False,
        )  # fmt: skip
        products: Tensor = torch.sparse.sampled_addmm(pattern, W_FD, G_ND.T, beta=0.0).values()
    return products


def sum_weights(entries: ByLatent, weights: Tensor) -> Tensor:
    """For each latent Σ weight over its entries, [d_sae]; weights [m] in latent order. Adds in a fixed order."""
    if kernels.usable(weights):
        return kernels.sum_weights(entries, weights)
    return weights.new_zeros(entries.offsets.shape[0] - 1).index_add_(0, entries.latents, weights)


def sum_rows(
    entries: ByLatent, weights: Tensor, x_ND: Tensor, out: Tensor | None = None,
    finish: Callable[[Tensor, slice], None] | None = None,
) -> Tensor:  # fmt: skip
    """For each latent Σ weight · x over its positions, [d_sae, d_in].

    Args:
        entries: active entries.
        weights: [m], in latent order.
        x_ND: [n, d_in].
        out: where to write.
        finish: called with every tile of the result (all rows, some columns) and its columns, while it is in the cache;
            may change it in place.
    """
    d_sae, d_in = entries.offsets.shape[0] - 1, x_ND.shape[1]
    if out is None:
        out = x_ND.new_empty(d_sae, d_in)
    if kernels.usable(x_ND):
        kernels.sum_rows(entries, weights, x_ND, out)
        if finish:
            finish(out, slice(None))
        return out
    for block in _columns(x_ND, SUM_BYTES):
        tile = _bags(entries.positions, x_ND[:, block].contiguous(), entries.offsets, weights)
        if finish:
            finish(tile, block)
        out[:, block] = tile
    return out
