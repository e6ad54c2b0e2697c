"""The least a step can cost with this machine's library calls: products, a pass over the pre-activations, Adam."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.peers.feed import Job


def measure(job: Job) -> dict[str, Any]:
    """Milliseconds of each part and their sums: `floor_bf16_ms` and `floor_fp32_ms`, by the encoder's precision."""
    parts = {name: 1000 * seconds(call, job.seconds) for name, call in calls(job).items()}
    return floors(parts, job)


def calls(job: Job) -> dict[str, Callable[[], Any]]:
    generator = torch.Generator().manual_seed(job.seed)
    x = torch.randn(job.batch, job.d_in, generator=generator)
    W = torch.randn(job.d_in, job.d_sae, generator=generator)
    pre = torch.empty(job.batch, job.d_sae)
    x16, W16, pre16 = x.bfloat16(), W.bfloat16(), pre.bfloat16()
    parameters = [torch.nn.Parameter(torch.randn(*shape, generator=generator))
                  for shape in ((job.d_in, job.d_sae), (job.d_sae, job.d_in), (job.d_sae,), (job.d_in,))]  # fmt: skip
    for p in parameters:
        p.grad = torch.randn(p.shape, generator=generator)
    adam = torch.optim.Adam(parameters, lr=1e-6, fused=True)
    return {
        "product_fp32_ms": lambda: torch.mm(x, W, out=pre), "product_bf16_ms": lambda: torch.mm(x16, W16, out=pre16),
        "amax_fp32_ms": lambda: pre.amax(1), "amax_bf16_ms": lambda: pre16.amax(1), "adam_ms": adam.step,
    }  # fmt: skip


def floors(parts: dict[str, float], job: Job) -> dict[str, Any]:
    """Encoder product + one amax + 8·B·k·d_in operations at the rate of the fp32 product + fused Adam."""
    per_ms = 2 * job.batch * job.d_in * job.d_sae / parts["product_fp32_ms"]
    sparse = 8 * job.batch * job.k * job.d_in / per_ms
    sums = {f"floor_{kind}_ms": parts[f"product_{kind}_ms"] + parts[f"amax_{kind}_ms"] + sparse + parts["adam_ms"]
            for kind in ("bf16", "fp32")}  # fmt: skip
    return sums | parts | {"sparse_ms": sparse, "fp32_gflops": per_ms / 1e6}


def seconds(call: Callable[[], Any], at_least: float) -> float:
    """Mean seconds of a call, over at least three after a first one and at least `at_least` / 5 seconds."""
    with torch.no_grad():
        call()
        n, start = 0, time.perf_counter()
        while n < 3 or time.perf_counter() - start < at_least / 5:
            call()
            n += 1
        return (time.perf_counter() - start) / n
