"""The most suspicious pairs of a run, with the features that speak against their label."""

from __future__ import annotations

import numpy as np

from seamark.audit import report_data as rd
from seamark.audit.scores import PairScores
from seamark.features import FeatureSet, Scan
from seamark.pipelines import stages
from seamark.pipelines.safer import Done
from seamark.text.pairs import Pairs, PreferencePair, plain

COUNT = 12
AGAINST = 3


def suspicious_pairs(done: Done, count: int = COUNT) -> tuple[rd.SuspiciousPair, ...]:
    """Training pairs of the target group with the lowest SAFER score, worst first."""
    scan = Scan.open(done.clean.scan / stages.SCAN)
    features = FeatureSet.load(done.clean.features / stages.FEATURES)
    scores = PairScores.load(done.clean.features / stages.SCORES)
    margins = scan.margins()
    pairs = {p.id: p for p in Pairs.from_jsonl(done.data / stages.TRAIN).group(done.recipe.target)}
    picked = [i for i in scores.lowest(len(scores.values)) if i in pairs][:count]
    return tuple(_pair(pairs[i], scan, features, scores.values[i], margins.get(i)) for i in picked)


def _pair(
    pair: PreferencePair, scan: Scan, features: FeatureSet, score: float, margin: float | None
) -> rd.SuspiciousPair:
    sides = [scan.token_scores(f"{pair.id}:{side}", features) for side in ("chosen", "rejected")]
    unit = max((abs(v) for side in sides for v in side.values), default=0.0)
    texts = [rd.TokenText(tokens=s.tokens, values=s.values, unit=unit or None) for s in sides]
    return rd.SuspiciousPair(
        id=pair.id, group=pair.group, category=pair.category, score=score, margin=margin, prompt=plain(pair.prompt),
        chosen=texts[0], rejected=texts[1], against=_against(pair.id, scan, features),
    )  # fmt: skip


def _against(pair_id: str, scan: Scan, features: FeatureSet) -> tuple[rd.Against, ...]:
    """The features with the most negative part of g(chosen) − g(rejected)."""
    chosen, rejected = scan.rows_by_pair[pair_id]
    parts = []
    for f in features.features:
        pooled = scan.pooled(f.sae, "mean")
        parts.append((f, f.sign * float(pooled[chosen, f.latent] - pooled[rejected, f.latent])))
    order = np.argsort([p for _, p in parts], kind="stable")[:AGAINST]
    return tuple(
        rd.Against(
            sae=parts[i][0].sae,
            latent=parts[i][0].latent,
            sign=parts[i][0].sign,
            share=parts[i][1],
            why=parts[i][0].why,
        )
        for i in order
        if parts[i][1] < 0
    )
