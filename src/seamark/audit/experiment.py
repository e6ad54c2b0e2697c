"""What flipping or removing pairs does: retrain from the same base on edited data and measure what is left.

SAFER, arXiv 2507.00665, §4: poisoning flips the highest-scoring pairs, denoising removes the lowest-scoring ones; the
reward model is trained anew from the same base, with the same seed and the same order of ids. No checkpoint is chosen:
the last one counts.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from seamark.errors import DataError
from seamark.model import BlockCache, Evaluation, RewardTraining, evaluate, train_reward_model
from seamark.model.precision import resolve_precision
from seamark.run import read_json, write_json
from seamark.stats import Estimate, Floats, bootstrap_matrix, cluster_codes
from seamark.text.pairs import Pairs

Kind = Literal["poison", "denoise"]
RESULT = "retrained.json"
MODEL = "model"
BENCH = "bench.jsonl"
_KEEPS_MEANING = 0.65
_NOISE_COST = 0.03
_UNBOUNDED = 0.025
"""Share of draws without a positive bottom from which on a ratio has no interval."""
UNBOUNDED = "no interval: what it is a share of may be 0"
_NO_SEED = "no seed is finished"
ONE_SEED = "no interval: one seed only"
UNEDITED = ("none", 0.0)
"""The condition of runs on unedited data."""
_BATCH_TOKENS = 4096
"""Padded tokens in a batch of the evaluation: several retrainings share the machine's memory."""


def retrain(
    folder: Path,
    train: Path,
    test: Path,
    *,
    base: str,
    training: Mapping[str, Any],
    flipped: Sequence[str] = (),
    removed: Sequence[str] = (),
    keep_model: bool = False,
    lower: Path | None = None,
    bench: Path | None = None,
) -> dict[str, Any]:
    """A stage: train a reward model on edited pairs and note its margin on every test pair.

    Args:
        folder: where `retrained.json` (and `model/`, if kept) goes.
        train: pairs written by `Pairs.to_jsonl`.
        test: held-out pairs, likewise.
        base: what every retraining starts from.
        training: fields of `RewardTraining`.
        flipped: ids whose labels are swapped.
        removed: ids left out.
        keep_model: write the model too.
        lower: a saved `BlockCache` of the blocks that stay frozen.
        bench: folder with further held-out pairs (`BENCH`), whose margins are noted apart.
    """
    config = RewardTraining(**training)
    pairs, held_out = Pairs.from_jsonl(train), Pairs.from_jsonl(test)
    edited = _apply(pairs, frozenset(flipped), frozenset(removed))
    cache = BlockCache.load(lower) if lower else None
    model, report = train_reward_model(
        base,
        edited,
        config,
        folder / MODEL if keep_model else None,
        checkpoints=folder / ".checkpoints",
        lower=cache,
        progress=False,
    )
    precision = resolve_precision(config.precision, model.device.type)
    with cache.skipping(model) if cache else contextlib.nullcontext():
        measured = evaluate(
            model, held_out, max_length=config.max_length, batch_tokens=_BATCH_TOKENS, precision=precision
        )
        on_bench = evaluate(
            model, Pairs.from_jsonl(bench / BENCH), max_length=config.max_length, batch_tokens=_BATCH_TOKENS,
            precision=precision,
        ) if bench else None  # fmt: skip
    result: dict[str, Any] = {
        "margins": _margins(measured),
        "training": report.model_dump(exclude={"seconds", "losses", "accuracies", "dropped_ids"}),
        "dropped": len(report.dropped_ids),
        "final_loss": float(np.mean(report.losses[-5:])),
        "truncated_test_texts": measured.truncated_texts,
    }
    if keep_model:
        result["evaluation"] = measured.to_json()
    if on_bench is not None:
        result["bench_margins"] = _margins(on_bench)
    write_json(folder / RESULT, result)
    return {"precision": report.precision, "attention": report.attention, "threads": report.threads}


