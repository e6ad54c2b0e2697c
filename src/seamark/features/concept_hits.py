"""Which latents fire on one side of a contrast pair and not on the other: what all concept metrics are made of.

a_f(q) is the largest activation of latent f over the content tokens of query q (special and template tokens are none),
in units of Q_f where that matters. A latent *hits* a pair if a(with) > 0 and a(without) = 0 or, given a margin, if
a(with) − a(without) > margin by more than rounding (Safe-SAIL, arXiv 2509.18127, METHODS §2.2). Everything stays
sparse.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix, diags, vstack

from seamark.errors import ConfigError, DataError
from seamark.features.arrays import read_table
from seamark.features.config import ScanConfig
from seamark.features.reading import Scan
from seamark.text.contrast import ContrastPair, contrast_corpus

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

CONTRAST_SCAN = ScanConfig(positions="tokens", rewards=False)
"""How a scan of contrast pairs reads them: at every content token."""
ROUNDING = 1e-9
"""Of a count: t · n comes out of floats, and p = 7/20 shall count as reaching t = 0.35."""
NO_DIFFERENCE = 1e-4
"""In units of Q_f: two texts that share a prefix give the same activation up to float32 rounding, which depends on what
else was in the batch. A difference within this of the margin does not exceed it, so that the metric does not count
rounding."""


@dataclass(frozen=True)
class PairRows:
    """Where the usable pairs lie in a scan."""

    pairs: tuple[ContrastPair, ...]
    """Pairs with at least one content token on both sides, in their order."""
    rows: Integers
    """[pairs, 2]: rows of with and without."""
    left_out: Mapping[str, str]
    """{pair id: why it does not count}."""
    truncated: tuple[str, ...]
    """Ids of usable pairs of which a text was cut at the left to fit the model; what was cut off is not counted."""

    @property
    def concepts(self) -> list[tuple[str, str]]:
        """(domain, concept) of the usable pairs, by first appearance."""
        return list(dict.fromkeys((p.domain, p.concept) for p in self.pairs))


def find_pairs(scan: Scan, pairs: Sequence[ContrastPair]) -> PairRows:
    """Find the texts of `contrast_corpus(pairs)` in a scan, which may hold more.

    Raises:
        ConfigError: the scan did not score every token.
        DataError: no pair, ids that are not unique, texts that are missing or have changed since, no usable pair.
    """
    if scan.config["positions"] != "tokens":
        raise ConfigError(f"the scan scores {scan.config['positions']}, not all tokens", where=str(scan.path),
                          fix="Scan the pairs with ScanConfig(positions='tokens', rewards=False)")  # fmt: skip
    wanted = dict(contrast_corpus(pairs).items)
    found = _rows(scan, wanted)
    rows = np.asarray([found[i] for i in wanted], np.int64).reshape(-1, 2)
    silent = (scan.n_positions[rows] == 0).any(1)
    if silent.all():
        raise DataError("no contrast pair has content tokens on both sides", where=str(scan.path))
    cut = (scan.texts["truncated"].to_numpy()[rows] > 0).any(1) & ~silent
    return PairRows(
        tuple(p for p, bad in zip(pairs, silent, strict=True) if not bad), rows[~silent],
        {p.id: "a side has no content token" for p, bad in zip(pairs, silent, strict=True) if bad},
        tuple(p.id for p, lost in zip(pairs, cut, strict=True) if lost),
    )  # fmt: skip


def _rows(scan: Scan, wanted: Mapping[str, str]) -> dict[str, int]:
    """{text id: row} of {text id: text}."""
    rows = {text_id: row for row, text_id in enumerate(scan.texts["text_id"].to_pylist()) if text_id in wanted}
    missing = [text_id for text_id in wanted if text_id not in rows]
    if missing:
        raise DataError(
            f"the scan lacks {len(missing)} of {len(wanted)} texts of the contrast pairs ({_some(missing)})",
            where=str(scan.path), fix="Scan contrast_corpus(pairs), or give the pairs that were scanned",
        )  # fmt: skip
    changed = []
    for part, start in zip(scan.parts, scan.starts, strict=False):
        held = read_table(part / "rendered.parquet", ["text_id", "text"])
        for i, text_id in enumerate(held["text_id"].to_pylist()):
            if rows.get(text_id) == start + i and held["text"][i].as_py() != wanted[text_id]:
                changed.append(text_id)
    if changed:
        raise DataError(f"{len(changed)} texts of the contrast pairs are others than those scanned ({_some(changed)})",
                        where=str(scan.path), fix="Scan the pairs as they are now")  # fmt: skip
    return rows


def _some(ids: Sequence[str]) -> str:
    shown = ", ".join(repr(i[:60]) for i in ids[:3])
    return shown + (", …" if len(ids) > 3 else "")


@dataclass(frozen=True)
class ConceptHits:
    """Hits of one autoencoder's latents on contrast pairs."""

    sae_id: str
    d_sae: int
    by_pair: Integers
    """[pairs, 2]: latents that hit each pair, and the same with the sides swapped."""
    hits: csr_matrix
    """[concepts × d_sae]: pairs of the concept that a latent hits, in the order of `PairRows.concepts`."""
    swapped: csr_matrix
    """The same with the sides of every pair swapped: the null."""
    n_pairs: Integers
    """[concepts]: pairs of each concept."""
    without_q: int
    """Latents left out because Q_f is not available (only with a margin)."""

    def p(self) -> csr_matrix:
        """p_{f,c} [concepts × d_sae]: the share of a concept's pairs that a latent hits; zeros are not stored."""
        return (diags(1 / self.n_pairs) @ self.hits).tocsr()


