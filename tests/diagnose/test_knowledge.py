"""Known against unknown entities: reading, asking, tests of features, the control, a model that was taught."""

from __future__ import annotations

import importlib
import json
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from planted_knowledge import ANSWER, NAMES, TAUGHT, apart, question, taught_model
from planted_risk import write_rows
from scipy.sparse import csr_matrix
from scipy.stats import chi2, mannwhitneyu
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from seamark.diagnose import KnowledgeConfig, KnowledgeReport, knowledge
from seamark.diagnose.answering import ask, holds
from seamark.diagnose.entities import EntityTexts, count_entities, entity_tokens, read_entities
from seamark.diagnose.knowing import Doubt, folds_of, held_out_best, out_of_fold, score_test, separate, upper_tail
from seamark.errors import ConfigError, DataError, ModelError
from seamark.model.batching import collate
from seamark.model.reading import read
from seamark.sae import SAEConfig, SparseAutoencoder
from tiny import tiny_hooked
from tiny_run import call

knowledge_module = importlib.import_module("seamark.diagnose.knowledge")
CONFIG = KnowledgeConfig(draws=200, least=5, chat=False, new_tokens=3)


def sae(hookpoint: str = "layers.2", seed: int = 0) -> SparseAutoencoder:
    return SparseAutoencoder(SAEConfig(d_in=32, d_sae=96, k=12, hookpoint=hookpoint), seed=seed).eval()


def rows(known: bool = False, **more: Any) -> list[dict[str, Any]]:
    found = []
    for name in NAMES:
        said = {"known": name in TAUGHT} if known else {"question": question(name), "answers": [ANSWER[name]]}
        found.append({"entity": name, "text": question("{entity}"), **said, **more})
    return found


def entities(tmp_path: Path, given: list[dict[str, Any]], **more: Any) -> EntityTexts:
    return read_entities(write_rows(tmp_path / "e.jsonl", given), **more)


# ---- tests of features


def test_every_feature_agrees_with_scipy() -> None:
    x, y, covariates = apart()
    found = separate(csr_matrix(x), y, covariates, 5)
    for f in range(5):
        a, b = x[y == 1, f], x[y == 0, f]
        want = mannwhitneyu(a, b, method="asymptotic")
        assert found.auroc[f] == pytest.approx(want.statistic / (len(a) * len(b)))
        assert found.p[f] == pytest.approx(want.pvalue, rel=1e-6)
        assert (found.known[f], found.unknown[f]) == pytest.approx((a.mean(), b.mean()))
    assert np.isnan([found.auroc[5], found.p[5], found.controlled_p[5], found.direction[5]]).all()
    assert found.why_no_control(5) == "", "it was not tested at all"
    assert (found.direction[[0, 2]] == [1, -1]).all()
    assert found.fired.tolist() == (x > 0).sum(0).tolist()


def test_the_control_takes_away_what_follows_frequency_alone() -> None:
    x, y, covariates = apart(400)
    found = separate(csr_matrix(x), y, covariates, 5)
    assert (found.q_value[[0, 1, 2]] < 0.001).all()
    assert (found.controlled_q[[0, 2]] < 0.001).all()
    assert found.controlled_q[1] > 0.05
    doubt = Doubt(y, folds_of(y, 0), 300, 0)
    base = out_of_fold(covariates, y, doubt.fold)
    added = [doubt.difference(out_of_fold(np.column_stack([covariates, x[:, f]]), y, doubt.fold), base)
             for f in range(5)]  # fmt: skip
    assert added[0].low > 0.02
    assert added[2].low > 0.02
    assert added[1].high < 0.02
    assert added[3].low <= 0.005


def test_the_score_test_is_right_under_the_null() -> None:
    """p of noise is uniform even where frequency tells all of what is known."""
    p = []
    for seed in range(60):
        rng = np.random.default_rng(seed)
        _, y, covariates = apart(100, seed)
        noise = covariates + rng.normal(size=(100, 5))  # correlated with the covariate
        p.extend(score_test(csr_matrix(noise), y, covariates).p.tolist())
    assert np.mean(np.asarray(p) < 0.05) == pytest.approx(0.05, abs=0.03)
    assert np.mean(p) == pytest.approx(0.5, abs=0.05)


