"""A text cut into segments: the units in which Safe-SAIL simulates cheaply (arXiv 2509.18127, METHODS §2.4)."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import pairwise

from seamark.errors import ConfigError
from seamark.explain.words import word_starts
from seamark.text.clauses import clause_ends

LONGEST = 15
"""Tokens of a segment, at most."""

Span = tuple[int, int]
"""Tokens start … end − 1."""


def segments(tokens: Sequence[str], longest: int = LONGEST) -> list[Span]:
    """Cut a text into its clauses, and clauses of more than `longest` tokens evenly at word boundaries.

    A clause is cut within a word only where its pieces would otherwise be too long. White space between clauses belongs
    to the segment of the token it is part of; a token of white space alone to the clause before it.

    Args:
        tokens: pieces of the text that make it up when joined, as `Context.tokens`.
        longest: tokens of a segment, at most.

    Returns:
        Spans in order; every token lies in exactly one. Empty where there are no tokens.

    Raises:
        ConfigError: `longest` is below 1.
    """
    if longest < 1:
        raise ConfigError(f"segments of {longest} tokens", fix="Allow 1 token at least")
    words = word_starts(tokens)
    found: list[Span] = []
    for start, end in _clauses(tokens):
        found += _pieces(start, end, words, longest)
    return found


def _clauses(tokens: Sequence[str]) -> list[Span]:
    """Spans of clauses: one ends behind the last token that begins (white space aside) at or before its end."""
    begins: list[int] = []
    at = 0
    for token in tokens:
        blank = len(token) - len(token.lstrip())
        # The rest of a character (an empty token) and white space alone stay with what is before them.
        behind = not token.strip() and begins
        begins.append(begins[-1] if behind else at + (blank if blank < len(token) else 0))
        at += len(token)
    ends = [bisect_right(begins, clause.at) for clause in clause_ends("".join(tokens))]
    cuts = sorted({0, len(tokens), *ends})
    return list(pairwise(cuts))


def _pieces(start: int, end: int, words: Sequence[bool], longest: int) -> list[Span]:
    """A clause in as few even pieces as there can be, or in one more where only then all begin with words."""
    fewest = -(-(end - start) // longest)
    few, more = (_even(start, end, n, words, longest) for n in (fewest, fewest + 1))
    cuts = more if all(words[c] for c in more) and not all(words[c] for c in few) else few
    edges = [start, *cuts, end]
    return list(pairwise(edges))


def _even(start: int, end: int, n: int, words: Sequence[bool], longest: int) -> list[int]:
    """n − 1 cuts, each as near as can be to an even share of what is left, at a word where one is in reach."""
    cuts: list[int] = []
    for left in range(n, 1, -1):
        first, last = max(start + 1, end - (left - 1) * longest), min(start + longest, end - left + 1)
        if first > last:
            continue  # more pieces than tokens
        even = start + (end - start) / left
        reach = [c for c in range(first, last + 1) if words[c]] or list(range(first, last + 1))
        start = min(reach, key=lambda c: (abs(c - even), c))
        cuts.append(start)
    return cuts
