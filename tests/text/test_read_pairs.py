"""Reading pairs: every format, stable ids, and bad rows that cost only themselves."""

from __future__ import annotations

import csv
import gzip
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from seamark.errors import DataError
from seamark.text.files import read_rows
from seamark.text.pairs import Message, Pairs, content_id
from seamark.text.reading import ReadOptions, read_pairs, write_rejected

SECRET = "xyzzy-secret-words"
ROWS = [{"prompt": f"Question {i}?", "chosen": f"Good answer {i}.", "rejected": f"Bad answer {i}."} for i in range(4)]


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def bot(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def write_jsonl(path: Path, rows: Iterable[Any]) -> Path:
    path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in rows), encoding="utf-8")
    return path


def read_one(tmp_path: Path, row: Any) -> Pairs:
    """A file with `row` behind a good one."""
    return read_pairs(safety=write_jsonl(tmp_path / "one.jsonl", [ROWS[0], row]))


def reason_of(tmp_path: Path, row: Any) -> str:
    pairs = read_one(tmp_path, row)
    assert len(pairs) == 1
    (bad,) = pairs.rejected
    assert (bad.file, bad.row) == (str(tmp_path / "one.jsonl"), 2)
    assert SECRET not in bad.reason
    return bad.reason


def save(path: Path, rows: list[dict[str, Any]]) -> Path:
    """`rows` in the format of the suffix."""
    name = path.name
    if name.endswith(".parquet"):
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif name.endswith("list.json"):
        path.write_text(json.dumps(rows))
    elif name.endswith("data.json"):
        path.write_text(json.dumps({"version": 1, "data": rows}))
    elif name.endswith((".csv", ".tsv")):
        with path.open("w", newline="", encoding="utf-8") as f:
            writer = csv.DictWriter(f, list(rows[0]), delimiter="\t" if name.endswith("tsv") else ",")
            writer.writeheader()
            writer.writerows(rows)
    elif name.endswith(".gz"):
        path.write_bytes(gzip.compress("\n".join(map(json.dumps, rows)).encode()))
    elif name.endswith("saved"):
        import datasets

        datasets.Dataset.from_list(rows).save_to_disk(str(path))
    else:
        write_jsonl(path, rows)
    return path


NAMES = [
    "a.jsonl",
    "a.ndjson",
    "a.jsonl.gz",
    "list.json",
    "data.json",
    "lines.json",
    "a.csv",
    "a.tsv",
    "a.parquet",
    "saved",
]


@pytest.mark.parametrize("name", NAMES)
def test_every_format_reads_the_same(name: str, tmp_path: Path) -> None:
    pairs = read_pairs(safety=save(tmp_path / name, ROWS))
    assert [(p.prompt, p.chosen, p.rejected) for p in pairs] == [tuple(r.values()) for r in ROWS]
    assert pairs.ids == [content_id(*r.values()) for r in ROWS]
    assert all(p.group == "safety" for p in pairs)
    assert [pairs.raw[i] for i in pairs.ids] == ROWS
    assert pairs.rejected == ()


@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet", "list.json", "saved"])
def test_chats_in_nested_formats(name: str, tmp_path: Path) -> None:
    rows = [{"prompt": [user("Hi")], "chosen": [bot("Yes")], "rejected": [bot("No")]}]
    (pair,) = read_pairs(chat=save(tmp_path / name, rows))
    assert pair.prompt == (Message("user", "Hi"),)
    assert pair.chosen == (Message("assistant", "Yes"),)


def test_dataset_dict_and_split(tmp_path: Path) -> None:
    import datasets

    folder = tmp_path / "both"
    data = datasets.DatasetDict(
        {"train": datasets.Dataset.from_list(ROWS[:3]), "test": datasets.Dataset.from_list(ROWS[3:])}
    )
    data.save_to_disk(str(folder))
    assert len(read_pairs(safety=folder)) == 3
    assert len(read_pairs(safety=folder, options=ReadOptions(split="test"))) == 1
    with pytest.raises(DataError, match=r"no split 'dev' \(it has train, test\)"):
        read_pairs(safety=folder, options=ReadOptions(split="dev"))


def test_hub_offline_is_a_clear_error() -> None:
    with pytest.raises(DataError, match="some-owner/some-data: the Hub data set cannot be loaded"):
        read_pairs(safety="some-owner/some-data")


