"""Chat templates as text: where prompt and response lie in it, on a fixed date, safe from control tokens in data.

Positions are found with marker characters: the template is rendered a second time with a private character at each
end of prompt and response. The markers stand inside the outer whitespace of a message, so `trim` in a template still
works, and they are believed only where removing them gives back the first rendering; what a model sees is always
the unmarked text. Templates that inspect or cut contents are met with a fallback that compares with the prompt alone.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from jinja2.exceptions import TemplateError

from seamark.errors import DataError
from seamark.text.pairs import Message, Text

Apply = Callable[[Sequence[Message], bool], str]
"""Renders messages, with or without the header of the next answer."""

DEFAULT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ message['role'] | capitalize }}: {{ message['content'] | trim }}"
    "{% if not loop.last %}{{ '\\n\\n' }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '\\n\\nAssistant: ' }}{% endif %}"
)
"""What a tokenizer without a chat template gets: `User: …`, a blank line, `Assistant: …`."""

PINNED_DATE = "26 Jul 2024"
"""The day every template believes in, so that what a model reads does not depend on when it reads it."""

_PINNED_DIRECTIVES = {
    "%Y": "2024", "%y": "24", "%m": "07", "%-m": "7", "%d": "26", "%-d": "26", "%e": "26", "%b": "Jul", "%B": "July",
    "%a": "Fri", "%A": "Friday", "%j": "208", "%H": "12", "%I": "12", "%M": "00", "%S": "00", "%p": "PM", "%Z": "",
}  # fmt: skip
# A macro of the same name shadows the function that tells templates the time; it works in every transformers version.
_PIN_CLOCK = (
    "{%- macro strftime_now(format) -%}{{- format"
    + "".join(f" | replace({k!r}, {v!r})" for k, v in _PINNED_DIRECTIVES.items())
    + " -}}{%- endmacro %}"
)
_PRIVATE = [chr(c) for c in range(0x10FF00, 0x10FFFE)]


@dataclass(frozen=True, slots=True)
class Layout:
    """A rendered conversation: its text, the character ranges of prompt and response, and where to cut it.

    Every control-token string that the data hold is cut after its first character (`cuts`): the pieces are
    tokenised apart, so the string stays the text it is and never becomes the control token.
    """

    text: str
    prompt: tuple[int, int]
    response: tuple[int, int]
    cuts: tuple[int, ...]


def as_messages(text: Text, role: str) -> tuple[Message, ...]:
    """Chat messages of a text; a plain string is one message of `role`."""
    return (Message(role, text),) if isinstance(text, str) else text


def control_pattern(strings: Iterable[str]) -> re.Pattern[str] | None:
    """A pattern that finds the second character of every control string, overlapping ones too."""
    long_first = sorted({s for s in strings if len(s) > 1}, key=lambda s: (-len(s), s))
    if not long_first:
        return None
    # Behind the first character of a control string: there a cut makes the string unrecognisable.
    return re.compile("|".join(f"(?<={re.escape(s[0])})(?={re.escape(s[1:])})" for s in long_first), re.IGNORECASE)


def chat_renderer(tokenizer: Any, template: str, text_id: str) -> Apply:
    """A function that renders messages by `template` on the pinned date; DataError where the template refuses."""
    source = _PIN_CLOCK + template if "strftime_now" in template else template

    def render(messages: Sequence[Message], generation: bool) -> str:
        chat = [{"role": m.role, "content": m.content} for m in messages]
        text: str = tokenizer.apply_chat_template(
            chat,
            chat_template=source,
            tokenize=False,
            add_generation_prompt=generation,
            date_string=PINNED_DATE,
        )
        return text

    def apply(messages: Sequence[Message], generation: bool) -> str:
        try:
            return render(messages, generation)
        except TemplateError as error:
            if len(messages) > 1 and messages[0].role == "system" and messages[1].role == "user":
                return apply(_fold_system(messages), generation)  # e.g. Gemma knows no system role
            why = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise DataError(
                f"the chat template refuses this conversation ({why})",
                where=text_id,
                fix="Check the order of roles, or pass another template",
            ) from error

    return apply


def lay_out(
    apply: Apply, prompt: Sequence[Message], response: Sequence[Message], control: re.Pattern[str] | None
) -> Layout:
    """Render prompt and response together and find both in the text.

    Ranges leave out whitespace at the outer ends of prompt and response. An empty response has an empty range.
    """
    contents = "".join(m.content for m in (*prompt, *response))
    cut, *marks = [c for c in _PRIVATE if c not in contents][:5]
    cut_prompt, cut_response = _with_cuts(prompt, control, cut), _with_cuts(response, control, cut)
    base = apply([*cut_prompt, *cut_response], False)
    marked_prompt, marked_response = _wrap(cut_prompt, *marks[:2]), _wrap(cut_response, *marks[2:])
    if marked_prompt is not None and marked_response is not None:
        marked = apply([*marked_prompt, *marked_response], False)
        found = _read_marks(marked, base, marks, cut)
        if found is not None:
            return found
    return _search(apply, cut_prompt, cut_response, base, cut)


def lay_out_prompt(apply: Apply, prompt: Sequence[Message], control: re.Pattern[str] | None) -> Layout:
    """Render the prompt with the header of the next answer, and find it in the text; the response is empty, at the end.

    The range leaves out whitespace at the prompt's outer ends.
    """
    contents = "".join(m.content for m in prompt)
    cut, *marks = [c for c in _PRIVATE if c not in contents][:3]
    cut_prompt = _with_cuts(prompt, control, cut)
    base = apply(cut_prompt, True)
    wrapped = _wrap(cut_prompt, *marks)
    marked = apply(wrapped, True) if wrapped is not None else ""
    if re.sub("[" + "".join(marks) + "]", "", marked) == base and all(m in marked for m in marks):
        at = (marked.find(marks[0]), marked.rfind(marks[1]))
        start, end = (i - sum(marked.count(c, 0, i) for c in (*marks, cut)) for i in at)
        length = len(base.replace(cut, ""))
        return _layout(base, cut, (start, max(start, end)), (length, length))
    return _search(apply, cut_prompt, (), base, cut)


def _fold_system(messages: Sequence[Message]) -> list[Message]:
    """The system message put before the first user message, for templates without a system role."""
    system, user, *rest = messages
    return [Message("user", f"{system.content}\n\n{user.content}"), *rest]


def _with_cuts(messages: Sequence[Message], control: re.Pattern[str] | None, cut: str) -> list[Message]:
    if control is None:
        return list(messages)
    return [Message(m.role, control.sub(cut, m.content)) for m in messages]


def _wrap(messages: Sequence[Message], opening: str, closing: str) -> list[Message] | None:
    """Messages with a marker at both ends of the whole, inside outer whitespace; None where an end is empty."""
    if not messages or not messages[0].content.strip() or not messages[-1].content.strip():
        return None
    first, wrapped = messages[0], list(messages)
    lead = len(first.content) - len(first.content.lstrip())
    wrapped[0] = Message(first.role, first.content[:lead] + opening + first.content[lead:])
    last = wrapped[-1]
    tail = len(last.content.rstrip())
    wrapped[-1] = Message(last.role, last.content[:tail] + closing + last.content[tail:])
    return wrapped


def _read_marks(marked: str, base: str, marks: Sequence[str], cut: str) -> Layout | None:
    """The layout that the markers tell, or None where the template lost one or wrote another text because of them."""
    if re.sub("[" + "".join(marks) + "]", "", marked) != base or any(m not in marked for m in marks):
        return None
    # A template may repeat a message: the response is its last occurrence, the prompt starts at its first.
    at = [marked.find(marks[0]), *(marked.rfind(m) for m in marks[1:])]
    if not at[0] < at[1] < at[2] < at[3]:
        return None
    plain_at = [i - sum(marked.count(c, 0, i) for c in (*marks, cut)) for i in at]
    return _layout(base, cut, (plain_at[0], plain_at[1]), (plain_at[2], plain_at[3]))


def _search(apply: Apply, prompt: Sequence[Message], response: Sequence[Message], base: str, cut: str) -> Layout:
    """Find the response as what follows the prompt rendered alone, the prompt as what stands before it."""
    text = base.replace(cut, "")
    before = apply(list(prompt), True).replace(cut, "") if prompt else ""
    start = next((i for i, (a, b) in enumerate(zip(before, text, strict=False)) if a != b), min(len(before), len(text)))
    core = "".join(m.content for m in response[-1:]).replace(cut, "").strip()
    # Of several messages the last one ends the response; of one the first place behind the prompt is its own.
    at = (text.find if len(response) == 1 else text.rfind)(core, start) if core else -1
    if at >= 0:
        start, end = (at if len(response) == 1 else start), at + len(core)
    elif core and text[start:].strip():  # the template rewrote the response: take all that it added
        end = len(text.rstrip())
    else:
        end = start
    first = "".join(m.content for m in prompt[:1]).replace(cut, "").strip()
    last = "".join(m.content for m in prompt[-1:]).replace(cut, "").strip()
    prompt_start = max(text.find(first, 0, start), 0) if first else 0
    prompt_end = text.rfind(last, prompt_start, start) + len(last) if last else prompt_start
    if prompt_end < prompt_start + len(last):
        prompt_end = start
    return _layout(base, cut, (prompt_start, prompt_end), (start, end))


def _layout(base: str, cut: str, prompt: tuple[int, int], response: tuple[int, int]) -> Layout:
    pieces = base.split(cut)
    cuts, at = [], 0
    for piece in pieces[:-1]:
        at += len(piece)
        cuts.append(at)
    return Layout("".join(pieces), prompt, response, tuple(cuts))
