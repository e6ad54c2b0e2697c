"""Fitting without seeing: every pair gets its score from pairs of other prompts.

A label that is wrong teaches its own model that it is right. Cross-fitting takes that away: prompts are dealt into
folds, and a pair is scored by what was fitted on the other folds (as in confident learning, arXiv 1911.00068). All here
is antisymmetric: a pair enters as chosen − rejected, without intercept and without centring, so swapping its sides
negates its own score and changes nothing else in it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import expit
from threadpoolctl import threadpool_limits

from seamark.errors import DataError
from seamark.stats import cluster_codes
from seamark.text.pairs import Pairs, hash_unit

Floats = NDArray[np.float64]
Matrix: TypeAlias = Any
"""scipy's CSR (which has no types) or a dense array, [pairs, d]."""
STRENGTHS = (1e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 1.0)
"""Inverse penalties C that inner folds choose from, for columns of unit size."""
MIN_PAIRS = 5
"""Pairs in which a column has to differ between the sides; one seen less often says nothing that holds elsewhere."""
STEPS = 60
"""Most steps of a fit."""
CHOOSE_FROM = 6000
"""Pairs that the penalty is chosen by, at most: 70 fits of many more would cost most of an audit's time, and C, the
variance of a weight that one expects, does not depend on their number."""
AT_ONCE = 1 << 18
"""Single-precision numbers that are made double at a time: what fits into a processor's cache."""


def fold_of(prompts: Pairs | Mapping[str, str], folds: int, seed: int = 0) -> dict[str, int]:
    """{pair id: fold}; a prompt is in one fold, folds hold equal numbers of prompts, the order of pairs plays no part.

    Args:
        prompts: pairs, or {pair id: hash of its prompt}.
        folds: how many; fewer where there are fewer prompts.

    Raises:
        DataError: fewer than two prompts.
    """
    keys = {p.id: p.prompt_key for p in prompts} if isinstance(prompts, Pairs) else prompts
    order = sorted(set(keys.values()), key=lambda key: (hash_unit(f"fold:{key}", seed), key))
    if len(order) < 2:
        raise DataError(f"{len(order)} prompts are too few to fit on some and score the others",
                        fix="Take a group with more prompts")  # fmt: skip
    place = {key: number % min(folds, len(order)) for number, key in enumerate(order)}
    return {pair: place[key] for pair, key in keys.items()}


def row_folds(prompts: Sequence[str], folds: int, seed: int = 0) -> NDArray[np.int64]:
    """[rows]: the fold of each row, given the hashes of their prompts; errors as of `fold_of`."""
    place = fold_of({key: key for key in prompts}, folds, seed)
    return np.asarray([place[key] for key in prompts], dtype=np.int64)


def crossfit_mean(x: NDArray[Any], prompts: Sequence[str], folds: int = 5, seed: int = 0) -> Floats:
    """Projection of each difference [pairs, d] on the mean difference of the other folds, of unit length. [pairs]"""
    fold = row_folds(prompts, folds, seed)
    sums = np.stack([x[fold == k].sum(0, dtype=np.float64) for k in range(fold.max() + 1)])
    scores = np.zeros(len(x))
    for k in range(len(sums)):
        way = sums.sum(0) - sums[k]
        scores[fold == k] = x[fold == k] @ (way / max(float(np.linalg.norm(way)), 1e-30))
    return scores


