"""`seamark inspect`: table, JSON, units from a scan and an atlas, and what a user can get wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from seamark.atlas.records import Run, Sae
from seamark.atlas.rows import ExplanationRow, FeatureRow
from seamark.atlas.writing import AtlasWriter
from seamark.diagnose import Inspection
from seamark.features import Scan
from seamark.sae import SparseAutoencoder, sae_config
from tiny_run import Place, call, the_error

TEXT, ANSWER = "Is it safe to mix bleach?", "No, please never do that."


@pytest.fixture(scope="module")
def sae(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saes") / "mine"
    SparseAutoencoder(sae_config(d_in=32, d_sae=64, k=6, hookpoint="layers.2"), seed=3).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def atlas(sae: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("atlas") / "atlas.db"
    opened = SparseAutoencoder.from_pretrained(sae)
    with AtlasWriter.open(path, create=True) as w:
        w.add_run(Run(id="r", kind="explain", title="", created="2025-01-01T00:00:00Z", manifest={}))
        number = w.add_sae(Sae(number=0, id="mine", model="m", hookpoint="layers.2", layer=2, d_in=32, d_sae=64,
                               activation="topk", k=6, fingerprint=opened.fingerprint()))  # fmt: skip
        ids = w.add_features(number, [FeatureRow(latent=i, q=4.0) for i in range(64)])
        w.add_explanations([ExplanationRow(ids[i], f"talk of ships {i}", "r", "llm") for i in range(64)])
    return path


def run(*words: object) -> Inspection:
    code, out, err = call("inspect", *words, "--json")
    assert code == 0, err
    assert len(out.splitlines()) == 1
    found: Inspection = Inspection.model_validate_json(out)
    return found


def test_table_and_json(place: Place, sae: Path, atlas: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    words: list[Any] = ["--model", place.reward, "--sae", sae, "--text", TEXT, "--answer", ANSWER, "--atlas", atlas]
    code, out, err = call("inspect", *words, "--out", tmp_path)
    assert code == 0, err
    assert "tokens through reward, one pass over the text; reward" in " ".join(out.split())
    assert "[CLS]" in out
    assert "template, special" in out
    found = run(*words)
    assert json.loads((tmp_path / "result.json").read_text(encoding="utf-8")) == found.model_dump(mode="json")
    strongest = found.tokens[5].firings[0]
    feature = found.features[strongest.feature]
    assert f"mine/{feature.latent} " in out
    assert feature.label == f"talk of ships {feature.latent}"
    assert feature.label in out
    assert strongest.normalised == pytest.approx(strongest.activation / 4)
    assert found.kind == "reward"
    assert found.reward is not None


def test_units_come_from_the_scan_first(place: Place, sae: Path, atlas: Path, tmp_path: Path) -> None:
    scan = tmp_path / "scan"
    assert call("scan", "run", "--model", place.reward, "--sae", sae, *place.options, "--out", scan)[0] == 0
    words: list[Any] = ["--model", place.reward, "--sae", sae, "--text", TEXT, "--answer", ANSWER]
    found = run(*words, "--scan", scan, "--atlas", atlas)
    q = Scan.open(scan).q("mine")
    for feature in found.features:
        known = q[feature.latent]
        assert feature.q == (None if np.isnan(known) else pytest.approx(known))
    assert found.saes[0].with_q == int(np.isfinite(q).sum()) > 0
    assert found.caveats == ()
    told = run("--model", place.causal, *words[2:6], "--scan", scan)
    assert "another model" in told.caveats[0]
    assert "note: The scan was made with another model" in " ".join(
        call("inspect", "--model", place.causal, *words[2:6], "--scan", scan)[1].split()
    )
    other = tmp_path / "other" / "mine"
    SparseAutoencoder(sae_config(d_in=32, d_sae=64, k=6, hookpoint="layers.2"), seed=4).save_pretrained(other)
    wrong = ["--model", place.reward, "--sae", other, "--text", TEXT, "--scan", scan]
    assert "the scan was made with another autoencoder called 'mine'" in the_error(*call("inspect", *wrong))
    bare = run(*words)
    assert bare.saes[0].with_q == 0
    assert all(f.normalised is None for t in bare.tokens for f in t.firings)
    assert "z " in call("inspect", *words)[1]


def test_generation_and_limits(place: Place, sae: Path) -> None:
    words: list[Any] = ["--model", place.causal, "--sae", sae, "--text", TEXT]
    found = run(*words, "--generate", 4, "--temperature", 1.0, "--seed", 5, "--top", 2, "--max-tokens", 60)
    assert found.generated is not None
    assert (found.generated.how.max_new_tokens, found.generated.how.seed, found.top) == (4, 5, 2)
    assert found.truncated > 0
    assert all(len(t.firings) <= 4 for t in found.tokens)
    plain = run(*words, "--plain")
    assert len(plain.tokens) < len(run(*words).tokens)


def test_mistakes(place: Place, sae: Path, atlas: Path, tmp_path: Path) -> None:
    other = tmp_path / "other" / "mine"
    SparseAutoencoder(sae_config(d_in=32, d_sae=64, k=6, hookpoint="layers.2"), seed=4).save_pretrained(other)
    model = ["--model", place.reward]
    cases: list[tuple[list[Any], str]] = [
        ([*model, "--text", TEXT], "no SAE is given"),
        ([*model, "--sae", sae, "--text", " "], "the prompt is empty"),
        ([*model, "--sae", sae, "--text", TEXT, "--generate", 4], "only language models generate"),
        ([*model, "--sae", sae, "--text", TEXT, "--generate", 0], "greater than or equal to 1"),
        ([*model, "--sae", sae, "--text", TEXT, "--top", 0], "Take at least 1"),
        ([*model, "--sae", sae, "--text", TEXT, "--atlas", tmp_path / "none.db"], "there is no atlas here"),
        ([*model, "--sae", other, "--text", TEXT, "--atlas", atlas], "another autoencoder called 'mine'"),
        ([*model, "--sae", sae, "--text", TEXT, "--scan", tmp_path], "no finished scan here"),
        (["--model", tmp_path / "none", "--sae", sae, "--text", TEXT], "there is no such model folder"),
    ]
    for words, message in cases:
        assert message in the_error(*call("inspect", *words)), words
