"""Figures as inline SVG: positions are computed here, marks are drawn by `templates/figure.html`.

Colours are the page's own CSS variables, so a figure follows light and dark; nothing in it depends on time or machine,
so equal data give equal bytes. Every mark carries its numbers as a title.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import ceil, floor, log10

from markupsafe import Markup

from seamark.show.html import render_part
from seamark.show.numbers import estimate_text, number, percent, tick
from seamark.stats import Estimate

WIDTH, HEIGHT = 480, 260
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 12, 12, 46
SHAPES = ("circle", "square", "diamond", "triangle")


@dataclass(frozen=True)
class Tick:
    at: float
    label: str


@dataclass(frozen=True)
class Dot:
    """A value with its interval, in pixels. `low` and `high` are None where there is no interval."""

    x: float
    y: float
    low: float | None
    high: float | None
    series: int
    shape: str
    title: str


@dataclass(frozen=True)
class Bar:
    x: float
    y: float
    width: float
    height: float
    series: int
    title: str


@dataclass(frozen=True)
class Chart:
    """What `figure.html` draws. All positions are in pixels of a `width` by `height` view box."""

    title: str
    x_label: str
    y_label: str
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    legend: tuple[tuple[str, int, str], ...]
    """(name, series, shape) each."""
    dots: tuple[Dot, ...] = ()
    bars: tuple[Bar, ...] = ()
    levels: tuple[Tick, ...] = ()
    """Horizontal reference lines."""
    bands: tuple[tuple[float, float], ...] = ()
    """(top, height) of shaded horizontal bands: the intervals of the reference lines."""
    width: int = WIDTH
    height: int = HEIGHT
    left: int = _LEFT
    right: int = WIDTH - _RIGHT
    top: int = _TOP
    bottom: int = HEIGHT - _BOTTOM
    missing: tuple[str, ...] = field(default=())
    """What could not be drawn, and why."""


def draw(chart: Chart) -> Markup:
    """The chart as an SVG inside a `<figure>`."""
    return render_part("figure.html", chart=chart)


def interval_plot(
    title: str,
    series: Mapping[str, Sequence[tuple[str, Estimate]]],
    *,
    x_label: str,
    y_label: str,
    baseline: tuple[str, Estimate] | None = None,
) -> Chart:
    """Shares with their 95 % intervals: one group of dots for each x label, one dot a series, a baseline across.

    Args:
        series: name -> (x label, estimate of a share) each; x labels keep their order of appearance.
        baseline: a named estimate drawn as a line with its interval as a band.
    """
    labels = list(dict.fromkeys(label for points in series.values() for label, _ in points))
    known = [e for points in series.values() for _, e in points] + ([baseline[1]] if baseline else [])
    lows = [b for e in known for b in (e.value, e.low, e.high) if b is not None]
    ticks, y_of = _scale(lows, share=True)
    step = (WIDTH - _LEFT - _RIGHT) / max(1, len(labels))
    dots, missing = [], []
    for index, (name, points) in enumerate(series.items()):
        shift = (index - (len(series) - 1) / 2) * min(18.0, step / (len(series) + 1))
        for label, estimate in points:
            text = f"{name}, {label}: {estimate_text(estimate)}"
            if estimate.value is None:
                missing.append(text)
                continue
            x = _LEFT + (labels.index(label) + 0.5) * step + shift
            low, high = (None if b is None else y_of(b) for b in (estimate.low, estimate.high))
            shape = SHAPES[index % len(SHAPES)]
            dots.append(Dot(round(x, 2), y_of(estimate.value), low, high, index, shape, text))
    levels, bands = _baseline(baseline, y_of)
    return Chart(
        title=title, x_label=x_label, y_label=y_label, y_ticks=ticks, dots=tuple(dots), levels=levels, bands=bands,
        x_ticks=tuple(Tick(round(_LEFT + (i + 0.5) * step, 2), label) for i, label in enumerate(labels)),
        legend=tuple((name, i, SHAPES[i % len(SHAPES)]) for i, name in enumerate(series)),
        missing=tuple(missing),
    )  # fmt: skip


def _baseline(
    baseline: tuple[str, Estimate] | None, y_of: Callable[[float], float]
) -> tuple[tuple[Tick, ...], tuple[tuple[float, float], ...]]:
    if baseline is None or baseline[1].value is None:
        return (), ()
    name, estimate = baseline
    assert estimate.value is not None  # noqa: S101 - checked above; for the type checker
    levels = (Tick(y_of(estimate.value), f"{name}: {estimate_text(estimate)}"),)
    if estimate.low is None or estimate.high is None:
        return levels, ()
    top = y_of(estimate.high)
    return levels, ((top, round(y_of(estimate.low) - top, 2)),)


def histogram(
    title: str,
    edges: Sequence[float],
    counts: Mapping[str, Sequence[int]],
    *,
    x_label: str,
    y_label: str = "share of the group",
) -> Chart:
    """Histograms of several groups over the same bins, as shares of each group, side by side in every bin.

    Args:
        edges: bin edges [n + 1], ascending.
        counts: group -> items in each bin [n].
    """
    for name, values in counts.items():
        if len(values) != len(edges) - 1:
            raise ValueError(f"{name}: {len(values)} counts for {len(edges) - 1} bins")
    shares = {g: [v / max(1, sum(values)) for v in values] for g, values in counts.items()}
    ticks, y_of = _scale([0.0, *(s for values in shares.values() for s in values)], share=True, tight=True)
    span = edges[-1] - edges[0]

    def x_of(value: float) -> float:
        return _LEFT + (value - edges[0]) / span * (WIDTH - _LEFT - _RIGHT)

    bars = []
    for index, (name, heights) in enumerate(shares.items()):
        for i, share in enumerate(heights):
            width = (x_of(edges[i + 1]) - x_of(edges[i])) * 0.9 / len(shares)
            x = x_of(edges[i]) + index * width
            where = f"{number(edges[i])} to {number(edges[i + 1])}"
            text = f"{name}, {where}: {percent(share)} ({counts[name][i]} pairs)"
            y = y_of(share)
            bars.append(Bar(round(x, 2), y, round(width, 2), round(y_of(0.0) - y, 2), index, text))
    x_ticks = tuple(Tick(round(x_of(v), 2), tick(v)) for v in _round_steps(edges[0], edges[-1], 6))
    return Chart(
        title=title, x_label=x_label, y_label=y_label, x_ticks=x_ticks, y_ticks=ticks, bars=tuple(bars),
        legend=tuple((name, i, "square") for i, name in enumerate(counts)),
    )  # fmt: skip


def _scale(
    values: Sequence[float], *, share: bool, tight: bool = False
) -> tuple[tuple[Tick, ...], Callable[[float], float]]:
    """Ticks and the map from values to pixels for the y axis; shares stay within 0 and 1 and print as percent."""
    low, high = (min(values), max(values)) if values else (0.0, 1.0)
    room = 0.0 if tight else 0.06 * max(high - low, 0.02)
    low, high = low - room, high + max(room, 1e-9)
    if share:
        low, high = max(0.0, low), min(1.0, high)
    steps = _round_steps(low, high, 5, outside=True)
    bottom, top = steps[0], steps[-1]

    def y_of(value: float) -> float:
        reach = (value - bottom) / (top - bottom)
        return round(HEIGHT - _BOTTOM - reach * (HEIGHT - _TOP - _BOTTOM), 2)

    digits = 0 if all(abs(100 * s - round(100 * s)) < 1e-6 for s in steps) else 1
    return tuple(Tick(y_of(s), percent(s, digits) if share else tick(s)) for s in steps), y_of


def _round_steps(low: float, high: float, about: int, *, outside: bool = False) -> list[float]:
    """Round numbers (1, 2, 5 times a power of ten) within [low, high], or just around it when `outside`."""
    span = max(high - low, 1e-12)
    rough = span / about
    power = 10.0 ** floor(log10(rough))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough * 0.999)
    first, last = (floor(low / step + 1e-9), ceil(high / step - 1e-9)) if outside else (
        ceil(low / step - 1e-9), floor(high / step + 1e-9))  # fmt: skip
    last = max(last, first + 1) if outside else last
    return [round(i * step, 10) for i in range(first, last + 1)]
