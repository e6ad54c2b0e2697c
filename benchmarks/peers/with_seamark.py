"""Seamark, through `seamark.sae.fit` as its users call it."""

from __future__ import annotations

import torch._dynamo  # noqa: F401 - every torch optimiser imports it when made: seconds that nobody is charged for

from benchmarks.peers.feed import DECAY_SHARE, WARMUP_SHARE, Feed, Job, Reconstruct


def train(job: Job, feed: Feed) -> Reconstruct:
    """Options: `sae` and `fit`, fields of SAEConfig and FitConfig."""
    from seamark.sae import FitConfig, FitLog, SAEConfig, fit

    what = SAEConfig(d_in=job.d_in, d_sae=job.d_sae, k=job.k, activation="topk", **job.options.get("sae", {}))
    how = FitConfig(lr=job.lr, batch_size=job.batch, seed=job.seed, warmup_share=WARMUP_SHARE, decay_share=DECAY_SHARE,
                    **job.options.get("fit", {}))  # fmt: skip
    feed.start()  # the choice of the encoder's number format, measured by fit, is part of the training
    batches = feed.batches(tick=False)

    def step(log: FitLog) -> None:
        feed.notes["encoder"] = log.encoding  # the number format that fit chose by its own measurement
        feed.tick()

    return fit(batches, {"sae": (what, how)}, positions=job.steps * job.batch, log=step)["sae"]
