"""Guards: a linear detector over a few latents as a small folder that scores texts, and runs the model only as far as
its hookpoint.

TopK autoencoders keep a latent only where it is among the k largest of all, so an *exact* guard computes the whole
encoder product and gives the very scores of `risk`. A guard of *few* latents multiplies with their columns alone; in
place of TopK each latent has a gate, a pre-activation below which it counts as silent. How far its answers are those
of the exact one is measured and stored with it.

    guard = Guard.load("runs/risk/guards/violence")
    guard.score(["a text", "another"])    # probabilities
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from seamark.diagnose.probes import Calibration, LatentWeights, Pooling
from seamark.diagnose.units import check_text
from seamark.errors import ConfigError, DataError, FormatError
from seamark.features.arrays import load_arrays, save_arrays
from seamark.features.config import ScanConfig
from seamark.features.contexts import read_positions
from seamark.features.gather import gather_by, public_name
from seamark.model.batching import plan_batches
from seamark.model.loading import HookedModel, load_model
from seamark.model.reading import Reader
from seamark.run import disk_errors, read_json, write_json
from seamark.sae import SAEConfig, SparseAutoencoder
from seamark.stats import Estimate
from seamark.text.rendering import Rendered

Floats = NDArray[np.float64]
Kind = Literal["exact", "few"]
FORMAT_VERSION = 1
ABOUT, ARRAYS, SAE = "guard.json", "guard.safetensors", "sae"
FEW_ARRAYS = ("W_enc", "b_enc", "b_dec", "gate")
POSITIONS = ScanConfig(positions="tokens", context_positions="scoring", rewards=False)
"""A guard reads every token of a text, as `risk` does."""
BATCH_TOKENS = 2048


class Agreement(BaseModel):
    """A guard against what `risk` computes of the same texts."""

    model_config = ConfigDict(frozen=True)

    texts: int
    largest_difference: float
    """Of probabilities."""
    pearson: Estimate
    """Of probabilities, over texts."""
    same_decision: Estimate
    """Share of texts."""
    auroc_guard: Estimate
    auroc_risk: Estimate


class Latency(BaseModel):
    """Seconds for a number of texts, medians of interleaved rounds in one process; texts are tokenised before."""

    model_config = ConfigDict(frozen=True)

    texts: int
    tokens: int
    rounds: int
    device: str
    threads: int
    guard: float
    forward: float
    """The model as far as the hookpoint, alone."""
    encoder_product: float
    """x·W_enc + b_enc of all latents at the guard's positions, alone."""
    rendering: float
    """Tokenising the texts, which `guard` leaves out."""
    ratio: Estimate
    """Median over rounds of guard / (forward + encoder product), with the quartiles as interval."""


class GuardAbout(BaseModel):
    """What `guard.json` says."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    format_version: Literal[1] = 1
    kind: Kind
    domain: str
    detector: str
    model: str
    model_fingerprint: str
    sae: str
    sae_fingerprint: str
    sae_config: SAEConfig
    pooling: Pooling
    bias: float
    slope: float = Field(ge=0)
    """Probability = σ(slope · score + intercept)."""
    intercept: float
    threshold: float = Field(ge=0, le=1)
    max_length: int = Field(gt=0)
    """Most tokens of a text."""
    labelled: int = 0
    positives: int = 0
    agreement: Agreement | None = None
    latency: Latency | None = None


@dataclass(frozen=True, eq=False)
class FewLatents:
    """The encoder of a guard's latents alone."""

    W_enc: NDArray[np.float32]
    """[d_in, latents]"""
    b_enc: NDArray[np.float32]
    b_dec: NDArray[np.float32]
    """[d_in]"""
    gate: NDArray[np.float32]
    """[latents] pre-activation from which on a latent counts as firing."""


