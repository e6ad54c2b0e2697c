"""Run folders: stages are functions from files to files, finished atomically, skipped when done, resumed when cut.

    def train(folder: Path, pairs: Path, *, epochs: int) -> dict[str, Any]: ...   # writes into folder; returns choices

    with Run(Path("runs/demo")) as run:
        model = run.stage(Stage("reward", train, {"epochs": 2}, {"pairs": Path("pairs.jsonl")}))

A stage works in a temporary folder that is renamed to `runs/demo/reward` once whole. Its key covers the function, its
arguments and the content of its inputs, so a changed config never reuses an old result and an unchanged one is never
computed twice. Timings lie apart (`timings.json`), never in what is compared.
"""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from seamark.errors import RunError
from seamark.run.files import digest, disk_errors, file_digest, read_json, versions, write_atomic, write_json
from seamark.run.watch import RssMeter, progress, say
from seamark.run.workers import Workers

MANIFEST = "manifest.json"
SCHEMA = 1
_KEY = ".key"

Build = Callable[..., Mapping[str, Any] | None]


@dataclass(frozen=True)
class Stage:
    """One step of a run: `build(folder, **inputs, **arguments)` writes its files into `folder`.

    `folder` survives an interruption when the key is unchanged, so `build` may go on from checkpoints it finds there.
    Names starting with a dot are scratch: removed when the stage is whole. What `build` returns are the choices it
    made by measurement; they go into the manifest.
    """

    name: str
    """Folder below the run's root; may hold slashes (`noisy-0/scan`)."""
    build: Build
    """A top-level function, so that it can run in a worker process."""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    """JSON-able; everything besides the inputs that decides the result."""
    inputs: Mapping[str, Path] = field(default_factory=dict)
    """Finished stage folders (their recorded digest counts), other folders or files (their bytes count)."""
    version: int = 1
    """Raised when the code changes the result."""

    def key(self) -> str:
        """Digest of all that decides the result. Raises `RunError` where an input is missing."""
        return digest(self.identity())

    def identity(self) -> dict[str, Any]:
        return {
            "stage": self.name,
            "function": f"{self.build.__module__}.{self.build.__qualname__}",
            "version": self.version,
            "config": self.arguments,
            "inputs": {name: result_digest(path) for name, path in self.inputs.items()},
        }


