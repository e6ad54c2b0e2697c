"""The result of a SAFER run as tables for the terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rich.table import Table

from seamark.show.tables import ResultRow, rich_result_table, rich_table
from seamark.stats import Estimate


def result_tables(result: Mapping[str, Any], target: str) -> Iterator[Table]:
    """Reward model, poisoning, denoising and effect."""
    reward = result["reward"]
    yield rich_table("Reward model, held-out accuracy", ("group", "model", "bag of words", "longer wins"), [
        (g, _percent(a), _percent(reward["bag_of_words"].get(g)), _percent(reward["length_baseline"].get(g)))
        for g, a in reward["accuracy"].items()
    ])  # fmt: skip
    for kind, title in (
        ("poison", f"Poisoning: {target} labels flipped"),
        ("denoise", f"Denoising: {target} pairs removed"),
    ):
        rows = [_row(r) for r in result[f"{kind}_summary"]]
        if rows:
            yield rich_result_table(title, rows)
    effect = result["effect"]
    if effect.get("D") is not None:
        title = f"Effect D: {target} accuracy lost by SAFER's flips minus that lost by random flips"
        interval = f"{100 * effect['low']:+.1f} to {100 * effect['high']:+.1f}"
        row = (_percent(effect["rate"]), f"{100 * effect['D']:+.1f} points", interval)
        yield rich_table(title, ("rate", "D", "95 % interval"), [row])


def _row(row: Mapping[str, Any]) -> ResultRow:
    measures = {k.replace("_", " "): Estimate.model_validate(v) for k, v in row.items() if isinstance(v, Mapping)}
    edited = row["method"] != "none"
    return ResultRow(method=row["method"], rate=row["rate"] if edited else None, measures=measures)


def _percent(value: float | None) -> str:
    return "not available" if value is None else f"{100 * value:.1f} %"
