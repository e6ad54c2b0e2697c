"""The demo's benchmark, on a stand-in for the demo."""

from __future__ import annotations

import copy
import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks import demo


def estimate(value, low=None, high=None):
    return {"value": value, "low": low, "high": high, "n": 50, "reason": "" if value is not None else "why"}


def cells():
    conditions = [("none", 0.0), ("safer", 0.05), ("random", 0.05), ("margin", 0.05)]
    return [{"method": m, "rate": r, "seed": s, "safety": 0.9, "chat": 0.8} for s in range(3) for m, r in conditions]


RESULT = {
    "schema_version": 1,
    "recipe": {"out": "runs/demo", "denoise": {"noise": 0.1}},
    "data": {"groups": {"safety": {"pairs": 9, "train": 5, "test": 4}, "chat": {"pairs": 9, "train": 6, "test": 3}}},
    "reward": {"accuracy": {"safety": 0.95, "chat": 0.8}, "interval": {"safety": [0.9, 0.99], "chat": [0.7, 0.9]}},
    "poison": cells(),
    "denoise": cells(),
    "effect": {"D": 0.08, "low": 0.02, "high": 0.14, "reason": "", "rate": 0.05},
    "poison_summary": [
        {"method": "none", "rate": 0.0},
        {"method": "safer", "rate": 0.01, "chat_kept": estimate(0.1)},
        {"method": "safer", "rate": 0.05, "chat_kept": estimate(0.97, 0.9, 1.05)},
        {"method": "random", "rate": 0.05, "chat_kept": estimate(0.2)},
    ],
    "stages": {"data": {"seconds": 2.0, "peak_rss_mb": 100.0}, "reward": {"seconds": 30.0, "peak_rss_mb": 5000.0}},
}

STAND_IN = """
import json, pathlib, sys, time
out = pathlib.Path(sys.argv[sys.argv.index("--out") + 1])
out.mkdir(parents=True, exist_ok=True)
calls = pathlib.Path(sys.argv[1])
calls.write_text(calls.read_text() + out.parent.name)
time.sleep(0.4)
result = json.loads(calls.with_name("result.json").read_text())
result["recipe"]["out"] = str(out)
result["stages"]["data"]["seconds"] += len(calls.read_text())
if calls.with_name("fails").exists():
    sys.exit("seamark: the disk is full")
(out / "result.json").write_text(json.dumps(result))
"""


def by_name(claims):
    return {c.name: c for c in claims}


def changed(**changes):
    result = copy.deepcopy(RESULT)
    for key, value in changes.items():
        *parents, last = key.split("__")
        node = result
        for parent in parents:
            node = node[parent]
        node[last] = value
    return result


def test_every_claim_of_a_good_run_holds():
    found = by_name(demo.claims(RESULT, [590.0, 610.0, 580.0], [3000.0]))
    assert list(found) == list(demo.TARGETS)
    assert {n: (c.value, c.target, c.holds) for n, c in found.items()} == {
        "demo_seconds": (590.0, "<= 600", True),
        "demo_peak_rss_mb": (3000.0, "<= 4096", True),
        "demo_safety_accuracy": (0.95, ">= 0.90", True),
        "demo_chat_accuracy": (0.8, ">= 0.75", True),
        "demo_D": (0.08, ">= 0.05 and low > 0", True),
        "demo_chat_kept": (0.97, ">= 0.9", True),
        "demo_retrainings": (24, "== 24", True),
    }
    assert (found["demo_seconds"].n, found["demo_seconds"].low, found["demo_seconds"].high) == (3, 580.0, 610.0)
    assert (found["demo_safety_accuracy"].low, found["demo_safety_accuracy"].n) == (0.9, 4)


def test_claims_that_do_not_hold_or_are_not_there():
    result = changed(effect__low=-0.01, reward__accuracy={"safety": 0.85, "chat": 0.7})
    found = by_name(demo.claims(result, [601.0], [4097.0]))
    assert [n for n, c in found.items() if c.holds is False] == [
        "demo_seconds", "demo_peak_rss_mb", "demo_safety_accuracy", "demo_chat_accuracy", "demo_D",
    ]  # fmt: skip
    gone = {"D": None, "low": None, "high": None, "reason": "not run"}
    found = by_name(demo.claims(changed(effect=gone, poison=[], poison_summary=[]), [1.0], [1.0]))
    assert (found["demo_D"].value, found["demo_D"].holds, found["demo_D"].reason) == (None, None, "not run")
    assert "was not run" in found["demo_chat_kept"].reason
    assert found["demo_retrainings"].value == 12
    undefined = copy.deepcopy(RESULT)
    undefined["poison_summary"][2]["chat_kept"] = estimate(None)
    assert by_name(demo.claims(undefined, [1.0], [1.0]))["demo_chat_kept"].reason == "why"


def test_unedited_models_that_both_experiments_share_count_once():
    assert demo.retrainings(changed(recipe__denoise={"noise": 0.0})) == 21


@pytest.fixture
def stand_in(tmp_path):
    """A command in place of `seamark demo`; notes its calls."""
    (tmp_path / "demo.py").write_text(STAND_IN)
    (tmp_path / "result.json").write_text(json.dumps(RESULT))
    (tmp_path / "calls").write_text("")
    return [sys.executable, str(tmp_path / "demo.py"), str(tmp_path / "calls")]


def test_demos_are_timed_and_compared_and_the_scratch_is_gone(tmp_path, stand_in):
    said = []
    found = demo.run(2, said.append, command=stand_in, scratch=tmp_path / "scratch")
    claims = by_name(found.claims)
    assert 0.4 <= claims["demo_seconds"].value < 10
    assert claims["demo_seconds"].n == 2
    assert 5 < claims["demo_peak_rss_mb"].value < 200
    assert [r["results_equal"] for r in found.rows] == [True, True]
    assert found.rows[0]["stages"] == {"data": 3.0, "reward": 30.0}
    assert (tmp_path / "calls").read_text() == "01"
    assert not (tmp_path / "scratch").exists()
    assert len(said) == 2
    assert str(tmp_path) not in json.dumps(found.to_json(0.0))


def test_an_interrupted_benchmark_goes_on(tmp_path, stand_in):
    scratch = tmp_path / "scratch"
    (tmp_path / "fails").touch()
    found = demo.run(1, command=stand_in, scratch=scratch)
    assert all(c.value is None and "the disk is full" in c.reason for c in found.claims)
    (tmp_path / "fails").unlink()
    found = demo.run(1, command=stand_in, scratch=scratch)
    assert found.rows[0]["resumed"] is True
    assert by_name(found.claims)["demo_seconds"].value == 34.0  # the sum of its stages
    assert by_name(found.claims)["demo_peak_rss_mb"].value == 5000.0
    assert (tmp_path / "calls").read_text() == "00"


def test_finished_demos_of_other_code_do_not_count(tmp_path, stand_in):
    scratch = tmp_path / "scratch"
    (scratch / "0").mkdir(parents=True)
    (scratch / "code").write_text("older")
    (scratch / "0" / "measured.json").write_text('{"seconds": 1.0, "peak_rss_mb": 1.0}')
    demo.run(1, command=stand_in, scratch=scratch)
    assert (tmp_path / "calls").read_text() == "0"