def _margins(measured: Evaluation) -> dict[str, float]:
    return dict(zip(measured.ids, map(float, measured.margins), strict=True))


def _apply(pairs: Pairs, flipped: frozenset[str], removed: frozenset[str]) -> Pairs:
    unknown = (flipped | removed) - set(pairs.ids)
    if unknown:
        raise DataError(f"{len(unknown)} ids to edit are not in the training pairs, the first being {min(unknown)!r}")
    return pairs.with_items(p.flipped() if p.id in flipped else p for p in pairs if p.id not in removed)


class Cell(BaseModel):
    """One retraining of an experiment."""

    model_config = ConfigDict(frozen=True)

    method: str
    """`none` for the unedited run."""
    rate: float
    seed: int

    @property
    def name(self) -> str:
        return f"seed-{self.seed}" if self.method == "none" else f"{self.method}-{self.rate:g}-seed-{self.seed}"


class Experiment:
    """Margins on the test pairs from a grid of retrainings, and what they say. All shares are fractions 0-1."""

    def __init__(self, kind: Kind, test: Pairs, margins: Mapping[Cell, Mapping[str, float]], target: str) -> None:
        self.kind, self.target = kind, target
        self.groups = test.groups
        self._columns = {g: [i for i, p in enumerate(test) if p.group == g] for g in test.groups}
        self._clusters = {g: cluster_codes([p.prompt_key for p in test.group(g)]) for g in test.groups}
        self._margins = {cell: np.asarray([m[i] for i in test.ids]) for cell, m in margins.items()}
        self.cells = list(self._margins)
        self.seeds = sorted({c.seed for c in self.cells})

    @classmethod
    def read(cls, kind: Kind, test: Pairs, folders: Mapping[Cell, Path], target: str) -> Experiment:
        """From the folders of finished retrainings."""
        return cls(kind, test, {c: read_json(f / RESULT)["margins"] for c, f in folders.items()}, target)

    def correct(self, cell: Cell, group: str) -> Floats:
        """[n pairs of the group] 1, ½ (tie) or 0."""
        return (np.sign(self._margins[cell][self._columns[group]]) + 1.0) / 2.0

    def rows(self) -> list[dict[str, Any]]:
        """One row a retraining: method, rate, seed and accuracy by group."""
        return [
            {"method": c.method, "rate": c.rate, "seed": c.seed}
            | {g: float(self.correct(c, g).mean()) for g in self.groups}
            for c in self.cells
        ]

    def conditions(self) -> list[tuple[str, float]]:
        """Every (method, rate) there is, by first appearance."""
        return list(dict.fromkeys((c.method, c.rate) for c in self.cells))

    def seeds_of(self, *conditions: tuple[str, float]) -> list[int]:
        """Seeds that every one of these conditions was run with: comparisons are paired by seed."""
        found = [{c.seed for c in self.cells if (c.method, c.rate) == condition} for condition in conditions]
        return sorted(set.intersection(*found)) if found else []

    def _matrix(self, method: str, rate: float, group: str, seeds: Sequence[int]) -> NDArray[np.float64]:
        """[seeds, n] of `correct`."""
        cells = {c.seed: c for c in self.cells if (c.method, c.rate) == (method, rate)}
        return np.stack([self.correct(cells[s], group) for s in seeds])

    def accuracy(self, method: str, rate: float, group: str) -> Estimate:
        """Mean accuracy over seeds; the interval resamples seeds and prompts."""
        seeds = self.seeds_of((method, rate))
        if not seeds:
            return Estimate.not_available(_NO_SEED)
        return self._estimate(self._matrix(method, rate, group, seeds), group)

    def lost(self, method: str, rate: float, group: str, than: tuple[str, float] = UNEDITED) -> Estimate:
        """Accuracy lost against another condition, paired by seed and test pair (positive: `method` is worse)."""
        seeds = self.seeds_of(than, (method, rate))
        if not seeds:
            return Estimate.not_available(_NO_SEED)
        difference = self._matrix(*than, group, seeds) - self._matrix(method, rate, group, seeds)
        return self._estimate(difference, group)

    def _estimate(self, values: Floats, group: str) -> Estimate:
        """Mean of [seeds, n]. With one seed the doubt of training is unknown, so there is no interval."""
        if len(values) == 1 and values.size:
            return Estimate(value=float(values.mean()), n=values.shape[1], reason=ONE_SEED)
        return bootstrap_matrix(values, self._clusters[group])

    def effect(self, rate: float, method: str = "safer", baseline: str = "random") -> Estimate:
        """D: target accuracy lost by `method`'s flips minus that lost by `baseline`'s, at the same rate."""
        conditions = self.conditions()
        if not {(method, rate), (baseline, rate)} <= set(conditions):
            return Estimate.not_available(f"{method} and {baseline} were not both run at rate {rate:g}")
        return self.lost(method, rate, self.target, (baseline, rate))

    def kept(self, method: str, rate: float, group: str) -> Estimate:
        """(edited − ½) / (unedited − ½): the share of what the model knew about `group` that is left."""
        seeds = self.seeds_of(UNEDITED, (method, rate))
        if not seeds:
            return Estimate.not_available(_NO_SEED)
        edited, unedited = (self._matrix(*c, group, seeds) for c in ((method, rate), UNEDITED))
        if (clean := float(unedited.mean())) < _KEEPS_MEANING:
            return Estimate.not_available(f"the unedited model is at {clean:.2f} < {_KEEPS_MEANING} on {group}")
        return _ratio(edited - 0.5, unedited - 0.5, self._clusters[group])

    def recovery(self, method: str, rate: float, clean: Experiment) -> Estimate:
        """(denoised − noisy) / (clean − noisy) on the target group.

        Args:
            clean: the same test pairs; its unedited runs were trained without injected noise.
        """
        shared = set(clean.seeds_of(UNEDITED))
        seeds = [s for s in self.seeds_of(UNEDITED, (method, rate)) if s in shared]
        if not seeds:
            return Estimate.not_available(_NO_SEED)
        best = clean._matrix(*UNEDITED, self.target, seeds)
        denoised, noisy = (self._matrix(*c, self.target, seeds) for c in ((method, rate), UNEDITED))
        if (cost := float(best.mean() - noisy.mean())) < _NOISE_COST:
            return Estimate.not_available(f"the injected noise cost only {cost:.3f} < {_NOISE_COST}")
        return _ratio(denoised - noisy, best - noisy, self._clusters[self.target])


