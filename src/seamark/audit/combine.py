"""The combination: several scores made one probability that a label is wrong, learned on noise of known ids.

Flips of known ids are made: flip further labels of the same data, take all scores anew, and learn which of them find
those flips (`noise.make_noise`). Some labels were wrong before, which a flip makes right; the share of those is told to
the regression, or it would learn to doubt itself. What was learned is then applied to the data as it was, whose prompts
should be others than those that were flipped. Scores enter as normal quantiles of their ranks within the group, so
their scales do not matter and may differ between learning and use.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from math import nan
from os import PathLike
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from scipy.optimize import brentq, minimize
from scipy.special import expit, logit, ndtri
from scipy.stats import rankdata

from seamark.audit.scoring_inputs import Method, PairScores, ScoreInputs, given
from seamark.errors import ConfigError, DataError, FormatError
from seamark.run import read_json, write_json

Floats = NDArray[np.float64]
NAME = "combined"
MIN_LABELS = 20
"""Wrong labels, and right ones, that learning takes at least."""


class Combination(BaseModel):
    """A logistic regression of "the label is wrong" on scores."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal[1] = 1
    signals: tuple[str, ...]
    """Methods whose scores it takes."""
    weights: tuple[float, ...]
    """Of each one's normal quantile; negative where a high score speaks for the label."""
    intercept: float
    prior: float = Field(gt=0, lt=1)
    """Share of wrong labels among those it was learned on, flips and earlier ones."""
    n: int
    n_flipped: int
    wrong_before: float = Field(default=0.0, ge=0, lt=0.5)
    """Share of wrong labels before the flips, as it was told."""

    @model_validator(mode="after")
    def _check(self) -> Combination:
        if not self.signals or len(self.signals) != len(self.weights):
            raise ValueError("as many weights as signals, and at least one")
        return self

    def probability(
        self, signals: Mapping[str, PairScores], ids: Sequence[str], prior: float | None = None
    ) -> dict[str, float]:
        """Probability that each label is wrong; a pair that lacks one of the signals has none.

        Args:
            signals: scores by method; further ones are ignored.
            ids: the pairs of the group; ranks are taken among those that have all signals.
            prior: share of wrong labels that is expected among them, which the mean probability will be; without it,
                log-odds stay as they were learned.

        Raises:
            ConfigError: a signal is missing, or a prior outside (0, 1).
            DataError: no pair has all signals.
        """
        if prior is not None and not 0 < prior < 1:
            raise ConfigError(f"the prior is a share between 0 and 1, not {prior:g}")
        kept, z = _quantiles(signals, self.signals, ids)
        odds: Floats = z @ np.asarray(self.weights) + self.intercept
        found: Floats = expit(odds if prior is None else odds + _shift(odds, prior))
        return dict(zip(kept, found.tolist(), strict=True))

    def scores(self, signals: Mapping[str, PairScores], ids: Sequence[str]) -> PairScores:
        """Log-odds that the label is right, higher = more clearly right; errors as of `probability`."""
        kept, z = _quantiles(signals, self.signals, ids)
        values = -(z @ np.asarray(self.weights) + self.intercept)
        return PairScores(method=NAME, values=dict(zip(kept, values.tolist(), strict=True)))

    def save(self, path: str | PathLike[str]) -> None:
        write_json(Path(path), self)

    @classmethod
    def load(cls, path: str | PathLike[str]) -> Combination:
        """Read a file of `save`. Raises `FormatError` on a foreign one."""
        try:
            return cls.model_validate(read_json(Path(path)))
        except ValidationError as e:
            first = e.errors()[0]
            where = f"{path}, key {'.'.join(map(str, first['loc']))}" if first["loc"] else str(path)
            raise FormatError(f"not a combination of scores: {first['msg']}", where=where) from None


