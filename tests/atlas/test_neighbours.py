"""Nearest decoder directions against brute force."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from seamark.atlas import neighbours
from seamark.atlas.neighbours import nearest
from seamark.errors import DataError

Floats = NDArray[np.float32]


def directions(n: int, width: int = 16, seed: int = 0) -> Floats:
    return np.random.default_rng(seed).standard_normal((n, width)).astype(np.float32)


def brute(decoder: Floats, k: int) -> list[list[tuple[float, int]]]:
    unit = decoder.astype(np.float64) / np.linalg.norm(decoder.astype(np.float64), axis=1, keepdims=True)
    cosines = unit @ unit.T
    return [sorted(((-c, j) for j, c in enumerate(row) if j != i))[:k] for i, row in enumerate(cosines)]


@pytest.mark.parametrize("block", [1, 7 * 60, 1 << 24])
def test_like_brute_force_whatever_the_blocks(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbours, "BLOCK_VALUES", block)
    decoder = directions(60) * np.logspace(-3, 3, 60, dtype=np.float32)[:, None]  # lengths do not matter
    indices, cosines = nearest(decoder, 5)
    assert indices.shape == cosines.shape == (60, 5)
    assert indices.dtype == np.int64
    assert cosines.dtype == np.float32
    for i, expected in enumerate(brute(decoder, 5)):
        assert indices[i].tolist() == [j for _, j in expected]
        assert cosines[i] == pytest.approx([-c for c, _ in expected], abs=1e-5)


def test_of_equal_ones_the_lower_index_comes_first() -> None:
    decoder = np.zeros((9, 4), np.float32)
    decoder[:, 0] = 1  # all the same
    indices, cosines = nearest(decoder, 3)
    assert indices.tolist() == [[1, 2, 3], [0, 2, 3], [0, 1, 3]] + [[0, 1, 2]] * 6
    assert (cosines == 1).all()
    decoder = np.asarray([[1, 0], [0, 1], [0, -1], [1, 0], [0, 1], [0, -1]], np.float32)
    assert nearest(decoder, 4)[0][0].tolist() == [3, 1, 2, 4]  # 1, 2, 4 and 5 are all at 0


@pytest.mark.parametrize("k", [150, 199])
def test_many_equal_ones_stay_in_order(k: int) -> None:
    decoder = np.zeros((200, 4), np.float32)
    decoder[np.arange(200), np.random.default_rng(0).integers(0, 3, 200)] = 1
    indices, cosines = nearest(decoder, k)
    same = [np.flatnonzero((decoder == row).all(axis=1)) for row in decoder]
    for i, mine in enumerate(same):
        near = [*(j for j in mine.tolist() if j != i), *(j for j in range(200) if j not in set(mine.tolist()))]
        assert indices[i].tolist() == near[:k]
        assert (np.diff(cosines[i]) <= 0).all()


def test_opposite_directions_come_last() -> None:
    decoder = np.asarray([[1, 0], [-1, 0], [1, 1]], np.float32)
    indices, cosines = nearest(decoder, 2)
    assert indices[0].tolist() == [2, 1]
    assert cosines[0] == pytest.approx([0.5**0.5, -1.0])


def test_directions_that_are_none_have_no_neighbours_and_are_nobodys() -> None:
    decoder = directions(8)
    decoder[2] = 0
    decoder[5, 3] = np.nan
    decoder[6, 0] = np.inf
    indices, cosines = nearest(decoder, 6)
    for row in (2, 5, 6):
        assert indices[row].tolist() == [-1] * 6
        assert np.isnan(cosines[row]).all()
    good = [0, 1, 3, 4, 7]
    for row in good:
        assert sorted(indices[row, :4].tolist()) == [i for i in good if i != row]
        assert indices[row, 4:].tolist() == [-1, -1]


def test_numbers_that_are_tiny_or_huge() -> None:
    decoder = directions(20).astype(np.float64)
    plain = nearest(decoder, 3)
    for scale in (1e-200, 1e200):
        scaled = nearest(decoder * scale, 3)
        assert (scaled[0] == plain[0]).all()
        assert scaled[1] == pytest.approx(plain[1])


@pytest.mark.parametrize("n", [0, 1, 2, 3])
def test_few_features(n: int) -> None:
    indices, _ = nearest(directions(n), 10)
    assert indices.shape == (n, max(0, n - 1))
    assert [sorted(row.tolist()) for row in indices] == [[j for j in range(n) if j != i] for i in range(n)]


def test_none_asked_for_and_no_matrix() -> None:
    assert nearest(directions(4), 0)[0].shape == (4, 0)
    with pytest.raises(DataError):
        nearest(np.zeros(3, np.float32))
