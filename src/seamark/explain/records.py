"""Explanations of features and the scores of simulations: what the explainers leave behind, as JSON lines.

An explanation that failed has no text but a reason, and then no tags, no rating and no score either.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from os import PathLike
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from seamark.errors import DataError, FormatError
from seamark.explain.taxonomy import Tag
from seamark.run import disk_errors, write_atomic
from seamark.stats import Estimate

FORMAT_VERSION = 1
Method = Literal["lexical", "llm"]
Level = Literal["segment", "token"]
Key = tuple[str, int]
"""(sae id, latent)."""


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    sae: str
    """Id of the autoencoder in its suite."""
    latent: int = Field(ge=0)
    format_version: int = FORMAT_VERSION

    @property
    def key(self) -> Key:
        """(sae id, latent)."""
        return self.sae, self.latent

    @model_validator(mode="after")
    def _check_version(self) -> Any:
        if self.format_version != FORMAT_VERSION:
            raise ValueError(f"format version {self.format_version}, not {FORMAT_VERSION}")
        return self


class LexiconEntry(BaseModel):
    """An n-gram of words, and how strongly the feature fires at its last one. `…` in it stands for anything between:
    a word elsewhere in the text (`("government", "…", "vote")`), or, last, any other word."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    ngram: tuple[str, ...] = Field(min_length=1)
    weight: float
    """Expected level, 0-10, at the last token."""
    fires: int = Field(ge=0)
    """Tokens that this entry decides, being the most specific there, at which the feature fired."""
    seen: int = Field(ge=0)
    """Tokens that this entry decides, in the texts explained from."""


class Explanation(_Record):
    """What a feature stands for, or why there is no explanation."""

    text: str | None
    """One or two sentences; None: it failed, see `reason`."""
    reason: str = ""
    """Why there is no text; empty where there is."""
    tags: tuple[Tag, ...] = ()
    rating: int | None = Field(default=None, ge=1, le=5)
    """SAFER's safety relevance, 5 strongly … 1 not at all; None: not rated."""
    rating_reason: str
    """Why it has this rating, or why it has none; empty only where the explanation itself failed."""
    language: str
    """Of the text: "en", "zh", …"""
    method: Method
    model: str | None = None
    """The LLM; None for the lexical explainer."""
    prompt_version: str = ""
    """The prompt file it was made with; empty for the lexical explainer."""
    tokens_in: int = Field(default=0, ge=0)
    tokens_out: int = Field(default=0, ge=0)
    cost: float | None = None
    """In the price table's currency; None: price unknown."""
    promoted: tuple[str, ...] = ()
    """Tokens the feature's decoder direction makes more likely; language models only."""
    suppressed: tuple[str, ...] = ()
    lexicon: tuple[LexiconEntry, ...] = ()
    """The lexical explainer's evidence, from which it is simulated."""

    @model_validator(mode="after")
    def _check(self) -> Explanation:
        if self.text is None:
            if not self.reason.strip():
                raise ValueError("without a text there is a reason")
            if self.tags or self.lexicon or self.rating is not None:
                raise ValueError("a failed explanation has neither tags nor rating nor lexicon")
        elif not self.text.strip() or self.reason:
            raise ValueError("a text is not empty, and beside it there is no reason for there being none")
        elif not self.rating_reason.strip():
            raise ValueError("a rating has a reason, and so has there being none")
        return self

    @property
    def failed(self) -> bool:
        return self.text is None


class Simulation(_Record):
    """How well an explanation predicts, on held-out texts, where its feature fires."""

    level: Level
    method: Method
    model: str | None = None
    prompt_version: str = ""
    correlation: Estimate
    """Pearson: of 0-10 levels per token, or of 0/1 per segment (phi)."""
    accuracy: Estimate
    """Balanced accuracy of telling texts with the feature from texts without."""
    n_texts: int = Field(default=0, ge=0)
    n_units: int = Field(default=0, ge=0)
    """Tokens or segments compared."""
    n_failed: int = Field(default=0, ge=0)
    """Calls without a usable answer; their texts count nowhere."""
    tokens_in: int = Field(default=0, ge=0)
    tokens_out: int = Field(default=0, ge=0)
    cost: float | None = None

    @model_validator(mode="after")
    def _check(self) -> Simulation:
        for name, estimate, least in (("correlation", self.correlation, -1.0), ("accuracy", self.accuracy, 0.0)):
            if estimate.value is None:
                if not estimate.reason.strip():
                    raise ValueError(f"{name} is not available without a reason")
            elif not least - 1e-9 <= estimate.value <= 1 + 1e-9:  # NaN is in no range
                raise ValueError(f"{name} {estimate.value} lies outside {least:g} to 1")
        return self


def write_explanations(path: str | PathLike[str], explanations: Iterable[Explanation]) -> None:
    """Write explanations as JSON lines, whole or not at all.

    Raises:
        DataError: a feature comes twice.
    """
    kept: dict[Key, Explanation] = {}
    for e in explanations:
        if e.key in kept:
            raise DataError(f"feature {e.sae}/{e.latent} is explained twice", where=str(path))
        kept[e.key] = e
    _write(path, kept.values())


def read_explanations(path: str | PathLike[str]) -> dict[Key, Explanation]:
    """Read what `write_explanations` wrote; `FormatError` on anything else, naming file and line."""
    found: dict[Key, Explanation] = {}
    for where, e in _read(path, Explanation, "an explanation"):
        if e.key in found:
            raise FormatError(f"feature {e.sae}/{e.latent} comes twice", where=where, fix="Write the file again")
        found[e.key] = e
    return found


def write_simulations(path: str | PathLike[str], simulations: Iterable[Simulation]) -> None:
    """Write simulations as JSON lines, whole or not at all."""
    _write(path, simulations)


def read_simulations(path: str | PathLike[str]) -> list[Simulation]:
    """Read what `write_simulations` wrote; `FormatError` on anything else, naming file and line."""
    return [simulation for _, simulation in _read(path, Simulation, "a simulation")]


R = TypeVar("R", bound=_Record)


def _write(path: str | PathLike[str], records: Iterable[_Record]) -> None:
    rows = (record.model_dump(mode="json") for record in records)
    lines = "".join(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows)
    with disk_errors(Path(path)):
        write_atomic(Path(path), lines)


def _read(path: str | PathLike[str], kind: type[R], name: str) -> Iterator[tuple[str, R]]:
    """(file and line, record) of each line."""
    try:
        lines = Path(path).read_bytes().splitlines()
    except OSError as e:
        raise FormatError(f"cannot be read ({e.strerror})", where=str(path), fix=f"Name a file of {name}s") from e
    for number, line in enumerate(lines, 1):
        where = f"{path}, line {number}"
        try:
            yield where, kind.model_validate(json.loads(line))
        except ValidationError as e:
            first = e.errors()[0]
            key = ".".join(map(str, first["loc"]))
            what = f"{key}: {first['msg']}" if key else first["msg"]
            raise FormatError(f"not {name} ({what})", where=where, fix="Write the file again") from None
        except ValueError as e:
            raise FormatError(f"not {name} ({e})", where=where, fix="Write the file again") from e
