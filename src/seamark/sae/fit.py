"""Train autoencoders on a stream of activations: one stream feeds many, each exactly as if trained alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol, TypedDict, runtime_checkable

import torch
from torch import Tensor

from seamark.errors import ConfigError
from seamark.sae.autoencoder import SparseAutoencoder
from seamark.sae.checkpoint import Checkpoints, describe, read_fit, read_state
from seamark.sae.config import FitConfig, SAEConfig
from seamark.sae.parallel import Parallel, Ranks
from seamark.sae.trainer import FitLog, Trainer

Activations = Tensor | Mapping[str, Tensor]
"""A chunk of a stream: [n, d_in] of the one hookpoint, or {hookpoint: [n, d_in]}."""


@runtime_checkable
class Seekable(Protocol):
    """A stream that can begin in the middle, so that a resumed fit need not replay it."""

    def start_at(self, position: int) -> Iterator[Activations]:
        """The same chunks' contents from `position` (rows since the beginning) on."""
        ...


def fit(
    stream: Iterable[Activations],
    configs: Mapping[str, tuple[SAEConfig, FitConfig]],
    *,
    positions: int,
    init: Mapping[str, SparseAutoencoder] | None = None,
    device: torch.device | str = "cpu",
    log: Callable[[FitLog], None] | None = None,
    checkpoints: Checkpoints | None = None,
    parallel: Parallel = "none",
) -> dict[str, SparseAutoencoder]:
    """Train one or many autoencoders from one pass over `stream`.

    Each is trained exactly as if it were alone: the weights are equal bit for bit. The same stream, seed, number format
    and number of threads give the same weights. Fresh ones start tied, b_dec in the middle of the first batch.

    Args:
        stream: chunks of activations, shuffled by whoever makes them; [n, d_in], or {hookpoint: [n, d_in]}.
        configs: {name: (what it is, how it is trained)}.
        positions: how many positions the stream will give, for the learning-rate schedule.
        init: autoencoders to start from (SAFER's second stage, arXiv 2507.00665); they are changed in place.
        device: where training runs.
        log: called after each step of each autoencoder.
        checkpoints: where to save as training goes on. A folder that holds a checkpoint of the same fit is continued:
            the result equals that of an uninterrupted one. A `Seekable` stream continues in the middle, another one is
            replayed and its consumed part dropped.
        parallel: with a torch.distributed process group, every rank must give the same stream. "data": each batch is
            split over the ranks and gradients are summed; "spread": the autoencoders are dealt out to the ranks. Every
            rank returns all of them.

    Raises:
        DataError: NaN or infinite activations (naming hookpoint and step), wrong width, an empty stream, divergence.
        ConfigError: `init` does not fit its config; a checkpoint of another fit.
    """
    if not configs:
        raise ConfigError("no autoencoder to train", where="fit")
    ranks = Ranks.current() if parallel != "none" else Ranks()
    mine = list(configs)[ranks.rank :: ranks.size] if parallel == "spread" else list(configs)
    together = ranks if parallel == "data" else Ranks()
    asked = describe(configs, positions, init or {})
    place = checkpoints.latest() if checkpoints else None
    consumed = read_fit(place, asked) if place else 0

    trainers = []
    for name in mine:
        options: _Options = {"positions": positions, "log": log, "ranks": together}
        if place:
            trainers.append(_restored(name, configs[name], place / name, torch.device(device), options))
        else:
            trainers.append(_begun(name, configs[name], (init or {}).get(name), torch.device(device), options))
    saver = _Saver(checkpoints, asked, ranks, trainers, configs, consumed) if checkpoints else None
    for chunk in _rest(stream, consumed):
        for trainer in trainers:
            trainer.feed(_part(chunk, trainer.sae.config.hookpoint).to(device))
        consumed += _length(chunk)
        if saver:
            saver.after(consumed)
    done = {trainer.name: trainer.finish() for trainer in trainers}
    return _gathered(done, configs, ranks, torch.device(device)) if parallel == "spread" else done


