"""What a reward model loses when its activations pass through an autoencoder: changed rewards and rankings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from seamark.errors import DataError
from seamark.features.loss import by_hookpoint
from seamark.features.scan import check_suite
from seamark.features.splice import Replace, ablate, check_replaced, mean_activation, splice
from seamark.model.loading import RewardModel
from seamark.model.precision import Precision
from seamark.model.reading import Change, apply_at
from seamark.model.skipping import skipping_below
from seamark.run import progress
from seamark.sae import SparseAutoencoder
from seamark.stats import Estimate, Floats, bootstrap_by_cluster, bootstrap_of_sums, cluster_codes
from seamark.text.pairs import Pairs
from seamark.text.rendering import Rendered

SAME = 1e-12
"""Variance, as a share of the mean square, below which rewards count as all the same."""


class RewardShift(BaseModel):
    """Rewards of a set of pairs, clean and through the autoencoder. Intervals resample prompts."""

    model_config = ConfigDict(frozen=True)

    delta: Estimate
    """Mean of (reward through the autoencoder − clean reward) over both answers of every pair."""
    abs_delta: Estimate
    """Mean |reward through the autoencoder − clean reward|."""
    clean_std: float
    """Standard deviation of the clean rewards: the measure for `delta` and `abs_delta`."""
    correlation: Estimate
    """Pearson correlation of clean and spliced rewards. Not available where either are constant."""
    margin_correlation: Estimate
    """The same of margins r(chosen) − r(rejected)."""
    accuracy_clean: Estimate
    """Share of pairs whose chosen answer the clean model rewards more; a tie counts one half."""
    accuracy_sae: Estimate
    """The same through the autoencoder."""
    accuracy_change: Estimate
    """`accuracy_sae` − `accuracy_clean`, pair by pair."""
    accuracy_mean: Estimate
    """Baseline: the accuracy with the activations replaced by their mean."""
    reranked: Estimate
    """Share of pairs that the autoencoder ranks otherwise than the clean model."""
    n_pairs: int


class RewardChange(BaseModel):
    """What the rewards of a model become with an autoencoder in its path, over all pairs and by group."""

    model_config = ConfigDict(frozen=True)

    hookpoint: str
    """Where activations are replaced."""
    overall: RewardShift
    groups: dict[str, RewardShift]
    n_replaced: int
    """Positions replaced."""
    truncated_texts: int
    """Texts cut at the left to fit."""


def reward_change(
    model: RewardModel, sae: SparseAutoencoder, pairs: Pairs, *, max_length: int | None = None,
    replace: Replace = "all", batch_tokens: int = 8192, precision: Precision = "fp32", seed: int = 0,
) -> RewardChange:  # fmt: skip
    """Rewards of both answers of every pair, clean and through one autoencoder. Arguments as `reward_changes`."""
    return reward_changes(
        model, {"sae": sae}, pairs, max_length=max_length, replace=replace, batch_tokens=batch_tokens,
        precision=precision, seed=seed,
    )["sae"]  # fmt: skip


def reward_changes(
    model: RewardModel, suite: Mapping[str, SparseAutoencoder], pairs: Pairs, *, max_length: int | None = None,
    replace: Replace = "all", batch_tokens: int = 8192, precision: Precision = "fp32", seed: int = 0,
) -> dict[str, RewardChange]:  # fmt: skip
    """Rewards of both answers of every pair, clean and through each of several autoencoders alone.

    Texts run once through the blocks below a hookpoint (their output is held in memory: one activation a token), then
    through those above it for the clean model, the mean ablation and each autoencoder there.

    Args:
        suite: {name: autoencoder}; each is spliced in at its own hookpoint.
        pairs: labelled pairs.
        max_length: most tokens of a text, as in training; None: what the model can take.
        replace: positions replaced, see `splice.Replace`.
        batch_tokens: padded tokens in a batch of the model.
        precision: number format of the model's pass.

    Raises:
        DataError: no pairs, or nothing to replace.
        ConfigError: an autoencoder without hookpoint or of another width than the model's.
        ModelError: no such hookpoint, or a reward that is not finite.
    """
    check_suite(model, suite)
    if len(pairs) == 0:
        raise DataError("no pairs to reward", where="reward_change", fix="Check the files given as pairs")
    renderer = model.renderer(max_length)
    texts = [side for pair in pairs for side in renderer.render_pair(pair)]
    n_replaced = check_replaced(texts, replace)
    reader = _Reader(model, texts, batch_tokens, precision)
    out: dict[str, RewardChange] = {}
    for hookpoint, members in by_hookpoint(suite).items():
        with (
            skipping_below(model, hookpoint, texts, precision=precision, batch_tokens=batch_tokens),
            progress(f"Rewards through {hookpoint}", len(members), "SAEs") as advance,
        ):
            mean_D = mean_activation(model, hookpoint, texts, replace, batch_tokens=batch_tokens, precision=precision)
            clean, ablated = reader.read({}), reader.read({hookpoint: ablate(mean_D, texts, replace)})
            for name, sae in members.items():
                through = reader.read({hookpoint: splice(sae, texts, replace)})
                overall, groups = _by_group(pairs, _Rewards(clean, through, ablated), seed)
                out[name] = RewardChange(hookpoint=hookpoint, overall=overall, groups=groups, n_replaced=n_replaced,
                                         truncated_texts=renderer.truncated_texts)  # fmt: skip
                advance(1)
    return {name: out[name] for name in suite}


@dataclass(frozen=True)
class _Reader:
    """Reads rewards of the same texts again and again."""

    model: RewardModel
    texts: list[Rendered]
    batch_tokens: int
    precision: Precision

    def read(self, changes: Mapping[str, Change]) -> Floats:
        """Rewards [pairs, 2]: chosen, rejected."""
        with apply_at(self.model, changes):
            return self.model.rewards(self.texts, self.batch_tokens, precision=self.precision).reshape(-1, 2)


@dataclass(frozen=True)
class _Rewards:
    """Rewards [pairs, 2] of the clean model, through the autoencoder, and with the mean in place of activations."""

    clean: Floats
    through: Floats
    ablated: Floats

    def at(self, rows: NDArray[np.bool_]) -> _Rewards:
        return _Rewards(self.clean[rows], self.through[rows], self.ablated[rows])


def _by_group(pairs: Pairs, rewards: _Rewards, seed: int) -> tuple[RewardShift, dict[str, RewardShift]]:
    of_group = np.asarray([p.group for p in pairs])
    prompts = cluster_codes([p.prompt_key for p in pairs])
    groups = {g: _shift(rewards.at(of_group == g), prompts[of_group == g], seed) for g in pairs.groups}
    return _shift(rewards, prompts, seed), groups


def _shift(rewards: _Rewards, prompts: NDArray[np.int64], seed: int) -> RewardShift:
    delta = rewards.through - rewards.clean
    margins = {name: r[:, 0] - r[:, 1] for name, r in vars(rewards).items()}
    wins = {name: (np.sign(m) + 1.0) / 2.0 for name, m in margins.items()}

    def mean(values: Floats) -> Estimate:
        return bootstrap_by_cluster(values, prompts, seed=seed)

    return RewardShift(
        delta=mean(delta.mean(1)), abs_delta=mean(np.abs(delta).mean(1)), clean_std=float(rewards.clean.std()),
        correlation=_correlation(rewards.clean.ravel(), rewards.through.ravel(), prompts.repeat(2), "rewards", seed),
        margin_correlation=_correlation(margins["clean"], margins["through"], prompts, "margins", seed),
        accuracy_clean=mean(wins["clean"]), accuracy_sae=mean(wins["through"]),
        accuracy_change=mean(wins["through"] - wins["clean"]), accuracy_mean=mean(wins["ablated"]),
        reranked=mean((wins["through"] != wins["clean"]).astype(np.float64)), n_pairs=len(delta),
    )  # fmt: skip


def _correlation(x: Floats, y: Floats, clusters: NDArray[np.int64], what: str, seed: int) -> Estimate:
    """Pearson correlation, not available where one side is constant."""

    def constant(power: float, variance: float) -> bool:
        return variance <= SAME * power

    for name, side in (("clean", x), ("spliced", y)):
        if constant(float(np.square(side).mean()), float(side.var())):
            return Estimate.not_available(f"the {name} {what} are all the same", len(x))
    x, y = (x - x.mean()) / x.std(), (y - y.mean()) / y.std()

    def pearson(s: Floats) -> float | None:
        mx, my, xx, yy, xy = s[1:] / s[0]
        vx, vy = xx - mx * mx, yy - my * my
        return float((xy - mx * my) / np.sqrt(vx * vy)) if vx > SAME and vy > SAME else None

    return bootstrap_of_sums(pearson, np.stack([np.ones_like(x), x, y, x * x, y * y, x * y]), clusters, seed=seed)
