"""Noise on purpose: wrong labels of known ids and known kind, to measure what finds them.

Every kind is a flip of labels with a manifest that names the ids and undoes it (`editing.Edit`): the flipped ids are
`edit.manifest.flipped`.
"""

from __future__ import annotations

from typing import Literal, get_args

from seamark.audit.editing import Edit, Scored, edit_count, inject_noise, poison
from seamark.audit.scoring_inputs import PairScores
from seamark.errors import ConfigError, DataError
from seamark.text.pairs import Pairs, hash_unit

NoiseKind = Literal["random", "category", "safer", "margin"]
MOST_OF_CATEGORY = 0.5
"""Share of a category's labels that noise flips where no category is named: of more, the flipped would be the rule."""


def make_noise(
    pairs: Pairs, kind: NoiseKind, rate: float, group: str = "safety", seed: int = 0, scores: Scored | None = None,
    category: str | None = None,
) -> Edit:  # fmt: skip
    """Flip `rate` of a group's labels.

    Args:
        kind: `random`: any pair; `category`: pairs of one category (or of a few, see there); `safer` and `margin`: the
            pairs that score highest, which is what an attacker with those scores would flip.
        rate: share of the group, whatever the kind.
        seed: decides what is drawn, and ties.
        scores: of every pair of the group, for `safer` and `margin`.
        category: flip pairs of this one alone. Without it, categories come in an order that the seed draws, and of each
            half is flipped, until there are enough.

    Raises:
        ConfigError: an unknown kind or category, scores that are missing, or a rate outside (0, 1).
        DataError: no such group, too few pairs of the category, or pairs without a score.
    """
    if kind not in get_args(NoiseKind):
        raise ConfigError(f"no noise of kind {kind!r}", fix=f"The kinds are: {', '.join(get_args(NoiseKind))}")
    if kind == "random":
        return inject_noise(pairs, rate, group, seed)
    mine = pairs.group(group)
    if len(mine) == 0:
        raise DataError(f"no pairs in group {group!r}", fix=f"The groups are: {', '.join(pairs.groups) or 'none'}")
    if kind == "category":
        picked = _of_categories(mine, rate, seed, category)
        values = {i: float(i in picked) for i in mine.ids}
    else:
        if scores is None:
            raise ConfigError(f"noise of kind {kind!r} needs the scores it goes by", fix="Score the pairs first")
        values = dict(scores.values)
    return poison(pairs, PairScores(method=f"noise-{kind}", values=values), rate, group, seed)


def _of_categories(pairs: Pairs, rate: float, seed: int, category: str | None) -> set[str]:
    """As many ids of one category, or of a few, as the rate asks for."""
    count = edit_count(rate, len(pairs))
    of: dict[str, list[str]] = {}
    for pair in pairs:
        of.setdefault(pair.category, []).append(pair.id)
    of.pop("", None)
    if not of or (category is not None and category not in of):
        known = ", ".join(sorted(of)) or "none"
        what = "the pairs have no categories" if category is None else f"no pairs of category {category!r}"
        raise ConfigError(what, where="category", fix=f"The categories are: {known}")
    names = [category] if category is not None else sorted(of, key=lambda c: (hash_unit(f"noise:{c}", seed), c))
    picked: list[str] = []
    for name in names:
        drawn = sorted(of[name], key=lambda i: (hash_unit(f"noise:{i}", seed), i))
        picked += drawn if category is not None else drawn[: int(MOST_OF_CATEGORY * len(drawn))]
    if len(picked) < count:
        what = f"{count} labels to flip, but only {len(picked)} pairs of {category or 'all categories'} to take"
        raise DataError(what, fix="Choose a lower rate")
    return set(picked[:count])
