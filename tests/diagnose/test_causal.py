"""Causal evidence: planted causes are found, contrasts without effect are not, and every figure can be checked."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from seamark.diagnose import Intervention, steer_pairs, steer_rewards
from seamark.diagnose.attribution import rank_agreement, record, spearman
from seamark.diagnose.causal import causal_effects
from seamark.diagnose.causal_controls import Pusher, ablation, rotations, stand_ins
from seamark.diagnose.causal_report import CausalReport, FeatureEffect, Range, verdict
from seamark.errors import ConfigError, DataError
from seamark.features import Scan, ScanConfig, contrast, scan
from seamark.features.sets import Feature, FeatureSet
from seamark.model import RewardModel
from seamark.sae import SAEConfig, SparseAutoencoder
from seamark.stats import Estimate
from seamark.text.pairs import Pairs, PreferencePair
from tiny import tiny_hooked

WIDTH = 32
LIKED, DISLIKED, IDLE, SILENT = 3, 7, 11, 20
WORDS = ["bread", "salt", "the harbour", "flour", "walking", "water", "yeast", "the weather"]


def some_pairs() -> Pairs:
    items = []
    for i in range(24):
        a, b = WORDS[i % 8], WORDS[(i + 3) % 8]
        group = "safety" if i < 14 else "chat"
        items.append(PreferencePair(id=f"p{i}", group=group, category="", prompt=f"Number {i}: {a}?",
                                    chosen=f"Please mix {a} and {b}, it is safe.",
                                    rejected=f"Sure, wait; do {b} {a} now."))  # fmt: skip
    return Pairs(items)


def planted() -> tuple[RewardModel, SparseAutoencoder]:
    """A model whose reward is a linear function of its last block's output at the last token: the direction of one
    latent minus that of another. Decoder directions are orthonormal."""
    model = tiny_hooked("gpt2")
    model.hf.transformer.ln_f = torch.nn.Identity()
    config = SAEConfig(d_in=WIDTH, d_sae=WIDTH, k=None, activation="relu", normalize="none", hookpoint="layers.3")
    sae = SparseAutoencoder(config, seed=0)
    with torch.no_grad():
        sae.W_dec.copy_(torch.linalg.qr(torch.randn(WIDTH, WIDTH, generator=torch.Generator().manual_seed(3)))[0])
        sae.W_enc.copy_(sae.W_dec.T)
        sae.b_enc += 0.05
        sae.b_enc[[LIKED, DISLIKED, IDLE]] = 1.0
        sae.b_enc[SILENT] = -1e6
        model.hf.score.weight.copy_(0.1 * (sae.W_dec[LIKED] - sae.W_dec[DISLIKED])[None])
    return model, sae.eval()


def random_sae(hookpoint: str, seed: int) -> SparseAutoencoder:
    sae = SparseAutoencoder(SAEConfig(d_in=WIDTH, d_sae=48, k=6, activation="topk", normalize="layer_norm",
                                      hookpoint=hookpoint), seed=seed)  # fmt: skip
    with torch.no_grad():
        sae.b_enc -= torch.rand(48, generator=torch.Generator().manual_seed(9))
    return sae.eval()


def feature(latent: int, sign: Any = 1, sae: str = "a") -> Feature:
    return Feature(sae=sae, latent=latent, sign=sign, score=0.5 * sign)


def scanned(model: RewardModel, suite: dict[str, SparseAutoencoder], out: Path) -> Scan:
    return scan(model, suite, some_pairs(), out, config=ScanConfig(positions="tokens"))


class World:
    def __init__(self, folder: Path) -> None:
        self.model, sae = planted()
        self.suite = {"a": sae}
        self.scan = scanned(self.model, self.suite, folder / "scan")
        self.features = FeatureSet(features=(feature(LIKED), feature(DISLIKED, -1), feature(IDLE), feature(SILENT)))
        self.report = self.effects()

    def effects(self, features: FeatureSet | None = None, **more: Any) -> CausalReport:
        return causal_effects(self.model, self.suite, features or self.features, some_pairs(), scan=self.scan,
                              draws=200, **more)  # fmt: skip

    def found(self, latent: int) -> FeatureEffect:
        return next(f for f in self.report.features if f.latent == latent)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("causal"))


def value(e: Estimate) -> float:
    assert e.value is not None
    return e.value


# ---- planted causes ----


def test_verdicts_of_planted_causes(world: World) -> None:
    assert {f.latent: f.verdict for f in world.report.features} == {
        LIKED: "yes", DISLIKED: "yes", IDLE: "no", SILENT: "not available"
    }  # fmt: skip
    assert world.found(IDLE).why == "moves nothing"
    assert "fires in answers to 0 prompts" in world.found(SILENT).why
    assert world.report.verdicts == {"yes": 2, "no": 1, "not available": 1}
    assert value(world.found(LIKED).target.reward) > 0 > value(world.found(DISLIKED).target.reward)


def test_a_contrast_without_effect_is_no_cause(world: World) -> None:
    """The latents that tell chosen from rejected best, the two causes aside: none of them moves the reward."""
    top = contrast(world.scan, "safety", "a").top(10).features
    idle = [f for f in top if f.latent not in (LIKED, DISLIKED)][:3]
    assert all(abs(f.score or 0) > 0.02 for f in idle)
    found = world.effects(FeatureSet(features=tuple(idle)), controls=5, dose_pairs=0)
    assert [f.verdict for f in found.features] == ["no"] * 3
    assert found.together.verdict == "no"
    assert not found.agreement.available


def test_a_cause_against_its_sign_is_no_evidence(world: World) -> None:
    found = world.effects(FeatureSet(features=(feature(LIKED, -1),)), dose_pairs=0).features[0]
    assert found.verdict == "no"
    assert found.why.startswith("acts against its sign")


def test_effects_are_those_of_steering(world: World) -> None:
    for f in world.report.features[:3]:
        asked = [Intervention(sae="a", latent=f.latent, action="ablate")]
        groups = {g.group: g for g in steer_pairs(world.model, world.suite, asked, some_pairs()).groups}
        for side in (f.target, f.others):
            assert side is not None
            expected = groups[side.group]
            assert value(side.chosen) == pytest.approx(-value(expected.chosen), abs=1e-6)
            assert value(side.rejected) == pytest.approx(-value(expected.rejected), abs=1e-6)
            assert value(side.margin) == pytest.approx(-value(expected.margin), abs=1e-6)
            assert value(side.accuracy) == pytest.approx(-value(expected.accuracy_change), abs=1e-9)
            both = (value(side.chosen) + value(side.rejected)) / 2
            assert value(side.reward) == pytest.approx(both, abs=1e-6)
    assert world.report.n_pairs == {"safety": 14, "chat": 10}
    assert {"safety", "chat"} == set(world.report.accuracy)


def test_attribution_is_exact_where_the_rest_is_linear(world: World) -> None:
    for f in world.report.features:
        for side in (f.target, f.others):
            assert side is not None
            assert value(side.attribution) == pytest.approx(value(side.reward), abs=2e-6)
    assert abs(value(world.found(LIKED).target.attribution)) > 0.05
    both = world.report.together.target
    assert value(both.attribution) == pytest.approx(value(both.reward), abs=2e-6)


def test_doses_of_a_linear_cause(world: World) -> None:
    q = world.scan.q("a")
    for latent, sign in ((LIKED, 1.0), (DISLIKED, -1.0)):
        f = world.found(latent)
        assert [d.amount for d in f.doses] == [-2.0, -1.0, -0.5, 0.5, 1.0, 2.0]
        for dose in f.doses:
            assert value(dose.target) == pytest.approx(sign * 0.1 * dose.amount * q[latent], rel=1e-3)
        assert (f.monotone.value, f.monotone.low, f.monotone.high) == (sign, sign, sign)
        assert value(f.steered.target) == pytest.approx(sign * 0.1 * q[latent], rel=1e-3)
        assert value(f.steered.difference) == pytest.approx(0.0, abs=1e-5)
    assert world.found(IDLE).monotone.reason == "no amount moves anything"
    assert not world.found(SILENT).steered.target.available
    pooled = {p.kind: p for p in world.report.pooled}
    assert value(pooled["features"].target) == pytest.approx(0.1 * (q[LIKED] + q[DISLIKED]) / 3, rel=1e-3)
    assert value(pooled["random latents"].size) == pytest.approx(0.0, abs=1e-5)
    assert value(pooled["random directions"].size) > 0.01


def test_texts_in_which_nothing_fires_are_not_read(world: World) -> None:
    n_texts, passes = 48, world.report.passes
    assert passes.saved >= n_texts  # all of the latent that never fires
    assert (passes.blocks, passes.blocks_skipped) == (4, 4)
    assert world.found(SILENT).target.reward == Estimate(value=0.0, low=0.0, high=0.0, n=14)
    assert world.found(SILENT).target.n_firing == 0


# ---- any model ----


@pytest.fixture(scope="module")
def two_places(tmp_path_factory: pytest.TempPathFactory) -> tuple[RewardModel, dict[str, SparseAutoencoder], Scan]:
    model = tiny_hooked("bert")
    with torch.no_grad():
        model.hf.classifier.weight.mul_(100.0)
    suite = {"a": random_sae("layers.1", 0), "b": random_sae("layers.2.mlp", 4)}
    return model, suite, scanned(model, suite, tmp_path_factory.mktemp("two") / "scan")


def firing(found: Scan, sae: str, n: int) -> list[int]:
    """Latents that fire in some texts, but not in all."""
    stats = found.feature_stats(sae)
    share = stats.texts / len(found.texts)
    return [int(i) for i in np.lexsort((np.arange(48), -stats.count)) if 0 < share[i] < 1][:n]


def test_several_hookpoints_at_once(two_places: Any) -> None:
    model, suite, found = two_places
    keys = [(sae, latent) for sae in suite for latent in firing(found, sae, 4)]
    features = FeatureSet(features=tuple(feature(latent, 1, sae) for sae, latent in keys))
    report = causal_effects(model, suite, features, some_pairs(), scan=found, controls=2, dose_pairs=0, draws=50)
    asked = [Intervention(sae=sae, latent=latent, action="ablate") for sae, latent in keys]
    both = {g.group: g for g in steer_pairs(model, suite, asked, some_pairs()).groups}
    assert value(report.together.target.margin) == pytest.approx(-value(both["safety"].margin), abs=2e-5)
    assert report.together.others is not None
    assert value(report.together.others.chosen) == pytest.approx(-value(both["chat"].chosen), abs=2e-5)
    for one, f in zip(asked, report.features, strict=True):
        alone = {g.group: g for g in steer_pairs(model, suite, [one], some_pairs()).groups}
        assert value(f.target.margin) == pytest.approx(-value(alone["safety"].margin), abs=2e-5)
    assert report.passes.blocks_skipped == 2
    assert any(abs(value(f.target.attribution) - value(f.target.reward)) > 5e-3 for f in report.features)
    assert not report.features[0].steered.target.available


def test_silent_texts_keep_their_reward_to_the_bit(two_places: Any) -> None:
    model, suite, found = two_places
    latent = firing(found, "a", 1)[0]
    texts = [side for pair in some_pairs() for side in model.renderer().render_pair(pair)]
    recorded = record(model, suite, {"a": [latent]}, texts)
    rows = recorded.fired["a", latent].rows
    assert 0 < len(rows) < len(texts)
    push = ablation(recorded, suite, [("a", latent)])
    pusher = Pusher(model, texts, ["layers.1"])
    after = pusher.rewards([(row, push) for row in range(len(texts))], "all")
    plain = pusher.rewards([(row, lambda _row: []) for row in range(len(texts))], "none")
    silent = np.setdiff1d(np.arange(len(texts)), rows)
    assert np.array_equal(after[silent], plain[silent])
    assert np.allclose(plain, recorded.rewards, atol=1e-4)
    assert (np.abs(after[rows] - plain[rows]) > 1e-5).all()
    assert np.array_equal(np.flatnonzero(recorded.attribution["a", latent]), rows)
    some = pusher.rewards([(int(row), push) for row in rows], "firing")
    assert np.allclose(some, after[rows], atol=1e-4)
    assert pusher.passes == 2 * len(texts) + len(rows)


@pytest.mark.parametrize("where", ["prompt", "all"])
def test_other_tokens(two_places: Any, where: Any) -> None:
    model, suite, found = two_places
    latent = firing(found, "a", 1)[0]
    texts = [side for pair in some_pairs() for side in model.renderer().render_pair(pair)]
    recorded = record(model, suite, {"a": [latent]}, texts, where=where)
    after = Pusher(model, texts, ["layers.1"]).rewards(
        [(row, ablation(recorded, suite, [("a", latent)])) for row in range(len(texts))], where
    )
    asked = [Intervention(sae="a", latent=latent, action="ablate", where=where)]
    expected = steer_rewards(model, suite, asked, texts)
    assert np.allclose(after, expected.after, atol=1e-4)
    assert np.abs(expected.change).max() > 1e-2


def test_random_directions_have_the_norm_of_the_step(two_places: Any) -> None:
    model, suite, found = two_places
    texts = [side for pair in some_pairs() for side in model.renderer().render_pair(pair)]
    latents = firing(found, "a", 5)
    keys = [("a", latent) for latent in latents]
    recorded = record(model, suite, {"a": latents}, texts)
    turned = rotations(suite, keys, 5)
    row = int(recorded.fired[keys[0]].rows[0])
    dense = []
    for push in (ablation(recorded, suite, keys), ablation(recorded, suite, keys, turned)):
        h = torch.zeros(len(texts[row]), WIDTH)
        for _, at, step in push(row):
            h[torch.from_numpy(at)] += step
        dense.append(h)
    assert torch.allclose(dense[0].norm(dim=1), dense[1].norm(dim=1), atol=1e-4)
    assert not torch.allclose(dense[0], dense[1], atol=1e-2)
    again, other = rotations(suite, keys, 5), rotations(suite, keys, 6)
    assert all(torch.equal(again[key], turned[key]) for key in keys)
    assert not any(torch.allclose(other[key], turned[key], atol=1e-2) for key in keys)


@pytest.mark.parametrize("n", [1, 5, 48])
def test_rotations_keep_norms_and_angles(two_places: Any, n: int) -> None:
    """Of two autoencoders at one hookpoint too, and of more latents than dimensions."""
    suite = {"a": two_places[1]["a"], "c": random_sae("layers.1", 8), "b": two_places[1]["b"]}
    keys = [(sae, latent) for sae in ("a", "c") for latent in range(n)]
    turned = rotations(suite, [*keys, ("b", 0)], 0)
    before = torch.stack([suite[sae].W_dec.detach()[latent] for sae, latent in keys])
    after = torch.stack([turned[key] for key in keys])
    assert torch.allclose(before @ before.T, after @ after.T, atol=1e-4)
    assert turned["b", 0].norm() == pytest.approx(float(suite["b"].W_dec[0].detach().norm()), abs=1e-5)
    many = torch.stack([rotations(suite, keys, seed)["a", 0] for seed in range(200)]) / before[0].norm()
    assert many.mean(0).norm() < 0.2, "no direction is preferred"
    assert (many @ before[0] / before[0].norm()).std() == pytest.approx(WIDTH**-0.5, rel=0.2)


def test_stand_ins_are_other_latents_of_like_mass(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    features = FeatureSet(features=world.features.features[:3])
    monkeypatch.setattr("seamark.diagnose.causal_controls.NEAREST", 6)
    drawn = stand_ins(world.scan, features, "safety", 4, 0)
    assert len(drawn.sets) == 4
    assert all(not {f.latent for f in one.features} & {LIKED, DISLIKED, IDLE} for one in drawn.sets)
    assert [len(drawn.of(i)) for i in range(3)] == [4, 4, 4]
    scores = contrast(world.scan, "safety", "a")
    masses = scores.chosen + scores.rejected
    for key, mass in drawn.mass.items():
        assert mass == pytest.approx(masses[key[1]])
    live = np.flatnonzero((masses > 0) & (scores.scores != 0) & ~np.isin(np.arange(WIDTH), [LIKED, DISLIKED, IDLE]))
    for place, f in enumerate(features.features):
        apart = np.abs(np.log(masses[live] / masses[f.latent]))
        furthest = np.sort(apart)[6 + 2 - 1]  # the others of a draw take at most two of the nearest
        assert furthest < apart.max()
        assert all(abs(np.log(masses[i] / masses[f.latent])) <= furthest + 1e-9 for _, i in drawn.of(place))
    many = stand_ins(world.scan, features, "safety", 60, 0)
    assert len(live) - 2 <= len(many.of(0)) <= len(live) < 40, "all that there are, hardly one left out"


class Fake:
    """Scan enough for a draw: 400 latents, whose activation mass falls by 2 % from one to the next."""

    def __init__(self) -> None:
        self.config, self.mass = {"scope": "response"}, 0.98 ** np.arange(400)

    def check_latent(self, sae: str, latent: int) -> None:
        assert sae == "a"
        assert latent < 400

    def scores(self, *_: Any) -> Any:
        one = self.mass / 2
        return SimpleNamespace(chosen=one, rejected=one, scores=np.where(np.arange(400) % 2, 0.1, -0.1))


def test_forty_distinct_stand_ins_among_the_nearest(monkeypatch: pytest.MonkeyPatch) -> None:
    """A limit of 2.5 % takes 39 different controls: drawn among ten latents it cannot be had."""
    fake: Any = Fake()
    monkeypatch.setattr("seamark.diagnose.causal_controls.contrast", fake.scores)
    latents = [100, 101, 102, 300, 0]
    features = FeatureSet(features=tuple(feature(i) for i in latents))
    drawn = stand_ins(fake, features, "safety", 40, 0)
    for place, latent in enumerate(latents):
        mine = [i for _, i in drawn.of(place)]
        assert len(mine) == 40
        assert not set(mine) & set(latents)
        assert max(abs(i - latent) for i in mine) <= (60 if latent == 0 else 30)
    for one in drawn.sets:
        assert len({f.latent for f in one.features}) == 5, "no set has a latent twice"
        assert all(f.sign == (1 if f.latent % 2 else -1) for f in one.features)
    assert len({key for place in range(3) for key in drawn.of(place)}) < 60, "what is measured of one serves all"
    assert drawn.mass["a", 100] == pytest.approx(fake.mass[100])
    other = stand_ins(fake, features, "safety", 40, 1)
    assert other.of(0) != drawn.of(0)
    assert stand_ins(fake, features, "safety", 40, 0) == drawn


@pytest.mark.parametrize(("n", "rank"), [(1, 1), (20, 1), (38, 1), (39, 1), (40, 1), (79, 2), (199, 5)])
def test_a_latent_like_any_other_exceeds_the_limit_as_often_as_told(n: int, rank: int) -> None:
    """Every one of n + 1 values in turn is the feature, the others its controls: it wins in `rank` cases."""
    values = np.random.default_rng(n).normal(size=n + 1)
    won = 0
    for i, own in enumerate(values.tolist()):
        found = Range.of(own, np.delete(values, i).tolist())
        assert found.high is not None and found.low is not None  # noqa: PT018
        assert (found.n, found.level) == (n, pytest.approx(rank / (n + 1)))
        won += own > found.high
        assert found.low <= (found.mean or 0.0) <= found.high
    assert won == rank
    assert Range.of(1.0, []).reason == "no controls were asked for"


def test_controls_are_told(world: World) -> None:
    """In a small autoencoder there are too few: the level is coarser, and the report says so."""
    report = world.report
    fewest = min(f.random_latents.n for f in report.features)
    assert all(fewest <= f.random_latents.n < 39 and f.random_directions.n == 40 for f in report.features)
    assert report.features[0].random_latents.level == pytest.approx(1 / (report.features[0].random_latents.n + 1))
    assert report.features[0].random_directions.level == pytest.approx(1 / 41)
    assert any("coarser than 2.5 %" in c and f"as few as {fewest}" in c for c in report.caveats)
    assert f"(of {report.features[0].random_latents.n})" in report.features[0].why
    assert report.together.random_directions.n == 40
    found = report.features[0].random_latents
    drawn = stand_ins(world.scan, world.features, "safety", 40, 0)
    masses = [drawn.mass[key] / drawn.mass["a", LIKED] for key in drawn.of(0)]
    assert (found.n, found.silent, found.n_prompts) == (len(masses), 0, 14)
    assert found.mass == pytest.approx(float(np.median(masses)))
    assert world.found(SILENT).random_latents.mass is None
    assert world.found(SILENT).random_latents.limit_by_mass is None
    unlike = sum(not 2 / 3 <= (f.random_latents.mass or 1.0) <= 1.5 for f in report.features)
    assert unlike
    assert any(c.startswith(f"{unlike} of 4 features have no random latents of like") for c in report.caveats)
    assert "no latents of like mass" in report.features[0].why
    assert report.together.pool == len({f.key for one in drawn.sets for f in one.features})
    assert not any("made of" in c for c in report.caveats)
    crowd = FeatureSet(features=tuple(feature(i) for i in range(9)))
    small = world.effects(crowd, controls=2, steer_controls=0, dose_pairs=0)
    assert any(f"made of {small.together.pool} latents for 9 features" in c for c in small.caveats)


# ---- what random latents are held to ----


def weighed(world: World, weights: np.ndarray[Any, Any]) -> RewardModel:
    """The planted model with another reward: of every latent's direction so much."""
    model, sae = planted()
    with torch.no_grad():
        model.hf.score.weight.copy_((torch.tensor(weights, dtype=torch.float32)[:, None] * sae.W_dec).sum(0)[None])
    return model


