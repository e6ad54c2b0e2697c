"""Loading models: reward models, language models, and fresh reward models built on a base."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from seamark.errors import ModelError
from seamark.model.batching import Batch, collate, plan_batches
from seamark.model.hookpoints import backbone, find_family, resolve, three_quarter_depth
from seamark.model.precision import Precision
from seamark.model.pretrained import (
    DEFAULT_MODEL,
    adapter_base,
    load_adapter,
    load_config,
    load_pretrained,
    load_tokenizer,
    quantization_config,
    quiet,
    resolve_name,
    set_dropout,
)
from seamark.model.reading import read
from seamark.run import canonical_json, disk_errors
from seamark.text.rendering import Rendered, Renderer

__all__ = ["DEFAULT_MODEL", "HookedModel", "LanguageModel", "RewardModel", "resolve_name"]

Quantization = Literal["4bit", "8bit"]
Attention = Literal["eager", "sdpa"]
# Config entries that say where a model came from, not what it computes.
_NOT_CONTENT = {"_name_or_path", "transformers_version", "dtype", "torch_dtype", "_attn_implementation"}


class HookedModel:
    """A Hugging Face model with its tokenizer, and with hookpoints to read and change.

    Attributes:
        hf: the transformers model; PEFT adapters are merged into it unless it is quantised.
        tokenizer: its tokenizer, with a pad token.
        name: the name or path it was loaded from.
    """

    def __init__(self, hf: nn.Module, tokenizer: Any, name: str) -> None:
        self.hf, self.tokenizer, self.name = hf, tokenizer, name
        self.batch: Batch | None = None
        """The batch being read now, for functions applied at hookpoints."""
        self.batch_of_call: Batch | None = None
        """The batch of the latest direct call of `hf` while `apply_at` is open."""
        _ensure_pad_token(hf, tokenizer)

    @property
    def device(self) -> torch.device:
        return next(self.hf.parameters()).device

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
        h = hashlib.sha256(canonical_json(config).encode())
        for key, value in sorted(self.hf.state_dict().items()):
            if isinstance(value, Tensor):
                h.update(f"{key}|{value.dtype}|{tuple(value.shape)}".encode())
                h.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
        return h.hexdigest()

    def save_pretrained(self, path: str | os.PathLike[str]) -> None:
        """Write model and tokenizer in the Hub's layout (safetensors), readable by transformers and by Seamark."""
        with disk_errors(Path(path)), quiet():
            self.hf.save_pretrained(path)
            self.tokenizer.save_pretrained(path)

    def forward(self, batch: Batch) -> Any:
        """One forward pass of the whole model; transformers' output object."""
        return self.hf(input_ids=batch.input_ids, attention_mask=batch.attention_mask)

    def rewards_of(self, output: Any) -> Tensor:
        """Rewards [B] from a forward pass's output."""
        raise ModelError("this model gives no rewards", where=self.name, fix="Load it with RewardModel")

    @contextlib.contextmanager
    def reading(self, batch: Batch) -> Iterator[Batch]:
        """Mark `batch` as the one being read."""
        before, self.batch = self.batch, batch
        try:
            yield batch
        finally:
            self.batch = before


