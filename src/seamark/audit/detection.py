"""How well pair scores find wrong labels of known ids, within a group: AUROC, recall among the worst, calibration.

Intervals resample prompts, and seeds where there are several, together. Only pairs that have a score count, wrong ones
too.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict
from sklearn.metrics import roc_auc_score

from seamark.audit.crossfit import prompt_codes
from seamark.errors import ConfigError, DataError
from seamark.stats import Estimate, bootstrap_of_sums

Floats = NDArray[np.float64]
Weighted = Callable[[Floats], float]
"""A measure where each prompt counts so many times, [prompts]; NaN where it is undefined."""
DRAWS = 1000
NEEDS_BOTH = "needs both right and wrong labels"


class Trial(NamedTuple):
    """The scores of one seed, and which labels are wrong."""

    values: Mapping[str, float]
    wrong: Collection[str]


class Detection(BaseModel):
    """How well scores find wrong labels, on average over seeds."""

    model_config = ConfigDict(frozen=True)

    auroc: Estimate
    """Chance that a wrong label scores lower than a right one; ties count one half."""
    recall: dict[float, Estimate]
    """{share of the group: share of all wrong labels that are among the lowest scores of that share}."""


class CalibrationBin(BaseModel):
    """Pairs of like probability."""

    model_config = ConfigDict(frozen=True)

    n: int
    predicted: float
    """Their mean probability."""
    observed: float
    """Share of them whose label is wrong."""


class Calibration(BaseModel):
    """How far probabilities of "the label is wrong" can be taken at their word."""

    model_config = ConfigDict(frozen=True)

    brier: Estimate
    """Mean squared difference of probability and truth."""
    brier_of_share: Estimate
    """What the share of wrong labels as everybody's probability would have: more says that the scores say something."""
    ece: Estimate
    """Mean difference of predicted and observed share over the bins, by their sizes; no interval."""
    bins: tuple[CalibrationBin, ...]
    """Of equal sizes but for ties, by rising probability."""


def detection_auroc(values: Mapping[str, float], wrong: Collection[str]) -> Estimate:
    """AUROC of "low score" as a sign of a wrong label, over the ids of `values`.

    Not available where all or none of the ids are wrong.
    """
    ids = sorted(values)
    labels = [i in wrong for i in ids]
    if not any(labels) or all(labels):
        return Estimate.not_available(NEEDS_BOTH, len(ids))
    return Estimate(value=float(roc_auc_score(labels, [-values[i] for i in ids])), n=len(ids))


def detect(
    trials: Sequence[Trial], prompts: Mapping[str, str], shares: Sequence[float] = (0.05,), *, draws: int = DRAWS
) -> Detection:
    """AUROC and recall of scores, mean over seeds.

    Args:
        trials: one for each seed.
        prompts: {pair id: hash of its prompt}.
        shares: shares of the group, worst first; halves are rounded up to a number of pairs. Pairs that tie at the edge
            count in proportion.

    Raises:
        ConfigError: a share outside (0, 1].
        DataError: a pair without a prompt.
    """
    if any(not 0 < share <= 1 for share in shares):
        raise ConfigError(f"shares lie between 0 and 1, not {list(shares)}")
    sorted_trials = _sorted(trials, prompts)
    return Detection(
        auroc=_resampled([t.auroc for t in sorted_trials], sorted_trials, draws),
        recall={s: _resampled([t.recall_in(s) for t in sorted_trials], sorted_trials, draws) for s in shares},
    )


