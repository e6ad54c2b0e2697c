"""A program: kill a run with SIGKILL before each single change to a file, finish it, compare with an unharmed one.

    python run_crashes.py FOLDER

The changes are seen by an audit hook in a forked child. Prints how many places were tried.
"""

from __future__ import annotations

import gc
import json
import os
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

import run_cells
import torch

from seamark.run import MANIFEST, Run, Stage

_CHANGING = {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir"}


def work(root: Path, text: str) -> None:
    with Run(root) as run:
        made = run.stage(Stage("a/write", run_cells.write, {"text": text}))
        run.stage(Stage("b", run_cells.double, {}, {"source": made}))


def in_child(root: Path, text: str, die_at: int | None) -> int:
    """Run `work` in a forked child that SIGKILLs itself at its n-th change to a file; the wait status."""
    child = os.fork()
    if child:
        return os.waitpid(child, 0)[1]
    left = die_at

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal left
        if left is not None and event in _CHANGING and str(root) in str(arguments[0]):
            if event == "open" and not arguments[2] & (os.O_WRONLY | os.O_RDWR):
                return
            left -= 1
            if left < 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)
    work(root, text)
    os._exit(0)


def tree(root: Path) -> dict[str, Any]:
    """Every file and what is in it, timings and dates aside."""
    found: dict[str, Any] = {}
    for path in sorted(p for p in root.rglob("*") if p.is_file()):
        if path.name == "timings.json":
            continue
        content: Any = path.read_text()
        if path.name == MANIFEST:
            content = {k: v for k, v in json.loads(content).items() if k not in ("seconds", "created")}
        found[str(path.relative_to(root))] = content
    return found


def main(base: Path) -> None:
    expected = base / "expected"
    assert in_child(expected, "new", None) == 0
    reference = tree(expected)
    old = base / "old"  # a finished run with another config, so that results are replaced too
    assert in_child(old, "old!", None) == 0
    places = 0
    for start in (None, old):
        die_at = 0
        while True:
            root = base / f"{'fresh' if start is None else 'again'}-{die_at}"
            if start is not None:
                shutil.copytree(start, root)
            killed = in_child(root, "new", die_at)
            if killed and os.WTERMSIG(killed) != signal.SIGKILL:
                sys.exit(f"{root.name}: status {killed}")
            if killed and in_child(root, "new", None) != 0:
                sys.exit(f"{root.name}: the run could not be finished")
            if (found := tree(root)) != reference:
                sys.exit(f"{root.name}: {sorted(set(found) ^ set(reference)) or 'other content'}")
            shutil.rmtree(root)
            if not killed:
                break
            places += 1
            die_at += 1
    print(places)


if __name__ == "__main__":
    torch.set_num_threads(1)
    gc.freeze()  # else every stage looks through all of torch for garbage
    os.fsync = lambda _: None  # a killed process loses nothing that it wrote; only a dead machine does
    main(Path(sys.argv[1]))
