"""Plain texts to train SAEs on or to scan: lines of JSON, Parquet columns, paragraphs of text files."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import overload

from seamark.errors import DataError
from seamark.text.files import PathLike, RawRow, column_names, read_lines, read_rows
from seamark.text.pairs import RejectedRow
from seamark.text.rows import BadRowError, check_text


@dataclass(frozen=True)
class Corpus(Sequence[tuple[str, str]]):
    """(id, text) in the order of files and rows, ids unique; and the rows that could not be used."""

    items: tuple[tuple[str, str], ...]
    rejected: tuple[RejectedRow, ...] = ()

    def __len__(self) -> int:
        return len(self.items)

    @overload
    def __getitem__(self, index: int) -> tuple[str, str]: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[tuple[str, str], ...]: ...
    def __getitem__(self, index: int | slice) -> tuple[str, str] | tuple[tuple[str, str], ...]:
        return self.items[index]


def read_texts(sources: PathLike | Sequence[PathLike], *, column: str = "text", split: str | None = None) -> Corpus:
    """Texts of one source or several, each once.

    A `.txt` file (or .txt.gz) gives its paragraphs, which blank lines divide; every other source is what `read_rows`
    reads, with the text in `column`. An id is a row's own where it is text or a whole number, and unique; else it
    is a hash of the text.

    Raises:
        DataError: a source that is missing, empty, unreadable, lacks the column or has no usable text.
    """
    rejected: list[RejectedRow] = []
    items = tuple(stream_texts(sources, column=column, split=split, rejected=rejected.append))
    return Corpus(items, tuple(rejected))


def stream_texts(
    sources: PathLike | Sequence[PathLike], *, column: str = "text", split: str | None = None,
    rejected: Callable[[RejectedRow], None] = lambda _: None,
) -> Iterator[tuple[str, str]]:  # fmt: skip
    """`read_texts` one by one, for corpora larger than memory: of each text id and hash are kept, about 300 bytes.

    Files of lines, Parquet and data sets are read as they are used; .json and .csv files whole. `rejected` is told of
    the rows that could not be used. Errors come when their source is reached.
    """
    paths = [sources] if isinstance(sources, str | os.PathLike) else list(sources)
    if not paths:
        raise DataError("no texts given", fix="Give a file or several")
    ids: set[str] = set()
    seen: dict[str, tuple[int, int]] = {}
    for number, source in enumerate(paths):
        before, columns = len(ids), set[str]()
        for row in _rows(source, split):
            columns.update(map(str, row.data or ()))
            reason, text = row.reason, ""
            if not reason:
                reason, text = _usable(row, column)
            key = hashlib.sha256(text.encode()).hexdigest()[:16] if text else ""
            if text and seen.setdefault(key, (number, row.number)) != (number, row.number):
                first, place = seen[key]
                reason = f"duplicate of row {place} of {paths[first]}"
            if reason:
                rejected(RejectedRow(str(source), row.number, reason))
                continue
            named = _own_id(row)
            text_id = named if named and named not in ids else key
            ids.add(text_id)
            yield text_id, text
        if columns and column not in columns:
            what = f"no column {column}; found {column_names(columns)}"
            raise DataError(what, where=str(source), fix="Name the column of texts")
        if len(ids) == before:
            raise DataError("no usable text", where=str(source))


def _usable(row: RawRow, column: str) -> tuple[str, str]:
    """("", text) of a row, or (the reason why not, "")."""
    text = (row.data or {}).get(column)
    if text is None:
        return f"{column} is missing", ""
    if not isinstance(text, str):
        return f"{column} has the wrong type ({type(text).__name__}; text is needed)", ""
    try:
        check_text(text, column)
    except BadRowError as error:
        return str(error), ""
    return ("", text) if text.strip() else (f"{column} is empty", "")


def _own_id(row: RawRow) -> str:
    """The id that a row brings along, if it is a good one."""
    own = (row.data or {}).get("id")
    good = isinstance(own, str | int) and not isinstance(own, bool) and str(own).isprintable()
    return str(own) if good else ""


def _rows(source: PathLike, split: str | None) -> Iterator[RawRow]:
    path = Path(source)
    name = path.name.lower()
    if not (name.endswith((".txt", ".txt.gz")) and path.is_file()):
        return read_rows(source, split=split)
    if path.stat().st_size == 0:
        raise DataError("the file is empty", where=str(path))
    return _paragraphs(path)


def _paragraphs(path: Path) -> Iterator[RawRow]:
    """Paragraphs by the number of their first line; one with a line that is no UTF-8 is bad as a whole."""
    lines: list[str] = []
    first, broken = 1, ""
    for number, line, reason in read_lines(path):
        if line is None:
            broken = broken or reason
        elif line.strip():
            first = first if lines or broken else number
            lines.append(line)
        else:
            yield from _paragraph(first, lines, broken)
            lines, first, broken = [], number + 1, ""
    yield from _paragraph(first, lines, broken)


def _paragraph(first: int, lines: list[str], broken: str) -> Iterator[RawRow]:
    if broken:
        yield RawRow(first, None, broken)
    elif lines:
        yield RawRow(first, {"text": "\n".join(lines)})
