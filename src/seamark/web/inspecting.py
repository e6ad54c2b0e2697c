"""The page that looks inside a text, and the operation behind it.

A text goes through the model and back to who sent it: it is neither kept nor logged, and never stands in an address.
One text at a time is read; a few wait their turn, and more are asked to come back.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import PurePath
from typing import Annotated

import numpy as np
from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse, Response
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from seamark.atlas.records import Card
from seamark.diagnose import (
    Inspection,
    Tracing,
    Trajectory,
    atlas_examples,
    atlas_labels,
    atlas_quantiles,
    filled,
    first_known,
    inspect_text,
    made_with,
    match_saes,
    scan_examples,
    trace,
)
from seamark.errors import ConfigError
from seamark.features import Scan
from seamark.model import HookedModel, LanguageModel
from seamark.model.generation import Generation
from seamark.web.answers import json_answer, tell
from seamark.web.api import ROOT, WRONG
from seamark.web.previews import NOTES, colour_of, is_sensitive, note_of
from seamark.web.problems import RequestError, TooLongError
from seamark.web.queries import MAX_INT
from seamark.web.state import State, feature_path

WAITING = 8
"""Texts that wait while one is read."""
RETRY_AFTER = "5"
"""Seconds."""
MAX_NEW_TOKENS = 512
MAX_SECONDS = 120.0
"""Of one generated answer."""
TRACING = Tracing(checks=8, max_seconds=120.0)
"""With the longest answer, less than half of the time that a request has (`ServeSettings.compute_timeout`)."""


class BusyError(RequestError):
    """Too many texts wait already."""

    status = 503


class Writing(BaseModel):
    """How the model is to write the answer."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    max_new_tokens: int = Field(default=64, ge=1, le=MAX_NEW_TOKENS)
    """Most tokens of the answer."""
    temperature: float = Field(default=0.0, ge=0, le=2)
    """0: always the most likely token; above 0: tokens are drawn."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Draw only from the likeliest tokens that together have this probability."""
    seed: int = Field(default=0, ge=0, le=MAX_INT)
    """Of the draws."""


class Watched(BaseModel):
    """A feature to be told at every token."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    sae: str = Field(max_length=1000)
    """Name of the autoencoder, as `--sae` gave it."""
    latent: int = Field(ge=0, le=MAX_INT)
    """Number of the feature in it, from 0."""


class TextRequest(BaseModel):
    """A text to read."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    prompt: str
    """What the model is asked; with `chat` false, a text of its own."""
    answer: str | None = None
    """Null: none was given."""
    generate: Writing | None = None
    """Let a language model write the answer."""
    chat: bool = True
    """Read as a conversation; else the prompt is a plain text without template."""


class InspectRequest(TextRequest):
    """A text to look into."""

    watch: Annotated[list[Watched], Field(max_length=20)] = []
    """Features to be told at every token, however weak."""


class TrajectoryRequest(TextRequest):
    """A text whose features are to be linked."""


class FeatureLink(BaseModel):
    """How a feature is shown."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    url: str | None
    """Its page; null: the atlas does not have it."""
    note: str
    """In place of its label where there is none; empty where there is one."""
    sensitive: bool
    """Blur the label until somebody asks for it."""
    colours: tuple[int, ...]
    """Of its domains."""


class InspectAnswer(BaseModel):
    """What fires where. Texts are as they are: make control characters visible."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    inspection: Inspection
    links: tuple[FeatureLink, ...]
    """One for each of `inspection.features`."""
    colours: dict[str, int]
    """{domain: number of its colour}"""


class TrajectoryAnswer(BaseModel):
    """Features that build on one another. Texts are as they are: make control characters visible."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    trajectory: Trajectory
    links: tuple[FeatureLink, ...]
    """One for each of `trajectory.nodes`."""


class Turns:
    """One at a time; some wait, and who comes after them is turned away.

    Args:
        waiting: how many may wait.
        patience: seconds after which one that waits is dropped, since nobody waits for its answer any more.
    """

    def __init__(self, waiting: int = WAITING, patience: float = math.inf) -> None:
        self._one, self._patience = threading.Lock(), min(patience, threading.TIMEOUT_MAX)
        self._places = threading.BoundedSemaphore(waiting + 1)

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Waits for the turn. `BusyError` where too many wait already, or where patience is over."""
        if not self._places.acquire(blocking=False):
            raise BusyError("too many texts wait to be read", fix="Try again in a few seconds")
        try:
            if not self._one.acquire(timeout=self._patience):
                raise BusyError("the texts before took too long", fix="Try again later")
            try:
                yield
            finally:
                self._one.release()
        finally:
            self._places.release()


