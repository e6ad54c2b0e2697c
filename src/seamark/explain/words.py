"""Words of a text given as tokens: where they begin, and the names under which the lexical explainer counts tokens."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

GAP = "…"
"""In a pattern: "government … vote" is "vote" in a text that holds "government", before or behind it. At the end of a
name it says that the word goes on: "anti…". No text's names hold it: an ellipsis there is named by three points."""
NEWLINE, SPACE = "⏎", "␣"
"""Names of tokens of white space alone."""
LONGEST_NAME = 48
"""Characters of a name; what is behind them is left out, so that a long run without spaces stays cheap."""

# Scripts that put no spaces between words: Thai to Myanmar, Khmer, CJK with kana and bopomofo, and their extensions.
_UNSPACED = (
    (0x0E00, 0x109F), (0x1780, 0x17FF), (0x2E80, 0xA4CF), (0xF900, 0xFAFF), (0xFF66, 0xFF9D), (0x20000, 0x3FFFF)
)  # fmt: skip


def word_starts(tokens: Sequence[str]) -> list[bool]:
    """Whether each token begins a word [tokens]. The first does; an empty one, which is the rest of a character, not.

    A token goes on with a word where no white space lies before it and letters or digits meet. In scripts without
    spaces every token is a word; so is every token of punctuation.
    """
    found: list[bool] = []
    before = ""
    for token in tokens:
        found.append(not found or (token != "" and not _goes_on(before, token[0])))
        before = token[-1] if token else before
    return found


def phrase(words: Sequence[str]) -> str:
    """Words written as a phrase: with spaces, but none where neither side's script has any."""
    found = words[0]
    for word in words[1:]:
        joined = _unspaced(found[-1]) and _unspaced(word[0])
        found += word if joined else f" {word}"
    return found


def _goes_on(before: str, first: str) -> bool:
    """Whether the character `first` belongs to the word that `before` ends."""
    if unicodedata.category(first)[0] == "M":
        return not before.isspace()
    return _of_word(before) and first.isalnum() and not _unspaced(before) and not _unspaced(first)


def _of_word(character: str) -> bool:
    return character.isalnum() or (character != "" and unicodedata.category(character)[0] == "M")


def _unspaced(character: str) -> bool:
    point = ord(character)
    return point >= _UNSPACED[0][0] and any(low <= point <= high for low, high in _UNSPACED)


class Words:
    """A text's words and the name of each token: the word up to its end, case-folded, with "…" where it goes on."""

    def __init__(self, tokens: Sequence[str]) -> None:
        starts = word_starts(tokens)
        goes_on = _going_on(tokens, starts)
        self.names: list[str] = []
        """[tokens]"""
        self.word: list[int] = []
        """Which word each token belongs to [tokens]."""
        self.words: list[str] = []
        """Whole words, in order, named as their last token."""
        so_far = ""
        for i, token in enumerate(tokens):
            if starts[i]:
                so_far = ""
                self.words.append("")
            so_far = (so_far + token)[: LONGEST_NAME + 8]
            name = _name(so_far)
            self.word.append(len(self.words) - 1)
            self.words[-1] = name
            self.names.append(name + GAP if goes_on[i] else name)

    def before(self, token: int, n: int) -> tuple[str, ...] | None:
        """The `n` words before a token's own; None where there are fewer."""
        word = self.word[token]
        return tuple(self.words[word - n : word]) if word >= n else None


def _going_on(tokens: Sequence[str], starts: Sequence[bool]) -> list[bool]:
    """Whether the word of each token goes on behind it; the rest of a character (an empty token) is no more word."""
    found = [False] * len(tokens)
    for i in range(len(tokens) - 2, -1, -1):
        found[i] = not starts[i + 1] and (tokens[i + 1] != "" or found[i + 1])
    return found


def _name(text: str) -> str:
    """A word's name; never empty unless the text is."""
    bare = text.strip()
    if bare:
        return bare.casefold().replace(GAP, "...")[:LONGEST_NAME]
    return (NEWLINE if "\n" in text else SPACE) if text else ""
