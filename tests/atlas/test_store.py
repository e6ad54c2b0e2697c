"""What is written into an atlas comes back out, and what lists show follows from it."""

from __future__ import annotations

import math
import sqlite3
import sys
import threading
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_features import FeatureRow, Made, add, make, sae, write

from seamark.atlas import (
    Atlas,
    AtlasWriter,
    ContextRow,
    EvidenceRow,
    ExplanationRow,
    NeighbourRow,
    Query,
    RatingRow,
    Run,
    SimulationRow,
)
from seamark.atlas.records import Histogram
from seamark.atlas.texts import list_json, to_json
from seamark.errors import ConfigError, DataError, FormatError, RunError, SeamarkError
from seamark.explain.taxonomy import Tag
from seamark.stats import Estimate

HOSTILE = {
    "nul": "before\0after", "bidi": "abc\u202edef", "half": "\ud800 and \udfff", "script": "<script>alert(1)</script>",
    "sql": "'); DROP TABLE features; --", "quote": '"\\\n\t', "chinese": "扬声器", "space": " ",
    "long": "x" * 1_000_000,
}  # fmt: skip
RUN = Run(
    id="run/1'\"", kind="test", title="A run", created="2025-01-01T00:00:00+00:00", manifest={"a": [1, None, "港"]}
)
FULL = Estimate(value=0.25, low=0.1, high=0.4, n=30)


@pytest.fixture
def writer(tmp_path: Path) -> Any:
    with AtlasWriter.open(tmp_path / "atlas.db", create=True) as w:
        w.add_run(RUN)
        yield w


def one_feature(w: AtlasWriter, latent: int = 7, **measured: Any) -> int:
    return w.add_features(w.add_sae(sae("s", 5)), [FeatureRow(latent, **measured)])[latent]


def test_everything_comes_back(writer: AtlasWriter) -> None:
    w = writer
    other = one_feature(w, 8)
    feature = one_feature(w, firings=12, share=0.01, mean=0.5, max=3.0, texts=4, q=2.5, promoted=(" a", "b"),
                          suppressed=("c",), histogram=Histogram(edges=(0.0, 1.0, 2.0), counts=(3, 4)))  # fmt: skip
    tags = (Tag("violence", "physical"), Tag("politics"))
    said = ExplanationRow(feature, "Harbours.", RUN.id, "llm", model="gpt", prompt_version="v1", tags=tags, rating=4,
                          rating_reason="why", tokens_in=5, tokens_out=6, cost=0.5)  # fmt: skip
    failed = ExplanationRow(feature, None, RUN.id, "lexical", reason="no texts", language="en")
    masked = ExplanationRow(feature, "***", RUN.id, "imported", state="masked", language="zh")
    first, _, _ = w.add_explanations([said, failed, masked])
    w.add_simulations([SimulationRow(feature, RUN.id, "segment", "llm", FULL, Estimate(value=0.8, n=40), first, "gpt",
                                     "s1", 40, 30, 2, 7, 8, 0.25)])  # fmt: skip
    w.add_ratings(
        [RatingRow(feature, "human:ann", 5, RUN.id, "clear"), RatingRow(feature, "statistical", None, RUN.id)]
    )
    w.add_evidence([EvidenceRow(feature, "contrast:safety", FULL, RUN.id),
                    EvidenceRow(feature, "direct_effect", Estimate.not_available("no Q_f", 9), RUN.id)])  # fmt: skip
    w.add_neighbours([NeighbourRow(feature, 0, other, 0.75)])
    found = w.feature("s", 7)
    assert found.sae.model_dump() == sae("s", 5, features=2).model_dump()
    assert (found.firings, found.mean, found.texts, found.q_reason) == (12, 0.5, 4, "")
    assert (found.promoted, found.suppressed) == ((" a", "b"), ("c",))
    assert found.histogram == Histogram(edges=(0.0, 1.0, 2.0), counts=(3, 4))
    assert [e.state for e in found.explanations] == ["text", "masked", "failed"]
    expected = {name: getattr(said, name) for name in said._fields if name not in ("feature", "state")}
    assert found.explanations[0].model_dump(include=set(expected)) | {"tags": tags} == expected
    assert (found.explanations[2].text, found.explanations[2].reason) == (None, "no texts")
    (simulation,) = found.simulations
    assert (simulation.correlation, simulation.explanation) == (FULL, first)
    assert (simulation.accuracy.value, simulation.n_texts, simulation.n_units, simulation.n_failed) == (0.8, 40, 30, 2)
    assert (simulation.tokens_in, simulation.tokens_out, simulation.cost) == (7, 8, 0.25)
    assert [(r.rater, r.rating, r.reason) for r in found.ratings] == [
        ("human:ann", 5, "clear"),
        ("statistical", None, ""),
    ]
    assert {e.kind: e.estimate for e in found.evidence} == {
        "contrast:safety": FULL, "direct_effect": Estimate.not_available("no Q_f", 9),
    }  # fmt: skip
    assert [(n.card.latent, n.cosine) for n in found.neighbours] == [(8, 0.75)]
    card = found.card
    assert card == w.card("s", 7)
    assert (card.label, card.state, card.domains) == ("Harbours.", "text", ("politics", "violence"))
    assert (card.score, card.rating, card.sign, card.contrast) == (0.25, 5, 1, 0.25)
    assert (card.share, card.q, card.max, card.layer) == (0.01, 2.5, 3.0, 5)
    assert w.cards([other, 999, feature, -1, 2**70]) == [w.card("s", 8), card]
    assert w.runs() == (RUN,)
    with Atlas.open(w.path) as reader:
        assert reader.feature("s", 7) == found


