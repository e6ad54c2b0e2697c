"""The benchmarks' own arithmetic: claims, interleaving, files; what cannot be measured is null with a reason."""

from __future__ import annotations

import io
import json
import platform
import sys
from pathlib import Path

import pytest
from rich.console import Console

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks import __main__ as program
from benchmarks import harness, reward, tables
from benchmarks.harness import BenchmarkError, Claim, Result


@pytest.mark.parametrize(
    ("target", "value", "low", "holds"),
    [
        (">= 5", 5.0, None, True),
        (">= 5", 4.99, None, False),
        ("<= 1.15", 1.15, 1.0, True),
        ("== 24", 24, None, True),
        ("== 24", 23, None, False),
        ("< -0.5", -1.0, None, True),
        ("> 1e-3", 0.002, None, True),
        (">= 0.05 and low > 0", 0.08, 0.01, True),
        (">= 0.05 and low > 0", 0.08, -0.01, False),
        (">= 0.05 and low > 0", 0.04, 0.01, False),
        (">= 0.05 and low > 0", 0.08, None, None),
        (">= 5", None, None, None),
        ("", 5.0, None, None),
    ],
)
def test_holds_is_computed_from_the_target(target, value, low, holds):
    assert Claim("c", value, "x", target, low=low).holds is holds


@pytest.mark.parametrize("target", ["about 5", ">= ", "5", ">= 5 or <= 3", "mean > 3", ">= 5 and"])
def test_a_target_nobody_can_compute_is_refused(target):
    with pytest.raises(ValueError, match="not a target"):
        Claim("c", 1.0, "x", target)


def test_a_claim_is_a_median_with_its_extremes():
    c = harness.from_runs("c", [3.0, 1.0, 10.0], "s", "<= 3")
    assert (c.value, c.low, c.high, c.n, c.holds) == (3.0, 1.0, 10.0, 3, True)
    one = harness.from_runs("c", [3.0], "s").to_json()
    assert (one["value"], one["low"], one["high"], one["n"], one["spread"]) == (3.0, None, None, 1, "")
    assert harness.from_runs("c", [], "s").value is None


def test_a_ratio_is_taken_round_by_round():
    c = harness.ratio("c", [10.0, 5.0, 20.0], [5.0, 2.5, 5.0], ">= 2")
    assert (c.value, c.low, c.high, c.holds) == (2.0, 2.0, 4.0, True)
    with pytest.raises(ValueError, match="zip"):
        harness.ratio("c", [1.0], [1.0, 2.0])


def test_what_was_not_measured_is_null_with_its_reason():
    c = harness.missing("c", "s", "<= 3", "no GPU here").to_json()
    assert (c["value"], c["holds"], c["reason"], c["n"]) == (None, None, "no GPU here", 0)
    with pytest.raises(ValueError, match="null with a reason"):
        Claim("c", float("nan"), "s").to_json()


@pytest.mark.parametrize(
    ("value", "shown"), [(1234.5678, 1235.0), (0.00123456, 0.001235), (123456.7, 123457.0), (24, 24), (None, None)]
)
def test_numbers_are_short_in_files(value, shown):
    assert harness.rounded(value) == shown


def test_a_run_that_others_disturbed_is_repeated_a_few_times():
    shares = iter([0.5, 0.4, 0.01, 0.9, 0.8, 0.7, 0.6])

    def run():
        return {"others_cpu": next(shares)}

    rows, _ = harness.interleave({"one": run}, 2)
    assert [r["others_cpu"] for r in rows["one"]] == [0.01, 0.7]  # at last the disturbed one counts, and is told
    assert "DISTURBED" in harness.disturbed(rows)


def test_runs_are_interleaved_and_take_turns_at_the_start():
    order = []
    variants = {name: (lambda name=name: order.append(name) or {"x": len(order)}) for name in "abc"}
    rows, failed = harness.interleave(variants, 4)
    assert "".join(order) == "abcbcacababc"
    assert not failed
    assert {k: len(v) for k, v in rows.items()} == {"a": 4, "b": 4, "c": 4}
    [a, *_] = harness.medians(rows)
    assert a == {"variant": "a", "n": 4, "x": {"median": 7.0, "low": 1.0, "high": 10.0}}


def test_what_fails_is_not_run_again_and_the_rest_goes_on():
    calls = []

    def fails():
        calls.append(1)
        raise BenchmarkError("no such library")

    rows, failed = harness.interleave({"good": lambda: {"x": 1, "kind": "k"}, "bad": fails}, 3)
    assert (len(rows["good"]), rows["bad"], failed, len(calls)) == (3, [], {"bad": "no such library"}, 1)
    good, bad = harness.medians(rows)
    assert good["kind"] == "k"
    assert bad == {"variant": "bad", "n": 0}


def test_a_measured_process_gives_its_last_line(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "999")
    code = "import os, json; print('noise'); print(json.dumps({'threads': os.environ['OMP_NUM_THREADS']}))"
    found = harness.run_python(["-c", code], 60)
    assert found["threads"] == str(harness.threads())
    assert 0.0 <= found["others_cpu"] <= 1.0


def test_a_result_says_when_others_used_the_machine():
    assert harness.disturbed({"a": [{"others_cpu": 0.1}], "b": []}) == ""
    assert "up to 40 %" in harness.disturbed({"a": [{"others_cpu": 0.1}], "b": [{"others_cpu": 0.4}]})


