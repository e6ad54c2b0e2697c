"""Stages in order: one that is finished is read from its place as long as nothing that it rests on has changed."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks import harness
from benchmarks.explaining.code import code_of
from benchmarks.explaining.job import Job, Row, Settings
from benchmarks.explaining.texts import CONTRAST, DOMAIN, PLAIN, real
from benchmarks.harness import BenchmarkError
from seamark.run import digest, file_digest, read_json, versions, write_json

DONE, KEY = "done.json", "key.json"
TIMEOUT_S = 4 * 3600.0
SERVER = "tests/explain/llm_server.py"
"""The server that `server` asks, a program of its own."""


@dataclass(frozen=True)
class Stage:
    """One stage and what it rests on."""

    module: str
    needs: tuple[str, ...] = ()
    """Stages whose results it reads."""
    settings: tuple[str, ...] = ()
    texts: tuple[str, ...] = ()
    """Files of real texts it reads, where there are some."""
    repeated: bool = False
    """Timed: run in rounds, each kept, on this machine only."""


_COMPARED = ("compare_hookpoint", "compare_k", "compare_features")
STAGES = {
    "suite": Stage("benchmarks.explaining.suite", (), (
        "model", "hookpoints", "ks", "d_sae", "positions", "plain_texts", "held_out", "lr", "batch", "max_length",
    ), (DOMAIN, PLAIN)),
    "concepts": Stage("benchmarks.explaining.concepts", ("suite",), ("draws",), (CONTRAST,)),
    "scan": Stage("benchmarks.explaining.scanning", ("suite",), ("scan_texts", "scan_bytes"), (DOMAIN, PLAIN)),
    "yield": Stage("benchmarks.explaining.yields", ("scan",), ("features", "score")),
    "compare": Stage("benchmarks.explaining.comparing", ("scan",), (*_COMPARED, "score")),
    "time": Stage("benchmarks.explaining.comparing", ("scan",), _COMPARED, repeated=True),
    "server": Stage("benchmarks.llm_throughput", repeated=True),
}  # fmt: skip


@dataclass
class Bench:
    """Runs stages, or reads what they left; a stage that fails leaves a reason, and so do those that need it."""

    folder: Path
    settings: Settings
    data: str | None
    say: Callable[[str], None]
    runs: int
    rows: dict[str, list[Row]] = field(default_factory=dict)
    """{stage: its row, or one a round}, of those that are there."""
    why: dict[str, str] = field(default_factory=dict)
    """{stage: why it is not there}."""

    def run(self, stages: Sequence[str]) -> None:
        """Run these and what they need, where that is not done; of others take what is done."""
        for name in STAGES:
            if name in stages:
                self._get(name)
        for name in STAGES:
            if name not in self.rows and name not in self.why:
                done = self._done(name, self.key(name))
                if done and len(done) >= self._wanted(name):
                    self.rows[name] = done
                else:
                    self.why[name] = "not run"

    def key(self, name: str) -> str:
        """Digest of all that decides a stage's result."""
        stage = STAGES[name]
        about: Row = {
            "code": code_of(stage.module), "versions": versions(),
            "settings": {k: getattr(self.settings, k) for k in stage.settings},
            "texts": [file_digest(p) for p in real(self.data, *stage.texts)],
            "needs": [self.key(need) for need in stage.needs],
        }  # fmt: skip
        if stage.repeated:
            about["machine"] = [harness.machine()["cpu"], harness.threads()]
        if name == "server":
            about["server"] = file_digest(harness.ROOT / SERVER)
        return digest(about)

    def _get(self, name: str) -> bool:
        """Whether the stage is there, after it was run if it was not."""
        if name in self.rows or name in self.why:
            return name in self.rows
        for need in STAGES[name].needs:
            if not self._get(need):
                self.why[name] = f"{need}: {self.why[need]}"
                return False
        key = self.key(name)
        rows = self._done(name, key)
        try:
            if len(rows) < self._wanted(name):
                self._begin(name, key)
            while len(rows) < self._wanted(name):
                rows.append(self._measured(name))
                write_json(self.folder / name / DONE, {"key": key, "rows": rows})
        except BenchmarkError as e:
            self.why[name] = str(e)
            self.say(f"{name}: {e}")
            return False
        self.rows[name] = rows[: self._wanted(name)]
        return True

    def _wanted(self, name: str) -> int:
        return self.runs if STAGES[name].repeated else 1

    def _done(self, name: str, key: str) -> list[Row]:
        """Rows of a former run under the same key."""
        path = self.folder / name / DONE
        found = read_json(path) if path.exists() else {}
        return list(found["rows"]) if found.get("key") == key else []

    def _begin(self, name: str, key: str) -> None:
        """An empty place, or that of a stage with the same key, which then goes on."""
        place = self.folder / name
        if not (place / KEY).exists() or read_json(place / KEY) != key:
            shutil.rmtree(place, ignore_errors=True)
            write_json(place / KEY, key)
        else:
            self.say(f"{name}: goes on from an earlier run")

    def _measured(self, name: str) -> Row:
        """One run of a stage; of a timed one again where the machine was disturbed."""
        arguments = ["-m", "benchmarks.llm_throughput"]
        if name != "server":
            job = Job(name, str(self.folder), self.settings, self.data)
            arguments = ["-m", "benchmarks.explaining", str(job.write())]
        if not STAGES[name].repeated:
            self.say(f"{name} …")
            row = harness.run_python(arguments, TIMEOUT_S)
            self.say(f"{name}: {row['stage_s']:,.0f} s, {row['peak_rss_mb']:,.0f} MB")
            return row
        rows, failed = harness.interleave({name: lambda: harness.run_python(arguments, TIMEOUT_S)}, 1, self.say)
        if failed:
            raise BenchmarkError(failed[name])
        return rows[name][0]
