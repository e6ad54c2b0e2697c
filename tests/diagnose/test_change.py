"""Change: planted changes are found with their sign, equal checkpoints have none, and what does not fit is refused."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from seamark.cli.main import main
from seamark.diagnose.attribution import record
from seamark.diagnose.change import change, change_models
from seamark.diagnose.change_features import state, turned
from seamark.diagnose.change_measures import null_limits
from seamark.diagnose.change_models import attributions, texts_of
from seamark.errors import ConfigError, DataError
from seamark.features import Scan, ScanConfig, contrast, scan
from seamark.features.sets import Feature, FeatureSet
from seamark.model import RewardModel
from seamark.run import read_json
from seamark.sae import SAEConfig, SparseAutoencoder
from seamark.text.pairs import Pairs, PreferencePair
from tiny import tiny_hooked

WIDTH, RAISED = 32, 5
WORDS = ["bread", "salt", "the harbour", "flour", "walking", "water", "yeast", "the weather"]
TOKENS = ScanConfig(positions="tokens")


def some_pairs(n: int = 24) -> Pairs:
    return Pairs(tuple(
        PreferencePair(id=f"p{i}", group="safety" if i < 2 * n // 3 else "chat", prompt=f"Number {i}: {WORDS[i % 8]}?",
                       chosen=f"Please mix {WORDS[i % 8]} and {WORDS[(i + 3) % 8]}, it is safe.",
                       rejected=f"Sure, wait; do {WORDS[(i + 3) % 8]} {WORDS[i % 8]} now.")
        for i in range(n)
    ))  # fmt: skip


def an_sae(hookpoint: str = "layers.2", seed: int = 0, **config: Any) -> SparseAutoencoder:
    """Orthonormal directions, ReLU: a push along one direction is a push of one latent."""
    config = {"d_in": WIDTH, "d_sae": WIDTH, "k": None, "activation": "relu", "normalize": "none"} | config
    sae = SparseAutoencoder(SAEConfig(hookpoint=hookpoint, model="tiny/gpt2", **config), seed=seed)
    with torch.no_grad():
        if sae.config.d_sae == WIDTH:
            directions = torch.linalg.qr(torch.randn(WIDTH, WIDTH, generator=torch.Generator().manual_seed(3)))[0]
            sae.W_dec.copy_(directions)
            sae.W_enc.copy_(directions.T)
            sae.b_enc[RAISED] = 3.0  # so that it has a level to fall from
    return sae.eval()


def altered(model: RewardModel, direction: torch.Tensor, amount: float) -> RewardModel:
    """The same model, with `amount` · direction added to what the third block gives."""
    changed = copy.deepcopy(model.hf)
    with torch.no_grad():
        changed.transformer.h[2].mlp.c_proj.bias += amount * direction
    return RewardModel(changed, model.tokenizer, "tiny/changed")


@pytest.fixture(scope="module")
def model() -> RewardModel:
    return tiny_hooked("gpt2")


@pytest.fixture(scope="module")
def scans(model: RewardModel, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Scan]:
    folder, sae = tmp_path_factory.mktemp("change"), an_sae()
    direction = sae.W_dec[RAISED].detach()
    anything = torch.randn(WIDTH, generator=torch.Generator().manual_seed(1))
    models = {"before": model, "up": altered(model, direction, 4.0), "down": altered(model, direction, -4.0),
              "noise": altered(model, anything, 0.01)}  # fmt: skip
    return {name: scan(m, {"a": sae}, some_pairs(), folder / name, config=TOKENS) for name, m in models.items()}


@pytest.mark.parametrize(("after", "sign"), [("up", 1), ("down", -1)])
def test_a_planted_change_is_found_with_its_sign(scans: dict[str, Scan], after: str, sign: int) -> None:
    report = change(scans["before"], scans[after], null=[scans["noise"]], top=3, least=5)
    first = report.features[0]
    assert first.latent == RAISED
    assert first.state == ("moved" if sign > 0 else first.state)
    moved = first.measures["activation"]
    assert moved.moved
    assert moved.change.low is not None
    assert moved.change.high is not None
    assert min(sign * moved.change.low, sign * moved.change.high) > 0
    assert report.null.kind == "other trainings"
    assert report.measures[0].moved < report.judged / 3  # the others hardly move
    text = first.texts[0]
    assert sign * (text.after - text.before) > 0
    assert len(text.tokens) == len(text.tokens_before) == len(text.tokens_after) > 0
    assert sign * (sum(text.tokens_after) - sum(text.tokens_before)) > 0


def test_what_vanishes_in_another_training_too_is_told_of(scans: dict[str, Scan]) -> None:
    asked: dict[str, Any] = {"top": WIDTH, "least": 5}
    alone = change(scans["before"], scans["down"], **asked)
    assert alone.vanishes > 0
    assert (alone.null_vanishes, alone.null_appears) == ((), ())
    assert any(f"{alone.vanishes} vanish by counts alone" in c for c in alone.caveats)
    report = change(scans["before"], scans["down"], null=[scans["noise"], scans["down"]], **asked)
    assert report.null_vanishes == (0, report.vanishes)
    assert any(f"{report.vanishes} vanish, and {report.vanishes} in another training" in c for c in report.caveats)
    for f in report.features:
        assert f.null_same == (1 if f.state in ("appears", "vanishes") else None)
    quiet = change(scans["before"], scans["down"], null=[scans["noise"]], **asked)
    assert not any("vanish" in c for c in quiet.caveats)
    assert {f.null_same for f in quiet.features if f.state == "vanishes"} == {0}
    assert all(f.null_same is None for f in alone.features)


def test_equal_checkpoints_have_not_changed(scans: dict[str, Scan]) -> None:
    every = FeatureSet(features=tuple(Feature(sae="a", latent=i, sign=1) for i in range(6)))
    report = change(scans["before"], scans["before"], features=every, least=5)
    assert "both are the same model" in report.caveats
    assert {m.moved for m in report.measures} == {m.significant for m in report.measures} == {0}
    assert [f.latent for f in report.features] == list(range(6))  # of the set; nothing else is shown
    for f in report.features:
        assert f.state in ("not moved", "not judged")
        assert not f.texts
        for m in f.measures.values():
            assert (m.change.value, m.change.low, m.change.high) == (0.0, 0.0, 0.0)
    for g in report.groups:
        for e in (g.chosen, g.rejected, g.margin, g.accuracy, g.reranked):
            assert (e.value, e.low, e.high) == (0.0, 0.0, 0.0)
    assert not report.reranked


def test_measures_are_those_of_the_scans(scans: dict[str, Scan]) -> None:
    report = change(scans["before"], scans["up"], top=WIDTH, least=1)
    found = {f.latent: f for f in report.features}
    scores = [contrast(scans[name], "safety", "a").scores for name in ("before", "up")]
    member = scans["before"].in_group("safety")
    means = [np.asarray(scans[name].pooled("a", "mean")[member].mean(0)).ravel() for name in ("before", "up")]
    q = np.fmax(scans["before"].q("a"), scans["up"].q("a"))
    for latent, f in found.items():
        s, a = f.measures["contrast"], f.measures["activation"]
        assert (s.before, s.after) == pytest.approx((scores[0][latent], scores[1][latent]), abs=1e-12)
        assert (a.before, a.after) == pytest.approx((means[0][latent] / q[latent], means[1][latent] / q[latent]))
        assert s.change.value == pytest.approx(s.after - s.before, abs=1e-12)
    rewards = {name: scans[name].margins() for name in ("before", "up")}
    other = {p for p in rewards["up"] if (rewards["up"][p] > 0) != (rewards["before"][p] > 0)}
    assert {p.pair_id for p in report.reranked} == other
    assert [g.group for g in report.groups] == ["safety", "chat"]
    assert sum(g.to_right + g.to_wrong for g in report.groups) == len(other)


def test_swapping_the_two_turns_every_sign(scans: dict[str, Scan]) -> None:
    there, back = (change(scans[a], scans[b], top=5, least=5) for a, b in (("before", "up"), ("up", "before")))
    mine, theirs = ({f.latent: f.measures["activation"] for f in r.features} for r in (there, back))
    for latent in mine.keys() & theirs.keys():
        assert mine[latent].change.value == pytest.approx(-(theirs[latent].change.value or 0))
        assert mine[latent].p == theirs[latent].p


def test_a_set_that_moved_is_told_from_one_that_did_not(scans: dict[str, Scan]) -> None:
    def of(*latents: int) -> Any:
        features = FeatureSet(features=tuple(Feature(sae="a", latent=i, sign=1) for i in latents))
        return change(scans["before"], scans["up"], features=features, null=[scans["noise"]], least=5).feature_set[0]

    found = of(RAISED)
    assert found.auroc == 1.0
    assert found.p < 0.1
    assert found.excess_auroc == 1.0
    assert (found.along.low or 0) > 0
    assert (found.along_beyond.low or 0) > 0
    judged = change(scans["before"], scans["up"], least=5, top=WIDTH)
    still = [f.latent for f in judged.features if f.latent != RAISED][-4:]
    assert of(*still).auroc < 0.5


def test_with_models_fit_and_attributions_are_read(model: RewardModel, tmp_path: Path) -> None:
    sae = an_sae()
    up = altered(model, sae.W_dec[RAISED].detach(), 4.0)
    report = change_models(model, up, sae, some_pairs(), tmp_path, sae_id="a", config=TOKENS, top=WIDTH, least=5)
    assert [f.who for f in report.fits] == ["before", "after"]
    assert {m.measure for m in report.measures} == {"activation", "firing", "contrast", "attribution", "margin"}
    assert report.null.kind == "swapped halves"
    made = Scan.open(tmp_path / "before")
    texts = texts_of(made)
    expected = record(model, {"a": sae}, {"a": list(range(WIDTH))}, texts).attribution
    got = attributions(model, sae, texts).toarray()
    assert np.abs(got).max() > 0.01
    np.testing.assert_allclose(got, np.stack([expected["a", i] for i in range(WIDTH)], 1), atol=1e-5)


def test_an_autoencoder_that_no_longer_fits_is_told_of(model: RewardModel, tmp_path: Path) -> None:
    sae = an_sae()
    with torch.no_grad():
        sae.W_enc[:, RAISED] = 0
        sae.b_enc[RAISED] = 0
    noisy = altered(model, sae.W_dec[RAISED].detach(), 0.0)
    with torch.no_grad():  # what this direction carries, the autoencoder cannot say
        noisy.hf.transformer.h[2].mlp.c_proj.weight += 3 * torch.outer(torch.ones(64), sae.W_dec[RAISED])
    report = change_models(model, noisy, sae, some_pairs(), tmp_path, config=TOKENS, least=5, attribution=False)
    assert any("no longer fits the model after" in c for c in report.caveats)
    assert report.reasons["attribution"] == "not asked for"


@pytest.mark.parametrize(("sae", "message"), [
    (an_sae("layers.9"), "layers.9"), (an_sae(d_in=16, d_sae=16), "d_in is 16"), (an_sae(""), "names no hookpoint"),
])  # fmt: skip
def test_autoencoders_that_do_not_fit(
    model: RewardModel, tmp_path: Path, sae: SparseAutoencoder, message: str
) -> None:  # fmt: skip
    with pytest.raises(Exception, match=message) as e:
        change_models(model, model, sae, some_pairs(), tmp_path)
    assert type(e.value).__module__ == "seamark.errors"


def test_scans_that_do_not_belong_together(scans: dict[str, Scan], model: RewardModel, tmp_path: Path) -> None:
    def other(name: str, sae: SparseAutoencoder | None = None, pairs: Pairs | None = None, m: Any = None,
              config: ScanConfig = TOKENS) -> Scan:  # fmt: skip
        return scan(m or model, {"a": sae or an_sae()}, pairs or some_pairs(), tmp_path / name, config=config)

    for made, message in (
        (other("hook", an_sae("layers.1")), "hookpoint layers.1 against layers.2"),
        (other("width", an_sae(d_sae=48)), "d_sae 48 against 32"),
        (other("texts", pairs=some_pairs(12)), "other texts"),
        (other("tokens", m=tiny_hooked("llama")), "other tokens"),
        (other("clauses", config=ScanConfig()), "positions is clauses"),
    ):
        with pytest.raises(ConfigError, match=message):
            change(scans["before"], made)
    with pytest.raises(ConfigError, match="no texts of group"):
        change(scans["before"], scans["up"], group="x")
    with pytest.raises(ConfigError, match="ordered by margin: the models and the autoencoder were not given"):
        change(scans["before"], scans["up"], by="margin")
    with pytest.raises(ConfigError, match="a feature of 'b'"):
        change(scans["before"], scans["up"], features=FeatureSet(features=(Feature(sae="b", latent=0, sign=1),)))
    with pytest.raises(DataError, match="no feature fires in 500 texts"):
        change(scans["before"], scans["up"], least=500)


@pytest.mark.parametrize(("texts", "message"), [
    ([], "no texts"), ([("t1", "  ")], "t1: a text is empty"), ([("t1", "word " * 100_000)], "500,000 characters"),
])  # fmt: skip
def test_texts_that_cannot_be_compared(model: RewardModel, tmp_path: Path, texts: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        change_models(model, model, an_sae(), texts, tmp_path)


def test_states_and_limits() -> None:
    assert [state(b, a, 10, moved=False) for b, a in ((0, 10), (10, 1), (3, 9), (10, 2))] == [
        "appears", "vanishes", "not judged", "not moved"
    ]  # fmt: skip
    counts = np.asarray([0, 10, 3, 0, 20]), np.asarray([10, 1, 9, 10, 20])
    found = turned(*counts, np.asarray([1.0, 1, 1, np.nan, 1]), 10)
    assert {way: latents.tolist() for way, latents in found.items()} == {"appears": [0], "vanishes": [1]}
    level = np.arange(200.0)
    limits = null_limits(level, np.stack([level, -level]), np.arange(0, 200, 2))
    assert np.isnan(limits[1::2]).all()
    assert limits[100] == pytest.approx(145, abs=3)  # of the features from 50 to 150
    assert limits[0] < limits[198]


def test_the_command(model: RewardModel, scans: dict[str, Scan], tmp_path: Path, capsys: Any) -> None:
    features = tmp_path / "features.json"
    FeatureSet(features=(Feature(sae="a", latent=RAISED, sign=1), Feature(sae="a", latent=1, sign=-1))).save(features)
    status = main(["diagnose", "change", "--scan-before", str(scans["before"].path), "--scan-after",
                   str(scans["up"].path), "--scan-null", str(scans["noise"].path), "--features", str(features),
                   "--least", "5", "--out", str(tmp_path / "out")])  # fmt: skip
    assert status == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "the set by activation" in said
    assert "0 (null 0) appear" in said
    result = read_json(tmp_path / "out" / "result.json")
    assert result["features"][0]["latent"] == RAISED
    assert f"a/{RAISED}" in (tmp_path / "out" / "features.csv").read_text()
    assert (tmp_path / "out" / "rewards.md").exists()
    assert main(["diagnose", "change", "--scan-before", str(scans["before"].path)]) == 2
    assert main(["diagnose", "change", "--before", "x", "--after", "y"]) == 2
