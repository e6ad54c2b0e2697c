"""The atlas's benchmark: claims from rows, and its stages without a server on a few features."""

from __future__ import annotations

import sys
from itertools import chain
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks import atlas
from benchmarks.atlases import building, made, served
from benchmarks.atlases.job import Job
from benchmarks.harness import BenchmarkError
from seamark.atlas import Atlas, Query

N = 300


def rows(**changes):
    found = {
        "search": [{"p95_ms": v} for v in (30.0, 40.0, 20.0)],
        "pages": [{"features_ms": 300.0, "landscape_ready_ms": 900.0}],
        "build": [{"features_per_s": 6000.0}],
        "memory": [{"features_per_s": 4000.0}],
    }
    return found | changes


def by_name(claims):
    return {c.name: c for c in claims}


def test_claims_are_medians_against_their_targets():
    found = by_name(atlas.claims(rows(), {}))
    assert list(found) == list(atlas.CLAIMS)
    assert {n: (c.value, c.holds) for n, c in found.items()} == {
        "search_p95_ms": (30.0, True), "first_page_ms": (300.0, True), "landscape_ready_ms": (900.0, True),
        "build_features_per_s": (6000.0, True), "write_features_per_s": (4000.0, False),
    }  # fmt: skip
    assert (found["search_p95_ms"].low, found["search_p95_ms"].high, found["search_p95_ms"].n) == (20.0, 40.0, 3)


def test_what_failed_is_told_and_never_zero():
    found = by_name(atlas.claims(rows(search=[], pages=[]), {"pages": "no Chromium on this machine"}))
    for name, why in (("first_page_ms", "no Chromium"), ("search_p95_ms", "not run")):
        assert found[name].value is None
        assert found[name].holds is None
        assert why in found[name].reason
    assert found["build_features_per_s"].value == 6000.0


def test_a_stage_that_fails_leaves_the_others(tmp_path, monkeypatch):
    """And what an earlier run left is cleared first."""
    (tmp_path / "atlas").mkdir()
    (tmp_path / "atlas" / "old.db").write_text("old")
    asked = []

    def stage(job, name, round_=0):
        asked.append((name, round_))
        if name == "pages":
            raise BenchmarkError("no Chromium on this machine")
        return {"mb": 1.0, "seconds": 1.0, "features_per_s": 5000.0 + round_, "p95_ms": 10.0, "others_cpu": 0.0}

    monkeypatch.setattr(atlas, "_stage", stage)
    result = atlas.run(2, features=N, folder=tmp_path / "atlas")
    assert not (tmp_path / "atlas" / "old.db").exists()
    assert sorted(asked) == sorted([("files", 0), ("layout", 0), ("pages", 0)] + [
        (name, i) for name in ("memory", "build", "floor", "search") for i in range(2)
    ])  # fmt: skip
    found = by_name(result.claims)
    assert found["write_features_per_s"].value == 5000.5
    assert found["first_page_ms"].value is None
    assert result.settings["failed"] == {"pages": "no Chromium on this machine"}


def test_features_are_made_the_same_every_time_and_differ():
    some = list(chain.from_iterable(made.Made(N).portions(100)))
    assert some == list(chain.from_iterable(made.Made(N).portions(100)))
    assert len({(f.sae, f.latent) for f in some}) == len({f.text for f in some}) == N
    contexts = [context for f in some for context in f.contexts]
    assert len(contexts) == len({tuple(tokens) for tokens, _ in contexts}) == N * made.CONTEXTS
    assert {(len(tokens), len(values)) for tokens, values in contexts} == {(made.TOKENS, made.TOKENS)}
    assert all(0 < sum(v > 0 for v in values) <= 4 for _, values in contexts)
    words, counts = np.unique([word.strip() for tokens, _ in contexts for word in tokens], return_counts=True)
    assert set(words) <= set(made.Made(N).words)
    common = counts[np.argsort(-counts)]
    assert 1.4 < common[0] / common[1] < 3  # a Zipf law: the first word is twice as frequent as the second
    assert 0.25 < np.mean([bool(f.tags) for f in some]) < 0.55


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    return Job("", str(tmp_path_factory.mktemp("atlas")), features=N, from_files=N)


def test_the_stages_without_a_server(job):
    assert building.files(job)["mb"] > 1
    written, built = building.memory(job), building.build(job)
    assert written["features_per_s"] == pytest.approx(N / written["seconds"])
    assert built["features_per_s"] == pytest.approx(N / built["seconds"])
    assert building.layout(job)["points"] == N
    with Atlas.open(job.atlas) as found:
        counts = found.counts()
        assert (counts["features"], counts["contexts"], counts["texts"]) == (N, N * 20, N * 20)
        assert counts["explanations"] == 2 * N
        assert len(found.points("decoder").ids) == N


def test_queries_differ_between_rounds_and_are_understood(job):
    asked = served.queries(job)
    assert len(asked) == served.QUERIES
    assert asked == served.queries(job)
    assert asked != served.queries(Job("", job.folder, features=N, round=1))
    with Atlas.open(job.atlas) as found:
        hits = [found.find(Query(**query)).total > 0 for query in asked]
    assert np.mean(hits) > 0.5
