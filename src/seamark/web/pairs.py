"""The pages on which people judge preference pairs, and the operations that keep what they say.

A mark is in the atlas before its request is answered: what was acknowledged outlives the server's sudden end.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Literal, NamedTuple

from fastapi import APIRouter, Query, Request
from fastapi.responses import HTMLResponse, Response
from pydantic import BaseModel, ConfigDict, Field

from seamark.atlas.records import Card, Mark
from seamark.audit.review import Contribution, Review, ReviewedPair, ReviewedSide
from seamark.errors import SeamarkError
from seamark.show.rating_sheet import harmless_cell
from seamark.show.tokens import TokenView, token_view
from seamark.web.answers import json_answer
from seamark.web.api import ROOT, WRONG
from seamark.web.previews import is_sensitive, note_of
from seamark.web.problems import NotFoundError
from seamark.web.queries import MAX_INT, page_path, read
from seamark.web.reviews import Reviews, ScanReview, Source
from seamark.web.state import State, feature_path

TOKENS, TOKENS_ALONE = 240, 2000
"""Tokens of an answer that a list shows, and the page of a pair alone."""
PARTS = 3
"""Features for and against a label that are named without asking."""
MAX_NOTE = 2000
MAX_CHOICES = 200
"""Sources or categories to choose from."""
NOWHERE = Source("", "")
ScanName = Annotated[str, Query(max_length=300, description="Name of a scan; empty: the server's first.")]
Marked = Literal["", "none", "any", "wrong", "fine"]
MARKED = {"none": "not marked", "any": "marked", "wrong": "marked as wrong", "fine": "marked as fine"}


class PairQuery(BaseModel):
    """Which pairs, and how they are ranked."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    scan: str = Field(default="", max_length=300)
    """Empty: the server's first."""
    group: str = Field(default="", max_length=300)
    """Empty, as of source and category: any."""
    score: str = Field(default="safer", max_length=300)
    """What ranks them: `safer` (by the feature set), `margin`, `length`, or `file:NAME` of scores the server has."""
    features: str = Field(default="", max_length=1000)
    """Id of a feature set; empty: the first."""
    source: str = Field(default="", max_length=1000)
    """Where pairs came from."""
    category: str = Field(default="", max_length=1000)
    """What they are about."""
    mark: Marked = ""
    """Marked so; `none`: not marked, `any`: marked, empty: all."""
    highest: bool = False
    """Highest scores first."""
    pair: str = Field(default="", max_length=2000)
    """Only this one."""
    offset: int = Field(default=0, ge=0, le=MAX_INT)
    """Pairs to pass over."""
    limit: int = Field(default=5, ge=1, le=50)
    """Pairs of a page."""


class PairCard(BaseModel):
    """A pair, as lists show it."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    id: str
    group: str
    source: str
    category: str
    score: float | None
    """By what the list is ranked by; null: not available."""
    margin: float | None
    mark: Mark | None


class PairList(BaseModel):
    """A page of pairs."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    pairs: list[PairCard]
    total: int
    query: PairQuery


class PairFeature(BaseModel):
    """A feature that speaks for or against, in the words of the atlas."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    sae: str
    latent: int
    sign: int
    url: str | None
    """Its page; null: the atlas does not have it."""
    label: str
    """Its explanation, or why it was chosen; may be empty."""
    sensitive: bool


class PairAnswer(BaseModel):
    """A pair and the evidence. Texts are as they are: make control characters visible."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    pair: ReviewedPair
    features: list[PairFeature]
    """One for each of `pair.features`."""
    mark: Mark | None


class MarkRequest(BaseModel):
    """What a person says of a pair."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    scan: str = Field(max_length=300)
    """Its name; empty: the server's first."""
    pair: str = Field(max_length=2000)
    """The pair's id."""
    mark: Literal["wrong", "fine"] | None
    """Null takes an earlier mark away."""
    note: str = Field(default="", max_length=MAX_NOTE)
    """Kept with the mark."""


