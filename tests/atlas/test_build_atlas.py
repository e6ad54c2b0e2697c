"""`build_atlas`: what comes out of results, resuming after a break, and what can be wrong with them."""

from __future__ import annotations

import json
import random
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from atlas_writers import writers

from seamark.atlas import Atlas, AtlasWriter, Query
from seamark.atlas.build import BuildSummary, add_landscapes, build_atlas, coarse
from seamark.atlas.finding import sources_below, suite_of
from seamark.errors import ConfigError, DataError, FormatError, SeamarkError
from seamark.explain.records import read_explanations, read_simulations
from seamark.features import Scan, read_contexts
from seamark.features.sets import Feature, FeatureSet
from seamark.run import file_digest
from seamark.sae import SparseAutoencoder, sae_config
from tiny import tiny_folder
from tiny_run import call, write_pairs

GROUP = "safety"


def write_sae(folder: Path) -> Path:
    sae = SparseAutoencoder(sae_config(d_in=32, d_sae=64, k=6, hookpoint="layers.2"), seed=0)
    with torch.no_grad():
        sae.b_enc -= torch.rand(64, generator=torch.Generator().manual_seed(9)) * 2.0
    sae.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of results, as commands leave them side by side."""
    root = tmp_path_factory.mktemp("results")
    model, sae = tiny_folder(root / "model", "bert"), write_sae(root / "sae")
    pairs = [f"--pairs={group}={file}" for group, files in write_pairs(root / "pairs").items() for file in files]
    done(call("scan", "run", "--model", model, f"--sae=l2={sae}", *pairs, "--out", root / "scan", "--json"))
    done(call("contrast", root / "scan", "--out", root / "contrast", "--top", 12, "--json"))
    features = ["--features", root / "contrast" / "features.json"]
    done(call("explain", "--scan", root / "scan", "--out", root / "explained", *features, "--json"))
    done(call("simulate", "--explained", root / "explained", "--out", root / "simulated", "--n-texts", 10, "--json"))
    latents = FeatureSet.load(root / "contrast" / "features.json").latents("l2")
    effects = {str(i): {"value": 0.1 * i, "low": 0.0, "high": i, "n": 8, "reason": ""} for i in latents[:3]}
    effects[str(latents[3])] = {"value": None, "low": None, "high": None, "n": 8, "reason": "no Q_f"}
    (root / "effects").mkdir()
    (root / "effects" / "effects.json").write_text(json.dumps(effects))
    (root / "rated").mkdir()
    row = {"code": "F-x", "sae": "l2", "latent": latents[0], "machine": 3, "raters": {"ann": 5, "bo": 4},
           "comments": {"ann": "clear"}}  # fmt: skip
    (root / "rated" / "ratings.jsonl").write_text(json.dumps(row) + "\n")
    return root


def done(answer: tuple[int, str, str]) -> dict[str, Any]:
    code, out, err = answer
    assert code == 0, err
    return dict(json.loads(out))


def build(results: Path, out: Path, **other: Any) -> BuildSummary:
    """All of the results."""
    found = sources_below(results)
    given: dict[str, Any] = {
        "scans": found.scans, "explained": found.explained, "simulated": found.simulated, "rated": found.rated,
        "contrasts": found.contrasts, "effects": found.effects, "suite": suite_of(found.saes, found.scans),
    }  # fmt: skip
    return build_atlas(out, **(given | other))


@pytest.fixture(scope="module")
def built(results: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Atlas]:
    path = tmp_path_factory.mktemp("built") / "atlas.db"
    build(results, path)
    with Atlas.open(path) as atlas:
        yield atlas


def test_everything_below_a_folder_is_found(results: Path) -> None:
    found = sources_below(results)
    assert [scan.path for scan in found.scans] == [results / "scan"]
    assert (found.explained, found.simulated, found.rated) == (
        (results / "explained",), (results / "simulated",), (results / "rated",),
    )  # fmt: skip
    assert found.contrasts == (results / "contrast" / "features.json",)
    assert found.effects == (("l2", results / "effects" / "effects.json"),)
    assert results / "sae" in found.saes
    assert list(suite_of(found.saes, found.scans)) == ["l2"]
    with pytest.raises(ConfigError, match="neither a scan nor explanations"):
        sources_below(results / "pairs")
    with pytest.raises(ConfigError, match="no such folder"):
        sources_below(results / "nowhere")


def test_what_was_measured_is_the_scans(built: Atlas, results: Path) -> None:
    scan = Scan.open(results / "scan")
    stats, positions = scan.feature_stats("l2"), sum(scan.manifest["positions"].values())
    features = list(built.iter_features())
    assert {f.card.latent for f in features} == set(read_explanations_of(results))
    for f in features:
        i = f.card.latent
        assert (f.firings, f.texts) == (stats.count[i], stats.texts[i])
        assert f.card.share == pytest.approx(stats.count[i] / positions)
        assert f.mean == pytest.approx(stats.sum[i] / stats.count[i])
        assert f.card.max == pytest.approx(float(stats.max[i]))
        assert (f.card.q is None) == bool(np.isnan(stats.q[i])) == bool(f.q_reason)
        assert f.card.q is None or f.card.q == pytest.approx(stats.q[i])
        edges, counts = scan.histogram("l2", i)
        assert f.histogram is not None
        assert sum(f.histogram.counts) == counts.sum()
        assert len(f.histogram.counts) <= 32
        assert f.histogram.edges[0] == pytest.approx(edges[0], rel=1e-5)
        assert f.histogram.edges[-1] == pytest.approx(edges[-1], rel=1e-5)
    (sae,) = built.saes()
    assert (sae.id, sae.hookpoint, sae.layer, sae.d_in, sae.d_sae, sae.k) == ("l2", "layers.2", 2, 32, 64, 6)
    assert sae.fingerprint == scan.manifest["saes"]["l2"]


def read_explanations_of(results: Path) -> dict[int, Any]:
    return {latent: e for (_, latent), e in read_explanations(results / "explained" / "explanations.jsonl").items()}


def test_explanations_and_scores_are_theirs(built: Atlas, results: Path) -> None:
    simulations = {s.latent: s for s in read_simulations(results / "simulated" / "simulations.jsonl")}
    for latent, e in read_explanations_of(results).items():
        found = built.feature("l2", latent)
        (one,) = found.explanations
        assert (one.text, one.reason, one.tags, one.rating, one.rating_reason, one.method, one.language) == (
            e.text, e.reason, e.tags, e.rating, e.rating_reason, e.method, e.language,
        )  # fmt: skip
        assert one.state == ("failed" if e.text is None else "text")
        (simulation,) = found.simulations
        assert simulation.explanation == one.id
        s = simulations[latent]
        assert (simulation.correlation.value, simulation.correlation.low, simulation.correlation.reason) == (
            s.correlation.value, s.correlation.low, s.correlation.reason,
        )  # fmt: skip
        assert found.card.score == s.correlation.value
    assert built.overview().scored == sum(s.correlation.value is not None for s in simulations.values())


def test_contexts_are_those_of_the_explanations(built: Atlas, results: Path) -> None:
    for (sae, latent), given in read_contexts(results / "explained" / "contexts.jsonl").items():
        found = built.contexts(sae, latent, limit=1000)
        expected = []
        for half, some in (("explain", given.explain), ("simulate", given.simulate)):
            kinds = [("top", 0, some.top), *(("level", level, cs) for level, cs in some.levels.items()),
                     ("near_miss", 0, some.near_miss), ("silent", 0, some.silent)]  # fmt: skip
            expected += [(kind, level, half, c.text_id, c.tokens, c.activations, c.max_activation, c.group)
                         for kind, level, cs in kinds for c in cs]  # fmt: skip
        told = [(c.kind, c.level, c.half, c.name, c.tokens, c.activations, c.peak, c.source) for c in found]
        assert sorted(told) == sorted(expected)
    with sqlite3.connect(built.path) as db:  # none was written in vain
        assert db.execute("SELECT count(*) FROM texts WHERE id NOT IN (SELECT text FROM contexts)").fetchone() == (0,)


def test_contrast_effects_and_ratings_are_evidence(built: Atlas, results: Path) -> None:
    features = FeatureSet.load(results / "contrast" / "features.json").features
    doubt = json.loads((results / "contrast" / "result.json").read_text())["significance"]
    differences = {row["latent"]: row for row in doubt["features"]}
    for f in features:
        found = built.feature("l2", f.latent)
        evidence = {e.kind: e.estimate for e in found.evidence}
        assert evidence[f"contrast:{GROUP}"].value == f.score == found.card.contrast
        assert found.card.sign == f.sign
        difference = evidence[f"difference:{GROUP}"]
        row = differences[f.latent]
        assert (difference.value, difference.low, difference.high) == (row["effect"], row["low"], row["high"])
        assert difference.n == doubt["n_pairs"]
    strongest = built.feature("l2", features[0].latent)
    assert {r.rater: (r.rating, r.reason) for r in strongest.ratings} == {
        "human:ann": (5, "clear"),
        "human:bo": (4, ""),
    }
    assert strongest.card.rating == 4
    effects = [
        {e.kind: e.estimate for e in built.feature("l2", f.latent).evidence}.get("direct_effect") for f in features
    ]
    assert [e.value for e in effects[:3] if e] == [pytest.approx(0.1 * f.latent) for f in features[:3]]
    assert effects[3] is not None
    assert (effects[3].value, effects[3].reason) == (None, "no Q_f")
    assert effects[4] is None


def test_neighbours_are_the_nearest_directions(built: Atlas, results: Path) -> None:
    sae = SparseAutoencoder.from_pretrained(results / "sae")
    latents = sorted(read_explanations_of(results))
    directions = sae.W_dec.detach().double().numpy()[latents]
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    cosines = directions @ directions.T
    for i, latent in enumerate(latents):
        order = [j for j in np.argsort(-cosines[i], kind="stable") if j != i][:10]
        found = built.feature("l2", latent).neighbours
        assert [n.card.latent for n in found] == [latents[j] for j in order]
        assert [n.cosine for n in found] == pytest.approx([cosines[i, j] for j in order], abs=1e-5)


def test_landscapes_and_runs(built: Atlas) -> None:
    assert built.layouts() == ("decoder", "explanations")
    assert len(built.points("decoder").ids) == built.overview().features
    runs = {run.kind: run for run in built.runs()}
    assert list(runs) == ["scan", "explain", "simulate", "ratings", "contrast", "effects", "neighbours",
                          "landscape decoder", "landscape explanations"]  # fmt: skip
    assert all(run.manifest["complete"] for run in runs.values())
    assert runs["explain"].manifest["settings"]["scan"] == runs["scan"].id


def content(path: Path) -> list[str]:
    db = sqlite3.connect(path)
    passed = ("'changes'", "search_", 'INTO "text_blocks"')  # what tells how it was written, not what
    lines = [line for line in db.iterdump() if not any(name in line for name in passed)]
    words = db.execute("SELECT rowid, words FROM search ORDER BY rowid").fetchall()
    hashes = b"".join(row[0] for row in db.execute("SELECT hashes FROM text_blocks ORDER BY first"))
    db.close()
    return [*lines, *map(str, words), hashes.hex()]


def test_a_second_build_changes_nothing(built: Atlas, results: Path, tmp_path: Path) -> None:
    first = build(results, tmp_path / "atlas.db")
    assert content(tmp_path / "atlas.db") == content(built.path)
    again = build(results, tmp_path / "atlas.db")
    assert again.skipped == first.written
    assert (again.written, first.skipped) == ((), ())
    assert again.features == first.features == 12
    assert content(tmp_path / "atlas.db") == content(built.path)


@contextmanager
def broken_off(after: int) -> Iterator[None]:
    """The process ends in place of one of the commits."""
    commits = 0
    real = AtlasWriter.transaction

    @contextmanager
    def transaction(self: AtlasWriter) -> Iterator[None]:
        nonlocal commits
        outer = not self._connection().in_transaction
        with real(self):
            yield
            commits += outer
            if outer and commits > after:
                raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(AtlasWriter, "transaction", transaction)
        yield


@pytest.mark.parametrize("after", [0, 1, 4, 8, 13])
def test_a_broken_build_goes_on(built: Atlas, results: Path, tmp_path: Path, after: int, monkeypatch: Any) -> None:
    monkeypatch.setattr("seamark.atlas.sources.AT_ONCE", 5)
    monkeypatch.setattr("seamark.atlas.build.AT_ONCE", 5)
    path = tmp_path / "atlas.db"
    with broken_off(after), pytest.raises(KeyboardInterrupt):
        build(results, path)
    with Atlas.open(path) as atlas:
        atlas.overview()
    summary = build(results, path)
    assert summary.written
    assert content(path) == content(built.path)


def test_every_latent_that_fires(results: Path, tmp_path: Path) -> None:
    scan = Scan.open(results / "scan")
    summary = build_atlas(tmp_path / "atlas.db", scans=[scan], everything=True, landscape=False)
    fires = np.flatnonzero(scan.feature_stats("l2").count > 0).tolist()
    assert summary.features == len(fires) > 12
    assert any("No autoencoder" in note for note in summary.notes)
    with Atlas.open(tmp_path / "atlas.db") as atlas:
        for latent in fires[:8]:
            found = atlas.contexts("l2", latent, limit=100)
            expected = sorted(scan.contexts("l2", latent, 20), key=lambda c: -c.max_activation)
            assert [(c.name, c.tokens, c.peak) for c in found] == [
                (c.text_id, c.tokens, c.max_activation) for c in expected
            ]
            assert {(c.kind, c.half) for c in found} == {("top", "")}


def test_more_comes_later(results: Path, built: Atlas, tmp_path: Path) -> None:
    """An atlas of a contrast gets explanations, then scores; the scan of the explanations is found by itself."""
    path = tmp_path / "atlas.db"
    build_atlas(path, scans=[Scan.open(results / "scan")], contrasts=[results / "contrast"], landscape=False)
    with Atlas.open(path) as atlas:
        assert (atlas.overview().features, atlas.overview().explained) == (12, 0)
        assert atlas.counts()["contexts"] > 0
    one = FeatureSet(features=(Feature(sae="l2", latent=5, sign=1),))
    summary = build_atlas(path, explained=[results / "explained"], features=[one], landscape=False)
    assert summary.features == len({5, *read_explanations_of(results)})
    build_atlas(path, simulated=[results / "simulated"], landscape=False)
    with Atlas.open(path) as atlas:
        for latent in read_explanations_of(results):
            found, expected = atlas.feature("l2", latent), built.feature("l2", latent)
            assert found.card.model_dump(exclude={"id", "rating"}) == expected.card.model_dump(exclude={"id", "rating"})
            assert len(found.simulations) == 1
            assert atlas.contexts("l2", latent, limit=999) == built.contexts("l2", latent, limit=999)


def test_the_first_scan_tells_of_features(results: Path, tmp_path: Path) -> None:
    """Of two scans with the same SAE; and contexts of explanations are not touched by a scan that comes later."""
    first, fewer = Scan.open(results / "scan"), tmp_path / "fewer"
    pairs = [f"--pairs=safety={results / 'pairs' / 'safety.jsonl'}"]
    done(
        call(
            "scan", "run", "--model", results / "model", f"--sae=l2={results / 'sae'}", *pairs, "--out", fewer, "--json"
        )
    )
    second, path = Scan.open(fewer), tmp_path / "atlas.db"
    explained = {"explained": [results / "explained"], "landscape": False}
    build_atlas(path, scans=[second, first], **explained)
    with Atlas.open(path) as atlas:
        assert [run.kind for run in atlas.runs()] == ["scan", "scan", "explain"]
        firings = {f.card.latent: f.firings for f in atlas.iter_features()}
        assert firings == {i: second.feature_stats("l2").count[i] for i in firings}
        assert any(first.feature_stats("l2").count[i] != n for i, n in firings.items())
        contexts = {i: atlas.contexts("l2", i, limit=999) for i in firings}
    build_atlas(path, scans=[first], everything=True, landscape=False)
    with Atlas.open(path) as atlas:
        assert {i: atlas.contexts("l2", i, limit=999) for i in firings} == contexts
        assert atlas.overview().features > len(firings)


def test_explanations_that_changed_are_replaced(results: Path, tmp_path: Path) -> None:
    folder, path = Path(shutil.copytree(results / "explained", tmp_path / "explained")), tmp_path / "atlas.db"
    (folder / "explained.json").unlink()
    build_atlas(path, scans=[Scan.open(results / "scan")], explained=[folder], landscape=False)
    key = read_manifest_key(results)
    build_atlas(path, explained=[results / "explained"], simulated=[results / "simulated"], landscape=False)
    with Atlas.open(path) as atlas:
        latent = next(iter(read_explanations_of(results)))
        found = atlas.feature("l2", latent)
        assert len(found.explanations) == 2  # two runs
        mine = {e.run: e.id for e in found.explanations}
        assert [s.explanation for s in found.simulations] == [mine[key]]


def test_explanations_that_were_asked_for_again(results: Path, tmp_path: Path) -> None:
    """The same run with other files, as after --retry-failed: texts are replaced where they are, scores keep their
    explanations, and what is gone from the files goes."""
    folder, path = Path(shutil.copytree(results / "explained", tmp_path / "explained")), tmp_path / "atlas.db"
    given = {"explained": [folder], "simulated": [results / "simulated"], "landscape": False}
    build_atlas(path, scans=[Scan.open(results / "scan")], **given)
    lines = (folder / "explanations.jsonl").read_text(encoding="utf-8").splitlines()
    changed = [json.loads(line) for line in lines[:-1]]
    first, last = changed[0]["latent"], json.loads(lines[-1])["latent"]
    changed[0] |= {"text": "Something else.", "reason": "", "rating_reason": "why"}
    (folder / "explanations.jsonl").write_text("".join(json.dumps(row) + "\n" for row in changed), encoding="utf-8")
    manifest = json.loads((folder / "explained.json").read_text())
    manifest["files"]["explanations.jsonl"] = file_digest(folder / "explanations.jsonl")
    (folder / "explained.json").write_text(json.dumps(manifest))
    with Atlas.open(path) as atlas:
        before = atlas.feature("l2", first).explanations[0].id
    assert len(build_atlas(path, **given).written) == 1
    with Atlas.open(path) as atlas:
        found = atlas.feature("l2", first)
        assert [(e.id, e.text) for e in found.explanations] == [(before, "Something else.")]
        assert found.card.label == "Something else."
        assert [s.explanation for s in found.simulations] == [before]
        assert atlas.feature("l2", last).explanations == ()
        assert atlas.feature("l2", last).card.state is None
        assert [c.latent for c in atlas.find(Query(words='"something else"')).cards] == [first]


def read_manifest_key(results: Path) -> str:
    return str(json.loads((results / "explained" / "explained.json").read_text())["key"])


def test_a_run_of_the_recipe(results: Path, tmp_path: Path) -> None:
    """The folders that `seamark demo` leaves, of which those with noisy labels are passed over."""
    run = tmp_path / "run"
    for name, to in (("scan", "scan/scan"), ("sae", "sae/sae"), ("effects", "effects")):
        shutil.copytree(results / name, run / "clean" / to)
    features = FeatureSet.load(results / "contrast" / "features.json")
    rated = features.with_ratings({f.key: (i % 5 + 1, f"because {i}") for i, f in enumerate(features.features)})
    provenance = {**rated.provenance, "rating_method": "statistical"}
    rated = FeatureSet(features=rated.features, provenance=provenance)
    rated.save(run / "clean" / "features" / "candidates.json")
    rated.strongest(4).save(run / "clean" / "features" / "features.json")
    shutil.copytree(run / "clean", run / "noisy-0")
    (run / "noisy-0" / "scan" / "scan" / "scan.json").write_text("{}")
    code, out, err = call("atlas", "build", "--run", run, "-o", tmp_path / "atlas.db", "--json")
    assert code == 0, err
    found = json.loads(out)
    assert (found["features"], found["explained"], found["layouts"]) == (12, 0, ["decoder"])
    with Atlas.open(tmp_path / "atlas.db") as atlas:
        assert [run.kind for run in atlas.runs()] == ["scan", "contrast", "effects", "neighbours", "landscape decoder"]
        for i, f in enumerate(features.features):
            detail = atlas.feature("l2", f.latent)
            assert [(r.rater, r.rating, r.reason) for r in detail.ratings] == [
                ("statistical", i % 5 + 1, f"because {i}")
            ]
            assert detail.card.rating == i % 5 + 1
            assert [e.kind for e in detail.evidence][:1] == [f"contrast:{GROUP}"]


def damaged(results: Path, to: Path, name: str) -> dict[str, Any]:
    """What is given to `build_atlas`, with something wrong."""
    scan = Scan.open(results / "scan")
    explained = Path(shutil.copytree(results / "explained", to / "explained"))
    effects, rated = to / "effects.json", to / "rated"
    rated.mkdir()
    if name == "changed file":
        (explained / "explanations.jsonl").write_text("")
    effects.write_text({"latent": '{"64": {"value": 1.0}}', "effects": '{"x": 1}'}.get(name, "{"))
    (rated / "ratings.jsonl").write_text("not json\n")
    other = SparseAutoencoder(sae_config(d_in=32, d_sae=64, k=6, hookpoint="layers.2"), seed=1)
    features = FeatureSet(features=(Feature(sae="nobody", latent=1, sign=1),))
    cases: dict[str, dict[str, Any]] = {
        "nothing": {}, "no feature": {"scans": [scan]}, "changed file": {"explained": [explained]},
        "no folder": {"explained": [to / "none"]}, "no simulations": {"simulated": [explained]},
        "no ratings": {"rated": [explained]}, "bad ratings": {"rated": [rated]},
        "unknown SAE": {"scans": [scan], "features": [features]},
        "latent": {"scans": [scan], "effects": [("l2", effects)]},
        "effects": {"effects": [("l2", effects)]}, "no JSON": {"effects": [("l2", effects)]},
        "other SAE": {"scans": [scan], "everything": True, "suite": {"l2": other}},
        "no feature set": {"contrasts": [explained / "explained.json"]},
    }  # fmt: skip
    return cases[name]


@pytest.mark.parametrize(("name", "kind", "message"), [
    ("nothing", ConfigError, "nothing to build"), ("no feature", DataError, "no feature is explained"),
    ("changed file", DataError, "do not belong together"), ("no folder", ConfigError, "no explanations here"),
    ("no simulations", ConfigError, "no simulations"), ("no ratings", ConfigError, "no ratings"),
    ("bad ratings", FormatError, "line 1: not the ratings"), ("unknown SAE", DataError, "'nobody'"),
    ("latent", DataError, "no latent 64; there are 64"), ("effects", FormatError, "not the effects"),
    ("no JSON", FormatError, "not the effects"), ("other SAE", ConfigError, "not the autoencoder of the scan"),
    ("no feature set", FormatError, "not a feature set"),
])  # fmt: skip
def test_what_can_be_wrong(results: Path, tmp_path: Path, name: str, kind: type[SeamarkError], message: str) -> None:
    with pytest.raises(kind, match=message):
        build_atlas(tmp_path / "atlas.db", **damaged(results, tmp_path, name))
    if (tmp_path / "atlas.db").exists():  # what was committed before can be read
        with Atlas.open(tmp_path / "atlas.db") as atlas:
            assert atlas.find(Query()).total == 0


def test_landscapes_of_an_imported_atlas(built: Atlas, tmp_path: Path) -> None:
    path = Path(shutil.copy(built.path, tmp_path / "atlas.db"))
    summary = add_landscapes(path, seed=3)
    assert summary.written == ("Landscape of explanations",)
    with Atlas.open(path) as atlas:
        assert atlas.layout_about("explanations")["seed"] == 3
    narrow = SparseAutoencoder(sae_config(d_in=32, d_sae=4, k=2, hookpoint="layers.2"), seed=1)
    with pytest.raises(DataError, match="is in the atlas; this autoencoder has 4"):
        add_landscapes(path, {"l2": narrow})


def test_coarse_histograms() -> None:
    for n in (1, 2, 31, 32, 33, 64, 65, 500):
        counts, edges = np.arange(1, n + 1), 2.0 ** np.arange(n + 1) if n < 50 else np.arange(n + 1.0)
        found = coarse(edges, counts)
        assert found is not None
        assert len(found.counts) <= 32
        assert sum(found.counts) == counts.sum()
        assert (found.edges[0], found.edges[-1]) == pytest.approx((edges[0], edges[-1]), rel=1e-5)
        assert len(found.edges) == len(found.counts) + 1
    assert coarse(np.empty(0), np.empty(0, np.int64)) is None


def test_kill_9_during_a_build(results: Path, tmp_path: Path) -> None:
    path, rng = tmp_path / "atlas.db", random.Random(1)
    features = []
    with writers(path, results) as processes:
        for commits in (1, 3, 2, 6):
            processes.run(commits=commits, seconds=rng.uniform(0.0, 0.02))
            with Atlas.open(path) as atlas:
                features.append(atlas.counts()["features"])
                assert sum(1 for _ in atlas.iter_features()) == features[-1] == atlas.overview().features
        processes.run(end=True)
        built = content(path)
        path.unlink()
        processes.run(end=True)
    assert features == sorted(features)
    assert features[0] < features[-1]  # it was killed in the middle, too
    assert built == content(path)
