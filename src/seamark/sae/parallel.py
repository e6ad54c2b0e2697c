"""Several processes under torchrun: who is who, and the few exchanges that training needs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")
Parallel = Literal["none", "data", "spread"]


@dataclass(frozen=True)
class Ranks:
    """This process among `size`; with size 1 every exchange is the identity."""

    rank: int = 0
    size: int = 1

    @classmethod
    def current(cls) -> Ranks:
        """Of the default process group, if one was set up."""
        if dist.is_available() and dist.is_initialized():
            return cls(dist.get_rank(), dist.get_world_size())
        return cls()

    def sum_(self, *tensors: Tensor) -> None:
        """Every tensor becomes its sum over ranks."""
        if self.size > 1:
            for tensor in tensors:
                dist.all_reduce(tensor)

    def max_(self, tensor: Tensor) -> None:
        if self.size > 1:
            dist.all_reduce(tensor, op=dist.ReduceOp.MAX)

    def min_(self, tensor: Tensor) -> None:
        if self.size > 1:
            dist.all_reduce(tensor, op=dist.ReduceOp.MIN)

    def gather(self, flat: Tensor) -> Tensor:
        """The concatenation, in rank order, of a vector that may differ in length between ranks."""
        if self.size == 1:
            return flat
        lengths = [torch.zeros(1, dtype=torch.int64, device=flat.device) for _ in range(self.size)]
        dist.all_gather(lengths, torch.tensor([flat.shape[0]], device=flat.device))
        longest = max(int(length) for length in lengths)
        padded = flat.new_zeros(longest)
        padded[: flat.shape[0]] = flat
        parts = [torch.empty_like(padded) for _ in range(self.size)]
        dist.all_gather(parts, padded)
        return torch.cat([part[: int(length)] for part, length in zip(parts, lengths, strict=True)])

    def from_(self, source: int, tensor: Tensor) -> Tensor:
        """The tensor of rank `source`."""
        if self.size == 1:
            return tensor
        sent = tensor.contiguous()
        dist.broadcast(sent, source)
        return sent if tensor.is_contiguous() else tensor.copy_(sent)

    def first(self, choose: Callable[[], T]) -> T:
        """What rank 0 chooses, on every rank: small plain data only. The others are idle while it measures."""
        if self.size == 1:
            return choose()
        box: list[Any] = [choose() if self.rank == 0 else None]
        dist.broadcast_object_list(box, 0)
        return box[0]

    def wait(self) -> None:
        """Until every rank is here."""
        if self.size > 1:
            dist.barrier()

    def share(self, x_ND: Tensor) -> Tensor:
        """This rank's rows of a batch: slices that differ by at most one row."""
        return x_ND.tensor_split(self.size)[self.rank]
