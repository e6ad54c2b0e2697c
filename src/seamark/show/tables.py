"""Result tables: the rows of an experiment, for the terminal and for pages."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from seamark.show.html import visible
from seamark.show.numbers import estimate_text, percent, thousands
from seamark.stats import Estimate

NAME = 40
"""Characters of a name that is kept on one line."""


class ResultRow(BaseModel):
    """One line of an experiment: what was done to the training pairs, and what it did to the measures."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    method: str
    """`none` for the unedited data, else what chose the pairs: `safer`, `random`, `margin`, …"""
    rate: float | None = None
    """Share of the group that was edited; None where nothing was."""
    n_edited: int | None = None
    measures: dict[str, Estimate]
    """Name (a column's title) -> share with its interval; every row of a table has the same names."""


def measure_names(rows: Sequence[ResultRow]) -> list[str]:
    """Columns of a table of rows, by first appearance."""
    return list(dict.fromkeys(name for row in rows for name in row.measures))


def ordered(rows: Sequence[ResultRow]) -> list[ResultRow]:
    """Rows by method (as they come), then by rate; the unedited ones first."""
    methods = list(dict.fromkeys(row.method for row in rows))
    return sorted(rows, key=lambda r: (r.rate is not None, methods.index(r.method), r.rate or 0.0))


def rich_result_table(title: str, rows: Sequence[ResultRow]) -> Table:
    """The experiment as a terminal table: one line for each method and rate, shares as percent with intervals."""
    names = measure_names(rows)
    table = Table(title=Text(visible(title), style="bold"), box=box.SIMPLE_HEAD, title_justify="left", pad_edge=False)
    table.add_column("method")
    for name in ("rate", "edited", *names):
        table.add_column(Text(visible(name)), justify="right")
    last = None
    for row in ordered(rows):
        if last is not None and last != row.method:
            table.add_section()
        last = row.method
        cells = [_cell(row.measures.get(name)) for name in names]
        rate = "–" if row.rate is None else percent(row.rate)
        table.add_row(Text(visible(row.method)), rate, thousands(row.n_edited or 0), *cells)
    return table


def print_result_table(title: str, rows: Sequence[ResultRow], console: Console | None = None) -> None:
    """Print `rich_result_table` to the terminal (stdout unless told otherwise)."""
    (console or Console()).print(rich_result_table(title, rows))


def rich_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> Table:
    """Any small table for the terminal: the first column to the left, the others to the right, text made harmless.

    Nothing is cut off: long cells are broken, those of the first column (names to copy) only if they must be.
    """
    table = Table(title=Text(visible(title), style="bold"), box=box.SIMPLE_HEAD, title_justify="left", pad_edge=False)
    whole = max((len(str(row[0])) for row in rows if row), default=0) <= NAME
    for index, column in enumerate(columns):
        table.add_column(Text(visible(column)), justify="left" if index == 0 else "right", overflow="fold",
                         no_wrap=index == 0 and whole)  # fmt: skip
    for row in rows:
        table.add_row(*(_cell(v) if isinstance(v, Estimate) else Text(visible(str(v))) for v in row))
    return table


def _cell(estimate: Estimate | None) -> Text:
    if estimate is None or estimate.value is None:
        return Text(estimate_text(estimate) if estimate else "–", style="dim")
    return Text(estimate_text(estimate))
