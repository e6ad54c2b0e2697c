"""Risk identification: the right detector is found, and neither sources nor duplicates give the class away."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from planted_risk import as_rows, planted, sentences, texts_of, write_rows
from scipy.sparse import csr_matrix
from sklearn.metrics import average_precision_score, f1_score, roc_auc_score
from threadpoolctl import threadpool_info, threadpool_limits

from seamark.diagnose import probes
from seamark.diagnose.learning import learning_curve
from seamark.diagnose.probes import calibrate, fit
from seamark.diagnose.risk import RiskConfig, _domain, judge
from seamark.diagnose.risk_metrics import Judged, auroc, auroc_difference, best_threshold, measure
from seamark.diagnose.risk_splits import (
    LEAST,
    Split,
    across_sources,
    bootstrap_units,
    one_fit,
    source_rows,
    within_sources,
)
from seamark.diagnose.risk_texts import (
    LabelledText,
    LabelledTexts,
    RiskColumns,
    labels_of,
    near_duplicates,
    read_labelled_texts,
)
from seamark.diagnose.rules import Rule, Term, feature_auroc, find_rule
from seamark.errors import ConfigError, DataError

BOTH = {"a": (60, 60), "b": (50, 70)}
ONE_CLASS = {"a": (60, 60), "only-storm": (80, 0), "only-none": (0, 80)}


def judged(y: list[int], p: list[float], **other: object) -> Judged:
    n = len(y)
    made = Judged(np.asarray(y), np.asarray(p), np.asarray(p), np.asarray(p) >= 0.5, np.zeros(n, int),
                  np.zeros(n, int), np.arange(n))  # fmt: skip
    return replace(made, **other)  # type: ignore[arg-type]


# ---- measures


def test_measures_agree_with_scikit_learn_under_any_draw() -> None:
    rng = np.random.default_rng(0)
    y = (rng.random(200) < 0.3).astype(int)
    p = np.round(np.clip(rng.normal(0.3 + 0.3 * y, 0.2), 0, 1), 1)  # with ties
    found = measure(judged(y.tolist(), p.tolist()), draws=200)
    assert found.auroc.value == pytest.approx(roc_auc_score(y, p))
    assert found.average_precision.value == pytest.approx(average_precision_score(y, p))
    assert found.f1.value == pytest.approx(f1_score(y, p >= 0.5))
    weights = np.bincount(rng.integers(0, 200, 200), minlength=200).astype(float)
    drawn = auroc(y, p, np.zeros(200, int))(weights[None])[0]
    assert drawn == pytest.approx(roc_auc_score(y, p, sample_weight=weights))
    for e in (found.auroc, found.average_precision, found.f1, found.brier):
        assert e.low is not None
        assert e.low < e.value < e.high


def test_calibration_by_hand() -> None:
    # bins [0.2, 0.3): two texts, mean 0.25, share ½ → ½·|½ − ¼|; [0.9, 1]: two, mean 0.95, share 1 → ½·0.05
    found = measure(judged([0, 1, 1, 1], [0.2, 0.3 - 1e-12, 0.9, 1.0]), draws=50)
    assert found.ece.value == pytest.approx(0.5 * 0.25 + 0.5 * 0.05)
    assert found.brier.value == pytest.approx((0.2**2 + 0.7**2 + 0.1**2 + 0) / 4)


def test_precision_at_a_low_rate() -> None:
    y = [1] * 4 + [0] * 200
    p = [0.9, 0.8, 0.7, 0.1] + [0.85, 0.75, 0.72] + [0.05] * 197
    found = measure(judged(y, p), draws=50)
    # 1 % of 200 is 2: texts above 0.72 may be flagged: 2 of 4, beside 2 others
    assert found.precision_at_fpr_1.value == pytest.approx(0.5)
    assert found.recall_at_fpr_1.value == pytest.approx(0.5)
    assert found.prevalence == pytest.approx(4 / 204)
    rare = found.precision_at_fpr_1_if_prevalence_1
    assert rare.value == pytest.approx(0.01 * 0.5 / (0.01 * 0.5 + 0.99 * 0.01))
    assert 0 <= rare.low < rare.value < rare.high <= 0.01 / (0.01 + 0.99 * 0.01) + 1e-9
    assert found.precision_at_fpr_01_if_prevalence_1.reason == found.precision_at_fpr_01.reason
    clean = measure(judged([1] * 4 + [0] * 200, [0.9] * 4 + [0.1] * 200), draws=50)
    assert clean.precision_at_fpr_1.value == 1.0
    assert clean.precision_at_fpr_1_if_prevalence_1.value < 0.51, "none of 200 is not none at all"
    assert found.precision_at_fpr_01.value is None
    assert "1,000 are needed" in found.precision_at_fpr_01.reason


def test_precision_where_nothing_can_be_flagged() -> None:
    """More than 1 % of the others have the highest score there is: the threshold lies above all texts."""
    found = measure(judged([1] * 4 + [0] * 200, [0.9] * 4 + [0.9] * 20 + [0.1] * 180), draws=50)
    for precision in (found.precision_at_fpr_1, found.precision_at_fpr_1_if_prevalence_1):
        assert precision.value is None
        assert precision.reason == "no text is flagged"
    assert found.recall_at_fpr_1.value == 0.0
    wrong = measure(judged([1] * 4 + [0] * 200, [0.1] * 4 + [0.9] + [0.5] * 199), draws=50)
    assert wrong.precision_at_fpr_1_if_prevalence_1.value == 0.0, "one is flagged, and it is none of the domain"


def test_no_other_stratum_counts() -> None:
    y, score = np.asarray([1, 0, 1, 0]), np.asarray([0.1, 0.2, 0.9, 0.8])
    assert auroc(y, score, np.asarray([0, 0, 1, 1]))(np.ones((1, 4)))[0] == 0.5
    assert np.isnan(auroc(y, score, np.asarray([0, 1, 2, 3]))(np.ones((1, 4)))[0])


def test_what_is_not_available_says_why() -> None:
    one_source_each = judged([1, 1, 0, 0], [0.9, 0.8, 0.3, 0.1], source=np.asarray([0, 0, 1, 1]))
    found = measure(one_source_each, draws=20)
    assert found.auroc.value == 1.0
    assert (found.auroc_within_source.value, found.auroc_within_source.reason) == (
        None, "no source of a fold holds both classes")  # fmt: skip
    silent = measure(judged([1, 0], [0.2, 0.1]), draws=20)
    assert silent.precision.value is None
    together = measure(judged([1, 0, 1], [0.9, 0.1, 0.8], unit=np.zeros(3, int)), draws=20)
    assert (together.auroc.low, together.auroc.high) == (None, None)


def test_differences_see_the_same_draws() -> None:
    one = judged([1, 0, 1, 0, 1, 0], [0.9, 0.8, 0.7, 0.6, 0.5, 0.4])
    assert auroc_difference(one, one, draws=50).high == 0.0


def test_threshold_and_platt() -> None:
    y, p = np.asarray([0, 0, 1, 1]), np.asarray([0.1, 0.4, 0.35, 0.8])
    assert best_threshold(y, p) == pytest.approx((0.35 + 0.1) / 2)  # F1 0.8 with one wrong, against 2/3
    rng = np.random.default_rng(0)
    score = rng.normal(size=4000) * 3 + 5
    truth = (rng.random(4000) < 1 / (1 + np.exp(-(score - 5)))).astype(int)
    made = calibrate(score, score, truth)
    assert made.slope == pytest.approx(1, rel=0.1)
    assert made.intercept == pytest.approx(-5, rel=0.1)
    backwards = calibrate(score, score, 1 - truth)
    assert backwards.slope == 0
    assert backwards(score)[0] == pytest.approx(1 - truth.mean(), abs=0.01)


# ---- detectors


def test_the_planted_detectors_are_found() -> None:
    x = planted(texts_of(BOTH))
    y = labels_of(x.texts, "storm").astype(int)
    split = within_sources(x.texts, y.astype(np.int8), "en")
    assert not split.reason
    assert sorted(np.concatenate([f.test for f in split.folds])) == list(range(len(y)))
    found = {name: judge(x, y.astype(np.int8), split, name) for name in ("single", "rule", "sparse_max", "words")}
    assert {f.about["latent"] for f in found["single"][1]} == {3}
    assert all({5, 7} <= set(f.about["latents"]) or 3 in f.about["latents"] for f in found["rule"][1])
    scores = {name: measure(j, draws=50).auroc.value for name, (j, _) in found.items()}
    assert scores["single"] == pytest.approx(0.925, abs=0.06)  # 0.9 · 0.95 + ½ · (0.9 · 0.05 + 0.1 · 0.95)
    assert scores["sparse_max"] > 0.98
    assert scores["words"] < 0.65, "the words were drawn alike for both classes"


def test_feature_auroc_with_ties_and_silence() -> None:
    z = np.asarray([[0, 2.0, 1], [1, 2, 0], [2, 0, 0], [2, 0, 0], [0, 2, 0]])
    y = np.asarray([0, 1, 1, 0, 0])
    expected = [roc_auc_score(y, z[:, 0]), roc_auc_score(y, z[:, 1]), 0.5]
    assert feature_auroc(csr_matrix(z), y) == pytest.approx(expected)


def test_a_conjunction_is_found_and_said() -> None:
    rng = np.random.default_rng(0)
    z = (rng.random((400, 6)) < 0.5) * (1 + rng.random((400, 6)))
    y = ((z[:, 1] > 0) & (z[:, 4] > 0)).astype(int)
    rule = find_rule(csr_matrix(z[:300]), y[:300], csr_matrix(z[300:]), y[300:])
    assert {literal.latent for literal in rule.literals} == {1, 4}
    assert rule.joins == ("and",)
    assert (rule.holds(csr_matrix(z)) == (y == 1)).all()
    said = Rule((Term(1, 0.5), Term(2, 0.25), Term(3, 0.0, above=False)), ("or", "and"))
    assert str(said) == "(1 > 0.5 or 2 > 0.25) and 3 ≤ 0"
    rows = csr_matrix([[0, 0, 1.0, 0], [0, 0, 1, 1], [0, 0.2, 0, 0]])
    assert said.holds(rows).tolist() == [True, False, False]


def test_fits_take_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads made such short fits 20 times slower on a busy machine."""
    texts = texts_of(BOTH)
    x, y, seen = planted(texts), labels_of(texts, "storm").astype(int), []
    fold = one_fit(texts, y.astype(np.int8), np.arange(len(y)))
    length = probes._MAKERS["length"]

    def threads() -> int:
        return max(library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas")

    monkeypatch.setitem(probes._MAKERS, "length", lambda *given: seen.append(threads()) or length(*given))
    with threadpool_limits(2):
        fit("length", x, y, fold)
        assert (seen, threads()) == ([1], 2)


def test_keywords_and_words_find_a_word() -> None:
    texts = texts_of(BOTH, word="thunder")
    x = planted(texts)
    y = labels_of(texts, "storm").astype(int)
    fold = one_fit(texts, y.astype(np.int8), np.arange(len(y)))
    for name in ("words", "keywords"):
        made = fit(name, x, y, fold)
        assert roc_auc_score(y[fold.test], made.score(fold.test)) > 0.99


def test_a_detector_never_sees_what_it_is_judged_on() -> None:
    """Labels of validation and test texts may change without any effect on what the training part gives."""
    x = planted(texts_of(BOTH, word="thunder"))
    y = labels_of(x.texts, "storm").astype(int)
    fold = within_sources(x.texts, y.astype(np.int8), "en").folds[0]
    other = y.copy()
    other[fold.test] = 1 - other[fold.test]
    for name in ("single", "rule", "sparse_max", "sparse_mean", "sparse_few", "raw_probe", "words", "keywords"):
        one, two = fit(name, x, y, fold), fit(name, x, other, fold)
        assert (one.probability(fold.test) == two.probability(fold.test)).all(), name
        assert one.threshold == two.threshold


# ---- leakage


def test_sources_that_give_the_class_away_are_named() -> None:
    x = planted(texts_of(ONE_CLASS))
    y = labels_of(x.texts, "storm")
    rows = source_rows(x.texts, y)
    assert [(r.source, r.positives, r.negatives) for r in rows if r.one_class] == [
        ("only-none", 0, 80), ("only-storm", 80, 0)]  # fmt: skip
    done = _domain(x, "storm", RiskConfig(draws=50, learning=False, detectors=("source_alone", "single")))
    assert [r.source for r in done.one_class] == ["only-none", "only-storm"]
    assert done.source_alone["en"].value > 0.8, "knowing the source tells the class"
    within, across = done.splits
    assert within.sources == ("a",), "sources of one class are not judged within"
    alone = within.detectors[0]
    assert alone.detector == "source_alone"
    assert alone.measures.auroc_within_source.value == 0.5
    assert across.n_texts == 280
    assert across.detectors[0].measures.auroc.value == 0.5, "it knows none of the sources left out"


def test_whole_sources_are_left_out() -> None:
    texts = texts_of(ONE_CLASS | {"c": (20, 20), "d": (30, 10)})
    y = labels_of(texts, "storm")
    split = across_sources(texts, y, "en")
    assert len(split.folds) >= 3
    for fold in split.folds:
        test = {texts[i].source for i in fold.test}
        assert not test & {texts[i].source for i in [*fold.train, *fold.validation]}
    assert bootstrap_units(texts, np.arange(len(texts)), "across")[0] == "source"
    assert bootstrap_units(texts, np.arange(len(texts)), "within")[0] == "cluster"


def test_near_duplicates_stay_together() -> None:
    base = sentences(60, 1, length=30)
    items = [LabelledText(f"{i}-{copy}", text + (" ending" if copy else ""), frozenset({"storm" if i % 2 else "none"}),
                          "a" if copy else "b", "en") for i, text in enumerate(base) for copy in (0, 1)]  # fmt: skip
    texts = LabelledTexts.of(items)
    assert len(np.unique(texts.clusters)) == 60
    y = labels_of(texts, "storm")
    for split in (within_sources(texts, y, "en"), across_sources(texts, y, "en")):
        for fold in split.folds:
            train = {*texts.clusters[fold.train], *texts.clusters[fold.validation]}
            assert not train & {*texts.clusters[fold.test]}


def test_near_duplicates_by_hand() -> None:
    same = "one two three four five six seven eight nine ten eleven twelve thirteen"
    chinese = "今天天气很好我们去公园散步然后回家吃饭休息看书喝茶"
    codes = near_duplicates([same, same.upper() + "!", same + " fourteen", "quite another text about bread",
                             chinese, chinese + "。", "无关的一句话说的是船和港口"])  # fmt: skip
    assert codes[0] == codes[1] == codes[2]
    assert codes[4] == codes[5]
    assert len(set(codes.tolist())) == 4


def test_what_is_like_a_member_of_a_cluster_is_in_it() -> None:
    """Though it is unlike the cluster's first text."""
    words = [f"word{i}" for i in range(100)]
    chain = [" ".join(words[start : start + 80]) for start in (0, 5, 10)]
    assert len(set(near_duplicates(chain).tolist())) == 1
    assert len(set(near_duplicates(chain[::2]).tolist())) == 2


def test_too_little_is_told() -> None:
    texts = texts_of({"a": (LEAST - 1, 40)})
    y = labels_of(texts, "storm")
    assert "no source holds" in within_sources(texts, y, "en").reason
    assert "too few sources" in across_sources(texts, y, "en").reason


# ---- learning curves


def test_more_labels_help() -> None:
    x = planted(texts_of({"a": (300, 300)}))
    y = labels_of(x.texts, "storm")
    split = within_sources(x.texts, y, "en")
    points = learning_curve(x, y.astype(int), split, detectors=("sparse_max", "raw_probe"), seeds=2, draws=50)
    sizes = sorted({p.labelled for p in points})
    assert sizes == [16, 32, 64, 128, 256, 480]
    raw = [p.auroc.value for p in points if p.detector == "raw_probe"]
    assert raw[-1] > raw[0]
    assert all(p.positives == p.labelled / 2 for p in points)
    assert points[-1].auroc.low < points[-1].auroc.value < points[-1].auroc.high


# ---- reading


def test_reading_columns_labels_and_duplicates(tmp_path: Path) -> None:
    rows = [
        {"body": "Bread and flour, please!", "tags": ["none"], "from": "x"},
        {"body": "bread  and FLOUR please", "tags": ["storm"], "from": "x"},
        {"body": "Ships in the harbour", "tags": ["storm", "sea"], "from": "y"},
        {"body": "No label here", "tags": [], "from": "y"},
        {"body": "No source here", "tags": "none"},
        {"body": "", "tags": "none", "from": "x"},
        {"body": "long " * 50_000, "tags": "none", "from": "x"},
    ]
    columns = RiskColumns(text="body", label="tags", source="from", language=None)
    found = read_labelled_texts(write_rows(tmp_path / "t.jsonl", rows), columns)
    assert [(sorted(t.labels), t.source) for t in found] == [(["none", "storm"], "x"), (["sea", "storm"], "y")]
    assert {r.reason.split(" (")[0] for r in found.rejected} == {
        "the same words as an earlier text", "tags is missing or no text", "from is missing or no text",
        "body is empty", "more than 200,000 characters"}  # fmt: skip
    with pytest.raises(DataError, match="no column label"):
        read_labelled_texts(tmp_path / "t.jsonl", RiskColumns(text="body", source="from", language=None))


def test_bad_labels() -> None:
    texts = texts_of(BOTH)
    with pytest.raises(ConfigError, match="no text is labelled 'hail'"):
        labels_of(texts, "hail")
    with pytest.raises(ConfigError, match="to be left out"):
        labels_of(texts, "storm", ["storm"])
    with pytest.raises(DataError, match="one class only"):
        labels_of(texts_of({"a": (20, 0)}), "storm")
    with pytest.raises(DataError, match="one class only"):
        labels_of(texts, "storm", ["none"])
    labels = ({"none", "storm"}, {"none"}, {"calm"}, {"storm"})
    mixed = LabelledTexts.of([LabelledText(str(i), f"text {i}", frozenset(s), "a", "") for i, s in enumerate(labels)])
    assert labels_of(mixed, "storm", ["none"]).tolist() == [1, -1, 0, 1]


def test_the_report_speaks_no_word_of_the_texts() -> None:
    x = planted(texts_of(BOTH, word="thunder"))
    done = _domain(x, "storm", RiskConfig(draws=20, folds=3))
    said = done.model_dump_json()
    assert "thunder" not in said
    assert len(done.splits[0].detectors) == 10
    assert isinstance(done.splits[0].n_texts, int)
    assert Split("within", "en", (), ()).reason == ""
    assert as_rows(x.texts)[0]["label"] == "storm"
