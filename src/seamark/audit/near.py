"""Near duplicates among pairs: MinHash finds candidates, their shingles are then compared exactly.

A text is the set of its word 3-shingles (runs of three words; signs of Chinese, Japanese, Korean and Thai are words of
their own). Pairs are near where prompt and both answers each have a Jaccard similarity of at least `THRESHOLD`, the
answers straight (same label) or crossed (opposite label). Candidates share one of 16 bands of 4 MinHash values over
all shingles of the pair (Broder 1997; Leskovec, Rajaraman and Ullman, Mining of Massive Datasets, section 3.4): at a
similarity of 0.7 that misses 1 in 80.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Hashes = NDArray[np.uint64]
Texts = tuple[str, str, str]
"""Prompt, chosen and rejected."""
SHINGLE = 3
THRESHOLD = 0.7
BANDS, ROWS = 16, 4
MOST_COMPARED = 400_000
"""Exact comparisons, at most: whoever fills a file with variants of one row cannot make the audit endless."""
MOST_WORDS = 20_000
"""Words of a text that count."""
HELD = 4096
_WORD = re.compile(r"[\u0e00-\u0eff\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af\uf900-\ufaff]|[^\W_]+")
_SPARE = 0.15
"""By how much the similarity that MinHash guesses may fall short before a candidate is dropped: 2.6 standard errors
of 64 values at the threshold."""


@dataclass(frozen=True)
class Matches:
    """Clusters of rows (ascending) that are near each other: of one label, and of opposite labels."""

    same: list[list[int]]
    opposite: list[list[int]]
    """Two rows each: one of either label."""
    checked: int
    """Exact comparisons made."""
    cut: bool
    """Whether there were more candidates than `MOST_COMPARED`."""


def near_pairs(texts: Sequence[Texts]) -> Matches:
    """Near duplicates among pairs of texts, which should not be equal. Deterministic; memory is one signature of 64
    numbers a pair, time linear in the length of the texts."""
    if len(texts) < 2:
        return Matches([], [], 0, False)
    signatures = np.stack([_signature(_of_pair(t)) for t in texts])

    @lru_cache(HELD)
    def sets(row: int) -> tuple[Hashes, Hashes, Hashes]:
        prompt, chosen, rejected = texts[row]
        return _shingles(prompt), _shingles(chosen), _shingles(rejected)

    same, opposite, checked, cut = _Sets(len(texts)), [], 0, False
    for a, b in _candidates(signatures):
        if same.find(a) == same.find(b):
            continue
        if checked == MOST_COMPARED:
            cut = True
            break
        checked += 1
        (prompt, chosen, rejected), (prompt_b, chosen_b, rejected_b) = sets(a), sets(b)
        if _similarity(prompt, prompt_b) < THRESHOLD:
            continue
        # Two answers may resemble each other: then both ways are near, and the nearer one tells the labels.
        straight = min(_similarity(chosen, chosen_b), _similarity(rejected, rejected_b))
        crossed = min(_similarity(chosen, rejected_b), _similarity(rejected, chosen_b))
        if max(straight, crossed) < THRESHOLD:
            continue
        if straight >= crossed:
            same.join(a, b)
        else:
            opposite.append([a, b])
    return Matches(same.clusters(), opposite, checked, cut)


def _similarity(a: Hashes, b: Hashes) -> float:
    """Jaccard similarity of two sets of shingles; 0 for all that must lie below `THRESHOLD`."""
    if not len(a) or not len(b):
        return float(len(a) == len(b))
    small, large = sorted((len(a), len(b)))
    if small < THRESHOLD * large:
        return 0.0
    shared = len(np.intersect1d(a, b, assume_unique=True))
    return shared / (len(a) + len(b) - shared)


@lru_cache(1 << 18)
def _word(word: str) -> int:
    return zlib.crc32(word.encode("utf-8", "surrogatepass"))


def _shingles(text: str) -> Hashes:
    """Hashes of a text's shingles, ascending and each once; of a shorter text one for all its words."""
    words = np.fromiter(map(_word, _WORD.findall(text.casefold())[:MOST_WORDS]), dtype=np.uint64)
    if not len(words):
        return words
    size = min(SHINGLE, len(words))
    found = np.zeros(len(words) - size + 1, dtype=np.uint64)
    for n in range(size):  # arithmetic is modulo 2⁶⁴
        found = found * np.uint64(0x9E3779B97F4A7C15) + words[n : n + len(found)]
    found ^= found >> np.uint64(29)
    return np.unique(found)


def _of_pair(texts: Texts) -> Hashes:
    """Shingles of all three texts; which answer is chosen leaves no trace."""
    return np.concatenate([_shingles(t) for t in texts])


_rng = np.random.default_rng(20_250_701)
_FACTORS = _rng.integers(1, 1 << 63, BANDS * ROWS, dtype=np.uint64) | np.uint64(1)
_OFFSETS = _rng.integers(0, 1 << 63, BANDS * ROWS, dtype=np.uint64)


def _signature(shingles: Hashes) -> NDArray[np.uint32]:
    """Least of each of 64 hashes (multiply-shift) over the shingles, [64]."""
    least = np.full(len(_FACTORS), np.iinfo(np.uint32).max, dtype=np.uint32)
    for start in range(0, len(shingles), 2048):
        some = shingles[start : start + 2048, None] * _FACTORS + _OFFSETS
        least = np.minimum(least, (some >> np.uint64(32)).astype(np.uint32).min(axis=0))
    return least


def _candidates(signatures: NDArray[np.uint32]) -> Iterator[tuple[int, int]]:
    """Rows that share a band, each with the one before it and with the first, band after band; those whose whole
    signatures differ too much are passed over."""
    seen: set[tuple[int, int]] = set()
    for band in range(BANDS):
        part = np.ascontiguousarray(signatures[:, band * ROWS : (band + 1) * ROWS])
        keys = part.view(np.dtype((np.void, part.dtype.itemsize * ROWS))).ravel()
        code = np.unique(keys, return_inverse=True)[1].ravel()
        order = np.argsort(code, kind="stable")
        sorted_code = code[order]
        new = np.ones(len(order), dtype=bool)
        new[1:] = sorted_code[1:] != sorted_code[:-1]
        first = np.maximum.accumulate(np.where(new, np.arange(len(order)), 0))
        inner = np.flatnonzero(~new)
        left = np.concatenate([order[inner - 1], order[first[inner]]])
        right = np.concatenate([order[inner], order[inner]])
        alike = (signatures[left] == signatures[right]).mean(axis=1) >= THRESHOLD - _SPARE
        for pair in zip(left[alike].tolist(), right[alike].tolist(), strict=True):
            if pair not in seen:
                seen.add(pair)
                yield pair


class _Sets:
    """Rows joined into clusters (union-find)."""

    def __init__(self, n: int) -> None:
        self.parent = list(range(n))

    def find(self, row: int) -> int:
        while self.parent[row] != row:
            self.parent[row] = self.parent[self.parent[row]]
            row = self.parent[row]
        return row

    def join(self, a: int, b: int) -> None:
        a, b = sorted((self.find(a), self.find(b)))
        self.parent[b] = a

    def clusters(self) -> list[list[int]]:
        """Clusters of two and more."""
        members: dict[int, list[int]] = {}
        for row in range(len(self.parent)):
            members.setdefault(self.find(row), []).append(row)
        return [rows for rows in members.values() if len(rows) > 1]