@pytest.mark.parametrize(
    ("weight", "said"),
    [(0.09, "no more than random latents per unit"), (0.002, "+"), (-3.0, "+")],
    ids=["much for their mass", "little", "against their own signs"],
)
def test_random_latents_count_in_their_own_sign_and_by_mass(world: World, weight: float, said: str) -> None:
    """The reward has so much of every other latent, in the direction of its own contrast. Against their own signs
    they are no equals of the feature, though half of them do far more in the direction of *its* sign."""
    scores = contrast(world.scan, "safety", "a")
    weights = weight * np.sign(scores.scores)
    weights[[LIKED, DISLIKED, IDLE, SILENT]] = 0.1, 0.0, 0.0, 0.0
    model, features = weighed(world, weights), FeatureSet(features=(feature(LIKED),))
    ask = {"scan": world.scan, "steer_controls": 0, "dose_pairs": 0, "draws": 50}
    found = causal_effects(model, world.suite, features, some_pairs(), **ask).features[0]
    drawn = stand_ins(world.scan, features, "safety", 40, 0)
    alone = FeatureSet(features=tuple(feature(i) for _, i in drawn.of(0)))
    effects = causal_effects(model, world.suite, alone, some_pairs(), **ask, controls=0).features
    own_sign = np.asarray([np.sign(scores.scores[f.latent]) * value(f.target.reward) for f in effects])
    masses = np.asarray([drawn.mass[f.sae, f.latent] / drawn.mass["a", LIKED] for f in effects])
    at = found.random_latents
    assert (at.low, at.high) == (pytest.approx(own_sign.min(), abs=1e-5), pytest.approx(own_sign.max(), abs=1e-5))
    assert at.limit_by_mass == pytest.approx((own_sign / masses).max(), abs=1e-4)
    assert at.own == pytest.approx(value(found.target.reward), abs=1e-6)
    still = found.random_directions.model_copy(update={"high": 0.0})  # they go along with what the others do
    verdict_of, why = verdict(found.target.reward, 1, 14, 0.0, at, still)
    assert why.startswith(said)
    assert verdict_of == ("yes" if said == "+" else "no")
    assert at.own > at.high
    if weight < 0:
        assert at.high <= 1e-6
        assert max(value(f.target.reward) for f in effects) > at.own


