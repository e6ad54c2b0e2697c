"""What a contender is asked to do, the batches it gets, and the clock that stands beside it."""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

Reconstruct = Callable[[Tensor], Tensor]
"""Activations [n, d_in] as the trained autoencoder gives them back, in the same units."""
WARMUP_SHARE, DECAY_SHARE = 0.05, 0.2
"""Linear warm-up and decay to 0 over these shares of the steps, for everybody whose trainer has such a schedule."""
LONG = 10_000
"""Steps announced to trainers that are only timed: schedules then stay in their first part."""
CHUNK = 2048


class EnoughError(Exception):
    """Raised out of a training run that has been timed for long enough."""


@dataclass(frozen=True)
class Job:
    """One run of one contender."""

    contender: str
    module: str
    data: str
    """safetensors file with `x`: [n, d_in] activations to train on."""
    d_in: int
    d_sae: int
    k: int
    batch: int
    lr: float
    options: dict[str, Any] = field(default_factory=dict)
    """Of the contender's own trainer."""
    seed: int = 0
    warmup: int = 2
    """Steps that are not timed."""
    least: int = 2
    """Timed steps at least; more as long as `seconds` are not over."""
    seconds: float = 0.0
    shuffle: bool = False
    """Give positions in a random order, another one each epoch; else as they lie (a pool that is random already)."""
    valid: str = ""
    held_out: str = ""
    """Files to evaluate a whole training of `steps` on; none: speed is measured only."""
    steps: int = LONG
    """Steps announced to the trainer."""

    @classmethod
    def read(cls, path: str | Path) -> Job:
        return cls(**json.loads(Path(path).read_text()))

    @property
    def warmup_steps(self) -> int:
        return max(1, round(WARMUP_SHARE * self.steps))

    @property
    def decay_steps(self) -> int:
        return max(1, round(DECAY_SHARE * self.steps))


class Feed:
    """Batches [batch, d_in] in float32, and when each was asked for.

    Reading a batch is a tick of the clock (unless the contender ticks by itself after each step): between two ticks
    lies one step. A timed feed ends training by `EnoughError`; that of a whole training gives exactly `steps` batches.
    """

    def __init__(self, x_ND: Tensor, job: Job, *, timed: bool) -> None:
        self.x_ND, self.job, self.timed = x_ND, job, timed
        self.ticks: list[float] = []
        self.started: float | None = None
        self.notes: dict[str, str] = {}
        """What a contender says of itself; goes into its row."""

    def start(self) -> None:
        """Training begins now (else: with the first batch)."""
        if self.started is None:
            self.started = time.perf_counter()

    def tick(self) -> None:
        self.start()
        self.ticks.append(time.perf_counter())
        done = len(self.ticks) - 1 - self.job.warmup
        if self.timed and done >= self.job.least and self.spent() >= self.job.seconds:
            raise EnoughError

    def spent(self) -> float:
        """Seconds of the timed steps so far."""
        return self.ticks[-1] - self.ticks[self.job.warmup]

    @property
    def steps_per_second(self) -> float:
        return (len(self.ticks) - 1 - self.job.warmup) / self.spent()

    def batches(self, *, tick: bool = True) -> Iterator[Tensor]:
        for i, batch in enumerate(self._endless(self.job.seed)):
            if i == self.job.steps and not self.timed:
                return
            if tick:
                self.tick()
            yield batch

    def calibration(self, n: int) -> Iterator[Tensor]:
        """Batches outside of the clock, for trainers that measure the data's scale before they begin."""
        for batch, _ in zip(self._endless(self.job.seed + 1), range(n), strict=False):
            yield batch

    def _endless(self, seed: int) -> Iterator[Tensor]:
        """Epoch after epoch."""
        size, n = self.job.batch, len(self.x_ND)
        if n < size:
            raise ValueError(f"{n} positions do not fill a batch of {size}")
        generator = torch.Generator().manual_seed(seed)
        while True:
            order = torch.randperm(n, generator=generator) if self.job.shuffle else None
            for i in range(0, n - size + 1, size):
                batch = self.x_ND[i : i + size] if order is None else self.x_ND[order[i : i + size]]
                yield batch.float()


def load(path: str) -> Tensor:
    return load_file(path)["x"]


@torch.no_grad()
def fvu(reconstruct: Reconstruct, x_ND: Tensor) -> float:
    """Σ ‖x̂ − x‖² / Σ ‖x − mean(x)‖² over all positions, in double precision: the one measure for everybody."""
    mean = sum((part.double().sum(0) for part in x_ND.split(CHUNK)), torch.zeros(x_ND.shape[1]).double()) / len(x_ND)
    missed = total = 0.0
    for part in x_ND.split(CHUNK):
        x = part.float()
        missed += float((reconstruct(x).double() - x.double()).square().sum())
        total += float((x.double() - mean).square().sum())
    return missed / total


def peak_rss_mb() -> float:
    """Most memory this process ever held, in MB."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) / 2**10 for line in lines if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        unit = 2**20 if sys.platform == "darwin" else 2**10
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
