"""Processes side by side under `torchrun`: set up from its environment, and agree on what happens next.

Every helper is the identity in a process that is alone, so callers need no second path.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from seamark.errors import RunError, SeamarkError
from seamark.run.watch import be_silent

T = TypeVar("T")
PATIENCE = datetime.timedelta(days=1)
"""How long ranks wait for one that reads or writes alone."""
SETTLE_S = 0.2


def rank() -> int:
    """This process among all, from 0."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def world() -> int:
    """How many processes there are."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


@contextlib.contextmanager
def joined() -> Iterator[int]:
    """Join the other processes of a `torchrun` (`RANK` and `WORLD_SIZE` in the environment); yields the rank.

    With GPUs every process takes its own (`LOCAL_RANK`) and exchanges over NCCL, else over gloo. Ranks but 0 show no
    progress. Without torchrun nothing happens.

    Raises:
        RunError: the environment is incomplete, or there are fewer GPUs than processes.
    """
    if int(os.environ.get("WORLD_SIZE") or 1) < 2 or dist.is_initialized():
        yield rank()
        return
    missing = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if not os.environ.get(name)]
    if missing:
        raise RunError(f"WORLD_SIZE is set but {', '.join(missing)} is not", fix="Start with torchrun")
    backend = "gloo"
    if torch.cuda.is_available():
        device = int(os.environ.get("LOCAL_RANK") or 0)
        if device >= torch.cuda.device_count():
            raise RunError(f"process {device} of this machine finds {torch.cuda.device_count()} GPUs",
                           fix="Start no more processes than there are GPUs")  # fmt: skip
        torch.cuda.set_device(device)
        backend = "cpu:gloo,cuda:nccl"
    dist.init_process_group(backend, timeout=PATIENCE)
    if rank():
        be_silent()
    try:
        yield rank()
    finally:
        # gloo's threads let go of the last tensors behind our back, which needs the interpreter's lock: a process that
        # ends before they got it is aborted by C++, though all its work was done.
        time.sleep(SETTLE_S)
        dist.destroy_process_group()


def share(tensor: Tensor, source: int) -> None:
    """Every rank's `tensor` (same shape and device type everywhere) becomes the one of rank `source`."""
    if world() > 1:
        dist.broadcast(tensor, source)


def told(value: T, source: int = 0) -> T:
    """The `value` of rank `source`, on every rank: small plain data only."""
    if world() == 1:
        return value
    box: list[Any] = [value if rank() == source else None]
    dist.broadcast_object_list(box, source)
    return box[0]


def collected(value: T) -> list[T]:
    """The values of all ranks, in their order, on every rank: small plain data only."""
    if world() == 1:
        return [value]
    boxes: list[Any] = [None] * world()
    dist.all_gather_object(boxes, value)
    return boxes


def together(work: Callable[[], T]) -> T:
    """Do `work` on every rank; where one fails, all raise its error instead of waiting for it for ever."""
    if world() == 1:
        return work()
    problem: Exception | None = None
    try:
        value = work()
    except Exception as e:
        problem = e
    failed = torch.tensor([problem is not None], dtype=torch.int32, device=_device())
    dist.all_reduce(failed, op=dist.ReduceOp.MAX)
    if not int(failed):
        return value
    said = collected(_plain(problem))
    if problem is not None:
        raise problem
    first = next(one for one in said if one is not None)
    raise first


def by_first(work: Callable[[], None]) -> None:
    """Do `work` (writing, most likely) on rank 0 only; all wait until it is done, and fail where it fails."""
    together(work if rank() == 0 else lambda: None)


def _device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def _plain(problem: Exception | None) -> SeamarkError | None:
    """The error in a form that every process can unpack."""
    if problem is None or isinstance(problem, SeamarkError):
        return problem
    return RunError(f"rank {rank()} failed ({type(problem).__name__}: {problem})", fix="See its own messages")
