"""Which texts become contexts of a feature: chosen from pooled latents, a part of the scan at a time.

A text's strength is the feature's largest activation over all positions that were read; silent means 0 at all of them.
What is chosen depends on texts and their latents alone, not on their order or on how they were cut into parts.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field
from scipy.sparse import csr_matrix, vstack

from seamark.errors import DataError
from seamark.features.reading import Scan
from seamark.text.pairs import hash_unit

LEVELS = 10
"""Levels of activation: level i is over (i − 1)/10 and up to i/10 of Q_f; all that is over Q_f is level 10."""
HALVES = 2
"""Texts to explain from, and texts to simulate on."""
TEXTS_AT_ONCE = 4096
"""Texts compared with the centroids of a block of latents at once."""
CENTROID_LATENTS = 128
"""Latents of a centroid: the strongest say what its texts have in common, and few keep the product cheap."""

Key = tuple[str, int]
"""(sae id, latent)."""
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


class ContextConfig(BaseModel):
    """How many texts of each kind are chosen, for each half."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    top: int = Field(default=20, ge=0)
    """Texts in which the feature fires most strongly."""
    per_level: int = Field(default=5, ge=0)
    """Texts of each of the ten levels; some of them may be among `top`."""
    silent: int = Field(default=10, ge=0)
    """Texts, drawn evenly, in which the feature is silent."""
    near_miss: int = Field(default=10, ge=0)
    """Texts in which it is silent though they are most alike to its top texts; none without such."""
    group: str | None = None
    """Choose from texts of this group; None: from all."""
    seed: int = 0
    """Of the hashes that split prompts (plain texts: contents) into halves and draw texts from them."""


class Candidates(NamedTuple):
    """Texts that may be chosen, all [texts]."""

    half: NDArray[np.int8]
    """0: explain; 1: simulate; −1: not to be chosen."""
    content: NDArray[np.uint64]
    """Hash of what is shown; no two candidates have the same."""
    priority: Floats
    """In [0, 1): the lowest are drawn first."""

    def drawn(self, half: int, start: int, end: int) -> Ints:
        """Rows of one half from `start` up to `end`, those first that are drawn first."""
        rows = start + np.flatnonzero(self.half[start:end] == half)
        return rows[np.lexsort((self.content[rows], self.priority[rows]))]


def candidates(scan: Scan, config: ContextConfig) -> Candidates:
    """Texts of the group asked for in which a position was read; of equal contents the one whose id comes first.

    A text of a pair falls into a half by a hash of its prompt, so no prompt is in both; a plain text by its content.

    Raises:
        DataError: no such group, or no such text in it.
    """
    table, n = scan.texts, scan.texts.num_rows
    allowed = scan.n_positions > 0
    if scan.config["context_positions"] == "tokens":
        allowed = allowed | (table["n_response"].to_numpy() > 0)
    if config.group is not None:
        allowed = allowed & scan.in_group(config.group)
    ids, contents = table["text_id"].to_pylist(), table["content"].to_pylist()
    first: dict[str, int] = {}
    for row in np.flatnonzero(allowed).tolist():
        if ids[row] <= ids[first.setdefault(contents[row], row)]:
            first[contents[row]] = row
    if not first:
        raise DataError(f"no text of group {config.group!r} was read", where=str(scan.path), fix="Choose another group")
    found = Candidates(np.full(n, -1, np.int8), np.zeros(n, np.uint64), np.zeros(n))
    pair_ids, prompts = table["pair_id"].to_pylist(), table["prompt"].to_pylist()
    for content, row in first.items():
        # Salted: `Pairs.split` goes by the bare hash of prompts, and one of its sides would be one half.
        together = content if pair_ids[row] is None else f"half {prompts[row]}"
        found.half[row] = hash_unit(together, config.seed) >= 0.5
        found.content[row], found.priority[row] = int(content, 16), hash_unit(content, config.seed)
    return found


class ChosenRows(NamedTuple):
    """Rows of the texts chosen for one half of a feature's contexts."""

    top: list[int]
    levels: dict[int, list[int]]
    silent: list[int]
    near_miss: list[int]

    def all(self) -> set[int]:
        return {*self.top, *(r for rows in self.levels.values() for r in rows), *self.silent, *self.near_miss}