def test_what_merely_follows_frequency_is_called_as_seldom_as_said() -> None:
    """Though the covariates nearly separate the classes, so that a ridge fit leaves much of what they explain."""
    p = []
    for seed in range(150):
        rng = np.random.default_rng(seed)
        y = (np.arange(100) % 2).astype(np.int64)
        frequency = rng.normal(size=100) + 2.5 * y
        covariates = np.column_stack([frequency, rng.normal(size=(100, 3))])
        follows = [np.maximum(frequency - cut + width * rng.normal(size=100), 0)
                   for cut, width in ((0, 0.3), (0, 1.0), (1, 0.3))]  # fmt: skip
        p.append(score_test(csr_matrix(np.column_stack(follows)), y, covariates).p)
    called = (np.asarray(p) < 0.05).mean(0)
    assert called.mean() == pytest.approx(0.05, abs=0.025)
    assert (called <= 0.08).all(), "each kind by itself"


def test_the_score_test_by_hand() -> None:
    x, y, covariates = apart()
    z = (covariates - covariates.mean()) / covariates.std()
    w = LogisticRegression(C=10.0).fit(z, y).predict_proba(z)[:, 1]
    design, weight = np.hstack([np.ones((len(y), 1)), z]), np.diag(w * (1 - w))
    found = score_test(csr_matrix(x[:, :4]), y, covariates)
    for column, strong in ((3, False), (0, True)):
        f = x[:, column]
        rest = f - design @ np.linalg.solve(design.T @ weight @ design, design.T @ weight @ f)
        chi = (rest @ (y - w)) ** 2 / (rest @ weight @ rest)
        assert (chi > 4) == strong
        tails = upper_tail(rest, w, abs(rest @ (y - w))) + upper_tail(-rest, w, abs(rest @ (y - w)))
        assert found.p[column] == pytest.approx(tails if strong else chi2.sf(chi, 1), rel=1e-6)
    assert found.direction[0] == np.sign(rest @ (y - w)) == 1
    assert found.expected[0] == pytest.approx(np.minimum(w, 1 - w)[f > 0].sum())
    assert score_test(csr_matrix(x[:, :1]), 1 - y, covariates).direction[0] == -1


def test_tails_of_a_skewed_sum_are_the_exact_ones() -> None:
    rng = np.random.default_rng(0)
    every = np.asarray(list(product((0, 1), repeat=15)))
    for rare in (0.5, 0.2, 0.08):
        a, p = np.exp(0.7 * rng.normal(size=15)), rare + 0.04 * rng.random(15)
        chance, total = np.where(every, p, 1 - p).prod(1), every @ a - a @ p
        deviation = np.sqrt(a * a @ (p * (1 - p)))
        for z in (2.0, 2.5, 3.0):
            for sign in (1, -1):
                exact = chance[sign * total >= z * deviation].sum()
                assert upper_tail(sign * a, p, z * deviation) == pytest.approx(exact, rel=0.3, abs=1e-5)
    assert upper_tail(a, p, a.sum() - a @ p) == pytest.approx(p.prod())
    assert upper_tail(a, p, (a.sum() - a @ p) * 1.01) == 0
    assert upper_tail(1e-9 * a, p, 2e-9 * deviation) == pytest.approx(upper_tail(a, p, 2 * deviation), rel=1e-6)


def test_two_surprises_among_ten_firings_are_no_find() -> None:
    """Entities that are all but surely known by their frequency: chance gives two unknown ones in 1.6 % of draws."""
    rng = np.random.default_rng(0)
    frequency = np.concatenate([rng.normal(4, 0.3, 400), rng.normal(0, 0.3, 400)])
    y = (rng.random(800) < np.where(np.arange(800) < 400, 0.98, 0.1)).astype(np.int64)
    firing = np.concatenate([np.flatnonzero(y[:400] == 0)[:2], np.flatnonzero(y[:400] == 1)[:8]])
    x = np.zeros((800, 1))
    x[firing] = 1.0
    found = separate(csr_matrix(x), y, frequency[:, None], 10)
    assert found.expected[0] < 1
    assert np.isnan([found.controlled_p[0], found.controlled_q[0], found.direction[0]]).all()
    assert found.why_no_control(0).startswith("among the 10 entities for which it fires, 0.")
    assert np.isfinite(found.p[0])


def test_sparse_features_are_seldom_called_under_the_null() -> None:
    p, expected = [], []
    for seed in range(6):
        rng = np.random.default_rng(seed)
        frequency = rng.normal(size=600)
        y = (rng.random(600) < 1 / (1 + np.exp(-2 - 2 * frequency))).astype(np.int64)
        rate = np.exp(rng.uniform(np.log(0.02), np.log(0.2), 2000) + frequency[:, None] * rng.choice([0, 1], 2000))
        fires = rng.random((600, 2000)) < np.minimum(rate, 0.5)
        x = csr_matrix(np.where(fires, np.exp(0.7 * rng.normal(size=(600, 2000))), 0))
        found = score_test(x, y, np.column_stack([frequency, frequency**2]))
        p.append(found.p)
        expected.append(found.expected)
    p, expected = np.concatenate(p), np.concatenate(expected)
    assert (np.isnan(p) == (expected < 5)).all()
    sparse = p[(expected >= 5) & (expected < 20)]
    assert len(sparse) > 4000
    assert 0.3 < np.isnan(p).mean() < 0.9, "there are those that would be called by chance"
    assert np.mean(sparse < 0.001) < 0.0015, "normal tails: 0.002"
    assert np.mean(sparse < 0.05) == pytest.approx(0.05, abs=0.015)


