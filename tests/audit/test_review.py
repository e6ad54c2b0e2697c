"""Evidence for and against a pair's label: the same numbers as the scan's own scores, token by token."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from seamark.audit.review import Review
from seamark.audit.scores import score_pairs
from seamark.errors import DataError
from seamark.features import Feature, FeatureSet, Scan, ScanConfig, contrast, scan
from seamark.model.loading import RewardModel
from seamark.sae import SAEConfig, SparseAutoencoder
from seamark.text.pairs import Pairs, PreferencePair
from tiny import tiny_hooked

TOPICS = ("bleach", "bread", "the weather", "knives")


def make_pairs() -> Pairs:
    items = []
    for i in range(8):
        topic = TOPICS[i % 4]
        chosen = f"I can't help with {topic}, sorry. Ask someone who knows, and be careful! " * (1 + i % 2)
        rejected = "" if i == 3 else f"Sure, mix it, then wait. Done; number {i}."
        items.append(
            PreferencePair(f"p{i}", "safety" if i % 2 else "chat", f"Tell me about {topic}.", chosen, rejected)
        )
    return Pairs(tuple(items))


def make_sae(seed: int, hookpoint: str) -> SparseAutoencoder:
    sae = SparseAutoencoder(SAEConfig(d_in=32, d_sae=64, k=6, hookpoint=hookpoint), seed=seed)
    with torch.no_grad():
        sae.b_enc -= torch.rand(64, generator=torch.Generator().manual_seed(9))
    return sae.eval()


def make_scan(folder: Path, **config: object) -> Scan:
    model = tiny_hooked("llama")
    assert isinstance(model, RewardModel)
    suite = {"a": make_sae(0, "layers.2"), "b": make_sae(1, "layers.1")}
    return scan(
        model, suite, make_pairs(), folder, config=ScanConfig.model_validate({"keep_tokens": "always"} | config)
    )


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Scan:
    return make_scan(tmp_path_factory.mktemp("scan"))


def features_of(made: Scan) -> FeatureSet:
    """Of both autoencoders, taking turns, so that places in the set are not places in a scan's columns."""
    a, b = (contrast(made, "safety", sae).top(12).features for sae in ("a", "b"))
    mixed = [f for two in zip(b, a, strict=True) for f in two]
    return FeatureSet(features=tuple(f.model_copy(update={"why": f"why {f.latent}"}) for f in mixed))


def test_tokens_and_scores_are_those_of_the_scan(made: Scan) -> None:
    features = features_of(made)
    review = Review(made, features)
    scores = score_pairs(made, features).values
    margins = made.margins()
    texts = dict(zip(made.texts["text_id"].to_pylist(), made.texts["reward"].to_pylist(), strict=True))
    fired = 0
    for pair in made.rows_by_pair:
        found = review.pair(pair)
        assert (found.id, found.group) == (pair, "safety" if int(pair[1:]) % 2 else "chat")
        assert found.prompt == f"Tell me about {TOPICS[int(pair[1:]) % 4]}."
        assert found.margin == pytest.approx(margins[pair])
        for side in ("chosen", "rejected"):
            own, told = getattr(found, side), made.token_scores(f"{pair}:{side}", features)
            assert (own.tokens, own.scoring) == (told.tokens, told.scoring)
            np.testing.assert_allclose(own.values, told.values, rtol=1e-6, atol=1e-9)
            assert own.reward == texts[f"{pair}:{side}"]
            for value, contributions in zip(own.values, own.contributions, strict=True):
                fired += len(contributions)
                assert sum(c.value for c in contributions) == pytest.approx(value)
                assert [abs(c.value) for c in contributions] == sorted(
                    (abs(c.value) for c in contributions), reverse=True
                )
                for c in contributions:
                    assert math.copysign(1, c.value) == found.features[c.feature].sign
        if pair == "p3":  # its rejected answer is empty
            assert (found.score, found.rejected.score, found.parts) == (None, None, ())
            continue
        assert found.score == pytest.approx(scores[pair])
        assert sum(p.value for p in found.parts) == pytest.approx(scores[pair])
        assert [p.value for p in found.parts] == sorted(p.value for p in found.parts)
        for part in found.parts:
            f = features.features[part.feature]
            pooled = made.pooled(f.sae, "mean")
            rows = made.rows_by_pair[pair]
            assert part.value == pytest.approx(
                f.sign * (pooled[rows[0], f.latent] - pooled[rows[1], f.latent]), rel=1e-5
            )
    assert fired > 100
    assert {f.why for f in found.features} == {f.why for f in features.features}


def test_without_features_there_is_no_evidence_but_the_texts(made: Scan) -> None:
    found = Review(made, FeatureSet(features=())).pair("p1")
    assert (found.score, found.parts, found.features) == (None, (), ())
    assert set(found.chosen.values) == {0.0}
    assert "".join(found.chosen.tokens).strip().startswith("I can't help with bread")
    assert found.margin is not None


def test_a_scan_that_kept_no_tokens(tmp_path: Path, made: Scan) -> None:
    bare = make_scan(tmp_path, keep_tokens="never")
    features = features_of(made)
    found, whole = Review(bare, features).pair("p1"), Review(made, features).pair("p1")
    assert found.reason == "the scan kept no latents of single tokens"
    assert whole.reason == ""
    assert found.score == pytest.approx(whole.score)
    assert found.parts == whole.parts
    assert found.chosen.tokens == ("".join(whole.chosen.tokens).strip(),)
    assert found.chosen.contributions == ((),)


def test_a_scan_without_rewards(tmp_path: Path) -> None:
    found = Review(make_scan(tmp_path, rewards=False), FeatureSet(features=())).pair("p1")
    assert (found.margin, found.chosen.reward) == (None, None)


def test_what_is_not_there(made: Scan) -> None:
    with pytest.raises(DataError, match="no such pair"):
        Review(made, features_of(made)).pair("p99")
    with pytest.raises(DataError, match="no latent 64"):
        Review(made, FeatureSet(features=(Feature(sae="a", latent=64, sign=1),))).pair("p1")
