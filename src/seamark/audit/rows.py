"""Rows of an edited file: what a pair looks like in it, and how the row that was read comes back out of it.

An edited file must load anywhere, so every row has `id`, `group`, `prompt`, `chosen`, `rejected`, `source` and
`category` as plain fields; a row with all of these is known to be Seamark's own, and its group is believed. A row that
was read in that shape keeps all its other fields beside them ("direct"). A row read from another shape (other column
names, a prompt inside both answers) would carry its old label along beside the new one; it is kept as one JSON string
in `original` instead ("wrapped"), and so is a row that JSON readers refuse (nested too deeply, half a surrogate pair).
Readers of JSON lines take a file's columns from its first rows, so an "even" file wraps all of its rows where one has
to be, or where columns differ.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from seamark.errors import FormatError
from seamark.text.pairs import Message, PreferencePair, Text

Row = dict[str, Any]
ORIGINAL = "original"
_LABELS = ("prompt", "chosen", "rejected")
_OPTIONAL = ("source", "category")
OWN = ("id", "group", *_LABELS, *_OPTIONAL)
_MOST_LEVELS = 32
"""Of nesting in a plain field; Arrow refuses more than 64."""
_INT64 = range(-(2**63), 2**63)
_DATE = re.compile(r"\d{4}-\d\d-\d\d.{0,30}")
"""Arrow reads strings of this form as times, where all of them are."""


def to_file_row(
    pair: PreferencePair, read: Mapping[str, Any] | None, *, wrap: bool = False
) -> tuple[Row, tuple[str, ...] | None]:
    """The row of an edited file for `pair`, and the keys of the row as read (None: it is wrapped in
    `original`). With `wrap` it is wrapped whatever its shape. All rows have a source and a category, if
    empty: without them `read_pairs` would take the row for one of whatever group it is asked to read.
    """
    plain = pair.to_row()
    if read is None:
        return plain, tuple(plain)
    text = json.dumps(read, ensure_ascii=False, default=str)
    raw = json.loads(text)  # dates and the like (Parquet) become the text they will be in the file
    # Readers of JSON refuse half of a surrogate pair, and what is nested too deeply.
    readable = _is_utf8(text) and not _is_deep(raw, _MOST_LEVELS)
    if not wrap and readable and _is_direct(raw, plain):
        return {**raw, **{k: v for k, v in plain.items() if k not in raw}}, tuple(raw)
    return {**plain, ORIGINAL: dumps(raw)}, None


def uneven_columns(rows: Iterable[Mapping[str, Any] | None]) -> frozenset[str]:
    """Columns that not all rows have, or not all in one type. Null is a type of its own: a column that begins with
    nulls is taken for one of nulls alone.

    Args:
        rows: as they were read; None: a row with a pair's own fields alone.
    """
    n, have, kinds = 0, Counter[str](), dict[str, set[str]]()
    for row in rows:
        n += 1
        columns: Mapping[str, Any] = dict.fromkeys(OWN, "") if row is None else row
        have.update(columns.keys())
        for key, value in columns.items():
            kinds.setdefault(key, set()).add(_kind(value))
    return frozenset(key for key, count in have.items() if count < n or len(kinds[key]) > 1)


def needs_wrapping(pairs: Iterable[PreferencePair], raw: Mapping[str, Mapping[str, Any]]) -> bool:
    """Whether an even file of these pairs has to wrap its rows."""
    items = list(pairs)
    if uneven_columns(raw.get(pair.id) for pair in items):
        return True
    return any(to_file_row(pair, raw.get(pair.id))[1] is None for pair in items)


def _kind(value: Any, levels: int = _MOST_LEVELS) -> str:
    """The type of a JSON value as Arrow tells types apart, down to the fields of objects and the items of lists."""
    if isinstance(value, Mapping | list | tuple) and levels == 0:
        return "deep"
    if isinstance(value, Mapping):
        fields = (f"{key}:{_kind(value[key], levels - 1)}" for key in sorted(map(str, value)) if key in value)
        return "{" + ",".join(fields) + "}"
    if isinstance(value, list | tuple):
        return "[" + ",".join(sorted({_kind(item, levels - 1) for item in value})) + "]"
    if isinstance(value, str) and _DATE.fullmatch(value):
        return re.sub(r"\d", "0", value)
    if type(value) is int and value not in _INT64:
        return "long"
    return type(value).__name__


def _is_deep(value: Any, levels: int) -> bool:
    """Whether more than `levels` objects and lists lie in one another."""
    if not isinstance(value, dict | list):
        return False
    return levels == 0 or any(_is_deep(v, levels - 1) for v in (value.values() if isinstance(value, dict) else value))


def _is_direct(raw: Row, plain: Row) -> bool:
    """Whether the pair's fields stand in `raw` under their own names and with their own values."""
    if any(key not in raw for key in _LABELS):
        return False
    return all(raw[k] == v or _same_label(raw[k], v, k) for k, v in plain.items() if k in raw)