def test_a_feature_that_turns_beside_frequency_is_not_called() -> None:
    """By itself stronger for known entities, since it follows frequency; beside frequency, for unknown ones."""
    rng = np.random.default_rng(3)
    n = 800
    y = (np.arange(n) % 2).astype(np.int64)
    frequency = rng.normal(size=n) + 2.0 * y
    x = np.zeros((n, 2))
    x[:, 0] = np.maximum(2 * frequency - 2.2 * y + 0.5 * rng.normal(size=n) + 3, 0)
    x[:, 1] = np.maximum(rng.normal(size=n) + y, 0)
    split = separate(csr_matrix(x), y, frequency[:, None], 10)
    assert (split.q_value < 0.01).all()
    assert (split.controlled_q < 0.01).all()
    assert (split.auroc > 0.5).all()
    assert split.direction.tolist() == [-1, 1]
    about = knowledge_module._Entities([], [], np.arange(n), y, frequency[:, None], ("frequency",), "", 0)
    doubt = Doubt(y, folds_of(y, 0), 100, 0)
    base = out_of_fold(frequency[:, None], y, doubt.fold)
    turned, straight = (
        knowledge_module._numbers(f, csr_matrix(x), split, about, doubt, base, KnowledgeConfig()) for f in (0, 1)
    )
    assert turned["added"].low > 0, "the sides alone keep it from being called"
    assert (turned["side"], turned["controlled_side"], turned["beyond_covariates"]) == ("known", "unknown", False)
    assert (straight["side"], straight["controlled_side"], straight["beyond_covariates"]) == ("known", "known", True)


def test_intervals_and_held_out_entities() -> None:
    x, y, _ = apart()
    doubt = Doubt(y, folds_of(y, 0), 500, 0)
    area = doubt.area(x[:, 0])
    assert area.value == pytest.approx(roc_auc_score(y, x[:, 0]))
    assert area.low < area.value < area.high
    difference = doubt.mean_difference(x[:, 0])
    assert difference.value == pytest.approx(x[y == 1, 0].mean() - x[y == 0, 0].mean())
    rng = np.random.default_rng(0)
    drawn = []
    for _ in range(500):
        i = rng.integers(0, len(y), len(y))
        drawn.append(x[i][y[i] == 1, 0].mean() - x[i][y[i] == 0, 0].mean())
    assert (difference.low, difference.high) == pytest.approx(np.quantile(drawn, [0.025, 0.975]), abs=0.06)
    for k in range(5):
        assert (y[doubt.fold == k] == 1).sum() == 12
    noise = np.maximum(np.random.default_rng(1).normal(size=(120, 400)), 0)
    best = separate(csr_matrix(noise), y, np.zeros((120, 1)), 5).auroc
    assert np.nanmax(np.abs(best - 0.5)) > 0.12, "the best of many looks good"
    held_out = doubt.area(held_out_best(csr_matrix(noise), y, doubt.fold, 5), by_fold=True)
    assert held_out.low < 0.5 < held_out.high
    assert doubt.area(held_out_best(csr_matrix(x), y, doubt.fold, 5), by_fold=True).low > 0.7


def test_a_bend_in_frequency_is_a_covariate_too(tmp_path: Path) -> None:
    """Where entities of middling frequency alone are known, log frequency itself tells nothing."""
    given = [r | {"known": 4 <= i % 16 < 12, "frequency": float(np.expm1(i % 16))}
             for i, r in enumerate(rows(known=True))]  # fmt: skip
    done = knowledge(taught_model(), {"a": sae()}, entities(tmp_path, given), config=CONFIG, top=1)
    assert done.covariates_auroc.value > 0.95


# ---- a model that was taught


