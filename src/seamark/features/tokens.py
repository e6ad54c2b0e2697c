"""Texts as a stream of activations needs them: token ids and chosen positions, five bytes a token."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from seamark.features.gather import Positions
from seamark.text.rendering import Rendered

Choose = Callable[[Rendered], tuple[Rendered, Positions]]
"""A text as it is to be read (maybe cut), and which of its positions."""


@dataclass(frozen=True, eq=False)
class TokenTexts:
    """Texts with at least one position to read. 100 million tokens take 0.5 GB (ids int32, one byte of mask)."""

    ids: NDArray[np.int32]
    """Token ids of all texts, one behind the other."""
    chosen: NDArray[np.bool_]
    """Which of those tokens are read."""
    starts: NDArray[np.int64]
    """[texts + 1]: where each text begins in `ids`."""
    names: tuple[str, ...]
    """Text ids."""
    rows: NDArray[np.int64]
    """Which texts are meant, in which order: subsets share all else."""
    counts: NDArray[np.int64]
    """[rows] positions of each."""
    seen: int = 0
    """Texts that were looked at, those without a position too."""

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def n_positions(self) -> int:
        return int(self.counts.sum())

    @property
    def lengths(self) -> NDArray[np.int64]:
        """[rows] tokens of each."""
        found: NDArray[np.int64] = self.starts[self.rows + 1] - self.starts[self.rows]
        return found

    def name(self, i: int) -> str:
        return self.names[self.rows[i]]

    def subset(self, which: Sequence[int] | NDArray[np.int64]) -> TokenTexts:
        """Some of these texts, in the order given."""
        at = np.asarray(which, dtype=np.int64)
        return TokenTexts(self.ids, self.chosen, self.starts, self.names, self.rows[at], self.counts[at], self.seen)

    def positions(self, i: int) -> Positions:
        """Positions to read of text `i`, ascending."""
        return np.flatnonzero(self.chosen[self._span(i)]).astype(np.int32)

    def text(self, i: int) -> Rendered:
        """Text `i` as a model's batch takes it: ids and name, nothing about characters."""
        ids = self.ids[self._span(i)]
        none = np.zeros((len(ids), 2), dtype=np.int32)
        return Rendered(self.name(i), ids, none, "", (0, 0), (0, len(ids)), np.zeros(len(ids), dtype=np.bool_))

    def digest(self) -> str:
        """SHA-256 over ids and positions of the texts in their order, hexadecimal."""
        h = hashlib.sha256(self.lengths.tobytes())
        for i in range(len(self)):
            span = self._span(i)
            h.update(self.ids[span].tobytes())
            h.update(np.packbits(self.chosen[span]).tobytes())
        return h.hexdigest()

    def _span(self, i: int) -> slice:
        row = self.rows[i]
        return slice(int(self.starts[row]), int(self.starts[row + 1]))


class TokenTextsMaker:
    """Collects texts one by one, keeping ids and positions only.

    Args:
        choose: how a text is read.
        max_positions: texts are taken in their order until they have this many; of the last one the first ones.
    """

    def __init__(self, choose: Choose, max_positions: int | None = None) -> None:
        self.choose, self.left = choose, max_positions
        self._ids, self._chosen, self._starts = array("i"), array("B"), array("q", [0])
        self._counts, self._names, self._seen = array("q"), list[str](), 0

    @property
    def full(self) -> bool:
        return self.left == 0

    def add(self, text: Rendered) -> None:
        """Take one text, if there is a position to read in it."""
        if self.full:
            return
        self._seen += 1
        text, at = self.choose(text)
        at = at[: self.left]
        if not len(at):
            return
        if self.left is not None:
            self.left -= len(at)
        mask = np.zeros(len(text), dtype=np.uint8)
        mask[at] = 1
        self._ids.frombytes(np.ascontiguousarray(text.input_ids, dtype=np.int32).tobytes())
        self._chosen.frombytes(mask.tobytes())
        self._starts.append(len(self._ids))
        self._counts.append(len(at))
        self._names.append(text.text_id)

    def done(self) -> TokenTexts:
        """All that was taken."""
        return TokenTexts(
            np.frombuffer(self._ids, dtype=np.int32), np.frombuffer(self._chosen, dtype=np.bool_),
            np.frombuffer(self._starts, dtype=np.int64), tuple(self._names),
            np.arange(len(self._names), dtype=np.int64), np.frombuffer(self._counts, dtype=np.int64), self._seen,
        )  # fmt: skip


def collect(texts: Iterable[Rendered], makers: Sequence[TokenTextsMaker]) -> None:
    """One pass over `texts` for several makers; stops once all are full, so `texts` may be endless."""
    for text in texts:
        for maker in makers:
            maker.add(text)
        if all(maker.full for maker in makers):
            return
