"""The manifest of an edit: what was done to which pair, enough to undo it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, ValidationError

from seamark.audit.rows import dumps
from seamark.errors import FormatError
from seamark.run import read_json

SCHEMA: Literal[1] = 1


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
        """Read `manifest.json`. Raises `FormatError` on a foreign file or a newer schema."""
        data = read_json(path)
        version = data.get("schema_version") if isinstance(data, dict) else None
        if version != SCHEMA:
            what = f"not an edit manifest of version {SCHEMA} (found {version!r})"
            raise FormatError(what, where=str(path), fix="Give the manifest.json written beside the edited file")
        try:
            return cls.model_validate(data)
        except ValidationError as e:
            first = e.errors()[0]
            where = f"{path}, key {'.'.join(map(str, first['loc']))}"
            raise FormatError(f"broken edit manifest: {first['msg']}", where=where) from None
