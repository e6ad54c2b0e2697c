"""The same prompts in several languages: read from files, aligned by id, and how the tokenizer takes each language."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from seamark.diagnose.units import MAX_CHARS
from seamark.errors import ConfigError, DataError
from seamark.model.loading import HookedModel
from seamark.stats import Estimate, Floats, bootstrap_of_sums
from seamark.text.files import PathLike, column_names, read_rows
from seamark.text.pairs import RejectedRow, hash_unit
from seamark.text.rendering import Rendered
from seamark.text.rows import BadRowError, check_text

BROKEN = 0.05
"""Share of tokens that are unknown, or only a part of a character, from which on a language counts as broken."""
PREMIUM = 2.0
"""Tokens for the same prompts, in multiples of the reference's, from which on it does."""


class ParallelColumns(BaseModel):
    """The names of the columns of a file of prompts in several languages."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str = "id"
    texts: str = "texts"
    """A mapping {language: text}."""
    languages: dict[str, str] = Field(default_factory=dict)
    """{language: column}, for files with a column of their own for each language instead."""


@dataclass(frozen=True)
class ParallelPrompt:
    """One prompt."""

    id: str
    texts: Mapping[str, str]


@dataclass(frozen=True)
class ParallelPrompts:
    """Prompts in the order of files and rows, ids unique; and what could not be used."""

    items: tuple[ParallelPrompt, ...]
    rejected: tuple[RejectedRow, ...] = ()

    def __len__(self) -> int:
        return len(self.items)

    @property
    def languages(self) -> dict[str, int]:
        """{language: prompts}, most frequent first, then by name."""
        counts: dict[str, int] = {}
        for item in self.items:
            for language in item.texts:
                counts[language] = counts.get(language, 0) + 1
        return dict(sorted(counts.items(), key=lambda pair: (-pair[1], pair[0])))

    def choose(self, reference: str, languages: Sequence[str] = (), most: int | None = None, seed: int = 0
               ) -> ParallelPrompts:  # fmt: skip
        """The prompts that the reference language has, in it and in `languages` (empty: all); at most so many, those
        whose ids hash lowest.

        Raises:
            ConfigError: a language that no prompt is in, no language besides the reference, a limit below 1.
            DataError: no prompt is in the reference and in another language.
        """
        known = self.languages
        for language in (reference, *languages):
            if language not in known:
                raise ConfigError(f"no prompt is in {language[:40]!r}", where="language",
                                  fix=f"Languages are: {', '.join(known)}")  # fmt: skip
        if most is not None and most < 1:
            raise ConfigError(f"{most} prompts", where="sample", fix="Take 1 at least")
        wanted = {reference, *(languages or known)}
        if wanted == {reference}:
            raise ConfigError(f"nothing to compare {reference} with", where="language", fix="Give another language")
        both = [ParallelPrompt(p.id, {k: v for k, v in p.texts.items() if k in wanted})
                for p in self.items if reference in p.texts]  # fmt: skip
        both = [p for p in both if len(p.texts) > 1]
        for language in sorted(wanted - {reference}):
            if languages and not any(language in p.texts for p in both):
                raise DataError(f"no prompt is both in {reference} and in {language}", fix="Take another reference")
        if not both:
            raise DataError(f"no prompt is both in {reference} and in another language", fix="Take another reference")
        if most is not None and len(both) > most:
            kept = set(sorted((p.id for p in both), key=lambda i: (hash_unit(i, seed), i))[:most])
            both = [p for p in both if p.id in kept]
        return ParallelPrompts(tuple(both), self.rejected)


def read_parallel(
    sources: PathLike | Sequence[PathLike], columns: ParallelColumns | None = None
) -> ParallelPrompts:  # fmt: skip
    """Read prompts in several languages from files of rows.

    A text that is empty, no text, or longer than 200,000 characters is left out with a reason, the others of its row
    stay; a row without a text left, or whose id came before, is left out as a whole.

    Raises:
        DataError: a file that is missing or empty, lacks the columns or has no usable row.
    """
    columns = columns or ParallelColumns()
    paths = [sources] if isinstance(sources, str | os.PathLike) else list(sources)
    if not paths:
        raise DataError("no prompts given", fix="Give a file")
    found: dict[str, ParallelPrompt] = {}
    rejected: list[RejectedRow] = []
    for path in paths:
        seen, before = set[str](), len(found)
        for number, data, reason in read_rows(path):
            seen.update(map(str, data or ()))
            prompt_id, texts, reasons = _parsed(data, number, columns) if data is not None else ("", {}, [reason])
            if texts and prompt_id in found:
                texts, reasons = {}, [*reasons, f"the id {prompt_id[:80]} came before"]
            if texts:
                found[prompt_id] = ParallelPrompt(prompt_id, texts)
            rejected += [RejectedRow(str(path), number, one) for one in reasons]
        wanted = list(columns.languages.values()) or [columns.texts]
        if missing := [name for name in wanted if seen and name not in seen]:
            raise DataError(f"no column {', '.join(missing)}; found {column_names(seen)}", where=str(path),
                            fix="Name the columns of texts")  # fmt: skip
        if len(found) == before:
            raise DataError("no usable prompt", where=str(path), fix="A row is {id, texts: {language: text}}")
    return ParallelPrompts(tuple(found.values()), tuple(rejected))


def _parsed(data: Mapping[str, Any], number: int, columns: ParallelColumns) -> tuple[str, dict[str, str], list[str]]:
    """(id, texts, the reasons why some or all cannot be used)."""
    given = data.get(columns.texts) if not columns.languages else {k: data.get(c) for k, c in columns.languages.items()}
    if not isinstance(given, Mapping):
        return "", {}, [f"{columns.texts} is no mapping from languages to texts"]
    own = data.get(columns.id)
    prompt_id = str(own) if isinstance(own, str | int) and not isinstance(own, bool) and str(own) else f"row {number}"
    texts, reasons = {}, []
    for language, text in given.items():
        if text is None:
            continue  # a data set's way to say that there is none
        reason = _unusable(language, text)
        if reason:
            reasons.append(reason)
        else:
            texts[str(language)] = str(text)
    return prompt_id, texts, reasons or ([] if texts else ["no text in any language"])


def _unusable(language: Any, text: Any) -> str:
    """Why a text cannot be read, or an empty string."""
    name = str(language)[:40]
    if not name.strip() or not name.isprintable():
        return "a language without a name"
    if not isinstance(text, str):
        return f"{name} has the wrong type ({type(text).__name__}; text is needed)"
    try:
        check_text(text, name)
    except BadRowError as e:
        return str(e)
    if not text.strip():
        return f"{name} is empty"
    return f"{name} has {len(text):,} characters; at most {MAX_CHARS:,} are read" if len(text) > MAX_CHARS else ""


class Tokenised(BaseModel):
    """What the tokenizer makes of a language; intervals resample prompts."""

    model_config = ConfigDict(frozen=True)

    unknown: Estimate
    """Share of tokens that stand for anything the vocabulary lacks ([UNK])."""
    in_parts: Estimate
    """Share of tokens that are only a part of a character (bytes)."""
    tokens_per_character: Estimate
    """White space is not counted as a character."""
    premium: Estimate
    """Tokens in multiples of the reference's tokens for the same prompts."""
    broken: bool | None
    """Whether `unknown` and `in_parts` together reach 5 % of the tokens, or `premium` reaches 2; None: that cannot be
    told, as one of them is not available."""


