"""Train autoencoders on a stream of activations: one stream feeds many, each exactly as if trained alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import NamedTuple

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from seamark.errors import ConfigError, DataError
from seamark.sae.autoencoder import SAEConfig, SparseAutoencoder
from seamark.sae.step import Weights, loss_and_gradients

Activations = Tensor | Mapping[str, Tensor]
"""A chunk of a stream: [n, d_in] of the one hookpoint, or {hookpoint: [n, d_in]}."""


class FitConfig(BaseModel):
    """How one autoencoder is trained."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    lr: float = Field(default=5e-4, gt=0)
    """Peak learning rate of Adam (0.9, 0.999). SAFER: 5e-4 on general text, 3e-4 in the second stage."""
    batch_size: int = Field(default=2048, gt=0)
    """Positions a step."""
    warmup_share: float = Field(default=0.05, ge=0, le=1)
    """Share of the steps over which the rate rises linearly from 0."""
    decay_share: float = Field(default=0.2, ge=0, le=1)
    """Share of the steps, at the end, over which the rate falls linearly to 0."""
    decoder_norm_every: int = Field(default=10, gt=0)
    """Steps between bringing the decoder's rows to unit norm (and once more at the end)."""
    clip: float | None = Field(default=1.0, gt=0)
    """Largest norm of the whole gradient; None: no limit."""
    seed: int = 0
    """Seed of the first weights (the order of the data belongs to the stream)."""

    def rate(self, step: int, steps: int) -> float:
        """Learning rate of `step` (from 0) of `steps`: linear up, flat, linear down; never 0, no cliff."""
        up = max(1.0, self.warmup_share * steps)
        down = max(1.0, self.decay_share * steps)
        return self.lr * min(1.0, (step + 1) / up, max(steps - step, 1) / down)


class FitLog(NamedTuple):
    """One training step, for whoever watches."""

    name: str
    step: int
    steps: int
    loss: float
    lr: float


class Trainer:
    """One autoencoder in training. Takes chunks of any size and steps on batches of exactly `batch_size`."""

    def __init__(
        self, name: str, sae: SparseAutoencoder, config: FitConfig, positions: int, *, fresh: bool,
        log: Callable[[FitLog], None] | None = None,
    ) -> None:  # fmt: skip
        self.name, self.sae, self.config, self.log = name, sae, config, log
        self.step, self.steps = 0, max(1, math.ceil(positions / config.batch_size))
        self._fresh = fresh
        self._waiting: list[Tensor] = []
        # The optimiser works on W_enc with a contiguous row per latent; the module's W_enc views that memory.
        W_enc_FD = sae.W_enc.detach().T.contiguous()
        sae.W_enc.data = W_enc_FD.T
        self.weights = Weights(W_enc_FD, sae.W_dec.data, sae.b_enc.data, sae.b_dec.data)
        fused = self.weights.b_dec.device.type in ("cpu", "cuda")
        self.optimizer = torch.optim.Adam(list(self.weights), lr=config.lr, betas=(0.9, 0.999), fused=fused)

    @property
    def where(self) -> str:
        return f"{self.sae.config.hookpoint or 'activations'}, step {self.step} of {self.name}"

    def feed(self, h_ND: Tensor) -> None:
        """Take a chunk of activations [n, d_in] and run every step that is now complete."""
        if h_ND.shape[0] == 0:
            return
        if not torch.isfinite(h_ND).all():
            raise DataError(
                "activations hold NaN or infinite values", where=self.where,
                fix="Read the model in float32, or choose another hookpoint",
            )  # fmt: skip
        x_ND, _ = self.sae.preprocess(h_ND)
        if self._fresh:
            self.weights.b_dec.copy_(x_ND.mean(0))
            self._fresh = False
        self._waiting.append(x_ND)
        size = self.config.batch_size
        if sum(part.shape[0] for part in self._waiting) < size:
            return
        *batches, rest = _split(torch.cat(self._waiting), size)
        self._waiting = [rest.clone()] if rest.shape[0] else []
        for batch in batches:
            self._train(batch)

    def finish(self) -> SparseAutoencoder:
        """Step on what is left over, bring the decoder to unit norm, return the finished autoencoder."""
        if self._waiting:
            self._train(torch.cat(self._waiting))
            self._waiting = []
        if self.step == 0:
            raise DataError("no activations to train on", where=self.where, fix="Give texts with positions to read")
        self.sae.normalize_decoder()
        return self.sae.eval()

    def _train(self, x_ND: Tensor) -> None:
        loss, gradients = loss_and_gradients(self.weights, x_ND, self.sae.config.k)
        value = float(loss)
        if not math.isfinite(value):
            raise DataError("training diverged: the loss is not finite", where=self.where, fix="Lower the rate")
        for weight, gradient in zip(self.weights, gradients, strict=True):
            weight.grad = gradient
        if self.config.clip is not None:
            torch.nn.utils.clip_grad_norm_(list(self.weights), self.config.clip)
        rate = self.config.rate(self.step, self.steps)
        self.optimizer.param_groups[0]["lr"] = rate
        self.optimizer.step()
        if self.log is not None:
            self.log(FitLog(self.name, self.step, self.steps, value, rate))
        self.step += 1
        if self.step % self.config.decoder_norm_every == 0:
            self.sae.normalize_decoder()


def _split(x_ND: Tensor, size: int) -> Iterator[Tensor]:
    """Whole batches of `size`, then the rest (maybe empty)."""
    whole = x_ND.shape[0] // size * size
    yield from x_ND[:whole].split(size)
    yield x_ND[whole:]


def fit(
    stream: Iterable[Activations],
    configs: Mapping[str, tuple[SAEConfig, FitConfig]],
    *,
    positions: int,
    init: Mapping[str, SparseAutoencoder] | None = None,
    device: torch.device | str = "cpu",
    log: Callable[[FitLog], None] | None = None,
) -> dict[str, SparseAutoencoder]:
    """Train one or many autoencoders from one pass over `stream`.

    Each is trained exactly as if it were alone: the weights are equal bit for bit. The same stream, seed and
    number of threads give the same weights. Fresh ones start tied, b_dec at the mean of the first chunk.

    Args:
        stream: chunks of activations, shuffled by whoever makes them; [n, d_in], or {hookpoint: [n, d_in]}.
        configs: {name: (what it is, how it is trained)}.
        positions: how many positions the stream will give, for the learning-rate schedule.
        init: autoencoders to start from (SAFER's second stage, arXiv 2507.00665); they are changed in place.
        device: where training runs.
        log: called after each step of each autoencoder.

    Raises:
        DataError: NaN or infinite activations (naming hookpoint and step), wrong width, an empty stream.
        ConfigError: `init` does not fit its config.
    """
    if not configs:
        raise ConfigError("no autoencoder to train", where="fit")
    trainers = []
    for name, (config, how) in configs.items():
        start = (init or {}).get(name)
        if start is not None and _shape(start.config) != _shape(config):
            raise ConfigError(f"{name} cannot start from an autoencoder of another shape", where="fit")
        sae = (start or SparseAutoencoder(config, seed=how.seed)).to(device)
        sae.config = config
        trainers.append(Trainer(name, sae, how, positions, fresh=start is None, log=log))
    for chunk in stream:
        for trainer in trainers:
            h_ND = chunk if isinstance(chunk, Tensor) else chunk[trainer.sae.config.hookpoint]
            trainer.feed(h_ND.to(device))
    return {trainer.name: trainer.finish() for trainer in trainers}


def _shape(config: SAEConfig) -> tuple[int, int, str]:
    return config.d_in, config.d_sae, config.normalize
