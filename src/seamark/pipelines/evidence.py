"""Evidence about pairs and features: texts token by token, from what a scan kept or from reading those few again.

Only the columns of the features at hand are read, a part of the scan at a time.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from seamark.audit import report_data as rd
from seamark.audit.faults import normal
from seamark.audit.review import Review, ReviewedPair, ReviewedSide
from seamark.audit.scores import PairScores
from seamark.features import FeatureSet, Scan
from seamark.features.contexts import TextsReadAgain
from seamark.pipelines import stages
from seamark.pipelines.safer import Done
from seamark.text.pairs import Pairs, PreferencePair, Text, plain

COUNT = 12
AGAINST = 3
CONTEXTS = 5


def suspicious_pairs(done: Done, count: int = COUNT) -> tuple[rd.SuspiciousPair, ...]:
    """Training pairs of the target group with the lowest SAFER score, worst first."""
    scan = Scan.open(done.clean.scan / stages.SCAN)
    review = Review(scan, FeatureSet.load(done.clean.features / stages.FEATURES))
    scores = PairScores.load(done.clean.features / stages.SCORES)
    pairs = {p.id: p for p in Pairs.from_jsonl(done.data / stages.TRAIN).group(done.recipe.target)}
    picked = [i for i in scores.lowest(len(scores.values)) if i in pairs][:count]
    return tuple(pair_evidence(pairs[i], review, scores.values[i]) for i in picked)


def pair_evidence(
    pair: PreferencePair, review: Review, score: float, facts: Sequence[rd.Fact] = (), note: str = ""
) -> rd.SuspiciousPair:
    """A pair with both answers token by token and the features that speak against its label.

    Args:
        review: of the scan that holds the pair.
        score: what it is ranked by, the lower the more suspicious.
        facts: what methods say of it.
        note: anything else.
    """
    seen = review.pair(pair.id)
    lost = review.scan.texts["truncated"].take(review.scan.rows_by_pair[pair.id]).to_pylist()
    unit = max((abs(v) for side in (seen.chosen, seen.rejected) for v in side.values), default=0.0)
    return rd.SuspiciousPair(
        id=pair.id, group=pair.group, category=pair.category, source=pair.source, score=score, margin=seen.margin,
        prompt=plain(pair.prompt), chosen=_text(seen.chosen, unit, pair.chosen, lost[0]),
        rejected=_text(seen.rejected, unit, pair.rejected, lost[1]),
        against=_against(seen), facts=tuple(facts), note=note or seen.reason,
    )  # fmt: skip


def _text(side: ReviewedSide, unit: float, answer: Text, lost: int | None) -> rd.TokenText:
    """One answer as the model read it; `lost` tokens of the conversation were cut at its beginning."""
    return rd.TokenText(tokens=side.tokens, values=side.values, unit=unit or None, unit_name="the pair's largest",
                        note=_not_read(side, answer, lost or 0))  # fmt: skip


def _not_read(side: ReviewedSide, answer: Text, lost: int) -> str:
    """Which part of prompt and answer the model did not read, for people; empty where it read all."""
    if not lost:
        return ""
    count = f"{lost:,} token{'' if lost == 1 else 's'}"
    begins = answer if isinstance(answer, str) else answer[0].content
    if normal(begins) in normal("".join(side.tokens)):
        return f"The model read all of this answer, but not the first {count} of the conversation before it."
    return (f"The model read only the last part of this answer; {count} before it, those of the prompt among them, "
            "were not read. What the answer lost is not shown.")  # fmt: skip


def _against(seen: ReviewedPair) -> tuple[rd.Against, ...]:
    """The features with the most negative part of g(chosen) − g(rejected)."""
    found = []
    for part in seen.parts[:AGAINST]:
        f = seen.features[part.feature]
        if part.value < 0:
            sign = 1 if f.sign > 0 else -1
            found.append(rd.Against(sae=f.sae, latent=f.latent, sign=sign, share=part.value, why=f.why))
    return tuple(found)


def feature_contexts(
    scan: Scan, features: FeatureSet, again: TextsReadAgain | None = None, count: int = CONTEXTS
) -> dict[tuple[str, int], tuple[rd.Context, ...]]:
    """The texts in which each feature fires most at a scoring position; empty where tokens can be had from nowhere."""
    source = again if again is not None else scan.token_texts if scan.manifest["choices"]["keep_tokens"] else None
    if source is None or not len(features):
        return {f.key: () for f in features.features}
    picked: dict[tuple[str, int], list[int]] = {}
    for sae in dict.fromkeys(f.sae for f in features.features):
        latents = features.latents(sae)
        strength = scan.columns(sae, latents, "max")
        for column, latent in enumerate(latents):
            rows, values = strength[:, [column]].tocoo().row, strength[:, [column]].tocoo().data
            picked[sae, latent] = rows[np.lexsort((rows, -values))[:count]].tolist()
    wanted: dict[int, dict[str, list[int]]] = {}
    for (sae, latent), rows in picked.items():
        for row in rows:
            wanted.setdefault(row, {}).setdefault(sae, []).append(latent)
    seen = {text.row: (text, truth) for text, truth in source.truth(wanted)}
    about = {row: scan.texts.slice(row, 1).to_pylist()[0] for row in wanted}
    return {
        f.key: tuple(
            rd.Context(
                text=rd.TokenText(tokens=seen[row][0].tokens, values=tuple(f.sign * v for v in seen[row][1][f.key]),
                                  unit=_finite(float(scan.q(f.sae)[f.latent]))),
                label=f"{about[row]['group']}, {about[row]['side']}",
            )
            for row in picked[f.key]
        )
        for f in features.features
    }  # fmt: skip


def _finite(q: float) -> float | None:
    return q if np.isfinite(q) and q > 0 else None