class RewardModel(HookedModel):
    """A sequence classifier with one label, read as the reward of a text."""

    @classmethod
    def from_pretrained(
        cls,
        path: str | os.PathLike[str],
        *,
        dtype: str | torch.dtype = "auto",
        device_map: Any = None,
        adapter: str | os.PathLike[str] | None = None,
        quantization: Quantization | None = None,
        trust_remote_code: bool = False,
        revision: str | None = None,
        attention: Attention | None = None,
    ) -> Self:
        """Load a reward model: any `AutoModelForSequenceClassification` with one label.

        Args:
            path: a folder in the Hub's layout, a name on the Hub, or a folder with a PEFT adapter (its base
                model is then loaded too).
            dtype: dtype of the weights; "auto" is float32 on a CPU and the checkpoint's own elsewhere.
            device_map: as in transformers; without it the model goes to the GPU if there is one.
            adapter: a PEFT adapter to put on the model; merged into the weights unless they are quantised.
            quantization: "4bit" or "8bit" through bitsandbytes.
            trust_remote_code: run code that comes with the model. Off; turn it on for models you trust.
            revision: a branch, tag or commit on the Hub.
            attention: transformers' `attn_implementation`.

        Raises:
            ModelError: no such model, damaged weights, no reward model, or a package that is missing.
        """
        name = resolve_name(path)
        common = {"trust_remote_code": trust_remote_code, "revision": revision}
        load = _Loading(dtype, device_map, quantization, attention, common)
        tokenizer = None
        if (Path(name) / "adapter_config.json").is_file():
            tokenizer = load_tokenizer(name) if (Path(name) / "tokenizer_config.json").is_file() else None
            adapter, name = name, adapter_base(name)
        config = load_config(name, **common)
        if adapter is None:
            _check_reward_config(config, name)
            hf, missing = load.run(AutoModelForSequenceClassification, name, config)
            if missing:
                raise ModelError(
                    f"the files lack {len(missing)} of the model's weights ({', '.join(missing[:3])})",
                    where=name,
                )
        else:
            config.num_labels = 1  # the adapter brings the head if the base has none
            hf, missing = load.run(AutoModelForSequenceClassification, name, config)
            hf = load_adapter(hf, os.fspath(adapter), missing=missing, merge=quantization is None)
        return cls(hf, tokenizer or load_tokenizer(name, **common), os.fspath(path))

    @classmethod
    def from_base(
        cls,
        path: str | os.PathLike[str] = DEFAULT_MODEL,
        *,
        seed: int = 0,
        attention: Attention | None = None,
        dropout: float = 0.0,
        device_map: Any = None,
        trust_remote_code: bool = False,
        revision: str | None = None,
    ) -> Self:
        """A reward model to be trained: a base encoder or causal LM with a fresh scalar head, in float32.

        A base that is a reward model already keeps its head. Weights the base lacks (the head, some
        encoders' pooler) are drawn from `seed` alone; the global random state is left as it was.

        Raises:
            ModelError: no such model, damaged weights, or a model that takes no scalar head.
        """
        name = resolve_name(path)
        common = {"trust_remote_code": trust_remote_code, "revision": revision}
        config = load_config(name, **common)
        is_reward = not _why_no_reward_model(config)
        config.num_labels = 1
        config.problem_type = None
        set_dropout(config, dropout)
        load = _Loading(torch.float32, device_map, None, attention, common)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            hf, missing = load.run(AutoModelForSequenceClassification, name, config)
            _fill_missing(hf, missing, name, expect_head=not is_reward)
        return cls(hf, load_tokenizer(name, **common), os.fspath(path))

    def rewards_of(self, output: Any) -> Tensor:
        """Rewards float32 [B] from a forward pass's output."""
        logits: Tensor = output.logits
        return logits[:, 0].float()

    def rewards(
        self, rendered: Sequence[Rendered], batch_tokens: int = 8192, *, precision: Precision = "fp32"
    ) -> NDArray[np.float64]:
        """Rewards of texts, in the order given; batches are planned by length inside.

        Args:
            rendered: texts from `renderer()`.
            batch_tokens: padded tokens in a batch.
            precision: "fp32" computes in the weights' own dtype; "bf16" under autocast, "auto" where it is
                fast.

        Returns:
            float64 [n].

        Raises:
            ModelError: a reward is not a finite number.
        """
        out = np.full(len(rendered), np.nan)
        for rows in plan_batches([len(r.input_ids) for r in rendered], batch_tokens):
            batch = collate(rendered, self.config.pad_token_id, rows=rows)
            rewards = read(self, batch, [], with_output=True, precision=precision).rewards
            assert rewards is not None  # noqa: S101  (with_output gives them)
            out[rows] = rewards.cpu().numpy()
        bad = np.flatnonzero(~np.isfinite(out))
        if bad.size:
            raise ModelError(
                f"{bad.size} of {len(out)} rewards are not finite, the first for text "
                f"{rendered[bad[0]].text_id}", where=self.name,
            )  # fmt: skip
        return out


