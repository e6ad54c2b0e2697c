"""Editing preference data: poisoning by flips, denoising by removal, noise for controls, and the way back.

SAFER, arXiv 2507.00665: poisoning swaps chosen and rejected of the highest-scoring pairs, denoising removes
the lowest-scoring ones. The number edited is the rate times the size of one group, the same for every
method, and only that group is touched. Rows keep their order, so an edited set is never trained in score
order.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from decimal import ROUND_HALF_UP, Decimal
from math import isfinite
from pathlib import Path
from typing import Any, Literal, Protocol

from seamark.audit import rows as file_rows
from seamark.audit.manifest import WHICH_ONE, EditManifest, RemovedRow, RowMark
from seamark.errors import ConfigError, DataError, FormatError
from seamark.run import write_atomic
from seamark.text.pairs import Pairs, PreferencePair, hash_unit

__all__ = [
    "EDITED", "MANIFEST", "NOISE", "Edit", "EditManifest", "Scored", "denoise", "edit_count", "inject_noise", "poison",
    "relabel", "undo", "undo_file", "write_edit", "write_removed",
]  # fmt: skip

EDITED, MANIFEST = "edited.jsonl", "manifest.json"
NOISE = "noise"


class Scored(Protocol):
    """Anything that scores pairs: see `seamark.audit.scores.PairScores`."""

    @property
    def method(self) -> str: ...
    @property
    def values(self) -> Mapping[str, float]: ...


@dataclass(frozen=True)
class Edit:
    """An edited set of pairs and the manifest that undoes it."""

    pairs: Pairs
    manifest: EditManifest
    even: bool = False
    """Whether all rows of the file are to have the same columns."""


def poison(pairs: Pairs, scores: Scored, rate: float, group: str = "safety", seed: int = 0) -> Edit:
    """Flip the highest-scoring `rate` of `group` (SAFER's data poisoning). Ties go by a hash of id.

    Raises:
        ConfigError: `rate` is not between 0 and 1.
        DataError: no such group, or pairs of it without a score.
    """
    picked = _extreme(pairs, scores, rate, group, seed, highest=True)
    return _flip(pairs, picked, method=scores.method, rate=rate, group=group, seed=seed)


def denoise(
    pairs: Pairs, scores: Scored, rate: float, group: str = "safety", seed: int = 0, *, even: bool = False
) -> Edit:
    """Remove the lowest-scoring `rate` of `group` (SAFER's denoising). Ties go by a hash of id and `seed`.

    With `even`, all rows of the edited file have the same columns in the same types, so that it loads into `datasets`
    and TRL whatever mixture of files the pairs came from (see `rows`).

    Raises:
        ConfigError: `rate` is not between 0 and 1.
        DataError: no such group, pairs of it without a score, or nothing of it would be left.
    """
    picked = _extreme(pairs, scores, rate, group, seed, highest=False)
    if len(picked) == len(pairs.group(group)):
        raise DataError(f"removing {rate:g} of group {group!r} leaves none of its {len(picked)} pairs",
                        fix="Choose a lower rate")  # fmt: skip
    kept = pairs.where(lambda p: p.id not in picked)
    return _edit(pairs, kept, kind="remove", picked=picked, method=scores.method, rate=rate, group=group, seed=seed,
                 even=even)  # fmt: skip


def relabel(
    pairs: Pairs, scores: Scored, rate: float, group: str = "safety", seed: int = 0, *, even: bool = False
) -> Edit:
    """Flip the lowest-scoring `rate` of `group`: the labels that `denoise` would take out are turned round instead.

    `even` as of `denoise`. Raises as `poison`.
    """
    picked = _extreme(pairs, scores, rate, group, seed, highest=False)
    return _flip(pairs, picked, method=scores.method, rate=rate, group=group, seed=seed, even=even)


def inject_noise(pairs: Pairs, rate: float, group: str = "safety", seed: int = 0) -> Edit:
    """Flip a random `rate` of `group`: wrong labels of known ids, to measure what denoising finds.

    Which pairs are flipped depends on their ids and `seed` alone, not on their order. Raises as `poison`.
    """
    count = edit_count(rate, _members(pairs, group))
    order = sorted(pairs.group(group).ids, key=lambda i: (hash_unit(f"noise:{i}", seed), i))
    return _flip(pairs, frozenset(order[:count]), method=NOISE, rate=rate, group=group, seed=seed)


def edit_count(rate: float, group_size: int) -> int:
    """`rate * group_size`, halves rounded up in decimal (0.145 of 100 is 15, whatever binary floats say)."""
    if not (isfinite(rate) and 0.0 < rate < 1.0):
        raise ConfigError(f"the rate must be between 0 and 1, not {rate!r}",
                          fix="Give a fraction: 0.05 edits 5 % of the group")  # fmt: skip
    count = int((Decimal(str(float(rate))) * group_size).quantize(Decimal(1), ROUND_HALF_UP))
    if count > group_size:
        raise DataError(f"{count} pairs to edit, but the group has only {group_size}", fix="Choose a lower rate")
    return count


def _members(pairs: Pairs, group: str) -> int:
    size = len(pairs.group(group))
    if size == 0:
        raise DataError(f"no pairs in group {group!r}", fix=f"The groups are: {', '.join(pairs.groups) or 'none'}")
    return size


def _extreme(pairs: Pairs, scores: Scored, rate: float, group: str, seed: int, *, highest: bool) -> frozenset[str]:
    """Ids of the highest- or lowest-scoring `rate` of `group`."""
    count = edit_count(rate, _members(pairs, group))
    ids, values = pairs.group(group).ids, scores.values
    missing = [i for i in ids if i not in values or not isfinite(values[i])]
    if missing:
        raise DataError(
            f"{len(missing)} of {len(ids)} pairs of group {group!r} have no {scores.method!r} score, "
            f"the first being {missing[0]!r}",
            fix="Score the same pairs that are edited",
        )
    sign = -1.0 if highest else 1.0
    return frozenset(sorted(ids, key=lambda i: (sign * values[i], hash_unit(i, seed), i))[:count])


def _flip(
    pairs: Pairs, picked: frozenset[str], *, method: str, rate: float, group: str, seed: int, even: bool = False
) -> Edit:
    flipped = pairs.with_items(p.flipped() if p.id in picked else p for p in pairs)
    return _edit(pairs, flipped, kind="flip", picked=picked, method=method, rate=rate, group=group, seed=seed,
                 even=even)  # fmt: skip


def _edit(
    before: Pairs, after: Pairs, *, kind: Literal["flip", "remove"], picked: frozenset[str], method: str,
    rate: float, group: str, seed: int, even: bool,
) -> Edit:  # fmt: skip
    layouts: dict[tuple[str, ...] | None, int] = {}
    marks: list[RowMark] = []
    removed: list[RemovedRow] = []
    raw = dict(before.raw)
    wrap = even and file_rows.needs_wrapping(before, before.raw)
    for index, pair in enumerate(before):
        row, keys = file_rows.to_file_row(pair, before.raw.get(pair.id), wrap=wrap)
        marks.append(RowMark(pair.id, file_rows.row_digest(row), layouts.setdefault(keys, len(layouts))))
        if pair.id in picked and kind == "remove":
            removed.append(RemovedRow(index=index, row=row))
            raw.pop(pair.id, None)
        elif pair.id in picked:
            # A later edit of these pairs must see the flipped row as its original.
            raw[pair.id] = file_rows.flip_row(row)
    manifest = EditManifest(
        kind=kind, method=method, group=group, rate=rate, seed=seed, group_size=len(before.group(group)),
        n_edited=len(picked), flipped=tuple(i for i in before.ids if i in picked) if kind == "flip" else (),
        removed=tuple(removed), fingerprint=before.fingerprint(), fingerprint_edited=after.fingerprint(),
        layouts=tuple(layouts), rows=tuple(marks),
    )  # fmt: skip
    return Edit(replace(after, raw=raw), manifest, even)


def write_edit(edit: Edit, folder: Path, edited: str = EDITED, manifest: str = MANIFEST) -> tuple[Path, Path]:
    """Write the edited rows and their manifest into `folder`, each whole or not at all; returns their paths.

    The rows load in TRL and in `read_pairs`; fields that Seamark does not know are kept. The manifest is
    written first: an edited file never stands without it.
    """
    folder = Path(folder)
    plan = edit.manifest
    write_atomic(folder / manifest, plan.to_json())
    write_atomic(folder / edited, (file_rows.to_jsonl([row]).encode() for row in _file_rows(edit)))
    return folder / edited, folder / manifest


def write_removed(edit: Edit, path: Path) -> None:
    """Write the rows that an edit took out, in the form of those that stayed."""
    beside = edit.even and None in edit.manifest.layouts
    rows = [file_rows.evened(removed.row, wrapped_beside=beside) for removed in edit.manifest.removed]
    write_atomic(Path(path), file_rows.to_jsonl(rows))


def _file_rows(edit: Edit) -> Iterator[dict[str, Any]]:
    """The rows of the edited file, all with the same columns."""
    plan = edit.manifest
    wrapped = {mark.id for mark in plan.rows if plan.layouts[mark.layout] is None}
    flipped = set(plan.flipped)
    for pair in edit.pairs:
        read = edit.pairs.raw.get(pair.id)
        if read is not None and pair.id in flipped:
            row = dict(read)  # what was flipped stands in `raw` as a row of the file already
        else:
            row, _ = file_rows.to_file_row(pair, read, wrap=pair.id in wrapped)
        yield file_rows.evened(row, wrapped_beside=edit.even and bool(wrapped))


def undo(edited: Pairs, manifest: EditManifest) -> Pairs:
    """The original pairs, in their order. `edited` may have been reordered since.

    Raises:
        FormatError: `edited` is not what the manifest describes.
    """
    by_id = {p.id: p for p in edited}
    _check_ids(list(by_id), manifest, "the pairs")
    removed = {r.id: r.row for r in manifest.removed}
    flipped = set(manifest.flipped)
    items: list[PreferencePair] = []
    raw: dict[str, Mapping[str, Any]] = {}
    for mark in manifest.rows:
        if mark.id in removed:
            with _fitting(mark, "the manifest"):
                items.append(file_rows.to_pair(removed[mark.id]))
            read: Mapping[str, Any] | None = removed[mark.id]
        else:
            items.append(by_id[mark.id].flipped() if mark.id in flipped else by_id[mark.id])
            read = edited.raw.get(mark.id)
            if read is not None and mark.id in flipped:
                read = file_rows.flip_row(read)
        if read is not None:
            # Rows that were not edited may still be as first read: then there is nothing to take off.
            is_file_row = file_rows.row_digest(read) == mark.digest
            with _fitting(mark, "the manifest"):
                raw[mark.id] = file_rows.from_file_row(read, manifest.layouts[mark.layout]) if is_file_row else read
    original = replace(edited, items=tuple(items), raw=raw)
    if original.fingerprint() != manifest.fingerprint:
        raise FormatError("the pairs differ from those the manifest was written for",
                          fix="Undo needs the edited pairs unchanged, though in any order")  # fmt: skip
    return original


def undo_file(
    edited: Path, manifest: Path, out: Path | None = None, *, group: str | None = None
) -> list[dict[str, Any]]:
    """The original rows of an edited file, field for field and in order; written to `out` (JSONL) when given.

    Works from the two files alone; the edited one may have been reordered. `group` gives back only that
    group's rows, for data that were read from one file per group. What reading left out was never in the edited
    file and does not come back: exact duplicates, and rows that are no pair (`Pairs.rejected` names both).

    Raises:
        FormatError: the files do not belong together, or one was changed since.
        DataError: no rows of `group`. In each case nothing is written.
    """
    plan = EditManifest.load(Path(manifest))
    rows = _original_rows(Path(edited), plan, Path(manifest))
    groups = list(dict.fromkeys(str(file_row["group"]) for file_row, _ in rows))
    if group is not None and group not in groups:
        raise DataError(f"no pairs in group {group!r}", where=str(edited),
                        fix=f"The groups are: {', '.join(groups)}")  # fmt: skip
    chosen = [original for file_row, original in rows if group is None or file_row["group"] == group]
    if out is not None:
        write_atomic(Path(out), file_rows.to_jsonl(chosen))
    return chosen


def _original_rows(path: Path, plan: EditManifest, manifest: Path) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """(unedited file row, original row) of every original row, in order."""
    found = list(file_rows.read_jsonl(path))
    _check_ids([file_rows.row_id(row) for row in found], plan, str(path))
    by_id = {str(row["id"]): row for row in found}
    for row_id in plan.flipped:
        if not {"chosen", "rejected"} <= by_id[row_id].keys():
            raise FormatError("`chosen` or `rejected` is missing", where=f"{path}, row with id {row_id!r}")
        by_id[row_id] = file_rows.flip_row(by_id[row_id])
    by_id |= {r.id: r.row for r in plan.removed}
    for mark in plan.rows:
        if file_rows.row_digest(by_id[mark.id]) != mark.digest:
            raise FormatError(
                "this row was changed after the edit, or belongs to another edit",
                where=f"{path}, row with id {mark.id!r}",
                fix="Undo needs the rows of the edited file unchanged, though in any order",
            )
    pairs: list[PreferencePair] = []
    found_rows: list[tuple[dict[str, Any], dict[str, Any]]] = []
    for mark in plan.rows:
        row = by_id[mark.id]
        with _fitting(mark, str(manifest)):
            pairs.append(file_rows.to_pair(row))
            found_rows.append((row, file_rows.from_file_row(row, plan.layouts[mark.layout])))
    if Pairs(tuple(pairs)).fingerprint() != plan.fingerprint:
        raise FormatError("the rows it gives back are not the pairs it was written for", where=str(manifest),
                          fix="Undo needs the manifest unchanged")  # fmt: skip
    return found_rows


@contextmanager
def _fitting(mark: RowMark, where: str) -> Iterator[None]:
    """Errors of taking a row apart as its manifest says are errors of the manifest."""
    try:
        yield
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError):
        raise FormatError(f"the manifest does not fit the row with id {mark.id!r}", where=where,
                          fix=WHICH_ONE) from None  # fmt: skip


def _check_ids(found: Sequence[str | None], plan: EditManifest, where: str) -> None:
    """The edited rows must be exactly those of the manifest, once each."""
    removed = {r.id for r in plan.removed}
    expected = {m.id for m in plan.rows} - removed
    strange = [i for i in found if i not in expected]
    missing = sorted(expected - set(found))
    if not strange and not missing and len(found) == len(expected):
        return
    if strange:
        problem = f"{len(strange)} rows are not in the manifest (the first has id {strange[0]!r})"
    elif missing:
        problem = f"{len(missing)} rows of the manifest are missing (the first has id {missing[0]!r})"
    else:
        problem = "some ids occur more than once"
    raise FormatError(f"the manifest does not fit: {problem}", where=where,
                      fix=WHICH_ONE)  # fmt: skip