def test_what_the_model_was_taught_and_what_tells_it(tmp_path: Path) -> None:
    model = taught_model()
    suite = {"late": sae("layers.2"), "early": sae("layers.0", 1)}
    done = knowledge(model, suite, entities(tmp_path, rows()), config=CONFIG)
    assert done.asked is not None
    known = done.asked.known
    assert done.asked.questions == len(NAMES)
    assert known >= len(TAUGHT) - 1
    assert done.known == known
    assert done.known + done.unknown + done.asked.mixed == len(NAMES)
    assert done.unknown >= 8  # one in four is guessed
    assert "no frequency is given" in done.no_frequency
    assert any("Frequency is not controlled for" in c for c in done.caveats)
    assert done.apart > 0
    best = done.features[0]
    assert abs(best.auroc.value - 0.5) > 0.3
    assert best.difference.low is not None
    assert (best.difference.value > 0) == (best.side == "known") or best.difference.low < 0 < best.difference.high
    aurocs = [abs(f.auroc.value - 0.5) for f in done.features]
    assert aurocs == sorted(aurocs, reverse=True)
    assert KnowledgeReport.model_validate_json(done.model_dump_json()) == done


def test_activations_are_those_at_the_last_token_of_the_name(tmp_path: Path) -> None:
    model, one = taught_model(), sae()
    given = [r | {"text": "{entity} and then the ships of {entity} came in"} for r in rows(known=True)]
    done = knowledge(model, {"a": one}, entities(tmp_path, given), config=CONFIG, top=5)
    z = []
    for name in NAMES:
        text = model.renderer().render_text(f"{name} and then the ships of {name} came in", "t")
        ends = text.text.rindex(name) + len(name)
        last = max(i for i, (a, b) in enumerate(text.offsets.tolist()) if a < ends and b > a)
        assert entity_tokens(text, name)[-1] == last
        h = read(model, collate([text], 0), ["layers.2"]).activations["layers.2"][0, last][None]
        dense = np.zeros(96)
        found = one.encode(h.float()).positive()
        dense[found.indices.numpy()] = found.values.detach().numpy()
        z.append(dense)
    y = np.asarray([name in TAUGHT for name in NAMES])
    for f in done.features:
        value = np.asarray(z)[:, f.latent]
        assert f.auroc.value == pytest.approx(roc_auc_score(y, value), abs=1e-6)
        assert f.known == pytest.approx(value[y].mean() / f.q, rel=1e-3)


def test_frequency_that_tells_all_is_told_of(tmp_path: Path) -> None:
    given = [r | {"frequency": 1000 + i if r["known"] else i % 3} for i, r in enumerate(rows(known=True))]
    done = knowledge(taught_model(), {"a": sae()}, entities(tmp_path, given), config=CONFIG, top=4)
    assert (done.covariates[0], done.covariates[-1]) == ("log(1 + frequency)", "log(1 + frequency) squared")
    assert done.covariates_auroc.value > 0.95
    assert any("hardly anything is left" in c for c in done.caveats)
    assert not any(f.beyond_covariates for f in done.features)
    assert all((f.beyond_covariates is None) == (f.controlled_q is None) == (f.controlled_side is None)
               == bool(f.no_control) for f in done.features)  # fmt: skip
    assert done.controlled < done.tested
    assert done.asked is None


def test_several_texts_of_an_entity_count_once(tmp_path: Path) -> None:
    once = entities(tmp_path, rows(known=True))
    twice = entities(tmp_path, [r | {"text": t} for r in rows(known=True)
                                for t in (question("{entity}"), "Is it safe in {entity}")])  # fmt: skip
    done = knowledge(taught_model(), {"a": sae()}, twice, config=CONFIG, top=2)
    assert (done.known + done.unknown, done.texts) == (len(once), 2 * len(once))
    assert done.features[0].auroc.n == len(once)


# ---- asking and reading


def test_answers() -> None:
    assert holds("It is Paris, of course", "paris")
    assert holds("the ships are New York's", "new york")
    assert not holds("Parisian", "Paris")
    assert not holds("new old york", "new york")
    assert not holds("anything", "!?")
    assert holds("我在北京市", "北京")


def test_only_right_answers_make_an_entity_known(tmp_path: Path) -> None:
    name = TAUGHT[0]
    given = [
        {"entity": name, "question": question(name), "answers": ["x", ANSWER[name]]},
        {"entity": TAUGHT[1], "question": question(TAUGHT[1]), "answers": "unheard"},
        {"entity": TAUGHT[2], "question": question("{entity}"), "answers": [ANSWER[TAUGHT[2]]]},
        {"entity": TAUGHT[2], "question": "The bread of {entity} is", "answers": ["unheard"]},
        {"entity": "Said", "known": True},
    ]
    texts, asked = ask(taught_model(), entities(tmp_path, given), chat=False, new_tokens=3)
    assert (asked.questions, asked.right, asked.known, asked.unknown, asked.mixed) == (4, 2, 1, 1, 1)
    assert {i.entity: i.known for i in texts.items} == {name: True, TAUGHT[1]: False, "Said": True}
    with pytest.raises(ConfigError, match="only language models answer"):
        ask(tiny_hooked("bert", "base"), entities(tmp_path, given))
    long = entities(tmp_path, [{"entity": "x", "question": "safe " * 30_000, "answers": ["y"]}])
    with pytest.raises(DataError, match=r"the question has .* tokens; there is room for"):
        ask(taught_model(), long, chat=False)


