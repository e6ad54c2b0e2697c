"""Highlighted tokens: how strongly a feature fires where, as shades behind the text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite

from markupsafe import Markup

from seamark.show.html import Cut, cut, render_part
from seamark.show.numbers import number, signed

MAX_TOKENS = 240
"""Tokens of one text that are shown: a window around the strongest one."""
MAX_TOKEN_CHARS = 200


@dataclass(frozen=True)
class Span:
    """A run of text with one shade. `level` in 0-1 is |value| / unit; `tone` is `for`, `against` or empty."""

    text: str
    left_out: int
    level: float
    tone: str
    title: str


@dataclass(frozen=True)
class TokenView:
    """Spans of a text, and how many tokens before and after them are not shown."""

    spans: tuple[Span, ...]
    before: int
    after: int


def highlight(
    tokens: Sequence[str],
    values: Sequence[float],
    *,
    unit: float | None = 1.0,
    unit_name: str = "Q",
    ends: Sequence[int] | None = None,
    max_tokens: int = MAX_TOKENS,
) -> Markup:
    """Tokens as safe HTML, shaded by value / unit. See `token_view` for the arguments."""
    view = token_view(tokens, values, unit=unit, unit_name=unit_name, ends=ends, max_tokens=max_tokens)
    return render_part("tokens.html", view=view)


def token_view(
    tokens: Sequence[str],
    values: Sequence[float],
    *,
    unit: float | None = 1.0,
    unit_name: str = "Q",
    ends: Sequence[int] | None = None,
    max_tokens: int = MAX_TOKENS,
    merge: bool = True,
) -> TokenView:
    """What is shown of a text.

    Args:
        tokens: pieces of text, in order [n].
        values: one per token [n]: positive speaks for the label's being safe, negative against; 0 is not shaded.
        unit: the value of full shade, Q_f for activations; None (too few firings): the text's own maximum.
        unit_name: what the unit is called in titles ("0.50 of Q").
        ends: where values were read at clause ends only, those token positions: each clause takes its end's shade.
        max_tokens: texts with more are shown as a window around their strongest token.
        merge: join neighbours that look the same; else every token has a span of its own.
    """
    if len(tokens) != len(values):
        raise ValueError(f"{len(tokens)} tokens but {len(values)} values")
    shown = [v if isfinite(v) else 0.0 for v in values]
    if ends is not None:
        shown = _spread(shown, ends)
    full = unit if unit else max((abs(v) for v in shown), default=0.0)
    first, last = _window(shown, max_tokens)
    spans: list[Span] = []
    for token, value in zip(tokens[first:last], shown[first:last], strict=True):
        span = _span(cut(token, MAX_TOKEN_CHARS), value, full, unit_name if unit else "")
        if merge:
            spans = _merged(spans, span)
        else:
            spans.append(span)
    return TokenView(tuple(spans), first, len(tokens) - last)


def _spread(values: Sequence[float], ends: Sequence[int]) -> list[float]:
    """Values at `ends` carried back over their clauses; tokens after the last end stay at 0."""
    spread = [0.0] * len(values)
    start = 0
    for end in sorted(ends):
        spread[start : end + 1] = [values[end]] * (end + 1 - start)
        start = end + 1
    return spread


def _window(values: Sequence[float], size: int) -> tuple[int, int]:
    """The slice to show: `size` tokens, two thirds of them before the strongest one."""
    if len(values) <= size:
        return 0, len(values)
    peak = max(range(len(values)), key=lambda i: abs(values[i]))
    first = min(max(0, peak - 2 * size // 3), len(values) - size)
    return first, first + size


def _span(token: Cut, value: float, full: float, unit_name: str) -> Span:
    if value == 0.0 or full == 0.0:
        return Span(token.text, token.left_out, 0.0, "", "")
    level = min(1.0, abs(value) / full)
    share = f"{number(abs(value) / full, 2)} of {unit_name}" if unit_name else "Q not available"
    tone = "for" if value > 0 else "against"
    return Span(token.text, token.left_out, round(level, 2), tone, f"{signed(value)} ({share})")


def _merged(spans: list[Span], span: Span) -> list[Span]:
    """Append `span`, joined to the last one when both look the same: pages stay small."""
    if spans:
        last = spans[-1]
        if (last.level, last.tone, last.title) == (span.level, span.tone, span.title) and not last.left_out:
            spans[-1] = Span(last.text + span.text, span.left_out, span.level, span.tone, span.title)
            return spans
    spans.append(span)
    return spans
