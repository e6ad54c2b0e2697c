"""Which autoencoder of a suite to explain: a ranking by concept metrics, and how far the pairs at hand decide it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from seamark.features.concept_bootstrap import Mean, resampled
from seamark.features.concepts import ConceptMetrics, SAEConcepts
from seamark.stats import Estimate

Floats = NDArray[np.float64]


class HasQuality(Protocol):
    """What is read of a quality: `seamark.sae.Quality` and the qualities of an `SAEEvaluation` have it."""

    @property
    def fvu(self) -> float | None:
        """Fraction of variance unexplained; None: not available."""

    @property
    def l0(self) -> float:
        """Mean number of active latents."""


class RankedSAE(BaseModel):
    """One autoencoder's place."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    rank: int
    """By `difference`, from 1; equal values share the better place."""
    rank_i_cdf: int
    """By `i_cdf` alone."""
    sae: str
    hookpoint: str
    activation: str
    k: int | None
    d_sae: int
    l0: float
    """Mean number of latents that fire at a content token of the contrast pairs."""
    fvu: float | None
    """Fraction of variance unexplained, measured elsewhere; None: not known."""
    quality_l0: float | None
    """L0 on the texts of `fvu`; None: not known."""
    i_cdf: Estimate
    null: Estimate
    difference: Estimate


class SuiteRanking(BaseModel):
    """A suite by rank, best first.

    The order is that of I_CDF − null, means over concepts: the denser an autoencoder, the more of its latents fire on
    one side of a pair by chance, and that chance is what the swapped pairs count. `rank_i_cdf` is the plain order.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    rows: tuple[RankedSAE, ...]
    kendall_tau: Estimate
    """Kendall's τ-b between this order and that of each bootstrap draw: the mean over draws, and their 95 % range."""
    top_stays: Estimate
    """Share of draws in which no other autoencoder beats the first."""
    draws: int


def rank_suite(metrics: ConceptMetrics, quality: Mapping[str, HasQuality] | None = None) -> SuiteRanking:
    """Rank a suite by its concept metrics, and say how stable the ranking is.

    Stability: pairs are resampled within concepts, the same ones for all autoencoders, as for the intervals of the
    metrics.

    Args:
        metrics: of at least one autoencoder.
        quality: {sae id: what has `fvu` and `l0`}, such as `quality(…)` or `evaluate_saes(…)` give; others are ignored.
    """
    values = np.asarray([s.overall.difference.value for s in metrics.saes], np.float64)
    plain = np.asarray([s.overall.i_cdf.value for s in metrics.saes], np.float64)
    rows = [
        _row(sae, 1 + int((values > values[i]).sum()), 1 + int((plain > plain[i]).sum()), (quality or {}).get(sae.sae))
        for i, sae in enumerate(metrics.saes)
    ]
    tau, top = _stability(metrics, values)
    return SuiteRanking(rows=tuple(sorted(rows, key=lambda r: r.rank)), kendall_tau=tau, top_stays=top,
                        draws=metrics.draws)  # fmt: skip


def _row(sae: SAEConcepts, rank: int, rank_i_cdf: int, quality: HasQuality | None) -> RankedSAE:
    return RankedSAE(
        rank=rank, rank_i_cdf=rank_i_cdf, sae=sae.sae, hookpoint=sae.hookpoint, activation=sae.activation, k=sae.k,
        d_sae=sae.d_sae, l0=sae.l0, fvu=quality.fvu if quality is not None else None,
        quality_l0=quality.l0 if quality is not None else None, i_cdf=sae.overall.i_cdf, null=sae.overall.null,
        difference=sae.overall.difference,
    )  # fmt: skip


def _stability(metrics: ConceptMetrics, values: Floats) -> tuple[Estimate, Estimate]:
    """(Kendall's τ, share of draws in which the first stays first), or why they are not available."""
    n = len(metrics.saes)
    if n < 2:
        return (Estimate.not_available("a suite of one autoencoder has no order", n),) * 2
    mean = Mean()
    keys = [(p.domain, p.concept) for p in metrics.pairs]
    hits = np.asarray([sae.hits for sae in metrics.saes], np.float64)  # [SAEs, pairs, 2]
    difference = (hits[:, :, 0] - hits[:, :, 1]).T / np.asarray([sae.d_sae for sae in metrics.saes])
    ids = [p.id for p in metrics.pairs]
    for key, value, drawn in resampled(difference, keys, ids, draws=metrics.draws, seed=metrics.seed):
        mean.add(key, keys.count(key), value, drawn)
    if mean.no_interval:
        return (Estimate.not_available(mean.no_interval.replace("no interval", "nothing to resample"), n),) * 2
    first = np.flatnonzero(values == values.max())
    stays = (mean.drawn.max(1, keepdims=True) <= mean.drawn[:, first]).any(1)
    top = Estimate(value=float(stays.mean()), n=metrics.draws)
    if len(first) > 1:
        top = Estimate.not_available(f"{len(first)} autoencoders share the first place", n)
    return _kendall(values, mean.drawn), top


def _kendall(values: Floats, drawn: Floats) -> Estimate:
    """Kendall's τ-b of `values` [n] with each of `drawn` [draws, n]; draws in which all are equal are left out."""
    one, other = np.triu_indices(len(values), 1)
    order = np.sign(values[one] - values[other])
    orders = np.sign(drawn[:, one] - drawn[:, other])
    scale = np.sqrt((order != 0).sum() * (orders != 0).sum(1).astype(np.float64))
    if (scale == 0).all():
        return Estimate.not_available("all autoencoders score the same", len(values))
    tau = (orders @ order)[scale > 0] / scale[scale > 0]
    low, high = np.quantile(tau, [0.025, 0.975])
    return Estimate(value=float(tau.mean()), low=float(low), high=float(high), n=len(values))
