"""The figure of a suite: reconstruction error and interpretability against L0, as in Safe-SAIL (arXiv 2509.18127).

One SVG of two panels that stands alone or in a page. Positions are computed here, marks are drawn and text is escaped
by `templates/suite.svg`; equal data give equal bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import ceil, floor, log10

from markupsafe import Markup

from seamark.features.suite_ranking import RankedSAE, SuiteRanking
from seamark.show.html import render_part
from seamark.show.numbers import estimate_text, number, tick

PANEL, HEIGHT = 460, 250
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 14, 30, 44
_LEGEND_COLUMN, _LEGEND_ROW, _NAME = 230, 18, 30
_NOTES, _NOTE = 4, 150
"""Lines of notes and characters of each, at most."""


@dataclass(frozen=True)
class Mark:
    """A value in pixels, with its interval (None: there is none)."""

    x: float
    y: float
    low: float | None
    high: float | None
    title: str


@dataclass(frozen=True)
class Line:
    """Marks of one series, joined from left to right."""

    series: int
    null: bool
    """Drawn dashed and hollow."""
    marks: tuple[Mark, ...]

    @property
    def points(self) -> str:
        return " ".join(f"{m.x},{m.y}" for m in self.marks)


@dataclass(frozen=True)
class Panel:
    """One plot; positions are relative to its left upper corner."""

    title: str
    left: float
    x_ticks: tuple[tuple[float, str], ...]
    y_ticks: tuple[tuple[float, str], ...]
    lines: tuple[Line, ...]
    empty: str
    """Shown instead of marks, where there are none."""


def suite_figure(ranking: SuiteRanking) -> Markup:
    """FVU against L0 beside I_CDF and its null against L0, a line for each hookpoint (and kind of autoencoder).

    What cannot be drawn is named below the panels.
    """
    drawn = [row for row in ranking.rows if row.l0 > 0]
    notes = [f"{row.sae}: no latent fires" for row in ranking.rows if row.l0 <= 0]
    notes += [f"{row.sae}: FVU is not known" for row in drawn if row.fvu is None]
    series = _series(drawn)
    x_of, x_ticks = _log_axis([row.l0 for row in drawn])
    panels = (
        _panel("Reconstruction: FVU", 0, x_ticks, _fvu(series, x_of), "no FVU is known"),
        _panel("Interpretability: I_CDF (dashed: sides swapped)", 1, x_ticks, _i_cdf(series, x_of), "nothing fires"),
    )
    columns = max(1, 2 * PANEL // _LEGEND_COLUMN)
    legend = [
        (12 + _LEGEND_COLUMN * (i % columns), HEIGHT + 10 + _LEGEND_ROW * (i // columns), i, _short(name, _NAME), name)
        for i, name in enumerate(series)
    ]
    below = HEIGHT + 14 + _LEGEND_ROW * ceil(len(series) / columns)
    shown = [_short(note, _NOTE) for note in notes[:_NOTES]]
    if len(notes) > _NOTES:
        shown[-1] = f"and {len(notes) - _NOTES + 1} more"
    lines = [(below + _LEGEND_ROW * i, f"Not drawn: {note}") for i, note in enumerate(shown)]
    return render_part(
        "suite.svg", panels=panels, legend=legend, notes=lines, width=2 * PANEL,
        height=below + _LEGEND_ROW * len(lines), left=_LEFT, right=PANEL - _RIGHT, top=_TOP, bottom=HEIGHT - _BOTTOM,
    )  # fmt: skip


def _series(rows: Sequence[RankedSAE]) -> dict[str, list[RankedSAE]]:
    """{name: autoencoders by L0}, names in order; the kind is named where a hookpoint has several."""
    kinds: dict[str, set[str]] = {}
    for row in rows:
        kinds.setdefault(row.hookpoint, set()).add(row.activation)
    found: dict[str, list[RankedSAE]] = {}
    for row in sorted(rows, key=lambda r: (r.hookpoint, r.activation, r.l0, r.sae)):
        name = f"{row.hookpoint} {row.activation}" if len(kinds[row.hookpoint]) > 1 else row.hookpoint
        found.setdefault(name, []).append(row)
    return found


Value = tuple[float, float, float | None, float | None, str]
"""x in pixels; value, low and high as they are; title."""
Values = list[tuple[int, bool, list[Value]]]
"""(series, whether it is the null, values) each."""


def _fvu(series: dict[str, list[RankedSAE]], x_of: Callable[[float], float]) -> Values:
    return [
        (i, False, [(x_of(r.l0), r.fvu, None, None, f"{r.sae}: L0 {number(r.l0)}, FVU {number(r.fvu)}")
                    for r in rows if r.fvu is not None])
        for i, rows in enumerate(series.values())
    ]  # fmt: skip


def _i_cdf(series: dict[str, list[RankedSAE]], x_of: Callable[[float], float]) -> Values:
    found: Values = []
    for i, rows in enumerate(series.values()):
        for null in (True, False):
            values: list[Value] = []
            for row in rows:
                estimate = row.null if null else row.i_cdf
                if estimate.value is not None:
                    name = "sides swapped" if null else "I_CDF"
                    title = f"{row.sae}: L0 {number(row.l0)}, {name} {estimate_text(estimate, 'number')}"
                    values.append((x_of(row.l0), estimate.value, estimate.low, estimate.high, title))
            found.append((i, null, values))
    return found


def _panel(title: str, place: int, x_ticks: tuple[tuple[float, str], ...], values: Values, empty: str) -> Panel:
    known = [v for _, _, points in values for point in points for v in point[1:4] if v is not None]
    step = _step(max(known, default=1.0) or 1.0)
    n_steps = max(1, ceil(max(known, default=1.0) / step - 1e-9))

    def y_of(value: float) -> float:
        return round(HEIGHT - _BOTTOM - max(value, 0.0) / (n_steps * step) * (HEIGHT - _TOP - _BOTTOM), 2)

    def mark(point: Value) -> Mark:
        x, value, low, high, text = point
        return Mark(x, y_of(value), None if low is None else y_of(low), None if high is None else y_of(high), text)

    lines = tuple(Line(i, null, tuple(map(mark, points))) for i, null, points in values if points)
    y_ticks = tuple((y_of(i * step), tick(round(i * step, 12))) for i in range(n_steps + 1))
    return Panel(title, place * PANEL, x_ticks, y_ticks, lines, "" if lines else empty)


def _step(high: float) -> float:
    """A round step, 1, 2 or 5 times a power of ten, of which about five reach `high`."""
    power = 10.0 ** floor(log10(high / 5))
    return next(m * power for m in (1, 2, 5, 10) if m * power >= high / 5 * 0.999)


def _log_axis(values: Sequence[float]) -> tuple[Callable[[float], float], tuple[tuple[float, str], ...]]:
    """The map from values > 0 to pixels and the ticks of a logarithmic axis."""
    low, high = (min(values), max(values)) if values else (1.0, 10.0)
    start, end = log10(low), log10(high)
    room = max(0.08 * (end - start), 0.05)
    start, end = start - room, end + room

    def x_of(value: float) -> float:
        return round(_LEFT + (log10(value) - start) / (end - start) * (PANEL - _LEFT - _RIGHT), 2)

    powers = range(floor(start), ceil(end) + 1)
    steps = (1, 2, 5) if end - start < 2.5 else (1,)
    ticks = [m * 10.0**p for p in powers for m in steps if start <= log10(m * 10.0**p) <= end]
    shown = ticks if len(ticks) > 1 else sorted({low, high})
    return x_of, tuple((x_of(v), tick(float(f"{v:.3g}"))) for v in shown)


def _short(text: str, limit: int) -> str:
    return text if len(text) <= limit else f"{text[: limit - 1]}…"
