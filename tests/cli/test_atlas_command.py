"""`seamark atlas …`: tables, JSON, files, and what a user can get wrong. What is built from results: tests/atlas."""

from __future__ import annotations

import csv
import gzip
import json
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from seamark.atlas import Atlas, AtlasWriter, ExplanationRow, FeatureRow, Query, Run, SimulationRow, schema
from seamark.cli.main import COMMANDS
from seamark.explain.taxonomy import Tag
from seamark.stats import Estimate
from tiny_run import call, the_error

sys.path.insert(0, str(Path(__file__).parents[1] / "atlas"))
from made_features import make, sae, write

FEATURES = make(60, 4)
EN = {
    "0_3": {"explanation": "Boats in a harbour.", "correlation_score": 0.5, "tag_list": ["violence"]},
    "17_8": {"explanation": "***", "correlation_score": 0.25, "tag_list": ["politics", "terror"]},
    "17_9": {"explanation": None, "correlation_score": 0.2, "tag_list": []},
}  # fmt: skip
ZH = {**EN, "0_3": {"explanation": "港口里的船。", "correlation_score": 0.4, "tag_list": ["violence"]}}


@pytest.fixture(scope="module")
def atlas(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("command") / "atlas.db", FEATURES)


def result(*words: object) -> dict[str, Any]:
    """What a command prints as JSON, alone on stdout."""
    code, out, err = call("atlas", *words, "--json")
    assert code == 0, err
    assert len(out.splitlines()) == 1
    return dict(json.loads(out))


def test_every_command_has_help() -> None:
    verbs = [name for name in COMMANDS if name.startswith("atlas ")]
    assert verbs == [f"atlas {v}" for v in ("build", "import", "export", "landscape", "search", "info")]
    for verb in verbs:
        code, out, _ = call(*verb.split(), "--help")
        assert code == 0
        assert "--json" in out


FILTERS = {
    "--layer 3": Query(layer=3), "--sae c": Query(sae="c"), "--domain violence": Query(domain="violence"),
    "--concept violence/physical": Query(concept="violence/physical"), "--state masked": Query(state="masked"),
    "--language zh": Query(language="zh"), "--min-score 0.2": Query(min_score=0.2),
    "--max-score -0.1": Query(max_score=-0.1), "--min-rating 4": Query(min_rating=4), "--sign chosen": Query(sign=1),
    "--sign rejected": Query(sign=-1), "--explained yes": Query(explained=True),
    "--explained no": Query(explained=False),
    "--sort rating --ascending": Query(sort="rating", descending=False),
    "--sort id": Query(sort="id", descending=False), "harbour bread": Query(words="harbour bread", sort="relevance"),
    "声": Query(words="声", sort="relevance"),
    "--layer 3 --min-score 0 tea": Query(layer=3, min_score=0, words="tea", sort="relevance"),
}  # fmt: skip


@pytest.mark.parametrize("words", FILTERS)
def test_search(atlas: Path, words: str) -> None:
    found = result("search", atlas, *words.split(), "--limit", 500)
    with Atlas.open(atlas) as opened:
        expected = opened.find(FILTERS[words].model_copy(update={"limit": 500}))
    assert found == expected.model_dump(mode="json")
    assert found["total"] > 0


def test_the_table_of_a_search(atlas: Path, tmp_path: Path) -> None:
    code, out, _ = call("atlas", "search", atlas, "harbour", "--limit", 3, "--offset", 1)
    assert code == 0
    with Atlas.open(atlas) as opened:
        found = opened.find(Query(words="harbour", sort="relevance", limit=3, offset=1))
    assert f"{found.total} features" in out
    for card in found.cards:
        assert f"{card.sae}/{card.latent}" in out
    code, out, _ = call("atlas", "search", atlas, "nothing-like-it")
    assert code == 0
    assert "0 features" in out
    hostile = tmp_path / "hostile.db"
    with AtlasWriter.open(hostile, create=True) as w:
        w.add_run(Run(id="r", kind="x", title="x", created="x", manifest={}))
        ids = w.add_features(w.add_sae(sae("[red]s", 0)), [FeatureRow(1)])
        w.add_explanations([ExplanationRow(ids[1], "\x1b[31m[bold]x\u202e" + "y" * 500, "r", "llm")])
    code, out, _ = call("atlas", "search", hostile)
    assert code == 0
    assert "[red]s/1" in out
    assert "\x1b[31m" not in out
    assert "\u202e" not in out


def test_search_starts_at_once(atlas: Path) -> None:
    """It needs no torch, which takes seconds to import."""
    words = ["atlas", "search", str(atlas), "harbour", "--json"]
    program = f"import sys; from seamark.cli import main; main({words!r}); sys.exit('torch' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert (found.returncode, found.stderr) == (0, "")
    assert json.loads(found.stdout)["total"] > 0


