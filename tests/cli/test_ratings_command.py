"""`seamark ratings export` and `ratings import`: files, tables, JSON, and what a user can get wrong."""

from __future__ import annotations

import csv
import io
import json
import random
from pathlib import Path
from typing import Any

import pytest

from seamark.explain.ratings import statistical_ratings
from seamark.explain.records import Explanation, write_explanations
from seamark.features import Context, ContextConfig, ContextHalf, FeatureContexts, Scan, context_sets, write_contexts
from seamark.sae import SparseAutoencoder, sae_config
from tiny_run import Place, call, the_error


@pytest.fixture
def explained(tmp_path: Path) -> Path:
    """Forty features with contexts; those of rating 5 are rare, one has no rating."""
    rng, sets, found = random.Random(0), {}, []
    for latent in range(40):
        tokens = ("The", f" boat{latent}", " left", " at", f" {rng.randint(1, 12)}", ".")
        text = Context(f"t{latent}", None, None, "texts", tokens, (0.0, 1.5, 0.0, 0.0, 0.2, 0.0), (True,) * 6, 1.5)
        sets["l3", latent] = FeatureContexts("l3", latent, 1.5, "", ContextHalf((text,)), ContextHalf())
        rating = 5 if latent < 2 else 1 + latent % 4
        found.append(Explanation(sae="l3", latent=latent, text="Boats.", rating=None if latent == 9 else rating,
                                 rating_reason="Said so.", language="en", method="lexical"))  # fmt: skip
    folder = tmp_path / "explained"
    write_contexts(sets, folder / "contexts.jsonl")
    write_explanations(folder / "explanations.jsonl", found)
    return folder


def export(explained: Path, out: Path, *words: object) -> dict[str, Any]:
    code, told, err = call("ratings", "export", "--explained", explained, "--out", out, *words, "--json")
    assert code == 0, err
    return dict(json.loads(told))


def answers(out: Path, change: int = 0) -> list[tuple[str, int]]:
    """The machine's ratings by code; every `change`-th one off by one."""
    features = json.loads((out / "key.json").read_text())["features"]
    return [(f["code"], f["rating"] % 5 + 1 if change and i % change == 0 else f["rating"])
            for i, f in enumerate(features)]  # fmt: skip


