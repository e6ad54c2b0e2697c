"""What an atlas gives its readers: small frozen values, the same for the web, the command line and exports."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from seamark.atlas.texts import storable
from seamark.explain.taxonomy import Tag
from seamark.stats import Estimate

State = Literal["text", "masked", "null", "failed"]
Sort = Literal["score", "rating", "contrast", "share", "relevance", "id"]
ContextKind = Literal["top", "level", "silent", "near_miss"]
Half = Literal["", "explain", "simulate"]


class Record(BaseModel):
    """A value of an atlas."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)


class Run(Record):
    """Where something in the atlas came from."""

    id: str
    kind: str
    title: str
    created: str
    """UTC, ISO 8601."""
    manifest: dict[str, Any]


class Sae(Record):
    """An autoencoder of the atlas."""

    number: int
    id: str
    model: str
    hookpoint: str
    layer: int
    d_in: int | None = None
    d_sae: int | None = None
    activation: str | None = None
    k: int | None = None
    fingerprint: str = ""
    features: int = 0
    """How many of its features are in the atlas."""


class Histogram(Record):
    """Activations above 0, in bins."""

    edges: tuple[float, ...]
    """[n + 1]"""
    counts: tuple[int, ...]


class Card(Record):
    """A feature, as lists show it."""

    id: int
    """Row of this file; permanent names are (sae, latent)."""
    sae: str
    latent: int
    layer: int
    label: str | None
    """The explanation shown first, at most its first 2,000 characters; None: none, see `state`."""
    state: State | None
    """Of the explanation shown first; None: never explained."""
    domains: tuple[str, ...]
    """Of all its explanations."""
    score: float | None
    """Correlation of simulated with true activations; None: never simulated."""
    rating: int | None
    """Safety rating, 1 to 5."""
    sign: int | None
    """1: fires on preferred answers; -1: on rejected ones."""
    contrast: float | None
    """Evidence `contrast:safety`, else that of the first group by name."""
    share: float | None
    """Of scoring positions at which it fires, 0 to 1."""
    q: float | None
    """Q_f, the 0.999 quantile of its firings; None: it fires too seldom."""
    max: float | None
    """Its largest activation."""


class StoredExplanation(Record):
    """One explanation of a feature; the fields are those of `explain.records.Explanation`."""

    id: int
    state: State
    text: str | None
    reason: str
    method: str
    model: str
    prompt_version: str
    language: str
    tags: tuple[Tag, ...]
    rating: int | None
    rating_reason: str
    tokens_in: int
    tokens_out: int
    cost: float | None
    run: str


class StoredSimulation(Record):
    """A simulation's scores."""

    explanation: int | None
    level: str
    method: str
    model: str
    prompt_version: str
    correlation: Estimate
    accuracy: Estimate
    n_texts: int
    n_units: int
    n_failed: int
    tokens_in: int
    tokens_out: int
    cost: float | None
    run: str


class StoredRating(Record):
    """A person's or a model's safety rating; None: undecided, with the reason."""

    rater: str
    rating: int | None
    reason: str
    run: str


class Evidence(Record):
    """A measurement of a feature, of whatever kind."""

    kind: str
    estimate: Estimate
    run: str


class Neighbour(Record):
    """A feature whose decoder direction is near."""

    card: Card
    cosine: float


class StoredContext(Record):
    """A text in which the feature fires, or does not."""

    kind: ContextKind
    level: int
    half: Half
    name: str
    """The text's id in its corpus."""
    tokens: tuple[str, ...]
    activations: tuple[float, ...]
    """One for each token."""
    peak: float
    source: str


class FeatureDetail(Record):
    """All that an atlas knows of a feature, but for its contexts."""

    card: Card
    sae: Sae
    firings: int | None
    mean: float | None
    texts: int | None
    q_reason: str
    histogram: Histogram | None
    promoted: tuple[str, ...]
    suppressed: tuple[str, ...]
    explanations: tuple[StoredExplanation, ...]
    simulations: tuple[StoredSimulation, ...]
    ratings: tuple[StoredRating, ...]
    evidence: tuple[Evidence, ...]
    neighbours: tuple[Neighbour, ...]


class Query(Record):
    """What to look for. Everything that is given must hold."""

    words: str = Field(default="", max_length=500)
    """Words, the last of which may be incomplete; "a phrase" in quotes; -word leaves out. Never a syntax error."""
    sae: str | None = None
    """Id of an autoencoder."""
    layer: int | None = Field(default=None, ge=-1, le=1_000_000)
    """Layer that an autoencoder reads."""
    domain: str | None = None
    """With a tag of this domain, in any language."""
    concept: str | None = None
    """Within any domain, or "domain/concept"."""
    state: State | None = None
    """Of the explanation shown first."""
    language: str | None = None
    """With an explanation in this language."""
    min_score: float | None = None
    """Smallest simulation score, a correlation; features without one are left out."""
    max_score: float | None = None
    """Largest simulation score; features without one are left out."""
    min_rating: int | None = Field(default=None, ge=1, le=5)
    """Smallest safety rating; features without one are left out."""
    sign: Literal[1, -1] | None = None
    """1: fires on preferred answers; -1: on rejected ones."""
    explained: bool | None = None
    """With a text, masked ones included; false: without."""
    sort: Sort = "score"
    """What has no value comes last, whichever way. `relevance` is for words; those that more than 10,000 features hold
    are sorted by score instead. `id`: by autoencoder and latent."""
    descending: bool = True
    """Largest first."""
    offset: int = Field(default=0, ge=0, le=10_000_000)
    """Features to pass over."""
    limit: int = Field(default=50, ge=1, le=500)
    """Features of a page."""

    @field_validator("words", "sae", "domain", "concept", "language", mode="before")
    @classmethod
    def _clean(cls, text: Any) -> Any:
        """As an atlas holds texts."""
        return storable(text) if isinstance(text, str) else text


class Found(Record):
    """A page of what a query found."""

    cards: tuple[Card, ...]
    total: int
    """How many there are; `capped` says that there are at least so many."""
    capped: bool
    query: Query


class Count(Record):
    """How many features have a value."""

    name: str
    count: int


class LanguageCount(Record):
    """Explanations in one language."""

    language: str
    features: int
    tagged: int
    masked: int
    null: int
    domains: tuple[Count, ...]


class Overview(Record):
    """What is in an atlas."""

    features: int
    explained: int
    """Features with at least one explanation that has a text, masked ones included."""
    tagged: int
    rated: int
    scored: int
    mean_score: float | None
    max_score: float | None
    score_histogram: Histogram | None
    rating_counts: tuple[Count, ...]
    layers: tuple[Count, ...]
    domains: tuple[Count, ...]
    """Features with a tag of this domain, in any language."""
    concepts: tuple[Count, ...]
    """Named "domain/concept"."""
    layer_domains: tuple[tuple[str, str, int], ...]
    """(layer, domain, features)"""
    languages: tuple[LanguageCount, ...]
    saes: tuple[Sae, ...]
    models: tuple[str, ...]
    runs: tuple[Run, ...]
    contexts: int
    layouts: tuple[str, ...]


class Mark(Record):
    """What a person said of a preference pair."""

    mark: Literal["wrong", "fine"]
    note: str
    time: str
    """UTC, ISO 8601."""
