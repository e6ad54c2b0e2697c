"""Shortcuts of a reward model: how far length, and which side refuses, go with its margin.

Both are associations over labelled pairs, not causes: a long answer may be rewarded for what makes it long. The two are
told apart by least squares with both; what the labels have in common is in the intercept.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from seamark.audit.fits import correlation, is_constant, partial_slopes, standard
from seamark.audit.refusals import refusal_language
from seamark.errors import DataError
from seamark.stats import Estimate, Floats, bootstrap_by_cluster, bootstrap_of_sums, cluster_codes
from seamark.text.pairs import Pairs, PreferencePair
from seamark.text.rows import text_of

LEAST = 20
"""Pairs that a cell needs for an accuracy, and a group for a fit; below, it is not available."""
Mask = NDArray[np.bool_]


class _Value(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Cells(_Value):
    """Accuracy (share of pairs whose chosen answer is rewarded more, ties one half) where the label agrees with a
    shortcut, and where it goes against it."""

    along: Estimate
    """Where the shortcut alone would be right: chosen is longer (or: chosen refuses and rejected does not)."""
    against: Estimate
    """Where it would be wrong: chosen is shorter (or: rejected refuses and chosen does not)."""
    gap: Estimate
    """`along` − `against`, 0 for a model that does not lean on the shortcut."""


class GroupShortcuts(_Value):
    """What goes with the margin in one group of pairs. Effects are in standard deviations of the group's margins."""

    group: str
    n: int
    """Pairs with a margin."""
    length_correlation: Estimate
    """Pearson correlation of the margin with log(characters of chosen / characters of rejected)."""
    length_effect: Estimate
    """By how much the margin rises with one standard deviation of that log ratio, refusals held."""
    length: Cells
    n_refusing_chosen: int
    """Pairs whose chosen answer begins by refusing (`refusals.refuses`: a lower bound)."""
    n_refusing_rejected: int
    languages: dict[str, int]
    """Refusing answers by language."""
    refusal_effect: Estimate
    """By how much the margin is higher where chosen refuses and rejected does not than where both do or neither, length
    held."""
    refusal: Cells
    explained: Estimate
    """Share of the margin's variance that length and refusal explain together (R², 0-1)."""


class Shortcuts(_Value):
    """Length and refusal shortcuts by group."""

    groups: tuple[GroupShortcuts, ...]
    n_without_margin: int
    """Pairs without a margin, which count nowhere."""

    def of(self, group: str) -> GroupShortcuts:
        """`DataError` where there is no such group."""
        found = next((g for g in self.groups if g.group == group), None)
        if found is None:
            raise DataError(f"no group {group!r}", where="shortcuts")
        return found


class _Sides(NamedTuple):
    """What is read off pairs, arrays [pairs]."""

    margin: Floats
    length: Floats
    """log(characters of chosen + 1) − the same of rejected."""
    refusal: Floats
    """1: only chosen refuses; −1: only rejected does; 0: both or neither."""
    prompts: NDArray[np.int64]


def shortcuts(
    margins: Mapping[str, float], pairs: Pairs, *, least: int = LEAST, draws: int = 1000, seed: int = 0
) -> Shortcuts:
    """Look for shortcuts, group by group. Intervals resample prompts.

    Args:
        margins: {pair id: reward of chosen − reward of rejected}; of pairs the model was not trained on, where that can
            be had: on its own training pairs a model may be right without any shortcut.
        pairs: the pairs themselves; those without a finite margin are counted and left out.
        least: pairs that an accuracy or a fit needs.

    Raises:
        DataError: no pair has a margin.
    """
    known = pairs.where(lambda p: bool(np.isfinite(margins.get(p.id, np.nan))))
    if len(known) == 0:
        raise DataError("no pair has a reward margin", where="shortcuts", fix="Give the margins of the same pairs")
    found = [_group(g, known.group(g).items, margins, least, draws, seed) for g in known.groups]
    return Shortcuts(groups=tuple(found), n_without_margin=len(pairs) - len(known))


