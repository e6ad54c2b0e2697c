"""What the token view gives: a text, token by token, with the features that fire there. Sparse, and plain JSON."""

from __future__ import annotations

from typing import Literal, NamedTuple

from seamark.atlas.records import Record, State
from seamark.model.generation import Generation

SpanName = Literal["prompt", "response", "template"]
Kind = Literal["reward", "language", "encoder"]


class About(Record):
    """What is known of a feature."""

    label: str | None = None
    state: State | None = None
    """Of its explanation; None: never explained."""
    domains: tuple[str, ...] = ()
    score: float | None = None
    rating: int | None = None


class Firing(NamedTuple):
    """A feature at a token."""

    feature: int
    """Its place in `Inspection.features`."""
    activation: float
    """z, in the autoencoder's units; above 0."""
    normalised: float | None
    """z / Q_f; None: Q_f is not available."""


class InspectedToken(Record):
    """A token and what fires there."""

    text: str
    """The piece of text it stands for, white space included; a special token's own name. Empty where it only holds
    part of a character that another token shows."""
    id: int
    special: bool
    """Written by template or tokenizer."""
    span: SpanName
    firings: tuple[Firing, ...]
    """The strongest of each hookpoint: by normalised activation over all hookpoints, then those without Q_f by z."""
    n_firing: int
    """Features that fire here, those left out too."""


class InspectedFeature(About):
    """A feature that fires somewhere in the text."""

    sae: str
    latent: int
    hookpoint: str
    q: float | None
    """Q_f; None: not available."""


class WatchedFeature(InspectedFeature):
    """A feature that was asked for, at every token."""

    activations: tuple[float, ...]
    """z at each token; 0 where it is silent."""


class InspectedSae(Record):
    """An autoencoder that was read."""

    id: str
    hookpoint: str
    d_sae: int
    with_q: int
    """Features with a Q_f."""


class HeatRow(Record):
    """One domain at one hookpoint."""

    domain: str
    hookpoint: str
    values: tuple[float | None, ...]
    """For each token the largest normalised activation of a feature with a tag of the domain; 0: none fires; None: only
    features without Q_f do."""


class GeneratedAnswer(Record):
    """How the answer came about."""

    how: Generation
    stopped: Literal["end", "length", "time"]
    tokens: int


class Inspection(Record):
    """A text, token by token."""

    model: str
    kind: Kind
    tokens: tuple[InspectedToken, ...]
    features: tuple[InspectedFeature, ...]
    """Those that `tokens` name, by autoencoder and latent."""
    watched: tuple[WatchedFeature, ...]
    """The features asked for, whether they are among the strongest or not."""
    heat: tuple[HeatRow, ...]
    """Rows of domains that fire anywhere; every feature that fires counts, shown or not."""
    saes: tuple[InspectedSae, ...]
    top: int
    """Features shown of each token and hookpoint, and as many again of those without Q_f."""
    truncated: int
    """Tokens that the text lost at its beginning."""
    reward: float | None
    reward_reason: str
    """Why there is no reward."""
    generated: GeneratedAnswer | None
    read: str
    """Where activations come from."""
    caveats: tuple[str, ...] = ()
    """What to bear in mind."""
