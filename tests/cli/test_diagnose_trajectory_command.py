"""`seamark diagnose trajectory`: table, JSON, what an atlas adds, and what a user can get wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from seamark.atlas.records import Run, Sae
from seamark.atlas.rows import ContextRow, ExplanationRow, FeatureRow
from seamark.atlas.writing import AtlasWriter
from seamark.diagnose import Trajectory
from seamark.sae import SparseAutoencoder, sae_config
from tiny import tiny_folder
from tiny_run import Place, call, the_error

TEXT, ANSWER = "Is it safe to mix bleach?", "No, please never do that."


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("trajectory")
    tiny_folder(root / "reward", "bert", "reward")
    tiny_folder(root / "language", "qwen2", "lm")
    for name, layer in (("early", 0), ("late", 3), ("far", 9)):
        config = sae_config(d_in=32, d_sae=64, k=6, hookpoint=f"layers.{layer}")
        SparseAutoencoder(config, seed=layer).save_pretrained(root / name)
    with AtlasWriter.open(root / "atlas.db", create=True) as w:
        w.add_run(Run(id="r", kind="explain", title="", created="2025-01-01T00:00:00Z", manifest={}))
        for name, layer in (("early", 0), ("late", 3)):
            number = w.add_sae(Sae(number=0, id=name, model="m", hookpoint=f"layers.{layer}", layer=layer, d_in=32,
                                   d_sae=64, activation="topk", k=6))  # fmt: skip
            ids = w.add_features(number, [FeatureRow(latent=i, q=4.0) for i in range(64)])
            w.add_explanations([ExplanationRow(ids[i], f"talk of ships {i}", "r", "llm") for i in range(64)])
            words = ["ship"] * 4 if name == "early" else ["ship", "tea", "map", "code"]
            w.add_contexts([ContextRow(ids[i], "top", rank, f"t{rank}", words, [1.0] * 4, 0, "", "")
                            for i in range(64) for rank in range(2)])  # fmt: skip
    return root


def words(root: Path, model: str = "reward", *more: Any) -> list[Any]:
    return ["--model", root / model, "--sae", root / "early", "--sae", root / "late", "--text", TEXT, *more]


def test_table_and_json(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "220")
    asked = words(root, "reward", "--answer", ANSWER, "--atlas", root / "atlas.db", "--nodes", 5, "--checks", 20)
    code, out, err = call("diagnose", "trajectory", *asked, "--out", tmp_path)
    assert code == 0, err
    said = " ".join(out.split())
    assert "tokens through reward; reward " in said
    assert "links between features: rank correlation with ablation" in said
    found = Trajectory.model_validate_json((tmp_path / "result.json").read_text(encoding="utf-8"))
    code, out_json, err = call("diagnose", "trajectory", *asked, "--json")
    assert code == 0, err
    assert json.loads(out_json) == found.model_dump(mode="json")
    assert len(found.nodes) == 10
    for node in found.nodes:
        assert node.label == f"talk of ships {node.latent}"
        assert node.normalised == pytest.approx(node.activation / 4)
        assert node.level.level == ("word" if node.sae == "early" else "concept")
        assert node.level.firings == 8
    first = [found.nodes[i] for i in found.paths[0].nodes]
    assert [n.sae for n in first] == ["early", "late"]
    for node in first:
        assert f"{node.sae}/{node.latent} {node.label}" in said
    assert all(link.ablation is not None for link in found.links)


def test_short_of_time_and_the_scan_of_another_model(root: Path, place: Place, tmp_path: Path) -> None:
    saes = ["--sae", root / "early", "--sae", root / "late"]
    assert call("scan", "run", "--model", place.reward, *saes, *place.options, "--out", tmp_path / "scan")[0] == 0
    asked = words(root, "language", "--answer", ANSWER, "--max-seconds", 1e-9, "--scan", tmp_path / "scan")
    code, out, err = call("diagnose", "trajectory", *asked, "--out", tmp_path)
    assert code == 0, err
    said = " ".join(out.split())
    assert "out of time: no links into 8 features were looked for, and 4 ablations were left out" in said
    assert "note: The scan was made with another model" in said
    found = Trajectory.model_validate_json((tmp_path / "result.json").read_text(encoding="utf-8"))
    assert (found.left_out.features, found.left_out.checks) == (8, 4)
    assert len(found.caveats) == 1
    same = ["--model", place.reward, *saes, "--text", TEXT, "--answer", ANSWER, "--scan", tmp_path / "scan"]
    code, out, err = call("diagnose", "trajectory", *same)
    assert code == 0, err
    assert "another model" not in out
    assert "out of time" not in out


def test_a_language_model_writes(root: Path) -> None:
    asked = words(root, "language", "--generate", 4, "--toward", "No")
    code, out, err = call("diagnose", "trajectory", *asked, "--json")
    assert code == 0, err
    found = Trajectory.model_validate_json(out)
    assert found.generated is not None
    assert found.output is not None
    assert found.output.token in ("N", "No")
    assert found.nodes[0].level.reason.startswith("neither an atlas nor a scan")


@pytest.mark.parametrize(("more", "message"), [
    (["--nodes", 0], "greater than or equal to 1"), (["--sae", "far"], "layers.9 is out of range"),
    (["--generate", 4], "only language models generate"), (["--toward", "No"], "this model says no tokens"),
    (["--text", " "], "the prompt is empty"), (["--max-seconds", 0], "--max-seconds: Input should be greater than 0"),
])  # fmt: skip
def test_what_can_go_wrong(root: Path, more: list[Any], message: str) -> None:
    more = [root / "far" if word == "far" else word for word in more]
    assert message in the_error(*call("diagnose", "trajectory", *words(root, "reward", *more)))


def test_one_hookpoint_is_not_enough(root: Path) -> None:
    asked = ["--model", root / "reward", "--sae", root / "early", "--text", TEXT]
    assert "all autoencoders are of layers.0" in the_error(*call("diagnose", "trajectory", *asked))