def fill(out: Path, file: Path, change: int = 0) -> Path:
    """The exported table, filled in."""
    given = dict(answers(out, change))
    sheet = (out / "sheet" / "sheet.csv").read_text(encoding="utf-8-sig")
    rows = list(csv.DictReader(io.StringIO(sheet, newline="")))
    with file.open("w", encoding="utf-8-sig", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(row | {"rating": given[row["code"]], "comment": "[red]clear[/red]"} for row in rows)
    return file


def test_export(explained: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = export(explained, out, "--n", 12)
    assert result == json.loads((out / "result.json").read_text())
    assert (result["features"], result["machine"], result["left_out"]) == (12, "lexical", {"without a rating": 1})
    assert result["population"] == {"1": 9, "2": 8, "3": 10, "4": 10, "5": 2}
    assert result["sampled"] == {"1": 2, "2": 2, "3": 3, "4": 3, "5": 2}
    assert sorted(p.name for p in (out / "sheet").iterdir()) == ["README.txt", "sheet.csv", "sheet.html"]
    other = export(explained, tmp_path / "other", "--n", 12, "--seed", 1, "--no-per-level")
    assert other["sheet"] != result["sheet"]
    assert not other["per_level"]
    assert export(explained, out, "--n", 12) == result, "again, over itself"


def test_statistical_ratings_of_a_scan_instead(place: Place, tmp_path: Path) -> None:
    """Of real features: the key holds what `statistical_ratings` says; explanations are not asked for."""
    sae = SparseAutoencoder(sae_config(d_in=32, d_sae=64, k=6, hookpoint="layers.2"), seed=0)
    sae.save_pretrained(tmp_path / "sae")
    code, _, err = call("scan", "run", "--model", place.reward, f"--sae=mine={tmp_path / 'sae'}", *place.options,
                        "--out", tmp_path / "scan", "--json")  # fmt: skip
    assert code == 0, err
    scan = Scan.open(tmp_path / "scan")
    sets = context_sets(scan, {"mine": range(0, 64, 3)}, ContextConfig(top=3, per_level=1))
    write_contexts(sets, tmp_path / "contexts.jsonl")
    result = export(tmp_path, tmp_path / "out", "--scan", tmp_path / "scan")
    assert result["machine"] == "statistical"
    features = json.loads((tmp_path / "out" / "key.json").read_text())["features"]
    expected = {r.latent: r.rating for r in statistical_ratings(scan, "mine", range(0, 64, 3)) if r.rating}
    assert {f["latent"]: f["rating"] for f in features}.items() <= expected.items()
    assert len(features) == len(expected) - result["left_out"].get("without a text in which it fires", 0) > 5
    line = the_error(*call("ratings", "export", "--explained", tmp_path, "--scan", tmp_path / "scan", "--group", "none",
                           "--out", tmp_path / "other"))  # fmt: skip
    assert "no texts of group 'none'" in line


def test_export_tells_what_is_for_whom(explained: Path, tmp_path: Path) -> None:
    code, told, err = call("ratings", "export", "--explained", explained, "--out", tmp_path / "o")
    assert (code, err) == (0, "")
    for words in ("39 features", "2 of 2", "for the rater", "not for the rater", "left out: without a rating",
                  "seamark ratings import"):  # fmt: skip
        assert words in told


def test_import(explained: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    export(explained, out)
    ann, bob = fill(out, tmp_path / "ann.csv", change=4), fill(out, tmp_path / "bob.csv", change=3)
    with bob.open("a", encoding="utf-8") as file:
        file.write("F-none,x,3,\r\n")
    words = ("ratings", "import", ann, bob, "--key", out / "key.json", "--out", tmp_path / "checked", "--draws", 100)
    code, told, err = call(*words, "--json")
    assert code == 0, err
    result = json.loads(told)
    assert result == json.loads((tmp_path / "checked" / "result.json").read_text())
    assert "features" not in result
    assert [r["name"] for r in result["raters"]] == ["ann", "bob"]
    assert result["by_rater"][0]["exact"]["value"] == pytest.approx(29 / 39)
    assert result["by_rater"][1]["exact"]["value"] == pytest.approx(26 / 39)
    assert result["overall"]["n"] == 78
    assert result["bad_rows"] == [{"rater": "bob", "row": 41, "code": "F-none", "reason": "no such code on this sheet"}]
    assert [c["status"] for c in result["checks"]] == ["undecided", "undecided"]
    rows = [json.loads(line) for line in (tmp_path / "checked" / "ratings.jsonl").read_text().splitlines()]
    given = dict(answers(out, 4))
    assert {row["code"]: row["raters"]["ann"] for row in rows} == given
    assert {(row["sae"], row["latent"]) for row in rows} == {("l3", i) for i in range(40) if i != 9}
    code, told, err = call(*words)
    assert (code, err) == (0, "")
    for shown in ("Human check", "machine, ann", "ann, bob", "κ, quadratic weights", "Rows not used", "F-none",
                  "agreement above", "undecided"):  # fmt: skip
        assert shown in " ".join(told.split()), shown
    assert "[red]" not in told


def test_import_without_ratings_is_not_available(explained: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    export(explained, out)
    code, told, err = call("ratings", "import", out / "sheet" / "sheet.csv", "--key", out / "key.json", "--out",
                           tmp_path / "checked")  # fmt: skip
    assert (code, err) == (0, "")
    assert "not available: no feature was rated by both" in " ".join(told.split())
    result = json.loads((tmp_path / "checked" / "result.json").read_text())
    assert result["overall"]["kappa"] == {"value": None, "low": None, "high": None, "n": 0,
                                          "reason": "no feature was rated by both"}  # fmt: skip


def test_what_cannot_be_exported(explained: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    line = the_error(*call("ratings", "export", "--explained", tmp_path, "--out", out))
    assert "contexts.jsonl: cannot be read" in line
    assert "--n" in the_error(*call("ratings", "export", "--explained", explained, "--out", out, "--n", 0))
    assert not out.exists()
    export(explained, out, "--n", 5)
    line = the_error(*call("ratings", "export", "--explained", explained, "--out", out, "--n", 6))
    assert line == f"{out}: the folder holds the key of another sheet, whose ratings would be lost without it. Choose another --out"  # fmt: skip  # noqa: E501
    write_explanations(explained / "explanations.jsonl", [])
    assert "no feature has both" in the_error(*call("ratings", "export", "--explained", explained, "--out", tmp_path))


def test_what_cannot_be_imported(explained: Path, tmp_path: Path) -> None:
    out, checked = tmp_path / "out", tmp_path / "checked"
    export(explained, out, "--n", 5)
    export(explained, tmp_path / "other", "--n", 5, "--seed", 1)
    ann = fill(out, tmp_path / "ann.csv")
    words = ("ratings", "import", ann, "--out", checked, "--key")
    assert "none of its codes is on this sheet" in the_error(*call(*words, tmp_path / "other" / "key.json"))
    assert "not the key of a rating sheet" in the_error(*call(*words, out / "result.json"))
    assert "nothing.json: cannot be read" in the_error(*call(*words, tmp_path / "nothing.json"))
    line = the_error(*call("ratings", "import", ann, ann, "--out", checked, "--key", out / "key.json"))
    assert "the same sheet as" in line
    line = the_error(*call("ratings", "import", tmp_path / "no.csv", "--out", checked, "--key", out / "key.json"))
    assert "no.csv: cannot be read" in line
    assert not checked.exists()
