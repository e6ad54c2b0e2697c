"""The exact selection of what is active, from one dense product.

A product in a cheaper number format only proposes: a few candidates more than needed are taken, their pre-activations
are computed again from the weights themselves (k + spare dot products a position in place of d_sae), and the selection
is made on those. Where the candidates do not settle it (many latents alike, as at special tokens), the position is done
again in fp32.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from seamark.sae.config import Encoding
from seamark.sae.ops import ByLatent, sampled_products, sort_by_latent
from seamark.sae.product import PRODUCTS, Exact
from seamark.sae.topk import largest, top_k

DOUBT = 4.0
"""Standard deviations of the cheap product's error by which the k-th value must be clear of what was left out."""
TOLERANCE = 2.0**-5
"""For thresholds: what a bf16 product may be off, in units of ‖x‖·max‖w‖/√d_in (about ten standard deviations)."""


ROUNDING = 2.0**-8
"""For thresholds: what rounding a bf16 product's result and its bias takes off at most, as a share of them."""


class Active(NamedTuple):
    """Selected entries of n positions in both orders; `pre` are exact pre-activations."""

    indices: Tensor
    """Position-major latents: int64 [n, k], or flat [m] with `bags`."""
    pre: Tensor
    """Their pre-activations, in the shape of `indices`."""
    bags: Tensor | None
    """int64 [n + 1], position i owns flat entries bags[i]:bags[i+1]; None for [n, k]."""
    entries: ByLatent
    """The same entries in latent order."""
    pre_by_latent: Tensor
    """[m], in latent order."""


