"""Pair scores: one door, several methods, joined by id."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from scipy.sparse import csr_matrix

from seamark.audit.scores import METHODS, PairScores, score_pairs
from seamark.errors import ConfigError, DataError, FormatError
from seamark.features.sets import Feature, FeatureSet
from seamark.text.pairs import Pairs, PreferencePair

FEATURES = FeatureSet(features=(Feature(sae="s", latent=0, sign=1), Feature(sae="s", latent=2, sign=-1)))


@dataclass
class FakeScan:
    """Two pairs, three latents; pair b's texts come in the other order."""

    rows_by_pair = {"a": (0, 1), "b": (3, 2)}  # noqa: RUF012
    texts = pa.table({"text_id": ["a:chosen", "a:rejected", "b:rejected", "b:chosen"], "n_tokens": [9, 5, 4, 4]})
    n_positions = np.asarray([2, 1, 1, 1])

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


def test_clear_errors() -> None:
    with pytest.raises(ConfigError, match="length, margin, random, safer"):
        score_pairs(method="magic")
    for method in METHODS:
        with pytest.raises(ConfigError, match="needs"):
            score_pairs(method=method)
    with pytest.raises(ConfigError, match="empty"):
        score_pairs(FakeScan(), FeatureSet(features=()))  # type: ignore[arg-type]
    strange = Pairs((PreferencePair("z", "safety", "", "", ""),))
    with pytest.raises(DataError, match="not scanned"):
        score_pairs(FakeScan(), method="margin", pairs=strange)  # type: ignore[arg-type]


def test_round_trip(tmp_path: Path) -> None:
    scores = score_pairs(FakeScan(), FEATURES)  # type: ignore[arg-type]
    scores.save(tmp_path / "scores.json")
    assert PairScores.load(tmp_path / "scores.json") == scores
    (tmp_path / "scores.json").write_text("{}")
    with pytest.raises(FormatError, match="key method"):
        PairScores.load(tmp_path / "scores.json")
