"""Which tokens are read: every token, the ends of clauses or sentences, or the last token of the response.

Nothing is ever inserted into a text to mark a position: ends are found in its characters and mapped to tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from seamark.errors import ConfigError
from seamark.text.clauses import clause_ends, paper_clause_ends
from seamark.text.rendering import Rendered

Rule = Literal["default", "paper"]
Scope = Literal["response", "all"]
Kind = Literal["tokens", "clauses", "sentences", "last"]
Indices = NDArray[np.int32]

PAPER_SPACING = 5
"""Tokens from one kept clause end to the next, and before the first, in the paper's rule."""
DEFAULT_SPACING = 3
"""The same in the default rule: a clause is never shorter, unless the whole response is."""


def positions(r: Rendered, kind: Kind = "tokens", rule: Rule = "default", scope: Scope = "response") -> Indices:
    """Token positions of `r`, sorted, [n]; special tokens are never among them. An empty response has none.

    Args:
        r: a rendered text.
        kind: "tokens" (all of the scope), "clauses" (see `clause_positions`), "sentences" (clause ends of the rule that
            also end a sentence) or "last" (the last token of the response).
        rule: how clauses and sentences end; tokens are the same by both.
        scope: "response", or "all" for prompt and response.

    Raises:
        ConfigError: unknown kind, rule or scope.
    """
    if kind == "clauses":
        return clause_positions(r, rule, scope)
    _check(rule, scope)
    if kind == "tokens":
        return _text_tokens(r, scope)
    if kind == "sentences":
        find = _paper_positions if rule == "paper" else _default_positions
        return find(r, scope, sentences_only=True)
    if kind == "last":
        return _text_tokens(r, "response")[-1:]
    raise ConfigError(f"unknown kind of positions {kind!r}", fix="Use tokens, clauses, sentences or last")


def clause_positions(r: Rendered, rule: Rule = "default", scope: Scope = "response") -> Indices:
    """Positions of the tokens that close a clause, sorted, [n].

    `paper` (SAFER, arXiv 2507.00665, released code): every run of `. , ? ! ;` and newline ends a clause, at the token
    that holds the run's last character. The first end kept is token 5 of the scope or later (counted from 0), each
    next one at least 5 tokens after the last kept. The scope "all" is the whole sequence, template included. A text
    may have no position.

    `default`: knows decimals, abbreviations, addresses and the punctuation of other scripts (see `clauses`); ends
    are at least 3 tokens apart, and the last token of the response, and in scope "all" that of the prompt, always is
    an end. So every response that is not empty has at least one position.
    """
    _check(rule, scope)
    return _paper_positions(r, scope) if rule == "paper" else _default_positions(r, scope)


def _check(rule: str, scope: str) -> None:
    if rule not in ("default", "paper"):
        raise ConfigError(f"unknown clause rule {rule!r}", fix="Use default or paper")
    if scope not in ("response", "all"):
        raise ConfigError(f"unknown scope {scope!r}", fix="Use response or all")


def _spans(r: Rendered, scope: Scope) -> list[tuple[int, int]]:
    spans = [r.prompt_span, r.response_span] if scope == "all" else [r.response_span]
    return [(start, end) for start, end in spans if start < end]


def _text_tokens(r: Rendered, scope: Scope) -> Indices:
    inside = np.zeros(len(r), dtype=np.bool_)
    for start, end in _spans(r, scope):
        inside[start:end] = True
    return np.flatnonzero(inside & ~r.special).astype(np.int32)


def _tokens_at(r: Rendered, tokens: Indices, chars: Sequence[int]) -> Indices:
    """For each character the token among `tokens` that holds it, else the last one that starts before it.

    Some characters are in no token (newlines in WordPiece) or in several (three bytes of one "。": the last counts).
    """
    starts = np.maximum.accumulate(r.offsets[tokens, 0])
    at = np.searchsorted(starts, np.asarray(chars, dtype=np.int64), side="right") - 1
    return tokens[at[at >= 0]]


def _spaced(candidates: Indices, first: int, spacing: int) -> list[int]:
    """Candidates of which the first is `first + spacing` or later, each next one `spacing` after the last kept."""
    kept: list[int] = []
    last = first
    for position in candidates.tolist():
        if position - last >= spacing:
            kept.append(position)
            last = position
    return kept


def _paper_positions(r: Rendered, scope: Scope, sentences_only: bool = False) -> Indices:
    start, end = (0, len(r)) if scope == "all" else r.response_span
    tokens = (start + np.flatnonzero(~r.special[start:end])).astype(np.int32)
    if len(tokens) == 0:
        return np.empty(0, dtype=np.int32)
    left, right = int(r.offsets[tokens[0], 0]), int(r.offsets[tokens, 1].max())
    ends = paper_clause_ends(r.text[left:right], sentences_only=sentences_only)
    candidates = _tokens_at(r, tokens, [left + i for i in ends])
    return np.asarray(_spaced(candidates, start, PAPER_SPACING), dtype=np.int32)


def _default_positions(r: Rendered, scope: Scope, sentences_only: bool = False) -> Indices:
    kept: list[int] = []
    for start, end in _spans(r, scope):
        tokens = (start + np.flatnonzero(~r.special[start:end])).astype(np.int32)
        if len(tokens) == 0:
            continue
        left, right = int(r.offsets[tokens[0], 0]), int(r.offsets[tokens, 1].max())
        ends = [e.at for e in clause_ends(r.text[left:right]) if e.sentence or not sentences_only]
        final = int(tokens[-1])
        # Clauses are counted from before the first token, so that one of three tokens is long enough.
        spaced = _spaced(_tokens_at(r, tokens, [left + i for i in ends]), start - 1, DEFAULT_SPACING)
        kept += [p for p in spaced if final - p >= DEFAULT_SPACING] + [final]
    return np.asarray(kept, dtype=np.int32)
