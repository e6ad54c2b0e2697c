"""JSON as a flat list of named values, so that results of any kind can be shown and set beside each other.

Numbers that come with an interval, in any of the forms that results are written in, become estimates.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict

from seamark.stats import Estimate

MAX_ROWS, MAX_DEPTH, MAX_TEXT = 2000, 12, 500
"""Values, nesting, and characters of one value."""
_NAMES = ("method", "name", "rate", "baseline", "seed", "group", "category", "sae", "latent", "stage")
"""What tells the items of a list apart, so that lists of two runs are joined by meaning and not by place."""


class Value(BaseModel):
    """A frozen value."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)


class Entry(Value):
    """One value of a run's config or result."""

    name: str
    """Its path: keys joined by dots, items of lists in brackets."""
    value: Estimate | None = None
    """A number, with its interval if it has one."""
    text: str | None = None
    """Anything else, as JSON writes it."""


def entries(data: Mapping[str, Any], notes: list[str], what: str) -> tuple[Entry, ...]:
    """Every value below an object, at most `MAX_ROWS`; `notes` gets a line where there are more of `what`."""
    found: list[Entry] = []
    for entry in _walk("", data, MAX_DEPTH):
        if len(found) == MAX_ROWS:
            notes.append(f"{what}: only the first {MAX_ROWS:,} values are shown")
            break
        found.append(entry)
    return tuple(found)


def _walk(name: str, value: Any, depth: int) -> Iterator[Entry]:
    if isinstance(value, dict) and depth > 0:
        yield from _walk_object(name, value, depth)
    elif isinstance(value, list) and depth > 0 and any(isinstance(item, dict | list) for item in value):
        for i, item in enumerate(value):
            told, rest = _told_apart(item)
            yield from _walk(f"{name}[{told or i}]", rest, depth - 1)
    else:
        yield _entry(name, value)


def _walk_object(name: str, value: dict[str, Any], depth: int) -> Iterator[Entry]:
    if "value" in value and value.keys() <= {"value", "low", "high", "n", "reason"}:
        yield _entry(name, value["value"], (value.get("low"), value.get("high")), value)
        return
    done: set[str] = set()
    for key, inner in value.items():
        bounds, keys = _bounds(key, value)
        if bounds is not None:
            done.update(keys)
            reason = value.get("reason" if key == "D" else f"{key}_reason", "")
            yield _entry(f"{name}.{key}" if name else key, inner, bounds, {"reason": reason})
    for key, inner in value.items():
        if key in done:
            continue
        path = f"{name}.{key}"[:MAX_TEXT] if name else str(key)[:MAX_TEXT]
        intervals = value.get("interval")
        if key == "accuracy" and isinstance(inner, dict) and isinstance(intervals, dict):
            done.add("interval")
            for group, share in inner.items():
                yield _entry(f"{path}.{group}", share, _pair(intervals.get(group)) or (None, None))
        else:
            yield from _walk(path, inner, depth - 1)


def _bounds(key: str, value: Mapping[str, Any]) -> tuple[tuple[Any, Any] | None, set[str]]:
    """The interval of value[key], as results write it, and the keys it takes up."""
    if key == "D" and {"low", "high"} <= value.keys():
        return (value["low"], value["high"]), {"D", "low", "high", "reason"}
    if f"{key}_interval" in value:
        return _pair(value[f"{key}_interval"]) or (None, None), {key, f"{key}_interval", f"{key}_reason"}
    return None, set()


def _pair(value: Any) -> tuple[Any, Any] | None:
    return (value[0], value[1]) if isinstance(value, list) and len(value) == 2 else None


def _told_apart(item: Any) -> tuple[str, Any]:
    """(what names an item of a list, the rest of it); the whole of it where nothing does, or nothing is left."""
    if not isinstance(item, dict):
        return "", item
    names = [k for k in _NAMES if isinstance(item.get(k), str | int | float) and item[k] != ""]
    rest = {k: v for k, v in item.items() if k not in names}
    return (" ".join(str(item[k])[:60] for k in names), rest) if rest else ("", item)


def _entry(
    name: str, value: Any, bounds: tuple[Any, Any] = (None, None), about: Mapping[str, Any] | None = None
) -> Entry:
    about, name = about or {}, shortened(name)
    number = _number(value)
    low, high = (_number(b) for b in bounds)
    if number is not None:
        n = about.get("n", 0)
        return Entry(name=name, value=Estimate(value=number, low=low, high=high, n=n if isinstance(n, int) else 0))
    if value is None and about.get("reason"):
        return Entry(name=name, value=Estimate.not_available(shortened(about["reason"])))
    return Entry(name=name, text=shortened(value))


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def shortened(value: Any) -> str:
    """A value as text, at most `MAX_TEXT` characters."""
    try:
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    except (ValueError, RecursionError):
        text = "too deep or too long to show"
    text = text.encode("utf-8", "replace").decode("utf-8")  # halves of surrogate pairs have no UTF-8
    return text if len(text) <= MAX_TEXT else f"{text[:MAX_TEXT]}… ({len(text) - MAX_TEXT:,} more characters)"
