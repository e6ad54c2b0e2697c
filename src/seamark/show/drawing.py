"""A `Chart` as PNG and PDF, through Matplotlib: the same positions that `figure.html` draws, in the light colours.

Nothing depends on the user's Matplotlib settings or on the clock; text is never read as TeX.
"""

from __future__ import annotations

import io
import textwrap
import unicodedata
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING

from seamark.show.figures import Chart
from seamark.show.html import visible

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("#1b6fae", "#c05a13", "#4f7d2c", "#8a4fa3", "#5c636b")
"""The light theme's series, as in `page.css`."""
_FORE, _SOFT, _LINE, _BACK = "#1c1d1f", "#5d6168", "#dcdcd6", "#ffffff"
_MARKERS = {"circle": "o", "square": "s", "diamond": "D", "triangle": "^"}
_DPI = 200
_POINT = 72 / 100
"""A pixel of the view box is 1/100 inch."""
_ROW, _EDGE = 17, 10
_TEXT, _TITLE = 11, 13

_Write = Callable[..., None]
_Entry = tuple[float, int, str, int | None, str]
"""Of a legend: x, row, name, series (None: a reference line), shape."""


def drawn(chart: Chart) -> tuple[bytes, bytes]:
    """The chart as (PNG, PDF). Equal charts give equal bytes under one version of Matplotlib."""
    # Matplotlib is imported here, not above: commands that draw nothing start without it.
    import matplotlib.style
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.backends.backend_pdf import FigureCanvasPdf

    out = []
    with matplotlib.style.context(["default", {"pdf.fonttype": 42}]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        for canvas, metadata in (
            (FigureCanvasAgg, {"Software": None}),
            (FigureCanvasPdf, {"Creator": None, "Producer": None, "CreationDate": None}),
        ):
            figure = _figure(chart)
            buffer = io.BytesIO()
            kind = "png" if canvas is FigureCanvasAgg else "pdf"
            canvas(figure).print_figure(buffer, format=kind, dpi=_DPI, metadata=metadata, facecolor=_BACK)
            out.append(buffer.getvalue())
    return out[0], out[1]


def _figure(chart: Chart) -> Figure:
    """The whole picture: title, y label and legend above the plot, what could not be drawn below it."""
    from matplotlib.figure import Figure

    titles = _wrapped(chart.title, chart.width, _TITLE)
    legend = _legend(chart)
    notes = [line for text in chart.missing for line in _wrapped(f"Not drawn: {text}", chart.width, _TEXT)]
    labels = {tick.at: _tick_lines(tick.label, chart) for tick in chart.x_ticks}
    deeper = 13 * (max((len(lines) for lines in labels.values()), default=1) - 1)
    above = _EDGE + _ROW * (len(titles) + bool(chart.y_label) + (1 + legend[-1][1] if legend else 0))
    height = above + chart.height + deeper + _ROW * len(notes)
    figure = Figure(figsize=(chart.width / 100, height / 100))
    axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))
    axes.set(xlim=(0, chart.width), ylim=(height - above, -above))
    axes.axis("off")
    write = _writer(axes)
    y = -above + _EDGE
    for line in titles:
        y += _ROW
        write(_EDGE, y - 5, line, size=_TITLE, colour=_FORE, weight="bold")
    if chart.y_label:
        y += _ROW
        write(_EDGE, y - 5, chart.y_label)
    _draw_legend(axes, write, legend, y)
    _draw_frame(axes, write, chart, labels, deeper)
    _draw_marks(axes, chart)
    for i, note in enumerate(notes):
        write(_EDGE, chart.height + deeper + _ROW * i + 8, note)
    return figure


def _writer(axes: Axes) -> _Write:
    """A function that writes text at pixels, made harmless and never read as TeX."""

    def write(
        x: float, y: float, text: str, *, align: str = "left", size: float = _TEXT, colour: str = _SOFT,
        weight: str = "normal",
    ) -> None:  # fmt: skip
        axes.text(x, y, visible(text), ha=align, va="baseline", fontsize=size * _POINT, color=colour, weight=weight,
                  family="DejaVu Sans", parse_math=False)  # fmt: skip

    return write


