"""The file of an atlas: versions, other files in its place, other processes, and kill -9."""

from __future__ import annotations

import os
import random
import shutil
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from atlas_writers import RUN, writers
from made_features import make, sae, write

from seamark.atlas import Atlas, AtlasWriter, ContextRow, FeatureRow, Query, opening, schema
from seamark.errors import ConfigError, DataError, FormatError, RunError

SECOND = """
ALTER TABLE runs ADD COLUMN note TEXT NOT NULL DEFAULT 'none';
UPDATE runs SET note = 'older' WHERE kind = 'test';
CREATE TABLE more(x INTEGER PRIMARY KEY) STRICT;
"""
KNOWN, NOW = schema.MIGRATIONS, len(schema.MIGRATIONS)
BROKEN = SECOND + "INSERT INTO more VALUES (1);\nINSERT INTO nowhere VALUES (1);\n"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write(tmp_path / "atlas.db", make(6))


def version(path: Path) -> int:
    db = sqlite3.connect(path)
    found = db.execute("PRAGMA user_version").fetchone()[0]
    db.close()
    return int(found)


def content(path: Path) -> list[str]:
    db = sqlite3.connect(path)
    lines = [*db.iterdump(), str(db.execute("PRAGMA user_version").fetchone())]
    db.close()
    return lines


def test_the_file_is_what_it_says(path: Path) -> None:
    db = sqlite3.connect(path)
    for name, value in (("application_id", schema.APPLICATION_ID), ("user_version", len(schema.MIGRATIONS)),
                        ("journal_mode", "wal"), ("integrity_check", "ok")):  # fmt: skip
        assert db.execute(f"PRAGMA {name}").fetchone()[0] == value
    assert db.execute("PRAGMA foreign_key_check").fetchall() == []
    db.close()
    assert sorted(p.name for p in path.parent.iterdir()) == ["atlas.db"]  # the log is in the file once it is closed


@pytest.mark.parametrize("opened", [Atlas.open, AtlasWriter.open])
def test_no_atlas_is_told(tmp_path: Path, opened: Callable[[Path], Atlas]) -> None:
    with pytest.raises(ConfigError, match="no atlas here"):
        opened(tmp_path / "none.db")
    with pytest.raises(ConfigError, match="a folder"):
        opened(tmp_path)
    (tmp_path / "text.db").write_text("not a database, but long enough to be looked at " * 50)
    with pytest.raises(FormatError, match="not an atlas"):
        opened(tmp_path / "text.db")
    other = sqlite3.connect(tmp_path / "other.db")
    other.execute("CREATE TABLE features(id)")
    other.close()
    with pytest.raises(FormatError, match="a database, but not an atlas"):
        opened(tmp_path / "other.db")
    assert not (tmp_path / "none.db").exists()


def test_other_files_are_never_written(tmp_path: Path) -> None:
    for name, data in (("text.db", b"precious " * 1000), ("empty.txt", b"")):
        (tmp_path / name).write_bytes(data)
    with pytest.raises(FormatError):
        AtlasWriter.open(tmp_path / "text.db", create=True)
    assert (tmp_path / "text.db").read_bytes() == b"precious " * 1000
    other = sqlite3.connect(tmp_path / "other.db")
    other.execute("CREATE TABLE t(x)")
    other.close()
    before = (tmp_path / "other.db").read_bytes()
    with pytest.raises(FormatError):
        AtlasWriter.open(tmp_path / "other.db", create=True)
    assert (tmp_path / "other.db").read_bytes() == before
    with pytest.raises(FormatError, match="an empty file"):
        Atlas.open(tmp_path / "empty.txt")


def test_a_python_that_cannot_is_told(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite3, "sqlite_version_info", (3, 36, 9))
    with pytest.raises(RunError, match=r"needs 3\.37"):
        Atlas.open(path)


def test_odd_names(tmp_path: Path) -> None:
    for name in ("a?mode=memory&x=1 %20#.db", "ünï 港.db", os.fsdecode(b"bytes-\xff.db")):
        place = tmp_path / "sub" / name
        write(place, make(3))
        with Atlas.open(place) as atlas:
            assert atlas.overview().features == 3
        assert place.is_file()


