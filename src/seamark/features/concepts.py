"""Concept metrics: how many latents of an autoencoder stand for one concept, measured before anything is explained.

Safe-SAIL (arXiv 2509.18127, METHODS §2.2) scans pairs of queries of which one holds a concept and its twin leaves it
out. p_{f,c} is the share of the concept's pairs that latent f tells apart (`concept_hits`), L0,t(c) = #{f: p_{f,c} ≥ t}
and I_CDF(c) = (1/d_sae) Σ_f p_{f,c} = (1/d_sae) ∫₀¹ L0,t dt. The null is the same with the sides of each pair swapped:
what a concept's absence "lights up" is chance, wording, or whatever replaced it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from seamark.errors import ConfigError
from seamark.features.concept_bootstrap import Key, Mean, resampled
from seamark.features.concept_hits import ConceptHits, PairRows, concept_hits, curve, find_pairs
from seamark.features.reading import Scan
from seamark.run import versions
from seamark.stats import Estimate
from seamark.text.contrast import ContrastPair

Floats = NDArray[np.float64]

THRESHOLDS = tuple(i / 20 for i in range(1, 21))
"""Grid of t for L0,t."""


class PairConcept(BaseModel):
    """A pair that was measured."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str
    domain: str
    concept: str


class ConceptScore(BaseModel):
    """What one concept, the concepts of one domain, or all concepts score.

    I_CDF, null and difference are shares of all latents. Intervals are 95 %, from resampling pairs within concepts:
    they say what other pairs of the same concepts might give, not other concepts.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    domain: str | None
    """None: all domains."""
    concept: str | None
    """None: the mean over concepts, each counting the same whatever its number of pairs."""
    n_pairs: int
    n_concepts: int
    """Concepts with usable pairs."""
    i_cdf: Estimate
    null: Estimate
    """I_CDF with the sides of each pair swapped."""
    difference: Estimate
    """`i_cdf` − `null`, with the interval of the difference."""
    l0_t: tuple[float, ...]
    """L0,t at each of `ConceptMetrics.thresholds`: latents with p ≥ t. Empty where no pair is usable."""
    l0_t_null: tuple[float, ...]
    """The same with the sides swapped."""


class SAEConcepts(BaseModel):
    """Concept metrics of one autoencoder."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    sae: str
    fingerprint: str
    """SHA-256 of its config and weights."""
    hookpoint: str
    activation: str
    k: int | None
    d_sae: int
    l0: float
    """Mean number of latents that fire at a content token of the scanned queries."""
    without_q: int
    """Latents left out because Q_f is not available; they never hit but count in d_sae. 0 without a margin."""
    overall: ConceptScore
    """The mean over all concepts."""
    domains: tuple[ConceptScore, ...]
    concepts: tuple[ConceptScore, ...]
    hits: tuple[tuple[int, int], ...]
    """For each of `ConceptMetrics.pairs`: latents that hit it, and the same with its sides swapped."""


class ConceptMetrics(BaseModel):
    """Concept metrics of a suite on one set of contrast pairs."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal[1] = 1
    model: str
    scan: str
    """Key of the scan."""
    margin: float | None
    """By how much a(with) exceeds a(without) in a hit, in units of Q_f; None: a(without) is 0."""
    reference: str | None
    """Key of the scan that gave Q_f; None: not needed."""
    thresholds: tuple[float, ...]
    draws: int
    seed: int
    pairs: tuple[PairConcept, ...]
    left_out: dict[str, str]
    """{pair id: why it does not count}."""
    truncated: tuple[str, ...]
    """Ids of pairs of which a text was cut to fit the model: what was cut off is not counted."""
    saes: tuple[SAEConcepts, ...]
    versions: dict[str, str]

    def of(self, sae_id: str) -> SAEConcepts:
        """One autoencoder's. `ConfigError` where there is none of that name."""
        for one in self.saes:
            if one.sae == sae_id:
                return one
        raise ConfigError(f"no concept metrics of {sae_id!r}", fix=f"Choose of: {', '.join(s.sae for s in self.saes)}")


