"""The statistical rater: separates groups, not labels; says why; never rates what it cannot."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pytest
from scipy.sparse import csc_matrix

from seamark.errors import DataError
from seamark.explain.ratings import as_pairs, separation, statistical_ratings

N = 100
"""Pairs in each group; two texts each."""


@dataclass
class FakeScan:
    strengths: list[np.ndarray]
    groups: tuple[str, ...] = ("safety", "chat")

    @property
    def texts(self) -> pa.Table:
        return pa.table({"group": [g for g in self.groups for _ in range(2 * N)]})

    def sae_id(self, sae_id: str | None = None) -> str:
        return sae_id or "only"

    def columns(self, sae_id: str, latents: list[int], stat: str) -> csc_matrix:
        assert stat == "mean"
        return csc_matrix(np.stack([self.strengths[i] for i in latents], axis=1))


def fires(safety_chosen: float, safety_rejected: float, chat_chosen: float, chat_rejected: float) -> np.ndarray:
    """Activation 1-2 in these shares of each kind of text; texts come chosen, rejected, chosen, … safety first."""
    rng = np.random.default_rng(0)
    parts = []
    for chosen, rejected in ((safety_chosen, safety_rejected), (chat_chosen, chat_rejected)):
        hit = np.zeros((N, 2))
        hit[: round(chosen * N), 0] = hit[: round(rejected * N), 1] = 1
        parts.append((hit * (1 + rng.random(hit.shape))).ravel())
    return np.concatenate(parts)


@pytest.mark.parametrize(
    ("shares", "rating"),
    [
        ((0.5, 0.3, 0.02, 0.02), 5),  # specific
        ((0.2, 0.0, 0.0, 0.0), 5),  # rare, but only in safety texts
        ((0.6, 0.4, 0.2, 0.2), 4),
        ((0.6, 0.6, 0.4, 0.4), 3),
        ((0.95, 0.95, 0.7, 0.7), 3),
        ((0.9, 0.1, 0.9, 0.1), 1),  # follows the label in both groups
        ((0.05, 0.05, 0.6, 0.6), 1),  # about chat
        ((0.06, 0.02, 0.02, 0.02), 1),  # a ratio that chance explains
        ((0.03, 0.02, 0.01, 0.0), None),  # 6 texts
    ],
)
def test_ratings(shares: tuple[float, float, float, float], rating: int | None) -> None:
    (found,) = statistical_ratings(FakeScan([fires(*shares)]), None, [0])  # type: ignore[arg-type]
    assert found.rating == rating, found.why
    assert found.method == "statistical"


def test_dense_feature_is_rated_by_strength() -> None:
    column = fires(1, 1, 1, 1)
    column[: 2 * N] += 0.8
    (found,) = statistical_ratings(FakeScan([column]), "x", [0])  # type: ignore[arg-type]
    assert found.rating == 5
    assert found.auroc is not None
    assert found.auroc > 0.9


def test_reasons_order_and_silence() -> None:
    scan = FakeScan([np.zeros(4 * N), fires(0.5, 0.32, 0.03, 0.03), fires(0.01, 0, 0, 0)])
    ratings = statistical_ratings(scan, "s", [1, 0, 2])  # type: ignore[arg-type]
    assert [r.latent for r in ratings] == [1, 0, 2]
    assert ratings[0].why == "fires in 41 % of safety responses and 3.0 % of chat responses (AUROC 0.69)"
    assert ratings[1].rating is None
    assert "fires in 0 texts" in ratings[1].why
    assert as_pairs(ratings)["s", 2][0] is None


def test_missing_group_is_an_error() -> None:
    with pytest.raises(DataError, match="any other"):
        statistical_ratings(FakeScan([np.zeros(2 * N)], groups=("safety",)), "s", [0])  # type: ignore[arg-type]
    with pytest.raises(DataError, match="harm"):
        statistical_ratings(FakeScan([np.zeros(4 * N)]), "s", [0], safety_group="harm")  # type: ignore[arg-type]


def test_separation_agrees_with_scipy() -> None:
    from scipy.stats import mannwhitneyu

    rng = np.random.default_rng(1)
    a, b = np.round(rng.random(40), 1), np.round(rng.random(60) * 0.8, 1)
    auroc, z = separation(a, b)
    test = mannwhitneyu(a, b, use_continuity=False, method="asymptotic")
    assert auroc == pytest.approx(test.statistic / (40 * 60))
    from scipy.stats import norm

    assert 2 * norm.sf(abs(z)) == pytest.approx(test.pvalue)
    assert separation(np.zeros(5), np.zeros(5)) == (0.5, 0.0)
