"""Which number format to compute in, and whether this machine is fast at it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, Literal

import torch
from torch import Tensor, nn

from seamark.model.hookpoints import head_modules

Precision = Literal["auto", "fp32", "bf16"]


def fast_bf16(device_type: str) -> bool:
    """Whether the machine multiplies bfloat16 matrices in hardware (AVX-512 BF16, AMX, or a GPU from Ampere on)."""
    if device_type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device_type == "cpu":
        probes = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
        return any(bool(getattr(torch.cpu, name, lambda: False)()) for name in probes)
    return False


def resolve_precision(precision: Precision, device_type: str) -> Literal["fp32", "bf16"]:
    """What "auto" means on a device."""
    if precision == "auto":
        return "bf16" if fast_bf16(device_type) else "fp32"
    return precision


def autocast(device_type: str, precision: Precision) -> contextlib.AbstractContextManager[object]:
    """Autocast to bfloat16, or no autocast at all even inside an outer one."""
    enabled = resolve_precision(precision, device_type) == "bf16"
    return torch.autocast(device_type, dtype=torch.bfloat16, enabled=enabled)


@contextlib.contextmanager
def exact_head(hf: nn.Module) -> Iterator[None]:
    """Compute the head in its weights' own format even under autocast.

    A reward in bfloat16 has three digits, too few to rank two good answers; the head costs next to nothing.
    """
    heads = [m for m in head_modules(hf) if next(m.parameters(), None) is not None]
    before = {m: vars(m).get("forward") for m in heads}
    for module in heads:
        vars(module)["forward"] = _without_autocast(module.forward, next(module.parameters()))
    try:
        yield
    finally:
        for module, own in before.items():
            vars(module).pop("forward")
            if own is not None:
                vars(module)["forward"] = own


def _without_autocast(forward: Callable[..., Any], weight: Tensor) -> Callable[..., Any]:
    def exact(x: Tensor, *args: Any, **kwargs: Any) -> Any:
        with torch.autocast(weight.device.type, enabled=False):
            return forward(x.to(weight.dtype), *args, **kwargs)

    return exact