def concept_hits(
    scan: Scan, sae_id: str, found: PairRows, *, reference: Scan | None = None, margin: float | None = None
) -> ConceptHits:
    """Count hits, a part of the scan at a time: never more than a part's active latents and [concepts × d_sae] sparse
    counts lie in memory.

    Args:
        found: from `find_pairs`.
        reference: a scan that gives Q_f; used with a margin only.
        margin: by how much a(with) must exceed a(without), in units of Q_f; None: a(without) must be 0. Latents
            without Q_f never hit then.

    Raises:
        ConfigError: no such autoencoder in the scan; a margin that is negative or lacks a reference; a reference
            scanned with another autoencoder of that name.
    """
    sae_id = scan.sae_id(sae_id)
    d_sae = scan.d_sae(sae_id)
    unit, without_q = _unit(scan, sae_id, reference, margin)
    concepts = {key: i for i, key in enumerate(found.concepts)}
    of_pair = np.asarray([concepts[p.domain, p.concept] for p in found.pairs], np.int64)
    by_pair = np.zeros((len(found.pairs), 2), np.int64)
    totals = [csr_matrix((len(concepts), d_sae), dtype=np.int32) for _ in range(2)]
    for pairs, with_, without in _sides(scan, sae_id, found.rows):
        sums = csr_matrix((np.ones(len(pairs), np.int32), (of_pair[pairs], np.arange(len(pairs)))),
                          shape=(len(concepts), len(pairs)))  # fmt: skip
        for side, (a, b) in enumerate(((with_, without), (without, with_))):
            hit = hits_of(a, b, unit, margin)
            by_pair[pairs, side] = np.diff(hit.indptr)
            totals[side] = (totals[side] + sums @ hit).tocsr()
    n_pairs = np.bincount(of_pair, minlength=len(concepts)).astype(np.int64)
    return ConceptHits(sae_id, d_sae, by_pair, totals[0], totals[1], n_pairs, without_q)


def _unit(scan: Scan, sae_id: str, reference: Scan | None, margin: float | None) -> tuple[Floats | None, int]:
    """1 / Q_f of every latent [d_sae], 0 where it is not available, and how many those are. (None, 0): not needed."""
    if margin is None:
        return None, 0
    if not (np.isfinite(margin) and margin >= 0):
        raise ConfigError(f"a margin of {margin} makes no sense", fix="Give a number from 0, in units of Q_f")
    if reference is None:
        raise ConfigError("a margin needs the scan of a reference corpus, which gives its unit Q_f",
                          fix="Give reference=Scan.open(...), or no margin")  # fmt: skip
    if reference.manifest["saes"].get(sae_id) != scan.manifest["saes"][sae_id]:
        raise ConfigError(f"the reference was not scanned with the same autoencoder {sae_id!r}",
                          where=str(reference.path), fix="Scan the reference corpus with the same suite")  # fmt: skip
    if reference.manifest["model"] != scan.manifest["model"]:
        raise ConfigError("the reference was scanned with another model", where=str(reference.path),
                          fix="Scan the reference corpus with the model of the pairs")  # fmt: skip
    q = reference.q(sae_id)
    known = ~np.isnan(q)
    return np.where(known, 1 / np.where(known, q, 1.0), 0.0), int((~known).sum())


