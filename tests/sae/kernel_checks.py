"""The Triton kernels against the torch path. Run by `test_kernels` in a process of its own: in Triton's interpreter on
the CPU where TRITON_INTERPRET=1 (Triton looks at it when it is imported), else on CUDA."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor

from seamark.sae import FitConfig, SparseAutoencoder, fit, kernels, ops, sae_config
from seamark.sae.topk import top_k

sys.path.insert(0, str(Path(__file__).parents[2]))

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"
PHASES = (Phase.generate, Phase.shrink)  # the interpreter is too slow for explanations
EXAMPLES = settings(max_examples=10 if INTERPRETED else 200, deadline=None, derandomize=True, phases=PHASES)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def integers(below: int, *shape: int) -> Tensor:
    return torch.randint(below, shape, generator=torch.Generator().manual_seed(0))


def expect_top_k(pre: Tensor, k: int) -> None:
    """By definition: a stable sort puts the lower latent first among equals (and 0.0 equals -0.0)."""
    expected = pre.double().sort(dim=1, descending=True, stable=True).indices[:, :k].sort(dim=1).values
    indices, values = kernels.top_k(pre.to(DEVICE), k)
    assert indices.dtype is torch.int64
    assert values.dtype is pre.dtype
    assert torch.equal(indices.cpu(), expected)
    assert torch.equal(values.cpu(), pre.gather(1, expected))


# Rows of up to 1024 are searched in one piece; longer ones in groups of latents that are equal modulo 1024.
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("n", "d_sae", "k"),
    [(3, 1, 1), (2, 5, 5), (2, 33, 20), (2, 1000, 7), (2, 3072, 32), (1, 5001, 300), (1, 1030, 1029)],
)
def test_top_k_of_random_rows(n: int, d_sae: int, k: int, dtype: torch.dtype) -> None:
    pre = random(n, d_sae).to(dtype)
    expect_top_k(pre, k)
    reference = top_k(pre, k)[1].sort(dim=1).values
    assert torch.equal(kernels.top_k(pre.to(DEVICE), k)[1].sort(dim=1).values.cpu(), reference)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_top_k_of_other_formats(dtype: torch.dtype) -> None:
    expect_top_k(random(2, 1500).to(dtype), 40)


def test_top_k_beyond_what_the_kernel_takes() -> None:
    expect_top_k(random(2, 4500), 4200)


def test_top_k_of_wide_rows() -> None:
    expect_top_k(random(1, 131072).bfloat16(), 1024)
    expect_top_k(random(1, 70_003), 64)


NUMBERS = {
    "any": st.floats(width=16, allow_nan=False),  # infinities and denormals among them
    "few": st.sampled_from([-1.5, -0.0, 0.0, 2.0]),
    "negative": st.sampled_from([-3.0, -2.0, -1e-30, -1e30]),
    "zeros": st.sampled_from([-0.0, 0.0]),
    "equal": st.just(-0.25),
}


@EXAMPLES
@given(data=st.data(), kind=st.sampled_from(sorted(NUMBERS)), n=st.integers(1, 3), d_sae=st.integers(1, 70))
def test_top_k_of_odd_values(data: st.DataObject, kind: str, n: int, d_sae: int) -> None:
    numbers = data.draw(st.lists(NUMBERS[kind], min_size=n * d_sae, max_size=n * d_sae))
    dtype = data.draw(st.sampled_from([torch.float32, torch.bfloat16]))
    expect_top_k(torch.tensor(numbers).reshape(n, d_sae).to(dtype), data.draw(st.integers(1, d_sae)))


@EXAMPLES
@given(seed=st.integers(0, 1000), d_sae=st.integers(1025, 6000), k=st.integers(1, 40), levels=st.integers(1, 50))
def test_top_k_of_long_rows_with_ties(seed: int, d_sae: int, k: int, levels: int) -> None:
    g = torch.Generator().manual_seed(seed)
    expect_top_k(torch.randint(-levels // 2, levels, (1, d_sae), generator=g).float(), k)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_top_k_where_few_groups_hold_all_that_is_large(tied: bool, dtype: torch.dtype) -> None:
    pre = random(1, 20_000)  # 57 entries reach the threshold of k = 3, 32 may be written down at first
    crowd = pre.as_strided((3, 19), (1, 1024), 500)
    crowd.fill_(100.0) if tied else crowd.copy_(100 + 10 * random(3, 19, seed=1))
    expect_top_k(pre.to(dtype), 3)
    expect_top_k(pre.to(dtype), 1)


def test_top_k_of_equal_long_rows() -> None:
    pre = torch.full((2, 9000), -1.0)
    pre[1, [2, 4000, 8999]] = 2.0  # more equal ones than are asked for lie before and between
    expect_top_k(pre, 50)


def test_top_k_ranks_nan_of_any_sign_first() -> None:
    """So that the index is one: the step then sees NaN and names it."""
    pre = random(1, 3000)
    pre[0, 7], pre[0, 2000], pre[0, 2500] = torch.nan, torch.inf, -torch.nan
    pre[0, 900:1000] = -torch.inf
    bits = pre.view(torch.int32)
    bits[0, 2500] = -1  # the NaN with all bits set
    assert kernels.top_k(pre.to(DEVICE), 3)[0].tolist() == [[7, 2000, 2500]]
    assert kernels.top_k(torch.full((1, 40), -torch.inf, device=DEVICE), 3)[0].tolist() == [[0, 1, 2]]


def test_top_k_of_views_and_of_nothing() -> None:
    buffer = random(6, 2100)
    expected = top_k(buffer[1:4, :2000].contiguous(), 9)[0].sort(dim=1).values
    for view in (buffer.to(DEVICE)[1:4, :2000], buffer.to(DEVICE)[1:4, :2000].T.contiguous().T):
        assert torch.equal(kernels.top_k(view, 9)[0].cpu(), expected)
    indices, values = kernels.top_k(torch.empty(0, 50, device=DEVICE), 4)
    assert indices.shape == values.shape == (0, 4)


def close(got: Tensor, reference: Tensor, exact: Tensor, magnitude: Tensor) -> None:
    """To 1e-6 of the sum of the terms' magnitudes (1e-13 in float64), against the torch path and against float64."""
    tolerance = 1e-13 if got.dtype is torch.float64 else 1e-6
    assert got.shape == exact.shape
    assert got.dtype is reference.dtype
    for other in (reference, exact):
        assert ((got.cpu().double() - other.double()).abs() <= tolerance * magnitude).all()


