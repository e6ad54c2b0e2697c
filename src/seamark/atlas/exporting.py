"""What exports of an atlas share: folders that are whole or absent, and what a cell or a file name may hold."""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from seamark.errors import ConfigError
from seamark.run import disk_errors

MARK = "seamark-export.json"
"""Lies in every exported folder; only a folder that holds it is replaced."""


@contextlib.contextmanager
def whole_folder(folder: Path, kind: str) -> Iterator[Path]:
    """A new folder to write into, which takes the place of `folder` when all went well; else it goes, and what was
    there stays.

    Args:
        kind: what is exported; kept in `MARK`.

    Raises:
        ConfigError: `folder` is a file, or holds something that no export of this kind made.
        RunError: the disk is full or cannot be written.
    """
    folder = Path(os.path.abspath(folder))
    _check(folder, kind)
    partial, old = (folder.with_name(f".{folder.name}.{os.getpid()}.{name}") for name in ("partial", "old"))
    with disk_errors(folder):
        try:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
            yield partial
            (partial / MARK).write_text(json.dumps({"kind": kind}) + "\n", encoding="utf-8")
            if folder.exists():
                folder.rename(old)
            partial.rename(folder)
        except BaseException:
            if old.exists() and not folder.exists():
                old.rename(folder)
            raise
        finally:
            shutil.rmtree(partial, ignore_errors=True)
            shutil.rmtree(old, ignore_errors=True)


def _check(folder: Path, kind: str) -> None:
    if folder.is_dir():
        if not any(folder.iterdir()):
            return
        with contextlib.suppress(OSError, ValueError, TypeError):
            if json.loads((folder / MARK).read_text(encoding="utf-8"))["kind"] == kind:
                return
        raise ConfigError(f"this folder holds something other than an earlier {kind} export", where=str(folder),
                          fix="Name a new folder, or empty this one")  # fmt: skip
    if folder.exists():
        raise ConfigError("a file is where the folder should be", where=str(folder), fix="Name a new folder")


@contextlib.contextmanager
def packed_lines(path: Path) -> Iterator[IO[bytes]]:
    """A gzip file to write lines into; equal lines give equal bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as raw, gzip.GzipFile("", "wb", compresslevel=5, fileobj=raw, mtime=0) as packed:
        yield packed  # type: ignore[misc]


def json_line(row: Any) -> bytes:
    """A row of JSON lines, in ASCII: it survives any reader."""
    return json.dumps(row, allow_nan=False, separators=(",", ":")).encode() + b"\n"
