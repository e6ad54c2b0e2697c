"""From a `Query` to the features that it finds.

The language of words is small and forgives everything: words, all of which must be there, the last of which may be
incomplete; "phrases" in quotes; -word and -"phrase" leave out. Chinese, Japanese and Korean characters are words of
their own, and a run of them is a phrase. Every word reaches SQLite as a quoted string, so nothing is syntax there.

Lists are made in one of two ways. What few features match is fetched whole, counted and sorted. Else an index is walked
in the order of the list until the page is full; what more than `CAP` match is counted up to there, and the total is
given as a bound.
"""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Sequence
from typing import Any, NamedTuple

from seamark.atlas import schema
from seamark.atlas.opening import sql
from seamark.atlas.records import Query
from seamark.atlas.texts import listed, searchable

CAP = 10_000
"""Features up to which a list is counted exactly."""
PROBED = 2_000
"""Features that are looked up in the word index one by one; for more, all that hold the words are gathered first."""

_ITEM = re.compile(r'(?P<minus>-*)(?:"(?P<phrase>[^"]*)"?|(?P<word>\S+))')
_TOKEN = re.compile(r"[^\W_]+")

_KEYS = {
    "score": ("score", "features_by_score"),
    "rating": ("rating, score", "features_by_rating"),
    "contrast": ("contrast", "features_by_contrast"),
    "share": ("share", "features_by_share"),
    "id": ("sae, latent", "features_listed"),
}
"""{sort: (columns, index that lies in their order)}; then by id."""


class Words(NamedTuple):
    """What is to be found, in SQLite's language; None: nothing is asked for."""

    match: str | None
    without: str | None
    probing: bool = True
    """Whether one feature is soon looked up: all that an incomplete word may stand for is gathered at each look, unless
    it has so many letters that the word index knows such beginnings."""


class Filter(NamedTuple):
    """Conditions on `features AS f`."""

    where: str
    values: dict[str, Any]


class Page(NamedTuple):
    """Ids of a page of a list."""

    ids: list[int]
    total: int
    capped: bool


def parse_words(words: str) -> Words:
    """The words of a query; what holds no letter and no digit is left out."""
    found: list[str] = []
    without: list[str] = []
    probing = True
    for item in _ITEM.finditer(words):
        quoted = item["phrase"] is not None
        text = searchable(item["phrase"] if quoted else item["word"])
        tokens = _TOKEN.findall(text)
        if not tokens:
            continue
        phrase = '"' + text.replace('"', '""') + '"'
        if item["minus"]:
            without.append(phrase)
            continue
        typing = not quoted and item.end() == len(words) and text.endswith(tokens[-1]) and len(tokens[-1]) > 1
        probing = probing and (not typing or len(tokens[-1]) in schema.BEGINNINGS)
        found.append(f"{phrase} *" if typing else phrase)
    excluded = " OR ".join(without) or None
    if not found:
        return Words(None, excluded)
    match = " ".join(found)
    return Words(f"({match}) NOT ({excluded})" if excluded else match, None, probing)


def parse_filter(query: Query, without: str | None = None) -> Filter:
    """All conditions of a query but its words; `without`: what the words must not be."""
    conditions = {
        "f.sae = (SELECT number FROM saes WHERE id = :sae)": query.sae,
        "f.sae IN (SELECT number FROM saes WHERE layer = :layer)": query.layer,
        "instr(f.domains, :domain)": None if query.domain is None else listed([query.domain]),
        "f.state = :state": query.state,
        "instr(f.languages, :language)": None if query.language is None else listed([query.language]),
        "f.score >= :min_score": query.min_score,
        "f.score <= :max_score": query.max_score,
        "f.rating >= :min_rating": query.min_rating,
        "f.sign = :sign": query.sign,
        "f.explained = :explained": None if query.explained is None else int(query.explained),
        "f.id NOT IN (SELECT rowid FROM search WHERE search MATCH :without)": without,
    }
    kept = {text: value for text, value in conditions.items() if value is not None}
    values: dict[str, Any] = {text.rsplit(":", 1)[1].rstrip(")"): value for text, value in kept.items()}
    where = list(kept)
    if query.concept is not None:
        before, _, concept = query.concept.rpartition("/")
        domain = before or query.domain
        where.append(
            sql("f.id IN (SELECT feature FROM tags WHERE concept = :concept", "AND domain = :of)" if domain else ")")
        )
        values |= {"concept": concept, "of": domain}
    return Filter(" AND ".join(where) or "true", values)


def search(db: sqlite3.Connection, query: Query) -> Page:
    """The page of a list that a query asks for."""
    words = parse_words(query.words)
    given = parse_filter(query, words.without)
    if words.match is None:
        common = given.where == "true" and _more_than(db, "SELECT 1 FROM features", {}, CAP)
        rows = None if common else _rows(db, query, given)
        return _walked(db, query, given) if rows is None else _sorted(query, rows)
    found = given._replace(values=given.values | {"match": words.match})
    n = _counted(db, found.values, CAP + 1)
    gather = found._replace(where=f"{found.where} AND {_GATHER}")
    if n <= CAP:
        # To look at thousands of rows takes longer than to walk an index until as many features were met as are shown.
        soon = n > PROBED and query.sort != "relevance" and given.where == "true"
        return _walked(db, query, gather, total=n) if soon else _sorted(query, _matching_rows(db, query, found))
    # Relevance says little of words that are everywhere, and would take a look at every feature.
    query = query.model_copy(update={"sort": "score"}) if query.sort == "relevance" else query
    probe = found._replace(where=f"{found.where} AND {_PROBE}") if words.probing else None
    if given.where != "true":
        few = probe and not _more_than(db, sql("SELECT 1", _LISTED, found.where), found.values, PROBED)
        rows = _rows(db, query, probe if probe and few else gather)
        if rows is not None:
            return _sorted(query, rows)
    nearest = _nearest(db, query, found) if probe else None
    return nearest or _walked(db, query, gather)


