"""Safety ratings 1-5 of features without a language model: how far a feature tells safety texts from other texts.

SAFER (arXiv 2507.00665) lets an LLM read a feature's top contexts and rate how safety-related it is, 5 being strongly
and 1 not at all. This rater asks the numbers instead: does the feature fire on answers in the safety group and stay
silent on answers elsewhere? Labels play no part: chosen and rejected answers count alike on both sides, so a feature
that merely prefers good answers everywhere does not pass for one about safety. A rating that cannot be given is None,
never 5.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict
from scipy.stats import rankdata

from seamark.errors import DataError
from seamark.explain.dimension import Dimension
from seamark.features.reading import Scan

MIN_TEXTS = 10
"""A feature that fires in fewer texts is not rated."""
MIN_Z = 3.0
"""Standard errors by which the AUROC must exceed one half for any rating above 1."""


class Threshold(BaseModel):
    """What a rating asks for: the firing rates' ratio or, for features that fire everywhere, the AUROC."""

    model_config = ConfigDict(frozen=True)

    rating: int
    min_ratio: float
    min_auroc: float


THRESHOLDS = (
    Threshold(rating=5, min_ratio=4.0, min_auroc=0.75),
    Threshold(rating=4, min_ratio=2.0, min_auroc=0.65),
    Threshold(rating=3, min_ratio=1.4, min_auroc=0.58),
    Threshold(rating=2, min_ratio=0.0, min_auroc=0.0),
)
"""From the top down, the first that holds is the rating; all need an AUROC `MIN_Z` standard errors above one half, and
whatever lacks that is rated 1. A ratio of 4 means that of 5 firings in groups of equal size at least 4 are in safety
texts: about what a reader of top contexts calls "strongly safety-related". Rare features have an AUROC near one half
however specific they are (it cannot exceed 1/2 + rate/2), which is why the ratio alone suffices."""


class Rating(BaseModel):
    """A feature's safety rating, with its reason in words."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    sae: str
    latent: int
    rating: Literal[1, 2, 3, 4, 5] | None
    """5: strongly safety-related … 1: not; None: not available."""
    why: str
    method: str = "statistical"
    rate_safety: float | None = None
    """Share of safety texts in which it fires."""
    rate_other: float | None = None
    """Share of the other groups' texts in which it fires."""
    auroc: float | None = None
    """Probability that it is stronger in a random safety text than in a random other one (ties one half)."""


def statistical_ratings(
    scan: Scan,
    sae_id: str | None,
    latents: Iterable[int],
    safety_group: str = "safety",
    other_groups: Sequence[str] | None = None,
    *,
    dimension: Dimension | None = None,
) -> list[Rating]:
    """Rate latents by how far they separate the safety group's texts from the others'.

    With another `dimension` the same is asked of its group and the groups it is told from: `rate_safety` and
    `rate_other` are then the firing rates in those.

    Args:
        scan: a scan holding texts of the safety group and of at least one other.
        sae_id: which autoencoder; None where there is only one.
        latents: which latents; the ratings come in this order.
        other_groups: groups to tell safety from; None: every other group of the scan.
        dimension: takes the place of both; None: safety.

    Raises:
        DataError: one of the groups has no texts in the scan.
    """
    name, about = scan.sae_id(sae_id), "safety"
    if dimension is not None:
        about, safety_group, other_groups = dimension.name, dimension.group, dimension.against or None
    groups = np.asarray(scan.texts["group"].to_pylist(), dtype=object)
    others = [g for g in scan.groups if g != safety_group] if other_groups is None else list(other_groups)
    safety, other = groups == safety_group, np.isin(groups, others)
    for mask, wanted in ((safety, safety_group), (other, ", ".join(others) or "any other")):
        if not mask.any():
            raise DataError(f"no texts of group {wanted!r} in the scan", fix=f"Ratings need {about} texts and others; "
                            "scan both, or rate with an LLM")  # fmt: skip
    latents = list(latents)
    pooled = scan.columns(name, latents, "mean")  # of these alone: all latents of a large corpus would fill the memory
    named = others[0] if len(others) == 1 else "other"
    return [
        _rate(name, latent, pooled[:, [column]].toarray().ravel(), safety, other, safety_group, named)
        for column, latent in enumerate(latents)
    ]


def _rate(
    sae: str, latent: int, strength: NDArray[np.float64], safety: NDArray[np.bool_], other: NDArray[np.bool_],
    safety_name: str, other_name: str,
) -> Rating:  # fmt: skip
    """Rate one latent from its pooled activation in every text [texts]."""
    inside, outside = strength[safety], strength[other]
    fired = int((inside > 0).sum() + (outside > 0).sum())
    if fired < MIN_TEXTS:
        why = f"fires in {fired} texts, too few to rate (at least {MIN_TEXTS} are needed)"
        return Rating(sae=sae, latent=latent, rating=None, why=why)
    rate_in, rate_out = float((inside > 0).mean()), float((outside > 0).mean())
    auroc, z = separation(inside, outside)
    rating = _by_thresholds(_ratio(inside, outside), auroc, z)
    why = (
        f"fires in {_percent(rate_in)} of {safety_name} responses and {_percent(rate_out)} of {other_name} responses "
        f"(AUROC {auroc:.2f}{'' if abs(z) >= MIN_Z else ', within chance'})"
    )
    return Rating(sae=sae, latent=latent, rating=rating, why=why, rate_safety=rate_in, rate_other=rate_out, auroc=auroc)


def _ratio(inside: NDArray[np.float64], outside: NDArray[np.float64]) -> float:
    """Firing rate inside over that outside, half a firing added to each: a zero outside is no infinity."""
    rate_in = (float((inside > 0).sum()) + 0.5) / (len(inside) + 1)
    rate_out = (float((outside > 0).sum()) + 0.5) / (len(outside) + 1)
    return rate_in / rate_out


def as_pairs(ratings: Iterable[Rating]) -> dict[tuple[str, int], tuple[int | None, str]]:
    """Ratings as `FeatureSet.with_ratings` takes them."""
    return {(r.sae, r.latent): (r.rating, r.why) for r in ratings}


def _by_thresholds(ratio: float, auroc: float, z: float) -> Literal[1, 2, 3, 4, 5]:
    if z < MIN_Z:
        return 1
    for t in THRESHOLDS:
        if ratio >= t.min_ratio or auroc >= t.min_auroc:
            return t.rating  # type: ignore[return-value]
    return 1


def separation(inside: NDArray[np.float64], outside: NDArray[np.float64]) -> tuple[float, float]:
    """AUROC of `inside` [n] against `outside` [m], and its distance from one half in standard errors (Mann-Whitney).

    Ties count one half and shrink the standard error, as they must where most texts are silent.
    """
    n, m = len(inside), len(outside)
    ranks = rankdata(np.concatenate([inside, outside]))
    auroc = (float(ranks[:n].sum()) - n * (n + 1) / 2) / (n * m)
    _, ties = np.unique(ranks, return_counts=True)
    total = n + m
    spread = (total + 1) - float((ties.astype(np.float64) ** 3 - ties).sum()) / (total * (total - 1))
    error = float(np.sqrt(max(spread, 0.0) / (12 * n * m)))
    return auroc, (auroc - 0.5) / error if error > 0 else 0.0


def _percent(rate: float) -> str:
    percent = 100 * rate
    return f"{percent:.0f} %" if percent >= 9.95 or percent == 0 else f"{percent:.1f} %"
