"""SAFER's score of a pair (arXiv 2507.00665) and its variants: weighted, by category, without length, cross-fitted."""

from __future__ import annotations

from collections.abc import Mapping
from functools import reduce

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from seamark.audit.crossfit import crossfit_logistic, fold_of
from seamark.audit.scoring_inputs import Members, Method, ScoreInputs, given
from seamark.errors import ConfigError
from seamark.features.contrast import contrast
from seamark.features.reading import Scan, text_scores
from seamark.features.sets import FeatureSet

Floats = NDArray[np.float64]
MIN_CATEGORY = 100
"""Pairs of a category below which it has no features of its own."""
HUBER = 1.345
"""Residuals beyond this many robust standard deviations count linearly, not squared."""


def filled(features: FeatureSet) -> FeatureSet:
    """The set, unless it is empty."""
    if len(features) == 0:
        raise ConfigError("the feature set is empty", fix="Select features first; with none, every score would be 0")
    return features


def alignment(scan: Scan, features: FeatureSet) -> dict[str, float]:
    """g(chosen) − g(rejected) of every pair; NaN without scoring positions. `ConfigError` on an empty set."""
    filled(features)
    g = list(text_scores(scan, features).values())
    return {pair: g[chosen] - g[rejected] for pair, (chosen, rejected) in scan.rows_by_pair.items()}


def latent_differences(scan: Scan, sae_id: str | None, members: Members) -> sp.csr_matrix:
    """Pooled latents of chosen minus those of rejected, [pairs, d_sae], float32; made a part of the scan at a time."""
    found: list[sp.csr_matrix] = []
    for start, texts in scan.pooled_parts(sae_id, "mean"):
        mine = members.rows - start
        pair, side = np.nonzero((mine >= 0) & (mine < texts.shape[0]))
        signs = np.where(side == 0, 1.0, -1.0).astype(np.float32)
        shape = len(members.ids), texts.shape[0]
        found.append(sp.csr_matrix((signs, (pair, mine[pair, side])), shape=shape) @ texts.astype(np.float32))
    while len(found) > 1:  # two by two, so that no entry is copied more often than the logarithm of the parts
        found = [reduce(lambda a, b: a + b, found[i : i + 2]) for i in range(0, len(found), 2)]
    return found[0]


def _features(inputs: ScoreInputs) -> FeatureSet:
    return filled(given(inputs.features, "a feature set", "--features"))


def _safer(inputs: ScoreInputs) -> Mapping[str, float]:
    return alignment(inputs.the_scan, _features(inputs))


def _activations(inputs: ScoreInputs, features: FeatureSet, members: Members) -> Floats:
    """Each feature's mean activation on chosen minus that on rejected, [pairs, features]."""
    found = np.zeros((len(members.ids), len(features)))
    scan = inputs.the_scan
    for sae_id in dict.fromkeys(f.sae for f in features.features):
        mine = [i for i, f in enumerate(features.features) if f.sae == sae_id]
        columns = scan.columns(sae_id, features.latents(sae_id)).tocsr()
        found[:, mine] = (columns[members.rows[:, 0]] - columns[members.rows[:, 1]]).toarray()
    return found


def _weighted(inputs: ScoreInputs) -> Mapping[str, float]:
    """Σ sign · |s_i| · (activation on chosen − on rejected)."""
    features = _features(inputs)
    without = next((f for f in features.features if f.score is None), None)
    if without is not None:
        raise ConfigError(f"feature {without.sae}/{without.latent} has no score to be weighted by",
                          fix="Take a feature set of `seamark contrast`")  # fmt: skip
    weights = np.asarray([f.sign * abs(f.score or 0.0) for f in features.features])
    return inputs.members.values(_activations(inputs, features, inputs.members) @ weights)


def _crossfit(inputs: ScoreInputs) -> Mapping[str, float]:
    """The set's features, each with the contrastive score it has on the other folds of prompts as its weight.

    Only the choice of features has seen the pair. A feature that is silent on the other folds weighs nothing.
    """
    features, members = _features(inputs), inputs.members
    differences = _activations(inputs, features, members)
    fold = fold_of(dict(zip(members.ids, members.prompts, strict=True)), inputs.folds, inputs.seed)
    mine = np.asarray([fold[i] for i in members.ids])
    scores = np.zeros(len(members.ids))
    for k in range(mine.max() + 1):
        others = [i for i in members.ids if fold[i] != k]
        scores[mine == k] = differences[mine == k] @ _contrastive(inputs, features, others)
    return members.values(scores)