class Run:
    """A run folder: `<root>/<stage>/…`, each with a `manifest.json`. One process at a time works in it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.timings: dict[str, dict[str, float]] = {}
        self.built: list[str] = []
        self.skipped: list[str] = []
        with disk_errors(root):
            root.mkdir(parents=True, exist_ok=True)
            self._lock = (root / ".lock").open("a")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise RunError("another process is working in this run folder", where=str(root),
                           fix="Wait for it, stop it, or choose another --out") from None  # fmt: skip
        if (root / "timings.json").exists():
            with contextlib.suppress(RunError):
                self.timings = read_json(root / "timings.json")

    def close(self) -> None:
        """Release the folder. Safe to call twice."""
        self._lock.close()

    def __enter__(self) -> Run:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def stage(self, stage: Stage, workers: Workers | None = None) -> Path:
        """Do one stage, or skip it when its result is there already. Returns the finished folder."""
        return self.stages(stage.name, [stage], workers)[stage.name]

    def stages(self, title: str, stages: Sequence[Stage], workers: Workers | None = None) -> dict[str, Path]:
        """Do several independent stages, side by side where there are `workers`; the finished folders by name.

        Their time and memory are recorded together under `title`.
        """
        keys = {s.name: s.key() for s in stages}
        todo = [s for s in stages if not self._is_done(self.root / s.name, keys[s.name])]
        done = [s.name for s in stages if s not in todo]
        self.skipped += done
        if not todo:
            say(f"✓ {title}: done before, nothing to do")
        else:
            earlier = f" ({len(done)} of {len(stages)} done before)" if done else ""
            say(f"▸ {title}{earlier}")
            with disk_errors(self.root):
                self._build(title, stages, todo, keys, workers or Workers())
        return {s.name: self.root / s.name for s in stages}

    @contextlib.contextmanager
    def measure(self, title: str) -> Iterator[None]:
        """Record time and memory of work that is no stage of its own, under `title`."""
        start = time.monotonic()
        with RssMeter() as rss, disk_errors(self.root):
            yield
        self.timings[title] = {"seconds": round(time.monotonic() - start, 3), "peak_rss_mb": round(rss.peak_mb, 1)}
        write_json(self.root / "timings.json", self.timings)

    def _build(
        self, title: str, stages: Sequence[Stage], todo: Sequence[Stage], keys: Mapping[str, str], workers: Workers
    ) -> None:
        by_build: dict[Build, list[Stage]] = {}
        for s in todo:
            self._prepare(self._partial(s), keys[s.name])
            by_build.setdefault(s.build, []).append(s)
        start = time.monotonic()
        shown = progress(title, len(stages), "stages") if len(stages) > 1 else contextlib.nullcontext(lambda _: None)
        with RssMeter() as rss, shown as advance:
            advance(len(stages) - len(todo))
            for build, group in by_build.items():
                tasks = {s.name: {"folder": self._partial(s), **s.inputs, **s.arguments} for s in group}
                named = {s.name: s for s in group}
                for name, outcome in workers.run(build, tasks):
                    self._finish(named[name], keys[name], outcome.value or {}, outcome.seconds)
                    advance(1)
        self._note_time(title, stages, todo, time.monotonic() - start, rss.peak_mb, workers)

    def _note_time(
        self,
        title: str,
        stages: Sequence[Stage],
        todo: Sequence[Stage],
        seconds: float,
        peak_mb: float,
        workers: Workers,
    ) -> None:
        """Wall-clock seconds; stages finished in an earlier attempt count with their own time shared by the workers."""
        earlier = [read_json(self.root / s.name / MANIFEST).get("seconds", 0.0) for s in stages if s not in todo]
        total = seconds + sum(earlier) / min(workers.count, max(1, len(stages)))
        before = self.timings.get(title, {}).get("peak_rss_mb", 0.0) if earlier else 0.0
        self.timings[title] = {"seconds": round(total, 3), "peak_rss_mb": round(max(peak_mb, before), 1)}
        write_json(self.root / "timings.json", self.timings)
        say(f"✓ {title}: {seconds:,.1f} s, peak memory {peak_mb:,.0f} MB")

    def _partial(self, stage: Stage) -> Path:
        return self.root / ".partial" / stage.name.replace("/", "~")

    @staticmethod
    def _is_done(final: Path, key: str) -> bool:
        if not (final / MANIFEST).exists():
            return False
        with contextlib.suppress(RunError):
            return bool(read_json(final / MANIFEST).get("key") == key)
        return False

    @staticmethod
    def _prepare(partial: Path, key: str) -> None:
        """Keep an interrupted stage's folder if it was for the same key, else start clean."""
        key_file = partial / _KEY
        if partial.exists() and not (key_file.exists() and key_file.read_text() == key):
            shutil.rmtree(partial)
        if not partial.exists():
            partial.mkdir(parents=True)
            write_atomic(key_file, key)

    def _finish(self, stage: Stage, key: str, choices: Mapping[str, Any], seconds: float) -> None:
        folder, final = self._partial(stage), self.root / stage.name
        for scratch in folder.glob(".*"):
            if scratch.name != _KEY:  # the key goes last, so that a cut here still resumes
                shutil.rmtree(scratch) if scratch.is_dir() else scratch.unlink()
        files = sorted(p for p in folder.rglob("*") if p.is_file() and p not in (folder / MANIFEST, folder / _KEY))
        outputs = {str(p.relative_to(folder)): file_digest(p) for p in files}
        manifest = {
            "schema_version": SCHEMA, "key": key, **stage.identity(), "choices": choices, "versions": versions(),
            "outputs": outputs, "digest": digest(outputs), "seconds": round(seconds, 3),
            "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        }  # fmt: skip
        write_json(folder / MANIFEST, manifest)
        (folder / _KEY).unlink(missing_ok=True)
        final.parent.mkdir(parents=True, exist_ok=True)
        stale = final.with_name(f".{final.name}.stale")
        if stale.exists():
            shutil.rmtree(stale)
        if final.exists():
            final.rename(stale)
        folder.rename(final)
        shutil.rmtree(stale, ignore_errors=True)
        self.built.append(stage.name)


def result_digest(path: Path) -> str:
    """Digest of a finished stage (as recorded in its manifest) or of any other file or folder (its bytes)."""
    if (path / MANIFEST).exists():
        recorded = read_json(path / MANIFEST).get("digest")
        if isinstance(recorded, str):
            return recorded
    if not path.exists():
        raise RunError("input not found", where=str(path))
    return file_digest(path)
