"""Reading features from an atlas: cards, all that is known of some of them at once, and their contexts."""

from __future__ import annotations

import json
import sqlite3
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from itertools import compress, count
from math import isfinite
from typing import Any, TypeVar

from seamark.atlas.opening import sql
from seamark.atlas.records import (
    Card,
    ContextKind,
    Evidence,
    FeatureDetail,
    Half,
    Histogram,
    Neighbour,
    Sae,
    StoredContext,
    StoredExplanation,
    StoredRating,
    StoredSimulation,
)
from seamark.atlas.rows import SAE_COLUMNS
from seamark.errors import FormatError
from seamark.explain.taxonomy import Tag
from seamark.stats import Estimate

T = TypeVar("T")
LARGEST = 2**63
"""Above what SQLite counts to."""
_CARD = """
    SELECT f.id, s.id, f.latent, s.layer, f.label, f.state, f.domains, f.score, f.rating, f.sign, f.contrast, f.share,
        f.q, f.max
    FROM features f JOIN saes s ON s.number = f.sae WHERE
"""
FIRST = """
    CASE state WHEN 'text' THEN 0 WHEN 'masked' THEN 1 ELSE 2 END,
    CASE method WHEN 'llm' THEN 0 WHEN 'imported' THEN 1 ELSE 2 END,
    language <> 'en', id DESC
"""
"""Which explanation of a feature is shown first."""


def card_of(db: sqlite3.Connection, sae: str, latent: int) -> Card | None:
    """The card of a feature; None where the atlas has no such."""
    return cards_at(db, sae, [latent]).get(latent)


def cards_of(db: sqlite3.Connection, ids: Sequence[int]) -> list[Card]:
    """Cards of features in the order of `ids`; ids that are not in the atlas are left out."""
    among = json.dumps([i for i in ids if 0 <= i < LARGEST])
    rows = db.execute(sql(_CARD, "f.id IN (SELECT value FROM json_each(?))"), (among,))
    found = {card.id: card for card in map(_card, rows)}
    return [found[i] for i in ids if i in found]


def cards_at(db: sqlite3.Connection, sae: str, latents: Iterable[int]) -> dict[int, Card]:
    """{latent: card} of one autoencoder's features; latents that are not in the atlas are left out."""
    among = json.dumps([i for i in latents if 0 <= i < LARGEST])
    rows = db.execute(sql(_CARD, "s.id = ? AND f.latent IN (SELECT value FROM json_each(?))"), (sae, among))
    return {card.latent: card for card in map(_card, rows)}


def _card(row: Sequence[Any]) -> Card:
    feature, sae, latent, layer, label, state, domains, score, rating, sign, contrast, share, q, largest = row
    return Card(
        id=feature, sae=sae, latent=latent, layer=layer, label=label, state=state,
        domains=tuple(domains.split("\n")[1:-1]), score=score, rating=rating, sign=sign, contrast=contrast,
        share=share, q=q, max=largest,
    )  # fmt: skip


def sae_of(row: Sequence[Any]) -> Sae:
    """An autoencoder, from the columns of `saes` in their order and its number of features."""
    return Sae(**dict(zip(("number", *SAE_COLUMNS, "features"), row, strict=True)))


def features_of(db: sqlite3.Connection, ids: Sequence[int], saes: Mapping[str, Sae]) -> list[FeatureDetail]:
    """All that is known of features, in the order of `ids`; ids that are not in the atlas are left out."""
    among = json.dumps(list(ids))
    cards = {card.id: card for card in cards_of(db, ids)}
    measured = _by_feature(db, among, _MEASURED, tuple)
    tags = _by_explanation(db, among)
    explanations = _by_feature(db, among, _EXPLANATIONS, lambda row: _explanation(row, tags))
    simulations = _by_feature(db, among, _SIMULATIONS, _simulation)
    ratings = _by_feature(db, among, _RATINGS, _rating)
    evidence = _by_feature(db, among, _EVIDENCE, _measurement)
    near = _by_feature(db, among, _NEIGHBOURS, lambda row: (int(row[0]), float(row[1])))
    others = {card.id: card for card in cards_of(db, list({i for some in near.values() for i, _ in some}))}
    found = []
    for i in ids:
        if i not in cards:
            continue
        firings, mean, texts, q_reason, histogram, promoted, suppressed = measured[i][0]
        found.append(FeatureDetail(
            card=cards[i], sae=saes[cards[i].sae], firings=firings, mean=mean, texts=texts, q_reason=q_reason,
            histogram=None if histogram is None else Histogram(**_json(histogram)),
            promoted=tuple(_json(promoted or "[]")), suppressed=tuple(_json(suppressed or "[]")),
            explanations=tuple(explanations.get(i, ())), simulations=tuple(simulations.get(i, ())),
            ratings=tuple(ratings.get(i, ())), evidence=tuple(evidence.get(i, ())),
            neighbours=tuple(Neighbour(card=others[j], cosine=c) for j, c in near.get(i, ()) if j in others),
        ))  # fmt: skip
    return found


