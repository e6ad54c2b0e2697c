"""Neuronpedia's bulk exports: what is carried in, every column going out, and both ways round."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import formats_atlas
import pytest

from seamark.atlas.importing import ImportSummary
from seamark.atlas.neuronpedia import import_neuronpedia
from seamark.atlas.neuronpedia_export import export_neuronpedia
from seamark.atlas.rows import NeighbourRow
from seamark.atlas.store import Atlas
from seamark.atlas.writing import AtlasWriter
from seamark.errors import ConfigError, FormatError, SeamarkError

PLACE = {"modelId": "gemma-2-2b", "layer": "20-gemmascope-res-16k"}
SAE = "gemma-2-2b--20-gemmascope-res-16k"
# Columns that the importer's tables do without neither a value nor a default for.
NEEDED = {
    "features": {"modelId", "layer", "index"},
    "explanations": {"id", "modelId", "layer", "index", "description", "authorId"},
    "activations": {"id", "tokens", "index", "layer", "modelId", "maxValue", "maxValueTokenIndex", "minValue", "values",
                    "creatorId"},
}  # fmt: skip
# Columns that Neuronpedia's own export writes.
WRITTEN = {
    "features": "modelId layer index maxActApprox creatorId frac_nonzero freq_hist_data_bar_heights "
    "freq_hist_data_bar_values logits_hist_data_bar_heights logits_hist_data_bar_values neuron_alignment_indices "
    "neuron_alignment_l1 neuron_alignment_values correlated_neurons_indices correlated_neurons_l1 "
    "correlated_neurons_pearson decoder_weights_dist neg_str neg_values pos_str pos_values sourceSetName "
    "topkCosSimIndices topkCosSimValues vector vectorLabel hookName vectorDefaultSteerStrength hasVector",
    "explanations": "id modelId layer index authorId description embedding typeName explanationModelName umap_x umap_y "
    "umap_cluster umap_log_feature_sparsity",
    "activations": "id modelId layer index creatorId dataSource tokens maxValue minValue values maxValueTokenIndex "
    "dfaValues dfaMaxValue dfaTargetIndex binContains binMin binMax",
}
NOT_NULL = {"frac_nonzero", "scoreV1", "description", "tokens", "values", "maxValue", "minValue", "maxValueTokenIndex",
            "topkCosSimIndices", "topkCosSimValues", "pos_str", "pos_values", "vector", "hasVector", "id"}  # fmt: skip


def feature(index: int, **more: Any) -> dict[str, Any]:
    middles = [0.25, 0.75, 1.25, 1.75]
    return {**PLACE, "index": str(index), "maxActApprox": 8.0, "frac_nonzero": 0.0625, "hasVector": False,
            "hookName": "blocks.20.hook_resid_post", "freq_hist_data_bar_values": middles,
            "freq_hist_data_bar_heights": [40, 8, 4, 1], "pos_str": [" sea", " ship"], "pos_values": [0.7, 0.6],
            "neg_str": [" desk"], "neg_values": [-0.5], "topkCosSimIndices": [index, index + 1],
            "topkCosSimValues": [1.0, 0.5]} | more  # fmt: skip


def explanation(index: int, text: Any, **more: Any) -> dict[str, Any]:
    return {**PLACE, "index": str(index), "id": f"e{index}", "description": text, "typeName": "oai_token-act-pair",
            "explanationModelName": "gpt-4o-mini", "scoreV1": 0, "embedding": [0.1] * 4} | more  # fmt: skip


def activation(index: int, values: Any, **more: Any) -> dict[str, Any]:
    tokens = [f" w{i}" for i in range(len(values))] if isinstance(values, list) else ["a"]
    return {**PLACE, "index": str(index), "id": f"a{index}-{values}", "tokens": tokens, "values": values,
            "binMin": -1, "binMax": 8.0, "binContains": -1, "dfaValues": []} | more  # fmt: skip


def write(folder: Path, part: str, rows: list[Any], batch: int = 0, packed: bool = True) -> Path:
    lines = "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows).encode()
    path = folder / part / f"batch-{batch}.jsonl{'.gz' if packed else ''}"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(lines) if packed else lines)
    return path


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "exports" / PLACE["modelId"] / PLACE["layer"]
    write(folder, "features", [feature(0), feature(1)])
    write(folder, "features", [feature(2, maxActApprox=0, frac_nonzero=0, freq_hist_data_bar_values=[]),
                               feature(3, maxActApprox=2.5, frac_nonzero=0, freq_hist_data_bar_heights=[1, 2.5, 3, 4])],
          batch=1)  # fmt: skip
    write(folder, "explanations", [explanation(0, "words for ships", scoreV1=0.375), explanation(1, "船"),
                                   explanation(0, "ships, said again")])  # fmt: skip
    write(folder, "activations", [
        activation(0, [0.0, 3.0]), activation(0, [8.0, 0.5]), activation(1, [1.0]), activation(0, [0.0, 0.0]),
        activation(0, [0, 2.1], binMin=2.0, binMax=3.0, binContains=0.1), activation(5, [0.5]),
    ])  # fmt: skip
    return folder


def imported(path: Path, folder: Path, **options: Any) -> ImportSummary:
    with AtlasWriter.open(path, create=True) as writer:
        return import_neuronpedia(writer, folder, **options)


def test_what_is_carried_in(source: Path, tmp_path: Path) -> None:
    summary = imported(tmp_path / "a.db", source)
    assert (summary.features, summary.explanations, summary.scores) == (5, {"en": 3}, 1)
    assert (summary.contexts, summary.n_rejected) == (6, 0)
    with Atlas.open(tmp_path / "a.db") as atlas:
        [sae] = atlas.saes()
        assert (sae.id, sae.model, sae.layer, sae.hookpoint) == (SAE, "gemma-2-2b", 20, "layers.20")
        f = atlas.feature(SAE, 0)
        assert (f.card.share, f.card.max, f.firings) == (0.0625, 8.0, 53)
        assert f.histogram is not None
        assert f.histogram.edges == (0.0, 0.5, 1.0, 1.5, 2.0)
        assert (f.promoted, f.suppressed) == ((" sea", " ship"), (" desk",))
        assert [(n.card.latent, n.cosine) for n in f.neighbours] == [(1, 0.5)]
        texts = {e.text: e for e in f.explanations}
        assert set(texts) == {"words for ships", "ships, said again"}
        said = texts["words for ships"]
        assert (said.model, said.prompt_version, said.method) == ("gpt-4o-mini", "oai_token-act-pair", "imported")
        assert [(s.correlation.value, s.explanation) for s in f.simulations] == [(0.375, said.id)]
        assert atlas.feature(SAE, 1).simulations == ()  # 0 is the default, no score
        odd = atlas.feature(SAE, 3)  # it fires, so its share of 0 is the default
        assert (odd.card.share, odd.card.max, odd.histogram) == (None, 2.5, None)
        dead = atlas.feature(SAE, 2)
        assert (dead.card.share, dead.card.max, dead.histogram) == (0.0, None, None)
        assert [(c.kind, c.level, c.peak, c.activations) for c in atlas.contexts(SAE, 0)] == [
            ("top", 0, 8.0, (8.0, 0.5)), ("top", 0, 3.0, (0.0, 3.0)),
            ("level", 3, pytest.approx(2.1), (0.0, pytest.approx(2.1))), ("silent", 0, 0.0, (0.0, 0.0))]  # fmt: skip
        assert atlas.card(SAE, 5) is not None  # named by an activation alone


def test_sources_are_found_below_a_folder_and_imported_once(source: Path, tmp_path: Path) -> None:
    other = source.parent.parent / "gemma-2-9b" / "9-res"
    place = {"modelId": "gemma-2-9b", "layer": "9-res"}
    write(other, "explanations", [explanation(7, "rivers") | place], packed=False)
    summary = imported(tmp_path / "a.db", source.parent.parent)
    assert len(summary.runs) == 2
    assert summary.explanations == {"en": 4}
    again = imported(tmp_path / "a.db", source)
    assert again.already == (str(source),)
    with Atlas.open(tmp_path / "a.db") as atlas:
        assert {s.id: s.hookpoint for s in atlas.saes()} == {SAE: "layers.20", "gemma-2-9b--9-res": "unknown"}
        assert sum(len(f.explanations) for f in atlas.iter_features()) == 4


def test_texts_are_the_strongest_of_each_batch(source: Path, tmp_path: Path) -> None:
    rows = [activation(1, [float(i % 50) + 1]) for i in range(100)]
    write(source, "activations", rows, batch=1)
    imported(tmp_path / "a.db", source, contexts=4)
    with Atlas.open(tmp_path / "a.db") as atlas:
        assert [c.peak for c in atlas.contexts(SAE, 1)] == [50.0, 50.0, 49.0, 49.0, 1.0]
    imported(tmp_path / "b.db", source, contexts=0)
    with Atlas.open(tmp_path / "b.db") as atlas:
        assert atlas.contexts(SAE, 1) == []


BAD = [
    "no json", "[1]", '{"modelId": "gemma-2-2b"}', explanation(0, "x") | {"layer": "21-other"},
    explanation(0, "x") | {"index": "-1"}, explanation(0, "x") | {"index": 1.5}, explanation(0, "x") | {"index": True},
    explanation(0, "x") | {"index": "٣"}, explanation(0, ""), explanation(0, None), explanation(0, "half \ud800"),
]  # fmt: skip
BAD_TEXTS = [
    activation(0, [float("nan")]), activation(0, [1.0], tokens=["a", "b"]), activation(0, []), activation(0, "x"),
    activation(0, [1.0], tokens=[3]), activation(0, [1e39]), activation(0, [True]),
]  # fmt: skip


def test_bad_lines_are_listed(source: Path, tmp_path: Path) -> None:
    explanations = write(source, "explanations", [explanation(3, "good"), *BAD], batch=1)
    activations = write(source, "activations", [activation(3, [1.0]), *BAD_TEXTS], batch=1)
    features = write(source, "features", [feature(0)], batch=2)
    summary = imported(tmp_path / "a.db", source)
    listed = [(r.file, int(r.key.removeprefix("line "))) for r in summary.rejected]
    assert listed == [
        (str(features), 1), *((str(explanations), i + 2) for i in range(len(BAD))),
        *((str(activations), i + 2) for i in range(len(BAD_TEXTS))),
    ]  # fmt: skip
    with Atlas.open(tmp_path / "a.db") as atlas:
        assert [e.text for e in atlas.feature(SAE, 3).explanations] == ["good"]
        assert [c.peak for c in atlas.contexts(SAE, 3)] == [1.0]


def test_folders_that_are_no_export(source: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for folder in (tmp_path / "empty", tmp_path / "missing", next((source / "features").iterdir())):
        with pytest.raises(ConfigError, match="no Neuronpedia export"):
            imported(tmp_path / "a.db", folder)
    write(tmp_path / "odd", "features", [{"index": "1"}])
    with pytest.raises(FormatError, match="model and layer"):
        imported(tmp_path / "a.db", tmp_path / "odd")
    path = source / "features/batch-0.jsonl.gz"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(FormatError, match="damaged or cut off"):
        imported(tmp_path / "a.db", source)
    with Atlas.open(tmp_path / "a.db") as atlas:
        assert atlas.runs() == ()


HUGE = {"id": "s", "model": "m", "hookpoint": "layers.1", "layer": 1, "d_in": 10**30}


OURS = ['{"seamark": 3}', '{"seamark":{"sae":{"id":7}}}', '{"seamark":[]}', json.dumps({"seamark": {"sae": HUGE}}), 7]


@pytest.mark.parametrize("notes", OURS)
def test_notes_that_only_look_like_ours(source: Path, tmp_path: Path, notes: Any) -> None:
    about = {"id": PLACE["layer"], "modelId": PLACE["modelId"], "notes": notes}
    (source / "source.jsonl").write_text(json.dumps(about))
    write(source, "explanations", [explanation(0, "x", notes=notes)], batch=1)
    imported(tmp_path / "a.db", source)
    with Atlas.open(tmp_path / "a.db") as atlas:
        assert [s.id for s in atlas.saes()] == [SAE]


def rows(path: Path) -> list[dict[str, Any]]:
    raw = path.read_bytes()
    return [json.loads(line) for line in (gzip.decompress(raw) if path.suffix == ".gz" else raw).splitlines()]


def test_every_column_goes_out(tmp_path: Path) -> None:
    formats_atlas.make(tmp_path / "a.db", hostile=formats_atlas.HOSTILE)
    with Atlas.open(tmp_path / "a.db") as atlas:
        sources = export_neuronpedia(atlas, tmp_path / "out")
    assert len(sources) == 2
    for folder in sources:
        assert folder.parent == tmp_path / "out/small.model-2b-it"
        model, kept = folder.parent.name, folder.name
        for part in ("features", "explanations", "activations"):
            found = rows(folder / part / "batch-0.jsonl.gz")
            assert found
            assert len({json.dumps(row) for row in found}) == len(found)
            for row in found:
                assert set(row) >= NEEDED[part] | set(WRITTEN[part].split())
                assert set(row) == set(found[0])  # the importer takes the columns of the first line
                assert all(row[name] is not None for name in NOT_NULL & set(row))
                assert (row["modelId"], row["layer"]) == (model, kept)
                assert row["index"].isdigit()
        for name, needed in (
            ("model", {"id", "creatorId", "layers", "neuronsPerLayer", "owner"}),
            ("release", {"name", "description", "creatorName", "creatorId", "urls"}),
            ("sourceset", {"modelId", "name", "description", "creatorName", "creatorId", "releaseName", "urls"}),
            ("source", {"id", "modelId", "setName", "creatorId"}),
        ):  # fmt: skip
            [row] = rows(folder / f"{name}.jsonl")
            assert set(row) >= needed
    types = {row["name"] for row in rows(tmp_path / "out/config/explanation_type.jsonl")}
    models = {row["name"] for row in rows(tmp_path / "out/config/explanation_model_type.jsonl")}
    used = [row for folder in sources for row in rows(folder / "explanations/batch-0.jsonl.gz")]
    assert {row["typeName"] for row in used} <= types
    assert {row["explanationModelName"] for row in used} - {None} <= models
    assert {p.name for p in (tmp_path / "out/config").iterdir()} == {
        f"{name}.jsonl" for name in ("explanation_type", "explanation_model_type", "explanation_score_type",
                                     "explanation_score_model", "eval_type")}  # fmt: skip


def test_values_that_go_out(tmp_path: Path) -> None:
    formats_atlas.make(tmp_path / "a.db", n=4)
    with AtlasWriter.open(tmp_path / "a.db") as writer:
        here, there = writer.feature_ids(0), writer.feature_ids(1)
        near = ((here[2], 0.75), (there[3], 0.6), (here[1], 0.5))  # one of them in another autoencoder
        writer.add_neighbours(NeighbourRow(here[0], rank, i, c) for rank, (i, c) in enumerate(near))
        folder = export_neuronpedia(writer, tmp_path / "out", creator="me")[0]
    assert folder == tmp_path / "out/small.model-2b-it/3-layers.3.mlp"
    first, second, *_ = rows(folder / "features/batch-0.jsonl.gz")
    assert (first["maxActApprox"], first["frac_nonzero"], first["creatorId"]) == (4.0, 0.125, "me")
    assert first["freq_hist_data_bar_values"] == [0.5, 1.5, 2.5, 3.5]
    assert first["freq_hist_data_bar_heights"] == [30, 20, 9, 1]
    assert first["hookName"] == "blocks.3.hook_mlp_out"
    assert (first["topkCosSimIndices"], first["topkCosSimValues"]) == ([2, 1], [0.75, 0.5])
    assert second["maxActApprox"] is None
    said = rows(folder / "explanations/batch-0.jsonl.gz")
    assert [(e["description"], round(e["scoreV1"], 9)) for e in said if e["index"] == "0"] == [
        ("Names of ships calm", 0.3), ("船的名字", 0)]  # fmt: skip
    texts = rows(folder / "activations/batch-0.jsonl.gz")
    assert [(t["binMin"], t["binMax"], t["maxValue"], t["maxValueTokenIndex"]) for t in texts] == [
        (-1, 4.0, 4.0, 2), (-1, 4.0, 1.25, 1), (pytest.approx(1.05), pytest.approx(1.4), 1.25, 1),
        (None, None, 0.0, 0), (None, None, 0.0, 0)]  # fmt: skip


def told(atlas: Atlas) -> list[Any]:
    found: list[Any] = []
    for f in atlas.iter_features():
        sae = f.sae.model_copy(update={"number": 0})
        scores = {s.explanation: s.correlation.value for s in reversed(f.simulations)}
        said = sorted((e.language, e.state, e.text, e.tags, e.rating, e.rating_reason, e.model, e.prompt_version,
                       scores.get(e.id)) for e in f.explanations)  # fmt: skip
        near = [(n.card.latent, n.cosine) for n in f.neighbours]
        texts = [c.model_dump() for c in atlas.contexts(f.sae.id, f.card.latent)]
        found.append((sae, f.card.latent, f.card.share, f.card.max, f.card.score, said, near, f.histogram, texts))
    return found


@pytest.mark.parametrize("hostile", ["calm", formats_atlas.HOSTILE])
def test_our_own_comes_back(tmp_path: Path, hostile: str) -> None:
    formats_atlas.make(tmp_path / "a.db", hostile=hostile, n=4)
    with Atlas.open(tmp_path / "a.db") as atlas:
        export_neuronpedia(atlas, tmp_path / "out")
        before = told(atlas)
    assert imported(tmp_path / "b.db", tmp_path / "out").rejected == ()
    with Atlas.open(tmp_path / "b.db") as atlas:
        after = told(atlas)
        export_neuronpedia(atlas, tmp_path / "again")
    assert after == before
    for path in (tmp_path / "out").rglob("features/*.gz"):
        assert rows(path) == rows(tmp_path / "again" / path.relative_to(tmp_path / "out"))


def test_what_neuronpedia_made_goes_out_under_its_own_names(source: Path, tmp_path: Path) -> None:
    imported(tmp_path / "a.db", source)
    with Atlas.open(tmp_path / "a.db") as atlas:
        [folder] = export_neuronpedia(atlas, tmp_path / "out")
    assert folder.relative_to(tmp_path / "out").parts == (PLACE["modelId"], PLACE["layer"])
    assert {e["typeName"] for e in rows(folder / "explanations/batch-0.jsonl.gz")} == {"oai_token-act-pair"}
    assert rows(tmp_path / "out/config/explanation_model_type.jsonl") == []


def test_batches_and_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("seamark.atlas.neuronpedia_export.BATCH", 3)
    formats_atlas.make(tmp_path / "a.db", n=7)
    with Atlas.open(tmp_path / "a.db") as atlas:
        folder = export_neuronpedia(atlas, tmp_path / "out")[0]
        export_neuronpedia(atlas, tmp_path / "again")
    assert [len(rows(folder / f"features/batch-{i}.jsonl.gz")) for i in range(3)] == [3, 3, 1]
    for path in (tmp_path / "out").rglob("*.gz"):
        assert path.read_bytes() == (tmp_path / "again" / path.relative_to(tmp_path / "out")).read_bytes()


def test_names_are_told_apart(tmp_path: Path) -> None:
    with AtlasWriter.open(tmp_path / "a.db", create=True) as writer:
        for name, model in (("a/b", "x/Config"), ("a b", "x/Config"), ("A-b", "x/Config"), ("../..", "y/config"),
                            ("船", "..")):  # fmt: skip
            number = writer.add_sae(formats_atlas.sae(1, name, model))
            writer.add_features(number, [{"latent": 0}])
        sources = export_neuronpedia(writer, tmp_path / "out")
    names = [source.relative_to(tmp_path / "out").parts for source in sources]
    assert len({tuple(part.lower() for part in parts) for parts in names}) == 5
    assert all(len(parts) == 2 and not set(parts) & {"config", "..", "."} for parts in names)


def test_folders_that_are_kept(tmp_path: Path) -> None:
    formats_atlas.make(tmp_path / "a.db")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.txt").write_text("keep")
    with Atlas.open(tmp_path / "a.db") as atlas:
        with pytest.raises(ConfigError, match="something other"):
            export_neuronpedia(atlas, tmp_path / "mine")
        with pytest.raises(ConfigError, match="a file"):
            export_neuronpedia(atlas, tmp_path / "a.db")
        export_neuronpedia(atlas, tmp_path / "out")
        (tmp_path / "out/old.txt").write_text("from before")
        export_neuronpedia(atlas, tmp_path / "out")  # an earlier export is replaced
        assert not (tmp_path / "out/old.txt").exists()
    with AtlasWriter.open(tmp_path / "b.db", create=True) as writer, pytest.raises(SeamarkError, match="no features"):
        export_neuronpedia(writer, tmp_path / "out")
    assert (tmp_path / "out/config").is_dir()  # a failure leaves what was there
    assert {p.name for p in tmp_path.iterdir()} <= {"a.db", "b.db", "mine", "out", "a.db-wal", "a.db-shm"}
    assert (tmp_path / "mine/thesis.txt").read_text() == "keep"
