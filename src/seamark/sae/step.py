"""One training step of a TopK autoencoder: loss and gradients that touch the active latents only.

The encoder's product is dense, because selection must see every latent. All else is sparse: the decoder sums
k rows a position, and the backward pass visits the n·k active (position, latent) entries, sorted by latent:

    gradient of an activation    a dot product per entry (sampled product, CSR by latent)
    gradient of a weight row     a weighted sum of the positions where its latent is active (embedding bag)

No tensor of n·k·d_in elements exists, and no gradient is ever computed for a latent that was not selected.
"""

from __future__ import annotations

import warnings
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from seamark.sae.topk import encode_top_k


class Weights(NamedTuple):
    """Parameters or their gradients: W_enc and W_dec [d_sae, d_in], b_enc [d_sae], b_dec [d_in]."""

    W_enc: Tensor
    W_dec: Tensor
    b_enc: Tensor
    b_dec: Tensor


class ByLatent(NamedTuple):
    """The active entries in the order of their latents: a CSR pattern [d_sae, n]."""

    order: Tensor
    """int64 [n·k]: flat entry (position-major) at each place."""
    latents: Tensor
    """int64 [n·k], ascending."""
    positions: Tensor
    """int64 [n·k]."""
    offsets: Tensor
    """int64 [d_sae + 1]: entries of latent i are offsets[i]:offsets[i+1]."""


def sort_by_latent(indices_NK: Tensor, d_sae: int) -> ByLatent:
    """Sort the active entries by latent (stable: positions ascend inside a latent)."""
    flat = indices_NK.flatten()
    latents, order = torch.sort(flat, stable=True)
    offsets = torch.zeros(d_sae + 1, dtype=torch.int64, device=flat.device)
    offsets[1:] = torch.bincount(flat, minlength=d_sae).cumsum(0)
    return ByLatent(order, latents, order // indices_NK.shape[1], offsets)


def decode_rows(indices_NK: Tensor, values_NK: Tensor, W_dec_FD: Tensor) -> Tensor:
    """Σ_k values · W_dec[indices], [n, d_in]."""
    return embedding_bag(indices_NK, W_dec_FD, per_sample_weights=values_NK, mode="sum")


def sum_rows(entries: ByLatent, weights: Tensor, x_ND: Tensor) -> Tensor:
    """For each latent Σ weight · x over its positions, [d_sae, d_in]; `weights` [n·k] in latent order."""
    return embedding_bag(
        entries.positions,
        x_ND,
        entries.offsets,
        mode="sum",
        per_sample_weights=weights,
        include_last_offset=True,
    )


def sampled_products(entries: ByLatent, W_FD: Tensor, G_ND: Tensor) -> Tensor:
    """W[latent] · G[position] for every active entry, [n·k] in latent order."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch calls its CSR tensors "beta" once a process
        pattern = torch.sparse_csr_tensor(
            entries.offsets, entries.positions, G_ND.new_zeros(entries.order.shape[0]),
            (W_FD.shape[0], G_ND.shape[0]), check_invariants=False,
        )  # fmt: skip
        products: Tensor = torch.sparse.sampled_addmm(pattern, W_FD, G_ND.T, beta=0.0).values()
    return products


@torch.no_grad()
def loss_and_gradients(w: Weights, x_ND: Tensor, k: int) -> tuple[Tensor, Weights]:
    """Loss mean ‖x̂ − x‖² / ‖x‖² of a TopK autoencoder and its exact gradients (SAFER, arXiv 2507.00665).

    Args:
        w: the parameters.
        x_ND: [n, d_in], already normalised. A position with ‖x‖ = 0 has no relative error and counts as 0.
        k: latents kept at each position; negative values among them stay in the reconstruction.

    Returns:
        (loss [], gradients in the shapes of `w`).
    """
    n = x_ND.shape[0]
    centred_ND = x_ND - w.b_dec
    indices_NK, values_NK = encode_top_k(centred_ND, w.W_enc, w.b_enc, k)
    error_ND = decode_rows(indices_NK, values_NK, w.W_dec).add_(w.b_dec).sub_(x_ND)

    power_N = x_ND.square().sum(1)
    weight_N = torch.where(power_N > 0, 1.0 / power_N, torch.zeros_like(power_N)) / n
    loss = (error_ND.square().sum(1) * weight_N).sum()

    G_ND = error_ND.mul_((2.0 * weight_N)[:, None])  # gradient of x̂
    entries = sort_by_latent(indices_NK, w.W_enc.shape[0])
    dz = sampled_products(entries, w.W_dec, G_ND)
    db_enc = torch.zeros_like(w.b_enc).index_add_(0, entries.latents, dz)
    return loss, Weights(
        W_enc=sum_rows(entries, dz, centred_ND),
        W_dec=sum_rows(entries, values_NK.flatten()[entries.order], G_ND),
        b_enc=db_enc,
        b_dec=G_ND.sum(0) - db_enc @ w.W_enc,  # through the output, and through x − b_dec
    )