def test_files_with_good_and_bad_rows(tmp_path: Path) -> None:
    given = [
        {"entity": "Bolen", "known": True, "frequency": 3}, {"entity": "Karith", "known": "false"},
        {"entity": "", "known": True}, {"entity": "A"}, {"entity": "B", "text": "no name here", "known": True},
        {"entity": "C", "known": "maybe"}, {"entity": "D", "known": True, "frequency": -1},
        {"entity": "E", "known": True, "text": "E " + "x" * 200_001}, {"entity": "Bolen", "known": True},
        {"entity": "Bolen", "text": "To {entity}"}, {"entity": "Bolen", "text": "In {entity}", "known": True},
    ]  # fmt: skip
    found = entities(tmp_path, given, template="Where is {entity}?")
    assert [(i.entity, i.text, i.known, i.frequency) for i in found.items] == [
        ("Bolen", "Where is Bolen?", True, 3.0), ("Karith", "Where is Karith?", False, None),
        ("Bolen", "In Bolen", True, None)]  # fmt: skip
    assert [r.row for r in found.rejected] == [3, 4, 5, 6, 7, 8, 9, 10]
    with pytest.raises(ConfigError, match="template has no"):
        entities(tmp_path, given, template="Where?")
    with pytest.raises(DataError, match="no column entity"):
        entities(tmp_path, [{"name": "x"}])
    with pytest.raises(DataError, match="known, and not to be known"):
        entities(tmp_path, [{"entity": "x", "known": True}, {"entity": "x", "text": "x!", "known": False}])


def test_what_cannot_be_judged(tmp_path: Path) -> None:
    model = taught_model()
    with pytest.raises(DataError, match="0 unknown entities; 5 are needed"):
        knowledge(model, {"a": sae()}, entities(tmp_path, [r for r in rows(known=True) if r["known"]]), config=CONFIG)
    far = [r | {"text": "{entity}" + " ships" * 600} for r in rows(known=True)]
    with pytest.raises(DataError, match="no entity can be read"):
        knowledge(model, {"a": sae()}, entities(tmp_path, far), config=CONFIG)
    with pytest.raises(ModelError, match="the model has 4 blocks"):
        knowledge(model, {"a": sae("layers.9")}, entities(tmp_path, rows(known=True)), config=CONFIG)
    with pytest.raises(ConfigError, match="out of range"):
        knowledge(model, {"a": sae()}, entities(tmp_path, rows(known=True)), config=KnowledgeConfig(draws=1))


def test_counting_in_a_corpus() -> None:
    texts = ["Bolen, bolen and New Karith.", "New  karith? Newkarith! new York", "我在北京市, 北京"]
    assert count_entities(["Bolen", "New Karith", "Karith", "York New", "北京", "!"], texts) == {
        "Bolen": 2, "New Karith": 2, "Karith": 2, "York New": 0, "北京": 2, "!": 0}  # fmt: skip


# ---- the command


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    taught_model().save_pretrained(tmp_path / "model")
    sae().save_pretrained(tmp_path / "sae")
    file = write_rows(tmp_path / "e.jsonl", [*rows(), {"entity": 3}])
    corpus = write_rows(tmp_path / "c.jsonl", [{"text": f"{name} lies here, {name}"} for name in NAMES[:20]])
    words: list[Any] = ["diagnose", "knowledge", "--model", tmp_path / "model", "--sae", f"a={tmp_path / 'sae'}",
                        "--entities", file, "--draws", 20, "--chat", "no", "--new-tokens", 3, "--least", 5]  # fmt: skip
    code, out, err = call(*words, "--corpus", corpus, "--out", tmp_path / "out")
    assert code == 0, err
    assert "questions asked" in out
    assert "log(1 + frequency)" in out
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert result["no_frequency"] == ""
    assert "wrong type" in (tmp_path / "out" / "rejected.jsonl").read_text()
    code, _, err = call(*words, "--entity-column", "name")
    assert (code, len(err.splitlines())) == (2, 1)
    assert "no column name" in err
