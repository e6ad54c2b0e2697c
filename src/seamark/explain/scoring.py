"""Scores of a simulation: how well predicted firing follows true firing on held-out texts (METHODS §2.4).

Units are tokens (level 0-10 of z / Q_f) or segments (1 where the largest z / Q_f of its tokens exceeds τ). The score is
the Pearson correlation over the units of all texts pooled, for 0/1 the phi coefficient. Beside it stands balanced
accuracy at telling texts in which the feature fires from texts in which it does not. Intervals resample prompts with
all their texts (`prompts`), or texts where nothing is told of prompts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from seamark.errors import DataError
from seamark.explain.presenting import levels
from seamark.explain.segments import Span
from seamark.features.contexts import Context
from seamark.stats import Estimate, bootstrap_of_sums, cluster_codes

DRAWS = 1000
Floats = NDArray[np.float64]


def token_levels(context: Context) -> list[int | None]:
    """Level 0-10 at each token, i over (i − 1)/10 and up to i/10 of Q_f; None where the feature was not read.

    Raises:
        DataError: Q_f is not available.
    """
    if context.q is None or not context.q > 0:
        raise DataError("levels of a feature without Q_f", where=context.text_id, fix="Leave the feature out")
    read = context.read or (True,) * len(context.tokens)
    found = levels(context.activations, context.q)
    return [level if known else None for level, known in zip(found, read, strict=True)]


def segment_truth(context: Context, spans: Sequence[Span], tau: float = 0.0) -> list[int | None]:
    """1 for each segment in which the feature exceeds `tau` of Q_f somewhere, else 0; None where no token was read.

    Raises:
        DataError: Q_f is not available.
    """
    if context.q is None or not context.q > 0:
        raise DataError("segments of a feature without Q_f", where=context.text_id, fix="Leave the feature out")
    read = context.read or (True,) * len(context.tokens)
    found: list[int | None] = []
    for start, end in spans:
        known = [z for z, r in zip(context.activations[start:end], read[start:end], strict=True) if r]
        found.append(int(max(known) / context.q > tau) if known else None)
    return found


def prompts(texts: Sequence[Context]) -> list[str]:
    """What each text is resampled with: the prompt it answers; its pair where the contexts do not tell the prompt;
    a plain text is by itself."""
    return [c.prompt or c.pair_id or c.text_id for c in texts]


def correlation(
    truth: Sequence[Sequence[float | None]], predicted: Sequence[Sequence[float]], *, draws: int = DRAWS,
    seed: int = 0, clusters: Sequence[str] | None = None,
) -> Estimate:  # fmt: skip
    """Pearson correlation over the units of all texts pooled, with an interval from resampling clusters of texts.

    Truth 1, 0, 1, 1 against 1, 0, 1, 0 gives 0.577. Not available, never 0, where either side is constant.

    Args:
        truth: for each text its units; None where the truth is not known, which leaves the unit out.
        predicted: the same shape.
        draws: resamples.
        seed: of the resampling.
        clusters: for each text the cluster it is resampled with, as of `prompts`; None: each text is one.

    Raises:
        DataError: another number of predictions than of units, or of clusters than of texts.
    """
    x, y, text = _pooled(truth, predicted)
    n = len(x)
    if not n:
        return Estimate.not_available("no units")
    for name, side in (("truth", x), ("prediction", y)):
        if side.min() == side.max():
            return Estimate.not_available(f"the {name} is the same in all units", n)
    # Centred, so that sums of squares do not lose the digits that matter.
    x, y = x - x.mean(), y - y.mean()
    sums = np.stack([np.ones(n), x, y, x * x, y * y, x * y])
    floor = (1e-12 * float(sums[3].sum()), 1e-12 * float(sums[4].sum()))
    codes = _codes(clusters, len(truth))[text]
    return bootstrap_of_sums(partial(_pearson, floor), sums, codes, draws=draws, seed=seed)


def detection(
    fires: Sequence[bool], found: Sequence[bool], *, draws: int = DRAWS, seed: int = 0,
    clusters: Sequence[str] | None = None,
) -> Estimate:  # fmt: skip
    """Balanced accuracy of predicting whether each text fires: mean of both rates of being right, by chance ½.

    Args:
        fires: whether the feature fires in each text.
        found: whether it is predicted to.
        draws, seed, clusters: as of `correlation`.

    Returns:
        With an interval from resampling clusters; not available where all texts fire, or none.

    Raises:
        DataError: another number of predictions, or of clusters, than of texts.
    """
    truth, guess = np.asarray(fires, np.float64), np.asarray(found, np.float64)
    if len(truth) != len(guess):
        raise DataError(f"{len(guess)} predictions for {len(truth)} texts", fix="Give one for each")
    right = truth * guess + (1 - truth) * (1 - guess)
    sums = np.stack([truth, truth * right, 1 - truth, (1 - truth) * right])
    return bootstrap_of_sums(_balanced, sums, _codes(clusters, len(truth)), draws=draws, seed=seed,
                             undefined="texts with the feature and texts without are both needed")  # fmt: skip


def _codes(clusters: Sequence[str] | None, n_texts: int) -> NDArray[np.int64]:
    """The cluster of each text [texts]."""
    if clusters is None:
        return np.arange(n_texts)
    if len(clusters) != n_texts:
        raise DataError(f"{len(clusters)} clusters for {n_texts} texts", fix="Give one for each")
    return cluster_codes(clusters)


def _pooled(
    truth: Sequence[Sequence[float | None]], predicted: Sequence[Sequence[float]]
) -> tuple[Floats, Floats, NDArray[np.int64]]:
    """Truth and prediction of all known units, and the text of each [n]."""
    if [len(t) for t in truth] != [len(p) for p in predicted]:
        raise DataError("another number of predictions than of units", fix="Give one for each unit of each text")
    pairs = zip(chain.from_iterable(truth), chain.from_iterable(predicted), strict=True)
    text = np.repeat(np.arange(len(truth)), [len(t) for t in truth])
    x, y = np.array([(math.nan if t is None else t, p) for t, p in pairs], np.float64).reshape(-1, 2).T
    known = ~np.isnan(x)
    return x[known], y[known], text[known]


def _pearson(floor: tuple[float, float], sums: Floats) -> float | None:
    n, x, y, xx, yy, xy = sums.tolist()
    if not n:
        return None
    var_x, var_y = xx - x * x / n, yy - y * y / n
    if var_x <= floor[0] or var_y <= floor[1]:  # constant in this draw
        return None
    return max(-1.0, min(1.0, (xy - x * y / n) / math.sqrt(var_x * var_y)))


def _balanced(sums: Floats) -> float | None:
    firing, hits, silent, rejections = sums.tolist()
    return (hits / firing + rejections / silent) / 2 if firing and silent else None