class Guard:
    """Scores texts by the probability that they are of its domain. `Guard.load(path).score(texts)`.

    Attributes:
        about: what it was made from, its calibration and threshold.
        weights: latents and their weights.
        model: what reads the texts.
    """

    def __init__(
        self, about: GuardAbout, weights: LatentWeights, encoder: SparseAutoencoder | FewLatents, model: HookedModel
    ) -> None:
        self.about, self.weights, self.model = about, weights, model
        self.encoder = encoder.to(model.device) if isinstance(encoder, SparseAutoencoder) else encoder
        self._calibration = Calibration(about.slope, about.intercept)
        self._few = _few_tensors(encoder, model.device) if isinstance(encoder, FewLatents) else None
        self._place = None if self._few is not None else _places(weights.latents, about.sae_config.d_sae, model.device)

    @classmethod
    def load(
        cls, path: str | PathLike[str], model: HookedModel | None = None, *, check_model: bool = True
    ) -> Guard:  # fmt: skip
        """Open a guard's folder (or the guard.json in it), with its model.

        Without `model`, the model that guard.json names is opened, from this machine or from the Hub: whoever wrote the
        guard chooses what is fetched. Give `model` with guards that are not your own; then nothing but the folder is
        read. No code of a repository is ever run, and the model's weights are checked in both cases.

        Args:
            path: what `save` wrote.
            model: the model, where it is loaded already, where its name is not that of a place on this machine, or
                where the guard is from somebody else.
            check_model: refuse a model with other weights (which reads all of them once).

        Raises:
            FormatError: a file is missing, damaged or of another version, or holds another autoencoder.
            ConfigError: the model is another one.
            ModelError: the model cannot be loaded, or lacks the hookpoint.
        """
        folder = Path(path).parent if Path(path).name == ABOUT else Path(path)
        about = _about(folder)
        arrays = _arrays(about, folder)
        weights = LatentWeights(about.pooling, arrays["latents"], arrays["weights"], about.bias)
        encoder: SparseAutoencoder | FewLatents
        few = about.kind == "few"
        encoder = FewLatents(*(arrays[name] for name in FEW_ARRAYS)) if few else _own_sae(about, folder)
        loaded = load_model(about.model) if model is None else model
        if check_model and loaded.fingerprint() != about.model_fingerprint:
            raise ConfigError(f"the guard was made with another model than {loaded.name}", where=str(folder),
                              fix=f"Give the model it was made with, {about.model}")  # fmt: skip
        if loaded.d_model(about.sae_config.hookpoint) != about.sae_config.d_in:
            raise ConfigError(f"the guard reads activations of another width than {loaded.name} has", where=str(folder),
                              fix=f"Give the model it was made with, {about.model}")  # fmt: skip
        return cls(about, weights, encoder, loaded)

    def save(self, path: str | PathLike[str]) -> None:
        """Write the guard as a folder: guard.json, guard.safetensors and, if it is exact, its autoencoder."""
        folder = Path(path)
        with disk_errors(folder):
            arrays: dict[str, NDArray[Any]] = {
                "latents": self.weights.latents.astype(np.int64), "weights": self.weights.weights.astype(np.float64)
            }  # fmt: skip
            if isinstance(self.encoder, FewLatents):
                arrays |= vars(self.encoder)
            else:
                self.encoder.save_pretrained(folder / SAE)
            folder.mkdir(parents=True, exist_ok=True)
            save_arrays(folder / ARRAYS, arrays)
            write_json(folder / ABOUT, self.about)

    def __call__(self, texts: str | Sequence[str]) -> Floats:
        return self.score(texts)

    def score(self, texts: str | Sequence[str], batch_tokens: int = BATCH_TOKENS) -> Floats:
        """Probability that each text is of the domain [texts].

        Raises:
            DataError: an empty text, or one that is longer than the guard reads: nothing is left unread in silence.
        """
        return self.score_rendered(self.render(texts), batch_tokens)

    def flags(self, texts: str | Sequence[str]) -> NDArray[np.bool_]:
        """Whether each text's probability reaches the threshold [texts]."""
        return self.score(texts) >= self.about.threshold

    def render(self, texts: str | Sequence[str]) -> list[Rendered]:
        """Texts as tokens; errors as of `score`."""
        given = [texts] if isinstance(texts, str) else list(texts)
        renderer, found = self.model.renderer(self.about.max_length), []
        for number, text in enumerate(given, 1):
            check_text(text)
            rendered = renderer.render_text(text, f"text {number}")
            if rendered.truncated:
                raise DataError(f"{len(rendered) + rendered.truncated:,} tokens; the guard reads {len(rendered):,}",
                                where=f"text {number}", fix="Give it in parts")  # fmt: skip
            found.append(rendered)
        return found

    def score_rendered(self, texts: Sequence[Rendered], batch_tokens: int = BATCH_TOKENS) -> Floats:
        """Probability of each of some rendered texts [texts]."""
        return self._calibration(self.pooled(texts, batch_tokens) @ self.weights.weights + self.weights.bias)

    def pooled(self, texts: Sequence[Rendered], batch_tokens: int = BATCH_TOKENS) -> Floats:
        """Activations of the guard's latents over each text's tokens, pooled [texts, latents].

        Raises:
            DataError: a text without a token to read.
        """
        found = np.zeros((len(texts), len(self.weights.latents)))
        positions = [read_positions(text, POSITIONS)[0] for text in texts]
        for text, mine in zip(texts, positions, strict=True):
            if not len(mine):
                raise DataError("no token to read", where=text.text_id, fix="Give a text")
        hookpoint = self.about.sae_config.hookpoint
        with Reader(self.model, [hookpoint]) as reader:
            for rows in plan_batches([len(text) for text in texts], batch_tokens):
                got = gather_by(reader, texts, rows, [positions[row] for row in rows])
                counts = torch.as_tensor([len(positions[row]) for row in rows], device=self.model.device)
                found[rows] = self._pool(got.activations[hookpoint], counts).double().cpu().numpy()
        return found

    @torch.inference_mode()
    def _pool(self, h_ND: Tensor, counts: Tensor) -> Tensor:
        """[texts, latents] of one batch's positions."""
        owner = torch.repeat_interleave(torch.arange(len(counts), device=h_ND.device), counts)
        pooled = h_ND.new_zeros(len(counts), len(self.weights.latents))
        largest = self.weights.pooling == "max"
        if self._few is not None:
            z_NL = self._encode_few(h_ND)
            if largest:
                return pooled.scatter_reduce_(0, owner[:, None].expand_as(z_NL), z_NL, "amax")
            return pooled.index_add_(0, owner, z_NL) / counts[:, None]
        assert isinstance(self.encoder, SparseAutoencoder)  # noqa: S101 - for the type checker
        assert self._place is not None  # noqa: S101
        latents = self.encoder.encode(h_ND)
        row = torch.repeat_interleave(owner, torch.diff(latents.bounds).to(owner.device))
        place = self._place[latents.indices.reshape(-1).long()]
        value = latents.values.reshape(-1)
        mine = (place >= 0) & (value > 0)
        at = row[mine] * pooled.shape[1] + place[mine]
        if largest:
            pooled.view(-1).scatter_reduce_(0, at, value[mine], "amax")
            return pooled
        pooled.view(-1).index_add_(0, at, value[mine])
        return pooled / counts[:, None]

    def _encode_few(self, h_ND: Tensor) -> Tensor:
        """Gated activations of the few latents [n, latents]."""
        assert self._few is not None  # noqa: S101 - for the type checker
        pre = few_pre_activations(self.about.sae_config, self._few, h_ND)
        return torch.where(pre >= self._few["gate"], pre, 0.0).relu_()


