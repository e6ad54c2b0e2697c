"""What a simulating language model is asked: an explanation, texts cut into numbered units, a number for each unit.

Segment and token mode share one prompt file and one form of request and answer. They differ in the unit and in its
scale (0 or 1, 0 to 10), and in nothing else, so that a comparison of their cost is one of the units: neither repeats
the text, asks for the units back or has examples, and a unit is one line and one integer in both.

Explanation and texts are data of others. Instructions stand in the system's message alone; the user's holds nothing
but data, in lines that begin with a number, and no text can begin a line of its own (`presenting.escape`).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from seamark.explain.llm import Request
from seamark.explain.presenting import escape
from seamark.explain.prompts import load_prompt
from seamark.explain.records import Explanation, Key, Level
from seamark.explain.segments import segments
from seamark.features.context_choice import LEVELS
from seamark.features.contexts import Context

STAGE = "simulate"
PROMPT = "simulate-1"
UNIT_CHARS = 400
"""Characters of a unit; the middle of a longer one is left out."""
EXPLANATION_CHARS = 1200
ANSWER_TOKENS, UNIT_TOKENS = 64, 6
"""Room in an answer, and for each of its integers: models write them with spaces and line breaks."""
_SCALES = {
    "segment": ("segment", "0 (silent) or 1 (active)"),
    "token": ("token", "from 0 (silent) to 10 (most active)"),
}
_FORMS = {False: ("a text", "[…]"), True: ("several texts, parted by lines ==", "[[…], …]")}
"""Of one text, and of a batch: what is sent, and the form of the answer, a list for each text."""


@dataclass(frozen=True)
class Query:
    """One call: some texts of a feature."""

    key: Key
    texts: tuple[int, ...]
    """Which of the feature's texts."""
    lengths: tuple[int, ...]
    """Units of each."""
    level: Level
    request: Request
    nested: bool
    """Whether the answer is a list of lists: where texts are batched."""

    def read(self, data: Mapping[str, Any]) -> list[list[int]] | str:
        """The values of each text, or why the answer cannot be used: never a guess, never a shorter list."""
        values = data.get("values")
        lists = values if self.nested else [values]
        if not isinstance(lists, list) or len(lists) != len(self.lengths):
            return f"not {len(self.lengths)} lists of values"
        most = 1 if self.level == "segment" else LEVELS
        for mine, n in zip(lists, self.lengths, strict=True):
            if not isinstance(mine, list) or len(mine) != n:
                return f"{len(mine) if isinstance(mine, list) else 'no'} values for {n} {self.level}s"
            if not all(type(v) in (int, float) and 0 <= v <= most and v == int(v) for v in mine):
                return f"a value that is no integer from 0 to {most}"
        return [[int(v) for v in mine] for mine in lists]


def units(context: Context, level: Level, longest: int) -> list[str]:
    """The text's segments or tokens."""
    if level == "token":
        return list(context.tokens)
    return ["".join(context.tokens[start:end]) for start, end in segments(context.tokens, longest)]


def queries(explanation: Explanation, texts: Sequence[Sequence[str]], level: Level, batch: int = 1) -> Iterator[Query]:
    """The calls that simulate a feature on texts, given as their units; `batch` texts in each."""
    for start in range(0, len(texts), batch):
        some = texts[start : start + batch]
        lengths = tuple(map(len, some))
        request = _request(explanation, some, level, nested=batch > 1)
        yield Query(explanation.key, tuple(range(start, start + len(some))), lengths, level, request, batch > 1)


def check_queries(asked: Sequence[Query]) -> Callable[[Request, Mapping[str, Any]], str]:
    """Says of an answer why it cannot be used, empty where it can: what a client asks again for."""
    by_text = {(q.request.system, q.request.user): q for q in asked}

    def check(request: Request, data: Mapping[str, Any]) -> str:
        found = by_text[request.system, request.user].read(data)
        return found if isinstance(found, str) else ""

    return check


def answer_text(values: Sequence[Sequence[int]], *, nested: bool) -> str:
    """The answer as it is asked for, without any white space."""
    return json.dumps({"values": list(map(list, values)) if nested else list(values[0])}, separators=(",", ":"))


def _request(explanation: Explanation, texts: Sequence[Sequence[str]], level: Level, *, nested: bool) -> Request:
    unit, scale = _SCALES[level]
    of, form = _FORMS[nested]
    lines = [f"0: {escape(_short(explanation.text or '', EXPLANATION_CHARS))}"]
    for text in texts:
        lines += ["=="] if nested else []
        lines += [f"{i}:{escape(_short(unit_text, UNIT_CHARS))}" for i, unit_text in enumerate(text, 1)]
    system, user = load_prompt(PROMPT).fill(
        {"unit": unit, "texts": of, "scale": scale, "form": form, "data": "\n".join(lines)}
    )
    room = ANSWER_TOKENS + UNIT_TOKENS * sum(map(len, texts))
    return Request(STAGE, system, user, _schema(level, nested=nested), f"{level}_values", max_output_tokens=room)


def _schema(level: Level, *, nested: bool) -> dict[str, Any]:
    """The same for all texts, so that a server compiles it once; lengths are checked by `Query.read`."""
    integer = {"type": "integer", "minimum": 0, "maximum": 1 if level == "segment" else LEVELS}
    values: dict[str, Any] = {"type": "array", "items": integer}
    values = {"type": "array", "items": values} if nested else values
    return {"type": "object", "properties": {"values": values}, "required": ["values"], "additionalProperties": False}


def _short(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most // 2]} … {text[-most // 2 :]}"
