"""How well a detector tells a class from the others: ranking, decisions, calibration, each with its interval.

Every measure is a function of how often each text is drawn, so that all resamples of a bootstrap are computed at once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from seamark.errors import ConfigError
from seamark.stats import Estimate

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
Weighted = Callable[[Floats], Floats]
"""From how often each text is drawn, [draws, texts], to a measure [draws]; NaN where it is undefined."""

BINS = 10
PREVALENCE = 0.01
"""A share of texts of the domain for which precision is told besides that of the judged texts."""
CHUNK = 1 << 20
"""Entries of one chunk of draws × texts."""


@dataclass(frozen=True, eq=False)
class Judged:
    """What a detector said of texts that it was not fitted on; all arrays [texts]."""

    y: Integers
    """1: of the domain."""
    score: Floats
    """Before calibration: comparable within a fit."""
    probability: Floats
    flagged: NDArray[np.bool_]
    """Whether the probability reaches the fit's threshold."""
    fit: Integers
    """Which fit judged it."""
    source: Integers
    unit: Integers
    """What is drawn together."""


class Measures(BaseModel):
    """All measures of a detector."""

    model_config = ConfigDict(frozen=True)

    auroc: Estimate
    """Share of pairs (one text of the domain, one other, judged by the same fit) ordered right; ties ½."""
    auroc_within_source: Estimate
    """The same over pairs from the same source only: no source can give these away."""
    average_precision: Estimate
    """Over all texts, by probability."""
    f1: Estimate
    """At the threshold that validation chose."""
    precision: Estimate
    recall: Estimate
    prevalence: float
    """Share of texts of the domain among those judged: `precision`, at whatever threshold, F1 and average precision
    hold at this share only."""
    precision_at_fpr_1: Estimate
    """At the lowest threshold by which at most 1 % of the other texts are flagged. It is read off the judged texts
    themselves: a point of the ROC curve, no threshold that a guard has."""
    recall_at_fpr_1: Estimate
    precision_at_fpr_1_if_prevalence_1: Estimate
    """Precision there if 1 % of all texts were of the domain: 0.01 · recall / (0.01 · recall + 0.99 · 0.01). 1 % of the
    other texts count as flagged, even where fewer of those judged are."""
    precision_at_fpr_01: Estimate
    """The same for 0.1 %."""
    recall_at_fpr_01: Estimate
    precision_at_fpr_01_if_prevalence_1: Estimate
    brier: Estimate
    """Mean of (probability − y)²."""
    ece: Estimate
    """Expected calibration error over ten bins of equal width. Resampling adds to it: the interval leans upwards."""


def measure(judged: Judged, *, draws: int = 1000, seed: int = 0) -> Measures:
    """All measures, with 95 % percentile intervals from drawing whole units.

    Raises:
        ConfigError: fewer than 2 draws.
    """
    y, p = judged.y, judged.probability
    negatives = int((y == 0).sum())
    source_of_fit = judged.fit * (int(judged.source.max()) + 1) + judged.source
    wanted: dict[str, Weighted] = {
        "auroc": auroc(y, judged.score, judged.fit),
        "auroc_within_source": auroc(y, judged.score, source_of_fit),
        "average_precision": average_precision(y, p),
        "f1": lambda w: _decided(w, y, judged.flagged)[0],
        "precision": lambda w: _decided(w, y, judged.flagged)[1],
        "recall": lambda w: _decided(w, y, judged.flagged)[2],
        "brier": lambda w: w @ (p - y) ** 2 / w.sum(1),
        "ece": calibration_error(y, p),
    }
    found: dict[str, Estimate] = {}
    for name, share in (("1", 0.01), ("01", 0.001)):
        both = ("precision_at_fpr_" + name, "recall_at_fpr_" + name, f"precision_at_fpr_{name}_if_prevalence_1")
        if negatives < round(1 / share):
            why = f"{negatives} texts of other labels: {round(1 / share):,} are needed"
            found |= {one: Estimate.not_available(why, len(y)) for one in both}
        else:
            wanted |= {one: at_fpr(y, p, share, which) for which, one in enumerate(both)}
    reasons = {"auroc_within_source": "no source of a fold holds both classes",
               "f1": "no text is flagged, and none is to be"}  # fmt: skip
    reasons |= {name: "no text is flagged" for name in wanted if name.startswith("precision")}
    found |= estimates(wanted, judged.unit, draws=draws, seed=seed, reasons=reasons)
    return Measures(prevalence=float(y.mean()), **found)


