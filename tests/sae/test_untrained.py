"""The untrained autoencoder: as training starts, in the place of a trained one."""

from __future__ import annotations

import pytest
import torch

from seamark.sae import FitConfig, SparseAutoencoder, fit, sae_config


def trained(activation: str = "topk") -> SparseAutoencoder:
    k = 5 if "topk" in activation else None
    config = sae_config(d_in=16, d_sae=64, k=k, activation=activation, hookpoint="layers.1", model="m")
    generator = torch.Generator().manual_seed(1)
    stream = [torch.randn(256, 16, generator=generator) * 2 + torch.arange(16) for _ in range(4)]
    return fit(stream, {"s": (config, FitConfig(batch_size=128, lr=1e-2, seed=7))}, positions=1024)["s"]


def test_untrained_has_the_shape_and_no_training() -> None:
    like = trained()
    sae = SparseAutoencoder.untrained(like, seed=3)
    assert sae.config == like.config
    torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.ones(64))
    assert torch.equal(sae.W_enc, sae.W_dec.T)
    assert not sae.b_enc.any()
    assert torch.equal(sae.W_dec, SparseAutoencoder(like.config, seed=3).W_dec)
    assert (sae.W_dec - like.W_dec).norm() > 1
    assert not sae.training
    h = torch.randn(30, 16)
    assert sae.encode(h).values.shape == like.encode(h).values.shape
    assert sae.fingerprint() == SparseAutoencoder.untrained(like, seed=3).fingerprint()
    assert sae.fingerprint() != SparseAutoencoder.untrained(like, seed=4).fingerprint()


def test_untrained_sees_activations_around_the_same_middle_and_leaves_the_other_alone() -> None:
    like = trained()
    before = like.fingerprint()
    sae = SparseAutoencoder.untrained(like)
    assert torch.equal(sae.b_dec, like.b_dec)
    assert like.b_dec.any()
    with torch.no_grad():
        sae.b_dec += 1.0
    assert like.fingerprint() == before
    assert not SparseAutoencoder.untrained(like.config).b_dec.any()


@pytest.mark.parametrize("activation", ["topk_relu", "relu", "jumprelu", "batch_topk"])
def test_untrained_of_every_kind_encodes(activation: str) -> None:
    like = trained(activation)
    sae = SparseAutoencoder.untrained(like)
    latents = sae.encode(torch.randn(40, 16) * 2 + torch.arange(16)).positive()
    assert latents.values.numel() > 40
    if activation == "batch_topk":  # it has no threshold before training
        assert sae.config == like.config.model_copy(update={"activation": "topk_relu"})
        assert latents.values.numel() <= 40 * 5
    else:
        assert sae.config == like.config
    if activation == "jumprelu":
        assert sae.threshold is not None
        assert torch.equal(sae.threshold, torch.full((64,), FitConfig().initial_threshold))
