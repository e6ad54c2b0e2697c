"""Tokens as pieces of text that people read: joined, they are the text; special tokens show their names."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from seamark.features.contexts import token_strings
from seamark.text.rendering import Rendered

_HALF = "\ufffd"
"""What a decoder shows of a character that is not whole yet."""


class Pieces(NamedTuple):
    """Pieces of text [n], and which are special tokens [n]."""

    text: list[str]
    special: NDArray[np.bool_]


def token_pieces(tokenizer: Any, text: Rendered) -> list[str]:
    """The piece of text each token of `text` stands for; a special one's name. [T]"""
    at = tuple(np.flatnonzero(~text.special).tolist())
    strings = token_strings(text.text, text.offsets[:, 0].tolist(), text.offsets[:, 1].tolist(), at)
    plain = dict(zip(at, strings, strict=True))
    return [plain[i] if i in plain else _name(tokenizer, token) for i, token in enumerate(text.input_ids.tolist())]


def added_pieces(tokenizer: Any, ids: NDArray[np.int32], before: int | None = None) -> Pieces:
    """The same for tokens that have no text yet: what each adds to the text decoded so far.

    A token that ends within a character adds nothing; the one that completes it adds all of it.

    Args:
        ids: token ids [n].
        before: the token they follow, if that is text: some tokenizers drop the space before a first word.
    """
    control = {int(i) for i in tokenizer.all_special_ids}
    control |= {int(i) for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    special = np.isin(ids, list(control))
    run = [] if before is None or before in control else [before]
    shown = _decoded(tokenizer, run)
    pieces: list[str] = []
    for i, token in enumerate(ids.tolist()):
        if special[i]:
            pieces.append(_name(tokenizer, token))
            run, shown = [], ""
            continue
        run.append(token)
        text = _decoded(tokenizer, run)
        if text.endswith(_HALF) and i + 1 < len(ids):
            pieces.append("")
            continue
        pieces.append(text[len(shown) :])
        shown = text
    return Pieces(pieces, special)


def _decoded(tokenizer: Any, ids: list[int]) -> str:
    return str(tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)) if ids else ""


def _name(tokenizer: Any, token: int) -> str:
    return str(tokenizer.convert_ids_to_tokens(token))
