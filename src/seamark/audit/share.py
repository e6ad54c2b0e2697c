"""How many labels are wrong: an upper estimate from scores that have not seen the labels they judge.

Let s be an antisymmetric out-of-fold score (swapping a pair's sides negates it) with density f on right labels, and let
a share ρ of labels be wrong, whichever. Then s has the density (1 − ρ) f(s) + ρ f(−s), and for every t > 0

    P(s ≤ −t) / P(|s| ≥ t) ≥ ρ,

with equality where the score is never wrong beyond t. The least of these ratios is the sharpest bound there is: mixture
proportion estimation (Blanchard, Lee and Scott, JMLR 11, 2010). The least of many noisy ratios is too low, so t is
chosen on some prompts and the ratio taken on the others. It is an *upper* estimate: where the score is sure and wrong,
its errors count as wrong labels.

None of this holds where the score has seen the labels. Folds keep a label from a regression, not from the model whose
activations it reads: a reward model that was trained on a wrong label takes it for right, and the estimate is too low.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import beta

from seamark.audit.crossfit import prompt_codes, row_folds
from seamark.stats import Estimate, wilson

Floats = NDArray[np.float64]
MIN_PAIRS = 100
MIN_TAIL, TAIL_SHARE = 30, 0.02
"""Pairs that lie beyond t at least, and their share of all."""
CHANCE = 0.45
"""Upper end of the interval from which on the score is said to tell nothing: at chance the ratio is one half."""
TAILS = 25
"""Values of t that are tried, with tails from all pairs to the smallest, in equal ratios."""
FOLDS = 5
Z = 3.0
"""Of the bound by which t is chosen: high, so that a small tail is not taken for the luck of a few pairs."""

JUDGES = ("margin_crossfit", "latents", "probe", "bag_of_words", "direction")
"""Methods whose scores are out of fold and antisymmetric, as `wrong_share` needs them; the better judge first."""


def wrong_share(values: Mapping[str, float], prompts: Mapping[str, str], *, draws: int = 1000) -> Estimate:
    """Share of wrong labels, estimated from above, with an interval that resamples prompts.

    The t of each fold of prompts is the one whose ratio has the least upper confidence bound on the other folds, among
    those that leave at least 30 pairs and 2 % of all beyond. The ratio is that of all folds' tails together. Every draw
    of the interval chooses anew; it is widened to the binomial interval of the whole sample's tails, without which no
    wrong label among the surest would mean no doubt.

    Args:
        values: out-of-fold antisymmetric scores of a group: `margin_crossfit`, `bag_of_words`; `latents`, `probe` and
            `direction` on a scan of a model that was not trained on these pairs.
        prompts: {pair id: hash of its prompt}.

    Returns:
        Not available below 100 pairs, and where the scores tell right labels from wrong ones hardly better than chance.

    Raises:
        DataError: a pair without a prompt.
    """
    ids, codes = prompt_codes(values, prompts)
    s = np.asarray([values[i] for i in ids], dtype=np.float64)
    n, n_prompts = len(s), len(set(codes.tolist()))
    if n < MIN_PAIRS or n_prompts < 2 * FOLDS:
        return Estimate.not_available(f"{n} pairs of {n_prompts} prompts are too few", n)
    tails = _Tails.of(s, row_folds([prompts[i] for i in ids], FOLDS))
    found = tails.least(np.ones(n))
    if found is None:
        return Estimate.not_available("nearly all scores are 0", n)
    against, size = found
    rng = np.random.default_rng(0)
    drawn = []
    for _ in range(draws):
        times = np.bincount(rng.integers(0, n_prompts, n_prompts), minlength=n_prompts).astype(np.float64)
        if (again := tails.least(times[codes])) is not None:
            drawn.append(again[0] / again[1])
    low, high = np.quantile(drawn, [0.025, 0.975])
    low = min(float(low), float(beta.ppf(0.025, against, size - against + 1)) if against else 0.0)
    high = max(float(high), float(beta.ppf(0.975, against + 1, size - against)) if against < size else 1.0)
    if high >= CHANCE:
        return Estimate.not_available("the scores tell right labels from wrong ones hardly better than chance", n)
    return Estimate(value=against / size, low=low, high=high, n=n)


@dataclass(frozen=True)
class _Tails:
    """Which pairs lie beyond which t."""

    cell: NDArray[np.int64]
    """[pairs]: fold, level (the number of values of t that |s| reaches) and sign, as one number."""
    enough: float
    """Least size of a tail."""

    @classmethod
    def of(cls, s: Floats, fold: NDArray[np.int64]) -> _Tails:
        size = np.abs(s)
        enough = max(MIN_TAIL, TAIL_SHARE * len(s))
        shares = np.geomspace(1.0, enough / len(s), TAILS)
        t = np.quantile(size, 1.0 - shares, method="lower")
        level = np.searchsorted(t, size, side="right")
        return cls((fold * (TAILS + 1) + np.where(size > 0, level, 0)) * 2 + (s < 0), enough)

    def least(self, weights: Floats) -> tuple[float, float] | None:
        """(pairs against their label, pairs) in all folds' tails; None where no tail is large enough."""
        cells = np.bincount(self.cell, weights=weights, minlength=2 * FOLDS * (TAILS + 1)).reshape(FOLDS, TAILS + 1, 2)
        beyond = cells[:, :0:-1].cumsum(1)[:, ::-1]  # [folds, tails, sign]; level 0 lies in none
        k, m = beyond[:, :, 1], beyond.sum(2)
        k_rest, m_rest = k.sum(0) - k, m.sum(0) - m
        bound = wilson(k_rest, m_rest, Z)[1]
        large = m_rest >= self.enough * (FOLDS - 1) / FOLDS
        best = np.argmin(np.where(large, bound, np.inf), axis=1)
        folds = np.arange(FOLDS)
        size = float(m[folds, best].sum())
        return (float(k[folds, best].sum()), size) if large.any(1).all() and size > 0 else None
