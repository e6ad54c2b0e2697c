"""The tables and figures of an audit experiment in the paper's form: for the terminal, for papers, for other tools."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.table import Table

from seamark.show.exports import write_figure, write_table
from seamark.show.figures import Chart, interval_plot
from seamark.show.numbers import estimate_text, percent
from seamark.show.tables import rich_table
from seamark.stats import Estimate

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Sheet:
    """A table: what goes into the files, and how its estimates print."""

    name: str
    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]
    units: Mapping[str, str] = field(default_factory=dict)
    """Column -> how its estimates print; without one, as a share."""


def write_exports(folder: Path, result: Row) -> None:
    """`tables/*.md, .csv, .tex` and `figures/*.png, .pdf, .html` of a result of `grid_result.collect`.

    Those of an earlier recipe in the same folder are removed: beside the new ones they would pass for theirs.
    """
    written: set[Path] = set()
    for sheet in sheets(result):
        written |= set(write_table(folder / "tables", sheet.name, sheet.columns, sheet.rows, sheet.caption,
                                   units=sheet.units))  # fmt: skip
    for name, chart in figures(result):
        written |= set(write_figure(folder / "figures", name, chart))
    for place, kinds in (("tables", (".md", ".csv", ".tex")), ("figures", (".png", ".pdf", ".html"))):
        for file in (folder / place).glob("*"):
            if file.suffix in kinds and file not in written:
                file.unlink()


def grid_tables(result: Row) -> Iterator[Table]:
    """The same tables for the terminal."""
    for sheet in sheets(result):
        rows = [[_shown(v, sheet.units.get(c, "share")) for c, v in zip(sheet.columns, row, strict=True)]
                for row in sheet.rows]  # fmt: skip
        yield rich_table(sheet.caption, sheet.columns, rows)


def _shown(value: Any, unit: str) -> str:
    if value is None:
        return "–"
    if isinstance(value, Estimate):
        return estimate_text(value, unit)
    return percent(value) if isinstance(value, float) else str(value)


def sheets(result: Row) -> Iterator[Sheet]:
    """Every table that there are rows for."""
    target = result["recipe"]["target"]
    if "reward" not in result:
        return
    for arm in [result["poison"], *result["denoise"]]:
        if arm and arm["summary"]:
            yield _arm(arm, target)
            if arm["effects"] and not arm["noise"]:
                yield _effects(arm, target)
    for name, about in (("detection", "Wrong labels found"), ("defence", "Targeted flips found (defence)")):
        if result[name]:
            yield _detection(name, about, result[name])
    if result["calibration"]:
        yield _calibration(result["calibration"])
    if result["ablations"]:
        yield _ablations(result["ablations"], target)
    if result["rewardbench"]:
        yield _bench(result["rewardbench"])


def _arm(arm: Row, target: str) -> Sheet:
    groups = list(arm["summary"][0]["accuracy"])
    poison = arm["noise"] is None
    columns = ["method", "rate", "edited", "seeds", *groups, f"{target} lost"]
    columns += [f"{g} kept" for g in groups if g != target] if poison else ["recovered", "above random"]
    rows = []
    for s in arm["summary"]:
        lost = _get(s, "lost", target)
        rest = [_get(s, "kept", g) for g in groups if g != target] if poison else [
            _get(s, "recovery"), _get(s, "above_random")]  # fmt: skip
        rows.append((s["method"], s["rate"] or None, s["n_edited"], len(s["seeds"]),
                     *(_get(s, "accuracy", g) for g in groups), lost, *rest))  # fmt: skip
    return Sheet(arm["name"], _about(arm, target), tuple(columns), tuple(rows),
                 {"rate": "share", f"{target} lost": "points", "above random": "points"})  # fmt: skip


def _about(arm: Row, target: str) -> str:
    if arm["noise"] is None:
        return f"Poisoning: {target} labels flipped, held-out accuracy by group"
    noise = arm["noise"]
    return (f"Denoising: {target} pairs removed after {percent(noise['rate'])} of the labels were made wrong "
            f"({noise['kind']}), held-out accuracy by group")  # fmt: skip


def _effects(arm: Row, target: str) -> Sheet:
    """D of every baseline in one line a rate."""
    baselines = list(dict.fromkeys(e["baseline"] for e in arm["effects"]))
    rates = list(dict.fromkeys(e["rate"] for e in arm["effects"]))
    found = {(e["rate"], e["baseline"]): _estimate(e["D"]) for e in arm["effects"]}
    columns = ("rate", *(f"SAFER − {b}" for b in baselines))
    rows = tuple((rate, *(found.get((rate, b)) for b in baselines)) for rate in rates)
    what = f"D: {target} accuracy lost by SAFER's flips minus that lost by another method's"
    units = {"rate": "share", **dict.fromkeys(columns[1:], "points")}
    return Sheet(f"{arm['name']}-effects", what, columns, rows, units)


def _detection(name: str, about: str, rows: Sequence[Row]) -> Sheet:
    share = rows[0]["share"]
    recall = f"recall in the worst {percent(share)}"
    columns = ("noise", "wrong", "method", "seeds", "AUROC", recall, "AUROC − margin's")
    return Sheet(name, f"{about}: AUROC and recall within the group", columns, tuple(
        (r["noise"], r["noise_rate"], r["method"], len(r["seeds"]), _estimate(r["auroc"]), _estimate(r["recall"]),
         _get(r, "above_margin")) for r in rows
    ), {"wrong": "share", "AUROC": "number", "AUROC − margin's": "signed"})  # fmt: skip


def _calibration(rows: Sequence[Row]) -> Sheet:
    columns = ("noise", "wrong", "seeds", "Brier score", "of the share alone", "calibration error", "wrong by estimate")
    return Sheet("calibration", "Probability of a wrong label by the combination", columns, tuple(
        (r["noise"], r["noise_rate"], len(r["seeds"]), _estimate(r["calibration"]["brier"]),
         _estimate(r["calibration"]["brier_of_share"]), _estimate(r["calibration"]["ece"]),
         _mean([_estimate(s["share"]) for s in r["wrong_share"]])) for r in rows
    ), {"wrong": "share", "Brier score": "number", "of the share alone": "number",
        "calibration error": "number"})  # fmt: skip


def _mean(some: Sequence[Estimate]) -> Estimate:
    """Mean of those that are available, without an interval."""
    values = [e.value for e in some if e.value is not None]
    if not values:
        return Estimate.not_available(some[0].reason if some else "no seed is finished")
    return Estimate(value=sum(values) / len(values), n=len(values), reason="mean over seeds")


def _ablations(rows: Sequence[Row], target: str) -> Sheet:
    columns = ("setting", "value", "in the recipe", f"{target} lost", "more than the recipe's", "AUROC",
               "AUROC − the recipe's")  # fmt: skip
    about = f"One setting changed: what SAFER's flips cost {target}, and what its score finds"
    return Sheet("ablations", about, columns,
                 tuple((r["setting"], str(r["value"]), str(r["base"]), _get(r, "lost", target), _get(r, "above_base"),
                        _get(r, "auroc"), _get(r, "auroc_above_base")) for r in rows),
                 {columns[3]: "points", columns[4]: "points", "AUROC": "number", columns[6]: "signed"})  # fmt: skip


def _bench(rows: Sequence[Row]) -> Sheet:
    columns = ("experiment", "method", "rate", "section", "pairs", "accuracy", "lost")
    return Sheet("rewardbench", "RewardBench by section, with the published weights", columns, tuple(
        (r["experiment"], r["method"], r["rate"] or None, r["section"], r["n"], _estimate(r["accuracy"]),
         _estimate(r["lost"]) if r["lost"] else None) for r in rows
    ), {"rate": "share", "lost": "points"})  # fmt: skip


def figures(result: Row) -> Iterator[tuple[str, Chart]]:
    """Accuracy by rate, one line of marks a method; AUROC by share of wrong labels."""
    target = result["recipe"]["target"]
    if "reward" not in result:
        return
    for arm in [result["poison"], *result["denoise"]]:
        if arm:
            for group in dict.fromkeys(g for s in arm["summary"] for g in s["accuracy"]):
                yield f"{arm['name']}-{_file_name(group)}", _curve(arm, group, target)
    for name in ("detection", "defence"):
        for kind in dict.fromkeys(r["noise"] for r in result[name]):
            rows = [r for r in result[name] if r["noise"] == kind]
            series = {m: [(percent(r["noise_rate"]), _estimate(r["auroc"])) for r in rows if r["method"] == m]
                      for m in dict.fromkeys(r["method"] for r in rows)}  # fmt: skip
            yield (
                f"{name}-{kind}",
                interval_plot(
                    f"Wrong labels found, {kind} noise",
                    series,
                    x_label=f"{target} labels that are wrong",
                    y_label="AUROC",
                ),
            )


def _curve(arm: Row, group: str, target: str) -> Chart:
    series: dict[str, list[tuple[str, Estimate]]] = {}
    unedited = None
    for s in sorted(arm["summary"], key=lambda s: s["rate"]):
        accuracy = _estimate(s["accuracy"][group])
        if s["method"] == "none":
            unedited = ("unedited", accuracy)
        else:
            series.setdefault(s["method"], []).append((percent(s["rate"]), accuracy))
    done = "flipped" if arm["noise"] is None else "removed"
    return interval_plot(_about(arm, target), series, x_label=f"{target} pairs {done}",
                         y_label=f"held-out accuracy, {group}", baseline=unedited)  # fmt: skip


def _file_name(group: str) -> str:
    return "".join(c if c.isascii() and (c.isalnum() or c in "._-") else "_" for c in group)


def _get(row: Row, *keys: str) -> Estimate | None:
    """The estimate at a path of keys; None where there is nothing."""
    value: Any = row
    for key in keys:
        if not isinstance(value, Mapping) or value.get(key) is None:
            return None
        value = value[key]
    return _estimate(value)


def _estimate(value: Any) -> Estimate:
    return Estimate.model_validate(value)
