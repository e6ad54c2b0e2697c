"""What an autoencoder is (`SAEConfig`) and how it is trained (`FitConfig`)."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from seamark.errors import ConfigError

FORMAT_VERSION = 2
EPS = 1e-6
MOST_DIMENSIONS, MOST_LATENTS = 1 << 20, 1 << 26
"""Far above any autoencoder there is: a damaged file is refused before memory is asked for."""

Activation = Literal["topk", "topk_relu", "batch_topk", "jumprelu", "relu"]
Encoding = Literal["fp32", "bf16", "int8"]
"""Number format in which the encoder's product finds candidates; latents themselves are always computed in fp32."""

WITH_K = ("topk", "topk_relu", "batch_topk")
WITH_THRESHOLD = ("batch_topk", "jumprelu")


class SAEConfig(BaseModel):
    """What an autoencoder is and which activations it belongs to."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    d_in: int = Field(gt=0, le=MOST_DIMENSIONS)
    """Width of the activations read at the hookpoint."""
    d_sae: int = Field(gt=0, le=MOST_LATENTS)
    """Number of latents. SAFER: 8 × d_in; Safe-SAIL: 10 × d_in."""
    k: int | None = Field(default=None, gt=0)
    """Latents kept at each position (`batch_topk`: on average over a batch); None for the other kinds. SAFER: 64 at
    d_in 2,048; Safe-SAIL: 200."""
    activation: Activation = "topk"
    """How latents are selected. `topk`: the k largest pre-activations, whatever their sign (SAFER); `topk_relu`: the
    same, negative ones set to 0 (Safe-SAIL); `batch_topk`: the n·k largest of a batch of n in training, a threshold
    after it; `jumprelu`: those above a threshold of their own; `relu`: those above 0."""
    normalize: Literal["layer_norm", "none"] = "layer_norm"
    """`layer_norm`: x = (h − mean(h)) / (std(h) + eps) at each position, std unbiased; `none`: x = h."""
    eps: float = Field(default=EPS, gt=0, le=1, allow_inf_nan=False)
    """Added to the standard deviation in `layer_norm`; a large one would leave nothing of x. SAFER: 1e-6."""
    subtract_b_dec: bool = True
    """Whether the encoder sees x − b_dec (SAFER) or x."""
    model: str = ""
    """Name of the model whose activations were learnt."""
    hookpoint: str = ""
    """Where in the model, such as `layers.11`."""
    format_version: int = FORMAT_VERSION
    """Version of the file format."""

    @model_validator(mode="after")
    def _consistent(self) -> SAEConfig:
        if self.activation in WITH_K and self.k is None:
            raise ValueError(f"{self.activation} needs k")
        if self.activation not in WITH_K and self.k is not None:
            raise ValueError(f"{self.activation} has no k")
        if self.k is not None and self.k > self.d_sae:
            raise ValueError(f"k = {self.k} is more than d_sae = {self.d_sae}")
        if self.format_version > FORMAT_VERSION:
            raise ValueError(f"format version {self.format_version} is newer than this Seamark ({FORMAT_VERSION})")
        return self

    @property
    def fixed_k(self) -> int | None:
        """k where every position has exactly k latents, else None."""
        return self.k if self.activation in ("topk", "topk_relu") else None

    @property
    def has_threshold(self) -> bool:
        return self.activation in WITH_THRESHOLD


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
    loss: Literal["relative", "squared"] = "relative"
    """Mean over positions of ‖x̂ − x‖² / ‖x‖² (SAFER) or of ‖x̂ − x‖² (Safe-SAIL)."""
    sparsity: float = Field(default=0.0, ge=0)
    """λ of what is added to the loss, mean over positions: `relu`: λ Σ z (L1; decoder rows have unit norm); `jumprelu`:
    λ L0 through a straight-through estimator (arXiv 2407.14435). The topk kinds need none."""
    sparsity_warmup_share: float = Field(default=0.1, ge=0, le=1)
    """Share of the steps over which λ rises linearly from 0."""
    bandwidth: float = Field(default=1e-3, gt=0)
    """Width ε of JumpReLU's straight-through window around the threshold. Safe-SAIL: 0.001."""
    initial_threshold: float = Field(default=1e-3, gt=0)
    """First threshold of every JumpReLU latent."""
    threshold_rate: float = Field(default=0.01, gt=0, le=1)
    """`batch_topk`: weight of a batch's smallest kept value in the running mean that becomes the threshold (10 / steps
    in a training of less than 1,000 steps)."""
    aux_coefficient: float = Field(default=0.0, ge=0)
    """α of the AuxK loss, by which dead latents learn what the others leave over (arXiv 2406.04093: 1/32); 0: none."""
    aux_k: int | None = Field(default=None, gt=0)
    """Dead latents used at each position by AuxK; None: d_in / 2."""
    dead_after: int = Field(default=1_000_000, gt=0)
    """Positions without firing after which a latent counts as dead."""
    b_dec_init: Literal["mean", "geometric_median", "zeros"] = "mean"
    """First b_dec, from the first batch."""
    scale: Literal["none", "expected_norm"] = "none"
    """`expected_norm`: activations are multiplied so that their mean norm over the first batch is √d_in; the factor is
    folded into biases and thresholds of what is saved."""
    decoder_norm_every: int = Field(default=10, gt=0)
    """Steps between bringing the decoder's rows to unit norm (and once more at the end)."""
    remove_parallel: bool = True
    """Take from each decoder row's gradient its part along the row, which would only change the norm."""
    clip: float | None = Field(default=1.0, gt=0)
    """Largest norm of the whole gradient; None: no limit."""
    encoder: Literal["auto", "fp32", "bf16", "int8"] = "auto"
    """Format of the encoder's product in training: candidates found in bf16 or int8 are computed again in fp32, so it
    decides speed, not values. "auto": the fastest on this machine, measured once and stored with checkpoints."""
    seed: int = 0
    """Seed of the first weights (the order of the data belongs to the stream)."""

    def rate(self, step: int, steps: int) -> float:
        """Learning rate of `step` (from 0) of `steps`: linear up, flat, linear down; never 0, no cliff."""
        up = max(1.0, self.warmup_share * steps)
        down = max(1.0, self.decay_share * steps)
        return self.lr * min(1.0, (step + 1) / up, max(steps - step, 1) / down)

    def sparsity_at(self, step: int, steps: int) -> float:
        """λ of `step` (from 0) of `steps`."""
        return self.sparsity * min(1.0, (step + 1) / max(1.0, self.sparsity_warmup_share * steps))


def sae_config(**fields: object) -> SAEConfig:
    """`SAEConfig(**fields)` with a `ConfigError` in place of pydantic's several lines."""
    try:
        return SAEConfig.model_validate(fields)
    except ValidationError as e:
        raise ConfigError(first_line(e), where="sae", fix="Check activation, d_in, d_sae and k") from e


def first_line(e: ValidationError) -> str:
    first = e.errors()[0]
    name = ".".join(map(str, first["loc"]))
    return f"{name}: {first['msg']}" if name else str(first["msg"])


def migrate(fields: dict[str, Any]) -> dict[str, Any]:
    """Fields of an older format version as this one's. Version 1 had topk only; all else it lacked is the default."""
    if fields.get("format_version") == 1:
        return fields | {"format_version": FORMAT_VERSION}
    return fields
