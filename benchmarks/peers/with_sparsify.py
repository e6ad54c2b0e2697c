"""Eleuther's sparsify: its own `Trainer.fit`, with a stand-in for the language model that gives activations away."""

from __future__ import annotations

import contextlib
import tempfile
from types import SimpleNamespace

import torch
from sparsify import SparseCoderConfig, TrainConfig, Trainer
from torch import Tensor, nn

from benchmarks.peers.feed import Feed, Job, Reconstruct

SEQUENCE = 128
"""Positions of a sequence: its trainer counts batches in sequences."""


class Stand(nn.Module):
    """Has the parts of a Hugging Face model that the trainer touches; its one module puts out the next batch."""

    def __init__(self, feed: Feed, d_in: int) -> None:
        super().__init__()
        self.point = nn.Identity()
        self.config = SimpleNamespace(num_hidden_layers=1)
        self.device = torch.device("cpu")
        self.dummy_inputs = {"input_ids": torch.zeros(1, 1, dtype=torch.int64)}
        self.feed, self.batches, self.d_in = feed, feed.batches(), d_in

    @property
    def base_model(self) -> Stand:
        return self

    def forward(self, input_ids: Tensor) -> Tensor:
        asked_for_width = input_ids.numel() == 1
        x = torch.zeros(1, self.d_in) if asked_for_width else next(self.batches)
        return self.point(x.view(*input_ids.shape, self.d_in))


class Sequences(torch.utils.data.Dataset):
    """As many sequences as the training needs; which tokens they hold does not matter to the stand-in."""

    def __init__(self, n: int, length: int) -> None:
        self.n, self.ids = n, torch.zeros(length, dtype=torch.int64)

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        return {"input_ids": self.ids}


def train(job: Job, feed: Feed) -> Reconstruct:
    """Options: `optimizer`, "signum" (its default, schedule-free) or "adam" (its own linear warm-up and decay);
    `bf16`, CPU autocast around its fit, which it offers on CUDA only."""
    length = min(SEQUENCE, job.batch)
    sequences = job.batch // length
    with tempfile.TemporaryDirectory() as scratch:
        config = TrainConfig(
            SparseCoderConfig(num_latents=job.d_sae, k=job.k), batch_size=sequences, lr=job.lr, hookpoints=["point"],
            optimizer=job.options["optimizer"], lr_warmup_steps=job.warmup_steps, log_to_wandb=False,
            save_every=10**9, save_dir=scratch, init_seeds=[job.seed],
        )  # fmt: skip
        trainer = Trainer(config, Sequences(job.steps * sequences, length), Stand(feed, job.d_in))
        bf16 = torch.autocast("cpu", torch.bfloat16) if job.options.get("bf16") else contextlib.nullcontext()
        with bf16:
            trainer.fit()
    for optimizer in trainer.optimizers:
        if hasattr(optimizer, "eval"):
            optimizer.eval()  # schedule-free: from the weights it takes gradients at to those it recommends
    sae = trainer.saes["point"]
    return lambda h: sae(h).sae_out
