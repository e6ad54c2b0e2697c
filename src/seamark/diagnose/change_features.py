"""From measures before and after to findings: which features moved beyond the null, and where it shows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from seamark.diagnose.attribution import spearman
from seamark.diagnose.change_measures import Comparison, Integers, nearest, null_limits
from seamark.diagnose.change_report import (
    FDR,
    TENTH,
    FeatureMove,
    Measure,
    MeasureChange,
    Moved,
    SetChange,
    State,
    TextMove,
)
from seamark.errors import DataError
from seamark.features.reading import Scan
from seamark.features.sets import FeatureSet
from seamark.features.significance import adjusted
from seamark.stats import Estimate, Floats, bootstrap

PERMUTATIONS, STAND_INS = 2000, 10
TEXTS = 3
"""Texts shown of each feature."""


@dataclass(frozen=True, eq=False)
class Judged:
    """One measure of all features, with its null."""

    found: Comparison
    null: Floats
    """Changes in the null, [comparisons, d_sae]."""
    features: Integers
    """Those that are judged."""
    trainings: tuple[Comparison, ...] = ()
    """The null's comparisons, where they are with other trainings."""

    @cached_property
    def q(self) -> tuple[Floats, Floats]:
        """(p, q) [d_sae]; NaN: not judged, or too few prompts differ."""
        p = np.full(len(self.found.unit), np.nan)
        p[self.features] = self.found.p()[self.features]
        return p, adjusted(p)

    @cached_property
    def limits(self) -> Floats:
        return null_limits(self.found.level(self.found.before), self.null, self.features)

    @cached_property
    def moved(self) -> NDArray[np.bool_]:
        """[d_sae]"""
        with np.errstate(invalid="ignore"):
            moved: NDArray[np.bool_] = (self.q[1] <= FDR) & (np.abs(self.found.change) > self.limits)
        return moved

    @property
    def size(self) -> Floats:
        """|change| of the judged features."""
        return np.abs(self.found.change[self.features])

    @property
    def null_size(self) -> Floats:
        """Mean |change| in the null of the judged features."""
        mean: Floats = np.abs(self.null[:, self.features]).mean(0)
        return mean

    def summary(self, draws: int, seed: int) -> MeasureChange:
        """Over all judged features; the interval of the correlation resamples features."""
        mine, theirs = self.size, self.null_size
        return MeasureChange(
            measure=self.found.measure, judged=len(mine), significant=int((self.q[1] <= FDR).sum()),
            moved=int(self.moved.sum()), median=float(np.median(mine)), null_median=float(np.median(theirs)),
            with_null=bootstrap(lambda rows: spearman(mine[rows], theirs[rows]), len(mine), draws=min(draws, 500),
                                seed=seed),
        )  # fmt: skip

    def of(self, latents: Sequence[int]) -> list[Moved]:
        """What is told of some features."""
        drawn = self.found.drawn(latents)
        before, after = self.found.level(self.found.before), self.found.level(self.found.after)
        p, q = self.q
        return [
            Moved(before=before[i], after=after[i], p=_known(p[i]), q=_known(q[i]), null=_known(self.limits[i]),
                  change=self.found.sample.draws.estimate(d, len(self.found.codes), "no Q_f"), moved=self.moved[i])
            for i, d in zip(latents, drawn, strict=True)
            if np.isfinite(before[i])
        ]  # fmt: skip

    def of_set(self, features: FeatureSet, seed: int) -> SetChange | None:
        """Whether the set's features moved more than others; None where none, or nothing else, is judged."""
        signs = {f.latent: f.sign for f in features.features}
        members = np.asarray([i for i in self.features.tolist() if i in signs], np.int64)
        if not 0 < len(members) < len(self.features):
            return None
        place = np.searchsorted(self.features, members)
        rank = rankdata(self.size)
        rng = np.random.default_rng(seed)
        own = rank[place].sum()
        drawn = np.asarray([rank[rng.permutation(len(rank))[: len(members)]].sum() for _ in range(PERMUTATIONS)])
        stand_ins = np.searchsorted(self.features, nearest(self.found.level(self.found.before), self.features, members,
                                                           STAND_INS))  # fmt: skip
        some = rng.integers(0, stand_ins.shape[1], (PERMUTATIONS, len(members)))
        matched = rank[stand_ins[np.arange(len(members)), some]].sum(1)
        sign = np.asarray([signs[i] for i in members.tolist()], np.float64)
        along, *others = ((sign[:, None] * c.drawn(members.tolist())).mean(0) for c in (self.found, *self.trainings))
        draws, n = self.found.sample.draws, len(self.found.codes)
        beyond = Estimate.not_available("no other training to compare with")
        if others:
            beyond = draws.estimate(along - np.mean(others, axis=0), n, "no Q_f")
        return SetChange(
            measure=self.found.measure, n=len(members), moved=int(self.moved[members].sum()),
            auroc=_auroc(self.size, place), p=_share(drawn >= own), p_matched=_share(matched >= own),
            null_auroc=_auroc(self.null_size, place), excess_auroc=_auroc(self.size - self.null_size, place),
            along=draws.estimate(along, n, "no Q_f"), null_along=float((sign * self.null[:, members]).mean()),
            along_beyond=beyond,
        )  # fmt: skip


