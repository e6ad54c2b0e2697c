"""How fast an atlas is written: from memory by the writer, and from files by `build_atlas` as users do it."""

from __future__ import annotations

import contextlib
import gc
import sqlite3
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.atlases.job import Job
from benchmarks.atlases.made import Feature, Made, begin, leave_folder, write
from seamark.atlas.build import build_atlas
from seamark.atlas.landscape import layout_of
from seamark.atlas.writing import AtlasWriter


def files(job: Job) -> dict[str, Any]:
    """The folder to build from."""
    job.files.mkdir(parents=True, exist_ok=True)
    every = [f for some in iter(partial(_made, Made(job.from_files).portions()), []) for f in some]
    leave_folder(every, job.files)
    return {"features": job.from_files, "mb": sum(p.stat().st_size for p in job.files.iterdir()) / 1e6}


def _made(portions: Iterator[list[Feature]]) -> list[Feature]:
    """The next portion; empty after the last. Python's garbage collector, which takes twice as long as the making, is
    off for it, and on while anything is timed."""
    gc.disable()
    try:
        return next(portions, [])
    finally:
        gc.enable()


def memory(job: Job) -> dict[str, Any]:
    """Seconds that the writer took, the making of rows not counted; what it wrote is the atlas of later stages."""
    _remove(job.atlas)
    seconds, made = 0.0, Made(job.features)
    with AtlasWriter.open(job.atlas, create=True) as writer:
        numbers = begin(writer, job.features)
        portions = made.portions()
        while some := _made(portions):
            start = time.perf_counter()
            write(writer, numbers, some)
            seconds += time.perf_counter() - start
    return {"seconds": seconds, "features_per_s": job.features / seconds, "mb": job.atlas.stat().st_size / 1e6}


def build(job: Job) -> dict[str, Any]:
    """Seconds of `build_atlas` from files to a closed atlas."""
    out = Path(job.folder) / "built.db"
    _remove(out)
    with AtlasWriter.open(out, create=True) as writer:
        begin(writer, job.from_files)
    start = time.perf_counter()
    found = build_atlas(out, explained=[job.files], simulated=[job.files], landscape=False)
    seconds = time.perf_counter() - start
    if (found.features, found.contexts) != (job.from_files, job.from_files * 20):
        raise ValueError(f"built {found.features} features with {found.contexts} contexts")
    _remove(out)
    return {"seconds": seconds, "features_per_s": job.from_files / seconds}


FLOOR = """
    CREATE TABLE texts(id INTEGER PRIMARY KEY, name TEXT, tokens TEXT, source TEXT) STRICT;
    CREATE TABLE contexts(feature INTEGER, kind TEXT, level INTEGER, rank INTEGER, half TEXT, text INTEGER, peak REAL,
                          at BLOB, PRIMARY KEY (feature, kind, level, half, rank)) STRICT, WITHOUT ROWID;
"""


def floor(job: Job) -> dict[str, Any]:
    """What SQLite takes for contexts alone: the finished bytes of those that `memory` wrote, of as many features as
    `build` builds, by one bare statement a table, with nothing packed, known, checked, indexed or derived."""
    out = Path(job.folder) / "floor.db"
    _remove(out)
    with contextlib.closing(sqlite3.connect(job.atlas)) as db:
        columns = "feature, kind, level, rank, half, text, peak, at"
        contexts = db.execute(f"SELECT {columns} FROM contexts WHERE feature <= ?", (job.from_files,)).fetchall()
        last = max(row[5] for row in contexts)
        texts = db.execute("SELECT id, name, tokens, source FROM texts WHERE id <= ?", (last,)).fetchall()
    with contextlib.closing(sqlite3.connect(out, isolation_level=None)) as db:
        db.executescript("PRAGMA journal_mode = WAL; PRAGMA synchronous = NORMAL;" + FLOOR)
        start = time.perf_counter()
        db.execute("BEGIN")
        db.executemany("INSERT INTO texts VALUES (?, ?, ?, ?)", texts)
        db.executemany("INSERT INTO contexts VALUES (?, ?, ?, ?, ?, ?, ?, ?)", contexts)
        db.execute("COMMIT")
        seconds = time.perf_counter() - start
    _remove(out)
    features = len({row[0] for row in contexts})
    return {"seconds": seconds, "features_per_s": features / seconds}


def layout(job: Job) -> dict[str, Any]:
    """A landscape of made directions: 30 clusters in 64 dimensions; put into the atlas that is browsed."""
    import numpy as np

    rng = np.random.default_rng(0)
    centres = rng.normal(size=(30, 64)) * 2
    vectors_ND = (centres[rng.integers(0, 30, job.features)] + rng.normal(size=(job.features, 64))).astype(np.float32)
    start = time.perf_counter()
    xy_N2 = layout_of(vectors_ND, seed=0)
    seconds = time.perf_counter() - start
    with AtlasWriter.open(job.atlas) as writer:
        ids = sorted(i for sae in writer.saes() for i in writer.feature_ids(sae.number).values())
        writer.set_layout("decoder", {"method": "made"}, ids, xy_N2[:, 0], xy_N2[:, 1], None)
    return {"seconds": seconds, "points": job.features}


def _remove(path: Path) -> None:
    for name in (path, *(path.with_name(path.name + end) for end in ("-wal", "-shm"))):
        name.unlink(missing_ok=True)
