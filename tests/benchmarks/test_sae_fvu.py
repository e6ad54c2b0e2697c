"""Quality after equal wall clock: cells are trained once, grids are followed to an inner best, ratios are fair."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks import sae_data, sae_fvu, sae_speed
from benchmarks.harness import BenchmarkError
from benchmarks.peers import __main__ as peers
from benchmarks.peers import with_torch
from benchmarks.peers.feed import Job
from benchmarks.sae_contenders import CONTENDERS, OURS
from benchmarks.sae_fvu import Bench

NAME = "torch_dense"


class Trainings:
    """Stands for the measured process: FVU has its least at `best`, a step takes 10 ms."""

    def __init__(self, best=5e-4, step_s=0.01):
        self.jobs, self.timed, self.best, self.step_s = [], [], best, step_s

    def __call__(self, arguments, timeout, **_):
        job = Job(**json.loads(Path(arguments[-1]).read_text()))
        if not job.held_out:
            self.timed.append(job.contender)
            return {"ms_per_step": 1000 * self.step_s, "others_cpu": 0.0}
        self.jobs.append(job)
        fvu = 0.1 + abs(math.log(job.lr / self.best)) / 10 + 10 / job.steps
        return {"valid": fvu, "held_out": fvu + 0.01, "seconds": 1.0, "steps": job.steps, "lr": job.lr}


@pytest.fixture
def bench(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "data.json").write_text(json.dumps({"source": "demo texts", "d_in": 24, "positions": {}}))
    said = []
    made = Bench(tmp_path, tmp_path / "data", {"sparsify": "/venv/python"}, {}, said.append, train=Trainings())
    made.said = said
    made.time([OURS, NAME, "sparsify"])
    return made


def again(bench, **changes):
    made = Bench(**{"folder": bench.folder, "data": bench.data, "pythons": bench.pythons, "missing": {},
                    "say": bench.say, "train": bench.train, "speeds": dict(bench.speeds)} | changes)  # fmt: skip
    for name in made.missing:
        made.speeds.pop(name)
    return made


def test_speeds_are_taken_in_turns_and_kept(bench):
    assert bench.train.timed[:3] == [OURS, NAME, "sparsify"]
    assert bench.train.timed[3:6] == [NAME, "sparsify", OURS]  # every round begins with another one
    assert len(bench.train.timed) == 3 * sae_fvu.ROUNDS
    later = again(bench, train=Trainings(), speeds={})
    later.time([OURS, NAME])
    assert later.train.timed == []
    assert later.speeds[NAME]["steps_per_s"] == pytest.approx(100.0)
    later.time([OURS, "torch_dense_bf16"])
    assert set(later.train.timed) == {"torch_dense_bf16"}
    assert json.loads((bench.folder / "speeds.json").read_text()).keys() == {OURS, NAME, "sparsify", "torch_dense_bf16"}
    fresh = again(bench, train=Trainings(), fresh=True)
    fresh.time([NAME])
    assert len(fresh.train.timed) == sae_fvu.ROUNDS


def test_our_speed_is_taken_anew_with_new_code(bench, monkeypatch):
    monkeypatch.setattr(sae_fvu, "file_digest", lambda path: "changed")
    later = again(bench, train=Trainings(), speeds={})
    later.time([OURS, NAME])
    assert set(later.train.timed) == {OURS}


def test_steps_are_those_made_in_the_time_alone(bench):
    for minutes, steps in ((2.0, 12_000), (5.0, 30_000)):
        assert bench.cell(NAME, 5e-4, minutes)["steps"] == steps


def test_remarks_on_speeds():
    quiet = {"round": "a", "others_cpu": 0.01}
    assert sae_fvu.remarks({OURS: quiet, NAME: quiet}) == ""
    assert "SPEEDS were not all measured in the same rounds" in sae_fvu.remarks(
        {OURS: quiet, NAME: quiet | {"round": "b"}}
    )
    assert "DISTURBED" in sae_fvu.remarks({OURS: quiet, NAME: quiet | {"others_cpu": 0.5}})


def test_a_finished_cell_is_read_and_not_trained_again(bench):
    first = bench.cell(NAME, 5e-4, 2.0)
    second = again(bench).cell(NAME, 5e-4, 2.0)
    assert first == second
    assert len(bench.train.jobs) == 1
    assert "FVU" in bench.said[-1]
    again(bench).cell(NAME, 5e-4, 5.0)
    again(bench).cell(NAME, 1e-3, 2.0)
    assert len(bench.train.jobs) == 3


def test_fresh_trains_again_but_once_in_a_run(bench):
    bench.cell(NAME, 5e-4, 2.0)
    fresh = again(bench, fresh=True)
    fresh.cell(NAME, 5e-4, 2.0)
    fresh.cell(NAME, 5e-4, 2.0)
    assert len(bench.train.jobs) == 2


def test_a_cell_of_other_data_or_settings_is_trained_again(bench, monkeypatch):
    bench.cell(NAME, 5e-4, 2.0)
    (bench.data / "data.json").write_text(json.dumps({"source": "plain_text", "d_in": 24, "positions": {}}))
    bench.cell(NAME, 5e-4, 2.0)
    monkeypatch.setattr(sae_fvu, "PROTOCOL", sae_fvu.PROTOCOL + 1)
    bench.cell(NAME, 5e-4, 2.0)
    assert len(bench.train.jobs) == 3


def test_only_our_cells_depend_on_our_code(bench, monkeypatch):
    before = bench._key(OURS), bench._key(NAME)
    monkeypatch.setattr(sae_fvu, "file_digest", lambda path: "changed")
    monkeypatch.setattr(sae_fvu.sae_environments, "fingerprint", lambda name: sae_fvu.sae_environments.torch_pin())
    assert bench._key(OURS) != before[0]
    assert bench._key(NAME) == before[1]


@pytest.mark.parametrize("broken", ["raises", "diverges"])
def test_a_failed_training_says_why_and_is_tried_anew_next_time(bench, broken):
    def fails(arguments, timeout, **_):
        if broken == "raises":
            raise BenchmarkError("killed")
        return {"valid": float("nan"), "held_out": 1.0, "seconds": 120.0, "steps": 1, "lr": 1.0}

    failing = again(bench, train=fails)
    row = failing.cell(NAME, 5e-4, 2.0)
    assert row["valid"] == math.inf
    assert row["reason"] == ("killed" if broken == "raises" else "diverged")
    assert again(bench).cell(NAME, 5e-4, 2.0)["held_out"] > 0


def test_a_missing_library_is_a_failed_cell(bench):
    row = again(bench, missing={"sparsify": "sparsify cannot be installed: no network"}).cell("sparsify", 1e-2, 2.0)
    assert row["reason"] == "sparsify cannot be installed: no network"
    assert sae_fvu.why_not("sparsify", row) == "sparsify: sparsify cannot be installed: no network"


def test_everybody_gets_the_same_files_and_its_own_interpreter(bench):
    pythons, evaluated = [], set()

    def train(arguments, timeout, **extra):
        pythons.append(extra)
        job = json.loads(Path(arguments[-1]).read_text())
        evaluated.add((job["valid"], job["held_out"]))
        return Trainings()(arguments, timeout)

    with_pythons = again(bench, train=train)
    with_pythons.cell("sparsify", 1e-2, 2.0)
    with_pythons.cell(OURS, 5e-4, 2.0)
    assert pythons == [{"python": "/venv/python"}, {}]
    ours, theirs = (sae_fvu.job_of(n, 1.0, bench.data) for n in (OURS, "sparsify"))
    same = ("data", "d_in", "d_sae", "k", "batch", "shuffle", "seed")
    assert all(getattr(ours, field) == getattr(theirs, field) for field in same)
    assert [len({ours.data, *files}) for files in evaluated] == [3]


@pytest.mark.parametrize("factor", [1, 3, 9, 1 / 9])
def test_a_grid_is_followed_until_its_best_lies_inside(bench, factor):
    bench.train.best = CONTENDERS[NAME].lr * factor
    best = sae_fvu.grid(bench, [NAME], 2.0)
    assert best[NAME] == pytest.approx(bench.train.best)
    tried = sorted(j.lr for j in bench.train.jobs)
    assert tried[0] < best[NAME] < tried[-1]


def test_a_grid_has_an_end(bench):
    bench.train.best = 1e9
    sae_fvu.grid(bench, [NAME], 2.0)
    assert len(bench.train.jobs) == sae_fvu.WIDEST


def test_a_grid_that_fails_whole_has_no_best(bench):
    def fails(*_, **__):
        raise BenchmarkError("killed")

    assert sae_fvu.grid(again(bench, train=fails), [NAME], 2.0) == {NAME: None}


def test_lanes_train_the_same_cells_each_with_its_cores(bench, monkeypatch):
    cores = []
    monkeypatch.setattr(sae_fvu.os, "sched_getaffinity", lambda _: {3, 4, 5}, raising=False)
    monkeypatch.setattr(sae_fvu.os, "sched_setaffinity", lambda _, mine: cores.append(mine), raising=False)
    wanted = [(NAME, lr, 2.0) for lr in (1e-4, 5e-4, 1e-3)]
    side_by_side = again(bench, train=Trainings(), lanes=2)
    rows = side_by_side.cells(wanted)
    assert [row["lr"] for row in rows] == [lr for _, lr, _ in wanted]
    assert cores in ([[3, 5], [4]], [[3, 5]])  # one lane may have taken all before the other began
    assert again(bench).cells(wanted) == rows
    assert bench.train.jobs == []
    assert not list(bench.folder.glob("job-*"))


def test_a_peer_far_behind_is_named_and_not_trained_longer(bench):
    def train(arguments, timeout, **_):
        job = Job(**json.loads(Path(arguments[-1]).read_text()))
        fvu = {OURS: 0.5, NAME: 0.2, "sparsify": 0.31}[job.contender]
        return {"valid": fvu, "held_out": fvu, "seconds": 1.0, "steps": job.steps, "lr": job.lr}

    names = [OURS, NAME, "sparsify"]
    cells = sae_fvu.trained(again(bench, train=train), names, (2.0, 5.0), dict.fromkeys(names, 1e-3))
    assert {n for n in names if (cells[n, 5.0] or {}).get("behind")} == {"sparsify"}  # never ours
    assert "sparsify for 5 minutes (FVU 0.310 at 2 minutes, best peer 0.200)" in sae_fvu.given_up(cells)
    first, second = sae_fvu.claims(cells, names, (2.0, 5.0))
    assert first.value == second.value == pytest.approx(2.5)
    assert sae_fvu.table(cells, names, (2.0, 5.0), {})[2]["fvu_5_min"] is None


def cell(held_out, valid=0.5):
    return {"held_out": held_out, "valid": valid, "lr": 1e-3, "date": "2026-01-01", "reason": "diverged"}


def test_claims_compare_with_the_least_error_of_a_peer():
    names = [OURS, "sae_lens", "sparsify"]
    cells = {(n, t): cell(v) for t in (2.0, 5.0) for n, v in zip(names, (0.2, 0.25, 0.4), strict=True)}
    first, second = sae_fvu.claims(cells, names, (2.0, 5.0))
    assert [first.name, second.name] == ["fvu_vs_best_peer_at_2_min", "fvu_vs_best_peer_at_5_min"]
    assert (first.value, first.target, first.holds) == (pytest.approx(0.8), "< 1", True)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (None, "sae_lens: no learning rate led to a finite error"),
        (cell(0.3, valid=math.inf), "sae_lens: diverged"),
    ],
)
def test_what_cannot_be_compared_is_not_claimed(row, reason):
    cells = {(OURS, 2.0): cell(0.2), ("sae_lens", 2.0): row}
    [claim] = sae_fvu.claims(cells, [OURS, "sae_lens"], (2.0,))
    assert (claim.value, claim.reason) == (None, reason)
    [mine, theirs] = sae_fvu.table(cells, [OURS, "sae_lens"], (2.0,), {})
    assert mine["fvu_2_min"] == 0.2
    assert theirs["fvu_2_min"] == (0.3 if row and row["valid"] < 1 else None)


def test_best_of_a_few_is_not_claimed_and_alone_there_is_none():
    cells = {(OURS, 2.0): cell(0.2), ("sae_lens", 2.0): cell(0.3)}
    assert sae_fvu.claims(cells, [OURS, "sae_lens"], (2.0,), "not run: sparsify")[0].reason == "not run: sparsify"
    assert sae_fvu.claims(cells, [OURS], (2.0,))[0].reason == "no peer ran"


def test_a_result_names_the_contenders_it_does_not_cover():
    assert sae_fvu.untrained(list(CONTENDERS)) == ""
    remark = sae_fvu.untrained([n for n in CONTENDERS if n not in ("torch_dense", "dictionary_learning_bf16")])
    assert remark.startswith(". NOT TRAINED here")
    assert remark.endswith("dictionary_learning_bf16, torch_dense")


def test_a_whole_training_makes_its_steps_and_is_evaluated_on_both_parts(tmp_path):
    for i, part in enumerate(sae_data.PARTS):
        save_file({"x": sae_speed.made_activations(512, 24, seed=0)[i::2].half()}, tmp_path / f"{part}.safetensors")
    files = [str(tmp_path / f"{part}.safetensors") for part in sae_data.PARTS]
    job = Job(
        NAME, "with_torch", files[0], 24, 96, 4, 64, 3e-3, shuffle=True, valid=files[1], held_out=files[2], steps=80
    )
    found = peers.whole_training(job, with_torch.train)
    assert 0 < found["valid"] < 1
    assert 0 < found["held_out"] < 1
    assert found["valid"] != found["held_out"]
    assert found["steps"] == 80


def test_parts_of_the_data_do_not_share_texts():
    parts = [sae_data.part_of(f"text{i}") for i in range(20_000)]
    assert set(parts) == set(sae_data.PARTS)
    for part in ("valid", "held_out"):
        assert parts.count(part) / len(parts) == pytest.approx(sae_data.SHARE, rel=0.3)
    assert sae_data.part_of("pair7:0") == sae_data.part_of("pair7:1")


def test_texts_are_the_demos_unless_a_folder_of_real_ones_is_named(tmp_path, monkeypatch):
    monkeypatch.delenv(sae_data.VARIABLE, raising=False)
    assert sae_data.source() == "demo texts"
    assert len(sae_data.texts()) > 100
    monkeypatch.setenv(sae_data.VARIABLE, str(tmp_path))
    assert sae_data.source() == "demo texts"
    import gzip

    with gzip.open(tmp_path / "plain_text.jsonl.gz", "wt") as f:
        f.writelines(json.dumps({"text": f"A text about {i}."}) + "\n" for i in range(5))
    assert sae_data.source() == "plain_text"
    assert len(sae_data.texts()) == 5


def test_activations_are_read_once(tmp_path, monkeypatch):
    monkeypatch.delenv(sae_data.VARIABLE, raising=False)
    asked = []

    def read(arguments, timeout, **_):
        asked.append(arguments)
        (tmp_path / "data.json").write_text(json.dumps({"source": "demo texts"}))
        return {}

    monkeypatch.setattr(sae_fvu.harness, "run_python", read)
    for _ in range(2):
        assert sae_fvu.cached_data(tmp_path, lambda _: None) == tmp_path
    assert len(asked) == 1


def test_real_activations_are_written_up_to_the_limit(tmp_path):
    from tiny import tiny_hooked

    model = tiny_hooked("llama")
    rendered = [model.renderer().render_text(f"A harbour map for ship {i}, and tea.", f"t{i}") for i in range(6)]
    n = sae_data.write(model, rendered, 30, tmp_path / "x.safetensors")
    x = load_file(tmp_path / "x.safetensors")["x"]
    assert n == 30
    assert x.shape == (30, model.d_model(model.default_hookpoint))
    assert x.isfinite().all()
