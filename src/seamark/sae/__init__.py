"""Sparse autoencoders: pure tensors that learn from any stream of activations."""

from seamark.sae.autoencoder import SAEConfig, SparseAutoencoder, sae_config
from seamark.sae.fit import FitConfig, FitLog, fit
from seamark.sae.latents import Scale, SparseLatents
from seamark.sae.quality import Quality, quality

__all__ = [
    "FitConfig", "FitLog", "Quality", "SAEConfig", "Scale", "SparseAutoencoder", "SparseLatents",
    "fit", "quality", "sae_config",
]  # fmt: skip