_MEASURED = """
    SELECT id, firings, mean, texts, q_reason, histogram, promoted, suppressed FROM features
    WHERE id IN (SELECT value FROM json_each(?))
"""
_EXPLANATIONS = sql("""
    SELECT feature, id, state, text, reason, method, model, prompt_version, language, rating, rating_reason, tokens_in,
        tokens_out, cost, run
    FROM explanations WHERE feature IN (SELECT value FROM json_each(?)) ORDER BY feature,
""", FIRST)  # fmt: skip
_SIMULATIONS = """
    SELECT feature, explanation, level, method, model, prompt_version, correlation, low, high, reason, accuracy,
        accuracy_low, accuracy_high, accuracy_reason, n_texts, n_units, n_failed, tokens_in, tokens_out, cost, run
    FROM simulations WHERE feature IN (SELECT value FROM json_each(?))
    ORDER BY feature, level <> 'segment', level <> 'token', id DESC
"""
_RATINGS = """
    SELECT feature, rater, rating, reason, run FROM ratings WHERE feature IN (SELECT value FROM json_each(?))
    ORDER BY feature, rater, id
"""
_EVIDENCE = """
    SELECT feature, kind, value, low, high, n, reason, run FROM evidence
    WHERE feature IN (SELECT value FROM json_each(?)) ORDER BY feature, kind, id DESC
"""
_NEIGHBOURS = """
    SELECT feature, other, cosine FROM neighbours WHERE feature IN (SELECT value FROM json_each(?))
    ORDER BY feature, rank
"""
_TAGS = """
    SELECT explanation, domain, concept FROM tags WHERE feature IN (SELECT value FROM json_each(?))
    ORDER BY explanation, rank
"""

SHOWN_TEXTS = sql("""
    SELECT feature, text, language
    FROM (SELECT feature, text, language, row_number() OVER (PARTITION BY feature ORDER BY
""", FIRST, """) AS place FROM explanations WHERE state = 'text') WHERE place = 1 ORDER BY feature
""")  # fmt: skip


def _by_feature(
    db: sqlite3.Connection, among: str, select: str, make: Callable[[Sequence[Any]], T]
) -> dict[int, list[T]]:
    """{feature: what `make` makes of the rest of each of its rows}."""
    found: dict[int, list[T]] = {}
    for feature, *row in db.execute(select, (among,)):
        found.setdefault(feature, []).append(make(row))
    return found


def _by_explanation(db: sqlite3.Connection, among: str) -> dict[int, list[Tag]]:
    found: dict[int, list[Tag]] = {}
    for explanation, domain, concept in db.execute(_TAGS, (among,)):
        found.setdefault(explanation, []).append(Tag(domain, concept or None))
    return found


def _explanation(row: Sequence[Any], tags: Mapping[int, Iterable[Tag]]) -> StoredExplanation:
    names = ("id", "state", "text", "reason", "method", "model", "prompt_version", "language", "rating",
             "rating_reason", "tokens_in", "tokens_out", "cost", "run")  # fmt: skip
    return StoredExplanation(**dict(zip(names, row, strict=True)), tags=tuple(tags.get(row[0], ())))


