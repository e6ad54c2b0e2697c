"""Contexts of features that were made up: the texts are drawn from a few words, and a rule says where they fire."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence

from seamark.features.context_sets import ContextHalf, FeatureContexts
from seamark.features.contexts import Context

NOUNS = [
    "harbour", "bread", "ships", "flour", "water", "garden", "letter", "morning", "window", "river", "bridge", "music",
    "market", "winter", "candle",
]  # fmt: skip
VERBS = ["bake", "walk", "watch", "carry", "paint", "open", "close", "follow", "remember", "count"]
SMALL = ["the", "a", "of", "and", "with", "under", "before", "our", "old", "quiet"]
Rule = Callable[[list[str]], Sequence[float]]
"""Words of a text (lower case) -> level 0-10 at each."""
Q = 2.0


def tokens_of(text: str) -> tuple[str, ...]:
    """Words with the white space before them, and marks of punctuation."""
    return tuple(re.findall(r"\s*(?:\w+|[^\w\s])", text))


def context(text_id: str, tokens: Sequence[str], levels: Sequence[float], q: float | None = Q) -> Context:
    """A text with the feature at these levels (10 is Q_f)."""
    activations = tuple(level / 10 * (q or Q) for level in levels)
    n = len(tokens)
    return Context(text_id, None, None, "all", tuple(tokens), activations, (False,) * n, q, (True,) * n)


def make_texts(extra: Sequence[str], n: int = 320, seed: int = 0) -> list[tuple[str, ...]]:
    """Texts of some 30 tokens; each of the `extra` words or phrases stands in a quarter of them."""
    rng = random.Random(seed)
    texts = []
    for _ in range(n):
        clauses = []
        for _ in range(rng.randint(3, 5)):
            words = [rng.choice(rng.choice([NOUNS, VERBS, SMALL])) for _ in range(rng.randint(4, 8))]
            for phrase in extra:
                if rng.random() < 0.07:
                    words.insert(rng.randrange(len(words) + 1), phrase)
            clauses.append(" ".join(words))
        texts.append(tokens_of(", ".join(clauses).capitalize() + "."))
    return texts


def plant(rule: Rule, extra: Sequence[str] = (), seed: int = 0, texts: list[tuple[str, ...]] | None = None,
          latent: int = 7) -> FeatureContexts:  # fmt: skip
    """Contexts of a feature that follows `rule`, chosen about as `context_sets` does."""
    halves: list[list[Context]] = [[], []]
    for i, tokens in enumerate(texts or make_texts(extra, seed=seed)):
        halves[i % 2].append(context(f"t{i}", tokens, rule([t.strip().lower() for t in tokens])))
    return FeatureContexts("sae", latent, Q, "", half_of(halves[0]), half_of(halves[1]))


def half_of(some: Sequence[Context]) -> ContextHalf:
    """The strongest 20, up to 5 of each level, 10 silent texts, and 10 others as near misses."""
    firing = sorted((c for c in some if c.max_activation > 0), key=lambda c: (-c.max_activation, c.text_id))
    silent = [c for c in some if c.max_activation == 0]
    levels: dict[int, list[Context]] = {level: [] for level in range(1, 11)}
    for c in sorted(firing, key=lambda c: c.text_id):
        mine = levels[min(10, -int(-10 * c.max_activation // Q))]
        if len(mine) < 5:
            mine.append(c)
    return ContextHalf(tuple(firing[:20]), {k: tuple(v) for k, v in levels.items()}, tuple(silent[:10]),
                       tuple(silent[10:20]))  # fmt: skip


def on_word(word: str, level: float = 8.0) -> Rule:
    """Fires on a word, now more, now less."""
    return lambda words: [max(level - i % 3, 1) * (w == word) for i, w in enumerate(words)]


def on_bigram(first: str, second: str) -> Rule:
    """Fires on a word behind another one, and nowhere else."""
    return lambda words: [9.0 * (w == second and i > 0 and words[i - 1] == first) for i, w in enumerate(words)]


def within(word: str, other: str) -> Rule:
    """Fires on a word in texts that hold another one."""
    return lambda words: [9.0 * (w == word and other in words) for w in words]


def at_random(seed: int, rate: float = 0.03) -> Rule:
    """Fires anywhere."""
    rng = random.Random(seed)
    return lambda words: [rng.randint(1, 10) * (rng.random() < rate) for _ in words]
