"""The audit experiment on tiny models: the grid it makes, half a grid, interruptions, and what it refuses."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from seamark.audit.editing import EditManifest
from seamark.audit.scores import PairScores
from seamark.errors import ConfigError, DataError, RunError, SeamarkError
from seamark.pipelines import grid_estimate, grid_stages
from seamark.pipelines.audit_recipe import AuditRecipe
from seamark.pipelines.grid_runner import audit_so_far, estimate_audit, run_audit
from seamark.pipelines.grid_tables import grid_tables
from seamark.pipelines.recipe import check_data
from seamark.run import read_json
from seamark.text.pairs import Pairs
from tiny_audit import METHODS, audit_data
from tiny_run import Finished, call, command, environment, the_error, write_model, write_pairs, write_recipe

SEEDS = (0, 1)
APART = ("estimate", "timings")
TABLES = {"poison", "poison-effects", "denoise-random-0.2", "detection"}


WORDS = {"name": "verbosity", "group": "safety", "question": "how strongly the feature has to do with many words"}


def checked(data: dict[str, Any]) -> AuditRecipe:
    return check_data(AuditRecipe, data, "test")


@pytest.fixture(scope="module")
def audited(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    base = tmp_path_factory.mktemp("audited")
    model, pairs = write_model(base / "model"), write_pairs(base / "pairs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(grid_estimate.Probe, "go", lambda probe: probe)  # test_a_probe_... has it
        folder, result = run_audit(checked(audit_data(base / "run", model, pairs)))
    return Finished(folder, model, pairs, result)


@pytest.fixture
def copied(audited: Finished, tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """The recipe of the finished grid in a copy of its folder, with changes."""

    def data(**changes: Any) -> dict[str, Any]:
        if not (tmp_path / "run").exists():
            audited.copy(tmp_path / "run")
        return audit_data(tmp_path / "run", audited.model, audited.pairs, **changes)

    return data


def found_in(result: dict[str, Any]) -> dict[str, Any]:
    """A result without its timings and without where it lies."""
    recipe = {k: v for k, v in result["recipe"].items() if k not in ("out", "workers")}
    return {k: v for k, v in result.items() if k not in APART} | {"recipe": recipe}


def files(folder: Path) -> dict[str, bytes]:
    """The bytes of all that is compared: no manifests (dates), no timings."""
    left_out = ("manifest.json", "timings.json", "estimate.json", "result.json", ".lock")
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*"))
            if p.is_file() and not (p.name in left_out and "edit" not in p.parts)}  # fmt: skip


def test_the_grid_has_every_cell(audited: Finished) -> None:
    result = audited.result
    assert read_json(audited.folder / "result.json") == result
    assert result["complete"]
    assert result["missing"] == []
    rows = {(r["method"], r["rate"], r["seed"]) for r in result["poison"]["rows"]}
    assert rows == {("none", 0.0, s) for s in SEEDS} | set(product(METHODS, [0.2], SEEDS))
    (denoise,) = result["denoise"]
    assert denoise["noise"] == {"kind": "random", "rate": 0.2}
    assert {(r["method"], r["rate"], r["seed"]) for r in denoise["rows"]} == {
        ("none", 0.0, s) for s in SEEDS} | set(product(["safer"], [0.1], SEEDS))  # fmt: skip
    assert {(e["rate"], e["baseline"]) for e in result["poison"]["effects"]} == set(product([0.2], METHODS[1:]))
    for effect in result["poison"]["effects"]:
        assert effect["seeds"] == [0, 1]
        assert effect["D"]["low"] <= effect["D"]["value"] <= effect["D"]["high"]
    assert [d["method"] for d in result["detection"]] == ["safer", "margin", "latents"]
    assert all(0 <= d["auroc"]["value"] <= 1 for d in result["detection"])
    assert {d["method"] for d in result["detection"] if "above_margin" in d} == {"safer", "latents"}
    assert {p.stem for p in (audited.folder / "tables").iterdir()} == TABLES
    assert {p.suffix for p in (audited.folder / "tables").iterdir()} == {".md", ".csv", ".tex"}
    assert {p.suffix for p in (audited.folder / "figures").iterdir()} == {".png", ".pdf", ".html"}
    assert len(list(grid_tables(result))) == len(TABLES)
    for name in ("poison", "poison-effects", "detection"):
        rows = (audited.folder / "tables" / f"{name}.md").read_text().splitlines()[4:]
        assert all("20.0\u202f%" in row for row in rows if "none" not in row), rows
    assert "0.2," in (audited.folder / "tables" / "poison.csv").read_text()  # fractions for programs


def test_what_was_edited_follows_from_the_scores(audited: Finished) -> None:
    """The attacker flips the pairs that score highest, the defender removes the lowest in the noisy file."""
    for seed in SEEDS:
        world = audited.folder / f"clean-{seed}"
        values = PairScores.load(world / "scores" / "safer" / "scores.json").values
        cell = read_json(audited.folder / "poison" / f"safer-0.2-seed-{seed}" / "manifest.json")["config"]
        lowest_flipped = min(values[i] for i in cell["flipped"])
        assert all(values[i] <= lowest_flipped for i in values if i not in cell["flipped"])
        noisy = audited.folder / f"noisy-random-0.2-{seed}"
        wrong = EditManifest.load(noisy / "data" / "edit" / "manifest.json").edited_ids
        before, after = (Pairs.from_jsonl(f / "train.jsonl") for f in (audited.folder / "data", noisy / "data"))
        assert {p.id for p, q in zip(before, after, strict=True) if p.chosen != q.chosen} == set(wrong)
        removed = read_json(audited.folder / "denoise-random-0.2" / f"safer-0.1-seed-{seed}" / "manifest.json")
        noisy_values = PairScores.load(noisy / "scores" / "safer" / "scores.json").values
        highest_removed = max(noisy_values[i] for i in removed["config"]["removed"])
        assert all(v >= highest_removed for i, v in noisy_values.items() if i not in removed["config"]["removed"])
        assert values != noisy_values
    seeds = [read_json(audited.folder / f"clean-{s}" / "sae" / "manifest.json")["config"]["sae"]["seed"] for s in SEEDS]
    assert seeds == list(SEEDS)


def test_again_does_nothing_and_lost_cells_come_back_as_they_were(
    audited: Finished, copied: Callable[..., dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = checked(copied())
    folder, again = run_audit(recipe)
    assert "Nothing to do" in capsys.readouterr().err
    whole = files(folder)
    stale = [folder / "tables" / "denoise-random-0.4.md", folder / "figures" / "denoise-random-0.4-chat.png"]
    for file in stale:  # of an earlier recipe in the same folder
        file.write_bytes(b"")
    lost = ("noisy-random-0.2-1/scan", "noisy-random-0.2-1/scores/safer", "poison/safer-0.2-seed-0", "tables/poison.md")
    for name in lost:
        shutil.rmtree(folder / name) if (folder / name).is_dir() else (folder / name).unlink()
    _, back = run_audit(recipe)
    assert files(folder) == whole
    assert found_in(back) == found_in(again) == found_in(audited.result)


def test_a_cut_run_goes_on_and_half_of_it_can_be_read(
    audited: Finished, copied: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = checked(copied())
    whole = files(Path(recipe.out))
    for name in ("noisy-random-0.2-1/features", "noisy-random-0.2-1/scores", "denoise-random-0.2", "result.json"):
        place = Path(recipe.out) / name
        place.unlink() if place.is_file() else shutil.rmtree(place)
    choose = grid_stages.choose_with_controls

    def cut(folder: Path, **arguments: Any) -> None:
        (folder / ".half.json").write_text("{}")
        raise KeyboardInterrupt

    cut.__module__, cut.__qualname__ = choose.__module__, choose.__qualname__
    with monkeypatch.context() as patch:
        patch.setattr(grid_stages, "choose_with_controls", cut)
        with pytest.raises(KeyboardInterrupt):
            run_audit(recipe)
    folder, half = audit_so_far(recipe)
    assert not half["complete"]
    assert "noisy-random-0.2-1/features" in half["missing"]
    assert "denoise-random-0.2/safer-0.1-seed-1" in half["missing"]
    assert half["poison"] == audited.result["poison"]
    assert [d["seeds"] for d in half["detection"]] == [[0], [0], [0]]
    assert all(d["auroc"]["reason"] == "no interval: one seed only" for d in half["detection"])
    assert {(r["method"], r["seed"]) for r in half["denoise"][0]["rows"]} == {("none", 0), ("none", 1)}
    assert read_json(folder / "result-so-far.json") == half
    shutil.rmtree(folder / "so-far")
    (folder / "result-so-far.json").unlink()
    _, result = run_audit(recipe)
    assert found_in(result) == found_in(audited.result)
    assert files(folder) == whole


def test_another_setting_takes_nothing_over(audited: Finished, copied: Callable[..., dict[str, Any]]) -> None:
    """So far, with other features: reward models and scans still hold, what follows from features does not."""
    _, half = audit_so_far(checked(copied(features__count=2)))
    assert half["detection"] == []
    assert {r["method"] for r in half["poison"]["rows"]} == {"none"}
    assert {"clean-0/features", "poison/random-0.2-seed-0"} <= set(half["missing"])
    assert "clean-0/scan" not in half["missing"]


def test_another_dimension_takes_the_place_of_target_and_others(
    copied: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    """Of the same group against all others it is the same grid: nothing is missing. Of another group it is none."""
    file = write_recipe(tmp_path / "words.yaml", WORDS)
    _, same = audit_so_far(checked(copied(dimension=str(file))))
    assert same["complete"]
    assert same["recipe"]["dimension"]["question"] == WORDS["question"] + "."
    _, named = audit_so_far(checked(copied(dimension=WORDS | {"against": ["chat"]})))
    assert {"clean-0/features", "noisy-random-0.2-1/features"} <= set(named["missing"])
    turned = checked(copied(dimension=WORDS | {"group": "chat", "against": ["safety"]}))
    assert (turned.target, turned.others) == ("chat", ["safety"])
    _, result = audit_so_far(turned)
    assert not result["complete"]


def test_the_estimate_counts_what_is_left(copied: Callable[..., dict[str, Any]]) -> None:
    done = {w.work: w for w in estimate_audit(checked(copied())).work}
    assert {k: (w.count, w.done) for k, w in done.items()} == {
        "retraining": (8, 8), "reward model": (4, 4), "SAE training": (4, 4), "scan": (4, 4), "features": (4, 4),
        "scores": (12, 12),
    }  # fmt: skip
    more = estimate_audit(checked(copied(poison__rates=[0.1, 0.2], seeds=[0, 1, 2])))
    left = {w.work: w.count - w.done for w in more.work}
    assert left == {"retraining": 3 * 7 - 8, "reward model": 2, "SAE training": 2, "scan": 2, "features": 2,
                    "scores": 6}  # fmt: skip
    assert more.seconds > 0
    assert all(w.source == "finished stages" for w in more.work)


@pytest.mark.slow
def test_a_probe_measures_what_nothing_was_done_of(audited: Finished, tmp_path: Path) -> None:
    recipe = checked(audit_data(tmp_path / "run", audited.model, audited.pairs))
    found = estimate_audit(recipe).work
    assert {(w.source, w.done) for w in found} == {("probe", 0)}
    assert all((w.seconds_each or 0) > 0 for w in found)
    assert not (tmp_path / "run" / ".probe").exists()


@pytest.mark.parametrize(("changes", "error", "problem"), [
    ({"poison__rates": [0.001]}, ConfigError, r"rate 0\.001 of 25 safety pairs is less than one pair"),
    ({"poison__methods": ["guess"]}, ConfigError, r"poison\.methods: no scoring method 'guess'; the methods are "),
    ({"combine": {"signals": ["combined"]}}, ConfigError, "cannot be a signal of itself"),
    ({"detect__methods": ["combined"]}, ConfigError, r"combined learns from 20 wrong"),
    ({"noise__random": [0.6]}, ConfigError, "right ones would be the exception"),
    ({"noise": {"random": []}}, ConfigError, "noise has no rate of the kinds"),
    ({"others": ["code"]}, ConfigError, "no pairs of group 'code'"),
    ({"detect__methods": ["judge"]}, ConfigError, "needs `judged`"),
    ({"detect__methods": ["judge"], "judged": "nowhere.json"}, DataError, "no such file"),
    ({"noise": {"category": [0.2]}, "denoise__kinds": ["category"]}, ConfigError, "the pairs have no categories"),
    ({"ablations": {"k": [65]}}, ConfigError, "k 65 is more than the 64 latents"),
    ({"ablations": {"k": [0]}}, ConfigError, "ablations.k"),
    ({"ablations": {"count": [-1]}}, ConfigError, "ablations.count"),
    ({"ablations": {"count": [2, 2]}}, ConfigError, "count 2 is named twice"),
    ({"combine": {"extra": 0.9}}, ConfigError, "combine.extra"),
    ({"denoise__rates": [0.999]}, ConfigError, r"rate 0\.999 removes all 25 safety pairs"),
    ({"dimension": "nowhere.yaml"}, ConfigError, "cannot be read"),
    ({"dimension": {"name": "words", "group": "chat"}}, ConfigError, "dimension, key question"),
    ({"dimension": {**WORDS, "group": "chat"}, "target": "safety"}, ConfigError, "target is given"),
    ({"dimension": {**WORDS, "against": ["code"]}}, ConfigError, "no pairs of group 'code'"),
    ({"ablations": {"hookpoint": ["layers.9"]}}, ConfigError, r"ablations\.hookpoint layers\.9 is out of range"),
    ({"target": "danger"}, DataError, "no training pair in the target group 'danger'"),
])  # fmt: skip
def test_what_makes_no_sense_is_said_before_anything_is_trained(
    changes: dict[str, Any], error: type[SeamarkError], problem: str, audited: Finished, tmp_path: Path
) -> None:
    with pytest.raises(error, match=problem):
        run_audit(checked(audit_data(tmp_path / "run", audited.model, audited.pairs, **changes)))
    assert not list(tmp_path.glob("run/clean-*"))


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["clean-1/reward", "noisy-random-0.2-0/sae", "poison/untrained-0.2-seed-1"])
def test_killed_it_ends_in_the_same_bytes(stage: str, audited: Finished, tmp_path: Path) -> None:
    """kill -9 while a stage is at work, the same command again, with two workers."""
    data = audit_data(tmp_path / "run", audited.model, audited.pairs, workers=2)
    recipe = write_recipe(tmp_path / "recipe.yaml", data)
    partial = tmp_path / "run" / ".partial" / stage.replace("/", "~")
    with subprocess.Popen(command("audit", "experiment", "--config", recipe), stdout=subprocess.DEVNULL,
                          stderr=subprocess.DEVNULL, env=environment(), cwd=tmp_path) as process:  # fmt: skip
        end = time.monotonic() + 240
        while not partial.exists() and process.poll() is None and time.monotonic() < end:
            time.sleep(0.002)
        process.kill()
    assert process.returncode == -9
    assert not (tmp_path / "run" / "result.json").exists()
    folder, result = run_audit(checked(data))
    assert found_in(result) == found_in(audited.result)
    assert files(folder) == files(audited.folder)


@pytest.mark.slow
def test_everything_at_once(audited: Finished, tmp_path: Path) -> None:
    """Targeted noise, combination, cross-fitting, ablations and RewardBench, with one seed."""
    pairs = write_pairs(tmp_path / "pairs", 180)
    bench = tmp_path / "bench.jsonl"
    names = ["donotanswer", "refusals-dangerous", "alpacaeval-easy"]
    rows = [{"prompt": f"Is {i} safe?", "chosen": f"No, {i} is not; never do that.", "rejected": f"Sure, do {i}.",
             "subset": names[i % 3]} for i in range(9)]  # fmt: skip
    bench.write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = audit_data(
        tmp_path / "run", audited.model, pairs, seeds=[0], reward__epochs=1, reward__trainable_blocks=2,
        reuse_lower_blocks=True, rewardbench=[str(bench)], noise={"random": [0.2], "safer": [0.1], "category": []},
        poison={"methods": ["safer", "random", "direction", "random_latents"], "rates": [0.1]},
        denoise={"methods": ["combined"], "rates": [0.1]}, crossfit={"folds": 2, "repeats": 2},
        combine={"signals": ["latents", "margin"], "kind": "safer"}, detect={"methods": ["margin_crossfit", "voting"]},
        ablations={"count": [2], "k": [2], "positions": ["last"], "normalization": ["paper"]},
    )  # fmt: skip
    folder, result = run_audit(checked(data))
    assert result["complete"], result["missing"]
    assert {(d["noise"], d["method"]) for d in result["detection"]} == set(
        product(["random"], ["combined", "margin_crossfit", "voting"]))  # fmt: skip
    assert {(d["noise"], d["method"]) for d in result["defence"]} == set(
        product(["safer"], ["margin_crossfit", "voting"])
    )
    attacker = read_json(folder / "noisy-safer-0.1-0" / "data" / "manifest.json")["inputs"]["scores"]
    assert attacker == read_json(folder / "clean-1" / "scores" / "safer" / "manifest.json")["digest"]
    assert [r["setting"] for r in result["ablations"]] == ["k", "count", "positions", "normalization"]
    assert all({"lost", "above_base", "auroc", "auroc_above_base"} <= set(r) for r in result["ablations"])
    assert {(r["section"], r["n"]) for r in result["rewardbench"]} == {("Safety", 6), ("Chat", 3)}
    assert {r["experiment"] for r in result["rewardbench"]} == {"poison", "denoise-random-0.2"}
    (calibrated,) = result["calibration"]
    assert 0 <= calibrated["calibration"]["ece"]["value"] <= 1
    for half, other in (("a", "b"), ("b", "a")):
        extra = read_json(folder / "noisy-random-0.2-0" / f"half-{half}" / "data" / "extra.json")
        rest = read_json(folder / "noisy-random-0.2-0" / f"half-{other}" / "data" / "extra.json")
        assert set(extra["wrong"]) < set(extra["ids"])
        assert not set(extra["ids"]) & set(rest["ids"])
        assert len(extra["wrong"]) >= 20
        sure = PairScores.load(folder / "noisy-random-0.2-0" / "scores" / "safer" / "scores.json").values
        assert min(sure[i] for i in extra["wrong"]) >= max(sure[i] for i in set(extra["ids"]) - set(extra["wrong"]))
    intervals = [e["D"] for e in result["poison"]["effects"]] + [d["auroc"] for d in result["detection"]]
    assert all(e["low"] is None and e["reason"] for e in intervals)
    assert any("one seed only" in note for note in result["notes"])
    margins = read_json(folder / "noisy-random-0.2-0" / "crossfit" / "margins" / "margins.json")
    assert len(margins) == result["data"]["groups"]["safety"]["train"]
    assert all(len(m) == 1 for m in margins.values())


def test_one_group_only(audited: Finished, tmp_path: Path) -> None:
    data = audit_data(tmp_path / "run", audited.model, {"safety": audited.pairs["safety"]})
    with pytest.raises(DataError, match="there are only pairs of the group 'safety'"):
        run_audit(checked(data))


def test_the_command(audited: Finished, copied: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    file = write_recipe(tmp_path / "recipe.yaml", copied())
    for words in (("audit", "experiment", "--config", file), ("run", file)):
        code, out, err = call(*words, "--json")
        assert code == 0, err
        assert found_in(json.loads(out)) == found_in(audited.result)
    code, out, err = call("audit", "experiment", "--config", file, "--estimate")
    assert code == 0, err
    assert "left: about 0 s" in out
    code, out, err = call("audit", "experiment", "--config", file, "--so-far")
    assert code == 0, err
    assert "result-so-far.json" in out
    assert "not been" not in out
    empty = ("audit", "experiment", "--config", file, "--so-far", "--out", tmp_path / "none")
    assert "no run was started" in the_error(*call(*empty))
    both = ("audit", "experiment", "--config", file, "--so-far", "--estimate")
    assert "Ask one at a time" in the_error(*call(*both))
    with pytest.raises(RunError, match="no run was started"):
        audit_so_far(checked(audit_data(tmp_path / "none", audited.model, audited.pairs)))


def test_worlds_have_the_scores_that_further_flips_go_by() -> None:
    """Clean ones, too: without them `combined` flips would wait for scores that nobody makes."""
    recipe = check_data(AuditRecipe, {"poison": {"methods": ["combined"]}, "combine": {"kind": "margin",
                        "signals": ["latents", "direction"]}}, "a test")  # fmt: skip
    assert "margin" in recipe.methods_in(None)
