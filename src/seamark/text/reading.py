"""Preference pairs from any file: good rows become pairs with stable ids, bad ones are listed with their reason."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, field_validator

from seamark.errors import DataError
from seamark.text.files import PathLike, column_names, read_rows
from seamark.text.pairs import Pairs, PreferencePair, RejectedRow, check_limits, content_id, hash_unit, limit_of
from seamark.text.rows import ALIASES, BadRowError, column_of, parse_row

Sources = PathLike | Sequence[PathLike]


class ReadOptions(BaseModel):
    """How to read files of pairs."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    columns: Mapping[str, str] = Field(default_factory=dict)
    """Field (prompt, chosen, rejected, id, source, category) to column name, where a file uses unusual names."""
    max_pairs: Annotated[int, Field(ge=1)] | Mapping[str, Annotated[int, Field(ge=1)]] | None = None
    """Most pairs kept in each group, or {group: most}, at least 1; picked by a hash of their ids: the same ones
    whatever the order of rows."""
    split: str | None = None
    """Split of a Hub or saved data set; by default its only one, else `train`."""

    @field_validator("columns")
    @classmethod
    def _known_fields(cls, columns: Mapping[str, str]) -> Mapping[str, str]:
        unknown = sorted(set(columns) - set(ALIASES))
        if unknown:
            raise ValueError(f"unknown fields {', '.join(unknown)}; use {', '.join(ALIASES)}")
        return columns


def read_pairs(
    files: Mapping[str, Sources] | None = None,
    /,
    *,
    options: ReadOptions | None = None,
    **groups: Sources,
) -> Pairs:
    """Read preference pairs, `read_pairs(safety="pairs.jsonl", chat=["a.parquet", "owner/name"])`.

    A source is a JSONL, JSON, CSV, TSV or Parquet file (each but Parquet also gzipped), a folder saved by `datasets`
    or a Hub data set; its rows are in TRL's explicit or implicit prompt format, as strings, chat messages or hh-rlhf
    transcripts (see `rows.parse_row`). Ids are the rows' own where they are unique over all sources, else completed
    or made from a hash of the content, so that order does not matter to them. Within a group a pair counts once.

    Args:
        files: group name to source or sources, for names that are no identifiers.
        options: column names, most pairs a group, split.
        **groups: the same as keywords.

    Returns:
        The pairs in the order of groups, files and rows; `.rejected` lists the rows that could not be used, `.raw`
        each used row as it was read.

    Raises:
        DataError: no source, a source that is missing, empty or unreadable, lacks a column, or has no usable row; a
            limit for a group that is not there.
    """
    options = options or ReadOptions()
    sources = {**(files or {}), **groups}
    if not sources:
        raise DataError("no files of pairs given", fix='Use read_pairs(safety="pairs.jsonl", ...)')
    check_limits(options.max_pairs, sources)
    listed = {g: [f] if isinstance(f, str | os.PathLike) else list(f) for g, f in sources.items()}
    reading = _Reading(options, {g: [str(path) for path in paths] for g, paths in listed.items()})
    for group, paths in listed.items():
        if not group.strip():
            raise DataError("a group of pairs has no name", fix="Give it as NAME=FILE")
        if not paths:
            raise DataError("no file given", where=f"group {group}")
        for path in paths:
            reading.add(group, path)
        reading.end_group(group)
    return Pairs(tuple(reading.pairs), tuple(reading.rejected), reading.raw)


def write_rejected(pairs: Pairs, path: Path) -> None:
    """Write the rejected rows as JSON lines {file, row, reason}; the file is there, empty, where none was.

    Bytes of a file's name that are no UTF-8 are written as the escapes that JSON has for lone surrogates.
    """
    with path.open("w", encoding="utf-8", errors="backslashreplace") as f:
        for bad in pairs.rejected:
            row = {"file": bad.file, "row": bad.row, "reason": bad.reason}
            f.write(json.dumps(row, ensure_ascii=False) + "\n")


_ELSEWHERE = "its column group names another group"
_OWN_FIELDS = {"id", "group", "prompt", "chosen", "rejected", "source", "category"}
"""Rows with all of these come from Seamark itself and know their group: a file may hold several."""


