"""Safe-SAIL's database: what it holds comes in with every detail, and goes out as the same bytes."""

from __future__ import annotations

import gzip
import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

import formats_atlas
import pytest

from seamark.atlas.importing import ImportSummary
from seamark.atlas.records import Query, Sae
from seamark.atlas.safe_sail import Suite, export_safe_sail, import_safe_sail
from seamark.atlas.store import Atlas
from seamark.atlas.writing import AtlasWriter
from seamark.errors import ConfigError, DataError, FormatError

DATA = Path(os.environ.get("SEAMARK_DATA", "/nowhere"), "safe_sail")
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="SEAMARK_DATA names no folder with safe_sail/")


def entry(text: str | None, score: Any = 0.25, tags: Any = ()) -> dict[str, Any]:
    return {"explanation": text, "correlation_score": score, "tag_list": list(tags)}


EN = {
    "17_208": entry("Names of rivers", 0.1 + 0.2, ["violence", "politics"]),
    "0_9": entry("***", 0.31, ["politics"]),
    "17_30": entry(None, -0.125),
    "8_20479": entry("Ein Satz\n with  spaces, \x00 and \u202e; *** inside ", 0.7239999999999998),
}
ZH = {
    "17_208": entry("河流的名字", 0.1 + 0.2, ["politics", "violence"]),
    "0_9": entry("***", 0.31, ["politics"]),
    "17_30": entry("仍有解释", -0.125),
    "35_1": entry("***", 0.4, ["politics"]),
}


def write(path: Path, data: Any) -> Path:
    text = json.dumps(data) if not isinstance(data, str) else data
    raw = text.encode("utf-8", "surrogatepass")
    path.write_bytes(gzip.compress(raw) if path.suffix == ".gz" else raw)
    return path


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    return write(tmp_path / "en_db.json", EN), write(tmp_path / "cn_db.json.gz", ZH)


def imported(path: Path, en: Path | None, zh: Path | None = None, **options: Any) -> ImportSummary:
    with AtlasWriter.open(path, create=True) as writer:
        return import_safe_sail(writer, en, zh, **options)


def test_both_languages_become_one_feature(files: tuple[Path, Path], tmp_path: Path) -> None:
    summary = imported(tmp_path / "a.db", *files)
    assert summary.features == 5
    assert summary.explanations == {"en": 4, "zh": 4}
    assert summary.rejected == ()
    with Atlas.open(tmp_path / "a.db") as atlas:
        feature = atlas.feature("layers.17.mlp", 208)
        assert {(e.language, e.text, e.state) for e in feature.explanations} == {
            ("en", "Names of rivers", "text"), ("zh", "河流的名字", "text")}  # fmt: skip
        assert [[t.domain for t in e.tags] for e in feature.explanations] == [
            ["violence", "politics"], ["politics", "violence"]]  # fmt: skip
        assert feature.card.score == 0.1 + 0.2
        assert feature.card.domains == ("politics", "violence")
        masked = atlas.feature("layers.0.mlp", 9)
        assert [(e.state, e.text) for e in masked.explanations] == [("masked", "***")] * 2
        assert [(e.language, e.state, e.text) for e in atlas.feature("layers.17.mlp", 30).explanations] == [
            ("zh", "text", "仍有解释"), ("en", "null", None)]  # fmt: skip
        sae = atlas.saes()[0]
        assert (sae.id, sae.layer, sae.d_sae, sae.k) == ("layers.0.mlp", 0, 20480, 200)
        assert sae.model == "Qwen/Qwen2.5-3B-Instruct"


def test_export_gives_back_the_same_bytes(files: tuple[Path, Path], tmp_path: Path) -> None:
    imported(tmp_path / "a.db", *files)
    with Atlas.open(tmp_path / "a.db") as atlas:
        written = export_safe_sail(atlas, tmp_path / "out")
    assert sorted(p.name for p in written) == ["cn_db.json", "en_db.json"]
    assert (tmp_path / "out/en_db.json").read_bytes() == json.dumps(EN).encode()
    assert (tmp_path / "out/cn_db.json").read_bytes() == json.dumps(ZH).encode()


