"""Rows from files and data sets of many kinds, one at a time, where a bad row never costs its neighbours.

Row numbers are 1-based: lines in JSONL and text files (blank ones counted), records elsewhere (a CSV header is none).
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from seamark.errors import DataError

PathLike = str | os.PathLike[str]
_UTF16 = (b"\xff\xfe", b"\xfe\xff")
_CUT_SHORT = (EOFError, gzip.BadGzipFile, zlib.error)
_CSV_REREAD = 20  # lines read again behind quotes never closed, at most, in lengths of the file
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


class RawRow(NamedTuple):
    """A row as the file has it, or the reason why it could not be read."""

    number: int
    data: Mapping[str, Any] | None
    reason: str = ""


def read_rows(source: PathLike, *, split: str | None = None) -> Iterator[RawRow]:
    """Rows of a file, a saved `datasets` folder or a data set of the Hub.

    Formats go by suffix: .jsonl, .ndjson, .json (a list, `{"data": [...]}` or JSONL), .csv, .tsv, .parquet, each but
    Parquet also with .gz. What is no path but looks like `owner/name` is a data set of the Hub.

    Raises:
        DataError: missing or empty file, unknown format, a file that cannot be read at all, an unknown split.
    """
    path = Path(source)
    if path.is_dir():
        return _dataset_rows(_load_folder(path, split))
    if not path.exists():
        if isinstance(source, str) and HUB_ID.fullmatch(source) and _reader_for(path) is None:
            return _dataset_rows(_load_hub(source, split))
        raise DataError("no such file", where=str(source), fix="Give a file, a saved data set or a Hub id")
    if path.stat().st_size == 0:
        raise DataError("the file is empty", where=str(path))
    reader = _reader_for(path)
    if reader is None:
        known = ", ".join(_READERS)
        raise DataError("unknown file format", where=str(path), fix=f"Use {known} or a saved data set")
    return reader(path)


def _reader_for(path: Path) -> Callable[[Path], Iterator[RawRow]] | None:
    suffix = path.suffix.lower()
    if suffix == ".gz":
        inner = Path(path.stem).suffix.lower()
        return None if inner == ".parquet" else _READERS.get(inner)
    return _READERS.get(suffix)


def column_names(found: Iterable[str]) -> str:
    """Columns for a message. What is no short name may be a row taken for the header, and is not shown."""
    names = sorted(set(found))
    shown = [c for c in names if len(c) <= 40 and len(c.split()) <= 3 and c.isprintable() and c.strip()][:30]
    hidden = len(names) - len(shown)
    return ", ".join(shown + [f"{hidden} not shown"] * bool(hidden))


def read_lines(path: Path) -> Iterator[tuple[int, str | None, str]]:
    """(line number, text, "") for each line, or (line number, None, reason) where its bytes are no UTF-8.

    UTF-16 files are known by their byte-order mark; .gz is unpacked, and a cut archive gives what it holds, and
    then a last row with the reason.
    """
    number = 0
    for line, reason in _byte_lines(path):
        number += 1
        if line is None:
            yield number, None, reason
            continue
        try:
            yield number, line.decode("utf-8-sig" if number == 1 else "utf-8"), ""
        except UnicodeDecodeError as error:
            yield number, None, f"not UTF-8 (byte {error.start + 1} of the line)"


def _open(path: Path) -> gzip.GzipFile | io.BufferedReader:
    return gzip.open(path, "rb") if path.suffix.lower() == ".gz" else path.open("rb")


def _byte_lines(path: Path) -> Iterator[tuple[bytes | None, str]]:
    with _open(path) as file:
        try:
            start = file.read(2)
            file.seek(0)
            if start in _UTF16:
                text = file.read().decode("utf-16", "replace")
                yield from ((line.encode("utf-8", "surrogatepass"), "") for line in text.split("\n"))
                return
            for line in file:
                yield line.rstrip(b"\r\n"), ""
        except _CUT_SHORT:
            yield None, "the compressed file is cut short or damaged from here on"


def _whole_text(path: Path) -> tuple[str, str]:
    """The file's text, with bytes that are no UTF-8 as lone surrogates, and the reason why it ends early, if so."""
    parts: list[bytes] = []
    broken = ""
    with _open(path) as file:
        try:
            while part := file.read(1 << 20):
                parts.append(part)
        except _CUT_SHORT:
            broken = "the compressed file is cut short or damaged"
    data = b"".join(parts)
    if data[:2] in _UTF16:
        return data.decode("utf-16", "replace"), broken
    return data.decode("utf-8-sig", "surrogateescape"), broken


