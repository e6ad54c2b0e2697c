"""Histograms over given bins: a sketch for cards, and a figure with axes whose bars are all equally wide."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import ceil, log10

from seamark.show.figures import HEIGHT, WIDTH, Bar, Chart, Tick
from seamark.show.numbers import number, percent, thousands

SMALL, LARGE = 24, 40
"""Bars of a sketch and of a figure, at most."""


def merged(edges: Sequence[float], counts: Sequence[int], most: int) -> tuple[tuple[float, ...], tuple[int, ...]]:
    """At most `most` bins that hold what these do: empty ones at either end are left out, neighbours are joined.

    Args:
        edges: [n + 1], ascending.
        counts: [n].
    """
    if len(edges) != len(counts) + 1:
        raise ValueError(f"{len(edges)} edges for {len(counts)} counts")
    filled = [i for i, count in enumerate(counts) if count > 0]
    if not filled:
        return (), ()
    first, last = filled[0], filled[-1] + 1
    width = ceil((last - first) / most)
    starts = range(first, last, width)
    joined = tuple(sum(counts[i : min(i + width, last)]) for i in starts)
    return (*(edges[i] for i in starts), edges[last]), joined


def sketch(edges: Sequence[float], counts: Sequence[int]) -> tuple[float, ...]:
    """Heights in 0-1 of at most `SMALL` bars, by the logarithm of their counts; empty where nothing was counted."""
    _, joined = merged(edges, counts, SMALL)
    top = log10(1 + max(joined, default=0))
    return tuple(round(log10(1 + count) / top, 3) for count in joined)


def bin_figure(
    title: str, edges: Sequence[float], counts: Sequence[int], *, x_label: str, unit: str, log: bool = False,
    size: tuple[int, int] = (WIDTH, HEIGHT),
) -> Chart | None:  # fmt: skip
    """Counts by bins, each bin equally wide whatever it spans; None where nothing was counted.

    Args:
        unit: what is counted, in the plural ("features").
        log: the y axis by powers of ten, for counts that differ much.
        size: width and height of the view box, in pixels; letters are as large as in others of this width.
    """
    edges, counts = merged(edges, counts, LARGE)
    if not counts:
        return None
    width, height = size
    left, top = Chart.left, Chart.top
    right, bottom = width - (WIDTH - Chart.right), height - (HEIGHT - Chart.bottom)
    step = (right - left) / len(counts)
    ticks, reach = _log_axis(max(counts)) if log else _axis(max(counts))
    total = sum(counts)
    bars = []
    for i, (count, share) in enumerate(zip(counts, (reach(c) for c in counts), strict=True)):
        tall = round(share * (bottom - top), 2)
        text = f"{number(edges[i])} to {number(edges[i + 1])}: {thousands(count)} {unit}, {percent(count / total)}"
        bars.append(Bar(round(left + i * step, 2), round(bottom - tall, 2), round(step * 0.9, 2), tall, 0, text))
    every = ceil(len(edges) / (width / 70))
    return Chart(
        title=title, x_label=x_label, y_label=unit + (" (logarithmic)" if log else ""), bars=tuple(bars), legend=(),
        width=width, height=height, right=right, bottom=bottom,
        x_ticks=tuple(Tick(round(left + i * step, 2), number(edges[i], 2)) for i in range(0, len(edges), every)),
        y_ticks=tuple(Tick(round(bottom - share * (bottom - top), 2), label) for share, label in ticks),
    )  # fmt: skip


def _axis(most: int) -> tuple[list[tuple[float, str]], Callable[[int], float]]:
    """Ticks (share of the height, label) from 0 to `most` or a little more, and the share for a count."""
    power = 10 ** len(str(max(1, most // 5))) // 10
    step = next(m * power for m in (1, 2, 5, 10) if m * power * 5 >= most)
    full = step * ceil(most / step)
    return [(n / full, thousands(n)) for n in range(0, full + 1, step)], lambda count: count / full


def _log_axis(most: int) -> tuple[list[tuple[float, str]], Callable[[int], float]]:
    """The same by powers of ten; the lowest tick is 1, a little above the axis, so that a single one can be seen."""
    powers = ceil(log10(max(most, 2)))
    lift = 0.06
    ticks = [(lift + (1 - lift) * p / powers, thousands(10**p)) for p in range(powers + 1)]
    return ticks, lambda count: lift + (1 - lift) * log10(count) / powers if count else 0.0
