"""A Hugging Face model with its tokenizer and its hookpoints: what every other room gets to see of a model."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import inspect
import os
import threading
from collections.abc import Hashable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from seamark.errors import ModelError
from seamark.model.batching import Batch
from seamark.model.hookpoints import find_family, resolve, three_quarter_depth
from seamark.model.pretrained import quiet
from seamark.run import canonical_json, disk_errors
from seamark.text.rendering import Renderer

# Config entries that say where a model came from, not what it computes.
_NOT_CONTENT = {"_name_or_path", "architectures", "transformers_version", "dtype", "torch_dtype"}


class HookedModel:
    """A Hugging Face model with its tokenizer, and with hookpoints to read and change.

    Attributes:
        hf: the transformers model; PEFT adapters are merged into it unless it is quantised.
        tokenizer: its tokenizer, with a pad token; None: there are hookpoints, but no texts.
        name: the name or path it was loaded from.
    """

    def __init__(self, hf: nn.Module, tokenizer: Any, name: str) -> None:
        self.hf: Any = hf
        self.tokenizer, self.name = tokenizer, name
        self.batch_of_call: Batch | None = None
        """The batch of the latest direct call of `hf` while `apply_at` is open; backward may run in other threads."""
        self.changes = 0
        """How many `apply_at` are open."""
        self._now = threading.local()
        if tokenizer is not None:
            _ensure_pad_token(hf, tokenizer)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_now"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._now = threading.local()

    @property
    def batch(self) -> Batch | None:
        """The batch this thread is reading now, for functions applied at hookpoints."""
        return getattr(self._now, "batch", None)

    @property
    def device(self) -> torch.device:
        device: torch.device = next(self.hf.parameters()).device
        return device

    @property
    def config(self) -> Any:
        """The transformers config of the text model."""
        config: Any = self.hf.config
        return config.get_text_config() if hasattr(config, "get_text_config") else config

    @property
    def n_blocks(self) -> int:
        return len(find_family(self.hf)[1])

    @property
    def hookpoints(self) -> list[str]:
        """Every hookpoint of the model, from the input to the output."""
        return [f"layers.{i}{part}" for i in range(self.n_blocks) for part in (".attn", ".mlp", "")]

    @property
    def default_hookpoint(self) -> str:
        """The block output at ¾ depth, as SAFER (arXiv 2507.00665) uses."""
        return three_quarter_depth(self.n_blocks)

    def d_model(self, hookpoint: str) -> int:
        """Width of the activations at a hookpoint. Raises `ModelError` where there is none of that name."""
        resolve(self.hf, hookpoint)
        return int(self.config.hidden_size)

    @property
    def max_length(self) -> int:
        """The longest text, in tokens, that the model can take."""
        limit = int(getattr(self.config, "max_position_embeddings", None) or 1 << 30)
        if self.config.model_type in ("roberta", "xlm-roberta", "camembert"):
            limit -= int(self.config.pad_token_id or 0) + 1  # their positions start after the pad id
        return min(limit, int(self.tokenizer.model_max_length))

    def renderer(self, max_length: int | None = None) -> Renderer:
        """A renderer for this model's tokenizer.

        Texts are cut at the left to `max_length` tokens, or to what the model can take if that is less.
        """
        return Renderer(self.tokenizer, min(max_length or self.max_length, self.max_length))

    def fingerprint(self) -> str:
        """SHA-256 over weights and config, hexadecimal: equal for equal models, wherever they were loaded from."""
        config = {k: v for k, v in self.hf.config.to_dict().items() if k not in _NOT_CONTENT}
        h = hashlib.sha256(f"{type(self.hf).__name__}{canonical_json(config)}".encode())
        for key, value in sorted(self.hf.state_dict().items()):
            if isinstance(value, Tensor):
                h.update(f"{key}|{value.dtype}|{tuple(value.shape)}".encode())
                h.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
        return h.hexdigest()

    def save_pretrained(self, path: str | os.PathLike[str]) -> None:
        """Write model and tokenizer in the Hub's layout (safetensors), readable by transformers and by Seamark."""
        with disk_errors(Path(path)), quiet():
            self.hf.save_pretrained(path)
            self.tokenizer.save_pretrained(path)

    def forward(self, batch: Batch) -> Any:
        """One forward pass of the whole model; transformers' output object."""
        extra = {"use_cache": False} if _takes_use_cache(self.hf.__class__) else {}  # nothing is generated here
        return self.hf(input_ids=batch.input_ids, attention_mask=batch.attention_mask, **extra)

    def rewards_of(self, output: Any) -> Tensor:
        """Rewards [B] from a forward pass's output."""
        raise ModelError("this model gives no rewards", where=self.name, fix="Load it with RewardModel")

    @contextlib.contextmanager
    def reading(self, batch: Batch) -> Iterator[Batch]:
        """Mark `batch` as the one being read."""
        before, self._now.batch = self.batch, batch
        try:
            yield batch
        finally:
            self._now.batch = before


@functools.cache
def _takes_use_cache(kind: Hashable) -> bool:
    return "use_cache" in inspect.signature(kind.forward).parameters  # type: ignore[attr-defined]


def _ensure_pad_token(hf: nn.Module, tokenizer: Any) -> None:
    """Give tokenizer and config one pad token: the model's own, else the tokenizer's, else EOS, UNK or id 0.

    A classifier on a causal LM reads the last token that is not the pad token of its config, so that one decides,
    and without one it cannot take batches.
    """
    config: Any = hf.config
    text = config.get_text_config()
    own = text.pad_token_id
    if isinstance(own, int) and 0 <= own < len(tokenizer):
        if own != tokenizer.pad_token_id:
            tokenizer.pad_token = tokenizer.convert_ids_to_tokens(own)
    elif tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token or tokenizer.convert_ids_to_tokens(0)
    config.pad_token_id = text.pad_token_id = tokenizer.pad_token_id
