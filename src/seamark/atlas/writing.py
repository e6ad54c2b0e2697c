"""Writing an atlas: rows of every table, in transactions that are whole or not at all.

What lists show of a feature (`derive.py`) is brought up to date whenever a transaction ends, so readers never see it
differ from what it is derived from.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import sqlite3
import struct
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from math import isfinite
from os import PathLike
from pathlib import Path
from typing import Any, Literal, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from seamark.atlas import derive
from seamark.atlas.details import pack_activations
from seamark.atlas.known_texts import KnownTexts, text_digest
from seamark.atlas.opening import immediate, open_to_write, sql, sqlite_errors
from seamark.atlas.records import Mark, Run, Sae
from seamark.atlas.rows import (
    INSERT_CONTEXTS,
    INSERT_EVIDENCE,
    INSERT_EXPLANATIONS,
    INSERT_FEATURES,
    INSERT_RATINGS,
    INSERT_SAE,
    INSERT_SIMULATIONS,
    SAE_COLUMNS,
    SELECT_SAE,
    ContextRow,
    EvidenceRow,
    ExplanationRow,
    FeatureRow,
    NeighbourRow,
    RatingRow,
    SimulationRow,
    estimate_values,
    explanation_values,
    feature_values,
    finite,
    simulation_values,
)
from seamark.atlas.store import Atlas
from seamark.atlas.texts import list_json, storable, to_json
from seamark.errors import ConfigError, DataError

R = TypeVar("R", FeatureRow, ExplanationRow, SimulationRow, RatingRow, EvidenceRow, ContextRow, NeighbourRow)
S = TypeVar("S", SimulationRow, RatingRow, EvidenceRow)
KNOWN_TEXTS = 1 << 18
"""Texts whose ids are kept in memory by their hash in this process, so that they need not be put into JSON again."""
TEXT = 5
"""The column of `INSERT_CONTEXTS` that holds the text."""
CONTEXTS_AT_ONCE = 1 << 13
"""Contexts whose columns are held in memory."""


class AtlasWriter(Atlas):
    """An atlas, opened to write; reading works as ever, and sees what is not committed yet.

    Readers go on meanwhile. A second writer waits for ten seconds at most. One connection for all threads, one at a
    time.

    All methods that write are a transaction of their own outside of `transaction`, and raise `DataError` where rows do
    not fit (no such feature or run, numbers that are not finite), `RunError` where the disk is full or another process
    is writing.
    """

    def __init__(self, path: Path, db: sqlite3.Connection) -> None:
        super().__init__(path)
        self._db = db
        self._alone = threading.RLock()
        self._touched: set[int] = set()
        self._texts: dict[int, int] = {}
        self._known = KnownTexts(db)

    @classmethod
    def open(cls, path: str | PathLike[str], *, create: bool = False) -> Self:
        """Open the file of an atlas to write; one of an earlier version is brought up to date.

        Args:
            path: the file.
            create: make it, and its folder, where there is none.

        Raises:
            ConfigError: there is no such file, and `create` is off.
            FormatError: not an atlas, or one of a later version.
            RunError: another process is writing to it; the disk is full or cannot be written.
        """
        return cls(Path(path), open_to_write(Path(path), create=create))

    def close(self) -> None:
        """Move the log into the file, if nobody reads it, and close; safe to call twice."""
        with self._alone, contextlib.suppress(sqlite3.Error):
            self._db.execute("PRAGMA busy_timeout = 0")
            self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        self._db.close()

    def _connection(self) -> sqlite3.Connection:
        return self._db

    @contextlib.contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        with self._alone, super()._reading() as db:
            yield db

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """All that is written in it is committed at its end, or nothing where it fails. One in another is part of it.

        Raises:
            RunError: another process is writing, or the disk is full.
        """
        with self._transaction():
            yield

    @contextlib.contextmanager
    def _transaction(self, *, counts: bool = True) -> Iterator[None]:
        """`counts`: readers are to look again at what they counted."""
        with self._alone, sqlite_errors(self.path):
            if self._db.in_transaction:
                yield
                return
            try:
                with immediate(self._db):
                    yield
                    derive.refresh(self._db, self._touched)
                    self._db.execute("UPDATE meta SET value = value + ? WHERE name = 'changes'", (int(counts),))
            except BaseException:
                self._texts.clear()  # some of them were not written after all
                self._known.forget()
                raise
            finally:
                self._touched.clear()

    def refresh(self, ids: Iterable[int] | None = None) -> None:
        """Derive scores, labels and words of features again (None: all). Every transaction does it for those it wrote
        about; call this after an update of Seamark that changed how."""
        with self.transaction():
            derive.refresh(self._db, ids)

    def add_run(self, run: Run) -> None:
        """Add a run, or bring what is known of it up to date."""
        values = (run.id, run.kind, run.title, run.created)
        with self.transaction():
            self._db.execute("""
                INSERT INTO runs(id, kind, title, created, manifest) VALUES (?, ?, ?, ?, ?)
                ON CONFLICT(id) DO UPDATE SET kind = excluded.kind, title = excluded.title, created = excluded.created,
                    manifest = excluded.manifest
            """, (*map(storable, values), to_json(run.manifest)))  # fmt: skip

    def add_model(self, name: str, fingerprint: str = "") -> None:
        """Add a model, or its fingerprint. `DataError` where another model has this name."""
        with self.transaction():
            known = self._db.execute("SELECT fingerprint FROM models WHERE name = ?", (storable(name),)).fetchone()
            if known and known[0] and fingerprint and known[0] != fingerprint:
                raise DataError(f"another model called {name!r} is in the atlas", where=str(self.path),
                                fix="Make an atlas of its own for it")  # fmt: skip
            self._db.execute("""
                INSERT INTO models(name, fingerprint) VALUES (?, ?)
                ON CONFLICT(name) DO UPDATE SET fingerprint = max(fingerprint, excluded.fingerprint)
            """, (storable(name), storable(fingerprint)))  # fmt: skip

    def add_sae(self, sae: Sae) -> int:
        """Add an autoencoder and its model, or what was not known of it; its number in this atlas. That of `sae` does
        not matter.

        Raises:
            DataError: another autoencoder is called so: fingerprint, width or place differ.
        """
        new = {name: storable(v) if isinstance(v := getattr(sae, name), str) else v for name in SAE_COLUMNS}
        with self.transaction():
            self.add_model(sae.model)
            row = self._db.execute(SELECT_SAE, (new["id"],)).fetchone()
            if row is None:
                number = self._db.execute("SELECT coalesce(max(number), -1) + 1 FROM saes").fetchone()[0]
            else:
                number, *values = row
                known = {name: v for name, v in zip(SAE_COLUMNS, values, strict=True) if v not in (None, "")}
                if odd := [name for name, v in known.items() if new[name] not in (None, "", v)]:
                    raise DataError(f"another autoencoder is called {sae.id!r} in the atlas (other {', '.join(odd)})",
                                    where=str(self.path),
                                    fix="Name them apart, or make an atlas of its own for it")  # fmt: skip
                new |= known
            self._db.execute(INSERT_SAE, (number, *new.values()))
            return int(number)

    def add_features(self, sae: int, rows: Iterable[FeatureRow | Mapping[str, Any]]) -> dict[int, int]:
        """Add features of an autoencoder, or what was measured of them: numbers that are given replace what is there.

        Returns:
            {latent: id}.

        Raises:
            DataError: no such autoencoder, or no such latent in it.
        """
        given = [_row(FeatureRow, row) for row in rows]
        latents = [int(row.latent) for row in given]
        with self.transaction():
            known = self._db.execute("SELECT id, d_sae FROM saes WHERE number = ?", (sae,)).fetchone()
            if known is None:
                raise DataError(f"no autoencoder {sae} in the atlas", where=str(self.path), fix="Add it first")
            d_sae = known[1] if known[1] is not None else 2**63
            if odd := [latent for latent in latents if not 0 <= latent < d_sae]:
                raise DataError(f"no latent {odd[0]}; there are {d_sae:,}", where=known[0])
            self._db.executemany(INSERT_FEATURES, ((sae, *feature_values(row)) for row in given))
            ids = dict(self._db.execute("SELECT latent, id FROM features WHERE sae = ? AND latent IN "
                                        "(SELECT value FROM json_each(?))", (sae, json.dumps(latents))))  # fmt: skip
            self._touched |= set(ids.values())
            return ids

    def add_explanations(self, rows: Iterable[ExplanationRow | Mapping[str, Any]]) -> list[int]:
        """Add explanations with their tags; their ids, in the order of `rows`."""
        found: list[int] = []
        tags: list[tuple[Any, ...]] = []
        with self.transaction():
            for row in (_row(ExplanationRow, row) for row in rows):
                number = int(self._db.execute(INSERT_EXPLANATIONS, explanation_values(row)).fetchone()[0])
                self._touched.add(row.feature)
                found.append(number)
                tags += [(number, storable(tag.domain), storable(tag.concept or ""), row.feature, rank)
                         for rank, tag in enumerate(row.tags)]  # fmt: skip
            self._db.executemany("DELETE FROM tags WHERE explanation = ?", ((number,) for number in found))
            self._db.executemany("INSERT OR IGNORE INTO tags(explanation, domain, concept, feature, rank) "
                                 "VALUES (?, ?, ?, ?, ?)", tags)  # fmt: skip
        return found

    def add_simulations(self, rows: Iterable[SimulationRow | Mapping[str, Any]]) -> None:
        """Add scores of simulations."""
        with self.transaction():
            self._db.executemany(INSERT_SIMULATIONS, map(simulation_values, self._touching(SimulationRow, rows)))

    def add_ratings(self, rows: Iterable[RatingRow | Mapping[str, Any]]) -> None:
        """Add safety ratings of people or machines."""
        with self.transaction():
            self._db.executemany(INSERT_RATINGS, (
                (row.feature, storable(row.rater), row.rating, storable(row.reason), row.run)
                for row in self._touching(RatingRow, rows)
            ))  # fmt: skip

    def add_evidence(self, rows: Iterable[EvidenceRow | Mapping[str, Any]]) -> None:
        """Add measurements of any kind."""
        with self.transaction():
            self._db.executemany(INSERT_EVIDENCE, (
                (row.feature, storable(row.kind), *estimate_values(row.estimate), row.run)
                for row in self._touching(EvidenceRow, rows)
            ))  # fmt: skip

    def _touching(self, kind: type[S], rows: Iterable[S | Mapping[str, Any]]) -> Iterator[S]:
        for row in (_row(kind, row) for row in rows):
            self._touched.add(row.feature)
            yield row

    def add_contexts(self, rows: Iterable[ContextRow | Mapping[str, Any]]) -> None:
        """Add texts in which features fire, or do not. Equal texts lie in the file once.

        Raises:
            DataError: not as many activations as tokens, or one that is not finite.
        """
        given = iter(rows)
        with self.transaction():
            while some := self._columns(islice(given, CONTEXTS_AT_ONCE)):
                self._db.executemany(INSERT_CONTEXTS, zip(*some, strict=True))

    def _columns(self, rows: Iterable[ContextRow | Mapping[str, Any]]) -> list[list[Any]]:
        """Columns of `contexts`, empty for no rows; texts that are not there yet are written.

        No row is held: Python's garbage collector would look through thousands of them again and again.
        """
        columns: list[list[Any]] = [[] for _ in range(8)]
        add = [column.append for column in columns]
        waiting: dict[int, tuple[str, str, str]] = {}
        for given in rows:
            row = given if type(given) is ContextRow else _row(ContextRow, given)
            feature, kind, rank, name, tokens, _, level, half, source = row
            peak, at = _packed(row)
            key = hash((source, name, tokens if type(tokens) is tuple else tuple(tokens)))
            if key not in self._texts and key not in waiting:
                waiting[key] = storable(name), list_json(tokens), storable(source)
            for append, value in zip(add, (feature, kind, level, rank, half, key, peak, at), strict=True):
                append(value)
        if waiting:
            self._add_texts(waiting)
        columns[TEXT] = [self._texts[key] for key in columns[TEXT]]
        if len(self._texts) >= KNOWN_TEXTS:
            self._texts.clear()
        return columns if columns[TEXT] else []

    def _add_texts(self, waiting: Mapping[int, tuple[str, str, str]]) -> None:
        """Write those texts (name, tokens, source) that are not there yet, and keep the ids of all of them."""
        texts = list(waiting.values())
        ids, new = self._known.number([text_digest(source, name, tokens) for name, tokens, source in texts])
        self._db.executemany("INSERT INTO texts(id, name, tokens, source) VALUES (?, ?, ?, ?)",
                             ((ids[i], *texts[i]) for i in new))  # fmt: skip
        self._texts.update(zip(waiting, ids, strict=True))

    def without_contexts(self, features: Iterable[int]) -> set[int]:
        """Those of some features that have no context."""
        with self._reading() as db:
            rows = db.execute("""
                SELECT value FROM json_each(?) WHERE NOT EXISTS (SELECT 1 FROM contexts WHERE feature = value)
            """, (json.dumps(list(features)),))  # fmt: skip
            return {feature for (feature,) in rows}

    def clear_contexts(self, features: Iterable[int]) -> None:
        """Remove the contexts of features. Texts that no feature has any more stay in the file."""
        with self.transaction():
            self._db.executemany("DELETE FROM contexts WHERE feature = ?", ((i,) for i in features))

    def add_neighbours(self, rows: Iterable[NeighbourRow | Mapping[str, Any]]) -> None:
        """Add neighbours; features that are given some lose those they had."""
        given = [_row(NeighbourRow, row) for row in rows]
        with self.transaction():
            self._db.executemany("DELETE FROM neighbours WHERE feature = ?", ((i,) for i in {r.feature for r in given}))
            self._db.executemany("INSERT INTO neighbours(feature, rank, other, cosine) VALUES (?, ?, ?, ?)", (
                (row.feature, row.rank, row.other, finite(row.cosine, "a cosine")) for row in given
            ))  # fmt: skip

    def set_layout(
        self, name: str, about: Mapping[str, Any], ids: Sequence[int] | NDArray[np.int64],
        x: Sequence[float] | NDArray[np.float32], y: Sequence[float] | NDArray[np.float32], run: str | None = None,
    ) -> None:  # fmt: skip
        """Replace a landscape: a point for each feature of `ids`. Points that are not finite are left out."""
        places = zip(*(np.asarray(column).tolist() for column in (ids, x, y)), strict=True)
        with self.transaction():
            number = self._db.execute("""
                INSERT INTO layouts(name, about, run) VALUES (?, ?, ?)
                ON CONFLICT(name) DO UPDATE SET about = excluded.about, run = excluded.run RETURNING number
            """, (storable(name), to_json(dict(about)), run)).fetchone()[0]  # fmt: skip
            self._db.execute("DELETE FROM points WHERE layout = ?", (number,))
            self._db.executemany("INSERT INTO points(layout, feature, x, y) VALUES (?, ?, ?, ?)", (
                (number, i, a, b) for i, a, b in places if isfinite(a) and isfinite(b)
            ))  # fmt: skip

    def explanation_ids(self, run: str | None) -> dict[int, int]:
        """{feature: id of its explanation} of a run; without such a run, of the features with one explanation alone."""
        with self._reading() as db:
            found = dict(db.execute("SELECT feature, id FROM explanations WHERE run = ?", (run,)))
            return found or dict(
                db.execute("SELECT feature, min(id) FROM explanations GROUP BY feature HAVING count(*) = 1")
            )

    def clear_run(self, run: str) -> None:
        """Remove simulations, ratings and evidence of a run. The run itself, its features and their contexts stay."""
        with self.transaction():
            for table in ("simulations", "ratings", "evidence"):
                gone = self._db.execute(sql("DELETE FROM", table, "WHERE run = ? RETURNING feature"), (run,))
                self._touched |= {feature for (feature,) in gone}

    def clear_explanations(self, run: str, but: Iterable[int] = ()) -> None:
        """Remove explanations of a run, but for some by id, and the simulations of those that go."""
        with self.transaction():
            gone = self._db.execute("""
                DELETE FROM explanations WHERE run = ? AND id NOT IN (SELECT value FROM json_each(?)) RETURNING feature
            """, (run, json.dumps(list(but))))  # fmt: skip
            self._touched |= {feature for (feature,) in gone}

    def mark(self, scan: str, pair: str, mark: Literal["wrong", "fine"] | None, note: str = "") -> Mark | None:
        """Mark a pair of a scan, by the scan's key, in place of an earlier mark; None takes the mark away.

        Raises:
            ConfigError: another mark than wrong or fine.
        """
        if mark not in ("wrong", "fine", None):
            raise ConfigError(f"no mark {mark!r}", fix="Use wrong or fine")
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        with self._transaction(counts=False):
            if mark is None:
                self._db.execute("DELETE FROM marks WHERE scan = ? AND pair = ?", (storable(scan), storable(pair)))
                return None
            self._db.execute("""
                INSERT INTO marks(scan, pair, mark, note, time) VALUES (?, ?, ?, ?, ?) ON CONFLICT(scan, pair)
                DO UPDATE SET mark = excluded.mark, note = excluded.note, time = excluded.time
            """, (storable(scan), storable(pair), mark, storable(note), now))  # fmt: skip
        return Mark(mark=mark, note=storable(note), time=now)


def _packed(row: ContextRow) -> tuple[float, bytes]:
    """`pack_activations`, or what is wrong with them."""
    if len(row.activations) != len(row.tokens):
        raise DataError("not as many activations as tokens", where=f"feature {row.feature}, text {row.name}")
    try:
        return pack_activations(row.activations)
    except (OverflowError, struct.error) as e:
        raise DataError(f"no activations ({e})", where=f"feature {row.feature}, text {row.name}") from e


def _row(kind: type[R], row: R | Mapping[str, Any]) -> R:
    if type(row) is kind:  # the check for a mapping takes as long as writing the row
        return row
    return kind(**row) if isinstance(row, Mapping) else row
