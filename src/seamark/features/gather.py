"""Activations at chosen positions: where a model's reading becomes rows for an autoencoder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from seamark.errors import DataError
from seamark.model.batching import collate
from seamark.model.loading import HookedModel
from seamark.model.precision import Precision
from seamark.model.reading import Reader
from seamark.text.rendering import Rendered

Positions = NDArray[np.int32]


def public_name(model: HookedModel) -> str:
    """The model's name for files that travel: a name on the Hub whole, of a folder on this machine its last part."""
    return Path(model.name).name if Path(model.name).exists() else model.name


class Gathered(NamedTuple):
    """One batch, read."""

    activations: dict[str, Tensor]
    """{hookpoint: float32 [n, d_in]}: the chosen positions of the first text, then of the second, …"""
    rewards: NDArray[np.float64] | None
    """[texts of the batch], where asked for."""


def gather(
    model: HookedModel,
    texts: Sequence[Rendered],
    rows: Sequence[int],
    positions: Sequence[Positions],
    hookpoints: Sequence[str],
    *,
    with_rewards: bool = False,
    precision: Precision = "fp32",
    pad_to: int | None = None,
) -> Gathered:
    """Read texts `rows` in one batch, and of their activations keep `positions` only.

    Args:
        model: any model with hookpoints.
        texts: all texts; `rows` says which of them make this batch.
        rows: indices into `texts`.
        positions: for each of `rows`, the token positions to keep.
        hookpoints: where to read.
        with_rewards: run to the head.
        pad_to: pad to at least this length.
        precision: number format of the model's pass; what is gathered is float32.

    Raises:
        DataError: NaN or infinite activations or rewards, naming hookpoint and text.
    """
    with Reader(model, hookpoints, with_output=with_rewards, precision=precision) as reader:
        return gather_by(reader, texts, rows, positions, pad_to=pad_to)


def gather_by(
    reader: Reader, texts: Sequence[Rendered], rows: Sequence[int], positions: Sequence[Positions], *,
    pad_to: int | None = None,
) -> Gathered:  # fmt: skip
    """`gather` for many batches, by an open reader."""
    batch = collate(texts, int(reader.model.config.pad_token_id), pad_to, rows)
    reading = reader(batch)
    counts = np.asarray([len(p) for p in positions])
    at_B = torch.from_numpy(np.repeat(np.arange(len(rows)), counts))
    at_T = torch.from_numpy(np.concatenate([*positions, np.empty(0, np.int32)]).astype(np.int64))
    activations = {}
    for hookpoint, h_BTD in reading.activations.items():
        h_ND = h_BTD[at_B.to(h_BTD.device), at_T.to(h_BTD.device)].float()
        finite = torch.isfinite(h_ND).all(1).cpu().numpy()
        if not finite.all():
            row = rows[int(at_B[int(np.flatnonzero(~finite)[0])])]
            raise DataError(
                "activations hold NaN or infinite values", where=f"{hookpoint} of text {texts[row].text_id}",
                fix="Read the model in float32, or choose another hookpoint",
            )  # fmt: skip
        activations[hookpoint] = h_ND
    rewards = None if reading.rewards is None else reading.rewards.double().cpu().numpy()
    if rewards is not None and not np.isfinite(rewards).all():
        row = rows[int(np.flatnonzero(~np.isfinite(rewards))[0])]
        raise DataError("the reward is not a finite number", where=f"text {texts[row].text_id}")
    return Gathered(activations, rewards)
