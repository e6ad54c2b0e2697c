"""Every answer of a language model that was received, in one SQLite file: a rerun costs nothing.

An answer is committed to disk before anything is done with it, so a crash or kill -9 loses nothing that was paid. What
was asked is found again by content (`AnswerCache.key`): the model's name, the texts, the schema and the parameters. The
server's address is no part of it, so a model may move to another host; nor is the API key, which is never stored; nor
is the limit of the answer's tokens, which lies beside each answer: one that was cut off by it says nothing about what
a higher limit would bring, any other counts under every limit.
Several processes may share a file. It holds the texts that were sent: keep it as private as the data set.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import psutil

from seamark.errors import FormatError, RunError
from seamark.run import canonical_json, digest, disk_errors

FORMAT = 2
"""Version of the file's tables (`PRAGMA user_version`)."""
APPLICATION = 0x5EA4A5C5
"""`PRAGMA application_id` of an answer cache: tells it from any other SQLite file."""

Op = Callable[[sqlite3.Connection], Any]
"""One step within a transaction."""
T = TypeVar("T")

_TABLES = """
CREATE TABLE answers (
  key TEXT NOT NULL, max_tokens INTEGER NOT NULL, at REAL NOT NULL, model TEXT NOT NULL, stage TEXT NOT NULL,
  request TEXT NOT NULL, response TEXT NOT NULL, tokens_in INTEGER NOT NULL, tokens_out INTEGER NOT NULL,
  counted INTEGER NOT NULL, nanos INTEGER, currency TEXT NOT NULL, seconds REAL NOT NULL, failure TEXT NOT NULL,
  cut INTEGER NOT NULL, PRIMARY KEY (key, max_tokens)
) WITHOUT ROWID;
CREATE TABLE sessions (
  id INTEGER PRIMARY KEY AUTOINCREMENT, run TEXT NOT NULL, model TEXT NOT NULL, server TEXT NOT NULL,
  host TEXT NOT NULL, pid INTEGER NOT NULL, born REAL NOT NULL, begun REAL NOT NULL, longest_s REAL NOT NULL
);
CREATE TABLE calls (
  id INTEGER PRIMARY KEY AUTOINCREMENT, session INTEGER NOT NULL REFERENCES sessions (id), run TEXT NOT NULL,
  key TEXT NOT NULL, stage TEXT NOT NULL, model TEXT NOT NULL, state TEXT NOT NULL, reason TEXT NOT NULL DEFAULT '',
  at REAL NOT NULL, seconds REAL, bytes_in INTEGER NOT NULL, tokens_in INTEGER, tokens_out INTEGER, nanos INTEGER,
  held_tokens INTEGER NOT NULL, held_nanos INTEGER, currency TEXT NOT NULL, counted INTEGER
);
CREATE INDEX calls_started ON calls (key) WHERE state = 'started';
CREATE INDEX calls_rows ON calls (run, stage, model);
CREATE INDEX calls_unpriced ON calls (run) WHERE held_nanos IS NULL;
CREATE TABLE totals (
  run TEXT NOT NULL, currency TEXT NOT NULL, nanos INTEGER NOT NULL DEFAULT 0, tokens INTEGER NOT NULL DEFAULT 0,
  held_nanos INTEGER NOT NULL DEFAULT 0, held_tokens INTEGER NOT NULL DEFAULT 0,
  maybe_nanos INTEGER NOT NULL DEFAULT 0, maybe_tokens INTEGER NOT NULL DEFAULT 0, PRIMARY KEY (run, currency)
) WITHOUT ROWID;
CREATE TABLE hits (
  session INTEGER NOT NULL, run TEXT NOT NULL, stage TEXT NOT NULL, model TEXT NOT NULL, currency TEXT NOT NULL,
  n INTEGER NOT NULL, tokens_in INTEGER NOT NULL, tokens_out INTEGER NOT NULL, nanos INTEGER,
  PRIMARY KEY (session, stage, model, currency)
) WITHOUT ROWID;
"""


@dataclass(frozen=True)
class Stored:
    """A received answer as it lies in the cache."""

    key: str
    response: Mapping[str, Any]
    """The response's body."""
    tokens_in: int
    tokens_out: int
    counted: bool
    """Whether the server counted the tokens; else they are estimates from the texts' lengths."""
    nanos: int | None
    """Cost in billionths of `currency`; None: not known."""
    currency: str
    seconds: float
    failure: str
    """Why the answer was unusable when it came; empty: good."""
    max_tokens: int
    """Tokens that it might have."""
    cut: bool = False
    """Unusable because it did not fit into them."""

    def counts(self, max_tokens: int) -> bool:
        """Whether this is what a server would say under that limit too, as far as can be told."""
        return not self.cut or self.max_tokens >= max_tokens


