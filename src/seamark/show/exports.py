"""Result tables and figures as files for papers and other tools: Markdown, CSV, LaTeX; PNG, PDF, HTML.

Data sets name their own categories, so a cell may hold anything: each format gets its own escaping, after characters
that act unseen were made visible. Equal input gives equal bytes: no dates, no names of machines.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping, Sequence
from math import isfinite
from pathlib import Path
from typing import Any

from seamark.errors import ConfigError
from seamark.run import disk_errors, write_atomic
from seamark.show.drawing import drawn
from seamark.show.figures import Chart
from seamark.show.html import render, visible
from seamark.show.numbers import NOT_AVAILABLE, estimate_text, in_unit, thousands
from seamark.stats import Estimate

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_SPACES = re.compile(r"[\s\u2028\u2029]+")
_FORMULA = re.compile(r"\s*[=+\-@＝＋－＠]")
_LATER_FORMULA = re.compile(r"(;[\s\"']*)(?=[=+\-@＝＋－＠])")
_MARKDOWN = {
    **{c: "\\" + c for c in "\\`*_[]~$#"},
    "|": "&#124;", "<": "&lt;", ">": "&gt;", "&": "&amp;", "@": "&#64;",
}  # fmt: skip
_LINK = re.compile(r"(?i)\b(https?|ftp|xmpp|mailto):|\b(www)\.")
_LATEX = {
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}",
    ">": r"\textgreater{}", "|": r"\textbar{}", '"': r"\textquotedbl{}", "'": r"\textquotesingle{}",
    "`": r"\textasciigrave{}", "[": "{[}", "]": "{]}", "*": "{*}",
    **{c: "\\" + c for c in "{}$&#_%"},
    "−": "$-$", "±": r"$\pm$", "×": r"$\times$", "≤": r"$\le$", "≥": r"$\ge$", "→": r"$\to$", "↑": r"$\uparrow$",
    "↓": r"$\downarrow$", "–": "--", "—": "---", "…": r"\ldots{}", "\u202f": r"\,", "\u00a0": "~",
    "⟦": "{[}", "⟧": "{]}", "␡": "{[}U+007F{]}",
    **{chr(0x2400 + c): f"{{[}}U+{c:04X}{{]}}" for c in range(0x20)},
}  # fmt: skip
"""Brackets and stars stand in braces: after the end of a row they would be its options."""
_LATEX_PART = re.compile(r"([-,])(?=\1)|.", re.DOTALL)


def write_table(
    folder: Path,
    name: str,
    columns: Sequence[str],
    rows: Sequence[Sequence[Any]],
    caption: str = "",
    *,
    units: Mapping[str, str] | None = None,
) -> tuple[Path, Path, Path]:
    """Write a table as `name.md`, `name.csv` and `name.tex`.

    Markdown and LaTeX are for people: estimates print as in the terminal. The CSV is for programs: numbers as they are
    (shares as fractions), an estimate in three columns (`x`, `x low`, `x high`), with the reason instead of the value
    where it is not available; texts that a spreadsheet would run as a formula begin with an apostrophe. The LaTeX needs
    the package booktabs; letters beyond Latin need XeLaTeX or LuaLaTeX.

    Args:
        folder: made where it is not there.
        name: of the files, without suffix: Latin letters, digits, `.`, `_`, `-`.
        columns: titles.
        rows: as many values each as there are columns: texts, numbers, `Estimate`s, None (nothing to say).
        caption: what the table shows.
        units: column -> `share`, `points`, `signed` or `number`, for its estimates and numbers in print. Without one,
            estimates are shares and numbers print as they are.

    Raises:
        ConfigError: a name that is no file name.
        RunError: the folder cannot be written.
    """
    _checked(name)
    for row in rows:
        if len(row) != len(columns):
            raise ValueError(f"a row of {len(row)} values in a table of {len(columns)} columns")
    units = units or {}
    printed = [[_print(v, units.get(c)) for c, v in zip(columns, row, strict=True)] for row in rows]
    made = {
        "md": _markdown(columns, printed, caption),
        "csv": _csv(columns, rows),
        "tex": _latex(columns, printed, caption, name),
    }
    paths = (folder / f"{name}.md", folder / f"{name}.csv", folder / f"{name}.tex")
    with disk_errors(folder):
        for path in paths:
            write_atomic(path, made[path.suffix[1:]])
    return paths


def write_figure(folder: Path, name: str, chart: Chart) -> tuple[Path, Path, Path]:
    """Write a chart as `name.png`, `name.pdf` and `name.html` (one page, no scripts, loads nothing).

    PNG and PDF use the font that comes with Matplotlib: letters that it lacks (Chinese, Arabic) print as boxes there.

    Raises:
        ConfigError: a name that is no file name.
        RunError: the folder cannot be written.
    """
    _checked(name)
    paths = (folder / f"{name}.png", folder / f"{name}.pdf", folder / f"{name}.html")
    data: tuple[bytes | str, ...] = (*drawn(chart), render("chart_page.html", chart=chart))
    with disk_errors(folder):
        for path, content in zip(paths, data, strict=True):
            write_atomic(path, content)
    return paths


def _checked(name: str) -> None:
    if not _NAME.fullmatch(name):
        raise ConfigError("this cannot be the name of a file", where="export", fix="Use letters, digits, '.', '_', '-'")


def _print(value: Any, unit: str | None) -> str:
    """A value for people."""
    if value is None:
        return "–"
    if isinstance(value, Estimate):
        return estimate_text(value, unit or "share")
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return thousands(value)
    return in_unit(value, unit or "number") if isinstance(value, float) else str(value)


def _one_line(text: str) -> str:
    """`text` without line ends, which no cell of any format survives, and with unseen characters made visible."""
    return visible(_SPACES.sub(lambda m: m.group() if m.group() in ("\u00a0", "\u202f") else " ", text)).strip(" ")


def _markdown(columns: Sequence[str], rows: Sequence[Sequence[str]], caption: str) -> str:
    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(map(markdown_text, cells)) + " |\n"

    ruler = "|" + "|".join([" :-- ", *[" --: "] * (len(columns) - 1)]) + "|\n"
    head = f"{markdown_text(caption)}\n\n" if caption else ""
    return head + line(columns) + ruler + "".join(map(line, rows))


def markdown_text(text: str) -> str:
    """`text` as Markdown prints it, in a table or outside: no markup, HTML, links or mentions come of it."""
    escaped = "".join(_MARKDOWN.get(c, c) for c in _one_line(text))
    return _LINK.sub(lambda m: f"{m.group(1)}&#58;" if m.group(1) else f"{m.group(2)}&#46;", escaped)


def _latex(columns: Sequence[str], rows: Sequence[Sequence[str]], caption: str, name: str) -> str:
    def line(cells: Sequence[str]) -> str:
        return " & ".join(map(latex_text, cells)) + r" \\" + "\n"

    parts = ["% \\usepackage{booktabs}\n", "\\begin{table}\n\\centering\n"]
    if caption:
        parts.append(f"\\caption{{{latex_text(caption)}}}\n")
    parts += [f"\\label{{tab:{name}}}\n", f"\\begin{{tabular}}{{l{'r' * (len(columns) - 1)}}}\n\\toprule\n"]
    parts += [line(columns), "\\midrule\n", *map(line, rows), "\\bottomrule\n\\end{tabular}\n\\end{table}\n"]
    return "".join(parts)


def latex_text(text: str) -> str:
    """`text` as LaTeX prints it: every special character by name, so that none acts, and `--` no dash."""
    return _LATEX_PART.sub(lambda m: f"{m.group(1)}{{}}" if m.group(1) else _latex_character(m), _one_line(text))


def _latex_character(match: re.Match[str]) -> str:
    return _LATEX.get(match.group(), match.group())


def _csv(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    estimates = {i for row in rows for i, value in enumerate(row) if isinstance(value, Estimate)}
    head = []
    for i, column in enumerate(columns):
        head += [column, f"{column} low", f"{column} high"] if i in estimates else [column]
    out = io.StringIO()
    writer = csv.writer(out, quoting=csv.QUOTE_NONNUMERIC, lineterminator="\n")
    writer.writerow([csv_text(c) for c in head])
    for row in rows:
        cells: list[str | float] = []
        for i, value in enumerate(row):
            cells += _csv_estimate(value) if i in estimates else [_csv_cell(value)]
        writer.writerow(cells)
    return out.getvalue()


def _csv_estimate(value: Any) -> list[str | float]:
    """Three cells: value (or why there is none), low, high."""
    if not isinstance(value, Estimate):
        return [_csv_cell(value), "", ""]
    if value.value is None:
        return [csv_text(estimate_text(value)), "", ""]
    return [_csv_cell(value.value), _csv_cell(value.low), _csv_cell(value.high)]


def _csv_cell(value: Any) -> str | float:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int | float):
        return value if isfinite(value) else NOT_AVAILABLE
    return csv_text(str(value))


def csv_text(text: str) -> str:
    """`text` as a cell that no spreadsheet runs, be its separator a comma or (as in much of Europe) a semicolon."""
    text = _LATER_FORMULA.sub(r"\1'", _one_line(text))
    return f"'{text}" if _FORMULA.match(text) else text
