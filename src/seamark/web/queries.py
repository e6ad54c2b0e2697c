"""Queries as they stand in addresses: read, checked, and written in one form, so that an address stays what it was."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal, TypeVar
from urllib.parse import urlencode

from pydantic import BaseModel, BeforeValidator, Field, ValidationError

from seamark.atlas.records import Query
from seamark.web.problems import InvalidError

MAX_INT = 2**63 - 1
"""The largest number SQLite can be asked for."""
PAGE = 24
"""Features of a page."""
M = TypeVar("M", bound=BaseModel)


def _whole(value: Any) -> Any:
    """Numbers of a query string are text."""
    return int(value) if isinstance(value, str) and value in ("1", "-1") else value


class FeatureQuery(Query):
    """`Query` as it comes from a query string: every number within what SQLite can hold."""

    layer: int | None = Field(default=None, ge=-MAX_INT - 1, le=MAX_INT)
    """Layer that an autoencoder reads."""
    sign: Annotated[Literal[1, -1] | None, BeforeValidator(_whole)] = None
    """1: fires on preferred answers; -1: on rejected ones."""
    limit: int = Field(default=PAGE, ge=1, le=500)
    """Features of a page."""


class LandscapeQuery(BaseModel):
    """The state of the landscape page."""

    layout: str = Field(default="", max_length=200)
    sae: str = Field(default="", max_length=1000)
    layer: int | None = Field(default=None, ge=-MAX_INT - 1, le=MAX_INT)
    hide: tuple[str, ...] = Field(default=(), max_length=500)
    """Domains that are not shown; `-`: features without one."""
    min_score: float | None = Field(default=None, allow_inf_nan=False)
    at: str = Field(default="", max_length=100)
    """What is looked at: x,y,zoom."""


def read(kind: type[M], items: Iterable[tuple[str, str]]) -> M:
    """A query from the items of a query string; what is empty counts as not given, what is unknown is left out.

    Raises:
        InvalidError: a value does not fit; names the first such parameter.
    """
    data: dict[str, Any] = {}
    for name, value in items:
        if value == "" or name not in kind.model_fields:
            continue
        if kind.model_fields[name].annotation == tuple[str, ...]:
            data.setdefault(name, []).append(value)
        else:
            data[name] = value
    try:
        return kind.model_validate(data)
    except ValidationError as e:
        raise invalid(e.errors(include_input=False, include_url=False, include_context=False)) from None


def invalid(errors: Iterable[Mapping[str, Any]]) -> InvalidError:
    """What pydantic found wrong, for people: the first error, its place, and how many more there are."""
    first, *more = list(errors)
    place = ", ".join(str(part) for part in first.get("loc", ()) if not isinstance(part, int))
    what = str(first.get("msg", "a value does not fit")).rstrip(".")
    return InvalidError(_small(what) + (f" (and {len(more)} more)" if more else ""), where=place[:200],
                        fix="The API page lists what each parameter takes")  # fmt: skip


def _small(what: str) -> str:
    """With a small first letter, unless it is an acronym's: "JSON decode error"."""
    return what if what[1:2].isupper() else what[:1].lower() + what[1:]


def query_string(query: BaseModel, /, **changes: Any) -> str:
    """A query with changes as a query string that leaves out whatever has its default; `""` where all have."""
    data = query.model_dump() | changes
    fields = type(query).model_fields
    items: list[tuple[str, str]] = []
    for name, value in data.items():
        if value is None or value == fields[name].default:
            continue
        values = value if isinstance(value, tuple) else (value,)
        items += [(name, _text(v)) for v in values]
    return urlencode(items, errors="replace")


def page_path(path: str, query: BaseModel, /, **changes: Any) -> str:
    """The permanent address of a page with this query."""
    text = query_string(query, **changes)
    return f"{path}?{text}" if text else path


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
