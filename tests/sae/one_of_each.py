"""A suite with one autoencoder of every kind, and activations to train it on."""

from __future__ import annotations

import torch
from torch import Tensor

from seamark.sae import FitConfig, SAEConfig

D_IN = 16


def chunks(n: int, size: int) -> list[Tensor]:
    """n activations [size, 16], sparse combinations of 40 directions plus noise."""
    g = torch.Generator().manual_seed(0)
    directions = torch.randn(40, D_IN, generator=g)
    active = (torch.rand(n, 40, generator=g) < 0.08) * torch.rand(n, 40, generator=g)
    return list((active @ directions + 0.05 * torch.randn(n, D_IN, generator=g) + 0.5).split(size))


def suite(how: FitConfig, **for_aux: object) -> dict[str, tuple[SAEConfig, FitConfig]]:
    """TopK, TopK+ReLU with AuxK (and `for_aux`), BatchTopK, JumpReLU."""
    aux = how.model_copy(update={"aux_coefficient": 0.1, "dead_after": 300} | for_aux)
    jump = how.model_copy(update={"sparsity": 1e-3, "bandwidth": 0.05, "initial_threshold": 0.05})
    return {
        "topk": (SAEConfig(d_in=D_IN, d_sae=64, k=4), how),
        "aux": (SAEConfig(d_in=D_IN, d_sae=96, k=3, activation="topk_relu", normalize="none"), aux),
        "batch": (SAEConfig(d_in=D_IN, d_sae=64, k=4, activation="batch_topk"), how),
        "jump": (SAEConfig(d_in=D_IN, d_sae=64, activation="jumprelu"), jump),
    }
