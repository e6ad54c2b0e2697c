"""Pair scores: how clearly a pair's label looks right, by many methods behind one door.

Every method gives one number per pair id, higher meaning more clearly right. The highest are what poisoning flips, the
lowest what denoising removes (SAFER, arXiv 2507.00665). `METHODS` lists them, kind by kind: `scoring_features` has
SAFER's score and its variants, `scoring_baselines` what knows no features, `scoring_controls` what shows whether the
autoencoder matters, `combine` the combination.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isfinite
from typing import TYPE_CHECKING, TypedDict, Unpack

from seamark.audit import combine, scoring_baselines, scoring_controls, scoring_features
from seamark.audit.scanned import check_same_labels
from seamark.audit.scoring_inputs import Kind, Method, PairScores, ScoreInputs, Scorer
from seamark.errors import ConfigError, DataError
from seamark.features.reading import Scan
from seamark.features.sets import FeatureSet
from seamark.text.pairs import Pairs

if TYPE_CHECKING:
    from seamark.audit.combine import Combination

__all__ = ["METHODS", "Kind", "Method", "PairScores", "ScoreInputs", "Scorer", "score_pairs"]

METHODS: dict[str, Method] = {
    method.name: method
    for room in (scoring_features, scoring_baselines, scoring_controls, combine)
    for method in room.METHODS
}
_HOW = {
    "scan": "a scan (--scan)",
    "features": "a feature set (--features)",
    "pairs": "pairs (--pairs)",
    "untrained": "a feature set of an untrained SAE (--controls untrained=FILE)",
    "random_latents": "a feature set of random latents (--controls random_latents=FILE)",
    "margins": "margins by models that never saw the prompt (--margins)",
    "judged": "a language model's judgements (--llm)",
    "combination": "a learned combination (--combination)",
    "signals": "scores by other methods (--signals)",
}


class MoreInputs(TypedDict, total=False):
    """Further fields of `ScoreInputs`."""

    group: str
    sae: str | None
    controls: Mapping[str, FeatureSet]
    margins: Mapping[str, Sequence[float]] | None
    judged: Mapping[str, float] | None
    combination: Combination | None
    signals: Mapping[str, PairScores]
    folds: int


def score_pairs(
    scan: Scan | None = None,
    features: FeatureSet | None = None,
    *,
    method: str = "safer",
    pairs: Pairs | None = None,
    seed: int = 0,
    **more: Unpack[MoreInputs],
) -> PairScores:
    """Score every pair of a scan (or of `pairs`, for methods that read no model).

    Methods that are fitted score the pairs of `group` alone. They are fitted on all of that group's pairs in the scan,
    whichever are asked for.

    Args:
        scan: a scan of the pairs; whatever rests on latents, activations or rewards needs it.
        features: the `FeatureSet` that SAFER's score and its variants read.
        method: one of `METHODS`.
        pairs: the pairs to score; with a scan, the scores of just these.
        seed: of `random`, and of the folds of cross-fitted methods.
        **more: further fields of `ScoreInputs`.

    Raises:
        ConfigError: an unknown method, or one whose inputs are missing.
        DataError: a pair of `pairs` that the scan does not know, or knows with the other label; a group without pairs,
            or with too few to fit on.
    """
    if method not in METHODS:
        raise ConfigError(f"no scoring method {method!r}", fix=f"The methods are: {', '.join(sorted(METHODS))}")
    about, inputs = METHODS[method], ScoreInputs(scan, features, pairs, seed, **more)
    _check(about, inputs)
    if scan is not None and pairs is not None and any(i in scan.rows_by_pair for i in pairs.ids):
        check_same_labels(scan, pairs)
    found = about.scorer(inputs)
    wanted = _wanted(about, inputs, found)
    return PairScores(method=method, values={i: float(found[i]) for i in wanted if isfinite(found[i])}, seed=seed)


def _check(method: Method, inputs: ScoreInputs) -> None:
    """`ConfigError` where something the method needs is missing."""
    for need in method.needs:
        if not any(_has(inputs, name) for name in need.split(" or ")):
            what = " or ".join(_HOW[name] for name in need.split(" or "))
            raise ConfigError(f"the method {method.name!r} needs {what}", fix="See `seamark audit score --list`")
    if inputs.folds < 2:
        raise ConfigError(f"{inputs.folds} folds", where="folds", fix="Take at least 2")


def _has(inputs: ScoreInputs, name: str) -> bool:
    if name in ("untrained", "random_latents"):
        return name in inputs.controls
    value = getattr(inputs, name)
    return bool(value) if name == "signals" else value is not None


def _wanted(method: Method, inputs: ScoreInputs, found: Mapping[str, float]) -> Sequence[str]:
    """Ids whose score is asked for and was to be had. `DataError` on pairs that were not scanned."""
    if inputs.pairs is None:
        return list(found)
    asked = inputs.pairs.group(inputs.group).ids if method.fitted else inputs.pairs.ids
    known = found if inputs.scan is None else {**dict.fromkeys(inputs.scan.rows_by_pair), **found}
    missing = [i for i in asked if i not in known]
    if missing:
        raise DataError(
            f"{len(missing)} of {len(asked)} pairs were not scanned, the first being {missing[0]!r}",
            fix="Scan the same pairs that are scored",
        )
    return [i for i in asked if i in found]
