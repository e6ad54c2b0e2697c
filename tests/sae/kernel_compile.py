"""Compile every kernel for a GPU that need not be there: `python kernel_compile.py`, run by `test_kernels`.

The functions of `seamark.sae.kernels` are called as usual, but a launch stops after compilation, so what is compiled is
what a GPU would be given. Prints one JSON object a kernel: name, compute capability, warps, shared memory, registers,
bytes spilled.
"""

from __future__ import annotations

import json
import re
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from seamark.sae import kernels, ops

CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"


class NoDevice:
    """What Triton asks of a driver before it compiles."""

    def __init__(self, capability: int) -> None:
        self.target = GPUTarget("cuda", capability, 32)

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_current_device(self) -> int:
        return int(self.target.arch)  # compiled kernels are kept by device

    def get_current_stream(self, device: int) -> int:
        return device


def report(kernel: Any, name: str) -> None:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        usage = subprocess.run([CUOBJDUMP, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    registers, stack = re.search(r"REG:(\d+) STACK:(\d+)", usage).groups()
    print(json.dumps({
        "kernel": name, "capability": kernel.metadata.target.arch, "warps": kernel.metadata.num_warps,
        "shared": kernel.metadata.shared, "registers": int(registers), "spilled": int(stack),
        "atomics": "atom." in kernel.asm["ptx"],
    }))  # fmt: skip


def compile_all(d_in: int, d_sae: int, k: int, n: int = 4) -> None:
    for dtype in (torch.bfloat16, torch.float32):
        kernels.top_k(torch.zeros(n, d_sae, dtype=dtype), k)
    indices, W, G = torch.zeros(n, k, dtype=torch.int64), torch.zeros(d_sae, d_in), torch.zeros(n, d_in)
    values, weights = torch.zeros(n, k), torch.zeros(n * k)
    entries = ops.sort_by_latent(indices, k, d_sae)
    kernels.decode_rows(indices, values, W)
    kernels.decode_rows(indices.flatten(), weights, W, torch.zeros(n + 1, dtype=torch.int64), torch.zeros(d_in))
    kernels.sampled_products(entries, W, G)
    kernels.sum_rows(entries, weights, G)
    kernels.sum_weights(entries, weights)


def main() -> None:
    run = JITFunction.run

    def compile_only(self: Any, *arguments: Any, grid: Any, warmup: bool, **options: Any) -> None:
        report(run(self, *arguments, grid=grid, warmup=True, **options), self.fn.__name__)

    JITFunction.run = compile_only
    driver.set_active(NoDevice(80))
    compile_all(100, 300, 5)  # rows that vector loads cannot be used for
    driver.set_active(NoDevice(90))
    compile_all(384, 3072, 32)
    compile_all(2048, 32768, 1024)


if __name__ == "__main__":
    main()
