"""A text as it is looked into: rendered as in training, or a prompt with what a language model answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from seamark.diagnose.inspection import GeneratedAnswer, SpanName
from seamark.diagnose.pieces import added_pieces, token_pieces
from seamark.diagnose.units import check_text
from seamark.errors import ConfigError
from seamark.model.generation import Generation
from seamark.model.generation import generate as write_answer
from seamark.model.loading import HookedModel, LanguageModel
from seamark.text.pairs import Text, plain
from seamark.text.rendering import Rendered


@dataclass(frozen=True)
class ShownText:
    """A text to read, and the piece of text each token stands for."""

    rendered: Rendered
    pieces: Sequence[str]
    generated: GeneratedAnswer | None = None

    def span(self, token: int) -> SpanName:
        """The part of the conversation that a token belongs to."""
        r = self.rendered
        spans: tuple[tuple[SpanName, tuple[int, int]], ...] = (("prompt", r.prompt_span), ("response", r.response_span))
        return next((name for name, (start, end) in spans if start <= token < end), "template")


def shown_text(
    model: HookedModel, prompt: Text, answer: Text | None = None, *, max_tokens: int,
    generate: Generation | None = None, chat: bool = True,
) -> ShownText:  # fmt: skip
    """With an answer, prompt and answer are rendered as a scan renders a pair's. Without one, a language model's prompt
    goes up to where its answer begins, any other model's text is a conversation with an empty answer.

    Args:
        generate: let a language model write the answer; the ids it read and chose are the text.
        chat: render as a conversation; else `prompt`, a string, is a plain text without template.

    Raises:
        DataError: an empty prompt, one that is too long, a lone surrogate, roles that the template refuses.
        ConfigError: an answer and `generate`; `generate` with a model that is no language model, or without room.
    """
    check_text(prompt, answer)
    if generate is not None and answer is not None:
        raise ConfigError("an answer is given, and another one is to be generated", fix="Give one or the other")
    if not chat and (answer is not None or generate is not None or not isinstance(prompt, str)):
        raise ConfigError("a plain text has neither answer nor roles", fix="Read it as a conversation")
    if generate is None:
        return _given(model, prompt, answer, max_tokens, chat)
    if not isinstance(model, LanguageModel):
        raise ConfigError("only language models generate", where=model.name, fix="Give an answer")
    return _written(model, prompt, max_tokens, generate)


def _given(model: HookedModel, prompt: Text, answer: Text | None, max_tokens: int, chat: bool) -> ShownText:
    renderer = model.renderer(max_tokens)
    if not chat:
        rendered = renderer.render_text(plain(prompt), "text")
    elif answer is None and isinstance(model, LanguageModel):
        rendered = renderer.render_prompt(prompt, "text")
    else:
        rendered = renderer.render(prompt, "" if answer is None else answer, "text")
    return ShownText(rendered, token_pieces(model.tokenizer, rendered))


def _written(model: LanguageModel, prompt: Text, max_tokens: int, how: Generation) -> ShownText:
    """The prompt and what the model answers, as the ids that it read and chose."""
    room = model.max_length - how.max_new_tokens
    if room < 1:
        raise ConfigError(f"{how.max_new_tokens} new tokens leave no room for a prompt: the model takes "
                          f"{model.max_length}", where=model.name, fix="Ask for fewer")  # fmt: skip
    before = model.renderer(min(room, max_tokens)).render_prompt(prompt, "text")
    answer = write_answer(model, before, how)
    added = added_pieces(model.tokenizer, answer.ids, int(before.input_ids[-1]))
    n, m = len(before), len(answer.ids)
    rendered = Rendered(
        before.text_id, np.concatenate([before.input_ids, answer.ids]), np.pad(before.offsets, ((0, m), (0, 0))),
        before.text, before.prompt_span, (n, n + m - (answer.stopped == "end")),
        np.concatenate([before.special, added.special]), before.truncated,
    )  # fmt: skip
    about = GeneratedAnswer(how=how, stopped=answer.stopped, tokens=m)
    return ShownText(rendered, [*token_pieces(model.tokenizer, before), *added.text], about)