class AnswerCache:
    """One SQLite file of answers and of the calls that led to them (`Ledger` reads and writes those).

    Args:
        path: the file; made with its folder where it does not exist.

    Raises:
        FormatError: the file is something else, or of a newer version.
        RunError: it cannot be opened or written.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self._lock = threading.Lock()
        self._full = False
        with _sqlite_errors(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._connection = sqlite3.connect(self.path, timeout=60.0, isolation_level=None, check_same_thread=False)
            try:
                self._prepare()
            except BaseException:
                self._connection.close()
                raise

    def _prepare(self) -> None:
        connection = self._connection
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        application = connection.execute("PRAGMA application_id").fetchone()[0]
        tables = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
        if (tables or application) and application != APPLICATION:
            raise FormatError("not an answer cache", where=str(self.path), fix="Choose another file")
        if version > FORMAT:
            raise FormatError(f"an answer cache of version {version}; this Seamark reads up to {FORMAT}",
                              where=str(self.path), fix="Update Seamark or choose another file")  # fmt: skip
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = NORMAL")
        if version < FORMAT:
            with self._transaction():
                # Another process may have made the tables while this one waited for the lock.
                version = connection.execute("PRAGMA user_version").fetchone()[0]
                if version == 0:
                    for statement in _TABLES.split(";\n"):
                        connection.execute(statement)
                elif version == 1:
                    _from_version_1(connection)
                connection.execute(f"PRAGMA application_id = {APPLICATION}")
                connection.execute(f"PRAGMA user_version = {FORMAT}")

    @staticmethod
    def key(question: Mapping[str, Any]) -> str:
        """Where answers to a question lie: the SHA-256 of all but `max_tokens` that makes it this one, hexadecimal."""
        return digest({"format": FORMAT, **{name: value for name, value in question.items() if name != "max_tokens"}})

    def transact(self, ops: Sequence[Op], *, durable: bool) -> list[Any]:
        """Do all steps in one transaction and return what they return; if one raises, none is done.

        Args:
            durable: wait until the disk has it, so that not even a power cut loses it (what was paid). Otherwise it
                survives the process, but perhaps not the machine.
        """
        with self._lock, _sqlite_errors(self.path):
            if durable != self._full:
                self._connection.execute(f"PRAGMA synchronous = {'FULL' if durable else 'NORMAL'}")
                self._full = durable
            with self._transaction():
                return [op(self._connection) for op in ops]

    def get(self, key: str) -> list[Stored]:
        """All answers stored under a key, by rising limit of their tokens."""
        with self._lock, _sqlite_errors(self.path):
            return find_all(self._connection, key)

    def select(self, sql: str, arguments: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """Rows of a query."""
        with self._lock, _sqlite_errors(self.path):
            return self._connection.execute(sql, arguments).fetchall()

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._connection.execute("COMMIT")
        except BaseException:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            raise

    def close(self) -> None:
        """Close the file; safe to call twice."""
        with self._lock:
            self._connection.close()

    def __enter__(self) -> AnswerCache:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def find_all(connection: sqlite3.Connection, key: str) -> list[Stored]:
    """All answers stored under a key, by rising limit of their tokens."""
    rows = connection.execute(
        "SELECT response, tokens_in, tokens_out, counted, nanos, currency, seconds, failure, max_tokens, cut"
        " FROM answers WHERE key = ? ORDER BY max_tokens",
        (key,),
    ).fetchall()
    whole = ((key, json.loads(row[0]), row[1], row[2], bool(row[3]), *row[4:9], bool(row[9])) for row in rows)
    return [Stored(*values) for values in whole]


def find(connection: sqlite3.Connection, key: str, max_tokens: int) -> Stored | None:
    """The answer stored under a key that counts under a limit of tokens, one not cut off before others; or None."""
    fit = [answer for answer in find_all(connection, key) if answer.counts(max_tokens)]
    return min(fit, key=lambda answer: answer.cut) if fit else None


def keep(connection: sqlite3.Connection, answer: Stored, request: Mapping[str, Any], *, model: str, stage: str) -> None:
    """Store a received answer with the request it answers. One under the same limit that is there already stays."""
    # ASCII: JSON escapes can hold half surrogate pairs, which SQLite's UTF-8 cannot.
    response = json.dumps(answer.response, ensure_ascii=True, separators=(",", ":"))
    connection.execute(
        "INSERT OR IGNORE INTO answers VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (answer.key, answer.max_tokens, time.time(), model, stage, canonical_json(request), response, answer.tokens_in,
         answer.tokens_out, answer.counted, answer.nanos, answer.currency, answer.seconds, answer.failure, answer.cut),
    )  # fmt: skip


def _from_version_1(connection: sqlite3.Connection) -> None:
    """Version 1 had the limit of tokens in its keys, and not whether a call's tokens were counted by the server."""
    made = {words.split()[2]: words for words in map(str.strip, _TABLES.split(";\n")) if words}
    connection.execute("ALTER TABLE answers RENAME TO answers_1")
    connection.execute("ALTER TABLE answers_1 ADD COLUMN new_key TEXT")
    connection.execute(made["answers"])
    for key, request in connection.execute("SELECT key, request FROM answers_1").fetchall():
        question = json.loads(request)
        new_key = AnswerCache.key(question)
        connection.execute("UPDATE answers_1 SET new_key = ? WHERE key = ?", (new_key, key))
        connection.execute(
            "INSERT OR IGNORE INTO answers SELECT new_key, ?, at, model, stage, request, response, tokens_in,"
            " tokens_out, counted, nanos, currency, seconds, failure, failure LIKE 'cut off%' FROM answers_1"
            " WHERE key = ?",
            (question["max_tokens"], key),
        )
    connection.execute("ALTER TABLE calls ADD COLUMN counted INTEGER")
    connection.execute(
        "UPDATE calls SET (key, counted) = (SELECT new_key, counted FROM answers_1 a WHERE a.key = calls.key)"
        " WHERE key IN (SELECT key FROM answers_1)"
    )
    connection.execute("UPDATE calls SET counted = NULL WHERE state != 'answered'")
    connection.execute(made["calls_unpriced"])
    connection.execute("DROP TABLE answers_1")


