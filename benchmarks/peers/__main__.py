"""`python -m benchmarks.peers JOB.json`: one run of one contender; prints what was measured as JSON, last."""

from __future__ import annotations

import importlib
import json
import sys
import time
from collections.abc import Callable
from typing import Any

from benchmarks.peers.feed import EnoughError, Feed, Job, Reconstruct, fvu, load, peak_rss_mb

Train = Callable[[Job, Feed], Reconstruct]


def main(path: str) -> dict[str, Any]:
    job = Job.read(path)
    module = importlib.import_module(f"benchmarks.peers.{job.module}")
    if hasattr(module, "measure"):
        return dict(module.measure(job))
    return whole_training(job, module.train) if job.held_out else speed(job, module.train)


def speed(job: Job, train: Train) -> dict[str, Any]:
    """Warm-up steps, then timed ones."""
    feed = Feed(load(job.data), job, timed=True)
    try:
        train(job, feed)
    except EnoughError:
        pass
    else:
        raise RuntimeError(f"{job.contender} stopped before it was timed")
    return {
        "tokens_per_s": job.batch * feed.steps_per_second, "ms_per_step": 1000 / feed.steps_per_second,
        "steps": len(feed.ticks) - 1 - job.warmup, "peak_rss_mb": peak_rss_mb(), **feed.notes,
    }  # fmt: skip


def whole_training(job: Job, train: Train) -> dict[str, Any]:
    """Train for `steps` and measure on data not seen."""
    feed = Feed(load(job.data), job, timed=False)
    reconstruct = train(job, feed)
    seconds = time.perf_counter() - (feed.started or 0.0)
    return {
        "valid": fvu(reconstruct, load(job.valid)), "held_out": fvu(reconstruct, load(job.held_out)),
        "seconds": seconds, "steps": job.steps, "lr": job.lr, "peak_rss_mb": peak_rss_mb(),
    }  # fmt: skip


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1])), flush=True)
