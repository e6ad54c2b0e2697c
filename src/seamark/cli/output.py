"""What a command leaves behind: a table, or the result alone as JSON on stdout; `result.json` in its folder."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from seamark.run import disk_errors, to_jsonable, write_json
from seamark.show.tables import rich_table
from seamark.stats import Estimate


def finish(
    result: Mapping[str, Any],
    *,
    as_json: bool,
    out: Path | None = None,
    title: str = "",
    columns: Sequence[str] = (),
    rows: Sequence[Sequence[Any]] = (),
) -> None:
    """Save the result where the command has a folder, then print it."""
    if out is not None:
        with disk_errors(out):
            write_json(out / "result.json", result)
    if as_json:
        sys.stdout.write(json.dumps(to_jsonable(result), ensure_ascii=False) + "\n")
        return
    if rows:
        Console().print(rich_table(title, columns, rows))
    if out is not None:
        Console().print(str(out / "result.json"), markup=False, highlight=False, soft_wrap=True)


def percent(e: Estimate | float | None) -> str:
    """A share as percent, with its interval where there is one."""
    if e is None:
        return "not available"
    if isinstance(e, Estimate):
        if e.value is None:
            return f"not available ({e.reason})"
        interval = f" [{100 * e.low:.1f}, {100 * e.high:.1f}]" if e.low is not None and e.high is not None else ""
        return f"{100 * e.value:.1f} %{interval}"
    return f"{100 * e:.1f} %"
