"""`python -m benchmarks.kernels [--shapes S M L] [--runs N]`: the Triton kernels against the torch path, on a GPU.

Each kernel is first held against float64; then both paths are timed in turn, the L2 cache emptied before every run.
Exits with 1 where a kernel is wrong, with 2 where there is no GPU to run on.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from benchmarks import harness, tables
from benchmarks.harness import Result, Row
from seamark.sae import kernels, ops
from seamark.sae.topk import top_k

TOLERANCE = 1e-6
"""Of a kernel's result, in units of the largest exact value."""
SKEW = 0.8
"""Spread of the latents' mean pre-activations in standard deviations: some latents fire nearly always, many rarely."""
KERNELS = ("top_k_bf16", "top_k_fp32", "decode_rows", "sampled_products", "sum_rows", "sum_weights")
L2_BYTES = 256 << 20


@dataclass(frozen=True)
class Shape:
    """d_in and d_sae; k latents at each of n positions."""

    d_in: int
    d_sae: int
    k: int
    n: int


SHAPES = {"S": Shape(384, 3072, 32, 1024), "M": Shape(1024, 8192, 64, 2048), "L": Shape(2048, 16384, 64, 2048)}


@dataclass(frozen=True)
class Contest:
    """One operation: ours and torch's, and how far a result of ours is from the truth."""

    ours: Callable[[], object]
    torch: Callable[[], object]
    error: Callable[[], float]


def main(arguments: list[str] | None = None, results: Path = harness.RESULTS) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.kernels", description=__doc__)
    parser.add_argument("--shapes", nargs="+", choices=list(SHAPES), default=list(SHAPES))
    parser.add_argument("--runs", type=int, default=30, help="timed runs of each kernel and path")
    options = parser.parse_args(arguments)
    if options.runs < 1:
        parser.error("--runs must be at least 1")
    if not torch.cuda.is_available():
        sys.stderr.write("kernels: no CUDA device (without one the tests check the kernels in Triton's interpreter)\n")
        return 2
    if not kernels.usable():
        sys.stderr.write("kernels: Triton does not work here, or SEAMARK_KERNELS keeps it from working\n")
        return 2
    result = measure({name: SHAPES[name] for name in options.shapes}, options.runs, "cuda")
    harness.save(result, os.getloadavg()[0], results)
    tables.show(result)
    wrong = [row for row in result.rows if row["error"] > TOLERANCE]
    for row in wrong:
        sys.stderr.write(f"kernels: {row['shape']} {row['kernel']} is off by {row['error']:.2g}\n")
    return int(bool(wrong))


def measure(shapes: Mapping[str, Shape], runs: int, device: str) -> Result:
    """Check and time every kernel at every shape."""
    rows: list[Row] = []
    claims = []
    for label, shape in shapes.items():
        for name, contest in contests(shape, device).items():
            error = contest.error()
            found, _ = harness.interleave(
                {"triton": timed(contest.ours, device), "torch": timed(contest.torch, device)}, runs
            )
            ours, theirs = harness.medians(found)
            rows.append({"variant": f"{label} {name}", "shape": label, "kernel": name, "n": runs, "error": error,
                         "triton_ms": ours["ms"], "torch_ms": theirs["ms"]})  # fmt: skip
            times = {path: [row["ms"] for row in found[path]] for path in found}
            claims.append(harness.ratio(f"{label}_{name}_vs_torch", times["torch"], times["triton"]))
    about = (
        "time of the torch path / time of the Triton kernel, run by run, L2 cache emptied before each; entries are the "
        f"k largest of random pre-activations whose means differ from latent to latent (spread {SKEW})"
    )
    return Result("kernels", about, claims, rows, {name: vars(shape) for name, shape in shapes.items()})


def contests(shape: Shape, device: str) -> dict[str, Contest]:
    """All kernels on random data of a shape; torch's side is what runs without Triton."""
    g = torch.Generator(device).manual_seed(0)

    def random(*size: int) -> Tensor:
        return torch.randn(*size, generator=g, device=device)

    pre = random(shape.n, shape.d_sae) + SKEW * random(shape.d_sae)
    indices, values = kernels.top_k(pre, shape.k)
    entries = ops.sort_by_latent(indices, shape.k, shape.d_sae)
    W, G = random(shape.d_sae, shape.d_in), random(shape.n, shape.d_in)
    weights = values.flatten()[entries.order]
    z = torch.zeros(pre.shape, dtype=torch.float64, device=device).scatter_(1, indices, values.double())
    dense = {
        "decode_rows": lambda: z @ W.double(),
        "sampled_products": lambda: (G.double() @ W.double().T)[entries.positions, entries.latents],
        "sum_rows": lambda: z.T @ G.double(),
        "sum_weights": lambda: z.sum(0),
    }

    def contest(name: str, *arguments: object, reference: Callable[..., object]) -> Contest:
        ours: Callable[..., Tensor] = getattr(kernels, name)
        return Contest(
            lambda: ours(*arguments),
            lambda: without_kernels(reference, *arguments),
            lambda: relative_error(ours(*arguments), dense[name]()),
        )

    def selection(pre: Tensor) -> Contest:
        return Contest(
            lambda: kernels.top_k(pre, shape.k),
            lambda: without_kernels(top_k, pre, shape.k),
            lambda: wrong_indices(kernels.top_k(pre, shape.k)[0], pre),
        )

    return {
        "top_k_bf16": selection(pre.bfloat16()),
        "top_k_fp32": selection(pre),
        "decode_rows": contest("decode_rows", indices, values, W, reference=ops.decode_rows),
        "sampled_products": contest("sampled_products", entries, W, G, reference=ops.sampled_products),
        "sum_rows": contest("sum_rows", entries, weights, G, reference=ops.sum_rows),
        "sum_weights": contest("sum_weights", entries, weights, reference=_index_add),
    }


def _index_add(entries: ops.ByLatent, weights: Tensor) -> Tensor:
    return weights.new_zeros(len(entries.offsets) - 1).index_add_(0, entries.latents, weights)


def without_kernels(operation: Callable[..., object], *arguments: object) -> object:
    """The torch path of an operation that would take the Triton kernel."""
    before = os.environ.get(kernels.VARIABLE)
    os.environ[kernels.VARIABLE] = "torch"
    try:
        return operation(*arguments)
    finally:
        os.environ.pop(kernels.VARIABLE) if before is None else os.environ.update({kernels.VARIABLE: before})


def relative_error(got: Tensor, exact: Tensor) -> float:
    return float((got.double() - exact).abs().max() / exact.abs().max())


def wrong_indices(indices: Tensor, pre: Tensor) -> float:
    """Share of entries that are not among the k largest (of equal ones the lowest latents)."""
    order = pre.float().sort(dim=1, descending=True, stable=True).indices[:, : indices.shape[1]]
    return float((indices != order.sort(dim=1).values).double().mean())


def timed(run: Callable[[], object], device: str) -> Callable[[], Row]:
    """One measured run at every call, in milliseconds; compiled and warmed up before."""
    for _ in range(3 if device == "cuda" else 1):
        run()
    if device != "cuda":
        return lambda: _seconds(run)
    cache = torch.empty(L2_BYTES, dtype=torch.int8, device=device)

    def measured() -> Row:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        cache.zero_()
        torch.cuda.synchronize()
        start.record()
        run()
        end.record()
        torch.cuda.synchronize()
        return {"ms": float(start.elapsed_time(end))}

    return measured


def _seconds(run: Callable[[], object]) -> Row:
    with harness.stopwatch() as seconds:
        run()
        return {"ms": 1e3 * seconds()}


if __name__ == "__main__":
    sys.exit(main())
