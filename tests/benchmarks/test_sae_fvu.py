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
        self.jobs, self.best, self.step_s = [], best, step_s

    def __call__(self, arguments, timeout, **_):
        job = Job(**json.loads(Path(arguments[-1]).read_text()))
        self.jobs.append(job)
        steps = round(60 * job.minutes * (job.rate or 1 / self.step_s))
        seconds = steps * self.step_s
        fvu = 0.1 + abs(math.log(job.lr / self.best)) / 10 + 0.1 / job.minutes
        return {"valid": fvu, "held_out": fvu + 0.01, "seconds": seconds, "steps": steps,
                "steps_per_second": 1 / self.step_s, "lr": job.lr}  # fmt: skip


@pytest.fixture
def bench(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "data.json").write_text(json.dumps({"source": "demo texts", "d_in": 24, "positions": {}}))
    said = []
    made = Bench(tmp_path, tmp_path / "data", {"sparsify": "/venv/python"}, {}, said.append, train=Trainings())
    made.said = said
    return made


def again(bench, **changes):
    return Bench(**{"folder": bench.folder, "data": bench.data, "pythons": bench.pythons, "missing": {},
                    "say": bench.say, "train": bench.train} | changes)  # fmt: skip


def test_a_finished_cell_is_read_and_not_trained_again(bench):
    first = bench.cell(NAME, 5e-4, 2.0)
    second = again(bench).cell(NAME, 5e-4, 2.0)
    assert first == second
    assert len(bench.train.jobs) == 1
    assert "FVU" in bench.said[0]
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


def test_later_cells_know_the_speed_of_earlier_ones(bench):
    bench.cell(NAME, 5e-4, 2.0)
    bench.cell(NAME, 5e-4, 5.0)
    assert [j.rate for j in bench.train.jobs] == [0.0, pytest.approx(100.0)]
    resumed = again(bench, train=Trainings())
    resumed.cell(NAME, 5e-4, 2.0)
    resumed.cell(NAME, 5e-4, 10.0)
    assert [j.rate for j in resumed.train.jobs] == [pytest.approx(100.0)]


def test_a_training_of_the_wrong_length_is_repeated_with_the_right_number_of_steps(bench):
    bench.rates[NAME] = 200.0  # twice as fast as it turns out to be
    row = bench.cell(NAME, 5e-4, 2.0)
    assert [j.rate for j in bench.train.jobs] == [200.0, pytest.approx(100.0)]
    assert row["seconds"] == pytest.approx(120.0)
    assert "240 s instead of 120" in bench.said[0]


def test_a_training_that_missed_its_time_is_kept_for_this_run_only(bench):
    slower = Trainings()

    def train(arguments, timeout, **_):
        row = slower(arguments, timeout)
        return row | {"seconds": 1.2 * row["seconds"]}  # however many steps are planned

    busy = again(bench, train=train)
    row = busy.cell(NAME, 5e-4, 2.0)
    assert "144 s instead of 120" in sae_fvu.why_not(NAME, row, 2.0)
    assert busy.cell(NAME, 5e-4, 2.0) == row
    assert len(slower.jobs) == 2
    assert again(bench).cell(NAME, 5e-4, 2.0)["seconds"] == pytest.approx(120.0)


@pytest.mark.parametrize("broken", ["raises", "diverges"])
def test_a_failed_training_says_why_and_is_tried_anew_next_time(bench, broken):
    def fails(arguments, timeout, **_):
        if broken == "raises":
            raise BenchmarkError("killed")
        return {
            "valid": float("nan"),
            "held_out": 1.0,
            "seconds": 120.0,
            "steps": 1,
            "steps_per_second": 1.0,
            "lr": 1.0,
        }

    failing = again(bench, train=fails)
    row = failing.cell(NAME, 5e-4, 2.0)
    assert row["valid"] == math.inf
    assert row["reason"] == ("killed" if broken == "raises" else "diverged")
    assert again(bench).cell(NAME, 5e-4, 2.0)["held_out"] > 0


