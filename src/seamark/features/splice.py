"""Activations replaced at a hookpoint: by what an autoencoder makes of them, by zero, or by their mean."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from seamark.errors import ConfigError, DataError
from seamark.model.batching import Batch, collate, plan_batches
from seamark.model.loading import HookedModel
from seamark.model.precision import Precision
from seamark.model.reading import Change, read
from seamark.sae import SparseAutoencoder
from seamark.text.rendering import Rendered

Replace = Literal["all", "text"]
"""Which positions are replaced (padding never is).

`all`: every token. `text`: neither special tokens nor the first token of a text. Those few carry activations a hundred
times larger than others at fixed dimensions, on which attention leans ("massive activations", arXiv 2402.17762). An
autoencoder trained without them (Seamark's own read no special tokens) cannot rebuild them, and the model then loses
far more than the autoencoder's work on the text says.
"""


def replaced(text: Rendered, replace: Replace) -> NDArray[np.bool_]:
    """Which tokens of a text are replaced, [T]."""
    inside = np.ones(len(text), dtype=np.bool_)
    if replace == "text":
        inside &= ~text.special
        inside[:1] = False
    return inside


def check_replaced(texts: Sequence[Rendered], replace: Replace) -> int:
    """How many positions are replaced. Raises `ConfigError` on an unknown kind, `DataError` where there are none."""
    if replace not in ("all", "text"):
        raise ConfigError(f"unknown positions to replace {replace!r}", fix="Use all or text")
    n = sum(int(replaced(t, replace).sum()) for t in texts)
    if n == 0:
        raise DataError("the texts have no token to replace", fix="Give longer texts, or replace all")
    return n


def splice(sae: SparseAutoencoder, texts: Sequence[Rendered], replace: Replace = "all") -> Change:
    """A change for `apply_at`: activations become the autoencoder's reconstruction. Batches hold rows of `texts`."""

    def rebuilt(h_ND: Tensor) -> Tensor:
        weight = sae.W_dec
        return sae(h_ND.to(weight.device, weight.dtype))

    return _replacing(rebuilt, texts, replace)


def ablate(value_D: Tensor | float, texts: Sequence[Rendered], replace: Replace = "all") -> Change:
    """A change for `apply_at`: activations become `value_D` ([d_in], or one number). Batches hold rows of `texts`."""
    fill = torch.as_tensor(value_D)
    return _replacing(lambda h_ND: fill.to(h_ND).expand_as(h_ND), texts, replace)


def _replacing(make: Callable[[Tensor], Tensor], texts: Sequence[Rendered], replace: Replace) -> Change:
    def change(h_BTD: Tensor, batch: Batch) -> Tensor:
        inside_BT = _inside(batch, texts, replace).to(h_BTD.device)
        if not bool(inside_BT.any()):
            return h_BTD
        out_BTD = h_BTD.clone()
        out_BTD[inside_BT] = make(h_BTD[inside_BT]).to(h_BTD)
        return out_BTD

    return change


def _inside(batch: Batch, texts: Sequence[Rendered], replace: Replace) -> Tensor:
    inside_BT = torch.zeros(batch.input_ids.shape, dtype=torch.bool)
    for b, row in enumerate(batch.rows):
        inside_BT[b, : len(texts[row])] = torch.from_numpy(replaced(texts[row], replace))
    return inside_BT


def mean_activation(
    model: HookedModel, hookpoint: str, texts: Sequence[Rendered], replace: Replace = "all", *,
    batch_tokens: int = 8192, precision: Precision = "fp32",
) -> Tensor:  # fmt: skip
    """Mean activation [d_in] at a hookpoint over the positions that are replaced, summed in float64."""
    total_D, n = torch.zeros(model.d_model(hookpoint), dtype=torch.float64), 0
    for rows in plan_batches([len(t) for t in texts], batch_tokens):
        batch = collate(texts, int(model.config.pad_token_id), rows=rows)
        h_BTD = read(model, batch, [hookpoint], precision=precision).activations[hookpoint]
        h_ND = h_BTD[_inside(batch, texts, replace).to(h_BTD.device)].cpu().double()
        total_D += h_ND.sum(0)
        n += len(h_ND)
    return (total_D / n).float()
