"""Sparse autoencoders: pure tensors that learn from any stream of activations."""

from seamark.sae.autoencoder import SparseAutoencoder
from seamark.sae.checkpoint import Checkpoints
from seamark.sae.config import FitConfig, SAEConfig, sae_config
from seamark.sae.fit import Seekable, fit
from seamark.sae.latents import Scale, SparseLatents
from seamark.sae.quality import Quality, quality
from seamark.sae.trainer import FitLog

__all__ = [
    "Checkpoints", "FitConfig", "FitLog", "Quality", "SAEConfig", "Scale", "Seekable", "SparseAutoencoder",
    "SparseLatents", "fit", "quality", "sae_config",
]  # fmt: skip
