"""What `AtlasWriter` is given: a row of each table, by the names of its columns, cheap enough for millions."""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite
from typing import Any, NamedTuple

from seamark.atlas.records import ContextKind, Half, Histogram, State
from seamark.atlas.texts import storable, to_json
from seamark.errors import DataError
from seamark.explain.taxonomy import Tag
from seamark.stats import Estimate


class FeatureRow(NamedTuple):
    """A feature and what was measured of it; None leaves what the atlas has."""

    latent: int
    firings: int | None = None
    """Scoring positions at which it fires."""
    share: float | None = None
    """Their share of all scoring positions, 0-1."""
    mean: float | None = None
    """Mean activation where it fires."""
    max: float | None = None
    texts: int | None = None
    """Texts in which it fires."""
    q: float | None = None
    q_reason: str = ""
    """Why there is no Q_f; empty where there is, or where nothing is known."""
    histogram: Histogram | None = None
    promoted: Sequence[str] | None = None
    suppressed: Sequence[str] | None = None


class ExplanationRow(NamedTuple):
    """An explanation. One of the same feature, method, model, prompt version, language and run is replaced."""

    feature: int
    """Its id in the atlas."""
    text: str | None
    run: str
    method: str
    """llm, imported, lexical."""
    state: State | None = None
    """None: `text` where there is a text, else `failed`."""
    reason: str = ""
    model: str = ""
    prompt_version: str = ""
    language: str = "en"
    tags: Sequence[Tag] = ()
    rating: int | None = None
    rating_reason: str = ""
    tokens_in: int = 0
    tokens_out: int = 0
    cost: float | None = None


class SimulationRow(NamedTuple):
    """A simulation's scores. One of the same feature, explanation, level, method, model, prompt version and run is
    replaced."""

    feature: int
    run: str
    level: str
    """segment, token; imported: as named there."""
    method: str
    correlation: Estimate
    accuracy: Estimate
    explanation: int | None = None
    """The id of the explanation; None: not known which."""
    model: str = ""
    prompt_version: str = ""
    n_texts: int = 0
    n_units: int = 0
    n_failed: int = 0
    tokens_in: int = 0
    tokens_out: int = 0
    cost: float | None = None


class RatingRow(NamedTuple):
    """A safety rating. One of the same feature, rater and run is replaced."""

    feature: int
    rater: str
    """human:<name> for people; else what rated, such as `statistical`."""
    rating: int | None
    run: str
    reason: str = ""


class EvidenceRow(NamedTuple):
    """A measurement of a feature. One of the same feature, kind and run is replaced."""

    feature: int
    kind: str
    """contrast:<group>, difference:<group>, direct_effect, causal_effect, detector:<domain>, …"""
    estimate: Estimate
    run: str


class ContextRow(NamedTuple):
    """A text in which a feature fires or does not. One of the same feature, kind, level, half and rank is replaced."""

    feature: int
    kind: ContextKind
    rank: int
    """From 0, strongest or most alike first."""
    name: str
    """The text's id in its corpus."""
    tokens: Sequence[str]
    activations: Sequence[float]
    """One for each token."""
    level: int = 0
    """1 … 10 where the kind is `level`."""
    half: Half = ""
    source: str = ""


class NeighbourRow(NamedTuple):
    """A feature whose decoder direction is near."""

    feature: int
    rank: int
    """From 0, nearest first."""
    other: int
    cosine: float


def finite(value: float | None, what: str) -> float | None:
    """The number as it is. `DataError` for NaN and infinity, which SQLite would keep as nothing at all."""
    if value is not None and not isfinite(value):
        raise DataError(f"{what} is {value}", fix="Give a number, or none with the reason why")
    return None if value is None else float(value)


def feature_values(row: FeatureRow) -> tuple[Any, ...]:
    """Columns of `features`, but for its autoencoder, in the order of `INSERT_FEATURES`."""
    h = row.histogram
    histogram = None if h is None else to_json({"edges": h.edges, "counts": h.counts})
    promoted, suppressed = (None if side is None else to_json(list(side)) for side in (row.promoted, row.suppressed))
    numbers = (finite(getattr(row, name), f"{name} of latent {row.latent}") for name in ("share", "mean", "max", "q"))
    share, mean, largest, q = numbers
    return (row.latent, row.firings, share, mean, largest, row.texts, q, storable(row.q_reason), promoted, suppressed,
            histogram)  # fmt: skip


def explanation_values(row: ExplanationRow) -> tuple[Any, ...]:
    """Columns of `explanations`, in the order of `INSERT_EXPLANATIONS`."""
    state = row.state or ("text" if row.text is not None else "failed")
    if (row.text is None) != (state in ("null", "failed")):
        raise DataError(f"an explanation of state {state} {'without' if row.text is None else 'with'} a text",
                        where=f"feature {row.feature}")  # fmt: skip
    text = None if row.text is None else storable(row.text)
    return (
        row.feature, text, row.run, storable(row.method), state, storable(row.reason), storable(row.model),
        storable(row.prompt_version), storable(row.language), row.rating, storable(row.rating_reason), row.tokens_in,
        row.tokens_out, finite(row.cost, "cost"),
    )  # fmt: skip