def test_info(atlas: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = result("info", atlas)
    with Atlas.open(atlas) as opened:
        assert found == opened.overview().model_dump(mode="json")
    code, out, _ = call("atlas", "info", atlas)
    assert code == 0
    assert "domain violence" in out
    older = write(tmp_path / "older.db", FEATURES[:3])
    monkeypatch.setattr(schema, "MIGRATIONS", (*schema.MIGRATIONS, "CREATE TABLE later(x);\n"))
    monkeypatch.setattr(schema, "READ_FROM", len(schema.MIGRATIONS))
    assert "--update" in the_error(*call("atlas", "info", older))
    assert result("info", older, "--update")["features"] == 3


def test_landscape(atlas: Path, tmp_path: Path) -> None:
    path = write(tmp_path / "atlas.db", FEATURES)
    found = result("landscape", path, "--seed", 1)
    assert found["written"] == ["Landscape of explanations"]
    assert found["layouts"] == ["explanations"]
    code, out, _ = call("atlas", "landscape", path, "--seed", 1)
    assert code == 0
    assert "complete before" in out


def test_import_and_export_of_safe_sail(tmp_path: Path) -> None:
    (tmp_path / "en_db.json").write_text(json.dumps(EN), encoding="utf-8")
    with gzip.open(tmp_path / "cn_db.json.gz", "wt", encoding="utf-8") as f:
        json.dump(ZH, f, ensure_ascii=False)
    path = tmp_path / "new" / "atlas.db"
    found = result("import", "-o", path, "--safe-sail", tmp_path)
    assert found["counts"]["features"] == 3
    assert found["imports"][0]["explanations"] == {"en": 3, "zh": 3}
    code, out, _ = call("atlas", "import", "--out", path, "--safe-sail", f"en={tmp_path / 'en_db.json'}")
    assert code == 0
    assert "imported before, left alone" in out
    assert {c["latent"] for c in result("search", path, "港口")["cards"]} == {3}
    written = result("export", path, "-o", tmp_path / "out", "--to", "safe-sail")
    assert [Path(p).name for p in written["files"]] == ["en_db.json", "cn_db.json"]
    assert json.loads((tmp_path / "out" / "en_db.json").read_text(encoding="utf-8")) == EN
    assert json.loads((tmp_path / "out" / "cn_db.json").read_text(encoding="utf-8")) == ZH


def test_exports_take_filters(tmp_path: Path) -> None:
    path = tmp_path / "atlas.db"
    with AtlasWriter.open(path, create=True) as w:
        w.add_run(Run(id="r", kind="x", title="x", created="2025-01-01T00:00:00+00:00", manifest={}))
        ids = w.add_features(w.add_sae(sae("s", 0)), map(FeatureRow, range(4)))
        numbers = w.add_explanations(ExplanationRow(i, f"word{k}", "r", "llm", tags=(Tag("terror"),) * (k > 1))
                                     for k, i in ids.items())  # fmt: skip
        w.add_simulations(SimulationRow(i, "r", "segment", "llm", Estimate(value=0.1 * k), Estimate(value=0.5), e)
                          for (k, i), e in zip(ids.items(), numbers, strict=True))  # fmt: skip
    result("export", path, "-o", tmp_path / "table.csv", "--to", "csv", "--domain", "terror")
    with (tmp_path / "table.csv").open(encoding="utf-8-sig", newline="") as f:
        assert [row["latent"] for row in csv.DictReader(f)] == ["2", "3"]
    found = result("export", path, "-o", tmp_path / "parquet", "--to", "parquet", "--contexts", 0)
    assert not any("contexts" in name for name in found["files"])
    found = result("export", path, "-o", tmp_path / "site", "--to", "site", "--words", "word1", "--title", "One")
    assert Path(found["files"][0]).is_file()
    found = result("export", path, "-o", tmp_path / "np", "--to", "neuronpedia", "--min-score", 0.15)
    back = result("import", "-o", tmp_path / "back.db", "--neuronpedia", tmp_path / "np")
    assert back["counts"]["features"] == 2


WRONG = {
    "search {none}": "no atlas here",
    "search {text}": "not an atlas",
    "search {atlas} --min-rating 7": "--min-rating",
    "search {atlas} --limit 0": "--limit",
    "search {atlas} --limit 501": "--limit",
    "search {atlas} --offset=-1": "--offset",
    "search {atlas} --layer=-5": "--layer",
    "info {none}": "no atlas here",
    "landscape {none}": "no atlas here",
    "build -o {new}": "nothing to build",
    "build -o {new} --run {none}": "no such folder",
    "build -o {new} --run {empty}": "neither a scan nor explanations",
    "build -o {new} --scan {empty}": "no finished scan here",
    "build -o {new} --explained {empty}": "no explanations here",
    "build -o {new} --effects {text}": "--effects",
    "build -o {new} --contrast {text}": "Name a feature set",
    "import -o {new}": "nothing to import",
    "import -o {new} --safe-sail {empty}": "neither a folder with en_db.json",
    "import -o {new} --safe-sail xx={text}": "neither a folder with en_db.json",
    "import -o {new} --safe-sail en={text} --safe-sail en={text}": "two files for en",
    "import -o {new} --safe-sail en={text}": "no JSON",
    "import -o {new} --neuronpedia {empty}": "no Neuronpedia export here",
    "import -o {atlas}/x.db --safe-sail en={text}": "",
    "export {none} -o {new} --to csv": "no atlas here",
    "export {atlas} -o {new} --to safe-sail --layer 3": "--words and filters",
    "export {atlas} -o {new} --to csv --contexts 3": "--contexts",
    "export {atlas} -o {new} --to parquet --title x": "--title",
    "export {atlas} -o {new} --to neuronpedia --limit 3": "--limit",
    "export {atlas} -o {new} --to site --contexts=-3": "--contexts",
}


@pytest.mark.parametrize("words", WRONG)
def test_what_can_be_wrong(atlas: Path, tmp_path: Path, words: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.txt").write_text("no database and no JSON, though long enough for both " * 20)
    places = {"atlas": atlas, "none": tmp_path / "none", "new": tmp_path / "new.db", "empty": tmp_path / "empty",
              "text": tmp_path / "text.txt"}  # fmt: skip
    told = the_error(*call("atlas", *words.format(**places).split()))
    assert WRONG[words] in told
    if (tmp_path / "new.db").exists():  # what an import that failed leaves is an atlas
        with Atlas.open(tmp_path / "new.db") as opened:
            assert opened.overview().features == 0


def test_a_second_process_is_told(atlas: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("seamark.atlas.opening.BUSY_MS", 100)
    path = write(tmp_path / "atlas.db", FEATURES)
    db = sqlite3.connect(path, isolation_level=None)
    db.execute("BEGIN IMMEDIATE")
    assert "another process is writing" in the_error(*call("atlas", "landscape", path))
    db.close()


def test_safe_sail_of_another_suite(tmp_path: Path) -> None:
    (tmp_path / "en_db.json").write_text(json.dumps(EN), encoding="utf-8")
    path = tmp_path / "own.db"
    how = ["--model", "lab/own", "--hookpoint", "layers.{layer}", "--d-sae", 9, "--k", 4]
    found = result("import", "-o", path, "--safe-sail", tmp_path, *how)
    assert found["counts"]["features"] == 2
    assert [r["key"] for r in found["imports"][0]["rejected"]] == ["17_9"]
    about = {s["id"]: s for s in result("info", path)["saes"]}
    assert set(about) == {"layers.0", "layers.17"}
    for one in about.values():
        assert (one["model"], one["d_in"], one["d_sae"], one["k"], one["activation"]) == ("lab/own", None, 9, 4, None)


@pytest.mark.parametrize(("words", "told"), {
    "--k 3": "Give --model",
    "--model m --hookpoint layers.mlp": "does not name a layer",
    "--model m --hookpoint {x}": "does not name a layer",
    "--model m --d-sae 0": "no number from 1",
    "--model m --k -1": "no number from 1",
}.items())  # fmt: skip
def test_a_suite_that_cannot_be(tmp_path: Path, words: str, told: str) -> None:
    (tmp_path / "en_db.json").write_text(json.dumps(EN), encoding="utf-8")
    code, _, error = call("atlas", "import", "-o", tmp_path / "new.db", "--safe-sail", tmp_path, *words.split())
    assert code == 2
    assert told in error
    assert not (tmp_path / "new.db").exists()


def test_a_suite_is_for_safe_sail_alone(tmp_path: Path) -> None:
    code, _, error = call("atlas", "import", "-o", tmp_path / "new.db", "--neuronpedia", tmp_path, "--model", "m")
    assert code == 2
    assert "only Safe-SAIL" in error


def test_a_failed_import_leaves_nothing_new(tmp_path: Path) -> None:
    bad = tmp_path / "en_db.json"
    bad.write_text("no", encoding="utf-8")
    path = tmp_path / "new.db"
    assert call("atlas", "import", "-o", path, "--safe-sail", f"en={bad}")[0] == 2
    assert list(tmp_path.iterdir()) == [bad]
    bad.write_text(json.dumps(EN), encoding="utf-8")
    result("import", "-o", path, "--safe-sail", f"en={bad}")
    bad.write_text("no", encoding="utf-8")
    assert call("atlas", "import", "-o", path, "--safe-sail", f"en={bad}")[0] == 2
    assert result("info", path)["features"] == 3  # what was there stays


def test_ids_of_a_search_can_be_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = {"explanation": "mentions of a harbour, " * 5, "correlation_score": 0.4, "tag_list": ["a" * 30]}
    long = {"17_12345": entry}
    (tmp_path / "en_db.json").write_text(json.dumps(long), encoding="utf-8")
    path = tmp_path / "atlas.db"
    result("import", "-o", path, "--safe-sail", tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    _, out, _ = call("atlas", "search", path)
    assert "layers.17.mlp/12345" in out
