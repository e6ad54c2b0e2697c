"""Which features that fire in a text still fire in its translation, against chance: texts that say something else.

Everything is computed from how often each prompt is drawn, so that all resamples of a bootstrap come at once.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from seamark.features.significance import adjusted, wilcoxon_p
from seamark.stats import Estimate, wilson

Floats = NDArray[np.float64]
CHUNK_BYTES = 1 << 26
"""Memory of the arrays of one chunk of features, about."""


@dataclass(frozen=True, eq=False)
class Draws:
    """Resamples of prompts: the first column is the sample itself, each prompt once."""

    times: Floats
    """[prompts, 1 + draws]"""

    @classmethod
    def of(cls, n: int, draws: int, seed: int) -> Draws:
        rng = np.random.default_rng(seed)
        drawn = [np.bincount(rng.integers(0, n, n), minlength=n) for _ in range(draws)]
        return cls(np.stack([np.ones(n), *drawn], axis=1).astype(np.float64))

    @property
    def n(self) -> int:
        return len(self.times)

    def estimate(self, drawn: Floats, n: int, reason: str) -> Estimate:
        """From a statistic of the sample and of every draw [1 + draws], NaN where it is undefined."""
        if not np.isfinite(drawn[0]):
            return Estimate.not_available(reason, n)
        kept = drawn[1:][np.isfinite(drawn[1:])]
        if self.n < 2 or len(kept) < max(1, (len(drawn) - 1) // 2):
            return Estimate(value=float(drawn[0]), n=n, reason="no interval: too few prompts")
        low, high = np.quantile(kept, [0.025, 0.975])
        return Estimate(value=float(drawn[0]), low=float(low), high=float(high), n=n)


@dataclass(frozen=True, eq=False)
class Overlap:
    """Sums of one autoencoder, or of several together, over the sample and every draw, all [1 + draws]."""

    fired: Floats
    """Prompts × features that fire in the reference."""
    kept: Floats
    """Those of them that fire in the other text of the same prompt too."""
    fired_pairs: Floats
    """Ordered pairs of different prompts × features that fire in the reference text of the first."""
    kept_pairs: Floats
    """Those that fire in the other text of the second too."""

    def __add__(self, other: Overlap) -> Overlap:
        return Overlap(self.fired + other.fired, self.kept + other.kept, self.fired_pairs + other.fired_pairs,
                       self.kept_pairs + other.kept_pairs)  # fmt: skip

    @property
    def retention(self) -> Floats:
        """Share of what fires in the reference that still fires."""
        return share(self.kept, self.fired)

    @property
    def chance(self) -> Floats:
        """The same with the text of another prompt in place of the translation."""
        return share(self.kept_pairs, self.fired_pairs)


def overlap(
    reference: csr_matrix, other: csr_matrix, features: NDArray[np.bool_], draws: Draws, fires_at: float = 0.0
) -> Overlap:  # fmt: skip
    """What is kept of the features of `features` [d_sae].

    Args:
        reference: normalised activations in the reference text of each prompt [prompts, d_sae].
        other: the same in the other text.
        features: which of them count.
        draws: of the prompts.
        fires_at: a feature fires where it is above this.
    """
    ones, theirs = _binary(reference[:, features], fires_at), _binary(other[:, features], fires_at)
    both, w = ones.multiply(theirs).tocsr(), draws.times
    fired, kept = _rows(ones), _rows(both)
    total = w.sum(0)
    pairs = (fired @ w) * total - fired @ (w * w)
    # Σ over ordered pairs of copies of different prompts: all pairs, less those of a prompt with a copy of itself.
    kept_pairs = -(kept @ (w * w))
    for mine in _chunks(ones.shape[1], w.shape[1]):
        kept_pairs = kept_pairs + ((ones[:, mine].T @ w) * (theirs[:, mine].T @ w)).sum(0)
    return Overlap(fired @ w, kept @ w, pairs, kept_pairs)


@dataclass(frozen=True, eq=False)
class FeatureChange:
    """Every feature of one autoencoder from the reference to one language; all [d_sae], NaN: not available."""

    fired: NDArray[np.int64]
    """Prompts in whose reference text it fires."""
    reference: Floats
    """Mean activation / Q_f over the prompts in the reference; 0 where it is silent."""
    mean: Floats
    """The same in the language."""
    difference: Floats
    """`mean` − `reference`."""
    low: Floats
    high: Floats
    """95 % percentile interval of `difference`."""
    p: Floats
    """Wilcoxon's signed-rank test over prompts; NaN: fewer than 6 differ."""
    retention: Floats
    """Share of `fired` in whose translation it fires too."""
    retention_low: Floats
    """95 % bounds of `retention` by Wilson's score, as of a share of `fired` prompts."""
    retention_high: Floats
    chance: Floats
    """The same with the texts of other prompts."""


