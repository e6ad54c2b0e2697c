"""Looking at finished run folders: which there are, what each was asked and found, and how two of them differ.

Folders may come from anywhere. Names are looked up among those that lie there and are never joined to a path; links are
not followed; what is too large, too deep or no JSON is told as such.
"""

from __future__ import annotations

import datetime
import json
import math
import os
import stat
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from seamark.errors import DataError, FormatError
from seamark.run.entries import MAX_ROWS, MAX_TEXT, Entry, Value, entries, shortened
from seamark.run.folder import MANIFEST

RESULT, REPORT, TIMINGS, SCAN = "result.json", "report.html", "timings.json", "scan.json"
MAX_JSON, MAX_REPORT = 16 << 20, 64 << 20
"""Bytes of a file that is read."""
MAX_FOLDERS, MAX_STAGES = 1000, 500
"""Folders of a list, stages of a run; what is beyond is left out."""
STAGE_DEPTH = 3
"""Folders below a run's in which stages are looked for."""
_FILES = (RESULT, MANIFEST, TIMINGS, SCAN)
"""A folder that holds one of them is a run's."""


class RunCard(Value):
    """A run folder, as lists show it."""

    name: str
    created: str = ""
    """When its last stage was finished, UTC, ISO 8601; empty: not known."""
    title: str = ""
    """Of its recipe."""
    kind: str = ""
    model: str = ""
    stages: int = 0
    result: bool = False
    report: bool = False


class RunStage(Value):
    """A finished stage."""

    name: str
    key: str
    function: str
    created: str
    seconds: float | None


class RunView(Value):
    """What lies in a run folder."""

    card: RunCard
    config: tuple[Entry, ...]
    result: tuple[Entry, ...]
    stages: tuple[RunStage, ...]
    versions: dict[str, str]
    notes: tuple[str, ...] = ()
    """What could not be shown, and why."""


class Difference(Value):
    """One value in two runs."""

    name: str
    a: Entry | None = None
    b: Entry | None = None

    @property
    def same(self) -> bool:
        return self.a is not None and self.b is not None and (self.a.value, self.a.text) == (self.b.value, self.b.text)


class Comparison(Value):
    """Two runs beside each other."""

    a: RunCard
    b: RunCard
    config: tuple[Difference, ...]
    """Only what differs."""
    versions: tuple[Difference, ...]
    """Only what differs."""
    result: tuple[Difference, ...]
    notes: tuple[str, ...] = ()


def list_runs(root: Path) -> list[RunCard]:
    """Run folders directly below `root`, or `root` itself if it is one; the newest first."""
    cards = [_card(name, folder) for name, folder in _folders(root).items()]
    return sorted(cards, key=lambda card: (card.created, card.name), reverse=True)


def run_names(root: Path) -> list[str]:
    """Names of the run folders of `list_runs`, in order of the alphabet."""
    return list(_folders(root))


def read_run(root: Path, name: str) -> RunView:
    """One run folder. `DataError` where none of that name lies below `root`."""
    folder = _find(root, name)
    notes: list[str] = []
    result = _object(folder / RESULT, notes)
    manifests = {place: _object(path, notes) for place, path in _manifests(folder)}
    if isinstance(result.get("recipe"), dict):
        config = result.pop("recipe")
    else:
        config = next((m["config"] for m in manifests.values() if isinstance(m.get("config"), dict)), {})
    return RunView(
        card=_card(name, folder), config=entries(config, notes, "config"), result=entries(result, notes, "result"),
        stages=tuple(_stage(place, m) for place, m in manifests.items() if m), versions=_versions(manifests.values()),
        notes=tuple(notes),
    )  # fmt: skip


def read_report(root: Path, name: str) -> bytes:
    """A run's report.html as it is. `DataError` where there is none; `FormatError` where it is too large."""
    folder = _find(root, name)
    try:
        return _bytes(folder / REPORT, MAX_REPORT)
    except FileNotFoundError:
        raise DataError("this run has no report", where=name) from None
    except OSError as e:
        raise FormatError(f"the report cannot be read ({e.strerror})", where=name) from e


def compare_runs(root: Path, a: str, b: str) -> Comparison:
    """Two run folders beside each other; errors as of `read_run`."""
    one, other = read_run(root, a), read_run(root, b)
    versions = [tuple(Entry(name=k, text=v) for k, v in sorted(run.versions.items())) for run in (one, other)]
    return Comparison(
        a=one.card, b=other.card, config=tuple(d for d in _join(one.config, other.config) if not d.same),
        versions=tuple(d for d in _join(*versions) if not d.same), result=tuple(_join(one.result, other.result)),
        notes=tuple(f"{run.card.name}: {note}" for run in (one, other) for note in run.notes),
    )  # fmt: skip


def _folders(root: Path) -> dict[str, Path]:
    """{name: folder} of run folders; only `root` itself if it is one."""
    root = root.resolve()
    if root.name and any(e.name in _FILES and _is_file(e) for e in _children(root)):
        return {root.name: root}
    inside = [e for e in _children(root) if _is_dir(e)][:MAX_FOLDERS]
    return {e.name: Path(e.path) for e in inside if _is_run(Path(e.path))}


def _find(root: Path, name: str) -> Path:
    folder = _folders(root).get(name)
    if folder is None:
        raise DataError("there is no such run folder", where=name[:MAX_TEXT], fix="Choose one of the list")
    return folder


