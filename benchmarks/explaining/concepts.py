"""Concept metrics of the suite, before anything is explained: on the demo's contrast pairs, and on real ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.explaining import suite
from benchmarks.explaining.job import Job, Row
from benchmarks.explaining.texts import CONTRAST, real
from seamark.features.concept_hits import CONTRAST_SCAN
from seamark.features.concepts import ConceptMetrics, SAEConcepts, concept_metrics
from seamark.features.evaluation import SAEEvaluation
from seamark.features.scan import scan
from seamark.features.suite_ranking import RankedSAE, SuiteRanking, rank_suite
from seamark.run import read_json, write_atomic, write_json
from seamark.show.suite_figures import suite_figure
from seamark.text.contrast import ContrastPairs, contrast_corpus, read_contrast_pairs
from seamark.text.demo import demo_contrast_pairs

SHOWN_T = (0.25, 0.5, 0.75)
"""Where L0,t is told."""


def run(job: Job) -> Row:
    """{pairs: {pairs, concepts, left_out, saes, tau, top_stays}}; metrics, ranking and figure are left as files."""
    model, saes = suite.load(job)
    s = job.settings
    evaluated = SAEEvaluation.model_validate(read_json(job.of("suite") / "evaluation.json"))
    quality = {one.name: one.quality for one in evaluated.saes}
    config = CONTRAST_SCAN.model_copy(update={"max_length": s.max_length, "keep_tokens": "never"})
    found: dict[str, Any] = {}
    for name, pairs in sets(job).items():
        place = job.place / name
        scanned = scan(model, saes, contrast_corpus(pairs), place / "scan", config=config)
        metrics = concept_metrics(scanned, pairs, draws=s.draws)
        ranking = rank_suite(metrics, quality)
        write_json(place / "metrics.json", metrics)
        write_json(place / "ranking.json", ranking)
        write_atomic(place / "concepts.svg", str(suite_figure(ranking)))
        found[name] = _told(metrics, ranking)
    return {"pairs": found}


def sets(job: Job) -> Mapping[str, ContrastPairs]:
    """{"demo": authored pairs of four domains, "real": those of SEAMARK_DATA where it has some}."""
    paths = real(job.data, CONTRAST)
    return {"demo": demo_contrast_pairs()} | ({"real": read_contrast_pairs(paths)} if paths else {})


def _told(metrics: ConceptMetrics, ranking: SuiteRanking) -> Row:
    overall = metrics.saes[0].overall
    return {
        "pairs": overall.n_pairs, "concepts": overall.n_concepts, "left_out": len(metrics.left_out),
        "tau": ranking.kendall_tau.model_dump(), "top_stays": ranking.top_stays.model_dump(),
        "saes": [_row(r) | {"l0_t": l0_t(metrics.of(r.sae), metrics.thresholds)} for r in ranking.rows],
    }  # fmt: skip


def l0_t(sae: SAEConcepts, thresholds: Sequence[float]) -> dict[str, tuple[float, float]]:
    """{t: latents that tell apart at least a share t of a concept's pairs, mean over concepts; the same swapped}."""
    found = zip(thresholds, sae.overall.l0_t, sae.overall.l0_t_null, strict=True)
    return {f"{t:g}": (n, null) for t, n, null in found if round(t, 9) in SHOWN_T}


def _row(r: RankedSAE) -> Row:
    return {
        "sae": r.sae, "rank": r.rank, "rank_i_cdf": r.rank_i_cdf, "hookpoint": r.hookpoint, "k": r.k, "L0": r.l0,
        "FVU": r.fvu, "i_cdf": r.i_cdf.model_dump(), "null": r.null.model_dump(),
        "difference": r.difference.model_dump(),
    }  # fmt: skip
