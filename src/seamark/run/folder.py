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
import functools
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from seamark.errors import RunError
from seamark.run.files import digest, disk_errors, file_digest, read_json, versions, write_atomic, write_json
from seamark.run.watch import RssMeter, progress, say
from seamark.run.workers import Workers

MANIFEST = "manifest.json"
SCHEMA = 1
_KEY = ".key"
_ATTEMPTS = ".attempts.json"
"""Beside a stage's half-made files: seconds that attempts took so far, and since when one is under way."""
_STALE = ".stale"
"""Results that were replaced, on their way out; emptied at the next start if a run was cut in between."""

Build = Callable[..., Mapping[str, Any] | None]


@dataclass(frozen=True)
class Stage:
    """One step of a run: `build(folder, **inputs, **arguments)` writes its files into `folder`.

    `folder` survives an interruption when the key is unchanged, so `build` may go on from checkpoints it finds there.
    Names starting with a dot are scratch, at any depth: removed when the stage is whole. What `build` returns are the
    choices it made by measurement; they go into the manifest.
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
        self.titles: list[str] = []
        """Titles of the work of this run, in order, whether done now or before."""
        self._lock = _lock(root)
        shutil.rmtree(root / _STALE, ignore_errors=True)
        for half in root.glob(".*.tmp"):  # a file that a killed process was writing
            half.unlink(missing_ok=True)
        if (root / "timings.json").exists():
            self.timings = {k: v for k, v in _dict(root / "timings.json").items() if isinstance(v, dict)}

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
        self.titles.append(title)
        identities = {s.name: s.identity() for s in stages}
        todo = [s for s in stages if not self._is_done(self.root / s.name, digest(identities[s.name]))]
        done = [s.name for s in stages if s not in todo]
        self.skipped += done
        if not todo:
            say(f"✓ {title}: done before, nothing to do")
        else:
            earlier = f" ({len(done)} of {len(stages)} done before)" if done else ""
            say(f"▸ {title}{earlier}")
            with disk_errors(self.root):
                self._build(title, stages, todo, identities, workers or Workers())
        return {s.name: self.root / s.name for s in stages}

    @contextlib.contextmanager
    def measure(self, title: str) -> Iterator[None]:
        """Record time and memory of work that is no stage of its own, under `title`."""
        self.titles.append(title)
        start = time.monotonic()
        with disk_errors(self.root):
            with RssMeter() as rss:
                yield
            seconds = time.monotonic() - start
            self.timings[title] = {"seconds": round(seconds, 3), "peak_rss_mb": round(rss.peak_mb, 1)}
            write_json(self.root / "timings.json", self.timings)

    def _build(
        self, title: str, stages: Sequence[Stage], todo: Sequence[Stage], identities: Mapping[str, dict[str, Any]],
        workers: Workers,
    ) -> None:  # fmt: skip
        by_build: dict[Build, list[Stage]] = {}
        for s in todo:
            self._prepare(self._partial(s), digest(identities[s.name]))
            by_build.setdefault(s.build, []).append(s)
        spent = {s.name: _spent(self._partial(s)) for s in todo}
        start = time.monotonic()
        shown = progress(title, len(stages), "stages") if len(stages) > 1 else contextlib.nullcontext(lambda _: None)
        with RssMeter() as rss, shown as advance:
            advance(len(stages) - len(todo))
            for build, group in by_build.items():
                tasks = {s.name: {"folder": self._partial(s), **s.inputs, **s.arguments} for s in group}
                named = {s.name: s for s in group}
                for name, outcome in workers.run(functools.partial(_attempt, build), tasks):
                    self._finish(named[name], identities[name], outcome.value or {}, spent[name] + outcome.seconds)
                    advance(1)
        self._note_time(title, stages, todo, time.monotonic() - start, sum(spent.values()), rss.peak_mb, workers)

    def _note_time(
        self,
        title: str,
        stages: Sequence[Stage],
        todo: Sequence[Stage],
        seconds: float,
        spent: float,
        peak_mb: float,
        workers: Workers,
    ) -> None:
        """Wall-clock seconds; stages that were finished or begun (`spent`) in earlier attempts count with their own
        time shared by the workers."""
        earlier = sum(_dict(self.root / s.name / MANIFEST).get("seconds", 0.0) for s in stages if s not in todo) + spent
        total = seconds + earlier / min(workers.count, max(1, len(stages)))
        before = self.timings.get(title, {}).get("peak_rss_mb", 0.0) if earlier else 0.0
        self.timings[title] = {"seconds": round(total, 3), "peak_rss_mb": round(max(peak_mb, before), 1)}
        write_json(self.root / "timings.json", self.timings)
        say(f"✓ {title}: {seconds:,.1f} s, peak memory {peak_mb:,.0f} MB")

    def _partial(self, stage: Stage) -> Path:
        return self.root / ".partial" / stage.name.replace("/", "~")

    @staticmethod
    def _is_done(final: Path, key: str) -> bool:
        """Whether a whole result for this key is there: its manifest can be read and no file of it is missing."""
        manifest = _dict(final / MANIFEST)
        outputs = manifest.get("outputs")
        return manifest.get("key") == key and isinstance(outputs, dict) and all((final / f).exists() for f in outputs)

    @staticmethod
    def _prepare(partial: Path, key: str) -> None:
        """Keep an interrupted stage's folder if it was for the same key, else start clean."""
        key_file = partial / _KEY
        if partial.exists() and not (key_file.exists() and key_file.read_text() == key):
            key_file.unlink(missing_ok=True)  # first, lest a cut here leave half a folder with a valid key
            shutil.rmtree(partial)
        if not partial.exists():
            partial.mkdir(parents=True)
            write_atomic(key_file, key)

    def _finish(
        self, stage: Stage, identity: Mapping[str, Any], choices: Mapping[str, Any], seconds: float
    ) -> None:  # fmt: skip
        folder, final = self._partial(stage), self.root / stage.name
        for scratch in list(folder.rglob(".*")):  # at any depth: a kill may have left half a file anywhere
            if scratch.is_dir() and not scratch.is_symlink():
                shutil.rmtree(scratch)
            elif scratch != folder / _KEY:  # the key goes last, so that a cut here still resumes
                scratch.unlink(missing_ok=True)
        files = sorted(p for p in folder.rglob("*") if p.is_file() and p not in (folder / MANIFEST, folder / _KEY))
        outputs = {str(p.relative_to(folder)): file_digest(p) for p in files}
        manifest = {
            "schema_version": SCHEMA, "key": digest(identity), **identity, "choices": choices, "versions": versions(),
            "outputs": outputs, "digest": digest(outputs), "seconds": round(seconds, 3),
            "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        }  # fmt: skip
        write_json(folder / MANIFEST, manifest)
        (folder / _KEY).unlink(missing_ok=True)
        final.parent.mkdir(parents=True, exist_ok=True)
        if final.exists():
            stale = self.root / _STALE / folder.name
            stale.parent.mkdir(exist_ok=True)
            shutil.rmtree(stale, ignore_errors=True)
            final.rename(stale)
        folder.rename(final)
        shutil.rmtree(self.root / _STALE, ignore_errors=True)
        self.built.append(stage.name)


def _attempt(build: Build, folder: Path, **arguments: Any) -> Mapping[str, Any] | None:
    """Build a stage; an attempt that is cut short leaves the time it took, as well as it can."""
    spent, start = _spent(folder), time.monotonic()
    write_json(folder / _ATTEMPTS, {"seconds": spent, "since": time.time()})
    try:
        return build(folder, **arguments)
    except BaseException:
        with contextlib.suppress(OSError):  # a full disk: what went wrong is more than the time it took
            write_json(folder / _ATTEMPTS, {"seconds": spent + time.monotonic() - start, "since": None})
        raise


def _spent(folder: Path) -> float:
    """Seconds that earlier attempts at a stage took; one that was killed counts up to the last file it wrote."""
    noted = _dict(folder / _ATTEMPTS)
    spent, since = noted.get("seconds"), noted.get("since")
    spent = spent if isinstance(spent, float | int) else 0.0
    if not isinstance(since, float):
        return spent
    changes = [since]
    for path in folder.rglob("*"):
        with contextlib.suppress(OSError):
            changes.append(path.stat().st_mtime)
    return spent + max(changes) - since


def result_digest(path: Path) -> str:
    """Digest of a finished stage (as recorded in its manifest) or of any other file or folder (its bytes).

    Raises:
        RunError: not there, or not readable.
    """
    if not path.exists():
        raise RunError("input not found", where=str(path))
    manifest = _dict(path / MANIFEST)
    # A folder of the user's own may hold a manifest.json too: only one that agrees with itself is a stage's.
    if isinstance(manifest.get("digest"), str) and manifest["digest"] == digest(manifest.get("outputs")):
        return str(manifest["digest"])
    try:
        return file_digest(path)
    except OSError as e:
        raise RunError(f"input cannot be read ({e.strerror})", where=str(e.filename or path)) from e


def _dict(path: Path) -> dict[str, Any]:
    """The object in a JSON file; empty where there is none or it is broken."""
    with contextlib.suppress(RunError):
        data = read_json(path)
        return data if isinstance(data, dict) else {}
    return {}


def _lock(root: Path) -> TextIO:
    """Make the run folder and hold it for this process until the file is closed (or the process dies)."""
    try:
        with disk_errors(root):
            root.mkdir(parents=True, exist_ok=True)
            lock = (root / ".lock").open("a")
    except (FileExistsError, NotADirectoryError) as e:
        raise RunError("a file is where the run folder should be", where=str(root), fix="Choose another --out") from e
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as e:
        lock.close()
        if not isinstance(e, BlockingIOError):
            raise RunError(f"the run folder cannot be locked ({e.strerror})", where=str(root),
                           fix="Choose an --out on a local disk") from e  # fmt: skip
        raise RunError("another process is working in this run folder", where=str(root),
                       fix="Wait for it, stop it, or choose another --out") from None  # fmt: skip
    return lock
