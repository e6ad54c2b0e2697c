"""The JSON API below /api/v1. Its schema lies at /api/v1/openapi.json; the names are those of `atlas/records.py`."""

from __future__ import annotations

import hashlib
from typing import Annotated, Any

from fastapi import APIRouter, Header, Path, Query
from fastapi.responses import Response
from pydantic import BaseModel, ConfigDict

from seamark.atlas.records import (
    Card,
    ContextKind,
    FeatureDetail,
    Found,
    Half,
    Overview,
    Run,
    Sae,
    StoredContext,
)
from seamark.web import packing
from seamark.web.answers import ErrorAnswer, json_answer
from seamark.web.previews import Preview, colour_of, previews
from seamark.web.problems import NotFoundError
from seamark.web.queries import MAX_INT, FeatureQuery, query_string
from seamark.web.state import State

ROOT = "/api/v1"
SCHEMA = f"{ROOT}/openapi.json"
MAX_IDS = 500
"""Features that can be asked for by id at once."""
WRONG: dict[int | str, dict[str, Any]] = {
    "4XX": {"model": ErrorAnswer, "description": "What is wrong with the request"},
    "5XX": {"model": ErrorAnswer, "description": "No answer, or not in time"},
}
BINARY: dict[int | str, dict[str, Any]] = {
    200: {"description": "A JSON header and arrays; see the module `seamark.web.packing`",
          "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}},
    304: {"description": "The layout is what If-None-Match says"},
}  # fmt: skip


class Search(FeatureQuery):
    """`FeatureQuery` with what an answer can hold besides the cards."""

    previews: bool = False
    """Also a context and a histogram of each feature."""


class FoundPage(Found):
    """A page of what a query found, and query strings of its neighbours."""

    previews: tuple[Preview, ...] = ()
    """One for each card, if asked for."""
    previous: str | None
    next: str | None
    """Of the page before and after; null: there is none."""


class CardList(BaseModel):
    """Features by id; those that are not in the atlas are left out."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    cards: list[Card]
    previews: list[Preview]
    """One for each card."""


SaeId = Annotated[str, Path(max_length=1000, description="Id of the autoencoder; slashes may be escaped or not.")]
Latent = Annotated[int, Path(ge=0, le=MAX_INT, description="Number of the feature in its autoencoder, from 0.")]
Ids = Annotated[str, Query(pattern=rf"^[0-9]{{1,18}}(,[0-9]{{1,18}}){{0,{MAX_IDS - 1}}}$", max_length=20 * MAX_IDS,
                           description="Ids of features, joined by commas.", examples=["1,2,3"])]  # fmt: skip


def router(state: State) -> APIRouter:
    """The operations of the API."""
    api = APIRouter(prefix=ROOT, responses=WRONG)
    _add_atlas(api, state)
    _add_features(api, state)
    _add_landscape(api, state)
    return api


def found_page(state: State, query: FeatureQuery, *, with_previews: bool) -> FoundPage:
    """What a query finds, for the API and for the page alike."""
    found = state.atlas.find(query)
    shown = query.offset + len(found.cards)
    before, after = max(0, query.offset - query.limit), query.offset + query.limit
    previous = query_string(query, offset=before) if query.offset else None
    return FoundPage(
        cards=found.cards, total=found.total, capped=found.capped, query=found.query, previous=previous,
        next=query_string(query, offset=after) if found.cards and (found.capped or shown < found.total) else None,
        previews=tuple(previews(state, found.cards)) if with_previews else (),
    )  # fmt: skip


def _add_atlas(api: APIRouter, state: State) -> None:
    @api.get("/overview", response_model=Overview, summary="What is in the atlas")
    def overview() -> Response:
        return json_answer(state.overview())

    @api.get("/saes", response_model=list[Sae], summary="Its autoencoders")
    def saes() -> Response:
        return json_answer(state.atlas.saes())

    @api.get("/runs", response_model=list[Run], summary="What its contents came from")
    def atlas_runs() -> Response:
        return json_answer(state.atlas.runs())


def _add_features(api: APIRouter, state: State) -> None:
    @api.get("/features", response_model=FoundPage, summary="Search features")
    def find(search: Annotated[Search, Query()]) -> Response:
        query = FeatureQuery(**search.model_dump(exclude={"previews"}))
        return json_answer(found_page(state, query, with_previews=search.previews))

    @api.get("/cards", response_model=CardList, summary="Features by id, in the order asked for")
    def cards(ids: Ids) -> Response:
        found = state.atlas.cards([int(i) for i in ids.split(",")])
        return json_answer(CardList(cards=found, previews=previews(state, found)))

    @api.get("/features/{sae:path}/{latent}/contexts", response_model=list[StoredContext],
             summary="Texts in which a feature fires or does not")  # fmt: skip
    def contexts(
        sae: SaeId, latent: Latent,
        kind: Annotated[ContextKind | None, Query(description="Only texts of this kind.")] = None,
        half: Annotated[Half | None, Query(description="Only texts that were to explain, or to simulate.")] = None,
        limit: Annotated[int, Query(ge=1, le=500, description="Texts, the strongest of each kind first.")] = 50,
    ) -> Response:  # fmt: skip
        known(state, sae, latent)
        return json_answer(state.atlas.contexts(sae, latent, kind, limit, half))

    @api.get("/features/{sae:path}/{latent}", response_model=FeatureDetail, summary="All about a feature")
    def feature(sae: SaeId, latent: Latent) -> Response:
        known(state, sae, latent)
        return json_answer(state.atlas.feature(sae, latent))


def _add_landscape(api: APIRouter, state: State) -> None:
    @api.get("/layouts", response_model=list[str], summary="Landscapes of the atlas")
    def layouts() -> Response:
        return json_answer(state.atlas.layouts())

    @api.get("/landscape/{layout:path}", response_class=Response, responses=BINARY, summary="Points of a landscape")
    def landscape(
        layout: Annotated[str, Path(max_length=200, description="One of /layouts.")],
        if_none_match: Annotated[str | None, Header(max_length=2000, description="An ETag that you hold.")] = None,
    ) -> Response:
        if layout not in state.atlas.layouts():
            raise NotFoundError("there is no such layout", where=layout)
        content, tag = state.cached(f"landscape {layout}", lambda: _landscape(state, layout))
        headers = {"ETag": tag, "Cache-Control": "private, no-cache"}
        if if_none_match is not None and tag in (t.strip().removeprefix("W/") for t in if_none_match.split(",")):
            return Response(status_code=304, headers=headers)
        return Response(content, media_type="application/octet-stream", headers=headers)


def known(state: State, sae: str, latent: int) -> Card:
    """The feature's card.

    Raises:
        NotFoundError: the atlas has no such feature.
    """
    card = state.atlas.card(sae, latent)
    if card is None:
        raise NotFoundError("the atlas has no such feature", where=f"{sae[:200]} · {latent}",
                            fix="Search for it by its explanation")  # fmt: skip
    return card


def _landscape(state: State, layout: str) -> tuple[bytes, str]:
    points = state.atlas.points(layout)
    layers, colours = {s.id: s.layer for s in state.atlas.saes()}, colour_of(state)
    header = {
        "layout": layout, "n": len(points.ids), "missing_score": packing.FULL,
        "domains": [{"name": d, "colour": colours.get(d, 0)} for d in points.domains],
        "saes": [{"id": s, "layer": layers[s]} for s in points.saes],
    }  # fmt: skip
    content = packing.pack(header, [
        packing.numbers("id", points.ids), packing.coordinates("x", points.x), packing.coordinates("y", points.y),
        packing.numbers("sae", points.sae), packing.numbers("domain", points.domain),
        packing.scores("score", points.score),
    ])  # fmt: skip
    return content, f'"{hashlib.blake2b(content, digest_size=12).hexdigest()}"'
