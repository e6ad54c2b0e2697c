"""Which texts lie in an atlas already, so that each is written once.

Texts are numbered in the order in which they come: a row that goes where its hash says would take a page of the file
for itself, and with a million texts that is most of the work. Which hashes the numbers stand for lies in blocks of
eight bytes a text, in the same order; a writer reads them once and holds them sorted.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Sequence
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

HASHED = 1 << 40
"""Ids from here on are hashes themselves: of texts that files of version 1 held."""


def text_digest(source: str, name: str, tokens: str) -> bytes:
    """The first 64 bits of a text's BLAKE2b."""
    return blake2b(f"{source}\0{name}\0{tokens}".encode(), digest_size=8).digest()


class KnownTexts:
    """Ids of a file's texts by their hashes; for a connection that writes. 16 bytes of memory for each text."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db
        self.forget()

    def forget(self) -> None:
        """What was written last was not committed: read it all again when it is needed."""
        self._next = 1
        self._levels: list[tuple[NDArray[np.int64], NDArray[np.int64]]] = []
        self._hashed: bool | None = None

    def number(self, digests: Sequence[bytes]) -> tuple[list[int], list[int]]:
        """Ids of texts by their digests, in a transaction; those that are not there are given one.

        Returns:
            The ids, and the indices of those whose texts are still to be written, each once.
        """
        self._read_on()
        wanted = (np.frombuffer(b"".join(digests), ">u8") >> np.uint64(1)).astype(np.int64)
        ids = self._find(wanted)
        missing = np.flatnonzero(ids == 0)
        if not len(missing):
            return ids.tolist(), []
        _, at, which = np.unique(wanted[missing], return_index=True, return_inverse=True)
        order = np.argsort(at)
        place = np.empty_like(order)
        place[order] = np.arange(len(order))
        ids[missing] = self._next + place[which]
        new = missing[at[order]]
        self._db.execute("INSERT INTO text_blocks(first, hashes) VALUES (?, ?)",
                         (self._next, wanted[new].astype("<i8").tobytes()))  # fmt: skip
        self._add(wanted[new])
        return ids.tolist(), new.tolist()

    def _read_on(self) -> None:
        """What other writers, or this one before, added."""
        if self._hashed is None:
            self._hashed = bool(self._db.execute("SELECT max(id) >= ? FROM texts", (HASHED,)).fetchone()[0])
        rows = self._db.execute("SELECT first, hashes FROM text_blocks WHERE first >= ? ORDER BY first", (self._next,))
        if blocks := rows.fetchall():
            self._next = blocks[0][0]
            self._add(np.frombuffer(b"".join(hashes for _, hashes in blocks), "<i8").astype(np.int64))

    def _add(self, hashes: NDArray[np.int64]) -> None:
        """The next texts. Sorted arrays, each at least twice as long as the next: few to look in, few to sort again."""
        order = np.argsort(hashes, kind="stable")
        self._levels.append((hashes[order], self._next + order))
        self._next += len(hashes)
        while len(self._levels) > 1 and len(self._levels[-2][0]) < 2 * len(self._levels[-1][0]):
            (a, a_ids), (b, b_ids) = self._levels[-2:]
            joined, ids = np.concatenate([a, b]), np.concatenate([a_ids, b_ids])
            order = np.argsort(joined, kind="stable")
            self._levels[-2:] = [(joined[order], ids[order])]

    def _find(self, wanted: NDArray[np.int64]) -> NDArray[np.int64]:
        """Ids; 0 for what is not there."""
        ids = np.zeros(len(wanted), np.int64)
        for hashes, numbers in self._levels:
            at = np.searchsorted(hashes, wanted).clip(max=len(hashes) - 1)
            hit = hashes[at] == wanted
            ids[hit] = numbers[at[hit]]
        if self._hashed:
            there = self._db.execute("SELECT id FROM texts WHERE id >= ? AND id IN (SELECT value FROM json_each(?))",
                                     (HASHED, json.dumps(wanted[ids == 0].tolist())))  # fmt: skip
            old = np.asarray([i for (i,) in there], np.int64)
            hit = (ids == 0) & np.isin(wanted, old)
            ids[hit] = wanted[hit]
        return ids
