"""Claims of `make bench-sae` about speed and memory, from rows made by hand; the clock; the floor."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks import __main__ as program
from benchmarks import harness, sae_contenders, sae_environments, sae_speed
from benchmarks.harness import BenchmarkError, Result
from benchmarks.peers import __main__ as peers
from benchmarks.peers import feed as feeds
from benchmarks.peers import floor, with_torch
from benchmarks.peers.feed import EnoughError, Feed, Job
from benchmarks.sae_contenders import CONTENDERS, OURS, PEERS

SPEEDS = {OURS: [5000.0, 6000.0, 5500.0], "sparsify": [950.0, 1000.0, 900.0], "sae_lens": [300.0, 310.0, 320.0]}
MEMORY = {OURS: [900.0] * 3, "sparsify": [3000.0] * 3, "sae_lens": [1000.0, 1200.0, 1100.0]}


def speed_rows(shape="L", mallocs=("as_shipped", "tuned_malloc")):
    rows = {}
    for malloc in mallocs:
        for name, speeds in SPEEDS.items():
            rows[f"{shape} {name} {malloc}"] = [
                {"tokens_per_s": s, "ms_per_step": 2048e3 / s, "peak_rss_mb": m}
                for s, m in zip(speeds, MEMORY[name], strict=True)
            ]
        rows[f"{shape} floor {malloc}"] = [{"floor_bf16_ms": f} for f in (300.0, 310.0, 280.0)]
    return rows


def named(claims):
    return {c.name: c for c in claims}


def test_claims_are_ratios_to_the_best_peer_and_to_the_floor_round_by_round():
    found = named(sae_speed.claims(speed_rows(), {}))
    assert list(found) == ["L_vs_best_peer_as_shipped", "L_vs_best_peer_tuned_malloc", "L_time_vs_bf16_floor",
                           "L_rss_vs_least_peer"]  # fmt: skip
    speed = found["L_vs_best_peer_as_shipped"]
    assert speed.value == pytest.approx(6.0)  # 5000/950, 6000/1000, 5500/900
    assert (speed.low, speed.high, speed.n) == (pytest.approx(5000 / 950), pytest.approx(5500 / 900), 3)
    assert (speed.target, speed.holds) == (">= 5", True)
    assert found["L_vs_best_peer_tuned_malloc"].target == ">= 3"
    steps = sorted([2048e3 / 5000 / 300, 2048e3 / 6000 / 310, 2048e3 / 5500 / 280])
    assert found["L_time_vs_bf16_floor"].value == pytest.approx(steps[1])
    assert found["L_rss_vs_least_peer"].value == pytest.approx(900 / 1100)
    assert found["L_rss_vs_least_peer"].holds is True


def test_every_shape_that_ran_has_its_claims_and_targets_stand_at_l_only():
    found = named(sae_speed.claims(speed_rows("S") | speed_rows("M") | speed_rows("L"), {}))
    assert len(found) == 12
    assert {name[0] for name, c in found.items() if c.target} == {"L"}


def test_a_peer_that_did_not_run_leaves_the_claim_without_a_value():
    rows = speed_rows() | {"L sparsify as_shipped": []}
    found = named(sae_speed.claims(rows, {"L sparsify as_shipped": "sparsify cannot be installed: no network"}))
    for name in ("L_vs_best_peer_as_shipped", "L_rss_vs_least_peer"):
        assert found[name].value is None
        assert found[name].reason == "sparsify: sparsify cannot be installed: no network"
    assert found["L_vs_best_peer_tuned_malloc"].value is not None
    assert found["L_time_vs_bf16_floor"].value is not None


def test_ours_or_the_floor_failing_is_told():
    rows = speed_rows() | {f"L {OURS} as_shipped": []}
    found = named(sae_speed.claims(rows, {f"L {OURS} as_shipped": "killed"}))
    assert {found[n].reason for n in found if "tuned" not in n} == {f"{OURS}: killed", "killed"}
    found = named(sae_speed.claims(speed_rows() | {"L floor as_shipped": []}, {"L floor as_shipped": "broken"}))
    assert found["L_time_vs_bf16_floor"].reason == "broken"
    assert found["L_vs_best_peer_as_shipped"].value is not None


def test_best_of_a_few_peers_is_not_the_best_peer():
    few = sae_contenders.chosen("sparsify,sae_lens")
    assert few == [OURS, "sae_lens", "sparsify"]
    reason = sae_contenders.left_out(few)
    assert "torch_dense" in reason
    found = named(sae_speed.claims(speed_rows(), {}, reason))
    assert found["L_vs_best_peer_as_shipped"].reason == reason
    assert found["L_time_vs_bf16_floor"].value is not None
    assert sae_contenders.left_out(sae_contenders.chosen(None)) == ""
    with pytest.raises(ValueError, match="no contender nobody"):
        sae_contenders.chosen("nobody")


def test_rows_are_grouped_by_shape_and_name_malloc():
    rows = sae_speed.table(speed_rows("L") | speed_rows("S"))
    assert [r["table"] for r in rows] == sorted((r["table"] for r in rows), key=lambda t: "SML".index(t[-1]))
    [floors, *_] = [r for r in rows if r["table"] == "floor L"]
    assert (floors["variant"], floors["malloc"], floors["floor_bf16_ms"]["median"]) == ("floor", "as_shipped", 300.0)
    assert {r["malloc"] for r in rows} == set(sae_speed.MALLOCS)


def test_a_missing_library_is_a_failed_run_with_its_reason(tmp_path):
    measure = sae_speed._measure("S", "sparsify", "as_shipped", tmp_path, {}, {"sparsify": "no network"})
    with pytest.raises(BenchmarkError, match="no network"):
        measure()


def test_environments_that_cannot_be_made_are_named(tmp_path, monkeypatch):
    monkeypatch.setattr(sae_environments, "python_of", lambda name, say, folder: f"/venvs/{name}/bin/python")
    assert sae_environments.prepare(["a"], folder=tmp_path) == ({"a": "/venvs/a/bin/python"}, {})

    def fails(name, say, folder):
        raise BenchmarkError("no matching distribution")

    monkeypatch.setattr(sae_environments, "python_of", fails)
    told = []
    found, missing = sae_environments.prepare(["a"], told.append, tmp_path)
    assert (found, missing) == ({}, {"a": "a cannot be installed: no matching distribution"})
    assert told == ["a cannot be installed: no matching distribution"]


def test_environments_are_made_once_per_list_of_requirements(tmp_path, monkeypatch):
    ran = []

    def run(command):
        ran.append(command)
        python = tmp_path / "sparsify" / "bin" / "python"
        python.parent.mkdir(parents=True, exist_ok=True)
        python.touch()

    monkeypatch.setattr(sae_environments, "_run", run)
    for _ in range(2):
        sae_environments.python_of("sparsify", lambda _: None, tmp_path)
    first, second = [c for c in ran if "install" in c]
    assert first[-1].startswith("torch==")  # before anything that would fetch another build
    assert "-r" not in first
    assert second[-1].endswith("requirements-sparsify.txt")
    monkeypatch.setattr(sae_environments, "torch_pin", lambda: "torch==9.9")
    sae_environments.python_of("sparsify", lambda _: None, tmp_path)
    assert ["torch==9.9" in c for c in ran].count(True) == 2


@pytest.mark.parametrize("name", sae_contenders.environments(list(CONTENDERS)))
def test_requirements_are_pinned(name):
    lines = [n for n in sae_environments.requirements(name).read_text().splitlines() if n and not n.startswith("#")]
    assert lines
    assert all("==" in line for line in lines)
    assert not any(line.startswith("torch==") for line in lines)  # from constraints.txt, as for Seamark
    assert sae_environments.torch_pin().startswith("torch==")


def test_peers_are_all_the_issue_asks_for():
    assert {c.environment for c in CONTENDERS.values()} == {"", *sae_contenders.environments(list(CONTENDERS))}
    assert {"sae_lens", "sparsify", "sparsify_adam", "dictionary_learning", "torch_dense"} <= set(PEERS)


# -- in the measured process


def write_job(tmp_path, **changes):
    x = sae_speed.made_activations(4 * 64, 24)
    save_file({"x": x}, tmp_path / "x.safetensors")
    job = Job("torch_dense", "with_torch", str(tmp_path / "x.safetensors"), 24, 96, 4, 64, 1e-3)
    return replace(job, **changes)


def test_made_activations_have_the_norm_of_their_width_and_are_repeated():
    x = sae_speed.made_activations(512, 200)
    assert x.shape == (512, 200)
    assert float(x.norm(dim=1).mean()) / 200**0.5 == pytest.approx(1.0, abs=0.25)
    assert torch.equal(x, sae_speed.made_activations(512, 200))


def test_a_pool_is_written_for_everybody(tmp_path):
    shape = sae_speed.Shape(16, 64, 4, 32, 0.1, 1)
    path = sae_speed.write_pool(shape, tmp_path / "sub" / "x.safetensors")
    assert load_file(path)["x"].shape == (sae_speed.POOL * 32, 16)


def test_the_clock_leaves_out_the_first_steps(monkeypatch, tmp_path):
    now = iter([0.0, 0.0, 10.0, 20.0, 21.0, 22.0, 23.0])  # start, then ticks: two slow steps, three of a second
    monkeypatch.setattr(feeds.time, "perf_counter", lambda: next(now))
    feed = Feed(torch.zeros(64, 24), write_job(tmp_path, warmup=2, least=3), timed=True)
    for _ in range(5):
        feed.tick()
    with pytest.raises(EnoughError):
        feed.tick()
    assert feed.steps_per_second == pytest.approx(1.0)


def test_a_timed_feed_is_endless_and_a_training_gets_its_steps(tmp_path):
    job = write_job(tmp_path, steps=7, shuffle=True)
    x = load_file(job.data)["x"]
    batches = list(Feed(x, job, timed=False).batches())
    assert len(batches) == 7
    assert all(b.shape == (64, 24) and b.dtype == torch.float32 for b in batches)
    first, second = torch.cat(batches[:4]), torch.cat(batches[3:7])
    assert torch.equal(first.sort(0).values, x.sort(0).values)  # an epoch, each position once
    assert not torch.equal(first[:64], second[64:128])  # the next one in another order
    timed = Feed(x, write_job(tmp_path, warmup=1, least=20), timed=True)
    with pytest.raises(EnoughError):
        list(timed.batches())
    assert len(timed.ticks) == 22
    with pytest.raises(ValueError, match="do not fill a batch"):
        next(Feed(x[:3], job, timed=False).batches())


def test_calibration_stands_outside_of_the_clock(tmp_path):
    job = write_job(tmp_path)
    feed = Feed(load_file(job.data)["x"], job, timed=True)
    assert len(list(feed.calibration(9))) == 9
    assert feed.ticks == []


def test_fvu_is_the_error_over_the_variance():
    x = torch.randn(5000, 12, dtype=torch.float64) + 3
    assert feeds.fvu(lambda h: h, x) == 0
    assert feeds.fvu(lambda h: x.mean(0).expand_as(h), x) == pytest.approx(1.0, rel=1e-6)
    assert feeds.fvu(lambda h: h + 1, x) == pytest.approx(12 / float(x.var(0, correction=0).sum()), rel=1e-5)


def test_the_floor_is_the_sum_of_its_parts():
    job = Job("floor", "floor", "", 100, 1000, 10, 50, 1.0)
    parts = {"product_fp32_ms": 10.0, "product_bf16_ms": 2.0, "amax_fp32_ms": 1.0, "amax_bf16_ms": 0.5, "adam_ms": 4.0}
    found = floor.floors(parts, job)
    assert found["sparse_ms"] == pytest.approx(8 * 50 * 10 * 100 / (2 * 50 * 100 * 1000 / 10.0))
    assert found["floor_bf16_ms"] == pytest.approx(2.0 + 0.5 + 0.4 + 4.0)
    assert found["floor_fp32_ms"] == pytest.approx(10.0 + 1.0 + 0.4 + 4.0)
    assert found["fp32_gflops"] == pytest.approx(2 * 50 * 100 * 1000 / 0.010 / 1e9)


def test_the_floor_is_measured_by_calls_that_run():
    found = floor.measure(Job("floor", "floor", "", 16, 64, 4, 32, 1.0, seconds=0.0))
    assert all(found[k] > 0 for k in sae_speed.FLOOR_COLUMNS)


def test_a_measured_process_reports_speed_and_memory(tmp_path):
    job = write_job(tmp_path, least=3)
    (tmp_path / "job.json").write_text(json.dumps(job.__dict__))
    found = harness.run_python(
        ["-m", "benchmarks.peers", str(tmp_path / "job.json")], 120, extra={"OMP_NUM_THREADS": "1"}
    )
    assert found["tokens_per_s"] == pytest.approx(64_000 / found["ms_per_step"])
    assert found["steps"] >= 3
    assert found["peak_rss_mb"] > 50


def test_a_contender_that_stops_early_is_no_measurement(tmp_path):
    with pytest.raises(RuntimeError, match="stopped before it was timed"):
        peers.speed(write_job(tmp_path), lambda job, feed: None)


def test_tuned_variables_come_from_the_benchmark_alone(monkeypatch):
    monkeypatch.setenv("MALLOC_MMAP_MAX_", "0")
    code = "import json, os; print(json.dumps({'found': os.environ.get('MALLOC_MMAP_MAX_')}))"
    assert harness.run_python(["-c", code], 60)["found"] is None
    assert harness.run_python(["-c", code], 60, extra=sae_speed.TUNED)["found"] == "0"


@pytest.mark.parametrize("options", [{}, {"bf16": True, "fused": True}])
def test_the_dense_baseline_learns(tmp_path, options):
    job = write_job(tmp_path, steps=150, shuffle=True, lr=3e-3, options=options)
    x = load_file(job.data)["x"]
    untrained = with_torch.DenseTopK(24, 96, 4)
    before = feeds.fvu(lambda h: untrained(h), x)
    assert feeds.fvu(with_torch.train(job, Feed(x, job, timed=False)), x) < 0.7 * min(before, 1.0)


def test_seamark_is_driven_through_its_public_fit(tmp_path):
    from benchmarks.peers import with_seamark

    quality = CONTENDERS[OURS].quality
    job = write_job(tmp_path, steps=150, shuffle=True, lr=3e-3, options=quality)
    x = load_file(job.data)["x"]
    feed = Feed(x, job, timed=False)
    assert feeds.fvu(with_seamark.train(job, feed), x) < 0.7
    assert len(feed.ticks) == 150
    assert peers.speed(write_job(tmp_path, warmup=2, least=4), with_seamark.train)["steps"] == 4


# -- the program


def test_speed_and_quality_are_one_name_for_all_results(tmp_path, monkeypatch):
    asked = []

    def part(name):
        def speed(runs, say, *, contenders=None):
            asked.append((name, runs, contenders))
            return Result(name, name, [])

        def quality(runs, say, *, contenders=None, minutes=None, fresh=False):
            asked.append((name, runs, contenders, minutes, fresh))
            return Result(name, name, [])

        return quality if name == "sae-fvu" else speed

    monkeypatch.setattr(program, "BENCHMARKS", {n: part(n) for n in program.GROUPS["sae"]})
    assert program.main(["sae", "--runs", "2", "--contenders", "sparsify", "--fresh"], tmp_path) == 0
    speeds = [f"sae-speed-{shape}" for shape in "SML"]
    assert asked == [*((name, 2, "sparsify") for name in speeds), ("sae-fvu", 2, "sparsify", None, True)]
    assert {p.stem for p in tmp_path.iterdir()} == {*speeds, "sae-fvu"}


def test_options_reach_the_benchmarks_that_have_them(tmp_path, monkeypatch):
    asked = []

    def run(runs, say, *, minutes=None):
        asked.append(minutes)
        return Result("one", "fake", [])

    monkeypatch.setattr(program, "BENCHMARKS", {"one": run})
    assert program.main(["one", "--minutes", "1,2"], tmp_path) == 0
    assert asked == ["1,2"]
    with pytest.raises(SystemExit):
        program.main(["one", "--shapes", "S"], tmp_path)