class MarkedPair(BaseModel):
    """A mark of a pair; `mark` is null where it was taken away."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    pair: str
    group: str
    mark: Literal["wrong", "fine"] | None
    note: str
    time: str
    """UTC, ISO 8601."""


class Side(NamedTuple):
    """An answer as the page shows it."""

    title: str
    side: ReviewedSide
    view: TokenView


class Part(NamedTuple):
    """What a feature adds to the score of a pair."""

    feature: PairFeature
    value: float


class ShownPair(NamedTuple):
    """A pair as the page shows it."""

    rank: int
    card: PairCard
    pair: ReviewedPair
    sides: tuple[Side, Side]
    against: list[Part]
    speaks_for: list[Part]
    alone: str
    """Address of the pair by itself."""


def router(state: State) -> APIRouter:
    """The page /pairs, and pairs and marks in the API."""
    routes = APIRouter()
    reviews = Reviews(state)

    @routes.get("/pairs", include_in_schema=False)
    def page(request: Request) -> HTMLResponse:
        return pairs_page(state, reviews, request)

    @routes.get(f"{ROOT}/pairs", response_model=PairList, responses=WRONG, summary="Pairs of a scan, ranked")
    def pairs(asked: Annotated[PairQuery, Query()]) -> Response:
        return json_answer(pair_list(state, reviews.get(asked.scan), asked))

    @routes.get(f"{ROOT}/pair", response_model=PairAnswer, responses=WRONG, summary="A pair with all its evidence")
    def pair(
        scan: ScanName, pair: Annotated[str, Query(max_length=2000, description="The pair's id.")],
        features: Annotated[str, Query(max_length=1000, description="Id of a feature set; empty: the first.")] = "",
    ) -> Response:  # fmt: skip
        review = reviews.get(scan)
        found = _known(review, pair, review.review(features))
        mark = state.atlas.marks(review.key).get(pair)
        return json_answer(PairAnswer(pair=found, features=pair_features(state, found), mark=mark))

    @routes.get(f"{ROOT}/marks", response_model=list[MarkedPair], responses=WRONG, summary="Marks of a scan's pairs")
    def marks(
        scan: ScanName = "",
        format: Annotated[Literal["json", "jsonl", "csv"], Query(description="Of the file.")] = "json",
    ) -> Response:
        review = reviews.get(scan)
        return exported(marked_pairs(review, state.atlas.marks(review.key)), format)

    @routes.post(f"{ROOT}/marks", response_model=MarkedPair, responses=WRONG, summary="Mark a pair")
    def mark(said: MarkRequest) -> Response:
        review = reviews.get(said.scan)
        if said.pair not in review.groups:
            raise NotFoundError("there is no such pair in the scan", where=said.pair[:200])
        with state.writer() as writer:
            kept = writer.mark(review.key, said.pair, said.mark, said.note)
        found = Mark(mark="fine", note="", time="") if kept is None else kept
        return json_answer(MarkedPair(pair=said.pair, group=review.groups[said.pair], note=found.note, time=found.time,
                                      mark=None if kept is None else found.mark))  # fmt: skip

    return routes


def pairs_page(state: State, reviews: Reviews, request: Request) -> HTMLResponse:
    """The ranked pairs with their evidence."""
    query = read(PairQuery, request.query_params.multi_items())
    if not reviews.names:
        return state.page(request, "atlas/pairs.html", review=None, query=query)
    review = reviews.get(query.scan)
    problems: list[str] = []
    query = _usable(review, query.model_copy(update={"scan": query.scan or reviews.names[0]}), problems)
    light = _light(review, query, problems)
    cards, total = _page(review, query, state.atlas.marks(review.key), problems)
    shown = [_shown(state, light.pair(card.id), card, query.offset + i + 1, query) for i, card in enumerate(cards)]
    before, after = max(0, query.offset - query.limit), query.offset + query.limit
    return state.page(
        request, "atlas/pairs.html", review=review, query=query, pairs=shown, total=total, problems=problems,
        scans=reviews.names, groups=review.scan.groups, marked=MARKED, sources=_choices(review, "source"),
        categories=_choices(review, "category"), key=review.key, max_note=MAX_NOTE,
        previous=page_path("/pairs", query, offset=before) if query.offset else None,
        next=page_path("/pairs", query, offset=after) if after < total else None,
        all=page_path("/pairs", query, pair="", offset=0),
    )  # fmt: skip


def pair_list(state: State, review: ScanReview, query: PairQuery) -> PairList:
    """A page of pairs without their texts."""
    pairs, total = _page(review, query, state.atlas.marks(review.key))
    return PairList(pairs=pairs, total=total, query=query)


def pair_features(state: State, pair: ReviewedPair) -> list[PairFeature]:
    """The features of a pair as the atlas knows them."""
    latents: dict[str, list[int]] = {}
    for f in pair.features:
        latents.setdefault(f.sae, []).append(f.latent)
    cards: dict[tuple[str, int], Card] = {
        (sae, i): card for sae, some in latents.items() for i, card in state.atlas.cards_at(sae, some).items()
    }
    found = []
    for f in pair.features:
        card = cards.get((f.sae, f.latent))
        told = card.label if card is not None and card.label and not note_of(card) else None
        found.append(PairFeature(
            sae=f.sae, latent=f.latent, sign=f.sign, label=told or f.why,
            url=None if card is None else feature_path(f.sae, f.latent),
            sensitive=told is not None and card is not None and is_sensitive(card),
        ))  # fmt: skip
    return found


def marked_pairs(review: ScanReview, marks: Mapping[str, Mark]) -> list[MarkedPair]:
    """All marks of a scan, in the order they were first made."""
    return [MarkedPair(pair=pair, group=review.groups.get(pair, ""), mark=m.mark, note=m.note, time=m.time)
            for pair, m in marks.items()]  # fmt: skip


def exported(marks: Sequence[MarkedPair], format: Literal["json", "jsonl", "csv"]) -> Response:
    """Marks as a file. In CSV, what a spreadsheet program could run is made harmless; JSON holds the very text."""
    if format == "json":
        return json_answer(marks)
    rows = [m.model_dump() for m in marks]
    if format == "jsonl":
        text, kind = "".join(json.dumps(row) + "\n" for row in rows), "application/x-ndjson"
    else:
        table = io.StringIO()
        writer = csv.writer(table, lineterminator="\r\n")
        writer.writerow(MarkedPair.model_fields)
        writer.writerows([harmless_cell(str(value)) for value in row.values()] for row in rows)
        text, kind = "\ufeff" + table.getvalue(), "text/csv; charset=utf-8"
    headers = {"Content-Disposition": f'attachment; filename="marks.{format}"', "Cache-Control": "private, no-cache"}
    return Response(text.encode(), media_type=kind, headers=headers)


def _known(review: ScanReview, pair: str, light: Review) -> ReviewedPair:
    if pair not in review.groups:
        raise NotFoundError("there is no such pair in the scan", where=pair[:200])
    return light.pair(pair)


def _usable(review: ScanReview, query: PairQuery, problems: list[str]) -> PairQuery:
    """The query with a feature set that can be had; where none was asked for and none can be, with another score."""
    query = query.model_copy(update={"features": query.features or next(iter(review.feature_sets), "")})
    try:
        review.feature_set(query.features)
    except NotFoundError:
        raise
    except SeamarkError as e:
        problems.append(f"No features speak for or against: {e}")
        if query.score == "safer":
            return query.model_copy(update={"score": "margin" if "margin" in review.scores else "length"})
    return query


def _light(review: ScanReview, query: PairQuery, problems: list[str]) -> Review:
    return review.blind() if problems else review.review(query.features)


def _page(
    review: ScanReview, query: PairQuery, marks: Mapping[str, Mark], problems: list[str] | None = None
) -> tuple[list[PairCard], int]:
    """A page of the pairs that fit, and how many fit; a file of pairs that cannot be read is an error, or a problem."""
    for name, value, known in (("group", query.group, review.scan.groups), ("pair", query.pair, review.groups)):
        if value and value not in known:
            raise NotFoundError(f"there is no such {name} in the scan", where=value[:200])
    sources: Mapping[str, Source] = {}
    try:
        sources = review.sources
    except SeamarkError as e:
        if problems is None:
            raise
        problems.append(str(e))
    ranked = review.ranking(query.score, query.features)
    fitting = [(pair, score) for pair, score in (_turned(ranked) if query.highest else ranked)
               if _fits(query, pair, review.groups[pair], sources.get(pair, NOWHERE), marks.get(pair))]  # fmt: skip
    cards = []
    for pair, score in fitting[query.offset : query.offset + query.limit]:
        where = sources.get(pair, NOWHERE)
        cards.append(PairCard(id=pair, group=review.groups[pair], source=where.source, category=where.category,
                              score=score, margin=review.margins.get(pair), mark=marks.get(pair)))  # fmt: skip
    return cards, len(fitting)


def _turned(ranked: Sequence[tuple[str, float | None]]) -> Iterable[tuple[str, float | None]]:
    """Highest first; pairs without a score stay last."""
    known = [item for item in ranked if item[1] is not None]
    return [*reversed(known), *ranked[len(known) :]]


def _fits(query: PairQuery, pair: str, group: str, where: Source, mark: Mark | None) -> bool:
    if query.pair:
        return pair == query.pair
    wanted = {"": True, "none": mark is None, "any": mark is not None}.get(
        query.mark, mark is not None and mark.mark == query.mark)  # fmt: skip
    return (
        wanted
        and query.group in ("", group)
        and query.source in ("", where.source)
        and query.category in ("", where.category)
    )


def _choices(review: ScanReview, name: Literal["source", "category"]) -> list[str]:
    try:
        found = {getattr(where, name) for where in review.sources.values()}
    except SeamarkError:
        return []
    return sorted(found - {""})[:MAX_CHOICES]


def _shown(state: State, pair: ReviewedPair, card: PairCard, rank: int, query: PairQuery) -> ShownPair:
    features = pair_features(state, pair)
    unit = max((abs(v) for side in (pair.chosen, pair.rejected) for v in side.values), default=0.0)
    size = TOKENS_ALONE if query.pair else TOKENS
    sides = (_side("Labelled chosen", pair.chosen, unit, size), _side("Labelled rejected", pair.rejected, unit, size))
    against = [p for p in pair.parts if p.value < 0][:PARTS]
    speaks_for = [p for p in reversed(pair.parts) if p.value > 0][:PARTS]
    return ShownPair(rank, card, pair, sides, _parts(features, against), _parts(features, speaks_for),
                     page_path("/pairs", PairQuery(scan=query.scan, score=query.score, features=query.features),
                               pair=pair.id))  # fmt: skip


def _side(title: str, side: ReviewedSide, unit: float, size: int) -> Side:
    name = "the strongest in this pair"
    view = token_view(side.tokens, side.values, unit=unit or 1.0, unit_name=name, max_tokens=size, merge=False)
    return Side(title, side, view)


def _parts(features: Sequence[PairFeature], parts: Iterable[Contribution]) -> list[Part]:
    return [Part(features[p.feature], p.value) for p in parts]
