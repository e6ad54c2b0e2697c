"""Scores and ratings from a real scan of a tiny model."""

from __future__ import annotations

import numpy as np
import pytest

from seamark.audit.editing import poison
from seamark.audit.scores import score_pairs
from seamark.explain.ratings import as_pairs, statistical_ratings
from seamark.features import FeatureSet, Scan, contrast, scan
from seamark.sae import SAEConfig, SparseAutoencoder
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
