"""Controls: scores that show whether the autoencoder matters at all."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from seamark.audit.crossfit import crossfit_logistic, crossfit_mean
from seamark.audit.scoring_features import alignment
from seamark.audit.scoring_inputs import Members, Method, ScoreInputs
from seamark.features.reading import Scan


def raw_differences(scan: Scan, hookpoint: str | None, members: Members) -> NDArray[np.float32]:
    """Mean raw activation of chosen minus that of rejected, [pairs, d_in]; read a part of the scan at a time.

    Raises:
        DataError: the scan kept no raw activations.
    """
    found = np.zeros((len(members.ids), 0), np.float32)
    for start, texts in scan.raw_parts(hookpoint):
        if not found.shape[1]:
            found = np.zeros((len(members.ids), texts.shape[1]), np.float32)
        for side, sign in ((0, 1), (1, -1)):
            row = members.rows[:, side] - start
            here = np.flatnonzero((row >= 0) & (row < len(texts)))
            found[here] += sign * np.asarray(texts[row[here]], np.float32)
    return found


def _raw(inputs: ScoreInputs) -> NDArray[np.float32]:
    """At the hookpoint of `inputs.sae`, else at the only one there is."""
    scan = inputs.the_scan
    configs = scan.manifest["sae_configs"]
    hookpoint = None if inputs.sae is None else configs[scan.sae_id(inputs.sae)]["hookpoint"]
    return raw_differences(scan, hookpoint, inputs.members)


def _direction(inputs: ScoreInputs) -> Mapping[str, float]:
    """Projection on the mean difference of the other folds' pairs."""
    members = inputs.members
    return members.values(crossfit_mean(_raw(inputs), members.prompts, inputs.folds, inputs.seed))


def _probe(inputs: ScoreInputs) -> Mapping[str, float]:
    members = inputs.members
    return members.values(crossfit_logistic(_raw(inputs), members.prompts, inputs.folds, inputs.seed))


def _untrained(inputs: ScoreInputs) -> Mapping[str, float]:
    return alignment(inputs.the_scan, inputs.controls["untrained"])


def _random_latents(inputs: ScoreInputs) -> Mapping[str, float]:
    return alignment(inputs.the_scan, inputs.controls["random_latents"])


METHODS = (
    Method("direction", "control", ("scan",),
           "difference of means of raw activations, taken from other folds of prompts", _direction, fitted=True),
    Method("untrained", "control", ("scan", "untrained"), "SAFER's score with an SAE that was never trained",
           _untrained),
    Method("random_latents", "control", ("scan", "random_latents"),
           "SAFER's score with random latents of equal activation", _random_latents),
    Method("probe", "control", ("scan",),
           "logistic regression on raw activations, fitted on other folds of prompts", _probe, fitted=True),
)  # fmt: skip
