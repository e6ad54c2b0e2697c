"""Sparse autoencoders: pure tensors that learn from any stream of activations."""

from seamark.sae.autoencoder import SparseAutoencoder
from seamark.sae.checkpoint import Checkpoints
from seamark.sae.config import FitConfig, SAEConfig, sae_config
from seamark.sae.fit import Seekable, fit
from seamark.sae.latents import Scale, SparseLatents
from seamark.sae.quality import FiringHistogram, Quality, QualityMeter, qualities, quality
from seamark.sae.trainer import FitLog

__all__ = [
    "Checkpoints", "FiringHistogram", "FitConfig", "FitLog", "Quality", "QualityMeter", "SAEConfig", "Scale",
    "Seekable", "SparseAutoencoder", "SparseLatents", "fit", "qualities", "quality", "sae_config",
]  # fmt: skip