def test_a_missing_library_is_a_failed_cell(bench):
    row = again(bench, missing={"sparsify": "sparsify cannot be installed: no network"}).cell("sparsify", 1e-2, 2.0)
    assert row["reason"] == "sparsify cannot be installed: no network"
    assert sae_fvu.why_not("sparsify", row, 2.0) == "sparsify: sparsify cannot be installed: no network"


def test_everybody_gets_the_same_files_and_its_own_interpreter(bench):
    pythons = []

    def train(arguments, timeout, **extra):
        pythons.append(extra)
        return Trainings()(arguments, timeout)

    with_pythons = again(bench, train=train)
    with_pythons.cell("sparsify", 1e-2, 2.0)
    with_pythons.cell(OURS, 5e-4, 2.0)
    assert pythons == [{"python": "/venv/python"}, {}]
    ours, theirs = (sae_fvu.job_of(n, 1.0, 2.0, bench.data, 0.0) for n in (OURS, "sparsify"))
    same = ("data", "valid", "held_out", "d_in", "d_sae", "k", "batch", "minutes", "seed")
    assert all(getattr(ours, field) == getattr(theirs, field) for field in same)
    assert len({ours.data, ours.valid, ours.held_out}) == 3


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


def cell(held_out, seconds=120.0, valid=0.5):
    return {"held_out": held_out, "valid": valid, "seconds": seconds, "lr": 1e-3, "steps_per_second": 10.0,
            "date": "2026-01-01", "reason": "diverged"}  # fmt: skip


def test_claims_compare_with_the_least_error_of_a_peer():
    names = [OURS, "sae_lens", "sparsify"]
    cells = {(n, t): cell(v, 60 * t) for t in (2.0, 5.0) for n, v in zip(names, (0.2, 0.25, 0.4), strict=True)}
    first, second = sae_fvu.claims(cells, names, (2.0, 5.0))
    assert [first.name, second.name] == ["fvu_vs_best_peer_at_2_min", "fvu_vs_best_peer_at_5_min"]
    assert (first.value, first.target, first.holds) == (pytest.approx(0.8), "< 1", True)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (None, "sae_lens: no learning rate led to a finite error"),
        (cell(0.3, valid=math.inf), "sae_lens: diverged"),
        (cell(0.3, seconds=140.0), "sae_lens: trained for 140 s instead of 120"),
    ],
)
def test_what_cannot_be_compared_is_not_claimed(row, reason):
    cells = {(OURS, 2.0): cell(0.2), ("sae_lens", 2.0): row}
    [claim] = sae_fvu.claims(cells, [OURS, "sae_lens"], (2.0,))
    assert (claim.value, claim.reason) == (None, reason)
    [mine, theirs] = sae_fvu.table(cells, [OURS, "sae_lens"], (2.0,))
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


def test_a_whole_training_takes_its_minutes_and_is_evaluated_on_both_parts(tmp_path, monkeypatch):
    monkeypatch.setattr(peers, "CALIBRATION_S", 0.05)
    for i, part in enumerate(sae_data.PARTS):
        save_file({"x": sae_speed.made_activations(512, 24, seed=0)[i::2].half()}, tmp_path / f"{part}.safetensors")
    files = [str(tmp_path / f"{part}.safetensors") for part in sae_data.PARTS]
    job = Job(NAME, "with_torch", files[0], 24, 96, 4, 64, 3e-3, minutes=0.02, valid=files[1], held_out=files[2])
    found = peers.whole_training(job, with_torch.train)
    assert 0 < found["valid"] < 1
    assert 0 < found["held_out"] < 1
    assert found["valid"] != found["held_out"]
    assert found["steps_per_second"] * found["seconds"] == pytest.approx(found["steps"])
    assert peers.whole_training(Job(**job.__dict__ | {"rate": 1000.0}), with_torch.train)["steps"] == 1200


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
