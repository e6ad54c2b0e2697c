"""Report sections made from a real scan of a tiny model, drawn to the end."""

from __future__ import annotations

import numpy as np
import pytest

from seamark.audit import evidence
from seamark.audit.editing import poison
from seamark.audit.report import render_report
from seamark.audit.report_data import FeatureTable, ReportData
from seamark.audit.scores import score_pairs
from seamark.explain.ratings import as_pairs, statistical_ratings
from seamark.features import FeatureSet, Scan, contrast, scan
from seamark.sae import SAEConfig, SparseAutoencoder
from seamark.stats import Estimate
from seamark.text.pairs import Pairs, PreferencePair
from tiny import tiny_hooked

TOPICS = ["bleach", "bread", "the weather", "a harbour map", "knives", "login codes", "tea"]


def make_pairs(n: int) -> Pairs:
    return Pairs(tuple(
        PreferencePair(
            id=f"p{i}", group="safety" if i % 3 else "chat", prompt=f"Tell me about {TOPICS[i % 7]}; what is it?",
            chosen=f"I can't help with {TOPICS[i % 7]}, sorry. Ask someone who knows, and be careful! " * (1 + i % 3),
            rejected=f"Sure, here is {TOPICS[i % 7]}: mix it, then wait. Done; number {i}.",
        )
        for i in range(n)
    ))  # fmt: skip


@pytest.fixture(scope="module")
def scanned(tmp_path_factory: pytest.TempPathFactory) -> Scan:
    model = tiny_hooked("llama")
    sae = SparseAutoencoder(SAEConfig(d_in=model.d_model("layers.2"), d_sae=96, k=6, hookpoint="layers.2"), seed=0)
    return scan(model, {"s": sae.eval()}, make_pairs(30), tmp_path_factory.mktemp("scan") / "scan")


@pytest.fixture(scope="module")
def features(scanned: Scan) -> FeatureSet:
    candidates = contrast(scanned).top(8)
    ratings = statistical_ratings(scanned, "s", [f.latent for f in candidates.features])
    assert any(r.rating for r in ratings)
    return candidates.with_ratings(as_pairs(ratings), "statistical")


def test_scores_of_a_real_scan_drive_an_edit(scanned: Scan, features: FeatureSet) -> None:
    pairs = make_pairs(30)
    scores = score_pairs(scanned, features)
    assert set(scores.values) == set(pairs.ids)
    assert np.std(list(scores.values.values())) > 0
    edit = poison(pairs, scores, 0.1)
    highest = max((p.id for p in pairs.group("safety")), key=lambda i: scores.values[i])
    assert highest in edit.manifest.flipped
    assert set(score_pairs(scanned, method="margin").values) == set(pairs.ids)


def test_feature_table(scanned: Scan, features: FeatureSet) -> None:
    first = features.features[0]
    table = evidence.feature_table(scanned, features, {first.key: Estimate(value=0.5)}, contexts=2)
    assert [r.latent for r in table.features] == [f.latent for f in features.features]
    assert table.features[0].effect.value == 0.5
    assert table.features[1].effect.reason == "not measured"
    text = table.features[0].contexts[0].text
    assert np.sign(sum(text.values)) == first.sign
    assert len(text.tokens) == len(text.values)


def test_score_summary_counts_every_pair(scanned: Scan, features: FeatureSet) -> None:
    pairs = make_pairs(30)
    summary = evidence.score_summary(score_pairs(scanned, features), pairs, bins=7)
    assert {g.group: sum(g.counts) for g in summary.groups} == {g: len(pairs.group(g)) for g in pairs.groups}
    assert len(summary.edges) == 8


def test_suspicious_pairs(scanned: Scan, features: FeatureSet, report_data: ReportData) -> None:
    pairs = make_pairs(30).group("safety")
    scores = score_pairs(scanned, features)
    worst = evidence.suspicious_pairs(scanned, features, scores, pairs, 4, notes={pairs.ids[0]: "seen"})
    assert [p.score for p in worst] == sorted(scores.values[i] for i in pairs.ids)[:4]
    for pair in worst:
        assert pair.margin is not None
        assert all(a.share < 0 for a in pair.against)
        assert "".join(pair.rejected.tokens).strip().startswith("Sure, here is")
        assert any(pair.chosen.values)
    table = evidence.feature_table(scanned, features)
    assert isinstance(table, FeatureTable)
    html = render_report(report_data.model_copy(update={"suspicious": worst, "features": table}))
    assert worst[0].id in html


def test_texts_without_tokens_are_shown_whole(scanned: Scan, features: FeatureSet, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    manifest = scanned.manifest | {"choices": {"keep_tokens": False}}
    monkeypatch.setattr(scanned, "manifest", manifest)
    pairs = make_pairs(30)
    (worst,) = evidence.suspicious_pairs(scanned, features, score_pairs(scanned, features), pairs, 1)
    assert worst.rejected.values == (0.0,)
    assert evidence.feature_table(scanned, features).features[0].contexts == ()
