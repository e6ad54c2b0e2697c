"""Texts as a model sees them: chat template, tokens, and which tokens are the prompt and which the response."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from seamark.errors import ConfigError, DataError, ModelError
from seamark.text.pairs import PreferencePair, Text
from seamark.text.templates import (
    DEFAULT_TEMPLATE,
    Layout,
    as_messages,
    chat_renderer,
    control_pattern,
    lay_out,
    lay_out_prompt,
)


@dataclass(frozen=True, slots=True, eq=False)
class Rendered:
    """One tokenised text of T tokens and where its prompt and response lie.

    Spans are half-open ranges of token indices. The special tokens a template or tokenizer adds lie outside
    `response_span` and at no edge of `prompt_span`; between the turns of a long prompt they are found by `special`.
    """

    text_id: str
    """`<pair id>:chosen`, `<pair id>:rejected`, or any id."""
    input_ids: NDArray[np.int32]
    """[T] token ids, no padding."""
    offsets: NDArray[np.int32]
    """[T, 2] character ranges in `text`; (0, 0) for special tokens. Response tokens never reach out of the response."""
    text: str
    """What was tokenised, whole (also the part that truncation dropped)."""
    prompt_span: tuple[int, int]
    """Tokens of the prompt's messages, without the template's opening and without the header of the answer."""
    response_span: tuple[int, int]
    """Tokens of the response; an empty range where the response is empty."""
    special: NDArray[np.bool_]
    """[T] tokens added by template or tokenizer that stand for no text."""
    truncated: int = 0
    """Tokens dropped at the left to fit `max_length`."""

    def __len__(self) -> int:
        return len(self.input_ids)


class Renderer:
    """Turns pairs and texts into tokens, the same way wherever a model reads them.

    Conversations go through `template` (Jinja), else the tokenizer's own chat template, else `DEFAULT_TEMPLATE`; the
    date a template prints is pinned. With a chat template nothing else is added; with the default template and for
    plain texts the tokenizer adds its own special tokens (BOS, CLS, SEP). Control-token strings in data stay text.

    Args:
        tokenizer: a fast Hugging Face tokenizer.
        max_length: most tokens of a text; what is too long loses tokens at its left end, behind BOS or CLS.
        template: a Jinja chat template to use instead of the tokenizer's, or "default" for `DEFAULT_TEMPLATE`.

    Raises:
        ModelError: the tokenizer cannot tell which characters a token stands for (no fast tokenizer).
        ConfigError: `max_length` leaves no room for text.
    """

    def __init__(self, tokenizer: Any, max_length: int | None, template: str | None = None) -> None:
        name = str(getattr(tokenizer, "name_or_path", "") or type(tokenizer).__name__)
        if not getattr(tokenizer, "is_fast", False):
            raise ModelError(
                "this tokenizer gives no character offsets",
                where=name,
                fix="Save it as a fast tokenizer (tokenizer.json)",
            )
        self.tokenizer, self.max_length = tokenizer, max_length
        self.truncated_texts = 0
        """Texts that lost tokens to `max_length` so far."""
        own = None if template == "default" else template or _own_template(tokenizer)
        self.template: str = own or DEFAULT_TEMPLATE
        self._adds_special = own is None
        self._control = _control_tokens(tokenizer, self.template)
        self._pattern = control_pattern(self._control.values())
        self._left, self._right = _added_around(tokenizer)
        self._openers = {i for i in (tokenizer.bos_token_id, tokenizer.cls_token_id) if i is not None}
        if max_length is not None and max_length < len(self._left) + len(self._right) + 1:
            raise ConfigError(f"max_length {max_length} leaves no room for text", where=name, fix="Raise max_length")

    def fingerprint(self) -> str:
        """SHA-256 of all that decides how a text becomes tokens: tokenizer, template, special tokens, most tokens."""
        parts = [self.tokenizer.backend_tokenizer.to_str(), self.template, str(self._adds_special),
                 str(sorted(self._openers)), str(self.max_length)]  # fmt: skip
        return hashlib.sha256("\0".join(parts).encode("utf-8", "surrogatepass")).hexdigest()

    def render(self, prompt: Text, response: Text, text_id: str) -> Rendered:
        """The conversation `prompt` + `response` as tokens. DataError where the template refuses its roles."""
        apply = chat_renderer(self.tokenizer, self.template, text_id)
        layout = lay_out(apply, as_messages(prompt, "user"), as_messages(response, "assistant"), self._pattern)
        return self._tokenise(layout, text_id, around=self._adds_special)

    def render_prompt(self, prompt: Text, text_id: str) -> Rendered:
        """The conversation up to where an answer begins: what a language model is given to go on from.

        The response is empty, at the end, and special tokens that a tokenizer puts behind a text are left out.
        DataError where the template refuses its roles.
        """
        apply = chat_renderer(self.tokenizer, self.template, text_id)
        layout = lay_out_prompt(apply, as_messages(prompt, "user"), self._pattern)
        if self._adds_special:  # the default template: the space before an answer belongs to the answer's first token
            text = layout.text.rstrip(" ")
            layout = Layout(text, layout.prompt, (len(text), len(text)), layout.cuts)
        return self._tokenise(layout, text_id, around=self._adds_special, close=False)

    def render_pair(self, pair: PreferencePair) -> tuple[Rendered, Rendered]:
        """(chosen, rejected), with text ids `<pair id>:chosen` and `<pair id>:rejected`."""
        return (
            self.render(pair.prompt, pair.chosen, f"{pair.id}:chosen"),
            self.render(pair.prompt, pair.rejected, f"{pair.id}:rejected"),
        )

    def render_text(self, text: str, text_id: str) -> Rendered:
        """A plain text without template: all of it is response, the prompt is empty."""
        cuts = tuple(m.start() for m in self._pattern.finditer(text)) if self._pattern else ()
        return self._tokenise(Layout(text, (0, 0), (0, len(text)), cuts), text_id, around=True)

    def _tokenise(self, layout: Layout, text_id: str, *, around: bool, close: bool = True) -> Rendered:
        ids, offsets = self._encode(layout, text_id)
        special = self._special(layout, ids, offsets)
        response = _token_span(offsets, special, layout.response)
        prompt = _token_span(offsets, special, layout.prompt)
        prompt = (min(prompt[0], response[0]), min(prompt[1], response[0]))
        inside = slice(*response)
        offsets[inside] = np.clip(offsets[inside], *layout.response)
        offsets[special] = 0
        if around:
            right = self._right if close else self._right[:0]
            n_left, n_right = len(self._left), len(right)
            ids = np.concatenate([self._left, ids, right])
            special = np.pad(special, (n_left, n_right), constant_values=True)
            offsets = np.pad(offsets, ((n_left, n_right), (0, 0)))
            prompt, response = (
                (prompt[0] + n_left, prompt[1] + n_left),
                (response[0] + n_left, response[1] + n_left),
            )
        rendered = Rendered(text_id, ids, offsets, layout.text, prompt, response, special)
        return self.truncate(rendered)

    def _encode(self, layout: Layout, text_id: str) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """Ids [T] and character offsets [T, 2] of a text, its pieces between cuts tokenised apart."""
        starts, ends = (0, *layout.cuts), (*layout.cuts, len(layout.text))
        pieces = [layout.text[a:b] for a, b in zip(starts, ends, strict=True)]
        try:
            encoded = self.tokenizer(
                pieces, add_special_tokens=False, return_offsets_mapping=True, return_attention_mask=False,
                verbose=False,
            )  # fmt: skip
        except (UnicodeEncodeError, TypeError) as error:
            raise DataError("the text holds a lone surrogate, which has no encoding", where=text_id) from error
        ids = [np.asarray(i, dtype=np.int32) for i in encoded["input_ids"]]
        offsets = [
            np.asarray(o, dtype=np.int32).reshape(-1, 2) + start
            for o, start in zip(encoded["offset_mapping"], starts, strict=True)
        ]
        return np.concatenate(ids), np.concatenate(offsets).astype(np.int32)

    def _special(self, layout: Layout, ids: NDArray[np.int32], offsets: NDArray[np.int32]) -> NDArray[np.bool_]:
        """Which tokens are control tokens written by the template, not e.g. UNK in place of a rare word. [T]"""
        special = np.zeros(len(ids), dtype=np.bool_)
        for i in np.flatnonzero(np.isin(ids, list(self._control))):
            literal = layout.text[offsets[i, 0] : offsets[i, 1]]
            special[i] = self._control[int(ids[i])] in literal
        return special

    def truncate(self, r: Rendered) -> Rendered:
        """`r` without the tokens at the left that exceed `max_length`; a leading BOS or CLS stays."""
        lost = len(r) - self.max_length if self.max_length is not None else 0
        if lost <= 0:
            return r
        self.truncated_texts += 1
        keep = 0
        while keep < len(r) and int(r.input_ids[keep]) in self._openers and r.special[keep]:
            keep += 1
        keep = min(keep, len(r) - lost - 1)
        kept = np.r_[0:keep, keep + lost : len(r)]

        def moved(span: tuple[int, int]) -> tuple[int, int]:
            start, end = (max(i - lost, min(i, keep)) for i in span)
            return start, end

        return Rendered(
            r.text_id, r.input_ids[kept], r.offsets[kept], r.text, moved(r.prompt_span),
            moved(r.response_span), r.special[kept], lost,
        )  # fmt: skip


def _own_template(tokenizer: Any) -> str | None:
    """The tokenizer's chat template, the one called "default" where it has several."""
    template = getattr(tokenizer, "chat_template", None)
    if isinstance(template, dict):
        template = template.get("default") or next(iter(template.values()), None)
    return template or None


