"""Do the features of one group also work elsewhere? Their activations in a group's texts beside another group's."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict
from scipy.stats import rankdata

from seamark.audit.fits import correlation
from seamark.errors import ConfigError, DataError
from seamark.features.reading import Scan
from seamark.features.sets import Feature, FeatureSet
from seamark.stats import Estimate, Floats, bootstrap_of_sums, cluster_codes

LEAST = 5
"""Features that a correlation over features needs."""


class _Value(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class FeatureOverlap(_Value):
    """One feature in both groups of texts. Activations are means over a text's scoring positions, then over texts."""

    sae: str
    latent: int
    sign: int
    rate_group: float
    """Share of the group's texts in which it fires, 0-1."""
    rate_other: float
    mean_group: float
    """Mean activation."""
    mean_other: float
    outside: float | None
    """Share of its activation that lies outside the group, both groups weighing the same: mean_other / (mean_group +
    mean_other). One half: it knows no difference. None: it fires in neither."""


class Overlap(_Value):
    """How far a feature set that was found on one group also fires on another."""

    group: str
    other: str
    n_group: int
    """Texts with scoring positions."""
    n_other: int
    correlation: Estimate
    """Pearson correlation over the set's features of their mean activations in the two groups; the interval resamples
    features. Near 1: what is strong in one group is strong in the other."""
    rank_correlation: Estimate
    """The same of ranks (Spearman), which a few strong features do not decide."""
    all_latents: Estimate
    """The rank correlation over all latents that fire in either group: what is usual in these autoencoders."""
    outside: Estimate
    """Share of the whole set's activation that lies outside the group (see `FeatureOverlap.outside`); the interval
    resamples prompts."""
    features: tuple[FeatureOverlap, ...]
    """In the set's order."""


@dataclass
class _Sums:
    """Of one autoencoder, by latent [2, d_sae] for the two groups."""

    total: Floats
    fired: Floats


def overlap(
    scan: Scan, features: FeatureSet, group: str = "safety", other: str = "chat", *, draws: int = 1000, seed: int = 0
) -> Overlap:
    """Compare the activations of a feature set in two groups of texts, both answers of pairs alike.

    Reads the scan part by part: memory is that of one part and a few numbers for each latent and text.

    Raises:
        ConfigError: no features, or twice the same group.
        DataError: an unknown group or latent, or a group without scoring positions.
    """
    if not features.features:
        raise ConfigError("the feature set is empty", where="overlap", fix="Select features first")
    if group == other:
        raise ConfigError(f"the group {group!r} is compared with itself", where="overlap", fix="Name two groups")
    heard = scan.n_positions > 0
    masks = [scan.in_group(name) & heard for name in (group, other)]
    n = [int(mask.sum()) for mask in masks]
    for name, count in zip((group, other), n, strict=True):
        if count == 0:
            raise DataError(f"no text of group {name!r} has a scoring position", where=str(scan.path))
    mass = np.zeros(len(heard))
    sums: dict[str, _Sums] = {}
    for sae_id in dict.fromkeys(f.sae for f in features.features):
        sums[sae_id] = _read(scan, sae_id, masks, features.latents(sae_id), mass)
    rows = tuple(_row(f, sums[f.sae], n) for f in features.features)
    inside, outside = (np.asarray([getattr(r, name) for r in rows]) for name in ("mean_group", "mean_other"))
    live = np.concatenate([s.total[:, s.fired.sum(axis=0) > 0] / np.asarray(n)[:, None] for s in sums.values()], axis=1)
    prompts = cluster_codes(scan.texts["prompt"].to_pylist())
    return Overlap(
        group=group, other=other, n_group=n[0], n_other=n[1], features=rows,
        correlation=_over_features(inside, outside, draws, seed),
        rank_correlation=_over_features(rankdata(inside), rankdata(outside), draws, seed),
        all_latents=_over_features(rankdata(live[0]), rankdata(live[1]), draws, seed),
        outside=_outside(mass, masks, prompts, draws, seed),
    )  # fmt: skip


def _read(scan: Scan, sae_id: str, masks: list[NDArray[np.bool_]], latents: list[int], mass: Floats) -> _Sums:
    """Sums by latent and group; adds the activation of `latents` in each text to `mass` [texts]."""
    for latent in latents:
        scan.check_latent(sae_id, latent)
    weights = np.zeros(scan.d_sae(sae_id))
    weights[latents] = 1.0
    found = _Sums(np.zeros((2, len(weights))), np.zeros((2, len(weights))))
    for start, part in scan.pooled_parts(sae_id, "mean"):
        here = slice(start, start + part.shape[0])
        mass[here] += part @ weights
        for i, mask in enumerate(masks):
            texts = part[mask[here]]
            found.total[i] += np.asarray(texts.sum(axis=0)).ravel()
            found.fired[i] += texts.getnnz(axis=0)
    return found


def _row(feature: Feature, sums: _Sums, n: list[int]) -> FeatureOverlap:
    means = [float(sums.total[i, feature.latent]) / n[i] for i in (0, 1)]
    rates = [float(sums.fired[i, feature.latent]) / n[i] for i in (0, 1)]
    return FeatureOverlap(
        sae=feature.sae, latent=feature.latent, sign=feature.sign, rate_group=rates[0], rate_other=rates[1],
        mean_group=means[0], mean_other=means[1], outside=means[1] / sum(means) if sum(means) > 0 else None,
    )  # fmt: skip


def _over_features(inside: Floats, outside: Floats, draws: int, seed: int) -> Estimate:
    if len(inside) < LEAST:
        return Estimate.not_available(f"{len(inside)} features; {LEAST} are needed", len(inside))
    return correlation(inside, outside, np.arange(len(inside)), ("the activation in the group",
                       "the activation in the other group"), draws=draws, seed=seed)  # fmt: skip


def _outside(
    mass: Floats, masks: list[NDArray[np.bool_]], prompts: NDArray[np.int64], draws: int, seed: int
) -> Estimate:
    def share(sums: Floats) -> float | None:
        if sums[1] == 0 or sums[3] == 0:
            return None
        inside, outside = sums[0] / sums[1], sums[2] / sums[3]
        return float(outside / (inside + outside)) if inside + outside > 0 else None

    def lines() -> Iterator[Floats]:
        for mask in masks:
            yield mass * mask
            yield mask.astype(np.float64)

    mine = masks[0] | masks[1]
    return bootstrap_of_sums(share, np.stack(list(lines()))[:, mine], prompts[mine], draws=draws, seed=seed,
                             undefined="the features fire in neither group")  # fmt: skip
