"""Texts of the feature tests as streams take them."""

from __future__ import annotations

from feature_corpus import make_pairs, tiny

from seamark.features.tokens import TokenTexts, TokenTextsMaker, collect
from seamark.text.positions import Kind, positions
from seamark.text.rendering import Rendered


def texts(n: int = 30) -> list[Rendered]:
    """Both sides of `n` pairs."""
    renderer = tiny().renderer()
    return [t for p in make_pairs(n) for t in renderer.render_pair(p)]


def token_texts(n: int = 30, kind: Kind = "tokens", max_positions: int | None = None) -> TokenTexts:
    maker = TokenTextsMaker(lambda t: (t, positions(t, kind)), max_positions)
    collect(texts(n), [maker])
    return maker.done()
