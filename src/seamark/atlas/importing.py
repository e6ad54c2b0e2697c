"""What imports into an atlas share: reading files that may be compressed, cut off or hostile, and telling what came."""

from __future__ import annotations

import gzip
import json
import math
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, TypeGuard, cast

from seamark.atlas.records import Record
from seamark.atlas.texts import storable
from seamark.errors import FormatError

MAX_BYTES = 1 << 31
"""Of a JSON file that is read whole, once unpacked."""
MAX_LINE = 1 << 25
"""Bytes of a line of JSON lines."""
MAX_REJECTED = 10_000
"""Rejected entries that a summary lists; more are only counted."""
_GZIP = b"\x1f\x8b"


class Rejected(Record):
    """An entry that was not imported."""

    file: str
    key: str
    """Where in the file: its key, or the number of its line."""
    reason: str


class ImportSummary(Record):
    """What an import brought into the atlas."""

    files: tuple[str, ...]
    runs: tuple[str, ...]
    """Ids of the runs under which it is kept, one for each source."""
    features: int
    """Features the files speak of; some may have been in the atlas before."""
    explanations: dict[str, int]
    """{language: explanations}"""
    scores: int
    contexts: int = 0
    rejected: tuple[Rejected, ...] = ()
    """The first of them; `n_rejected` counts all."""
    n_rejected: int = 0
    already: tuple[str, ...] = ()
    """Files that had been imported before and were left as they are."""


@dataclass
class Rejections:
    """Rejected entries while they are found."""

    first: list[Rejected] = field(default_factory=list)
    n: int = 0

    def add(self, file: Path | str, key: str, reason: str) -> None:
        self.n += 1
        if len(self.first) < MAX_REJECTED:
            self.first.append(Rejected(file=str(file), key=storable(key[:200]), reason=storable(reason[:500])))


def open_bytes(path: Path) -> IO[bytes]:
    """The file's bytes, unpacked where it is gzip, whatever its name.

    Raises:
        FormatError: it cannot be read.
    """
    try:
        with path.open("rb") as f:
            packed = f.read(2) == _GZIP
        return cast(IO[bytes], gzip.open(path)) if packed else path.open("rb")
    except OSError as e:
        raise FormatError(f"cannot be read ({e.strerror or e})", where=str(path)) from e


def read_bytes(path: Path, limit: int = MAX_BYTES) -> bytes:
    """All of a file, unpacked.

    Raises:
        FormatError: it cannot be read, is cut off, or larger than `limit` once unpacked.
    """
    with open_bytes(path) as f:
        data = _read(path, lambda: f.read(limit + 1))
    if len(data) > limit:
        raise FormatError(f"larger than {limit:,} bytes once unpacked", where=str(path))
    return data


def read_lines(path: Path, rejections: Rejections) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line number from 1, object) of each line of JSON lines; other lines are rejected. Memory: one line.

    Raises:
        FormatError: the file cannot be read or is cut off.
    """
    with open_bytes(path) as f:
        number = 0
        while line := _read(path, lambda: f.readline(MAX_LINE)):
            number += 1
            if len(line) >= MAX_LINE:
                rejections.add(path, f"line {number}", f"longer than {MAX_LINE:,} bytes")
                while len(line) >= MAX_LINE and not line.endswith(b"\n"):
                    line = _read(path, lambda: f.readline(MAX_LINE))
                continue
            if not line.strip():
                continue
            try:
                row = parse_json(line)
            except FormatError as e:
                rejections.add(path, f"line {number}", e.what)
                continue
            if isinstance(row, dict):
                yield number, row
            else:
                rejections.add(path, f"line {number}", "not an object")


def parse_json(data: bytes, pairs: Callable[[list[tuple[str, Any]]], Any] | None = None) -> Any:
    """JSON as Python has it; NaN, infinities and endless digits come as floats that are not finite.

    Args:
        pairs: makes objects from their (key, value) pairs.

    Raises:
        FormatError: no JSON; without a place.
    """
    try:
        return json.loads(data.decode("utf-8-sig"), object_pairs_hook=pairs, parse_constant=_constant, parse_int=_whole)
    except UnicodeDecodeError as e:
        raise FormatError(f"no UTF-8 (byte {e.start})") from None
    except json.JSONDecodeError as e:
        raise FormatError(f"no JSON ({e})") from None
    except RecursionError:
        raise FormatError("no JSON that can be read: nested too deeply") from None


def is_number(value: Any) -> TypeGuard[float]:
    """A finite number, and no truth value."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def is_storable(text: str) -> bool:
    """Whether a text can be kept as it is: half a surrogate pair cannot."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _read(path: Path, read: Callable[[], bytes]) -> bytes:
    try:
        return read()
    except (gzip.BadGzipFile, EOFError, zlib.error) as e:
        raise FormatError(f"the compressed file is damaged or cut off ({e})", where=str(path),
                          fix="Fetch it again") from e  # fmt: skip
    except OSError as e:
        raise FormatError(f"cannot be read ({e.strerror or e})", where=str(path)) from e


def _constant(name: str) -> float:
    return math.nan if name == "NaN" else math.inf if name == "Infinity" else -math.inf


def _whole(digits: str) -> int | float:
    return int(digits) if len(digits) < 20 else float(digits)