class Encoder:
    """Finds active latents. Args: W_enc [d_sae, d_in] (rows contiguous), b_enc [d_sae], the product's number format."""

    def __init__(self, W_enc_FD: Tensor, b_enc_F: Tensor, encoding: Encoding = "fp32") -> None:
        self.W_enc, self.b_enc, self.encoding = W_enc_FD, b_enc_F, encoding
        self.product = PRODUCTS[encoding](W_enc_FD, b_enc_F)
        self.unsure = 0
        """Positions so far whose candidates did not settle the k largest, and that were done again in fp32."""

    def changed(self) -> None:
        """The weights are new."""
        self.product.stale = True

    def top_k(self, x_ND: Tensor, k: int) -> Active:
        """The k largest pre-activations of every position; x [n, d_in] as the encoder sees it."""
        indices, values = self.k_largest(x_ND, k)
        entries = sort_by_latent(indices, k, self.W_enc.shape[0])
        return Active(indices, values, None, entries, values.view(-1)[entries.order])

    def k_largest(self, x_ND: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """(latents int64 [n, k], their pre-activations [n, k]): `top_k` for those who need one order only."""
        n, d_sae = x_ND.shape[0], self.W_enc.shape[0]
        wanted = min(k + self.product.spare, d_sae)
        indices = torch.empty(n, wanted, dtype=torch.int64, device=x_ND.device)
        values = x_ND.new_empty(n, wanted)
        for rows, pre, unit in self.product.chunks(x_ND):
            indices[rows], found = top_k(pre, wanted)
            values[rows] = found if unit is None else found * unit
        return (indices, values) if self.encoding == "fp32" else self._chosen(indices, values, x_ND, k)

    def _chosen(self, indices: Tensor, cheap: Tensor, x_ND: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """The k largest [n, k] by exact values, of candidates [n, wanted] with cheap ones.

        A latent that is no candidate has a cheap value below the candidates' smallest. How far cheap values are off
        shows on the candidates. Where the k-th exact value is not clear of both, the position is done in fp32.
        """
        wanted = indices.shape[1]
        entries = sort_by_latent(indices, wanted, self.W_enc.shape[0])
        exact = torch.empty_like(cheap)
        exact.view(-1)[entries.order] = self._again(entries, x_ND)
        chosen = largest(exact, k)
        values = exact.gather(1, chosen)
        # Errors grow with values in bf16: those of candidates not chosen count, as they lie near the edge in question.
        error = (cheap - exact).scatter_(1, chosen, 0.0)
        doubt = torch.linalg.vector_norm(error, dim=1).mul_(DOUBT / max(wanted - k, 1) ** 0.5)
        unsure = (values.amin(1) < cheap.amin(1) + doubt).nonzero().squeeze(1)
        self.unsure += len(unsure)
        indices = indices.gather(1, chosen)
        for rows in unsure.split(max(1, Exact.chunk_bytes // (self.W_enc.shape[0] * 4))):
            indices[rows], values[rows] = top_k(torch.addmm(self.b_enc, x_ND[rows], self.W_enc.T), k)
        return indices, values

    def above(self, x_ND: Tensor, floor_F: Tensor) -> Active:
        """Every pre-activation greater than its latent's floor ([d_sae], or [1] for all alike). Not with int8."""
        position, latent, value = self._candidates(x_ND, floor_F)
        return self._flat(position, latent, value, x_ND, floor_F)

    def exceeding(self, x_ND: Tensor, floor_F: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(latents, pre-activations, offsets [n + 1]), flat: `above` for those who need one order only."""
        if self.encoding != "fp32":
            found = self.above(x_ND, floor_F)
            assert found.bags is not None  # noqa: S101
            return found.indices, found.pre, found.bags
        position, latent, value = self._candidates(x_ND, floor_F)
        return latent, value, bags(position, x_ND.shape[0])

    def _candidates(self, x_ND: Tensor, floor_F: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(positions, latents, values) of what is above the floor, or may be, position by position."""
        slack_N = self._slack(x_ND)
        if slack_N is not None:
            floor_F = floor_F - ROUNDING * (floor_F.abs() + self.b_enc.abs().max())
        position, latent, value = [], [], []
        for rows, pre, _ in self.product.chunks(x_ND):
            over = pre > (floor_F if slack_N is None else floor_F - slack_N[rows, None])
            found = over.nonzero()
            position.append(found[:, 0] + rows.start)
            latent.append(found[:, 1])
            value.append(pre[over].to(x_ND.dtype))
        if not position:  # no positions at all
            nothing = torch.empty(0, dtype=torch.int64, device=x_ND.device)
            return nothing, nothing, x_ND.new_empty(0)
        return torch.cat(position), torch.cat(latent), torch.cat(value)

    def _flat(self, position: Tensor, latent: Tensor, value: Tensor, x_ND: Tensor, floor_F: Tensor) -> Active:
        """Both orders of flat entries, those of a cheap product computed again and held against the floor."""
        n, d_sae = x_ND.shape[0], self.W_enc.shape[0]
        entries = sort_by_latent(latent, position, d_sae)
        if self.encoding == "fp32":
            return Active(latent, value, bags(position, n), entries, value[entries.order])
        again = self._again(entries, x_ND)
        mask = again > floor_F.expand(d_sae)[entries.latents]
        value[entries.order] = again
        kept = torch.empty_like(mask)
        kept[entries.order] = mask
        return Active(latent[kept], value[kept], bags(position[kept], n), entries.keep(mask), again[mask])

    def _again(self, entries: ByLatent, x_ND: Tensor) -> Tensor:
        return sampled_products(entries, self.W_enc, x_ND).add_(self.b_enc[entries.latents])

    def _slack(self, x_ND: Tensor) -> Tensor | None:
        """[n]: how far below the floor a candidate of the cheap product may lie; None for an exact one."""
        if self.encoding == "fp32":
            return None
        widest = torch.linalg.vector_norm(self.W_enc, dim=1).max()
        return torch.linalg.vector_norm(x_ND, dim=1) * (TOLERANCE * widest / x_ND.shape[1] ** 0.5)


def bags(position: Tensor, n: int) -> Tensor:
    """Offsets int64 [n + 1] of flat position-major entries."""
    offsets = torch.zeros(n + 1, dtype=torch.int64, device=position.device)
    torch.cumsum(torch.bincount(position, minlength=n), 0, out=offsets[1:])
    return offsets


def keep_entries(active: Active, position: Tensor, mask: Tensor, mask_by_latent: Tensor, n: int) -> Active:
    """Some of the flat entries; the two masks say the same in the two orders."""
    return Active(
        active.indices[mask], active.pre[mask], bags(position[mask], n),
        active.entries.keep(mask_by_latent), active.pre_by_latent[mask_by_latent],
    )  # fmt: skip
