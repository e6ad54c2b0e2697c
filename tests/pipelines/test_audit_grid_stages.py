"""Stages of the audit experiment on planted scores, without a model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy.special import expit

from seamark.audit.scores import PairScores
from seamark.pipelines import grid_stages, stages
from seamark.run import read_json, write_json
from seamark.text.pairs import Pairs, PreferencePair

SIGNAL = "margin"
PRIOR = 0.1


def planted(folder: Path, n: int = 400, most_of_b: int = 60) -> dict[str, Path]:
    """Pairs of which one in ten is wrong, a signal that half finds them; half a is learned on three times the share.

    Returns the inputs of `combine_scores`.
    """
    pairs = Pairs(tuple(PreferencePair(f"p{i}", "safety", f"prompt {i}", f"yes {i}", f"no {i}") for i in range(n)))
    halves: dict[str, list[str]] = {"a": [], "b": []}
    for p in pairs:
        if grid_stages.half_of(p) == "a" or len(halves["b"]) < most_of_b:
            halves[grid_stages.half_of(p)].append(p.id)
    kept = [i for ids in halves.values() for i in ids]
    folder.mkdir()
    pairs.where(lambda p: p.id in set(kept)).to_jsonl(folder / stages.TRAIN)
    inputs = {"data": folder}
    for world in ("plain", "a", "b"):
        rng = np.random.default_rng(["plain", "a", "b"].index(world))
        wrong = set(rng.choice(kept, round(PRIOR * len(kept)), replace=False).tolist())
        if world != "plain":  # 20 more, whatever the half's size, as `flip_more` has it
            extra = sorted(rng.choice(halves[world], 20, replace=False).tolist())
            wrong ^= set(extra)
            inputs[f"half_{world}"] = folder / f"half-{world}"
            write_json(inputs[f"half_{world}"] / grid_stages.EXTRA, {"ids": halves[world], "wrong": extra})
        values = {i: float(rng.normal(-1.5 if i in wrong else 1.5)) for i in kept}
        inputs[f"{world}_{SIGNAL}"] = folder / f"{world}-scores"
        PairScores(method=SIGNAL, values=values).save(inputs[f"{world}_{SIGNAL}"] / stages.SCORES)
    return inputs


def test_the_two_halves_of_a_combination_stand_in_one_ranking(tmp_path: Path) -> None:
    """Wrong labels are as frequent in both halves, so both have the same mean probability."""
    out, inputs = tmp_path / "out", planted(tmp_path / "data")
    out.mkdir()
    grid_stages.combine_scores(out, **inputs, signals=[SIGNAL], group="safety")
    learned = read_json(out / "combinations.json")
    assert learned["b"]["prior"] > 2 * learned["a"]["prior"]
    values = PairScores.load(out / stages.SCORES).values
    means = [np.mean([expit(-values[i]) for i in read_json(inputs[half] / grid_stages.EXTRA)["ids"]])
             for half in ("half_a", "half_b")]  # fmt: skip
    assert means[0] == pytest.approx(means[1], rel=1e-6)
    said = read_json(out / grid_stages.PROBABILITIES)["wrong"]
    assert sorted(values, key=lambda i: values[i]) == sorted(said, key=lambda i: -said[i])
