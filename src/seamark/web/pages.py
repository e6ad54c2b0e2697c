"""The pages Overview, Features, a feature's own, and Landscape, rendered on the server; scripts only add to them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse
from pydantic import TypeAdapter, ValidationError

from seamark.atlas.records import Card, FeatureDetail, Overview, StoredContext, StoredExplanation, StoredSimulation
from seamark.show.histograms import bin_figure
from seamark.show.tokens import TokenView
from seamark.web.api import SCHEMA, Latent, found_page, known
from seamark.web.overview import overview_data
from seamark.web.previews import BLANK as BLANK_PREVIEW
from seamark.web.previews import NOTES, colour_of, is_sensitive, note_of, shown
from seamark.web.problems import NotFoundError
from seamark.web.queries import FeatureQuery, LandscapeQuery, read
from seamark.web.reference import operations
from seamark.web.state import State

CONTEXT_TOKENS = 96
"""Tokens of a context on a feature's page."""
CONTEXTS = 120
"""Contexts on a feature's page; the API gives more."""
AT_FIRST = {"top": 8, "level": 2, "near_miss": 5, "silent": 5}
"""Of them, how many of a group are shown before somebody asks for the rest."""
BLANK = Card(id=0, sae="", latent=0, layer=0, label=None, state=None, domains=(), score=None, rating=None, sign=None,
             contrast=None, share=None, q=None, max=None)  # fmt: skip
"""From which scripts make further cards."""
SORTS = {"score": "score", "rating": "safety rating", "contrast": "contrast", "share": "how often it fires",
         "relevance": "relevance", "id": "place in the model"}  # fmt: skip
STATES = {"text": "with a text", "masked": "masked", "null": "none found", "failed": "failed"}
SIGNS = {1: "preferred answers", -1: "rejected answers"}
_LATENT: TypeAdapter[int] = TypeAdapter(Latent)


class Explained(NamedTuple):
    """An explanation with the simulations that score it."""

    explanation: StoredExplanation
    note: str
    """In place of its text; empty where there is one."""
    simulations: tuple[StoredSimulation, ...]


class Group(NamedTuple):
    """Contexts of one kind and level."""

    title: str
    about: str
    opened: bool
    first: int
    """How many are shown at once."""
    contexts: tuple[tuple[StoredContext, TokenView], ...]


def router(state: State) -> APIRouter:
    """The pages; none of them in the API's schema."""
    pages = APIRouter(include_in_schema=False)

    @pages.get("/")
    def overview(request: Request) -> HTMLResponse:
        data = overview_data(state.overview(), colour_of(state))
        return state.page(request, "atlas/overview.html", name=state.settings.atlas.name, **data)

    @pages.get("/features")
    def features(request: Request) -> HTMLResponse:
        return features_page(state, request)

    @pages.get("/features/{sae:path}/{latent}")
    def feature(request: Request, sae: str, latent: str) -> HTMLResponse:
        return feature_page(state, request, sae, latent)

    @pages.get("/landscape")
    def landscape(request: Request) -> HTMLResponse:
        return landscape_page(state, request)

    @pages.get("/api")
    def api(request: Request) -> HTMLResponse:
        return state.page(request, "atlas/api.html", operations=operations(request.app.openapi()), schema=SCHEMA)

    return pages


def features_page(state: State, request: Request) -> HTMLResponse:
    """Search, filters and a page of cards."""
    query = read(FeatureQuery, request.query_params.multi_items())
    found = found_page(state, query, with_previews=True)
    about = state.overview()
    return state.page(
        request, "atlas/features.html", query=query, found=found, cards=zip(found.cards, found.previews, strict=True),
        blank=(BLANK, BLANK_PREVIEW), choices=choices(about), sorts=SORTS, signs=SIGNS, states=STATES, notes=NOTES,
        previous=_page("/features", found.previous), next=_page("/features", found.next), colours=colour_of(state),
    )  # fmt: skip


