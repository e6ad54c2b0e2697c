"""Learning curves: how detectors gain with the number of labelled texts."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from seamark.diagnose.probes import DetectorName, RiskInputs, fit
from seamark.diagnose.risk_metrics import auroc, drawn_units, with_interval
from seamark.diagnose.risk_splits import Fold, Split
from seamark.run import progress
from seamark.stats import Estimate

Integers = NDArray[np.int64]
LEARNERS: tuple[DetectorName, ...] = ("single", "sparse_max", "raw_probe", "words")
FIRST = 16
LEAST = 3
"""Texts of a class in the part to fit on."""


class LearningPoint(BaseModel):
    """A detector fitted on so many labelled texts of a language, settings and threshold included."""

    model_config = ConfigDict(frozen=True)

    language: str
    detector: DetectorName
    labelled: int
    positives: float
    """Of these, the mean over seeds."""
    seeds: int
    auroc: Estimate
    """Mean over seeds on held-out texts of the same sources; the interval draws seeds and clusters together."""


def learning_curve(
    x: RiskInputs, y: Integers, split: Split, *, detectors: Sequence[DetectorName] = LEARNERS, seeds: int = 3,
    draws: int = 1000, seed: int = 0,
) -> list[LearningPoint]:  # fmt: skip
    """AUROC on a fold's test texts after fitting on 16, 32, … and all of its other texts.

    Seed s takes fold s (modulo their number). Half of the texts are of the domain, as far as there are; those of a
    smaller number are among those of a larger. A quarter is for validation.
    """
    runs = [(_order(split.folds[s % len(split.folds)], y, seed + s), split.folds[s % len(split.folds)].test)
            for s in range(seeds)]  # fmt: skip
    whole = min(len(order) for order, _ in runs)
    sizes = [n for n in (FIRST << i for i in range(20)) if n < whole] + [whole]
    drawn = [np.concatenate(drawn_units(x.texts.clusters[test], draws, seed + s)) for s, (_, test) in enumerate(runs)]
    found = []
    with progress(f"learning curve, {split.language}", len(sizes), "sizes") as advance:
        for size in sizes:
            parts = [_parts(order[:size], y, test) for order, test in runs]
            found += [_point(x, y, split.language, name, size, parts, drawn, seed) for name in detectors]
            advance(1)
    return found


def _point(
    x: RiskInputs, y: Integers, language: str, name: DetectorName, size: int, parts: Sequence[Fold | None],
    drawn: Sequence[NDArray[np.float64]], seed: int,
) -> LearningPoint:  # fmt: skip
    kept = [(fold, weights) for fold, weights in zip(parts, drawn, strict=True) if fold is not None]
    if not kept:
        reason = f"fewer than {LEAST} texts of a class"
        return LearningPoint(language=language, detector=name, labelled=size, positives=0, seeds=0,
                             auroc=Estimate.not_available(reason))  # fmt: skip
    values, resampled, positives = [], [], []
    for fold, weights in kept:
        made = fit(name, x, y, fold)
        statistic = auroc(y[fold.test], made.score(fold.test), np.zeros(len(fold.test), np.int64))
        values.append(float(statistic(np.ones((1, len(fold.test))))[0]))
        resampled.append(statistic(weights))
        positives.append(float(y[fold.train].sum() + y[fold.validation].sum()))
    matrix = np.stack(resampled)
    chosen = np.random.default_rng(seed).integers(0, len(kept), (len(kept), matrix.shape[1]))
    means = np.take_along_axis(matrix, chosen, 0).mean(0)
    n = sum(len(fold.test) for fold, _ in kept)
    return LearningPoint(language=language, detector=name, labelled=size, positives=float(np.mean(positives)),
                         seeds=len(kept), auroc=with_interval(float(np.mean(values)), means, n))  # fmt: skip


def _order(fold: Fold, y: Integers, seed: int) -> Integers:
    """Texts to fit on, by turns of either class until one is used up."""
    rng = np.random.default_rng(seed)
    rows = rng.permutation(np.concatenate([fold.train, fold.validation]))
    turn = np.empty(len(rows))
    for label in (0, 1):
        mine = np.flatnonzero(y[rows] == label)
        turn[mine] = np.arange(len(mine)) + label / 2
    ordered: Integers = rows[np.argsort(turn, kind="stable")]
    return ordered


def _parts(rows: Integers, y: Integers, test: Integers) -> Fold | None:
    """Every fourth text of each class for validation; None where too few are left."""
    check = np.zeros(len(rows), np.bool_)
    for label in (0, 1):
        check[np.flatnonzero(y[rows] == label)[3::4]] = True
    train, validation = rows[~check], rows[check]
    enough = min((y[train] == 1).sum(), (y[train] == 0).sum()) >= LEAST
    return Fold(train, validation, test) if enough and 0 < y[validation].sum() < len(validation) else None
