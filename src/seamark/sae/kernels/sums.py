"""Weighted sums of table rows, and dot products of row pairs: decoder, activation gradients and weight gradients.

A program sums one row of the result over a block of columns, entry after entry, so the result never depends on timing.
Rows are the fast axis of the grid: programs that run together read the same block of columns of the table, and a table
larger than the L2 cache comes from memory once per block, not once per entry.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from seamark.sae.kernels import Entries, on_device_of, power_of_two

ENTRIES = 8
"""Table rows in flight in a program."""
COLUMNS = 512
"""Widest block of columns: 16 bytes a thread and row with 4 warps."""
PAIRS, PAIR_COLUMNS = 16, 128
"""Dot products of a program, and columns at a time: a warp holds a row, so that no sum crosses warps."""
WEIGHTS = 128
"""Weights of one latent added at a time."""


@triton.jit
def _weighted_rows(
    ids, weights, offsets, table, bias, out, width, per_row, stride,
    FLAT: tl.constexpr, BIAS: tl.constexpr, ACC: tl.constexpr, E: tl.constexpr, D: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * D + tl.arange(0, D)
    inside = column < width
    if FLAT:
        first = tl.load(offsets + row).to(tl.int64)
        last = tl.load(offsets + row + 1).to(tl.int64)
    else:
        first = row * per_row
        last = first + per_row
    total = tl.zeros([D], dtype=ACC)
    for start in range(first, last, E):
        entry = start + tl.arange(0, E)
        live = entry < last
        id_ = tl.load(ids + entry, mask=live, other=0).to(tl.int64)
        weight = tl.load(weights + entry, mask=live, other=0.0).to(ACC)
        at = table + id_[:, None] * stride + column[None, :]
        rows = tl.load(at, mask=live[:, None] & inside[None, :], other=0.0).to(ACC)
        total += tl.sum(weight[:, None] * rows, axis=0)
    if BIAS:
        total += tl.load(bias + column, mask=inside, other=0.0).to(ACC)
    tl.store(out + row * width + column, total, mask=inside)


@triton.jit
def _pair_products(
    left_ids, right_ids, left, right, out, count, width, left_stride, right_stride,
    ACC: tl.constexpr, E: tl.constexpr, D: tl.constexpr,
):  # fmt: skip
    entry = tl.program_id(0).to(tl.int64) * E + tl.arange(0, E)
    live = entry < count
    from_left = left + tl.load(left_ids + entry, mask=live, other=0).to(tl.int64)[:, None] * left_stride
    from_right = right + tl.load(right_ids + entry, mask=live, other=0).to(tl.int64)[:, None] * right_stride
    total = tl.zeros([E, D], dtype=ACC)
    for start in range(0, width, D):
        column = (start + tl.arange(0, D))[None, :]
        inside = live[:, None] & (column < width)
        a = tl.load(from_left + column, mask=inside, other=0.0).to(ACC)
        total += a * tl.load(from_right + column, mask=inside, other=0.0).to(ACC)
    tl.store(out + entry, tl.sum(total, axis=1), mask=live)


@triton.jit
def _segment_sums(weights, offsets, out, ACC: tl.constexpr, E: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    first = tl.load(offsets + row).to(tl.int64)
    last = tl.load(offsets + row + 1).to(tl.int64)
    total = tl.zeros([E], dtype=ACC)
    for start in range(first, last, E):
        entry = start + tl.arange(0, E)
        total += tl.load(weights + entry, mask=entry < last, other=0.0).to(ACC)
    tl.store(out + row, tl.sum(total, axis=0))


def decode_rows(
    indices: Tensor, values: Tensor, W_dec_FD: Tensor, offsets: Tensor | None = None, b_dec: Tensor | None = None
) -> Tensor:
    """Σ values · W_dec[indices] (+ b_dec) for every position.

    Args:
        indices: int [n, k], or flat [m] with `offsets`.
        values: in the shape of `indices`.
        W_dec_FD: [d_sae, d_in].
        offsets: int [n + 1]; position i owns the flat entries offsets[i]:offsets[i+1]. None for [n, k].
        b_dec: [d_in].

    Returns:
        [n, d_in] in the dtype of `values`, summed in float32 (float64 where `values` are).
    """
    n, k = (len(offsets) - 1, 0) if offsets is not None else (indices.shape[0], indices.shape[1])
    out = values.new_empty(n, W_dec_FD.shape[1])
    _launch_rows(indices, values, offsets, W_dec_FD, b_dec, out, k)
    return out


def sum_rows(entries: Entries, weights: Tensor, x_ND: Tensor, out: Tensor | None = None) -> Tensor:
    """For each latent Σ weight · x over its positions, [d_sae, d_in]; 0 for a latent without entries.

    Args:
        entries: in latent order; `latents` are not read.
        weights: [m] in latent order.
        x_ND: [n, d_in].
        out: where the sums go, contiguous; None for a new tensor.
    """
    if out is None:
        out = x_ND.new_empty(len(entries.offsets) - 1, x_ND.shape[1])
    _launch_rows(entries.positions, weights, entries.offsets, x_ND, None, out, 0)
    return out


def _launch_rows(
    ids: Tensor, weights: Tensor, offsets: Tensor | None, table: Tensor, bias: Tensor | None, out: Tensor, k: int
) -> None:
    if out.numel() == 0:
        return
    if not out.is_contiguous():
        raise ValueError("out must be contiguous")
    table = _rows_contiguous(table)
    width = table.shape[1]
    block = min(COLUMNS, max(32, power_of_two(width)))
    with on_device_of(out):
        _weighted_rows[(out.shape[0], triton.cdiv(width, block))](
            ids.contiguous(), weights.contiguous(), offsets, table, bias, out, width, k, table.stride(0),
            FLAT=offsets is not None, BIAS=bias is not None, ACC=_sums_in(out), E=ENTRIES, D=block,
            num_warps=max(1, block // 128), enable_fp_fusion=True,
        )  # fmt: skip


def sampled_products(entries: Entries, W_FD: Tensor, G_ND: Tensor) -> Tensor:
    """W[latent] · G[position] for every entry, [m] in the order of the entries (any: `offsets` are not read)."""
    out = W_FD.new_empty(len(entries.latents))
    if len(out) == 0:
        return out
    W_FD, G_ND = _rows_contiguous(W_FD), _rows_contiguous(G_ND)
    with on_device_of(out):
        _pair_products[(triton.cdiv(len(out), PAIRS),)](
            entries.latents.contiguous(), entries.positions.contiguous(), W_FD, G_ND, out, len(out), W_FD.shape[1],
            W_FD.stride(0), G_ND.stride(0), ACC=_sums_in(out), E=PAIRS, D=PAIR_COLUMNS, num_warps=4,
            enable_fp_fusion=True,
        )  # fmt: skip
    return out


def sum_weights(entries: Entries, weights: Tensor) -> Tensor:
    """For each latent Σ weight over its entries, [d_sae]; `index_add_` on CUDA adds in an order that varies."""
    out = weights.new_empty(len(entries.offsets) - 1)
    if len(out):
        with on_device_of(out):
            _segment_sums[(len(out),)](
                weights.contiguous(), entries.offsets, out, ACC=_sums_in(out), E=WEIGHTS, num_warps=1,
                enable_fp_fusion=True,
            )  # fmt: skip
    return out


def _rows_contiguous(x: Tensor) -> Tensor:
    return x if x.stride(1) == 1 or x.shape[1] == 1 else x.contiguous()


def _sums_in(x: Tensor) -> tl.dtype:
    return tl.float64 if x.dtype is torch.float64 else tl.float32
