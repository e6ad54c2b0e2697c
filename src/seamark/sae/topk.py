"""The k largest of each row, exactly, in two steps."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from seamark.sae import kernels

GROUP = 8


def top_k(pre_NF: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest entries of each row, in no particular order.

    Args:
        pre_NF: [n, d_sae], finite; float64, float32 or bfloat16.
        k: 1 … d_sae.

    Returns:
        (indices int64 [n, k], values [n, k]). Exact; among equal values the choice is deterministic.

    On the CPU a row is cut into groups; the k largest values lie in the k groups with the largest maxima, so
    only those groups are searched. numpy's vectorised partition is faster there than `torch.topk`.
    """
    if kernels.usable(pre_NF):
        return kernels.top_k(pre_NF, k)
    if pre_NF.device.type != "cpu":
        values, indices = pre_NF.topk(k, dim=1, sorted=False)
        return indices, values
    n, d_sae = pre_NF.shape
    per_row = GROUP
    while per_row > 1 and (d_sae % per_row or d_sae // per_row < 2 * k):
        per_row //= 2
    if per_row == 1:
        indices = partition(pre_NF, k)
        return indices, pre_NF.gather(1, indices)
    groups = d_sae // per_row  # group g holds latents g, g + groups, g + 2·groups, …: its maximum is one of slabs
    best = partition(pre_NF.view(n, per_row, groups).amax(1), k)
    members = torch.arange(0, d_sae, groups)[None, :, None]
    candidates = (best[:, None, :] + members).flatten(1)
    values = pre_NF.gather(1, candidates)
    chosen = partition(values, k)
    return candidates.gather(1, chosen), values.gather(1, chosen)


def partition(x_NM: Tensor, k: int) -> Tensor:
    """Indices int64 [n, k] of the k largest of each row (CPU)."""
    m = x_NM.shape[1]
    x_NM = x_NM.float() if x_NM.dtype is torch.bfloat16 else x_NM
    return torch.from_numpy(np.ascontiguousarray(np.argpartition(x_NM.numpy(), m - k, axis=1)[:, m - k :]))


def largest(x_NM: Tensor, k: int) -> Tensor:
    """`partition` on any device."""
    return partition(x_NM, k) if x_NM.device.type == "cpu" else x_NM.topk(k, dim=1, sorted=False).indices
