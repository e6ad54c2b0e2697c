"""Overlap of features between groups: a specific set, a shared one, and numbers by hand."""

from __future__ import annotations

import numpy as np
import pytest
from findings_scan import Floats, planted_scan, sparse

from seamark.audit.overlap import Overlap, overlap
from seamark.errors import ConfigError, DataError
from seamark.features import Feature, FeatureSet


def features(*latents: int) -> FeatureSet:
    return FeatureSet(features=tuple(Feature(sae="s", latent=i, sign=-1 if i % 2 else 1) for i in latents))


def groups(seed: int = 0) -> dict[str, tuple[Floats, Floats]]:
    """Latents 0-9 fire on safety alone, 10-19 on both alike, 20-29 on chat alone, 30 never."""
    rng = np.random.default_rng(seed)
    strength = np.linspace(0.5, 3, 10)
    found = {}
    for group, scales in (("safety", (1.0, 1.0, 0.0)), ("chat", (0.0, 1.0, 1.0))):
        scale = np.concatenate([*(k * strength for k in scales), [0.0]])
        sides = [sparse(rng, 80, 31) * scale for _ in range(2)]
        found[group] = (sides[0], sides[1])
    return found


def test_numbers_by_hand() -> None:
    safety = np.array([[1.0, 0, 2], [3, 0, 0]]), np.array([[0.0, 0, 1], [0, 4, 0]])
    chat = np.array([[1.0, 0, 0]]), np.array([[0.0, 2, 0]])
    found = overlap(planted_scan({"safety": safety, "chat": chat}), features(2, 0, 1), draws=50)
    assert (found.n_group, found.n_other) == (4, 2)
    two, zero, one = found.features
    assert (two.latent, two.mean_group, two.mean_other, two.rate_group, two.rate_other, two.outside) == (
        2, 0.75, 0.0, 0.5, 0.0, 0.0)  # fmt: skip
    assert (zero.mean_group, zero.mean_other, zero.outside) == (1.0, 0.5, pytest.approx(1 / 3))
    assert (one.sign, one.outside) == (-1, 0.5)
    assert found.outside.value == pytest.approx(1.5 / (2.75 + 1.5))
    assert found.correlation.reason == "3 features; 5 are needed"


def test_a_shared_set_overlaps_and_a_specific_one_does_not() -> None:
    scan = planted_scan(groups(), parts=3)
    shared, specific = overlap(scan, features(*range(10, 20)), draws=200), overlap(scan, features(*range(10)), draws=50)
    assert shared.outside.low is not None
    assert shared.outside.high is not None
    assert shared.outside.low < 0.5 < shared.outside.high
    assert shared.correlation.value is not None
    assert shared.correlation.value > 0.9
    assert shared.rank_correlation.value is not None
    assert shared.rank_correlation.value > 0.8
    assert specific.outside.value == 0.0
    assert specific.correlation.value is None
    assert "the activation in the other group is the same everywhere" in specific.correlation.reason
    assert shared.all_latents.value is not None
    assert shared.all_latents.value < 0.3
    assert shared.all_latents.n == 30  # the silent latent does not count
    mixed = overlap(scan, features(*range(5, 15)), draws=50)
    expected = np.corrcoef(*(np.array([getattr(f, m) for f in mixed.features]) for m in ("mean_group", "mean_other")))
    assert mixed.correlation.value == pytest.approx(expected[0, 1])


def test_parts_do_not_matter_and_texts_without_positions_do_not_count() -> None:
    one, many = (overlap(planted_scan(groups(), parts=n), features(3, 12), draws=50) for n in (1, 7))
    for a, b in zip(one.features, many.features, strict=True):
        assert a.model_dump() == pytest.approx(b.model_dump())
    assert one.outside.value == pytest.approx(many.outside.value)
    assert one.all_latents.value == pytest.approx(many.all_latents.value)
    assert Overlap.model_validate_json(one.model_dump_json()) == one
    assert overlap(planted_scan(groups(), silent=("safety0", "chat3")), features(3), draws=50).n_group == 159


def test_a_silent_set_and_errors() -> None:
    scan = planted_scan(groups())
    silent = overlap(scan, features(30), draws=50)
    assert silent.features[0].outside is None
    assert silent.outside.reason == "the features fire in neither group"
    with pytest.raises(ConfigError, match="empty"):
        overlap(scan, FeatureSet(features=()))
    with pytest.raises(ConfigError, match="with itself"):
        overlap(scan, features(1), "chat", "chat")
    with pytest.raises(DataError, match="no group 'math'"):
        overlap(scan, features(1), other="math")
    with pytest.raises(DataError, match="no latent 99"):
        overlap(scan, features(99))