def expect_decoded(got: Tensor, rows: Tensor, indices: Tensor, values: Tensor, W: Tensor, reference: Tensor) -> None:
    """`rows` are the positions of the flat entries."""
    z = torch.zeros(len(got), len(W), dtype=torch.float64)
    size = z.index_put((rows, indices), values.double().abs(), accumulate=True) @ W.double().abs()
    close(got, reference, z.index_put((rows, indices), values.double(), accumulate=True) @ W.double(), size)


@EXAMPLES
@given(
    n=st.integers(0, 6), k=st.integers(1, 20), d_in=st.integers(1, 90), d_sae=st.integers(1, 40), narrow=st.booleans()
)
def test_decode_rows(n: int, k: int, d_in: int, d_sae: int, narrow: bool) -> None:
    indices, values, W = integers(d_sae, n, k), random(n, k), random(d_sae, d_in)
    there = indices.to(DEVICE, torch.int32 if narrow else torch.int64)
    got = kernels.decode_rows(there, values.to(DEVICE), W.to(DEVICE))
    reference = ops.decode_rows(indices, values, W) if n else torch.empty(0, d_in)
    expect_decoded(got, torch.arange(n).repeat_interleave(k), indices.flatten(), values.flatten(), W, reference)


@pytest.mark.parametrize("d_in", [512, 1300])
def test_decode_of_wide_rows(d_in: int) -> None:
    indices, values, W = integers(90, 3, 64), random(3, 64), random(90, d_in)
    there = [t.to(DEVICE) for t in (indices, values, W)]
    got = kernels.decode_rows(*there)
    rows = torch.arange(3).repeat_interleave(64)
    expect_decoded(got, rows, indices.flatten(), values.flatten(), W, ops.decode_rows(indices, values, W))
    assert torch.equal(kernels.decode_rows(there[0], there[1], there[2].T.contiguous().T), got)
    assert torch.equal(kernels.decode_rows(there[0][1:2], there[1][1:2], there[2]), got[1:2])  # whatever else is there


@EXAMPLES
@given(lengths=st.lists(st.integers(0, 30), min_size=1, max_size=6), d_in=st.integers(1, 40))
def test_decode_of_flat_entries(lengths: list[int], d_in: int) -> None:
    offsets = torch.tensor([0, *lengths]).cumsum(0)
    indices, values, W = integers(25, sum(lengths)), random(sum(lengths)), random(25, d_in)
    there = [t.to(DEVICE) for t in (indices, values, W, offsets)]
    got = kernels.decode_rows(*there)
    rows = torch.repeat_interleave(torch.tensor(lengths))
    expect_decoded(got, rows, indices, values, W, ops.decode_rows(indices, values, W, offsets))
    bias = random(d_in, seed=1).to(DEVICE)
    torch.testing.assert_close(kernels.decode_rows(*there, bias), got + bias)


def entries(n: int, k: int, d_sae: int, seed: int = 0, busy: int = 0) -> ops.ByLatent:
    """k different latents a position; the first `busy` latents fire at each."""
    scores = torch.rand(n, d_sae, generator=torch.Generator().manual_seed(seed))
    scores[:, :busy] += 1
    return ops.sort_by_latent(scores.topk(k, dim=1).indices, k, d_sae)


def on_device(e: ops.ByLatent) -> ops.ByLatent:
    return ops.ByLatent(*(t.to(DEVICE) for t in e))


