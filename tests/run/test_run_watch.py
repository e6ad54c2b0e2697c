"""What a person sees: memory, progress with and without a terminal."""

from __future__ import annotations

import io
import subprocess
import sys
import time

import numpy as np
import pytest
from rich.console import Console

from seamark.run import RssMeter, board, progress, say, watch


def test_the_meter_sees_memory_that_came_and_went():
    with RssMeter(0.01) as meter:
        before = meter.peak_mb
        block = np.ones(12_000_000)
        time.sleep(0.2)
        del block
    assert 80 < meter.peak_mb - before < 500


def test_the_meter_sees_children_and_survives_their_end():
    code = "x = bytearray(100_000_000); print(1, flush=True); input()"
    with RssMeter(0.01) as meter:
        before = meter.peak_mb
        child = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert child.stdout.readline() == "1\n"
        time.sleep(0.2)
        child.communicate("\n")
        meter.sample()
    assert meter.peak_mb - before > 90


@pytest.fixture
def clock(monkeypatch):
    """A clock to be set by hand."""

    class Clock:
        now = 1000.0

    monkeypatch.setattr(watch.time, "monotonic", lambda: Clock.now)
    return Clock


def test_without_a_terminal_a_line_every_ten_seconds_on_stderr(capsys, clock):
    with progress("Reading [red]x[/red]", 400, "texts") as advance:
        advance(10)
        clock.now += 10
        advance(90)
        clock.now += 1
        advance(100)
        clock.now += 9
        advance(100)
    found = capsys.readouterr()
    assert found.out == ""
    assert found.err.splitlines() == [
        "  Reading [red]x[/red]: 100/400 texts (10.0/s, 30 s left)",
        "  Reading [red]x[/red]: 300/400 texts (15.0/s, 7 s left)",
    ]


def test_without_a_total_there_is_no_time_left(capsys, clock):
    with progress("Reading") as advance:
        clock.now += 20
        advance(5)
    assert capsys.readouterr().err == "  Reading: 5  (0.2/s)\n"


def test_say_breaks_no_line_and_reads_no_markup(capsys):
    text = "[bold]" + "long " * 60
    say(text)
    assert capsys.readouterr().err.rstrip() == text.rstrip()


def test_bars_on_a_terminal_may_be_nested(monkeypatch):
    out = io.StringIO()
    monkeypatch.setattr(watch, "_console", Console(file=out, force_terminal=True, width=100))
    with progress("Outer", 2, "stages") as outer, progress("Inner", 3, "texts") as inner:
        inner(3)
        outer(1)
    assert "Outer" in out.getvalue()


def test_a_silent_process_shows_nothing(capsys, clock, monkeypatch):
    monkeypatch.setattr(watch, "_silent", False)
    watch.be_silent()
    with progress("Reading", 5) as advance:
        clock.now += 20
        advance(5)
    assert capsys.readouterr() == ("", "")


def test_a_board_says_its_lines_every_ten_seconds(capsys, clock):
    with board("Training", 100, "positions", begun=40) as shown:
        shown.lines["one"] = "loss 3"
        shown.lines["the other"] = "loss 4"
        shown.advance(5)
        clock.now += 10
        shown.advance(5)
        for i in range(30):
            shown.lines[f"sae {i}"] = "x"
        clock.now += 10
        shown.advance(0)
    found = capsys.readouterr()
    assert found.out == ""
    lines = found.err.splitlines()
    assert lines[:3] == [
        "  Training: 50/100 positions (1.0/s, 50 s left)", "    one        loss 3", "    the other  loss 4",
    ]  # fmt: skip
    assert lines[-1] == "    … and 8 more"
    assert len(lines) == 3 + 1 + 24 + 1


def test_a_board_in_a_terminal_draws_its_lines(monkeypatch):
    out = io.StringIO()
    monkeypatch.setattr(watch, "_console", Console(file=out, force_terminal=True, width=120))
    with board("Training", 100, "positions", begun=40) as shown:
        shown.lines["one"] = "loss [3]"
        shown.advance(20)
    assert "60/100" in out.getvalue()
    assert "one  loss [3]" in out.getvalue()
