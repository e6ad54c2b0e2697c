"""Single features, and small rules over thresholded features, as detectors (after Qwen-Scope, arXiv 2605.11887)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix
from scipy.stats import rankdata

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

CANDIDATES = 40
"""Features that a rule may name: those with the highest AUROC on the training part, and a quarter as many with the
lowest."""
QUANTILES = (0.0, 0.5, 0.8, 0.95)
"""Thresholds of a feature: it fires at all, or beyond these quantiles of its values where it fires."""
TERMS = 4
LEAST_TEXTS = 3
"""Training texts in which a feature must fire to be looked at."""


def feature_auroc(x: csr_matrix, y: Integers) -> Floats:
    """AUROC of each latent's pooled activation [d_sae]; 0.5 for those that fire in fewer than `LEAST_TEXTS` texts."""
    columns = x.tocsc()
    n_pos, n = int(y.sum()), len(y)
    found = np.full(x.shape[1], 0.5)
    for f in np.flatnonzero(np.diff(columns.indptr) >= LEAST_TEXTS).tolist():
        inside = slice(columns.indptr[f], columns.indptr[f + 1])
        rows, values = columns.indices[inside], columns.data[inside]
        silent = n - len(rows)
        ranks = rankdata(values) + silent  # silent texts share the mean of the lowest ranks
        mine = y[rows] == 1
        total = ranks[mine].sum() + (n_pos - mine.sum()) * (silent + 1) / 2
        found[f] = (total - n_pos * (n_pos + 1) / 2) / (n_pos * (n - n_pos))
    return found


@dataclass(frozen=True)
class Term:
    """One feature above a threshold, or not above it."""

    latent: int
    threshold: float
    above: bool = True

    def __str__(self) -> str:
        return f"{self.latent} {'>' if self.above else '≤'} {self.threshold:.3g}"


@dataclass(frozen=True)
class Rule:
    """Literals joined from left to right: ((a or b) and c)."""

    literals: tuple[Term, ...]
    joins: tuple[Literal["and", "or"], ...]
    """Before each literal but the first."""

    def holds(self, x: csr_matrix) -> NDArray[np.bool_]:
        """[texts] for pooled latents [texts, d_sae]."""
        values = x[:, [literal.latent for literal in self.literals]].toarray()
        found = np.zeros(x.shape[0], np.bool_)
        for i, literal in enumerate(self.literals):
            mine = (values[:, i] > literal.threshold) == literal.above
            found = mine if i == 0 else found & mine if self.joins[i - 1] == "and" else found | mine
        return found

    def __str__(self) -> str:
        text = str(self.literals[0])
        for i, (join, literal) in enumerate(zip(self.joins, self.literals[1:], strict=True)):
            earlier = f"({text})" if i and join != self.joins[i - 1] else text
            text = f"{earlier} {join} {literal}"
        return text


def find_rule(
    x: csr_matrix, y: Integers, x_check: csr_matrix, y_check: Integers, *, terms: int = TERMS,
    strength: Floats | None = None,
) -> Rule:  # fmt: skip
    """The rule that grows by the literal and join with the best F1 on the training part, while validation gains.

    Args:
        x, y: pooled latents [texts, d_sae] and labels of the training part.
        x_check, y_check: of the validation part.
        terms: most literals.
        strength: `feature_auroc` of the training part, if it is known.
    """
    literals = _literals(x, feature_auroc(x, y) if strength is None else strength)
    held = _held(x, literals)
    start = int(np.argmax(_f1(held, y)))
    rule, now = Rule((literals[start],), ()), held[:, start]
    best = _score(rule, x_check, y_check)
    while len(rule.literals) < terms:
        joined = {"and": held & now[:, None], "or": held | now[:, None]}
        scores = {how: _f1(matrix, y) for how, matrix in joined.items()}
        how: Literal["and", "or"] = "and" if scores["and"].max() > scores["or"].max() else "or"
        chosen = int(np.argmax(scores[how]))
        longer = Rule((*rule.literals, literals[chosen]), (*rule.joins, how))
        gained = _score(longer, x_check, y_check)
        if gained <= best:
            break
        rule, best, now = longer, gained, joined[how][:, chosen]
    return rule


def _literals(x: csr_matrix, strength: Floats) -> list[Term]:
    order = np.argsort(-strength, kind="stable")
    high, low = order[:CANDIDATES], order[::-1][: CANDIDATES // 4]
    columns = x.tocsc()
    found: dict[Term, None] = {}
    for latents, above in ((high, True), (low, False)):
        for f in latents.tolist():
            values = columns.data[columns.indptr[f] : columns.indptr[f + 1]]
            for q in QUANTILES:
                at = 0.0 if q == 0 or not len(values) else float(np.quantile(values, q))
                found[Term(f, at, above)] = None
    return list(found)


def _held(x: csr_matrix, literals: list[Term]) -> NDArray[np.bool_]:
    """[texts, literals]"""
    latents = sorted({literal.latent for literal in literals})
    place = {f: i for i, f in enumerate(latents)}
    dense = x[:, latents].toarray()
    return np.stack([(dense[:, place[i.latent]] > i.threshold) == i.above for i in literals], axis=1)


def _f1(held: NDArray[np.bool_], y: Integers) -> Floats:
    """[columns]"""
    found: Floats = 2 * (y @ held) / np.maximum(held.sum(0) + y.sum(), 1)
    return found


def _score(rule: Rule, x: csr_matrix, y: Integers) -> float:
    return float(_f1(rule.holds(x)[:, None], y)[0])
