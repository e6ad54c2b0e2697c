"""`python -m benchmarks.markdown`: put the tables of `benchmarks/results/*.json` into `docs/benchmarks.md`.

A place for a result in the page is a pair of comments, `<!-- NAME -->` and `<!-- /NAME -->`; what lies between them is
replaced, and stays where there is no such result.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import harness
from benchmarks.harness import Claim, Row
from seamark.run import read_json, write_atomic

PAGE = harness.ROOT / "docs" / "benchmarks.md"
PLACE = re.compile(r"<!-- ([\w-]+) -->\n.*?<!-- /\1 -->", re.DOTALL)
HIDDEN = ("table", "others_cpu")


def fill(page: str, results: Mapping[str, Mapping[str, Any]]) -> str:
    """The page with the tables of the results it has places for."""

    def put(place: re.Match[str]) -> str:
        name = place[1]
        return f"<!-- {name} -->\n{section(results[name])}\n<!-- /{name} -->" if name in results else place[0]

    return PLACE.sub(put, page)


def section(result: Mapping[str, Any]) -> str:
    """Date and machine, claims and rows of one result."""
    m = result["machine"]
    torch = m["versions"].get("torch", "?")
    lines = [
        f"Measured {result['date']} on {m['cpu']}, {m['cores']} cores, {m['ram_gib']} GiB, "
        f"{m['accelerator'] or 'no GPU'}; torch {torch}, Python {m['python']}; load before: {result['load_before']:g}. "
        "Of several runs the median, with the least and the largest in parentheses; brackets are intervals.",
        "", f"{result['about'][:1].upper()}{result['about'][1:]}.", "",
    ]  # fmt: skip
    claims = [[c["name"], _value(c), c["target"], {True: "yes", False: "**no**", None: ""}[c["holds"]], str(c["n"])]
              for c in result["claims"]]  # fmt: skip
    lines += table(["claim", "value", "target", "holds", "n"], claims)
    for title in dict.fromkeys(row.get("table") for row in result["rows"]):
        rows = [row for row in result["rows"] if row.get("table") == title]
        keys = [k for k in dict.fromkeys(k for row in rows for k in row) if k not in HIDDEN]
        lines += ["", *([f"**{title}**", ""] if title else [])]
        lines += table(keys, [[_cell(r.get(k)) for k in keys] for r in rows])
    return "\n".join(lines)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return ["| " + " | ".join(cells) + " |" for cells in (head, ["---"] * len(head), *rows)]


def _value(c: Row) -> str:
    if c["value"] is None:
        return f"not available: {c['reason']}"
    value = f"{c['value']:,g} {c['unit']}"
    if c["low"] is None:
        return value
    if c["spread"] == Claim.spread:
        return f"{value} ({c['low']:,g}–{c['high']:,g})"
    return f"{value} [{c['low']:,g} to {c['high']:,g}; {c['spread']}]"


def _cell(value: Any) -> str:
    if isinstance(value, Mapping) and "median" not in value:
        return ", ".join(f"{key} {_cell(part)}" for key, part in value.items())
    if isinstance(value, Mapping):
        spread = f" ({value['low']:,g}–{value['high']:,g})" if value["low"] != value["high"] else ""
        return f"{value['median']:,g}{spread}"
    return "–" if value is None else f"{value:,g}" if isinstance(value, int | float) else str(value)


def main(page: Path = PAGE, folder: Path = harness.RESULTS) -> int:
    results = {path.stem: read_json(path) for path in sorted(folder.glob("*.json"))}
    write_atomic(page, fill(page.read_text(), results).encode())
    sys.stderr.write(
        f"{page.name}: {', '.join(n for n in PLACE.findall(page.read_text()) if n in results) or 'nothing'}\n"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
