"""The sparse autoencoder: encode activations of a hookpoint to a few latents, decode them, save and load."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Literal

import safetensors.torch
import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from safetensors import SafetensorError
from torch import Tensor, nn

from seamark.errors import ConfigError, DataError, FormatError
from seamark.run import write_atomic, write_json
from seamark.sae.latents import Scale, SparseLatents
from seamark.sae.step import decode_rows
from seamark.sae.topk import encode_top_k

FORMAT_VERSION = 1
WEIGHTS_FILE, CONFIG_FILE = "sae.safetensors", "config.json"
EPS = 1e-6
ENCODE_ROWS = 8192


class SAEConfig(BaseModel):
    """What an autoencoder is and which activations it belongs to."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    d_in: int = Field(gt=0)
    """Width of the activations read at the hookpoint."""
    d_sae: int = Field(gt=0)
    """Number of latents. SAFER: 8 × d_in."""
    k: int = Field(gt=0)
    """Latents kept at each position. SAFER: 64 at d_in 2,048."""
    activation: Literal["topk"] = "topk"
    """How latents are selected: the k largest pre-activations, whatever their sign."""
    normalize: Literal["layer_norm", "none"] = "layer_norm"
    """`layer_norm`: x = (h − mean(h)) / (std(h) + 1e-6) at each position, std unbiased; `none`: x = h."""
    model: str = ""
    """Name of the model whose activations were learnt."""
    hookpoint: str = ""
    """Where in the model, such as `layers.11`."""
    format_version: int = FORMAT_VERSION
    """Version of the file format."""

    @model_validator(mode="after")
    def _k_fits(self) -> SAEConfig:
        if self.k > self.d_sae:
            raise ValueError(f"k = {self.k} is more than d_sae = {self.d_sae}")
        if self.format_version > FORMAT_VERSION:
            raise ValueError(f"format version {self.format_version} is newer than this Seamark ({FORMAT_VERSION})")
        return self


def sae_config(**fields: object) -> SAEConfig:
    """`SAEConfig(**fields)` with a `ConfigError` in place of pydantic's several lines."""
    try:
        return SAEConfig.model_validate(fields)
    except ValidationError as e:
        raise ConfigError(_first_line(e), where="sae", fix="Check d_in, d_sae and k") from e


def _first_line(e: ValidationError) -> str:
    first = e.errors()[0]
    name = ".".join(map(str, first["loc"]))
    return f"{name}: {first['msg']}" if name else str(first["msg"])