def ordered_ids(db: sqlite3.Connection, query: Query) -> list[int]:
    """Ids of all features that a query finds, by autoencoder and latent, whatever its sort and page."""
    words = parse_words(query.words)
    given = parse_filter(query, words.without)
    where = given.where if words.match is None else f"{given.where} AND {_GATHER}"
    rows = db.execute(
        sql("SELECT f.id", _LISTED, where, "ORDER BY f.sae, f.latent"), given.values | {"match": words.match}
    )
    return [row[0] for row in rows]


_LISTED = "FROM features f INDEXED BY features_listed WHERE"
_PROBE = "EXISTS (SELECT 1 FROM search WHERE search MATCH :match AND rowid = f.id)"
_GATHER = "f.id IN (SELECT rowid FROM search WHERE search MATCH :match)"


def _more_than(db: sqlite3.Connection, select: str, values: dict[str, Any], n: int) -> bool:
    counted = sql("SELECT count(*) > :n FROM (", select, "LIMIT :n + 1)")
    return bool(db.execute(counted, {**values, "n": n}).fetchone()[0])


def _rows(db: sqlite3.Connection, query: Query, given: Filter) -> list[tuple[Any, ...]] | None:
    """(id, what it is sorted by) of all features that match; None where they are more than `CAP`."""
    columns = _KEYS.get(query.sort, _KEYS["score"])[0]
    select = sql("SELECT f.id,", columns, _LISTED, given.where, "LIMIT :most")
    rows = db.execute(select, given.values | {"most": CAP + 1}).fetchall()
    return None if len(rows) > CAP else rows


def _matching_rows(db: sqlite3.Connection, query: Query, found: Filter) -> list[tuple[Any, ...]]:
    """The same for words that few enough features hold."""
    columns = "-bm25(search)" if query.sort == "relevance" else _KEYS[query.sort][0]
    if query.sort == "relevance" and found.where == "true":
        return db.execute(
            sql("SELECT rowid,", columns, "FROM search WHERE search MATCH :match"), found.values
        ).fetchall()
    source = "FROM search CROSS JOIN features f ON f.id = search.rowid WHERE search MATCH :match AND"
    return db.execute(sql("SELECT f.id,", columns, source, found.where), found.values).fetchall()


def _sorted(query: Query, rows: Sequence[tuple[Any, ...]]) -> Page:
    """A page of rows (id, key, …): by key and then by id, upwards where keys go down; without a key, last."""

    def key(row: tuple[Any, ...]) -> tuple[Any, ...]:
        return (*(float("-inf") if v is None else v for v in row[1:]), -row[0])

    present = sorted((row for row in rows if row[1] is not None), key=key, reverse=query.descending)
    missing = sorted((row for row in rows if row[1] is None), key=key, reverse=query.descending)
    page = [*present, *missing][query.offset : query.offset + query.limit]
    return Page([row[0] for row in page], len(rows), False)


def _counted(db: sqlite3.Connection, values: dict[str, Any], most: int) -> int:
    """How many features hold words; `most` where they are more."""
    counted = "SELECT count(*) FROM (SELECT 1 FROM search WHERE search MATCH :match LIMIT :most)"
    return int(db.execute(counted, {**values, "most": most}).fetchone()[0])


def _walk(query: Query, where: str) -> str:
    """The features that match, in the order of the list, by the index that lies so."""
    columns, index = _KEYS.get(query.sort, _KEYS["score"])
    first, *others = columns.split(", ")
    way, back = ("DESC", "ASC") if query.descending else ("ASC", "DESC")
    order = ", ".join([f"f.{first} {way} NULLS LAST", *(f"f.{name} {way}" for name in others)])
    order += "" if query.sort == "id" else f", f.id {back}"
    return sql("SELECT f.id FROM features f INDEXED BY", index, "WHERE", where, "ORDER BY", order)


def _nearest(db: sqlite3.Connection, query: Query, given: Filter) -> Page | None:
    """A page of features that hold words most do, looked for among the first `PROBED`; None where they do not fill it.

    `given`: without the words.
    """
    if query.offset + query.limit > PROBED:
        return None
    values = given.values | {"limit": query.limit, "offset": query.offset, "probed": PROBED}
    nearest = sql("SELECT f.id FROM (", _walk(query, given.where), "LIMIT :probed) f WHERE", _PROBE)
    ids = [row[0] for row in db.execute(sql(nearest, "LIMIT :limit OFFSET :offset"), values)]
    return Page(ids, CAP, True) if len(ids) == query.limit else None


def _walked(db: sqlite3.Connection, query: Query, given: Filter, total: int | None = None) -> Page:
    """A page by the index of its order; `total` where they were counted, else they are more than `CAP`."""
    values = given.values | {"limit": query.limit, "offset": query.offset}
    rows = db.execute(sql(_walk(query, given.where), "LIMIT :limit OFFSET :offset"), values)
    return Page([row[0] for row in rows], CAP if total is None else total, total is None)