def simulation_values(row: SimulationRow) -> tuple[Any, ...]:
    """Columns of `simulations`, in the order of `INSERT_SIMULATIONS`."""
    for name, estimate in (("correlation", row.correlation), ("accuracy", row.accuracy)):
        if estimate.value is not None and not -1 - 1e-9 <= estimate.value <= 1 + 1e-9:  # NaN is in no range
            raise DataError(f"{name} {estimate.value} lies outside −1 to 1", where=f"feature {row.feature}")
    return (
        row.feature, row.explanation, storable(row.level), storable(row.method), storable(row.model),
        storable(row.prompt_version), *estimate_values(row.correlation)[:3], storable(row.correlation.reason),
        *estimate_values(row.accuracy)[:3], storable(row.accuracy.reason), row.n_texts, row.n_units, row.n_failed,
        row.tokens_in, row.tokens_out, finite(row.cost, "cost"), row.run,
    )  # fmt: skip


def estimate_values(estimate: Estimate) -> tuple[Any, ...]:
    """(value, low, high, n, reason)."""
    value, low, high = (finite(v, "an estimate") for v in (estimate.value, estimate.low, estimate.high))
    return value, low, high, estimate.n, storable(estimate.reason)


INSERT_FEATURES = """
    INSERT INTO features(sae, latent, firings, share, mean, max, texts, q, q_reason, promoted, suppressed, histogram)
    VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
    ON CONFLICT(sae, latent) DO UPDATE SET
        firings = coalesce(excluded.firings, firings), share = coalesce(excluded.share, share),
        mean = coalesce(excluded.mean, mean), max = coalesce(excluded.max, max),
        texts = coalesce(excluded.texts, texts),
        q_reason = CASE WHEN excluded.q IS NOT NULL OR excluded.q_reason <> '' THEN excluded.q_reason ELSE q_reason END,
        q = CASE WHEN excluded.q_reason <> '' THEN NULL ELSE coalesce(excluded.q, q) END,
        promoted = coalesce(excluded.promoted, promoted), suppressed = coalesce(excluded.suppressed, suppressed),
        histogram = coalesce(excluded.histogram, histogram)
"""
INSERT_EXPLANATIONS = """
    INSERT INTO explanations(feature, text, run, method, state, reason, model, prompt_version, language, rating,
        rating_reason, tokens_in, tokens_out, cost)
    VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
    ON CONFLICT(feature, method, model, prompt_version, language, run) DO UPDATE SET
        text = excluded.text, state = excluded.state, reason = excluded.reason, rating = excluded.rating,
        rating_reason = excluded.rating_reason, tokens_in = excluded.tokens_in, tokens_out = excluded.tokens_out,
        cost = excluded.cost
    RETURNING id
"""
INSERT_SIMULATIONS = """
    INSERT OR REPLACE INTO simulations(feature, explanation, level, method, model, prompt_version, correlation, low,
        high, reason, accuracy, accuracy_low, accuracy_high, accuracy_reason, n_texts, n_units, n_failed, tokens_in,
        tokens_out, cost, run)
    VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
"""
INSERT_RATINGS = """
    INSERT INTO ratings(feature, rater, rating, reason, run) VALUES (?, ?, ?, ?, ?)
    ON CONFLICT(feature, rater, run) DO UPDATE SET rating = excluded.rating, reason = excluded.reason
"""
INSERT_EVIDENCE = """
    INSERT INTO evidence(feature, kind, value, low, high, n, reason, run) VALUES (?, ?, ?, ?, ?, ?, ?, ?)
    ON CONFLICT(feature, kind, run) DO UPDATE SET value = excluded.value, low = excluded.low, high = excluded.high,
        n = excluded.n, reason = excluded.reason
"""
SAE_COLUMNS = ("id", "model", "hookpoint", "layer", "d_in", "d_sae", "activation", "k", "fingerprint")
SELECT_SAE = (
    "SELECT number, id, model, hookpoint, layer, d_in, d_sae, activation, k, fingerprint FROM saes WHERE id = ?"
)
INSERT_SAE = """
    INSERT INTO saes(number, id, model, hookpoint, layer, d_in, d_sae, activation, k, fingerprint)
    VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
    ON CONFLICT(number) DO UPDATE SET d_in = excluded.d_in, d_sae = excluded.d_sae, activation = excluded.activation,
        k = excluded.k, fingerprint = excluded.fingerprint
"""
INSERT_CONTEXTS = """
    INSERT OR REPLACE INTO contexts(feature, kind, level, rank, half, text, peak, at) VALUES (?, ?, ?, ?, ?, ?, ?, ?)
"""