def few_pre_activations(config: SAEConfig, few: dict[str, Tensor], h_ND: Tensor) -> Tensor:
    """W_enc (x − b_dec) + b_enc of some latents at positions h [n, d_in] → [n, latents]."""
    x_ND = h_ND
    if config.normalize == "layer_norm":
        x_ND = x_ND - x_ND.mean(1, keepdim=True)
        std = x_ND.norm(dim=1, keepdim=True) / max(config.d_in - 1, 1) ** 0.5
        x_ND = x_ND / (std + config.eps)
    x_ND = x_ND - few["b_dec"] if config.subtract_b_dec else x_ND
    return torch.addmm(few["b_enc"], x_ND, few["W_enc"])


def make_exact(
    model: HookedModel, sae: SparseAutoencoder, weights: LatentWeights, *, sae_id: str, domain: str, detector: str,
    calibration: Calibration, threshold: float, max_length: int | None = None,
) -> Guard:  # fmt: skip
    """A guard that computes the whole encoder product.

    Raises:
        ConfigError: the autoencoder does not fit the model; no latent.
    """
    if not len(weights.latents):
        raise ConfigError("the detector uses no latent", where=domain, fix="Add labelled texts, or take another")
    if not sae.config.hookpoint or model.d_model(sae.config.hookpoint) != sae.config.d_in:
        raise ConfigError("the autoencoder is of another model", where=sae_id, fix="Use the model it was trained on")
    about = GuardAbout(
        kind="exact", domain=domain, detector=detector, model=public_name(model), model_fingerprint=model.fingerprint(),
        sae=sae_id, sae_fingerprint=sae.fingerprint(), sae_config=sae.config, pooling=weights.pooling,
        bias=weights.bias, slope=calibration.slope, intercept=calibration.intercept, threshold=threshold,
        max_length=min(max_length or model.max_length, model.max_length),
    )  # fmt: skip
    return Guard(about, weights, sae, model)