def compare(
    ours: Sequence[Trial], theirs: Sequence[Trial], prompts: Mapping[str, str], *, draws: int = DRAWS
) -> Estimate:
    """AUROC of our scores less that of theirs, seed by seed, over the pairs that both have scored.

    Raises:
        DataError: seeds that do not match, other wrong labels, or a pair without a prompt.
    """
    if len(ours) != len(theirs) or any(set(a.wrong) != set(b.wrong) for a, b in zip(ours, theirs, strict=True)):
        raise DataError("the trials to compare have other seeds or other wrong labels", fix="Pair them seed by seed")
    both = [(_kept(a, b), _kept(b, a)) for a, b in zip(ours, theirs, strict=True)]
    trials = _sorted([a for a, _ in both] + [b for _, b in both], prompts)
    first, second = trials[: len(both)], trials[len(both) :]

    def difference(a: SortedTrial, b: SortedTrial) -> Weighted:
        return lambda times: a.auroc(times) - b.auroc(times)

    return _resampled([difference(a, b) for a, b in zip(first, second, strict=True)], first, draws)


def calibration(
    probabilities: Mapping[str, float], wrong: Collection[str], bins: int = 10,
    prompts: Mapping[str, str] | None = None, seeds: Mapping[str, int] | None = None,
) -> Calibration:  # fmt: skip
    """How well probabilities that labels are wrong agree with which are wrong.

    Args:
        probabilities: {pair id: probability}.
        bins: parts of equal sizes that the pairs are cut into, by rising probability. Equal probabilities stay
            together, so there may be fewer.
        prompts: {pair id: hash of its prompt}, which the Brier score's interval resamples; without it, pairs.
        seeds: {pair id: seed}, which it resamples, too; ids of all seeds differ, prompts do not.

    Raises:
        ConfigError: fewer than one bin.
        DataError: a pair without a prompt, or a number that is no probability.
    """
    if bins < 1:
        raise ConfigError(f"{bins} bins", where="bins", fix="Take at least one")
    ids, codes = prompt_codes(probabilities, prompts or {i: i for i in probabilities})
    p = np.asarray([probabilities[i] for i in ids], dtype=np.float64)
    if not ((p >= 0) & (p <= 1)).all():
        raise DataError("a probability lies outside 0 to 1")
    if not ids:
        nothing = Estimate.not_available("no pairs")
        return Calibration(brier=nothing, brier_of_share=nothing, ece=nothing, bins=())
    truth = np.asarray([float(i in wrong) for i in ids])
    found = tuple(CalibrationBin(n=len(part), predicted=float(p[part].mean()), observed=float(truth[part].mean()))
                  for part in _bins(p, bins))  # fmt: skip
    ece = sum(b.n * abs(b.predicted - b.observed) for b in found) / len(ids)
    constant = float(truth.mean() * (1 - truth.mean()))
    return Calibration(brier=_brier((p - truth) ** 2, codes, [seeds[i] if seeds else 0 for i in ids]),
                       brier_of_share=Estimate(value=constant, n=len(ids)), ece=Estimate(value=ece, n=len(ids)),
                       bins=found)  # fmt: skip


def _brier(errors: Floats, prompts: NDArray[np.int64], seeds: Sequence[int]) -> Estimate:
    """Mean of errors [n]; a row of errors and of how many there are for each seed, which need not have all prompts."""
    of_seed = np.asarray(seeds)[None, :] == np.unique(seeds)[:, None]
    rows = np.stack([of_seed * errors, of_seed.astype(np.float64)])
    return bootstrap_of_sums(lambda sums: float(sums[0] / sums[1]) if sums[1] else None, rows, prompts, draws=2000)


def _bins(p: Floats, bins: int) -> list[NDArray[np.int64]]:
    """Rows of each bin. A run of equal numbers lies where its middle does: cut, its parts would differ by chance."""
    order = np.argsort(p, kind="stable")
    ranked = p[order]
    twice_the_middle = np.searchsorted(ranked, ranked, "left") + np.searchsorted(ranked, ranked, "right") - 1
    number = twice_the_middle * bins // (2 * len(p))
    return [order[number == k] for k in np.unique(number)]


