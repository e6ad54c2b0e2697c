"""A feature on a card: its note, whether its texts are sensitive, one context with shades, and a sketch of its bins."""

from __future__ import annotations

from collections.abc import Iterable
from math import ceil

from pydantic import BaseModel, ConfigDict

from seamark.atlas.records import Card, Histogram, StoredContext
from seamark.atlas.store import Atlas
from seamark.show.histograms import sketch
from seamark.show.tokens import Span, TokenView, token_view
from seamark.web.state import State, feature_path

PREVIEW_TOKENS = 40
"""Tokens of the context on a card, around its strongest one."""
KEPT = 20_000
"""Previews that are kept in memory."""
SAFETY_RATING = 3
"""Features rated so or higher are about safety."""
NOTES = {
    None: "Not explained yet",
    "masked": "Masked where it came from",
    "null": "No explanation was found",
    "failed": "Could not be explained",
}
"""What stands in place of a text, by the state of the explanation shown first."""


class Piece(BaseModel):
    """A run of text with one shade."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    text: str
    shade: int
    """Tenths of the unit, 1-10; 0: the feature is silent."""
    title: str = ""
    """The activations behind the shade, in words."""


class Preview(BaseModel):
    """What a card shows besides the `Card`. Texts are as they were stored: make control characters visible."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    id: int
    url: str
    note: str
    """In place of a text where there is none; empty where there is one."""
    sensitive: bool
    """Blur its texts until somebody asks for them."""
    colours: tuple[int, ...]
    """Of its domains."""
    pieces: tuple[Piece, ...]
    """Of the context where it fires most; empty: no context is stored."""
    before: int
    after: int
    """Tokens that are not shown."""
    bars: tuple[float, ...]
    """Heights 0-1 of its activations' bins; logarithmic."""


BLANK = Preview(id=0, url="", note="", sensitive=False, colours=(), pieces=(), before=0, after=0, bars=())


def is_sensitive(card: Card) -> bool:
    """Whether texts about a feature, and those it fires in, may be hard to read.

    Tagged with a domain, rated as about safety, masked by whoever explained it, or never looked at by anybody.
    """
    looked_at = card.state in ("text", "null")
    return bool(card.domains) or (card.rating or 0) >= SAFETY_RATING or not looked_at


def note_of(card: Card) -> str:
    """What stands in place of the explanation; empty where there is one to show."""
    return NOTES.get(card.state, "") if card.state != "text" or not card.label else ""


def colour_of(state: State) -> dict[str, int]:
    """{domain: number of its colour}, the same on every page."""

    def make() -> dict[str, int]:
        return {name: i for i, name in enumerate(state.atlas.domains())}

    return state.cached("colours", make)


def previews(state: State, cards: Iterable[Card]) -> list[Preview]:
    """What the cards show besides their values, in their order; kept as long as the atlas does not change."""
    colours = colour_of(state)
    held = state.cached("previews", lambda: dict[int, Preview]())
    if len(held) > KEPT:
        held.clear()
    found = []
    for card in cards:
        preview = held.get(card.id)
        if preview is None:
            preview = held[card.id] = _preview(state.atlas, card, colours)
        found.append(preview)
    return found


def _preview(atlas: Atlas, card: Card, colours: dict[str, int]) -> Preview:
    contexts = atlas.contexts(card.sae, card.latent, "top", limit=1)
    view = shown(contexts[0], card.q, PREVIEW_TOKENS) if contexts else TokenView((), 0, 0)
    return Preview(
        id=card.id, url=feature_path(card.sae, card.latent), note=note_of(card), sensitive=is_sensitive(card),
        colours=tuple(colours.get(d, 0) for d in card.domains), before=view.before, after=view.after,
        pieces=tuple(piece for span in view.spans for piece in _pieces(span)),
        bars=bars(atlas.feature(card.sae, card.latent).histogram),
    )  # fmt: skip


def shown(context: StoredContext, q: float | None, tokens: int) -> TokenView:
    """The part of a context that is shown, `tokens` tokens around the strongest one, shaded by activation / Q_f."""
    return token_view(context.tokens, context.activations, unit=q, max_tokens=tokens)


def _pieces(span: Span) -> list[Piece]:
    """A span, the white space before it apart: shades begin where words do."""
    if not span.tone:
        return [Piece(text=span.text, shade=0)]
    bare = span.text.lstrip() or span.text
    space = span.text[: len(span.text) - len(bare)]
    return [
        *([Piece(text=space, shade=0)] if space else []),
        Piece(text=bare, shade=shade(span.level), title=span.title),
    ]


def shade(level: float) -> int:
    """0-1 as tenths, rounded up."""
    return max(1, ceil(10 * level - 1e-9))


def bars(histogram: Histogram | None) -> tuple[float, ...]:
    """Heights of a histogram's sketch; empty where there is none."""
    return sketch(histogram.edges, histogram.counts) if histogram else ()
