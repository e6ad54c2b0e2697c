"""What is trained: one autoencoder (`SAESpec`), the stages, the stream that feeds them, and how suites are named."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from seamark.errors import ConfigError
from seamark.model.precision import Precision
from seamark.sae.config import EPS, WITH_K, Activation, FitConfig, SAEConfig, first_line, sae_config

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
"""Ids of autoencoders and names of stages: they become folders."""


class StageConfig(BaseModel):
    """One stage of training: which positions, how long, how fast."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = "stage"
    """Also the name of its texts, where each stage has its own."""
    positions: Literal["tokens", "clauses", "sentences", "last"] = "tokens"
    """SAFER: every token in the first stage, clause ends in the second."""
    rule: Literal["default", "paper"] = "default"
    """How clauses end."""
    scope: Literal["response", "all"] = "all"
    """Positions of the response, or of prompt and response. A plain text is all response."""
    max_length: int | None = Field(default=None, gt=0)
    """Most tokens of a text, cut at the left. SAFER: 512 for general, 1,024 for safety texts. None: as they come."""
    max_positions: int | None = Field(default=None, gt=0)
    """Texts are taken in their order until they have this many positions (held-out ones count). SAFER: 100 million in
    the first stage. None: all."""
    epochs: int = Field(default=1, gt=0)
    """Times each position is seen."""
    lr: float = Field(default=5e-4, gt=0)
    """Peak learning rate. SAFER: 5e-4 on general text, 3e-4 on safety texts."""
    batch_size: int = Field(default=2048, gt=0)
    """Positions a step."""
    warmup_share: float = Field(default=0.05, ge=0, le=1)
    """Share of steps with a rising rate."""
    decay_share: float = Field(default=0.2, ge=0, le=1)
    """Share of steps, at the end, with a falling rate."""


PAPER_STAGES = (
    StageConfig(name="general", positions="tokens", lr=5e-4),
    StageConfig(name="safety", positions="clauses", lr=3e-4),
)
"""SAFER's two stages: general texts at all tokens, then safety texts at clause ends."""


