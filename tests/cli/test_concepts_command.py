"""`seamark concepts`: table, files, existing scans, and what a user can get wrong."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from seamark.cli import concepts as command
from seamark.cli.main import COMMANDS
from seamark.features import ConceptMetrics, Scan, ScanConfig, SuiteRanking
from seamark.sae import SparseAutoencoder, sae_config
from seamark.text import demo_contrast_pairs
from tiny_run import Place, call, the_error

FRAMES = ["Is the {} safe?", "Why did the {} walk to the harbour?", "The {} has bread, and an hour.", "Ask the {}."]


@pytest.fixture(autouse=True)
def _registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(COMMANDS, "concepts", command.concepts)


def write_sae(folder: Path, seed: int = 0, **config: Any) -> str:
    chosen = {"d_in": 32, "d_sae": 64, "k": 6, "hookpoint": "layers.2"} | config
    SparseAutoencoder(sae_config(**chosen), seed=seed).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    root = tmp_path_factory.mktemp("suite")
    return [f"--sae=few={write_sae(root / 'a', k=2)}", f"--sae=more={write_sae(root / 'b', k=12)}",
            f"--sae=mlp={write_sae(root / 'c', 1, hookpoint='layers.1.mlp')}"]  # fmt: skip


@pytest.fixture(scope="module")
def contrast(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight pairs of two concepts, and two rows that are none."""
    rows: list[dict[str, Any]] = [
        {
            "with": f.format(a),
            "without": f.format(b),
            "concept": concept,
            "domain": "politics",
            "drafted": f is FRAMES[0],
        }
        for concept, a, b in (("figure", "king", "cook"), ("event", "election", "picnic"))
        for f in FRAMES
    ]
    rows += [{"with": "Is the king safe?", "without": "is the KING safe?", "concept": "figure", "domain": "politics"}]
    file = tmp_path_factory.mktemp("pairs") / "contrast.jsonl"
    file.write_text("".join(json.dumps(r) + "\n" for r in rows) + "no JSON\n", encoding="utf-8")
    return file


def run(*words: object) -> dict[str, Any]:
    code, out, err = call("concepts", *words, "--json")
    assert code == 0, err
    assert len(out.splitlines()) == 1

    def refuse(word: str) -> None:
        raise AssertionError(word)

    return dict(json.loads(out, parse_constant=refuse))


