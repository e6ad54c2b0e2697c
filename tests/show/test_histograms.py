"""Histograms over given bins: what is joined, what is left out, and where bars and ticks stand."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from seamark.show.figures import Chart, draw
from seamark.show.histograms import LARGE, SMALL, bin_figure, merged, sketch

COUNTS = st.lists(st.integers(0, 10**9), min_size=1, max_size=200)


def test_bins_are_joined_and_empty_ends_left_out() -> None:
    assert merged([0, 1, 2, 3, 4, 5, 6], [0, 2, 0, 1, 4, 0], 10) == ((1, 2, 3, 4, 5), (2, 0, 1, 4))
    assert merged([0, 1, 2, 3, 4, 5, 6], [0, 2, 0, 1, 4, 0], 3) == ((1, 3, 5), (2, 5))
    assert merged([0, 1, 2, 3, 4, 5], [1, 1, 1, 1, 1], 2) == ((0, 3, 5), (3, 2))  # the last one is narrower
    assert merged([0, 1, 2], [0, 0], 5) == ((), ())
    with pytest.raises(ValueError, match="2 edges for 2 counts"):
        merged([0, 1], [1, 2], 5)


@given(COUNTS, st.integers(1, 50))
def test_joining_loses_nothing(counts: list[int], most: int) -> None:
    edges, joined = merged(list(range(len(counts) + 1)), counts, most)
    assert sum(joined) == sum(counts)
    assert len(joined) <= most
    assert list(edges) == sorted(set(edges))
    assert len(edges) == (len(joined) + 1 if joined else 0)


@given(COUNTS)
def test_a_sketch_is_as_high_as_its_place(counts: list[int]) -> None:
    heights = sketch(list(range(len(counts) + 1)), counts)
    assert len(heights) <= SMALL
    assert all(0 <= h <= 1 for h in heights)
    assert max(heights, default=1.0) == 1.0


def test_a_sketch_is_logarithmic() -> None:
    assert sketch([0, 1, 2, 3], [9, 0, 99]) == (0.5, 0.0, 1.0)


def test_bars_of_a_figure_are_equally_wide() -> None:
    chart = bin_figure("Title", [0.1, 1.0, 10.0, 100.0], [10, 0, 40], x_label="activation", unit="positions")
    assert chart is not None
    assert len({bar.width for bar in chart.bars}) == 1
    assert [bar.height for bar in chart.bars] == [
        pytest.approx(h * (chart.bottom - chart.top) / 40) for h in (10, 0, 40)
    ]
    assert chart.bars[0].title == "0.100 to 1.00: 10 positions, 20.0\u202f%"
    assert [t.label for t in chart.x_ticks] == ["0.10", "1.0", "10", "100"]
    assert [t.label for t in chart.y_ticks] == ["0", "10", "20", "30", "40"]
    assert "positions by activation" in draw(chart)
    assert bin_figure("Title", [0, 1], [0], x_label="x", unit="texts") is None


@given(COUNTS, st.booleans(), st.sampled_from([(480, 260), (360, 230)]))
def test_everything_lies_within_the_figure(counts: list[int], log: bool, size: tuple[int, int]) -> None:
    edges = list(range(len(counts) + 1))
    chart = bin_figure("Title", edges, counts, x_label="x", unit="texts", log=log, size=size)
    if chart is None:
        assert not any(counts)
        return
    assert len(chart.bars) <= LARGE
    assert_within(chart)
    filled = [c > 0 for c in merged(edges, counts, LARGE)[1]]
    assert [bar.height > 0 for bar in chart.bars] == filled or not log  # on this axis a single one can be seen


def assert_within(chart: Chart) -> None:
    for bar in chart.bars:
        assert chart.left - 0.01 <= bar.x
        assert bar.x + bar.width <= chart.right + 0.01
        assert chart.top - 0.01 <= bar.y
        assert bar.y + bar.height == pytest.approx(chart.bottom, abs=0.02)
    assert all(chart.left - 0.01 <= t.at <= chart.right + 0.01 for t in chart.x_ticks)
    assert all(chart.top - 0.01 <= t.at <= chart.bottom + 0.01 for t in chart.y_ticks)
    assert 1 < len(chart.y_ticks) <= 11