def _contrastive(inputs: ScoreInputs, features: FeatureSet, pairs: list[str]) -> Floats:
    """The features' contrastive scores on some pairs, [features]; 0 where a feature never fires on them."""
    found = np.zeros(len(features))
    for sae_id in dict.fromkeys(f.sae for f in features.features):
        scores = contrast(inputs.the_scan, inputs.group, sae_id, pairs=pairs).scores
        for i, f in enumerate(features.features):
            if f.sae == sae_id:
                found[i] = scores[f.latent]
    return found


def _by_category(inputs: ScoreInputs) -> Mapping[str, float]:
    """As `safer`, with as many features as the set has, chosen by the contrast of the pair's own category.

    They are taken from all latents of the set's autoencoders, without a rating. Pairs without a category, and those
    of one with fewer than `MIN_CATEGORY` pairs, have the set's own features.
    """
    features, members, scan = _features(inputs), inputs.members, inputs.the_scan
    category = {p.id: p.category for p in given(inputs.pairs, "pairs", "--pairs")}
    of: dict[str, list[str]] = {}
    for pair in members.ids:
        of.setdefault(category.get(pair, ""), []).append(pair)
    whole = alignment(scan, features)
    found = {pair: whole[pair] for pair in members.ids}
    sae_ids = dict.fromkeys(f.sae for f in features.features)
    for name, pairs in of.items():
        if not name or len(pairs) < MIN_CATEGORY:
            continue
        tops = [f for s in sae_ids for f in contrast(scan, inputs.group, s, pairs=pairs).top(len(features)).features]
        own = FeatureSet(features=tuple(tops)).strongest(len(features))
        scores = alignment(scan, own)
        found |= {pair: scores[pair] for pair in pairs}
    return found


def _without_length(inputs: ScoreInputs) -> Mapping[str, float]:
    """g(chosen) − g(rejected) less what a robust line through 0 on the difference of log lengths explains of it."""
    members, scan = inputs.members, inputs.the_scan
    whole = alignment(scan, _features(inputs))
    y = np.asarray([whole[i] for i in members.ids])
    lengths = np.log1p(scan.texts["n_response"].to_numpy().astype(np.float64))
    x = lengths[members.rows[:, 0]] - lengths[members.rows[:, 1]]
    return members.values(y - huber_slope(x, y) * x)


def huber_slope(x: Floats, y: Floats, rounds: int = 50) -> float:
    """Slope of the line through 0 with the least Huber loss, by reweighting; 0 where x never differs from 0.

    Through 0, so that swapping a pair, which negates its x and its y, leaves the slope as it is.
    """
    slope = 0.0
    for _ in range(rounds):
        off = np.abs(y - slope * x)
        unit = float(np.median(off)) / 0.6745
        weights = np.minimum(1.0, HUBER * unit / np.maximum(off, 1e-300)) if unit > 0 else np.ones_like(off)
        total = float(weights @ (x * x))
        if total == 0:
            return 0.0
        new = float(weights @ (x * y)) / total
        if abs(new - slope) <= 1e-10 * max(abs(new), 1e-300):
            return new
        slope = new
    return slope


def _latents(inputs: ScoreInputs) -> Mapping[str, float]:
    """Cross-fitted logistic regression on the pooled latents of the whole autoencoder."""
    members = inputs.members
    x = latent_differences(inputs.the_scan, inputs.sae, members)
    return members.values(crossfit_logistic(x, members.prompts, inputs.folds, inputs.seed))


METHODS = (
    Method("safer", "features", ("scan", "features"), "alignment of chosen less that of rejected (SAFER)", _safer),
    Method("safer_weighted", "features", ("scan", "features"), "SAFER's, features weighted by contrastive score",
           _weighted, fitted=True),
    Method("safer_category", "features", ("scan", "features", "pairs"),
           "SAFER's, with features chosen for each category of pairs", _by_category, fitted=True),
    Method("safer_length", "features", ("scan", "features"),
           "SAFER's, less what the difference in length explains of it", _without_length, fitted=True),
    Method("safer_crossfit", "features", ("scan", "features"),
           "SAFER's, with signs and weights from other folds of prompts", _crossfit, fitted=True),
    Method("latents", "features", ("scan",), "logistic regression on all latents, fitted on other folds of prompts",
           _latents, fitted=True),
)  # fmt: skip
