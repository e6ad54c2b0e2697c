"""How good an autoencoder is, measured on activations it has not seen."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from seamark.errors import DataError
from seamark.sae.autoencoder import SparseAutoencoder

Chunk = Tensor | Mapping[str, Tensor]
"""Activations [n, d_in], or {hookpoint: activations}."""
ROWS = 2048
"""Positions measured at once: their float64 copies at width 4,096 take 64 MiB each."""
DENSE = 0.1
"""A latent that fires at more than this share of positions is dense."""
EDGES = tuple(i / 4 for i in range(-24, 1))
"""Edges of the histogram's bins, log10 of a firing frequency: quarters of a decade from 10⁻⁶ to 1."""
NOTHING_VARIES = 1e-12
"""Variance below this share of the power is rounding."""


class FiringHistogram(BaseModel):
    """How often latents fire: of each latent the share of positions where its value is > 0, in fixed bins."""

    model_config = ConfigDict(frozen=True)

    log10_edges: tuple[float, ...] = EDGES
    """Bin i holds frequencies from 10^edges[i] up to, not including, 10^edges[i + 1]; the last one includes 1, the
    first one all that fire at fewer than 10⁻⁶ of the positions."""
    latents: tuple[int, ...]
    """Latents in each bin, len(edges) − 1 of them; those that never fire are in none (`Quality.dead`)."""


class Quality(BaseModel):
    """Reconstruction and sparsity on a held-out stream of positions.

    x is an activation as the autoencoder sees it (its *own space*: normalised at each position, if it normalises),
    h the same activation as the model has it (the *hookpoint's space*, `…_raw`). Without normalisation both are one.
    """

    model_config = ConfigDict(frozen=True)

    fvu: float | None
    """Fraction of variance unexplained in the own space: Σ‖x̂ − x‖² / Σ‖x − mean(x)‖², sums over positions, mean(x) the
    mean of every dimension over the whole stream. None where nothing varies."""
    fvu_raw: float | None
    """The same in the hookpoint's space: Σ‖ĥ − h‖² / Σ‖h − mean(h)‖². A few dimensions or positions of huge size may
    decide it."""
    explained_variance: float | None
    """1 − `fvu`."""
    explained_variance_raw: float | None
    """1 − `fvu_raw`: what SAELens (6.54) calls `explained_variance`."""
    explained_variance_per_dimension: float | None
    """Mean over dimensions d of 1 − Σ(x̂_d − x_d)² / Σ(x_d − mean(x_d))², own space: every dimension counts the same.
    Dimensions that do not vary are left out."""
    mse: float
    """Mean ‖x̂ − x‖² of a position (summed, not averaged, over dimensions), own space."""
    mse_raw: float
    """Mean ‖ĥ − h‖² of a position, hookpoint's space."""
    cosine: float | None
    """Mean cosine of x̂ and x over positions with x ≠ 0; x̂ = 0 counts as 0. None where every x is 0."""
    relative_error: float | None
    """Mean ‖x̂ − x‖² / ‖x‖² (the training loss "relative") over positions with x ≠ 0. None where every x is 0."""
    l0: float
    """Mean number of latents in the reconstruction of a position (value ≠ 0, negative ones included)."""
    l0_positive: float
    """Mean number of latents that fire (value > 0) at a position."""
    dead: int
    """Latents that fire nowhere in the stream; the number falls as `n` grows, so compare it at equal `n`."""
    dead_share: float
    """`dead` / d_sae."""
    dense: int
    """Latents that fire at more than 10 % of the positions."""
    dense_share: float
    """`dense` / d_sae."""
    frequencies: FiringHistogram
    """Firing frequencies of all latents."""
    n: int
    """Positions measured."""
    reasons: dict[str, str] = Field(default_factory=dict)
    """{measure that is None: why}."""

    def numbers(self) -> dict[str, float | int | None]:
        """Every measure that is one number, by name, in the order of the fields."""
        found = {name: getattr(self, name) for name in type(self).model_fields}
        return {name: v for name, v in found.items() if v is None or isinstance(v, int | float)}


