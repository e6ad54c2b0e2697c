"""What each autoencoder yields once its features are explained and simulated: Safe-SAIL's claim is about that."""

from __future__ import annotations

import numpy as np

from benchmarks.explaining.job import Job, Row
from seamark.explain.explaining import draw_features, explain_features
from seamark.explain.records import Explanation
from seamark.explain.simulating import SimulationConfig, simulate
from seamark.features.context_sets import context_sets
from seamark.features.reading import Scan
from seamark.run import read_json, write_json
from seamark.stats import Estimate, bootstrap_by_cluster

COUNTS = ("drawn", "explained", "tagged", "scored", "good", "yield")
BLOCK = 256
"""Features whose texts are in memory together."""
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

    The share is of the features drawn, which all have a Q_f; the count is that share of all features with a Q_f. The
    share's interval resamples features; there is none where all features were drawn.
    """
    config = scan.manifest["sae_configs"][sae_id]
    with_q = int((~np.isnan(scan.q(sae_id))).sum())
    row = {"sae": sae_id, "hookpoint": config["hookpoint"], "k": config["k"], "with_q": with_q}
    if not with_q:
        return row | dict.fromkeys(COUNTS, 0) | {"share": None, "low": None, "high": None, "count": 0.0}
    latents = draw_features(scan, sae_id, n)[sae_id]
    found = [_of_feature(*both, score) for start in range(0, len(latents), BLOCK)
             for both in _explained(scan, sae_id, latents[start : start + BLOCK])]  # fmt: skip
    counts = {name: sum(one[name] for one in found) for name in COUNTS}
    share = bootstrap_by_cluster(np.asarray([one["yield"] for one in found], np.float64), np.arange(len(found)))
    if len(found) == with_q:
        share = Estimate(value=share.value, n=with_q)
    assert share.value is not None
    return row | counts | {"share": share.value, "low": share.low, "high": share.high, "count": with_q * share.value}


def _explained(scan: Scan, sae_id: str, latents: list[int]) -> list[tuple[Explanation, float | None]]:
    """(explanation, score or None) of each."""
    contexts = context_sets(scan, {sae_id: latents})
    explanations = explain_features(contexts)
    simulations = simulate(contexts, explanations, config=SimulationConfig(draws=NO_DRAWS))
    return [(explanations[s.key], s.correlation.value) for s in simulations]


def _of_feature(explanation: Explanation, value: float | None, score: float) -> dict[str, bool]:
    """What is true of a feature: a value for each of `COUNTS`."""
    tagged, good = bool(explanation.tags), value is not None and value >= score
    return {"drawn": True, "explained": explanation.text is not None, "tagged": tagged, "scored": value is not None,
            "good": good, "yield": tagged and good}  # fmt: skip
