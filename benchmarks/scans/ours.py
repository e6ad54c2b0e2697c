"""The job by Seamark: a scan with the paper's positions, and everything read from its folder."""

from __future__ import annotations

import shutil
import time

from benchmarks.scans.job import EXPLAINED, GROUP, SCORED, SHOWN, Answer, Job, Loaded
from seamark.features import Context, ScanConfig, contrast, scan, text_scores

SAE_ID = "sae"


def run(loaded: Loaded, job: Job) -> tuple[Answer, dict[str, float]]:
    """The answer; and seconds of the scan and of what was read from it."""
    out = job.place / "scan"
    shutil.rmtree(out, ignore_errors=True)
    start = time.perf_counter()
    found = scan(loaded.model, {SAE_ID: loaded.sae}, loaded.pairs, out, config=config(job))
    scanned = time.perf_counter()
    contrasted = contrast(found, GROUP, normalization="paper")
    explained = [f.latent for f in contrasted.top(EXPLAINED).features]
    contexts = {i: [(strongest(c), c) for c in found.contexts(SAE_ID, i, SHOWN)] for i in explained}
    g = text_scores(found, contrasted.top(SCORED))
    pair_scores = [g[f"{pair.id}:chosen"] - g[f"{pair.id}:rejected"] for pair in loaded.pairs]
    answer = Answer.of(contrasted.scores, explained, contexts, pair_scores)
    return answer, {"scan_s": scanned - start, "reading_s": time.perf_counter() - scanned}


def config(job: Job) -> ScanConfig:
    """The paper's positions; no rewards, which the job does not ask for."""
    return ScanConfig.paper(max_length=job.setup.max_length, rewards=False)


def strongest(context: Context) -> float:
    """At a scoring position, as the other ways rank contexts."""
    return max(a for a, scored in zip(context.activations, context.scoring, strict=True) if scored)
