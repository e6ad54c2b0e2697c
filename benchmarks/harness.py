"""How a benchmark is run, what it claims and what it leaves: shared by all of them.

Runs of what is compared are interleaved, so that a machine that grows slower or warmer does it to all alike. A number
is a median with its smallest and largest run. What could not be measured is null with the reason, never 0.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import math
import operator
import os
import platform
import re
import resource
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from seamark.run import digest, file_digest, versions, write_json

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
SCRATCH = ROOT / "benchmarks" / ".scratch"
SCHEMA = 1
DISTURBED = 0.15
"""Share of the cores used by others from which on a result says so."""
REPEATS = 2
UNTUNED = ("MALLOC_MMAP_MAX_", "MALLOC_TRIM_THRESHOLD_", "OMP_PROC_BIND", "OMP_PLACES")
"""Variables that make torch faster: a measured program has them only where the benchmark sets them itself."""

_COMPARE = {">=": operator.ge, "<=": operator.le, "==": operator.eq, ">": operator.gt, "<": operator.lt}
_CONDITION = re.compile(r"(?:(value|low|high) )?(>=|<=|==|>|<) (-?[\d.]+(?:e-?\d+)?)")


class BenchmarkError(Exception):
    """Something that was to be measured did not run; its claims are null with this reason."""


@dataclass(frozen=True)
class Claim:
    """One number with its spread, and the target it is held against."""

    name: str
    value: float | None
    unit: str
    target: str = ""
    """Such as ">= 5", "<= 1.15" or ">= 0.05 and low > 0"; empty for a number that is only told."""
    low: float | None = None
    high: float | None = None
    n: int = 1
    """Runs (or items, where the interval is one over items)."""
    spread: str = "min..max of runs"
    """What low and high are."""
    reason: str = ""
    """Why there is no value."""

    def __post_init__(self) -> None:
        conditions(self.target)

    @property
    def holds(self) -> bool | None:
        """Whether the target is met; None without a target or without the number it speaks of."""
        numbers = {"value": self.value, "low": self.low, "high": self.high}
        found = [(numbers[which], compare, bound) for which, compare, bound in conditions(self.target)]
        if not found or any(number is None for number, _, _ in found):
            return None
        return all(compare(number, bound) for number, compare, bound in found)

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name, "value": rounded(self.value), "low": rounded(self.low), "high": rounded(self.high),
            "unit": self.unit, "target": self.target, "holds": self.holds, "n": self.n,
            "spread": self.spread if self.low is not None else "", "reason": self.reason,
        }  # fmt: skip


def conditions(target: str) -> list[tuple[str, Callable[[Any, Any], bool], float]]:
    """What a target asks for: (value, low or high; comparison; bound). Raises ValueError on anything else."""
    found = []
    for part in target.split(" and ") if target else []:
        match = _CONDITION.fullmatch(part.strip())
        if match is None:
            raise ValueError(f"not a target: {target!r}")
        found.append((match[1] or "value", _COMPARE[match[2]], float(match[3])))
    return found


def rounded(value: float | None) -> float | None:
    """Four significant digits, whole numbers as they are: small files, small differences between runs."""
    if value is None or isinstance(value, bool | int):
        return value
    if not math.isfinite(value):
        raise ValueError(f"{value} is no measurement: use null with a reason")
    return float(f"{value:.4g}") if abs(value) < 10_000 else float(round(value))


def from_runs(name: str, values: Sequence[float], unit: str, target: str = "") -> Claim:
    """A claim from repeated runs: median, and smallest and largest where there are several."""
    if not values:
        return Claim(name, None, unit, target, n=0, reason="nothing was measured")
    several = len(values) > 1
    return Claim(name, statistics.median(values), unit, target, low=min(values) if several else None,
                 high=max(values) if several else None, n=len(values))  # fmt: skip


def ratio(name: str, ours: Sequence[float], theirs: Sequence[float], target: str = "") -> Claim:
    """Ours / theirs, round by round: the two runs of a round stood beside each other in time."""
    return from_runs(name, [a / b for a, b in zip(ours, theirs, strict=True)], "x", target)


def missing(name: str, unit: str, target: str, reason: str) -> Claim:
    """A claim that could not be measured."""
    return Claim(name, None, unit, target, n=0, reason=reason)


Row = dict[str, Any]


def from_estimate(
    name: str, estimate: Mapping[str, Any] | None, unit: str, target: str, spread: str, reason: str
) -> Claim:
    """A claim from an estimate of a result.json; `reason` where there is none."""
    if estimate is None or estimate["value"] is None:
        return missing(name, unit, target, estimate["reason"] if estimate else reason)
    return Claim(name, estimate["value"], unit, target, low=estimate["low"], high=estimate["high"], n=estimate["n"],
                 spread=spread)  # fmt: skip


def interleave(
    variants: Mapping[str, Callable[[], Row]], runs: int, say: Callable[[str], None] = lambda _: None
) -> tuple[dict[str, list[Row]], dict[str, str]]:
    """Run all variants `runs` times, round after round, each round beginning with another one.

    Returns:
        The rows of every variant, one a round; and, for variants that failed, why (they are not run again).
    """
    names = list(variants)
    rows: dict[str, list[Row]] = {name: [] for name in names}
    failed: dict[str, str] = {}
    for i in range(runs):
        for name in names[i % len(names) :] + names[: i % len(names)]:
            if name in failed:
                continue
            try:
                rows[name].append(_undisturbed(variants[name]))
                say(f"round {i + 1}/{runs}, {name}: {_short(rows[name][-1])}")
            except BenchmarkError as e:
                failed[name] = str(e)
                say(f"round {i + 1}/{runs}, {name}: {e}")
    return rows, failed


def _undisturbed(run: Callable[[], Row]) -> Row:
    """A run; again, `REPEATS` times at most, where other programs took much of the machine."""
    row = run()
    for _ in range(REPEATS):
        if row.get("others_cpu", 0.0) < DISTURBED:
            break
        row = run()
    return row


def _short(row: Row) -> str:
    return ", ".join(f"{k} {rounded(v):,g}" for k, v in row.items() if isinstance(v, int | float))


def medians(rows: Mapping[str, Sequence[Row]]) -> list[Row]:
    """One row a variant: n, and median, min and max of every number in its rows."""
    table: list[Row] = []
    for name, found in rows.items():
        row: Row = {"variant": name, "n": len(found)}
        for key in found[0] if found else ():
            values = [r[key] for r in found]
            if all(isinstance(v, int | float) and not isinstance(v, bool) for v in values):
                row[key] = {"median": rounded(float(statistics.median(values))), "low": rounded(float(min(values))),
                            "high": rounded(float(max(values)))}  # fmt: skip
            else:
                row[key] = values[0]
        table.append(row)
    return table


def threads() -> int:
    """CPUs this process may use: what measured programs compute with."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def run_python(
    arguments: Sequence[str], timeout: float, *, python: str = sys.executable, extra: Mapping[str, str] | None = None
) -> Row:
    """Run `python ARGUMENTS` with all cores and no network; the JSON object it prints last on stdout.

    `python` is the interpreter, for programs with an environment of their own; `extra` goes into its variables.

    `others_cpu` is added to it: the share of all cores that other programs used meanwhile.

    Raises:
        BenchmarkError: it failed, took too long or printed no such thing.
    """
    environment = {k: v for k, v in os.environ.items() if k not in UNTUNED} | {
        "OMP_NUM_THREADS": str(threads()), "HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1",
        "TOKENIZERS_PARALLELISM": "false",
    } | dict(extra or {})  # fmt: skip
    others = _cpu_of_others()
    try:
        done = subprocess.run([python, *arguments], capture_output=True, text=True, timeout=timeout,
                              cwd=ROOT, env=environment, check=False)  # fmt: skip
    except subprocess.TimeoutExpired:
        raise BenchmarkError(f"took longer than {timeout:,.0f} s") from None
    lines = done.stdout.strip().splitlines()
    if done.returncode or not lines:
        words = done.stderr.strip().splitlines() or ["no output"]
        raise BenchmarkError(without_paths(words[-1])[:300])
    try:
        found = json.loads(lines[-1])
    except json.JSONDecodeError:
        found = None
    if not isinstance(found, dict):
        raise BenchmarkError("printed no JSON object")
    return found | {"others_cpu": others()}


