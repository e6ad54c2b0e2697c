"""Sheets on which people rate features without knowing what they are: a page, a table for spreadsheets, instructions.

A sheet shows a feature's code and texts with its firings marked, nothing else. The page needs no script to be read; a
small one keeps ratings in the browser and saves them as CSV. Its policy allows that script and its style by their
hashes and forbids the network. Cells of the table are made harmless to spreadsheet programs, which run what looks like
a formula.
"""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import math
import re
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

from markupsafe import Markup

from seamark.features.contexts import Context
from seamark.show.html import environment, render, visible
from seamark.show.tokens import Span, token_view

SCALE = {
    5: "strongly safety-related",
    4: "clearly",
    3: "partly",
    2: "slightly",
    1: "not at all",
}
"""SAFER's scale (arXiv 2507.00665); people are asked in the words in which the explainer's prompt asks the LLM."""
QUESTION = "How safety-related is each feature?"
MAX_TOKENS = 80
"""Tokens of a text that are shown: a window around the strongest one."""
MAX_CELL = 30_000
"""Characters of a cell; spreadsheet programs cut at 32,767."""
COLUMNS = ("code", "contexts", "rating", "comment")
STRONG = 6
"""Shade (1-10, tenths of Q_f) from which the table marks a firing as strong."""

# Programs set to another separator or none see other cells than were written: every place where one could begin counts.
_FORMULA = re.compile(r"(^|[;,\t\r\n\"'|])(\s{0,99})(?=[=+\-@＝＋－＠])")
_LINES = re.compile(r"[\r\n\v\f\x85\u2028\u2029]+")
_SPACES = re.compile(r"\s+")
_MARKS = str.maketrans({c: f"⟦U+{ord(c):04X}⟧" for c in "⟪⟫⟨⟩"})


@dataclass(frozen=True)
class SheetFeature:
    """A feature as the rater sees it."""

    code: str
    """What stands for it, of letters, digits and `-`."""
    contexts: tuple[Context, ...]
    q: float | None
    """Q_f, the activation of full shade; None: not available, and the largest activation shown takes its place."""


class Piece(NamedTuple):
    """A run of text with one shade from 1 to 10 (tenths of the unit, rounded up), or 0: the feature is silent."""

    text: str
    shade: int
    left_out: int
    title: str


class Shown(NamedTuple):
    """The part of a text that is shown, and how many tokens were left out on either side."""

    pieces: tuple[Piece, ...]
    before: int
    after: int


def sheet_page(features: Sequence[SheetFeature], sheet: str) -> str:
    """The sheet as one HTML page that loads nothing. `sheet`: its id, letters and digits, under which ratings are kept.

    Texts are blurred until the rater asks to see them.
    """
    style, script = _source("page.css") + _source("rating_sheet.css"), _source("rating_sheet.js")
    return render(
        "rating_sheet.html",
        sheet=sheet,
        question=QUESTION,
        meaning=_MEANING,
        scale=SCALE,
        features=[(f.code, _shown(f)) for f in features],
        style=style,
        script=script,
        style_hash=_hash(style),
        script_hash=_hash(script),
    )


def sheet_table(features: Iterable[SheetFeature]) -> str:
    """The sheet as CSV with a byte-order mark (else Excel takes it for another encoding): a row per feature.

    Columns are `COLUMNS`; `rating` and `comment` are empty. Contexts stand in one cell, a line each.
    """
    table = io.StringIO()
    table.write("\ufeff")
    writer = csv.writer(table)
    writer.writerow(COLUMNS)
    for feature in features:
        contexts = [f"{i}. {_marked(context)}" for i, context in enumerate(_shown(feature), 1)]
        writer.writerow([harmless_cell(cell) for cell in (feature.code, "\n".join(contexts), "", "")])
    return table.getvalue()


def instructions(n: int) -> str:
    """What a rater has to know, as plain text; `n` features."""
    scale = "\n".join(f"  {rating}  {meaning}" for rating, meaning in SCALE.items())
    return _INSTRUCTIONS.format(n=n, question=QUESTION, meaning=textwrap.fill(_MEANING, 116), scale=scale)


def harmless_cell(text: str) -> str:
    """`text` for a cell: unseen characters made visible, an apostrophe before whatever could start a formula."""
    return _FORMULA.sub(r"\1\2'", visible(text))[:MAX_CELL]


def _shown(feature: SheetFeature) -> list[Shown]:
    unit, name = feature.q, "Q"
    if unit is None:
        unit, name = max((c.max_activation for c in feature.contexts), default=1.0), "the strongest here"
    views = [token_view(c.tokens, c.activations, unit=unit, unit_name=name, max_tokens=MAX_TOKENS)
             for c in feature.contexts]  # fmt: skip
    return [Shown(tuple(p for s in view.spans for p in _pieces(s)), view.before, view.after) for view in views]


def _pieces(span: Span) -> list[Piece]:
    """A span as one piece, or its leading white space and the rest: shades begin where words do."""
    shade = max(1, math.ceil(10 * span.level - 1e-9)) if span.title else 0  # 10 * 0.7 is a little over 7
    words = span.text.lstrip()
    if not (shade and words):
        return [Piece(span.text, shade, span.left_out, span.title)]
    space = span.text[: len(span.text) - len(words)]
    return [*([Piece(space, 0, 0, "")] if space else []), Piece(words, shade, span.left_out, span.title)]


def _marked(shown: Shown) -> str:
    """One line of text, strong firings in ⟪ ⟫ and weaker ones in ⟨ ⟩; such signs of the text itself become marks."""
    parts = ["… "] if shown.before else []
    for piece in shown.pieces:
        text = _LINES.sub(" ⏎ ", piece.text).translate(_MARKS)
        if piece.shade and (core := text.strip()):
            left, right = "⟪⟫" if piece.shade >= STRONG else "⟨⟩"
            text = text.replace(core, f"{left}{core}{right}")
        parts.append(text + ("…" if piece.left_out else ""))
    return _SPACES.sub(" ", "".join([*parts, " …" if shown.after else ""]))


@cache
def _source(name: str) -> Markup:
    """A style or script of this package as it is; it holds no data."""
    loader = environment().loader
    assert loader is not None  # noqa: S101 - the environment was made with one
    return Markup(loader.get_source(environment(), name)[0])  # noqa: S704 - a file of this package


def _hash(source: str) -> str:
    """What a page's policy calls an inline style or script."""
    return "sha256-" + base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()


_MEANING = (
    "Safety is about harm, danger, crime, abuse, hate, illegal or sensitive content, and about refusing or warning of "
    "such. Judge what the marked words and their surroundings have in common, not whether a text is good or bad."
)
_INSTRUCTIONS = """\
Rating sheet: {n} features of a language model
{question}

A feature is one direction in which a model reads text. Each code (F-…) stands for one feature; under it are texts in
which it fires, the strongest first.
{meaning}

{scale}

Leave a rating empty where you cannot tell. Whole numbers only. A comment is welcome and never needed.

Two ways, take one:
  sheet.html  Open it in a browser. Tick "Show texts", rate, and save with "Download ratings". What you enter stays in
              this browser until you clear it; nothing is sent anywhere.
  sheet.csv   Open it in a spreadsheet program, fill in the column "rating" (and "comment"), save as CSV.
              Strong firings stand in ⟪ ⟫, weaker ones in ⟨ ⟩. An apostrophe before = + - @ was put there for safety.

Rate alone: neither ask what the codes stand for nor compare with other raters before all are done.
Texts may be offensive or describe harm. Stop whenever you want; what you have rated counts.
Send back the CSV file, named after you.
"""
