"""Rewards, margins and rankings of two checkpoints on the same pairs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from seamark.diagnose.change_report import GroupChange, PairChange
from seamark.features.reading import Scan
from seamark.stats import Estimate, Floats, bootstrap_by_cluster, cluster_codes

MOST_PAIRS = 200
"""Pairs that are listed, at most."""


def why_no_rewards(before: Scan, after: Scan) -> str:
    """Why rewards cannot be compared; empty where they can."""
    if not before.rows_by_pair:
        return "the texts are no pairs"
    missing = [name for name, scan in (("before", before), ("after", after)) if not scan.config["rewards"]]
    return f"no rewards were read {' and '.join(missing)}" if missing else ""


def rewards_of(scan: Scan) -> Floats:
    """[pairs, 2]: chosen, rejected, in the order of `rows_by_pair`."""
    rewards: Floats = scan.texts["reward"].to_numpy()[np.asarray(list(scan.rows_by_pair.values()))]
    return rewards


def group_changes(
    before: Scan, after: Scan, null: Sequence[Scan], *, draws: int, seed: int
) -> tuple[tuple[GroupChange, ...], tuple[PairChange, ...]]:  # fmt: skip
    """By group of pairs; and the pairs whose ranking changed, largest change of the margin first."""
    first, second = rewards_of(before), rewards_of(after)
    others = [_wins(rewards_of(scan)) for scan in null if scan.config["rewards"]]
    ids = list(before.rows_by_pair)
    chosen = [rows[0] for rows in before.rows_by_pair.values()]
    of_group = np.asarray(before.texts["group"].take(chosen).to_pylist(), dtype=object)
    prompts = np.asarray(before.texts["prompt"].take(chosen).to_pylist(), dtype=object)
    groups = tuple(
        _group(group, first[mine], second[mine], [wins[mine] for wins in others], prompts[mine], draws, seed)
        for group in before.groups
        if len(mine := np.flatnonzero(of_group == group))
    )
    margins = [r[:, 0] - r[:, 1] for r in (first, second)]
    other = np.flatnonzero(_wins(first) != _wins(second))
    order = other[np.argsort(-np.abs(margins[1] - margins[0])[other], kind="stable")][:MOST_PAIRS]
    listed = tuple(
        PairChange(pair_id=ids[i], group=str(of_group[i]), before=float(margins[0][i]), after=float(margins[1][i]))
        for i in order.tolist()
    )
    return groups, listed


def _group(
    group: str, first: Floats, second: Floats, others: Sequence[Floats], prompts: np.ndarray, draws: int, seed: int
) -> GroupChange:  # fmt: skip
    codes = cluster_codes(prompts.tolist())

    def mean(values: Floats) -> Estimate:
        return bootstrap_by_cluster(values.astype(np.float64), codes, draws=draws, seed=seed)

    wins, margins = [_wins(r) for r in (first, second)], [r[:, 0] - r[:, 1] for r in (first, second)]
    moved = second - first
    return GroupChange(
        group=group, n_pairs=len(first), chosen=mean(moved[:, 0]), rejected=mean(moved[:, 1]),
        margin=mean(margins[1] - margins[0]), margin_before=mean(margins[0]), margin_after=mean(margins[1]),
        accuracy_before=mean(wins[0]), accuracy_after=mean(wins[1]), accuracy=mean(wins[1] - wins[0]),
        reranked=mean(wins[0] != wins[1]), to_right=int((wins[1] > wins[0]).sum()),
        to_wrong=int((wins[1] < wins[0]).sum()),
        null_reranked=tuple(float((wins[0] != other).mean()) for other in others),
    )  # fmt: skip


def _wins(rewards: Floats) -> Floats:
    """1, ½ (tie) or 0 by pair."""
    wins: Floats = (np.sign(rewards[:, 0] - rewards[:, 1]) + 1.0) / 2.0
    return wins
