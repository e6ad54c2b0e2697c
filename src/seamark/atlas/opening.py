"""Opening the file of an atlas: read-only, or to write and brought up to date; and SQLite's errors as ours.

One writer and many readers (write-ahead log). A file of an earlier version is brought to the present one by the
migrations between them, all in one transaction; one of a later version is refused. Readers open the file read-only and
cannot write whatever they are asked.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

from pydantic import ValidationError

from seamark.atlas import schema
from seamark.errors import ConfigError, DataError, FormatError, RunError, SeamarkError
from seamark.run import disk_errors

OLDEST = (3, 37, 0)
"""The first SQLite with STRICT tables."""
BUSY_MS = 10_000
"""How long a connection waits for another that holds the file."""
CACHE_KB = 8192
"""Memory of each reading connection. The file is not mapped: if somebody wrote over it, the process would die."""
CHECKPOINT_PAGES = 8192
"""Pages (of 4 KiB) of the log at which SQLite moves them into the file."""
_FIX = "Name a file of `seamark atlas build`"


def open_to_read(path: Path) -> sqlite3.Connection:
    """A connection that cannot write. In a folder that cannot be written either, a file that its writer closed is read
    as it lies: what is written to it from elsewhere meanwhile is not seen.

    Raises:
        ConfigError: there is no such file.
        FormatError: not an atlas, or one of another version.
        RunError: it cannot be opened.
    """
    _exists(path)
    with sqlite_errors(path):
        try:
            return _reader(path, "mode=ro")
        except sqlite3.OperationalError as e:
            # Even to read a write-ahead log, SQLite makes a small file beside it.
            if _code(e) not in (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY):
                raise
            log = path.with_name(f"{path.name}-wal")
            if log.exists() and log.stat().st_size:
                raise RunError("what was written last still lies in a log beside it, which cannot be read in a folder "
                               "that cannot be written", where=str(path),
                               fix="Open it once where you may write, or copy all its files there") from e  # fmt: skip
            return _reader(path, "mode=ro&immutable=1")


def open_to_write(path: Path, *, create: bool = False) -> sqlite3.Connection:
    """A connection that may write; the file is brought up to date.

    Args:
        path: the file.
        create: make it, and its folder, where there is none.

    Raises:
        ConfigError: there is no such file, and `create` is off.
        FormatError: not an atlas, or one of a later version.
        RunError: another process is writing to it; the disk is full or cannot be written.
    """
    if create and not path.exists():
        _make(path)
    _exists(path)
    with sqlite_errors(path):
        db = _connected(path, "mode=rw")
        try:
            _prepare(db, path)
        except BaseException:
            db.close()
            raise
        return db


def _make(path: Path) -> None:
    """An atlas without features, whole or not at all; one that another process makes meanwhile stays."""
    with sqlite_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}.tmp")
        try:
            with contextlib.closing(_connected(draft, "mode=rwc")) as db:
                db.execute("PRAGMA synchronous = FULL")
                db.execute("PRAGMA journal_mode = WAL")
                migrate(db)
            _bring(draft, path)
        finally:
            for end in ("", "-wal", "-shm"):
                draft.with_name(draft.name + end).unlink(missing_ok=True)


def _bring(draft: Path, path: Path) -> None:
    """Give a file its name, unless there is one of that name."""
    try:
        os.link(draft, path)
    except FileExistsError:
        return
    except OSError:  # a file system without hard links
        if not path.exists():
            draft.rename(path)


def _exists(path: Path) -> None:
    if not path.is_file():
        what = "a folder, not an atlas" if path.is_dir() else "there is no atlas here"
        raise ConfigError(what, where=str(path), fix="Make one with `seamark atlas build` or `seamark atlas import`")


def _connected(path: Path, mode: str) -> sqlite3.Connection:
    if sqlite3.sqlite_version_info < OLDEST:
        raise RunError(f"this Python's SQLite is {sqlite3.sqlite_version}; an atlas needs {'.'.join(map(str, OLDEST))}",
                       fix="Use a newer Python")  # fmt: skip
    db = sqlite3.connect(f"file:{quote(os.fsencode(path))}?{mode}", uri=True, timeout=BUSY_MS / 1000,
                         isolation_level=None, check_same_thread=False, cached_statements=256)  # fmt: skip
    db.execute("PRAGMA foreign_keys = ON")
    db.execute("PRAGMA trusted_schema = OFF")
    return db


def _reader(path: Path, mode: str) -> sqlite3.Connection:
    db = _connected(path, mode)
    try:
        db.execute("PRAGMA query_only = ON")
        db.execute(f"PRAGMA cache_size = -{CACHE_KB}")
        _check(db, path)
    except BaseException:
        db.close()
        raise
    return db


def _prepare(db: sqlite3.Connection, path: Path) -> None:
    if not _is_empty(db):
        _check(db, path, older=True)
    db.execute("PRAGMA journal_mode = WAL")
    db.execute("PRAGMA synchronous = NORMAL")
    db.execute(f"PRAGMA wal_autocheckpoint = {CHECKPOINT_PAGES}")
    db.execute("PRAGMA cache_size = -65536")
    if _number(db, "user_version") < len(schema.MIGRATIONS):
        migrate(db)


def _is_empty(db: sqlite3.Connection) -> bool:
    return _number(db, "application_id") == 0 and not db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]


def _number(db: sqlite3.Connection, name: str) -> int:
    return int(db.execute(f"PRAGMA {name}").fetchone()[0])


def _check(db: sqlite3.Connection, path: Path, *, older: bool = False) -> None:
    """Raise `FormatError` unless this is an atlas that can be read as it is, or, with `older`, an earlier one."""
    present, version = len(schema.MIGRATIONS), _number(db, "user_version")
    if _number(db, "application_id") != schema.APPLICATION_ID:
        what = "an empty file" if _is_empty(db) else "a database, but not an atlas"
        raise FormatError(what, where=str(path), fix=_FIX)
    if version > present:
        raise FormatError(f"an atlas of version {version}; this Seamark knows {present}", where=str(path),
                          fix="Update Seamark")  # fmt: skip
    if version < schema.READ_FROM and not older:
        raise FormatError(f"an atlas of version {version}, not {present}", where=str(path),
                          fix="Run `seamark atlas info --update` on it once, which brings it up to date")  # fmt: skip


def migrate(db: sqlite3.Connection) -> None:
    """Bring the file to the present version, whole or not at all."""
    with immediate(db):
        # Another process may have done it while this one waited for the file.
        for version in range(_number(db, "user_version"), len(schema.MIGRATIONS)):
            for statement in _statements(schema.MIGRATIONS[version]):
                db.execute(statement)
        db.execute(f"PRAGMA application_id = {schema.APPLICATION_ID}")
        db.execute(f"PRAGMA user_version = {len(schema.MIGRATIONS)}")


def _statements(script: str) -> Iterator[str]:
    """`executescript` would commit first; here a migration stays one transaction."""
    held = ""
    for line in script.splitlines(keepends=True):
        held += line
        if sqlite3.complete_statement(held):
            yield held
            held = ""


def sql(*pieces: str) -> str:
    """One statement of several pieces. They are strings of this code; whatever comes from outside is bound to it."""
    return " ".join(pieces)


@contextlib.contextmanager
def immediate(db: sqlite3.Connection) -> Iterator[None]:
    """All of it or nothing; others may read meanwhile, and see what was there before."""
    db.execute("BEGIN IMMEDIATE")
    try:
        yield
        db.execute("COMMIT")
    except BaseException:
        if db.in_transaction:  # some errors (a full disk) have already undone it
            db.execute("ROLLBACK")
        raise


@contextlib.contextmanager
def sqlite_errors(path: Path) -> Iterator[None]:
    """SQLite's errors as ours.

    Raises:
        RunError: another process holds the file, the disk is full, or the file cannot be read or written.
        FormatError: the file is damaged or no atlas.
        DataError: what was to be written does not fit the tables.
    """
    try:
        with disk_errors(path):
            yield
    except sqlite3.Error as e:
        ours = _ours(e, path)
        if ours is None:
            raise
        raise ours from e
    except ValidationError as e:
        raise FormatError(f"not what an atlas holds ({e.errors()[0]['msg']})", where=str(path), fix=_FIX) from e


def _code(e: sqlite3.Error) -> int:
    """SQLite's primary result code; 0 where Python's module raised by itself."""
    return int(getattr(e, "sqlite_errorcode", 0)) & 0xFF


def _ours(e: sqlite3.Error, path: Path) -> SeamarkError | None:
    """What a person is told; None where the error is a mistake of ours."""
    where, code = str(path), _code(e)
    match code:
        case sqlite3.SQLITE_BUSY | sqlite3.SQLITE_LOCKED:
            return RunError("another process is writing to the atlas", where=where,
                            fix="Wait until it is done, or stop it, and run again")  # fmt: skip
        case sqlite3.SQLITE_FULL:
            return RunError("the disk is full", where=where,
                            fix="Free some space and run again: what was committed is kept")  # fmt: skip
        case sqlite3.SQLITE_READONLY | sqlite3.SQLITE_PERM | sqlite3.SQLITE_AUTH:
            return RunError("the atlas cannot be written", where=where, fix="Copy it to where you may write")
        case sqlite3.SQLITE_CANTOPEN | sqlite3.SQLITE_IOERR:
            return RunError(f"the file cannot be used ({e})", where=where,
                            fix="Check the disk, and that file and folder may be read and written")  # fmt: skip
        case sqlite3.SQLITE_NOTADB | sqlite3.SQLITE_CORRUPT:
            return FormatError(f"not an atlas, or a damaged one ({e})", where=where, fix=_FIX)
        case sqlite3.SQLITE_CONSTRAINT | sqlite3.SQLITE_TOOBIG | sqlite3.SQLITE_MISMATCH:
            return DataError(f"does not fit into the atlas ({e})", where=where)
    if code == sqlite3.SQLITE_ERROR and "fts5" in str(e):
        return RunError("this Python's SQLite has no full-text search (FTS5)", where=where, fix="Use another Python")
    if code == sqlite3.SQLITE_ERROR and str(e).startswith("no such"):
        return FormatError(f"a damaged atlas ({e})", where=where, fix=_FIX)
    if isinstance(e, sqlite3.ProgrammingError) and "closed" in str(e):
        return RunError("the atlas was closed", where=where, fix="Open it again")
    return None
