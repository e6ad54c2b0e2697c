"""What a direct call of a transformers model is about: the texts in it, and where each of its tokens stands.

With a generation cache a call holds the new tokens only. Everything that speaks of places in a text needs to know how
many tokens lie before them, and in a batch padded on the left that differs from row to row.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from seamark.errors import ModelError
from seamark.model.batching import Batch


@dataclass(frozen=True)
class _Prompts:
    """What `generate` was given: texts, padded columns, and their mask [texts, columns] where there was one."""

    texts: int
    columns: int
    mask: Tensor | None


class Calls:
    """Makes a `Batch` of each direct call of a transformers model. Use `noting` around the calls."""

    def __init__(self, hf: nn.Module, name: str) -> None:
        self.hf, self.name = hf, name
        self._prompts: _Prompts | None = None

    @contextlib.contextmanager
    def noting(self, tell: Callable[[Batch], None]) -> Iterator[None]:
        """While the context is open, `tell` hears of the batch of every call before the call runs."""

        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            tell(self._batch(_named(module, args) | kwargs))

        # A PEFT model hands `generate`, but not `forward`, to a call of the model inside it.
        inner = getattr(self.hf, "get_base_model", lambda: self.hf)()
        with contextlib.ExitStack() as stack:
            for module in {id(m): m for m in (self.hf, inner)}.values():
                stack.callback(module.register_forward_pre_hook(hook, with_kwargs=True).remove)
            if callable(generate := getattr(self.hf, "generate", None)):
                stack.enter_context(instance_has(self.hf, "generate", self._remembering(generate)))
            yield

    def _remembering(self, generate: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(generate)
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            before, self._prompts = self._prompts, _prompts(args, kwargs)
            try:
                return generate(*args, **kwargs)
            finally:
                self._prompts = before

        return wrapped

    def _batch(self, call: dict[str, Any]) -> Batch:
        ids = call.get("input_ids")
        if ids is None:
            raise ModelError("apply_at needs a forward pass on input_ids", where=self.name)
        whole = self._whole_mask(ids, call.get("attention_mask"), call.get("past_key_values"))
        start = whole.shape[1] - ids.shape[1]
        mask, before = whole[:, start:], whole[:, :start].sum(1)
        prompts = self._prompts
        if prompts is None or len(ids) % prompts.texts:
            return Batch(ids, mask, tuple(range(len(ids))), before)
        share = len(ids) // prompts.texts  # beams and several answers of one text lie beside each other
        rows = tuple(i // share for i in range(len(ids)))
        return Batch(ids, mask, rows, before, given=whole[:, : prompts.columns].sum(1))

    def _whole_mask(self, ids: Tensor, mask: Any, cache: Any) -> Tensor:
        """1 for a token and 0 for padding, int64 [B, columns cached and new]."""
        cached = int(cache.get_seq_length()) if cache is not None else 0
        n, width = ids.shape[1], cached + ids.shape[1]
        if isinstance(mask, Tensor) and mask.ndim == 2:
            if mask.shape[1] < width:
                raise ModelError(f"an attention mask of {mask.shape[1]} columns for {cached} cached and {n} new tokens",
                                 where=self.name, fix="Let it cover the cached tokens too")  # fmt: skip
            return (mask[:, :width] != 0).long()
        known = None if self._prompts is None else self._prompts.mask
        if mask is not None and known is None:  # as masks of four dimensions or one for each kind of layer
            raise ModelError("which tokens are padding does not show in this attention mask", where=self.name,
                             fix="Give an attention_mask [batch, tokens]")  # fmt: skip
        whole = torch.ones(len(ids), width, dtype=torch.int64, device=ids.device)
        if known is not None:
            rows = known.repeat_interleave(len(ids) // len(known), 0).to(ids.device)[:, :width]
            whole[:, : rows.shape[1]] = rows
        return whole


def _named(module: nn.Module, args: tuple[Any, ...]) -> dict[str, Any]:
    """Arguments of a call that were given by place, by name."""
    names = list(inspect.signature(type(module).forward).parameters)[1:] if args else []
    return dict(zip(names, args, strict=False))


def _prompts(args: tuple[Any, ...], kwargs: dict[str, Any]) -> _Prompts | None:
    ids = kwargs.get("input_ids", kwargs.get("inputs", args[0] if args else None))
    if not isinstance(ids, Tensor) or ids.ndim != 2 or not len(ids):
        return None
    mask = kwargs.get("attention_mask")
    columns = ids.shape[1] if mask is None else max(ids.shape[1], mask.shape[1])  # a cache may hold the first of them
    return _Prompts(len(ids), columns, None if mask is None else (mask != 0).long())


@contextlib.contextmanager
def instance_has(module: nn.Module, name: str, value: Any) -> Iterator[None]:
    """While the context is open, this one module has `value` under `name`, whatever its class has."""
    held = vars(module)
    missing = object()
    before = held.get(name, missing)
    held[name] = value
    try:
        yield
    finally:
        held.pop(name, None)
        if before is not missing:
            held[name] = before
