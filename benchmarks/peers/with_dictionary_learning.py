"""dictionary_learning: its `AutoEncoderTopK` trained by its `TopKTrainer.update`, as its `trainSAE` does."""

from __future__ import annotations

import contextlib

import torch
from dictionary_learning.trainers.top_k import TopKTrainer
from dictionary_learning.training import get_norm_factor

from benchmarks.peers.feed import Feed, Job, Reconstruct

SCALE_BATCHES = 100


def train(job: Job, feed: Feed) -> Reconstruct:
    """Options: `normalize_activations` as in its trainSAE; `bf16`, autocast around update (its trainSAE: CUDA only)."""
    trainer = TopKTrainer(
        steps=job.steps, activation_dim=job.d_in, dict_size=job.d_sae, k=job.k, layer=0, lm_name="", lr=job.lr,
        warmup_steps=job.warmup_steps, decay_start=job.steps - job.decay_steps, seed=job.seed, device="cpu",
    )  # fmt: skip
    factor = 1.0
    if job.options.get("normalize_activations"):
        factor = get_norm_factor(feed.calibration(SCALE_BATCHES), SCALE_BATCHES)
    bf16 = torch.autocast("cpu", torch.bfloat16) if job.options.get("bf16") else contextlib.nullcontext()
    for step, batch in enumerate(feed.batches()):
        with bf16:
            trainer.update(step, batch / factor if factor != 1.0 else batch)
    trainer.ae.scale_biases(factor)
    return trainer.ae.eval()
