"""Detection of wrong labels: AUROC and recall against other ways to compute them, intervals, calibration."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from seamark.audit.detection import Detection, Trial, calibration, compare, detect, detection_auroc
from seamark.errors import ConfigError, DataError


def trial(n: int = 400, seed: int = 0, power: float = 1.5, ties: bool = False) -> Trial:
    rng = np.random.default_rng(seed)
    wrong = rng.random(n) < 0.15
    values = rng.normal(size=n) - power * wrong
    values = np.round(values) if ties else values
    return Trial({f"p{i}": float(v) for i, v in enumerate(values)}, {f"p{i}" for i in np.flatnonzero(wrong)})


PROMPTS = {f"p{i}": f"h{i // 2}" for i in range(4000)}


@pytest.mark.parametrize("ties", [False, True])
def test_auroc_is_that_of_sklearn(ties: bool) -> None:
    one, two = trial(ties=ties), trial(seed=1, ties=ties)
    expected = [roc_auc_score([i in t.wrong for i in t.values], [-v for v in t.values.values()]) for t in (one, two)]
    found = detect([one, two], PROMPTS).auroc
    assert found.value == pytest.approx(np.mean(expected), abs=1e-12)
    assert detection_auroc(one.values, one.wrong).value == pytest.approx(expected[0])
    assert found.low is not None
    assert found.high is not None
    assert found.low < found.value < found.high  # type: ignore[operator]
    assert found.n == 400


def test_recall_by_hand() -> None:
    values = {f"p{i}": float(i) for i in range(20)}  # p0 is the worst
    wrong = {"p0", "p2", "p9", "p19"}
    found = detect([Trial(values, wrong)], PROMPTS, shares=(0.05, 0.15, 0.125, 1.0)).recall
    assert found[0.05].value == 0.25  # one pair, p0
    assert found[0.15].value == 0.5  # three, with p2
    assert found[0.125].value == 0.5  # 2.5 pairs are rounded up
    assert found[1.0].value == 1.0
    tied = Trial({f"p{i}": float(i >= 4) for i in range(20)}, {"p0", "p1", "p10", "p11"})
    assert detect([tied], PROMPTS, shares=(0.1,)).recall[0.1].value == pytest.approx(0.25)  # half of the tied four
    with pytest.raises(ConfigError, match="shares"):
        detect([tied], PROMPTS, shares=(5.0,))


def test_intervals_cover_and_know_prompts_and_seeds() -> None:
    truth = detect([trial(4000, seed=99)], PROMPTS, draws=10).auroc.value
    inside = 0
    for seed in range(20):
        found = detect([trial(300, seed=seed)], PROMPTS, draws=200).auroc
        inside += found.low < truth < found.high  # type: ignore[operator]
    assert inside >= 17
    one = trial(300)
    twice = Trial({f"{i}{c}": v for i, v in one.values.items() for c in "ab"},
                  {f"{i}{c}" for i in one.wrong for c in "ab"})  # fmt: skip
    together = {f"{i}{c}": i for i in one.values for c in "ab"}
    width = [
        e.high - e.low
        for e in (
            detect([one], {i: i for i in one.values}).auroc,
            detect([twice], together).auroc,
            detect([twice], {i: i for i in twice.values}).auroc,
        )
    ]  # type: ignore[operator]
    assert width[1] == pytest.approx(width[0], rel=0.1), "copies under one prompt bring no knowledge"
    assert width[2] < 0.85 * width[0]
    spread = [trial(2000, seed=s, power=p) for s, p in enumerate((0.0, 1.0, 3.0))]
    seeds = detect(spread, PROMPTS).auroc
    assert seeds.high - seeds.low > 0.2  # type: ignore[operator]


def test_what_is_not_available_says_why() -> None:
    values = {f"p{i}": float(i) for i in range(5)}
    none = detect([Trial(values, ())], PROMPTS)
    assert none.auroc.value is None
    assert "both right and wrong" in none.auroc.reason
    assert none.recall[0.05].value is None
    assert "1 of 2 seeds" in detect([Trial(values, ()), Trial(values, {"p0"})], PROMPTS).auroc.reason
    assert detect([], PROMPTS).auroc.reason == detect([Trial({}, ())], PROMPTS).auroc.reason == "no pairs"
    with pytest.raises(DataError, match="no prompt"):
        detect([Trial({"x": 1.0}, ())], PROMPTS)
    assert Detection.model_validate_json(none.model_dump_json()) == none


def test_paired_differences_are_sharper_than_two_intervals() -> None:
    ours, theirs = [], []
    for seed in range(3):
        base, rng = trial(1500, seed=seed), np.random.default_rng(seed)
        ours.append(Trial({i: v + 0.05 * rng.normal() - 0.2 * (i in base.wrong) for i, v in base.values.items()},
                          base.wrong))  # fmt: skip
        theirs.append(base)
    found = compare(ours, theirs, PROMPTS)
    expected = detect(ours, PROMPTS).auroc.value - detect(theirs, PROMPTS).auroc.value  # type: ignore[operator]
    assert found.value == pytest.approx(expected)
    assert found.low is not None
    assert found.low > 0
    lone = detect(theirs, PROMPTS).auroc
    assert found.high - found.low < 0.7 * (lone.high - lone.low)  # type: ignore[operator]
    assert compare(theirs, theirs, PROMPTS).value == 0
    fewer = [Trial({i: v for i, v in t.values.items() if i != "p0"}, t.wrong) for t in theirs]
    assert compare(theirs, fewer, PROMPTS).value == 0, "only pairs that both have"
    with pytest.raises(DataError, match="other seeds or other wrong labels"):
        compare(ours, theirs[::-1], PROMPTS)


def test_calibration() -> None:
    rng = np.random.default_rng(0)
    p = rng.random(4000) ** 2
    truth = rng.random(4000) < p
    ids = [f"p{i}" for i in range(4000)]
    wrong = {i for i, t in zip(ids, truth, strict=True) if t}
    good = calibration(dict(zip(ids, p.tolist(), strict=True)), wrong, prompts=PROMPTS)
    assert good.brier.value == pytest.approx(float(((p - truth) ** 2).mean()))
    assert good.ece.value is not None
    assert good.ece.value < 0.03
    assert [b.n for b in good.bins] == [400] * 10
    bold = calibration(dict(zip(ids, (p**0.3).tolist(), strict=True)), wrong)
    assert bold.ece.value is not None
    assert bold.ece.value > 0.1
    by_hand = calibration({"p0": 0.2, "p1": 0.4, "p2": 0.9, "p3": 0.9}, {"p1", "p2", "p3"}, bins=2)
    assert by_hand.ece.value == pytest.approx((2 * abs(0.3 - 0.5) + 2 * 0.1) / 4)
    assert by_hand.brier.value == pytest.approx((0.04 + 0.36 + 0.01 + 0.01) / 4)
    assert by_hand.brier_of_share.value == pytest.approx(0.75 * 0.25)
    assert calibration({}, ()).brier.value is None
    with pytest.raises(DataError, match="outside"):
        calibration({"p0": 1.2}, ())


def test_equal_probabilities_are_in_one_bin() -> None:
    ids = [f"p{i}" for i in range(200)]
    even = calibration(dict.fromkeys(ids, 0.5), set(ids[:100]))
    assert [b.n for b in even.bins] == [200]
    assert even.ece.value == 0.0, "which of equals comes first says nothing"
    two = calibration({i: 0.1 if n < 150 else 0.8 for n, i in enumerate(ids)}, set(ids[150:]), bins=5)
    assert [(b.n, b.observed) for b in two.bins] == [(150, 0.0), (50, 1.0)]


def test_seeds_that_differ_widen_the_brier_scores_interval() -> None:
    rng = np.random.default_rng(0)
    said, wrong, prompts, seeds = {}, set(), {}, {}
    for seed, skill in enumerate((2.0, 1.0, 0.3, 0.0)):
        truth = rng.random(200) < 0.3
        for i, is_wrong in enumerate(truth):
            name = f"{seed}:{i}"
            said[name] = 1 / (1 + np.exp(-skill * (2 * is_wrong - 1) * 2))
            prompts[name], seeds[name] = f"h{i}", seed
            wrong |= {name} if is_wrong else set()
    of_pairs = calibration(said, wrong, prompts=prompts).brier
    of_seeds = calibration(said, wrong, prompts=prompts, seeds=seeds).brier
    assert of_seeds.value == pytest.approx(of_pairs.value)
    assert of_seeds.high - of_seeds.low > 3 * (of_pairs.high - of_pairs.low)  # type: ignore[operator]
