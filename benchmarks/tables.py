"""Results of benchmarks on the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Column, Table

from benchmarks.harness import Result, Row


def show(result: Result, console: Console | None = None) -> None:
    """Print a benchmark's rows, then its claims."""
    console = console or wide_console()
    if result.rows:
        console.print(f"{result.name}: {result.about}.", markup=False, highlight=False)
        for name, what in (result.settings or {}).get("variants", {}).items():
            console.print(f"  {name}: {what}", markup=False, highlight=False)
        for title in dict.fromkeys(row.get("table") for row in result.rows):
            _show_rows([row for row in result.rows if row.get("table") == title], title, console)
    show_claims([c.to_json() for c in result.claims], console, result.name)


def _show_rows(rows: Sequence[Row], title: str | None, console: Console) -> None:
    """Rows that name the same `table`."""
    keys = [k for k in dict.fromkeys(k for row in rows for k in row) if k != "table"]
    table = Table(*keys, title=title)
    for row in rows:
        table.add_row(*(_cell(row.get(k)) for k in keys))
    console.print(table)


def wide_console() -> Console:
    """A console whose tables are not squeezed where there is no terminal."""
    console = Console()
    return console if console.is_terminal else Console(width=max(console.width, 150))


def _cell(value: Any) -> str:
    if isinstance(value, Mapping):
        if value.get("median") is None:
            return "–"
        spread = f" ({value['low']:,g}–{value['high']:,g})" if value["low"] != value["high"] else ""
        return f"{value['median']:,g}{spread}"
    return "–" if value is None else f"{value:,g}" if isinstance(value, float) else str(value)


def show_claims(claims: Sequence[Row], console: Console, title: str) -> None:
    table = Table(
        Column("claim", no_wrap=True), "value", "spread", "unit", "target", "holds", "n", title=f"Claims: {title}"
    )
    for c in claims:
        spread = "" if c["low"] is None else f"{c['low']:,g} to {c['high']:,g}"
        value = f"not available: {c['reason']}" if c["value"] is None else f"{c['value']:,g}"
        table.add_row(c["name"], value, spread, c["unit"], c["target"],
                      {True: "yes", False: "NO", None: "–"}[c["holds"]], str(c["n"]))  # fmt: skip
    console.print(table)
