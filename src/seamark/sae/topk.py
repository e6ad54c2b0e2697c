"""Encode and keep the k largest: one dense product in row chunks, then an exact selection in two steps."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

CHUNK_ELEMENTS = 1 << 21
"""Pre-activations alive at once (8 MiB of fp32): the selection reads them while they are in the cache."""


def top_k(pre_NF: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest entries of each row, in no particular order.

    Args:
        pre_NF: [n, d_sae], finite.
        k: 1 … d_sae.

    Returns:
        (indices int64 [n, k], values [n, k]). Exact; among equal values the choice is deterministic.

    On the CPU a row is cut into groups; the k largest values lie in the k groups with the largest maxima, so
    only those groups are searched. numpy's vectorised partition is about twice as fast there as `torch.topk`.
    """
    if pre_NF.device.type != "cpu" or pre_NF.dtype not in (torch.float32, torch.float64):
        values, indices = pre_NF.topk(k, dim=1, sorted=False)
        return indices, values
    n, d_sae = pre_NF.shape
    per_row = next(g for g in (8, 4, 2, 1) if d_sae % g == 0 and (g == 1 or d_sae // g >= 2 * k))
    if per_row == 1:
        indices = _partition(pre_NF, k)
        return indices, pre_NF.gather(1, indices)
    groups = (
        d_sae // per_row
    )  # group g holds latents g, g + groups, g + 2·groups, …: its maximum is a plain max of slabs
    best = _partition(pre_NF.view(n, per_row, groups).amax(1), k)
    members = torch.arange(0, d_sae, groups)[None, :, None]
    candidates = (best[:, None, :] + members).flatten(1)
    values = pre_NF.gather(1, candidates)
    chosen = _partition(values, k)
    return candidates.gather(1, chosen), values.gather(1, chosen)


def _partition(x_NM: Tensor, k: int) -> Tensor:
    """Indices int64 [n, k] of the k largest of each row."""
    m = x_NM.shape[1]
    return torch.from_numpy(np.ascontiguousarray(np.argpartition(x_NM.numpy(), m - k, axis=1)[:, m - k :]))


def encode_top_k(x_ND: Tensor, W_enc_FD: Tensor, b_enc_F: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """TopK_k(x W_encᵀ + b_enc) without ever holding more than a chunk of the dense product.

    Args:
        x_ND: [n, d_in], already normalised and with b_dec taken away.
        W_enc_FD: [d_sae, d_in], rows contiguous.
        b_enc_F: [d_sae].

    Returns:
        (indices int64 [n, k], values [n, k]).
    """
    n, d_sae = x_ND.shape[0], W_enc_FD.shape[0]
    rows = max(1, min(n, CHUNK_ELEMENTS // d_sae))
    buffer = x_ND.new_empty(rows, d_sae)
    indices = torch.empty(n, k, dtype=torch.int64, device=x_ND.device)
    values = x_ND.new_empty(n, k)
    for start in range(0, n, rows):
        part = x_ND[start : start + rows]
        pre = torch.addmm(b_enc_F, part, W_enc_FD.T, out=buffer[: part.shape[0]])
        indices[start : start + rows], values[start : start + rows] = top_k(pre, k)
    return indices, values
