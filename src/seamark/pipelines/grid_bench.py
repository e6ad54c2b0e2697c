"""RewardBench of every retrained model of a grid, by section."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from seamark.audit.experiment import BENCH, ONE_SEED, RESULT, UNEDITED, Cell, Experiment
from seamark.audit.prompts_in_common import prompt_key
from seamark.audit.rewardbench import SECTIONS, WEIGHTS, subset_of, weighted_mean
from seamark.pipelines.grid_plan import Grid
from seamark.run import read_json
from seamark.stats import Estimate, Floats, cluster_codes
from seamark.text.pairs import Pairs


def bench_rows(grid: Grid, arms: Mapping[str, Experiment]) -> list[dict[str, Any]]:
    """A row for each experiment, method, rate and section that has pairs; intervals resample seeds and prompts.

    Accuracies are weighted as `audit.rewardbench` does; subsets without pairs are named.
    """
    if grid.bench is None:
        return []
    sections = [s for name in SECTIONS if (s := Section(name, Pairs.from_jsonl(grid.bench / BENCH))).ids]
    return [
        {"experiment": name, "method": method, "rate": rate, "seeds": e.seeds_of((method, rate)),
         "section": s.name, "n": len(s.ids), "missing": s.missing, "accuracy": s.accuracy(cells),
         "lost": s.lost(_cells(grid, name, *UNEDITED), cells) if method != "none" else None}
        for name, e in arms.items()
        for method, rate in e.conditions()
        if (cells := _cells(grid, name, method, rate))
        for s in sections
    ]  # fmt: skip


def _cells(grid: Grid, arm: str, method: str, rate: float) -> dict[int, Mapping[str, float]]:
    """Margins on RewardBench by seed."""
    found: dict[int, Mapping[str, float]] = {}
    for cell, folder in grid.cells.get(arm, {}).items():
        if isinstance(cell, Cell) and (cell.method, cell.rate) == (method, rate):
            found[cell.seed] = read_json(folder / RESULT)["bench_margins"]
    return found


class Section:
    """The pairs of one section and what each subset weighs."""

    def __init__(self, name: str, pairs: Pairs) -> None:
        self.name = name
        mine = [(p, subset) for p in pairs if (subset := subset_of(p.category)) in SECTIONS[name]]
        self.ids = [p.id for p, _ in mine]
        subsets = [subset for _, subset in mine]
        present = [s for s in SECTIONS[name] if s in subsets]
        self.missing = [s for s in SECTIONS[name] if s not in present]
        self._clusters = cluster_codes([prompt_key(p.prompt) for p, _ in mine])
        self._subset = np.asarray([present.index(subset) for subset in subsets], dtype=np.int64)
        self._weights: Floats = np.asarray([WEIGHTS[s] for s in present], dtype=np.float64)

    def _wins(self, margins: Mapping[str, float]) -> Floats:
        return np.asarray([float(margins[i] > 0) for i in self.ids])

    def _estimate(self, values: Floats) -> Estimate:
        found = weighted_mean(values, self._subset, self._weights, self._clusters)
        if len(values) == 1:
            return Estimate(value=found.value, n=found.n, reason=ONE_SEED)
        return found

    def accuracy(self, cells: Mapping[int, Mapping[str, float]]) -> Estimate:
        """Weighted share of pairs with r(chosen) > r(rejected)."""
        return self._estimate(np.stack([self._wins(m) for m in cells.values()]))

    def lost(self, unedited: Mapping[int, Mapping[str, float]], cells: Mapping[int, Mapping[str, float]]) -> Estimate:
        """How much lower it is than unedited, paired by seed and pair."""
        shared = [s for s in cells if s in unedited]
        if not shared:
            return Estimate.not_available("no seed is finished")
        return self._estimate(np.stack([self._wins(unedited[s]) - self._wins(cells[s]) for s in shared]))