@dataclass
class _Reading:
    """What has been read so far."""

    options: ReadOptions
    sources: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """{group: its files}."""
    pairs: list[PreferencePair] = field(default_factory=list)
    rejected: list[RejectedRow] = field(default_factory=list)
    raw: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    seen: dict[tuple[str, str], tuple[str, int]] = field(default_factory=dict)
    """(group, content id) to the file and row that had it first."""

    def add(self, group: str, source: PathLike) -> None:
        """Read one source into a group."""
        file = str(source)
        before, reasons, named = len(self.pairs), Counter[str](), Counter[str]()
        columns: set[str] = set()
        complete = False
        for number, data, reason in read_rows(source, split=self.options.split):
            if data is not None:
                columns.update(map(str, data))
                complete = complete or self._has_columns(data)
                if (other := _named_group(data, group)) != group:
                    named[other] += 1
                    reason = "" if file in self.sources.get(other, ()) else _ELSEWHERE
                else:
                    reason = self._take(group, file, number, data)
            if reason:
                reasons[reason.split(" (")[0]] += 1
                self.rejected.append(RejectedRow(file, number, reason, group))
        if columns and not complete:
            raise _missing_columns(file, columns, self.options.columns)
        if len(self.pairs) == before:
            raise _no_row_of(group, file, named) if named else _no_usable_row(file, reasons)

    def end_group(self, group: str) -> None:
        """Keep at most `max_pairs` of a group: those whose ids hash lowest."""
        most = limit_of(self.options.max_pairs, group)
        mine = [p.id for p in self.pairs if p.group == group]
        if most is None or len(mine) <= most:
            return
        dropped = set(sorted(mine, key=lambda i: (hash_unit(i), i))[most:])
        self.pairs = [p for p in self.pairs if p.id not in dropped]
        for pair_id in dropped:
            del self.raw[pair_id]

    def _has_columns(self, data: Mapping[str, Any]) -> bool:
        named = self.options.columns
        needed = {"chosen", "rejected", *named}
        return all(column_of(data, name, named) is not None for name in needed)

    def _take(self, group: str, file: str, number: int, data: Mapping[str, Any]) -> str:
        """Add a row as a pair, or give the reason why not."""
        try:
            fields = parse_row(data, self.options.columns)
        except BadRowError as error:
            return str(error)
        content = content_id(fields.prompt, fields.chosen, fields.rejected)
        first_file, first_row = self.seen.setdefault((group, content), (file, number))
        if (first_file, first_row) != (file, number):
            of = "" if first_file == file else f" of {first_file}"
            return f"duplicate of row {first_row}{of}"
        pair_id = self._free_id(fields.id or content, content, group)
        self.pairs.append(
            PreferencePair(
                pair_id, group, fields.prompt, fields.chosen, fields.rejected, fields.source, fields.category
            )
        )
        self.raw[pair_id] = dict(data)
        return ""

    def _free_id(self, wanted: str, content: str, group: str) -> str:
        """`wanted`, or where a row before has it, `wanted` completed by content and, if need be, by group."""
        for candidate in _id_candidates(wanted, content, group):
            if candidate not in self.raw:
                return candidate
        raise AssertionError("the candidates never end")


def _named_group(data: Mapping[str, Any], group: str) -> str:
    """The group that a row with all of Seamark's own fields says it is of; that it is read for, if it says nothing."""
    return str(data["group"]) if data.keys() >= _OWN_FIELDS else group


def _id_candidates(wanted: str, content: str, group: str) -> Iterator[str]:
    yield wanted
    if wanted != content:
        yield f"{wanted}-{content}"
    yield f"{wanted}-{content}@{group}" if wanted != content else f"{wanted}@{group}"
    n = 2
    while True:  # only ids made up to clash come here
        yield f"{wanted}-{content}@{group}-{n}"
        n += 1


def _missing_columns(file: str, found: set[str], named: Mapping[str, str]) -> DataError:
    """The error for a file in which no row has the columns needed; names columns, never contents."""
    wanted = {"chosen": ALIASES["chosen"][0], "rejected": ALIASES["rejected"][0], **named}
    has = dict.fromkeys(found)
    missing = [c for name, c in wanted.items() if column_of(has, name, named) is None]
    lacking = f"no column {', '.join(missing)}" if missing else "no row has all of the columns needed"
    fix = "Name the file's own columns with ReadOptions(columns={'chosen': ..., 'rejected': ...})"
    return DataError(f"{lacking}; found {column_names(found)}", where=file, fix=fix)


def _no_row_of(group: str, file: str, named: Counter[str]) -> DataError:
    """The error for a file without a usable row, in which rows name other groups."""
    says = column_names(name for name, _ in named.most_common(5))
    more = f" and {len(named) - 5} more" if len(named) > 5 else ""
    return DataError(
        f"no usable row for group {group!r}: the column `group` of {named.total()} rows says {says}{more}",
        where=file,
        fix=f"Rows with {', '.join(sorted(_OWN_FIELDS))} are of the group they name: give the file under that name "
            "(NAME=FILE), or drop or rename the column `group`",
    )  # fmt: skip


def _no_usable_row(file: str, reasons: Counter[str]) -> DataError:
    rows = sum(reasons.values())
    if not rows:
        return DataError("the file has no rows", where=file)
    common = "; ".join(f"{n} × {reason}" for reason, n in reasons.most_common(3))
    return DataError(f"no usable row among {rows} ({common})", where=file, fix="Mend the rows or name other columns")