class QualityMeter:
    """Measures one autoencoder on activations as they come; one pass, memory of a few [d_in] and one [d_sae]."""

    def __init__(self, sae: SparseAutoencoder) -> None:
        self.sae = sae
        self._own, self._raw = _Errors(), _Errors()
        self._fires_F = torch.zeros(sae.config.d_sae, dtype=torch.int64, device=sae.W_dec.device)
        self._sums = torch.zeros(4, dtype=torch.float64)  # cosine, relative error, positions with x ≠ 0, entries ≠ 0

    @torch.no_grad()
    def add(self, h_ND: Tensor) -> None:
        """Count activations h [n, d_in], any float format and device. `DataError` on NaN, inf or another width."""
        for part in h_ND.split(ROWS):
            part = part.to(self.sae.W_dec.device, self.sae.W_dec.dtype)
            if not bool(torch.isfinite(part).all()):
                raise DataError("activations hold NaN or infinite values", where=self.sae.config.hookpoint,
                                fix="Read the model in float32, or choose another hookpoint")  # fmt: skip
            if len(part):
                self._add(part)

    def _add(self, h_ND: Tensor) -> None:
        latents = self.sae.encode(h_ND)
        if latents.scale is not None:
            self._raw.add(_float64(h_ND), _float64(self.sae.decode(latents)))
        x_ND = _float64(self.sae.preprocess(h_ND)[0])
        x_hat_ND = _float64(self.sae.decode(replace(latents, scale=None)))  # without its scale: in the own space
        self._own.add(x_ND, x_hat_ND)
        power_N = x_ND.square().sum(1)
        error_N = (x_hat_ND - x_ND).square_().sum(1)
        some = power_N > 0
        cosine_N = torch.nn.functional.cosine_similarity(x_hat_ND, x_ND, dim=1, eps=1e-30)
        self._sums += torch.stack([
            cosine_N[some].sum(), (error_N[some] / power_N[some]).sum(), some.sum().double(),
            (latents.values != 0).sum().to(power_N),
        ]).cpu()  # fmt: skip
        fires = latents.indices[latents.values > 0].long().flatten()
        self._fires_F += torch.bincount(fires, minlength=len(self._fires_F))

    def result(self) -> Quality:
        """What was measured so far. Raises `DataError` if nothing was."""
        n, own = self._own.n, self._own
        raw = self._raw if self._raw.n else own
        if n == 0:
            raise DataError("no activations to measure on", where=self.sae.config.hookpoint, fix="Hold out more texts")
        cosine, relative, n_some, entries = self._sums.tolist()
        fires_F = self._fires_F.cpu().numpy()
        dead, dense = int((fires_F == 0).sum()), int((fires_F > DENSE * n).sum())
        found: dict[str, float | None] = {
            "fvu": own.fvu(), "fvu_raw": raw.fvu(),
            "explained_variance": _one_minus(own.fvu()), "explained_variance_raw": _one_minus(raw.fvu()),
            "explained_variance_per_dimension": own.explained_per_dimension(),
            "cosine": cosine / n_some if n_some else None, "relative_error": relative / n_some if n_some else None,
        }  # fmt: skip
        constant = "the activations do not vary" if n > 1 else "one position has no variance"
        why = {"cosine": "every activation is 0", "relative_error": "every activation is 0"}
        return Quality.model_validate(found | {
            "mse": own.mse, "mse_raw": raw.mse, "l0": entries / n, "l0_positive": float(fires_F.sum()) / n,
            "dead": dead, "dead_share": dead / len(fires_F), "dense": dense, "dense_share": dense / len(fires_F),
            "frequencies": _histogram(fires_F / n), "n": n,
            "reasons": {name: why.get(name, constant) for name, value in found.items() if value is None},
        })  # fmt: skip


def quality(sae: SparseAutoencoder, stream: Iterable[Chunk]) -> Quality:
    """Measure one autoencoder in one pass, sums in float64; stream and errors as for `qualities`."""
    return qualities({"sae": sae}, stream)["sae"]


def qualities(suite: Mapping[str, SparseAutoencoder], stream: Iterable[Chunk]) -> dict[str, Quality]:
    """Measure several autoencoders in one pass.

    Args:
        suite: {name: autoencoder}.
        stream: chunks [n, d_in] for all of them, or {hookpoint: [n, d_in]} of which each takes its own hookpoint's.

    Raises:
        DataError: no activations, none at an autoencoder's hookpoint, NaN or infinite values, another width.
    """
    meters = {name: QualityMeter(sae) for name, sae in suite.items()}
    for chunk in stream:
        for name, meter in meters.items():
            hookpoint = meter.sae.config.hookpoint
            if isinstance(chunk, Tensor):
                meter.add(chunk)
            elif hookpoint in chunk:
                meter.add(chunk[hookpoint])
            else:
                raise DataError(f"the stream has no activations at {hookpoint or 'no hookpoint'}", where=name,
                                fix=f"It has {', '.join(chunk)}")  # fmt: skip
    return {name: meter.result() for name, meter in meters.items()}


class _Errors:
    """Sums over positions, by dimension and in float64, of x (from its first chunk's mean) and of x̂ − x."""

    def __init__(self) -> None:
        self.n = 0

    def add(self, x_ND: Tensor, x_hat_ND: Tensor) -> None:
        if self.n == 0:
            self.shift_D = x_ND.mean(0)  # large means would swallow small variances
            self.sum_D, self.square_D, self.power_D, self.error_D = torch.zeros(4, *self.shift_D.shape).to(x_ND)
        self.n += len(x_ND)
        self.error_D += (x_hat_ND - x_ND).square_().sum(0)
        self.power_D += x_ND.square().sum(0)
        from_shift_ND = x_ND - self.shift_D
        self.sum_D += from_shift_ND.sum(0)
        self.square_D += from_shift_ND.square_().sum(0)

    @property
    def mse(self) -> float:
        return float(self.error_D.sum()) / self.n

    def _variance(self) -> Tensor:
        """Σ(x_d − mean(x_d))² of every dimension; 0 where it is rounding."""
        variance_D = self.square_D - self.sum_D.square() / self.n
        return torch.where(variance_D > NOTHING_VARIES * self.power_D, variance_D, 0.0)

    def fvu(self) -> float | None:
        variance = float(self._variance().sum())
        return float(self.error_D.sum()) / variance if variance > 0 else None

    def explained_per_dimension(self) -> float | None:
        variance_D = self._variance()
        varies = variance_D > 0
        return float((1 - self.error_D[varies] / variance_D[varies]).mean()) if bool(varies.any()) else None


def _float64(x: Tensor) -> Tensor:
    """x in float64: on its own device, but on the CPU where the device has no such format (Apple's GPUs)."""
    return (x.cpu() if x.device.type == "mps" else x).double()


def _one_minus(share: float | None) -> float | None:
    return None if share is None else 1.0 - share


def _histogram(frequency_F: np.ndarray) -> FiringHistogram:
    exponent = np.log10(frequency_F[frequency_F > 0])
    bins = np.clip(np.searchsorted(EDGES, exponent, side="right") - 1, 0, len(EDGES) - 2)
    return FiringHistogram(latents=tuple(np.bincount(bins, minlength=len(EDGES) - 1).tolist()))
