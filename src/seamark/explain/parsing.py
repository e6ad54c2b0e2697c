"""From what a server sent to a checked JSON object, or to the reason why there is none.

Servers that know structured output send the object alone. Others wrap it: in a fenced block, in a sentence, behind
the thoughts of a reasoning model. What does not fit the schema, was cut off, was refused, or only repeats the
question is no answer: it has a reason instead, and never becomes a score.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

MAX_CANDIDATES = 64
"""Opening braces looked at in a text that is not JSON as a whole: bounds the work on hostile answers."""
MIN_ECHO = 40
"""Characters from which on a repeated text counts as an echo; shorter ones may well be the answer."""

_THOUGHTS = tuple(re.compile(rf"^{any_text}</(?:think|thinking|reasoning)>", re.DOTALL | re.IGNORECASE)
                  for any_text in (".*", ".*?"))  # fmt: skip
"""Up to the last end of thoughts, and up to the first."""
_OPEN_THOUGHT = re.compile(r"^\s*<(?:think|thinking|reasoning)>", re.IGNORECASE)


@dataclass(frozen=True)
class Reply:
    """What one response of a chat completions server holds."""

    text: str
    """The answer, without separate thoughts; "" where the server sent none."""
    thoughts: str = ""
    """What came in a field of its own (`reasoning_content` or `reasoning`)."""
    finish: str = ""
    """`stop`, `length`, `content_filter`, …"""
    refusal: str = ""
    tokens_in: int | None = None
    """Tokens of the request as the server counted them; None: it did not say."""
    tokens_out: int | None = None
    tokens_in_cached: int = 0
    """Of `tokens_in`, those that the server had in its own prompt cache."""


def read_reply(body: Mapping[str, Any]) -> Reply | None:
    """The first choice of a response body; None where it has none (an error in disguise, or a foreign format)."""
    choices = body.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices else None
    message = choice.get("message") if isinstance(choice, Mapping) else None
    if not isinstance(message, Mapping):
        return None
    usage = body.get("usage")
    usage = usage if isinstance(usage, Mapping) else {}
    details = usage.get("prompt_tokens_details")
    cached = details.get("cached_tokens") if isinstance(details, Mapping) else None
    return Reply(
        text=_text(message.get("content")),
        thoughts=_text(message.get("reasoning_content") or message.get("reasoning")),
        finish=str(choice.get("finish_reason") or ""),  # type: ignore[union-attr]
        refusal=_text(message.get("refusal")),
        tokens_in=_count(usage.get("prompt_tokens")),
        tokens_out=_count(usage.get("completion_tokens")),
        tokens_in_cached=_count(cached) or 0,
    )


def parse_reply(reply: Reply, schema: Mapping[str, Any], prompts: tuple[str, ...] = ()) -> dict[str, Any] | str:
    """The JSON object of an answer, checked against its schema, or why there is none.

    Args:
        schema: JSON Schema (draft 2020-12) of an object.
        prompts: the texts that were sent: an answer that only repeats one of them is an echo.
    """
    if reply.refusal or reply.finish == "content_filter":
        return f"refused: {short(reply.refusal)}" if reply.refusal else "refused: content filter"
    text = _without_thoughts(reply.text)
    if reply.finish == "length":
        # An object cut off may hold smaller whole ones: only a text that is whole as it stands is taken.
        found = _loads(text)
        if isinstance(found, dict) and not misfit(found, schema):
            return _clean(found)
        return "cut off: the answer did not fit into its tokens"
    if not text:
        return _from_thoughts(reply, schema)
    if _repeats(text, prompts):
        return "echo: the answer repeats the prompt"
    return _from_text(text, schema, prompts)


def _from_text(text: str, schema: Mapping[str, Any], prompts: tuple[str, ...]) -> dict[str, Any] | str:
    """The one object that fits. Of several different ones none is taken: the first may be quoted from the data."""
    why, fit = "", list[dict[str, Any]]()
    for found in _objects(text):
        misfits = misfit(found, schema)
        why = why or misfits
        if not misfits and found not in fit:
            fit.append(found)
    if len(fit) > 1:
        return f"{len(fit)} different answers in one"
    if not fit:
        return f"does not fit the schema: {why}" if why else f"no JSON object: {short(text, 80)}"
    if _repeats("\n".join(_strings(fit[0])), prompts, whole_only=True):
        return "echo: the answer repeats the prompt"
    return _clean(fit[0])


def _from_thoughts(reply: Reply, schema: Mapping[str, Any]) -> dict[str, Any] | str:
    """Some servers file the whole answer under thoughts; an object in the middle of thoughts is a draft, no answer."""
    if not reply.thoughts.strip():
        return "empty answer"
    text = _without_thoughts(reply.thoughts)
    for start in [m.start() for m in re.finditer(r"\{", text)][:MAX_CANDIDATES]:
        found = _loads(text[start:].removesuffix("```").rstrip())
        if isinstance(found, dict):
            return f"does not fit the schema: {why}" if (why := misfit(found, schema)) else _clean(found)
    return "empty answer: thoughts only"


def misfit(value: Any, schema: Mapping[str, Any]) -> str:
    """Where and how a value breaks its schema (the weightiest error), or "" where it fits."""
    from jsonschema import Draft202012Validator
    from jsonschema.exceptions import best_match

    try:
        error = best_match(Draft202012Validator(schema).iter_errors(value))
    except RecursionError:  # its message would hold what was nested
        return "nested too deeply"
    if error is None:
        return ""
    place = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in error.absolute_path)
    if error.validator in ("minItems", "maxItems"):
        return f"{place.lstrip('.') or 'object'} has {len(error.instance)} items, {error.validator} is " \
               f"{error.validator_value}"  # fmt: skip
    return f"{place.lstrip('.') or 'object'}: {short(error.message, 120)}"


def short(text: str, length: int = 200) -> str:
    """A text on one line, cut to `length` characters, without control characters: for reasons and messages."""
    line = " ".join("".join(c if c.isprintable() else " " for c in text[: 4 * length]).split())
    return line if len(line) <= length else line[: length - 1] + "…"


def without_surrogates(text: str) -> str:
    """Half surrogate pairs become U+FFFD: neither UTF-8 nor SQLite can hold them."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _text(content: Any) -> str:
    """A message's content: a string, a list of parts, or nothing."""
    if isinstance(content, str):
        return without_surrogates(content)
    if isinstance(content, list):
        parts = (part.get("text") for part in content if isinstance(part, Mapping))
        return without_surrogates("".join(part for part in parts if isinstance(part, str)))
    return ""


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def _without_thoughts(text: str) -> str:
    """What comes behind the thoughts. An answer may quote their end: it does where nothing like one is behind that."""
    if isinstance(_loads(text), dict):
        return text.strip()
    behind = [pattern.sub("", text, count=1) for pattern in _THOUGHTS]
    text = next((rest for rest in behind if "{" in rest), behind[0])
    return "" if _OPEN_THOUGHT.match(text) else text.strip()


