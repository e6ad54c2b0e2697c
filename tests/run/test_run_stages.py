"""Stages: what makes them run again, what they leave, and what a run says when it cannot go on."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest
import run_cells as cells

from seamark.errors import ConfigError, RunError
from seamark.run import MANIFEST, Run, Stage, digest, file_digest, read_json, result_digest, write_json


def a_stage(**changes) -> Stage:
    fields = {"name": "first", "build": cells.write, "arguments": {"text": "hello"}} | changes
    return Stage(**fields)


def built(root: Path, *stages: Stage) -> list[str]:
    """Names of the stages that ran."""
    with Run(root) as run:
        for stage in stages:
            run.stage(stage)
        return run.built


def test_a_stage_runs_once_and_its_manifest_says_what_made_it(tmp_path):
    with Run(tmp_path) as run:
        folder = run.stage(a_stage())
        assert run.built == ["first"]
        assert run.stage(a_stage()) == folder
        assert (run.built, run.skipped) == (["first"], ["first"])
    assert folder == tmp_path / "first"
    manifest = read_json(folder / MANIFEST)
    assert manifest["config"] == {"text": "hello"}
    assert manifest["choices"] == {"length": 5}
    assert manifest["function"] == "run_cells.write"
    assert manifest["outputs"] == {"sub/out.txt": file_digest(folder / "sub" / "out.txt")}
    assert manifest["digest"] == digest(manifest["outputs"]) == result_digest(folder)
    assert manifest["key"] == a_stage().key()
    assert {"seamark", "torch", "numpy"} <= set(manifest["versions"])
    assert read_json(tmp_path / "timings.json")["first"]["seconds"] >= 0


def test_scratch_is_gone_at_any_depth_when_a_stage_is_whole(tmp_path):
    built(tmp_path, a_stage())
    assert sorted(p.name for p in (tmp_path / "first").rglob("*")) == [MANIFEST, "out.txt", "sub"]
    assert not list((tmp_path / ".partial").iterdir())


@pytest.mark.parametrize(
    "changes",
    [
        {"arguments": {"text": "hello!"}},
        {"arguments": {"text": "hello", "note": "x"}},
        {"version": 2},
        {"build": cells.write_other},
    ],
)
def test_what_changes_a_stage_makes_it_run_again(tmp_path, changes):
    assert built(tmp_path, a_stage()) == ["first"]
    assert built(tmp_path, a_stage(**changes)) == ["first"]
    assert (tmp_path / "first" / "sub" / "out.txt").read_text() == changes.get("arguments", {}).get("text", "hello")
    assert not list(tmp_path.glob(".stale*"))


def test_equal_arguments_in_other_clothes_are_equal(tmp_path):
    one = Stage("s", cells.write, {"a": (1, 2), "b": Path("x"), "c": {2, 1}})
    other = Stage("s", cells.write, {"c": [1, 2], "b": "x", "a": [1, 2]})
    assert one.key() == other.key()


def test_only_what_depends_on_a_change_runs_again(tmp_path):
    file = tmp_path / "input.txt"
    file.write_text("one")
    root = tmp_path / "run"

    def plan(text: str) -> list[str]:
        first = a_stage(arguments={"text": text})
        return built(root, first, Stage("second", cells.double, {}, {"source": root / "first"}),
                     Stage("apart", cells.double, {"times": 3}, {"source": file}))  # fmt: skip

    assert plan("x") == ["first", "second", "apart"]
    assert plan("x") == []
    os.utime(file, (1, 1))
    assert plan("x") == []  # bytes count, not dates
    file.write_text("two")
    assert plan("x") == ["apart"]
    assert read_json(root / "apart" / "doubled.json") == {"text": "twotwotwo"}
    assert plan("y") == ["first", "second"]


def test_a_changed_stage_with_the_same_result_stops_there(tmp_path):
    def plan(note: str) -> list[str]:
        return built(tmp_path, a_stage(arguments={"text": "x", "note": note}),
                     Stage("second", cells.double, {}, {"source": tmp_path / "first"}))  # fmt: skip

    assert plan("a") == ["first", "second"]
    assert plan("b") == ["first"]


def test_a_folder_as_input_counts_with_names_and_bytes(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "a").write_text("1")
    key = Stage("s", cells.double, {}, {"source": folder}).key
    before = key()
    (folder / "a").rename(folder / "b")
    renamed = key()
    (folder / "b").write_text("2")
    assert len({before, renamed, key()}) == 3


def test_a_foreign_manifest_in_an_input_is_not_believed(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "a").write_text("1")
    write_json(folder / MANIFEST, {"digest": "abc"})
    before = result_digest(folder)
    (folder / "a").write_text("2")
    assert result_digest(folder) != before
    (folder / MANIFEST).write_text("not JSON")
    assert result_digest(folder)


@pytest.mark.parametrize("broken", ["", "{", "[]", "null", '{"key": 3}', "\udc80"])
def test_a_corrupt_manifest_means_the_stage_is_made_again(tmp_path, broken):
    built(tmp_path, a_stage())
    manifest = tmp_path / "first" / MANIFEST
    whole = read_json(manifest)
    manifest.write_bytes(broken.encode("utf-8", "surrogateescape"))
    assert built(tmp_path, a_stage()) == ["first"]
    assert read_json(manifest)["digest"] == whole["digest"]


def test_a_lost_file_means_the_stage_is_made_again(tmp_path):
    built(tmp_path, a_stage())
    (tmp_path / "first" / "sub" / "out.txt").unlink()
    assert built(tmp_path, a_stage()) == ["first"]
    assert (tmp_path / "first" / "sub" / "out.txt").exists()


def test_a_stage_without_files_is_done_once(tmp_path):
    stage = Stage("empty", cells.nothing)
    assert built(tmp_path, stage) == ["empty"]
    assert built(tmp_path, stage) == []


def test_corrupt_timings_do_no_harm(tmp_path):
    for broken in ("{", "[]", '{"first": 3}'):
        (tmp_path / "timings.json").write_text(broken)
        built(tmp_path, a_stage(arguments={"text": broken}))
        assert read_json(tmp_path / "timings.json")["first"]["seconds"] >= 0


def test_a_missing_input_is_named(tmp_path):
    missing = tmp_path / "nowhere"
    with Run(tmp_path / "run") as run, pytest.raises(RunError, match="nowhere: input not found"):
        run.stage(Stage("s", cells.double, {}, {"source": missing}))
    assert not (tmp_path / "run" / "s").exists()


def test_an_unreadable_input_is_named(tmp_path, monkeypatch):
    file = tmp_path / "secret"
    file.write_text("x")

    def refuse(path):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr("seamark.run.folder.file_digest", refuse)
    with pytest.raises(RunError, match=r"secret: input cannot be read \(Permission denied\)"):
        Stage("s", cells.double, {}, {"source": file}).key()


def test_a_failed_stage_leaves_no_result_and_its_error_as_it_was(tmp_path):
    with Run(tmp_path) as run, pytest.raises(ConfigError) as caught:
        run.stage(Stage("bad", cells.fails, {"kind": "seamark"}))
    assert (caught.value.what, caught.value.where, caught.value.fix) == ("not like this", "row 3", "Do it otherwise")
    assert not (tmp_path / "bad").exists()
    assert built(tmp_path, a_stage()) == ["first"]  # the folder is free again, and usable


def test_a_failed_stage_keeps_the_old_result(tmp_path):
    with Run(tmp_path) as run:
        run.stage(Stage("s", cells.write, {"text": "old"}))
        with pytest.raises(KeyError):
            run.stage(Stage("s", cells.fails, {"kind": "other"}))
    assert (tmp_path / "s" / "sub" / "out.txt").read_text() == "old"


def test_an_interrupted_stage_goes_on_only_for_the_same_key(tmp_path):
    partial = tmp_path / ".partial" / "count" / "parts"
    stage = cells.counting_stage(steps=3)
    for key, total in ((stage.key(), 105), ("another", 5)):
        partial.mkdir(parents=True)
        (partial.parent / ".key").write_text(key)
        write_json(partial / "1.json", {"step": 1, "square": 101})  # to be told from one made now
        with Run(tmp_path) as run:
            run.stage(stage)
        assert read_json(tmp_path / "count" / "total.json") == {"total": total}
        (tmp_path / "count" / MANIFEST).unlink()


def test_a_second_run_in_the_same_folder_is_refused_until_the_first_is_closed(tmp_path):
    run = Run(tmp_path)
    with pytest.raises(RunError, match="another process is working"):
        Run(tmp_path)
    run.close()
    run.close()
    Run(tmp_path).close()


def test_a_file_where_the_folder_should_be(tmp_path):
    (tmp_path / "file").write_text("")
    for root in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(RunError, match="a file is where the run folder should be"):
            Run(root)


def test_a_file_system_without_locks_is_not_taken_for_another_process(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("seamark.run.folder.fcntl.flock", refuse)
    with pytest.raises(RunError, match="cannot be locked"):
        Run(tmp_path)


def test_a_full_disk_is_one_error_and_what_was_finished_is_kept(tmp_path):
    with Run(tmp_path) as run, pytest.raises(RunError, match=r"big: the disk is full\. Free some space"):
        run.stages("two", [a_stage(), Stage("full", cells.fails, {"kind": "full"})])
    assert (tmp_path / "first" / MANIFEST).exists()
    assert not (tmp_path / "full").exists()
    assert built(tmp_path, a_stage()) == []


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_disk_that_fills_while_the_manifest_is_written(tmp_path, monkeypatch, call):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with Run(tmp_path) as run:
        with monkeypatch.context() as patched:
            if call == "fsync":
                patched.setattr("seamark.run.files.os.fsync", full)
            else:
                patched.setattr(Path, "replace", full)
            with pytest.raises(RunError, match="the disk is full"):
                run.stage(a_stage())
            with pytest.raises(RunError, match="the disk is full"), run.measure("report"):
                pass
        assert not (tmp_path / "first").exists()
        assert not (tmp_path / "timings.json").exists()
        assert not list(tmp_path.rglob("*.tmp"))
        run.stage(a_stage())
    assert (tmp_path / "first" / MANIFEST).exists()


def test_time_of_finished_cells_counts_when_the_rest_is_done_later(tmp_path):
    cheap = a_stage()
    built(tmp_path, cheap)
    manifest = tmp_path / "first" / MANIFEST
    manifest.write_text(json.dumps(read_json(manifest) | {"seconds": 100.0}))
    with Run(tmp_path) as run:
        run.stages("all", [cheap, a_stage(name="second")])
        assert 100 <= run.timings["all"]["seconds"] < 110


def test_time_of_attempts_that_were_cut_counts(tmp_path):
    """One that raised is timed; of one that was killed the last file it wrote tells how far it came."""
    stage = cells.counting_stage(steps=2)
    part = tmp_path / ".partial" / "count"
    (part / "parts").mkdir(parents=True)
    (part / ".key").write_text(stage.key())
    write_json(part / ".attempts.json", {"seconds": 30.0, "since": 1000.5})
    write_json(part / "parts" / "0.json", {"step": 0, "square": 0})
    for path, at in ((part / "parts" / "0.json", 1070.5), (part / "parts", 1060), (part / ".attempts.json", 1000.5)):
        os.utime(path, (at, at))
    os.utime(part / ".key", (900, 900))
    with Run(tmp_path) as run:
        run.stage(stage)
        assert 100 <= run.timings["count"]["seconds"] < 110
    manifest = read_json(tmp_path / "count" / MANIFEST)
    assert 100 <= manifest["seconds"] < 110
    assert sorted(manifest["outputs"]) == ["parts/0.json", "parts/1.json", "total.json"]


def test_time_of_an_attempt_that_raised_counts(tmp_path):
    stage = Stage("slow", cells.slow_then_fails, {"seconds": 0.3})
    for attempt in (1, 2):
        with Run(tmp_path) as run, pytest.raises(KeyError):
            run.stage(stage)
        noted = read_json(tmp_path / ".partial" / "slow" / ".attempts.json")
        assert noted["seconds"] >= 0.3 * attempt
        assert noted["since"] is None


def test_measure_records_time_and_memory(tmp_path):
    with Run(tmp_path) as run, run.measure("work"):
        pass
    found = read_json(tmp_path / "timings.json")["work"]
    assert found["seconds"] >= 0
    assert found["peak_rss_mb"] > 10
