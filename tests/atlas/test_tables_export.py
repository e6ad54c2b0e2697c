"""Parquet holds all there is, typed and exact; CSV is a row per feature that no spreadsheet runs."""

from __future__ import annotations

import csv
import io
import sqlite3
from pathlib import Path

import formats_atlas
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from seamark.atlas import tables_export
from seamark.atlas.records import Query
from seamark.atlas.rows import ExplanationRow
from seamark.atlas.store import Atlas
from seamark.atlas.tables_export import export_csv, export_parquet
from seamark.atlas.writing import AtlasWriter
from seamark.errors import ConfigError, SeamarkError

TABLES = {"features", "explanations", "tags", "simulations", "ratings", "evidence", "neighbours", "contexts", "runs"}


@pytest.fixture
def atlas(tmp_path: Path) -> Path:
    return formats_atlas.make(tmp_path / "a.db", hostile=formats_atlas.HOSTILE, n=4)


def table(folder: Path, name: str) -> pa.Table:
    return pq.read_table(folder / f"{name}.parquet")


def test_parquet_holds_what_the_atlas_holds(atlas: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables_export, "GROUP", 3)
    monkeypatch.setattr(tables_export, "GROUP_CONTEXTS", 2)
    folder = tmp_path / "out"
    with Atlas.open(atlas) as opened:
        files = export_parquet(opened, folder)
        features = list(opened.iter_features())
        texts = [(f, c) for f in features for c in opened.contexts(f.sae.id, f.card.latent)]
    assert {p.stem for p in files} == TABLES == {p.stem for p in folder.glob("*.parquet")}
    assert pq.ParquetFile(folder / "features.parquet").metadata.num_row_groups == 3
    assert pq.ParquetFile(folder / "contexts.parquet").metadata.num_row_groups == 5

    rows = table(folder, "features").to_pylist()
    assert [(r["sae"], r["latent"]) for r in rows] == [(f.sae.id, f.card.latent) for f in features]
    for row, f in zip(rows, features, strict=True):
        for name in ("state", "score", "rating", "sign", "contrast", "share", "q", "max"):
            assert row[name] == getattr(f.card, name)
        assert tuple(row["domains"]) == f.card.domains
        assert (row["firings"], row["mean"], row["texts"], row["q_reason"]) == (f.firings, f.mean, f.texts, f.q_reason)
        assert (row["promoted"], row["suppressed"]) == (list(f.promoted), list(f.suppressed))
        assert (row["histogram_edges"] is None) == (f.histogram is None)
        if f.histogram:
            assert tuple(row["histogram_edges"]) == f.histogram.edges
            assert tuple(row["histogram_counts"]) == f.histogram.counts
    said = table(folder, "explanations").to_pylist()
    stored = [e for f in features for e in f.explanations]
    assert [{k: v for k, v in r.items() if k not in ("sae", "latent")} for r in said] == [
        e.model_dump(exclude={"tags"}) for e in stored]  # fmt: skip
    assert any(formats_atlas.HOSTILE in (r["text"] or "") for r in said)
    assert [(r["explanation"], r["domain"], r["concept"]) for r in table(folder, "tags").to_pylist()] == [
        (e.id, t.domain, t.concept) for e in stored for t in e.tags]  # fmt: skip
    scores = table(folder, "simulations").to_pylist()
    names = ("correlation", "correlation_low", "accuracy", "accuracy_reason", "run")
    assert [tuple(r[name] for name in names) for r in scores] == [
        (s.correlation.value, s.correlation.low, s.accuracy.value, s.accuracy.reason, s.run)
        for f in features for s in f.simulations]  # fmt: skip
    [first, _] = table(folder, "evidence").to_pylist()
    assert (first["kind"], first["value"], first["value_low"], first["n"]) == ("contrast:safety", -0.5, -0.6, 12)
    assert [(r["latent"], r["other_latent"], r["cosine"]) for r in table(folder, "neighbours").to_pylist()] == [
        (0, 2, 0.75), (0, 1, 0.5)] * 2  # fmt: skip
    assert [r["rater"] for r in table(folder, "ratings").to_pylist()] == ["human:ann"] * 2
    contexts = table(folder, "contexts").to_pylist()
    assert [(r["sae"], r["latent"], r["kind"], r["level"], r["half"], r["name"], r["source"], r["peak"])
            for r in contexts] == [
        (f.sae.id, f.card.latent, c.kind, c.level, c.half, c.name, c.source, c.peak) for f, c in texts]  # fmt: skip
    assert [tuple(r["tokens"]) for r in contexts] == [c.tokens for _, c in texts]
    assert [tuple(r["activations"]) for r in contexts] == [c.activations for _, c in texts]
    assert [r["id"] for r in table(folder, "runs").to_pylist()] == [formats_atlas.RUN]


def test_types(atlas: Path, tmp_path: Path) -> None:
    with Atlas.open(atlas) as opened:
        export_parquet(opened, tmp_path / "out")
        export_parquet(opened, tmp_path / "none", query=Query(words="nothinglikeit"))
    for name in TABLES - {"runs"}:
        full, empty = table(tmp_path / "out", name).schema, table(tmp_path / "none", name).schema
        assert full == empty
        assert (full.field("sae").type, full.field("latent").type) == (pa.string(), pa.int64())
        assert not full.field("sae").nullable
    assert table(tmp_path / "out", "features").schema.field("score").type == pa.float64()
    assert table(tmp_path / "out", "contexts").schema.field("activations").type == pa.list_(pa.float32())


