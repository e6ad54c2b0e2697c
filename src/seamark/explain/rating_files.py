"""What raters send back: CSV files, read row by row, where a bad row is named and never used."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Iterator, Mapping
from os import PathLike
from pathlib import Path
from typing import NamedTuple

from pydantic import BaseModel, ConfigDict

from seamark.errors import DataError


class BadRow(BaseModel):
    """A row that was not used. `row`: as a spreadsheet program numbers it, the header being row 1."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    rater: str
    row: int
    code: str
    reason: str


class RaterSheet(NamedTuple):
    """A rater's file: usable ratings and comments by code, and the rows that could not be used."""

    rater: str
    ratings: dict[str, int]
    comments: dict[str, str]
    bad: list[BadRow]


def read_rater_sheet(path: str | PathLike[str], rater: str, codes: Iterable[str]) -> RaterSheet:
    """Read what a rater filled in. Blank ratings are not rated; what cannot be used is listed in `bad`.

    Args:
        path: CSV as filled in or downloaded, separated by commas, semicolons or tabs.
        rater: the rater's name.
        codes: those of the sheet; upper and lower case count the same.

    Raises:
        DataError: a file that cannot be read or is no sheet; one of another sheet.
    """
    path, known_codes = Path(path), {code.lower(): code for code in codes}
    found = RaterSheet(rater, {}, {}, [])
    rows: dict[str, int] = {}
    contradicted: set[str] = set()
    known = 0

    def bad(number: int, code: str, reason: str) -> None:
        found.bad.append(BadRow(rater=rater, row=number, code=code[:40], reason=reason))

    for number, row in _rows(path):
        named, comment = (str(row.get(column) or "").strip() for column in ("code", "comment"))
        code, (rating, reason) = known_codes.get(named.lower()), _rating(str(row.get("rating") or ""))
        known += code is not None
        if code is None:
            bad(number, named, "no such code on this sheet")
        elif reason:
            bad(number, code, reason)
        elif rating is not None and code in rows:
            if found.ratings.get(code) != rating:
                contradicted.add(code)
            bad(number, code, f"rated before, in row {rows[code]}")
        elif rating is not None:
            found.ratings[code], rows[code] = rating, number
        if code is not None and comment:
            found.comments[code] = comment
    if found.bad and not known:
        raise DataError("none of its codes is on this sheet", where=str(path), fix="Give the key of the same export")
    for code in contradicted:
        bad(rows[code], code, "rated again with another rating: neither counts")
        del found.ratings[code]
    return found._replace(bad=sorted(found.bad, key=lambda b: b.row))


def _rating(text: str) -> tuple[int | None, str]:
    """(rating, "") or (None, why it cannot be used); (None, "") where it was left blank."""
    text = text.strip().strip("'")
    if not text:
        return None, ""
    if re.fullmatch(r"[1-5]([.,]0+)?", text):
        return int(text[0]), ""
    return None, "the rating is no whole number from 1 to 5"


def _rows(path: Path) -> Iterator[tuple[int, Mapping[str, str]]]:
    """(row as spreadsheets number it, {column: cell}) of each record that is not empty."""
    fix = "Save the sheet as CSV with the columns code and rating"
    try:
        data = path.read_bytes()
    except OSError as e:
        raise DataError(f"cannot be read ({e.strerror})", where=str(path), fix="Name the file a rater sent back") from e
    text = _decoded(data)
    header = text.partition("\n")[0]
    delimiter = max(",;\t", key=header.count)
    try:
        records = list(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter))
    except csv.Error as e:
        raise DataError(f"not readable as CSV ({e})", where=str(path), fix=fix) from e
    columns = [name.strip().lower() for name in records[0]] if records else []
    if any(columns.count(name) != 1 for name in ("code", "rating")):
        raise DataError("it lacks a column code or rating, or has two", where=str(path), fix=fix)
    for number, record in enumerate(records[1:], 2):
        if any(cell.strip() for cell in record):
            yield number, dict(zip(columns, record, strict=False))


def _decoded(data: bytes) -> str:
    """Text of a CSV file: UTF-8 or UTF-16; else byte by byte, which leaves codes and ratings whole."""
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return data.decode("utf-16", "replace")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return data.decode("latin-1")
