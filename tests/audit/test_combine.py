"""Several scores made one probability: better than each alone, calibrated, blind to scales."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from seamark.audit.combine import Combination, learn
from seamark.audit.detection import Trial, calibration, compare, detection_auroc
from seamark.audit.scores import PairScores, score_pairs
from seamark.errors import ConfigError, DataError, FormatError
from seamark.text.pairs import Pairs, PreferencePair


def simulated(n: int, rate: float, seed: int) -> tuple[dict[str, PairScores], list[str], set[str]]:
    """Two signals that know different things, and one that knows nothing."""
    rng = np.random.default_rng(seed)
    wrong = rng.random(n) < rate
    sign = np.where(wrong, -1, 1)
    columns = {"margin": 1.2 * sign + rng.normal(size=n), "safer": 0.9 * sign + rng.normal(size=n),
               "random": rng.random(n)}  # fmt: skip
    ids = [f"p{i}" for i in range(n)]
    signals = {m: PairScores(method=m, values=dict(zip(ids, c.tolist(), strict=True))) for m, c in columns.items()}
    return signals, ids, {f"p{i}" for i in np.flatnonzero(wrong)}


def test_it_beats_its_best_signal_and_is_calibrated() -> None:
    signals, ids, wrong = simulated(3000, 0.2, seed=0)
    learned = learn(signals, ids, wrong)
    assert learned.signals == ("margin", "safer", "random")
    assert learned.weights[0] < learned.weights[1] < -0.3 < abs(learned.weights[2]) < 0.15
    others, other_ids, other_wrong = simulated(4000, 0.1, seed=1)
    found = learned.scores(others, other_ids)
    prompts = {i: i for i in other_ids}
    gain = compare([Trial(found.values, other_wrong)], [Trial(others["margin"].values, other_wrong)], prompts)
    assert gain.low is not None
    assert gain.low > 0.01
    p = learned.probability(others, other_ids, prior=0.1)
    honest = calibration(p, other_wrong).ece.value
    assert honest is not None
    assert honest < 0.025
    shifted = calibration(learned.probability(others, other_ids), other_wrong).ece.value
    assert shifted is not None
    assert shifted > 0.05, "the share of wrong labels is another one here, which the prior has to say"
    assert np.mean(list(p.values())) == pytest.approx(0.1, abs=0.02)
    order = sorted(other_ids, key=lambda i: found.values[i])
    assert order == sorted(other_ids, key=lambda i: -p[i])


@pytest.mark.parametrize(("before", "told"), [(0.1, 0.1), (0.3, 0.3), (0.2, 0.1)])
def test_labels_that_were_wrong_before_do_not_make_it_doubt(before: float, told: float) -> None:
    n = 6000
    rng = np.random.default_rng(0)
    were_wrong, flipped = rng.random(n) < before, rng.random(n) < 0.1
    sign = np.where(were_wrong ^ flipped, -1, 1)  # a flip makes a wrong label right
    columns = {"margin": 1.3 * sign + rng.normal(size=n), "safer": 1.3 * sign + rng.normal(size=n)}
    ids = [f"p{i}" for i in range(n)]
    signals = {m: PairScores(method=m, values=dict(zip(ids, c.tolist(), strict=True))) for m, c in columns.items()}
    known = {f"p{i}" for i in np.flatnonzero(flipped)}
    naive, aware = learn(signals, ids, known), learn(signals, ids, known, told)
    assert aware.wrong_before == told
    assert aware.prior == pytest.approx(told * 0.9 + (1 - told) * 0.1, abs=0.01)
    wrong = rng.random(n) < before
    others = {m: PairScores(method=m, values=dict(zip(ids, (1.3 * np.where(wrong, -1, 1) + rng.normal(size=n)).tolist(),
                                                      strict=True))) for m in columns}  # fmt: skip
    really = {f"p{i}" for i in np.flatnonzero(wrong)}
    by_naive, by_aware = (calibration(c.probability(others, ids, told), really) for c in (naive, aware))
    assert by_aware.brier.value < 0.8 * by_naive.brier.value  # type: ignore[operator]
    if told == before:
        assert by_aware.ece.value < 0.04  # type: ignore[operator]
    with pytest.raises(ConfigError, match=r"below 0\.5"):
        learn(signals, ids, known, 0.5)


def test_scales_do_not_matter() -> None:
    signals, ids, wrong = simulated(500, 0.2, seed=0)
    learned = learn(signals, ids, wrong)
    other = {m: s.model_copy(update={"values": {i: float(np.exp(v)) for i, v in s.values.items()}})
             for m, s in signals.items()}  # fmt: skip
    assert learn(other, ids[::-1], wrong).weights == pytest.approx(learned.weights, abs=1e-6)
    assert learned.scores(other, ids).values == pytest.approx(learned.scores(signals, ids).values)


def test_a_pair_that_lacks_a_signal_has_no_score() -> None:
    signals, ids, wrong = simulated(500, 0.2, seed=0)
    learned = learn(signals, ids, wrong)
    del signals["safer"].values["p3"]
    assert set(learned.scores(signals, ids).values) == set(ids) - {"p3"}
    pairs = Pairs(tuple(PreferencePair(i, "safety", i, "a", "b") for i in ids))
    found = score_pairs(method="combined", pairs=pairs, combination=learned, signals=signals)
    assert set(found.values) == set(ids) - {"p3"}
    with pytest.raises(ConfigError, match="not there: safer"):
        learned.scores({"margin": signals["margin"], "random": signals["random"]}, ids)
    with pytest.raises(DataError, match="none of the 1 pairs"):
        learned.scores(signals, ["p3"])
    with pytest.raises(ConfigError, match="prior"):
        learned.probability(signals, ids, prior=0.0)


def test_too_little_to_learn_from() -> None:
    signals, ids, wrong = simulated(500, 0.2, seed=0)
    with pytest.raises(DataError, match="19 flipped labels and 481 others"):
        learn(signals, ids, sorted(wrong)[:19])
    with pytest.raises(ConfigError, match="no scores"):
        learn({}, ids, wrong)


def test_it_is_a_scoring_method_and_a_file(tmp_path: Path) -> None:
    signals, ids, wrong = simulated(500, 0.2, seed=0)
    learned = learn(signals, ids, wrong)
    learned.save(str(tmp_path / "c.json"))  # places are strings or paths
    again = Combination.load(str(tmp_path / "c.json"))
    assert again == learned
    found = score_pairs(method="combined", combination=again, signals=signals)
    assert found.values == learned.scores(signals, sorted(ids)).values
    best, alone = (detection_auroc(v, wrong).value for v in (found.values, signals["margin"].values))
    assert best > alone  # type: ignore[operator]
    (tmp_path / "c.json").write_text('{"signals": ["a"]}')
    with pytest.raises(FormatError, match="not a combination"):
        Combination.load(tmp_path / "c.json")