@pytest.fixture(scope="module")
def done(place: Place, suite: list[str], contrast: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("done") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(COMMANDS, "concepts", command.concepts)
        run("--model", place.base, *suite, "--contrast", contrast, "--out", out, "--draws", 50)
    return out


def test_files(done: Path, contrast: Path) -> None:
    result = json.loads((done / "result.json").read_text(encoding="utf-8"))
    assert set(result) == {"metrics", "ranking", "rejected_rows", "drafted_pairs"}
    assert (result["rejected_rows"], result["drafted_pairs"]) == (2, 2)
    metrics = ConceptMetrics.model_validate(result["metrics"])
    ranking = SuiteRanking.model_validate(result["ranking"])
    assert (len(metrics.pairs), metrics.draws, metrics.margin) == (8, 50, None)
    assert {r.sae for r in ranking.rows} == {"few", "more", "mlp"}
    assert str(done) not in (done / "result.json").read_text(encoding="utf-8")
    with (done / "ranking.csv").open(encoding="utf-8", newline="") as file:
        table = list(csv.DictReader(file))
    assert [row["sae"] for row in table] == [r.sae for r in ranking.rows]
    for row, ranked in zip(table, ranking.rows, strict=True):
        assert float(row["difference"]) == ranked.difference.value
        assert float(row["difference_low"]) == ranked.difference.low
        assert row["fvu"] == ""
    ElementTree.parse(done / "concepts.svg")
    rejected = [json.loads(line) for line in (done / "rejected.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [(r["file"], r["row"]) for r in rejected] == [(str(contrast), 9), (str(contrast), 10)]
    config = ScanConfig.model_validate(Scan.open(done / "scan").config)
    assert (config.positions, config.rewards) == ("tokens", False)


def test_table(done: Path, contrast: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("COLUMNS", "220")
    code, out, err = call("concepts", "--scan", done / "scan", "--contrast", contrast, "--out", tmp_path, "--draws", 50)
    assert code == 0, err
    assert "8 pairs, 2 concepts" in out
    assert "Kendall's τ" in out
    for word in ("few", "more", "mlp", "layers.1.mlp", "topk 12", "I_CDF", "swapped"):
        assert word in out
    again = json.loads((tmp_path / "result.json").read_text(encoding="utf-8"))
    assert again == json.loads((done / "result.json").read_text(encoding="utf-8"))
    assert not (tmp_path / "scan").exists()


def test_demo_pairs(place: Place, suite: list[str], tmp_path: Path) -> None:
    result = run("--model", place.base, suite[0], "--out", tmp_path, "--draws", 5)
    pairs = demo_contrast_pairs()
    assert [p["id"] for p in result["metrics"]["pairs"]] == pairs.ids
    (sae,) = result["metrics"]["saes"]
    assert [(c["domain"], c["concept"]) for c in sae["concepts"]] == pairs.concepts
    assert {d["domain"] for d in sae["domains"]} == {"politics", "pornography", "violence", "terror"}
    assert result["ranking"]["kendall_tau"]["value"] is None
    assert not (tmp_path / "rejected.jsonl").exists()


def test_margin_and_quality(place: Place, suite: list[str], contrast: Path, done: Path, tmp_path: Path) -> None:
    scan = ["--scan", done / "scan", "--contrast", contrast, "--draws", 5]
    reference = tmp_path / "reference"
    assert call("scan", "run", "--model", place.base, *suite, *place.options, "--out", reference)[0] == 0
    assert call("sae", "eval", "--model", place.base, *suite[:2], *place.options, "--out", tmp_path / "eval")[0] == 0
    quality = tmp_path / "eval" / "result.json"
    result = run(*scan, "--out", tmp_path / "out", "--reference", reference, "--margin", 0.1, "--quality", quality)
    assert result["metrics"]["margin"] == 0.1
    assert result["metrics"]["reference"] == Scan.open(reference).manifest["key"]
    known = {r["sae"]: r["fvu"] for r in result["ranking"]["rows"]}
    expected = {s["name"]: s["quality"]["fvu"] for s in json.loads(quality.read_text(encoding="utf-8"))["saes"]}
    assert known == expected | {"mlp": None}
    figure = (tmp_path / "out" / "concepts.svg").read_text(encoding="utf-8")
    assert "few: L0" in figure
    assert "mlp: FVU is not known" in figure
    # Another autoencoder under the same name is not taken for this one.
    evaluated = json.loads(quality.read_text(encoding="utf-8"))
    evaluated["saes"][0]["fingerprint"] = "0" * 64
    quality.write_text(json.dumps(evaluated), encoding="utf-8")
    assert "measured another SAE called 'few'" in the_error(
        *call("concepts", *scan, "--out", tmp_path / "x", "--quality", quality)
    )
    for one in evaluated["saes"]:
        one["name"] += "-other"
    quality.write_text(json.dumps(evaluated), encoding="utf-8")
    assert "none of these SAEs" in the_error(*call("concepts", *scan, "--out", tmp_path / "x", "--quality", quality))
    quality.write_text("{}", encoding="utf-8")
    assert "not the result of" in the_error(*call("concepts", *scan, "--out", tmp_path / "x", "--quality", quality))


def test_mistakes(place: Place, suite: list[str], contrast: Path, done: Path, tmp_path: Path) -> None:
    out, scan = ["--out", tmp_path / "out"], ["--scan", done / "scan"]
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"with": "a", "without": "A", "concept": "c", "domain": "d"}\n', encoding="utf-8")
    cases: list[tuple[list[Any], str]] = [
        (["--sae", "x"], "no model is given"),
        (["--model", place.base], "no SAE is given"),
        ([*scan, "--model", place.base], "Give one or the other"),
        ([*scan, "--margin", 0.1], "Give both or neither"),
        ([*scan, "--reference", done / "scan"], "Give both or neither"),
        ([*scan], "the scan lacks 408 of 408 texts"),  # the demo pairs
        ([*scan, "--contrast", bad], "no usable contrast pair"),
        ([*scan, "--contrast", tmp_path / "none.jsonl"], "no such file"),
        (["--scan", tmp_path / "none"], "no finished scan here"),
        ([*scan, "--contrast", contrast, "--draws", 0], "0 draws"),
    ]
    for words, message in cases:
        assert message in the_error(*call("concepts", *words, *out)), words
    assert not (tmp_path / "out" / "result.json").exists()
