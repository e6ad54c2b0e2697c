"""Which words and phrases raise a feature's odds of firing: counted in the texts it is explained from.

Patterns sort tokens: "day" (the token that ends this word), "election day" (behind that word), "government … vote" (in
a text that also holds that word), "government …" (any token of such a text). A pattern is a candidate where the feature
fires more often than at its own last part, for a single word than at all tokens, by Fisher's exact test: counts are
small, and the usual log-odds ratio with its normal error finds too little there. Of the candidates those are kept, one
at a time, that explain most of the squared deviation of the level from what is expected so far. A token is decided by
the most specific entry that matches it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import hypergeom

from seamark.explain.records import LexiconEntry
from seamark.explain.scoring import token_levels
from seamark.explain.words import GAP, Words
from seamark.features.contexts import Context

MAX_ENTRIES = 20
"""Entries of a lexicon, not counting the one for all other tokens."""
MAX_WORDS = 3
"""Words of an n-gram."""
MIN_TEXTS = 2
"""Texts in which a pattern must fire: once is no evidence."""
MAX_P = 0.001
"""Chance of a pattern's firings if it were no better than its last part, at most."""
SHRINKAGE = 1.0
"""Tokens of what was expected before that the mean level of an entry's tokens is averaged with."""
MIN_GAIN = 0.005
"""Share of the squared deviation that an entry must explain."""

Pattern = tuple[str, ...]
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]
ANY: Pattern = (GAP,)
"""The pattern of all tokens."""


def split_pattern(pattern: Pattern) -> tuple[str | None, Pattern]:
    """(word that must be elsewhere in the text, n-gram that ends at the token); an empty n-gram is any token."""
    if GAP not in pattern:
        return None, pattern
    at = pattern.index(GAP)
    return (pattern[0] if at else None), pattern[at + 1 :]


def specificity(pattern: Pattern) -> float:
    """Words of the n-gram, and a half for a word elsewhere: the most specific pattern decides a token."""
    word, ngram = split_pattern(pattern)
    return len(ngram) + (0.0 if word is None else 0.5)


def learn_lexicon(contexts: Sequence[Context]) -> list[LexiconEntry]:
    """Entries that tell where a feature fires, the most telling first; the last, ("…",), is for all other tokens.

    `fires` and `seen` count the tokens that an entry decides, so that every token is counted once.

    Args:
        contexts: texts of a feature that Q_f is known for; tokens that were not read are left out.

    Returns:
        That last entry alone where nothing raises the odds; none at all where no token is known.
    """
    tokens = _Tokens(contexts)
    if not len(tokens.level):
        return []
    chosen = _choose(tokens, _candidates(tokens))
    while True:
        owner = _owners(len(tokens.level), chosen)
        others, mine = tokens.level[owner == -1], [tokens.level[owner == i] for i in range(len(chosen))]
        base = float(others.mean()) if len(others) else 0.0
        worth = [float(level.sum()) > base * len(level) for level in mine]
        if all(worth):
            break
        # More specific entries have taken what made the others worth having: what is left of them falls to the rest.
        chosen = [candidate for candidate, good in zip(chosen, worth, strict=True) if good]
    entries = [_entry(c.pattern, level, _shrunk(level, base)) for c, level in zip(chosen, mine, strict=True)]
    return [*entries, _entry(ANY, others, base)]


def _owners(n: int, chosen: Sequence[_Candidate]) -> Ints:
    """Which candidate decides each of `n` tokens: the most specific, of equals the first; −1: none."""
    owner = np.full(n, -1)
    for i in sorted(range(len(chosen)), key=lambda i: (specificity(chosen[i].pattern), -i)):
        owner[chosen[i].tokens] = i
    return owner


def _entry(pattern: Pattern, level: Floats, weight: float) -> LexiconEntry:
    return LexiconEntry(ngram=pattern, weight=round(weight, 6), fires=int((level > 0).sum()), seen=len(level))


def _shrunk(level: Floats, expected: float) -> float:
    return (float(level.sum()) + SHRINKAGE * expected) / (len(level) + SHRINKAGE)


class _Tokens:
    """The known tokens of a feature's texts, one after the other [tokens], and the n-grams that end at them."""

    def __init__(self, contexts: Sequence[Context]) -> None:
        self.words = [Words(c.tokens) for c in contexts]
        truth = [token_levels(c) for c in contexts]
        at = [(text, t) for text, levels in enumerate(truth) for t, level in enumerate(levels) if level is not None]
        self.text = np.array([text for text, _ in at], np.int64)
        self.level = np.array([truth[text][t] for text, t in at], np.float64)
        self.fires: Bools = self.level > 0
        self.names: list[list[Pattern]] = []
        """By n − 1: the n-grams seen."""
        self.ngram: list[Ints] = []
        """By n − 1: which one ends at each token; −1 where the text has no n words up to there [tokens]."""
        for n in range(MAX_WORDS):
            found: dict[Pattern, int] = {}
            ids = np.full(len(at), -1, np.int64)
            for i, (text, t) in enumerate(at):
                before = self.words[text].before(t, n)
                if before is not None:
                    ids[i] = found.setdefault((*before, self.words[text].names[t]), len(found))
            self.names.append(list(found))
            self.ngram.append(ids)

    def vocabulary(self) -> tuple[list[str], Bools]:
        """Words in at least `MIN_TEXTS` texts, and which texts hold them [texts, words]."""
        count: dict[str, int] = {}
        sets = [set(words.words) for words in self.words]
        for words in self.words:
            for word in dict.fromkeys(words.words):
                count[word] = count.get(word, 0) + 1
        kept = [word for word, n in count.items() if n >= MIN_TEXTS]
        return kept, np.array([[word in mine for word in kept] for mine in sets], np.bool_).reshape(len(sets), -1)


