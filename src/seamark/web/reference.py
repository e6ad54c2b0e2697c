"""The API's reference page, made from its OpenAPI schema: nothing to load from anywhere."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

_LIMITS = {"minimum": "from", "maximum": "to", "maxLength": "characters up to", "default": "default"}
FAR = 2**53
"""Limits beyond are those of SQLite, and tell nobody anything."""


class Parameter(NamedTuple):
    """What an operation can be given."""

    name: str
    where: str
    """path, query or header"""
    required: bool
    kind: str
    about: str
    facts: tuple[str, ...]
    one_of: tuple[str, ...]


class Operation(NamedTuple):
    """A method of a path."""

    method: str
    path: str
    summary: str
    parameters: tuple[Parameter, ...]
    body: str
    """Name of the model of its body; empty: none."""
    answer: str
    """Name of the model of its answer."""


def operations(schema: Mapping[str, Any]) -> list[Operation]:
    """The operations of an OpenAPI schema, in its order."""
    return [
        Operation(method.upper(), path, about.get("summary", ""), tuple(map(_parameter, about.get("parameters", ()))),
                  _name(about.get("requestBody", {})), _name(about.get("responses", {}).get("200", {})))
        for path, methods in schema["paths"].items() for method, about in methods.items()
    ]  # fmt: skip


def _parameter(about: Mapping[str, Any]) -> Parameter:
    schema = about["schema"]
    kinds = [k for k in schema.get("anyOf", [schema]) if k.get("type") != "null"]
    facts = tuple(f"{word} {value}" for k in (*kinds, schema) for key, word in _LIMITS.items()
                  if (value := k.get(key)) not in (None, "") and abs(_number(value)) < FAR)  # fmt: skip
    values = (v for k in kinds for v in k.get("enum", [k["const"]] if "const" in k else []))
    one_of = tuple(str(v) for v in values if v != "")
    kind = " or ".join(dict.fromkeys(k["type"] for k in kinds if "type" in k))
    return Parameter(about["name"], about["in"], about.get("required", False), kind,
                     about.get("description", "") or schema.get("description", ""), tuple(dict.fromkeys(facts)),
                     one_of)  # fmt: skip


def _number(value: Any) -> float:
    return value if isinstance(value, int | float) else 0.0


def _name(about: Mapping[str, Any]) -> str:
    """The last part of the first schema's reference, or its type."""
    for content in about.get("content", {}).values():
        schema = content.get("schema", {})
        inner = schema.get("items", schema)
        name = str(inner.get("$ref", "")).rpartition("/")[2] or str(inner.get("type", ""))
        return f"list of {name}" if "items" in schema else name
    return ""
