"""The atlas at 100,000 features with 20 contexts each: how fast it is written, searched and shown."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from benchmarks import harness
from benchmarks.atlases.job import FEATURES, FROM_FILES, Job
from benchmarks.harness import BenchmarkError, Claim, Result, Row

FOLDER = harness.SCRATCH / "atlas"
RUNS = 5
TIMEOUT_S = 1800.0
CLAIMS = {
    "search_p95_ms": ("search", "p95_ms", "ms", "<= 50"),
    "first_page_ms": ("pages", "features_ms", "ms", "<= 1000"),
    "landscape_ready_ms": ("pages", "landscape_ready_ms", "ms", "<= 2000"),
    "build_features_per_s": ("build", "features_per_s", "features/s", ">= 5000"),
    "write_features_per_s": ("memory", "features_per_s", "features/s", ">= 5000"),
}
"""{claim: (stage, column, unit, target)}"""
ABOUT = (
    "{features:,} made features of 5 autoencoders, each with explanations in English and Chinese (words by a Zipf law "
    "over 20,000), tags for 40 %, a simulation score, a histogram and 20 contexts of 40 tokens. Write: from rows in "
    "memory through AtlasWriter, search index included, the making of rows not counted. Build: `build_atlas` from the "
    "files that `explain` and `simulate` leave, {from_files:,} features, to a closed file. Floor: SQLite alone, the "
    "finished rows of contexts by two bare statements. Search: 300 different queries a round, by one client, at the "
    "API of `seamark serve`, started anew each round: words common and rare, beginnings of words, pairs of words, "
    "phrases, Chinese words, filters, sorting, further pages; milliseconds to the whole answer. Pages: from opening "
    "until loaded, the landscape until it is drawn and can be used, in headless Chromium (software rendering), "
    "started anew for each page"
)


def run(
    runs: int | None = None, say: Callable[[str], None] = lambda _: None, *, features: int | None = None,
    folder: Path = FOLDER,
) -> Result:  # fmt: skip
    """All stages: writing and building `runs` times (5), then searching and browsing `runs` times.

    Args:
        features: so many features instead of 100,000 (and as many to build from, at most 20,000).
        folder: where the atlas is made.
    """
    n = features or FEATURES
    job = Job("", str(folder), n, min(n, FROM_FILES))
    shutil.rmtree(folder, ignore_errors=True)
    rows: dict[str, list[Row]] = {}
    failed: dict[str, str] = {}
    try:
        say(f"files: {_stage(job, 'files')['mb']:,.0f} MB")
    except BenchmarkError as e:
        failed["build"] = str(e)
    writing = {name: _each(job, name) for name in ("memory", "build", "floor") if name not in failed}
    for variants in (
        writing,
        {"layout": _each(job, "layout")},
        {name: _each(job, name) for name in ("search", "pages")},
    ):
        once = 1 if "layout" in variants else runs or RUNS
        measured, why = harness.interleave(variants, once, say)
        rows, failed = rows | measured, failed | why
    about = ABOUT.format(features=n, from_files=job.from_files)
    return Result("atlas", about + harness.disturbed(rows), claims(rows, failed), table(rows),
                  {"runs": runs or RUNS, "features": n, "failed": failed})  # fmt: skip


def _stage(job: Job, stage: str, round_: int = 0) -> Row:
    path = replace(job, stage=stage, round=round_).write()
    return harness.run_python(["-m", "benchmarks.atlases", str(path)], TIMEOUT_S)


def _each(job: Job, stage: str) -> Callable[[], Row]:
    """Every round asks for something else."""
    rounds = iter(range(10**6))
    return lambda: _stage(job, stage, next(rounds))


def claims(rows: Mapping[str, Sequence[Row]], failed: Mapping[str, str]) -> list[Claim]:
    """One for each of `CLAIMS`; nothing where its stage failed."""
    found = []
    for name, (stage, column, unit, target) in CLAIMS.items():
        if stage in failed or not rows.get(stage):
            found.append(harness.missing(name, unit, target, f"{stage}: {failed.get(stage, 'not run')}"))
        else:
            found.append(harness.from_runs(name, [row[column] for row in rows[stage]], unit, target))
    return found


def table(rows: Mapping[str, Sequence[Row]]) -> list[Row]:
    """Medians, a table for each stage."""
    return [{"table": row["variant"]} | row for row in harness.medians(rows)]