def test_one_file_alone_and_then_the_other(files: tuple[Path, Path], tmp_path: Path) -> None:
    imported(tmp_path / "a.db", None, files[1])
    imported(tmp_path / "a.db", files[0])
    with Atlas.open(tmp_path / "a.db") as atlas:
        assert len(list(atlas.iter_features())) == 5
        export_safe_sail(atlas, tmp_path / "out")
    assert json.loads((tmp_path / "out/cn_db.json").read_text()) == ZH
    assert list(json.loads((tmp_path / "out/en_db.json").read_text())) == list(EN)


def test_a_file_is_imported_once(files: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    imported(tmp_path / "a.db", *files)
    monkeypatch.setattr(AtlasWriter, "add_explanations", None)  # nothing is written again
    again = imported(tmp_path / "a.db", *files)
    assert again.already == tuple(map(str, files))
    with Atlas.open(tmp_path / "a.db") as atlas:
        assert len(atlas.runs()) == 2
        assert sum(len(f.explanations) for f in atlas.iter_features()) == 8


BAD = {
    "no latent": ("17_20480", entry("x")),
    "no key": ("17-4", entry("x")),
    "zeros": ("017_4", entry("x")),
    "a letter": ("17_²", entry("x")),
    "no object": ("1_1", ["x", 0.1, []]),
    "a field more": ("1_2", entry("x") | {"rating": 5}),
    "a field less": ("1_3", {"explanation": "x", "tag_list": []}),
    "a number": ("1_4", entry(3)),  # type: ignore[arg-type]
    "empty": ("1_5", entry("  ")),
    "surrogate": ("1_6", entry("half \ud800")),
    "nan": ("1_7", entry("x", float("nan"))),
    "inf": ("1_8", entry("x", float("inf"))),
    "bool": ("1_9", entry("x", True)),
    "too large": ("1_10", entry("x", 1.5)),
    "text score": ("1_11", entry("x", "0.5")),
    "tags no list": ("1_12", {**entry("x"), "tag_list": "politics"}),
    "tag no text": ("1_13", entry("x", 0.1, [1])),
    "tag twice": ("1_14", entry("x", 0.1, ["a", "a"])),
    "tag with a line": ("1_15", entry("x", 0.1, ["a\nb"])),
}


def test_bad_entries_are_listed_and_not_used(tmp_path: Path) -> None:
    path = write(tmp_path / "en.json", dict(BAD.values()) | {"1_99": entry("good")})
    summary = imported(tmp_path / "a.db", path)
    assert {r.key for r in summary.rejected} == {key for key, _ in BAD.values()}
    assert summary.n_rejected == len(BAD)
    assert all(r.file == str(path) and r.reason for r in summary.rejected)
    with Atlas.open(tmp_path / "a.db") as atlas:
        assert [(f.sae.id, f.card.latent) for f in atlas.iter_features()] == [("layers.1.mlp", 99)]


def test_a_key_that_comes_twice_is_used_neither_time(tmp_path: Path) -> None:
    one, other = json.dumps(entry("first")), json.dumps(entry("second"))
    path = write(tmp_path / "en.json", f'{{"1_1": {one}, "1_2": {one}, "1_1": {other}, "1_3": {{"explanation": "a", '
                 '"explanation": "b", "correlation_score": 0.1, "tag_list": []}}')  # fmt: skip
    summary = imported(tmp_path / "a.db", path)
    assert Counter(r.key for r in summary.rejected) == {"1_1": 2, "1_3": 1}
    with Atlas.open(tmp_path / "a.db") as atlas:
        assert [f.card.latent for f in atlas.iter_features()] == [2]


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", "3", '{"a": 1}', '{"1_1": ' + "[" * 100_000, "\ud800", "NaN",
                                  '{"1_1": 1' + "0" * 5000 + "}"])  # fmt: skip