def test_silent_in_the_control_pairs(two_places: Any) -> None:
    """What fires in too few of them was not measured there: no verdict, and no control either."""
    model, suite, found = two_places
    features = FeatureSet(features=tuple(feature(latent, 1) for latent in firing(found, "a", 12)))
    pairs = some_pairs().group("safety")
    ask = {"scan": found, "controls": 12, "steer_controls": 0, "dose_pairs": 0, "draws": 50}
    report = causal_effects(model, suite, features, pairs, **ask, control_pairs=6)
    some = np.sort(np.random.default_rng(0).permutation(14)[:6])
    texts = [side for i in some for side in model.renderer().render_pair(pairs[int(i)])]
    recorded = record(model, suite, {"a": list(range(48))}, texts)
    prompts = {i: len(np.unique(recorded.fired["a", i].rows // 2)) for i in range(48)}
    drawn = stand_ins(found, features, "safety", 12, 0)
    for place, f in enumerate(report.features):
        at, others = f.random_latents, [prompts[i] for _, i in drawn.of(place)]
        assert at.n_prompts == f.random_directions.n_prompts == prompts[f.latent]
        assert (at.n, at.silent) == (sum(n >= 5 for n in others), sum(n < 5 for n in others))
        assert ("of the control pairs" in f.why) == (prompts[f.latent] < 5 <= f.target.n_prompts)
        assert (f.verdict == "not available") == (prompts[f.latent] < 5 or not at.n)
    assert any("prompts of the control pairs, fewer than 5" in f.why for f in report.features)
    assert any(f.verdict != "not available" for f in report.features)
    assert any(f.random_latents.silent and f.random_latents.n for f in report.features)


def test_controls_are_measured_on_the_control_pairs_alone(two_places: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ranges are those of a measurement with no other pairs of the target group; and nothing is kept of the others."""
    model, suite, found = two_places
    read: list[tuple[int, int]] = []

    def spy(model: Any, suite: Any, latents: Any, texts: Any, **more: Any) -> Any:
        read.append((sum(len(some) for some in latents.values()), len(texts)))
        return record(model, suite, latents, texts, **more)

    monkeypatch.setattr("seamark.diagnose.causal_ablation.record", spy)
    features = FeatureSet(features=tuple(feature(latent, 1) for latent in firing(found, "a", 4)))
    ask = {"scan": found, "controls": 8, "steer_controls": 0, "dose_pairs": 0, "draws": 50, "seed": 3}
    report = causal_effects(model, suite, features, some_pairs(), **ask, control_pairs=7)
    assert [n for _, n in read] == [48, 14]
    assert read[0][0] == 4 < read[1][0]
    ids = {f"p{i}" for i in np.random.default_rng(3).permutation(14)[:7]}
    few = some_pairs().where(lambda p: p.id in ids or p.group == "chat")
    alone = causal_effects(model, suite, features, few, **ask)
    assert alone.control_pairs == report.control_pairs == 7
    ranges = [[r for f in (*one.features, one.together) for r in (f.random_latents, f.random_directions)]
              for one in (report, alone)]  # fmt: skip
    assert any(abs(r.high or 0.0) > 1e-3 for r in ranges[0])
    for a, b in zip(*ranges, strict=True):
        assert (a.n, a.silent, a.n_prompts, a.mass) == (b.n, b.silent, b.n_prompts, b.mass)
        for name in ("low", "high", "own", "mean", "limit_by_mass"):
            x, y = getattr(a, name), getattr(b, name)
            assert (x is None and y is None) or x == pytest.approx(y, abs=1e-4)
    assert report.random_yes == alone.random_yes
    assert report.features_yes == alone.features_yes
    assert 0 <= value(report.features_yes) <= 1


def test_pairs_that_the_features_were_found_on_are_counted(world: World) -> None:
    assert world.report.seen_pairs == world.report.n_pairs
    assert any(c.startswith("24 of 24 pairs are among those") for c in world.report.caveats)
    mixed = Pairs([replace(p, id=f"new-{p.id}") if i % 2 else p for i, p in enumerate(some_pairs())])
    found = causal_effects(world.model, world.suite, world.features, mixed, scan=world.scan, controls=1, dose_pairs=0,
                           draws=20)  # fmt: skip
    assert found.seen_pairs == {"safety": 7, "chat": 5}
    assert any(c.startswith("12 of 24 pairs") for c in found.caveats)
    fresh = Pairs([replace(p, id=f"new-{p.id}") for p in some_pairs()])
    found = causal_effects(world.model, world.suite, world.features, fresh, scan=world.scan, controls=1, dose_pairs=0,
                           draws=20)  # fmt: skip
    assert found.seen_pairs == {"safety": 0, "chat": 0}
    assert not any("pairs are among those" in c for c in found.caveats)


def test_the_scan_of_another_model_is_told(world: World) -> None:
    assert not any("another model" in c for c in world.report.caveats)
    other, _ = planted()
    with torch.no_grad():
        other.hf.score.weight.mul_(2.0)
    found = causal_effects(other, world.suite, world.features, some_pairs(), scan=world.scan, controls=1, dose_pairs=0,
                           draws=20)  # fmt: skip
    assert any("The scan was made with another model" in c for c in found.caveats)


def test_other_units_are_another_measurement(world: World) -> None:
    few = {"controls": 1, "steer_controls": 0, "amounts": [1.0]}
    same, q = world.effects(**few), world.scan.q("a")
    assert world.effects(q={"a": q}, **few).key == same.key
    twice = world.effects(q={"a": 2 * q}, **few)
    assert twice.key != same.key
    assert twice.features[0].steered != same.features[0].steered
    still = {"dose_pairs": 0, **few}
    assert world.effects(q={"a": 2 * q}, **still).key == world.effects(**still).key, "no unit was used"


def test_the_same_again(world: World) -> None:
    assert world.effects() == world.report
    other = world.effects(seed=1)
    assert other.key != world.report.key


def test_without_others_and_controls(world: World) -> None:
    found = causal_effects(world.model, world.suite, world.features, some_pairs().group("safety"), scan=world.scan,
                           controls=0, steer_controls=0, draws=50)  # fmt: skip
    assert found.others == ()
    assert {f.verdict for f in found.features} == {"not available"}
    assert found.features[0].why == "no controls were asked for"
    assert found.features[0].difference.reason == "no pairs of other groups"
    assert [p.kind for p in found.pooled] == ["features"]
    assert not found.agreement_random.available


def test_one_pair_and_no_units(world: World) -> None:
    one = some_pairs().where(lambda p: p.id in ("p0", "p20"))
    found = causal_effects(world.model, world.suite, world.features, one, scan=world.scan, q={}, controls=2, draws=20)
    assert {f.verdict for f in found.features} == {"not available"}
    assert found.features[0].target.reward.low is None
    assert value(found.features[0].target.reward) > 0
    assert not found.features[0].steered.target.available
    assert found.pooled == ()
    with_q = causal_effects(world.model, world.suite, world.features, one, scan=world.scan, controls=2, draws=20)
    assert with_q.features[0].steered.target.reason == "no interval: too few prompts"


# ---- rule and correlation ----


def test_the_rule() -> None:
    def latents(**other: Any) -> Range:
        return Range(**{"n": 20, "n_prompts": 9, "low": -0.1, "high": 0.1, "own": 0.4, "mass": 1.0,
                        "limit_by_mass": 0.1} | other)  # fmt: skip

    tight, wide = latents(), latents(low=-0.5, high=0.5)
    good = Estimate(value=0.4, low=0.3, high=0.5, n=9)
    bad = Estimate(value=-0.4, low=-0.5, high=-0.3, n=9)
    assert verdict(good, 1, 9, 0.0, tight, tight)[0] == "yes"
    negative = verdict(bad, -1, 9, 0.0, tight, tight)
    assert negative[0] == "yes"
    assert "+0.4 in its direction, at least +0.3" in negative[1]
    assert verdict(bad, 1, 9, 0.0, tight, tight)[0] == "no"
    for ranges in ((wide, tight), (tight, wide)):
        assert verdict(good, 1, 9, 0.0, *ranges)[1].startswith("no more than controls")
    around = Estimate(value=0.4, low=-0.1, high=0.9, n=9)
    assert "the interval holds 0" in verdict(around, 1, 9, 0.0, tight, tight)[1]
    assert verdict(good, 1, 9, 0.4, tight, tight) == ("no", "moves nothing")
    assert verdict(good, 1, 4, 0.0, tight, tight)[0] == "not available"
    assert verdict(Estimate(value=0.4, n=9, reason="one prompt"), 1, 9, 0.0, tight, tight) == (
        "not available", "one prompt")  # fmt: skip
    assert verdict(good, 1, 9, 0.0, Range(n=0, n_prompts=9), tight)[0] == "not available"


def test_the_rule_of_mass_and_of_the_control_pairs() -> None:
    good, directions = Estimate(value=0.4, low=0.3, high=0.5, n=9), Range.of(0.4, [-0.1, 0.1], n_prompts=9)

    def said(*masses: float, **more: Any) -> tuple[str, str]:
        return verdict(good, 1, 9, 0.0, Range.of(0.4, [0.1, -0.1, 0.2], masses, **{"n_prompts": 9} | more), directions)

    assert said(1.0, 1.0, 1.0)[0] == "yes"
    assert "like mass" not in said(0.7, 1.0, 1.4)[1]
    small = said(0.6, 0.6, 0.6)  # the largest does 0.2 / 0.6 at the feature's mass
    assert small[0] == "yes"
    assert "at its activation mass, +0.333" in small[1]
    assert small[1].endswith("no latents of like mass, the median has 0.6 times its own")
    smaller = said(0.4, 0.4, 0.4)
    assert smaller[0] == "no"
    assert smaller[1].startswith("no more than random latents per unit of activation mass")
    assert said(0.2, 1.0, 1.0)[0] == "no", "one small one is enough: 0.1 / 0.2"
    assert said(9.0, 9.0, 9.0)[1].endswith("the median has 9 times its own")
    assert said(1.0, 1.0, 1.0, n_prompts=4) == (
        "not available", "fires in answers to 4 prompts of the control pairs, fewer than 5: ask for more of those"
    )  # fmt: skip
    none = Range.of(0.4, [], n_prompts=9, silent=3)
    assert verdict(good, 1, 9, 0.0, none, directions)[1].startswith("none of 3 controls fires in answers to 5 prompts")
    massless = Range.of(0.4, [0.1], None, n_prompts=9)
    assert verdict(good, 1, 9, 0.0, massless, directions) == ("not available", "has no activation mass in the scan")


def test_rank_agreement() -> None:
    rng = np.random.default_rng(0)
    effect = np.linspace(-1, 1, 12) + rng.normal(0, 0.05, (40, 12))
    prompts = np.arange(40) // 2
    same = rank_agreement(effect**3, effect, prompts, draws=200)
    assert value(same) > 0.95
    assert same.low is not None and same.low > 0.8  # noqa: PT018
    against = rank_agreement(-effect, effect, prompts, draws=200)
    assert value(against) == pytest.approx(-1.0)
    nothing = rank_agreement(rng.normal(size=(40, 12)), effect, prompts, draws=200)
    assert nothing.low is not None and nothing.high is not None and nothing.low < 0 < nothing.high  # noqa: PT018
    few = np.where(np.arange(12) < 2, effect, 1e-9)
    assert rank_agreement(few, few, prompts, floor=1e-6).reason == "2 features have an effect here, too few to rank"
    assert rank_agreement(effect, effect, np.zeros(40, np.int64)).low is None
    assert not rank_agreement(np.ones((4, 5)), np.ones((4, 5)), np.arange(4)).available
    assert spearman(np.asarray([1.0, 2.0, 3.0]), np.asarray([9.0, 1.0, 0.0])) == pytest.approx(-1.0)


# ---- mistakes ----


def test_mistakes(world: World) -> None:
    pairs, features = some_pairs(), world.features

    def ask(error: type[Exception], match: str, model: Any = None, suite: Any = None, some: Any = None, **more: Any
            ) -> None:  # fmt: skip
        with pytest.raises(error, match=match):
            causal_effects(model or world.model, suite or world.suite, some or features, pairs,
                           **({"scan": world.scan} | more))  # fmt: skip

    ask(ConfigError, "gives no rewards", model=tiny_hooked("llama", "lm"))
    ask(ConfigError, "no pair of group 'code'", group="code")
    ask(ConfigError, "no pair of group 'code'", others=["code"])
    ask(ConfigError, "compared with itself", others=["safety"])
    ask(ConfigError, "no autoencoder 'b'", some=FeatureSet(features=(feature(1, 1, "b"),)))
    ask(DataError, "no latent 32", some=FeatureSet(features=(feature(32),)))
    ask(ConfigError, "controls is -1", controls=-1)
    ask(ConfigError, "the amount is nan", amounts=[float("nan")])
    ask(ConfigError, "the amount is 0", amounts=[0.0, 1.0])
    ask(ConfigError, "given twice", amounts=[1.0, 1.0])
    ask(ConfigError, "draws is 0", draws=0)
    ask(ConfigError, "unknown tokens", where="reply")
    ask(ConfigError, "another autoencoder called 'a'", suite={"a": random_sae("layers.3", 1)})
    with pytest.raises(DataError, match="no feature"):
        causal_effects(world.model, world.suite, FeatureSet(features=()), pairs, scan=world.scan)
    many = FeatureSet(features=tuple(feature(i) for i in range(25)))
    ask(DataError, "too few to replace", some=many)
