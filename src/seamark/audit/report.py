"""The audit report: one self-contained page (no scripts, no network) drawn from `ReportData`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from seamark.audit.report_data import (
    AuditData,
    Block,
    Check,
    Costs,
    Experiment,
    FeatureRow,
    FeatureTable,
    Missing,
    ReportData,
    ScoreSummary,
    SuspiciousPair,
    TokenText,
)
from seamark.run import write_atomic
from seamark.show import figures, html, tables
from seamark.show.figures import Chart
from seamark.show.tokens import TokenView, token_view

SECTIONS = (
    ("run", "What was run"),
    ("data", "Data"),
    ("accuracy", "Reward model"),
    ("sae", "Sparse autoencoder"),
    ("features", "Safety features"),
    ("scores", "Pair scores"),
    ("suspicious", "Most suspicious pairs"),
    ("poisoning", "Poisoning"),
    ("denoising", "Denoising"),
    ("targets", "Targets"),
    ("failure_signs", "Failure signs"),
    ("costs", "Cost"),
    ("notes", "Notes"),
)
"""(key of `ReportData`, heading), in reading order."""
EXPERIMENTS = ("poisoning", "denoising")
AUDIT_SECTIONS = (
    ("wrong", "Wrong labels"),
    ("suspicious", "Most suspicious pairs"),
    ("breakdown", "By source and category"),
    ("data", "Data and its faults"),
    ("shortcuts", "Shortcuts of the reward model"),
    ("beside", "Beside the reward model"),
    ("features", "Features of the group"),
    ("overlap", "Overlap with the other group"),
    ("reliance", "What else the reward model relies on"),
    ("sae", "Sparse autoencoder"),
    ("failure_signs", "Failure signs"),
    ("edits", "Edited files"),
    ("extras", "What more would cost"),
    ("run", "What was run"),
    ("costs", "Cost"),
    ("notes", "Notes"),
)
"""(key of `AuditData`, heading), in reading order."""


def render_audit(data: AuditData) -> str:
    """The report of `seamark audit report` as one HTML page. Equal data give equal bytes."""
    blocks = {key: block for key, _ in AUDIT_SECTIONS if isinstance(block := getattr(data, key), Block)}
    return html.render(
        "report.html",
        data=data,
        sections=AUDIT_SECTIONS,
        missing={key: reason(getattr(data, key)) for key, _ in AUDIT_SECTIONS},
        verdicts=() if isinstance(data.failure_signs, Missing) else data.failure_signs.checks,
        features=_features(data.features),
        pairs=_pairs(data.suspicious),
        blocks=blocks,
        plots={key: _plots(block) for key, block in blocks.items()},
        **_totals(data.costs),
    )


def write_audit(data: AuditData, path: Path) -> None:
    """Write the page whole or not at all."""
    write_atomic(Path(path), render_audit(data))


def _plots(block: Block) -> list[Chart]:
    charts = [figures.interval_plot(p.title, p.series, x_label=p.x_label, y_label=p.y_label) for p in block.plots]
    return charts if block.histogram is None else [*charts, _scores(block.histogram)]


def render_report(data: ReportData) -> str:
    """The report as one HTML page. Equal data give equal bytes."""
    return html.render(
        "report.html",
        data=data,
        sections=SECTIONS,
        missing={key: reason(getattr(data, key)) for key, _ in SECTIONS},
        verdicts=verdicts(data),
        features=_features(data.features),
        pairs=_pairs(data.suspicious),
        histogram=None if isinstance(data.scores, Missing) else _scores(data.scores),
        blocks={},
        **_experiments(data),
        **_totals(data.costs),
    )


def write_report(data: ReportData, path: Path) -> None:
    """Write the page whole or not at all."""
    write_atomic(Path(path), render_report(data))


def reason(section: object) -> str:
    """Why a section is not available; empty when it is."""
    return section.missing if isinstance(section, Missing) else ""


def verdicts(data: ReportData) -> list[Check]:
    """All targets and failure signs, for the top of the page."""
    found: list[Check] = []
    for section in (data.targets, data.failure_signs):
        found += () if isinstance(section, Missing) else section.checks
    return found


def _view(text: TokenText) -> TokenView:
    return token_view(text.tokens, text.values, unit=text.unit, unit_name=text.unit_name, ends=text.ends)


def _features(table: FeatureTable | Missing) -> list[tuple[FeatureRow, list[dict[str, Any]]]]:
    """Each feature with its contexts ready to be shown."""
    if isinstance(table, Missing):
        return []
    rows = table.features
    return [(row, [{"label": c.label, "view": _view(c.text)} for c in row.contexts]) for row in rows]


def _pairs(pairs: Sequence[SuspiciousPair] | Missing) -> list[dict[str, Any]]:
    """Each suspicious pair with both answers ready to be shown."""
    if isinstance(pairs, Missing):
        return []
    return [{"row": p, "chosen": _view(p.chosen), "rejected": _view(p.rejected)} for p in pairs]


def _experiments(data: ReportData) -> dict[str, dict[str, Any]]:
    """Charts, ordered rows and column names of both experiments, by section."""
    known = {k: e for k in EXPERIMENTS if isinstance(e := getattr(data, k), Experiment)}
    return {
        "charts": {key: [_chart(e, name) for name in e.plotted] for key, e in known.items()},
        "rows": {key: tables.ordered(e.rows) for key, e in known.items()},
        "columns": {key: tables.measure_names(e.rows) for key, e in known.items()},
    }


def _totals(costs: Costs | Missing) -> dict[str, float | None]:
    """Time of all stages together, and the largest memory of any."""
    if isinstance(costs, Missing):
        return {"total_seconds": None, "peak_mb": None}
    times = [s.seconds for s in costs.stages if s.seconds is not None]
    peaks = [s.peak_rss_mb for s in costs.stages if s.peak_rss_mb is not None]
    return {"total_seconds": sum(times) if times else None, "peak_mb": max(peaks, default=None)}


def _chart(experiment: Experiment, measure: str) -> Chart:
    """One measure against the rate, a series for each method, the unedited data as a line."""
    rows = tables.ordered(experiment.rows)
    edited = [r for r in rows if r.rate is not None and measure in r.measures]
    methods = list(dict.fromkeys(r.method for r in edited))
    series = {m: [(_rate(r.rate), r.measures[measure]) for r in edited if r.method == m] for m in methods}
    plain = next((r.measures[measure] for r in rows if r.rate is None and measure in r.measures), None)
    verb = "flipped" if experiment.kind == "poison" else "removed"
    return figures.interval_plot(
        measure,
        series,
        x_label=f"share of pairs {verb}",
        y_label="share right, mean and 95 % interval",
        baseline=None if plain is None else ("unedited", plain),
    )


def _rate(rate: float | None) -> str:
    return f"{100 * (rate or 0.0):g} %"


def _scores(scores: ScoreSummary) -> Chart:
    counts: dict[str, Sequence[int]] = {g.group: g.counts for g in scores.groups}
    return figures.histogram("Pair scores by group", scores.edges, counts, x_label=f"score by {scores.method!r}")
