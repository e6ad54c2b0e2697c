"""Triton kernels of the sparse operations, for CUDA.

The torch code of `ops` and `topk` is their reference and fallback; each function has the signature of its reference.
Triton is imported when the first one is asked for, never before, so that everything else works without it. No atomics:
results do not depend on the order in which programs happen to run.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import warnings
from functools import cache
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from seamark.errors import ConfigError

if TYPE_CHECKING:
    from seamark.sae.kernels.select import top_k
    from seamark.sae.kernels.sums import decode_rows, sampled_products, sum_rows, sum_weights

__all__ = ["decode_rows", "sampled_products", "sum_rows", "sum_weights", "top_k", "usable"]

VARIABLE = "SEAMARK_KERNELS"
"""Environment variable; `torch` keeps the torch path on CUDA too."""

FUNCTIONS = {"top_k": "select"} | dict.fromkeys(("decode_rows", "sampled_products", "sum_rows", "sum_weights"), "sums")
"""{function: its module}"""


class Entries(Protocol):
    """Entries in the order of their latents, as `ops.ByLatent` holds them."""

    @property
    def latents(self) -> Tensor:
        """int [m]."""

    @property
    def positions(self) -> Tensor:
        """int [m]."""

    @property
    def offsets(self) -> Tensor:
        """int [d_sae + 1]: entries of latent i are offsets[i]:offsets[i+1]."""


def __getattr__(name: str) -> Any:
    if name not in FUNCTIONS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{FUNCTIONS[name]}"), name)


def usable(*tensors: Tensor) -> bool:
    """Whether the kernels can work on these tensors (none: on CUDA tensors at all).

    They cannot where a tensor is not on CUDA or needs a gradient (the kernels have no backward pass), where
    `SEAMARK_KERNELS=torch`, and where Triton or a C compiler for its launcher is missing: one small launch shows it.

    Raises:
        ConfigError: `SEAMARK_KERNELS` is set to something else.
    """
    wish = os.environ.get(VARIABLE, "")
    if wish not in ("", "torch"):
        raise ConfigError(f"{VARIABLE} is {wish!r}", where="environment", fix="Set it to torch, or not at all")
    if wish or not all(t.is_cuda for t in tensors):
        return False
    if torch.is_grad_enabled() and any(t.requires_grad for t in tensors):
        return False
    return torch.cuda.is_available() and _works()


@cache
def _works() -> bool:
    try:
        from seamark.sae.kernels.sums import decode_rows

        one = torch.ones(1, 1, device="cuda")
        return float(decode_rows(one.long() - 1, one, one)) == 1.0
    except Exception as e:  # whatever Triton, its compiler or its driver may raise: the torch path remains
        reason = (str(e).strip().splitlines() or [type(e).__name__])[0]
        warnings.warn(f"Triton kernels are not usable ({reason}): slower torch path", RuntimeWarning, stacklevel=3)
        return False


def on_device_of(tensor: Tensor) -> contextlib.AbstractContextManager[object]:
    """Triton launches on the current device, wherever its arguments are: make theirs the current one."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else contextlib.nullcontext()


def power_of_two(n: int) -> int:
    """The smallest power of two that is at least n ≥ 1: block sizes in Triton must be one."""
    return 1 << (n - 1).bit_length()
