"""Everything that is measured of a suite of autoencoders, as one typed result."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from seamark.errors import DataError
from seamark.features.gather import gather, public_name
from seamark.features.loss import LossRecovered, losses_recovered
from seamark.features.reward_change import RewardChange, reward_changes
from seamark.features.scan import check_suite
from seamark.features.splice import Replace
from seamark.model.batching import plan_batches
from seamark.model.loading import HookedModel, LanguageModel, RewardModel
from seamark.model.precision import Precision
from seamark.run import progress, versions
from seamark.sae import Quality, SAEConfig, SparseAutoencoder
from seamark.sae.quality import qualities
from seamark.text.pairs import Pairs
from seamark.text.positions import Kind, Rule, Scope, positions
from seamark.text.rendering import Rendered

ModelKind = Literal["language model", "reward model", "model"]


class SAEEvalConfig(BaseModel):
    """How autoencoders are measured."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    positions: Kind = "tokens"
    """Positions at which reconstruction and sparsity are measured; best those the autoencoder was trained on."""
    rule: Rule = "default"
    """How clauses end."""
    scope: Scope = "all"
    """Positions measured, and tokens predicted by a language model: of prompt and response, or of the response only."""
    replace: Replace = "all"
    """Positions at which the model gets the reconstruction; see `splice.Replace`."""
    max_length: int | None = Field(default=None, gt=0)
    """Most tokens of a text, cut at the left; None: what the model can take."""
    batch_tokens: int = Field(default=8192, gt=0)
    """Padded tokens in a batch."""
    precision: Precision = "fp32"
    """Number format of the model's pass."""
    seed: int = 0
    """Seed of the bootstrap."""


class EvaluatedSAE(BaseModel):
    """One autoencoder and what was measured of it."""

    model_config = ConfigDict(frozen=True)

    name: str
    config: SAEConfig
    fingerprint: str
    """SHA-256 of its config and weights."""
    quality: Quality
    loss: LossRecovered | None = None
    """What a language model loses."""
    reward: RewardChange | None = None
    """What a reward model's rewards and rankings become."""
    reasons: dict[str, str] = Field(default_factory=dict)
    """{block that is None: why}."""


class SAEEvaluation(BaseModel):
    """A suite of autoencoders measured on one model and one set of texts: the content of `sae eval`'s result.json."""

    model_config = ConfigDict(frozen=True)

    schema_version: Literal[1] = 1
    model: str
    kind: ModelKind
    config: SAEEvalConfig
    n_texts: int
    truncated_texts: int
    """Texts cut at the left to fit."""
    saes: tuple[EvaluatedSAE, ...]
    versions: dict[str, str]


def evaluate_saes(
    model: HookedModel, suite: Mapping[str, SparseAutoencoder], data: Pairs | Sequence[tuple[str, str]],
    config: SAEEvalConfig | None = None,
) -> SAEEvaluation:  # fmt: skip
    """Measure every autoencoder of a suite: reconstruction and sparsity, and what the model loses through it.

    One pass of the model up to the deepest hookpoint gives the first for all of them. The loss of a language model is
    measured on all texts, the rewards of a reward model on pairs only.

    Args:
        suite: {name: autoencoder}.
        data: preference pairs, of which both answers are read, or (id, text) as `read_texts` gives them.
        config: what to measure; the default is `SAEEvalConfig()`.

    Raises:
        DataError: no texts, no positions in them, or NaN or infinite activations.
        ConfigError: no autoencoder, one without hookpoint, or one whose width is not the model's.
        ModelError: no such hookpoint, a reward that is not finite, or a language model that is not causal.
    """
    config = config or SAEEvalConfig()
    check_suite(model, suite)
    if len(data) == 0:
        raise DataError("no texts to evaluate on", fix="Give texts or pairs")
    texts, prompts, truncated = _render(model, data, config)
    measured = qualities(suite, _activations(model, suite, texts, config))
    shared = config.model_dump(include={"replace", "batch_tokens", "precision", "seed"})
    losses: dict[str, LossRecovered] = {}
    rewards: dict[str, RewardChange] = {}
    if isinstance(model, LanguageModel):
        losses = losses_recovered(model, suite, texts, scope=config.scope, clusters=prompts, **shared)
    elif isinstance(model, RewardModel) and isinstance(data, Pairs):
        rewards = reward_changes(model, suite, data, max_length=config.max_length, **shared)
    reasons = _reasons(model, losses, rewards)
    saes = tuple(
        EvaluatedSAE(name=name, config=sae.config, fingerprint=sae.fingerprint(), quality=measured[name],
                     loss=losses.get(name), reward=rewards.get(name), reasons=reasons)
        for name, sae in suite.items()
    )  # fmt: skip
    return SAEEvaluation(model=public_name(model), kind=_kind(model), config=config, n_texts=len(texts),
                         truncated_texts=truncated, saes=saes, versions=versions())  # fmt: skip


def _kind(model: HookedModel) -> ModelKind:
    if isinstance(model, LanguageModel):
        return "language model"
    return "reward model" if isinstance(model, RewardModel) else "model"


def _render(
    model: HookedModel, data: Pairs | Sequence[tuple[str, str]], config: SAEEvalConfig
) -> tuple[list[Rendered], list[str], int]:
    """Texts, for each its prompt (the unit of resampling), and how many were cut."""
    renderer = model.renderer(config.max_length)
    if isinstance(data, Pairs):
        texts = [side for pair in data for side in renderer.render_pair(pair)]
        prompts = [pair.prompt_key for pair in data for _ in range(2)]
    else:
        texts = [renderer.render_text(text, text_id) for text_id, text in data]
        prompts = [text_id for text_id, _ in data]
    return texts, prompts, renderer.truncated_texts


def _activations(
    model: HookedModel, suite: Mapping[str, SparseAutoencoder], texts: Sequence[Rendered], config: SAEEvalConfig
) -> Iterator[dict[str, Tensor]]:
    """{hookpoint: [n, d_in]} of every batch, at the positions that are measured."""
    chosen = [positions(t, config.positions, config.rule, config.scope) for t in texts]
    kept = [i for i, at in enumerate(chosen) if len(at)]
    if not kept:
        raise DataError("the texts have no positions to read", where=config.positions, fix="Give other texts")
    hookpoints = list(dict.fromkeys(sae.config.hookpoint for sae in suite.values()))
    with progress("Activations", len(kept), "texts") as advance:
        for plan in plan_batches([len(texts[i]) for i in kept], config.batch_tokens):
            rows = [kept[i] for i in plan]
            at = [chosen[row] for row in rows]
            yield gather(model, texts, rows, at, hookpoints, precision=config.precision).activations
            advance(len(rows))


def _reasons(
    model: HookedModel, losses: Mapping[str, LossRecovered], rewards: Mapping[str, RewardChange]
) -> dict[str, str]:
    """Why a block is not there."""
    reasons = {}
    if not losses:
        reasons["loss"] = "the model is no language model"
    if not rewards:
        is_reward = isinstance(model, RewardModel)
        reasons["reward"] = "rewards are compared on pairs" if is_reward else "the model is no reward model"
    return reasons
