"""Reading activations at hookpoints, and changing them there.

`read` runs the model no further than it must: once every hookpoint asked for has been seen, the forward
pass is cut short, so neither later blocks nor a head nobody reads are computed.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from seamark.errors import ModelError
from seamark.model.batching import Batch
from seamark.model.calls import Calls
from seamark.model.hookpoints import resolve
from seamark.model.precision import Precision, autocast, exact_head

if TYPE_CHECKING:
    from seamark.model.hooked import HookedModel

Change = Callable[[Tensor, Batch], Tensor]
"""Takes activations [B, T, d] and the batch they belong to, and returns activations of the same shape."""


class _SeenEnough(Exception):  # noqa: N818  (control flow, not an error)
    """Unwinds the forward pass once all hookpoints have been read."""


@dataclass(frozen=True)
class Reading:
    """What one batch gave: activations [B, T, d] by hookpoint, and rewards [B] where they were asked for."""

    activations: dict[str, Tensor]
    rewards: Tensor | None


def _tensor(output: Any) -> Tensor:
    """The activation in a module's output: the output itself, or the first item of a tuple."""
    return output[0] if isinstance(output, tuple | list) else output


def _with_tensor(output: Any, h: Tensor) -> Any:
    return type(output)((h, *output[1:])) if isinstance(output, tuple | list) else h


@contextlib.contextmanager
def evaluating(hf: nn.Module, precision: Precision) -> Iterator[None]:
    """Eval mode, no gradients, autocast only as asked; the training flag is put back."""
    with in_eval(hf), computing(hf, precision):
        yield


@contextlib.contextmanager
def in_eval(hf: nn.Module) -> Iterator[None]:
    """Eval mode with an exact head. This is the module's state, so it holds for all threads."""
    was_training = hf.training
    hf.eval()
    try:
        with exact_head(hf):
            yield
    finally:
        hf.train(was_training)


@contextlib.contextmanager
def computing(hf: nn.Module, precision: Precision) -> Iterator[None]:
    """No gradients, and autocast only as asked: for this thread alone."""
    device = next(hf.parameters()).device.type
    with torch.inference_mode(), autocast(device, precision):
        yield


def reads_side_by_side(model: HookedModel) -> bool:
    """Whether several threads may read the model at once: transformers' own code may be called so, unless it keeps
    something of a call in its modules. That do positions that change with the length of a text, attention that changes
    its kind (BigBird), quantised layers and weights that are offloaded; PEFT's and remote code are not known to be
    safe, nor are functions that `apply_at` holds at hookpoints."""
    hf, config = model.hf, model.config
    kinds = str(getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or "")
    return (
        not model.changes
        and type(hf).__module__.startswith("transformers.")
        and not any(kind in kinds for kind in ("dynamic", "longrope"))
        and not getattr(hf, "is_quantized", False)
        and not any(hasattr(m, "set_attention_type") or hasattr(m, "_hf_hook") for m in hf.modules())
    )


class Reader:
    """Reads batches at the same hookpoints, in one thread or in several at once. Use it in a `with` statement.

    Args:
        model: the model.
        hookpoints: names as in `hookpoints.py`.
        with_output: also run to the head and return the rewards.
        precision: "fp32" computes in the weights' own dtype; "bf16" under autocast, "auto" where that is
            fast.

    Raises:
        ModelError: an unknown hookpoint.
    """

    def __init__(
        self, model: HookedModel, hookpoints: Sequence[str], *, with_output: bool = False, precision: Precision = "fp32"
    ) -> None:
        self.model, self.with_output, self.precision = model, with_output, precision
        self._modules = {name: resolve(model.hf, name) for name in dict.fromkeys(hookpoints)}
        self._here = threading.local()  # hooks hang on the model, which all threads share: each looks at its own pass
        self._open = contextlib.ExitStack()

    def __enter__(self) -> Reader:
        with contextlib.ExitStack() as opening:
            opening.enter_context(in_eval(self.model.hf))
            for name, module in self._modules.items():
                opening.callback(module.register_forward_hook(self._watch(name)).remove)
            self._open = opening.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def _watch(self, name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(_module: nn.Module, _args: Any, output: Any) -> None:
            seen: dict[str, Tensor] | None = getattr(self._here, "seen", None)
            if seen is None:
                return  # somebody else's pass
            seen[name] = _tensor(output)
            if len(seen) == len(self._modules) and not self.with_output:
                raise _SeenEnough

        return hook

    def __call__(self, batch: Batch) -> Reading:
        """Activations in the model's dtype, on its device, in the order asked for; padding positions hold meaningless
        numbers.

        Raises:
            ModelError: rewards asked of a model that gives none.
        """
        if not self._modules and not self.with_output:
            return Reading({}, None)
        seen: dict[str, Tensor] = {}
        rewards: Tensor | None = None
        model, self._here.seen = self.model, seen
        try:
            with computing(model.hf, self.precision), model.reading(batch.to(model.device)) as moved:
                output = model.forward(moved)
                if self.with_output:
                    rewards = model.rewards_of(output)
        except _SeenEnough:
            pass
        finally:
            self._here.seen = None
        missed = [name for name in self._modules if name not in seen]
        if missed:
            raise ModelError(f"the model ran without passing {', '.join(missed)}", where=model.name)
        return Reading({name: seen[name] for name in self._modules}, rewards)


def read(
    model: HookedModel,
    batch: Batch,
    hookpoints: Sequence[str],
    *,
    with_output: bool = False,
    precision: Precision = "fp32",
) -> Reading:
    """Run one batch and return the activations at `hookpoints`.

    Padding positions hold meaningless numbers: use `batch.attention_mask`. Arguments, what comes back and errors as of
    `Reader`, which is for many batches.
    """
    with Reader(model, hookpoints, with_output=with_output, precision=precision) as reader:
        return reader(batch)


@contextlib.contextmanager
def apply_at(model: HookedModel, changes: Mapping[str, Change]) -> Iterator[None]:
    """While the context is open, every forward pass of the model goes through `changes` at their hookpoints.

    It holds for `read`, for `rewards` and for any call of `model.hf` itself, `model.hf.generate` too (then the batch
    handed to the function is made from the call's own `input_ids`, `attention_mask` and cache; `Batch.positions` says
    where its tokens stand in their texts). A function that returns the very tensor it got changes no bit of the
    output. Hooks registered earlier see activations first: open `apply_at` before reading.

    Raises:
        ModelError: an unknown hookpoint, a function that returns another shape, or a call that does not tell which of
            its tokens are padding.
    """
    modules = {name: resolve(model.hf, name) for name in changes}

    def tell(batch: Batch) -> None:
        model.batch_of_call = batch

    with contextlib.ExitStack() as stack:
        stack.enter_context(Calls(model.hf, model.name).noting(tell))
        for name, module in modules.items():
            stack.callback(module.register_forward_hook(_changing(model, name, changes[name])).remove)
        model.changes += 1
        try:
            yield
        finally:
            model.changes -= 1
            model.batch_of_call = None


def _changing(model: HookedModel, name: str, change: Change) -> Callable[[nn.Module, Any, Any], Any]:
    def hook(_module: nn.Module, _args: Any, output: Any) -> Any:
        h = _tensor(output)
        batch = model.batch or model.batch_of_call
        if batch is None:
            raise ModelError("apply_at needs a forward pass through the whole model", where=name)
        new = change(h, batch)
        if new is h:
            return None  # exactly what the module gave
        if new.shape != h.shape:
            raise ModelError(f"the function changed the shape {tuple(h.shape)} to {tuple(new.shape)}", where=name)
        return _with_tensor(output, new.to(h.dtype))

    return hook