def auroc_difference(one: Judged, other: Judged, *, draws: int = 1000, seed: int = 0) -> Estimate:
    """AUROC of one detector less that of another on the same texts, drawn together."""
    a, b = auroc(one.y, one.score, one.fit), auroc(other.y, other.score, other.fit)
    return estimates({"difference": lambda w: a(w) - b(w)}, one.unit, draws=draws, seed=seed)["difference"]


def estimates(
    wanted: Mapping[str, Weighted], unit: Integers, *, draws: int, seed: int, reasons: Mapping[str, str] | None = None
) -> dict[str, Estimate]:  # fmt: skip
    """Each measure with its interval; all see the same draws."""
    if draws < 2:
        raise ConfigError(f"{draws} draws give no interval", where="draws", fix="Take 1000")
    n = len(unit)
    drawn: dict[str, list[Floats]] = {name: [] for name in wanted}
    for weights in drawn_units(unit, draws, seed):
        for name, statistic in wanted.items():
            drawn[name].append(statistic(weights))
    found = {}
    for name, statistic in wanted.items():
        value = float(statistic(np.ones((1, n)))[0])
        found[name] = with_interval(value, np.concatenate(drawn[name]), n, (reasons or {}).get(name, ""))
    return found


def drawn_units(unit: Integers, draws: int, seed: int) -> list[Floats]:
    """How often each text is drawn, [draws, texts] in chunks."""
    codes = np.unique(unit, return_inverse=True)[1]
    n_units = int(codes.max()) + 1
    if n_units == 1:
        return [np.full((draws, len(unit)), np.nan)]
    rng = np.random.default_rng(seed)
    chunks, step = [], max(1, CHUNK // len(unit))
    for start in range(0, draws, step):
        rows = min(step, draws - start)
        chosen = rng.integers(0, n_units, (rows, n_units)) + np.arange(rows)[:, None] * n_units
        times = np.bincount(chosen.ravel(), minlength=rows * n_units).reshape(rows, n_units)
        chunks.append(times[:, codes].astype(np.float64))
    return chunks


def with_interval(value: float, drawn: Floats, n: int, reason: str = "") -> Estimate:
    """The estimate with the interval of those draws in which the measure is defined, if they are half of all."""
    if not np.isfinite(value):
        return Estimate.not_available(reason or "undefined on these texts", n)
    kept = drawn[np.isfinite(drawn)]
    if len(kept) < max(1, len(drawn) // 2):
        return Estimate(value=value, n=n, reason="interval undefined: too few valid resamples")
    low, high = np.quantile(kept, [0.025, 0.975])
    return Estimate(value=value, low=float(low), high=float(high), n=n)


def auroc(y: Integers, score: Floats, strata: Integers) -> Weighted:
    """AUROC over pairs of the same stratum; strata with one class count for nothing."""
    parts = []
    for stratum in np.unique(strata):
        rows = np.flatnonzero(strata == stratum)
        if 0 < y[rows].sum() < len(rows):
            parts.append((rows, *_ranked(y[rows], score[rows])))

    def weighted(w: Floats) -> Floats:
        won, pairs = np.zeros(len(w)), np.zeros(len(w))
        for rows, order, ends in parts:
            tp, fp = _cumulated(w[:, rows], y[rows], order, ends)
            before = np.pad(tp, ((0, 0), (1, 0)))[:, :-1]
            steps = np.diff(fp, axis=1, prepend=0.0)
            won += (steps * (before + tp) / 2).sum(1)
            pairs += tp[:, -1] * fp[:, -1]
        return _ratio(won, pairs)

    return weighted


def average_precision(y: Integers, score: Floats) -> Weighted:
    """Σ (recall − recall before) · precision, from the highest score down; ties come together."""
    order, ends = _ranked(y, score)

    def weighted(w: Floats) -> Floats:
        tp, fp = _cumulated(w, y, order, ends)
        steps = np.diff(tp, axis=1, prepend=0.0)
        return _ratio((steps * tp / np.maximum(tp + fp, 1e-300)).sum(1), tp[:, -1])

    return weighted


def at_fpr(y: Integers, score: Floats, share: float, which: int) -> Weighted:
    """Precision (which 0), recall (1) or precision at a prevalence of `PREVALENCE` (2), at the lowest threshold that
    flags at most `share` of the negatives.

    Both precisions are NaN where that threshold flags nothing.
    """
    order, ends = _ranked(y, score)

    def weighted(w: Floats) -> Floats:
        tp, fp = (np.pad(c, ((0, 0), (1, 0))) for c in _cumulated(w, y, order, ends))  # a threshold above all texts
        last = (fp <= share * fp[:, -1:] * (1 + 1e-12)).sum(1) - 1  # fp never falls
        rows = np.arange(len(w))
        tp_there, fp_there = tp[rows, last], fp[rows, last]
        recall = _ratio(tp_there, tp[:, -1])
        if which == 0:
            found = _ratio(tp_there, tp_there + fp_there)
        elif which == 1:
            found = recall
        else:  # the limit itself counts: that fewer of the judged negatives lie above may be luck
            found = _ratio(PREVALENCE * recall, PREVALENCE * recall + (1 - PREVALENCE) * share)
            found[tp_there + fp_there == 0] = np.nan
        return np.where(np.isfinite(w).all(1), found, np.nan)

    return weighted


def calibration_error(y: Integers, probability: Floats) -> Weighted:
    """Σ over bins of (share of texts there) · |share of positives − mean probability|."""
    place = np.minimum((probability * BINS).astype(np.int64), BINS - 1)
    inside = np.zeros((len(y), BINS))
    inside[np.arange(len(y)), place] = 1.0
    excess = inside * (y - probability)[:, None]

    def weighted(w: Floats) -> Floats:
        error: Floats = np.abs(w @ excess).sum(1) / w.sum(1)
        return error

    return weighted


def best_threshold(y: Integers, probability: Floats) -> float:
    """The probability from which on texts are flagged so that F1 is largest; the highest of the best."""
    order, ends = _ranked(y, probability)
    tp, fp = _cumulated(np.ones((1, len(y))), y, order, ends)
    f1 = 2 * tp[0] / (tp[0] + fp[0] + y.sum())
    best = int(np.argmax(f1))
    here = float(probability[order[ends[best]]])
    below = float(probability[order[ends[best] + 1]]) if best + 1 < len(ends) else 0.0
    return (here + below) / 2  # between two texts, so that rounding flags none of them otherwise


def _ranked(y: Integers, score: Floats) -> tuple[Integers, Integers]:
    """(order from the highest score down, last place of every run of equal scores)."""
    order = np.argsort(-score, kind="stable")
    return order, np.flatnonzero(np.append(np.diff(score[order]) != 0, True))


def _cumulated(w: Floats, y: Integers, order: Integers, ends: Integers) -> tuple[Floats, Floats]:
    """Positives and negatives at or above each distinct score, both [draws, scores]."""
    drawn = w[:, order]
    positive = drawn * y[order]
    return positive.cumsum(1)[:, ends], (drawn - positive).cumsum(1)[:, ends]


def _decided(w: Floats, y: Integers, flagged: NDArray[np.bool_]) -> tuple[Floats, Floats, Floats]:
    """(F1, precision, recall)."""
    tp, found, wanted = w @ (flagged & (y == 1)).astype(float), w @ flagged.astype(float), w @ y.astype(float)
    return _ratio(2 * tp, found + wanted), _ratio(tp, found), _ratio(tp, wanted)


def _ratio(over: Floats, under: Floats) -> Floats:
    with np.errstate(divide="ignore", invalid="ignore"):
        found: Floats = np.where(under > 0, over / under, np.nan)
    return found