def _sides(scan: Scan, sae_id: str, rows: Integers) -> Iterator[tuple[Integers, csr_matrix, csr_matrix]]:
    """(pairs [n], maxima of with [n × d_sae], of without) for the pairs completed by each part of the scan."""
    held: dict[int, csr_matrix] = {}
    """Rows whose other side lies in a later part."""
    waiting = np.ones(len(rows), np.bool_)
    for start, part in scan.pooled_parts(sae_id, "max"):
        end = start + part.shape[0]
        inside = (rows >= start) & (rows < end)
        ready = np.flatnonzero(waiting & (rows < end).all(1))
        for row in rows[inside & (rows >= end).any(1)[:, None]].tolist():
            held[row] = part[row - start]
        if not len(ready):
            continue
        waiting[ready] = False
        whole = ready[inside[ready].all(1)]
        if len(whole):
            yield whole, part[rows[whole, 0] - start], part[rows[whole, 1] - start]
        split = ready[~inside[ready].all(1)]
        if len(split):
            sides = [vstack([held[r] if r < start else part[r - start] for r in rows[split, side].tolist()],
                            format="csr") for side in (0, 1)]  # fmt: skip
            for row in rows[split].ravel().tolist():
                held.pop(row, None)
            yield split, sides[0], sides[1]


def hits_of(a: csr_matrix, b: csr_matrix, unit: Floats | None, margin: float | None) -> csr_matrix:
    """1 where a latent fires in `a` and not in `b`, or exceeds `b` by more than the margin: [pairs × d_sae] sparse."""
    if unit is None or margin is None:
        fires = (a > 0).astype(np.int32)
        hit = fires - fires.multiply((b > 0).astype(np.int32))
    else:
        hit = (((a - b) @ diags(unit)).tocsr() > margin + NO_DIFFERENCE).astype(np.int32)
    hit = csr_matrix(hit)
    hit.eliminate_zeros()
    return hit


def curve(hits: csr_matrix, n_pairs: Integers, thresholds: Sequence[float]) -> Floats:
    """L0,t(c) = #{f: p_{f,c} ≥ t} for every concept and threshold, [concepts, thresholds].

    Args:
        hits: [concepts × d_sae] counts of pairs, as in `ConceptHits`.
        n_pairs: [concepts].
        thresholds: t in (0, 1]; at t = 0 every latent would count.
    """
    out = np.zeros((hits.shape[0], len(thresholds)))
    for c, n in enumerate(n_pairs.tolist()):
        counts = hits.data[hits.indptr[c] : hits.indptr[c + 1]]
        at_least = np.bincount(counts, minlength=n + 1)[::-1].cumsum()[::-1]  # [k]: latents with k hits or more
        for i, t in enumerate(thresholds):
            out[c, i] = at_least[max(1, int(np.ceil(t * n - ROUNDING)))]
    return out


def exact_curve(hits: csr_matrix, n_pairs: Integers, concept: int) -> tuple[Floats, Floats]:
    """The steps of L0,t of one concept: (t = 1/n, 2/n, … 1, L0,t there); L0,t is constant in between, (t − 1/n, t]."""
    n = int(n_pairs[concept])
    thresholds = np.arange(1, n + 1) / n
    return thresholds, curve(hits[[concept]], n_pairs[[concept]], thresholds.tolist())[0]


def integral_of_curve(thresholds: Sequence[float] | Floats, counts: Sequence[float] | Floats) -> float:
    """∫₀¹ L0,t dt of a step function given at its steps: counts[i] holds in (thresholds[i − 1], thresholds[i]], from 0.

    Exact where the thresholds, ascending, hold every value at which L0,t falls (those of `exact_curve` do); on
    another grid it is a sum from below.

    Raises:
        ValueError: thresholds that do not ascend within (0, 1], or another number of counts.
    """
    t, n = np.asarray(thresholds, np.float64), np.asarray(counts, np.float64)
    widths = np.diff(t, prepend=0.0)
    if t.shape != n.shape or t.ndim != 1 or (widths <= 0).any() or (t > 1).any():
        raise ValueError("thresholds must ascend within (0, 1], with a count each")
    return float(widths @ n)
