"""What lists show of a feature, derived from its explanations, simulations, ratings, tags and evidence."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Sequence
from statistics import median_low
from typing import Any, NamedTuple

from seamark.atlas.details import FIRST
from seamark.atlas.opening import sql
from seamark.atlas.texts import listed, searchable

AT_ONCE = 1000
LABEL = 2000
"""Characters of an explanation that lists may show."""
PEOPLE = "human:"
"""How the names of raters begin that are people."""


class _Explained(NamedTuple):
    id: int
    state: str
    text: str | None
    language: str
    rating: int | None


def refresh(db: sqlite3.Connection, ids: Iterable[int] | None = None) -> None:
    """Derive the columns of features that lists are made from, and the words that they are found by.

    - Shown first: an explanation with a text before a masked one before none; of a language model before an imported
      one before a lexical one; English before others; then the newest.
    - `score`: the correlation of a simulation of that explanation, by segments before by tokens before others; only if
      it was never simulated, of any simulation of the feature.
    - `rating`: the lower median of people's; without any, that of the explanation shown first; else of another
      explanation; else the newest of any rater.
    - `contrast`: of the group `safety` if there is one, else of the first group by name; `sign` is its sign.
    - `domains`, `languages`: of all its explanations.

    Args:
        db: in a transaction.
        ids: of features; None: all.
    """
    found = [row[0] for row in db.execute("SELECT id FROM features ORDER BY id")] if ids is None else sorted(ids)
    for start in range(0, len(found), AT_ONCE):
        _refresh(db, found[start : start + AT_ONCE])


def _refresh(db: sqlite3.Connection, ids: Sequence[int]) -> None:
    among = json.dumps(list(ids))
    explanations = {i: [_Explained(*row) for row in rows] for i, rows in _rows(db, _EXPLANATIONS, among).items()}
    tags, simulations = _rows(db, _TAGS, among), _rows(db, _SIMULATIONS, among)
    ratings, contrasts = _rows(db, _RATINGS, among), _rows(db, _CONTRASTS, among)
    columns: list[tuple[Any, ...]] = []
    words: list[tuple[int, str]] = []
    for feature, sae, layer, latent in db.execute(_NAMES, (among,)).fetchall():
        mine = explanations.get(feature, [])
        first = mine[0] if mine else None
        contrast = next((value for (value,) in contrasts.get(feature, ())), None)
        columns.append((
            _score(first, simulations.get(feature, [])), _rating(mine, ratings.get(feature, [])),
            None if not contrast else 1 if contrast > 0 else -1, contrast,
            int(any(e.state in ("text", "masked") for e in mine)), first.state if first else None,
            listed([domain for domain, _ in tags.get(feature, ())]), listed([e.language for e in mine]),
            _label(first.text) if first and first.text is not None else None, feature,
        ))  # fmt: skip
        texts = [e.text for e in mine if e.state == "text" and e.text is not None]
        named = dict.fromkeys(name for tag in tags.get(feature, ()) for name in tag if name)
        words.append((feature, searchable("\n".join([*dict.fromkeys(texts), *named, f"{layer}_{latent}", sae]))))
    db.executemany(_UPDATE, columns)
    db.executemany("INSERT OR REPLACE INTO search(rowid, words) VALUES (?, ?)", words)


_NAMES = """
    SELECT f.id, s.id, s.layer, f.latent FROM features f JOIN saes s ON s.number = f.sae
    WHERE f.id IN (SELECT value FROM json_each(?))
"""
_EXPLANATIONS = sql("""
    SELECT feature, id, state, text, language, rating FROM explanations
    WHERE feature IN (SELECT value FROM json_each(?)) ORDER BY feature,
""", FIRST)  # fmt: skip
_TAGS = """
    SELECT feature, domain, concept FROM tags WHERE feature IN (SELECT value FROM json_each(?))
    ORDER BY explanation, rank
"""
_SIMULATIONS = """
    SELECT feature, explanation, correlation FROM simulations WHERE feature IN (SELECT value FROM json_each(?))
    ORDER BY feature, level <> 'segment', level <> 'token', id DESC
"""
_RATINGS = """
    SELECT feature, rater, rating FROM ratings WHERE feature IN (SELECT value FROM json_each(?)) AND rating IS NOT NULL
    ORDER BY id DESC
"""
_CONTRASTS = """
    SELECT feature, value FROM evidence
    WHERE feature IN (SELECT value FROM json_each(?)) AND substr(kind, 1, 9) = 'contrast:' AND value IS NOT NULL
    ORDER BY feature, kind <> 'contrast:safety', kind, id DESC
"""
_UPDATE = """
    UPDATE features SET score = ?, rating = ?, sign = ?, contrast = ?, explained = ?, state = ?, domains = ?,
        languages = ?, label = ?
    WHERE id = ?
"""


def _rows(db: sqlite3.Connection, select: str, among: str) -> dict[int, list[tuple[Any, ...]]]:
    """{feature: the rest of each of its rows}."""
    found: dict[int, list[tuple[Any, ...]]] = {}
    for feature, *rest in db.execute(select, (among,)):
        found.setdefault(feature, []).append(tuple(rest))
    return found


def _score(first: _Explained | None, simulations: Sequence[tuple[Any, ...]]) -> float | None:
    mine = [value for explanation, value in simulations if first is not None and explanation == first.id]
    candidates = mine or [value for _, value in simulations]
    return next((value for value in candidates if value is not None), None)


def _rating(explanations: Sequence[_Explained], ratings: Sequence[tuple[Any, ...]]) -> int | None:
    people = [rating for rater, rating in ratings if rater.startswith(PEOPLE)]
    if people:
        return int(median_low(people))
    given = [e.rating for e in explanations] + [rating for _, rating in ratings]
    return next((rating for rating in given if rating is not None), None)


def _label(text: str) -> str:
    return text if len(text) <= LABEL else text[: LABEL - 1] + "…"
