"""Contrastive scores: which features fire on chosen answers, and which on rejected ones."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from seamark.errors import ConfigError, DataError
from seamark.features.reading import Scan, Stat
from seamark.features.sets import Feature, FeatureSet
from seamark.run import digest

Normalization = Literal["default", "paper"]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Contrast:
    """Scores of every latent of one autoencoder on one group of pairs, all arrays [d_sae]."""

    sae_id: str
    group: str
    normalization: Normalization
    scores: Floats
    """s_i in [−1, 1]: positive ones fire on chosen answers. 0 where a latent never fires."""
    chosen: Floats
    """h⁺: activation on chosen texts."""
    rejected: Floats
    """h⁻: activation on rejected texts."""
    constant: float
    """C, the mean over all latents of h⁺ + h⁻: keeps rare latents from extreme scores."""
    fired_chosen: Floats
    """Share of chosen texts in which the latent fires, 0–1."""
    fired_rejected: Floats
    """Share of rejected texts in which it fires, 0–1."""
    n_pairs: int
    left_out: tuple[str, ...]
    """Ids of pairs that do not count, because a side has no scoring position."""
    provenance: dict[str, Any] = field(default_factory=dict)

    def top(self, n: int, sign: Literal[1, -1] | None = None) -> FeatureSet:
        """The n latents with the largest |score| (of one sign, if given); ties by number, latents of score 0 never."""
        strength = np.abs(self.scores) if sign is None else np.maximum(sign * self.scores, 0.0)
        order = np.lexsort((np.arange(len(strength)), -strength))[:n]
        features = tuple(
            Feature(sae=self.sae_id, latent=int(i), sign=1 if self.scores[i] > 0 else -1, score=float(self.scores[i]))
            for i in order
            if strength[i] > 0
        )
        steps = [{"top": n, "sign": sign, "of": len(self.scores), "kept": len(features)}]
        return FeatureSet(features=features, provenance={**self.provenance, "steps": steps})


def contrast(
    scan: Scan, group: str = "safety", sae_id: str | None = None, normalization: Normalization = "default", *,
    pairs: Collection[str] | None = None,
) -> Contrast:  # fmt: skip
    """Contrastive score of every latent, s = (h⁺ − h⁻) / (h⁺ + h⁻ + C) (SAFER, arXiv 2507.00665).

    Only positive activations count. With `default`, h is the mean over pairs of the mean over a text's scoring
    positions, so the length of an answer moves no sign. With `paper`, h is the plain sum over all scoring positions
    of all texts; make the scan with `ScanConfig.paper()` for the paper's positions (prompt included).

    A score is a correlation with the label, not an effect on the reward: see `direct_effect`.

    Args:
        scan: a finished scan.
        group: pairs of this group.
        sae_id: which autoencoder; None: the only one.
        normalization: `default` or `paper`.
        pairs: only the group's pairs with these ids, such as a fold's or a category's; None: all. Ids of other groups
            do not count.

    Raises:
        DataError: an unknown group or pair id, no pair has positions on both sides, or nothing fires on them.
        ConfigError: an unknown normalisation, or `default` on a scan that scored prompts too: a pair's prompt is on
            both sides, and the longer it is the less its answers would count.
    """
    if normalization not in ("default", "paper"):
        raise ConfigError(f"no normalisation {normalization!r}", fix="Use default or paper")
    if normalization == "default" and scan.config["scope"] == "all":
        what = "the scan scored prompts too, which the default normalisation leaves out"
        raise ConfigError(what, where=str(scan.path), fix="Use the normalisation paper, or scan with scope response")
    sae_id = scan.sae_id(sae_id)
    rows, left_out = pair_rows(scan, group, normalization, pairs)
    stat: Stat = "mean" if normalization == "default" else "sum"
    (h_chosen, h_rejected), fired = _sums(scan, sae_id, stat, rows)
    if normalization == "default":
        h_chosen, h_rejected = h_chosen / len(rows), h_rejected / len(rows)
    constant = float((h_chosen + h_rejected).mean())
    if constant == 0:
        raise DataError(f"no latent fires on any text of group {group!r}", where=sae_id, fix="Train it longer")
    scores = (h_chosen - h_rejected) / (h_chosen + h_rejected + constant)
    provenance = {
        "method": "contrast", "normalization": normalization, "group": group, "n_pairs": len(rows),
        "scan": scan.manifest["key"], "scan_config": scan.config,
    }  # fmt: skip
    if pairs is not None:
        provenance["pairs"] = digest(sorted(set(pairs)))
    return Contrast(
        sae_id, group, normalization, scores, h_chosen, h_rejected, constant, fired[0], fired[1],
        len(rows), left_out, provenance,
    )  # fmt: skip


def _sums(scan: Scan, sae_id: str, stat: Stat, rows: NDArray[np.int64]) -> tuple[list[Floats], list[Floats]]:
    """Of chosen and of rejected texts: (sums [d_sae], shares of texts that fire [d_sae]); a part at a time."""
    sums, fired = ([np.zeros(scan.d_sae(sae_id)) for _ in range(2)] for _ in range(2))
    for start, part in scan.pooled_parts(sae_id, stat):
        for side in (0, 1):
            mine = rows[:, side] - start
            texts = part[mine[(mine >= 0) & (mine < part.shape[0])]]
            sums[side] += np.asarray(texts.sum(axis=0)).ravel()
            fired[side] += texts.getnnz(axis=0) / len(rows)
    return sums, fired


def pair_rows(
    scan: Scan, group: str, normalization: Normalization, pairs: Collection[str] | None = None
) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """Rows [pairs, 2] (chosen, rejected) of a group, and the ids of pairs without positions on a side.

    Sums do not mind a text without positions; means do. With `pairs`, only pairs with these ids.
    """
    member = scan.in_group(group)
    mine = {pair: rows for pair, rows in _chosen_pairs(scan, pairs).items() if member[rows[0]]}
    enough = scan.n_positions > 0
    if normalization == "paper":
        enough = np.ones_like(enough)
    kept = [rows for rows in mine.values() if enough[list(rows)].all()]
    if not kept:
        which = f"no pair of group {group!r}" if pairs is None else f"none of the pairs asked for in group {group!r}"
        raise DataError(f"{which} has positions on both sides", where=str(scan.path))
    return np.asarray(kept), tuple(p for p, rows in mine.items() if not enough[list(rows)].all())


def _chosen_pairs(scan: Scan, pairs: Collection[str] | None) -> dict[str, tuple[int, int]]:
    """{pair id: rows} in the scan's order; `DataError` on an id that it does not know."""
    known = scan.rows_by_pair
    if pairs is None:
        return known
    asked = set(pairs)
    unknown = asked - known.keys()
    if unknown:
        raise DataError(f"no pair {min(unknown)!r} in the scan ({len(unknown)} of {len(asked)} ids are unknown)",
                        where=str(scan.path), fix="Scan the pairs that are asked for")  # fmt: skip
    return {pair: rows for pair, rows in known.items() if pair in asked}