@pytest.mark.parametrize(
    ("row", "prompt", "chosen", "rejected"),
    [
        ({"chosen": "The sky is blue.", "rejected": "The sky is green."}, "The sky is", "blue.", "green."),
        ({"chosen": "Q? A grain", "rejected": "Q? A great"}, "Q? A", "grain", "great"),
        ({"chosen": "Is it so", "rejected": "Is it so or not"}, "Is it", "so", "so or not"),
    ],
)
def test_implicit_strings(tmp_path: Path, row: Any, prompt: str, chosen: str, rejected: str) -> None:
    pair = read_one(tmp_path, row)[1]
    assert (pair.prompt, pair.chosen, pair.rejected) == (prompt, chosen, rejected)


U, A = Message("user", "Hi"), Message("assistant", "Yes")
SHAPES = [
    {"chosen": [user("Hi"), bot("Yes")], "rejected": [user("Hi"), bot("No")]},
    {"prompt": [user("Hi")], "chosen": [bot("Yes")], "rejected": [bot("No")]},
    {"prompt": [user("Hi")], "chosen": "Yes", "rejected": "No"},
    {"prompt": "Hi", "chosen": [bot("Yes")], "rejected": [bot("No")]},
    {"prompt": "Hi", "chosen": [user("Hi"), bot("Yes")], "rejected": [user("Hi"), bot("No")]},
    {"prompt": "", "chosen": [user("Hi"), bot("Yes")], "rejected": [user("Hi"), bot("No")]},
    {"prompt": [user("Hi")], "chosen": bot("Yes"), "rejected": bot("No")},
    {"chosen": "\n\nHuman: Hi\n\nAssistant: Yes", "rejected": "\n\nHuman: Hi\n\nAssistant: No"},
    {"prompt": "Human: Hi\n\nAssistant:", "chosen": "Yes", "rejected": " No"},
    {"prompt": "Hi", "chosen": "\n\nHuman: Hi\n\nAssistant: Yes", "rejected": "\n\nHuman: Hi\n\nAssistant: No"},
    {"chosen": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Yes"}],
     "rejected": [{"role": "User", "content": [{"type": "text", "text": "Hi"}]}, bot("No")]},
]  # fmt: skip


@pytest.mark.parametrize("row", SHAPES)
def test_shapes_of_chats(tmp_path: Path, row: Any) -> None:
    pair = read_one(tmp_path, row)[1]
    assert pair.prompt == (U,)
    assert pair.chosen == (A,)
    assert [m.content.strip() for m in pair.rejected] == ["No"]  # type: ignore[union-attr]


def test_long_chats_share_their_leading_messages(tmp_path: Path) -> None:
    chosen = "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nd\n\nAssistant: good"
    pair = read_one(tmp_path, {"chosen": chosen, "rejected": chosen.replace("good", "bad")})[1]
    assert pair.prompt == (Message("user", "a"), Message("assistant", "b"), Message("user", "c\n\nd"))
    assert pair.chosen == (Message("assistant", "good"),)
    last_only = {"prompt": "c", "chosen": [user("a"), bot("b"), user("c"), bot("d")],
                 "rejected": [user("a"), bot("b"), user("c"), bot("e")]}  # fmt: skip
    assert len(read_one(tmp_path, last_only)[1].prompt) == 3


@pytest.mark.parametrize("both", [False, True])
def test_answers_that_write_turns_of_their_own_stay_strings(tmp_path: Path, both: bool) -> None:
    chosen = "Human: me\n\nAssistant: too"
    row = {"prompt": "Who?", "chosen": chosen, "rejected": "\n\nHuman: no\n\nAssistant: x" if both else "No"}
    pair = read_one(tmp_path, row)[1]
    assert (pair.prompt, pair.chosen) == ("Who?", chosen)


