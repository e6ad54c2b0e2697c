"""Which latents tell chosen from rejected answers beyond chance, and beyond length.

A contrastive score orders latents; it does not say whether the order would survive other pairs. Here every latent has
its effect with an interval that resamples prompts, a rank test corrected for the number of latents, the share of pairs
that agree, and the effect that is left at equal lengths.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix, vstack
from scipy.special import ndtr

from seamark.errors import ConfigError, DataError
from seamark.features.contrast import pair_rows
from seamark.features.reading import Scan
from seamark.stats import cluster_codes

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
Weigh = Callable[[Floats], Floats]
"""From how often each pair is drawn, [pairs × draws], to its weight in a linear estimate, [pairs × valid draws]."""

LEAST_DIFFERING = 6
"""Pairs that must differ for a p: with 5, even if all agree, a two-sided p cannot fall below 0.05."""
EXACT_UP_TO = 50
"""Differing pairs up to which p comes from the exact distribution (if no ties): its counts are then whole in float64.
"""
ROUNDING = 1e-4
"""Differences below this share of the two activations count as 0. A batch's padding moves activations that much, and
the rank test would count rounding as evidence (two answers that start alike have the same clauses)."""
LEAST_FOR_FIT = 3
"""Pairs that a fit on length needs: a line through two leaves no error to judge it by."""
CHUNK_BYTES = 1 << 26
"""Memory that the arrays of one chunk of draws or latents take together, at most."""


@dataclass(frozen=True)
class Significance:
    """The difference chosen − rejected of latents of one autoencoder, with its doubt; arrays [latents].

    d is the difference of one pair: mean activation over the chosen text's scoring positions − the same of the
    rejected one. NaN stands for "not available"; `reasons` says why where it holds for all latents.
    """

    sae_id: str
    group: str
    latents: Integers
    """Which latents: all of them, or those asked for."""
    effect: Floats
    """Mean of d over pairs, in units of activation; positive ones fire on chosen answers. 0 for silent latents."""
    low: Floats
    """Lower end of the 95 % percentile interval of `effect`, from resampling whole prompts."""
    high: Floats
    """Upper end."""
    p: Floats
    """Two-sided p of the Wilcoxon signed-rank test over pairs. NaN: fewer than `LEAST_DIFFERING` pairs differ."""
    q_value: Floats
    """`p` adjusted by Benjamini-Hochberg over those latents here that have one: the share of false finds among all
    latents with a q_value at most this large."""
    agreeing: Floats
    """Share (0–1) of differing pairs whose d has the sign of `effect`. NaN: no pair differs, or `effect` is 0."""
    n_differing: Integers
    """Pairs with d ≠ 0."""
    length_controlled: Floats
    """The effect expected of two answers of equal length (see `significance`), in units of activation."""
    length_low: Floats
    """Lower end of its 95 % percentile interval, from resampling whole prompts."""
    length_high: Floats
    """Upper end."""
    length_slope: Floats
    """What one token more of chosen response adds to d: units of activation per token."""
    length_range: tuple[int, int]
    """Least and largest difference of length, in tokens. If 0 lies outside, `length_controlled` extrapolates."""
    n_pairs: int
    n_prompts: int
    """Different prompts among the pairs."""
    left_out: tuple[str, ...]
    """Ids of pairs that do not count, because a side has no scoring position."""
    reasons: dict[str, str] = field(default_factory=dict)
    """{"interval" | "length_controlled" | "length_interval": why it is not available for any latent}."""
    provenance: dict[str, Any] = field(default_factory=dict)

    def rows(self, top: int | None = None, by: Literal["effect", "q_value"] = "effect") -> list[dict[str, Any]]:
        """A dict per latent for JSON, None where a number is not available.

        Args:
            top: only so many; None: all.
            by: order by |effect|, largest first, or by q_value, smallest first and unavailable ones last. Ties go by
                |effect|, then by number.
        """
        if by not in ("effect", "q_value"):
            raise ConfigError(f"no order {by!r}", fix="Use effect or q_value")
        strength = -np.abs(self.effect)
        keys = (self.latents, strength) if by == "effect" else (self.latents, strength, self.q_value)
        return [self._row(i) for i in np.lexsort(keys)[:top].tolist()]

    def _row(self, i: int) -> dict[str, Any]:
        numbers = {
            "effect": self.effect, "low": self.low, "high": self.high, "p": self.p, "q_value": self.q_value,
            "agreeing": self.agreeing, "length_controlled": self.length_controlled, "length_low": self.length_low,
            "length_high": self.length_high, "length_slope": self.length_slope,
        }  # fmt: skip
        found = {name: None if math.isnan(v[i]) else float(v[i]) for name, v in numbers.items()}
        return {"sae": self.sae_id, "latent": int(self.latents[i]), **found, "n_differing": int(self.n_differing[i])}


def significance(
    scan: Scan, group: str = "safety", sae_id: str | None = None, *, draws: int = 1000, seed: int = 0,
    latents: Sequence[int] | None = None,
) -> Significance:  # fmt: skip
    """Effect of every latent on a group of pairs, with interval, rank test, agreement and control for length.

    For a pair, d = a(chosen) − a(rejected), with a the mean positive activation over a text's scoring positions; pairs
    without a scoring position on a side are left out, as `contrast` does.

    `length_controlled` is the intercept α of the least-squares line d = α + β·Δ over pairs, where Δ = response tokens
    of the chosen − of the rejected text: β = Σ (Δ − mean Δ)·d / Σ (Δ − mean Δ)², α = mean d − β·mean Δ. It is the
    effect expected of answers equally long. A latent that only follows length has α = 0; one that length explains only
    in part keeps the rest.

    Wilcoxon selection with Benjamini-Hochberg is that of CC-Delta (arXiv 2602.12418). The test takes pairs as
    independent: where prompts repeat (`n_prompts` < `n_pairs`) its p is too small, and the intervals, which resample
    prompts, are the ones to judge by. Like a contrastive score (SAFER, arXiv 2507.00665), an effect is a correlation
    with the label, never a cause.

    Args:
        scan: a finished scan.
        group: pairs of this group.
        sae_id: which autoencoder; None: the only one.
        draws: resamples of the prompts; the same for all latents.
        seed: of the resamples.
        latents: only these, in this order; q_values are then over these alone. None: all.

    Raises:
        ConfigError: draws below 1, an unknown autoencoder.
        DataError: an unknown group or latent, or none of the group's pairs has positions on both sides.
    """
    if draws < 1:
        raise ConfigError(f"draws is {draws}", fix="Take at least 1; 1000 is usual")
    sae_id = scan.sae_id(sae_id)
    chosen_latents = _checked(scan, sae_id, latents)
    rows, left_out = pair_rows(scan, group, "default")
    rows = rows[np.argsort(rows[:, 0])]
    by_latent = _differences(scan, sae_id, rows, None if latents is None else chosen_latents).T.tocsr()
    prompts = cluster_codes(scan.texts["prompt"].take(rows[:, 0]).to_pylist())
    n_response = scan.texts["n_response"].to_numpy()
    lengths = (n_response[rows[:, 0]] - n_response[rows[:, 1]]).astype(np.float64)
    resampling = _Bootstrap(prompts, draws, seed)
    reasons: dict[str, str] = {}
    effect = _full(by_latent, _mean)
    low, high = _interval(by_latent, _mean, resampling, "interval", reasons)
    controlled = _length_controlled(by_latent, lengths, resampling, reasons)
    p = wilcoxon_p(by_latent)
    agreeing, n_differing = _agreement(by_latent, effect)
    provenance = {
        "method": "significance", "group": group, "n_pairs": len(rows), "draws": draws, "seed": seed,
        "scan": scan.manifest["key"], "scan_config": scan.config,
    }  # fmt: skip
    return Significance(
        sae_id, group, chosen_latents, effect, low, high, p, adjusted(p), agreeing, n_differing, *controlled,
        (int(lengths.min()), int(lengths.max())), len(rows), resampling.n_prompts, left_out, reasons, provenance,
    )  # fmt: skip


def _checked(scan: Scan, sae_id: str, latents: Sequence[int] | None) -> Integers:
    d_sae = scan.d_sae(sae_id)
    found = np.arange(d_sae) if latents is None else np.asarray(latents, dtype=np.int64).reshape(-1)
    if len(wrong := found[(found < 0) | (found >= d_sae)]):
        raise DataError(f"no latent {wrong[0]}; there are {d_sae}", where=sae_id)
    return found.astype(np.int64)


def _differences(scan: Scan, sae_id: str, rows: Integers, latents: Integers | None) -> csr_matrix:
    """`difference_parts` of all pairs at once."""
    return vstack(list(difference_parts(scan, sae_id, rows, latents)), format="csr")


def difference_parts(scan: Scan, sae_id: str, rows: Integers, latents: Integers | None = None) -> Iterator[csr_matrix]:
    """d of each pair, [pairs × latents], without explicit zeros, a part of the scan at a time.

    Args:
        rows: [pairs, 2], as of `pair_rows`, its first column ascending; a pair lies in one part.
        latents: only these; None: all.
    """
    for start, part in scan.pooled_parts(sae_id, "mean"):
        mine = rows[(rows[:, 0] >= start) & (rows[:, 0] < start + part.shape[0])] - start
        part = part if latents is None else part[:, latents]
        chosen, rejected = part[mine[:, 0]], part[mine[:, 1]]
        d = chosen - rejected
        d = d.multiply(abs(d) > ROUNDING * (chosen + rejected)).tocsr()
        d.eliminate_zeros()
        yield d


@dataclass(frozen=True)
class _Bootstrap:
    """Resamples of whole prompts, made again and again from the seed rather than kept.

    The draws are those of `stats.bootstrap_of_sums`.
    """

    prompts: Integers
    """Code of each pair's prompt, [pairs]."""
    draws: int
    seed: int

    @property
    def n_prompts(self) -> int:
        return int(self.prompts.max()) + 1

    def counts(self) -> Iterator[Floats]:
        """How often each pair is drawn, [pairs × some draws]; all blocks together hold all draws."""
        rng, n = np.random.default_rng(self.seed), self.n_prompts
        width = max(1, CHUNK_BYTES // (16 * 8 * len(self.prompts)))
        for first in range(0, self.draws, width):
            size = min(width, self.draws - first)
            drawn = [np.bincount(rng.integers(0, n, n), minlength=n) for _ in range(size)]
            yield np.stack(drawn, axis=1)[self.prompts].astype(np.float64)


def _mean(counts: Floats) -> Floats:
    """Weights of the mean over pairs."""
    return counts / counts.sum(0)


def _slope(counts: Floats, lengths: Floats) -> tuple[Floats, Floats, Floats]:
    """(weights of the slope of d on length; those of the mean; mean length), without draws where all are as long."""
    # Sums of whole numbers near 0 are exact in any order: chunks give the same bits, and equal lengths a spread of 0.
    centre = np.round(lengths.mean())
    near = lengths - centre
    total, away = counts.sum(0), near @ counts
    mean = away / total
    spread = np.square(near) @ counts - away * mean
    weights = counts * (near[:, None] - mean)
    valid = spread > 0
    return weights[:, valid] / spread[valid], counts[:, valid] / total[valid], mean[valid] + centre


def _intercept(counts: Floats, lengths: Floats) -> Floats:
    """Weights of the intercept of the line of d on length."""
    slope, mean, mean_length = _slope(counts, lengths)
    return mean - slope * mean_length


def _full(by_latent: csr_matrix, weigh: Weigh) -> Floats:
    """The estimate of every latent from all pairs, [latents]."""
    estimate: Floats = (by_latent @ weigh(np.ones((by_latent.shape[1], 1))))[:, 0]
    return estimate


def _length_controlled(
    by_latent: csr_matrix, lengths: Floats, resampling: _Bootstrap, reasons: dict[str, str]
) -> tuple[Floats, Floats, Floats, Floats]:
    """(intercept, its low, its high, slope) of every latent; all NaN, with a reason, where no line can be fitted."""
    if len(lengths) < LEAST_FOR_FIT:
        reasons["length_controlled"] = f"fewer than {LEAST_FOR_FIT} pairs"
    elif (lengths == lengths[0]).all():
        reasons["length_controlled"] = f"chosen − rejected is {int(lengths[0])} tokens long in every pair"
    if "length_controlled" in reasons:
        reasons["length_interval"] = reasons["length_controlled"]
        nothing = np.full(by_latent.shape[0], np.nan)
        return nothing, nothing.copy(), nothing.copy(), nothing.copy()

    def intercept(counts: Floats) -> Floats:
        return _intercept(counts, lengths)

    low, high = _interval(by_latent, intercept, resampling, "length_interval", reasons)
    return _full(by_latent, intercept), low, high, _full(by_latent, lambda counts: _slope(counts, lengths)[0])


def _interval(
    by_latent: csr_matrix, weigh: Weigh, resampling: _Bootstrap, name: str, reasons: dict[str, str]
) -> tuple[Floats, Floats]:
    """95 % percentile interval of a linear estimate of every latent; NaN, with a reason under `name`, where none is."""
    n = by_latent.shape[0]
    ends = np.full((2, n), np.nan)
    if resampling.n_prompts < 2:
        reasons[name] = "all pairs belong to one prompt"
        return ends[0], ends[1]
    width = max(1, CHUNK_BYTES // (8 * 8 * resampling.draws))
    for first in range(0, n, width):
        drawn = _drawn(by_latent[first : first + width], weigh, resampling)
        if drawn.shape[1] < max(1, resampling.draws // 2):
            reasons[name] = "too few valid resamples"
            break
        ends[:, first : first + width] = np.quantile(drawn, [0.025, 0.975], axis=1, overwrite_input=True)
    return ends[0], ends[1]


def _drawn(by_latent: csr_matrix, weigh: Weigh, resampling: _Bootstrap) -> Floats:
    """The estimate in each valid draw, [latents × valid draws]."""
    found, n = np.empty((by_latent.shape[0], resampling.draws)), 0
    for counts in resampling.counts():
        weights = weigh(counts)
        found[:, n : n + weights.shape[1]] = by_latent @ weights
        n += weights.shape[1]
    return found[:, :n]


def _agreement(by_latent: csr_matrix, effect: Floats) -> tuple[Floats, Integers]:
    """(share of differing pairs with the sign of the effect, NaN where undefined; differing pairs), each [latents]."""
    differing = np.diff(by_latent.indptr).astype(np.int64)
    latent = np.repeat(np.arange(len(effect)), differing)
    same = np.bincount(latent[np.sign(by_latent.data) == np.sign(effect)[latent]], minlength=len(effect))
    defined = (differing > 0) & (effect != 0)
    return np.where(defined, same / np.maximum(differing, 1), np.nan), differing


def wilcoxon_p(by_latent: csr_matrix) -> Floats:
    """Two-sided p of the Wilcoxon signed-rank test of each row of differences, [latents].

    Zeros are dropped; ties have their average rank. Without ties and up to `EXACT_UP_TO` differences p is exact, else
    it is the normal approximation, corrected for ties and for continuity. NaN with fewer than `LEAST_DIFFERING`
    differences.

    Args:
        by_latent: [latents × pairs], without explicit zeros.
    """
    bounds, found = by_latent.indptr.astype(np.int64), np.full(by_latent.shape[0], np.nan)
    limit, first = CHUNK_BYTES // (16 * 8), 0
    while first < len(found):
        last = max(first + 1, int(np.searchsorted(bounds, bounds[first] + limit, side="right")) - 1)
        n = np.diff(bounds[first : last + 1])
        values = by_latent.data[bounds[first] : bounds[last]]
        found[first:last] = _p(*_signed_ranks(np.repeat(np.arange(len(n)), n), values, n), n)
        first = last
    return found


def _signed_ranks(latent: Integers, values: Floats, n: Integers) -> tuple[Floats, Floats]:
    """(sum of ranks of positive values, Σ (t³ − t) over runs of t ties) of each latent; ranks are of |value|."""
    order = np.lexsort((np.abs(values), latent))
    latent, values = latent[order], values[order]
    strength = np.abs(values)
    new = np.ones(len(values), dtype=bool)
    new[1:] = (latent[1:] != latent[:-1]) | (strength[1:] != strength[:-1])
    first = np.flatnonzero(new)
    size, owner = np.diff(np.append(first, len(values))), latent[first]
    before = first - (np.cumsum(n) - n)[owner]
    rank = np.repeat(before + (size + 1) / 2, size)
    positive = np.bincount(latent, weights=rank * (values > 0), minlength=len(n))
    t = size.astype(np.float64)
    ties = np.bincount(owner, weights=t**3 - t, minlength=len(n))
    return positive.astype(np.float64), ties.astype(np.float64)


def _p(positive: Floats, ties: Floats, n: Integers) -> Floats:
    """Two-sided p from the positive rank sum, the ties and the number of differences, each [latents]."""
    m = n.astype(np.float64)
    middle = m * (m + 1) / 4
    spread = np.sqrt(np.maximum(m * (m + 1) * (2 * m + 1) - ties / 2, 1.0) / 24)
    p: Floats = 2 * ndtr(-np.maximum(np.abs(positive - middle) - 0.5, 0.0) / spread)
    exact = (n <= EXACT_UP_TO) & (ties == 0)
    for size in np.unique(n[exact]).tolist():
        here = exact & (n == size)
        smaller = np.minimum(positive[here], 2 * middle[here] - positive[here]).astype(np.int64)
        p[here] = np.minimum(2 * _cumulated(size)[smaller], 1.0)
    p[n < LEAST_DIFFERING] = np.nan
    return p


@cache
def _cumulated(n: int) -> Floats:
    """P(rank sum ≤ w) for w = 0 … n(n + 1)/2, if each of the ranks 1 … n is counted with probability ½."""
    subsets = np.ones(1)
    for rank in range(1, n + 1):
        wider = np.zeros(len(subsets) + rank)
        wider[: len(subsets)] += subsets
        wider[rank:] += subsets
        subsets = wider
    below: Floats = np.cumsum(subsets) / 2.0**n
    return below


def adjusted(p: Floats) -> Floats:
    """Benjamini-Hochberg q-values of those p that are available; NaN stays NaN. Same shape as `p`."""
    found = np.full(len(p), np.nan)
    known = np.flatnonzero(~np.isnan(p))
    order = known[np.argsort(p[known], kind="stable")]
    scaled = p[order] * len(order) / np.arange(1, len(order) + 1)
    found[order] = np.minimum(np.minimum.accumulate(scaled[::-1])[::-1], 1.0)
    return found
