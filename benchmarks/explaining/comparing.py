"""Features of one autoencoder explained and simulated without a language model, by segments and by tokens."""

from __future__ import annotations

import re
import statistics
import time
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from benchmarks.explaining.job import Job, Row
from seamark.errors import ConfigError
from seamark.explain.comparing import Comparison, Count, compare
from seamark.explain.explaining import draw_features, explain_features
from seamark.explain.records import Explanation, Key, Simulation, write_explanations, write_simulations
from seamark.features.context_sets import FeatureContexts, context_sets
from seamark.features.reading import Scan
from seamark.model.pretrained import load_tokenizer, resolve_name
from seamark.run import write_json


def run(job: Job) -> Row:
    """Scores and tokens: the same every time, so they are made once."""
    s = job.settings
    contexts, explanations, _ = explained(job)
    compared, simulations = compare(contexts, explanations, count=counter(s.model), tokenizer=s.model)
    write_json(job.place / "comparison.json", compared)
    write_explanations(job.place / "explanations.jsonl", explanations.values())
    write_simulations(job.place / "simulations.jsonl", simulations)
    return figures(compared, explanations, simulations, s.score) | {"sae": next(iter(contexts))[0]}


def time_it(job: Job) -> Row:
    """Seconds from the finished scan to scores at both levels; counting tokens is not part of it. Features that end
    without an explanation take time but do not count."""
    contexts, explanations, row = explained(job)
    start = time.perf_counter()
    compare(contexts, explanations)
    row["simulate_s"] = time.perf_counter() - start
    row["seconds"] = row["contexts_s"] + row["explain_s"] + row["simulate_s"]
    n = sum(e.text is not None for e in explanations.values())
    return {"features_per_min": 60 * n / row["seconds"]} | row | {"features": len(contexts), "explained": n}


def explained(job: Job) -> tuple[dict[Key, FeatureContexts], dict[Key, Explanation], Row]:
    """Contexts and explanations of the drawn features, and how long both took."""
    start = time.perf_counter()
    scan = Scan.open(job.of("scan") / "scan")
    contexts = context_sets(scan, draw_features(scan, chosen(scan, job), job.settings.compare_features))
    chosen_at = time.perf_counter()
    explanations = explain_features(contexts)
    done = time.perf_counter()
    return contexts, explanations, {"contexts_s": chosen_at - start, "explain_s": done - chosen_at}


def chosen(scan: Scan, job: Job) -> str:
    """The autoencoder of the settings' hookpoint and k."""
    wanted = (job.settings.compare_hookpoint, job.settings.compare_k)
    for sae_id, config in scan.manifest["sae_configs"].items():
        if (config["hookpoint"], config["k"]) == wanted:
            return str(sae_id)
    raise ConfigError(f"no autoencoder at {wanted[0]} with k {wanted[1]}", where="suite", fix="Train it too")


def counter(model: str) -> Count:
    """Counts tokens as the model's tokenizer does, whatever their number."""
    tokenizer = load_tokenizer(resolve_name(model))
    return lambda text: len(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


def figures(
    compared: Comparison, explanations: Mapping[Key, Explanation], simulations: Sequence[Simulation], score: float
) -> Row:
    """What results hold of a comparison."""
    usage = {name: u.model_dump() for name, u in (("segment", compared.segment), ("token", compared.token)) if u}
    return {
        "features": len(compared.features), "n_both": compared.n_both, "spearman": compared.spearman.model_dump(),
        "token_saving": compared.token_saving.model_dump(), "usage": usage,
        "batching": compared.batching.model_dump() if compared.batching else None,
        "explained": sum(e.text is not None for e in explanations.values()),
        "tagged": sum(bool(e.tags) for e in explanations.values()),
        "scores": [
            distribution(level, [s for s in simulations if s.level == level], score) for level in ("segment", "token")
        ],
        "not_available": [
            {"level": level, "reason": reason, "features": n}
            for level in ("segment", "token")
            for reason, n in why_not([s for s in simulations if s.level == level])
        ],
    }  # fmt: skip


def distribution(level: str, simulations: Sequence[Simulation], score: float) -> Row:
    """Quartiles of the scores there are, and the share of them that is good."""
    scores = [s.correlation.value for s in simulations if s.correlation.value is not None]
    accuracies = [s.accuracy.value for s in simulations if s.accuracy.value is not None]
    marks = np.quantile(scores, [0, 0.25, 0.5, 0.75, 1]).tolist() if scores else [None] * 5
    return {
        "level": level, "features": len(simulations), "scored": len(scores),
        **dict(zip(("least", "quartile 1", "median", "quartile 3", "most"), marks, strict=True)),
        f"share of {score:g} or more": sum(v >= score for v in scores) / len(scores) if scores else None,
        "median accuracy": statistics.median(accuracies) if accuracies else None,
    }  # fmt: skip


def why_not(simulations: Sequence[Simulation]) -> list[tuple[str, int]]:
    """Reasons for there being no score, numbers in them left out, most frequent first."""
    reasons = [re.sub(r"\d+", "…", s.correlation.reason) for s in simulations if s.correlation.value is None]
    return Counter(reasons).most_common()