GOOD = ROWS[1]
BAD_ROWS = [
    ("{" + SECRET, "not valid JSON"),
    ('"' + SECRET + '"', "a JSON object is needed, not str"),
    ("[" * 100_000, "nested too deeply"),
    ({**GOOD, "chosen": None}, "chosen is missing"),
    ({"prompt": SECRET, "chosen": "x"}, "rejected is missing"),
    ({**GOOD, "prompt": None}, "prompt is missing"),
    ({**GOOD, "chosen": 5}, "chosen has the wrong type (int"),
    ({**GOOD, "rejected": ["a"]}, "message 1 of rejected has the wrong type (str"),
    ({**GOOD, "rejected": []}, "rejected is empty"),
    ({**GOOD, "chosen": "  \n"}, "chosen is empty"),
    ({**GOOD, "prompt": ""}, "prompt is empty"),
    ({**GOOD, "chosen": SECRET, "rejected": SECRET + " "}, "chosen and rejected are identical"),
    ({"chosen": SECRET, "rejected": SECRET}, "chosen and rejected are identical"),
    ({"chosen": "Yes " + SECRET, "rejected": "No"}, "chosen and rejected share no prompt"),
    ({**GOOD, "chosen": SECRET + "\x00"}, "chosen holds a NUL character"),
    ('{"prompt": "a", "chosen": "\\ud800", "rejected": "c"}', "chosen is not valid UTF-8"),
    ({**GOOD, "chosen": [{"role": SECRET, "content": "x"}]}, "message 1 of chosen has an unknown role"),
    ({**GOOD, "chosen": [{"role": "assistant", "content": {"a": 1}}]}, "message 1 of chosen has content that is no"),
    ({**GOOD, "chosen": [bot("x"), user("y")]}, "chosen does not end with the assistant's turn"),
    ({"prompt": [user("a"), bot("b")], "chosen": "c", "rejected": "d"}, "prompt does not end with the user's turn"),
    ({"chosen": [user("a"), bot("b")], "rejected": [user("c"), bot("d")]}, "chosen and rejected share no prompt"),
    ({"chosen": [user("z"), bot("y"), user("a"), bot("b")], "rejected": [user("z"), bot("y"), user("c"), bot("d")]},
     "chosen and rejected answer different prompts"),
    (ROWS[0], "duplicate of row 1"),
    ({**ROWS[0], "id": "other"}, "duplicate of row 1"),
]  # fmt: skip


@pytest.mark.parametrize(("row", "reason"), BAD_ROWS, ids=range(len(BAD_ROWS)))
def test_bad_rows_are_listed_with_their_reason(tmp_path: Path, row: Any, reason: str) -> None:
    assert reason in reason_of(tmp_path, row)


def test_a_line_in_another_encoding_costs_only_itself(tmp_path: Path) -> None:
    path = tmp_path / "mixed.jsonl"
    lines = [json.dumps(r, ensure_ascii=False).encode() for r in ROWS]
    lines[1] = '{"prompt": "a", "chosen": "café", "rejected": "c"}'.encode("latin-1")
    path.write_bytes(b"\xef\xbb\xbf" + b"\r\n".join([lines[0], b"", *lines[1:]]))
    pairs = read_pairs(safety=path)
    assert len(pairs) == 3
    assert [(b.row, b.reason[:9]) for b in pairs.rejected] == [(3, "not UTF-8")]


@pytest.mark.parametrize("name", ["a.csv", "list.json"])
def test_bytes_in_another_encoding_elsewhere(tmp_path: Path, name: str) -> None:
    path = save(tmp_path / name, ROWS)
    path.write_bytes(path.read_bytes().replace(b"Good answer 2", b"Good answ\xe9r 2"))
    pairs = read_pairs(safety=path)
    assert len(pairs) == 3
    assert [(b.row, b.reason[:24]) for b in pairs.rejected] == [(3, "chosen is not valid UTF-")]


def test_utf16_files_are_read(tmp_path: Path) -> None:
    path = tmp_path / "wide.jsonl"
    path.write_text("\n".join(map(json.dumps, ROWS)), encoding="utf-16")
    assert len(read_pairs(safety=path)) == 4
    save(tmp_path / "a.csv", ROWS)
    (tmp_path / "b.csv").write_text((tmp_path / "a.csv").read_text(), encoding="utf-16")
    assert len(read_pairs(safety=tmp_path / "b.csv")) == 4


def test_bad_strings_in_parquet_cost_only_themselves(tmp_path: Path) -> None:
    chosen = pa.array([b"good 1", b"bad \xff", b"good 3"], pa.binary()).view(pa.string())
    table = pa.table({"prompt": ["a", "b", "c"], "chosen": chosen, "rejected": ["x", "y", "z"]})
    pq.write_table(table, tmp_path / "a.parquet")
    pairs = read_pairs(safety=tmp_path / "a.parquet")
    assert [p.prompt for p in pairs] == ["a", "c"]
    assert [(b.row, b.reason) for b in pairs.rejected] == [(2, "not UTF-8")]