def _group(
    group: str, pairs: Sequence[PreferencePair], margins: Mapping[str, float], least: int, draws: int, seed: int
) -> GroupShortcuts:
    chosen = [refusal_language(text_of(p.chosen)) for p in pairs]
    rejected = [refusal_language(text_of(p.rejected)) for p in pairs]
    sides = _Sides(
        np.asarray([margins[p.id] for p in pairs], dtype=np.float64),
        np.asarray([_log_ratio(p) for p in pairs]),
        np.asarray([float(c is not None) - float(r is not None) for c, r in zip(chosen, rejected, strict=True)]),
        cluster_codes([p.prompt_key for p in pairs]),
    )
    length_r, length_effect, refusal_effect, explained = _fits(sides, least, draws, seed)
    found = [code for code in (*chosen, *rejected) if code]
    return GroupShortcuts(
        group=group, n=len(pairs), length_correlation=length_r, length_effect=length_effect,
        length=_cells(sides, sides.length > 0, sides.length < 0, ("longer", "shorter"), least, draws, seed),
        n_refusing_chosen=sum(c is not None for c in chosen), n_refusing_rejected=sum(c is not None for c in rejected),
        languages={code: found.count(code) for code in sorted(set(found))}, refusal_effect=refusal_effect,
        refusal=_cells(sides, sides.refusal > 0, sides.refusal < 0, ("the one that refuses", "the one that complies"),
                       least, draws, seed),
        explained=explained,
    )  # fmt: skip


def _log_ratio(pair: PreferencePair) -> float:
    return float(np.log1p(len(text_of(pair.chosen))) - np.log1p(len(text_of(pair.rejected))))


def _fits(sides: _Sides, least: int, draws: int, seed: int) -> tuple[Estimate, Estimate, Estimate, Estimate]:
    """(correlation with length, effect of length, effect of refusal, share explained)."""
    n, prompts = len(sides.margin), sides.prompts
    if n < least or is_constant(sides.margin):
        why = f"{n} pairs; {least} are needed" if n < least else "the margin is the same everywhere"
        none = Estimate.not_available(why, n)
        return none, none, none, none
    r = correlation(sides.length, sides.margin, prompts, ("the difference of length", "the margin"),
                    draws=draws, seed=seed)  # fmt: skip
    margin = standard(sides.margin)
    if r.value is None:
        no_length = Estimate.not_available(r.reason, n)
    varies = _varies(sides.refusal, least)
    columns = ([] if r.value is None else [standard(sides.length)]) + ([] if varies else [sides.refusal])
    no_refusal = Estimate.not_available(varies, n)
    if not columns:
        return r, no_length, no_refusal, Estimate.not_available("neither length nor refusal differs", n)
    slopes, explained = partial_slopes(columns, margin, prompts, draws=draws, seed=seed)
    found = list(slopes)
    length = found.pop(0) if r.value is not None else no_length
    return r, length, found.pop(0) if not varies else no_refusal, explained


def _varies(refusal: Floats, least: int) -> str:
    """Why an effect of refusal cannot be told; empty where it can: two of (chosen refuses, rejected refuses, no
    difference) must be frequent enough to be compared."""
    counts = [int((refusal == value).sum()) for value in (1.0, -1.0, 0.0)]
    if sum(count >= least for count in counts) >= 2:
        return ""
    return (f"only chosen refuses in {counts[0]:,} pairs, only rejected in {counts[1]:,}, no difference in "
            f"{counts[2]:,}; two of these need {least}")  # fmt: skip


def _cells(
    sides: _Sides, along: Mask, against: Mask, names: tuple[str, str], least: int, draws: int, seed: int
) -> Cells:
    right = (np.sign(sides.margin) + 1.0) / 2.0
    found = []
    for mask, name in ((along, names[0]), (against, names[1])):
        n = int(mask.sum())
        if n < least:
            found.append(Estimate.not_available(f"chosen is {name} in {n} pairs; {least} are needed", n))
        else:
            found.append(bootstrap_by_cluster(right[mask], sides.prompts[mask], draws=draws, seed=seed))
    if missing := next((e for e in found if e.value is None), None):
        return Cells(along=found[0], against=found[1], gap=Estimate.not_available(missing.reason))

    def gap(sums: Floats) -> float | None:
        right_along, n_along, right_against, n_against = sums
        return float(right_along / n_along - right_against / n_against) if n_along > 0 and n_against > 0 else None

    lines = np.stack([right * along, along, right * against, against]).astype(np.float64)
    return Cells(along=found[0], against=found[1],
                 gap=bootstrap_of_sums(gap, lines, sides.prompts, draws=draws, seed=seed))  # fmt: skip
