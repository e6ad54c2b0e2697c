"""Autoencoders with firings of both kinds for the tests of the token view, and what they are by the formula."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from seamark.diagnose import Inspection
from seamark.sae import SAEConfig, SparseAutoencoder

D_SAE, K = 80, 6


def make_sae(hookpoint: str = "layers.2", seed: int = 0, **config: Any) -> SparseAutoencoder:
    sae = SparseAutoencoder(SAEConfig(d_in=32, d_sae=D_SAE, hookpoint=hookpoint, **({"k": K} | config)), seed=seed)
    with torch.no_grad():
        sae.b_enc -= torch.rand(D_SAE, generator=torch.Generator().manual_seed(9)) * 2.5  # some of the k are negative
        sae.b_dec += 0.05
    return sae.eval()


def plain_latents(sae: SparseAutoencoder, h_TD: torch.Tensor) -> NDArray[np.float64]:
    """max(z, 0) [T, d_sae] by the formula, in doubles: x normalised, the k largest of W_enc(x − b_dec) + b_enc."""
    h = h_TD.double()
    x = (h - h.mean(1, keepdim=True)) / (h.std(1, keepdim=True) + sae.config.eps)
    z = (x - sae.b_dec.double()) @ sae.W_enc.double() + sae.b_enc.double()
    kept = torch.zeros_like(z)
    best = z.topk(K, dim=1)
    kept.scatter_(1, best.indices, best.values.relu())
    return kept.detach().numpy()


def dense(found: Inspection, sae: str) -> NDArray[np.float64]:
    """What an inspection shows of an autoencoder as z [T, d_sae]."""
    out = np.zeros((len(found.tokens), D_SAE))
    for i, token in enumerate(found.tokens):
        for firing in token.firings:
            feature = found.features[firing.feature]
            if feature.sae == sae:
                assert out[i, feature.latent] == 0, "a feature stands twice at a token"
                out[i, feature.latent] = firing.activation
    return out


def hidden(model: Any, ids: list[int]) -> Mapping[str, torch.Tensor]:
    """Activations [T, d] by plain transformers: of two block outputs, and of an MLP through a hook of our own."""
    caught: dict[str, torch.Tensor] = {}
    handle = model.hf.model.layers[1].mlp.register_forward_hook(lambda _m, _a, out: caught.update(mlp=out[0]))
    try:
        with torch.no_grad():
            states = model.hf(input_ids=torch.tensor([ids]), output_hidden_states=True).hidden_states
    finally:
        handle.remove()
    return {"layers.0": states[1][0], "layers.1.mlp": caught["mlp"], "layers.2": states[3][0]}
