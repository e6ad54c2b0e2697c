"""The encoder's product x W_encᵀ + b_enc in three number formats, a chunk of positions at a time.

fp32 is exact (it is the weights' own format, float64 in tests). bf16 and int8 keep a cheaper copy of W_enc and serve to
find candidates only, where AVX-512 BF16 or VNNI, AMX or a GPU multiplies them several times as fast as fp32.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import ClassVar

import torch
from torch import Tensor

from seamark.sae.config import Encoding

QUANTIZE_BYTES = 4 << 20
CUDA_CHUNK_BYTES = 1 << 30


class Product(ABC):
    """W_enc [d_sae, d_in] (rows contiguous, changed in place by the optimiser) and b_enc [d_sae]."""

    spare: ClassVar[int]
    """Candidates beyond k so that the true k largest are among them (recall ≥ 0.9999 on real activations)."""
    chunk_bytes: ClassVar[int]
    """Pre-activations alive at once: small enough to be searched in the cache, large enough for the product."""

    def __init__(self, W_enc_FD: Tensor, b_enc_F: Tensor) -> None:
        self.W_enc, self.b_enc = W_enc_FD, b_enc_F
        self.stale = True
        self._buffer: Tensor | None = None

    def chunks(self, x_ND: Tensor) -> Iterator[tuple[slice, Tensor, Tensor | None]]:
        """(rows, their pre-activations [rows, d_sae], the unit [rows, 1] these are in, None: 1); the tensor is
        overwritten by the next chunk."""
        n, d_sae = x_ND.shape[0], self.W_enc.shape[0]
        chunk_bytes = CUDA_CHUNK_BYTES if x_ND.is_cuda else self.chunk_bytes
        rows = max(1, min(n, chunk_bytes // (d_sae * self.element_size)))
        if self._buffer is None or self._buffer.shape[0] < rows:
            self._buffer = torch.empty(rows, d_sae, dtype=self.dtype, device=x_ND.device)
        self.refresh(x_ND)
        self.stale = False
        for start in range(0, n, rows):
            part = x_ND[start : start + rows]
            yield slice(start, start + len(part)), *self.multiply(part, self._buffer[: len(part)])

    @property
    def dtype(self) -> torch.dtype:
        """Of the pre-activations."""
        return self.W_enc.dtype

    @property
    def element_size(self) -> int:
        return torch.empty((), dtype=self.dtype).element_size()

    @abstractmethod
    def refresh(self, x_ND: Tensor) -> None:
        """Bring the cheap copy of W_enc up to date, for these positions."""

    @abstractmethod
    def multiply(self, x_ND: Tensor, out: Tensor) -> tuple[Tensor, Tensor | None]:
        """Pre-activations of a chunk, into `out`, and their unit [rows, 1] (None: 1)."""


class Exact(Product):
    spare, chunk_bytes = 0, 8 << 20

    def refresh(self, x_ND: Tensor) -> None:
        pass

    def multiply(self, x_ND: Tensor, out: Tensor) -> tuple[Tensor, Tensor | None]:
        return torch.addmm(self.b_enc, x_ND, self.W_enc.T, out=out), None


class BFloat16(Product):
    spare, chunk_bytes = 16, 16 << 20

    def __init__(self, W_enc_FD: Tensor, b_enc_F: Tensor) -> None:
        super().__init__(W_enc_FD, b_enc_F)
        self._W = torch.empty_like(W_enc_FD, dtype=torch.bfloat16)

    @property
    def dtype(self) -> torch.dtype:
        return torch.bfloat16

    def refresh(self, x_ND: Tensor) -> None:
        if self.stale:
            self._W.copy_(self.W_enc)

    def multiply(self, x_ND: Tensor, out: Tensor) -> tuple[Tensor, Tensor | None]:
        return torch.addmm(self.b_enc.bfloat16(), x_ND.bfloat16(), self._W.T, out=out), None


class Int8(Product):
    """A scale for each row of x and of W_enc. A dimension with large activations would cost all the others their
    digits: the root of its size is moved into the weights first (as in SmoothQuant, arXiv 2211.10438)."""

    spare, chunk_bytes = 48, 32 << 20

    def __init__(self, W_enc_FD: Tensor, b_enc_F: Tensor) -> None:
        super().__init__(W_enc_FD, b_enc_F)
        self._W = torch.empty_like(W_enc_FD, dtype=torch.int8)
        self._scale_F = torch.empty_like(b_enc_F)
        self._spread_D = W_enc_FD.new_ones(W_enc_FD.shape[1])
        self._sums: Tensor | None = None

    def refresh(self, x_ND: Tensor) -> None:
        tiny = torch.finfo(x_ND.dtype).tiny
        self._spread_D = x_ND.abs().amax(0).clamp_min_(tiny).sqrt_()
        step = max(1, QUANTIZE_BYTES // (4 * self.W_enc.shape[1]))
        for low in range(0, self.W_enc.shape[0], step):  # in tiles, each read once and kept in the cache
            tile = self.W_enc[low : low + step] * self._spread_D
            size = tile.abs().amax(1).clamp_min_(tiny)
            torch.div(size, 127.0, out=self._scale_F[low : low + step])
            self._W[low : low + step] = tile.mul_((127.0 / size)[:, None]).round_()

    def multiply(self, x_ND: Tensor, out: Tensor) -> tuple[Tensor, Tensor | None]:
        scaled = x_ND / self._spread_D
        per_row = 127.0 / scaled.abs().amax(1).clamp_min_(torch.finfo(x_ND.dtype).tiny)
        x8_ND = scaled.mul_(per_row[:, None]).round_().to(torch.int8)
        if self._sums is None or self._sums.shape[0] < len(out):
            self._sums = torch.empty(out.shape, dtype=torch.int32, device=out.device)
        sums = torch._int_mm(x8_ND, self._W.T, out=self._sums[: len(out)])
        torch.mul(sums, self._scale_F, out=out)
        return out.addcmul_(per_row[:, None], self.b_enc), per_row.reciprocal()[:, None]


PRODUCTS: dict[Encoding, type[Product]] = {"fp32": Exact, "bf16": BFloat16, "int8": Int8}
