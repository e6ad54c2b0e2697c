"""Whether a language model knows an entity: it is asked, and its answer is held against the right ones."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from pydantic import BaseModel, ConfigDict

from seamark.diagnose.entities import EntityTexts
from seamark.diagnose.risk_texts import UNIT
from seamark.errors import ConfigError, DataError
from seamark.model.generation import Generation, generate
from seamark.model.loading import HookedModel, LanguageModel
from seamark.run import progress
from seamark.text.rendering import Rendered, Renderer

NEW_TOKENS = 16


class Asked(BaseModel):
    """What came of asking."""

    model_config = ConfigDict(frozen=True)

    questions: int
    right: int
    known: int
    """Entities all of whose questions were answered right."""
    unknown: int
    """Entities none of whose questions were."""
    mixed: int
    """The others: left out."""


def ask(
    model: HookedModel, texts: EntityTexts, *, chat: bool | None = None, new_tokens: int = NEW_TOKENS
) -> tuple[EntityTexts, Asked]:  # fmt: skip
    """Let the model answer the questions of the entities that nobody has decided on, by its likeliest tokens.

    An entity is known where all its questions are answered right, unknown where none is (as in arXiv 2411.14257);
    others are left out. An answer is right where its words, whatever the capitals, hold those of a right one in a row.

    Args:
        model: a causal language model.
        texts: entities.
        chat: ask with the chat template; None: if the tokenizer has one. Else the model goes on from the question.
        new_tokens: most tokens of an answer.

    Raises:
        ConfigError: the model is no language model; it leaves no room for an answer.
        DataError: a question is longer than the model can take.
    """
    if not isinstance(model, LanguageModel):
        raise ConfigError("only language models answer questions", where=model.name,
                          fix="Give a causal language model, or say in the file which entities are known")  # fmt: skip
    room = model.max_length - new_tokens
    if room < 1 or new_tokens < 1:
        raise ConfigError(f"{new_tokens} new tokens; the model takes {model.max_length}", where=model.name,
                          fix="Ask for 1 at least, and for fewer than that")  # fmt: skip
    renderer, how = model.renderer(room), Generation(max_new_tokens=new_tokens)
    chat = bool(getattr(model.tokenizer, "chat_template", None)) if chat is None else chat
    undecided = set(texts.undecided)
    asked = list(dict.fromkeys((i.entity, i.question, i.answers) for i in texts.items if i.entity in undecided))
    asked = [one for one in asked if one[1] and one[2]]
    said: dict[str, list[bool]] = {}
    with progress("Asking", len(asked), "questions") as advance:
        for entity, question, answers in asked:
            answer = generate(model, _prompt(renderer, question, entity, chat), how)
            written = model.tokenizer.decode(answer.ids.tolist(), skip_special_tokens=True)
            said.setdefault(entity, []).append(any(holds(written, right) for right in answers))
            advance(1)
    decided = {i.entity: i.known for i in texts.items if i.known is not None}
    found = {entity: all(right) for entity, right in said.items() if all(right) or not any(right)}
    return texts.with_known(decided | found), Asked(
        questions=len(asked), right=sum(sum(right) for right in said.values()), known=sum(found.values()),
        unknown=sum(not right for right in found.values()), mixed=len(said) - len(found),
    )  # fmt: skip


def holds(written: str, right: str) -> bool:
    """Whether the words of `written` hold those of `right` in a row."""
    words, wanted = UNIT.findall(written.casefold()), UNIT.findall(right.casefold())
    return bool(wanted) and any(words[i : i + len(wanted)] == wanted for i in range(len(words) - len(wanted) + 1))


def _prompt(renderer: Renderer, question: str, entity: str, chat: bool) -> Rendered:
    text = renderer.render_prompt(question, entity) if chat else renderer.render_text(question, entity)
    if text.truncated:
        raise DataError(f"the question has {len(text) + text.truncated:,} tokens; there is room for {len(text):,}",
                        where=entity[:80], fix="Give a shorter one")  # fmt: skip
    if chat:
        return text
    end = int(np.flatnonzero(~text.special)[-1]) + 1 if not text.special.all() else len(text)
    return replace(text, input_ids=text.input_ids[:end], offsets=text.offsets[:end], special=text.special[:end])
