"""What each autoencoder yields once its features are explained and simulated: Safe-SAIL's claim is about that."""

from __future__ import annotations

import numpy as np

from benchmarks.explaining.job import Job, Row
from seamark.explain.explaining import draw_features, explain
from seamark.explain.simulating import SimulationConfig, simulate
from seamark.features.context_sets import context_sets
from seamark.features.reading import Scan
from seamark.run import read_json, write_json
from seamark.stats import bootstrap_by_cluster

NO_DRAWS = 2
"""Scores are used here without their intervals."""


def run(job: Job) -> Row:
    """A row an autoencoder. Each is kept when it is done, so that a broken-off stage goes on with the next."""
    scan = Scan.open(job.of("scan") / "scan")
    rows = []
    for sae_id in scan.sae_ids:
        path = job.place / f"{sae_id}.json"
        if not path.exists():
            write_json(path, of_sae(scan, sae_id, job.settings.features, job.settings.score))
        rows.append(read_json(path))
    return {"saes": rows}


def of_sae(scan: Scan, sae_id: str, n: int, score: float) -> Row:
    """Explain `n` features and score them by segments; the share and number of those with a domain and a good score.

    The share is of the features drawn, which all have a Q_f; the count is that share of all features with a Q_f.
    """
    config = scan.manifest["sae_configs"][sae_id]
    with_q = int((~np.isnan(scan.q(sae_id))).sum())
    row = {"sae": sae_id, "hookpoint": config["hookpoint"], "k": config["k"], "with_q": with_q}
    if not with_q:
        return row | {"drawn": 0, "explained": 0, "tagged": 0, "scored": 0, "good": 0, "yield": 0, "share": None,
                      "low": None, "high": None, "count": 0, "reason": "no feature has a Q_f"}  # fmt: skip
    contexts = context_sets(scan, draw_features(scan, sae_id, n))
    explanations = explain(contexts)
    scores = {s.key: s.correlation.value for s in simulate(contexts, explanations,
                                                            config=SimulationConfig(draws=NO_DRAWS))}  # fmt: skip
    good = {key for key, value in scores.items() if value is not None and value >= score}
    tagged = {key for key, e in explanations.items() if e.tags}
    hits = np.asarray([key in good & tagged for key in contexts], np.float64)
    share = bootstrap_by_cluster(hits, np.arange(len(hits)))
    return row | {
        "drawn": len(contexts), "explained": sum(e.text is not None for e in explanations.values()),
        "tagged": len(tagged), "scored": sum(v is not None for v in scores.values()), "good": len(good),
        "yield": int(hits.sum()), "share": share.value, "low": share.low, "high": share.high,
        "count": with_q * float(hits.mean()), "reason": share.reason,
    }  # fmt: skip
