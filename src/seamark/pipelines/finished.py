"""What is finished in a run folder, read while another process may be working in it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from seamark.errors import RunError
from seamark.pipelines.worlds import CHOICES
from seamark.run import Run, Stage, Workers, read_json


class FinishedRun(Run):
    """A run folder in which nothing is built: `stages` returns those that are done, by the same keys as a run."""

    def __init__(self, root: Path) -> None:
        """Raises `RunError` where no run was started."""
        if not (root / CHOICES).exists():
            raise RunError("no run was started here", where=str(root), fix="Leave --so-far out to start one")
        self.root = root
        self.timings = read_json(root / "timings.json") if (root / "timings.json").exists() else {}
        self.built, self.skipped, self.titles = [], [], []

    def close(self) -> None:
        """Nothing is held."""

    def stages(self, title: str, stages: Sequence[Stage], workers: Workers | None = None) -> dict[str, Path]:
        """Of these, the folders of those that are done."""
        self.titles.append(title)
        found = {s.name: self.root / s.name for s in stages if self._is_done(self.root / s.name, s.key())}
        self.skipped += list(found)
        return found

    @contextlib.contextmanager
    def measure(self, title: str) -> Iterator[None]:
        """Nothing is recorded."""
        yield
