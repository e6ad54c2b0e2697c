"""The one place where text becomes HTML. Data sets hold markup, control characters and worse: all of it is inert here.

Templates (`show/templates/*.html`) are rendered by `render`: whatever they print is escaped, and characters that would
act on the page or on the reader without being seen (control characters, bidirectional overrides, invisible tags) are
shown as marks. Pages carry a policy that forbids scripts and the network.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cache
from typing import Any, NamedTuple

import jinja2
from markupsafe import Markup, escape

from seamark.show import numbers

MAX_CHARS = 4000
"""Characters of one text that a page shows by default; the rest is cut with a note."""

_HIDDEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f"  # C0 and C1 controls; tab and newline stay
    "\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180e\u200b\u200e\u200f"  # soft hyphen, fillers, marks
    "\u2028-\u202e\u2060-\u206f\u3164\ufe00-\ufe0d\ufeff\uffa0\ufff0-\ufffb\ufffe\uffff"  # separators, bidi, specials
    "\ud800-\udfff"  # halves of surrogate pairs, which UTF-8 cannot say
    "\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff\U000f0000-\U0010ffff]"  # tags, private use
)


class Cut(NamedTuple):
    """A text's beginning, and how many characters were left out."""

    text: str
    left_out: int


def visible(text: str) -> str:
    """`text` with every character that acts unseen replaced by a mark.

    C0 controls become their pictures (U+2400 and up), others their code point (`⟦U+202E⟧`). Newlines and tabs stay, and
    so do the joiners that emoji and many scripts need.
    """
    return _HIDDEN.sub(_mark, text.replace("\r\n", "\n"))


def _mark(match: re.Match[str]) -> str:
    code = ord(match.group())
    if code < 0x20:
        return chr(0x2400 + code)
    return "␡" if code == 0x7F else f"⟦U+{code:04X}⟧"


def cut(text: str, limit: int = MAX_CHARS) -> Cut:
    """The first `limit` characters of `text`."""
    return Cut(text[:limit], max(0, len(text) - limit))


def short(text: str, limit: int = MAX_CHARS) -> str:
    """The first `limit` characters of `text`, and an ellipsis where more were left out."""
    return text if len(text) <= limit else f"{text[:limit]}…"


def render(template: str, /, **data: Any) -> str:
    """Render a template of this package; every value it prints is made visible and escaped."""
    return environment().get_template(template).render(**data)


def render_part(template: str, /, **data: Any) -> Markup:
    """`render`, for a fragment that other templates may print as it is."""
    return Markup(render(template, **data))  # noqa: S704 - the output of an escaping template


@cache
def environment() -> jinja2.Environment:
    """The escaping template environment: undefined names are errors, None prints as a dash."""
    env = jinja2.Environment(
        loader=jinja2.PackageLoader("seamark.show"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=_finalize,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    env.filters |= {
        "join": _join,
        "cut": cut,
        "short": short,
        "percent": numbers.percent,
        "points": numbers.points,
        "number": numbers.number,
        "signed": numbers.signed,
        "thousands": numbers.thousands,
        "seconds": numbers.seconds,
        "whole": numbers.whole,
        "in_unit": numbers.in_unit,
        "interval": numbers.interval,
        "estimate_text": numbers.estimate_text,
    }
    return env


def _finalize(value: Any) -> Any:
    """What a template prints: texts made visible, and so are values that only become texts by being printed."""
    if value is None:
        return "–"
    return value if isinstance(value, Markup | int | float | jinja2.Undefined) else visible(str(value))


def _join(values: Iterable[Any], between: str = "", attribute: str | None = None) -> Markup:
    """Jinja's `join`, whose result is never looked at by `_finalize`: each value is, before it is joined."""
    items = (getattr(value, attribute) for value in values) if attribute else values
    return Markup(escape(between)).join(_finalize(item) for item in items)  # noqa: S704 - escapes what is no Markup