def test_what_is_not_there(writer: AtlasWriter) -> None:
    one_feature(writer)
    assert writer.card("s", 9) is None
    assert writer.card("nobody", 7) is None
    assert writer.card("s", -1) is writer.card("s", 2**70) is None
    for name, latent in (("s", 9), ("x", 7), ("s", 2**70)):
        with pytest.raises(DataError, match="no feature"):
            writer.feature(name, latent)
    assert writer.contexts("s", 7) == writer.contexts("s", 2**70) == []
    with pytest.raises(DataError, match="no landscape"):
        writer.points("decoder")
    with pytest.raises(ConfigError, match="at once"):
        writer.cards(range(1001))


@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_lists_follow_from_the_tables(tmp_path_factory: pytest.TempPathFactory, seed: int) -> None:
    features = make(25, seed)
    with Atlas.open(write(tmp_path_factory.mktemp("derived") / "atlas.db", features)) as atlas:
        for f in features:
            assert_derived(atlas, f)


def assert_derived(atlas: Atlas, f: Made) -> None:
    card = atlas.card(f.sae, f.latent)
    assert card is not None
    shown = f.shown[0] if f.shown else None
    assert (card.label, card.state) == ((shown.text, shown.state) if shown else (None, None))
    assert (card.score, card.rating, card.contrast, card.sign) == (f.score, f.rating, f.contrast, f.sign)
    assert (card.domains, card.share, card.layer) == (f.domains, f.share, f.layer)
    assert [e.id for e in atlas.feature(f.sae, f.latent).explanations] == [s.number for s in f.shown]


