"""What the overview page shows: counts as tables with bars, each a link to the features it counts."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any, NamedTuple

from seamark.atlas.records import Count, Overview
from seamark.show.histograms import bin_figure
from seamark.web.queries import FeatureQuery, page_path


class Bar(NamedTuple):
    """A name, a number, its share of a whole, and where its features are listed."""

    name: str
    n: int
    share: float
    path: str = ""
    colour: int | None = None


class Cell(NamedTuple):
    """How many features of a layer have a domain."""

    n: int
    path: str


class LayerRow(NamedTuple):
    """A layer of the table."""

    bar: Bar
    """Its share is that of the layer with most features."""
    cells: tuple[Cell, ...]
    """By domain."""


def overview_data(about: Overview, colours: dict[str, int]) -> dict[str, Any]:
    """The overview's tables and figure; `colours` of domains."""
    scored = about.score_histogram
    return {
        "about": about, "rows": _layers(about), "coverage": _coverage(about),
        "domains": [bar._replace(colour=colours.get(bar.name)) for bar in
                    _bars(about.domains, lambda c: {"domain": c.name})],
        "concepts": _concepts(about),
        "ratings": _bars(about.rating_counts, lambda _: {}),
        "languages": [(one, _path(language=one.language)) for one in about.languages],
        "saes": [(sae, _path(sae=sae.id)) for sae in about.saes],
        "runs": [(run, json.dumps(run.manifest, ensure_ascii=False, indent=1)) for run in about.runs],
        "figure": bin_figure("Correlation of simulated with true activations", scored.edges, scored.counts,
                             unit="features", x_label="score") if scored else None,
    }  # fmt: skip


def _layers(about: Overview) -> list[LayerRow]:
    held = {(layer, domain): n for layer, domain, n in about.layer_domains}
    return [
        LayerRow(bar, tuple(Cell(held.get((bar.name, d.name), 0), _path(layer=int(bar.name), domain=d.name))
                            for d in about.domains))
        for bar in _bars(about.layers, lambda c: {"layer": int(c.name)})
    ]  # fmt: skip


def _coverage(about: Overview) -> list[Bar]:
    whole = about.features or 1
    return [Bar(name, count, count / whole, path if count else "") for name, count, path in (
        ("explained", about.explained, _path(explained=True)),
        ("scored", about.scored, _path(min_score=-1.0)),
        ("tagged with a domain", about.tagged, ""),
        ("rated for safety", about.rated, _path(min_rating=1, sort="rating")),
    )]  # fmt: skip


def _concepts(about: Overview) -> dict[str, list[Bar]]:
    """{domain: its concepts}"""
    found: dict[str, list[Bar]] = {}
    for count in about.concepts:
        domain, _, concept = count.name.partition("/")
        found.setdefault(domain, []).append(Bar(concept, count.count, 0.0, _path(domain=domain, concept=concept)))
    return found


def _bars(counts: Iterable[Count], query: Any) -> list[Bar]:
    """Counts as shares of the largest one; `query` gives what finds a count's features ({}: nothing does)."""
    counts = tuple(counts)
    most = max((c.count for c in counts), default=0) or 1
    return [Bar(c.name, c.count, c.count / most, _path(**query(c)) if query(c) else "") for c in counts]


def _path(**query: Any) -> str:
    return page_path("/features", FeatureQuery(**query))
