"""What a person sees while a run goes on: progress bars, lines and memory."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import psutil
from rich.console import Console, Group
from rich.live import Live
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

_console = Console(stderr=True, highlight=False)
_silent = False


class RssMeter:
    """Peak resident memory of this process and its children, sampled in a thread (shared pages count in each)."""

    def __init__(self, interval_s: float = 0.25) -> None:
        self.peak_mb = 0.0
        self._interval_s = interval_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def sample(self) -> None:
        me = psutil.Process()
        total = me.memory_info().rss
        with contextlib.suppress(psutil.Error):
            for child in me.children(recursive=True):
                with contextlib.suppress(psutil.Error):  # it may end while it is looked at
                    total += child.memory_info().rss
        self.peak_mb = max(self.peak_mb, total / 2**20)

    def _watch(self) -> None:
        while not self._stop.wait(self._interval_s):
            self.sample()

    def __enter__(self) -> RssMeter:
        self.sample()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self.sample()


def be_silent() -> None:
    """Show no progress from this process: workers side by side would draw over each other and over their parent."""
    global _silent
    _silent = True


@contextlib.contextmanager
def progress(title: str, total: int | None = None, unit: str = "") -> Iterator[Callable[[int], None]]:
    """A progress bar on stderr with rate and time left; yields `advance(n)`. Plain lines where there is no terminal."""
    if _silent:
        yield lambda _: None
        return
    if not _console.is_terminal:
        yield _line_progress(title, total, unit)
        return
    with _bar(unit, transient=True) as bar:
        task = bar.add_task(title, total=total, rate="")
        yield lambda n: _move(bar, task, n)


def _bar(unit: str, **options: Any) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn(unit),
               TextColumn("{task.fields[rate]}"), TimeElapsedColumn(), TimeRemainingColumn())  # fmt: skip
    return Progress(*columns, console=_console, **options)


def _move(bar: Progress, task: TaskID, n: int) -> None:
    speed = bar.tasks[0].speed
    bar.update(task, advance=n, rate=f"{speed:,.0f}/s" if speed else "")


def _line_progress(
    title: str, total: int | None, unit: str, begun: int = 0, then: Callable[[], None] | None = None
) -> Callable[[int], None]:
    start = last = time.monotonic()
    done = begun

    def advance(n: int) -> None:
        nonlocal done, last
        done += n
        now = time.monotonic()
        if now - last < 10.0:
            return
        last = now
        rate = (done - begun) / (now - start)
        left = f", {(total - done) / rate:,.0f} s left" if total and rate > 0 else ""
        say(f"  {title}: {done:,}{f'/{total:,}' if total else ''} {unit} ({rate:,.1f}/s{left})")
        if then is not None:
            then()

    return advance


class Board(NamedTuple):
    """A progress bar with a line of numbers for each of several things below."""

    advance: Callable[[int], None]
    lines: dict[str, str]
    """{name: its line}; set them as numbers come in."""


@contextlib.contextmanager
def board(title: str, total: int, unit: str, begun: int = 0) -> Iterator[Board]:
    """`progress` from `begun` on, with lines of numbers below: drawn anew in a terminal, else said every 10 s."""
    lines: dict[str, str] = {}
    if _silent:
        yield Board(lambda _: None, lines)
        return
    if not _console.is_terminal:
        yield Board(_line_progress(title, total, unit, begun, lambda: _say_lines(lines)), lines)
        return
    bar = _bar(unit)
    task = bar.add_task(title, total=total, rate="", completed=begun)
    with Live(console=_console, transient=True, refresh_per_second=4,
              get_renderable=lambda: Group(bar, Text("\n".join(_shown(lines))))):  # fmt: skip
        yield Board(lambda n: _move(bar, task, n), lines)


BOARD_LINES = 24


def _shown(lines: Mapping[str, str]) -> list[str]:
    width = max((len(name) for name in lines), default=0)
    shown = [f"  {name:<{width}}  {line}" for name, line in list(lines.items())[:BOARD_LINES]]
    return shown + [f"  … and {len(lines) - BOARD_LINES} more"] * (len(lines) > BOARD_LINES)


def _say_lines(lines: Mapping[str, str]) -> None:
    for line in _shown(lines):
        say("  " + line)


def say(text: str) -> None:
    """One line for the person watching, on stderr."""
    _console.print(text, markup=False, soft_wrap=True)
