"""Files that are read into an atlas: packed or not, cut off, endless, or no JSON at all."""

from __future__ import annotations

import gzip
import math
from pathlib import Path

import pytest

from seamark.atlas import importing
from seamark.atlas.exporting import packed_lines
from seamark.atlas.importing import Rejections, is_number, parse_json, read_bytes, read_lines
from seamark.errors import FormatError


def test_packed_or_not_whatever_the_name(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(gzip.compress(b"[1]"))
    (tmp_path / "b.json.gz").write_bytes(b"\xef\xbb\xbf[1]")
    for name in ("a.json", "b.json.gz"):
        assert parse_json(read_bytes(tmp_path / name)) == [1]


def test_what_unpacks_to_too_much_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.gz").write_bytes(gzip.compress(b" " * 5_000_000))
    with pytest.raises(FormatError, match="larger than 1,000 bytes"):
        read_bytes(tmp_path / "a.gz", limit=1000)
    assert len(read_bytes(tmp_path / "a.gz", limit=5_000_000)) == 5_000_000


def test_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importing, "MAX_LINE", 64)
    long = b'{"a": "' + b"x" * 200 + b'"}'
    (tmp_path / "a.jsonl").write_bytes(b'{"a": 1}\n\n' + long + b'\n[2]\nno\n{"a": 2}\r\n' + b'{"a": "\xff"}\n{"a": 3}')
    found = Rejections()
    rows = [(number, row["a"]) for number, row in read_lines(tmp_path / "a.jsonl", found)]
    assert rows == [(1, 1), (6, 2), (8, 3)]
    assert {r.key.removeprefix("line "): r.reason.split(" (")[0] for r in found.first} == {
        "3": "longer than 64 bytes", "4": "not an object", "5": "no JSON", "7": "no UTF-8"}  # fmt: skip


def test_rejections_are_counted_beyond_what_is_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importing, "MAX_REJECTED", 3)
    found = Rejections()
    for i in range(10):
        found.add("f", f"half \ud800 {i}" + "x" * 1000, "because" * 1000)
    assert (len(found.first), found.n) == (3, 10)
    assert found.first[0].key.startswith("half ⟦U+D800⟧ 0x")
    assert len(found.first[0].key) < 220
    assert len(found.first[0].reason) == 500


def test_numbers() -> None:
    values = parse_json(b'[1, -0.5, NaN, Infinity, -Infinity, 1e999, true, "1", null, 12345678901234567890123]')
    assert [is_number(v) for v in values] == [True, True, False, False, False, False, False, False, False, True]
    assert values[-1] == pytest.approx(1.2345678901234568e22)
    assert math.isinf(parse_json(b"1" + b"0" * 5000))
    with pytest.raises(FormatError, match="nested too deeply"):
        parse_json(b"[" * 100_000)


def test_equal_lines_give_equal_files(tmp_path: Path) -> None:
    for name in ("a", "b"):
        with packed_lines(tmp_path / name / "x.gz") as f:
            f.write(b"line\n")
    assert (tmp_path / "a/x.gz").read_bytes() == (tmp_path / "b/x.gz").read_bytes()
    assert gzip.decompress((tmp_path / "a/x.gz").read_bytes()) == b"line\n"
