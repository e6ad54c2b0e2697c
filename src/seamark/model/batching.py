"""Batches: which texts run together, and how they are padded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from seamark.errors import ModelError
from seamark.text.rendering import Rendered


@dataclass(frozen=True)
class Batch:
    """Texts padded to one length: on the right, or as a direct call of the model has them.

    `input_ids` and `attention_mask` are int64 [B, T]; `rows` [B] says which text each row is.
    """

    input_ids: Tensor
    attention_mask: Tensor
    rows: tuple[int, ...]
    before: Tensor | None = None
    """int64 [B], in a direct call of the model: tokens of each text that lie before the first column, in a cache."""
    given: Tensor | None = None
    """int64 [B], in `generate`: tokens of each text that were given to go on from. What stands behind is the answer."""

    @property
    def positions(self) -> Tensor:
        """Where each token stands in its text, counted from 0 and without padding, int64 [B, T]; −1 at padding."""
        place = self.attention_mask.cumsum(1) - 1
        if self.before is not None:
            place = place + self.before[:, None]
        return place.masked_fill(self.attention_mask == 0, -1)

    def to(self, device: torch.device) -> Batch:
        """The same batch on another device."""
        more = [None if t is None else t.to(device) for t in (self.before, self.given)]
        return Batch(self.input_ids.to(device), self.attention_mask.to(device), self.rows, *more)


def plan_batches(lengths: Sequence[int], batch_tokens: int, max_batch: int | None = None) -> list[list[int]]:
    """Group texts of similar length, longest first, so that rows × longest row stays within `batch_tokens`.

    The plan depends on the lengths alone (ties keep their order), so every run of it is the same. A text
    longer than the budget gets a batch of its own.

    Args:
        lengths: tokens of each text.
        batch_tokens: padded tokens allowed in a batch.
        max_batch: rows allowed in a batch.

    Returns:
        Indices into `lengths`, each exactly once.
    """
    batches: list[list[int]] = []
    current: list[int] = []
    longest = 0
    for i in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        full = (len(current) + 1) * longest > batch_tokens or len(current) == max_batch
        if current and full:
            batches.append(current)
            current = []
        if not current:
            longest = lengths[i]
        current.append(i)
    if current:
        batches.append(current)
    return batches


def collate(
    rendered: Sequence[Rendered], pad_id: int, pad_to: int | None = None, rows: Sequence[int] | None = None
) -> Batch:
    """Pad texts on the right.

    Args:
        rendered: the texts.
        pad_id: token id to pad with.
        pad_to: pad to at least this length; the longest text's length if absent.
        rows: which of `rendered` to take, in this order; all if absent.

    Raises:
        ModelError: a text has no tokens at all.
    """
    chosen = tuple(range(len(rendered))) if rows is None else tuple(rows)
    ids = [torch.as_tensor(rendered[r].input_ids, dtype=torch.int64) for r in chosen]
    for r, row in zip(chosen, ids, strict=True):
        if len(row) == 0:
            raise ModelError("a text without a single token cannot be read", where=rendered[r].text_id)
    width = max([len(row) for row in ids] + [pad_to or 0])
    input_ids = torch.full((len(ids), width), pad_id, dtype=torch.int64)
    mask = torch.zeros((len(ids), width), dtype=torch.int64)
    for i, row in enumerate(ids):
        input_ids[i, : len(row)] = row
        mask[i, : len(row)] = 1
    return Batch(input_ids, mask, chosen)
