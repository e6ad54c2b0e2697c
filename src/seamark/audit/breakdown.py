"""Where suspicious pairs come from: the scores of pairs by group, source and category."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict

from seamark.audit.faults import FaultKind, Faults
from seamark.stats import Estimate, bootstrap_by_cluster, cluster_codes
from seamark.text.pairs import Pairs, PreferencePair

By = Literal["group", "source", "category"]
WrongShare = Callable[[Mapping[str, float], Mapping[str, str]], Estimate]
"""{pair id: score} and {pair id: prompt} to the share of wrong labels, as `share.wrong_share`."""
DRAWS = 500
LEAST = 10
"""Pairs from which a line has intervals; lines with fewer say so."""
MOST = 200
"""Lines by source and by category, at most: the largest; `Breakdown.notes` says how many others there are."""
_REPEATS: tuple[FaultKind, ...] = ("duplicate", "group_duplicate", "near_duplicate")
_OPPOSED: tuple[FaultKind, ...] = ("contradiction", "group_contradiction", "near_contradiction")


class BreakdownRow(BaseModel):
    """One line: a group, or the pairs of one source or category within it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    by: By
    group: str
    name: str
    """The source or category; empty: the pairs that name none. The group's name where `by` is group."""
    n: int
    scored: int
    """Pairs with a score; all estimates are over these."""
    mean: Estimate
    """Mean score, in units of the score."""
    below_zero: Estimate
    """Share of pairs whose score speaks against their label (0-1); a score of 0 counts one half."""
    wrong: Estimate
    """Estimated share of wrong labels (0-1): an upper estimate if the scores saw none of them; see `share.wrong_share`.
    """
    duplicates: int | None = None
    """Pairs that repeat another, exactly or nearly. None: not looked for."""
    contradictions: int | None = None
    """Pairs that another contradicts."""


class Breakdown(BaseModel):
    """Scores of pairs by where they come from."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    rows: tuple[BreakdownRow, ...]
    """Of every group its own line, then its sources and its categories, each by the share below 0, highest first."""
    notes: tuple[str, ...] = ()

    def of(self, by: By) -> tuple[BreakdownRow, ...]:
        return tuple(row for row in self.rows if row.by == by)


def breakdown(
    values: Mapping[str, float], pairs: Pairs, wrong_share: WrongShare | None = None, *, faults: Faults | None = None,
    seed: int = 0,
) -> Breakdown:  # fmt: skip
    """Scores by group, source and category. Intervals resample prompts.

    A group whose pairs all name the same source (or none) has no lines by source; the same holds for categories.

    Args:
        values: {pair id: score}, higher = more clearly right; pairs without one are counted, not estimated.
        wrong_share: estimates the share of wrong labels; None: not available. Give it for out-of-fold scores only.
        faults: of the same pairs, for the counts of duplicates and contradictions.
    """
    rows: list[BreakdownRow] = []
    notes: list[str] = []
    maker = _Maker(values, wrong_share, faults, seed)
    for group in pairs.groups:
        mine = pairs.group(group)
        rows.append(maker.row("group", group, group, mine))
        for by in ("source", "category"):
            parts: dict[str, list[PreferencePair]] = defaultdict(list)
            for pair in mine:
                parts[getattr(pair, by)].append(pair)
            if len(parts) < 2:
                continue
            largest = sorted(parts, key=lambda name: (-len(parts[name]), name))
            if len(largest) > MOST:
                notes.append(f"Group {group}: the {MOST} largest of {len(largest):,} by {by} are shown.")
            found = [maker.row(by, group, name, parts[name]) for name in largest[:MOST]]
            rows += sorted(
                found, key=lambda r: (r.below_zero.value is None, -(r.below_zero.value or 0.0), -r.n, r.name)
            )
    return Breakdown(rows=tuple(rows), notes=tuple(notes))


class _Maker:
    def __init__(
        self, values: Mapping[str, float], wrong_share: WrongShare | None, faults: Faults | None, seed: int
    ) -> None:
        self.values, self.wrong_share, self.seed = values, wrong_share, seed
        self.repeats = None if faults is None else faults.ids(*_REPEATS)
        self.opposed = None if faults is None else faults.ids(*_OPPOSED)

    def row(self, by: By, group: str, name: str, pairs: Sequence[PreferencePair]) -> BreakdownRow:
        scored = [p for p in pairs if np.isfinite(self.values.get(p.id, np.nan))]
        mean, below, wrong = self._estimates(scored)
        return BreakdownRow(
            by=by, group=group, name=name, n=len(pairs), scored=len(scored), mean=mean, below_zero=below, wrong=wrong,
            duplicates=_among(pairs, self.repeats), contradictions=_among(pairs, self.opposed),
        )  # fmt: skip

    def _estimates(self, scored: Sequence[PreferencePair]) -> tuple[Estimate, Estimate, Estimate]:
        if len(scored) < LEAST:
            few = Estimate.not_available(f"{len(scored)} scored pairs; {LEAST} are needed", len(scored))
            return few, few, few
        mine = {p.id: float(self.values[p.id]) for p in scored}
        prompts = {p.id: p.prompt_key for p in scored}
        clusters = cluster_codes(list(prompts.values()))
        score = np.asarray(list(mine.values()))
        mean = bootstrap_by_cluster(score, clusters, draws=DRAWS, seed=self.seed)
        below = bootstrap_by_cluster((1.0 - np.sign(score)) / 2.0, clusters, draws=DRAWS, seed=self.seed)
        if self.wrong_share is None:
            return mean, below, Estimate.not_available("the score is not out-of-fold", len(scored))
        return mean, below, self.wrong_share(mine, prompts)


def _among(pairs: Sequence[PreferencePair], ids: set[str] | None) -> int | None:
    return None if ids is None else sum(p.id in ids for p in pairs)
