"""The sparse step of every variant against plain dense autograd in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from dense_reference import dense_loss
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from seamark.sae.config import FitConfig, SAEConfig
from seamark.sae.encoder import Encoder
from seamark.sae.product import PRODUCTS
from seamark.sae.step import Problem, Weights, dense_loss_and_gradients, loss_and_gradients
from seamark.sae.topk import top_k

VARIANTS = {
    "topk": ({"activation": "topk", "k": 6}, {}),
    "topk-squared": ({"activation": "topk", "k": 6}, {"loss": "squared"}),
    "topk-no-b_dec": ({"activation": "topk", "k": 6, "subtract_b_dec": False}, {}),
    "topk-keep-parallel": ({"activation": "topk", "k": 6}, {"remove_parallel": False}),
    "topk-all": ({"activation": "topk", "k": 96}, {}),
    "topk_relu": ({"activation": "topk_relu", "k": 40}, {"loss": "squared"}),
    "batch_topk": ({"activation": "batch_topk", "k": 6}, {"loss": "squared"}),
    "batch_topk-wide": ({"activation": "batch_topk", "k": 30}, {}),
    "jumprelu": ({"activation": "jumprelu"}, {"loss": "squared", "sparsity": 0.3, "bandwidth": 0.4}),
    "jumprelu-relative": ({"activation": "jumprelu"}, {"sparsity": 0.01, "bandwidth": 0.4}),
    "relu": ({"activation": "relu"}, {"loss": "squared", "sparsity": 0.3}),
    "relu-no-b_dec": ({"activation": "relu", "subtract_b_dec": False}, {"sparsity": 0.01}),
}
D_IN, D_SAE, N = 12, 96, 50


def make(name: str, dtype: torch.dtype = torch.float64, n: int = N) -> tuple[Weights, Tensor, Problem]:
    config = SAEConfig(d_in=D_IN, d_sae=D_SAE, **VARIANTS[name][0])
    how = FitConfig(**VARIANTS[name][1])
    g = torch.Generator().manual_seed(1)
    draw = lambda *shape: torch.randn(*shape, generator=g, dtype=dtype)  # noqa: E731
    W_dec = draw(D_SAE, D_IN)
    w = Weights(draw(D_SAE, D_IN) / 2, W_dec / W_dec.norm(dim=1, keepdim=True), draw(D_SAE), draw(D_IN))
    if config.activation == "jumprelu":
        w = w._replace(log_threshold=(0.3 + draw(D_SAE).abs()).log())
    return w, draw(n, D_IN), Problem(config, how, how.sparsity, n)


def assert_gradients(w: Weights, x: Tensor, p: Problem, got: Weights, loss: float, squares: Tensor | None) -> None:
    leaves = Weights(*(None if t is None else t.clone().requires_grad_() for t in w))
    expected = dense_loss(leaves, x, p)
    expected.backward()
    assert loss == pytest.approx(expected.item(), rel=1e-12)
    for name, gradient, leaf in zip(Weights._fields, got, leaves, strict=True):
        if leaf is None:
            assert gradient is None
            continue
        assert leaf.grad is not None
        if name == "W_dec" and p.how.remove_parallel:
            leaf.grad -= (leaf.grad * w.W_dec).sum(1, keepdim=True) * w.W_dec
        assert leaf.grad.norm() > 0
        assert (gradient - leaf.grad).norm() <= 1e-6 * leaf.grad.norm(), name
    if squares is not None:
        assert float(squares) == pytest.approx(float(got.W_enc.square().sum() + got.W_dec.square().sum()))


@pytest.mark.parametrize("aux", [0.0, 0.5], ids=["", "auxk"])
@pytest.mark.parametrize("name", VARIANTS)
def test_gradients_equal_dense_autograd(name: str, aux: float) -> None:
    w, x, p = make(name)
    if aux:
        p = p._replace(how=p.how.model_copy(update={"aux_coefficient": aux}), dead=torch.arange(3, D_SAE, 4))
    found = loss_and_gradients(w, x, Encoder(w.W_enc, w.b_enc), p)
    assert_gradients(w, x, p, found.gradients, float(found.loss), found.squares)


@pytest.mark.parametrize("aux", [0.0, 0.5], ids=["", "auxk"])
@pytest.mark.parametrize("name", ["jumprelu", "jumprelu-relative", "relu", "relu-no-b_dec"])
def test_the_dense_path_is_the_same(name: str, aux: float, monkeypatch: pytest.MonkeyPatch) -> None:
    w, x, p = make(name)
    if aux:
        p = p._replace(how=p.how.model_copy(update={"aux_coefficient": aux}), dead=torch.arange(3, D_SAE, 4))
    sparse = loss_and_gradients(w, x, Encoder(w.W_enc, w.b_enc), p)
    monkeypatch.setattr("seamark.sae.step.DENSE_BYTES", 4 * D_SAE * 7)  # seven positions at a time
    dense = dense_loss_and_gradients(w, x, p)
    assert_gradients(w, x, p, dense.gradients, float(dense.loss), dense.squares)
    assert torch.equal(dense.fired, sparse.fired)
    assert (dense.active, dense.visited) == (sparse.active, sparse.visited)


CHEAP = [(n, e) for n in VARIANTS for e in ("bf16", "int8") if e == "bf16" or n.startswith(("topk", "topk_relu"))]
"""int8 finds the k largest only."""


@pytest.mark.parametrize(("name", "encoding"), CHEAP)
def test_a_cheap_product_changes_nothing_but_rounding(name: str, encoding: Any) -> None:
    w, x, p = make(name, torch.float32)
    exact = loss_and_gradients(w, x, Encoder(w.W_enc, w.b_enc), p)
    cheap = loss_and_gradients(w, x, Encoder(w.W_enc, w.b_enc, encoding), p)
    assert cheap.active == exact.active
    for a, b in zip(cheap.gradients.tensors(), exact.gradients.tensors(), strict=True):
        assert (a - b).norm() <= 1e-5 * b.norm()


@pytest.mark.parametrize(("name", "encoding"), [(name, "fp32") for name in VARIANTS] + CHEAP)
def test_positions_beyond_one_chunk_of_the_product(name: str, encoding: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Seven positions at a time: an entry belongs to its place in the batch, not to that in its chunk."""
    w, x, p = make(name, torch.float64 if encoding == "fp32" else torch.float32)
    exact = loss_and_gradients(w, x, Encoder(w.W_enc, w.b_enc), p)
    encoder = Encoder(w.W_enc, w.b_enc, encoding)
    kind = PRODUCTS[encoding]
    monkeypatch.setattr(kind, "chunk_bytes", 7 * D_SAE * encoder.product.element_size)
    assert [rows.start for rows, _, _ in encoder.product.chunks(x)] == list(range(0, N, 7))
    found = loss_and_gradients(w, x, encoder, p)
    if encoding == "fp32":
        assert_gradients(w, x, p, found.gradients, float(found.loss), found.squares)
    assert found.active == exact.active
    for a, b in zip(found.gradients.tensors(), exact.gradients.tensors(), strict=True):
        assert (a - b).norm() <= 1e-5 * b.norm()