def feature_change(
    reference: csr_matrix, other: csr_matrix, draws: Draws, fires_at: float = 0.0
) -> FeatureChange:  # fmt: skip
    """Each feature by itself; arguments as of `overlap`."""
    n, d = reference.shape
    ones, theirs = _binary(reference, fires_at), _binary(other, fires_at)
    change = (other - reference).tocsr()
    change.eliminate_zeros()
    low, high, kept, chance = (np.full(d, np.nan) for _ in range(4))
    w, total = draws.times, draws.times.sum(0)
    active = np.flatnonzero(np.diff(reference.tocsc().indptr) + np.diff(other.tocsc().indptr))
    for chunk in _chunks(len(active), w.shape[1]):
        mine = active[chunk]
        a, b = ones[:, mine], theirs[:, mine]
        both = a.multiply(b).tocsr()
        kept[mine] = _columns(both)
        low[mine], high[mine] = _interval((change[:, mine].T @ w)[:, 1:] / total[1:])
        one = w[:, :1]
        apart = (a.T @ one) * (b.T @ one) - both.T @ (one * one)
        chance[mine] = share(apart, (a.T @ one) * total[0] - a.T @ (one * one))[:, 0]
    before, after = (np.asarray(m.sum(0)).ravel() / n for m in (reference, other))
    fired = _columns(ones)
    return FeatureChange(
        fired.astype(np.int64), before, after, after - before, low, high, wilcoxon_p(change.T.tocsr()),
        share(kept, fired), *wilson(kept, fired), chance,
    )  # fmt: skip


def adjusted_together(changes: list[FeatureChange], tested: list[NDArray[np.bool_]]) -> list[Floats]:
    """Benjamini-Hochberg over the `tested` features of all autoencoders together; others NaN."""
    p = np.concatenate([np.where(keep, c.p, np.nan) for c, keep in zip(changes, tested, strict=True)])
    return np.split(adjusted(p), np.cumsum([len(c.p) for c in changes])[:-1])


def share(over: Floats, under: Floats) -> Floats:
    """over / under; NaN where nothing is under."""
    with np.errstate(divide="ignore", invalid="ignore"):
        found: Floats = np.where(under > 0, over / np.where(under > 0, under, 1.0), np.nan)
    return found


def _interval(drawn: Floats) -> tuple[Floats, Floats]:
    """95 % of the draws [features, draws] in which the statistic is defined; NaN where it is not in half of them."""
    known = np.isfinite(drawn).sum(1) * 2 >= max(drawn.shape[1], 1)
    low, high = np.full(len(drawn), np.nan), np.full(len(drawn), np.nan)
    if drawn.shape[1] and known.any():
        low[known], high[known] = np.nanquantile(drawn[known], [0.025, 0.975], axis=1)
    return low, high


def _binary(x: csr_matrix, fires_at: float) -> csr_matrix:
    """1 where it fires."""
    found = csr_matrix(((x.data > fires_at).astype(np.float64), x.indices.copy(), x.indptr.copy()), shape=x.shape)
    found.eliminate_zeros()
    return found


def _rows(x: csr_matrix) -> Floats:
    return np.asarray(x.sum(1), np.float64).ravel()


def _columns(x: csr_matrix) -> Floats:
    return np.asarray(x.sum(0), np.float64).ravel()


def _chunks(n: int, width: int) -> Iterator[slice]:
    step = max(1, CHUNK_BYTES // (32 * width))
    return (slice(first, min(first + step, n)) for first in range(0, n, step))
