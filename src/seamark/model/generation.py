"""Generation: what a language model answers, as the very tokens it chose."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from seamark.errors import ConfigError, ModelError
from seamark.model.loading import LanguageModel
from seamark.model.pretrained import quiet
from seamark.model.reading import evaluating
from seamark.text.rendering import Rendered

MAX_NEW_TOKENS = 1024


class Generation(BaseModel):
    """How an answer is generated."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    max_new_tokens: int = Field(default=128, ge=1, le=MAX_NEW_TOKENS)
    """Most tokens of the answer."""
    temperature: float = Field(default=0.0, ge=0, le=2)
    """0: always the most likely token; above 0: tokens are drawn."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Draw only from the likeliest tokens that together have this probability."""
    seed: int = Field(default=0, ge=0, lt=1 << 63)
    """Of the draws."""
    max_seconds: float | None = Field(default=None, gt=0)
    """Stop after so long; None: only at the end or at `max_new_tokens`."""


@dataclass(frozen=True, eq=False)
class Generated:
    """An answer as tokens."""

    ids: NDArray[np.int32]
    """[n], the token that ends an answer included where the model chose one."""
    stopped: Literal["end", "length", "time"]
    """Why it is not longer."""


def generate(model: LanguageModel, prompt: Rendered, how: Generation) -> Generated:
    """Let a language model go on from `prompt` (see `Renderer.render_prompt`).

    The global random state is left as it was; equal seeds give equal answers on the same machine.

    Raises:
        ConfigError: prompt and answer together are longer than the model can take.
        ModelError: the model cannot generate, or its probabilities are no numbers.
    """
    n = len(prompt)
    if n + how.max_new_tokens > model.max_length:
        raise ConfigError(f"{n} tokens of prompt and {how.max_new_tokens} new ones exceed {model.max_length}",
                          where=model.name, fix="Ask for fewer new tokens, or cut the prompt")  # fmt: skip
    if not callable(getattr(model.hf, "generate", None)):
        raise ModelError("this model cannot generate", where=model.name, fix="Give a causal language model")
    ends = _end_tokens(model)
    ids = torch.as_tensor(prompt.input_ids, dtype=torch.int64, device=model.device)[None]
    settings: dict[str, Any] = {
        "max_new_tokens": how.max_new_tokens, "max_time": how.max_seconds, "eos_token_id": ends or None,
        "pad_token_id": int(model.config.pad_token_id), "num_beams": 1, "do_sample": how.temperature > 0,
        "repetition_penalty": 1.0,
    }  # fmt: skip
    if how.temperature > 0:
        settings |= {"temperature": how.temperature, "top_p": how.top_p, "top_k": 0}
    with evaluating(model.hf, "fp32"), quiet(), _seeded(how.seed, model.device):
        try:
            out = model.hf.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **settings)
        except (RuntimeError, ValueError) as e:  # torch refuses to draw from NaN; transformers refuses odd settings
            raise ModelError(f"generation failed ({' '.join(str(e).split())[:200]})", where=model.name) from e
    new = out[0, n:].cpu().numpy().astype(np.int32)
    if len(new) and int(new[-1]) in ends:
        return Generated(new, "end")
    return Generated(new, "length" if len(new) >= how.max_new_tokens else "time")


def _end_tokens(model: LanguageModel) -> list[int]:
    """Tokens that end an answer: those of the model's own settings and the tokenizer's."""
    own = getattr(getattr(model.hf, "generation_config", None), "eos_token_id", None)
    found = [*own] if isinstance(own, list | tuple) else [own]
    return sorted({int(i) for i in (*found, model.tokenizer.eos_token_id) if i is not None})


@contextmanager
def _seeded(seed: int, device: torch.device) -> Iterator[None]:
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield
