"""One autoencoder in training: batches of exactly `batch_size`, whatever the size of the chunks that come in."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from seamark.errors import DataError
from seamark.sae.autoencoder import SparseAutoencoder
from seamark.sae.config import Encoding, FitConfig
from seamark.sae.encoder import Encoder
from seamark.sae.measure import choose_encoding
from seamark.sae.parallel import Ranks
from seamark.sae.step import Outcome, Problem, Weights, dense_loss_and_gradients, loss_and_gradients

MEASURE_EVERY = 10
"""Steps between measurements of FVU and cosine."""
DENSE_SHARE = 0.03
"""Share of latents visited at a position from which dense products are faster than visiting them one by one."""


class FitLog(NamedTuple):
    """One training step, for whoever watches. Undefined or unmeasured numbers are None."""

    name: str
    step: int
    steps: int
    loss: float
    lr: float
    positions: int = 0
    """Seen so far, this step included."""
    l0: float = 0.0
    """Mean number of latents with z ≠ 0 at a position."""
    fvu: float | None = None
    """Of this batch before the update, in the autoencoder's space; every tenth step."""
    cosine: float | None = None
    dead_share: float = 0.0
    """Latents that have not fired for `dead_after` positions."""
    per_second: float = 0.0
    """Positions a second since training (re)started."""
    seconds_left: float = 0.0
    encoding: str = "fp32"


class Trainer:
    """Takes chunks, trains, and can be stopped and continued with the same result."""

    def __init__(
        self, name: str, sae: SparseAutoencoder, how: FitConfig, positions: int, *, fresh: bool,
        log: Callable[[FitLog], None] | None = None, ranks: Ranks | None = None, encoding: Encoding | None = None,
    ) -> None:  # fmt: skip
        self.name, self.sae, self.how, self.log, self.ranks = name, sae, how, log, ranks or Ranks()
        self.step, self.seen, self.steps = 0, 0, max(1, math.ceil(positions / how.batch_size))
        self.fresh = fresh
        self.scale: float | None = None if how.scale == "expected_norm" else 1.0
        self.density = 1.0 if sae.config.activation in ("relu", "jumprelu") else 0.0
        self._waiting: list[Tensor] = []
        self._started: tuple[float, int] | None = None
        # The optimiser works on W_enc with a contiguous row per latent; the module's W_enc views that memory.
        W_enc_FD = sae.W_enc.detach().T.contiguous()
        sae.W_enc.data = W_enc_FD.T
        theta = sae.threshold.data if sae.threshold is not None else None
        if theta is not None and sae.config.activation == "jumprelu":
            if fresh:
                theta.fill_(how.initial_threshold)
            log_threshold: Tensor | None = theta.clamp_min(torch.finfo(theta.dtype).tiny).log()
        else:
            log_threshold = None
        self.weights = Weights(W_enc_FD, sae.W_dec.data, sae.b_enc.data, sae.b_dec.data, log_threshold)
        device = W_enc_FD.device
        # Ranks that share an autoencoder share its format: checkpoints hold rank 0's.
        choice: Callable[[], Encoding] = partial(choose_encoding, sae.config, how, device)
        self.encoding: Encoding = encoding if encoding is not None else self.ranks.first(choice)
        self.encoder = Encoder(W_enc_FD, sae.b_enc.data, self.encoding)
        self.idle_F = torch.zeros(sae.config.d_sae, dtype=torch.int64, device=device)
        self._gradients = self.weights._replace(W_enc=torch.empty_like(W_enc_FD), W_dec=torch.empty_like(sae.W_dec))
        fused = device.type in ("cpu", "cuda")
        self.optimizer = torch.optim.Adam(self.weights.tensors(), lr=how.lr, betas=(0.9, 0.999), fused=fused)

    @property
    def where(self) -> str:
        return f"{self.sae.config.hookpoint or 'activations'}, step {self.step} of {self.name}"

    def feed(self, h_ND: Tensor) -> None:
        """Take a chunk of activations [n, d_in] and run every step that is now complete."""
        if h_ND.shape[0] == 0:
            return
        self._waiting.append(self.sae.preprocess(h_ND)[0])
        size = self.how.batch_size
        if sum(part.shape[0] for part in self._waiting) < size:
            return
        *batches, rest = _split(torch.cat(self._waiting) if len(self._waiting) > 1 else self._waiting[0], size)
        self._waiting = []
        for batch in batches:
            self._train(batch)
        if rest.shape[0]:
            self._waiting = [rest.clone()]

    def finish(self) -> SparseAutoencoder:
        """Step on what is left over, bring the decoder to unit norm, return the finished autoencoder."""
        if self._waiting:
            batch = torch.cat(self._waiting)
            self._waiting = []
            self._train(batch)
        if self.step == 0:
            raise DataError("no activations to train on", where=self.where, fix="Give texts with positions to read")
        self.sae.normalize_decoder()
        self._fold(self.sae)
        return self.sae.eval()

    # -- a step -------------------------------------------------------------------------------------------------

    def _train(self, batch_ND: Tensor) -> None:
        if self._started is None:
            self._started = (time.monotonic(), self.seen)
        if self.seen == 0:
            self._begin(batch_ND)
        x_ND = self.ranks.share(batch_ND)
        x_ND = x_ND * self.scale if self.scale not in (None, 1.0) else x_ND
        p = self._problem(len(batch_ND))
        found = self._gradients_of(x_ND, p)
        loss, l0 = self._shared(found, batch_ND)
        gradients = found.gradients
        norm = self._norm(gradients, found.squares)
        if not math.isfinite(norm):
            raise self._diverged()
        measure = self.step % MEASURE_EVERY == 0 or self.step == self.steps - 1
        fvu, cosine = self._measure(x_ND, found.error) if measure and self.log else (None, None)
        rate = self._update(gradients, norm)
        self.seen += len(batch_ND)
        self._count(found, len(batch_ND))
        if self.log is not None:
            self.log(self._entry(loss, rate, l0 / len(batch_ND), fvu, cosine))
        self.step += 1
        if self.step % self.how.decoder_norm_every == 0:
            self.sae.normalize_decoder()

    def _problem(self, n: int) -> Problem:
        dead = None
        if self.how.aux_coefficient:
            dead = (self.idle_F >= self.how.dead_after).nonzero().squeeze(1)
        sparsity = self.how.sparsity_at(self.step, self.steps)
        return Problem(self.sae.config, self.how, sparsity, n, dead, self.ranks)

    def _gradients_of(self, x_ND: Tensor, p: Problem) -> Outcome:
        if self.density > DENSE_SHARE:
            return dense_loss_and_gradients(self.weights, x_ND, p, self._gradients)
        return loss_and_gradients(self.weights, x_ND, self.encoder, p, self._gradients)

    def _shared(self, found: Outcome, batch_ND: Tensor) -> tuple[float, int]:
        """(loss, active entries) of the whole batch; gradients and counts become those of all ranks."""
        if self.ranks.size > 1:
            fired = found.fired.to(torch.int32)
            self.ranks.max_(fired)
            found.fired.copy_(fired > 0)
            self.ranks.sum_(*found.gradients.tensors())
        numbers = torch.tensor([float(found.loss), found.active, found.visited], dtype=torch.float64)
        self.ranks.sum_(numbers)
        loss, active, visited = numbers.tolist()
        if not math.isfinite(loss):
            raise self._bad(batch_ND)
        if self.density:
            self.density = visited / (len(batch_ND) * self.sae.config.d_sae)
        return loss, int(active)

    def _bad(self, batch_ND: Tensor) -> DataError:
        if torch.isfinite(batch_ND).all():
            return self._diverged()
        return DataError(
            "activations hold NaN or infinite values", where=self.where,
            fix="Read the model in float32, or choose another hookpoint",
        )  # fmt: skip

    def _diverged(self) -> DataError:
        return DataError("training diverged: the loss or its gradient is not finite", where=self.where,
                         fix="Lower the rate")  # fmt: skip

    def _norm(self, g: Weights, squares: Tensor | None) -> float:
        """Norm of the whole gradient; `squares` is that of the two matrices, if this rank has all of them."""
        known = squares is not None and self.ranks.size == 1
        rest = [torch.linalg.vector_norm(t).square_() for t in g.tensors()[2 if known else 0 :]]
        return math.sqrt(float(torch.stack([*rest, squares] if squares is not None and known else rest).sum()))

    def _update(self, gradients: Weights, norm: float) -> float:
        for weight, gradient in zip(self.weights.tensors(), gradients.tensors(), strict=True):
            weight.grad = gradient
        if self.how.clip is not None and norm > self.how.clip:
            self._clip(norm / self.how.clip)
        rate = self.how.rate(self.step, self.steps)
        self.optimizer.param_groups[0]["lr"] = rate
        self.optimizer.step()
        if self.weights.log_threshold is not None and self.sae.threshold is not None:
            torch.exp(self.weights.log_threshold, out=self.sae.threshold.data)
        self.encoder.changed()
        return rate

    def _clip(self, excess: float) -> None:
        for gradient in (w.grad for w in self.weights.tensors()):
            if gradient is not None:
                gradient.div_(excess)

    def _count(self, found: Outcome, n: int) -> None:
        self.idle_F.add_(n).masked_fill_(found.fired, 0)
        if found.cut is not None and self.sae.threshold is not None:
            share = 1.0 if self.step == 0 and self.fresh else max(self.how.threshold_rate, min(1.0, 10.0 / self.steps))
            self.sae.threshold.data.lerp_(found.cut.expand_as(self.sae.threshold), share)

    def _measure(self, x_ND: Tensor, error_ND: Tensor) -> tuple[float | None, float | None]:
        """(FVU, mean cosine) of this batch over all ranks."""
        x_hat_ND = x_ND + error_ND
        cosine = torch.nn.functional.cosine_similarity(x_hat_ND, x_ND, dim=1).double().sum()
        sums = torch.stack([error_ND.square().sum().double(), x_ND.square().sum().double(), cosine])
        total_D, n = x_ND.double().sum(0), torch.tensor(float(len(x_ND)), dtype=torch.float64)
        self.ranks.sum_(sums, total_D, n)
        error, power, cosine_sum = sums.tolist()
        variance = power - float(total_D.square().sum()) / float(n)
        return error / variance if variance > 1e-9 * power else None, cosine_sum / float(n)

    def _entry(self, loss: float, rate: float, l0: float, fvu: float | None, cosine: float | None) -> FitLog:
        started, before = self._started or (time.monotonic(), self.seen)
        per_second = (self.seen - before) / max(time.monotonic() - started, 1e-9)
        left = max(0, self.steps - self.step - 1) * self.how.batch_size
        dead = float((self.idle_F >= self.how.dead_after).double().mean())
        return FitLog(self.name, self.step, self.steps, loss, rate, self.seen, l0, fvu, cosine, dead, per_second,
                      left / per_second if per_second else 0.0, self.encoding)  # fmt: skip

    # -- beginning and end ---------------------------------------------------------------------------------------

    def _begin(self, batch_ND: Tensor) -> None:
        """The scale of the inputs and the first b_dec, from the first batch."""
        if not torch.isfinite(batch_ND).all():
            raise self._bad(batch_ND)
        if self.scale is None:
            mean_norm = float(torch.linalg.vector_norm(batch_ND, dim=1).mean())
            self.scale = math.sqrt(self.sae.config.d_in) / mean_norm if mean_norm > 0 else 1.0
            for bias in (self.weights.b_enc, self.weights.b_dec):
                bias.mul_(self.scale)
            if self.sae.threshold is not None and not self.fresh:
                self.sae.threshold.data.mul_(self.scale)
                if self.weights.log_threshold is not None:
                    self.weights.log_threshold.add_(math.log(self.scale))
        if self.fresh and self.how.b_dec_init != "zeros":
            x_ND = batch_ND * self.scale if self.scale != 1.0 else batch_ND
            middle = x_ND.mean(0) if self.how.b_dec_init == "mean" else geometric_median(x_ND)
            self.weights.b_dec.copy_(middle)

    def _fold(self, sae: SparseAutoencoder) -> None:
        """Undo the inputs' scale in the weights: z and x̂ shrink with it, directions stay."""
        if self.scale in (None, 1.0):
            return
        for bias in (sae.b_enc, sae.b_dec, sae.threshold):
            if bias is not None:
                bias.data.div_(self.scale)

    # -- stopping and continuing -------------------------------------------------------------------------------------

    def usable(self) -> SparseAutoencoder:
        """A copy as it would be saved now."""
        copy = SparseAutoencoder(self.sae.config)
        copy.load_state_dict(self.sae.state_dict())
        self._fold(copy)
        return copy.eval()

    def state(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """(numbers, tensors) from which `restore` continues."""
        numbers = {"step": self.step, "seen": self.seen, "scale": self.scale, "density": self.density,
                   "encoding": self.encoding, "fresh": self.fresh}  # fmt: skip
        tensors = {f"weights.{i}": t for i, t in enumerate(self.weights.tensors())} | {"idle": self.idle_F}
        if self.sae.threshold is not None:
            tensors["threshold"] = self.sae.threshold.data
        for i, weight in enumerate(self.weights.tensors()):
            tensors |= {f"adam.{i}.{key}": value for key, value in self.optimizer.state.get(weight, {}).items()}
        if self._waiting:
            tensors["waiting"] = torch.cat(self._waiting)
        return numbers, tensors

    def restore(self, numbers: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        """Continue from `state`."""
        self.step, self.seen = int(numbers["step"]), int(numbers["seen"])
        self.scale, self.density = numbers["scale"], float(numbers["density"])
        for i, weight in enumerate(self.weights.tensors()):
            weight.copy_(tensors[f"weights.{i}"])
            moments = {key.split(".", 2)[2]: value for key, value in tensors.items() if key.startswith(f"adam.{i}.")}
            if moments:
                self.optimizer.state[weight] = {
                    key: value.clone() if key == "step" else value.to(weight.device) for key, value in moments.items()
                }
        self.idle_F.copy_(tensors["idle"])
        if self.sae.threshold is not None:
            self.sae.threshold.data.copy_(tensors["threshold"])
        self._waiting = [tensors["waiting"].to(self.idle_F.device)] if "waiting" in tensors else []
        self.encoder.changed()


def _split(x_ND: Tensor, size: int) -> Iterator[Tensor]:
    """Whole batches of `size`, then the rest (maybe empty)."""
    whole = x_ND.shape[0] // size * size
    yield from x_ND[:whole].split(size)
    yield x_ND[whole:]


def geometric_median(x_ND: Tensor, rounds: int = 100, tolerance: float = 1e-6) -> Tensor:
    """The point with the smallest mean distance to the rows, [d_in], by Weiszfeld's iteration in float64."""
    points = x_ND.double()
    guess = points.mean(0)
    for _ in range(rounds):
        weight = 1.0 / torch.linalg.vector_norm(points - guess, dim=1).clamp_min(1e-12)
        new = (weight[:, None] * points).sum(0) / weight.sum()
        moved = torch.linalg.vector_norm(new - guess) <= tolerance * torch.linalg.vector_norm(guess)
        guess = new
        if moved:
            break
    return guess.to(x_ND.dtype)