def _control_tokens(tokenizer: Any, template: str) -> dict[int, str]:
    """Strings of the tokens that data must not be able to write: special tokens and a template's `<|…|>` marks."""
    special = set(tokenizer.all_special_ids)
    control = {}
    for index, token in tokenizer.added_tokens_decoder.items():
        written = token.content.startswith("<|") and token.content.endswith("|>") and token.content in template
        if token.special or index in special or written:
            control[int(index)] = str(token.content)
    # One character alone cannot be told from text (some models pad with "!").
    return {i: s for i, s in control.items() if len(s) > 1}


def _added_around(tokenizer: Any) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Ids that the tokenizer adds before and after a plain text."""
    probe = "a"
    core = list(tokenizer(probe, add_special_tokens=False)["input_ids"])
    full = list(tokenizer(probe, add_special_tokens=True)["input_ids"])
    at = next((i for i in range(len(full) - len(core) + 1) if full[i : i + len(core)] == core), 0)
    left, right = full[:at], full[at + len(core) :]
    return np.asarray(left, dtype=np.int32), np.asarray(right, dtype=np.int32)


def _token_span(offsets: NDArray[np.int32], special: NDArray[np.bool_], chars: tuple[int, int]) -> tuple[int, int]:
    """Half-open range of the tokens that share a character with `chars`; empty at its place where none does."""
    start, end = chars
    if start < end:
        hit = np.flatnonzero(~special & (offsets[:, 1] > start) & (offsets[:, 0] < end))
        if len(hit):
            return int(hit[0]), int(hit[-1]) + 1
    behind = np.flatnonzero((offsets[:, 0] >= start) & (offsets[:, 1] > start))
    at = int(behind[0]) if len(behind) else len(offsets)
    return at, at
