"""How good an autoencoder is, measured on activations it has not seen."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from seamark.errors import DataError
from seamark.sae.autoencoder import SparseAutoencoder


class Quality(BaseModel):
    """Reconstruction and sparsity on a held-out stream, all in the autoencoder's own (normalised) space."""

    model_config = ConfigDict(frozen=True)

    fvu: float | None
    """Fraction of variance unexplained, Σ‖x̂ − x‖² / Σ‖x − mean(x)‖²; None where nothing varies."""
    cosine: float
    """Mean cosine of x̂ and x."""
    relative_error: float
    """Mean ‖x̂ − x‖² / ‖x‖²: the training loss."""
    l0: float
    """Mean number of latents in the reconstruction of a position (k, negative ones included)."""
    l0_positive: float
    """Mean number of latents that fire (value > 0) at a position."""
    dead_share: float
    """Share of latents, 0–1, that fire nowhere in the stream; it falls as `n` grows."""
    n: int
    """Positions measured."""


@torch.no_grad()
def quality(sae: SparseAutoencoder, stream: Iterable[Tensor]) -> Quality:
    """Measure `sae` on chunks of activations [n, d_in] in one pass, sums in float64; `DataError` on none."""
    n = 0
    error = power = cosine = relative = active = fires = 0.0
    total_D = torch.zeros(sae.config.d_in, dtype=torch.float64)
    fired_F = torch.zeros(sae.config.d_sae, dtype=torch.bool)
    for chunk in stream:
        for h_ND in chunk.split(8192):
            x_ND, _ = sae.preprocess(h_ND)
            latents = sae.encode(h_ND)
            x_hat_ND = sae.decode(replace(latents, scale=None))  # without its scale: in the normalised space
            error_N = (x_hat_ND - x_ND).square().sum(1).double()
            power_N = x_ND.square().sum(1).double()
            n += x_ND.shape[0]
            error += float(error_N.sum())
            power += float(power_N.sum())
            relative += float((error_N / power_N.clamp_min(1e-12)).sum())
            cosine += float(torch.nn.functional.cosine_similarity(x_hat_ND, x_ND, dim=1).double().sum())
            total_D += x_ND.double().sum(0).cpu()
            active += int((latents.values != 0).sum())
            positive = latents.values > 0
            fires += int(positive.sum())
            fired_F[latents.indices[positive].long().cpu()] = True
    if n == 0:
        raise DataError("no activations to measure on", where=sae.config.hookpoint, fix="Hold out more texts")
    variance = power - float(total_D.square().sum()) / n
    return Quality(
        fvu=error / variance if variance > 1e-9 * max(power, 1e-30) else None,
        cosine=cosine / n, relative_error=relative / n, l0=active / n, l0_positive=fires / n,
        dead_share=1.0 - float(fired_F.double().mean()), n=n,
    )  # fmt: skip
