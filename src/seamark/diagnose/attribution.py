"""Firings of chosen latents in texts, and what each is worth by the gradient: one pass forward and one back for all.

Attribution: what the reward would lose, to first order, if a latent did not fire: ∂reward/∂h · (h − h without it),
summed over the positions at which it fires. It is exact where the rest of the model is linear, and an estimate
elsewhere: reward-lens (arXiv 2604.26130) found Spearman −0.26 between attribution and patching. So it is never shown
without its rank correlation with the exact effect (`rank_agreement`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import rankdata
from torch import Tensor

from seamark.diagnose.steering import Suite
from seamark.errors import DataError, ModelError
from seamark.features.moving import firings_of
from seamark.model.batching import collate, plan_batches
from seamark.model.gradients import reward_gradients
from seamark.model.loading import RewardModel
from seamark.run import progress
from seamark.sae import SparseAutoencoder
from seamark.stats import Estimate
from seamark.text.rendering import Rendered

Floats = NDArray[np.float64]
Key = tuple[str, int]
"""(sae id, latent)."""
Tokens = Literal["response", "prompt", "all"]


@dataclass(frozen=True, eq=False)
class Fired:
    """Where one latent fires in all texts, arrays [firings], ordered by text."""

    row: NDArray[np.int64]
    """Which text."""
    position: NDArray[np.int64]
    """Which of its tokens."""
    size: Tensor
    """z in the hookpoint's units (times the position's own std where the autoencoder normalises), float32."""

    def at(self, row: int) -> tuple[NDArray[np.int64], Tensor]:
        """(positions, sizes) in one text."""
        start, end = np.searchsorted(self.row, [row, row + 1])
        return self.position[start:end], self.size[start:end]

    @property
    def rows(self) -> NDArray[np.int64]:
        """The texts in which it fires, each once."""
        return np.unique(self.row)


@dataclass(frozen=True, eq=False)
class Recorded:
    """What one pass over all texts gave."""

    rewards: Floats
    """[texts]."""
    fired: Mapping[Key, Fired]
    attribution: Mapping[Key, Floats]
    """By latent [texts]: what its firing adds to the reward, to first order. 0 where it does not fire."""
    positions: tuple[NDArray[np.int64], ...]
    """Of each text: the tokens at which latents are looked at."""
    scale: Mapping[str, tuple[Tensor, ...]]
    """By autoencoder, for each text [positions]: what one unit of z is in the hookpoint's units."""


def record(
    model: RewardModel, suite: Suite, latents: Mapping[str, Sequence[int]], texts: Sequence[Rendered], *,
    where: Tokens = "response", batch_tokens: int = 8192,
) -> Recorded:  # fmt: skip
    """Read texts once, forward and back.

    Args:
        model: the reward model.
        suite: {sae id: autoencoder}.
        latents: {sae id: which latents}.
        where: at which tokens latents count.

    Raises:
        DataError: no text has such a token; a gradient that is not finite.
        ModelError: no such hookpoint; a reward that is not finite.
    """
    positions = tuple(np.arange(*_span(t, where)) for t in texts)
    if not any(len(p) for p in positions):
        raise DataError(f"no text has a token of the {where}", where="attribution", fix="Check the pairs")
    out = _Recorder(texts, suite, latents, positions)
    hookpoints = [suite[sae_id].config.hookpoint for sae_id in latents]
    plans = plan_batches([len(t) for t in texts], batch_tokens)
    with progress("Attribution", len(texts), "texts") as advance:
        for plan in plans:
            batch = collate(texts, int(model.config.pad_token_id), rows=plan)
            graded = reward_gradients(model, batch, hookpoints)
            out.rewards[plan] = graded.rewards.double().cpu().numpy()
            at_B = np.repeat(np.arange(len(plan)), [len(positions[row]) for row in plan])
            at_T = np.concatenate([positions[row] for row in plan])
            for sae_id in latents:
                place = suite[sae_id].config.hookpoint
                h_ND, g_ND = (x[at_B, at_T].float() for x in (graded.activations[place], graded.gradients[place]))
                out.add(sae_id, plan, (np.asarray(plan)[at_B], at_T), h_ND, g_ND)
            advance(len(plan))
    return out.done(model.name)


def _span(text: Rendered, where: Tokens) -> tuple[int, int]:
    if where == "all":
        return 0, len(text)
    return text.response_span if where == "response" else text.prompt_span


