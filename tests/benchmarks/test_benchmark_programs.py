"""Whole programs watched from outside."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks import programs
from benchmarks.harness import BenchmarkError


def test_a_program_is_timed_and_its_children_are_weighed(tmp_path):
    child = "import time; b = bytearray(60_000_000); time.sleep(1)"
    command = [sys.executable, "-c", f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"]
    found = programs.watched(command, tmp_path / "new" / "log", "it")
    assert 1 <= found.seconds < 60
    assert found.peak_mb > 60


def test_what_a_program_prints_is_kept_and_its_own_last_line_is_told(tmp_path):
    log = tmp_path / "log"
    log.write_text("of an earlier run\n")
    with pytest.raises(BenchmarkError, match="it ended with status 3: no output"):
        programs.watched([sys.executable, "-c", "raise SystemExit(3)"], log, "it")
    failing = "import sys; print('at work', flush=True); sys.exit('cannot read /a/folder/of/mine/x.json')"
    with pytest.raises(BenchmarkError) as error:
        programs.watched([sys.executable, "-c", failing], log, "it")
    assert str(error.value) == "it ended with status 1: cannot read …/x.json"
    assert log.read_text().startswith("of an earlier run\nat work\n")


def test_a_program_that_takes_too_long_does_not_live_on(tmp_path):
    alive = tmp_path / "alive"
    lives = f"import time, pathlib; time.sleep(3); pathlib.Path({str(alive)!r}).touch()"
    with pytest.raises(BenchmarkError, match="it took longer than 1 s"):
        programs.watched([sys.executable, "-c", lives], tmp_path / "log", "it", timeout=1)
    with pytest.raises(BenchmarkError):
        programs.watched(
            [sys.executable, "-c", "import time; time.sleep(3); raise SystemExit(1)"], tmp_path / "log", ""
        )
    assert not alive.exists()


def test_settings_of_the_harness_are_left_out_where_asked(tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    command = [
        sys.executable,
        "-c",
        "import os; print(os.environ.get('OMP_NUM_THREADS'), os.environ['HF_HUB_OFFLINE'])",
    ]
    programs.watched(command, tmp_path / "with", "it")
    programs.watched(command, tmp_path / "without", "it", without=["OMP_NUM_THREADS"])
    assert (tmp_path / "with").read_text() == "7 1\n"
    assert (tmp_path / "without").read_text() == "None 1\n"


def test_without_a_browser_it_says_so(monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(BenchmarkError, match="no Chromium"), programs.browser():
        pass