def test_an_earlier_version_is_brought_up_to_date(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert version(path) == NOW
    monkeypatch.setattr(schema, "MIGRATIONS", (*KNOWN, SECOND))
    Atlas.open(path).close()  # what it does not need to know does not matter to a reader
    monkeypatch.setattr(schema, "READ_FROM", NOW + 1)
    with pytest.raises(FormatError, match=rf"version {NOW}, not {NOW + 1}.*--update"):
        Atlas.open(path)
    assert version(path) == NOW
    AtlasWriter.open(path).close()
    assert version(path) == NOW + 1
    with Atlas.open(path) as atlas:
        assert atlas.overview().features == 6
        assert atlas._connection().execute("SELECT DISTINCT note FROM runs").fetchall() == [("older",)]
    fresh = path.with_name("fresh.db")
    AtlasWriter.open(fresh, create=True).close()
    assert version(fresh) == NOW + 1


def with_contexts(path: Path, names: range) -> Path:
    """An atlas with a feature of these texts."""
    features = make(1)
    write(path, features)
    with AtlasWriter.open(path) as atlas:
        atlas.add_contexts(ContextRow(features[0].id, "top", i, f"t{i}", (f"{i}", " b"), (1.0, 0.0)) for i in names)
    return path


def texts_of(path: Path) -> dict[int, str]:
    """{rank: tokens of the text} of all contexts; and that every text lies there once."""
    db = sqlite3.connect(path)
    found = db.execute("SELECT rank, tokens FROM contexts JOIN texts ON texts.id = text").fetchall()
    assert db.execute("SELECT count(*), count(DISTINCT name) FROM texts").fetchone() == (len(found), len(found))
    assert db.execute("PRAGMA foreign_key_check").fetchall() == []
    db.close()
    return dict(found)


def test_texts_are_written_once(tmp_path: Path) -> None:
    """Whether this writer wrote them or one before, and whatever was taken back in between."""
    path = with_contexts(tmp_path / "atlas.db", range(5))
    with AtlasWriter.open(path) as atlas:
        feature = atlas.find(Query()).cards[0].id
        contexts = [ContextRow(feature, "top", 7, "t7", ("7", " b"), (1.0, 0.0))]
        with pytest.raises(DataError, match="does not fit"):  # after its text was written
            atlas.add_contexts([*contexts, contexts[0]._replace(feature=10**6)])
        with AtlasWriter.open(path) as other:
            other.add_contexts([ContextRow(feature, "top", 6, "t6", ("6", " b"), (1.0, 0.0))])
        atlas.add_contexts(ContextRow(feature, "top", i, f"t{i}", (f"{i}", " b"), (1.0, 0.0)) for i in range(3, 9))
    assert texts_of(path) == {i: f'["{i}"," b"]' for i in range(9)}


def test_texts_of_version_1(tmp_path: Path) -> None:
    """They were numbered by their hashes: they can be read as they are, and keep their ids when others come."""
    path = with_contexts(tmp_path / "atlas.db", range(5))
    db = sqlite3.connect(path)
    blocks = db.execute("SELECT hashes FROM text_blocks ORDER BY first").fetchall()
    hashes = np.frombuffer(b"".join(row[0] for row in blocks), "<i8").tolist()
    assert [row[0] for row in db.execute("SELECT id FROM texts ORDER BY id")] == list(range(1, 6))
    for number, hashed in enumerate(hashes, 1):
        db.execute("UPDATE texts SET id = ? WHERE id = ?", (hashed, number))
        db.execute("UPDATE contexts SET text = ? WHERE text = ?", (hashed, number))
    db.execute("DROP TABLE text_blocks")
    db.execute("PRAGMA user_version = 1")
    db.commit()
    db.close()
    with Atlas.open(path) as atlas:
        card = atlas.find(Query()).cards[0]
        assert len(atlas.contexts(card.sae, card.latent)) == 5
    assert version(path) == 1
    with_contexts(path, range(3, 8))
    assert version(path) == NOW
    assert texts_of(path) == {i: f'["{i}"," b"]' for i in range(8)}


def test_a_later_version_is_refused(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(schema, "MIGRATIONS", (*KNOWN, SECOND))
        AtlasWriter.open(path).close()
    before = content(path)
    for opened in (Atlas.open, AtlasWriter.open):
        with pytest.raises(FormatError, match=rf"version {NOW + 1}; this Seamark knows {NOW}.*Update Seamark"):
            opened(path)
    assert content(path) == before


def test_a_migration_that_fails_changes_nothing(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = content(path)
    monkeypatch.setattr(schema, "MIGRATIONS", (*KNOWN, SECOND, BROKEN.replace("more", "most")))
    with pytest.raises((FormatError, sqlite3.OperationalError)):
        AtlasWriter.open(path)
    assert content(path) == before
    monkeypatch.undo()
    with Atlas.open(path) as atlas:
        assert atlas.overview().features == 6


def test_a_file_is_made_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever looks meanwhile sees no atlas or a whole one, also on file systems without hard links."""
    path = tmp_path / "atlas.db"
    with monkeypatch.context() as patch:
        patch.setattr(schema, "MIGRATIONS", (BROKEN,))
        with pytest.raises(FormatError):
            AtlasWriter.open(path, create=True)
    assert list(tmp_path.iterdir()) == []

    def no_links(*_: object) -> None:
        raise OSError("no links here")

    monkeypatch.setattr(os, "link", no_links)
    AtlasWriter.open(path, create=True).close()
    assert [p.name for p in tmp_path.iterdir()] == ["atlas.db"]
    (tmp_path / "empty.db").touch()  # a file that somebody else made is filled
    AtlasWriter.open(tmp_path / "empty.db", create=True).close()
    assert version(tmp_path / "empty.db") == NOW


def test_two_that_make_the_same_file(tmp_path: Path) -> None:
    failed: list[BaseException] = []
    start = threading.Barrier(6)

    def make_it() -> None:
        try:
            start.wait()
            with AtlasWriter.open(tmp_path / "atlas.db", create=True) as w:
                w.add_run(RUN)
        except BaseException as e:
            failed.append(e)

    threads = [threading.Thread(target=make_it) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    with Atlas.open(tmp_path / "atlas.db") as atlas:
        assert atlas.runs() == (RUN,)


def test_readers_go_on_while_the_writer_writes(path: Path) -> None:
    with AtlasWriter.open(path) as w, Atlas.open(path) as reader:
        with w.transaction():
            w.add_features(w.add_sae(sae("new", 1)), map(FeatureRow, range(50)))
            assert w.find(Query(sae="new")).total == 50
            assert reader.find(Query(sae="new")).total == 0
            with Atlas.open(path) as late:
                assert late.overview().features == 6
        assert reader.find(Query(sae="new")).total == 50


def test_a_second_writer_waits_and_then_says_so(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with AtlasWriter.open(path) as w:
        monkeypatch.setattr(opening, "BUSY_MS", 150)
        with w.transaction():
            w.add_run(RUN)
            with AtlasWriter.open(path) as second:
                started = time.monotonic()
                with pytest.raises(RunError, match="another process is writing"):
                    second.mark("scan", "pair", "wrong")
                assert time.monotonic() - started >= 0.1
        monkeypatch.setattr(opening, "BUSY_MS", 10_000)
        held = threading.Event()

        def hold() -> None:
            with w.transaction():
                held.set()
                time.sleep(0.3)

        thread = threading.Thread(target=hold)
        thread.start()
        with AtlasWriter.open(path) as second:
            held.wait()
            second.mark("scan", "pair", "wrong")  # it waits, and then it writes
            thread.join()
            assert list(w.marks("scan")) == ["pair"]


def test_a_full_disk_is_told_and_loses_nothing(path: Path) -> None:
    with AtlasWriter.open(path) as w:
        before = w.counts()
        pages = w._connection().execute("PRAGMA page_count").fetchone()[0]
        w._connection().execute(f"PRAGMA max_page_count = {pages + 2}")
        feature = next(iter(w.feature_ids(0).values()))
        rows = (ContextRow(feature, "top", i, f"t{i}", ("x" * 1000,), (1.0,)) for i in range(1000))
        with pytest.raises(RunError, match="disk is full"):
            w.add_contexts(rows)
        assert w.counts() == before
        w._connection().execute("PRAGMA max_page_count = 100000")
        w.add_contexts([ContextRow(feature, "top", 0, "t", ("x",), (1.0,))])
        assert w.counts()["contexts"] == before["contexts"] + 1


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises((RunError, OSError)):
        AtlasWriter.open(tmp_path / "file" / "atlas.db", create=True)
    with pytest.raises(ConfigError, match="a folder, not an atlas"):
        AtlasWriter.open(tmp_path, create=True)


OPEN = """
import os, sys
from seamark.atlas import Atlas, AtlasWriter
from seamark.errors import SeamarkError
if os.geteuid() == 0:  # who may write everywhere
    os.setgroups([]), os.setgid(65534), os.setuid(65534)
try:
    with (AtlasWriter if sys.argv[2] == "write" else Atlas).open(sys.argv[1]) as atlas:
        if sys.argv[2] == "write":
            atlas.mark("scan", "pair", "wrong")
        print("features:", atlas.overview().features)
except SeamarkError as e:
    print(type(e).__name__, e)
"""


def as_nobody(path: Path, how: str) -> str:
    """What comes of opening a file as somebody who may not write it."""
    found = subprocess.run([sys.executable, "-c", OPEN, str(path), how], capture_output=True, text=True, timeout=60,
                           check=False)  # fmt: skip
    assert "Traceback" not in found.stderr, found.stderr
    return found.stdout


def test_a_folder_that_cannot_be_written(path: Path) -> None:
    place = Path("/tmp") / f"seamark-{os.getpid()}-read-only"  # other users cannot enter pytest's folders
    place.mkdir()
    try:
        shutil.copy(path, place / "atlas.db")
        (place / "atlas.db").chmod(0o444)
        place.chmod(0o555)
        assert as_nobody(place / "atlas.db", "read") == "features: 6\n"
        assert as_nobody(place / "atlas.db", "write").startswith("RunError")
        place.chmod(0o755)
        (place / "atlas.db-wal").write_bytes(b"\0" * 100)
        place.chmod(0o555)
        assert as_nobody(place / "atlas.db", "read").startswith("RunError")
    finally:
        place.chmod(0o755)
        shutil.rmtree(place)


def test_kill_9_loses_nothing_that_was_committed(tmp_path: Path) -> None:
    path, rng = tmp_path / "atlas.db", random.Random(0)
    said = 0
    with writers(path) as processes:
        for wait in (0.0, 0.003, 0.01, *(rng.uniform(0.05, 0.4) for _ in range(7))):
            said = max([said, *map(int, processes.run(seconds=wait))])
            if path.exists():
                with Atlas.open(path) as atlas:
                    check(atlas, said)
    assert said > 100
    with AtlasWriter.open(path) as w:
        check(w, said)
        assert w._connection().execute("PRAGMA integrity_check").fetchone()[0] == "ok"


def check(atlas: Atlas, said: int) -> None:
    """Every committed feature with everything of it, none by halves, and lists that follow from them."""
    counts = atlas.counts()
    n = counts["features"]
    assert n >= said
    assert (counts["explanations"], counts["explained"], counts["contexts"]) == (n, n, 5 * n)
    if n == 0:
        return
    assert [f.card.latent for f in atlas.iter_features(Query(words=f"word{n - 1} "))] == [n - 1]
    assert atlas.feature("s", n - 1).card.label == f"word{n - 1} harbour"
    assert len(atlas.contexts("s", n - 1)) == 5
    assert said == 0 or f"pair{said}" in atlas.marks("scan")
    db = atlas._connection()
    assert db.execute("PRAGMA foreign_key_check").fetchall() == []
    assert db.execute("SELECT count(*) FROM search WHERE search MATCH 'harbour'").fetchone()[0] == n
