"""Pair scores: one door, many methods, joined by id."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from planted_scan import HARM, SAFE, PlantedScan
from scipy.sparse import csr_matrix

from seamark.audit.combine import Combination
from seamark.audit.detection import detection_auroc
from seamark.audit.scores import METHODS, PairScores, score_pairs
from seamark.audit.scoring_features import huber_slope
from seamark.errors import ConfigError, DataError, FormatError
from seamark.features.contrast import contrast
from seamark.features.sets import Feature, FeatureSet
from seamark.text.pairs import Pairs, PreferencePair

FEATURES = FeatureSet(features=(Feature(sae="s", latent=0, sign=1), Feature(sae="s", latent=2, sign=-1)))
PLANTED = FeatureSet(features=tuple(
    Feature(sae="s", latent=i, sign=1 if i in SAFE else -1, score=0.3 if i in SAFE else -0.2) for i in SAFE + HARM
))  # fmt: skip
CONTROLS = {
    "untrained": PLANTED,
    "random_latents": FeatureSet(features=tuple(Feature(sae="s", latent=i, sign=1) for i in range(20, 26))),
}


@dataclass
class FakeScan:
    """Two pairs, three latents; pair b's texts come in the other order."""

    rows_by_pair = {"a": (0, 1), "b": (3, 2)}  # noqa: RUF012
    texts = pa.table({"text_id": ["a:chosen", "a:rejected", "b:rejected", "b:chosen"], "n_tokens": [9, 9, 9, 9],
                      "n_response": [9, 5, 4, 4]})  # all cut to 9 tokens  # fmt: skip
    n_positions: Any = field(default_factory=lambda: np.asarray([2, 1, 1, 1]))

    def sae_id(self, sae_id: str | None = None) -> str:
        return sae_id or "s"

    def d_sae(self, sae_id: str | None = None) -> int:
        return 3

    def pooled_parts(self, sae_id: str, stat: str) -> Iterator[tuple[int, csr_matrix]]:
        whole = csr_matrix(np.asarray([[2.0, 9, 0], [0, 0, 1], [1, 0, 0], [0, 5, 0.5]]))
        yield from ((0, whole[:3]), (3, whole[3:]))

    def margins(self) -> dict[str, float]:
        return {"a": 0.5, "b": -0.25}


PAIRS = Pairs((PreferencePair("b", "chat", "q", "long answer", "no"), PreferencePair("a", "safety", "q", "x", "yz")))


@pytest.mark.parametrize(
    ("method", "expected"),
    [("safer", {"a": 3.0, "b": -1.5}), ("margin", {"a": 0.5, "b": -0.25}), ("length", {"a": 4.0, "b": 0.0})],
)
def test_methods(method: str, expected: dict[str, float]) -> None:
    scores = score_pairs(FakeScan(), FEATURES, method=method)  # type: ignore[arg-type]
    assert scores.values == expected
    assert scores.method == method


def test_random_depends_on_id_and_seed_alone() -> None:
    one = score_pairs(FakeScan(), method="random").values  # type: ignore[arg-type]
    other = score_pairs(pairs=PAIRS, method="random").values
    assert one == other
    assert one != score_pairs(pairs=PAIRS, method="random", seed=1).values


def test_length_of_pairs_and_lowest() -> None:
    scores = score_pairs(pairs=PAIRS, method="length")
    assert scores.values == {"b": 9.0, "a": -1.0}
    assert scores.lowest(1) == ["a"]


def test_the_list_says_what_each_method_is() -> None:
    assert list(METHODS) == [m.name for m in METHODS.values()]
    kinds = {kind: {m.name for m in METHODS.values() if m.kind == kind} for kind in ("features", "baseline", "control")}
    assert kinds["features"] == {"safer", "safer_weighted", "safer_category", "safer_length", "safer_crossfit",
                                 "latents"}  # fmt: skip
    assert kinds["baseline"] == {"random", "margin", "margin_crossfit", "voting", "judge", "length", "bag_of_words"}
    assert kinds["control"] == {"direction", "untrained", "random_latents", "probe"}
    assert METHODS["combined"].kind == "combination"
    assert all(m.about and m.needs for m in METHODS.values())


