"""What else goes with the reward: latents whose difference follows the margin, and that are not about safety.

An association over pairs, never a cause: a latent that follows the margin may do so because both follow something
third, and one that the reward does depend on may be masked by another. `features.effect.direct_effect` raises a latent
and reads the reward again; use it before saying that a model relies on one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict
from scipy import stats
from scipy.sparse import csr_matrix, vstack

from seamark.errors import DataError
from seamark.explain.dimension import SAFETY, Dimension
from seamark.explain.ratings import Rating, statistical_ratings
from seamark.features.contrast import pair_rows
from seamark.features.reading import Scan
from seamark.features.sets import FeatureSet
from seamark.features.significance import adjusted, difference_parts
from seamark.stats import Estimate, Floats, bootstrap_of_sums, cluster_codes

LEAST_PROMPTS = 20
"""Prompts on whose pairs a latent's activation must differ for a p."""
FALSE_FINDS = 0.05
"""Largest q_value of a latent that counts as going with the margin."""
RELEVANT = 4
"""Least rating that counts as being about the dimension."""
SPARE = 4
"""Latents rated for each one that is shown."""
HELD = 1 << 24
"""Differences of pairs held in memory together."""
Integers = NDArray[np.int64]


class _Value(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Relied(_Value):
    """A latent that goes with the reward margin though it is not about the dimension."""

    sae: str
    latent: int
    correlation: Estimate
    """Of its difference chosen − rejected with the reward margin, every pair counted both ways round, so that labels
    play no part: Σ d·m / √(Σ d² Σ m²). Above 0: the answer with more of it is rewarded more. Interval by prompt."""
    p: float
    q_value: float
    """`p` adjusted by Benjamini-Hochberg over all latents tested."""
    length: float | None
    """The same correlation of d with the difference of length in tokens: near ±1, the latent is about length. None:
    lengths never differ."""
    n_differing: int
    """Pairs on which it differs."""
    rating: int | None
    """How far it is about the dimension, 1-5; None: not rated."""
    why: str
    """The rating's reason, or why there is none."""


class Reliance(_Value):
    """Latents of one autoencoder beside the reward margin. Associations, never causes."""

    sae: str
    group: str
    dimension: str
    n_pairs: int
    left_out: tuple[str, ...]
    """Ids of pairs that do not count: a side has no scoring position, or no reward."""
    tested: int
    """Latents with a p."""
    found: int
    """Of these, with a q_value of at most 0.05."""
    found_in_set: int
    """Of these, in the feature set."""
    found_relevant: int | None
    """Of the others that were rated (the strongest), rated `RELEVANT` or more: about the dimension after all. None:
    nothing could be rated."""
    rated: int
    latents: tuple[Relied, ...]
    """Those that are neither, the strongest correlation first."""
    reason: str = ""
    """Why nothing was tested; empty where something was."""


@dataclass(frozen=True)
class _Tests:
    """Arrays [d_sae]; NaN: not available."""

    r: Floats
    p: Floats
    differing: Integers


def reliance(
    scan: Scan, features: FeatureSet, group: str = "safety", *, sae_id: str | None = None, n: int = 20,
    dimension: Dimension = SAFETY, draws: int = 1000, seed: int = 0,
) -> Reliance:  # fmt: skip
    """Latents whose difference chosen − rejected goes with the reward margin and that are not about `dimension`.

    p is two-sided from t = Σ_c u_c / √(Σ_c u_c²), u_c the sum over a prompt's pairs of d·m, with one degree of freedom
    less than there are prompts on which the latent differs: pairs of one prompt do not count as independent.

    Memory: one part of the scan, and `HELD` differences.

    Args:
        scan: of a reward model.
        features: the set that is about the dimension; its latents are not shown.
        group: pairs of this group.
        sae_id: None: the features' only autoencoder, or the scan's.
        n: latents shown, at most.
        dimension: what latents are rated for, by `statistical_ratings`.

    Raises:
        DataError: an unknown group, a scan without rewards, or no pair with positions on both sides.
        ConfigError: an unknown autoencoder, or several and none is named.
    """
    names = list(dict.fromkeys(f.sae for f in features.features))
    sae_id = scan.sae_id(names[0] if sae_id is None and len(names) == 1 else sae_id)
    rows, margin, left_out = _pairs(scan, group)
    prompts = cluster_codes(scan.texts["prompt"].take(rows[:, 0]).to_pylist())
    if not np.any(margin):
        return Reliance(sae=sae_id, group=group, dimension=dimension.name, n_pairs=len(rows), left_out=left_out,
                        tested=0, found=0, found_in_set=0, found_relevant=None, rated=0, latents=(),
                        reason="every margin is 0")  # fmt: skip
    tests = _tests(scan, sae_id, rows, margin, prompts)
    q = adjusted(tests.p)
    significant = np.flatnonzero(q <= FALSE_FINDS)
    mine = set(features.latents(sae_id))
    others = sorted((i for i in significant.tolist() if i not in mine), key=lambda i: (-abs(tests.r[i]), i))
    ratings = _ratings(scan, sae_id, others[: SPARE * n], dimension)
    shown = [i for i in others[: SPARE * n] if (ratings[i].rating or 0) < RELEVANT][:n]
    given = [r for r in ratings.values() if r.rating is not None]
    numbers = _shown(scan, sae_id, rows, margin, prompts, shown, draws, seed)
    tested = int((~np.isnan(tests.p)).sum())
    return Reliance(
        sae=sae_id, group=group, dimension=dimension.name, n_pairs=len(rows), left_out=left_out, tested=tested,
        found=len(significant), found_in_set=sum(i in mine for i in significant.tolist()),
        found_relevant=sum((r.rating or 0) >= RELEVANT for r in given) if given else None, rated=len(given),
        reason="" if tested else f"no latent differs on the pairs of {LEAST_PROMPTS} prompts",
        latents=tuple(
            Relied(sae=sae_id, latent=i, correlation=r, p=float(tests.p[i]), q_value=float(q[i]), length=length,
                   n_differing=int(tests.differing[i]), rating=ratings[i].rating, why=ratings[i].why)
            for i, (r, length) in zip(shown, numbers, strict=True)
        ),
    )  # fmt: skip


def _pairs(scan: Scan, group: str) -> tuple[Integers, Floats, tuple[str, ...]]:
    """(rows [pairs, 2] ascending, margins [pairs], ids left out)."""
    rows, left_out = pair_rows(scan, group, "default")
    rows = rows[np.argsort(rows[:, 0])]
    margins = scan.margins()
    ids = scan.texts["pair_id"].take(rows[:, 0]).to_pylist()
    margin = np.asarray([margins[i] for i in ids], dtype=np.float64)
    good = np.isfinite(margin)
    if not good.any():
        raise DataError(f"no pair of group {group!r} has a reward on both sides", where=str(scan.path))
    return rows[good], margin[good], left_out + tuple(i for i, ok in zip(ids, good, strict=True) if not ok)


def _tests(scan: Scan, sae_id: str, rows: Integers, margin: Floats, prompts: Integers) -> _Tests:
    differing = np.zeros(scan.d_sae(sae_id), dtype=np.int64)
    for part in difference_parts(scan, sae_id, rows):
        differing += part.getnnz(axis=0)
    r, p = np.full(len(differing), np.nan), np.full(len(differing), np.nan)
    for latents in _blocks(differing):
        d = vstack(list(difference_parts(scan, sae_id, rows, latents)), format="csr")
        r[latents], p[latents] = _test(d, margin, prompts)
    return _Tests(r, p, differing)


def _blocks(differing: Integers) -> Iterator[Integers]:
    """Latents that fit into memory together, those that never differ left out."""
    live = np.flatnonzero(differing)
    block = (np.cumsum(differing[live]) - 1) // HELD
    for number in np.unique(block):
        yield live[block == number]


def _test(d: csr_matrix, margin: Floats, prompts: Integers) -> tuple[Floats, Floats]:
    """(correlation, p) of each column of d [pairs × latents]."""
    of_prompt = csr_matrix((np.ones(len(prompts)), (prompts, np.arange(len(prompts)))))
    u = (of_prompt @ d.multiply(margin[:, None]).tocsr()).tocsr()
    total = np.asarray(u.sum(axis=0)).ravel()
    spread = np.sqrt(np.asarray(u.multiply(u).sum(axis=0)).ravel())
    power = np.sqrt(np.asarray(d.multiply(d).sum(axis=0)).ravel() * np.square(margin).sum())
    n = (of_prompt @ (d != 0).astype(np.float64)).tocsr().getnnz(axis=0)
    enough = (n >= LEAST_PROMPTS) & (spread > 0) & (power > 0)
    t = np.divide(total, spread, out=np.zeros_like(total), where=enough)
    p = np.where(enough, 2.0 * stats.t.sf(np.abs(t), np.maximum(n - 1, 1)), np.nan)
    return np.divide(total, power, out=np.full_like(total, np.nan), where=power > 0), p


def _ratings(scan: Scan, sae_id: str, latents: Sequence[int], dimension: Dimension) -> dict[int, Rating]:
    try:
        found: Iterable[Rating] = statistical_ratings(scan, sae_id, latents, dimension=dimension)
    except DataError as e:  # one group alone: nothing to tell the dimension from
        found = [Rating(sae=sae_id, latent=i, rating=None, why=e.what) for i in latents]
    return {r.latent: r for r in found}


def _shown(
    scan: Scan, sae_id: str, rows: Integers, margin: Floats, prompts: Integers, latents: Sequence[int], draws: int,
    seed: int,
) -> list[tuple[Estimate, float | None]]:  # fmt: skip
    """(correlation with the margin with its interval, correlation with length) of a few latents."""
    if not latents:
        return []
    d = vstack(list(difference_parts(scan, sae_id, rows, np.asarray(latents))), format="csc")
    tokens = scan.texts["n_response"].to_numpy()
    length = (tokens[rows[:, 0]] - tokens[rows[:, 1]]).astype(np.float64)

    def r(sums: Floats) -> float | None:
        return float(sums[0] / np.sqrt(sums[1] * sums[2])) if sums[1] > 0 and sums[2] > 0 else None

    def lines(x: Floats, y: Floats) -> Floats:
        return np.stack([x * y, x * x, y * y])

    found = []
    for column in range(len(latents)):
        x = d[:, [column]].toarray().ravel()
        with_margin = bootstrap_of_sums(r, lines(x, margin), prompts, draws=draws, seed=seed)
        found.append((with_margin, r(lines(x, length).sum(axis=1))))
    return found
