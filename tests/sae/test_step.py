"""The sparse step against plain dense autograd."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from seamark.sae.step import Weights, loss_and_gradients
from seamark.sae.topk import encode_top_k, top_k


def weights(d_in: int, d_sae: int, dtype: torch.dtype = torch.float64) -> Weights:
    g = torch.Generator().manual_seed(1)
    make = lambda *shape: torch.randn(*shape, generator=g, dtype=dtype)  # noqa: E731
    return Weights(make(d_sae, d_in), make(d_sae, d_in), make(d_sae), make(d_in))


def dense_loss(w: Weights, x: Tensor, k: int) -> Tensor:
    """The definition, straight from the paper: dense latents, autograd."""
    pre = (x - w.b_dec) @ w.W_enc.T + w.b_enc
    keep = torch.zeros_like(pre).scatter_(1, pre.topk(k, dim=1).indices, 1.0)
    x_hat = (pre * keep) @ w.W_dec + w.b_dec
    return ((x_hat - x).square().sum(1) / x.square().sum(1)).mean()


@pytest.mark.parametrize(("d_in", "d_sae", "k"), [(12, 96, 6), (7, 33, 5), (8, 16, 16), (5, 40, 1)])
def test_gradients_equal_dense_autograd(d_in: int, d_sae: int, k: int) -> None:
    w = weights(d_in, d_sae)
    x = torch.randn(50, d_in, dtype=torch.float64)
    loss, gradients = loss_and_gradients(w, x, k)
    leaves = Weights(*(p.clone().requires_grad_() for p in w))
    expected = dense_loss(leaves, x, k)
    expected.backward()
    assert abs(loss.item() - expected.item()) < 1e-12 * expected.item()
    for name, got, leaf in zip(Weights._fields, gradients, leaves, strict=True):
        assert leaf.grad is not None
        assert (got - leaf.grad).norm() <= 1e-6 * leaf.grad.norm(), name


def test_negative_values_among_the_top_k_are_kept() -> None:
    w = weights(6, 24)._replace(b_enc=torch.full((24,), -100.0, dtype=torch.float64))
    x = torch.randn(9, 6, dtype=torch.float64)
    loss, _ = loss_and_gradients(w, x, 4)
    assert float(loss) == pytest.approx(float(dense_loss(w, x, 4)), rel=1e-12)


def test_constant_position_counts_as_nothing() -> None:
    w = weights(6, 24)
    x = torch.randn(8, 6, dtype=torch.float64)
    with_zero = torch.cat([x, torch.zeros(1, 6, dtype=torch.float64)])
    loss, _ = loss_and_gradients(w, x, 4)
    loss_zero, gradients = loss_and_gradients(w, with_zero, 4)
    assert float(loss_zero) * 9 == pytest.approx(float(loss) * 8)
    assert all(torch.isfinite(g).all() for g in gradients)


def test_inactive_latents_get_no_gradient() -> None:
    w = weights(6, 64)
    x = torch.randn(3, 6, dtype=torch.float64)
    indices, _ = encode_top_k(x - w.b_dec, w.W_enc, w.b_enc, 2)
    _, gradients = loss_and_gradients(w, x, 2)
    silent = torch.ones(64, dtype=torch.bool)
    silent[indices.flatten()] = False
    assert silent.sum() >= 58
    assert gradients.W_enc[silent].abs().max() == gradients.W_dec[silent].abs().max() == 0


class Largest(TorchDispatchMode):
    """The number of elements of the largest tensor any operation makes."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for t in out if isinstance(out, list | tuple) else [out]:
            if isinstance(t, Tensor) and t.layout == torch.strided:
                Largest.elements = max(Largest.elements, t.numel())
        return out


def test_no_tensor_of_entries_times_width() -> None:
    n, d_in, d_sae, k = 64, 128, 256, 32
    w = weights(d_in, d_sae, torch.float32)
    Largest.elements = 0
    with Largest():
        loss_and_gradients(w, torch.randn(n, d_in), k)
    assert Largest.elements <= max(n * d_sae, d_sae * d_in, n * d_in) < n * k * d_in


@pytest.mark.parametrize("d_sae", [8, 33, 64, 400, 1024])
@pytest.mark.parametrize("k", [1, 7, 8])
def test_top_k_is_exact(d_sae: int, k: int) -> None:
    x = torch.randn(37, d_sae)
    x[0] = 1.0  # all ties
    x[1, ::2] = x[1, 1]
    indices, values = top_k(x, k)
    assert torch.equal(values.sort(1).values, x.topk(k).values.sort(1).values)
    assert torch.equal(x.gather(1, indices), values)
    assert all(len(set(row)) == k for row in indices.tolist())
