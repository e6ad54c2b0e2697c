"""Loading models: reward models, language models, and fresh reward models built on a base."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification

from seamark.errors import ModelError
from seamark.model.batching import Batch, collate, plan_batches
from seamark.model.hooked import HookedModel
from seamark.model.hookpoints import backbone
from seamark.model.precision import Precision
from seamark.model.pretrained import (
    DEFAULT_MODEL,
    adapter_base,
    load_adapter,
    load_config,
    load_pretrained,
    load_tokenizer,
    quantization_config,
    resolve_name,
    set_dropout,
)
from seamark.model.reading import evaluating, read
from seamark.run import read_json
from seamark.text.rendering import Rendered

__all__ = ["DEFAULT_MODEL", "HookedModel", "LanguageModel", "RewardModel", "load_model", "resolve_name"]

Quantization = Literal["4bit", "8bit"]
Attention = Literal["eager", "sdpa"]


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
        # Texts of the same tokens are read once: they tie exactly, whichever batch they would have been in.
        key_of = [r.input_ids.tobytes() for r in rendered]
        first = {key: i for i, key in reversed(list(enumerate(key_of)))}
        unique = sorted(first.values())
        found = np.full(len(rendered), np.nan)
        for plan in plan_batches([len(rendered[i].input_ids) for i in unique], batch_tokens):
            rows = [unique[i] for i in plan]
            batch = collate(rendered, self.config.pad_token_id, rows=rows)
            rewards = read(self, batch, [], with_output=True, precision=precision).rewards
            assert rewards is not None  # noqa: S101  (with_output gives them)
            found[rows] = rewards.cpu().numpy()
        out: NDArray[np.float64] = found[np.asarray([first[key] for key in key_of], dtype=np.int64)]
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

    def logits(self, batch: Batch, *, precision: Precision = "fp32") -> Tensor:
        """Logits [B, T, vocabulary] of the token behind each position, in the head's format; meaningless at padding."""
        with evaluating(self.hf, precision), self.reading(batch.to(self.device)) as moved:
            out: Tensor = self.forward(moved).logits
            return out


def is_reward_model(path: str | os.PathLike[str]) -> bool:
    """Whether what lies at `path` has a scalar head: by its config, or by the task of an adapter. Loads no weights.

    Raises:
        ModelError: no such model.
    """
    name = resolve_name(path)
    adapter = Path(name) / "adapter_config.json"
    if adapter.is_file():
        return bool(read_json(adapter).get("task_type") == "SEQ_CLS")
    return not _why_no_reward_model(load_config(name))


def load_model(
    path: str | os.PathLike[str], *, dtype: str | torch.dtype = "auto", device_map: Any = None,
    quantization: Quantization | None = None, trust_remote_code: bool = False, revision: str | None = None,
    attention: Attention | None = None,
) -> HookedModel:  # fmt: skip
    """Whatever lies at `path`, to read activations of: a `RewardModel` (a classifier, or an adapter of one), a
    `LanguageModel` (causal), or a bare `HookedModel` (an encoder; any head it has is left out).

    Arguments are those of `RewardModel.from_pretrained`.

    Raises:
        ModelError: no such model, damaged weights, or a classifier that is no reward model.
    """
    name = resolve_name(path)
    common = {"trust_remote_code": trust_remote_code, "revision": revision}
    options: dict[str, Any] = {"dtype": dtype, "device_map": device_map, "quantization": quantization,
                               "attention": attention, **common}  # fmt: skip
    if (Path(name) / "adapter_config.json").is_file():
        return RewardModel.from_pretrained(path, **options)
    config = load_config(name, **common)
    architecture = _architecture(config)
    if _has_reward_head(architecture):
        return RewardModel.from_pretrained(path, **options)
    if any(word in architecture for word in ("CausalLM", "LMHeadModel", "ConditionalGeneration")):
        return LanguageModel.from_pretrained(path, **options)
    hf, missing = _Loading(dtype, device_map, quantization, attention, common).run(AutoModel, name, config)
    if strange := [k for k in missing if "pooler" not in k]:
        raise ModelError(f"the files lack {len(strange)} of the model's weights ({', '.join(strange[:3])})", where=name)
    return HookedModel(hf, load_tokenizer(name, **common), os.fspath(path))


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


def _architecture(config: Any) -> str:
    return str((getattr(config, "architectures", None) or ["unknown"])[0])


def _has_reward_head(architecture: str) -> bool:
    return "SequenceClassification" in architecture or "Reward" in architecture


def _why_no_reward_model(config: Any) -> str:
    """Why a config is not a reward model's, or an empty string."""
    architecture = _architecture(config)
    if not _has_reward_head(architecture):
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


def _fill_missing(hf: Any, missing: list[str], name: str, *, expect_head: bool) -> None:
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