class SparseAutoencoder(nn.Module):
    """TopK autoencoder (SAFER, arXiv 2507.00665): z = TopK_k(W_enc (x − b_dec) + b_enc), x̂ = W_dec z + b_dec.

    Parameters: W_enc [d_in, d_sae] (stored so that a latent's column is contiguous), W_dec [d_sae, d_in],
    b_enc [d_sae], b_dec [d_in]. A fresh one is tied (W_enc = W_decᵀ) with decoder rows of unit norm.
    """

    def __init__(self, config: SAEConfig, seed: int = 0) -> None:
        super().__init__()
        self.config = config
        generator = torch.Generator().manual_seed(seed)
        W_dec = torch.randn(config.d_sae, config.d_in, generator=generator)
        W_dec /= W_dec.norm(dim=1, keepdim=True)
        self.W_dec = nn.Parameter(W_dec)
        self.W_enc = nn.Parameter(W_dec.clone().T)
        self.b_enc = nn.Parameter(torch.zeros(config.d_sae))
        self.b_dec = nn.Parameter(torch.zeros(config.d_in))

    def preprocess(self, h_ND: Tensor) -> tuple[Tensor, Scale | None]:
        """h [n, d_in] as the autoencoder sees them, and what was taken away; `DataError` on a wrong width."""
        if h_ND.ndim != 2 or h_ND.shape[1] != self.config.d_in:
            raise DataError(
                f"activations are {tuple(h_ND.shape)} but this autoencoder wants [n, {self.config.d_in}]",
                where=self.config.hookpoint,
                fix="Use the model and hookpoint it was trained on",
            )
        h_ND = h_ND.to(self.W_dec.dtype)
        if self.config.normalize == "none":
            return h_ND, None
        mean = h_ND.mean(1)
        x_ND = h_ND - mean[:, None]
        std = x_ND.norm(dim=1) / math.sqrt(max(self.config.d_in - 1, 1))  # unbiased; 3 times as fast as Tensor.std
        return x_ND.div_((std + EPS)[:, None]), Scale(mean, std)

    @torch.no_grad()
    def encode(self, h_ND: Tensor) -> SparseLatents:
        """Latents of h [n, d_in]: exactly k a position, some maybe negative (`SparseLatents.positive`)."""
        x_ND, scale = self.preprocess(h_ND)
        indices, values = encode_top_k(x_ND - self.b_dec, self._encoder_rows(), self.b_enc, self.config.k)
        return SparseLatents(indices.to(torch.int32), values, self.config.d_sae, scale=scale)

    @torch.no_grad()
    def decode(self, latents: SparseLatents) -> Tensor:
        """Reconstruction [n, d_in] in the hookpoint's units (normalised ones if `latents.scale` is None)."""
        if latents.d_sae != self.config.d_sae:
            raise DataError(f"latents of {latents.d_sae} do not fit an autoencoder of {self.config.d_sae}")
        if latents.offsets is None:
            x_ND = decode_rows(latents.indices, latents.values, self.W_dec)
        else:
            x_ND = nn.functional.embedding_bag(
                latents.indices.long(), self.W_dec, latents.offsets, mode="sum",
                per_sample_weights=latents.values, include_last_offset=True,
            )  # fmt: skip
        x_ND = x_ND + self.b_dec
        if latents.scale is None:
            return x_ND
        return x_ND * (latents.scale.std + EPS)[:, None] + latents.scale.mean[:, None]

    def forward(self, h_ND: Tensor) -> Tensor:
        """`decode(encode(h))`, chunk by chunk."""
        return torch.cat([self.decode(self.encode(part)) for part in h_ND.split(ENCODE_ROWS)])

    def _encoder_rows(self) -> Tensor:
        """W_enc as [d_sae, d_in] with contiguous rows (no copy, as stored by this class)."""
        rows: Tensor = self.W_enc.detach().T.contiguous()
        return rows

    @torch.no_grad()
    def normalize_decoder(self) -> None:
        """Bring every decoder row to unit norm."""
        tiny = torch.finfo(self.W_dec.dtype).tiny
        self.W_dec.div_(self.W_dec.norm(dim=1, keepdim=True).clamp_min(tiny))

    def fingerprint(self) -> str:
        """SHA-256 of config and weights."""
        h = hashlib.sha256(self.config.model_dump_json().encode())
        for name, tensor in self._tensors().items():
            h.update(name.encode())
            h.update(tensor.numpy().tobytes())
        return h.hexdigest()

    def _tensors(self) -> dict[str, Tensor]:
        return {name: p.detach().cpu().contiguous() for name, p in sorted(self.named_parameters())}

    def save_pretrained(self, path: str | PathLike[str]) -> None:
        """Write `sae.safetensors` and `config.json` into the folder `path`, each whole or not at all."""
        folder = Path(path)
        write_atomic(folder / WEIGHTS_FILE, safetensors.torch.save(self._tensors()))
        write_json(folder / CONFIG_FILE, self.config)

    @classmethod
    def from_pretrained(cls, path: str | PathLike[str]) -> SparseAutoencoder:
        """Load what `save_pretrained` wrote. Raises `FormatError` on a missing, foreign or damaged file."""
        folder = Path(path)
        if not (folder / CONFIG_FILE).is_file():
            raise FormatError(
                "no autoencoder here",
                where=str(folder),
                fix=f"It needs {CONFIG_FILE} and {WEIGHTS_FILE}",
            )
        config = _read_config(folder / CONFIG_FILE)
        sae = cls(config)
        sae._fill(_read_weights(folder / WEIGHTS_FILE), str(folder / WEIGHTS_FILE))
        return sae.eval()

    @torch.no_grad()
    def _fill(self, tensors: Mapping[str, Tensor], where: str) -> None:
        for name, parameter in self.named_parameters():
            if name not in tensors:
                raise FormatError(f"tensor {name} is missing", where=where, fix="Save the autoencoder again")
            if tensors[name].shape != parameter.shape:
                raise FormatError(
                    f"{name} is {list(tensors[name].shape)}, config.json says {list(parameter.shape)}",
                    where=where,
                )
            if not torch.isfinite(tensors[name]).all():
                raise FormatError(f"{name} holds NaN or infinite values", where=where, fix="Train it again")
            parameter.copy_(tensors[name])


def _read_config(path: Path) -> SAEConfig:
    try:
        return SAEConfig.model_validate(json.loads(path.read_text(encoding="utf-8")))
    except ValidationError as e:
        raise FormatError(f"not an autoencoder's config ({_first_line(e)})", where=str(path)) from e
    except (json.JSONDecodeError, UnicodeDecodeError) as e:
        raise FormatError(f"not readable as JSON ({e})", where=str(path), fix="Fetch or save it again") from e


def _read_weights(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise FormatError("file not found", where=str(path), fix="Fetch or save the autoencoder again")
    try:
        tensors: dict[str, Tensor] = safetensors.torch.load_file(path)
    except (SafetensorError, OSError) as e:
        raise FormatError(f"damaged weights ({e})", where=str(path), fix="Fetch or save it again") from e
    return tensors