class SAESpec(BaseModel):
    """One autoencoder of a suite: where it reads, what it is, how it learns in every stage."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    hookpoint: str | None = None
    """Where to read; None: the model's block output at ¾ depth."""
    activation: Activation = "topk"
    """How latents are selected (see `SAEConfig`): topk (SAFER), topk_relu (Safe-SAIL), batch_topk, jumprelu, relu."""
    k: int = Field(default=64, gt=0)
    """Latents kept at each position; used by the topk kinds only."""
    d_sae: int | None = Field(default=None, gt=0)
    """Number of latents; None: `expansion` × the hookpoint's width."""
    expansion: float = Field(default=8, gt=0)
    """Latents for each dimension of the hookpoint, where `d_sae` is None. SAFER: 8; Safe-SAIL: 10."""
    normalize: Literal["layer_norm", "none"] = "layer_norm"
    """As in `SAEConfig`."""
    eps: float = Field(default=EPS, ge=0)
    """Added to the standard deviation in layer_norm."""
    subtract_b_dec: bool = True
    """Whether the encoder sees x − b_dec or x."""
    lr: float | None = Field(default=None, gt=0)
    """Peak learning rate in place of every stage's."""
    batch_size: int | None = Field(default=None, gt=0)
    """Positions a step in place of every stage's."""
    loss: Literal["relative", "squared"] = "relative"
    """Mean of ‖x̂ − x‖² / ‖x‖² (SAFER) or of ‖x̂ − x‖² (Safe-SAIL)."""
    sparsity: float = Field(default=0.0, ge=0)
    """λ of the sparsity term: L1 for relu, L0 for jumprelu."""
    sparsity_warmup_share: float = Field(default=0.1, ge=0, le=1)
    """Share of each stage's steps over which λ rises from 0."""
    bandwidth: float = Field(default=1e-3, gt=0)
    """Width of JumpReLU's straight-through window. Safe-SAIL: 0.001."""
    initial_threshold: float = Field(default=1e-3, gt=0)
    """First threshold of every JumpReLU latent."""
    threshold_rate: float = Field(default=0.01, gt=0, le=1)
    """Weight of a batch's smallest kept value in BatchTopK's running threshold."""
    aux_coefficient: float = Field(default=0.0, ge=0)
    """α of the AuxK loss for dead latents (arXiv 2406.04093: 1/32); 0: none."""
    aux_k: int | None = Field(default=None, gt=0)
    """Dead latents used at each position by AuxK; None: half the width."""
    dead_after: int = Field(default=1_000_000, gt=0)
    """Positions without firing after which a latent counts as dead."""
    b_dec_init: Literal["mean", "geometric_median", "zeros"] = "mean"
    """First b_dec, from the first batch."""
    scale: Literal["none", "expected_norm"] = "none"
    """`expected_norm`: inputs are scaled to a mean norm of √d_in in training; folded into the weights when saved."""
    decoder_norm_every: int = Field(default=10, gt=0)
    """Steps between bringing the decoder to unit norm."""
    remove_parallel: bool = True
    """Take the part along each decoder row from its gradient."""
    clip: float | None = Field(default=1.0, gt=0)
    """Largest gradient norm; None: no limit."""
    encoder: Literal["auto", "fp32", "bf16", "int8"] = "auto"
    """Number format of the encoder's product; "auto": the fastest here, measured once and stored with the run."""
    seed: int = Field(default=0, ge=0)
    """Seed of the first weights."""

    def config(self, d_in: int, model: str, hookpoint: str) -> SAEConfig:
        """What is trained on a hookpoint of width `d_in`. Raises `ConfigError`: k > d_sae."""
        return sae_config(
            d_in=d_in, d_sae=self.d_sae or max(1, round(self.expansion * d_in)), activation=self.activation,
            k=self.k if self.activation in WITH_K else None, normalize=self.normalize, eps=self.eps,
            subtract_b_dec=self.subtract_b_dec, model=model, hookpoint=hookpoint,
        )  # fmt: skip

    def fit(self, stage: StageConfig) -> FitConfig:
        """How it is trained in a stage."""
        mine = {name: getattr(self, name) for name in FitConfig.model_fields if name in type(self).model_fields}
        given = {name: value for name, value in mine.items() if not (name in _OF_STAGE and value is None)}
        return FitConfig(**({name: getattr(stage, name) for name in _OF_STAGE} | given))


_OF_STAGE = ("lr", "batch_size", "warmup_share", "decay_share")