def crossfit_logistic(
    x: Matrix, prompts: Sequence[str], folds: int = 5, seed: int = 0, strengths: Sequence[float] = STRENGTHS,
    *, scale: bool = True,
) -> Floats:  # fmt: skip
    """Log-odds that the label is right, by logistic regressions on the pairs of other prompts. [pairs]

    A pair enters as its difference x = chosen − rejected; the loss is log(1 + e^(−w·x)), which is what a regression
    with both orders of every pair and no intercept minimises, and the penalty ‖w‖² / 2C. For each fold the C is chosen
    by log loss over the other folds, each foretold by the ones that are left; of more than `CHOOSE_FROM` pairs by so
    many, picked by a hash of their prompts.

    Args:
        x: [pairs, d], sparse or dense.
        prompts: hash of each pair's prompt, [pairs].
        strengths: values of C, ascending.
        scale: divide each column by its root mean square over the pairs that are fitted on (no centring).

    Raises:
        DataError: fewer than two prompts.
    """
    fold = row_folds(prompts, folds, seed)
    rows = [np.flatnonzero(fold == k) for k in range(int(fold.max()) + 1)]
    scores = np.zeros(len(fold))
    with threadpool_limits(
        1
    ):  # thousands of short sums: threads gain little, and wait for one another on a busy machine
        blocks = [Block.of(x[mine]) for mine in rows]
        if len(blocks) == 2:  # nothing is left to choose C with
            chosen = {k: strengths[len(strengths) // 2] for k in range(2)}
        else:
            few = len(fold) <= CHOOSE_FROM
            some = blocks if few else [Block.of(x[_sample(mine, prompts, len(rows), seed)]) for mine in rows]
            chosen = _choose(some, strengths, scale=scale)
        for k, block in enumerate(blocks):
            *_, weights = _path([b for j, b in enumerate(blocks) if j != k], [chosen[k]], scale=scale)
            scores[rows[k]] = block.margins(weights)
    return scores


def _sample(rows: NDArray[np.int64], prompts: Sequence[str], folds: int, seed: int) -> NDArray[np.int64]:
    """Of a fold's rows its share of `CHOOSE_FROM`: those whose prompts hash lowest, in their order."""
    place = {key: (hash_unit(f"choose:{key}", seed), key) for key in {prompts[r] for r in rows}}
    return np.sort(np.asarray(sorted(rows, key=lambda r: place[prompts[r]])[: CHOOSE_FROM // folds], dtype=np.int64))


@dataclass(frozen=True)
class Block:
    """The pairs of one fold."""

    x: Matrix
    """[pairs, d]"""
    squares: Floats
    """Sum of squares of each column, [d]."""
    used: NDArray[np.int64]
    """In how many pairs each column is not 0, [d]."""

    @classmethod
    def of(cls, x: Matrix) -> Block:
        if sp.issparse(x):
            x = x if x.dtype == np.float32 else x.astype(np.float64)
            return cls(x, np.asarray(x.multiply(x).sum(0), dtype=np.float64).ravel(), x.getnnz(axis=0))
        x = np.asarray(x, dtype=np.float32 if x.dtype == np.float32 else np.float64)
        return cls(x, np.einsum("nd,nd->d", x, x, dtype=np.float64), np.count_nonzero(x, axis=0))

    def __len__(self) -> int:
        return int(self.x.shape[0])

    def margins(self, weights: Floats) -> Floats:
        """x · w in double precision. [pairs]"""
        if sp.issparse(self.x) or self.x.dtype == np.float64:
            return np.asarray(self.x @ weights, dtype=np.float64)
        found = np.empty(len(self))
        rows = max(1, AT_ONCE // max(self.x.shape[1], 1))
        for start in range(0, len(found), rows):  # at once, numpy would make a copy of x as a whole
            found[start : start + rows] = self.x[start : start + rows].astype(np.float64) @ weights
        return found


def _choose(blocks: Sequence[Block], strengths: Sequence[float], *, scale: bool) -> dict[int, float]:
    """{fold: C}. Fold j is foretold without j and k, for every k; that fit serves as k's foretold without j, too."""
    losses = np.zeros((len(blocks), len(strengths)))
    for j in range(len(blocks)):
        for k in range(j):
            rest = [b for i, b in enumerate(blocks) if i not in (j, k)]
            for s, weights in enumerate(_path(rest, strengths, scale=scale)):
                losses[k, s] += _softplus(blocks[j].margins(weights)).sum()
                losses[j, s] += _softplus(blocks[k].margins(weights)).sum()
    return {k: strengths[int(np.argmin(line))] for k, line in enumerate(losses)}


def _softplus(margins: Floats) -> Floats:
    """log(1 + e^(−margin))."""
    found: Floats = np.logaddexp(0.0, -margins)
    return found


def _path(blocks: Sequence[Block], strengths: Sequence[float], *, scale: bool) -> Iterator[Floats]:
    """Weights [d] for each C, the weakest first; each fit begins where the one before ended."""
    n = sum(map(len, blocks))
    unit = np.sqrt(sum(b.squares for b in blocks) / n) if scale else np.ones(blocks[0].x.shape[1])
    rare = sum(b.used for b in blocks) < min(MIN_PAIRS, n)
    factor = np.where(rare | (unit == 0), 0.0, 1.0 / np.where(unit > 0, unit, 1.0))
    weights = np.zeros(len(factor))
    for strength in strengths:
        penalty = 1.0 / (strength * n)

        def loss(w: Floats, penalty: float = penalty) -> tuple[float, Floats]:
            real, gradient, total = w * factor, np.zeros(len(w)), 0.0
            for b in blocks:
                margins = b.margins(real)
                total += float(_softplus(margins).sum())
                gradient -= b.x.T @ expit(-margins).astype(b.x.dtype, copy=False)
            return total / n + penalty / 2 * float(w @ w), gradient * factor / n + penalty * w

        found = minimize(loss, weights, jac=True, method="L-BFGS-B", options={"maxiter": STEPS, "gtol": 1e-5})
        weights = found.x
        yield weights * factor


def prompt_codes(values: Mapping[str, float], prompts: Mapping[str, str]) -> tuple[list[str], NDArray[np.int64]]:
    """(ids in order, code of each one's prompt). `DataError` where an id's prompt is not known."""
    ids = sorted(values)
    if missing := [i for i in ids if i not in prompts]:
        raise DataError(f"{len(missing)} scored pairs have no prompt, the first being {missing[0]!r}",
                        fix="Give the prompts of the pairs that were scored")  # fmt: skip
    return ids, cluster_codes([prompts[i] for i in ids])
