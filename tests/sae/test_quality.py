"""Quality against plain dense formulas in float64, for both forms of latents and both spaces."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torch import Tensor

from seamark.errors import DataError
from seamark.sae import SparseAutoencoder, quality, sae_config
from seamark.sae.quality import EDGES, Quality, QualityMeter, qualities

D, F = 12, 48
KINDS = ["topk", "topk_relu", "batch_topk", "jumprelu", "relu"]


def make(kind: str = "topk", normalize: str = "layer_norm", hookpoint: str = "layers.1") -> SparseAutoencoder:
    """An autoencoder with latents that are dead, dense, and in between."""
    k = 7 if "topk" in kind else None
    config = sae_config(d_in=D, d_sae=F, k=k, activation=kind, normalize=normalize, hookpoint=hookpoint)
    sae = SparseAutoencoder(config, seed=3)
    with torch.no_grad():
        sae.W_dec.mul_(0.7)
        sae.b_dec += 0.1
        sae.b_enc += torch.linspace(-6.0, 0.5, F)
        sae.b_enc[:3] = -1e4  # dead
        if sae.threshold is not None:
            sae.threshold.fill_(0.4)
    return sae.eval()


def activations(n: int = 700) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    h = torch.randn(n, D, generator=generator) @ torch.randn(D, D, generator=generator)
    return h * torch.linspace(0.2, 3.0, D) + torch.linspace(-1.0, 4.0, D)


def dense(sae: SparseAutoencoder, h: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """(x, x̂, h, ĥ, z) from the definitions, float64."""
    h, c = h.double(), sae.config
    W_enc, W_dec, b_enc, b_dec = (getattr(sae, n).detach().double() for n in ("W_enc", "W_dec", "b_enc", "b_dec"))
    mean, std = h.mean(1, keepdim=True), h.std(1, keepdim=True) + c.eps
    x = (h - mean) / std if c.normalize == "layer_norm" else h
    pre = (x - b_dec) @ W_enc + b_enc
    if c.activation in ("topk", "topk_relu"):
        top = pre.topk(c.k, dim=1)
        z = torch.zeros_like(pre).scatter_(1, top.indices, top.values)
        z = z.relu() if c.activation == "topk_relu" else z
    else:
        z = pre * (pre > (0.0 if sae.threshold is None else sae.threshold.detach().double()))
    x_hat = z @ W_dec + b_dec
    return x, x_hat, h, x_hat * std + mean if c.normalize == "layer_norm" else x_hat, z


def unexplained(x: Tensor, x_hat: Tensor) -> float:
    return float((x_hat - x).square().sum() / (x - x.mean(0)).square().sum())


@pytest.mark.parametrize("normalize", ["layer_norm", "none"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_measure_is_its_definition(kind: str, normalize: str) -> None:
    sae, h = make(kind, normalize), activations()
    q = quality(sae, [h[:1], h[1:300], h[300:]])
    x, x_hat, h, h_hat, z = dense(sae, h)
    close = {"rel": 1e-4, "abs": 1e-6}
    assert q.fvu == pytest.approx(unexplained(x, x_hat), **close)
    assert q.fvu_raw == pytest.approx(unexplained(h, h_hat), **close)
    assert q.explained_variance == pytest.approx(1 - q.fvu)
    assert q.explained_variance_raw == pytest.approx(1 - q.fvu_raw)
    each = 1 - (x_hat - x).square().sum(0) / (x - x.mean(0)).square().sum(0)
    assert q.explained_variance_per_dimension == pytest.approx(float(each.mean()), **close)
    assert q.mse == pytest.approx(float((x_hat - x).square().sum(1).mean()), **close)
    assert q.mse_raw == pytest.approx(float((h_hat - h).square().sum(1).mean()), **close)
    assert q.cosine == pytest.approx(float(torch.cosine_similarity(x_hat, x, dim=1).mean()), **close)
    relative = (x_hat - x).square().sum(1) / x.square().sum(1)
    assert q.relative_error == pytest.approx(float(relative.mean()), **close)
    # A latent at its threshold may fall to either side in float32.
    assert q.l0 == pytest.approx(float((z != 0).sum(1).double().mean()), abs=0.01)
    assert q.l0_positive == pytest.approx(float((z > 0).sum(1).double().mean()), abs=0.01)
    fires = (z > 0).double().mean(0).numpy()
    assert q.dead == (fires == 0).sum() >= 3
    assert q.dead_share == q.dead / F
    assert q.dense == (fires > 0.1).sum() > 0
    assert q.dense_share == q.dense / F
    assert q.n == 700
    assert q.reasons == {}
    if normalize == "none":
        assert (q.fvu, q.mse) == (q.fvu_raw, q.mse_raw)
    else:
        assert q.fvu != pytest.approx(q.fvu_raw, rel=0.01)


def test_negative_latents_take_part_but_do_not_fire() -> None:
    q = quality(make("topk"), [activations()])
    assert q.l0 == 7
    assert q.l0_positive < 7
    relu = quality(make("topk_relu"), [activations()])
    assert relu.l0 == relu.l0_positive == q.l0_positive  # the zeros among the k entries do not count


def test_explained_variance_is_that_of_saelens() -> None:
    """1 − E‖ĥ − h‖² / (E‖h‖² − ‖E h‖²), as in its `ExplainedVarianceCalculator` (6.54)."""
    sae, h = make(), activations()
    h_hat = sae(h).double()
    h = h.double()
    total = h.square().sum(-1).mean(0) - h.mean(0).square().sum()
    expected = 1 - (h_hat - h).square().sum(-1).mean(0) / total
    assert quality(sae, [h]).explained_variance_raw == pytest.approx(float(expected), rel=1e-4)


def test_large_means_do_not_swallow_small_variances() -> None:
    generator = torch.Generator().manual_seed(0)
    h = 1e4 + torch.randint(-8, 9, (3000, D), generator=generator) / 8  # exact in float32
    sae = make(normalize="none")
    with torch.no_grad():
        sae.W_dec.zero_()
        sae.b_dec.fill_(1e4)
    q = quality(sae, h.split(500))
    assert q.fvu == pytest.approx(unexplained(h.double(), torch.full_like(h, 1e4).double()), rel=1e-9)


def test_histogram_counts_every_latent_that_fires_once() -> None:
    q = quality(make("relu"), [activations()])
    *_, z = dense(make("relu"), activations())
    fires = (z > 0).double().mean(0).numpy()
    assert sum(q.frequencies.latents) == F - q.dead
    assert len(q.frequencies.latents) == len(q.frequencies.log10_edges) - 1 == len(EDGES) - 1
    expected, _ = np.histogram(np.log10(fires[fires > 0]), np.asarray(EDGES))
    np.testing.assert_array_equal(q.frequencies.latents, expected)


def test_histogram_edges() -> None:
    from seamark.sae.quality import _histogram

    found = _histogram(np.array([0.0, 1.0, 0.1, 10**-0.75 * 1.0001, 1e-7, 1e-6])).latents
    at = dict(zip(EDGES, found, strict=False))
    assert (at[-0.25], at[-1.0], at[-0.75], at[-6.0]) == (1, 1, 1, 2)  # 1 lies in the last bin, 10⁻⁷ in the first
    assert sum(found) == 5


def test_the_same_from_any_chunks_and_formats() -> None:
    sae, h = make("relu"), activations(5000)
    whole, parts = quality(sae, [h]), quality(sae, [h[:0], *h.split(617)])
    assert parts.numbers() == pytest.approx(whole.numbers())
    assert parts.frequencies == whole.frequencies
    assert quality(sae, [h.double()]).fvu == pytest.approx(whole.fvu)
    assert quality(sae, [h.bfloat16()]).fvu == pytest.approx(whole.fvu, rel=0.05)


def test_a_suite_in_one_pass_is_each_alone() -> None:
    h, g = activations(), activations().flip(0) * 2
    suite = {"a": make(), "b": make("relu"), "c": make("jumprelu", "none", "layers.2")}
    passes: list[int] = []

    def stream():
        for i in range(0, 700, 200):
            passes.append(i)
            yield {"layers.1": h[i : i + 200], "layers.2": g[i : i + 200]}

    found = qualities(suite, stream())
    assert passes == [0, 200, 400, 600]
    assert found == {"a": quality(suite["a"], h.split(200)), "b": quality(suite["b"], h.split(200)),
                     "c": quality(suite["c"], g.split(200))}  # fmt: skip
    with pytest.raises(DataError, match=r"c: the stream has no activations at layers\.2. It has layers\.1"):
        qualities(suite, [{"layers.1": h}])


def test_what_is_undefined_has_a_reason_and_is_not_0() -> None:
    sae = make(normalize="none")
    constant = quality(sae, [torch.ones(5, D)])
    for name in ("fvu", "fvu_raw", "explained_variance", "explained_variance_raw", "explained_variance_per_dimension"):
        assert getattr(constant, name) is None
        assert constant.reasons[name] == "the activations do not vary"
    assert constant.cosine is not None
    assert quality(sae, [torch.randn(1, D)]).reasons["fvu"] == "one position has no variance"
    zeros = quality(sae, [torch.zeros(5, D)])
    assert (zeros.cosine, zeros.relative_error) == (None, None)
    assert zeros.reasons["cosine"] == zeros.reasons["relative_error"] == "every activation is 0"
    assert zeros.mse > 0
    assert Quality.model_validate_json(zeros.model_dump_json()) == zeros


def test_positions_of_zero_have_no_direction_and_a_zero_reconstruction_has_none_either() -> None:
    sae, h = make(normalize="none"), activations(50)
    some = quality(sae, [h])
    with_zeros = quality(sae, [torch.cat([h, torch.zeros(50, D)])])
    assert with_zeros.cosine == pytest.approx(some.cosine)
    assert with_zeros.relative_error == pytest.approx(some.relative_error)
    with torch.no_grad():
        sae.W_dec.zero_()
        sae.b_dec.zero_()
    silent = quality(sae, [h])
    assert silent.cosine == 0
    assert silent.relative_error == 1


def test_dimensions_that_do_not_vary_are_left_out() -> None:
    sae, h = make(normalize="none"), activations()
    h[:, 4] = 7.0
    x, x_hat, *_ = dense(sae, h)
    each = 1 - (x_hat - x).square().sum(0) / (x - x.mean(0)).square().sum(0)
    expected = float(each[[d for d in range(D) if d != 4]].mean())
    assert quality(sae, [h]).explained_variance_per_dimension == pytest.approx(expected, rel=1e-4)


def test_numbers_are_those_of_a_table() -> None:
    q = quality(make(), [activations()])
    numbers = q.numbers()
    assert list(numbers)[:3] == ["fvu", "fvu_raw", "explained_variance"]
    assert numbers["n"] == 700
    assert not {"frequencies", "reasons"} & set(numbers)
    assert json.loads(q.model_dump_json())["frequencies"]["latents"] == list(q.frequencies.latents)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_bad_activations_are_refused(value: float) -> None:
    h = activations(40)
    h[7, 3] = value
    with pytest.raises(DataError, match=r"layers\.1: activations hold NaN or infinite values"):
        quality(make(), [h])
    with pytest.raises(DataError, match="wants"):
        quality(make(), [torch.zeros(4, D + 1)])
    with pytest.raises(DataError, match="no activations"):
        QualityMeter(make()).result()
    with pytest.raises(DataError, match="no activations"):
        quality(make(), [torch.zeros(0, D)])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("kind", KINDS)
def test_on_a_gpu(kind: str) -> None:
    h = activations()
    here, there = quality(make(kind), [h]), quality(make(kind).cuda(), [h[:300], h[300:].cuda()])
    assert there.numbers() == pytest.approx(here.numbers(), rel=1e-3, abs=1e-4)
