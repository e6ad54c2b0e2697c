"""Layouts in the plane: alike lies together, the same comes out twice, and odd input has a place or none."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from seamark.atlas import landscape
from seamark.atlas.landscape import explanation_vectors, layout_of, side_by_side
from seamark.errors import DataError

Floats = NDArray[np.float32]


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """t-SNE of 4,000 landmarks takes longer than tests may."""
    monkeypatch.setattr(landscape, "LANDMARKS", 80)


def clusters(n: int, groups: int = 4, width: int = 40, seed: int = 0) -> tuple[Floats, NDArray[np.int64]]:
    rng = np.random.default_rng(seed)
    group = rng.integers(0, groups, n)
    centres = rng.standard_normal((groups, width)) * 4
    return (centres[group] + 0.3 * rng.standard_normal((n, width))).astype(np.float32), group


def own_group_nearest(points: Floats, group: NDArray[np.int64]) -> float:
    """Share of points whose nearest point is of their own group."""
    far = np.square(points[:, None] - points[None]).sum(axis=-1)
    np.fill_diagonal(far, np.inf)
    return float((group[far.argmin(axis=1)] == group).mean())


@pytest.mark.parametrize("n", [60, 600])  # all landmarks; most points between landmarks
def test_what_is_alike_lies_together(n: int) -> None:
    vectors, group = clusters(n)
    points = layout_of(vectors)
    assert points.shape == (n, 2)
    assert points.dtype == np.float32
    assert np.abs(points).max() == pytest.approx(1, abs=1e-3)
    assert own_group_nearest(points, group) > 0.97
    assert len(np.unique(points, axis=0)) == n  # none on another


def test_points_lie_where_their_nearest_landmark_lies_and_beside_one_another() -> None:
    rng = np.random.default_rng(0)
    known = rng.random((80, 2), dtype=np.float32)
    copies = np.concatenate([known, np.repeat(known, 5, axis=0)])
    points = landscape._among(copies, np.arange(80), known * 10, rng)
    assert (points[:80] == known * 10).all()
    far = np.linalg.norm(points[80:] - np.repeat(known * 10, 5, axis=0), axis=1)
    assert np.median(far) < 0.5  # the next landmark lies about 0.6 away, the fifth twice as far
    assert len(np.unique(points, axis=0)) == len(points)


def test_the_same_twice_and_other_seeds_differ() -> None:
    vectors, _ = clusters(300)
    first = layout_of(vectors, seed=3)
    assert (layout_of(vectors, seed=3) == first).all()
    assert (layout_of(vectors, seed=4) != first).any()


def test_scale_and_format_of_numbers_do_not_matter_much() -> None:
    vectors, group = clusters(200)
    for other in (vectors.astype(np.float64) * 1e-30, vectors.astype(np.float64) * 1e150):
        assert own_group_nearest(layout_of(other), group) > 0.97


def test_rows_that_are_not_finite_have_no_place() -> None:
    vectors, group = clusters(100)
    vectors[3, 2] = np.nan
    vectors[50] = np.inf
    points = layout_of(vectors)
    assert np.flatnonzero(np.isnan(points[:, 0])).tolist() == [3, 50]
    good = np.isfinite(points[:, 0])
    assert own_group_nearest(points[good], group[good]) > 0.97
    assert np.isnan(layout_of(np.full((4, 3), np.nan))).all()


@pytest.mark.parametrize("n", [1, 2, 3, 9, 10, 11, 40])
def test_few_points(n: int) -> None:
    points = layout_of(clusters(n)[0])
    assert np.isfinite(points).all()
    assert np.abs(points).max() <= 1 + 1e-6
    if n > 1:
        assert len(np.unique(points, axis=0)) == n


def test_few_points_show_their_two_main_directions() -> None:
    vectors = np.zeros((5, 6), np.float32)
    vectors[:, 4] = [-2, -1, 0, 1, 2]
    points = layout_of(vectors)
    steps = np.diff(points[:, 0])
    assert np.abs(steps) == pytest.approx([0.5] * 4, abs=1e-5)
    assert np.abs(points[:, 1]).max() < 1e-5


@pytest.mark.parametrize("vectors", [np.ones((500, 7)), np.zeros((500, 7)), np.zeros((30, 0)), np.ones((30, 1))])
def test_equal_vectors(vectors: NDArray[np.float64]) -> None:
    points = layout_of(vectors)
    assert np.isfinite(points).all()
    assert len(np.unique(points, axis=0)) == len(vectors)


def test_one_that_differs_among_equals() -> None:
    vectors = np.ones((400, 5))
    vectors[7] = -3
    points = layout_of(vectors)
    assert np.isfinite(points).all()


def test_one_column() -> None:
    assert np.isfinite(layout_of(np.arange(300.0)[:, None])).all()


def test_no_vectors_and_no_matrix() -> None:
    assert layout_of(np.zeros((0, 3))).shape == (0, 2)
    with pytest.raises(DataError):
        layout_of(np.zeros(3))


def test_side_by_side() -> None:
    groups = [layout_of(clusters(30, seed=i)[0]) for i in range(5)]
    groups[1][4] = np.nan
    placed = side_by_side(groups)
    assert np.isnan(placed[1][4]).all()
    boxes = [(np.nanmin(p, axis=0), np.nanmax(p, axis=0)) for p in placed]
    assert all(np.nanmax(np.abs(p)) <= 1 for p in placed)
    for i, (low, high) in enumerate(boxes):
        for other_low, other_high in boxes[i + 1 :]:
            assert (low > other_high).any() or (other_low > high).any()
    assert side_by_side(groups[:1])[0] is groups[0]


SEA = "ships and boats on the open sea, sailing past a harbour"
FOOD = "recipes for bread and cakes baked in a hot oven"
SEA_ZH = "船只在海上航行，经过港口"
FOOD_ZH = "在烤箱里烘焙的面包和蛋糕"


def cosine(a: Floats, b: Floats) -> float:
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def test_texts_about_the_same_are_near() -> None:
    texts = [SEA, SEA.replace("boats", "vessels"), FOOD, FOOD.replace("bread", "rolls"), SEA_ZH, SEA_ZH + "。", FOOD_ZH]
    v = explanation_vectors(texts)
    assert v.dtype == np.float32
    assert (explanation_vectors(texts) == v).all()
    assert cosine(v[0], v[1]) > 0.7 > 0.3 > cosine(v[0], v[2])
    assert cosine(v[4], v[5]) > 0.7 > 0.3 > cosine(v[4], v[6])


def test_languages_do_not_lie_apart() -> None:
    texts = [SEA, SEA + " again", FOOD, FOOD + " again", SEA_ZH, SEA_ZH + "了", FOOD_ZH, FOOD_ZH + "了"]
    languages = ["en"] * 4 + ["zh"] * 4
    centred = explanation_vectors(texts, languages)
    for rows in (slice(0, 4), slice(4, 8)):
        assert np.abs(centred[rows].mean(axis=0)).max() < 1e-6
    apart = explanation_vectors(texts)
    assert np.linalg.norm(apart[:4].mean(axis=0) - apart[4:].mean(axis=0)) > 0.3


def test_texts_without_words_have_no_vector() -> None:
    v = explanation_vectors(["", "...", SEA, "\x00\u202e", FOOD, "half \ud800 of a pair"], ["en"] * 6)
    assert np.flatnonzero(np.isnan(v[:, 0])).tolist() == [0, 1, 3]
    assert np.isfinite(v[[2, 4, 5]]).all()
    assert np.isnan(explanation_vectors(["!", "?"])).all()
    assert len(explanation_vectors([])) == 0
    assert layout_of(explanation_vectors([SEA])).shape == (1, 2)


def test_only_the_beginning_of_a_long_text_counts() -> None:
    long = "wave " * 400_000
    v = explanation_vectors([SEA, FOOD, long, long[: landscape.MAX_CHARS] + FOOD])
    assert np.isfinite(v).all()
    assert (v[2] == v[3]).all()


def test_as_many_languages_as_texts() -> None:
    with pytest.raises(DataError):
        explanation_vectors([SEA], ["en", "zh"])
