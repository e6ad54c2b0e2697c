"""Quality of TopK autoencoders after equal wall clock on the same real activations, each at its best learning rate."""

from __future__ import annotations

import datetime
import itertools
import math
import os
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import harness, sae_data, sae_environments
from benchmarks.harness import BenchmarkError, Claim, Result, Row
from benchmarks.peers.feed import Job
from benchmarks.sae_contenders import CONTENDERS, OURS, QUALITY, chosen, environments, left_out
from seamark.run import digest, file_digest, read_json, write_json

FOLDER = harness.SCRATCH / "sae-fvu"
PROTOCOL = 2
"""Raise it when a change of the harness makes older cells incomparable."""
MINUTES = (2.0, 5.0, 10.0)
D_SAE, K, BATCH = 3072, 32, 1024
STEP = 3.0
"""Factor between learning rates of a grid."""
WIDEST = 6
"""Learning rates tried at most, where the best one keeps lying at the edge of the grid."""
ROUNDS, TIMED_S, TIMED_AFTER = 5, 10.0, 10
"""Rounds of timing, seconds timed in each, steps before."""
PATIENCE = 10.0
"""A training may take so many times the minutes it stands for: other programs do not change what is learned."""
BEHIND = 1.5
"""A peer with so many times the best peer's error is not trained for the next longer time."""
TARGET = "< 1"


