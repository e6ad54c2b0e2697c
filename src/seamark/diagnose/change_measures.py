"""Measures of features before and after, paired by text: changes of all features, and draws for some of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix, diags

from seamark.diagnose.change_report import NEIGHBOURS, QUANTILE, Measure
from seamark.diagnose.retention import Draws
from seamark.errors import DataError
from seamark.features.reading import Scan
from seamark.features.significance import ROUNDING, wilcoxon_p
from seamark.stats import Floats, cluster_codes

Integers = NDArray[np.int64]
WINDOWS = 1024


@dataclass(frozen=True, eq=False)
class Sample:
    """The texts of one group that count, and resamples of their prompts."""

    rows: Integers
    """Their rows in the scans."""
    codes: Integers
    """Code of each one's prompt."""
    chosen: Integers
    """Of each pair, the place of its chosen text among `rows`; empty: plain texts."""
    rejected: Integers
    draws: Draws

    @classmethod
    def of(cls, scan: Scan, group: str, draws: int, seed: int) -> Sample:
        """Texts with scoring positions; of a pair, both or none.

        Raises:
            DataError: no such group, or no text in it has a scoring position.
        """
        keep = scan.in_group(group) & (scan.n_positions > 0)
        pairs = [both for both in scan.rows_by_pair.values() if keep[list(both)].all()]
        paired = np.asarray(scan.texts["pair_id"].is_valid())
        whole = np.zeros(len(keep), bool)
        whole[[row for both in pairs for row in both]] = True
        rows = np.flatnonzero(keep & (whole | ~paired))
        if not len(rows):
            raise DataError(f"no text of group {group!r} has positions to read", where=str(scan.path))
        place = np.full(len(keep), -1)
        place[rows] = np.arange(len(rows))
        both_sides = place[np.asarray(pairs, np.int64).reshape(-1, 2)]
        codes = cluster_codes(scan.texts["prompt"].take(rows).to_pylist())
        return cls(rows, codes, both_sides[:, 0], both_sides[:, 1], Draws.of(int(codes.max()) + 1, draws, seed))

    @property
    def pair_codes(self) -> Integers:
        return self.codes[self.chosen]

    def signs(self, n: int, seed: int) -> Iterator[NDArray[np.bool_]]:
        """[texts], n times: whether a text belongs to the half of the prompts that is swapped."""
        rng = np.random.default_rng(seed)
        for _ in range(n):
            swapped = np.zeros(self.draws.n, bool)
            swapped[rng.permutation(self.draws.n)[: self.draws.n // 2]] = True
            yield swapped[self.codes]


@dataclass(frozen=True, eq=False)
class Levels:
    """One checkpoint on the sample, each [texts, d_sae]."""

    mean: csr_matrix
    """Mean activation at scoring positions, in the autoencoder's units."""
    firing: csr_matrix
    """Share of scoring positions at which it fires."""
    attribution: csr_matrix | None = None

    @classmethod
    def of(cls, scan: Scan, sae_id: str, sample: Sample, attribution: csr_matrix | None = None) -> Levels:
        """`attribution`: of all texts of the scan."""
        counts = scan.pooled(sae_id, "count")[sample.rows]
        return cls(
            scan.pooled(sae_id, "mean")[sample.rows],
            (diags(1.0 / scan.n_positions[sample.rows].astype(np.float64)) @ counts).tocsr(),
            None if attribution is None else attribution[sample.rows],
        )

    @property
    def texts(self) -> Integers:
        """Texts in which each feature fires, [d_sae]."""
        return self.mean.getnnz(axis=0).astype(np.int64)

    def swapped(self, other: Levels, swap: NDArray[np.bool_]) -> Levels:
        """This checkpoint, with the other's texts where `swap`."""

        def mixed(mine: csr_matrix, theirs: csr_matrix) -> csr_matrix:
            return (diags((~swap).astype(np.float64)) @ mine + diags(swap.astype(np.float64)) @ theirs).tocsr()

        both = self.attribution is not None and other.attribution is not None
        return Levels(mixed(self.mean, other.mean), mixed(self.firing, other.firing),
                      mixed(self.attribution, other.attribution) if both else None)  # fmt: skip


@dataclass(frozen=True, eq=False)
class Comparison:
    """Before and after by one measure."""

    measure: Measure
    sample: Sample
    unit: Floats
    """Q_f [d_sae]; NaN: none."""
    before: Levels
    after: Levels

    @property
    def codes(self) -> Integers:
        """The prompt of each row of `rows`."""
        return self.sample.pair_codes if self.measure in ("contrast", "margin") else self.sample.codes

    def level(self, which: Levels) -> Floats:
        """The measure of every feature, [d_sae]; NaN: no Q_f."""
        if self.measure == "contrast":
            return self._scores(which, np.ones((self.sample.draws.n, 1)), slice(None))[:, 0]
        values: Floats = np.asarray(self._rows(which).mean(0)).ravel() * self._scale
        return values

    @cached_property
    def change(self) -> Floats:
        """after − before of every feature, [d_sae]."""
        return self.level(self.after) - self.level(self.before)

    def p(self) -> Floats:
        """Two-sided p of the signed-rank test over prompts, [d_sae]; NaN: fewer than 6 prompts differ. For the contrast
        it is about the difference chosen − rejected."""
        a, b = self._rows(self.after), self._rows(self.before)
        by_prompt = self._by_prompt(a - b, mean=True)
        size = self._by_prompt(abs(a) + abs(b), mean=True)
        by_prompt = by_prompt.multiply(abs(by_prompt) > ROUNDING * size).tocsr()
        by_prompt.eliminate_zeros()
        return wilcoxon_p(by_prompt.T.tocsr())

    def drawn(self, latents: Sequence[int]) -> Floats:
        """The change of some features in the sample and in every draw, [latents, 1 + draws]."""
        some, times = list(latents), self.sample.draws.times
        if self.measure == "contrast":
            found: Floats = self._scores(self.after, times, some) - self._scores(self.before, times, some)
            return found
        sums = self._by_prompt((self._rows(self.after) - self._rows(self.before))[:, some], mean=False)
        sizes = np.bincount(self.codes, minlength=self.sample.draws.n)
        with np.errstate(invalid="ignore"):
            drawn: Floats = (sums.T @ times) / (sizes @ times) * self._scale[some][:, None]
        return drawn

    @property
    def _scale(self) -> Floats:
        return 1.0 / self.unit if self.measure == "activation" else np.ones(len(self.unit))

    def _rows(self, which: Levels) -> csr_matrix:
        """The measure of every text or pair, before units; for the contrast the difference of a pair's means."""
        if self.measure == "activation":
            return which.mean
        if self.measure == "firing":
            return which.firing
        base = which.mean if self.measure == "contrast" else which.attribution
        assert base is not None  # noqa: S101
        return base if self.measure == "attribution" else base[self.sample.chosen] - base[self.sample.rejected]

    def _by_prompt(self, rows: csr_matrix, *, mean: bool) -> csr_matrix:
        sizes = np.bincount(self.codes, minlength=self.sample.draws.n)
        weights = 1.0 / sizes[self.codes] if mean else np.ones(len(self.codes))
        shape = (self.sample.draws.n, len(self.codes))
        return (csr_matrix((weights, (self.codes, np.arange(len(self.codes)))), shape=shape) @ rows).tocsr()

    def _scores(self, which: Levels, times: Floats, latents: slice | Sequence[int]) -> Floats:
        """Contrastive scores (SAFER, arXiv 2507.00665) by how often each prompt is drawn, [latents, draws]."""
        sides = [self._by_prompt(which.mean[rows], mean=False) for rows in (self.sample.chosen, self.sample.rejected)]
        n = np.bincount(self.codes, minlength=self.sample.draws.n) @ times
        with np.errstate(invalid="ignore", divide="ignore"):
            constant = sum(np.asarray(s.sum(1)).ravel() @ times for s in sides) / n / which.mean.shape[1]
            high, low = ((s[:, latents].T @ times) / n for s in sides)
            scores: Floats = (high - low) / (high + low + constant)
        return scores


def null_limits(level: Floats, null: Floats, judged: Integers) -> Floats:
    """The 95 % quantile of |change| in the null over the features of nearest level, [d_sae]; NaN: not judged.

    Args:
        level: of every feature before.
        null: changes in the null, [comparisons, d_sae].
    """
    found = np.full(len(level), np.nan)
    order = judged[np.argsort(np.abs(level[judged]), kind="stable")]
    width = min(NEIGHBOURS + 1, len(order))
    if not width:
        return found
    windows = np.lib.stride_tricks.sliding_window_view(np.abs(null[:, order]), width, axis=1)
    limits = np.concatenate([
        np.nanquantile(windows[:, first : first + WINDOWS], QUANTILE, axis=(0, 2))
        for first in range(0, windows.shape[1], WINDOWS)
    ])  # fmt: skip
    found[order] = limits[np.clip(np.arange(len(order)) - width // 2, 0, len(limits) - 1)]
    return found


def nearest(level: Floats, judged: Integers, members: Integers, n: int) -> Integers:
    """Of each member, the n judged features of nearest level that are no members, [members, n or as many as there
    are]."""
    free = np.setdiff1d(judged, members)
    distance = np.abs(np.abs(level[free])[None, :] - np.abs(level[members])[:, None])
    return free[np.argsort(distance, axis=1, kind="stable")[:, :n]]
