"""One row of a preference file turned into prompt, chosen and rejected: the formats of TRL, hh-rlhf and chat data."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from seamark.text.pairs import Message, Text

ALIASES: Mapping[str, tuple[str, ...]] = {
    "prompt": ("prompt", "question", "instruction", "query"),
    "chosen": ("chosen", "response_chosen", "chosen_response"),
    "rejected": ("rejected", "response_rejected", "rejected_response"),
    "id": ("id", "pair_id", "uid"),
    "source": ("source", "dataset"),
    "category": ("category", "subset"),
}
"""Column names understood without being told, by field, first match wins; `ReadOptions.columns` names others."""

_ROLES = {
    "system": "system", "user": "user", "human": "user", "assistant": "assistant", "gpt": "assistant",
    "model": "assistant", "tool": "tool",
}  # fmt: skip
_TURN = re.compile(r"(?:^|\n\n)\s{0,8}(Human|Assistant):")
_SURROGATE = re.compile("[\ud800-\udfff]")


class BadRowError(Exception):
    """A row cannot be used; the message says why without quoting it."""


@dataclass(frozen=True, slots=True)
class Fields:
    """What a row holds: the three texts, and id, source and category where it has them (else "")."""

    prompt: Text
    chosen: Text
    rejected: Text
    id: str = ""
    source: str = ""
    category: str = ""


def parse_row(row: Mapping[str, Any], columns: Mapping[str, str]) -> Fields:
    """The fields of `row`. `columns` maps field to column name; fields absent from it are looked for by `ALIASES`.

    An explicit prompt stays; without one the part that chosen and rejected share is the prompt: the leading messages
    of a chat, the leading turns of a `Human: … Assistant: …` transcript, or the leading words of a string. Texts that
    are chats or transcripts become messages on all three sides.

    Raises:
        BadRowError: with the reason, which never holds the row's text.
    """
    values = {name: _value(row, name, columns) for name in ALIASES}
    chosen, rejected = _side(values["chosen"], "chosen"), _side(values["rejected"], "rejected")
    prompt = None
    if values["prompt"] or (column_of(row, "prompt", columns) is not None and not _all_chats(chosen, rejected)):
        prompt = _side(values["prompt"], "prompt")
        prompt = _transcript(prompt) or prompt if isinstance(prompt, str) else prompt
    prompt, chosen, rejected = _arrange(prompt, *_open_transcripts(prompt, chosen, rejected))
    _check_sides(prompt, chosen, rejected)
    return Fields(prompt, chosen, rejected, _row_id(values["id"]), _label(values["source"]), _label(values["category"]))


def column_of(row: Mapping[str, Any], name: str, columns: Mapping[str, str]) -> str | None:
    """The column of `row` that holds a field, or None."""
    if name in columns:
        return columns[name] if columns[name] in row else None
    return next((alias for alias in ALIASES[name] if alias in row), None)


def text_of(text: Text) -> str:
    """The words of a text without roles: a string itself, or the contents of messages joined by blank lines."""
    return text if isinstance(text, str) else "\n\n".join(m.content for m in text)


def _value(row: Mapping[str, Any], name: str, columns: Mapping[str, str]) -> Any:
    column = column_of(row, name, columns)
    return None if column is None else row[column]


def check_text(text: str, name: str) -> str:
    """`text`, or BadRowError where no tokenizer could read it."""
    if "\x00" in text:
        raise BadRowError(f"{name} holds a NUL character")
    if _SURROGATE.search(text):
        raise BadRowError(f"{name} is not valid UTF-8 (a lone surrogate or a foreign encoding)")
    return text


def _side(value: Any, name: str) -> Text:
    if value is None:
        raise BadRowError(f"{name} is missing")
    if isinstance(value, str):
        return check_text(value, name)
    if isinstance(value, Mapping):
        value = [value]
    if isinstance(value, Sequence) and not isinstance(value, bytes):
        if not value:
            raise BadRowError(f"{name} is empty")
        return _messages(value, name)
    raise BadRowError(f"{name} has the wrong type ({type(value).__name__}; text or messages are needed)")


def _messages(value: Sequence[Any], name: str) -> tuple[Message, ...]:
    messages = []
    for i, item in enumerate(value, 1):
        where = f"message {i} of {name}"
        if not isinstance(item, Mapping):
            raise BadRowError(f"{where} has the wrong type ({type(item).__name__}; role and content are needed)")
        role, content = item.get("role", item.get("from")), item.get("content", item.get("value"))
        if not isinstance(role, str) or role.lower() not in _ROLES:
            raise BadRowError(f"{where} has an unknown role")
        messages.append(Message(_ROLES[role.lower()], check_text(_content(content, where), where)))
    return tuple(messages)


def _content(content: Any, where: str) -> str:
    """The text of a message; lists of text parts, as chat APIs write them, are joined."""
    if isinstance(content, str):
        return content
    if isinstance(content, Sequence) and not isinstance(content, bytes):
        texts = [p.get("text") for p in content if isinstance(p, Mapping) and p.get("type", "text") == "text"]
        if len(texts) == len(content) and all(isinstance(t, str) for t in texts):
            return "".join(str(t) for t in texts)
    raise BadRowError(f"{where} has content that is no text")


def _transcript(text: str) -> tuple[Message, ...] | None:
    """Messages of an hh-rlhf transcript (`\\n\\nHuman: … \\n\\nAssistant: …`), or None where the text is none."""
    turns = list(_TURN.finditer(text))
    if not turns or text[: turns[0].start()].strip() or turns[0].group(1) != "Human":
        return None
    ends = [t.start() for t in turns[1:]] + [len(text)]
    contents = [text[t.end() : end].strip() for t, end in zip(turns, ends, strict=True)]
    roles = ["user" if t.group(1) == "Human" else "assistant" for t in turns]
    return tuple(Message(r, c) for r, c in zip(roles, contents, strict=True))


def _all_chats(chosen: Text, rejected: Text) -> bool:
    sides = [_transcript(side) if isinstance(side, str) else side for side in (chosen, rejected)]
    return all(side is not None for side in sides)


def _open_transcripts(prompt: Text | None, chosen: Text, rejected: Text) -> tuple[Text, Text]:
    """Both sides as messages where they are transcripts of one conversation, that of the prompt if there is one.

    An answer that merely goes on to write turns of its own, as some models do, stays the string it is.
    """
    if not (isinstance(chosen, str) and isinstance(rejected, str)):
        return chosen, rejected
    good, bad = _transcript(chosen), _transcript(rejected)
    if good is None or bad is None:
        return chosen, rejected
    if prompt is not None:
        question = (prompt if isinstance(prompt, str) else prompt[-1].content).strip()
        shared = [a.content for a, b in zip(good, bad, strict=False) if a == b and a.role == "user"]
        if question not in shared:
            return chosen, rejected
    return good, bad


def _arrange(prompt: Text | None, chosen: Text, rejected: Text) -> tuple[Text, Text, Text]:
    """Prompt, chosen and rejected with what they share moved to the prompt, all strings or all messages."""
    if isinstance(prompt, tuple) and prompt and prompt[-1] == Message("assistant", ""):
        prompt = prompt[:-1]  # a transcript that ends with "Assistant:" asks for the answer
    if prompt is None:
        if isinstance(chosen, str) and isinstance(rejected, str):
            return _split_strings(chosen, rejected)
        return _split_messages(_as_chat(chosen), _as_chat(rejected))
    if isinstance(prompt, str) and isinstance(chosen, str) and isinstance(rejected, str):
        return prompt, chosen, rejected
    asked = (Message("user", prompt),) if isinstance(prompt, str) else prompt
    good, bad = _after(asked, _as_chat(chosen)), _after(asked, _as_chat(rejected))
    if good[0].role != "assistant" and bad[0].role != "assistant":
        return _split_messages(good, bad)  # the prompt column holds e.g. the last question only
    return asked, good, bad


def _as_chat(text: Text) -> tuple[Message, ...]:
    return (Message("assistant", text),) if isinstance(text, str) else text


def _after(prompt: tuple[Message, ...], side: tuple[Message, ...]) -> tuple[Message, ...]:
    """`side` without the prompt, where it repeats it (as many chat data sets do)."""
    start = [m.content.strip() for m in side[: len(prompt)]]
    repeats = len(side) > len(prompt) and start == [m.content.strip() for m in prompt]
    return side[len(prompt) :] if repeats else side


def _split_messages(chosen: tuple[Message, ...], rejected: tuple[Message, ...]) -> tuple[Text, Text, Text]:
    most = min(len(chosen), len(rejected)) - 1
    n = 0
    while n < most and chosen[n] == rejected[n]:
        n += 1
    if n == 0:
        raise BadRowError("chosen and rejected share no prompt")
    return chosen[:n], chosen[n:], rejected[n:]


def _split_strings(chosen: str, rejected: str) -> tuple[Text, Text, Text]:
    most = min(len(chosen), len(rejected))
    n = next((i for i in range(most) if chosen[i] != rejected[i]), most)
    if chosen == rejected:
        raise BadRowError("chosen and rejected are identical")
    while n > 0 and not (chosen[n - 1].isspace() and chosen[n:].strip() and rejected[n:].strip()):
        n -= 1
    if not chosen[:n].strip():
        raise BadRowError("chosen and rejected share no prompt")
    return chosen[:n].rstrip(), chosen[n:], rejected[n:]


def _check_sides(prompt: Text, chosen: Text, rejected: Text) -> None:
    if not text_of(prompt).strip():
        raise BadRowError("prompt is empty")
    for name, side in (("chosen", chosen), ("rejected", rejected)):
        if not text_of(side[-1:] if isinstance(side, tuple) else side).strip():
            raise BadRowError(f"{name} is empty")
        if isinstance(side, tuple) and side[0].role != "assistant":
            raise BadRowError("chosen and rejected answer different prompts")
        if isinstance(side, tuple) and side[-1].role != "assistant":
            raise BadRowError(f"{name} does not end with the assistant's turn")
    if isinstance(prompt, tuple) and prompt[-1].role == "assistant":
        raise BadRowError("prompt does not end with the user's turn")
    if text_of(chosen).strip() == text_of(rejected).strip():
        raise BadRowError("chosen and rejected are identical")


def _row_id(value: Any) -> str:
    """The row's own id as text, or "" where it has none that can serve."""
    if isinstance(value, bool) or not isinstance(value, str | int):
        return ""
    text = str(value).strip()
    return text if len(text) <= 200 and text.isprintable() else ""


def _label(value: Any) -> str:
    if isinstance(value, str) and not _SURROGATE.search(value):
        return value
    return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else ""