@pytest.mark.parametrize(
    ("code", "says"),
    [
        ("raise SystemExit('cannot open /home/me/secret/x.json')", "cannot open …/x.json"),
        ("print('no json')", "no JSON"),
        ("print('[1]')", "no JSON object"),
        ("pass", "no output"),
        ("import time; time.sleep(20)", "took longer than 1 s"),
    ],
)
def test_a_measured_process_that_fails_says_why(code, says):
    with pytest.raises(BenchmarkError, match=says):
        harness.run_python(["-c", code], 1.0 if "sleep" in code else 60.0)


def test_files_have_one_layout_and_name_no_machine(tmp_path):
    result = Result("toy", "a toy", [Claim("b", 1.5, "s", "<= 2"), Claim("a", 2, "x")], [{"variant": "v", "n": 1}])
    path = harness.save(result, 0.333, tmp_path)
    found = json.loads(path.read_text())
    assert list(found) == [
        "schema_version", "name", "date", "about", "code", "machine", "load_before", "settings", "claims", "rows",
    ]  # fmt: skip
    assert [c["name"] for c in found["claims"]] == ["b", "a"]
    assert list(found["claims"][0]) == [
        "name", "value", "low", "high", "unit", "target", "holds", "n", "spread", "reason",
    ]  # fmt: skip
    assert {"cpu", "cores", "ram_gib", "torch_threads"} <= set(found["machine"])
    text = path.read_text()
    assert platform.node() not in text or len(platform.node()) < 4
    assert str(Path.home()) not in text.replace("/root", "") or Path.home() == Path("/root")
    assert str(Path(__file__).parents[2]) not in text
    first = path.read_bytes()
    harness.save(result, 0.333, tmp_path)
    assert path.read_bytes() == first


def test_the_cpu_model_is_read_where_it_stands(tmp_path):
    (tmp_path / "cpuinfo").write_text("processor : 0\nmodel name\t: A  CPU @ 3 GHz\n")
    assert harness._cpu_model(tmp_path / "cpuinfo") == "A CPU @ 3 GHz"
    assert isinstance(harness._cpu_model(tmp_path / "none"), str)


def test_tables_show_what_holds_and_what_is_missing():
    out = io.StringIO()
    claims = [Claim("good", 6.0, "x", ">= 5", low=5.5, high=7.0, n=5), Claim("bad", 1.0, "x", ">= 5"),
              harness.missing("gone", "s", "<= 3", "no GPU")]  # fmt: skip
    tables.show(Result("toy", "a toy", claims, [{"variant": "v", "x": {"median": 2.0, "low": 1.0, "high": 3.0}}]),
                 Console(file=out, width=200))  # fmt: skip
    text = out.getvalue()
    for part in ("5.5 to 7", "yes", "NO", "not available: no GPU", "2 (1–3)"):
        assert part in text


def test_the_program_writes_results_and_ends_in_all_claims(tmp_path, monkeypatch, capsys):
    asked = []

    def fake(name, value):
        def run(runs, say):
            asked.append((name, runs))
            say("working")
            return Result(name, "fake", [Claim(f"{name}_claim", value, "x", ">= 2")])

        return run

    monkeypatch.setattr(program, "BENCHMARKS", {"one": fake("one", 3.0), "two": fake("two", 1.0)})
    assert program.main(["all", "--runs", "2"], tmp_path) == 0
    assert asked == [("one", 2), ("two", 2)]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["one.json", "two.json"]
    last = capsys.readouterr().out.split("Claims: all")[1]
    assert "one_claim" in last
    assert "two_claim" in last
    assert program.main(["one", "--check"], tmp_path) == 0
    assert program.main(["two", "--check"], tmp_path) == 1
    for bad in (["three"], ["one", "--runs", "0"]):
        with pytest.raises(SystemExit):
            program.main(bad, tmp_path)


def reward_rows(**changes):
    row = {"tokens": 100, "seconds": 1.0, "tokens_per_s": 100.0, "peak_rss_mb": 900.0, "precision": "bf16"}
    speeds = {"seamark": 300.0, "trl_default": 100.0, "trl_bf16": 150.0, "trl_fp32": 50.0, "trl_frozen": 200.0}
    rows = {v: [row | {"tokens_per_s": s}] * 2 for v, s in speeds.items()}
    for variant, change in changes.items():
        rows[variant] = [r | change for r in rows[variant]]
    return rows


def test_reward_claims():
    found = {c.name: c for c in reward.claims(reward_rows(), {})}
    assert found["reward_tokens_per_s_vs_trl_default"].value == 3.0
    assert found["reward_tokens_per_s_vs_trl_bf16"].value == 2.0
    assert found["reward_tokens_per_s_vs_trl_frozen"].value == 1.5
    assert found["reward_tokens_per_s"].value == 300.0
    assert found["reward_peak_rss_mb"].value == 900.0


def test_reward_claims_that_compare_unlike_things_are_not_made():
    found = {c.name: c for c in reward.claims(reward_rows(trl_default={"tokens": 99}), {})}
    assert "same number of tokens" in found["reward_tokens_per_s_vs_trl_default"].reason
    found = {c.name: c for c in reward.claims(reward_rows(seamark={"precision": "fp32"}), {})}
    assert "not fast at bf16" in found["reward_tokens_per_s_vs_trl_bf16"].reason
    found = {c.name: c for c in reward.claims(reward_rows() | {"trl_bf16": []}, {"trl_bf16": "killed"})}
    assert found["reward_tokens_per_s_vs_trl_bf16"].reason == "trl_bf16: killed"
    found = {c.name: c for c in reward.claims(reward_rows() | {"seamark": []}, {"seamark": "killed"})}
    assert all(c.value is None and "killed" in c.reason for c in found.values())
