"""The audit report: one self-contained page (no scripts, no network) drawn from `ReportData`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from seamark.audit.report_data import Check, Experiment, FeatureRow, Missing, ReportData, TokenText
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


def render_report(data: ReportData) -> str:
    """The report as one HTML page. Equal data give equal bytes."""
    return html.render(
        "report.html",
        data=data,
        sections=SECTIONS,
        missing={key: reason(getattr(data, key)) for key, _ in SECTIONS},
        verdicts=verdicts(data),
        features=_features(data),
        pairs=_pairs(data),
        histogram=_histogram(data),
        **_experiments(data),
        **_totals(data),
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


def _features(data: ReportData) -> list[tuple[FeatureRow, list[dict[str, Any]]]]:
    """Each feature with its contexts ready to be shown."""
    if isinstance(data.features, Missing):
        return []
    rows = data.features.features
    return [(row, [{"label": c.label, "view": _view(c.text)} for c in row.contexts]) for row in rows]


def _pairs(data: ReportData) -> list[dict[str, Any]]:
    """Each suspicious pair with both answers ready to be shown."""
    if isinstance(data.suspicious, Missing):
        return []
    return [{"row": p, "chosen": _view(p.chosen), "rejected": _view(p.rejected)} for p in data.suspicious]


def _experiments(data: ReportData) -> dict[str, dict[str, Any]]:
    """Charts, ordered rows and column names of both experiments, by section."""
    known = {k: e for k in EXPERIMENTS if isinstance(e := getattr(data, k), Experiment)}
    return {
        "charts": {key: [_chart(e, name) for name in e.plotted] for key, e in known.items()},
        "rows": {key: tables.ordered(e.rows) for key, e in known.items()},
        "columns": {key: tables.measure_names(e.rows) for key, e in known.items()},
    }


def _totals(data: ReportData) -> dict[str, float | None]:
    """Time of all stages together, and the largest memory of any."""
    if isinstance(data.costs, Missing):
        return {"total_seconds": None, "peak_mb": None}
    times = [s.seconds for s in data.costs.stages if s.seconds is not None]
    peaks = [s.peak_rss_mb for s in data.costs.stages if s.peak_rss_mb is not None]
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


def _histogram(data: ReportData) -> Chart | None:
    scores = data.scores
    if isinstance(scores, Missing):
        return None
    counts: dict[str, Sequence[int]] = {g.group: g.counts for g in scores.groups}
    return figures.histogram("Pair scores by group", scores.edges, counts, x_label=f"score by {scores.method!r}")
