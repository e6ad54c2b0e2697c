from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from seamark.errors import ConfigError, DataError, FormatError
from seamark.sae import SAEConfig, SparseAutoencoder, quality, sae_config
from seamark.sae.product import Exact


def make(d_in: int = 16, d_sae: int = 64, k: int | None = 5, **more: object) -> SparseAutoencoder:
    sae = SparseAutoencoder(sae_config(d_in=d_in, d_sae=d_sae, k=k, hookpoint="layers.1", **more), seed=3)
    with torch.no_grad():
        sae.b_dec += 0.1
        sae.b_enc -= 0.3
    return sae


def test_encode_decode_follow_the_paper() -> None:
    sae = make()
    h = torch.randn(20, 16) * 7 + 3
    x = (h - h.mean(1, keepdim=True)) / (h.std(1, keepdim=True) + 1e-6)  # unbiased
    pre = (x - sae.b_dec) @ sae.W_enc + sae.b_enc
    top = pre.topk(5)
    z = torch.zeros_like(pre).scatter_(1, top.indices, top.values)
    latents = sae.encode(h)
    assert latents.indices.shape == (20, 5)
    assert latents.indices.dtype == torch.int32
    torch.testing.assert_close(latents.dense(), z)
    x_hat = z @ sae.W_dec + sae.b_dec
    torch.testing.assert_close(sae.decode(latents), x_hat * (h.std(1, keepdim=True) + 1e-6) + h.mean(1, keepdim=True))
    torch.testing.assert_close(sae(h), sae.decode(latents))


@pytest.mark.parametrize("activation", ["relu", "jumprelu", "batch_topk", "topk"])
def test_positions_beyond_one_chunk_of_the_product(activation: str, monkeypatch: pytest.MonkeyPatch) -> None:
    sae = make(k=5 if "topk" in activation else None, activation=activation)
    if sae.threshold is not None:
        sae.threshold.data.fill_(0.5)
    h = torch.randn(50, 16)
    expected = torch.cat([sae.encode(row).dense() for row in h.split(1)])
    monkeypatch.setattr(Exact, "chunk_bytes", 7 * 64 * 4)
    torch.testing.assert_close(sae.encode(h).dense(), expected)
    assert (expected != 0).any(1).all()


def test_positive_keeps_only_what_fires() -> None:
    sae = make(k=40)  # more than half of the latents, so that negative ones are among them
    latents = sae.encode(torch.randn(20, 16))
    positive = latents.positive()
    torch.testing.assert_close(positive.dense(), latents.dense().clamp_min(0))
    assert (latents.values < 0).any()
    assert (positive.values > 0).all()
    assert len(positive) == 20
    sae.decode(positive)  # the flat form decodes too


def test_positive_of_silent_positions() -> None:
    sae = make()
    with torch.no_grad():
        sae.b_enc.fill_(-100.0)
    positive = sae.encode(torch.randn(4, 16)).positive()
    assert positive.values.numel() == 0
    assert len(positive) == 4
    assert sae.decode(positive).shape == (4, 16)


def test_init_is_tied_and_of_unit_norm() -> None:
    sae = SparseAutoencoder(SAEConfig(d_in=16, d_sae=64, k=4))
    assert torch.equal(sae.W_enc, sae.W_dec.T)
    torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.ones(64))


def test_round_trip(tmp_path: Path) -> None:
    sae = make(model="m")
    sae.save_pretrained(tmp_path / "sae")
    again = SparseAutoencoder.from_pretrained(tmp_path / "sae")
    assert again.config == sae.config
    assert again.fingerprint() == sae.fingerprint()
    h = torch.randn(5, 16)
    assert torch.equal(sae.encode(h).values, again.encode(h).values)
    first = (tmp_path / "sae" / "sae.safetensors").read_bytes()
    again.save_pretrained(tmp_path / "sae")
    assert (tmp_path / "sae" / "sae.safetensors").read_bytes() == first


def test_bad_configs() -> None:
    with pytest.raises(ConfigError, match="more than d_sae"):
        sae_config(d_in=4, d_sae=8, k=9)
    with pytest.raises(ConfigError, match="k"):
        sae_config(d_in=4, d_sae=8)
    for eps in (0.0, -1e-6, 2.0, float("inf"), float("nan")):
        with pytest.raises(ConfigError, match="eps"):
            sae_config(d_in=4, d_sae=8, k=2, eps=eps)
    for sizes in ({"d_in": 10**15, "d_sae": 8}, {"d_in": 4, "d_sae": 10**15}):
        with pytest.raises(ConfigError, match="less than or equal"):
            sae_config(k=2, **sizes)
    assert sae_config(d_in=18_432, d_sae=1 << 24, k=2).d_sae == 1 << 24, "as large as any that was published"


def test_wrong_width() -> None:
    with pytest.raises(DataError, match=r"layers\.1.*wants \[n, 16\]"):
        make().encode(torch.randn(3, 17))


@pytest.mark.parametrize("damage", ["weights", "config", "missing", "shape", "nan", "version", "eps"])
def test_corrupt_files(tmp_path: Path, damage: str) -> None:
    sae = make()
    if damage == "nan":
        with torch.no_grad():
            sae.b_enc[3] = float("nan")
    sae.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    if damage == "weights":
        (tmp_path / "sae.safetensors").write_bytes((tmp_path / "sae.safetensors").read_bytes()[:100])
    elif damage == "missing":
        (tmp_path / "sae.safetensors").unlink()
    elif damage == "config":
        (tmp_path / "config.json").write_text("{")
    elif damage == "shape":
        (tmp_path / "config.json").write_text(json.dumps(config | {"d_sae": 65}))
    elif damage == "version":
        (tmp_path / "config.json").write_text(json.dumps(config | {"format_version": 99}))
    elif damage == "eps":
        (tmp_path / "config.json").write_text(json.dumps(config | {"eps": float("inf")}))
    with pytest.raises(FormatError, match=str(tmp_path)):
        SparseAutoencoder.from_pretrained(tmp_path)


def test_quality_of_a_perfect_and_a_dead_autoencoder() -> None:
    h = torch.randn(400, 8)
    perfect = SparseAutoencoder(SAEConfig(d_in=8, d_sae=8, k=8, normalize="none"))
    with torch.no_grad():
        perfect.W_dec.copy_(torch.eye(8))
        perfect.W_enc.copy_(torch.eye(8))
    q = quality(perfect, [h[:100], h[100:]])
    assert q.fvu == pytest.approx(0, abs=1e-6)
    assert q.cosine == pytest.approx(1)
    assert q.n == 400
    assert q.dead_share == 0
    with torch.no_grad():
        perfect.W_enc.zero_()
        perfect.b_dec.copy_(h.mean(0))
    q = quality(perfect, [h])
    assert q.fvu == pytest.approx(1, rel=1e-4)
    assert q.dead_share == 1
    assert quality(perfect, [torch.ones(5, 8)]).fvu is None
    with pytest.raises(DataError, match="no activations"):
        quality(perfect, [])
