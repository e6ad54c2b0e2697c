"""The benchmark of diagnosis: claims from results as the commands write them, whole or in part."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks import diagnose
from benchmarks.__main__ import BENCHMARKS
from seamark.run import write_json


def about(value, low=None, high=None, reason=""):
    return {"value": value, "low": low, "high": high, "n": 40, "reason": reason}


def risk(**changes):
    def split(scheme, language, value):
        detectors = [{"detector": name, "auroc_minus_raw": about(v), "measures": {"auroc": about(0.9)}}
                     for name, v in (("single", -0.3), ("sparse_max", value))]  # fmt: skip
        return {"scheme": scheme, "language": language, "detectors": detectors}

    guards = {name: {"latency": {"ratio": about(v, v - 0.1, v + 0.1)}} for name, v in (("a", 1.02), ("b", 1.08))}
    splits = [split("across", "en", 0.5), split("within", "zh", 0.4), split("within", "en", -0.02)]
    return {"guards": guards | {"c": {"latency": None}}, "domains": [
        {"domain": "terror", "splits": [split("within", "en", 0.2)]}, {"domain": "violence", "splits": splits},
    ]} | changes  # fmt: skip


def causal(**changes):
    pooled = [{"kind": kind, "n": 32, "target": about(0.4), "others": about(0.1),
               "difference": about(d, d - 0.1, d + 0.1)}
              for kind, d in (("random latents", 0.9), ("features", 0.3))]  # fmt: skip
    return {"agreement": about(0.7, 0.5, 0.8), "pooled": pooled, "verdicts": {"yes": 3}} | changes


def by_name(claims):
    return {c.name: c for c in claims}


def test_each_claim_is_the_figure_it_names():
    found = by_name(diagnose.claims({"risk": risk(), "causal": causal()}, {}))
    assert {name: (c.value, c.holds) for name, c in found.items()} == {
        "guard_time_vs_parts": (1.08, True), "risk_auroc_vs_raw_probe": (-0.02, None),
        "attribution_vs_ablation_spearman": (0.7, None), "steer_safety_minus_chat_effect": (0.3, None),
    }  # fmt: skip
    slow = risk(guards={"a": {"latency": {"ratio": about(1.2)}}})
    assert by_name(diagnose.claims({"risk": slow}, {}))["guard_time_vs_parts"].holds is False
    assert BENCHMARKS["diagnose"] is diagnose.run


def test_what_is_not_finished_or_not_available_is_no_number():
    none = causal(agreement=about(None, reason="all effects are the same"), pooled=[])
    found = by_name(diagnose.claims({"causal": none}, {"risk": "SEAMARK_DATA names no folder of real data"}))
    assert all(c.value is None for c in found.values())
    assert {name: c.reason for name, c in found.items()} == {
        "guard_time_vs_parts": "SEAMARK_DATA names no folder of real data",
        "risk_auroc_vs_raw_probe": "SEAMARK_DATA names no folder of real data",
        "attribution_vs_ablation_spearman": "all effects are the same",
        "steer_safety_minus_chat_effect": "causal: not in its result",
    }  # fmt: skip


def test_tables():
    rows = list(diagnose.table({"risk": risk(), "causal": causal()}))
    assert list(dict.fromkeys(r["table"] for r in rows)) == [
        "guards", "terror, en, within sources", "violence, en, across sources", "violence, zh, within sources",
        "violence, en, within sources", "raised by one Q_f", "causal evidence",
    ]  # fmt: skip
    assert rows[1]["time over parts"] == "1.080 [0.980, 1.180]"


def test_stages_run_once_and_what_needs_a_failed_one_is_left_out(tmp_path, monkeypatch):
    commands = []

    def command(line, *_, **__):
        name = Path(line[-1]).name
        commands.append(name)
        if name != "sae":
            write_json(Path(line[-1]) / "result.json", {})

    monkeypatch.setattr(diagnose.programs, "watched", command)
    monkeypatch.delenv(diagnose.VARIABLE, raising=False)
    missing = diagnose.run(folder=tmp_path).settings["missing"]
    assert commands == ["reward", "sae"]
    assert list(missing) == ["sae", "scan", "features", "causal", "domain-saes", "risk"]
    assert "SEAMARK_DATA" in missing["risk"]
    assert missing["scan"].startswith("sae: ")
    (tmp_path / "data").mkdir()
    texts = [{"text": f"text {i}", "domain": "none"} for i in range(40)]
    (tmp_path / "data" / "domain_texts.jsonl.gz").write_bytes(zipped(texts))
    monkeypatch.setenv(diagnose.VARIABLE, str(tmp_path / "data"))
    diagnose.run(folder=tmp_path)
    assert commands[2:] == ["sae", "domain-saes", "risk"]
    half = [json.loads(line) for line in (tmp_path / "half.jsonl").read_text().splitlines()]
    assert 5 < len(half) < 35
    assert all(list(row) == ["text"] for row in half)
    before = list(commands)
    diagnose.run(folder=tmp_path, so_far=True)
    assert commands == before
    recipe = tmp_path / "changed.yaml"
    recipe.write_text(Path(diagnose.RECIPE).read_text() + "# changed\n")
    monkeypatch.setattr(diagnose, "RECIPE", str(recipe))
    (tmp_path / "reward" / "left").write_text("by another recipe")
    assert "other data: reward" in diagnose.run(folder=tmp_path, so_far=True).about
    diagnose.run(folder=tmp_path)
    assert commands[len(before) :] == ["reward", "sae", "domain-saes", "risk"]
    assert not (tmp_path / "reward" / "left").exists()


def zipped(rows):
    import gzip

    return gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode())


@pytest.mark.parametrize("name", list(diagnose.STAGES))
def test_every_stage_is_a_command_that_there_is(name, tmp_path):
    from seamark.cli.main import COMMANDS

    words = diagnose.STAGES[name].arguments(tmp_path, tmp_path)
    assert " ".join(words[:2]) in COMMANDS or words[0] in COMMANDS
