"""What is in an atlas, in numbers."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Sequence
from typing import Any

import numpy as np

from seamark.atlas.details import sae_of
from seamark.atlas.opening import sql
from seamark.atlas.records import Count, Histogram, LanguageCount, Overview, Run, Sae

BINS = 40
"""Bins of the scores from −1 to 1; those outside the scores there are, are left out."""


def saes_of(db: sqlite3.Connection) -> tuple[Sae, ...]:
    """Autoencoders in the order of their numbers."""
    rows = db.execute("""
        SELECT number, id, model, hookpoint, layer, d_in, d_sae, activation, k, fingerprint,
            (SELECT count(*) FROM features WHERE sae = number)
        FROM saes ORDER BY number
    """)
    return tuple(sae_of(row) for row in rows)


def runs_of(db: sqlite3.Connection) -> tuple[Run, ...]:
    """Runs in the order in which they came."""
    rows = db.execute("SELECT id, kind, title, created, manifest FROM runs ORDER BY rowid")
    return tuple(Run(id=i, kind=kind, title=title, created=created, manifest=json.loads(manifest))
                 for i, kind, title, created, manifest in rows)  # fmt: skip


def layouts_of(db: sqlite3.Connection) -> tuple[str, ...]:
    """Names of the layouts, in the order in which they came."""
    return tuple(name for (name,) in db.execute("SELECT name FROM layouts ORDER BY number"))


def overview_of(db: sqlite3.Connection) -> Overview:
    """Count everything; some seconds for a million features."""
    scores = np.asarray(db.execute("SELECT score FROM features WHERE score IS NOT NULL").fetchall(), np.float64).ravel()
    features, explained, tagged, rated = db.execute("""
        SELECT count(*), coalesce(sum(explained), 0), coalesce(sum(domains <> ''), 0), count(rating)
        FROM features INDEXED BY features_listed
    """).fetchone()
    return Overview(
        features=features, explained=explained, tagged=tagged, rated=rated, scored=len(scores),
        mean_score=float(scores.mean()) if len(scores) else None,
        max_score=float(scores.max()) if len(scores) else None, score_histogram=score_histogram(scores),
        rating_counts=_counts(db, "SELECT rating, count(*) FROM features INDEXED BY features_listed "
                                  "WHERE rating IS NOT NULL GROUP BY rating ORDER BY rating DESC"),
        layers=_counts(db, "SELECT s.layer, count(*) FROM features f INDEXED BY features_listed "
                           "JOIN saes s ON s.number = f.sae GROUP BY s.layer ORDER BY s.layer"),
        domains=_counts(db, "SELECT domain, count(DISTINCT feature) AS n FROM tags GROUP BY domain "
                            "ORDER BY n DESC, domain"),
        concepts=_counts(db, "SELECT domain || '/' || concept AS name, count(DISTINCT feature) AS n FROM tags "
                             "WHERE concept <> '' GROUP BY domain, concept ORDER BY n DESC, name"),
        layer_domains=_layer_domains(db), languages=_languages(db), saes=saes_of(db),
        models=tuple(name for (name,) in db.execute("SELECT name FROM models ORDER BY rowid")), runs=runs_of(db),
        contexts=db.execute("SELECT count(*) FROM contexts").fetchone()[0], layouts=layouts_of(db),
    )  # fmt: skip


def counts_of(db: sqlite3.Connection) -> dict[str, int]:
    """{table: rows}, and how many features are `explained`."""
    tables = ("features", "explanations", "tags", "simulations", "ratings", "evidence", "contexts", "texts",
              "neighbours", "points", "marks", "runs", "saes")  # fmt: skip
    found = {name: int(db.execute(sql("SELECT count(*) FROM", name)).fetchone()[0]) for name in tables}
    explained = db.execute("SELECT count(*) FROM features INDEXED BY features_listed WHERE explained").fetchone()
    return found | {"explained": int(explained[0])}


def score_histogram(scores: np.ndarray[Any, np.dtype[np.float64]]) -> Histogram | None:
    """Scores in bins of 0.05, from the first that holds one to the last; None without scores."""
    if not len(scores):
        return None
    edges = np.arange(-BINS // 2, BINS // 2 + 1) / (BINS / 2)
    counts = np.histogram(np.clip(scores, -1.0, 1.0), edges)[0]
    first, last = np.flatnonzero(counts)[[0, -1]].tolist()
    return Histogram(edges=tuple(edges[first : last + 2].tolist()), counts=tuple(counts[first : last + 1].tolist()))


def _counts(db: sqlite3.Connection, select: str) -> tuple[Count, ...]:
    return tuple(Count(name=str(name), count=n) for name, n in db.execute(select))


def _layer_domains(db: sqlite3.Connection) -> tuple[tuple[str, str, int], ...]:
    rows: Sequence[tuple[int, str, int]] = db.execute("""
        SELECT s.layer, t.domain, count(DISTINCT t.feature)
        FROM tags t JOIN features f ON f.id = t.feature JOIN saes s ON s.number = f.sae
        GROUP BY s.layer, t.domain ORDER BY s.layer, t.domain
    """).fetchall()
    return tuple((str(layer), domain, n) for layer, domain, n in rows)


def _languages(db: sqlite3.Connection) -> tuple[LanguageCount, ...]:
    """Features by the languages of their explanations, most of them first."""
    domains: dict[str, list[Count]] = {}
    for language, domain, n in db.execute("""
        SELECT e.language, t.domain, count(DISTINCT t.feature) AS n FROM tags t JOIN explanations e
        ON e.id = t.explanation GROUP BY e.language, t.domain ORDER BY n DESC, t.domain
    """):
        domains.setdefault(language, []).append(Count(name=domain, count=n))
    tagged: dict[str, int] = dict(db.execute("""
        SELECT e.language, count(DISTINCT t.feature) FROM tags t JOIN explanations e ON e.id = t.explanation
        GROUP BY e.language
    """))  # fmt: skip
    rows = db.execute("""
        SELECT language, count(DISTINCT feature) AS n, count(DISTINCT CASE WHEN state = 'masked' THEN feature END),
            count(DISTINCT CASE WHEN state = 'null' THEN feature END)
        FROM explanations GROUP BY language ORDER BY n DESC, language
    """)
    return tuple(
        LanguageCount(language=language, features=n, tagged=tagged.get(language, 0), masked=masked, null=null,
                      domains=tuple(domains.get(language, ())))
        for language, n, masked, null in rows
    )  # fmt: skip