def _simulation(row: Sequence[Any]) -> StoredSimulation:
    explanation, level, method, model, prompt_version, *rest = row
    value, low, high, reason, accuracy, accuracy_low, accuracy_high, accuracy_reason, n_texts, n_units, *rest = rest
    n_failed, tokens_in, tokens_out, cost, run = rest
    return StoredSimulation(
        explanation=explanation, level=level, method=method, model=model, prompt_version=prompt_version,
        correlation=Estimate(value=value, low=low, high=high, n=n_units, reason=reason),
        accuracy=Estimate(value=accuracy, low=accuracy_low, high=accuracy_high, n=n_texts, reason=accuracy_reason),
        n_texts=n_texts, n_units=n_units, n_failed=n_failed, tokens_in=tokens_in, tokens_out=tokens_out, cost=cost,
        run=run,
    )  # fmt: skip


def _rating(row: Sequence[Any]) -> StoredRating:
    rater, rating, reason, run = row
    return StoredRating(rater=rater, rating=rating, reason=reason, run=run)


def _measurement(row: Sequence[Any]) -> Evidence:
    kind, value, low, high, n, reason, run = row
    return Evidence(kind=kind, estimate=Estimate(value=value, low=low, high=high, n=n, reason=reason), run=run)


def contexts_of(
    db: sqlite3.Connection, sae: str, latent: int, kind: ContextKind | None, limit: int, half: Half | None
) -> list[StoredContext]:
    """Contexts of a feature: top ones first, then levels from 10 down, near misses, silent ones."""
    if not 0 <= latent < LARGEST:
        return []
    rows = db.execute("""
        SELECT c.kind, c.level, c.half, t.name, t.tokens, c.at, c.peak, t.source
        FROM contexts c JOIN texts t ON t.id = c.text
        WHERE c.feature = (SELECT f.id FROM features f JOIN saes s ON s.number = f.sae WHERE s.id = ? AND f.latent = ?)
            AND (?3 IS NULL OR c.kind = ?3) AND (?4 IS NULL OR c.half = ?4)
        ORDER BY CASE c.kind WHEN 'top' THEN 0 WHEN 'level' THEN 1 WHEN 'near_miss' THEN 2 ELSE 3 END, c.level DESC,
            CASE c.kind WHEN 'top' THEN -c.peak END, c.half, c.rank
        LIMIT ?5
    """, (sae, latent, kind, half, max(0, min(limit, LARGEST - 1)))).fetchall()  # fmt: skip
    return [_context(row) for row in rows]


def _context(row: Sequence[Any]) -> StoredContext:
    kind, level, half, name, tokens, at, peak, source = row
    strings = tuple(_json(tokens))
    return StoredContext(kind=kind, level=level, half=half, name=name, tokens=strings,
                         activations=unpack_activations(at, len(strings)), peak=peak, source=source)  # fmt: skip


def pack_activations(activations: Sequence[float]) -> tuple[float, bytes]:
    """The largest activation, 0 for none; and all of them, little-endian: the int32 positions of those that are not 0,
    then their float32 values. Raises `OverflowError` or `struct.error` where one is no finite number."""
    values = list(filter(None, activations))  # most are 0: C does this four times as fast as a comprehension
    if not isfinite(sum(values)):
        raise OverflowError("not finite")
    peak = max(values, default=0.0)
    if peak < 0 and len(values) < len(activations):
        peak = 0.0
    return float(peak), _packed(len(values)).pack(*compress(count(), activations), *values)


@cache
def _packed(n: int) -> struct.Struct:
    return struct.Struct(f"<{n}i{n}f")


def unpack_activations(packed: bytes, n: int) -> tuple[float, ...]:
    """The activations at n tokens. `FormatError` where `packed` does not tell them."""
    n_values, rest = divmod(len(packed), 8)
    if rest:
        raise FormatError("a damaged atlas (activations of a context)", fix="Build it again")
    numbers = _packed(n_values).unpack(packed)
    values = [0.0] * n
    for position, value in zip(numbers[:n_values], numbers[n_values:], strict=True):
        if not 0 <= position < n:
            raise FormatError("a damaged atlas (activations of a context)", fix="Build it again")
        values[position] = value
    return tuple(values)


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as e:
        raise FormatError(f"a damaged atlas (no JSON: {e})", fix="Build it again") from e