def _jsonl_rows(path: Path) -> Iterator[RawRow]:
    for number, line, reason in read_lines(path):
        if line is None:
            yield RawRow(number, None, reason)
        elif line.strip():
            yield _parse_line(number, line)


class _RepeatedKeyError(Exception):
    """An object of a JSON text has a key twice: which of its values is meant, nobody knows."""


_REPEATED = "a key stands twice in one JSON object"


def _distinct(items: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object as `json.loads` reads it; raises where a key stands twice."""
    found = dict(items)
    if len(found) != len(items):
        raise _RepeatedKeyError
    return found


class _Repeated:
    """Stands for an object in which a key stands twice."""


def _marked(items: list[tuple[str, Any]]) -> dict[str, Any] | _Repeated:
    found = dict(items)
    return found if len(found) == len(items) else _Repeated()


def _holds_repeated(value: Any) -> bool:
    """Whether a JSON value holds a mark, at any depth."""
    waiting = [value]
    while waiting:
        item = waiting.pop()
        if isinstance(item, _Repeated):
            return True
        waiting += item.values() if isinstance(item, dict) else item if isinstance(item, list) else ()
    return False


def _parse_line(number: int, line: str) -> RawRow:
    try:
        value = json.loads(line, object_pairs_hook=_distinct)
    except _RepeatedKeyError:
        return RawRow(number, None, _REPEATED)
    except json.JSONDecodeError as error:
        return RawRow(number, None, f"not valid JSON (column {error.colno})")
    except (ValueError, RecursionError):
        return RawRow(number, None, "not valid JSON (nested too deeply or a number too long)")
    return _as_row(number, value)


def _as_row(number: int, value: Any) -> RawRow:
    if isinstance(value, Mapping):
        return RawRow(number, value)
    return RawRow(number, None, f"a JSON object is needed, not {type(value).__name__}")


def _whole_json(text: str) -> tuple[Any, bool]:
    """The value of a JSON text, and whether some objects in it are marked: those in which a key stands twice."""
    try:
        return json.loads(text, object_pairs_hook=_distinct), False
    except _RepeatedKeyError:
        return json.loads(text, object_pairs_hook=_marked), True


def _json_rows(path: Path) -> Iterator[RawRow]:
    text, broken = _whole_text(path)
    if broken:
        raise DataError(broken, where=str(path), fix="Unpack or copy the file again")
    try:
        value, marked = _whole_json(text)
    except (ValueError, RecursionError) as error:
        first = _parse_line(1, text.lstrip().partition("\n")[0])
        if first.data is not None or first.reason == _REPEATED:
            yield from _jsonl_rows(path)  # many tools write JSONL under the name .json
            return
        at = f" (line {error.lineno})" if isinstance(error, json.JSONDecodeError) else ""
        raise DataError(
            f"not valid JSON{at}", where=str(path), fix="Mend it, or save one row a line as .jsonl"
        ) from error
    if isinstance(value, Mapping | _Repeated):
        lists = value.get("data") if isinstance(value, Mapping) else None
        value = lists if isinstance(lists, list) else [value]
    if not isinstance(value, list):
        raise DataError("the JSON is no list of rows", where=str(path), fix='Use [...], {"data": [...]} or .jsonl')
    for number, item in enumerate(value, 1):
        yield RawRow(number, None, _REPEATED) if marked and _holds_repeated(item) else _as_row(number, item)


def _csv_rows(path: Path) -> Iterator[RawRow]:
    text, broken = _whole_text(path)
    delimiter = "\t" if ".tsv" in [s.lower() for s in path.suffixes] else ","
    records = _csv_records(io.StringIO(text, newline="").readlines(), delimiter)
    header = next(records, None)
    if header is None:
        return
    number = 0
    for number, record in enumerate(records, 1):
        if record is None:
            yield RawRow(number, None, "not valid CSV (a quote is not closed, or text follows one)")
        elif len(record) > len(header):
            yield RawRow(number, None, "more fields than the header has")
        else:
            yield RawRow(number, dict(zip(header, record, strict=False)))
    if broken:
        yield RawRow(number + 1, None, broken)


def _csv_records(lines: list[str], delimiter: str) -> Iterator[list[str] | None]:
    """Records of a CSV file; None for a broken one. A quote never closed costs its line, not the rest of the file."""
    limit = csv.field_size_limit(1 << 30)  # answers are longer than the default of 128 KiB
    try:
        first = reread = 0
        while first < len(lines):
            reader = csv.reader(lines[first:], delimiter=delimiter, strict=True)
            good = 0
            try:
                for record in reader:
                    good = reader.line_num
                    if record:
                        yield record
                return
            except csv.Error:
                yield None
                reread += reader.line_num - good - 1
                first += good + 1 if reread <= _CSV_REREAD * len(lines) else reader.line_num
    finally:
        csv.field_size_limit(limit)


def _parquet_rows(path: Path) -> Iterator[RawRow]:
    try:
        file = pq.ParquetFile(path)
    except (pa.ArrowException, OSError) as error:
        raise DataError("not a readable Parquet file", where=str(path), fix="Write the file again") from error
    number = 0
    with file:
        try:
            for batch in file.iter_batches(batch_size=1024):
                for row in _batch_rows(batch):
                    number += 1
                    yield RawRow(number, row) if row is not None else RawRow(number, None, "not UTF-8")
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"damaged after row {number}", where=str(path), fix="Write the file again") from error


def _batch_rows(batch: pa.RecordBatch) -> Iterator[Mapping[str, Any] | None]:
    try:
        yield from batch.to_pylist()
        return
    except UnicodeDecodeError:
        pass
    for i in range(batch.num_rows):  # one by one, so that only the bad rows are lost
        try:
            yield batch.slice(i, 1).to_pylist()[0]
        except UnicodeDecodeError:
            yield None


def _load_folder(path: Path, split: str | None) -> Any:
    import datasets

    try:
        data = datasets.load_from_disk(str(path))
    except (FileNotFoundError, ValueError, OSError, KeyError) as error:
        fix = "Give a folder written by datasets.save_to_disk, or a file"
        raise DataError("this folder is no saved data set", where=str(path), fix=fix) from error
    return _pick_split(data, split, str(path))


def _load_hub(name: str, split: str | None) -> Any:
    import datasets

    try:
        data = datasets.load_dataset(name)
    except Exception as error:  # the Hub client raises many kinds: offline, not found, gated, no access
        why = type(error).__name__
        fix = "Check the name, the network and your access, or give a local file"
        raise DataError(f"the Hub data set cannot be loaded ({why})", where=name, fix=fix) from error
    return _pick_split(data, split, name)


def _pick_split(data: Any, split: str | None, where: str) -> Any:
    """One split of a DatasetDict: the one asked for, else the only one, else "train"."""
    if not isinstance(data, Mapping):
        return data
    wanted = split or (next(iter(data)) if len(data) == 1 else "train")
    if wanted not in data:
        names = ", ".join(data)
        raise DataError(f"no split {wanted!r} (it has {names})", where=where, fix="Set ReadOptions(split=...)")
    return data[wanted]


def _dataset_rows(data: Any) -> Iterator[RawRow]:
    for number, row in enumerate(data, 1):
        yield RawRow(number, row)


_READERS: dict[str, Callable[[Path], Iterator[RawRow]]] = {
    ".jsonl": _jsonl_rows,
    ".ndjson": _jsonl_rows,
    ".json": _json_rows,
    ".csv": _csv_rows,
    ".tsv": _csv_rows,
    ".parquet": _parquet_rows,
}
