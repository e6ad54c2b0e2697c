"""The k largest of each row, exactly, in two reads of the row where sorting or a plain radix select takes many.

Floats become integers of the same order. First read: a row is cut into M strided groups and the maxima of the groups
stay in registers; a threshold that k to 1.25 k maxima reach has at least k entries above it and few more. Second read:
what reaches the threshold is written down in the order of the latents. A second kernel selects the k largest of those.
Many equal values, or many large ones in one group, only cost more: the threshold is raised until few enough are left.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from seamark.sae.kernels import on_device_of, power_of_two

MAX_K = 4096
"""Beyond it (group maxima and candidates no longer fit the registers) torch sorts the rows."""

PER_WARP = 256
"""Places of the row a warp searches at a time: 8 a thread keep registers low enough for 7 programs on a processor."""

LOWEST = tl.constexpr(-(2**31))
HIGHEST = tl.constexpr(2**31 - 1)
INFINITY = tl.constexpr(0x7F800000)


@triton.jit
def _keys(row, at, live, NARROW: tl.constexpr):
    """int32 in the order of the floats: −0.0 equals 0.0, NaN is above all, a place that is not live below all."""
    bits = tl.load(row + at, mask=live, other=0.0).to(tl.float32).to(tl.int32, bitcast=True)
    key = bits ^ ((bits >> 31) & HIGHEST)
    key = tl.where(key == -1, 0, key)
    key = tl.where((bits & HIGHEST) > INFINITY, HIGHEST, key)
    if NARROW:  # bfloat16: the lower half tells nothing apart
        key = key >> 16
    return tl.where(live, key, LOWEST)


@triton.jit
def _middle(low, high):
    """⌈(low + high) / 2⌉ without overflow."""
    return (low | high) - ((low ^ high) >> 1)


@triton.jit
def _threshold(keys, low, high, count, k, enough):
    """(t, number of keys ≥ t): that number is in [k, enough], or t is the k-th largest key. `count` keys are ≥ low."""
    while (low < high) & (count > enough):
        middle = _middle(low, high)
        reached = tl.sum((keys >= middle).to(tl.int32), axis=0)
        up = reached >= k
        low = tl.where(up, middle, low)
        high = tl.where(up, high, middle - 1)
        count = tl.where(up, reached, count)
    return low, count


@triton.jit
def _raise(row, low, high, count, k, enough, d_sae, NARROW: tl.constexpr, B: tl.constexpr):
    """`_threshold` of a whole row, read again at every step."""
    while (low < high) & (count > enough):
        middle = _middle(low, high)
        reached = tl.zeros([B], dtype=tl.int32)
        for start in range(0, d_sae, B):
            at = start + tl.arange(0, B)
            reached += (_keys(row, at, at < d_sae, NARROW) >= middle).to(tl.int32)
        total = tl.sum(reached, axis=0)
        up = total >= k
        low = tl.where(up, middle, low)
        high = tl.where(up, high, middle - 1)
        count = tl.where(up, total, count)
    return low


@triton.jit
def _collect(row, out, threshold, k, capacity, d_sae, NARROW: tl.constexpr, B: tl.constexpr):
    """Write down, ascending, the places of keys above the threshold and of the first k that equal it; their number."""
    above = tl.full([], 0, dtype=tl.int32)
    equal = tl.full([], 0, dtype=tl.int32)
    for start in range(0, d_sae, B):
        at = start + tl.arange(0, B)
        key = _keys(row, at, at < d_sae, NARROW)
        both = (key > threshold).to(tl.int32) + ((key == threshold).to(tl.int32) << 16)  # two counts in one scan
        before = tl.cumsum(both, axis=0) - both
        rank = equal + (before >> 16)
        slot = above + (before & 0xFFFF) + tl.minimum(rank, k)
        kept = (key > threshold) | ((key == threshold) & (rank < k))
        tl.store(out + slot, at, mask=kept & (slot < capacity))
        found = tl.sum(both, axis=0)
        above += found & 0xFFFF
        equal += found >> 16
    return above + tl.minimum(equal, k)


@triton.jit
def _find_candidates(
    pre, stride, out, counts, d_sae, k, enough, capacity, NARROW: tl.constexpr, M: tl.constexpr, B: tl.constexpr
):
    n = tl.program_id(0).to(tl.int64)
    row = pre + n * stride
    group = tl.arange(0, M)
    best = _keys(row, group, group < d_sae, NARROW)
    for start in range(M, d_sae, 4 * M):
        for part in tl.static_range(4):  # four loads in flight
            at = start + part * M + group
            best = tl.maximum(best, _keys(row, at, at < d_sae, NARROW))
    lowest = tl.min(tl.where(group < d_sae, best, HIGHEST), axis=0)
    highest = tl.max(best, axis=0)
    threshold, _ = _threshold(best, lowest, highest, tl.minimum(M, d_sae), k, enough)
    total = _collect(row, out + n * capacity, threshold, k, capacity, d_sae, NARROW, B)
    if total > capacity:
        threshold = _raise(row, threshold, highest, total, k, capacity, d_sae, NARROW, B)
        total = _collect(row, out + n * capacity, threshold, k, capacity, d_sae, NARROW, B)
    tl.store(counts + n, total)


@triton.jit
def _select(pre, stride, candidates, counts, indices, values, k, NARROW: tl.constexpr, C: tl.constexpr):
    n = tl.program_id(0).to(tl.int64)
    row = pre + n * stride
    place = tl.arange(0, C)
    count = tl.load(counts + n)
    live = place < count
    at = tl.load(candidates + n * C + place, mask=live, other=0)
    key = _keys(row, at, live, NARROW)
    lowest = tl.min(tl.where(live, key, HIGHEST), axis=0)
    threshold, _ = _threshold(key, lowest, tl.max(key, axis=0), count, k, k)
    level = (key == threshold).to(tl.int32)
    wanted = k - tl.sum((key > threshold).to(tl.int32), axis=0)  # of those that equal the threshold: the first ones
    kept = (key > threshold) | ((key == threshold) & (tl.cumsum(level, axis=0) <= wanted))
    slot = n * k + tl.cumsum(kept.to(tl.int32), axis=0) - 1
    tl.store(indices + slot, at.to(tl.int64), mask=kept)
    tl.store(values + slot, tl.load(row + at, mask=kept, other=0.0), mask=kept)


def top_k(pre_NF: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest entries of each row; of equal ones those of the lowest latents.

    Args:
        pre_NF: [n, d_sae], float32, bfloat16 or float16 (float64 is sorted by torch). NaN counts as the largest.
        k: 1 … d_sae.

    Returns:
        (indices int64 [n, k], ascending in each row; values [n, k] in the dtype of `pre_NF`). Exact.
    """
    n, d_sae = pre_NF.shape
    if k > MAX_K or pre_NF.dtype is torch.float64:
        indices = pre_NF.sort(dim=1, descending=True, stable=True).indices[:, :k].sort(dim=1).values
        return indices, pre_NF.gather(1, indices)
    pre_NF = pre_NF if pre_NF.stride(1) == 1 else pre_NF.contiguous()
    indices = torch.empty(n, k, dtype=torch.int64, device=pre_NF.device)
    values = pre_NF.new_empty(n, k)
    if n == 0:
        return indices, values
    widest = power_of_two(d_sae)
    groups = min(widest, max(1024, power_of_two(4 * k)))  # with 4 k groups about 1.5 k entries reach the threshold
    warps = min(16, max(4, groups // 512))
    block = min(widest, PER_WARP * warps)  # at most 4096: `_collect` counts in 16 bits
    capacity = max(32, power_of_two(2 * k))
    candidates = torch.empty(n, capacity, dtype=torch.int32, device=pre_NF.device)
    counts = torch.empty(n, dtype=torch.int32, device=pre_NF.device)
    narrow = pre_NF.dtype is torch.bfloat16
    stride = pre_NF.stride(0)
    with on_device_of(pre_NF):
        _find_candidates[(n,)](
            pre_NF, stride, candidates, counts, d_sae, k, k + k // 4, capacity, NARROW=narrow, M=groups, B=block,
            num_warps=warps, enable_fp_fusion=True,
        )  # fmt: skip
        _select[(n,)](
            pre_NF, stride, candidates, counts, indices, values, k, NARROW=narrow, C=capacity,
            num_warps=min(16, max(1, capacity // 256)), enable_fp_fusion=True,
        )  # fmt: skip
    return indices, values