class _Recorder:
    def __init__(
        self, texts: Sequence[Rendered], suite: Suite, latents: Mapping[str, Sequence[int]],
        positions: tuple[NDArray[np.int64], ...],
    ) -> None:  # fmt: skip
        self.texts, self.suite, self.latents, self.positions = texts, suite, latents, positions
        self.rewards = np.full(len(texts), np.nan)
        self._worth = {sae_id: np.zeros((len(texts), len(some))) for sae_id, some in latents.items()}
        self._scale: dict[str, list[Tensor]] = {sae_id: [torch.empty(0)] * len(texts) for sae_id in latents}
        self._entries: dict[str, list[tuple[NDArray[np.int64], ...]]] = {sae_id: [] for sae_id in latents}
        self._sizes: dict[str, list[Tensor]] = {sae_id: [] for sae_id in latents}

    def add(
        self, sae_id: str, plan: Sequence[int], at: tuple[NDArray[np.int64], NDArray[np.int64]], h_ND: Tensor,
        g_ND: Tensor,
    ) -> None:  # fmt: skip
        """One batch: the positions `at` (text, token) with their activations and gradients."""
        sae, some = self.suite[sae_id], list(self.latents[sae_id])
        weight = sae.W_dec.detach()
        h_ND, g_ND = h_ND.to(weight.device, weight.dtype), g_ND.to(weight.device, weight.dtype)
        if not bool(torch.isfinite(g_ND).all()):
            raise DataError("a gradient of the reward is not finite", where=sae.config.hookpoint,
                            fix="Load the model in float32")  # fmt: skip
        scale_N = units_in(sae, h_ND)
        size_NF = firings_of(sae, some, h_ND) * scale_N[:, None]
        worth_NF = (size_NF * (g_ND @ weight[some].T)).double().cpu().numpy()
        np.add.at(self._worth[sae_id], at[0], worth_NF)
        n, column = (index.cpu().numpy() for index in size_NF.nonzero(as_tuple=True))
        self._entries[sae_id].append((column, at[0][n], at[1][n]))
        self._sizes[sae_id].append(size_NF[size_NF != 0].float().cpu())
        for row, part in zip(plan, scale_N.float().cpu().split([len(self.positions[r]) for r in plan]), strict=True):
            self._scale[sae_id][row] = part

    def done(self, name: str) -> Recorded:
        bad = np.flatnonzero(~np.isfinite(self.rewards))
        if bad.size:
            raise ModelError(f"{bad.size} of {len(self.rewards)} rewards are not finite, the first for text "
                             f"{self.texts[bad[0]].text_id}", where=name)  # fmt: skip
        fired, worth = {}, {}
        for sae_id, some in self.latents.items():
            column, row, position = (np.concatenate(parts) for parts in zip(*self._entries[sae_id], strict=True))
            order = np.lexsort((position, row, column))
            column, row, position = column[order], row[order], position[order]
            size = torch.cat(self._sizes[sae_id])[torch.from_numpy(order)]
            bounds = np.searchsorted(column, np.arange(len(some) + 1))
            for i, latent in enumerate(some):
                mine = slice(bounds[i], bounds[i + 1])
                fired[sae_id, latent] = Fired(row[mine], position[mine], size[mine])
                worth[sae_id, latent] = self._worth[sae_id][:, i]
        scale = {sae_id: tuple(parts) for sae_id, parts in self._scale.items()}
        return Recorded(self.rewards, fired, worth, self.positions, scale)


def units_in(sae: SparseAutoencoder, h_ND: Tensor) -> Tensor:
    """What one unit of z is in the hookpoint's units at each position, [n]."""
    if sae.config.normalize == "layer_norm":
        scale_N: Tensor = h_ND.std(-1) + sae.config.eps
        return scale_N
    return h_ND.new_ones(len(h_ND))


def rank_agreement(
    attribution: Floats, ablation: Floats, clusters: NDArray[np.int64], *, floor: float = 0.0, draws: int = 1000,
    seed: int = 0,
) -> Estimate:  # fmt: skip
    """Spearman's correlation, over features, of mean attribution with mean exact effect.

    The interval resamples features and prompts together. Features of which both are 0 are left out: they agree on
    nothing but their silence.

    Args:
        attribution, ablation: [pairs, features].
        clusters: [pairs], the prompt of each.
        floor: means up to this size are rounding and count as 0.
    """
    codes = np.unique(clusters, return_inverse=True)[1]
    n_prompts = int(codes.max()) + 1
    sizes = np.bincount(codes, minlength=n_prompts)
    live = (np.abs(attribution.mean(0)) > floor) | (np.abs(ablation.mean(0)) > floor)
    n = int(live.sum())
    if n < 3:
        return Estimate.not_available(f"{n} features have an effect here, too few to rank", n)
    sums = [_by_prompt(x[:, live], codes, n_prompts) for x in (attribution, ablation)]

    def correlation(times: NDArray[np.int64], some: NDArray[np.int64]) -> float:
        means = [times @ side[:, some] / (times @ sizes) for side in sums]
        return spearman(*(np.where(np.abs(m) > floor, m, 0.0) for m in means))

    value = correlation(np.ones(n_prompts, np.int64), np.arange(n))
    if not np.isfinite(value):
        return Estimate.not_available("all effects are the same", n)
    if n_prompts == 1:
        return Estimate(value=value, n=n, reason="no interval: all pairs belong to one prompt")
    rng = np.random.default_rng(seed)
    drawn = np.asarray([
        correlation(np.bincount(rng.integers(0, n_prompts, n_prompts), minlength=n_prompts), rng.integers(0, n, n))
        for _ in range(draws)
    ])  # fmt: skip
    kept = drawn[np.isfinite(drawn)]
    if len(kept) < draws / 2:
        return Estimate(value=value, n=n, reason="interval undefined: too few valid resamples")
    low, high = np.quantile(kept, [0.025, 0.975])
    return Estimate(value=value, low=float(low), high=float(high), n=n)


def spearman(x: Floats, y: Floats) -> float:
    """Rank correlation, ties by their mean rank; NaN where either is constant."""
    a, b = (rankdata(v) - (len(v) + 1) / 2 for v in (x, y))
    power = float(np.sqrt((a @ a) * (b @ b)))
    return float(a @ b) / power if power > 0 else float("nan")


def _by_prompt(values: Floats, codes: NDArray[np.int64], n: int) -> Floats:
    """Sums over each prompt's rows, [prompts, columns]."""
    out = np.zeros((n, values.shape[1]))
    np.add.at(out, codes, values)
    return out