@dataclass
class Bench:
    """Trains cells, (contender, learning rate, minutes), once each: good ones of former runs are read from `folder`."""

    folder: Path
    data: Path
    pythons: Mapping[str, str]
    missing: Mapping[str, str]
    say: Callable[[str], None]
    fresh: bool = False
    train: Callable[..., Row] = harness.run_python
    lanes: int = 1
    """Trainings side by side, the cores dealt out among them: that takes time off, and changes no number of steps."""
    speeds: dict[str, Row] = field(default_factory=dict)
    """{contender: {steps_per_s, low, high, round, others_cpu}}, of all that could be timed."""
    here: set[Path] = field(default_factory=set)
    """Cells of this run."""

    # -- speed ---------------------------------------------------------------------------------------------------

    def time(self, names: Sequence[str]) -> None:
        """Fill `speeds` for these contenders: in turns, alone on the machine, on the same activations. Those timed by
        a former run with the same code, settings and cores are not timed again."""
        path = self.folder / "speeds.json"
        known: dict[str, Row] = read_json(path) if path.exists() else {}
        usable = {n: row for n, row in known.items() if row["key"] == self._speed_key(n)}
        new = [n for n in names if (n not in usable or self.fresh) and CONTENDERS[n].environment not in self.missing]
        if new:
            found, failed = harness.interleave({n: partial(self._timed, n) for n in new}, ROUNDS, self.say)
            now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
            for name in (n for n in new if n not in failed):
                rates = [row["steps_per_s"] for row in found[name]]
                known[name] = {"steps_per_s": statistics.median(rates), "low": min(rates), "high": max(rates),
                               "others_cpu": max(row["others_cpu"] for row in found[name]), "round": now,
                               "key": self._speed_key(name)}  # fmt: skip
            write_json(path, known)
        self.speeds = {n: known[n] for n in names if n in known and (n in usable or n in new)}

    def _timed(self, name: str) -> Row:
        job = replace(job_of(name, CONTENDERS[name].lr, self.data), seconds=TIMED_S, warmup=TIMED_AFTER)
        row = self._run(name, job, 600)
        return {"steps_per_s": 1000 / row["ms_per_step"], "others_cpu": row["others_cpu"]}

    # -- quality -------------------------------------------------------------------------------------------------

    def cell(self, name: str, lr: float, minutes: float) -> Row:
        """What a training ended in; one that failed has `valid` = inf and says why."""
        if name not in self.speeds:
            reason = self.missing.get(CONTENDERS[name].environment, "its speed could not be measured")
            return failure(lr, reason) | {"valid": math.inf}
        steps = max(10, round(60 * minutes * self.speeds[name]["steps_per_s"]))
        path = self.folder / "cells" / name / f"{steps}steps-lr{lr:.3g}.json"
        key = self._key(name)
        old = read_json(path) if path.exists() else {}
        if old.get("key") == key and (path in self.here or (not self.fresh and not why_not(name, old["row"]))):
            row: Row = old["row"]
        else:
            row = self._trained(name, lr, minutes, steps)
            row["date"] = datetime.datetime.now(datetime.UTC).date().isoformat()
            write_json(path, {"key": key, "row": row})
            self.here.add(path)
            self.say(f"{name}, lr {lr:.3g}, {minutes:g} min: {told(row)}")
        return row | {"valid": math.inf if row["valid"] is None else row["valid"]}

    def cells(self, wanted: Sequence[tuple[str, float, float]]) -> list[Row]:
        """`cell` for each (contender, learning rate, minutes)."""
        if self.lanes == 1:
            return [self.cell(*w) for w in wanted]
        with ThreadPoolExecutor(self.lanes, initializer=_take_cores, initargs=(itertools.count(), self.lanes)) as pool:
            return list(pool.map(lambda w: self.cell(*w), wanted))

    def _trained(self, name: str, lr: float, minutes: float, steps: int) -> Row:
        files = {part: str(self.data / f"{part}.safetensors") for part in ("valid", "held_out")}
        try:
            row = self._run(
                name, replace(job_of(name, lr, self.data), steps=steps, **files), 600 + 60 * PATIENCE * minutes
            )
        except BenchmarkError as e:
            return failure(lr, str(e))
        finite = math.isfinite(row["valid"]) and math.isfinite(row["held_out"])
        return row if finite else failure(lr, "diverged")

    def _run(self, name: str, job: Job, timeout: float) -> Row:
        path = self.folder / f"job-{job.contender}-{job.steps}-{job.lr:.3g}.json"  # of lanes each has its own
        write_json(path, asdict(job))
        environment = CONTENDERS[name].environment
        python = {"python": self.pythons[environment]} if environment else {}
        try:
            return self.train(["-m", "benchmarks.peers", str(path)], timeout, **python)
        finally:
            path.unlink(missing_ok=True)

    def _key(self, name: str) -> str:
        """What a cell depends on besides its name: data, settings, versions, and for us our own code."""
        c = CONTENDERS[name]
        code = sorted((harness.ROOT / "src/seamark/sae").rglob("*.py")) if name == OURS else []
        settings = [c.module, c.options, c.quality, sae_environments.fingerprint(c.environment)]
        data = read_json(self.data / "data.json")
        return digest([PROTOCOL, D_SAE, K, BATCH, data, settings, [file_digest(p) for p in code]])

    def _speed_key(self, name: str) -> str:
        return digest([self._key(name), harness.threads(), harness.machine()["cpu"]])


def _take_cores(numbers: Iterator[int], lanes: int) -> None:
    """Keep this thread, and the programs it starts, to its share of the cores."""
    if hasattr(os, "sched_setaffinity"):
        mine = sorted(os.sched_getaffinity(0))[next(numbers) :: lanes]
        os.sched_setaffinity(0, mine)


def failure(lr: float, reason: str) -> Row:
    return {"lr": lr, "valid": None, "held_out": None, "seconds": None, "steps": None, "reason": reason}


def told(row: Row) -> str:
    if row["valid"] is None:
        return str(row["reason"])
    return f"FVU {row['held_out']:.4f} held out, {row['valid']:.4f} for choosing, {row['steps']:,} steps"


def job_of(name: str, lr: float, data: Path) -> Job:
    """What all jobs of a contender share."""
    c = CONTENDERS[name]
    return Job(name, c.module, str(data / "train.safetensors"), int(read_json(data / "data.json")["d_in"]), D_SAE, K,
               BATCH, lr, {**c.options, **c.quality}, shuffle=True)  # fmt: skip


