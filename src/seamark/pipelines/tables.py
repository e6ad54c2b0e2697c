"""The result of a SAFER run as tables for the terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
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
        rows = [_row(r, list(reward["accuracy"]), target) for r in result[f"{kind}_summary"]]
        if rows:
            yield rich_result_table(title, rows)
    effect = result["effect"]
    if effect.get("D") is not None:
        title = f"Effect D: {target} accuracy lost by SAFER's flips minus that lost by random flips"
        known = effect["low"] is not None
        interval = f"{100 * effect['low']:+.1f} to {100 * effect['high']:+.1f}" if known else "not available"
        row = (_percent(effect["rate"]), f"{100 * effect['D']:+.1f} points", interval)
        yield rich_table(title, ("rate", "D", "95 % interval"), [row])


def _row(row: Mapping[str, Any], groups: Sequence[str], target: str) -> ResultRow:
    """Accuracy by group and what the target lost: as much as fits a terminal; the report has all."""
    edited = row["method"] != "none"
    lost = row.get(f"{target}_lost") or Estimate.not_available("unedited")
    measures = {g: Estimate.model_validate(row[g]) for g in groups} | {f"{target} lost": Estimate.model_validate(lost)}
    rate = row["rate"] if edited else None
    return ResultRow(method=row["method"], rate=rate, n_edited=row["n_edited"], measures=measures)


def _percent(value: float | None) -> str:
    return "not available" if value is None else f"{100 * value:.1f} %"