def feature_page(state: State, request: Request, sae: str, latent: str) -> HTMLResponse:
    """All that is known of a feature.

    Raises:
        NotFoundError: the atlas has no such feature.
    """
    try:
        number = _LATENT.validate_python(latent)
    except ValidationError:
        raise NotFoundError("the atlas has no such feature", where=f"{sae[:200]} · {latent[:50]}",
                            fix="Search for it by its explanation") from None  # fmt: skip
    card = known(state, sae, number)
    detail = state.atlas.feature(sae, number)
    contexts = state.atlas.contexts(sae, number, limit=CONTEXTS)
    bins = detail.histogram
    figure = bin_figure("Positions by activation", bins.edges, bins.counts, x_label="activation", unit="positions",
                        log=True, size=(360, 230)) if bins else None  # fmt: skip
    ids = {e.id for e in detail.explanations}
    return state.page(
        request, "atlas/feature.html", card=card, detail=detail, note=note_of(card), sensitive=is_sensitive(card),
        figure=figure, explained=explained(detail), others=[s for s in detail.simulations if s.explanation not in ids],
        groups=groups(contexts, card.q), contexts=len(contexts), more=len(contexts) == CONTEXTS, signs=SIGNS,
        runs={run.id: run for run in state.atlas.runs()}, colours=colour_of(state),
        near=[(n, is_sensitive(n.card), note_of(n.card)) for n in detail.neighbours],
    )  # fmt: skip


def landscape_page(state: State, request: Request) -> HTMLResponse:
    """The canvas and its filters; the points come from the API."""
    query = read(LandscapeQuery, request.query_params.multi_items())
    about = state.overview()
    if query.layout and query.layout not in about.layouts:
        raise NotFoundError("there is no such layout", where=query.layout)
    return state.page(
        request, "atlas/landscape.html", query=query, layout=query.layout or next(iter(about.layouts), ""), about=about,
        blank=(BLANK, BLANK_PREVIEW), choices=choices(about), colours=colour_of(state), notes=NOTES, signs=SIGNS,
        name=state.settings.atlas.name,
    )  # fmt: skip


def choices(about: Overview) -> dict[str, Any]:
    """What filters can be set to."""
    concepts: dict[str, list[str]] = {}
    for count in about.concepts:
        domain, _, concept = count.name.partition("/")
        concepts.setdefault(domain, []).append(concept)
    return {
        "layers": sorted({s.layer for s in about.saes}), "saes": [s.id for s in about.saes], "concepts": concepts,
        "domains": [c.name for c in about.domains], "languages": [c.language for c in about.languages],
        "layouts": about.layouts,
    }  # fmt: skip


def explained(detail: FeatureDetail) -> list[Explained]:
    """Explanations in their order, each with its scores."""
    return [Explained(e, "" if e.text and e.state == "text" else NOTES.get(e.state, ""),
                      tuple(s for s in detail.simulations if s.explanation == e.id))
            for e in detail.explanations]  # fmt: skip


def groups(contexts: Iterable[StoredContext], q: float | None) -> list[Group]:
    """Contexts by kind and level, in the order they come."""
    found: dict[tuple[str, int], list[tuple[StoredContext, TokenView]]] = {}
    for context in contexts:
        found.setdefault((context.kind, context.level), []).append((context, shown(context, q, CONTEXT_TOKENS)))
    return [Group(*_titles(kind, level), kind in ("top", "level"), AT_FIRST[kind], tuple(held))
            for (kind, level), held in found.items()]  # fmt: skip


def _titles(kind: str, level: int) -> tuple[str, str]:
    if kind == "top":
        return "Strongest", "texts with its largest activations"
    if kind == "level":
        upper = f" and up to {level / 10:g}" if level < 10 else ""
        return f"Level {level}", f"strongest activation over {(level - 1) / 10:g}{upper} of Q"
    if kind == "near_miss":
        return "Near misses", "texts like those above in which it stays silent"
    return "Silent", "texts in which it stays silent"


def _page(path: str, text: str | None) -> str | None:
    return None if text is None else f"{path}?{text}" if text else path
