"""Edited files whose rows all have the same columns, whatever mixture of files the pairs came from."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from seamark.audit.editing import denoise, relabel, undo_file, write_edit, write_removed
from seamark.audit.rows import uneven_columns
from seamark.audit.scores import PairScores
from seamark.text import read_pairs


@pytest.mark.parametrize(
    ("rows", "uneven"),
    [
        ([{"a": 1}, {"a": None}, {"a": 2}], set()),
        ([{"a": 1}, {"a": 1.5}], {"a"}),
        ([{"a": 1}, {}], {"a"}),
        ([{"a": {"x": 1}}, {"a": {"x": "y"}}], {"a"}),
        ([{"a": [1, 2]}, {"a": [3]}], set()),
        ([{"a": [1]}, {"a": ["b"]}], {"a"}),
        ([{"id": "x"}, {"id": 7}], {"id"}),
        ([{"prompt": "x"}, {"prompt": [{"role": "user"}]}], {"prompt"}),
    ],
)
def test_columns_that_not_all_rows_have_in_one_type(rows: list[dict[str, object] | None], uneven: set[str]) -> None:
    assert uneven_columns(rows) == uneven


@pytest.mark.parametrize("change", [denoise, relabel])
def test_rows_are_evened_and_come_back(change: object, tmp_path: Path) -> None:
    def row(n: int, **more: object) -> dict[str, object]:
        return {"id": f"p{n}", "prompt": f"q{n}", "chosen": f"good {n}", "rejected": f"bad {n}", **more}

    original = [row(n, note=n, odd={"k": n}) for n in range(6)] + [row(n, note=n) for n in range(6, 9)]
    file = tmp_path / "pairs.jsonl"
    file.write_text("".join(json.dumps(r) + "\n" for r in original))
    pairs = read_pairs(safety=file)
    scores = PairScores(method="m", values={p.id: float(n) for n, p in enumerate(pairs)})
    edit = change(pairs, scores, 0.3, even=True)  # type: ignore[operator]
    edited, manifest = write_edit(edit, tmp_path, "edited.jsonl", "how-to-undo.json")
    rows = [json.loads(line) for line in edited.read_text().splitlines()]
    if change is denoise:
        write_removed(edit, tmp_path / "removed.jsonl")
        rows += [json.loads(line) for line in (tmp_path / "removed.jsonl").read_text().splitlines()]
    own = {"id", "group", "prompt", "chosen", "rejected", "source", "category"}
    assert {frozenset(r) for r in rows} == {frozenset(own | {"original"})}
    assert all(isinstance(r["original"], str) for r in rows)
    assert undo_file(edited, manifest) == original
    assert [list(r) for r in undo_file(edited, manifest)] == [list(r) for r in original]


def test_rows_that_are_even_stay_as_they_are(tmp_path: Path) -> None:
    original = [{"id": f"p{n}", "prompt": "q", "chosen": f"a{n}", "rejected": f"b{n}", "note": n} for n in range(5)]
    file = tmp_path / "pairs.jsonl"
    file.write_text("".join(json.dumps(r) + "\n" for r in original))
    scores = PairScores(method="m", values={f"p{n}": float(n) for n in range(5)})
    edited, _ = write_edit(denoise(read_pairs(safety=file), scores, 0.2, even=True), tmp_path)
    assert [json.loads(line) for line in edited.read_text().splitlines()] == [
        r | {"group": "safety"} for r in original[1:]
    ]
