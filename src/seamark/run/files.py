"""Files that are whole or absent, and digests of what they hold."""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import json
import os
import re
import threading
from collections.abc import Iterable, Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from seamark.errors import RunError, SeamarkError

_REASONS = {
    errno.ENOSPC: ("the disk is full", "Free some space and run again"),
    errno.EDQUOT: ("the disk quota is used up", "Free some space and run again"),
    errno.EROFS: ("the file system is read-only", "Choose another --out"),
    errno.EACCES: ("no permission to read or write", "Choose another --out"),
    errno.EPERM: ("no permission to write", "Choose another --out"),
    errno.EFBIG: ("a file grew past the allowed size", "Raise the limit (ulimit -f) or choose another disk"),
}
# Not every writer raises an OSError with its number: safetensors and tokenizers name it in the text; NumPy and
# torch.save only say that fewer bytes went out than should have.
_NUMBER = re.compile(r"\((?:os error|errno) (\d+)\)|\[errno (\d+)\]", re.IGNORECASE)
_CUT_SHORT = re.compile(
    r"^\d+ requested and \d+ written$|inline_container.*(?:unexpected pos|fail.* writ)|iostream error"
)


def to_jsonable(value: Any) -> Any:
    """Plain JSON data from pydantic models, paths, tuples, sets and numpy scalars."""
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    if isinstance(value, Mapping):
        return {str(k): to_jsonable(v) for k, v in value.items()}
    if isinstance(value, set | frozenset):
        return sorted(to_jsonable(v) for v in value)
    if isinstance(value, list | tuple):
        return [to_jsonable(v) for v in value]
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "item") and not hasattr(value, "__len__"):
        return value.item()
    return value


def canonical_json(value: Any) -> str:
    """JSON with sorted keys and no spaces: equal data give equal text. Raises ValueError on NaN and inf."""
    return json.dumps(to_jsonable(value), sort_keys=True, ensure_ascii=False, separators=(",", ":"), allow_nan=False)


def digest(value: Any) -> str:
    """SHA-256 of `canonical_json(value)`, hexadecimal."""
    return hashlib.sha256(canonical_json(value).encode("utf-8", "surrogatepass")).hexdigest()


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes, or of a folder's relative paths and their bytes, hexadecimal."""
    if path.is_dir():
        files = sorted(p for p in path.rglob("*") if p.is_file())
        return digest({str(p.relative_to(path)): file_digest(p) for p in files})
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def write_atomic(path: Path, data: str | bytes | Iterable[bytes | memoryview]) -> None:
    """Write a file whole or not at all: to a temporary name beside it, flushed to disk, then renamed. Large data may
    come in pieces."""
    pieces = [data.encode("utf-8", "surrogatepass")] if isinstance(data, str) else data
    pieces = [pieces] if isinstance(pieces, bytes) else pieces
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}.tmp")
    try:
        with temporary.open("wb") as f:
            f.writelines(pieces)
            f.flush()
            os.fsync(f.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically. Raises ValueError on NaN and inf: use null with a reason."""
    data = to_jsonable(value)
    text = json.dumps(data, indent=1, ensure_ascii=False, allow_nan=False)
    if not _is_utf8(text):  # half a surrogate pair has no UTF-8; escaped, it comes back as it was
        text = json.dumps(data, indent=1, allow_nan=False)
    write_atomic(path, text + "\n")


def _is_utf8(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def read_json(path: Path) -> Any:
    """Read a JSON file; a missing or broken one raises `RunError` naming it."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RunError("file not found", where=str(path)) from None
    except OSError as e:
        raise RunError(f"cannot be read ({e.strerror})", where=str(path)) from e
    except (json.JSONDecodeError, UnicodeDecodeError) as e:
        raise RunError(f"not readable as JSON ({e})", where=str(path), fix="Delete it and run again") from e


@contextlib.contextmanager
def disk_errors(where: Path) -> Iterator[None]:
    """Turn storage errors (full disk, quota, read-only, too large), of any library, into one clear `RunError`."""
    try:
        yield
    except SeamarkError:
        raise
    except Exception as e:
        what, fix = _storage_problem(e)
        if not what:
            raise
        raise RunError(what, where=str(getattr(e, "filename", None) or where), fix=fix) from e


def _storage_problem(e: Exception) -> tuple[str, str]:
    """What is wrong with the disk and what to do about it; empty where the error is about something else."""
    text = str(e)
    number = e.errno if isinstance(e, OSError) else None
    if number is None and (named := _NUMBER.search(text)):
        number = int(named[1] or named[2])
    if number is None and _CUT_SHORT.search(text):
        return "a file could not be written whole: the disk is most likely full", "Free some space and run again"
    return _REASONS.get(number or 0, ("", ""))


def versions() -> dict[str, str]:
    """Versions of Seamark and of the packages that decide its numbers."""
    return dict(_versions())


@functools.cache
def _versions() -> dict[str, str]:
    names = (
        "seamark",
        "torch",
        "transformers",
        "trl",
        "tokenizers",
        "datasets",
        "numpy",
        "scipy",
        "scikit-learn",
    )
    found = {}
    for name in names:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found
