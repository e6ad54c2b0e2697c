"""Edited files whose rows all have the same columns, whatever mixture of files the pairs came from."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from seamark.audit.editing import denoise, relabel, undo_file, write_edit, write_removed
from seamark.audit.rows import to_jsonl, uneven_columns
from seamark.audit.scores import PairScores
from seamark.text import read_pairs


@pytest.mark.parametrize(
    ("rows", "uneven"),
    [
        ([{"a": 1}, {"a": 3}, {"a": 2}], set()),
        ([{"a": None}, {"a": None}], set()),
        ([{"a": 1}, {"a": None}, {"a": 2}], {"a"}),
        ([{"a": {"x": None}}, {"a": {"x": 1}}], {"a"}),
        ([{"a": 1}, {"a": 2**70}], {"a"}),
        ([{"a": "2024-01-01"}, {"a": "1999-12-31"}, {"a": "2024-02-02"}], set()),
        ([{"a": "2024-01-01"}, {"a": "unknown"}], {"a"}),
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
    more = {"group": "safety", "source": "", "category": ""}
    assert [json.loads(line) for line in edited.read_text().splitlines()] == [r | more for r in original[1:]]


def test_an_edited_file_of_two_groups_is_read_back_as_two_groups(tmp_path: Path) -> None:
    original = {g: [{"id": f"{g}{n}", "prompt": "q", "chosen": f"{g} {n}", "rejected": f"b{n}"} for n in range(4)]
                for g in ("safety", "chat")}  # fmt: skip
    for g, lines in original.items():
        (tmp_path / f"{g}.jsonl").write_text(to_jsonl(lines))
    pairs = read_pairs({g: tmp_path / f"{g}.jsonl" for g in original})
    scores = PairScores(method="m", values={p.id: float(n) for n, p in enumerate(pairs)})
    edited, manifest = write_edit(denoise(pairs, scores, 0.25, even=True), tmp_path)
    again = read_pairs(safety=edited, chat=edited)
    assert again.ids == ["safety1", "safety2", "safety3", "chat0", "chat1", "chat2", "chat3"]
    assert read_pairs(safety=edited).ids == ["safety1", "safety2", "safety3"]
    assert [list(r) for r in undo_file(edited, manifest)] == [["id", "prompt", "chosen", "rejected"]] * 8


@pytest.mark.parametrize(
    "column",
    [
        ["subset", *['""'] * 9, '"x"'],
        ["dataset", *["null"] * 9, '"x"'],
        ["note", *["null"] * 9, '"x"'],
        ["when", *['"2024-01-01T00:00:00"'] * 9, '"unknown"'],
        ["note", *['"y"'] * 9, r'"a\ud800b"'],
        [r"k\ud800", *["1"] * 10],
        ["meta", *[r'{"k": ["\udfff"]}'] * 10],
        ["meta", *["[" * 600 + "]" * 600] * 10],
        ["meta", *["1"] * 9, "[" * 900 + "]" * 900],
    ],
    ids=["alias", "null-alias", "null", "dates", "surrogate", "surrogate-key", "surrogate-within", "deep", "one-deep"],
)
def test_files_load_in_small_chunks_and_come_back(column: list[str], tmp_path: Path) -> None:
    """The tenth row lies in another chunk than the first: a reader has settled on columns and types by then."""
    import datasets

    name, *values = column
    long = "x" * 80
    pairs = [f'{{"id": "p{n}", "prompt": "q{n} {long}", "chosen": "a", "rejected": "b"' for n in range(10)]
    lines = [f'{p}, "{name}": {v}}}' for p, v in zip(pairs, values, strict=True)]
    file = tmp_path / "pairs.jsonl"
    file.write_text("\n".join(lines) + "\n")
    read = read_pairs(safety=file)
    scores = PairScores(method="m", values={p.id: float(n) for n, p in enumerate(read)})
    for change in (denoise, relabel):
        edit = change(read, scores, 0.3, even=True)
        edited, manifest = write_edit(edit, tmp_path / change.__name__)
        loaded = datasets.load_dataset("json", data_files=str(edited), split="train", chunksize=600,
                                       cache_dir=str(tmp_path / "cache"))  # fmt: skip
        assert loaded["id"] == edit.pairs.ids
        assert [json.dumps(r) for r in undo_file(edited, manifest)] == [json.dumps(json.loads(line)) for line in lines]
