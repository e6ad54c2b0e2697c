"""Prompts of a benchmark that a model was trained on: what it reaches on them says nothing about new ones.

Prompts are compared as people read them (`faults.normal`: case, white space, Unicode form and unseen characters do not
count), and so are strings with chats. A paraphrase is another prompt.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator

from pydantic import BaseModel, ConfigDict

from seamark.audit.faults import normal
from seamark.text.pairs import Message, Pairs, Text
from seamark.text.rows import text_of


class PromptsInCommon(BaseModel):
    """How many prompts of a benchmark are in the training pairs too."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    prompts: int
    """Different prompts of the benchmark."""
    shared: int
    """Those of them that the training pairs have."""
    pairs: tuple[str, ...]
    """Ids of the benchmark's pairs with such a prompt."""
    by_category: dict[str, int]
    """Category (subset) -> its pairs with such a prompt."""


def prompts_in_common(benchmark: Pairs, trained: Pairs) -> PromptsInCommon:
    """Which of a benchmark's prompts a model has seen.

    A benchmark's prompt counts as seen where it is a whole training prompt, or one turn of the user in one.

    Args:
        benchmark: the pairs that are tested on.
        trained: the pairs that were trained on, before any split.
    """
    seen = {key for pair in trained for key in _keys(pair.prompt)}
    keys = {pair.id: prompt_key(pair.prompt) for pair in benchmark}
    shared = [pair for pair in benchmark if keys[pair.id] in seen]
    return PromptsInCommon(
        prompts=len(set(keys.values())),
        shared=len({keys[p.id] for p in shared}),
        pairs=tuple(p.id for p in shared),
        by_category=dict(Counter(p.category for p in shared).most_common()),
    )


def prompt_key(prompt: Text) -> str:
    """A hash of what a prompt asks: its words without system messages, in one form of case, space and Unicode."""
    words = prompt if isinstance(prompt, str) else text_of(tuple(m for m in prompt if m.role != "system"))
    return hashlib.sha256(normal(words).encode("utf-8", "surrogatepass")).hexdigest()[:16]


def _keys(prompt: Text) -> Iterator[str]:
    yield prompt_key(prompt)
    if not isinstance(prompt, str):
        yield from (prompt_key((Message("user", m.content),)) for m in prompt if m.role == "user")
