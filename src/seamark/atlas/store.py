"""Reading an atlas: one SQLite file of explained features, from as many threads and processes as like."""

from __future__ import annotations

import contextlib
import json
import sqlite3
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from seamark.atlas import details, search, summary
from seamark.atlas.opening import open_to_read, sqlite_errors
from seamark.atlas.records import (
    Card,
    ContextKind,
    FeatureDetail,
    Found,
    Half,
    Mark,
    Overview,
    Query,
    Run,
    Sae,
    StoredContext,
)
from seamark.atlas.texts import storable
from seamark.errors import ConfigError, DataError

T = TypeVar("T")
MOST_CARDS = 1000
"""Cards that may be asked for at once."""
AT_ONCE = 500
"""Features that `iter_features` holds in memory."""


@dataclass(frozen=True)
class Points:
    """A landscape: features as points in the plane, arrays [n]."""

    ids: NDArray[np.int64]
    """Ids of the features, ascending."""
    x: NDArray[np.float32]
    y: NDArray[np.float32]
    sae: NDArray[np.int32]
    """Index into `saes`."""
    domain: NDArray[np.int32]
    """Index into `domains` of the first domain by name; −1: none."""
    score: NDArray[np.float32]
    """NaN: not available."""
    domains: tuple[str, ...]
    saes: tuple[str, ...]
    """Ids of the autoencoders."""


