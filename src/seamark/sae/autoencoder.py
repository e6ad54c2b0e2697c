"""The sparse autoencoder: encode activations of a hookpoint to a few latents, decode them, save and load."""

from __future__ import annotations

import hashlib
import math
from os import PathLike

import torch
from torch import Tensor, nn

from seamark.errors import DataError, FormatError
from seamark.sae import formats
from seamark.sae.config import FitConfig, SAEConfig
from seamark.sae.encoder import Encoder
from seamark.sae.latents import Scale, SparseLatents
from seamark.sae.ops import decode_rows

ENCODE_ROWS = 8192


class SparseAutoencoder(nn.Module):
    """x̂ = W_dec z + b_dec with z = act(W_enc (x − b_dec) + b_enc) (TopK: SAFER, arXiv 2507.00665).

    Parameters, float32: W_enc [d_in, d_sae] (stored so that a latent's column is contiguous), W_dec [d_sae, d_in],
    b_enc [d_sae], b_dec [d_in], and `threshold` [d_sae] for `jumprelu` and `batch_topk`. A fresh one is tied
    (W_enc = W_decᵀ) with decoder rows of unit norm.
    """

    threshold: nn.Parameter | None

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
        self.threshold = nn.Parameter(torch.zeros(config.d_sae)) if config.has_threshold else None

    @classmethod
    @torch.no_grad()
    def untrained(cls, like: SparseAutoencoder | SAEConfig, seed: int = 0) -> SparseAutoencoder:
        """An autoencoder as training starts it, for the same hookpoint: the control that shows what training adds.

        Shape, k, normalisation and hookpoint are those of `like`; the weights are the tied unit-norm ones of `seed`.
        Training takes its first b_dec from the middle of the first batch. That is no part of a dictionary, and without
        it the latents would mostly tell what all positions have in common; so b_dec is `like`'s where `like` is an
        autoencoder, and 0 where it is a config. `jumprelu` begins with `FitConfig`'s threshold; `batch_topk` has none
        before training and becomes `topk_relu` of the same k.
        """
        config = like if isinstance(like, SAEConfig) else like.config
        if config.activation == "batch_topk":
            config = config.model_copy(update={"activation": "topk_relu"})
        sae = cls(config, seed=seed)
        if isinstance(like, SparseAutoencoder):
            sae.b_dec.copy_(like.b_dec)
        if sae.threshold is not None:
            sae.threshold.fill_(FitConfig().initial_threshold)
        return sae.eval()

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
        return x_ND.div_((std + self.config.eps)[:, None]), Scale(mean, std)

    @torch.no_grad()
    def encode(self, h_ND: Tensor) -> SparseLatents:
        """Latents of h [n, d_in]: k a position for `topk` (some maybe negative) and `topk_relu` (some maybe 0), else
        those that fire, as flat entries with offsets."""
        x_ND, scale = self.preprocess(h_ND)
        x_ND = x_ND - self.b_dec if self.config.subtract_b_dec else x_ND
        encoder = Encoder(self._encoder_rows(), self.b_enc.detach())
        k = self.config.fixed_k
        if k is not None:
            indices, values = encoder.k_largest(x_ND, k)
            values = values if self.config.activation == "topk" else values.relu()
            return SparseLatents(indices.to(torch.int32), values, self.config.d_sae, None, scale)
        floor = self.b_enc.new_zeros(1) if self.threshold is None else self.threshold.detach()
        # A negative threshold lets zeros and negatives through in JumpReLU as published; they stay what they are.
        indices, values, offsets = encoder.exceeding(x_ND, floor)
        return SparseLatents(indices.to(torch.int32), values, self.config.d_sae, offsets, scale)

    @torch.no_grad()
    def decode(self, latents: SparseLatents) -> Tensor:
        """Reconstruction [n, d_in] in the hookpoint's units (normalised ones if `latents.scale` is None)."""
        if latents.d_sae != self.config.d_sae:
            raise DataError(f"latents of {latents.d_sae} do not fit an autoencoder of {self.config.d_sae}")
        offsets = latents.offsets
        x_ND = decode_rows(latents.indices.long(), latents.values, self.W_dec.detach(), offsets) + self.b_dec
        if latents.scale is None:
            return x_ND
        return x_ND * (latents.scale.std + self.config.eps)[:, None] + latents.scale.mean[:, None]

    def forward(self, h_ND: Tensor) -> Tensor:
        """`decode(encode(h))`, chunk by chunk."""
        return torch.cat([self.decode(self.encode(part)) for part in h_ND.split(ENCODE_ROWS)])

    def _encoder_rows(self) -> Tensor:
        """W_enc as [d_sae, d_in] with contiguous rows (no copy, as stored by this class)."""
        return self.W_enc.detach().T.contiguous()

    @torch.no_grad()
    def normalize_decoder(self) -> None:
        """Bring every decoder row to unit norm."""
        tiny = torch.finfo(self.W_dec.dtype).tiny
        self.W_dec.div_(torch.linalg.vector_norm(self.W_dec, dim=1, keepdim=True).clamp_min_(tiny))

    def fingerprint(self) -> str:
        """SHA-256 of config and weights."""
        h = hashlib.sha256(self.config.model_dump_json().encode())
        for name, tensor in self._tensors().items():
            h.update(name.encode())
            h.update(tensor.numpy().tobytes())
        return h.hexdigest()

    def _tensors(self) -> dict[str, Tensor]:
        return {name: p.detach().cpu().contiguous() for name, p in sorted(self.named_parameters())}

    def save_pretrained(
        self, path: str | PathLike[str], format: str = "seamark", *, approximate: bool = False
    ) -> tuple[str, ...]:
        """Write a folder that `from_pretrained` opens, each file whole or not at all.

        Args:
            path: the folder.
            format: "seamark" (`sae.safetensors` and `config.json`), "saelens" or "sparsify".
            approximate: write also what the format can only nearly say.

        Returns:
            What was changed, in words.

        Raises:
            FormatError: the format cannot say what this autoencoder is.
        """
        stored = formats.Stored(self.config, self._tensors(), "seamark")
        return formats.write(stored, path, format, approximate=approximate)

    @classmethod
    def from_pretrained(
        cls, path: str | PathLike[str], *, hookpoint: str | None = None, k: int | None = None,
        activation: str | None = None, component: int | None = None, revision: str | None = None,
        token: str | None = None,
    ) -> SparseAutoencoder:  # fmt: skip
        """Open an autoencoder of any format in use: Seamark, SAELens, sparsify, Gemma Scope, dictionary_learning,
        Safe-SAIL, SAFER.

        Args:
            path: a folder, a file, or a repository of the Hugging Face Hub (`owner/name`, `owner/name/subfolder`).
            hookpoint: which one, where the place holds several.
            k: for SAFER's and Safe-SAIL's files, which do not say it.
            activation: for Safe-SAIL's: "topk_relu", "jumprelu" or "relu".
            component: which of several stacked in a Safe-SAIL file.
            revision: of the hub repository.
            token: for gated repositories; else the one huggingface_hub knows.

        Raises:
            FormatError: a missing, foreign, damaged or unsafe file.
        """
        stored = formats.read(path, hookpoint=hookpoint, k=k, activation=activation, component=component,
                              revision=revision, token=token)  # fmt: skip
        sae = cls(stored.config)
        sae._fill(stored, str(path))
        return sae.eval()

    def push_to_hub(self, repo_id: str, *, private: bool = True, token: str | None = None, message: str = "") -> str:
        """Upload as a hub repository (created if need be); returns its address."""
        return formats.push(formats.Stored(self.config, self._tensors(), "seamark"), repo_id, private=private,
                            token=token, message=message or "Seamark sparse autoencoder")  # fmt: skip

    @torch.no_grad()
    def _fill(self, stored: formats.Stored, where: str) -> None:
        for name, parameter in self.named_parameters():
            tensor = stored.tensors.get(name)
            if tensor is None or tensor.shape != parameter.shape:
                found = "missing" if tensor is None else f"{list(tensor.shape)}"
                raise FormatError(f"{name} is {found}, its config says {list(parameter.shape)}", where=where)
            parameter.copy_(tensor)