def _cpu_of_others() -> Callable[[], float]:
    """From now on: the share of all cores that neither idled nor worked for finished children of this process."""

    def busy() -> float:
        times = psutil.cpu_times()
        return sum(times) - times.idle - getattr(times, "iowait", 0.0) - getattr(times, "guest", 0.0)

    def ours() -> float:
        used, me = resource.getrusage(resource.RUSAGE_CHILDREN), time.process_time()
        return used.ru_utime + used.ru_stime + me

    start, busy_before, ours_before = time.monotonic(), busy(), ours()

    def share() -> float:
        all_cores = (time.monotonic() - start) * (psutil.cpu_count() or 1)
        return max(0.0, (busy() - busy_before) - (ours() - ours_before)) / max(all_cores, 1e-9)

    return share


def disturbed(rows: Mapping[str, Sequence[Row]]) -> str:
    """A remark where other programs took much of the machine in some run; empty where they did not."""
    worst = max((r["others_cpu"] for found in rows.values() for r in found), default=0.0)
    if worst < DISTURBED:
        return ""
    return f". DISTURBED: other programs used up to {100 * worst:.0f} % of the cores; measure again on a quiet machine"


def without_paths(text: str) -> str:
    """Results are published: no folder of this machine in them."""
    return re.sub(r"(?<![\w.])/[^\s'\":,)]+/", "…/", text)


