"""Controls: contrast over some pairs only, and random latents in place of features."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from feature_corpus import make_pairs, make_sae, tiny

from seamark.errors import ConfigError, DataError
from seamark.features import Contrast, Feature, FeatureSet, Scan, contrast, random_latents, scan
from seamark.features.controls import NEAREST


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Scan:
    folder = tmp_path_factory.mktemp("controls") / "scan"
    return scan(tiny(), {"a": make_sae(k=20), "b": make_sae(seed=3)}, make_pairs(), folder)


def test_contrast_over_some_pairs_is_that_of_a_scan_of_them(whole: Scan, tmp_path: Path) -> None:
    ids = {"p1", "p4", "p5"}
    few = make_pairs().with_items([p for p in make_pairs() if p.id in ids])
    alone = contrast(scan(tiny(), {"a": make_sae(k=20)}, few, tmp_path), sae_id="a")
    for asked in (ids, sorted(ids), ["p5", "p1", "p4", "p4"], ids | {"p0"}):  # p0 is of the other group
        found = contrast(whole, sae_id="a", pairs=asked)
        np.testing.assert_allclose(found.scores, alone.scores, atol=1e-5)
        np.testing.assert_allclose(found.fired_chosen, alone.fired_chosen)
        assert found.n_pairs == 3
    everything = contrast(whole, sae_id="a")
    assert np.abs(found.scores - everything.scores).max() > 0.05
    same = contrast(whole, sae_id="a", pairs=list(whole.rows_by_pair))
    np.testing.assert_array_equal(same.scores, everything.scores)
    assert "pairs" not in everything.provenance
    assert found.provenance["pairs"] != same.provenance["pairs"]


def test_halves_of_the_pairs_add_up(whole: Scan) -> None:
    ids = sorted(p.id for p in make_pairs().group("safety"))
    parts = [contrast(whole, sae_id="a", normalization="paper", pairs=half) for half in (ids[::2], ids[1::2])]
    np.testing.assert_allclose(
        parts[0].chosen + parts[1].chosen, contrast(whole, sae_id="a", normalization="paper").chosen, rtol=1e-6
    )


@pytest.mark.parametrize(
    ("asked", "message"), [(["p1", "zz"], "no pair 'zz'.*1 of 2"), ([], "none of the pairs"), (["p0"], "none of the")]
)
def test_contrast_over_pairs_that_are_not_there(whole: Scan, asked: list[str], message: str) -> None:
    with pytest.raises(DataError, match=message):
        contrast(whole, sae_id="a", pairs=asked)


def made(whole: Scan, mass: np.ndarray, seed: int = 5) -> Contrast:
    """Scores with masses as given: the sum of both sides is `mass`."""
    chance = np.random.default_rng(seed)
    share = chance.uniform(0.2, 0.8, len(mass))
    plus, minus = mass * share, mass * (1 - share)
    scores = (plus - minus) / (mass + mass.mean())
    return replace(contrast(whole, sae_id="a"), scores=scores, chosen=plus, rejected=minus)


def test_random_latents_fire_as_much_and_are_others(whole: Scan) -> None:
    mass = np.geomspace(1e-3, 10.0, 96)
    mass[-6:] = 0.0  # dead
    scores = made(whole, np.random.default_rng(0).permutation(mass))
    features = scores.top(8)
    seen = set()
    for seed in range(40):
        found = random_latents(whole, features, scores, seed=seed)
        assert found == random_latents(whole, features, scores, seed=seed)
        latents = found.latents("a")
        assert len(set(latents)) == len(features)
        assert not set(latents) & set(features.latents("a"))
        total = scores.chosen + scores.rejected
        ratio = total[latents] / total[features.latents("a")]
        step = np.log(10 / 1e-3) / 95
        assert np.abs(np.log(ratio)).max() <= (NEAREST + 2 * len(features)) * step
        for f in found.features:
            assert total[f.latent] > 0
            assert f.score == scores.scores[f.latent]
            assert f.sign == np.sign(scores.scores[f.latent])
        assert found.provenance["method"].startswith("random latents")
        assert found.provenance["replaced"] == features.latents("a")
        np.testing.assert_allclose(found.provenance["mass"], total[latents])
        assert found.features[0].why == f"drawn in place of a/{features.features[0].latent}"
        seen.add(tuple(latents))
    assert len(seen) > 30


def test_random_latents_of_a_real_scan(whole: Scan) -> None:
    scores = contrast(whole, sae_id="a")
    found = random_latents(whole, scores.top(6), scores, seed=1)
    assert len(found) == 6
    assert FeatureSet.model_validate_json(found.model_dump_json()) == found


def test_random_latents_that_cannot_be_drawn(whole: Scan) -> None:
    mass = np.zeros(96)
    mass[:9] = 1.0
    scores = made(whole, mass)
    assert len(random_latents(whole, scores.top(4), scores)) == 4
    with pytest.raises(DataError, match="only 4 other latents fire, too few to replace 5"):
        random_latents(whole, scores.top(5), scores)
    with pytest.raises(DataError, match="no feature"):
        random_latents(whole, FeatureSet(features=()), scores)
    with pytest.raises(ConfigError, match="a feature of 'b'"):
        random_latents(whole, FeatureSet(features=(Feature(sae="b", latent=1, sign=1),)), scores)
    with pytest.raises(DataError, match="no latent 500"):
        random_latents(whole, FeatureSet(features=(Feature(sae="a", latent=500, sign=1),)), scores)
    with pytest.raises(ConfigError, match="another scan"):
        random_latents(whole, scores.top(2), replace(scores, provenance={"scan": "other"}))