def _loads(text: str) -> Any:
    """Strict JSON (no NaN), or None."""
    try:
        return json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        return None


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


def _objects(text: str) -> Iterator[dict[str, Any]]:
    """The text itself where it is an object, else whatever in it begins with a brace, in fenced blocks or not."""
    whole = _loads(text)
    if isinstance(whole, dict):
        yield whole
        return
    decoder = json.JSONDecoder(parse_constant=_no_constant)
    at, looked = text.find("{"), 0
    while at >= 0 and looked < MAX_CANDIDATES:
        looked += 1
        end = at + 1
        try:
            found, end = decoder.raw_decode(text, at)
            yield found
        except (ValueError, RecursionError):
            pass
        at = text.find("{", end)


def _repeats(text: str, prompts: tuple[str, ...], *, whole_only: bool = False) -> bool:
    """Whether a text holds a whole prompt, or (unless `whole_only`) is itself a piece of one."""
    line = " ".join(text.split())
    for prompt in (" ".join(p.split()) for p in prompts):
        if len(prompt) >= MIN_ECHO and prompt in line:
            return True
        if not whole_only and len(line) >= MIN_ECHO and line in prompt:
            return True
    return False


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _strings(item)
    elif isinstance(value, list):
        for item in value:
            yield from _strings(item)


def _clean(value: Any) -> Any:
    """The same value without half surrogate pairs, which JSON escapes can bring in."""
    if isinstance(value, str):
        return without_surrogates(value)
    if isinstance(value, dict):
        return {without_surrogates(k): _clean(v) for k, v in value.items()}
    return [_clean(v) for v in value] if isinstance(value, list) else value