def test_cut_archives_give_what_they_hold(tmp_path: Path) -> None:
    import random

    noise = random.Random(0)
    rows = [
        {"prompt": f"q{i}", "chosen": "".join(noise.choices("abcdefgh", k=500)), "rejected": "x"} for i in range(400)
    ]
    whole = save(tmp_path / "a.jsonl.gz", rows).read_bytes()
    (tmp_path / "b.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    pairs = read_pairs(safety=tmp_path / "b.jsonl.gz")
    assert 50 < len(pairs) < 400
    assert "cut short" in pairs.rejected[-1].reason
    (tmp_path / "c.jsonl.gz").write_bytes(b"no archive at all")
    with pytest.raises(DataError, match="cut short or damaged"):
        read_pairs(safety=tmp_path / "c.jsonl.gz")


def test_broken_csv_lines_cost_only_themselves(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text(
        "prompt,chosen,rejected\n"
        'q1,"two\nlines, quoted ""x""",b1\n'
        "q2,a2\n"
        "q3,a3,b3,too many\n"
        'q4,"never closed,b4\n'
        "q5,a5,b5\n"
        "\n"
        'q6,"x"y,b6\n'
        "q7,a7,b7\n",
        encoding="utf-8",
    )
    pairs = read_pairs(safety=path)
    assert [p.prompt for p in pairs] == ["q1", "q5", "q7"]
    assert pairs[0].chosen == 'two\nlines, quoted "x"'
    assert [b.row for b in pairs.rejected] == [2, 3, 4, 6]


def test_answers_longer_than_a_csv_field_may_be(tmp_path: Path) -> None:
    pairs = read_pairs(safety=save(tmp_path / "a.csv", [{"prompt": "q", "chosen": "a " * 100_000, "rejected": "b"}]))
    assert len(pairs[0].chosen) == 200_000
    assert csv.field_size_limit() == 131072


def test_own_ids_are_kept_and_clashes_resolved(tmp_path: Path) -> None:
    a = write_jsonl(tmp_path / "a.jsonl", [{**r, "id": i} for i, r in enumerate(ROWS)])
    b = write_jsonl(tmp_path / "b.jsonl", [{**r, "id": i, "prompt": f"Other {i}"} for i, r in enumerate(ROWS)])
    assert read_pairs(safety=a).ids == ["0", "1", "2", "3"]
    both = read_pairs(safety=[a, b])
    assert len(set(both.ids)) == 8
    assert both.ids[:4] == ["0", "1", "2", "3"]
    assert both.ids[4].startswith("0-")
    assert both.ids == read_pairs(safety=[a, b]).ids
    across = read_pairs(safety=a, chat=a)
    assert len(set(across.ids)) == 8
    assert across.rejected == ()  # the same pair may stand in two groups
    assert len({*across.raw}) == 8


@pytest.mark.parametrize("own", [None, True, 1.5, "", "a\nb", "\u202e", "x" * 300, ["x"]])
def test_ids_that_cannot_serve_give_way_to_the_content_hash(tmp_path: Path, own: Any) -> None:
    pair = read_one(tmp_path, {**GOOD, "id": own})[1]
    assert pair.id == content_id(*GOOD.values())


def test_duplicates_name_the_row_and_file(tmp_path: Path) -> None:
    a = write_jsonl(tmp_path / "a.jsonl", [*ROWS, ROWS[1]])
    b = write_jsonl(tmp_path / "b.jsonl", [ROWS[2], {"prompt": "new", "chosen": "x", "rejected": "y"}])
    pairs = read_pairs(safety=[a, b])
    assert len(pairs) == 5
    assert [(r.row, r.reason) for r in pairs.rejected] == [(5, "duplicate of row 2"), (1, f"duplicate of row 3 of {a}")]
    write_rejected(pairs, tmp_path / "rejected.jsonl")
    lines = [json.loads(x) for x in (tmp_path / "rejected.jsonl").read_text().splitlines()]
    assert lines[0] == {"file": str(a), "row": 5, "reason": "duplicate of row 2"}


def test_flipped_labels_are_no_duplicates(tmp_path: Path) -> None:
    flipped = {"prompt": GOOD["prompt"], "chosen": GOOD["rejected"], "rejected": GOOD["chosen"]}
    assert len(read_pairs(safety=write_jsonl(tmp_path / "a.jsonl", [GOOD, flipped]))) == 2


def test_columns_aliases_and_labels(tmp_path: Path) -> None:
    row = {"question": "q", "response_chosen": "a", "response_rejected": "b", "dataset": "web", "subset": "x"}
    (pair,) = read_pairs({"my group": write_jsonl(tmp_path / "a.jsonl", [row])})
    assert (pair.group, pair.prompt, pair.chosen, pair.source, pair.category) == ("my group", "q", "a", "web", "x")
    row = {"prompt": "q", "better": "a", "worse": "b", "n": 7}
    path = write_jsonl(tmp_path / "b.jsonl", [row])
    options = ReadOptions(columns={"chosen": "better", "rejected": "worse", "id": "n"})
    assert read_pairs(safety=path, options=options).ids == ["7"]
    with pytest.raises(DataError, match="no column chosen, rejected; found better, n, prompt, worse"):
        read_pairs(safety=path)
    with pytest.raises(DataError, match="no column best; found better, n, prompt, worse"):
        read_pairs(safety=path, options=ReadOptions(columns={"chosen": "best", "rejected": "worse"}))
    with pytest.raises(ValidationError, match="unknown fields answer"):
        ReadOptions(columns={"answer": "x"})


def test_max_pairs_picks_the_same_whatever_the_order(tmp_path: Path) -> None:
    rows = [{"prompt": f"q{i}", "chosen": "a", "rejected": "b"} for i in range(50)]
    options = ReadOptions(max_pairs=7)
    there = read_pairs(safety=write_jsonl(tmp_path / "a.jsonl", rows), options=options)
    back = read_pairs(safety=write_jsonl(tmp_path / "b.jsonl", rows[::-1]), options=options)
    assert len(there) == 7
    assert there.ids == back.ids[::-1]
    assert set(there.raw) == set(there.ids)


def test_each_group_may_have_a_limit_of_its_own(tmp_path: Path) -> None:
    files = {}
    for group in ("safety", "chat", "code"):
        rows = [{"prompt": f"{group} {i}", "chosen": "a", "rejected": "b"} for i in range(30)]
        files[group] = write_jsonl(tmp_path / f"{group}.jsonl", rows)
    limits = {"safety": 9, "chat": 4}
    read = read_pairs(files, options=ReadOptions(max_pairs=limits))
    assert {g: len(read.group(g)) for g in read.groups} == {"safety": 9, "chat": 4, "code": 30}
    sampled = read_pairs(files).sample(limits)
    assert sampled.ids == read.ids
    for wrong in (lambda: read.sample({"chta": 4}), lambda: read_pairs(files, options=ReadOptions(max_pairs={"x": 1}))):
        with pytest.raises(DataError, match="which is not there") as caught:
            wrong()
        assert "chat, code, safety" in str(caught.value)
    with pytest.raises(ValidationError):
        ReadOptions(max_pairs={"safety": 0})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the file is empty"),
        (b"\n\n", "the file has no rows"),
        (b"nonsense\nmore\n", r"no usable row among 2 \(2 × not valid JSON\)"),
        (b'{"text": "a"}\n', "no column chosen, rejected; found text"),
        (b'{"chosen": "a", "rejected": "a"}\n', "no usable row among 1"),
    ],
)
def test_files_without_a_usable_row(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        read_pairs(safety=path)
    assert str(path) in str(caught.value)


def test_a_row_taken_for_the_header_is_not_quoted(tmp_path: Path) -> None:
    path = tmp_path / "headless.csv"
    path.write_text(f"how do I {SECRET} now,{SECRET * 3},b c d e\nq,a,b\n")
    with pytest.raises(DataError, match="found 3 not shown") as caught:
        read_pairs(safety=path)
    assert SECRET not in str(caught.value)


def test_sources_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no files of pairs"):
        read_pairs()
    with pytest.raises(DataError, match="no file given"):
        read_pairs(safety=[])
    with pytest.raises(DataError, match="no such file"):
        read_pairs(safety=tmp_path / "missing.jsonl")
    with pytest.raises(DataError, match="no such file"):
        read_pairs(safety="data/missing.jsonl")
    with pytest.raises(DataError, match="no saved data set"):
        read_pairs(safety=tmp_path)
    for name, content in {
        "a.xlsx": b"x",
        "b.parquet": b"PAR1",
        "c.json": b"{{",
        "d.json": b"5",
        "e.csv": b"a,b\n",
    }.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError):
            read_pairs(safety=tmp_path / name)