def test_what_is_no_database(tmp_path: Path, text: str) -> None:
    path = write(tmp_path / "en.json", text)
    with pytest.raises(FormatError, match=r"en\.json"):
        imported(tmp_path / "a.db", path)
    with Atlas.open(tmp_path / "a.db") as atlas:
        assert atlas.runs() == ()


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    packed = gzip.compress(json.dumps(EN).encode())
    (tmp_path / "cut.json.gz").write_bytes(packed[: len(packed) // 2])
    (tmp_path / "odd.json.gz").write_bytes(packed[:20] + b"\xff" * 30 + packed[50:])
    for name in ("cut.json.gz", "odd.json.gz", "missing.json", "."):
        with pytest.raises(FormatError):
            imported(tmp_path / "a.db", tmp_path / name)
    with pytest.raises(ConfigError):
        imported(tmp_path / "a.db", None)


def test_nothing_is_written_where_one_file_is_bad(files: tuple[Path, Path], tmp_path: Path) -> None:
    write(tmp_path / "bad.json", "[]")
    with pytest.raises(FormatError):
        imported(tmp_path / "a.db", files[0], tmp_path / "bad.json")
    with Atlas.open(tmp_path / "a.db") as atlas:
        assert atlas.runs() == ()
        assert list(atlas.iter_features()) == []


def test_other_autoencoders_of_the_same_name(files: tuple[Path, Path], tmp_path: Path) -> None:
    with AtlasWriter.open(tmp_path / "a.db", create=True) as writer:
        writer.add_sae(Sae(number=0, id="layers.17.mlp", model="m", hookpoint="layers.17.mlp", layer=17, d_sae=64))
        with pytest.raises(DataError, match=r"layers\.17\.mlp"):
            import_safe_sail(writer, files[0])
        assert writer.runs() == ()


def test_an_atlas_of_our_own_goes_out_and_comes_in_again(tmp_path: Path) -> None:
    formats_atlas.make(tmp_path / "own.db", n=4)
    with Atlas.open(tmp_path / "own.db") as atlas:
        export_safe_sail(atlas, tmp_path / "out")
    en = json.loads((tmp_path / "out/en_db.json").read_text())
    assert list(en) == ["3_0", "3_1", "3_2", "7_0", "7_1", "7_2"]
    assert en["7_0"] == {"explanation": "Names of ships calm", "correlation_score": 0.1 * 7,
                         "tag_list": ["violence", "politics"]}  # fmt: skip
    assert en["3_2"] == {"explanation": "Words about harbours, number 2", "correlation_score": None, "tag_list": []}
    assert en["3_1"] == {"explanation": "***", "correlation_score": None, "tag_list": ["politics"]}
    assert json.loads((tmp_path / "out/cn_db.json").read_text())["3_0"]["explanation"] == "船的名字"
    suite = Suite(model="lab/own", d_in=8, d_sae=64, activation="topk", k=4)
    summary = imported(tmp_path / "b.db", tmp_path / "out/en_db.json", tmp_path / "out/cn_db.json", suite=suite)
    assert summary.rejected == ()
    with Atlas.open(tmp_path / "b.db") as atlas:
        export_safe_sail(atlas, tmp_path / "again")
    assert (tmp_path / "again/en_db.json").read_bytes() == (tmp_path / "out/en_db.json").read_bytes()


def test_two_autoencoders_of_a_layer_cannot_be_told_apart(tmp_path: Path) -> None:
    formats_atlas.make(tmp_path / "a.db")
    with AtlasWriter.open(tmp_path / "a.db") as writer:
        number = writer.add_sae(formats_atlas.sae(7, "wide-one"))
        ids = writer.add_features(number, [{"latent": 5}])
        with Atlas.open(tmp_path / "a.db") as atlas:
            export_safe_sail(atlas, tmp_path / "out")  # nothing of it is explained yet
        writer.add_explanations([{"feature": ids[5], "text": "x", "run": formats_atlas.RUN, "method": "llm"}])
    with Atlas.open(tmp_path / "a.db") as atlas, pytest.raises(ConfigError, match=r"layers\.7\.mlp and wide-one"):
        export_safe_sail(atlas, tmp_path / "out")


def test_languages_name_files_only_if_they_look_like_languages(tmp_path: Path) -> None:
    formats_atlas.make(tmp_path / "a.db")
    with AtlasWriter.open(tmp_path / "a.db") as writer:
        feature = writer.feature_ids(0)[0]
        for language in ("de", "../../de", "cn", ""):
            writer.add_explanations([{"feature": feature, "text": language or "-", "run": formats_atlas.RUN,
                                      "method": "llm", "language": language}])  # fmt: skip
        files = export_safe_sail(writer, tmp_path / "out")
    assert len(set(files)) == 6
    assert {p.parent for p in files} == {tmp_path / "out"}
    assert {"en_db.json", "cn_db.json", "de_db.json"} < {p.name for p in files}
    assert json.loads((tmp_path / "out/cn_db.json").read_text())["3_0"]["explanation"] == "船的名字"


def test_explanations_that_failed_do_not_go_out(tmp_path: Path) -> None:
    formats_atlas.make(tmp_path / "a.db")
    with AtlasWriter.open(tmp_path / "a.db") as writer:
        ids = writer.feature_ids(0)
        writer.add_explanations([
            {"feature": ids[0], "text": None, "state": "failed", "reason": "no answer", "run": formats_atlas.RUN,
             "method": "llm", "model": "lab/other"},
            {"feature": ids[2], "text": None, "state": "failed", "reason": "no answer", "run": formats_atlas.RUN,
             "method": "llm"},
        ])  # fmt: skip
        export_safe_sail(writer, tmp_path / "out")
    en = json.loads((tmp_path / "out/en_db.json").read_text())
    assert "3_2" not in en
    assert en["3_0"]["explanation"] == "Names of ships calm"


def test_an_atlas_without_explanations(tmp_path: Path) -> None:
    with AtlasWriter.open(tmp_path / "a.db", create=True) as writer, pytest.raises(DataError, match="no explanation"):
        export_safe_sail(writer, tmp_path / "out")


@needs_data
def test_the_released_database(tmp_path: Path) -> None:
    summary = imported(tmp_path / "a.db", DATA / "en_db.json.gz", DATA / "cn_db.json.gz")
    assert summary.n_rejected == 0
    assert summary.explanations == {"en": 4700, "zh": 4701}
    with Atlas.open(tmp_path / "a.db") as atlas:
        features = list(atlas.iter_features())
        overview = atlas.overview()
        export_safe_sail(atlas, tmp_path / "out")
        assert atlas.find(Query(language="en", limit=1)).total == 4700
        assert atlas.find(Query(domain="terror", limit=1)).total == 63
    languages = [{e.language for e in f.explanations} for f in features]
    assert Counter(map(frozenset, languages)) == {frozenset({"en", "zh"}): 4700, frozenset({"zh"}): 1}
    english = [e for f in features for e in f.explanations if e.language == "en"]
    assert Counter(e.state for e in english) == {"text": 3543, "masked": 1144, "null": 13}
    tagged = [[t.domain for t in e.tags] for e in english if e.tags]
    assert len(tagged) == 1758
    assert Counter(d for tags in tagged for d in tags) == {
        "politics": 1144, "violence": 582, "pornography": 309, "terror": 63}  # fmt: skip
    assert sum(len(tags) > 1 for tags in tagged) == 316
    cards = [f.card for f in features if any(e.language == "en" for e in f.explanations)]
    for some, mean, largest in ((cards, 0.382, 0.744), ([c for c in cards if c.domains], 0.383, 0.724)):
        scores = [c.score for c in some if c.score is not None]
        assert len(scores) == len(some)
        assert (round(sum(scores) / len(scores), 3), round(max(scores), 3)) == (mean, largest)
    [en] = [language for language in overview.languages if language.language == "en"]
    assert (en.features, en.tagged, en.masked, en.null) == (4700, 1758, 1144, 13)
    assert {c.name: c.count for c in en.domains} == {
        "politics": 1144, "violence": 582, "pornography": 309, "terror": 63}  # fmt: skip
    for name in ("en_db", "cn_db"):
        assert (tmp_path / f"out/{name}.json").read_bytes() == gzip.decompress((DATA / f"{name}.json.gz").read_bytes())