def _ratio(top: Floats, bottom: Floats, clusters: NDArray[np.int64], draws: int = 2000) -> Estimate:
    """Ratio of means of two [seeds, n] matrices with an interval from resampling seeds and prompts together.

    Where the bottom is not clearly above 0, its ratio has no bounds: without the draws in which it is not, the interval
    would be too narrow.
    """
    rng = np.random.default_rng(0)
    n_seeds, n = top.shape
    value = float(top.mean() / bottom.mean())
    if n_seeds == 1:
        return Estimate(value=value, n=n, reason=ONE_SEED)
    n_clusters = int(clusters.max()) + 1

    def by_prompt(matrix: Floats) -> Floats:
        return np.stack([np.bincount(clusters, weights=row, minlength=n_clusters) for row in matrix])

    tops, bottoms = by_prompt(top), by_prompt(bottom)
    found = []
    for _ in range(draws):
        weight = np.bincount(rng.integers(0, n_clusters, n_clusters), minlength=n_clusters)
        rows = rng.integers(0, n_seeds, n_seeds)
        below = float((bottoms[rows] @ weight).sum())
        if below > 0:
            found.append(float((tops[rows] @ weight).sum()) / below)
    if len(found) < (1 - _UNBOUNDED) * draws:
        return Estimate(value=value, n=n, reason=UNBOUNDED)
    low, high = np.quantile(found, [0.025, 0.975])
    return Estimate(value=value, low=float(low), high=float(high), n=n)