def run(
    runs: int | None = None, say: Callable[[str], None] = lambda _: None, *, contenders: str | None = None,
    minutes: str | None = None, fresh: bool = False, lanes: int = 1,
) -> Result:  # fmt: skip
    """A grid of learning rates at the shortest time, then each contender at its best one for the longer times.

    `runs` is of no use here: every training is run once.
    """
    times = tuple(sorted(float(m) for m in minutes.split(","))) if minutes else MINUTES
    names = chosen(contenders, QUALITY)
    data = cached_data(FOLDER / "data", say)
    pythons, missing = sae_environments.prepare(environments(names), say)
    bench = Bench(FOLDER, data, pythons, missing, say, fresh, lanes=lanes)
    bench.time(names)
    cells = trained(bench, names, times, grid(bench, names, times[0]))
    about = read_json(data / "data.json")
    return Result(
        "sae-fvu", ABOUT.format(**about) + untrained(names) + remarks(bench.speeds) + given_up(cells),
        claims(cells, names, times, left_out(names, QUALITY)), table(cells, names, times, bench.speeds),
        {"data": about, "speeds": bench.speeds, "d_sae": D_SAE, "k": K, "batch": BATCH, "grid_factor": STEP,
         "variants": {name: CONTENDERS[name].about for name in names}},
    )  # fmt: skip


ABOUT = (
    "fraction of variance unexplained on held-out {model} activations ({hookpoint}, {source}) after equal wall clock "
    "of training: after the steps that each makes in that time alone on this machine, by its median speed in rounds of "
    "turns on the same activations; a grid of learning rates for each at the shortest time, chosen on other held-out "
    "texts; warm-up over 5 % of the steps and decay to 0 over the last 20 % where a trainer has such a schedule, each "
    "time a training of its own, so that its decay ends in time"
)


def remarks(speeds: Mapping[str, Row]) -> str:
    """What a reader must know about the measurement of speed; empty where nothing."""
    together = len({row["round"] for row in speeds.values()}) <= 1
    said = "" if together else ". SPEEDS were not all measured in the same rounds"
    return said + harness.disturbed({name: [row] for name, row in speeds.items()})


def given_up(cells: Cells) -> str:
    """A remark on peers that were not trained for the longer times."""
    found = [f"{name} for {minutes:g} minutes ({row['reason']})" for (name, minutes), row in cells.items()
             if row and row.get("behind")]  # fmt: skip
    return f". NOT TRAINED: {'; '.join(found)}" if found else ""


def untrained(names: Sequence[str]) -> str:
    """A remark, for every reader of the result, on contenders of `sae-speed` that "best peer" does not cover here."""
    absent = [n for n in CONTENDERS if n not in names]
    return f'. NOT TRAINED here, so "best peer" is the best without them: {", ".join(absent)}' if absent else ""


def cached_data(folder: Path, say: Callable[[str], None]) -> Path:
    """The activations, read once; again where other texts are to be had now."""
    note = folder / "data.json"
    if not note.exists() or read_json(note)["source"] != sae_data.source():
        say(f"reading activations ({sae_data.source()})")
        note.unlink(missing_ok=True)
        extra = {sae_data.VARIABLE: os.environ[sae_data.VARIABLE]} if sae_data.VARIABLE in os.environ else {}
        harness.run_python(["-m", "benchmarks.sae_data", str(folder)], 7200, extra=extra)
    return folder


def grid(bench: Bench, names: Sequence[str], minutes: float) -> dict[str, float | None]:
    """The best learning rate of each: three, and more as long as the best lies at an edge. None: all failed."""
    scores: dict[str, dict[float, float]] = {name: {} for name in names}
    wanted = [(name, CONTENDERS[name].lr * STEP**i, minutes) for i in (-1, 0, 1) for name in names]
    while wanted:
        for (name, lr, _), row in zip(wanted, bench.cells(wanted), strict=True):
            scores[name][lr] = float(row["valid"])
        wanted = [(name, lr, minutes) for name in names if (lr := _beyond(scores[name])) is not None]
    best = {name: min(score, key=lambda lr: score[lr]) for name, score in scores.items()}
    return {name: lr if math.isfinite(scores[name][lr]) else None for name, lr in best.items()}