def test_without_contexts_and_only_some(atlas: Path, tmp_path: Path) -> None:
    with Atlas.open(atlas) as opened:
        files = export_parquet(opened, tmp_path / "out", contexts=False, query=Query(layer=7))
    assert {p.stem for p in files} == TABLES - {"contexts"} == {p.stem for p in (tmp_path / "out").glob("*.parquet")}
    assert {r["layer"] for r in table(tmp_path / "out", "features").to_pylist()} == {7}


def test_half_a_surrogate_pair_goes_out_as_a_mark(atlas: Path, tmp_path: Path) -> None:
    """Seamark writes none, but an atlas is a file like any other."""
    db = sqlite3.connect(atlas)
    db.execute("UPDATE texts SET tokens = ? WHERE name = 'text-2'", ('["half \\ud800","."]',))
    db.execute("UPDATE features SET promoted = ? WHERE latent = 0", ('["\\udfff"]',))
    db.commit()
    db.close()
    with Atlas.open(atlas) as opened:
        export_parquet(opened, tmp_path / "out")
        export_csv(opened, tmp_path / "a.csv")
    rows = table(tmp_path / "out", "contexts").to_pylist()
    assert ["half ⟦U+D800⟧", "."] in [r["tokens"] for r in rows]
    assert table(tmp_path / "out", "features").to_pylist()[0]["promoted"] == ["⟦U+DFFF⟧"]


def test_nothing_is_left_where_it_fails(atlas: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "out").mkdir()
    with Atlas.open(atlas) as opened:
        export_parquet(opened, tmp_path / "out")
        before = {p.name: p.read_bytes() for p in (tmp_path / "out").iterdir()}

        def fail(*_: object) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(tables_export, "_contexts", fail)
        with pytest.raises(SeamarkError, match="disk is full"):
            export_parquet(opened, tmp_path / "out")
        with pytest.raises(SeamarkError, match="disk is full"):
            export_parquet(opened, tmp_path / "new")
        (tmp_path / "mine").mkdir()
        (tmp_path / "mine/notes.txt").write_text("keep")
        with pytest.raises(ConfigError, match="something other"):
            export_parquet(opened, tmp_path / "mine")
    assert {p.name: p.read_bytes() for p in (tmp_path / "out").iterdir()} == before
    assert {p.name for p in tmp_path.iterdir()} - {"a.db-wal", "a.db-shm"} == {"a.db", "out", "mine"}


def read_csv(path: Path) -> list[dict[str, str]]:
    text = path.read_bytes().decode("utf-8-sig")
    return list(csv.DictReader(io.StringIO(text, newline="")))


def test_csv(tmp_path: Path) -> None:
    formats_atlas.make(tmp_path / "a.db", n=4)
    with Atlas.open(tmp_path / "a.db") as atlas:
        path = export_csv(atlas, tmp_path / "a.csv")
        some = export_csv(atlas, tmp_path / "some.csv", query=Query(layer=3, state="text"))
    assert path.read_bytes().startswith(b"\xef\xbb\xbfsae,latent,")
    rows = read_csv(path)
    assert [(r["sae"], r["latent"]) for r in rows] == [
        (f"layers.{layer}.mlp", str(n)) for layer in (3, 7) for n in range(4)]  # fmt: skip
    first = rows[0]
    assert (first["explanation"], first["other_explanations"]) == ("Names of ships calm", "zh: 船的名字")
    assert (first["domains"], first["concepts"]) == ("politics | violence", "violence/cyber")
    assert float(first["score"]) == 0.1 * 3
    assert (first["score_low"], first["score_high"], first["max"], first["rating"]) == ("0.05", "0.9", "4.0", "4")
    assert (rows[1]["state"], rows[1]["explanation"], rows[1]["score"]) == ("masked", "***", "")
    assert (rows[3]["state"], rows[3]["explanation"], rows[3]["max"]) == ("", "", "")
    assert [r["latent"] for r in read_csv(some)] == ["0", "2"]


DANGEROUS = ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "\n=1", "＝1", '=cmd|" /C calc"!A0', " =1", 'a;=1,"=2']


def test_no_cell_is_a_formula(tmp_path: Path) -> None:
    formats_atlas.make(tmp_path / "a.db", hostile="@evil", n=3)
    with AtlasWriter.open(tmp_path / "a.db") as writer:
        ids = writer.add_features(0, ({"latent": 10 + i} for i in range(len(DANGEROUS))))
        writer.add_explanations(ExplanationRow(ids[10 + i], text, formats_atlas.RUN, "llm")
                                for i, text in enumerate(DANGEROUS))  # fmt: skip
        rows = {int(r["latent"]): r for r in read_csv(export_csv(writer, tmp_path / "a.csv")) if r["layer"] == "3"}
    for i, text in enumerate(DANGEROUS):
        cell = rows[10 + i]["explanation"]
        assert not cell.lstrip(" \t\r\n").startswith(tuple("=+-@＝")), text
        assert cell.replace("'", "").replace("␍", "\r") == text
    numbers = {"latent", "layer", "score", "score_low", "score_high", "rating", "sign", "contrast", "firings", "share",
               "mean", "max", "texts", "q", "explanations"}  # fmt: skip
    for row in rows.values():
        for name, cell in row.items():
            if name in numbers:
                assert not cell or float(cell) is not None
            else:
                assert not cell.lstrip().startswith(("=", "+", "-", "@"))


def test_long_and_odd_texts_in_a_cell(tmp_path: Path) -> None:
    formats_atlas.make(tmp_path / "a.db", hostile="wave " * 200_000 + '"\n,\x00', n=1)
    with Atlas.open(tmp_path / "a.db") as atlas:
        rows = read_csv(export_csv(atlas, tmp_path / "a.csv"))
    assert len(rows) == 2
    assert max(len(cell) for row in rows for cell in row.values()) == 30_000