def test_written_pairs_read_back_the_same(tmp_path: Path) -> None:
    pairs = read_pairs(safety=write_jsonl(tmp_path / "a.jsonl", [*ROWS, *SHAPES[:1]]))
    pairs.to_jsonl(tmp_path / "b.jsonl")
    again = read_pairs(safety=tmp_path / "b.jsonl")
    assert again.items == pairs.items
    assert again.fingerprint() == pairs.fingerprint()


json_st = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.sampled_from(["\n\nHuman: a\n\nAssistant: b"]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["role", "content", "from"]), inner, max_size=3)
    ),
    max_leaves=6,
)


@given(prompt=json_st, chosen=json_st, rejected=json_st)
def test_any_json_is_a_pair_or_has_a_reason(tmp_path_factory: Any, prompt: Any, chosen: Any, rejected: Any) -> None:
    path = tmp_path_factory.getbasetemp() / "any.jsonl"
    row = {"prompt": prompt, "chosen": chosen, "rejected": rejected}
    pairs = read_pairs(safety=write_jsonl(path, [ROWS[0], row]))
    assert len(pairs) + len(pairs.rejected) == 2
    for pair in pairs:
        assert pair.chosen
        assert pair.rejected


def test_row_numbers_of_files(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("\n{}\n\nx\n")
    assert [r.number for r in read_rows(path)] == [2, 4]


OWN = {"source": "s", "category": "c"}


def test_a_file_of_several_groups_counts_in_each_only_its_own_rows(tmp_path: Path) -> None:
    """Groups may share a file; what is of another group that is read from it too is no refused row."""
    own = [{**r, **OWN, "id": f"p{i}", "group": ("safety", "chat", "code")[i % 3]} for i, r in enumerate(ROWS)]
    path = write_jsonl(tmp_path / "clean.jsonl", [*own, "no JSON"])
    both = read_pairs(safety=path, chat=path)
    assert {g: both.group(g).ids for g in both.groups} == {"safety": ["p0", "p3"], "chat": ["p1"]}
    told = [(b.group, b.row, b.reason.split(" (")[0]) for b in both.rejected]
    assert told == [(g, row, why) for g in ("safety", "chat")
                    for row, why in ((3, "its column group names another group"), (5, "not valid JSON"))]  # fmt: skip


def test_a_column_group_of_the_users_own_is_named(tmp_path: Path) -> None:
    rows = [{**ROWS[i % 4], **OWN, "id": f"p{i}", "group": f"annotators {i % 7}", "prompt": f"Q{i}"} for i in range(12)]
    rows[0]["group"] = SECRET * 9
    path = write_jsonl(tmp_path / "own.jsonl", rows)
    with pytest.raises(DataError) as caught:
        read_pairs(safety=path)
    said = str(caught.value)
    assert "the column `group` of 12 rows says annotators 1, annotators 2" in said
    assert "drop or rename the column `group`" in said
    assert SECRET not in said
    assert len(read_pairs({"annotators 1": path})) == 2


@pytest.mark.parametrize("name", ["a.jsonl", "list.json", "data.json", "lines.json"])
def test_a_key_that_stands_twice_costs_its_row(tmp_path: Path, name: str) -> None:
    """Which of the two texts is the chosen one, nobody knows."""
    twice = '{"prompt": "q", "chosen": "a", "rejected": "b", "chosen": "c"}'
    chat = {"prompt": [user("q")], "chosen": [bot("a")], "rejected": [bot("b")]}
    inside = json.dumps(chat).replace('"content": "a"', '"content": "a", "content": "c"')
    texts = [twice, json.dumps(ROWS[0]), inside, json.dumps(ROWS[1])]
    listed = {"list": "[{}]", "data": '{{"data": [{}]}}'}.get(name.split(".")[0])
    (tmp_path / name).write_text(listed.format(", ".join(texts)) if listed else "\n".join(texts), encoding="utf-8")
    pairs = read_pairs(safety=tmp_path / name)
    assert [p.prompt for p in pairs] == ["Question 0?", "Question 1?"]
    assert [(b.row, b.reason) for b in pairs.rejected] == [(n, "a key stands twice in one JSON object") for n in (1, 3)]


@pytest.mark.parametrize("text", ['{"data": [1], "data": [2]}', '{"chosen": "a", "rejected": "b", "chosen": "c"}'])
def test_a_json_file_that_is_one_object_with_a_key_twice(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.json").write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match="1 × a key stands twice in one JSON object"):
        read_pairs(safety=tmp_path / "a.json")


def test_a_file_whose_name_is_no_utf8(tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"caf\xe9.jsonl")
    pairs = read_pairs(safety=write_jsonl(path, [ROWS[0], "no JSON"]))
    write_rejected(pairs, tmp_path / "rejected.jsonl")
    (line,) = (tmp_path / "rejected.jsonl").read_text(encoding="utf-8").splitlines()
    assert json.loads(line)["file"] == str(path)
