"""The order in which pairs are trained on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from seamark.text.pairs import hash_unit

_WINDOW = 16
"""Batches within which pairs of similar length are put together: little padding, and still a shuffled order."""


class TokenPair(NamedTuple):
    """One pair, tokenised."""

    id: str
    chosen_ids: list[int]
    rejected_ids: list[int]

    @property
    def length(self) -> int:
        """Tokens of its longer text; the same for the flipped pair."""
        return max(len(self.chosen_ids), len(self.rejected_ids))


def training_order(rows: Sequence[TokenPair], epochs: int, batch_size: int, seed: int) -> list[TokenPair]:
    """All epochs one after the other, ready to be cut into batches of `batch_size`.

    Each epoch is shuffled by a hash of id and seed; then, within windows of a few batches, pairs are sorted
    by length and the batches shuffled again. Ids, lengths and seed decide all of it: flipping a label
    changes nothing.
    """
    stream: list[tuple[TokenPair, int]] = []
    for epoch in range(epochs):
        ranked = sorted(rows, key=lambda r: (hash_unit(f"{epoch}:{r.id}", seed), r.id))
        stream += [(row, epoch) for row in ranked]
    ordered: list[TokenPair] = []
    for start in range(0, len(stream), _WINDOW * batch_size):
        window = sorted(stream[start : start + _WINDOW * batch_size], key=lambda r: (r[0].length, r[0].id, r[1]))
        n_whole = len(window) // batch_size
        # Only the last batch of all may be short, so a short rest stays at the end.
        batches = [window[i * batch_size : (i + 1) * batch_size] for i in range(n_whole)]
        batches.sort(key=lambda b: hash_unit(f"batch:{start}:{b[0][1]}:{b[0][0].id}", seed))
        batches.append(window[n_whole * batch_size :])
        ordered += [row for batch in batches for row, _ in batch]
    return ordered