def test_what_a_cheap_product_may_be_off_is_each_positions_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small positions first, large ones in later chunks: by the margin of the small, entries of the large are lost."""
    w, x, _ = make("relu", torch.float32, 70)
    x[:7] *= 1e-3
    x[7:] *= 100.0
    b_enc = torch.zeros_like(w.b_enc)
    monkeypatch.setattr(PRODUCTS["bf16"], "chunk_bytes", 7 * D_SAE * 2)
    found = Encoder(w.W_enc, b_enc, "bf16").above(x, torch.zeros(1))
    position, latent = (x @ w.W_enc.T > 0).nonzero(as_tuple=True)
    assert found.bags is not None
    assert torch.equal(torch.repeat_interleave(torch.arange(70), found.bags.diff()), position)
    assert torch.equal(found.indices, latent)


def test_batch_top_k_keeps_exactly_n_k_whatever_the_sample_says() -> None:
    w, x, p = make("batch_topk")
    x[::2] *= 1e-3  # the sampled positions are not like the rest
    assert loss_and_gradients(w, x, Encoder(w.W_enc, w.b_enc), p).active == 6 * N
    x[1::2] *= 1e-3
    x[0] *= 1e6
    assert loss_and_gradients(w, x, Encoder(w.W_enc, w.b_enc), p).active == 6 * N
    silent = w._replace(b_enc=torch.full_like(w.b_enc, -1e6))
    found = loss_and_gradients(silent, x[1:], Encoder(silent.W_enc, silent.b_enc), p)
    assert found.active == 0
    assert all(torch.isfinite(g).all() for g in found.gradients.tensors())


def test_negative_values_among_the_top_k_are_kept() -> None:
    w, x, p = make("topk")
    w = w._replace(b_enc=torch.full_like(w.b_enc, -100.0))
    found = loss_and_gradients(w, x, Encoder(w.W_enc, w.b_enc), p)
    assert float(found.loss) == pytest.approx(float(dense_loss(w, x, p)), rel=1e-12)
    assert not found.fired.any()
    assert found.active == 6 * N


def test_constant_position_counts_as_nothing() -> None:
    w, x, p = make("topk")
    with_zero = torch.cat([x, torch.zeros_like(x[:1])])
    alone = loss_and_gradients(w, x, Encoder(w.W_enc, w.b_enc), p)
    both = loss_and_gradients(w, with_zero, Encoder(w.W_enc, w.b_enc), p._replace(n=N + 1))
    assert float(both.loss) * (N + 1) == pytest.approx(float(alone.loss) * N)
    assert all(torch.isfinite(g).all() for g in both.gradients.tensors())


def test_inactive_latents_get_no_gradient() -> None:
    w, x, p = make("topk")
    found = loss_and_gradients(w, x[:3], Encoder(w.W_enc, w.b_enc), p._replace(n=3))
    chosen = ((x[:3] - w.b_dec) @ w.W_enc.T + w.b_enc).topk(6).indices
    silent = torch.ones(D_SAE, dtype=torch.bool)
    silent[chosen.flatten()] = False
    assert silent.sum() >= D_SAE - 18
    assert found.gradients.W_enc[silent].abs().max() == found.gradients.W_dec[silent].abs().max() == 0


class Largest(TorchDispatchMode):
    """The number of elements of the largest tensor any operation makes."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for t in out if isinstance(out, list | tuple) else [out]:
            if isinstance(t, Tensor) and t.layout == torch.strided:
                Largest.elements = max(Largest.elements, t.numel())
        return out


