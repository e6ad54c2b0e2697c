"""Answers as JSON, and how errors are told: as a page to people, as JSON to programs, never as a traceback."""

from __future__ import annotations

import json
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from fastapi import Request
from fastapi.responses import Response
from pydantic import BaseModel, ConfigDict
from pydantic_core import PydanticSerializationError, to_json

from seamark.errors import SeamarkError
from seamark.web.problems import status_of
from seamark.web.state import State


class Wrong(BaseModel):
    """What is wrong, where, and what to do about it."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    status: int
    """That of HTTP."""
    what: str
    """What is wrong."""
    where: str = ""
    """The parameter, header or limit it is about; may be empty."""
    fix: str = ""
    """What to do about it; may be empty."""


class ErrorAnswer(BaseModel):
    """The body of every answer of the API that is no success."""

    error: Wrong


def json_answer(value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """A value of pydantic models, lists and plain data as JSON; halves of surrogate pairs come escaped."""
    try:
        content = to_json(value)
    except (PydanticSerializationError, UnicodeError):
        content = json.dumps(_plain(value), allow_nan=False).encode("ascii")
    return Response(content, status, media_type="application/json",
                    headers={"Cache-Control": "private, no-cache"} | dict(headers or {}))  # fmt: skip


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return _plain(value.model_dump())
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    return [_plain(v) for v in value] if isinstance(value, list | tuple) else value


def wants_json(request: Request) -> bool:
    """Programs: all below /api/, and whoever accepts JSON and no HTML."""
    accepted = request.headers.get("accept", "")
    return request.scope["path"].startswith("/api/") or ("application/json" in accepted and "text/html" not in accepted)


def tell(state: State, request: Request, error: SeamarkError, headers: Mapping[str, str] | None = None) -> Response:
    """An error that the client can mend, as a page or as JSON."""
    wrong = Wrong(status=status_of(error), what=error.what, where=error.where, fix=error.fix)
    return _answer(state, request, wrong, headers or {})


def tell_failure(state: State, request: Request) -> Response:
    """An error of Seamark's own; what it was stands in the log."""
    wrong = Wrong(status=500, what="Seamark could not answer this", fix="What happened stands in the server's log")
    return _answer(state, request, wrong, {})


def _answer(state: State, request: Request, wrong: Wrong, headers: Mapping[str, str]) -> Response:
    if wants_json(request):
        response = json_answer(ErrorAnswer(error=wrong), wrong.status)
    else:
        title = HTTPStatus(wrong.status).phrase
        response = state.page(request, "atlas/error.html", status=wrong.status, title=title, wrong=wrong)
    response.headers.update({"Cache-Control": "no-store"} | dict(headers))
    return response
