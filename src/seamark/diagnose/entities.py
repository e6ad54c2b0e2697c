"""Entities that a model may know or not: read from files, found in their texts, and how often a corpus names them."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from seamark.diagnose.risk_texts import UNIT
from seamark.diagnose.units import MAX_CHARS
from seamark.errors import ConfigError, DataError
from seamark.text.files import PathLike, column_names, read_rows
from seamark.text.pairs import RejectedRow
from seamark.text.rendering import Rendered
from seamark.text.rows import BadRowError, check_text

Positions = NDArray[np.int32]
PLACE = "{entity}"
"""What stands for the entity in a template."""


class EntityColumns(BaseModel):
    """The names of the columns of a file of entities."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    entity: str = "entity"
    text: str = "text"
    """A text that names the entity, or a template with {entity} in it; without it, the command's template."""
    known: str = "known"
    """true or false; where it is missing, a question and its answers decide."""
    frequency: str = "frequency"
    """How often the training data name it, as far as that is known."""
    question: str = "question"
    """May hold {entity}."""
    answers: str = "answers"
    """An answer that counts as right, or a list of them."""


@dataclass(frozen=True)
class EntityText:
    """One text about an entity."""

    entity: str
    text: str
    known: bool | None
    frequency: float | None
    question: str
    answers: tuple[str, ...]


@dataclass(frozen=True)
class EntityTexts:
    """Texts in the order of files and rows; and the rows that could not be used."""

    items: tuple[EntityText, ...]
    rejected: tuple[RejectedRow, ...] = ()

    def __len__(self) -> int:
        return len(self.items)

    @property
    def entities(self) -> list[str]:
        """By first appearance."""
        return list(dict.fromkeys(item.entity for item in self.items))

    @property
    def undecided(self) -> list[str]:
        """Entities of which no row says whether they are known."""
        said = {item.entity for item in self.items if item.known is not None}
        return [entity for entity in self.entities if entity not in said]

    def with_known(self, known: Mapping[str, bool]) -> EntityTexts:
        """The texts of the entities of `known`, each as it says there."""
        kept = tuple(replace(item, known=known[item.entity]) for item in self.items if item.entity in known)
        return EntityTexts(kept, self.rejected)

    def with_frequency(self, counts: Mapping[str, int]) -> EntityTexts:
        """With the frequencies of a corpus in place of their own."""
        return EntityTexts(tuple(replace(item, frequency=float(counts[item.entity])) for item in self.items),
                           self.rejected)  # fmt: skip


def read_entities(
    sources: PathLike | Sequence[PathLike], columns: EntityColumns | None = None, template: str = PLACE
) -> EntityTexts:  # fmt: skip
    """Read entities from files of rows; an entity may have several rows, which count as one entity.

    Raises:
        ConfigError: a template without {entity}.
        DataError: a file that is missing or empty, lacks the column of entities, has no usable row, or says of an
            entity both that it is known and that it is not.
    """
    columns = columns or EntityColumns()
    if PLACE not in template:
        raise ConfigError(f"the template has no {PLACE}", where="template", fix="Write such as 'Who is {entity}'")
    paths = [sources] if isinstance(sources, str | os.PathLike) else list(sources)
    if not paths:
        raise DataError("no entities given", fix="Give a file")
    items: dict[tuple[str, str, str], EntityText] = {}
    rejected: list[RejectedRow] = []
    for path in paths:
        seen, before = set[str](), len(items)
        for number, data, reason in read_rows(path):
            seen.update(map(str, data or ()))
            try:
                item = None if data is None else _parsed(data, columns, template)
            except BadRowError as e:
                item, reason = None, str(e)
            if item is not None and (item.entity, item.text, item.question) in items:
                item, reason = None, "the same entity, text and question came before"
            if item is None:
                rejected.append(RejectedRow(str(path), number, reason))
            else:
                items[item.entity, item.text, item.question] = item
        if seen and columns.entity not in seen:
            raise DataError(f"no column {columns.entity}; found {column_names(seen)}", where=str(path),
                            fix="Name the column of entities")  # fmt: skip
        if len(items) == before:
            raise DataError("no usable row", where=str(path), fix="A row is {entity, text, known}")
    found = EntityTexts(tuple(items.values()), tuple(rejected))
    return _settled(found)