def test_lists_follow_later_changes(tmp_path: Path) -> None:
    """A second transaction changes what the first one derived; nobody calls `refresh`."""
    features = make(40, 3)
    path = write(tmp_path / "atlas.db", features)
    with AtlasWriter.open(path) as w:
        for f in features:
            f.contrasts["safety"] = -0.5
            f.rated.append(("human:late", 2))
            w.add_evidence([EvidenceRow(f.id, "contrast:safety", Estimate(value=-0.5), "one")])
            w.add_ratings([RatingRow(f.id, "human:late", 2, "one")])
            assert_derived(w, f)
        w.clear_run("two")
        for f in features:
            for s in f.said:
                s.scores = s.scores if s.run == "one" else {}
            assert_derived(w, f)
        w.clear_explanations("one")
        for f in features:
            f.said = [s for s in f.said if s.run != "one"]
            assert_derived(w, f)
        found = {card.id for card in w.find(Query(words='"bread"', limit=500)).cards}
        assert found == {f.id for f in features if "bread" in f.tokens}
        before = w.overview()
        w.refresh()
        assert w.overview() == before


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10_000), n=st.integers(0, 60))
def test_the_overview_counts(tmp_path_factory: pytest.TempPathFactory, seed: int, n: int) -> None:
    features = make(n, seed)
    with Atlas.open(write(tmp_path_factory.mktemp("counts") / "atlas.db", features)) as atlas:
        o = atlas.overview()
    scores = [f.score for f in features if f.score is not None]
    assert (o.features, o.scored) == (n, len(scores))
    assert o.explained == sum(f.explained for f in features)
    assert o.tagged == sum(bool(f.domains) for f in features)
    assert o.rated == sum(f.rating is not None for f in features)
    assert (o.mean_score, o.max_score) == pytest.approx((np.mean(scores), max(scores))) if scores else (None, None)
    assert {c.name: c.count for c in o.layers} == Counter(str(f.layer) for f in features)
    assert {c.name: c.count for c in o.domains} == Counter(d for f in features for d in f.domains)
    assert {c.name: c.count for c in o.rating_counts} == Counter(str(f.rating) for f in features if f.rating)
    concepts = Counter(str(t) for f in features for t in {t for s in f.said for t in s.tags} if t.concept)
    assert {c.name: c.count for c in o.concepts} == concepts
    assert {(layer, d): k for layer, d, k in o.layer_domains} == Counter(
        (str(f.layer), d) for f in features for d in f.domains
    )
    for one in o.languages:
        mine = [[s for s in f.said if s.language == one.language] for f in features]
        assert one.features == sum(bool(m) for m in mine)
        assert one.tagged == sum(any(s.tags for s in m) for m in mine)
        assert one.masked == sum(any(s.state == "masked" for s in m) for m in mine)
        assert one.null == sum(any(s.state == "null" for s in m) for m in mine)
        assert {c.name: c.count for c in one.domains} == Counter(
            d for m in mine for d in {t.domain for s in m for t in s.tags}
        )
    assert {one.language for one in o.languages} == {s.language for f in features for s in f.said}
    assert {s.id: s.features for s in o.saes} == Counter(f.sae for f in features)
    if o.score_histogram is None:
        assert not scores
    else:
        edges, counts = o.score_histogram.edges, o.score_histogram.counts
        assert sum(counts) == len(scores)
        inside = [sum(low <= v < high or v == high == 1 for v in scores) for low, high in pairwise(edges)]
        assert list(counts) == inside


def test_the_overview_is_of_now(tmp_path: Path) -> None:
    path = write(tmp_path / "atlas.db", make(5))
    with Atlas.open(path) as reader, AtlasWriter.open(path) as w:
        before = reader.overview()
        assert reader.overview() is before
        w.mark("scan", "pair", "wrong", "")  # which is not counted there
        assert reader.overview() is before
        one_feature(w)
        assert reader.overview().features == before.features + 1


def test_contexts_come_back_in_their_order(writer: AtlasWriter) -> None:
    feature, other = one_feature(writer), one_feature(writer, 9)
    tokens = ("Old", " harbour", " 港", "\0", ".")

    def row(kind: str, rank: int, peak: float, level: int = 0, half: str = "explain", name: str = "") -> ContextRow:
        return ContextRow(feature, kind, rank, name or f"{kind}{level}{half}{rank}", tokens, (0, peak, 0, peak / 2, 0),
                          level, half, "safety")  # fmt: skip

    rows = [
        row("silent", 0, 0.0), row("near_miss", 0, 0.0), row("level", 0, 1.0, 2), row("level", 0, 5.0, 10),
        row("level", 1, 4.5, 10), row("top", 1, 4.0), row("top", 0, 5.0), row("top", 0, 4.5, half="simulate"),
    ]  # fmt: skip
    writer.add_contexts(rows)
    writer.add_contexts([row("top", 0, 5.0)._replace(feature=other)])
    found = writer.contexts("s", 7)
    assert [(c.kind, c.level, c.half, c.peak) for c in found] == [
        ("top", 0, "explain", 5.0), ("top", 0, "simulate", 4.5), ("top", 0, "explain", 4.0),
        ("level", 10, "explain", 5.0), ("level", 10, "explain", 4.5), ("level", 2, "explain", 1.0),
        ("near_miss", 0, "explain", 0.0), ("silent", 0, "explain", 0.0),
    ]  # fmt: skip
    assert found[0].tokens == tokens
    assert found[0].activations == (0.0, 5.0, 0.0, 2.5, 0.0)
    assert (found[0].name, found[0].source) == ("top0explain0", "safety")
    assert [c.peak for c in writer.contexts("s", 7, "level", limit=2)] == [5.0, 4.5]
    assert [c.half for c in writer.contexts("s", 7, half="simulate")] == ["simulate"]
    assert writer.counts()["texts"] == 8  # a text of two features lies there once
    writer.add_contexts([row("top", 0, 6.0, name="new")])
    assert writer.contexts("s", 7)[0].name == "new"
    writer.clear_contexts([feature])
    assert writer.contexts("s", 7) == []
    assert len(writer.contexts("s", 9)) == 1


