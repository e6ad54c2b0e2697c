"""What an atlas knows of a suite's features, and where their units come from."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from inspected_texts import D_SAE, make_sae

from seamark.atlas.records import Run, Sae
from seamark.atlas.rows import ExplanationRow, FeatureRow
from seamark.atlas.store import Atlas
from seamark.atlas.writing import AtlasWriter
from seamark.diagnose import About, atlas_labels, atlas_quantiles, filled, match_saes
from seamark.errors import ConfigError
from seamark.explain.taxonomy import Tag

NAN = math.nan


@pytest.fixture
def atlas(tmp_path: Path) -> Atlas:
    """One autoencoder with its fingerprint, one without."""
    with AtlasWriter.open(tmp_path / "atlas.db", create=True) as w:
        w.add_run(Run(id="r", kind="explain", title="", created="2025-01-01T00:00:00Z", manifest={}))
        for layer, (name, fingerprint) in enumerate((("known", make_sae().fingerprint()), ("bare", ""))):
            sae = w.add_sae(Sae(number=0, id=name, model="m", hookpoint=f"layers.{layer}", layer=layer, d_sae=D_SAE,
                                fingerprint=fingerprint))  # fmt: skip
            ids = w.add_features(sae, [FeatureRow(latent=i, q=1.5 if i else None) for i in range(3)])
            w.add_explanations(
                [ExplanationRow(ids[1], f"{name} one", "r", "llm", tags=[Tag("terror", None)], rating=4)]
            )
    return Atlas.open(tmp_path / "atlas.db")


def test_autoencoders_are_matched_by_name_then_by_weights(atlas: Atlas) -> None:
    mine, other = make_sae(), make_sae("layers.2", 5)
    assert match_saes(atlas, {"known": mine, "bare": other}) == {"known": "known", "bare": "bare"}
    assert match_saes(atlas, {"mine": mine, "other": other}) == {"mine": "known"}
    with pytest.raises(ConfigError, match="another autoencoder called 'known'"):
        match_saes(atlas, {"known": other})
    with pytest.raises(ConfigError, match="another autoencoder called 'bare'"):
        match_saes(atlas, {"bare": make_sae().__class__(mine.config.model_copy(update={"d_sae": 90}))})


def test_labels_and_units_are_the_atlas_s(atlas: Atlas) -> None:
    suite = {"mine": make_sae()}
    names = match_saes(atlas, suite)
    labels = atlas_labels(atlas, names)
    assert labels("mine", [0, 1, 5, D_SAE]) == {
        0: About(), 1: About(label="known one", state="text", domains=("terror",), rating=4)}  # fmt: skip
    assert labels("stranger", [0, 1]) == {}
    units = atlas_quantiles(atlas, names, suite)["mine"]
    assert units.shape == (D_SAE,)
    np.testing.assert_array_equal(units[:4], [NAN, 1.5, 1.5, NAN])


def test_units_of_different_corpora_are_never_mixed() -> None:
    mine, same, other = np.asarray([1.0, NAN, NAN]), np.asarray([1.0, 2.0, NAN]), np.asarray([1.1, 9.0, 9.0])
    np.testing.assert_array_equal(filled(mine, [other, same]), [1.0, 2.0, NAN])
    np.testing.assert_array_equal(filled(mine, [other]), mine)
    np.testing.assert_array_equal(filled(np.full(3, NAN), [same]), same)
    np.testing.assert_array_equal(filled(None, [same, other]), same)
    np.testing.assert_array_equal(filled(mine, []), mine)
    assert filled(None, []) is None