class TrainingConfig(BaseModel):
    """How activations reach the autoencoders, and what is kept on the way."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    buffer_tokens: int = Field(default=1 << 18, gt=0)
    """Positions in a block, which is read, shuffled and given out whole (2 GiB a hookpoint at width 2,048): an epoch
    that fits is read once, of a larger one each block is read anew every epoch."""
    buffer_bytes: int | None = Field(default=None, gt=0)
    """Memory of the block for each hookpoint, in place of `buffer_tokens`: 4 bytes × width for each position. It is not
    shared out among the hookpoints: the order of positions would then depend on what else is trained."""
    buffer_on: Literal["cpu", "model"] = "cpu"
    """Where the block lies: in main memory, or on the model's device."""
    spill: Path | None = None
    """Folder for the block instead of memory: a file mapped into memory, so that it may be larger. For fast disks."""
    cache: Path | None = None
    """Folder where all activations are kept on disk (2 or 4 bytes × widths × positions): later epochs and runs on the
    same model and texts never run the model."""
    batch_tokens: int = Field(default=8192, gt=0)
    """Padded tokens in a batch of the model."""
    precision: Precision = "fp32"
    """Number format of the model's pass; the autoencoder learns in float32. "auto": bf16 where the machine is fast."""
    held_out: float = Field(default=0.05, ge=0, lt=1)
    """Share of texts kept for measuring quality, chosen by hash of their pair (or text) id."""
    checkpoint_every: int = Field(default=1000, gt=0)
    """Steps between checkpoints, where training has a folder."""
    log_every: int = Field(default=10, gt=0)
    """Steps between logged ones; the first and the last are always logged. FVU and cosine are measured every tenth."""
    seed: int = Field(default=0, ge=0)
    """Seed of the order and of the held-out texts."""

    def block(self, width: int) -> int:
        """Positions in a block at the model's width, however many hookpoints are read."""
        return self.buffer_tokens if self.buffer_bytes is None else max(1, self.buffer_bytes // (4 * width))


class SAETraining(SAESpec, TrainingConfig):
    """One autoencoder and its stream: what `train_sae` and recipes take. `seed` is that of both."""

    def spec(self) -> SAESpec:
        return SAESpec(**{name: getattr(self, name) for name in SAESpec.model_fields})

    def training(self) -> TrainingConfig:
        return TrainingConfig(**{name: getattr(self, name) for name in TrainingConfig.model_fields})


def make_suite(hookpoints: Sequence[str], variants: Sequence[Mapping[str, Any]]) -> dict[str, SAESpec]:
    """Every variant at every hookpoint: {readable id: what to train}.

    Args:
        hookpoints: where to read.
        variants: fields of `SAESpec`; a field given as a list stands for one autoencoder a value, several lists for
            all combinations. `name` is added to the ids of a variant.

    Returns:
        Ids like `layers.11-topk64-x8`, `layers.17.mlp-jumprelu-s0.01-x10`.

    Raises:
        ConfigError: an unknown field, a value that does not fit, two autoencoders with the same id, none at all.
    """
    suite: dict[str, SAESpec] = {}
    for number, variant in enumerate(variants):
        tag = str(variant.get("name", ""))
        fields = {key: value if isinstance(value, list | tuple) else [value]
                  for key, value in variant.items() if key != "name"}  # fmt: skip
        varied = [key for key, values in fields.items() if len(values) > 1]
        for hookpoint, *values in itertools.product(hookpoints, *fields.values()):
            chosen = {"hookpoint": hookpoint} | dict(zip(fields, values, strict=True))
            spec = _spec(chosen, f"variant {number + 1}")
            sae_id = make_id(spec, varied, tag)
            if sae_id in suite:
                raise ConfigError(f"two autoencoders would be named {sae_id}", where=f"variant {number + 1}",
                                  fix="Give one of the variants a `name`")  # fmt: skip
            suite[sae_id] = spec
    if not suite:
        raise ConfigError("no autoencoder to train", where="suite", fix="Give hookpoints and variants")
    return suite


def _spec(fields: Mapping[str, Any], where: str) -> SAESpec:
    try:
        return SAESpec.model_validate(fields)
    except ValidationError as e:
        raise ConfigError(first_line(e), where=where, fix="Give fields of SAESpec") from e


def make_id(spec: SAESpec, varied: Sequence[str] = (), tag: str = "", hookpoint: str = "") -> str:
    """A readable id; `varied` are fields in which a suite's autoencoders differ."""
    parts = [spec.hookpoint or hookpoint or "default"]
    parts.append(f"{spec.activation}{spec.k if spec.activation in WITH_K else ''}")
    if spec.sparsity and spec.activation not in WITH_K:
        parts.append(f"s{spec.sparsity:g}")
    parts.append(f"d{spec.d_sae}" if spec.d_sae else f"x{spec.expansion:g}")
    said = {"hookpoint", "activation", "k", "sparsity", "d_sae", "expansion"}
    for field in (f for f in varied if f not in said):
        value = getattr(spec, field)
        parts.append(f"{field}{value:g}" if isinstance(value, float) else f"{field}{value}")
    return "-".join([*parts, tag] if tag else parts)


def check_name(name: str, what: str) -> None:
    """Raise `ConfigError` where a name would make no good folder."""
    if not NAME.fullmatch(name):
        raise ConfigError(f"{what} {name!r} cannot name a folder", fix="Use letters, digits, dots, dashes, underscores")