class Best:
    """The first n rows of each bucket, by key and then by content, in whatever order rows come.

    Args:
        n: rows of a bucket.
        buckets: their number.
        content: of all texts, [texts].
    """

    def __init__(self, n: int, buckets: int, content: NDArray[np.uint64]) -> None:
        self.n, self._content = n, content
        self.bucket: Ints = np.empty(0, np.int64)
        self.key: Floats = np.empty(0)
        self.row: Ints = np.empty(0, np.int64)
        self._last: Floats = np.full(buckets, np.inf if n else -np.inf)  # the largest key that may still come in

    def add(self, bucket: Ints, key: Floats, row: Ints) -> None:
        """Add entries, all [entries]; no row twice in a bucket."""
        kept = key <= self._last[bucket]
        bucket = np.concatenate([self.bucket, bucket[kept]])
        key, row = np.concatenate([self.key, key[kept]]), np.concatenate([self.row, row[kept]])
        order = np.lexsort((self._content[row], key, bucket))
        bucket, key, row = bucket[order], key[order], row[order]
        rank = np.arange(len(bucket)) - np.searchsorted(bucket, bucket)
        self._last[bucket[rank == self.n - 1]] = key[rank == self.n - 1]
        first = rank < self.n
        self.bucket, self.key, self.row = bucket[first], key[first], row[first]

    def rows(self, bucket: int) -> list[int]:
        """Rows of one bucket, first ones first."""
        start, end = np.searchsorted(self.bucket, [bucket, bucket + 1])
        found: list[int] = self.row[start:end].tolist()
        return found