def test_clear_errors() -> None:
    with pytest.raises(ConfigError, match="latents, length, margin"):
        score_pairs(method="magic")
    for method in METHODS:
        with pytest.raises(ConfigError, match=f"{method}' needs"):
            score_pairs(method=method)
    with pytest.raises(ConfigError, match="empty"):
        score_pairs(FakeScan(), FeatureSet(features=()))  # type: ignore[arg-type]
    strange = Pairs((PreferencePair("z", "safety", "", "", ""),))
    with pytest.raises(DataError, match="not scanned"):
        score_pairs(FakeScan(), method="margin", pairs=strange)  # type: ignore[arg-type]
    planted = PlantedScan(40)
    with pytest.raises(ConfigError, match="untrained SAE"):
        score_pairs(planted, method="untrained", controls={"random_latents": PLANTED})
    with pytest.raises(ConfigError, match="s/0 has no score"):
        score_pairs(planted, FEATURES, method="safer_weighted")
    with pytest.raises(ConfigError, match="folds"):
        score_pairs(planted, method="latents", folds=1)
    with pytest.raises(DataError, match="no group 'x'"):
        score_pairs(planted, method="latents", group="x")
    with pytest.raises(DataError, match="not scanned"):
        score_pairs(planted, method="latents", pairs=strange)
    with pytest.raises(DataError, match="none of the 2 pairs has margins"):
        score_pairs(pairs=PAIRS, method="voting", margins={"z": [1.0]})


def test_round_trip(tmp_path: Path) -> None:
    scores = score_pairs(FakeScan(), FEATURES)  # type: ignore[arg-type]
    scores.save(str(tmp_path / "scores.json"))  # a place is a string or a path
    assert PairScores.load(str(tmp_path / "scores.json")) == scores
    (tmp_path / "scores.json").write_text("{}")
    with pytest.raises(FormatError, match="key method"):
        PairScores.load(tmp_path / "scores.json")


def scores_of(planted: PlantedScan, method: str) -> dict[str, float]:
    """With everything a method may need, so that one call serves all of them."""
    known = PlantedScan(len(planted.pairs))  # margins and judgements of labels as they are in `planted`
    sign = {i: (-1.0) ** ((i in planted.wrong) + swapped(planted, known, i)) for i in planted.pairs.ids}
    return score_pairs(
        planted, PLANTED, method=method, pairs=planted.pairs, controls=CONTROLS,
        margins={i: [s * 0.5, s * 1.5, -s * 0.25] for i, s in sign.items()}, judged={i: s * 0.7 for i, s in
                                                                                   sign.items()},
        combination=Combination(signals=("margin",), weights=(-1.0,), intercept=-2.0, prior=0.1, n=90, n_flipped=9),
        signals={"margin": PairScores(method="margin", values=planted.margins())},
    ).values  # fmt: skip


def swapped(planted: PlantedScan, known: PlantedScan, pair: str) -> bool:
    index = planted.pairs.ids.index(pair)
    return (planted.pairs[index].chosen != known.pairs[index].chosen) != (pair in planted.wrong)


ANTISYMMETRIC = set(METHODS) - {"random", "combined", "safer_category"}
"""`combined` goes by ranks, `safer_category` chooses its features by all labels."""


@pytest.mark.parametrize("method", sorted(ANTISYMMETRIC))
def test_swapping_a_pair_negates_its_score_alone(method: str) -> None:
    before, after = (scores_of(PlantedScan(120, swap=swap), method) for swap in ((), ("p5",)))
    assert abs(before["p5"]) > 1e-9
    assert after["p5"] == pytest.approx(-before["p5"], rel=1e-6)
    assert after["p85"] == pytest.approx(before["p85"], rel=1e-6), "a pair of the same prompt has not seen it either"


@pytest.mark.parametrize("method", sorted(METHODS))
def test_rows_join_by_id(method: str) -> None:
    plain, moved = (scores_of(PlantedScan(90, wrong=0.1, shuffle=shuffle), method) for shuffle in (False, True))
    assert set(plain) == set(moved)
    assert all(moved[i] == pytest.approx(plain[i], rel=1e-5, abs=1e-9) for i in plain)


@pytest.mark.parametrize("method", sorted(METHODS))
def test_fitted_methods_score_their_group_alone(method: str) -> None:
    planted = PlantedScan(90)
    found = set(scores_of(planted, method))
    assert found == set(planted.pairs.group("safety").ids if METHODS[method].fitted else planted.pairs.ids)


