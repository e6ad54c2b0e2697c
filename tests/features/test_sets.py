from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from seamark.errors import FormatError
from seamark.features import Feature, FeatureSet
from seamark.features.quantiles import LogBins

SET = FeatureSet(
    features=(
        Feature(sae="l2/k8", latent=7, sign=1, score=0.5),
        Feature(sae="l2/k8", latent=3, sign=-1, score=-0.9),
        Feature(sae="other", latent=7, sign=1),
    ),
    provenance={"group": "safety"},
)


def test_round_trip(tmp_path: Path) -> None:
    SET.save(tmp_path / "set.json")
    assert FeatureSet.load(tmp_path / "set.json") == SET


def test_selection_never_keeps_a_failed_rating() -> None:
    rated = SET.with_ratings({("l2/k8", 7): (5, "refusals"), ("l2/k8", 3): (None, "unparseable answer")})
    assert [f.rating for f in rated.features] == [5, None, None]
    assert rated.features[2].why == "not rated"
    assert [f.key for f in rated.rated(5).features] == [("l2/k8", 7)]
    assert len(rated.rated(1)) == 1
    assert [f.latent for f in SET.strongest(2).features] == [3, 7]
    assert SET.strongest(2).features[1].sae == "l2/k8"
    assert len(rated.rated(5).provenance["steps"]) == 2
    assert [f.latent for f in SET.positive] == [7, 7]
    assert SET.latents("l2/k8") == [7, 3]


def test_bad_sets(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="twice"):
        FeatureSet(features=(SET.features[0], SET.features[0]))
    path = tmp_path / "set.json"
    for text in ("{", '{"features": [{"sae": "a", "latent": -1, "sign": 1}]}', '{"features": 3}', "[]"):
        path.write_text(text)
        with pytest.raises(FormatError, match=r"set\.json"):
            FeatureSet.load(path)
    with pytest.raises(FormatError, match="not found"):
        FeatureSet.load(tmp_path / "none.json")


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(2.0**-29, 2.0**29), min_size=1, max_size=60), st.integers(0, 59))
def test_quantiles_from_bins_merge_exactly(values: list[float], cut: int) -> None:
    x = np.asarray(values)
    latents = np.arange(len(x)) % 2
    whole, left, right = LogBins(), LogBins(), LogBins()
    whole.add(latents, x)
    left.add(latents[:cut], x[:cut])
    right.add(latents[cut:], x[cut:])
    right.merge(left)
    np.testing.assert_array_equal(whole.keys, right.keys)
    np.testing.assert_array_equal(whole.counts, right.counts)
    maxima = np.asarray([x[latents == i].max(initial=0) for i in (0, 1)])
    for level in (0.5, 0.999):
        for i, q in enumerate(whole.quantiles(2, maxima, level)):
            mine = x[latents == i]
            if len(mine) < 10:
                assert np.isnan(q)
            else:
                assert q == pytest.approx(np.quantile(mine, level, method="inverted_cdf"), rel=0.01)
