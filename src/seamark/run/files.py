"""Files that are whole or absent, and digests of what they hold."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import threading
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from seamark.errors import RunError


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


def write_atomic(path: Path, data: str | bytes) -> None:
    """Write a file whole or not at all: to a temporary name beside it, flushed to disk, then renamed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}.tmp")
    try:
        with temporary.open("wb") as f:
            f.write(data.encode("utf-8", "surrogatepass") if isinstance(data, str) else data)
            f.flush()
            os.fsync(f.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically. Raises ValueError on NaN and inf: use null with a reason."""
    write_atomic(path, json.dumps(to_jsonable(value), indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file; a missing or broken one raises `RunError` naming it."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RunError("file not found", where=str(path)) from None
    except (json.JSONDecodeError, UnicodeDecodeError) as e:
        raise RunError(f"not readable as JSON ({e})", where=str(path), fix="Delete it and run again") from e


@contextlib.contextmanager
def disk_errors(where: Path) -> Iterator[None]:
    """Turn the operating system's storage errors into one clear `RunError`."""
    try:
        yield
    except OSError as e:
        reasons = {
            errno.ENOSPC: ("the disk is full", "Free some space and run again"),
            errno.EDQUOT: ("the disk quota is used up", "Free some space and run again"),
            errno.EROFS: ("the file system is read-only", "Choose another --out"),
            errno.EACCES: ("no permission to write", "Choose another --out"),
            errno.EFBIG: (
                "a file grew past the allowed size",
                "Raise the limit (ulimit -f) or choose another disk",
            ),
        }
        if e.errno not in reasons:
            raise
        what, fix = reasons[e.errno]
        raise RunError(what, where=str(e.filename or where), fix=fix) from e


def versions() -> dict[str, str]:
    """Versions of Seamark and of the packages that decide its numbers."""
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
