"""The combination: several scores made one probability that a label is wrong, learned on noise of known ids.

Labels that are known to be wrong are made: flip further labels of the same data, take all scores anew, and learn which
of them find those flips (`noise.make_noise`). What was learned is then applied to the data as it was, whose prompts
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
from scipy.optimize import brentq
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
    """Share of wrong labels among those it was learned on."""
    n: int
    n_wrong: int

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


def learn(signals: Mapping[str, PairScores], ids: Sequence[str], wrong: Collection[str]) -> Combination:
    """Learn how to weigh scores from pairs of known labels.

    Logistic regression with the penalty ‖w‖² / 2 (C = 1), which decides only where scores say the same.

    Args:
        signals: scores by method, all taken on the data as it is with the known wrong labels in it.
        ids: pairs to learn from, one group; those that lack a signal are left out.
        wrong: which of them are wrong.

    Raises:
        ConfigError: no signals.
        DataError: fewer than 20 wrong or 20 right labels.
    """
    if not signals:
        raise ConfigError("no scores to combine")
    names = tuple(signals)
    kept, z = _quantiles(signals, names, ids)
    is_wrong = np.asarray([i in wrong for i in kept])
    n, n_wrong = len(kept), int(is_wrong.sum())
    if min(n_wrong, n - n_wrong) < MIN_LABELS:
        raise DataError(f"{n_wrong} wrong and {n - n_wrong} right labels are too few to learn from",
                        fix=f"Flip more: at least {MIN_LABELS} of each are needed")  # fmt: skip
    from sklearn.linear_model import LogisticRegression  # here, because it is slow to import

    model = LogisticRegression(C=1.0, max_iter=1000).fit(z, is_wrong)
    return Combination(
        signals=names, weights=tuple(model.coef_[0].tolist()), intercept=float(model.intercept_[0]),
        prior=n_wrong / n, n=n, n_wrong=n_wrong,
    )  # fmt: skip


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