@dataclass(frozen=True)
class SortedTrial:
    """A trial's pairs by rising score, so that a measure under other weights is a few sums."""

    wrong: NDArray[np.bool_]
    """[pairs]"""
    prompt: NDArray[np.int64]
    """Code of each pair's prompt, [pairs]."""
    starts: NDArray[np.int64]
    """Where each distinct score begins."""

    @property
    def n(self) -> int:
        return len(self.wrong)

    def auroc(self, times: Floats) -> float:
        """Share of (wrong, right) couples in which the wrong one scores lower; ties one half."""
        wrong, right = self._tied(times)
        couples = wrong.sum() * right.sum()
        above = right.sum() - np.cumsum(right) + 0.5 * right
        return float(wrong @ above / couples) if couples else float("nan")

    def recall_in(self, share: float) -> Weighted:
        """Measures the share of wrong labels within the lowest `share` of all pairs."""

        def recall(times: Floats) -> float:
            wrong, right = self._tied(times)
            size = wrong + right
            room = np.floor(share * size.sum() + 0.5 + 1e-9)
            before = np.cumsum(size) - size
            inside = np.clip((room - before) / np.where(size > 0, size, 1.0), 0.0, 1.0)
            return float(wrong @ inside / wrong.sum()) if wrong.sum() else float("nan")

        return recall

    def _tied(self, times: Floats) -> tuple[Floats, Floats]:
        """Wrong and right labels at each distinct score."""
        weights = times[self.prompt]
        wrong = np.where(self.wrong, weights, 0.0)
        if len(self.starts) == self.n:
            return wrong, weights - wrong
        return np.add.reduceat(wrong, self.starts), np.add.reduceat(weights - wrong, self.starts)


def _sorted(trials: Sequence[Trial], prompts: Mapping[str, str]) -> list[SortedTrial]:
    """The trials with one code for each prompt in all of them."""
    codes: dict[str, int] = {}
    found = []
    for trial in trials:
        ids, _ = prompt_codes(trial.values, prompts)
        values = np.asarray([trial.values[i] for i in ids], dtype=np.float64)
        order = np.argsort(values, kind="stable")
        prompt = np.asarray([codes.setdefault(prompts[i], len(codes)) for i in ids], dtype=np.int64)
        wrong = set(trial.wrong)
        starts = np.flatnonzero(np.r_[True, np.diff(values[order]) != 0]) if ids else np.zeros(0, np.int64)
        found.append(SortedTrial(np.asarray([i in wrong for i in ids], dtype=bool)[order], prompt[order], starts))
    return found


def _kept(trial: Trial, other: Trial) -> Trial:
    return Trial({i: v for i, v in trial.values.items() if i in other.values}, trial.wrong)


def _resampled(measures: Sequence[Weighted], trials: Sequence[SortedTrial], draws: int) -> Estimate:
    """Mean of a measure over trials; the interval draws seeds and prompts with replacement, together."""
    n = max((t.n for t in trials), default=0)
    if n == 0:
        return Estimate.not_available("no pairs")
    n_prompts = 1 + max(int(t.prompt.max()) for t in trials if t.n)
    once = np.ones(n_prompts)
    whole = [m(once) if t.n else float("nan") for m, t in zip(measures, trials, strict=True)]
    if lacking := sum(not np.isfinite(v) for v in whole):
        seeds = f" ({lacking} of {len(whole)} seeds have not)" if len(whole) > 1 else ""
        return Estimate.not_available(NEEDS_BOTH + seeds, n)
    rng = np.random.default_rng(0)
    drawn: list[Any] = []
    for _ in range(draws):
        times = np.bincount(rng.integers(0, n_prompts, n_prompts), minlength=n_prompts).astype(np.float64)
        seeds_drawn = rng.integers(0, len(trials), len(trials))
        of_seed = {s: measures[s](times) for s in set(seeds_drawn.tolist())}
        drawn.append(np.mean([of_seed[s] for s in seeds_drawn.tolist()]))
    kept = np.asarray(drawn)[np.isfinite(drawn)]
    value = float(np.mean(whole))
    if len(kept) < draws // 2 or n_prompts == 1:
        return Estimate(value=value, n=n, reason="interval undefined: too few valid resamples")
    low, high = np.quantile(kept, [0.025, 0.975])
    return Estimate(value=value, low=float(low), high=float(high), n=n)