def _settled(found: EntityTexts) -> EntityTexts:
    """Every row of an entity says of it what one of them does."""
    agreed = _agreed(found)
    items = tuple(replace(item, known=agreed.get(item.entity)) for item in found.items)
    return EntityTexts(items, found.rejected)


def _agreed(found: EntityTexts) -> dict[str, bool]:
    said: dict[str, bool] = {}
    for item in found.items:
        if item.known is not None and said.setdefault(item.entity, item.known) != item.known:
            raise DataError("an entity is said to be known, and not to be known", where=item.entity[:80],
                            fix="Mend its rows")  # fmt: skip
    return said


def _parsed(data: Mapping[str, Any], columns: EntityColumns, template: str) -> EntityText:
    """A row. `BadRowError` where it cannot be used."""
    entity = _text(data, columns.entity)
    if not entity:
        raise BadRowError(f"{columns.entity} is missing or empty")
    text = (_text(data, columns.text) or template).replace(PLACE, entity)
    if entity not in text:
        raise BadRowError(f"{columns.text} does not name the entity")
    if len(text) > MAX_CHARS:
        raise BadRowError(f"{columns.text} has {len(text):,} characters; at most {MAX_CHARS:,} are read")
    known = data.get(columns.known)
    if known is not None and not isinstance(known, bool):
        words = {"true": True, "false": False, "1": True, "0": False, "": None}
        if str(known).strip().lower() not in words:
            raise BadRowError(f"{columns.known} is neither true nor false")
        known = words[str(known).strip().lower()]
    given = data.get(columns.answers)
    answers = [given] if isinstance(given, str) else list(given) if isinstance(given, list | tuple) else []
    right = tuple(check_text(a, columns.answers) for a in answers if isinstance(a, str) and a.strip())
    question = _text(data, columns.question).replace(PLACE, entity)
    if len(question) > MAX_CHARS:
        raise BadRowError(f"{columns.question} has {len(question):,} characters; at most {MAX_CHARS:,} are read")
    if known is None and not (question and right):
        raise BadRowError(f"neither {columns.known} nor {columns.question} with {columns.answers} is given")
    return EntityText(entity, text, known, _frequency(data.get(columns.frequency), columns.frequency), question, right)


def _text(data: Mapping[str, Any], column: str) -> str:
    value = data.get(column)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise BadRowError(f"{column} has the wrong type ({type(value).__name__}; text is needed)")
    return check_text(value.strip(), column)


def _frequency(value: Any, column: str) -> float | None:
    if value is None or value == "":
        return None
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise BadRowError(f"{column} is no number") from None
    if not math.isfinite(number) or number < 0:
        raise BadRowError(f"{column} is no number from 0")
    return number


def entity_tokens(text: Rendered, entity: str) -> Positions:
    """The tokens of the last place that names the entity, ascending [n]; none where it was cut off.

    The text may have been cut at the left: then an earlier part of the entity may be missing, which counts as cut off.
    """
    start = text.text.rfind(entity)
    inside = (text.offsets[:, 1] > start) & (text.offsets[:, 0] < start + len(entity)) & ~text.special
    inside &= text.offsets[:, 1] > text.offsets[:, 0]
    at = np.flatnonzero(inside).astype(np.int32)
    whole = start >= 0 and len(at) > 0 and int(text.offsets[at[0], 0]) <= start
    return at if whole else at[:0]


def count_entities(entities: Sequence[str], texts: Iterable[str]) -> dict[str, int]:
    """How often texts name each entity, whatever the capitals: runs of whole words (characters in scripts without
    spaces)."""
    wanted = {entity: tuple(UNIT.findall(entity.casefold())) for entity in entities}
    runs = {run for run in wanted.values() if run}
    lengths, first = sorted({len(run) for run in runs}), {run[0] for run in runs}
    counts: Counter[tuple[str, ...]] = Counter()
    for text in texts:
        words = UNIT.findall(text.casefold())
        for i, word in enumerate(words):
            if word in first:
                counts.update(run for n in lengths if (run := tuple(words[i : i + n])) in runs and len(run) == n)
    return {entity: counts[run] for entity, run in wanted.items()}
