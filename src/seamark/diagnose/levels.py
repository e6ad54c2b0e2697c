"""Word or concept: at how many different tokens does a feature fire, in the texts that an atlas or a scan knows?

Safe-SAIL (arXiv 2509.18127) saw word-level features of early layers feed concept-level ones of late layers. Here the
two are told apart by count, not by their names: a feature half of whose strong firings are at one token is one of a
word.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

from seamark.atlas.records import ContextKind, StoredContext
from seamark.atlas.store import Atlas
from seamark.diagnose.trajectory_graph import Level
from seamark.errors import DataError
from seamark.features.reading import Scan

Examples = Iterable[tuple[Sequence[str], Sequence[float]]]
"""Texts of a feature: tokens, and its activation at each."""
Known = Callable[[str, int], Examples]
"""(sae id, latent) → texts in which it fires; none where nothing is known."""

FEW = 5
"""Fewer strong firings than this tell nothing."""
TEXTS = 50
KINDS: tuple[ContextKind, ...] = ("top", "level")
NOTHING = "neither an atlas nor a scan knows texts of it"


def level_of(examples: Examples) -> Level:
    """The level of one feature, from its firings of at least half the peak of each text.

    Tokens are compared without capitals and without white space around them.
    """
    counts: Counter[str] = Counter()
    for tokens, activations in examples:
        peak = max(activations, default=0.0)
        if peak > 0:
            counts.update(t.strip().casefold() for t, a in zip(tokens, activations, strict=True) if a >= peak / 2)
    n = counts.total()
    if n == 0:
        return Level(level=None, reason=NOTHING)
    share = counts.most_common(1)[0][1] / n
    if n < FEW:
        return Level(level=None, reason=f"{n} firings are known, fewer than {FEW}", firings=n, types=len(counts),
                     commonest=share)  # fmt: skip
    return Level(level="word" if share >= 0.5 else "concept", firings=n, types=len(counts), commonest=share)


def atlas_examples(atlas: Atlas, names: Mapping[str, str]) -> Known:
    """The contexts of an atlas, the strongest and those of all levels; `names` as of `match_saes`.

    A text that is among both counts once, as the stronger context shows it.
    """

    def known(sae: str, latent: int) -> Examples:
        if sae not in names:
            return ()
        found: dict[tuple[str, str | tuple[str, ...]], StoredContext] = {}
        for kind in KINDS:
            for c in atlas.contexts(names[sae], latent, kind, TEXTS):
                found.setdefault((c.source, c.name or c.tokens), c)
        return [(c.tokens, c.activations) for c in found.values()]

    return known


def scan_examples(scan: Scan, saes: Collection[str] | None = None) -> Known:
    """The texts of a scan that kept its latents token by token; of any other, none.

    `saes` are names it is asked by (see `units.made_with`); all it has without.
    """

    def known(sae: str, latent: int) -> Examples:
        if sae not in (scan.sae_ids if saes is None else saes):
            return ()
        try:
            return [(c.tokens, c.activations) for c in scan.contexts(sae, latent, TEXTS)]
        except DataError:  # no latents of single tokens
            return ()

    return known


def first_known(*sources: Known) -> Known:
    """What the first source knows that knows anything."""

    def known(sae: str, latent: int) -> Examples:
        return next((found for source in sources if (found := list(source(sae, latent)))), [])

    return known
