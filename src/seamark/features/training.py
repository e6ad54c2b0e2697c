"""Train an autoencoder on a model's activations, in stages, and measure it on texts it has not seen."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from seamark.errors import ConfigError, DataError
from seamark.features.activations import ActivationStream
from seamark.features.gather import public_name
from seamark.model.loading import HookedModel
from seamark.model.precision import Precision
from seamark.run import progress
from seamark.sae import FitConfig, FitLog, Quality, SAEConfig, SparseAutoencoder, fit, quality, sae_config
from seamark.text.pairs import hash_unit
from seamark.text.positions import positions
from seamark.text.rendering import Rendered


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


class SAETraining(BaseModel):
    """What is trained, and how activations reach it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    hookpoint: str | None = None
    """Where to read; None: the model's block output at ¾ depth."""
    d_sae: int | None = Field(default=None, gt=0)
    """Number of latents; None: 8 × the hookpoint's width, as in SAFER."""
    k: int = Field(default=64, gt=0)
    """Latents kept at each position."""
    normalize: Literal["layer_norm", "none"] = "layer_norm"
    """As in `SAEConfig`."""
    buffer_tokens: int = Field(default=1 << 18, gt=0)
    """Positions held in memory (2 GiB at width 2,048): an epoch that fits is read once, a larger one every epoch."""
    batch_tokens: int = Field(default=8192, gt=0)
    """Padded tokens in a batch of the model."""
    precision: Precision = "fp32"
    """Number format of the model's pass; the autoencoder learns in float32. "auto": bf16 where the machine is fast."""
    held_out: float = Field(default=0.05, ge=0, lt=1)
    """Share of texts kept for measuring quality, chosen by hash of their pair (or text) id."""
    clip: float | None = Field(default=1.0, gt=0)
    """Largest gradient norm; None: no limit."""
    decoder_norm_every: int = Field(default=10, gt=0)
    """Steps between bringing the decoder to unit norm."""
    seed: int = 0
    """Seed of weights, order and held-out texts."""


@dataclass(frozen=True)
class TrainedSAE:
    """A trained autoencoder with its measurements."""

    sae: SparseAutoencoder
    quality: Quality | None
    """On held-out texts, at the last stage's positions; None: no text could be held out."""
    stages: tuple[dict[str, Any], ...]
    """For each stage: name, positions seen, first and last loss, held-out quality."""
    log: tuple[FitLog, ...]


def train_sae(
    model: HookedModel,
    texts: Sequence[Rendered] | Mapping[str, Sequence[Rendered]],
    config: SAETraining | None = None,
    stages: Sequence[StageConfig] = PAPER_STAGES,
) -> TrainedSAE:
    """Train one autoencoder, stage after stage, each starting from the weights of the one before.

    Args:
        model: the model whose activations are learnt; it runs no further than the hookpoint.
        texts: the texts of every stage, or {stage name: texts}.
        config: what to train.
        stages: SAFER's two (arXiv 2507.00665) unless given.

    Raises:
        DataError: no texts or no positions; NaN or infinite activations (naming hookpoint and text or step).
        ConfigError: k > d_sae, no stage, a stage without texts.
        ModelError: no such hookpoint.
    """
    config = config or SAETraining()
    hookpoint = config.hookpoint or model.default_hookpoint
    d_in = model.d_model(hookpoint)
    what = sae_config(d_in=d_in, d_sae=config.d_sae or 8 * d_in, k=config.k, normalize=config.normalize,
                      model=public_name(model), hookpoint=hookpoint)  # fmt: skip
    if not stages:
        raise ConfigError("no stage to train", where="train_sae")
    sae: SparseAutoencoder | None = None
    measured: Quality | None = None
    reports: list[dict[str, Any]] = []
    log: list[FitLog] = []
    for i, stage in enumerate(stages):
        train, held_out = _split(_texts_of(texts, stage), config)
        stream = _stream(model, train, stage, config, hookpoint, epochs=stage.epochs, seed=config.seed + i)
        if stream.total == 0:
            raise DataError("the texts have no positions to read", where=f"stage {stage.name}", fix="Give other texts")
        losses: list[FitLog] = []
        sae = _run_stage(stream, what, stage, config, sae, losses)
        check = _stream(model, held_out, stage, config, hookpoint, epochs=1, seed=0)
        measured = quality(sae, check) if check.total else None
        log += losses
        reports.append({
            "name": stage.name, "positions": stream.total, "first_loss": losses[0].loss, "last_loss": losses[-1].loss,
            "quality": measured.model_dump() if measured else None,
        })  # fmt: skip
    if sae is None:
        raise ConfigError("no stage to train", where="train_sae")
    return TrainedSAE(sae, measured, tuple(reports), tuple(log))


def _texts_of(texts: Sequence[Rendered] | Mapping[str, Sequence[Rendered]], stage: StageConfig) -> Sequence[Rendered]:
    mine = texts.get(stage.name, ()) if isinstance(texts, Mapping) else texts
    if not mine:
        raise DataError("no texts to train on", where=f"stage {stage.name}", fix="Give texts for every stage")
    return mine


def _split(texts: Sequence[Rendered], config: SAETraining) -> tuple[list[Rendered], list[Rendered]]:
    """(train, held out), both sides of a pair together; at least one text is held out where there are two pairs."""
    place = {t.text_id: hash_unit(_unit(t), config.seed) for t in texts}
    limit = config.held_out
    if limit > 0 and len(set(place.values())) > 1:
        limit = max(limit, min(place.values()) + 1e-12)
    return [t for t in texts if place[t.text_id] >= limit], [t for t in texts if place[t.text_id] < limit]


def _unit(text: Rendered) -> str:
    pair, _, side = text.text_id.rpartition(":")
    return pair if side in ("chosen", "rejected") else text.text_id


def _stream(
    model: HookedModel, texts: Sequence[Rendered], stage: StageConfig, config: SAETraining, hookpoint: str, *,
    epochs: int, seed: int,
) -> ActivationStream:  # fmt: skip
    chosen = [positions(t, stage.positions, stage.rule, stage.scope) for t in texts]
    return ActivationStream(
        model, texts, chosen, hookpoint, epochs=epochs, batch_tokens=config.batch_tokens,
        buffer_tokens=config.buffer_tokens, seed=seed, precision=config.precision,
    )  # fmt: skip


def _run_stage(
    stream: ActivationStream, what: SAEConfig, stage: StageConfig, config: SAETraining,
    start: SparseAutoencoder | None, log: list[FitLog],
) -> SparseAutoencoder:  # fmt: skip
    how = FitConfig(
        lr=stage.lr, batch_size=stage.batch_size, warmup_share=stage.warmup_share, decay_share=stage.decay_share,
        decoder_norm_every=config.decoder_norm_every, clip=config.clip, seed=config.seed,
    )  # fmt: skip
    stream.load(f"SAE, stage {stage.name}: read activations")
    init = {stage.name: start} if start is not None else None
    with progress(f"SAE, stage {stage.name}", stream.total, "positions") as advance:

        def watched(chunks: Iterable[Tensor]) -> Iterator[Tensor]:
            for chunk in chunks:
                yield chunk
                advance(len(chunk))

        device = stream.model.device
        trained = fit(watched(stream), {stage.name: (what, how)}, positions=stream.total, init=init, device=device,
                      log=log.append)  # fmt: skip
    return trained[stage.name]
