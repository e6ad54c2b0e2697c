"""The autoencoder and the scores in plain torch, as the ways without Seamark's scan compute them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from seamark.sae import SparseAutoencoder


class DenseSAE:
    """TopK autoencoder with latents as [n, d_sae]."""

    def __init__(self, sae: SparseAutoencoder) -> None:
        self.k, self.eps = int(sae.config.k or 0), sae.config.eps
        self.W_enc, self.b_enc = sae.W_enc.detach().T, sae.b_enc.detach()
        """[d_sae, d_in], a view."""
        self.W_dec, self.b_dec = sae.W_dec.detach(), sae.b_dec.detach()

    def top(self, h_ND: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Pre-activations [n, d_sae], and values and indices [n, k] of the largest."""
        x_ND = (h_ND - h_ND.mean(-1, keepdim=True)) / (h_ND.std(-1, keepdim=True) + self.eps)
        pre_NF = F.linear(x_ND - self.b_dec, self.W_enc, self.b_enc)
        values, indices = pre_NF.topk(self.k, dim=-1)
        return pre_NF, values, indices

    def encode(self, h_ND: Tensor) -> Tensor:
        """Latents [n, d_sae]: the k largest of each row, 0 elsewhere."""
        pre_NF, values, indices = self.top(h_ND)
        return torch.zeros_like(pre_NF).scatter_(-1, indices, values)

    def decode(self, z_NF: Tensor) -> Tensor:
        """[n, d_in]."""
        return F.linear(z_NF, self.W_dec.T, self.b_dec)


def contrastive_scores(chosen: Tensor, rejected: Tensor) -> NDArray[np.float64]:
    """s = (h⁺ − h⁻) / (h⁺ + h⁻ + C) from sums [d_sae] (SAFER, arXiv 2507.00665)."""
    plus, minus = chosen.double().numpy(), rejected.double().numpy()
    scores: NDArray[np.float64] = (plus - minus) / (plus + minus + (plus + minus).mean())
    return scores


def strongest(scores: NDArray[np.float64], n: int) -> list[int]:
    """The n latents with the largest |s|; ties by number."""
    order: Sequence[int] = np.lexsort((np.arange(len(scores)), -np.abs(scores)))[:n].tolist()
    return [i for i in order if scores[i] != 0]
