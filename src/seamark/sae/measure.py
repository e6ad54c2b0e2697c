"""Which number format the encoder's product runs fastest in, measured once on the machine at hand."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable

import torch

from seamark.sae.config import Encoding, FitConfig, SAEConfig
from seamark.sae.encoder import Encoder

SMALL = 1 << 20
"""Weights below which fp32 is taken unmeasured: other things cost more there."""
WORK = 1 << 36
"""Multiplications in a measured product: a batch at d_in 2,048 and d_sae 16,384, fewer positions where it is larger."""
ROUNDS = 3
WORTH = 0.9
"""A cheaper format must need at most this share of fp32's time."""


def choose_encoding(config: SAEConfig, how: FitConfig, device: torch.device) -> Encoding:
    """`how.encoder`, or with "auto" the fastest here; measured once for a shape, so it stays the same in a process."""
    if how.encoder != "auto":
        return how.encoder
    if config.d_in * config.d_sae < SMALL:
        return "fp32"
    positions = max(1, min(how.batch_size, WORK // (config.d_in * config.d_sae)))
    return _fastest(config.d_in, config.d_sae, config.fixed_k, positions, str(device))


@functools.cache
def _fastest(d_in: int, d_sae: int, k: int | None, n: int, device: str) -> Encoding:
    candidates: tuple[Encoding, ...] = ("fp32", "bf16", "int8") if k and int8_usable(device) else ("fp32", "bf16")
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(n, d_in, generator=generator).to(device)
    W = torch.randn(d_sae, d_in, generator=generator).div_(d_in**0.5).to(device)
    made = {encoding: _selection(W, x, k or 1, encoding) for encoding in candidates}
    seconds = dict.fromkeys(candidates, float("inf"))
    for _ in range(ROUNDS):  # in turns, so that a busy moment does not decide
        for encoding, once in made.items():
            seconds[encoding] = min(seconds[encoding], _timed(once))
    best = min(seconds, key=lambda e: seconds[e])
    return best if seconds[best] <= WORTH * seconds["fp32"] else "fp32"


def _selection(W: torch.Tensor, x: torch.Tensor, k: int, encoding: Encoding) -> Callable[[], object]:
    """One selection, the copy of the weights included."""
    encoder = Encoder(W, torch.zeros(W.shape[0], device=W.device), encoding)

    def once() -> None:
        encoder.changed()
        encoder.top_k(x, k)
        if x.is_cuda:
            torch.cuda.synchronize(x.device)

    return once


def int8_usable(device: str) -> bool:
    """Whether torch multiplies int8 matrices here; not asked of CUDA, whose libraries do not take every shape."""
    if torch.device(device).type != "cpu" or not hasattr(torch, "_int_mm"):
        return False
    ones = torch.ones(32, 32, dtype=torch.int8)
    try:
        return bool((torch._int_mm(ones, ones.T) == 32).all())
    except (RuntimeError, NotImplementedError):  # a build without the product says so in one of these
        return False


def _timed(once: Callable[[], object]) -> float:
    """Seconds."""
    start = time.perf_counter()
    once()
    return time.perf_counter() - start
