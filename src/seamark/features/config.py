"""What a scan is asked to do."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, SerializerFunctionWrapHandler, model_serializer

from seamark.model.precision import Precision


class ScanConfig(BaseModel):
    """Which positions are read and what is kept of them.

    Two kinds of positions come from the same pass. *Scoring* positions (`positions`, `rule`, `scope`) make pooled
    latents and feature statistics. *Context* positions (`context_positions`) are the tokens whose latents are also
    kept on disk, so that contexts can highlight them; Q_f is taken over those of them in the response.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    positions: Literal["tokens", "clauses", "sentences", "last"] = "clauses"
    """Scoring positions: clause ends, as in SAFER, or others."""
    rule: Literal["default", "paper"] = "default"
    """How clauses and sentences end: knowing decimals, abbreviations and scripts, or by the paper's rule."""
    scope: Literal["response", "all"] = "response"
    """Scoring positions lie in the response, or in prompt and response (the paper)."""
    context_positions: Literal["tokens", "scoring"] = "tokens"
    """Latents kept on disk: of every response token (and every scoring position), or of scoring positions only."""
    max_length: int | None = Field(default=None, gt=0)
    """Most tokens of a text, cut at the left; None: what the model can take."""
    batch_tokens: int | None = Field(default=None, gt=0)
    """Padded tokens in a batch; None: 512 on a CPU, where each core has a batch of its own, 16384 on a GPU. Moves no
    result by more than rounding."""
    rewards: bool = True
    """Also keep the reward of every text: runs the model to its head, in the same pass."""
    precision: Precision = "fp32"
    """Number format of the model's pass; latents are float32. "auto": bf16 where the machine is fast at it."""
    keep_tokens: Literal["auto", "always", "never"] = "auto"
    """Whether latents of single tokens are kept; `auto`: if they surely take less than 4 GiB."""
    raw: bool = False
    """Also keep the mean raw activation of every text over its scoring positions, at every hookpoint of the suite:
    4 bytes × d_in a text and hookpoint. For controls that do without an autoencoder."""

    @model_serializer(mode="wrap")
    def _dumped(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """`raw` is named only where it is on: scans without it keep the key, and the bytes, of earlier versions."""
        return {k: v for k, v in dump(self).items() if k != "raw" or v}

    @classmethod
    def paper(cls, **fields: object) -> ScanConfig:
        """Positions exactly as in SAFER's released code: its clause rule, over prompt and response."""
        return cls.model_validate({"rule": "paper", "scope": "all", **fields})
