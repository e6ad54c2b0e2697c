"""`python -m benchmarks.explaining JOB.json`: run one stage; prints what it found as JSON, last."""

from __future__ import annotations

import importlib
import json
import resource
import sys
import time

from benchmarks.explaining.job import Job, Row

MODULES = {
    "suite": ("suite", "run"), "concepts": ("concepts", "run"), "scan": ("scanning", "run"), "yield": ("yields", "run"),
    "compare": ("comparing", "run"), "time": ("comparing", "time_it"),
}  # fmt: skip
"""{stage: (module, function)}; only the stage's own module is imported."""


def main(path: str) -> Row:
    job = Job.read(path)
    module, function = MODULES[job.stage]
    start = time.perf_counter()
    found: Row = getattr(importlib.import_module(f"benchmarks.explaining.{module}"), function)(job)
    return {"stage_s": time.perf_counter() - start, "peak_rss_mb": peak_rss_mb()} | found


def peak_rss_mb() -> float:
    """The largest size of this process."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1]), allow_nan=False), flush=True)