def _is_run(folder: Path) -> bool:
    """It holds a result, a scan or a stage."""
    entries = _children(folder)
    if any(e.name in _FILES and _is_file(e) for e in entries):
        return True
    return any(_is_dir(e) and (Path(e.path) / MANIFEST).is_file() for e in entries[:MAX_FOLDERS])


def _children(folder: Path) -> list[os.DirEntry[str]]:
    """What lies in a folder, by name; nothing where it cannot be read. Hidden things are left out, and names that are
    no UTF-8."""
    try:
        with os.scandir(folder) as entries:
            return sorted((e for e in entries if not e.name.startswith(".") and _is_text(e.name)), key=lambda e: e.name)
    except OSError:
        return []


def _is_text(name: str) -> bool:
    return name.encode("utf-8", "replace").decode("utf-8") == name


def _card(name: str, folder: Path) -> RunCard:
    """What a list shows: of all manifests only the one that was written last is read."""
    files = dict(_manifests(folder))
    newest = max(files.values(), key=lambda path: path.stat().st_mtime_ns, default=None)
    created = "" if newest is None else shortened(_object(newest, []).get("created", ""))
    result, report = folder / RESULT, folder / REPORT
    has_result = result.is_file() and not result.is_symlink()
    recipe = _object(result, []).get("recipe") if has_result else None
    config = recipe if isinstance(recipe, dict) else {}
    if not created and has_result:
        moment = datetime.datetime.fromtimestamp(result.stat().st_mtime, datetime.UTC)
        created = moment.isoformat(timespec="seconds")
    return RunCard(
        name=name, created=created, title=shortened(config.get("name", "")), kind=shortened(config.get("recipe", "")),
        model=shortened(config.get("model", "")), stages=len(files), result=has_result,
        report=report.is_file() and not report.is_symlink(),
    )  # fmt: skip


def _manifests(folder: Path) -> list[tuple[str, Path]]:
    """(stage's place, its manifest) of a folder and those below it, by name; at most `MAX_STAGES`."""
    found: list[tuple[str, Path]] = []
    waiting = [(folder, "", 0)]
    while waiting and len(found) < MAX_STAGES:
        inside, place, depth = waiting.pop()
        children = _children(inside)[:MAX_FOLDERS]
        found += [(place or ".", Path(e.path)) for e in children if e.name == MANIFEST and _is_file(e)]
        if depth < STAGE_DEPTH:
            below = [(Path(e.path), f"{place}/{e.name}".lstrip("/"), depth + 1) for e in children if _is_dir(e)]
            waiting += reversed(below)
    return found[:MAX_STAGES]


def _is_file(entry: os.DirEntry[str]) -> bool:
    return entry.is_file(follow_symlinks=False)


def _is_dir(entry: os.DirEntry[str]) -> bool:
    return entry.is_dir(follow_symlinks=False)


def _stage(place: str, manifest: Mapping[str, Any]) -> RunStage:
    seconds = manifest.get("seconds")
    known = isinstance(seconds, int | float) and math.isfinite(seconds)
    return RunStage(name=shortened(manifest.get("stage", place)), key=shortened(manifest.get("key", "")),
                    function=shortened(manifest.get("function", "")), created=shortened(manifest.get("created", "")),
                    seconds=float(seconds) if known and seconds is not None else None)  # fmt: skip


def _versions(manifests: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """{package: version}, several where stages were made with several."""
    found: dict[str, list[str]] = {}
    for manifest in manifests:
        versions = manifest.get("versions")
        for name, version in versions.items() if isinstance(versions, dict) else ():
            known = found.setdefault(shortened(name), [])
            if shortened(version) not in known:
                known.append(shortened(version))
    return {name: ", ".join(versions) for name, versions in sorted(found.items())[:MAX_ROWS]}


def _object(path: Path, notes: list[str]) -> dict[str, Any]:
    """The object in a JSON file; empty where there is none, with a note where it cannot be shown."""
    try:
        data = json.loads(_bytes(path, MAX_JSON).decode("utf-8"))
    except FileNotFoundError:
        return {}
    except FormatError as e:
        notes.append(f"{path.name}: {e.what}")
        return {}
    except OSError as e:
        notes.append(f"{path.name}: cannot be read ({e.strerror})")
        return {}
    except (ValueError, RecursionError):
        notes.append(f"{path.name}: not readable as JSON")
        return {}
    if not isinstance(data, dict):
        notes.append(f"{path.name}: not a JSON object")
        return {}
    return data


def _bytes(path: Path, limit: int) -> bytes:
    """A plain file's bytes: neither a link nor a pipe, and no longer than `limit`."""
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
    with os.fdopen(handle, "rb") as f:
        about = os.fstat(f.fileno())
        if not stat.S_ISREG(about.st_mode):
            raise FormatError("not a plain file", where=path.name)
        data = f.read(limit + 1)
    if len(data) > limit:
        raise FormatError(f"larger than {limit >> 20} MB", where=path.name)
    return data


def _join(a: Sequence[Entry], b: Sequence[Entry]) -> list[Difference]:
    """By name, in the order of `a`, then what only `b` has."""
    ones, others = ({e.name: e for e in reversed(entries)} for entries in (a, b))
    names = dict.fromkeys([*(e.name for e in a), *(e.name for e in b)])
    return [Difference(name=n, a=ones.get(n), b=others.get(n)) for n in names]