@pytest.mark.parametrize("encoding", ["fp32", "bf16"])
def test_no_tensor_of_entries_times_width(encoding: Any) -> None:
    n, d_in, d_sae, k = 64, 128, 256, 32
    w = Weights(torch.randn(d_sae, d_in), torch.randn(d_sae, d_in), torch.zeros(d_sae), torch.zeros(d_in))
    p = Problem(SAEConfig(d_in=d_in, d_sae=d_sae, k=k), FitConfig(), 0.0, n)
    Largest.elements = 0
    with Largest():
        loss_and_gradients(w, torch.randn(n, d_in), Encoder(w.W_enc, w.b_enc, encoding), p)
    assert 0 < Largest.elements <= max(n * d_sae, d_sae * d_in, n * d_in) < n * k * d_in


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("d_sae", [8, 33, 64, 400, 1024])
@pytest.mark.parametrize("k", [1, 7, 8])
def test_top_k_is_exact(d_sae: int, k: int, dtype: torch.dtype) -> None:
    x = torch.randn(37, d_sae).to(dtype)
    x[0] = 1.0  # all ties
    x[1, ::2] = x[1, 1]
    indices, values = top_k(x, k)
    assert torch.equal(values.sort(1).values, x.topk(k).values.sort(1).values)
    assert torch.equal(x.gather(1, indices), values)
    assert all(len(set(row)) == k for row in indices.tolist())


@pytest.mark.parametrize("encoding", ["bf16", "int8"])
@pytest.mark.parametrize("outlier", [1.0, 100.0])
def test_recall_of_cheap_products(encoding: Any, outlier: float) -> None:
    """Candidates found in a cheap format hold the true k largest, also with a dimension far larger than the rest."""
    n, d_in, d_sae, k = 256, 256, 4096, 32
    g = torch.Generator().manual_seed(0)
    x = torch.randn(n, d_in, generator=g)
    x[:, 7] *= outlier
    W = torch.randn(d_sae, d_in, generator=g) / d_in**0.5
    W[:, 7] /= outlier
    b = torch.randn(d_sae, generator=g) / 10
    found = Encoder(W, b, encoding).top_k(x, k)
    truth = (x.double() @ W.T.double() + b).topk(k).indices
    recall = sum(len(set(a) & set(t)) for a, t in zip(found.indices.tolist(), truth.tolist(), strict=True)) / (n * k)
    assert recall >= 0.9999
    assert torch.equal(found.entries.latents.sort().values, found.indices.flatten().sort().values)
    torch.testing.assert_close(found.pre.sort(1).values, (x @ W.T + b).topk(k).values.flip(1), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("encoding", ["bf16", "int8"])
def test_positions_that_candidates_do_not_settle_are_done_again(encoding: Any) -> None:
    """Hundreds of latents nearly alike: no number of spare candidates would do."""
    n, d_in, d_sae, k = 128, 64, 2048, 16
    g = torch.Generator().manual_seed(0)
    W = torch.randn(d_sae, d_in, generator=g) / d_in**0.5
    W[:700] = 2.0 * W[0] + 1e-4 * W[:700]
    x = torch.randn(n, d_in, generator=g)
    encoder = Encoder(W, torch.zeros(d_sae), encoding)
    found = encoder.top_k(x, k)
    assert n // 20 <= encoder.unsure < n // 2
    pre = x @ W.T
    torch.testing.assert_close(
        pre.gather(1, found.indices).sort(1).values, pre.topk(k).values.flip(1), rtol=0, atol=2e-6
    )