def _places(latents: NDArray[np.int64], d_sae: int, device: torch.device) -> Tensor:
    """The place of each latent among a guard's [d_sae]; -1 where it has none."""
    place = torch.full((d_sae,), -1, dtype=torch.int64)
    place[torch.from_numpy(latents.astype(np.int64))] = torch.arange(len(latents))
    return place.to(device)


def _few_tensors(few: FewLatents, device: torch.device) -> dict[str, Tensor]:
    return {name: torch.from_numpy(np.array(array)).to(device) for name, array in vars(few).items()}


def _about(folder: Path) -> GuardAbout:
    if not (folder / ABOUT).is_file():
        raise FormatError("no guard here", where=str(folder), fix="Give the folder that `seamark diagnose risk` wrote")
    try:
        return GuardAbout.model_validate(read_json(folder / ABOUT))
    except ValidationError as e:
        first = e.errors()[0]
        raise FormatError(f"not a guard of this version ({'.'.join(map(str, first['loc']))}: {first['msg']})",
                          where=str(folder / ABOUT), fix="Export the guard again") from e  # fmt: skip


def _arrays(about: GuardAbout, folder: Path) -> dict[str, NDArray[Any]]:
    """The arrays of a guard's folder. `FormatError` where one is missing, is not what `save` writes, or does not fit
    the others."""
    try:
        arrays = load_arrays(folder / ARRAYS)
    except TypeError as e:  # numpy has no such type
        raise FormatError(f"an array of a type that guards do not use ({e})", where=str(folder / ARRAYS),
                          fix="Export the guard again") from e  # fmt: skip
    d_in, d_sae = about.sae_config.d_in, about.sae_config.d_sae
    n = arrays["latents"].size if "latents" in arrays else 0
    wanted: dict[str, tuple[type[np.generic], tuple[int, ...]]] = {
        "latents": (np.int64, (n,)), "weights": (np.float64, (n,))
    }  # fmt: skip
    if about.kind == "few":
        shapes = ((d_in, n), (n,), (d_in,), (n,))
        wanted |= {name: (np.float32, shape) for name, shape in zip(FEW_ARRAYS, shapes, strict=True)}
    if missing := [name for name in wanted if name not in arrays]:
        raise FormatError(f"no {missing[0]} in it", where=str(folder / ARRAYS), fix="Export the guard again")
    wrong = [
        name
        for name, (dtype, shape) in wanted.items()
        if arrays[name].dtype != dtype or arrays[name].shape != shape or not np.isfinite(arrays[name]).all()
    ]
    if not wrong:
        latents = arrays["latents"]
        known = n > 0 and latents.min() >= 0 and latents.max() < d_sae and len(np.unique(latents)) == n
        wrong = [] if known else ["latents"]
    if wrong:
        raise FormatError(f"{', '.join(wrong)} do not fit the guard", where=str(folder / ARRAYS),
                          fix="Export the guard again")  # fmt: skip
    return arrays


def _own_sae(about: GuardAbout, folder: Path) -> SparseAutoencoder:
    """The autoencoder in a guard's folder; a name that is no folder would be looked up on the Hub."""
    if not (folder / SAE).is_dir():
        raise FormatError("no autoencoder in it", where=str(folder / SAE), fix="Export the guard again")
    found = SparseAutoencoder.from_pretrained(folder / SAE)
    if found.fingerprint() != about.sae_fingerprint or found.config != about.sae_config:
        raise FormatError("it holds another autoencoder than it was made with", where=str(folder / SAE),
                          fix="Export the guard again")  # fmt: skip
    return found
