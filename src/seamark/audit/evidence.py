"""What a report shows of a scan: features with their contexts, pair scores by group, the most suspicious pairs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isfinite

import numpy as np
from scipy.sparse import csr_matrix

from seamark.audit.report_data import (
    Against,
    Context,
    FeatureRow,
    FeatureTable,
    GroupHistogram,
    ScoreSummary,
    SuspiciousPair,
    TokenText,
)
from seamark.audit.scores import PairScores
from seamark.features.reading import Scan
from seamark.features.sets import Feature, FeatureSet
from seamark.stats import Estimate
from seamark.text.pairs import Pairs, plain

CONTEXTS, BINS, SUSPICIOUS, AGAINST = 5, 30, 20, 4
NOT_MEASURED = Estimate.not_available("not measured")


def feature_table(
    scan: Scan,
    features: FeatureSet,
    effects: Mapping[tuple[str, int], Estimate] | None = None,
    *,
    selection: str = "",
    rating_method: str = "statistical",
    contexts: int = CONTEXTS,
) -> FeatureTable:
    """The features with score, rating, direct effect by (sae, latent), and the texts they fire in most.

    Contexts stay empty where the scan kept no latents of single tokens.
    """
    n = contexts if scan.manifest["choices"]["keep_tokens"] else 0
    rows = tuple(
        FeatureRow(
            sae=f.sae, latent=f.latent, sign=f.sign, score=f.score or 0.0, rating=f.rating,
            rating_method=rating_method, why=f.why, effect=(effects or {}).get(f.key, NOT_MEASURED),
            contexts=_contexts(scan, f, n) if n else (),
        )
        for f in features.features
    )  # fmt: skip
    return FeatureTable(features=rows, selection=selection)


def _contexts(scan: Scan, feature: Feature, n: int) -> tuple[Context, ...]:
    return tuple(
        Context(
            text=TokenText(tokens=c.tokens, values=tuple(feature.sign * a for a in c.activations), unit=c.q),
            label=f"{c.group}, {c.side}",
        )
        for c in scan.contexts(feature.sae, feature.latent, n)
    )


def score_summary(scores: PairScores, pairs: Pairs, bins: int = BINS) -> ScoreSummary:
    """Scores by group over common bins. The outermost bins also hold the half percent beyond them on either side."""
    known = {p.id: p.group for p in pairs if p.id in scores.values}
    values = np.asarray([scores.values[i] for i in known], dtype=np.float64)
    low, high = np.quantile(values, [0.005, 0.995]) if len(values) else (0.0, 1.0)
    if high <= low:
        low, high = low - 0.5, high + 0.5
    edges = np.linspace(low, high, bins + 1)
    groups = np.asarray(list(known.values()), dtype=object)
    histograms = tuple(
        GroupHistogram(group=g, counts=tuple(np.histogram(np.clip(values[groups == g], low, high), edges)[0].tolist()))
        for g in pairs.groups
    )
    return ScoreSummary(method=scores.method, edges=tuple(edges.tolist()), groups=histograms)


def suspicious_pairs(
    scan: Scan,
    features: FeatureSet,
    scores: PairScores,
    pairs: Pairs,
    n: int = SUSPICIOUS,
    *,
    notes: Mapping[str, str] | None = None,
) -> tuple[SuspiciousPair, ...]:
    """The `n` pairs of `pairs` with the lowest scores, worst first, and what speaks against their labels.

    Args:
        notes: what else is known of a pair, by id (that its label was flipped on purpose, say).
    """
    by_id = {p.id: p for p in pairs}
    margins = scan.margins() if scan.config["rewards"] else {}
    pooled = {sae: scan.pooled(sae, "mean") for sae in dict.fromkeys(f.sae for f in features.features)}
    found = []
    for pair_id in [i for i in scores.lowest(len(scores.values)) if i in by_id][:n]:
        pair, rows = by_id[pair_id], scan.rows_by_pair[pair_id]
        margin = margins.get(pair_id)
        found.append(SuspiciousPair(
            id=pair_id, group=pair.group, category=pair.category, score=scores.values[pair_id],
            margin=margin if margin is not None and isfinite(margin) else None, prompt=plain(pair.prompt),
            chosen=_tokens(scan, rows[0], features, pooled, plain(pair.chosen)),
            rejected=_tokens(scan, rows[1], features, pooled, plain(pair.rejected)),
            against=_against(features, pooled, rows), note=(notes or {}).get(pair_id, ""),
        ))  # fmt: skip
    return tuple(found)


def _against(features: FeatureSet, pooled: Mapping[str, csr_matrix], rows: tuple[int, int]) -> tuple[Against, ...]:
    """The features that take most from g(chosen) - g(rejected), strongest first."""
    shares = [(f.sign * float(pooled[f.sae][rows[0], f.latent] - pooled[f.sae][rows[1], f.latent]), f)
              for f in features.features]  # fmt: skip
    worst = sorted((s for s in shares if s[0] < 0), key=lambda s: s[0])[:AGAINST]
    return tuple(Against(sae=f.sae, latent=f.latent, sign=f.sign, share=share, why=f.why) for share, f in worst)


def _tokens(scan: Scan, row: int, features: FeatureSet, pooled: Mapping[str, csr_matrix], text: str) -> TokenText:
    """A text with the features' activations summed at each token, each in units of its Q_f and with its sign.

    Where the scan kept no latents of single tokens, the text is whole and without shades.
    """
    firing: Sequence[Feature] = [f for f in features.features if pooled[f.sae][row, f.latent] > 0]
    if not scan.manifest["choices"]["keep_tokens"] or not firing:
        return TokenText(tokens=(text,), values=(0.0,))
    total: np.ndarray | None = None
    tokens: tuple[str, ...] = ()
    for f in firing:
        context = scan._context(row, f.sae, f.latent, None)
        q = float(scan.q(f.sae)[f.latent])
        values = np.asarray(context.activations) * (f.sign / q if q > 0 else 0.0)
        total, tokens = values if total is None else total + values, context.tokens
    assert total is not None  # noqa: S101 - `firing` is not empty
    return TokenText(tokens=tokens, values=tuple(total.tolist()))