class LanguageModel(HookedModel):
    """A causal language model."""

    @classmethod
    def from_pretrained(
        cls,
        path: str | os.PathLike[str],
        *,
        dtype: str | torch.dtype = "auto",
        device_map: Any = None,
        quantization: Quantization | None = None,
        trust_remote_code: bool = False,
        revision: str | None = None,
        attention: Attention | None = None,
    ) -> Self:
        """Load a causal LM (arguments as in `RewardModel.from_pretrained`).

        Raises:
            ModelError: no such model, damaged weights, or no causal LM.
        """
        name = resolve_name(path)
        common = {"trust_remote_code": trust_remote_code, "revision": revision}
        config = load_config(name, **common)
        load = _Loading(dtype, device_map, quantization, attention, common)
        hf, missing = load.run(AutoModelForCausalLM, name, config)
        if missing:
            raise ModelError(f"not a language model: the files lack {', '.join(missing[:3])}", where=name)
        return cls(hf, load_tokenizer(name, **common), os.fspath(path))


@dataclass(frozen=True)
class _Loading:
    """How weights are to be loaded, whatever the class of model."""

    dtype: str | torch.dtype
    device_map: Any
    quantization: Quantization | None
    attention: Attention | None
    common: dict[str, Any]

    def run(self, auto: Any, name: str, config: Any) -> tuple[nn.Module, list[str]]:
        on_gpu = torch.cuda.is_available()
        kwargs = dict(self.common)
        if self.attention:
            kwargs["attn_implementation"] = self.attention
        quantized = quantization_config(self.quantization)
        if quantized is not None:
            kwargs["quantization_config"] = quantized
        device_map = self.device_map or ("auto" if quantized is not None and on_gpu else None)
        if device_map is not None:
            kwargs["device_map"] = device_map
        plain_cpu = not on_gpu and device_map in (None, "auto", "cpu") and quantized is None
        kwargs["dtype"] = torch.float32 if self.dtype == "auto" and plain_cpu else self.dtype
        hf, missing = load_pretrained(auto, name, config, **kwargs)
        if device_map is None and on_gpu:
            hf = hf.to("cuda")
        return hf, missing


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


def _why_no_reward_model(config: Any) -> str:
    """Why a config is not a reward model's, or an empty string."""
    architecture = (getattr(config, "architectures", None) or ["unknown"])[0]
    if "SequenceClassification" not in architecture and "Reward" not in architecture:
        return f"{architecture} has no reward head"
    if config.num_labels != 1:
        return f"its classifier has {config.num_labels} labels, a reward model has one"
    return ""


def _check_reward_config(config: Any, name: str) -> None:
    why = _why_no_reward_model(config)
    if why:
        raise ModelError(
            f"not a reward model: {why}", where=name,
            fix="To train one on top of it, use RewardModel.from_base or `seamark reward train`",
        )  # fmt: skip


def _head_weights(hf: nn.Module) -> dict[str, nn.Parameter]:
    inside = {id(p) for p in backbone(hf).parameters()}
    return {k: p for k, p in hf.named_parameters() if id(p) not in inside}


def _fill_missing(hf: nn.Module, missing: list[str], name: str, *, expect_head: bool) -> None:
    """Draw the head afresh (normal, the model's own initial spread; bias 0), in a fixed order of weights.

    Other weights transformers has drawn already, from the same seed: only an encoder's pooler may be among
    them.
    """
    head = _head_weights(hf)
    strange = [k for k in missing if k not in head and "pooler" not in k]
    if strange:
        raise ModelError(f"the files lack {len(strange)} of the model's weights ({', '.join(strange[:3])})", where=name)
    if not expect_head:
        return
    spread = float(getattr(hf.config.get_text_config(), "initializer_range", None) or 0.02)
    with torch.no_grad():
        for key, weight in sorted(head.items()):
            drawn = torch.zeros(weight.shape)
            weight.copy_(drawn if key.endswith("bias") else drawn.normal_(0.0, spread))
