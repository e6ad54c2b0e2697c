"""Every verb on the tiny model, one after the other as a person would: files, `result.json`, `--json`."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from seamark.cli.main import COMMANDS
from tiny_run import GROUPS, Place, call, seamark

GROUPS_OF_VERBS = ("reward", "sae", "scan", "diagnose", "audit")


@dataclass
class Chain:
    """The folders of a chain of commands, and what each printed."""

    folder: Path
    recipe: Path
    printed: dict[str, dict[str, Any]] = field(default_factory=dict)

    def run(self, *words: object, out: str | None = None, key: str = "") -> dict[str, Any]:
        """One command with `--json`, which must print one object and nothing else; its `result.json` says the same."""
        options = ["--out", self.folder / out] if out else []
        code, printed, err = call(*words, *options, "--json")
        assert code == 0, err
        assert printed.endswith("\n")
        assert len(printed.splitlines()) == 1
        result = json.loads(printed)
        assert "Traceback" not in err
        if out and (self.folder / out).suffix == "":
            assert json.loads((self.folder / out / "result.json").read_text()) == result
        self.printed[key or " ".join(map(str, words[:2]))] = result
        return dict(result)


@pytest.fixture(scope="module")
def chain(place: Place, tmp_path_factory: pytest.TempPathFactory) -> Chain:
    """All verbs but `run` and `demo`, each reading what the ones before wrote."""
    root = tmp_path_factory.mktemp("chain")
    c = Chain(root, place.recipe(root))
    config, pairs = ["--config", c.recipe], place.options
    c.run("reward", "train", *config, *pairs, out="reward")  # the base is the recipe's
    c.run("reward", "eval", *config, *pairs, "--model", root / "reward", "--split", "test", out="eval")
    c.run("sae", "train", *config, *pairs, "--model", root / "reward", out="sae")
    c.run("scan", "run", *config, *pairs, "--model", root / "reward", f"--sae=l2={root / 'sae'}", out="scan")
    c.run("scan", "info", root / "scan")
    c.run("contrast", root / "scan", "--top", 6, out="features", key="contrast")
    features = ["--features", root / "features" / "features.json"]
    c.run("audit", "score", "--scan", root / "scan", *features, out="scores")
    scores = ["--scores", root / "scores" / "scores.json"]
    c.run("audit", "poison", *pairs, *scores, "--rate", 0.1, out="poison")
    c.run("audit", "denoise", *pairs, *scores, "--rate", 0.1, out="denoise")
    for kind in ("poison", "denoise"):
        files = [root / kind / "edited.jsonl", root / kind / "manifest.json"]
        c.run("audit", "undo", *files, "--group", "safety", out=f"{kind}.jsonl", key=f"undo {kind}")
    return c


def rows(file: Path | str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(file).read_text().splitlines()]


def test_reward_models_are_trained_and_measured(chain: Chain) -> None:
    trained = chain.printed["reward train"]
    assert trained["training"]["steps"] == 6
    groups = trained["evaluation"]["groups"]
    assert groups == chain.printed["reward eval"]["groups"]
    assert set(groups) == set(GROUPS)
    assert all(0.0 <= g["accuracy"]["value"] <= 1.0 for g in groups.values())
    assert (chain.folder / "reward" / "model.safetensors").exists()


def test_an_sae_is_trained_and_scanned_with(chain: Chain) -> None:
    assert chain.printed["sae train"]["quality"]["l0"] == 4.0
    assert (chain.folder / "sae" / "config.json").exists()
    info = chain.printed["scan info"]
    assert info == chain.printed["scan run"]
    assert info["n_pairs"] == 60
    assert info["groups"] == {"safety": 36, "chat": 24}
    assert info["saes"]["l2"] | {"d_sae": 64, "k": 4, "hookpoint": "layers.2"} == info["saes"]["l2"]


def test_a_scan_is_made_once_and_its_folder_can_take_another(chain: Chain, place: Place) -> None:
    words = ["scan", "run", "--config", chain.recipe, *place.options, "--model", chain.folder / "reward",
             f"--sae=l2={chain.folder / 'sae'}"]  # fmt: skip
    texts = chain.folder / "scan" / "parts" / "00000" / "texts.parquet"
    before = texts.stat().st_mtime_ns
    chain.run(*words, out="scan")
    assert texts.stat().st_mtime_ns == before
    work = chain.folder / "scan" / ".scan"  # as after a kill while the parts are moved
    work.mkdir()
    (chain.folder / "scan" / "scan.json").rename(work / "plan.json")
    chain.run(*words, out="scan")


def test_features_give_scores(chain: Chain) -> None:
    found = chain.printed["contrast"]["features"]
    assert len(found) == 6
    assert {f["sae"] for f in found} == {"l2"}
    doubt = chain.printed["contrast"]["significance"]
    assert [row["latent"] for row in doubt["features"]] == [f["latent"] for f in found]
    assert all(row["low"] <= row["effect"] <= row["high"] for row in doubt["features"])
    assert doubt["n_pairs"] == 36
    assert [abs(f["score"]) for f in found] == sorted((abs(f["score"]) for f in found), reverse=True)
    scores = chain.printed["audit score"]
    assert scores["method"] == "safer"
    assert len(scores["values"]) == 60
    assert len(set(scores["values"].values())) > 10


@pytest.mark.parametrize("method", ["margin", "random", "length"])
def test_other_scores(chain: Chain, place: Place, method: str) -> None:
    given = ["--scan", chain.folder / "scan"] if method == "margin" else place.options
    found = chain.run("audit", "score", "--method", method, *given, out=method)
    assert found["method"] == method
    assert set(found["values"]) == set(chain.printed["audit score"]["values"])


def test_edits_and_the_way_back(chain: Chain, place: Place) -> None:
    for kind, verb in (("flip", "poison"), ("remove", "denoise")):
        about = chain.printed[f"audit {verb}"]
        assert (about["kind"], about["group"], about["n_edited"]) == (kind, "safety", 4)
        edited, original = rows(about["edited"]), [r for f in place.pairs.values() for r in rows(f[0])]
        assert len(edited) == (60 if kind == "flip" else 56)
        said = [(r["prompt"], r["chosen"], r["rejected"]) for r in original if "rejected" in r]
        assert len([r for r in edited if (r["prompt"], r["chosen"], r["rejected"]) not in said]) == (
            4 if kind == "flip" else 0
        )
        assert rows(chain.folder / f"{verb}.jsonl") == rows(place.pairs["safety"][0])
        assert chain.printed[f"undo {verb}"]["rows"] == 36


def test_methods_are_listed(chain: Chain) -> None:
    found = chain.run("audit", "score", "--list")
    assert {"safer", "margin", "random", "length", "combined"} <= set(found["methods"])
    assert sorted(m["name"] for m in found["about"]) == found["methods"]
    assert all(m["needs"] and m["about"] for m in found["about"])


def test_tables_for_people(chain: Chain, place: Place) -> None:
    out = chain.folder / "eval"
    code, printed, err = call("reward", "eval", *place.options, "--model", chain.folder / "reward", "--out", out)
    assert code == 0
    assert "safety" in printed
    assert "%" in printed
    assert printed.splitlines()[-1] == str(out / "result.json")
    assert "Accuracy" in printed
    assert "Accuracy" not in err


def test_a_recipe_end_to_end(place: Place, tmp_path: Path) -> None:
    """In a process of its own, with everything a library may say; then for people; then as the demo's recipe."""
    options = ["--set", "denoise.rates=[]", "--workers", 1]
    recipe = place.recipe(tmp_path, seeds=[0])
    found = seamark("run", recipe, *options, "--json", cwd=tmp_path)
    assert found.returncode == 0, found.stderr
    assert json.loads(found.stdout) == json.loads((tmp_path / "run" / "result.json").read_text())
    assert "▸ poison" in found.stderr
    assert "Traceback" not in found.stderr
    for words in (["run", recipe], ["demo", "--config", recipe]):
        code, printed, err = call(*words, *options)
        assert code == 0
        assert "Poisoning: safety labels flipped" in printed
        assert printed.splitlines()[-2:] == [
            f"Result: {tmp_path / 'run' / 'result.json'}", f"Report: {tmp_path / 'run' / 'report.html'}"
        ]  # fmt: skip
        assert "Nothing to do" in err


@pytest.mark.parametrize("group", GROUPS_OF_VERBS)
def test_a_group_alone_lists_its_verbs(group: str) -> None:
    code, out, err = call(group)
    assert code == 2
    assert out == ""
    for name in COMMANDS:
        assert (f"seamark {name}" in err) == name.startswith(f"{group} ")


def test_the_help_of_a_group_has_words_for_each_verb() -> None:
    for group in GROUPS_OF_VERBS:
        code, _, err = call(group, "--help")
        assert code == 0
        lines = {tuple(line.split()[1:3]): line.split()[3:] for line in err.splitlines()[1:-1]}
        assert set(lines) == {tuple(name.split()) for name in COMMANDS if name.startswith(f"{group} ")}
        assert all(len(words) > 2 for words in lines.values()), lines
    code, _, err = call("diagnose", "guess")
    assert (code, len(err.splitlines())) == (2, 1)
    assert "diagnose 'guess' is unknown. Commands: seamark diagnose causal, " in err


def test_help() -> None:
    code, out, _ = call("--help")
    assert code == 0
    assert all(name in out for name in COMMANDS)
    for name in COMMANDS:
        code, out, err = call(*name.split(), "--help")
        assert code == 0
        assert "--json" in out, name
        assert err == ""
