"""What a scan reads: preference pairs or plain texts, cut into parts that can be read anywhere, in any order."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from seamark.features.accumulate import SCORING
from seamark.features.config import ScanConfig
from seamark.features.contexts import read_positions
from seamark.features.gather import Positions
from seamark.text.corpus import Corpus
from seamark.text.pairs import Pairs, PreferencePair, hash_unit, plain
from seamark.text.rendering import Rendered, Renderer

PART_CHARACTERS = 1 << 17
"""Characters of a part: about 30,000 tokens. Its texts and pooled latents lie in memory until it is written."""
OVERHEAD = 256
"""Characters that a text counts for besides its own."""
SAMPLE = 64
"""Items looked at to foresee how many positions there will be."""
PLAIN_GROUP = "texts"
"""The group of plain texts."""


@dataclass(frozen=True)
class PartTexts:
    """Texts of a part, a row about each, and the positions to read (ascending) with their flags."""

    texts: list[Rendered]
    rows: list[dict[str, Any]]
    positions: list[Positions]
    flags: list[NDArray[np.uint8]]


class ScanTexts:
    """A corpus cut into parts of whole pairs (or texts), by characters alone: nobody has to tokenise to know where."""

    def __init__(self, corpus: Pairs | Corpus, characters: int | None = None) -> None:
        self.corpus = corpus
        sizes = [_size(item) for item in corpus]
        self.characters = sum(sizes)
        """Of the whole corpus, with `OVERHEAD` for each text."""
        self.parts = _cut(sizes, characters or PART_CHARACTERS)
        """Ranges of items."""

    @property
    def groups(self) -> dict[str, int]:
        """{group: items}, by first appearance."""
        found: dict[str, int] = {}
        for item in self.corpus:
            group = item.group if isinstance(item, PreferencePair) else PLAIN_GROUP
            found[group] = found.get(group, 0) + 1
        return found

    def fingerprint(self) -> str:
        """SHA-256 of the texts, with their ids and groups, in their order."""
        if isinstance(self.corpus, Pairs):
            return self.corpus.fingerprint()
        h = hashlib.sha256()
        for text_id, text in self.corpus:
            h.update(f"{len(text_id)} {text_id} {len(text)} {text}".encode("utf-8", "surrogatepass"))
        return h.hexdigest()

    def render(self, part: int, renderer: Renderer, config: ScanConfig) -> PartTexts:
        """The texts of a part as tokens, and where to read them."""
        return _render([self.corpus[i] for i in self.parts[part]], renderer, config)

    def expected_positions(self, renderer: Renderer, config: ScanConfig) -> float:
        """Positions read in the whole corpus, foreseen from a sample."""
        order = sorted(range(len(self.corpus)), key=lambda i: hash_unit(_id(self.corpus[i])))[:SAMPLE]
        seen = _render([self.corpus[i] for i in order], renderer, config)
        return sum(map(len, seen.positions)) * len(self.corpus) / max(len(order), 1)


def _cut(sizes: Sequence[int], limit: int) -> list[range]:
    """Ranges of items, each ending with the first item that brings it to `limit`."""
    found, start, held = [], 0, 0
    for i, size in enumerate(sizes):
        held += size
        if held >= limit:
            found.append(range(start, i + 1))
            start, held = i + 1, 0
    return [*found, range(start, len(sizes))] if start < len(sizes) else found


def _size(item: PreferencePair | tuple[str, str]) -> int:
    """Characters, and some more for each text: a million short ones take room too."""
    if isinstance(item, PreferencePair):
        return 2 * (OVERHEAD + len(plain(item.prompt))) + len(plain(item.chosen)) + len(plain(item.rejected))
    return OVERHEAD + len(item[1])


def _id(item: PreferencePair | tuple[str, str]) -> str:
    return item.id if isinstance(item, PreferencePair) else item[0]


def _render(items: Sequence[PreferencePair | tuple[str, str]], renderer: Renderer, config: ScanConfig) -> PartTexts:
    found = PartTexts([], [], [], [])
    for item in items:
        if isinstance(item, PreferencePair):
            about = {"pair_id": item.id, "group": item.group, "prompt": item.prompt_key}
            for side, text in zip(("chosen", "rejected"), renderer.render_pair(item), strict=True):
                _add(found, text, about | {"side": side}, config)
        else:
            _add(found, renderer.render_text(item[1], item[0]), {"group": PLAIN_GROUP}, config)
    return found


def _add(found: PartTexts, text: Rendered, about: dict[str, Any], config: ScanConfig) -> None:
    stored, flags = read_positions(text, config)
    start, end = text.response_span
    found.texts.append(text)
    found.positions.append(stored)
    found.flags.append(flags)
    found.rows.append({
        "text_id": text.text_id, "pair_id": about.get("pair_id"), "side": about.get("side"), "group": about["group"],
        "prompt": about.get("prompt", text.text_id), "content": _content(text, config),
        "n_positions": int(((flags & SCORING) != 0).sum()), "n_tokens": len(text), "n_response": end - start,
        "truncated": text.truncated,
    })  # fmt: skip


def _content(text: Rendered, config: ScanConfig) -> str:
    """Hash of what is shown of a text: equal for texts that nobody could tell apart."""
    start, end = text.response_span
    if config.scope == "all" and text.prompt_span[0] < text.prompt_span[1]:
        start = text.prompt_span[0]
    return hashlib.sha256(np.ascontiguousarray(text.input_ids[start:end], np.int32).tobytes()).hexdigest()[:16]
