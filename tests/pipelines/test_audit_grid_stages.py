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

PRIOR = 0.1


def planted(folder: Path, signal: str, n: int = 400, most_of_b: int = 60) -> dict[str, Path]:
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
        inputs[f"{world}_{signal}"] = folder / f"{world}-scores"
        PairScores(method=signal, values=values).save(inputs[f"{world}_{signal}"] / stages.SCORES)
    return inputs


@pytest.mark.parametrize("signal", ["margin", "latents"])
def test_the_two_halves_of_a_combination_stand_in_one_ranking(tmp_path: Path, signal: str) -> None:
    """Wrong labels are as frequent in both halves, so both have the same mean probability."""
    out, inputs = tmp_path / "out", planted(tmp_path / "data", signal)
    out.mkdir()
    grid_stages.combine_scores(out, **inputs, signals=[signal], group="safety")
    learned = read_json(out / "combinations.json")
    assert learned["b"]["prior"] > 1.5 * learned["a"]["prior"]
    values = PairScores.load(out / stages.SCORES).values
    means = [np.mean([expit(-values[i]) for i in read_json(inputs[half] / grid_stages.EXTRA)["ids"]])
             for half in ("half_a", "half_b")]  # fmt: skip
    assert means[0] == pytest.approx(means[1], rel=1e-6)
    told = read_json(out / grid_stages.PROBABILITIES)
    if signal == "margin":  # the model has learned the labels it judges: no share of them is known, and no probability
        assert told["share"]["value"] is None
        assert told["wrong"] == {}
        assert learned["a"]["wrong_before"] == 0
    else:
        assert learned["a"]["wrong_before"] == told["share"]["value"] == pytest.approx(PRIOR, abs=0.05)
        assert means[0] == pytest.approx(told["share"]["value"], rel=1e-6)
        assert sorted(values, key=lambda i: values[i]) == sorted(told["wrong"], key=lambda i: -told["wrong"][i])


def test_further_flips_are_drawn_or_those_a_score_is_surest_of(tmp_path: Path) -> None:
    pairs = Pairs(tuple(PreferencePair(f"p{i}", "safety", f"prompt {i}", f"yes {i}", f"no {i}") for i in range(300)))
    data = tmp_path / "data"
    data.mkdir()
    pairs.to_jsonl(data / stages.TRAIN)
    sure = {f"p{i}": float(i % 97) for i in range(300)}
    (tmp_path / "scores").mkdir()
    PairScores(method="safer", values=sure).save(tmp_path / "scores" / stages.SCORES)
    flipped = {}
    for name, scores in (("drawn", None), ("surest", tmp_path / "scores")):
        out = tmp_path / name
        out.mkdir()
        grid_stages.flip_more(out, data, scores, half="a", rate=0.2, group="safety", seed=0)
        told = read_json(out / grid_stages.EXTRA)
        flipped[name] = set(told["wrong"])
        assert len(flipped[name]) == round(0.2 * len(told["ids"]))
        now = {p.id: p.chosen for p in Pairs.from_jsonl(out / stages.TRAIN)}
        assert {p.id for p in pairs if now[p.id] != p.chosen} == flipped[name] < set(told["ids"])
    rest = set(told["ids"]) - flipped["surest"]
    assert min(sure[i] for i in flipped["surest"]) >= max(sure[i] for i in rest)
    assert min(sure[i] for i in flipped["drawn"]) < 60