def token_counts(model: HookedModel, text: Rendered) -> Floats:
    """(tokens, unknown tokens, tokens that are a part of a character, characters without white space) of a text [4];
    special tokens of the template are not counted."""
    start, end = text.response_span if text.response_span[0] < text.response_span[1] else text.prompt_span
    inside = np.arange(start, end)[~text.special[start:end]]
    ids, offsets = text.input_ids[inside], text.offsets[inside]
    unknown = ids == (-1 if model.tokenizer.unk_token_id is None else model.tokenizer.unk_token_id)
    shared = np.zeros(len(ids), np.bool_)
    if len(ids) > 1:
        # Two tokens that stand for the same character are both a part of it.
        same = (offsets[1:] == offsets[:-1]).all(1) & (offsets[1:, 1] - offsets[1:, 0] == 1)
        shared[1:] |= same
        shared[:-1] |= same
    said = text.text[int(offsets[0, 0]) : int(offsets[-1, 1])] if len(ids) else ""
    return np.asarray([len(ids), unknown.sum(), (shared & ~unknown).sum(), sum(not c.isspace() for c in said)],
                      np.float64)  # fmt: skip


def tokenised(mine: Floats, reference: Floats, *, seed: int = 0) -> Tokenised:
    """From `token_counts` of the same prompts in a language and in the reference, both [prompts, 4]."""
    values, prompts = np.vstack([mine.T, reference[:, :1].T]), np.arange(len(mine))

    def ratio(over: int, under: int) -> Estimate:
        return bootstrap_of_sums(lambda s: float(s[over] / s[under]) if s[under] > 0 else None, values, prompts,
                                 seed=seed, undefined="no token to count")  # fmt: skip

    unknown, parts, per_character, premium = ratio(1, 0), ratio(2, 0), ratio(0, 3), ratio(0, 4)
    return Tokenised(unknown=unknown, in_parts=parts, tokens_per_character=per_character, premium=premium,
                     broken=_broken(unknown.value, parts.value, premium.value))  # fmt: skip


def _broken(unknown: float | None, parts: float | None, premium: float | None) -> bool | None:
    """What is known may be enough to say yes, but not to say no."""
    known = [value for value in (unknown, parts) if value is not None]
    if sum(known) >= BROKEN or (premium is not None and premium >= PREMIUM):
        return True
    return None if premium is None or len(known) < 2 else False
