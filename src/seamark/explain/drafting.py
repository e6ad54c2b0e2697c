"""Contrast pairs for a user's own concept, drafted by a language model: checked, marked, none lost in silence.

A drafted pair is a proposal: read it before concept metrics (Safe-SAIL, arXiv 2509.18127, METHODS §2.2) rest on it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from seamark.errors import ConfigError
from seamark.explain.explaining import LANGUAGES
from seamark.explain.llm import Answer, Request
from seamark.explain.presenting import escape, fence
from seamark.explain.prompts import DRAFT, load_prompt
from seamark.show.html import visible
from seamark.text.contrast import ContrastPair, ContrastPairs, contrast_problem
from seamark.text.pairs import RejectedRow, content_id

if TYPE_CHECKING:
    from seamark.explain.llm import LLM

STAGE = "draft"
BATCH = 10
"""Pairs asked for at once."""
TEMPERATURE = 1.0
"""Drafts are to differ; the answers are cached all the same."""
TOKENS_PER_PAIR = 150
MAX_NAME, MAX_DESCRIPTION = 60, 2000
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "pairs": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {"with": {"type": "string"}, "without": {"type": "string"}},
                "required": ["with", "without"],
                "additionalProperties": False,
            },
        }
    },
    "required": ["pairs"],
    "additionalProperties": False,
}


def draft_contrast_pairs(
    llm: LLM, domain: str, concept: str, description: str, n: int, *, language: str = "en"
) -> ContrastPairs:
    """Let a language model write `n` contrast pairs for a concept.

    Pairs are asked for in batches of ten. Each goes through `contrast_problem`, and a couple of texts that was there
    before counts once. No second helping is asked for in place of what was rejected.

    Args:
        llm: the language model.
        domain, concept: what the pairs are filed under; the concept is what one query of each pair holds.
        description: what the concept is, in a sentence or two.
        n: pairs asked for.
        language: code of the queries' language.

    Returns:
        Up to `n` pairs, all `drafted`, and in `.rejected` a row with the reason for each of the `n` that is not there:
        `file` is `draft of domain/concept`, `row` the number of the pair, from 1. Pairs beyond those asked for are
        not looked at.

    Raises:
        ConfigError: n is below 1, or a name or the description is empty or too long.
    """
    domain, concept = " ".join(domain.split()), " ".join(concept.split())
    _check_words({"domain": (domain, MAX_NAME), "concept": (concept, MAX_NAME),
                  "description": (description, MAX_DESCRIPTION)})  # fmt: skip
    if n < 1:
        raise ConfigError(f"{n} pairs", where="n", fix="Ask for at least one")
    sizes = [min(BATCH, n - i * BATCH) for i in range(math.ceil(n / BATCH))]
    requests = [_request(domain, concept, description, size, i, language) for i, size in enumerate(sizes, 1)]
    answers = llm.ask_all(requests, _check, progress_title=f"Draft {concept}")
    drafts = _Drafts(domain, concept)
    for i, (size, answer) in enumerate(zip(sizes, answers, strict=True)):
        drafts.add(i * BATCH + 1, size, answer)
    return ContrastPairs(tuple(drafts.pairs.values()), tuple(drafts.rejected))


class _Drafts:
    """What has come so far."""

    def __init__(self, domain: str, concept: str) -> None:
        self.domain, self.concept = domain, concept
        self.pairs: dict[tuple[str, str], ContrastPair] = {}
        self.rejected: list[RejectedRow] = []

    def add(self, first: int, size: int, answer: Answer) -> None:
        """Take the `size` pairs from number `first` on out of an answer."""
        rows = [] if answer.failed or answer.data is None else list(answer.data["pairs"])
        lacking = visible(answer.failed) or "the answer holds fewer pairs than asked for"
        for i in range(size):
            reason = self._take(rows[i]) if i < len(rows) else lacking
            if reason:
                self.rejected.append(RejectedRow(f"draft of {self.domain}/{self.concept}", first + i, reason))

    def _take(self, row: Mapping[str, str]) -> str:
        """Keep a pair, or give the reason why not."""
        with_text, without_text = (" ".join(row[side].split()) for side in ("with", "without"))
        if problem := contrast_problem(with_text, without_text):
            return problem
        if any(visible(text) != text for text in (with_text, without_text)):
            return "a query holds characters that act unseen"
        pair_id = content_id(self.concept, with_text, without_text)
        pair = ContrastPair(self.domain, self.concept, with_text, without_text, pair_id, drafted=True)
        key = with_text.casefold(), without_text.casefold()
        if key in self.pairs or key[::-1] in self.pairs:
            return "the same pair was there before"
        self.pairs[key] = pair
        return ""


def _check_words(words: Mapping[str, tuple[str, int]]) -> None:
    for name, (text, most) in words.items():
        if not text.strip() or len(text) > most:
            raise ConfigError(f"{name} has {len(text)} characters", where=name, fix=f"Write 1 to {most} characters")


def _request(domain: str, concept: str, description: str, size: int, batch: int, language: str) -> Request:
    lines = [f"domain: {domain}", f"concept: {concept}", f"description: {description.strip()}"]
    data, _ = fence([escape(line) for line in lines])
    system, user = load_prompt(DRAFT).fill({
        "language": LANGUAGES.get(language, f"the language of code {language}"), "count": str(size),
        "batch": str(batch), "data": data,
    })  # fmt: skip
    return Request(STAGE, system, user, SCHEMA, "contrast_pairs", max_output_tokens=1000 + TOKENS_PER_PAIR * size,
                   temperature=TEMPERATURE)  # fmt: skip


def _check(request: Request, data: Mapping[str, Any]) -> str:
    """Why an answer cannot be used; a few bad pairs among others are no reason."""
    rows = data.get("pairs")
    if not isinstance(rows, list) or not rows:
        return "no list of pairs"
    if any(
        not isinstance(row, dict) or not all(isinstance(row.get(s), str) for s in ("with", "without")) for row in rows
    ):
        return "a pair is not an object of two texts"
    return ""