def judged_features(before: Integers, after: Integers, unit: Floats, least: int) -> Integers:
    """Features that fire in at least so many texts of one of the two, and have a Q_f.

    Raises:
        DataError: there is none.
    """
    found = np.flatnonzero((np.maximum(before, after) >= least) & np.isfinite(unit))
    if not len(found):
        raise DataError(f"no feature fires in {least} texts", where="change", fix="Give more texts, or a lower --least")
    return found


def state(before: int, after: int, least: int, *, moved: bool) -> State:
    """What became of a feature, by the texts in which it fires."""
    if max(before, after) < least:
        return "not judged"
    if before <= TENTH * after:
        return "appears"
    if after <= TENTH * before:
        return "vanishes"
    return "moved" if moved else "not moved"


def turned(before: Integers, after: Integers, unit: Floats, least: int) -> dict[State, Integers]:
    """Which features appear, and which vanish, by the texts in which they fire; all arrays [d_sae]."""
    known = np.flatnonzero(np.isfinite(unit))
    states = [state(int(before[i]), int(after[i]), least, moved=False) for i in known.tolist()]
    ways: tuple[State, ...] = ("appears", "vanishes")
    return {way: known[np.asarray([one == way for one in states], bool)] for way in ways}


def chosen_features(judged: Judged, features: FeatureSet | None, top: int) -> list[int]:
    """Which to show: those that changed most in multiples of their null's limit, and those of the set."""
    with np.errstate(divide="ignore", invalid="ignore"):
        change = np.abs(judged.found.change)
        ratio = np.where(change > 0, change / judged.limits, 0.0)
    ratio = np.where(judged.moved, ratio + 1e9, ratio)[judged.features]  # those that moved stand first
    order = judged.features[np.lexsort((judged.features, -np.nan_to_num(ratio, posinf=1e12)))]
    most = [i for i in order[:top].tolist() if change[i] > 0]
    return list(dict.fromkeys([*most, *(f.latent for f in (features.features if features else ()))]))


def feature_rows(
    latents: Sequence[int], measures: Mapping[Measure, Judged], by: Measure, scans: tuple[Scan, Scan], sae_id: str,
    features: FeatureSet | None, least: int, nulls: Sequence[Mapping[State, Integers]] = (),
) -> tuple[FeatureMove, ...]:  # fmt: skip
    """All that is told of some features; `nulls`: what appears and vanishes in other trainings."""
    signs = {f.latent: f.sign for f in features.features} if features else {}
    first = measures[by].found
    texts = [which.texts for which in (first.before, first.after)]
    told: dict[Measure, dict[int, Moved]] = {}
    for name, judged in measures.items():
        known = [i for i in latents if np.isfinite(judged.found.level(first.before)[i])]
        told[name] = dict(zip(known, judged.of(known), strict=True))
    shown = _Shown(first, scans, sae_id)
    states = {i: state(int(texts[0][i]), int(texts[1][i]), least, moved=bool(measures[by].moved[i])) for i in latents}
    return tuple(
        FeatureMove(
            sae=sae_id, latent=i, sign=signs.get(i), q_f=_known(first.unit[i]), texts_before=int(texts[0][i]),
            texts_after=int(texts[1][i]), state=states[i],
            null_same=sum(i in null[states[i]] for null in nulls) if nulls and states[i] in nulls[0] else None,
            measures={name: rows[i] for name, rows in told.items() if i in rows}, texts=shown.of(i),
        )
        for i in latents
    )  # fmt: skip


class _Shown:
    """The texts in which features changed."""

    def __init__(self, found: Comparison, scans: tuple[Scan, Scan], sae_id: str) -> None:
        self.rows, self.unit, self.scans, self.sae_id = found.sample.rows, found.unit, scans, sae_id
        self.before, self.after = found.before.mean.tocsc(), found.after.mean.tocsc()
        self.tokens = all(scan.manifest["choices"]["keep_tokens"] for scan in scans)

    def of(self, latent: int) -> tuple[TextMove, ...]:
        if not np.isfinite(self.unit[latent]):
            return ()
        pair = [m[:, [latent]].toarray().ravel() / self.unit[latent] for m in (self.before, self.after)]
        change = pair[1] - pair[0]
        way = 1.0 if change.mean() >= 0 else -1.0
        order = np.lexsort((np.arange(len(change)), -way * change))[:TEXTS]
        return tuple(self._text(latent, i, pair[0][i], pair[1][i]) for i in order.tolist() if way * change[i] > 0)

    def _text(self, latent: int, i: int, before: float, after: float) -> TextMove:
        row = int(self.rows[i])
        about = self.scans[0].texts.slice(row, 1).to_pylist()[0]
        tokens: tuple[str, ...] = ()
        at: list[tuple[float, ...]] = [(), ()]
        if self.tokens:
            tokens = self.scans[0].token_texts.read(row).tokens
            at = [s.token_texts.activations(s.token_texts.read(row), self.sae_id, {latent: 1.0}) for s in self.scans]
        return TextMove(text_id=about["text_id"], pair_id=about["pair_id"], side=about["side"], before=before,
                        after=after, tokens=tokens, tokens_before=at[0], tokens_after=at[1])  # fmt: skip


def _known(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def _share(reached: NDArray[np.bool_]) -> float:
    return float((1 + reached.sum()) / (1 + len(reached)))


def _auroc(size: Floats, members: Integers) -> float:
    rank, n = rankdata(size), len(members)
    return float((rank[members].sum() - n * (n + 1) / 2) / (n * (len(size) - n)))