class _Connection:
    """A thread's connection, closed when the thread ends."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self.db = db

    def __del__(self) -> None:
        with contextlib.suppress(sqlite3.Error):
            self.db.close()


class Atlas:
    """An atlas, opened to read: nothing here can change the file.

    Safe with many threads: each has a connection of its own. Every answer is of one moment, whatever a writer does
    meanwhile. Close it, or use it in a `with`.

    All methods raise `FormatError` where the file is damaged, and `RunError` where it cannot be read or was closed.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._local = threading.local()
        self._open: weakref.WeakSet[_Connection] = weakref.WeakSet()
        self._lock = threading.Lock()
        self._closed = False
        self._counted: dict[str, tuple[int, Any]] = {}

    @classmethod
    def open(cls, path: str | PathLike[str]) -> Self:
        """Open the file of an atlas.

        Raises:
            ConfigError: there is no such file.
            FormatError: not an atlas, or one of another version.
            RunError: it cannot be read.
        """
        atlas = cls(Path(path))
        atlas._connection()
        return atlas

    def close(self) -> None:
        """Close all connections; safe to call twice."""
        with self._lock:
            self._closed = True
            held = list(self._open)
        for connection in held:
            connection.db.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _connection(self) -> sqlite3.Connection:
        """This thread's connection."""
        held: _Connection | None = getattr(self._local, "held", None)
        if held is None:
            if self._closed:
                raise sqlite3.ProgrammingError("closed")
            held = _Connection(open_to_read(self.path))
            with self._lock:
                self._open.add(held)
            self._local.held = held
        return held.db

    @contextlib.contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        """The connection, in a transaction that sees one moment."""
        with sqlite_errors(self.path):
            db = self._connection()
            if db.in_transaction:
                yield db
                return
            db.execute("BEGIN")
            try:
                yield db
            finally:
                with contextlib.suppress(sqlite3.Error):  # closed by another thread
                    db.execute("ROLLBACK")

    def _once(self, db: sqlite3.Connection, count: Callable[[sqlite3.Connection], T]) -> T:
        """What `count` finds, counted once for each state of the file, whoever writes to it."""
        changes = int(db.execute("SELECT value FROM meta WHERE name = 'changes'").fetchone()[0])
        known = self._counted.get(count.__name__)
        if known is None or known[0] != changes or db.total_changes:
            known = self._counted[count.__name__] = changes, count(db)
        found: T = known[1]
        return found

    def overview(self) -> Overview:
        """What is in it, in numbers; counted once for each state of the file."""
        with self._reading() as db:
            return self._once(db, summary.overview_of)

    def saes(self) -> tuple[Sae, ...]:
        """Its autoencoders, in the order of their numbers."""
        with self._reading() as db:
            return self._once(db, summary.saes_of)

    def domains(self) -> tuple[str, ...]:
        """Domains of its tags, by name."""
        with self._reading() as db:
            return tuple(name for (name,) in db.execute("SELECT DISTINCT domain FROM tags ORDER BY domain"))

    def runs(self) -> tuple[Run, ...]:
        """Where what is in it came from, first come first."""
        with self._reading() as db:
            return summary.runs_of(db)

    def counts(self) -> dict[str, int]:
        """Rows of its tables, and how many of the features are `explained`."""
        with self._reading() as db:
            return summary.counts_of(db)

    def feature_ids(self, sae: int) -> dict[int, int]:
        """{latent: id} of an autoencoder's features, by its number in this atlas; latents ascend."""
        with self._reading() as db:
            return dict(db.execute("SELECT latent, id FROM features WHERE sae = ? ORDER BY latent", (sae,)))

    def shown_texts(self) -> tuple[list[int], list[str], list[str]]:
        """Of all features with an explanation that has a text: ids, the texts shown first, and their languages."""
        with self._reading() as db:
            rows = db.execute(details.SHOWN_TEXTS).fetchall()
        return [row[0] for row in rows], [row[1] for row in rows], [row[2] for row in rows]

    def find(self, query: Query) -> Found:
        """A page of the features that a query finds.

        Up to 10,000 of them are counted exactly; of more, `total` is 10,000 and `capped` is set.
        """
        with self._reading() as db:
            page = search.search(db, query)
            cards = details.cards_of(db, page.ids)
        return Found(cards=tuple(cards), total=page.total, capped=page.capped, query=query)

    def card(self, sae: str, latent: int) -> Card | None:
        """A feature's card; None where there is no such feature."""
        with self._reading() as db:
            return details.card_of(db, storable(sae), latent)

    def cards(self, ids: Sequence[int]) -> list[Card]:
        """Cards of at most 1,000 features, in the order of `ids`; ids that are not in the atlas are left out.

        Raises:
            ConfigError: more than 1,000.
        """
        if len(ids) > MOST_CARDS:
            raise ConfigError(f"{len(ids):,} features are asked for at once", fix=f"Ask for at most {MOST_CARDS:,}")
        with self._reading() as db:
            return details.cards_of(db, ids)

    def cards_at(self, sae: str, latents: Iterable[int]) -> dict[int, Card]:
        """{latent: card} of features of one autoencoder, however many; those that are not in the atlas are left out."""
        with self._reading() as db:
            return details.cards_at(db, storable(sae), latents)

    def feature(self, sae: str, latent: int) -> FeatureDetail:
        """All that is known of a feature, but for its contexts.

        Raises:
            DataError: there is no such feature.
        """
        with self._reading() as db:
            card = details.card_of(db, storable(sae), latent)
            if card is None:
                raise DataError(f"no feature {sae}/{latent} in the atlas", where=str(self.path),
                                fix="Search for it: seamark atlas search")  # fmt: skip
            return details.features_of(db, [card.id], {s.id: s for s in self._once(db, summary.saes_of)})[0]

    def contexts(
        self, sae: str, latent: int, kind: ContextKind | None = None, limit: int = 50, half: Half | None = None
    ) -> list[StoredContext]:
        """Contexts of a feature: top ones by strength, then levels from 10 to 1, near misses, silent ones.

        Args:
            sae, latent: the feature; one that is not in the atlas has none.
            kind: only these.
            limit: at most so many.
            half: only of this half of the texts.
        """
        with self._reading() as db:
            return details.contexts_of(db, storable(sae), latent, kind, limit, half)

    def iter_features(self, query: Query | None = None) -> Iterator[FeatureDetail]:
        """All features that a query finds (None: all), by autoencoder and latent, whatever its sort and page.

        They come in portions of 500, each as it is when its turn comes: memory does not grow with the atlas.
        """
        with self._reading() as db:
            ids = np.asarray(search.ordered_ids(db, query or Query()), np.int64)
        for start in range(0, len(ids), AT_ONCE):
            with self._reading() as db:
                some = ids[start : start + AT_ONCE].tolist()
                found = details.features_of(db, some, {s.id: s for s in self._once(db, summary.saes_of)})
            yield from found

    def layouts(self) -> tuple[str, ...]:
        """Names of its landscapes."""
        with self._reading() as db:
            return summary.layouts_of(db)

    def points(self, layout: str) -> Points:
        """A landscape.

        Raises:
            DataError: there is no such.
        """
        with self._reading() as db:
            known = summary.layouts_of(db)
            if layout not in known:
                raise DataError(f"no landscape {layout!r}", where=str(self.path),
                                fix=f"There are: {', '.join(known) or 'none'}")  # fmt: skip
            saes = self._once(db, summary.saes_of)
            rows = db.execute("""
                SELECT p.feature, p.x, p.y, f.sae, f.domains, f.score FROM points p JOIN features f ON f.id = p.feature
                WHERE p.layout = (SELECT number FROM layouts WHERE name = ?) ORDER BY p.feature
            """, (storable(layout),)).fetchall()  # fmt: skip
        ids, x, y, numbers, domains, scores = zip(*rows, strict=True) if rows else ((), (), (), (), (), ())
        names, domain = _first_domains(domains)
        index = {sae.number: i for i, sae in enumerate(saes)}
        return Points(
            np.asarray(ids, np.int64), np.asarray(x, np.float32), np.asarray(y, np.float32),
            np.asarray([index[n] for n in numbers], np.int32), domain,
            np.asarray([np.nan if s is None else s for s in scores], np.float32), names, tuple(s.id for s in saes),
        )  # fmt: skip

    def marks(self, scan: str) -> dict[str, Mark]:
        """{pair id: mark} of a scan's pairs, by its key."""
        with self._reading() as db:
            rows = db.execute("SELECT pair, mark, note, time FROM marks WHERE scan = ? ORDER BY id", (storable(scan),))
            return {pair: Mark(mark=mark, note=note, time=time) for pair, mark, note, time in rows}

    def layout_about(self, layout: str) -> dict[str, object]:
        """How a landscape was made: method, seed, what was left out; empty where there is no such."""
        with self._reading() as db:
            row = db.execute("SELECT about FROM layouts WHERE name = ?", (storable(layout),)).fetchone()
        return {} if row is None else dict(json.loads(row[0]))


def _first_domains(domains: Sequence[str]) -> tuple[tuple[str, ...], NDArray[np.int32]]:
    """All domains by name, and for each feature the index of its first one, or −1."""
    split = [text.split("\n")[1:-1] for text in domains]
    names = tuple(sorted({name for some in split for name in some}))
    index = {name: i for i, name in enumerate(names)}
    return names, np.asarray([index[some[0]] if some else -1 for some in split], np.int32)