def _draw_frame(axes: Axes, write: _Write, chart: Chart, labels: dict[float, list[str]], deeper: int) -> None:
    """Bands, grid, axis, ticks, reference lines and the x axis's title."""
    from matplotlib.patches import Rectangle

    span = (chart.left, chart.right)
    for top, tall in chart.bands:
        axes.add_patch(Rectangle((chart.left, top), chart.right - chart.left, tall, color=_SOFT, alpha=0.12, lw=0))
    for tick in chart.y_ticks:
        axes.plot(span, (tick.at, tick.at), color=_LINE, lw=0.6, zorder=1)
        write(chart.left - 6, tick.at + 4, tick.label, align="right")
    axes.plot(span, (chart.bottom, chart.bottom), color=_SOFT, lw=0.8, zorder=1)
    for at, lines in labels.items():
        for i, line in enumerate(lines):
            write(at, chart.bottom + 17 + 13 * i, line, align="center")
    write((chart.left + chart.right) / 2, chart.height + deeper - 8, chart.x_label, align="center")
    for level in chart.levels:
        axes.plot(span, (level.at, level.at), color=_SOFT, lw=1.0, ls=(0, (4, 3)), zorder=2)


def _draw_marks(axes: Axes, chart: Chart) -> None:
    from matplotlib.patches import Rectangle

    for bar in chart.bars:
        colour = COLOURS[bar.series % len(COLOURS)]
        axes.add_patch(Rectangle((bar.x, bar.y), bar.width, bar.height, facecolor=colour, lw=0, zorder=3))
    for dot in chart.dots:
        colour = COLOURS[dot.series % len(COLOURS)]
        if dot.low is not None and dot.high is not None:
            axes.plot((dot.x, dot.x), (dot.low, dot.high), color=colour, lw=1.3, zorder=3)
        _mark(axes, dot.x, dot.y, dot.shape, colour)


def _mark(axes: Axes, x: float, y: float, shape: str, colour: str) -> None:
    axes.plot([x], [y], marker=_MARKERS.get(shape, "o"), ms=8 * _POINT, mec=_BACK, mew=0.4, color=colour, zorder=4)


def _legend(chart: Chart) -> list[_Entry]:
    """The entries, flowing from left to right."""
    entries: list[tuple[str, int | None, str]] = [*chart.legend, *((level.label, None, "") for level in chart.levels)]
    placed: list[_Entry] = []
    x, row = float(_EDGE), 0
    for name, series, shape in entries:
        room = 22 + _width(name, _TEXT)
        if x > _EDGE and x + room > chart.width:
            x, row = float(_EDGE), row + 1
        placed.append((x, row, name, series, shape))
        x += room + 12
    return placed


def _draw_legend(axes: Axes, write: _Write, legend: list[_Entry], y: float) -> None:
    for x, row, name, series, shape in legend:
        base = y + _ROW * (row + 1) - 5
        if series is None:
            axes.plot((x, x + 14), (base - 4, base - 4), color=_SOFT, lw=1.0, ls=(0, (4, 3)))
        else:
            _mark(axes, x + 6, base - 4, shape, COLOURS[series % len(COLOURS)])
        write(x + 18, base, name)


def _tick_lines(label: str, chart: Chart) -> list[str]:
    """A label of the x axis, in as many lines as its room asks for, at most three."""
    room = (chart.right - chart.left) / max(1, len(chart.x_ticks))
    return _wrapped(label, room, _TEXT)[:3]


def _wrapped(text: str, room: float, size: int) -> list[str]:
    """`text` in lines of at most about `room` pixels."""
    per_character = max(_width(text, size) / max(1, len(text)), 1.0)
    return textwrap.wrap(visible(text), max(6, int((room - 4) / per_character))) or [""]


def _width(text: str, size: int) -> float:
    """About how many pixels `text` takes: no font is asked, so it is the same everywhere."""
    return sum(size * (1.0 if unicodedata.east_asian_width(c) in "WF" else 0.6) for c in text)