def learn(
    signals: Mapping[str, PairScores], ids: Sequence[str], flipped: Collection[str], wrong_before: float = 0.0
) -> Combination:
    """Learn how to weigh scores from labels that were flipped on purpose.

    P(wrong | scores) = σ(θ·z + b), with the penalty ‖θ‖² / 2 (C = 1), which decides only where scores say the same.
    What is seen is not which labels are wrong but which were flipped: of wrong labels the share α was flipped, and of
    right ones the share β, because a flip makes a wrong label right. So P(flipped | scores) = α·P(wrong) + β·(1 −
    P(wrong)) is made most likely (class-conditional noise of known rates, Natarajan et al. 2013). Without wrong labels
    before, this is logistic regression.

    Args:
        signals: scores by method, all taken on the data as it is with the flips in it.
        ids: pairs to learn from, one group; those that lack a signal are left out.
        flipped: which of them were flipped.
        wrong_before: share of labels that were wrong before the flips.

    Raises:
        ConfigError: no signals, or half of the labels and more were wrong before.
        DataError: fewer than 20 that were flipped or 20 that were not.
    """
    if not signals:
        raise ConfigError("no scores to combine")
    if not 0 <= wrong_before < 0.5:
        raise ConfigError(f"the share of labels that were wrong before lies from 0 to below 0.5, not {wrong_before:g}")
    names = tuple(signals)
    kept, z = _quantiles(signals, names, ids)
    is_flipped = np.asarray([i in flipped for i in kept])
    n, n_flipped = len(kept), int(is_flipped.sum())
    if min(n_flipped, n - n_flipped) < MIN_LABELS:
        raise DataError(f"{n_flipped} flipped labels and {n - n_flipped} others are too few to learn from",
                        fix=f"Flip more: at least {MIN_LABELS} of each are needed")  # fmt: skip
    rate = n_flipped / n
    found = _fit(z, is_flipped, rate, wrong_before)
    return Combination(
        signals=names, weights=tuple(found[:-1].tolist()), intercept=float(found[-1]),
        prior=rate * (1 - wrong_before) + (1 - rate) * wrong_before, n=n, n_flipped=n_flipped,
        wrong_before=wrong_before,
    )  # fmt: skip


def _fit(z: Floats, flipped: NDArray[np.bool_], rate: float, before: float) -> Floats:
    """Weights and intercept of P(wrong), [signals + 1]."""
    from sklearn.linear_model import LogisticRegression  # here, because it is slow to import

    model = LogisticRegression(C=1.0, max_iter=1000).fit(z, flipped)
    start: Floats = np.append(model.coef_[0], model.intercept_[0])
    if before == 0:
        return start
    of_wrong = rate * (1 - before) / (rate * (1 - before) + (1 - rate) * before)
    of_right = rate * before / (rate * before + (1 - rate) * (1 - before))
    columns = np.column_stack([z, np.ones(len(z))])

    def loss(theta: Floats) -> tuple[float, Floats]:
        wrong = expit(columns @ theta)
        seen = of_right + (of_wrong - of_right) * wrong
        likely = -np.where(flipped, np.log(seen), np.log1p(-seen)).sum()
        by_odds = (of_wrong - of_right) * wrong * (1 - wrong) * np.where(flipped, -1 / seen, 1 / (1 - seen))
        weights = np.append(theta[:-1], 0.0)
        return float(likely + weights @ weights / 2), columns.T @ by_odds + weights

    found: Floats = minimize(loss, start, jac=True, method="L-BFGS-B").x
    return found


def _shift(odds: Floats, prior: float) -> float:
    """What to add to log-odds so that the mean probability is the prior.

    The difference of the two priors' log-odds would not do: ranks lie otherwise where another share of labels is wrong.
    """
    middle = float(logit(prior))
    low, high = middle - float(odds.max()) - 1.0, middle - float(odds.min()) + 1.0
    found: float = brentq(lambda shift: float(expit(odds + shift).mean()) - prior, low, high)
    return found


def _quantiles(signals: Mapping[str, PairScores], names: Sequence[str], ids: Sequence[str]) -> tuple[list[str], Floats]:
    """(ids that have all signals, normal quantiles of their ranks [ids, signals]); ties share their mean rank."""
    if missing := [name for name in names if name not in signals]:
        raise ConfigError(f"the combination takes scores that are not there: {', '.join(missing)}",
                          where="signals", fix="Score the pairs by these methods too")  # fmt: skip
    kept = [i for i in ids if all(i in signals[name].values for name in names)]
    if not kept:
        raise DataError(f"none of the {len(ids)} pairs has all scores: {', '.join(names)}")
    columns = [ndtri((rankdata([signals[name].values[i] for i in kept]) - 0.5) / len(kept)) for name in names]
    return kept, np.stack(columns, axis=1)


def _combined(inputs: ScoreInputs) -> Mapping[str, float]:
    combination = given(inputs.combination, "a learned combination", "--combination")
    if inputs.pairs is not None:
        ids = inputs.pairs.group(inputs.group).ids
    elif inputs.scan is not None:
        ids = inputs.members.ids
    else:
        ids = sorted(set().union(*(scores.values for scores in inputs.signals.values())))
    return dict.fromkeys(ids, nan) | combination.scores(inputs.signals, ids).values


METHODS = (
    Method(NAME, "combination", ("combination", "signals"),
           "several scores weighed as they find additional noise in other prompts", _combined, fitted=True),
)  # fmt: skip