class Chooser:
    """Chooses texts for a block of latents of one autoencoder.

    Column i of the block and half h make bucket 2i + h; level l of it is bucket 10 (2i + h) + l − 1 of `levels`.
    """

    def __init__(self, scan: Scan, sae_id: str, latents: list[int], allowed: Candidates, config: ContextConfig) -> None:
        self.scan, self.sae_id, self.latents, self.allowed, self.config = scan, sae_id, latents, allowed, config
        self.q: Floats = scan.q(sae_id)[latents]
        n, content = HALVES * len(latents), allowed.content
        self.top, self.levels = Best(config.top, n, content), Best(config.per_level, n * LEVELS, content)
        # A near miss is not shown again as a silent text: as many more are drawn as may fall out.
        self.silent = Best(config.silent + config.near_miss if config.silent else 0, n, content)
        self.near = Best(config.near_miss, n, content)

    def choose(self) -> dict[Key, tuple[ChosenRows, ...]]:
        """{(sae id, latent): rows of each half}."""
        for start, pooled in self.scan.pooled_parts(self.sae_id, "read_max"):
            strength = pooled[:, self.latents]
            self._add_firing(start, strength.tocoo())
            if self.silent.n:
                self._add_silent(start, strength.tocsc())
        if self.near.n and len(self.top.row):
            self._add_near_misses(self._centroids())
        columns = enumerate(self.latents)
        return {(self.sae_id, f): tuple(self._chosen(i, half) for half in range(HALVES)) for i, f in columns}

    def _chosen(self, column: int, half: int) -> ChosenRows:
        bucket = column * HALVES + half
        if np.isnan(self.q[column]):
            return ChosenRows(self.top.rows(bucket), {}, [], [])
        levels = {level: self.levels.rows(bucket * LEVELS + level - 1) for level in range(1, LEVELS + 1)}
        misses = self.near.rows(bucket)
        silent = [row for row in self.silent.rows(bucket) if row not in misses]
        return ChosenRows(self.top.rows(bucket), levels, silent[: self.config.silent], misses)

    def _add_firing(self, start: int, strength: Any) -> None:
        """Add the texts of a part where something fires; `strength` [texts × latents] as COO."""
        row, column, value = strength.row.astype(np.int64) + start, strength.col.astype(np.int64), strength.data
        allowed = self.allowed.half[row] >= 0
        row, column, value = row[allowed], column[allowed], value[allowed]
        bucket = column * HALVES + self.allowed.half[row]
        self.top.add(bucket, -value, row)
        known = ~np.isnan(self.q[column])
        row, bucket, share = row[known], bucket[known], value[known] / self.q[column[known]]
        level = np.clip(np.ceil(LEVELS * share), 1, LEVELS).astype(np.int64)
        self.levels.add(bucket * LEVELS + level - 1, self.allowed.priority[row], row)

    def _add_silent(self, start: int, strength: Any) -> None:
        """Add, for each latent, the texts of a part drawn first among the silent ones; `strength` as CSC."""
        n_texts, n_latents = strength.shape
        for half in range(HALVES):
            rows = self.allowed.drawn(half, start, start + n_texts)
            place = np.full(n_texts, -1)
            place[rows - start] = np.arange(len(rows))
            chosen = [self._first_silent(place[_column(strength, i)], len(rows)) for i in range(n_latents)]
            bucket = np.repeat(np.arange(n_latents) * HALVES + half, [len(c) for c in chosen])
            found = rows[np.concatenate(chosen)]
            self.silent.add(bucket, self.allowed.priority[found], found)

    def _first_silent(self, firing: Ints, n: int) -> Ints:
        """The first places of 0 … n − 1 that are not `firing` (−1 there: no place)."""
        firing = firing[firing >= 0]
        # Among the first silent.n + len(firing) places so many are silent, if there are so many at all.
        some = np.arange(min(n, self.silent.n + len(firing)))
        return np.setdiff1d(some, firing, assume_unique=True)[: self.silent.n]

    def _centroids(self) -> csr_matrix:
        """Unit vectors [2 · latents × d_sae], one for each bucket: what a feature's top texts of a half have more of
        than all texts of that half, itself left out. No half's depend on texts of the other."""
        shape = HALVES * len(self.latents), self.scan.d_sae(self.sae_id)
        total, weight = csr_matrix(shape), np.zeros(shape[0])
        everything, n_positions = np.zeros((HALVES, shape[1])), np.zeros(HALVES)
        for start, mean in self.scan.pooled_parts(self.sae_id, "mean"):
            end = start + mean.shape[0]
            mine = (self.top.row >= start) & (self.top.row < end)
            bucket, strength = self.top.bucket[mine], -self.top.key[mine]
            weights = csr_matrix((strength, (bucket, self.top.row[mine] - start)), shape=(shape[0], mean.shape[0]))
            total = total + weights @ mean
            weight += np.bincount(bucket, weights=strength, minlength=shape[0])
            for half in range(HALVES):
                n = np.where(self.allowed.half[start:end] == half, self.scan.n_positions[start:end], 0)
                everything[half] += mean.T @ n
                n_positions[half] += n.sum()
        usual = everything / np.maximum(n_positions, 1)[:, None]
        rows = [_centroid(total[[i]], weight[i], usual[i % HALVES], self.latents[i // HALVES]) for i in range(shape[0])]
        return vstack(rows, format="csr")

    def _add_near_misses(self, centroids: csr_matrix) -> None:
        """Add the silent texts whose mean latents are alike to the centroids of their half."""
        against = [centroids[half::HALVES].T.tocsr() for half in range(HALVES)]
        for start, mean, strength in self._texts():
            fires = strength[:, self.latents] > 0
            for half in range(HALVES):
                at = np.flatnonzero(self.allowed.half[start : start + mean.shape[0]] == half)
                self._add_alike(half, start + at, mean[at], against[half], fires[at])

    def _add_alike(self, half: int, row: Ints, mean: csr_matrix, against: csr_matrix, fires: csr_matrix) -> None:
        """Add texts `row` [n] of a half with `mean` [n × d_sae], where they are alike to a column of `against`
        [d_sae × latents] and `fires` [n × latents] is false."""
        length = np.sqrt(np.asarray(mean.multiply(mean).sum(axis=1)).ravel())
        alike = mean @ against
        alike = (alike - alike.multiply(fires)).tocoo()
        positive = alike.data > 0
        at, column = alike.row[positive], alike.col[positive].astype(np.int64)
        # Rounded, so that the order of sums does not decide between texts that are equally alike.
        cosine = np.round(alike.data[positive] / length[at], 6)
        self.near.add(column * HALVES + half, -cosine, row[at])

    def _texts(self) -> Iterator[tuple[int, csr_matrix, csr_matrix]]:
        """(first row, means, strengths) of some texts at a time."""
        means, strengths = (self.scan.pooled_parts(self.sae_id, stat) for stat in ("mean", "read_max"))
        for (start, mean), (_, strength) in zip(means, strengths, strict=True):
            for i in range(0, mean.shape[0], TEXTS_AT_ONCE):
                yield start + i, mean[i : i + TEXTS_AT_ONCE], strength[i : i + TEXTS_AT_ONCE]


def _column(matrix: Any, column: int) -> Ints:
    """Rows of a column's entries, of a CSC matrix."""
    rows: Ints = matrix.indices[matrix.indptr[column] : matrix.indptr[column + 1]]
    return rows


def _centroid(total: csr_matrix, weight: float, usual: Floats, latent: int) -> csr_matrix:
    """One centroid [1 × d_sae] from the weighted sum of texts; without entries where nothing can be compared.
    `usual` [d_sae]: the mean that is taken off."""
    value = total.data / weight - usual[total.indices] if weight else total.data
    kept = np.flatnonzero((value > 0) & (total.indices != latent))
    kept = kept[np.lexsort((total.indices[kept], -value[kept]))[:CENTROID_LATENTS]]
    at = (np.zeros(len(kept), np.int64), total.indices[kept])
    return csr_matrix((value[kept] / (np.linalg.norm(value[kept]) or 1.0), at), shape=total.shape)
