"""A file of contexts, straight to rows of an atlas: several times as fast as by way of `features.context_sets`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic_core import from_json

from seamark.atlas.records import ContextKind, Half
from seamark.atlas.rows import ContextRow
from seamark.errors import FormatError
from seamark.explain.records import Key
from seamark.features.context_sets import FORMAT_VERSION

HALVES: tuple[Half, ...] = ("explain", "simulate")


def context_lines(path: Path) -> Iterator[tuple[Key, Mapping[str, Any], str]]:
    """Feature by feature: its key, its line, and where that stands. Raises `FormatError` for what is no such file."""
    try:
        with path.open("rb") as lines:
            for number, line in enumerate(lines, 1):
                where = f"{path}, line {number}"
                try:
                    row = from_json(line)
                    key, version = (str(row["sae_id"]), int(row["latent"])), row["format_version"]
                except (ValueError, TypeError, KeyError) as e:
                    raise _wrong(e, where) from e
                if version != FORMAT_VERSION:
                    raise FormatError(f"contexts of format version {version}, not {FORMAT_VERSION}", where=where)
                yield key, row, where
    except OSError as e:
        raise FormatError(f"cannot be read ({e.strerror})", where=str(path), fix="Name a file of contexts") from e


def line_rows(feature: int, line: Mapping[str, Any], where: str) -> Iterator[ContextRow]:
    """All contexts of a line, of both halves. Raises `FormatError` for what is no such line."""
    try:
        for half in HALVES:
            given = line[half]
            yield from _rows(feature, "top", given["top"], 0, half)
            for level, at_level in given["levels"].items():
                yield from _rows(feature, "level", at_level, int(level), half)
            yield from _rows(feature, "near_miss", given["near_miss"], 0, half)
            yield from _rows(feature, "silent", given["silent"], 0, half)
    except (ValueError, TypeError, KeyError, AttributeError) as e:
        raise _wrong(e, where) from e


def _rows(
    feature: int, kind: ContextKind, contexts: Sequence[Mapping[str, Any]], level: int, half: Half
) -> Iterator[ContextRow]:
    for rank, c in enumerate(contexts):
        yield ContextRow(feature, kind, rank, c["text_id"], c["tokens"], c["activations"], level, half, c["group"])


def _wrong(e: Exception, where: str) -> FormatError:
    return FormatError(f"not the contexts of a feature ({e})", where=where, fix="Write the file again")