def _beyond(score: Mapping[float, float]) -> float | None:
    """The next learning rate to try: beyond the best, where that lies at an edge."""
    lr = min(score, key=lambda lr: score[lr])
    if not math.isfinite(score[lr]) or len(score) >= WIDEST or min(score) < lr < max(score):
        return None
    return lr / STEP if lr == min(score) else lr * STEP


def trained(
    bench: Bench, names: Sequence[str], times: Sequence[float], best: Mapping[str, float | None]
) -> dict[tuple[str, float], Row | None]:
    """Each contender at its best learning rate for all times, without peers that fell far behind."""
    cells: dict[tuple[str, float], Row | None] = {}
    behind: dict[str, Row] = {}
    for t in times:
        wanted = [(n, lr, t) for n in names if (lr := best[n]) is not None and n not in behind]
        found = dict(zip([w[0] for w in wanted], bench.cells(wanted), strict=True))
        cells |= {(n, t): found.get(n, behind.get(n)) for n in names}
        peers = {n: float(row["held_out"]) for n, row in found.items() if n != OURS and not why_not(n, row)}
        for n, fvu in peers.items():
            if fvu > BEHIND * min(peers.values()):
                reason = f"FVU {fvu:.3f} at {t:g} minutes, best peer {min(peers.values()):.3f}"
                behind[n] = failure(_row(found[n])["lr"], reason) | {"valid": math.inf, "behind": True}
    return cells


Cells = Mapping[tuple[str, float], Row | None]


def claims(cells: Cells, names: Sequence[str], times: Sequence[float], incomplete: str = "") -> list[Claim]:
    return [_against_best(cells, names, t, incomplete) for t in times]


def _against_best(cells: Cells, names: Sequence[str], minutes: float, incomplete: str) -> Claim:
    """Our FVU over the least of the peers'."""
    name = f"fvu_vs_best_peer_at_{minutes:g}_min"
    names = [n for n in names if not (cells[n, minutes] or {}).get("behind")]
    reasons = [r for n in names if (r := why_not(n, cells[n, minutes]))] + ([incomplete] if incomplete else [])
    peers = [n for n in names if n != OURS]
    if reasons or not peers:
        return harness.missing(name, "x", TARGET, "; ".join(reasons) or "no peer ran")
    found = {n: float(_row(cells[n, minutes])["held_out"]) for n in names}
    return Claim(name, found[OURS] / min(found[n] for n in peers), "x", TARGET)


def why_not(name: str, row: Row | None) -> str:
    """Why a cell cannot be compared; empty where it can."""
    if row is None:
        return f"{name}: no learning rate led to a finite error"
    return "" if row["valid"] is not None and math.isfinite(row["valid"]) else f"{name}: {row['reason']}"


def _row(row: Row | None) -> Row:
    if row is None:
        raise BenchmarkError("no such cell")
    return row


def table(cells: Cells, names: Sequence[str], times: Sequence[float], speeds: Mapping[str, Row]) -> list[Row]:
    """One row a contender: its learning rate, FVU at each time, steps a second (median and range)."""
    rows: list[Row] = []
    for name in names:
        found: dict[float, Any] = {t: cells[name, t] for t in times}
        row: Row = {"table": "quality", "variant": name, "lr": None}
        for t, cell in found.items():
            usable = cell is not None and math.isfinite(cell["valid"])
            row[f"fvu_{t:g}_min"] = harness.rounded(cell["held_out"]) if usable else None
            if usable:
                row |= {"lr": harness.rounded(cell["lr"]), "date": cell["date"]}
        if name in speeds:
            s = speeds[name]
            row["steps_per_s"] = {"median": harness.rounded(s["steps_per_s"]), "low": harness.rounded(s["low"]),
                                  "high": harness.rounded(s["high"])}  # fmt: skip
        rows.append(row)
    return rows