def expect_products_and_sums(e: ops.ByLatent, n: int, d_in: int, dtype: torch.dtype = torch.float32) -> None:
    m, d_sae = len(e.latents), len(e.offsets) - 1
    W, G, weights = (t.to(dtype) for t in (random(d_sae, d_in), random(n, d_in, seed=1), random(m, seed=2)))
    there = on_device(e)
    products = kernels.sampled_products(there, W.to(DEVICE), G.to(DEVICE))
    terms = W[e.latents].double() * G[e.positions].double()
    close(products, ops.sampled_products(e, W, G) if m else W.new_empty(0), terms.sum(1), terms.abs().sum(1))

    pattern = torch.zeros(d_sae, n, dtype=torch.float64).index_put_((e.latents, e.positions), weights.double())
    sums = kernels.sum_rows(there, weights.to(DEVICE), G.to(DEVICE))
    close(sums, ops.sum_rows(e, weights, G), pattern @ G.double(), pattern.abs() @ G.double().abs())
    out = torch.full((d_sae, d_in), torch.nan, dtype=dtype, device=DEVICE)
    assert kernels.sum_rows(there, weights.to(DEVICE), G.to(DEVICE), out) is out
    assert torch.equal(out, sums)
    assert not sums.cpu()[e.offsets.diff() == 0].any()

    totals = torch.zeros(d_sae, dtype=dtype).index_add_(0, e.latents, weights)
    close(kernels.sum_weights(there, weights.to(DEVICE)), totals, pattern.sum(1), pattern.abs().sum(1))


@EXAMPLES
@given(n=st.integers(1, 12), d_in=st.integers(1, 150), d_sae=st.integers(1, 30), data=st.data())
def test_products_and_sums(n: int, d_in: int, d_sae: int, data: st.DataObject) -> None:
    expect_products_and_sums(entries(n, data.draw(st.integers(1, d_sae)), d_sae, seed=d_in), n, d_in)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("d_in", [70, 640])
def test_products_and_sums_where_latents_are_always_on(d_in: int, dtype: torch.dtype) -> None:
    expect_products_and_sums(entries(300, 3, 12, busy=2), 300, d_in, dtype)


def test_products_and_sums_of_nothing() -> None:
    nothing = torch.zeros(0, dtype=torch.int64)
    e = ops.ByLatent(nothing, nothing, nothing, torch.zeros(6, dtype=torch.int64))
    expect_products_and_sums(e, 4, 8)


def test_products_take_entries_in_any_order() -> None:
    e = entries(20, 4, 30)
    back = ops.ByLatent(*(t[e.order.argsort()] for t in e[:3]), e.offsets)  # position-major, as the encoder finds them
    W, G = random(30, 50).to(DEVICE), random(20, 50, seed=1).to(DEVICE)
    by_latent = kernels.sampled_products(on_device(e), W, G)
    assert torch.equal(kernels.sampled_products(on_device(back), W, G), by_latent[e.order.argsort().to(DEVICE)])


def test_sums_do_not_go_where_rows_are_not_in_one_piece() -> None:
    e, out = on_device(entries(4, 2, 5)), torch.ones(3, 5, device=DEVICE).T
    with pytest.raises(ValueError, match="contiguous"):
        kernels.sum_rows(e, *(torch.ones(*size, device=DEVICE) for size in ((8,), (4, 3))), out)


@pytest.mark.parametrize(("activation", "encoder"), [("topk", "bf16"), ("batch_topk", "fp32")])
def test_training_with_the_kernels_is_training_without(
    activation: str, encoder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def train(device: str) -> SparseAutoencoder:
        sae = sae_config(d_in=12, d_sae=24, activation=activation, k=4)
        how = FitConfig(lr=1e-2, batch_size=16, encoder=encoder)
        return fit(random(32, 12).split(16), {"a": (sae, how)}, positions=32, device=device)["a"].cpu()

    monkeypatch.setenv(kernels.VARIABLE, "torch")
    expected = train("cpu")
    monkeypatch.delenv(kernels.VARIABLE)
    called = set()
    for name in kernels.FUNCTIONS:
        function = getattr(kernels, name)
        monkeypatch.setattr(
            kernels, name, lambda *a, name=name, function=function: called.add(name) or function(*a), raising=False
        )
    if INTERPRETED:
        monkeypatch.setattr(kernels, "usable", lambda *tensors: True)
    got = train(DEVICE)
    assert called >= {"decode_rows", "sampled_products", "sum_rows"} | ({"top_k"} if activation == "topk" else set())
    for name, parameter in got.named_parameters():
        torch.testing.assert_close(parameter, expected.get_parameter(name), rtol=1e-4, atol=1e-5)


def test_the_benchmark_script_checks_and_times_all_kernels() -> None:
    from benchmarks import kernels as script

    result = script.measure({"tiny": script.Shape(24, 40, 3, 6)}, runs=1, device=DEVICE)
    assert {row["kernel"] for row in result.rows} == set(script.KERNELS)
    assert all(row["error"] <= script.TOLERANCE and row["triton_ms"]["median"] > 0 for row in result.rows)
    assert {c.name for c in result.claims} == {f"tiny_{name}_vs_torch" for name in script.KERNELS}
