"""The audit's benchmark: claims from results as `seamark audit experiment` writes them, whole or in part."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks import audit
from seamark.run import write_json


def about(value, low=None, high=None, reason=""):
    return {"value": value, "low": low, "high": high, "n": 40, "reason": reason}


def result(**changes):
    effects = [{"rate": rate, "baseline": m, "seeds": [0, 1], "D": about(d, d - 0.04, d + 0.04)} for rate, m, d in (
        (0.05, "random", 0.06), (0.01, "random", 0.5), (0.05, "margin", -0.02), (0.05, "direction", 0.03),
        (0.05, "untrained", 0.05), (0.05, "random_latents", 0.01),
    )]  # fmt: skip
    accuracy, kept = {"safety": about(0.8), "chat": about(0.7)}, {"safety": about(0.5), "chat": about(0.95, 0.9, 1.0)}
    poison = {"noise": None, "effects": effects, "summary": [
        {"method": "none", "rate": 0.0, "seeds": [0, 1], "accuracy": accuracy},
        {"method": "safer", "rate": 0.05, "seeds": [0, 1], "accuracy": accuracy, "lost": accuracy, "kept": kept},
    ]}  # fmt: skip
    removed = {"method": "combined", "rate": 0.1, "seeds": [0, 1], "accuracy": accuracy, "lost": accuracy}
    denoise = [
        {"noise": {"kind": "random", "rate": rate}, "effects": [], "summary": [removed | {"recovery": about(rate)}]}
        for rate in (0.1, 0.2, 0.3)
    ]
    found = {"seeds": [0, 1], "share": 0.05, "recall": about(0.4), "above_margin": about(0.02, 0.01, 0.03)}
    said = {"brier": about(0.05, 0.04, 0.06), "brier_of_share": about(None, reason="no pairs"), "ece": about(0.01)}
    return {
        "recipe": {"seeds": [0, 1]}, "missing": [], "poison": poison,
        "calibration": [{"noise": "random", "noise_rate": 0.1, "seeds": [0, 1], "calibration": said}],
        "denoise": denoise,
        "detection": [found | {"noise": "random", "noise_rate": rate, "method": m, "auroc": about(rate + 0.8)}
                      for rate in (0.1, 0.2) for m in ("margin", "combined")],
        "defence": [found | {"noise": "safer", "noise_rate": 0.05, "method": "combined", "auroc": about(0.91)}],
    } | changes  # fmt: skip


def by_name(claims):
    return {c.name: c for c in claims}


def test_each_claim_is_the_figure_it_names():
    found = by_name(audit.claims({"demo": result()}, {}))
    assert list(found) == list(audit.CLAIMS)
    assert {n: (c.value, c.holds) for n, c in found.items() if n.endswith("_demo")} == {
        "poison_D_demo": (0.06, True), "poison_D_vs_margin_demo": (-0.02, None), "chat_kept_demo": (0.95, True),
        "detect_random_auroc_demo": (0.9, None), "detect_random_vs_margin_demo": (0.02, True),
        "detect_targeted_auroc_demo": (0.91, True), "denoise_recovery_demo": (0.2, False),
        "safer_vs_best_control_D_demo": (0.01, False),
    }  # fmt: skip
    assert found["poison_D_demo"].low == pytest.approx(0.02)
    assert found["detect_random_auroc_pku"].value is None


def test_what_is_not_finished_or_not_available_is_no_number():
    part = result(defence=[])
    part["denoise"][1]["summary"][0]["recovery"] = about(None, reason="the noise cost only 0.01")
    part["poison"]["effects"] = [e for e in part["poison"]["effects"] if e["baseline"] != "untrained"]
    found = by_name(audit.claims({"demo": part}, {"rmbench": "SEAMARK_DATA names no folder of real data"}))
    for name, reason in {
        "detect_targeted_auroc_demo": "not finished", "denoise_recovery_demo": "cost only 0.01",
        "safer_vs_best_control_D_demo": "not finished", "poison_D_rmbench": "SEAMARK_DATA",
    }.items():  # fmt: skip
        assert found[name].value is None
        assert found[name].holds is None
        assert reason in found[name].reason


def test_what_only_some_seeds_have_is_not_claimed():
    found = by_name(audit.claims({"demo": result(recipe={"seeds": [0, 1, 2]})}, {}))
    assert {c.value for n, c in found.items() if n.endswith("_demo")} == {None}
    assert "not finished" in found["poison_D_demo"].reason


def test_a_table_for_every_experiment():
    rows = list(audit.table({"demo": result()}))
    assert list(dict.fromkeys(r["table"] for r in rows)) == [
        "demo, labels flipped", *(f"demo, pairs removed after {n} % random noise" for n in (10, 20, 30)),
        "demo, detection", "demo, defence", "demo, probability of a wrong label by the combination",
    ]  # fmt: skip
    flipped = rows[1]
    assert (flipped["method"], flipped["rate"], flipped["safety"]) == ("safer", "5 %", "80.0")
    assert rows[-2]["AUROC"] == "0.910"
    assert (rows[-1]["seeds"], rows[-1]["Brier score"], rows[-1]["of the share alone"]) == (
        2, "0.050 [0.040, 0.060]", "n/a (no pairs)")  # fmt: skip


def test_the_newest_result_counts_and_experiments_run_by_their_command(tmp_path, monkeypatch):
    commands = []

    monkeypatch.setattr(audit.programs, "watched", lambda line, *_, **__: commands.append(line))
    monkeypatch.delenv(audit.VARIABLE, raising=False)
    write_json(tmp_path / "demo" / "result-so-far.json", result(missing=["poison/x"]))
    found = audit.run(setups="demo,pku", so_far=True, folder=tmp_path)
    assert "1 stages are not finished" in found.about
    assert "SEAMARK_DATA" in by_name(found.claims)["detect_random_auroc_pku"].reason
    assert [line[-1] for line in commands] == ["--so-far"]
    write_json(tmp_path / "demo" / "result.json", result())
    assert "not finished" not in audit.run(setups="demo", folder=tmp_path).about
    assert "--so-far" not in commands[-1]
    with pytest.raises(ValueError, match="no setup moon"):
        audit.run(setups="moon", folder=tmp_path)