@settings(max_examples=60, deadline=None)
@given(values=st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), max_size=30))
def test_activations_are_kept_to_the_last_bit(values: list[float]) -> None:
    from seamark.atlas.details import pack_activations, unpack_activations

    assert unpack_activations(pack_activations(values)[1], len(values)) == tuple(0.0 if v == 0 else v for v in values)


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_texts_are_kept_as_they_are(writer: AtlasWriter, name: str) -> None:
    """But for halves of surrogate pairs, which UTF-8 cannot say and which become marks."""
    text = HOSTILE[name]
    marked = text.replace("\ud800", "⟦U+D800⟧").replace("\udfff", "⟦U+DFFF⟧")
    number = writer.add_sae(sae(text, 5, model=text))
    writer.add_run(Run(id=text, kind=text, title=text, created=text, manifest={text: text}))
    feature = writer.add_features(number, [FeatureRow(7, q_reason=text, promoted=(text,))])[7]
    writer.add_explanations([ExplanationRow(feature, text, marked, "llm", language=text[:50], model=text,
                                            rating_reason=text, tags=(Tag(text, text),))])  # fmt: skip
    writer.add_contexts([ContextRow(feature, "top", 0, text, (text, " b"), (1.0, 0.0), source=text)])
    with Atlas.open(writer.path) as atlas:
        found = atlas.feature(text, 7)
        assert found.sae.id == found.sae.model == found.q_reason == marked
        assert found.promoted == (marked,)
        (e,) = found.explanations
        assert (e.text, e.model, e.rating_reason, e.run) == (marked, marked, marked, marked)
        assert e.tags == (Tag(marked, marked),)
        assert found.card.label == (marked if len(marked) <= 2000 else f"{marked[:1999]}…")
        (context,) = atlas.contexts(text, 7)
        assert (context.tokens, context.name, context.source) == ((marked, " b"), marked, marked)
        run = atlas.runs()[-1]
        assert (run.id, run.title, run.manifest) == (marked, marked, {marked: marked})
        domain = found.card.domains[0]
        assert atlas.find(Query(domain=domain)).total == atlas.find(Query(domain=text)).total == 1
        assert atlas.find(Query(language=text[:50], sae=text)).total == 1
        for value in (found, context, run, atlas.overview()):
            assert value.model_dump_json()


def explain(w: AtlasWriter, feature: int, text: str | None = "a", run: str = RUN.id, state: Any = None) -> None:
    w.add_explanations([ExplanationRow(feature, text, run, "llm", state=state)])


def score(w: AtlasWriter, feature: int, value: float) -> None:
    w.add_simulations([SimulationRow(feature, RUN.id, "token", "llm", Estimate(value=value), FULL)])


def show(w: AtlasWriter, feature: int, *activations: float, kind: Any = "top", level: int = 0) -> None:
    w.add_contexts([ContextRow(feature, kind, 0, "t", ("a",), activations, level)])


BAD_ROWS: dict[str, tuple[Any, str]] = {
    "latent beyond": (lambda w, f: w.add_features(0, [FeatureRow(4096)]), "no latent 4096; there are 4,096"),
    "latent below": (lambda w, f: w.add_features(0, [FeatureRow(-1)]), "no latent -1"),
    "no such SAE": (lambda w, f: w.add_features(9, [FeatureRow(1)]), "no autoencoder 9"),
    "NaN": (lambda w, f: w.add_features(0, [FeatureRow(1, q=math.nan)]), "q of latent 1 is nan"),
    "no such feature": (lambda w, f: explain(w, 99), "does not fit"),
    "no such run": (lambda w, f: explain(w, f, run="x"), "does not fit"),
    "rating": (lambda w, f: w.add_ratings([RatingRow(f, "ann", 6, RUN.id)]), "does not fit"),
    "text and state": (lambda w, f: explain(w, f, state="null"), "state null"),
    "no text": (lambda w, f: explain(w, f, None, state="text"), "state text"),
    "state": (lambda w, f: explain(w, f, state="odd"), "does not fit"),
    "correlation": (lambda w, f: score(w, f, 1.5), "outside"),
    "NaN correlation": (lambda w, f: score(w, f, math.nan), "outside"),
    "infinite evidence": (lambda w, f: w.add_evidence([EvidenceRow(f, "k", Estimate(value=math.inf), RUN.id)]), "inf"),
    "infinite activation": (lambda w, f: show(w, f, math.inf), "finite"),
    "huge activation": (lambda w, f: show(w, f, 1e300), "no activations"),
    "lengths": (lambda w, f: show(w, f, 1.0, 2.0), "as many"),
    "level": (lambda w, f: show(w, f, 1.0, kind="level", level=11), "does not fit"),
    "kind": (lambda w, f: show(w, f, 1.0, kind="odd"), "does not fit"),
    "neighbour": (lambda w, f: w.add_neighbours([NeighbourRow(f, 0, 99, 0.5)]), "does not fit"),
    "point": (lambda w, f: w.set_layout("x", {}, [99], [0.0], [0.0]), "does not fit"),
    "other SAE": (lambda w, f: w.add_sae(sae("s", 5, d_sae=8)), "other d_sae"),
    "other place": (lambda w, f: w.add_sae(sae("s", 6)), "other hookpoint, layer"),
    "other weights": (lambda w, f: w.add_sae(sae("s", 5, fingerprint="x")), "other fingerprint"),
}


