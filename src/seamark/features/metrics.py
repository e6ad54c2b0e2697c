"""Numbers of training as it goes on: `metrics.jsonl`, lines for the person watching, an experiment tracker."""

from __future__ import annotations

import contextlib
import importlib
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import IO, Any, Literal

from seamark.errors import ConfigError
from seamark.run import disk_errors, to_jsonable, write_atomic
from seamark.sae import FitLog

TrackerName = Literal["trackio", "wandb"]
TIMINGS = ("per_second", "seconds_left")
"""Fields of a line that differ between two runs of the same."""


class Tracker:
    """A run of trackio or Weights & Biases: both take the same three calls. Credentials are theirs alone to find."""

    def __init__(self, module: Any, project: str, run: str, config: Mapping[str, Any]) -> None:
        self._module = module
        with contextlib.redirect_stdout(sys.stderr):  # stdout belongs to results
            module.init(project=project, name=run, config=to_jsonable(config))

    def log(self, numbers: Mapping[str, Any]) -> None:
        self._module.log(dict(numbers))

    def close(self) -> None:
        with contextlib.redirect_stdout(sys.stderr):
            self._module.finish()


def open_tracker(name: TrackerName) -> Callable[[str, str, Mapping[str, Any]], Tracker]:
    """What starts a run (project, run, config) of a tracker. Raises `ConfigError` where it is not installed."""
    try:
        module = importlib.import_module(name)
    except ImportError as e:
        raise ConfigError(f"{name} is not installed", where="track", fix=f"pip install {name}, or leave it out") from e
    return partial(Tracker, module)


class Metrics:
    """Takes every step of every autoencoder and keeps each `every`-th, the first and the last.

    With a `path` each goes to that file as one line of JSON at once, so a killed run has lost nothing. After a restart
    `begin` cuts what the checkpoint does not know: but for timings, the file ends as that of an uninterrupted run. A
    tracker begins a new run then, which is told the lines that the file has kept (under torchrun rank 0's: of all).
    """

    def __init__(self, path: Path | None, every: int) -> None:
        self.path, self.every = path, every
        self.tracker: Tracker | None = None
        self.lines: list[dict[str, Any]] = []
        self.shown: dict[str, str] = {}
        """Where a line for the person watching goes."""
        self._stage = ""
        self._file: IO[str] | None = None
        self._begun = False

    def restore(self, stages: Sequence[str]) -> None:
        """Read what earlier stages left."""
        if self.path is not None:
            self.lines = [line for line in read_metrics(self.path) if line["stage"] in stages]

    def begin(self, stage: str, done: Mapping[str, int], finished: Sequence[str]) -> None:
        """Start or continue a stage. `done`: steps that each autoencoder has behind it; `finished`: earlier stages."""
        self._stage = stage
        if self.path is not None:
            self._cut(self.path, stage, done, finished)
        if not self._begun:
            for line in self.lines:
                self._track(line)
        self._begun = True

    def _cut(self, path: Path, stage: str, done: Mapping[str, int], finished: Sequence[str]) -> None:
        self.lines = [e for e in read_metrics(path) if e["stage"] in finished
                      or (e["stage"] == stage and e["step"] < done.get(e["sae"], 0))]  # fmt: skip
        if self._file is not None:
            self._file.close()
        with disk_errors(path):
            write_atomic(path, "".join(json.dumps(line) + "\n" for line in self.lines))
            self._file = path.open("a", encoding="utf-8", buffering=1)

    def __call__(self, entry: FitLog) -> None:
        """One step."""
        if entry.step % self.every and entry.step != entry.steps - 1:
            return
        line = {"stage": self._stage, "sae": entry.name, **{k: v for k, v in entry._asdict().items() if k != "name"}}
        self.lines.append(line)
        self.shown[entry.name] = _numbers(entry)
        if self._file is not None and self.path is not None:
            with disk_errors(self.path):
                self._file.write(json.dumps(line) + "\n")
        self._track(line)

    def _track(self, line: Mapping[str, Any]) -> None:
        if self.tracker is not None:
            numbers = {k: v for k, v in line.items() if isinstance(v, int | float)}
            self.tracker.log({f"{line['sae']}/{k}": v for k, v in numbers.items()} | {"stage": line["stage"]})

    @property
    def log(self) -> tuple[FitLog, ...]:
        """All that was kept."""
        return tuple(FitLog(line["sae"], **{k: v for k, v in line.items() if k not in ("stage", "sae")})
                     for line in self.lines)  # fmt: skip

    def losses(self, stage: str) -> dict[str, tuple[tuple[int, float], tuple[int, float]]]:
        """((step, loss) of the first line, of the last) of a stage by autoencoder."""
        found: dict[str, tuple[tuple[int, float], tuple[int, float]]] = {}
        for line in self.lines:
            if line["stage"] == stage:
                this = (int(line["step"]), float(line["loss"]))
                found[line["sae"]] = (found.get(line["sae"], (this, this))[0], this)
        return found

    def close(self) -> None:
        """Close file and tracker. Safe to call twice."""
        file, self._file = self._file, None
        tracker, self.tracker = self.tracker, None
        if file is not None:
            file.close()
        if tracker is not None:
            tracker.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Whole lines of a metrics file; none where there is no file. A line that a kill cut in half is left out."""
    if not path.exists():
        return []
    found = []
    for text in path.read_text(encoding="utf-8").splitlines():
        with contextlib.suppress(json.JSONDecodeError):
            found.append(json.loads(text))
    return found


def merge_metrics(path: Path, others: Sequence[Path], stages: Sequence[str], names: Sequence[str]) -> None:
    """Bring the lines that several ranks wrote into one file, in an order that does not depend on who wrote them."""
    if not others:
        return
    lines = {(e["stage"], e["sae"], e["step"]): e for p in (path, *others) for e in read_metrics(p)}
    ordered = sorted(lines.values(), key=lambda e: (stages.index(e["stage"]), e["positions"], names.index(e["sae"])))
    write_atomic(path, "".join(json.dumps(entry) + "\n" for entry in ordered))
    for other in others:
        other.unlink()


def _numbers(e: FitLog) -> str:
    """A line for the person watching."""
    parts = [f"loss {e.loss:.4g}"]
    parts += [f"FVU {e.fvu:.4f}"] if e.fvu is not None else []
    parts += [f"cosine {e.cosine:.4f}"] if e.cosine is not None else []
    parts += [f"L0 {e.l0:.1f}", f"dead {100 * e.dead_share:.1f} %", f"{e.per_second:,.0f} tokens/s"]
    return ", ".join([*parts, f"{e.seconds_left:,.0f} s left"])