@pytest.mark.parametrize(
    ("method", "least"),
    [("safer", 0.9), ("safer_weighted", 0.9), ("safer_category", 0.7), ("safer_length", 0.9), ("safer_crossfit", 0.9),
     ("latents", 0.9), ("margin", 0.7), ("bag_of_words", 0.65), ("direction", 0.8), ("probe", 0.8)],
)  # fmt: skip
def test_planted_wrong_labels_score_low(method: str, least: float) -> None:
    planted = PlantedScan(600, wrong=0.15)
    found = scores_of(planted, method)
    values = {i: v for i, v in found.items() if i in planted.pairs.group("safety").ids}
    auroc = detection_auroc(values, planted.wrong).value
    assert auroc is not None
    assert auroc > least


def test_what_cannot_know_does_not() -> None:
    planted = PlantedScan(600, wrong=0.15)
    safety = set(planted.pairs.group("safety").ids)
    for method in ("random", "length", "random_latents"):
        values = {i: v for i, v in scores_of(planted, method).items() if i in safety}
        auroc = detection_auroc(values, planted.wrong).value
        assert auroc is not None
        assert 0.4 < auroc < 0.6, method


def test_weights_of_features() -> None:
    planted = PlantedScan(60)
    weighted, (chosen, rejected) = scores_of(planted, "safer_weighted")["p1"], planted.rows_by_pair["p1"]
    latents = planted._latents.toarray()
    by_hand = sum((0.3 if i in SAFE else -0.2) * (latents[chosen, i] - latents[rejected, i]) for i in SAFE + HARM)
    assert weighted == pytest.approx(by_hand)


def test_crossfit_weights_come_from_other_folds() -> None:
    from seamark.audit.crossfit import fold_of

    planted = PlantedScan(120)
    found = scores_of(planted, "safer_crossfit")["p1"]
    safety = planted.pairs.group("safety")
    prompts = {p.id: f"h{int(p.id[1:]) % 80}" for p in safety}
    folds = fold_of(prompts, 5, 0)
    others = [i for i in safety.ids if folds[i] != folds["p1"]]
    scores = contrast(planted, "safety", "s", pairs=others).scores
    (chosen, rejected), latents = planted.rows_by_pair["p1"], planted._latents.toarray()
    assert found == pytest.approx(sum(scores[i] * (latents[chosen, i] - latents[rejected, i]) for i in SAFE + HARM))


def test_a_category_with_too_few_pairs_has_the_groups_features() -> None:
    planted = PlantedScan(240)  # 60 safety pairs of each category
    assert scores_of(planted, "safer_category") == {
        i: v for i, v in scores_of(planted, "safer").items() if i in planted.pairs.group("safety").ids
    }
    planted = PlantedScan(600)  # 150
    own = contrast(planted, pairs=[p.id for p in planted.pairs.group("safety") if p.category == "a"]).top(5)
    expected = score_pairs(planted, own).values
    found = scores_of(planted, "safer_category")
    ids = [p.id for p in planted.pairs.group("safety") if p.category == "a"]
    assert all(found[i] == pytest.approx(expected[i]) for i in ids)


def test_the_part_that_length_explains_goes() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=500)
    y = 2.0 * x + rng.normal(size=500) * 0.1
    y[:25] += 100.0  # outliers that a plain regression would follow
    assert huber_slope(x, y) == pytest.approx(2.0, abs=0.05)
    signs = np.where(rng.random(500) < 0.5, 1.0, -1.0)
    assert huber_slope(x * signs, y * signs) == pytest.approx(huber_slope(x, y))
    assert huber_slope(np.zeros(3), np.ones(3)) == 0.0


def test_votes_come_first_and_mean_margins_second() -> None:
    margins = {"a": [9.0, 9.0, -1.0], "b": [0.1, 0.1, 0.1], "c": [1.0, 1.0, -9.0], "d": [0.2, 0.1, -0.1], "e": []}
    found = score_pairs(method="voting", margins=margins).values
    assert sorted(found, key=lambda i: found[i]) == ["c", "d", "a", "b"]
    assert score_pairs(method="margin_crossfit", margins=margins).values["a"] == pytest.approx(17 / 3)


def test_pairs_without_a_judgement_have_no_score() -> None:
    assert score_pairs(pairs=PAIRS, method="judge", judged={"a": -0.5}).values == {"a": -0.5}
