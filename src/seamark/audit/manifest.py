"""The manifest of an edit: what was done to which pair, enough to undo it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, ValidationError, field_validator, model_validator

from seamark.audit.rows import dumps, row_id
from seamark.errors import FormatError
from seamark.run import read_json

SCHEMA: Literal[1] = 1
WHICH_ONE = (
    "Give the manifest written with the edited file: clean-manifest.json for clean.jsonl and flipped-manifest.json for "
    "flipped.jsonl of an audit, manifest.json for edited.jsonl of `audit poison` and `audit denoise`"
)


class RowMark(NamedTuple):
    """One row of the original file: its pair id, a digest of its content, and which of the `layouts` its
    fields had.
    """

    id: str
    digest: str
    layout: int


class RemovedRow(BaseModel):
    """A row that was taken out: where it stood (0-based) and all its fields."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    index: int
    row: dict[str, Any]

    @field_validator("row")
    @classmethod
    def _has_an_id(cls, row: dict[str, Any]) -> dict[str, Any]:
        if row_id(row) is None:
            raise ValueError("a removed row has no id")
        return row

    @property
    def id(self) -> str:
        return str(self.row["id"])


class EditManifest(BaseModel):
    """What an edit did, by pair id: enough to turn the edited file back into the original, whatever its
    order.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal[1] = SCHEMA
    kind: Literal["flip", "remove"]
    method: str
    """What chose the pairs: `safer`, `random`, `margin`, … or `noise`."""
    group: str
    rate: float
    """Share of the group that was edited, as asked for (a fraction)."""
    seed: int
    group_size: int
    n_edited: int
    flipped: tuple[str, ...] = ()
    removed: tuple[RemovedRow, ...] = ()
    fingerprint: str
    """`Pairs.fingerprint()` of the original."""
    fingerprint_edited: str
    layouts: tuple[tuple[str, ...] | None, ...]
    """Distinct field orders of the original rows; None: the row is wrapped in `original`."""
    rows: tuple[RowMark, ...]
    """The original rows, in order."""

    @model_validator(mode="after")
    def _fits_together(self) -> EditManifest:
        """What undo looks up is there: rows, once each, and their layouts."""
        ids = {mark.id for mark in self.rows}
        removed = {r.id for r in self.removed}
        if len(ids) < len(self.rows):
            raise ValueError("an id occurs more than once in `rows`")
        if not all(0 <= mark.layout < len(self.layouts) for mark in self.rows):
            raise ValueError("a row has a layout that is not there")
        if not removed <= ids or not set(self.flipped) <= ids - removed:
            raise ValueError("an edited id is not in `rows`, or both flipped and removed")
        return self

    @property
    def edited_ids(self) -> tuple[str, ...]:
        """Ids flipped or removed."""
        return self.flipped or tuple(r.id for r in self.removed)

    def to_json(self) -> str:
        """The manifest as JSON, one key a line (long lists are not spread out)."""
        lines = (f"{json.dumps(key)}: {dumps(value)}" for key, value in self.model_dump().items())
        return "{\n " + ",\n ".join(lines) + "\n}\n"

    @classmethod
    def load(cls, path: Path) -> EditManifest:
        """Read the manifest of an edited file.

        Raises:
            FormatError: a foreign file (a stage's manifest, say), a newer schema, or parts that do not fit together.
            RunError: a file that is missing or not JSON.
        """
        try:
            data = read_json(path)
        except (ValueError, RecursionError):
            raise FormatError("not readable as JSON (a number too long, or nested too deeply)", where=str(path),
                              fix=WHICH_ONE) from None  # fmt: skip
        version = data.get("schema_version") if isinstance(data, dict) else None
        if version != SCHEMA:
            what = f"not an edit manifest of version {SCHEMA} (found {version!r})"
            raise FormatError(what, where=str(path), fix=WHICH_ONE)
        if "layouts" not in data:
            raise FormatError("not the manifest of an edit", where=str(path), fix=WHICH_ONE)
        try:
            return cls.model_validate(data)
        except ValidationError as e:
            first = e.errors()[0]
            key = ".".join(map(str, first["loc"]))
            message = first["msg"].removeprefix("Value error, ")
            raise FormatError(f"broken edit manifest: {message}", where=f"{path}, key {key}" if key else str(path),
                              fix="Give it as it was written") from None  # fmt: skip
