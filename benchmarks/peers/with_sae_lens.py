"""SAELens: its `TopKTrainingSAE` in its own `SAETrainer.fit` on given activations."""

from __future__ import annotations

import torch
from sae_lens import TopKTrainingSAE, TopKTrainingSAEConfig
from sae_lens.config import SAETrainerConfig
from sae_lens.training.sae_trainer import SAETrainer

from benchmarks.peers.feed import Feed, Job, Reconstruct

SCALE_BATCHES = 100


def train(job: Job, feed: Feed) -> Reconstruct:
    """Options: `autocast` of its trainer, `use_sparse_activations` of its TopK, `normalize_activations`."""
    torch.manual_seed(job.seed)
    sae = TopKTrainingSAE(TopKTrainingSAEConfig(
        d_in=job.d_in, d_sae=job.d_sae, k=job.k,
        use_sparse_activations=bool(job.options.get("use_sparse_activations")),
        rescale_acts_by_decoder_norm=not job.options.get("use_sparse_activations"),
        normalize_activations=job.options.get("normalize_activations", "none"),
    ))  # fmt: skip
    config = SAETrainerConfig(
        total_training_samples=job.steps * job.batch, train_batch_size_samples=job.batch, lr=job.lr, lr_end=job.lr / 10,
        lr_warm_up_steps=job.warmup_steps, lr_decay_steps=job.decay_steps, device="cpu",
        autocast=bool(job.options.get("autocast")),
    )  # fmt: skip
    trainer = SAETrainer(config, sae, feed.batches())
    if job.options.get("normalize_activations") == "expected_average_only_in":
        # What fit does first, here outside of the clock; fit folds the factor into the weights at its end.
        trainer.activation_scaler.estimate_scaling_factor(job.d_in, feed.calibration(SCALE_BATCHES), SCALE_BATCHES)
    trained = trainer.fit()
    return trained.eval()
