"""Whole files, digests and plain data."""

from __future__ import annotations

import enum
import errno
import os
import sqlite3
from pathlib import Path

import numpy as np
import pytest
from pydantic import BaseModel

from seamark.errors import DataError, RunError
from seamark.run import (
    canonical_json,
    digest,
    disk_errors,
    file_digest,
    read_json,
    to_jsonable,
    versions,
    write_atomic,
    write_json,
)
from seamark.stats import Estimate


class Inner(BaseModel):
    path: Path
    pair: tuple[int, int]


class Colour(enum.StrEnum):
    RED = "red"


@pytest.mark.parametrize(
    ("value", "plain"),
    [
        (Inner(path=Path("a/b"), pair=(1, 2)), {"path": "a/b", "pair": [1, 2]}),
        ({"x": Inner(path=Path("a"), pair=(1, 2))}, {"x": {"path": "a", "pair": [1, 2]}}),
        ({1: Path("a"), None: 2}, {"1": "a", "None": 2}),
        ({"b", "a"}, ["a", "b"]),
        (frozenset({Path("b"), Path("a")}), ["a", "b"]),
        ((1, (2, [3])), [1, [2, [3]]]),
        (np.float32(0.5), 0.5),
        (np.int64(3), 3),
        (np.bool_(True), True),
        (np.str_("é"), "é"),
        (Colour.RED, "red"),
        (Estimate.not_available("why"), {"value": None, "low": None, "high": None, "n": 0, "reason": "why"}),
        (None, None),
        ("text", "text"),
    ],
)
def test_plain_data(value, plain):
    assert to_jsonable(value) == plain
    assert canonical_json(value) == canonical_json(plain)


@pytest.mark.parametrize("value", [np.zeros(2), np.array(1.0), object(), b"bytes"])
def test_what_has_no_plain_form_is_refused_not_guessed(tmp_path, value):
    with pytest.raises(TypeError):
        write_json(tmp_path / "x.json", {"x": value})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), np.float32("nan"), Estimate(value=float("nan"))])
def test_no_file_and_no_digest_holds_nan(tmp_path, bad):
    write_json(tmp_path / "x.json", {"x": 1})
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(tmp_path / "x.json", {"x": [bad]})
    with pytest.raises(ValueError, match="JSON compliant"):
        digest({"x": bad})
    assert read_json(tmp_path / "x.json") == {"x": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["x.json"]


def test_digests_do_not_depend_on_order_but_on_everything_else():
    assert digest({"a": 1, "b": [1, 2]}) == digest({"b": (1, 2), "a": 1})
    assert len({digest(v) for v in ({"a": 1}, {"a": 1.5}, {"a": "1"}, {"a": None}, {"a": True}, {"b": 1}, [1])}) == 7


@pytest.mark.parametrize("text", ["é 漢 🌊", "\u202e\x00 \u2028", "half a pair: \ud83d", '"</script>'])
def test_text_comes_back_as_it_was(tmp_path, text):
    write_json(tmp_path / "x.json", {text: text})
    assert read_json(tmp_path / "x.json") == {text: text}
    (tmp_path / "x.json").read_bytes().decode("utf-8")  # readable by anybody
    assert digest(text) == digest(text)


def test_a_file_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    file = tmp_path / "deep" / "x.txt"
    write_atomic(file, "old")

    def full(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("seamark.run.files.os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_atomic(file, b"new")
    assert file.read_text() == "old"
    assert [p.name for p in file.parent.iterdir()] == ["x.txt"]


@pytest.mark.parametrize(
    ("content", "says"),
    [(None, "file not found"), (b"{", "not readable as JSON"), (b"\xff\xfe", "not readable as JSON")],
)
def test_unreadable_json_is_named(tmp_path, content, says):
    file = tmp_path / "x.json"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(RunError, match=rf"x\.json: {says}"):
        read_json(file)


def test_a_folder_is_not_json(tmp_path):
    with pytest.raises(RunError, match="cannot be read"):
        read_json(tmp_path)


def test_digest_of_a_folder_is_of_names_and_bytes(tmp_path):
    for name in ("one", "two"):
        write_atomic(tmp_path / name / "sub" / "x", "1")
        write_atomic(tmp_path / name / "y", "2")
    assert file_digest(tmp_path / "one") == file_digest(tmp_path / "two")
    (tmp_path / "two" / "sub").rename(tmp_path / "two" / "bus")
    assert file_digest(tmp_path / "one") != file_digest(tmp_path / "two")


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "/data/x"), "/data/x: the disk is full. Free some space"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), "out: the disk quota is used up"),
        (OSError(errno.EROFS, "Read-only file system"), "out: the file system is read-only. Choose another --out"),
        (PermissionError(errno.EACCES, "Permission denied"), "out: no permission to read or write"),
        (PermissionError(errno.EPERM, "Operation not permitted"), "out: no permission to write"),
        (Exception("I/O error: No space left on device (os error 28)"), "out: the disk is full"),
        (OSError("[Errno 28] Error writing. Detail: [errno 28] No space left on device"), "out: the disk is full"),
        (OSError("10000 requested and 109 written"), "out: a file could not be written whole"),
        (RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 576 vs 534"), "could not be written"),
        (RuntimeError("[enforce fail at inline_container.cc:424] . PytorchStreamWriter failed writing file data/0"),
         "could not be written"),
    ],
)  # fmt: skip
def test_storage_errors_of_any_library_become_one_line(error, says):
    with pytest.raises(RunError) as caught, disk_errors(Path("out")):
        raise error
    assert says in str(caught.value)
    assert caught.value.__cause__ is error


@pytest.mark.parametrize(
    "error",
    [
        FileNotFoundError(errno.ENOENT, "No such file", "/x"), ValueError("28"), sqlite3.OperationalError("locked"),
        DataError("a row says (os error 28)"), OSError("strange"), KeyboardInterrupt(),
    ],
)  # fmt: skip
def test_other_errors_pass_unchanged(error):
    with pytest.raises(type(error)) as caught, disk_errors(Path("out")):
        raise error
    assert caught.value is error


def test_versions_name_what_decides_the_numbers():
    found = versions()
    assert found["torch"].startswith("2.")
    assert all(isinstance(v, str) for v in found.values())