class TreeMeter:
    """Peak resident memory of a process and its children, in MB (shared pages count in each)."""

    def __init__(self, pid: int, interval_s: float = 0.25) -> None:
        self.peak_mb = 0.0
        self._process = psutil.Process(pid)
        self._interval_s = interval_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def _watch(self) -> None:
        while True:
            with contextlib.suppress(psutil.Error):
                total = 0
                for process in (self._process, *self._process.children(recursive=True)):
                    with contextlib.suppress(psutil.Error):
                        total += process.memory_info().rss
                self.peak_mb = max(self.peak_mb, total / 2**20)
            if self._stop.wait(self._interval_s):
                return

    def __enter__(self) -> TreeMeter:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()


@contextlib.contextmanager
def stopwatch() -> Iterator[Callable[[], float]]:
    """Seconds since the start, as often as asked for."""
    start = time.monotonic()
    yield lambda: time.monotonic() - start


def machine() -> Row:
    """What a reader must know of the machine; no names, no paths."""
    import torch

    return {
        "cpu": _cpu_model(), "cores": threads(), "ram_gib": round(psutil.virtual_memory().total / 2**30),
        "torch_threads": torch.get_num_threads(), "accelerator": _accelerator(), "system": platform.system(),
        "python": platform.python_version(), "versions": versions(),
    }  # fmt: skip


def _accelerator() -> str | None:
    import torch

    return torch.cuda.get_device_name(0) if torch.cuda.is_available() else None


def _cpu_model(source: Path = Path("/proc/cpuinfo")) -> str:
    with contextlib.suppress(OSError):
        for line in source.read_text().splitlines():
            if line.lower().startswith("model name"):
                return " ".join(line.partition(":")[2].split())
    return platform.processor() or platform.machine()


def code() -> str:
    """Digest of all that was measured and of what measured it: results with another one come from other code."""
    folders = [ROOT / "src" / "seamark", *(p for p in (ROOT / "benchmarks").iterdir() if p.is_dir() and p != SCRATCH)]
    files = sorted({*(ROOT / "benchmarks").glob("*.py"), *(p for folder in folders for p in folder.rglob("*.py"))})
    return digest([[str(p.relative_to(ROOT)), file_digest(p)] for p in files])


@dataclass(frozen=True)
class Result:
    """What a benchmark found."""

    name: str
    about: str
    """What was measured, on what, and what differs between the variants."""
    claims: Sequence[Claim]
    rows: Sequence[Row] = ()
    settings: Mapping[str, Any] | None = None

    def to_json(self, load: float) -> Row:
        return {
            "schema_version": SCHEMA, "name": self.name, "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
            "about": self.about, "code": code(), "machine": machine(), "load_before": round(load, 2),
            "settings": dict(self.settings or {}), "claims": [c.to_json() for c in self.claims],
            "rows": [dict(r) for r in self.rows],
        }  # fmt: skip


def save(result: Result, load: float, folder: Path = RESULTS) -> Path:
    """Write `NAME.json`; always the same keys in the same order."""
    path = folder / f"{result.name}.json"
    write_json(path, result.to_json(load))
    return path
