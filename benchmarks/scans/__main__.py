"""`python -m benchmarks.scans JOB.json`: one run of one way; prints what was measured as JSON, last."""

from __future__ import annotations

import json
import sys
import time
from typing import Any

from benchmarks.scans import growth, ours, parts, prepare, reference, tidy
from benchmarks.scans.job import Job, load, rendered, warm_up
from benchmarks.scans.memory import Peak

WAYS = {"reference": reference.run, "tidy": tidy.run, "seamark": ours.run}
"""Each does the whole job."""
OTHERS = {"parts": parts.measure, "growth": growth.measure}


def main(path: str) -> dict[str, Any]:
    job = Job.read(path)
    if job.way == "prepare":
        return prepare.measure(job)
    loaded = load(job)
    warm_up(loaded)
    if job.way in OTHERS:
        return OTHERS[job.way](loaded, job)
    peak, start = Peak(), time.perf_counter()
    answer, more = WAYS[job.way](loaded, job)
    seconds, above = time.perf_counter() - start, peak.above_mb()
    answer.save(job.answer)
    tokens = sum(map(len, rendered(loaded, job.setup)[0]))
    return {"seconds": seconds, "tokens_per_s": tokens / seconds, "above_model_mb": above} | more


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1])), flush=True)