def open_session(connection: sqlite3.Connection, run: str, model: str, server: str, longest_s: float) -> int:
    """Enter this process as one that asks; returns the session's number.

    Args:
        server: the server's address, without credentials.
        longest_s: no call of this session takes longer: one that has is lost, whatever the process says.
    """
    me = psutil.Process()
    values = (run, model, server, socket.gethostname(), me.pid, me.create_time(), time.time(), longest_s)
    found = connection.execute(
        "INSERT INTO sessions (run, model, server, host, pid, born, begun, longest_s) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        values,
    ).lastrowid
    assert found is not None  # noqa: S101 - an INSERT has one
    return found


def is_alive(host: str, pid: int, born: float, at: float, longest_s: float) -> bool:
    """Whether the process that began a call at `at` may still be waiting for its answer."""
    if time.time() - at > longest_s:
        return False
    if host != socket.gethostname():
        return True  # another container: its processes cannot be seen from here, its calls end by their age
    try:
        return abs(psutil.Process(pid).create_time() - born) < 2.0
    except psutil.NoSuchProcess:
        return False
    except psutil.Error:
        return True


class GroupCommit:
    """Steps of many coroutines in few transactions: while one is written to disk, the next ones gather.

    One commit that waits for the disk takes milliseconds; 32 requests in flight would otherwise queue for it.
    """

    def __init__(self, cache: AnswerCache) -> None:
        self._cache = cache
        self._waiting: list[tuple[Op, bool, asyncio.Future[Any]]] = []
        self._writer: asyncio.Task[None] | None = None

    async def do(self, op: Callable[[sqlite3.Connection], T], *, durable: bool = False) -> T:
        """Do one step; returns when it is committed. A caller that is cancelled meanwhile does not undo it."""
        return await asyncio.shield(self.post(op, durable=durable))

    def post(self, op: Callable[[sqlite3.Connection], T], *, durable: bool = False) -> asyncio.Future[T]:
        """Hand in one step without waiting; `flush` does."""
        done: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._waiting.append((op, durable, done))
        if self._writer is None or self._writer.done():
            self._writer = asyncio.create_task(self._write())
        return done

    async def flush(self) -> None:
        """Wait until everything is written."""
        while self._writer is not None and not self._writer.done():
            await asyncio.wait([self._writer])

    async def _write(self) -> None:
        while self._waiting:
            group, self._waiting = self._waiting, []
            ops, durable = [op for op, _, _ in group], any(durable for _, durable, _ in group)
            try:
                results = await asyncio.to_thread(self._cache.transact, ops, durable=durable)
            except Exception as e:
                for _, _, done in group:
                    done.set_exception(e)
                    done.exception()  # looked at: a caller that was cancelled leaves no warning behind
                continue
            for (_, _, done), result in zip(group, results, strict=True):
                done.set_result(result)


@contextlib.contextmanager
def _sqlite_errors(path: Path) -> Iterator[None]:
    """SQLite's errors as ours."""
    try:
        with disk_errors(path):
            yield
    except sqlite3.DatabaseError as e:
        if isinstance(e, sqlite3.IntegrityError | sqlite3.ProgrammingError):
            raise
        name = getattr(e, "sqlite_errorname", "")
        if name in ("SQLITE_NOTADB", "SQLITE_CORRUPT"):
            raise FormatError(f"not an answer cache ({e})", where=str(path), fix="Choose another file") from e
        fix = "Free some space and run again: what was received is kept" if name == "SQLITE_FULL" else ""
        raise RunError(f"the answer cache cannot be used ({e})", where=str(path), fix=fix) from e
