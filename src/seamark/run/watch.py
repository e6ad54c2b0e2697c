"""What a person sees while a run goes on: progress bars, lines and memory."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator

import psutil
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

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
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn(unit),
               TextColumn("{task.fields[rate]}"), TimeElapsedColumn(), TimeRemainingColumn())  # fmt: skip
    with Progress(*columns, console=_console, transient=True) as bar:
        task = bar.add_task(title, total=total, rate="")

        def advance(n: int) -> None:
            speed = bar.tasks[0].speed
            bar.update(task, advance=n, rate=f"{speed:,.0f}/s" if speed else "")

        yield advance


def _line_progress(title: str, total: int | None, unit: str) -> Callable[[int], None]:
    start = last = time.monotonic()
    done = 0

    def advance(n: int) -> None:
        nonlocal done, last
        done += n
        now = time.monotonic()
        if now - last < 10.0:
            return
        last = now
        rate = done / (now - start)
        left = f", {(total - done) / rate:,.0f} s left" if total and rate > 0 else ""
        say(f"  {title}: {done:,}{f'/{total:,}' if total else ''} {unit} ({rate:,.1f}/s{left})")

    return advance


def say(text: str) -> None:
    """One line for the person watching, on stderr."""
    _console.print(text, markup=False, soft_wrap=True)