@dataclass(frozen=True)
class _Candidate:
    pattern: Pattern
    tokens: Ints
    """Where it matches, ascending."""


def _candidates(tokens: _Tokens) -> list[_Candidate]:
    ngrams = list(_ngrams(tokens))
    return [*ngrams, *_in_contexts(tokens, ngrams)]


def _ngrams(tokens: _Tokens) -> Iterator[_Candidate]:
    """N-grams at which the feature fires more often than at their last n − 1 words."""
    parent = np.zeros(len(tokens.level), np.int64)
    for names, ids in zip(tokens.names, tokens.ngram, strict=True):
        known = ids >= 0
        of, fires, up = ids[known], tokens.fires[known], parent[known]
        size = len(names)
        hits, seen = np.bincount(of[fires], minlength=size), np.bincount(of, minlength=size)
        parent_of = np.zeros(size, np.int64)
        parent_of[of] = up
        n_parents = int(parent.max()) + 1
        parent_seen = np.bincount(parent, minlength=n_parents)[parent_of]
        parent_hits = np.bincount(parent[tokens.fires], minlength=n_parents)[parent_of]
        p = chance(hits, seen - hits, parent_hits, parent_seen - parent_hits)
        texts = np.bincount(np.unique(of[fires] * len(tokens.words) + tokens.text[known][fires]) // len(tokens.words),
                            minlength=size)  # fmt: skip
        for i in np.flatnonzero((p <= MAX_P) & (texts >= MIN_TEXTS)).tolist():
            yield _Candidate(names[i], np.flatnonzero(ids == i))
        parent = np.where(known, ids, size)  # those without are nobody's parent


def _in_contexts(tokens: _Tokens, ngrams: Sequence[_Candidate]) -> Iterator[_Candidate]:
    """N-grams that fire rather in texts that hold a certain word. Texts are counted: tokens of one hang together."""
    vocabulary, holds = tokens.vocabulary()
    n_texts = len(tokens.words)
    for ngram in [*ngrams, _Candidate((), np.arange(len(tokens.level)))]:
        text = tokens.text[ngram.tokens]
        fires = np.bincount(text, tokens.fires[ngram.tokens], n_texts) > 0
        silent = (np.bincount(text, minlength=n_texts) > 0) & ~fires
        hits, misses = holds[fires].sum(0), holds[silent].sum(0)
        p = chance(hits, misses, fires.sum(), silent.sum())
        for i in np.flatnonzero((p <= MAX_P) & (hits >= MIN_TEXTS)).tolist():
            word = vocabulary[i]
            if word not in ngram.pattern:
                yield _Candidate((word, GAP, *ngram.pattern), ngram.tokens[holds[text, i]])


def chance(hits: Ints, misses: Ints, all_hits: Ints, all_misses: Ints) -> Floats:
    """Chance of as many `hits` or more where `hits + misses` are drawn of all (Fisher's exact test, one side) [n]."""
    return np.asarray(hypergeom.sf(hits - 1, all_hits + all_misses, all_hits, hits + misses), np.float64)


def _choose(tokens: _Tokens, candidates: Sequence[_Candidate]) -> list[_Candidate]:
    """Up to `MAX_ENTRIES` candidates, each the one that explains most of what those before left."""
    level = tokens.level
    total = float(((level - level.mean()) ** 2).sum())
    if not candidates or not total:
        return []
    rank = np.array([specificity(c.pattern) for c in candidates])
    sizes = np.array([len(c.tokens) for c in candidates])
    at, of = np.concatenate([c.tokens for c in candidates]), np.repeat(np.arange(len(candidates)), sizes)
    starts = np.cumsum(sizes) - sizes
    expected, decided = np.full(len(level), level.mean()), np.zeros(len(level))
    chosen: list[_Candidate] = []
    while len(chosen) < MAX_ENTRIES:
        free = decided[at] < rank[of]
        weight, gain = _gains(level[at], expected[at], free.astype(np.float64), starts)
        best = int(gain.argmax())
        if gain[best] < MIN_GAIN * total:
            break
        chosen.append(candidates[best])
        mine = at[free & (of == best)]
        expected[mine], decided[mine] = weight[best], rank[best]
    return chosen


def _gains(level: Floats, expected: Floats, free: Floats, starts: Ints) -> tuple[Floats, Floats]:
    """Each candidate's weight, and the squared deviation it explains at tokens that no entry has decided [candidates].

    Candidates' tokens lie one after the other, each candidate's from its start.
    """
    n, sums, squares, before, deviation = (
        np.add.reduceat(free * values, starts)
        for values in (np.ones(len(level)), level, level**2, expected, (level - expected) ** 2)
    )
    weight = (sums + SHRINKAGE * before / np.maximum(n, 1)) / (n + SHRINKAGE)
    gain = deviation - (squares - 2 * weight * sums + n * weight**2)
    return weight, np.where((n > 0) & (sums > before), gain, 0.0)
