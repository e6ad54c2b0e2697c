"""Every method on a real scan of a tiny model with a trained and an untrained SAE and raw activations."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from test_real_scan import make_pairs

from seamark.audit.combine import Combination
from seamark.audit.crossfit import crossfit_mean
from seamark.audit.scores import METHODS, PairScores, score_pairs
from seamark.errors import ConfigError, DataError
from seamark.features import FeatureSet, Scan, ScanConfig, contrast, scan
from seamark.features.controls import random_latents
from seamark.sae import SAEConfig, SparseAutoencoder
from seamark.text.pairs import Pairs
from tiny import tiny_hooked

PAIRS = make_pairs(36)


@pytest.fixture(scope="module")
def scanned(tmp_path_factory: pytest.TempPathFactory) -> Scan:
    model = tiny_hooked("llama")
    sae = SparseAutoencoder(SAEConfig(d_in=model.d_model("layers.2"), d_sae=96, k=6, hookpoint="layers.2"), seed=0)
    suite = {"sae": sae.eval(), "untrained": SparseAutoencoder.untrained(sae, seed=1).eval()}
    return scan(model, suite, PAIRS, tmp_path_factory.mktemp("scan") / "scan", config=ScanConfig(raw=True))


@pytest.fixture(scope="module")
def found(scanned: Scan) -> dict[str, PairScores]:
    candidates = contrast(scanned, sae_id="sae")
    features = candidates.top(8)
    controls = {"untrained": contrast(scanned, sae_id="untrained").top(8),
                "random_latents": random_latents(scanned, features, candidates)}  # fmt: skip
    margins = {i: [m, m / 2] for i, m in scanned.margins().items()}
    learned = Combination(signals=("margin",), weights=(-1.0,), intercept=-2.0, prior=0.1, n=90, n_flipped=9)
    signals = {"margin": score_pairs(scanned, method="margin")}
    return {
        name: score_pairs(scanned, features, method=name, pairs=PAIRS, sae="sae", controls=controls, margins=margins,
                          judged=dict.fromkeys(margins, 0.5), combination=learned, signals=signals)
        for name in METHODS
    }  # fmt: skip


@pytest.mark.parametrize("method", sorted(METHODS))
def test_every_pair_of_the_group_has_a_score(method: str, found: dict[str, PairScores]) -> None:
    values = found[method].values
    group = set(PAIRS.group("safety").ids)
    assert set(values) == (group if METHODS[method].fitted else set(PAIRS.ids))
    assert method == "judge" or np.std([values[i] for i in group]) > 0


def test_methods_differ(found: dict[str, PairScores]) -> None:
    ids = PAIRS.group("safety").ids
    lines = {m: tuple(round(s.values[i], 9) for i in ids) for m, s in found.items()}
    alike = {(a, b) for a in lines for b in lines if a < b and lines[a] == lines[b]}
    assert alike == {("safer", "safer_category")}, "categories of this size have the group's features"


def test_direction_is_that_of_the_scans_raw_activations(scanned: Scan, found: dict[str, PairScores]) -> None:
    raw, ids = scanned.raw("layers.2"), PAIRS.group("safety").ids
    x = np.stack([raw[c] - raw[r] for c, r in (scanned.rows_by_pair[i] for i in ids)])
    by_hand = crossfit_mean(x, [p.prompt_key for p in PAIRS.group("safety")])
    assert [found["direction"].values[i] for i in ids] == pytest.approx(by_hand.tolist(), rel=1e-4, abs=1e-6)


def test_fewer_pairs_get_the_scores_they_had(scanned: Scan, found: dict[str, PairScores]) -> None:
    few = Pairs(PAIRS.items[:7])
    some = score_pairs(scanned, method="latents", pairs=few, sae="sae").values
    assert some == {i: v for i, v in found["latents"].values.items() if i in few.ids}


def test_the_sae_has_to_be_named_where_there_are_several(scanned: Scan) -> None:
    with pytest.raises(ConfigError, match="several autoencoders"):
        score_pairs(scanned, method="latents")
    with pytest.raises(ConfigError, match="no autoencoder 'x'"):
        score_pairs(scanned, FeatureSet.model_validate({"features": [{"sae": "x", "latent": 0, "sign": 1}]}))


def test_pairs_whose_labels_were_turned_round_since_are_refused(scanned: Scan) -> None:
    edited = PAIRS.with_items(p.flipped() if n in (3, 5) else p for n, p in enumerate(PAIRS))
    for method in ("margin", "length", "latents"):
        with pytest.raises(DataError, match=f"2 of {len(PAIRS)} pairs have the other label.*{PAIRS[3].id}"):
            score_pairs(scanned, method=method, pairs=edited, sae="sae")
    relabelled = PAIRS.with_items(replace(p, category="other") for p in PAIRS.items[:9])
    assert len(score_pairs(scanned, method="margin", pairs=relabelled).values) == 9
