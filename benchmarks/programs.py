"""Whole programs watched from outside: how long, how much memory, their last words where they fail; and a browser."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks import harness
from benchmarks.harness import BenchmarkError

if TYPE_CHECKING:
    from playwright.sync_api import Browser

SEAMARK = (sys.executable, "-m", "seamark")
_BROWSERS = ("chromium", "chromium-browser", "google-chrome")


@dataclass(frozen=True)
class Watched:
    """One program, from its start to its end."""

    seconds: float
    peak_mb: float
    """Of the process and its children; shared pages count in each."""


def watched(
    command: Sequence[str], log: Path, name: str, *, without: Sequence[str] = (), timeout: float | None = None
) -> Watched:
    """Run a command to its end, with no hub.

    Args:
        log: what it prints is appended here.
        name: what to call it in an error.
        without: variables of the environment that it does not get.
        timeout: seconds; none waits as long as it takes.

    Raises:
        BenchmarkError: it failed (with its last line) or took too long; it does not live on.
    """
    environment = {k: v for k, v in os.environ.items() if k not in without} | {"HF_HUB_OFFLINE": "1"}
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a") as file, harness.stopwatch() as seconds:
        before = file.tell()
        process = subprocess.Popen(list(command), stdout=file, stderr=file, env=environment)
        try:
            with harness.TreeMeter(process.pid) as meter:
                status = process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise BenchmarkError(f"{name} took longer than {timeout:,.0f} s") from None
        finally:
            if process.poll() is None:
                process.kill()
        took = seconds()
    if status:
        lines = log.read_bytes()[before:].decode(errors="replace").strip().splitlines() or ["no output"]
        raise BenchmarkError(harness.without_paths(f"{name} ended with status {status}: {lines[-1]}")[:300])
    return Watched(took, meter.peak_mb)


@contextlib.contextmanager
def browser() -> Iterator[Browser]:
    """A headless Chromium, started anew.

    Raises:
        BenchmarkError: there is none on this machine.
    """
    from playwright.sync_api import sync_playwright

    path = next((found for name in _BROWSERS if (found := shutil.which(name))), None)
    if path is None:
        raise BenchmarkError("no Chromium on this machine")
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        try:
            yield opened
        finally:
            opened.close()