def concept_metrics(
    scan: Scan,
    pairs: Sequence[ContrastPair],
    *,
    reference: Scan | None = None,
    margin: float | None = None,
    thresholds: Sequence[float] = THRESHOLDS,
    draws: int = 1000,
    seed: int = 0,
) -> ConceptMetrics:
    """Measure every autoencoder of a scan of contrast pairs, per concept, per domain and over all concepts.

    Make the scan with `scan(model, suite, contrast_corpus(pairs), out, config=CONTRAST_SCAN)`. Domains and the whole
    are means over concepts. Memory: the active latents of one part of the scan, and sparse counts [concepts × d_sae].

    Args:
        scan: a scan that holds the pairs' texts, and may hold others.
        pairs: as of `read_contrast_pairs` or `demo_contrast_pairs`.
        reference: a scan of a reference corpus with the same suite, from which Q_f comes; used with a margin only.
        margin: count a latent as telling a pair apart if a(with) − a(without) > margin, in units of Q_f, instead of
            a(with) > 0 and a(without) = 0. Latents without Q_f do not count then.
        thresholds: where to give L0,t, ascending in (0, 1].
        draws: bootstrap draws.
        seed: of the bootstrap.

    Raises:
        ConfigError: the scan did not score all tokens; a margin without reference, or a reference of another suite or
            model; thresholds outside (0, 1]; fewer than one draw.
        DataError: no pair, ids that are not unique, texts that the scan lacks or holds otherwise, or no usable pair.
    """
    _check(thresholds, draws, seed)
    found = find_pairs(scan, pairs)
    hits = [concept_hits(scan, i, found, reference=reference, margin=margin) for i in scan.sae_ids]
    names = list(dict.fromkeys((p.domain, p.concept) for p in pairs))
    scores = _estimated(found, hits, draws, seed)
    return ConceptMetrics(
        model=scan.manifest["model_name"], scan=scan.manifest["key"], margin=margin,
        reference=reference.manifest["key"] if reference is not None and margin is not None else None,
        thresholds=tuple(map(float, thresholds)), draws=draws, seed=seed,
        pairs=tuple(PairConcept(id=p.id, domain=p.domain, concept=p.concept) for p in found.pairs),
        left_out=dict(found.left_out), truncated=found.truncated,
        saes=tuple(_sae(scan, h, found, names, score, thresholds) for h, score in zip(hits, scores, strict=True)),
        versions=versions(),
    )  # fmt: skip


def _check(thresholds: Sequence[float], draws: int, seed: int) -> None:
    steps = np.diff(np.asarray(thresholds, np.float64), prepend=0.0)
    if not len(steps) or not (steps > 0).all() or thresholds[-1] > 1:
        raise ConfigError("thresholds do not ascend within (0, 1]", fix="Give some such as 0.25, 0.5, 1")
    if draws < 1 or seed < 0:
        raise ConfigError(f"{draws} draws with seed {seed} make no bootstrap", fix="Give 1 draw or more, seed from 0")


Group = Key | tuple[str] | tuple[()]
"""A concept (domain, concept), a domain (domain,), or all concepts ()."""
Triple = tuple[Estimate, Estimate, Estimate]
"""I_CDF, null, difference."""


def _estimated(found: PairRows, hits: Sequence[ConceptHits], draws: int, seed: int) -> list[dict[Group, Triple]]:
    """For each autoencoder {group: estimates}; the pairs drawn are the same for all."""
    keys = [(p.domain, p.concept) for p in found.pairs]
    shares = np.stack([h.by_pair / h.d_sae for h in hits], axis=1).reshape(len(keys), -1)  # [pairs, SAEs · 2]
    means: dict[Group, Mean] = {(): Mean()}
    for key, value, drawn in resampled(shares, keys, [p.id for p in found.pairs], draws=draws, seed=seed):
        for group in (key, key[:1], ()):
            means.setdefault(group, Mean()).add(key, keys.count(key), value, drawn)
    each = np.asarray([[1.0, 0.0, 1.0], [0.0, 1.0, -1.0]])
    columns: Floats = np.kron(np.eye(len(hits)), each).astype(np.float64)  # [SAEs · 2, SAEs · 3]
    estimates = {group: mean.estimates(columns) for group, mean in means.items()}
    return [{group: (e[3 * i], e[3 * i + 1], e[3 * i + 2]) for group, e in estimates.items()}
            for i in range(len(hits))]  # fmt: skip


def _sae(
    scan: Scan, hits: ConceptHits, found: PairRows, names: Sequence[Key], scores: dict[Group, Triple],
    thresholds: Sequence[float],
) -> SAEConcepts:  # fmt: skip
    config, sizes = scan.manifest["sae_configs"][hits.sae_id], dict(zip(found.concepts, hits.n_pairs, strict=True))
    curves = [dict(zip(found.concepts, curve(h, hits.n_pairs, thresholds), strict=True))
              for h in (hits.hits, hits.swapped)]  # fmt: skip

    def score(domain: str | None, concept: str | None) -> ConceptScore:
        mine = [key for key in found.concepts if domain in (None, key[0]) and concept in (None, key[1])]
        group: Group = () if domain is None else (domain,) if concept is None else (domain, concept)
        none = Estimate.not_available("no usable pair")
        i_cdf, null, difference = scores.get(group, (none, none, none))
        l0_t, l0_t_null = (tuple(np.mean([c[key] for key in mine], axis=0).tolist()) if mine else () for c in curves)
        return ConceptScore(
            domain=domain, concept=concept, n_pairs=int(sum(sizes[key] for key in mine)), n_concepts=len(mine),
            i_cdf=i_cdf, null=null, difference=difference, l0_t=l0_t, l0_t_null=l0_t_null,
        )  # fmt: skip

    n_positions = sum(scan.manifest["positions"].values())
    return SAEConcepts(
        sae=hits.sae_id, fingerprint=scan.manifest["saes"][hits.sae_id], hookpoint=config["hookpoint"],
        activation=config["activation"], k=config["k"], d_sae=hits.d_sae,
        l0=float(scan.feature_stats(hits.sae_id).count.sum()) / n_positions, without_q=hits.without_q,
        overall=score(None, None), domains=tuple(score(d, None) for d in dict.fromkeys(d for d, _ in names)),
        concepts=tuple(score(*name) for name in names), hits=tuple((a, b) for a, b in hits.by_pair.tolist()),
    )  # fmt: skip