@pytest.mark.parametrize("name", BAD_ROWS)
def test_what_does_not_fit_is_refused_whole(writer: AtlasWriter, name: str) -> None:
    do, message = BAD_ROWS[name]
    feature = one_feature(writer)
    before = dump(writer)
    with pytest.raises(DataError, match=message):
        do(writer, feature)
    assert dump(writer) == before
    with pytest.raises(DataError):
        in_one_transaction(writer, lambda: (one_feature(writer, 100), do(writer, feature)))
    assert dump(writer) == before
    one_feature(writer, 101)  # it goes on after that


def in_one_transaction(writer: AtlasWriter, do: Any) -> None:
    with writer.transaction():
        do()


def dump(atlas: Atlas) -> list[str]:
    """All that is in the file, but for the count of changes."""
    db = sqlite3.connect(atlas.path)
    lines = [line for line in db.iterdump() if "search_" not in line and "'changes'" not in line]
    db.close()
    return lines


def test_a_failed_transaction_forgets_its_texts(writer: AtlasWriter) -> None:
    """Texts are written once; one that was rolled back is not there."""
    feature = one_feature(writer)
    row = ContextRow(feature, "top", 0, "t", ("a",), (1.0,))
    with pytest.raises(ZeroDivisionError):
        in_one_transaction(writer, lambda: (writer.add_contexts([row]), 1 // 0))
    writer.add_contexts([row])
    assert len(writer.contexts("s", 7)) == 1


def test_rows_are_replaced_not_doubled(writer: AtlasWriter) -> None:
    w = writer
    feature = one_feature(w, share=0.5, q_reason="rare")
    assert one_feature(w, share=None, max=2.0) == feature
    assert (w.feature("s", 7).card.share, w.feature("s", 7).card.max, w.feature("s", 7).q_reason) == (0.5, 2.0, "rare")
    one_feature(w, q=3.0)
    assert (w.feature("s", 7).card.q, w.feature("s", 7).q_reason) == (3.0, "")
    row = ExplanationRow(feature, "First.", RUN.id, "llm", tags=(Tag("terror"),))
    (number,) = w.add_explanations([row])
    score = SimulationRow(feature, RUN.id, "token", "llm", FULL, FULL, number)
    w.add_simulations([score, score._replace(explanation=None)])
    assert w.add_explanations([row._replace(text="Second.", tags=(Tag("politics"),))]) == [number]
    w.add_simulations([score._replace(correlation=Estimate(value=-0.5)), score._replace(explanation=None)])
    for _ in range(2):
        w.add_ratings([RatingRow(feature, "ann", 3, RUN.id)])
        w.add_evidence([EvidenceRow(feature, "k", FULL, RUN.id)])
        w.add_neighbours([NeighbourRow(feature, 0, one_feature(w, 8), 0.5)])
        w.set_layout("plane", {"n": 1}, [feature], [0.0], [1.0], RUN.id)
        w.add_run(RUN)
    found = w.feature("s", 7)
    assert [(e.text, e.tags) for e in found.explanations] == [("Second.", (Tag("politics"),))]
    assert sorted(s.correlation.value or 0 for s in found.simulations) == [-0.5, 0.25]
    assert (len(found.ratings), len(found.evidence), len(found.neighbours), len(w.runs())) == (1, 1, 1, 1)
    assert found.card.score == -0.5
    assert w.layouts() == ("plane",)


def test_what_was_not_known_of_an_autoencoder_is_added(writer: AtlasWriter) -> None:
    number = writer.add_sae(sae("s", 5, d_sae=None, fingerprint="", k=None, activation=None))
    assert writer.add_sae(sae("s", 5)) == number
    assert writer.add_sae(sae("s", 5, d_sae=None, fingerprint="")) == number
    assert writer.saes() == (sae("s", 5, number=number),)
    assert writer.add_sae(sae("t", 5)) == number + 1
    writer.add_model("m/one", "print")
    with pytest.raises(DataError, match="another model"):
        writer.add_model("m/one", "other")


def test_landscapes(writer: AtlasWriter) -> None:
    ids = [one_feature(writer, i) for i in range(4)]
    writer.add_explanations([ExplanationRow(ids[2], "x", RUN.id, "llm", tags=(Tag("violence"), Tag("cult")))])
    writer.add_simulations([SimulationRow(ids[2], RUN.id, "token", "llm", FULL, FULL)])
    writer.set_layout(
        "decoder", {"seed": 1}, ids[::-1], [0.1, 0.2, np.nan, 0.4], np.array([1, 2, 3, 4], np.float32), RUN.id
    )
    points = writer.points("decoder")
    assert points.ids.tolist() == [ids[0], ids[2], ids[3]]
    assert points.x.tolist() == pytest.approx([0.4, 0.2, 0.1])
    assert points.y.tolist() == [4, 2, 1]
    assert (points.domains, points.domain.tolist()) == (("cult", "violence"), [-1, 0, -1])
    assert points.score[1] == 0.25
    assert np.isnan(points.score[[0, 2]]).all()
    assert (points.saes, points.sae.tolist()) == (("s",), [0, 0, 0])
    assert [a.dtype.name for a in (points.ids, points.x, points.sae, points.domain, points.score)] == [
        "int64", "float32", "int32", "int32", "float32",
    ]  # fmt: skip
    writer.set_layout("empty", {}, [], [], [])
    assert len(writer.points("empty").ids) == 0
    assert writer.layout_about("decoder") == {"seed": 1}


def test_an_answer_is_of_one_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a writer commits between two questions of the same answer is not in it."""
    path = write(tmp_path / "atlas.db", make(5))
    store: Any = sys.modules["seamark.atlas.store"]
    real = store.search.search
    with Atlas.open(path) as reader, AtlasWriter.open(path) as w:
        before = reader.find(Query())

        def search_and_write(db: sqlite3.Connection, query: Query) -> Any:
            page = real(db, query)
            w.add_evidence(EvidenceRow(i, "contrast:safety", Estimate(value=0.99), "one") for i in page.ids)
            return page

        monkeypatch.setattr(store.search, "search", search_and_write)
        assert reader.find(Query()).cards == before.cards
        monkeypatch.undo()
        assert {card.contrast for card in reader.find(Query()).cards} == {0.99}


def test_texts_are_not_taken_for_others(writer: AtlasWriter) -> None:
    feature = one_feature(writer)
    texts = [(f"t{i % 40}", (f"word{i // 40}", "end"), f"source{i % 3}") for i in range(1200)]
    writer.add_contexts(ContextRow(feature, "top", rank, name, tokens, (1.0, 0.0), 0, "", source)
                        for rank, (name, tokens, source) in enumerate(texts))  # fmt: skip
    assert [(c.name, c.tokens, c.source) for c in writer.contexts("s", 7, limit=2000)] == texts
    assert writer.counts()["texts"] == len(set(texts))


def test_scores_at_the_ends_are_in_the_histogram() -> None:
    from seamark.atlas.summary import score_histogram

    found = score_histogram(np.asarray([-1 - 1e-10, -1.0, 1.0, 1 + 1e-10, 0.0]))
    assert found is not None
    assert (found.edges[0], found.edges[-1], sum(found.counts)) == (-1.0, 1.0, 5)
    assert (found.counts[0], found.counts[-1]) == (2, 2)
    assert score_histogram(np.empty(0)) is None


def test_marks(writer: AtlasWriter) -> None:
    key = "scan'/\ud800"
    made = writer.mark(key, "pair\0<b>", "wrong", "see\ud800")
    assert made is not None
    assert (made.mark, made.note) == ("wrong", "see⟦U+D800⟧")
    writer.mark(key, "q", "fine")
    assert list(writer.marks(key)) == ["pair\0<b>", "q"]
    assert writer.marks(key)["pair\0<b>"] == made
    assert writer.mark(key, "pair\0<b>", "fine", "") is not None
    assert writer.marks(key)["pair\0<b>"].mark == "fine"
    assert writer.mark(key, "q", None) is None
    assert list(writer.marks(key)) == ["pair\0<b>"]
    assert writer.marks("another") == {}
    with pytest.raises(ConfigError, match="no mark"):
        writer.mark(key, "q", "odd")  # type: ignore[arg-type]


def test_features_come_in_portions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    features = make(30, 1)
    monkeypatch.setattr(sys.modules["seamark.atlas.store"], "AT_ONCE", 7)
    with Atlas.open(write(tmp_path / "atlas.db", features)) as atlas:
        found = list(atlas.iter_features())
        assert [(f.card.sae, f.card.latent) for f in found] == [(f.sae, f.latent) for f in features]
        assert all(f == atlas.feature(f.card.sae, f.card.latent) for f in found)
        with AtlasWriter.open(atlas.path) as w:  # in the middle of an export somebody writes
            rest = atlas.iter_features()
            next(rest)
            add(w, make(3, 77))
            assert len(list(rest)) == len(features) - 1


def test_threads_and_closing(tmp_path: Path) -> None:
    features = make(40, 2)
    atlas = Atlas.open(write(tmp_path / "atlas.db", features))
    failed: list[BaseException] = []

    def read() -> None:
        try:
            for f in features:
                assert atlas.card(f.sae, f.latent) is not None
                assert atlas.find(Query(words="harbour", sort="relevance")).total > 0
        except BaseException as e:
            failed.append(e)

    threads = [threading.Thread(target=read) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    assert len(atlas._open) <= 1  # those of threads that ended are closed
    atlas.close()
    atlas.close()
    for use in (atlas.overview, lambda: atlas.card("a/one", 0), lambda: list(atlas.iter_features())):
        with pytest.raises(RunError, match="closed"):
            use()


def test_reading_cannot_write(tmp_path: Path) -> None:
    path = write(tmp_path / "atlas.db", make(3))
    with Atlas.open(path) as atlas:
        for statement in ("DELETE FROM features", "CREATE TABLE x(y)", "PRAGMA user_version = 9", "INSERT INTO marks "
                          "VALUES (1, 'a', 'b', 'fine', '', '')"):  # fmt: skip
            with pytest.raises(sqlite3.OperationalError, match="readonly"):
                atlas._connection().execute(statement)
        assert not hasattr(atlas, "add_features")


def test_a_damaged_file_is_told(tmp_path: Path) -> None:
    path = write(tmp_path / "atlas.db", make(400))
    data = bytearray(path.read_bytes())
    data[20_000:] = b"\xff" * (len(data) - 20_000)
    path.write_bytes(bytes(data))
    with pytest.raises(SeamarkError), Atlas.open(path) as atlas:
        atlas.overview()
    broken = write(tmp_path / "other.db", make(5))
    db = sqlite3.connect(broken)
    db.execute("UPDATE features SET histogram = 'no JSON'")
    db.commit()
    db.close()
    with Atlas.open(broken) as atlas, pytest.raises(FormatError, match="damaged"):
        list(atlas.iter_features())


def test_counts_follow_another_writer(tmp_path: Path) -> None:
    """What a reader counted once is counted again when somebody else has written."""
    path = tmp_path / "counted.db"
    with AtlasWriter.open(path, create=True) as w:
        one_feature(w)
        with Atlas.open(path) as reader:
            assert [s.features for s in reader.saes()] == [s.features for s in reader.saes()] == [1]
            w.add_features(w.saes()[0].number, [FeatureRow(3), FeatureRow(4)])
            assert [s.features for s in reader.saes()] == [s.features for s in w.saes()] == [3]
            assert reader.feature("s", 7).sae.features == 3


def test_lists_as_json_are_what_json_makes_of_them() -> None:
    """Texts of earlier files are known by a hash of it."""
    every = [chr(i) for i in range(0x11000) if not 0xD800 <= i < 0xE000]
    assert list_json(every) == to_json(every)
    assert list_json(("a\ud800", "b")) == to_json(["a\ud800", "b"])
