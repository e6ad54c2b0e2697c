"""`seamark diagnose risk` and `seamark inspect --guard`: files, tables, and what a user can get wrong."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import pytest

from seamark.errors import DataError
from seamark.sae import SparseAutoencoder, sae_config
from tiny_run import Place, call
from tiny_run import the_error as told

WORDS = ["harbour", "bread", "flour", "yeast", "ships", "weather", "walking", "water", "knives", "ammonia"]


@pytest.fixture(scope="module")
def sae(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saes") / "mine"
    SparseAutoencoder(sae_config(d_in=32, d_sae=64, k=6, hookpoint="layers.2"), seed=3).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path, rows = tmp_path_factory.mktemp("texts") / "texts.jsonl", []
    for i in range(160):
        storm = i % 2 == 0
        said = " ".join(WORDS[(i * step + step) % 10] for step in (1, 3, 7, i % 9 + 1))
        rows.append({"text": f"{'toxic bleach' if storm else 'brown salt'} {said} number {i} {i * 7}",
                     "kind": "storm" if storm else "none",
                     "source": f"s{i // 4 % 4}" if i < 140 else "calm" if not storm else "s0"})  # fmt: skip
    path.write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def done(place: Place, sae: Path, texts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("risk")
    code, _, err = call("diagnose", "risk", *words(place, sae, texts), "--domain", "storm", "--out", out)
    assert code == 0, err
    return out


def words(place: Place, sae: Path | str, texts: Path) -> list[Any]:
    return ["--model", place.reward, "--sae", sae, "--texts", texts, "--label-column", "kind", "--draws", "20",
            "--folds", "3", "--no-learning"]  # fmt: skip


def test_result_and_table(
    place: Place, sae: Path, texts: Path, done: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "250")
    result = json.loads((done / "result.json").read_text(encoding="utf-8"))
    domain = result["domains"][0]
    assert [(s["source"], s["positives"]) for s in domain["sources"] if not s["negatives"] or not s["positives"]] == [
        ("calm", 0)]  # fmt: skip
    assert [s["scheme"] for s in domain["splits"]] == ["within", "across"]
    assert len(domain["splits"][0]["detectors"]) == 10
    assert result["guards"]["storm"]["latency"]["rounds"] == 15
    assert (done / "guards" / "storm" / "guard.json").is_file()
    again = ["diagnose", "risk", "--scan", done / "scan", *words(place, sae, texts)[4:], "--domain", "storm"]
    code, out, err = call(*again, "--out", tmp_path)
    assert code == 0, err
    said = " ".join(out.split())
    assert "storm: 1 of 5 sources hold one class only" in said
    assert "source_alone" in said
    assert not (tmp_path / "guards").exists(), "without a model there are no guards"
    assert json.loads((tmp_path / "result.json").read_text())["domains"] == result["domains"]


def test_inspect_with_a_guard(place: Place, done: Path) -> None:
    guard = done / "guards" / "storm"
    asked = ["inspect", "--guard", guard, "--model", place.reward, "--json", "--text"]
    found = {}
    for text in ("toxic bleach walking harbour", "brown salt walking harbour"):
        code, out, err = call(*asked, text)
        assert code == 0, err
        found[text] = json.loads(out)
    bad, good = found.values()
    assert bad["probability"] > good["probability"]
    assert bad["flagged"] == (bad["probability"] >= bad["guard"]["threshold"])
    code, out, err = call(*[w for w in asked if w != "--json"], "toxic bleach walking harbour")
    assert code == 0, err
    assert "adds to the score" in out


def test_a_guard_that_cannot_be_made(
    place: Place, sae: Path, texts: Path, done: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its reason is told, the report is written before any guard is made, and the other domains go on."""
    from seamark.diagnose import guard_making

    monkeypatch.setenv("COLUMNS", "250")
    export, before = guard_making.export_guard, []

    def failing(x: Any, domain: str, *rest: Any, **more: Any) -> Any:
        before.append(json.loads((tmp_path / "result.json").read_text(encoding="utf-8")))
        if domain == "storm":
            raise DataError("too few texts of a class to fit a guard", where=domain)
        return export(x, domain, *rest, **more)

    monkeypatch.setattr(guard_making, "export_guard", failing)
    code, out, err = call("diagnose", "risk", "--scan", done / "scan", *words(place, sae, texts), "--domain", "storm",
                          "--domain", "none", "--out", tmp_path)  # fmt: skip
    assert code == 0, err
    result = json.loads((tmp_path / "result.json").read_text(encoding="utf-8"))
    assert result["guards"]["storm"] == {"reason": "too few texts of a class to fit a guard"}
    assert result["guards"]["none"]["domain"] == "none"
    assert (tmp_path / "guards" / "none" / "guard.json").is_file()
    assert not (tmp_path / "guards" / "storm").exists()
    assert before[0]["domains"] == result["domains"]
    assert before[0]["guards"] == {"storm": {"reason": "not made"}, "none": {"reason": "not made"}}
    assert "guard storm: not available (too few texts of a class to fit a guard)" in " ".join(out.split())


def test_names_are_checked_before_anything_is_judged(
    place: Place, sae: Path, texts: Path, done: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = importlib.import_module("seamark.diagnose.risk")  # the room exports the function by this name
    monkeypatch.setattr(module, "risk", lambda *_, **__: pytest.fail("it is judged first"))
    asked = words(place, f"yours={sae}", texts)
    base = ["diagnose", "risk", "--scan", done / "scan", *asked, "--domain", "storm", "--out", tmp_path]
    assert "no SAE is called 'mine'" in the_error(*base)


def test_what_a_user_can_get_wrong(place: Place, sae: Path, texts: Path, done: Path, tmp_path: Path) -> None:
    base = ["diagnose", "risk", *words(place, sae, texts), "--out", tmp_path]
    assert "no text is labelled 'hail'" in the_error(*base, "--domain", "hail")
    assert "no domain is given" in the_error(*base)
    assert "no guard can be made of 'words'" in the_error(*base, "--domain", "storm", "--detector", "words")
    assert "no column topic" in the_error(*base, "--domain", "storm", "--label-column", "topic")
    assert "nothing reads the texts" in the_error("diagnose", "risk", "--texts", texts, "--label-column", "kind",
                                                  "--domain", "storm", "--out", tmp_path)  # fmt: skip
    one = tmp_path / "one.jsonl"
    one.write_text(json.dumps({"text": "brown bread", "kind": "storm", "source": "a"}) + "\n")
    assert "one class only" in the_error(*words_for(base, one), "--domain", "storm")
    empty = tmp_path / "empty.jsonl"
    empty.write_text(json.dumps({"text": " ", "kind": "storm", "source": "a"}) + "\n")
    assert "no usable text" in the_error(*words_for(base, empty), "--domain", "storm")
    guard = ["inspect", "--guard", done / "guards" / "storm", "--model", place.reward, "--text"]
    assert "a guard reads a text alone" in the_error(*guard, "x", "--sae", sae)
    assert "empty" in the_error(*guard, " ")
    assert "tokens; the guard reads" in the_error(*guard, "a " * 99_999)
    assert "no guard here" in the_error("inspect", "--guard", tmp_path, "--text", "x")
    assert "no model is given" in the_error("inspect", "--text", "x", "--sae", sae)


def the_error(*asked: Any) -> str:
    return told(*call(*asked))


def words_for(base: list[Any], texts: Path) -> list[Any]:
    """The same command on other texts."""
    changed = list(base)
    changed[changed.index("--texts") + 1] = texts
    return changed