class Inspector:
    """The model of a server, and what its atlas knows of the model's features."""

    def __init__(self, state: State, turns: Turns | None = None) -> None:
        self.state, self.turns = state, turns or Turns(patience=state.settings.compute_timeout)
        self._units: tuple[tuple[str, ...], dict[str, NDArray[np.float64]]] | None = None
        self._names: dict[str, str] | None = None

    @property
    def names(self) -> Mapping[str, str]:
        """{sae id: its id in the atlas}."""
        if self._names is None:
            self._names = match_saes(self.state.atlas, self.state.suite)
        return self._names

    @cached_property
    def scans(self) -> list[tuple[Scan, frozenset[str]]]:
        """The server's scans, each with the names of those of its autoencoders that the server has."""
        suite = self.state.suite
        return [(scan, frozenset(name for name, sae in suite.items() if made_with(scan, name, sae)))
                for scan in self.state.scans.values()]  # fmt: skip

    def units(self) -> dict[str, NDArray[np.float64]]:
        """Q_f of each autoencoder: the atlas's, and a scan's where it has none; read again after a new import."""
        runs = tuple(run.id for run in self.state.atlas.runs())
        if self._units is None or self._units[0] != runs:
            found = atlas_quantiles(self.state.atlas, self.names, self.state.suite)
            for name in self.state.suite:
                scans = (scan for scan, saes in self.scans if name in saes)
                if (units := filled(found.get(name), (s.q(name) for s in scans))) is not None:
                    found[name] = units
            self._units = runs, found
        return self._units[1]

    def inspect(self, asked: InspectRequest) -> InspectAnswer:
        """Read a text.

        Raises:
            BusyError: too many wait.
            TooLongError: more characters than the server takes.
            SeamarkError: as of `inspect_text`.
        """
        state, model = self.state, self._model(asked)
        with self.turns.turn():
            found = inspect_text(
                model, state.suite, asked.prompt, asked.answer, q=self.units(), generate=_how(asked), chat=asked.chat,
                labels=atlas_labels(state.atlas, self.names), watch=[(w.sae, w.latent) for w in asked.watch],
            )  # fmt: skip
        colours = colour_of(state)
        return InspectAnswer(
            inspection=found, links=self._links([(f.sae, f.latent) for f in found.features], colours),
            colours={row.domain: colours.get(row.domain, 0) for row in found.heat},
        )  # fmt: skip

    def trace(self, asked: TrajectoryRequest) -> TrajectoryAnswer:
        """Link the features of a text. Errors as of `inspect`, and of `seamark.diagnose.trace`."""
        state, model = self.state, self._model(asked)
        known = [atlas_examples(state.atlas, self.names), *(scan_examples(s, saes) for s, saes in self.scans)]
        with self.turns.turn():
            found = trace(
                model, state.suite, asked.prompt, asked.answer, q=self.units(), generate=_how(asked), chat=asked.chat,
                labels=atlas_labels(state.atlas, self.names), examples=first_known(*known), config=TRACING,
            )  # fmt: skip
        links = self._links([(n.sae, n.latent) for n in found.nodes], colour_of(state))
        return TrajectoryAnswer(trajectory=found, links=links)

    def _model(self, asked: TextRequest) -> HookedModel:
        state = self.state
        if state.model is None:
            raise ConfigError("this server has no model", fix="Start it with --model and --sae")
        size, limit = len(asked.prompt) + len(asked.answer or ""), state.settings.max_prompt
        if size > limit:
            raise TooLongError("the text is too long", where=f"{size:,} characters", fix=f"Send at most {limit:,}")
        return state.model

    def _links(
        self, features: Sequence[tuple[str, int]], colours: Mapping[str, int]
    ) -> tuple[FeatureLink, ...]:  # fmt: skip
        latents: dict[str, list[int]] = {}
        for sae, latent in features:
            if sae in self.names:
                latents.setdefault(sae, []).append(latent)
        cards = {sae: self.state.atlas.cards_at(self.names[sae], some) for sae, some in latents.items()}
        return tuple(_link(cards.get(sae, {}).get(latent), colours) for sae, latent in features)


def _how(asked: TextRequest) -> Generation | None:
    return None if asked.generate is None else Generation(**asked.generate.model_dump(), max_seconds=MAX_SECONDS)


def _link(card: Card | None, colours: Mapping[str, int]) -> FeatureLink:
    if card is None:
        return FeatureLink(url=None, note=NOTES[None], sensitive=False, colours=())
    note = note_of(card)
    return FeatureLink(url=feature_path(card.sae, card.latent), note=note, sensitive=not note and is_sensitive(card),
                       colours=tuple(colours.get(d, 0) for d in card.domains))  # fmt: skip


def router(state: State) -> APIRouter:
    """The page /inspect, POST /api/v1/inspect and POST /api/v1/trajectory."""
    routes = APIRouter()
    inspector = Inspector(state)

    def in_turn(request: Request, read: Callable[[], BaseModel]) -> Response:
        try:
            return json_answer(read())
        except BusyError as error:
            return tell(state, request, error, {"Retry-After": RETRY_AFTER})

    @routes.get("/inspect", include_in_schema=False)
    def page(request: Request) -> HTMLResponse:
        return inspect_page(state, request)

    @routes.post(f"{ROOT}/inspect", response_model=InspectAnswer, responses=WRONG,
                 summary="Which features fire at each token of a text")  # fmt: skip
    def inspect(request: Request, asked: InspectRequest) -> Response:
        return in_turn(request, lambda: inspector.inspect(asked))

    @routes.post(f"{ROOT}/trajectory", response_model=TrajectoryAnswer, responses=WRONG,
                 summary="How the features of a text build on one another")  # fmt: skip
    def trajectory(request: Request, asked: TrajectoryRequest) -> Response:
        return in_turn(request, lambda: inspector.trace(asked))

    return routes


def inspect_page(state: State, request: Request) -> HTMLResponse:
    """The form; with `?sae=…&latent=…`, for a feature whose activations colour the tokens."""
    watched = None
    sae, latent = (request.query_params.get(name, "") for name in ("sae", "latent"))
    if sae in state.suite and latent.isascii() and latent.isdigit() and len(latent) < 10:
        number = int(latent)
        if number < state.suite[sae].config.d_sae:
            watched = {"sae": sae, "latent": number, "url": feature_path(sae, number)}
    hookpoints = list(dict.fromkeys(s.config.hookpoint for s in state.suite.values()))
    return state.page(
        request, "atlas/inspect.html", watched=watched, max_prompt=state.settings.max_prompt,
        model=None if state.model is None else "/".join(PurePath(state.model.name).parts[-2:]),
        writes=isinstance(state.model, LanguageModel), max_new_tokens=MAX_NEW_TOKENS,
        hookpoints=hookpoints, traces=len(hookpoints) > 1,
    )  # fmt: skip