class _Options(TypedDict):
    positions: int
    log: Callable[[FitLog], None] | None
    ranks: Ranks


def _begun(
    name: str, config: tuple[SAEConfig, FitConfig], start: SparseAutoencoder | None, device: torch.device,
    options: _Options,
) -> Trainer:  # fmt: skip
    what, how = config
    if start is not None and _shape(start.config) != _shape(what):
        raise ConfigError(f"{name} cannot start from an autoencoder of another shape", where="fit")
    sae = (start or SparseAutoencoder(what, seed=how.seed)).to(device)
    sae.config = what
    return Trainer(name, sae, how, fresh=start is None, **options)


def _restored(
    name: str, config: tuple[SAEConfig, FitConfig], folder: Path, device: torch.device, options: _Options
) -> Trainer:
    numbers, tensors = read_state(folder)
    sae = SparseAutoencoder(config[0]).to(device)
    trainer = Trainer(name, sae, config[1], fresh=numbers["fresh"], encoding=numbers["encoding"], **options)
    trainer.restore(numbers, tensors)
    return trainer


def _shape(config: SAEConfig) -> tuple[int, int, str, bool, bool]:
    return config.d_in, config.d_sae, config.normalize, config.subtract_b_dec, config.has_threshold


def _part(chunk: Activations, hookpoint: str) -> Tensor:
    if isinstance(chunk, Tensor):
        return chunk
    if hookpoint not in chunk:
        raise ConfigError(f"the stream has no activations of {hookpoint!r}", where="fit", fix=f"It has {list(chunk)}")
    return chunk[hookpoint]


def _length(chunk: Activations) -> int:
    return len(chunk) if isinstance(chunk, Tensor) else len(next(iter(chunk.values())))


def _rest(stream: Iterable[Activations], consumed: int) -> Iterator[Activations]:
    """What a fit that stopped after `consumed` positions has not seen."""
    if consumed and isinstance(stream, Seekable):
        yield from stream.start_at(consumed)
        return
    for chunk in stream:
        n = _length(chunk)
        if consumed >= n:
            consumed -= n
        elif consumed:
            yield chunk[consumed:] if isinstance(chunk, Tensor) else {h: t[consumed:] for h, t in chunk.items()}
            consumed = 0
        else:
            yield chunk


class _Saver:
    """Saves at the end of the first chunk in which some autoencoder passed a multiple of `every` steps."""

    def __init__(
        self, checkpoints: Checkpoints, asked: Mapping[str, object], ranks: Ranks, trainers: Sequence[Trainer],
        configs: Mapping[str, tuple[SAEConfig, FitConfig]], consumed: int,
    ) -> None:  # fmt: skip
        self.checkpoints, self.asked, self.ranks, self.trainers = checkpoints, asked, ranks, trainers
        self._batch = min(how.batch_size for _, how in configs.values())
        self._last = self._steps(consumed)

    def _steps(self, consumed: int) -> int:
        """Of the autoencoder with the smallest batches: a number that all ranks agree on."""
        return consumed // self._batch

    def after(self, consumed: int) -> None:
        steps, every = self._steps(consumed), self.checkpoints.every
        if steps // every > self._last // every:
            self.checkpoints.save(self.trainers, steps, consumed, self.asked, self.ranks)
        self._last = steps


def _gathered(
    done: Mapping[str, SparseAutoencoder], configs: Mapping[str, tuple[SAEConfig, FitConfig]], ranks: Ranks,
    device: torch.device,
) -> dict[str, SparseAutoencoder]:  # fmt: skip
    """All autoencoders on every rank: each is sent by the rank that trained it."""
    everyone: dict[str, SparseAutoencoder] = {}
    for i, (name, (config, _)) in enumerate(configs.items()):
        sae = done[name] if name in done else SparseAutoencoder(config).to(device)
        for _, parameter in sorted(sae.named_parameters()):
            parameter.data = ranks.from_(i % ranks.size, parameter.data)
        everyone[name] = sae.eval()
    return everyone