def _same_label(read: Any, value: Any, key: str) -> bool:
    """Whether an id, source or category was read as `value`: numbers as their text, null as empty."""
    if key in _OPTIONAL and read is None:
        return bool(value == "")
    return key in (*_OPTIONAL, "id") and isinstance(read, int | float) and str(read) == value


def row_id(row: Mapping[str, Any]) -> str | None:
    """The pair id of a row; None where it has none. Rows read with a number as id keep the number."""
    value = row.get("id")
    return str(value) if isinstance(value, str | int) and not isinstance(value, bool) else None


def from_file_row(row: Mapping[str, Any], keys: tuple[str, ...] | None) -> Row:
    """The row as it was read, fields in their order. Inverse of `to_file_row`.

    Raises:
        ValueError: `row` was not made with these keys.
    """
    if keys is None:
        original = json.loads(row.get(ORIGINAL) or "null")
        if not isinstance(original, dict):
            raise ValueError(f"`{ORIGINAL}` holds no row")
        return original
    lost = {key for key, value in row.items() if value is not None} - {*keys, *OWN}
    if lost - ({ORIGINAL} if row.get(ORIGINAL) == "" else set()) or not {*_LABELS} <= {*keys}:
        raise ValueError("the layout lacks fields of the row")
    return {key: row.get(key) for key in keys}


def evened(row: Row, *, wrapped_beside: bool) -> Row:
    """`row` with the column `original`, empty, where other rows of its file are wrapped: all have the same columns."""
    return {**row, ORIGINAL: ""} if wrapped_beside and ORIGINAL not in row else row


def flip_row(row: Mapping[str, Any]) -> Row:
    """`row` with `chosen` and `rejected` swapped; every field keeps its place."""
    return {**row, "chosen": row["rejected"], "rejected": row["chosen"]}


def row_digest(row: Mapping[str, Any]) -> str:
    """16 hex digits of a row's content: the order of fields and the difference of null and absent do not
    count, nor does an empty `original` (see `evened`).
    """
    present = {k: v for k, v in row.items() if v is not None and not (k == ORIGINAL and v == "")}
    text = json.dumps(present, sort_keys=True, ensure_ascii=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode("ascii")).hexdigest()[:16]


def to_pair(row: Mapping[str, Any]) -> PreferencePair:
    """The pair a row of an edited file stands for."""

    def text(value: Any) -> Text:
        return value if isinstance(value, str) else tuple(Message(m["role"], m["content"]) for m in value)

    def label(value: Any) -> str:
        return "" if value is None else str(value)

    return PreferencePair(
        id=str(row["id"]), group=row["group"], prompt=text(row["prompt"]), chosen=text(row["chosen"]),
        rejected=text(row["rejected"]), source=label(row.get("source")), category=label(row.get("category")),
    )  # fmt: skip


def dumps(row: Any) -> str:
    """One line of JSON. Text stays readable, except where it holds half a surrogate pair, which UTF-8
    cannot say.
    """
    text = json.dumps(row, ensure_ascii=False, default=str)
    return text if _is_utf8(text) else json.dumps(row, ensure_ascii=True, default=str)


def _is_utf8(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def to_jsonl(rows: Iterable[Mapping[str, Any]]) -> str:
    return "".join(dumps(row) + "\n" for row in rows)


def read_jsonl(path: Path) -> Iterator[Row]:
    """Rows of a JSONL file. Raises `FormatError` naming file and line where a line is no JSON object."""
    try:
        lines = path.read_bytes().decode("utf-8").split("\n")
    except FileNotFoundError:
        raise FormatError("file not found", where=str(path)) from None
    except UnicodeDecodeError as e:
        raise FormatError(f"not UTF-8 text ({e.reason} at byte {e.start})", where=str(path)) from None
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as e:
            raise FormatError(f"not JSON ({e.msg})", where=f"{path}, line {number}") from None
        except (ValueError, RecursionError):
            raise FormatError("not readable as JSON (a number too long, or nested too deeply)",
                              where=f"{path}, line {number}") from None  # fmt: skip
        if not isinstance(row, dict):
            raise FormatError("not a JSON object", where=f"{path}, line {number}")
        yield row
