"""The autoencoder anybody writes in torch: dense products, autograd, Adam."""

from __future__ import annotations

import contextlib

import torch
from torch import Tensor, nn

from benchmarks.peers.feed import Feed, Job, Reconstruct

SCALE_BATCHES = 20


class DenseTopK(nn.Module):
    def __init__(self, d_in: int, d_sae: int, k: int) -> None:
        super().__init__()
        self.k = k
        W = torch.randn(d_sae, d_in)
        self.W_dec = nn.Parameter(W / W.norm(dim=1, keepdim=True))
        self.W_enc = nn.Parameter(self.W_dec.detach().T.clone())
        self.b_enc = nn.Parameter(torch.zeros(d_sae))
        self.b_dec = nn.Parameter(torch.zeros(d_in))

    def forward(self, x: Tensor) -> Tensor:
        pre = torch.relu((x - self.b_dec) @ self.W_enc + self.b_enc)
        values, indices = pre.topk(self.k, dim=-1, sorted=False)
        latents = torch.zeros_like(pre).scatter_(-1, indices, values)
        return latents @ self.W_dec + self.b_dec

    @torch.no_grad()
    def normalize(self) -> None:
        self.W_dec /= self.W_dec.norm(dim=1, keepdim=True)


def train(job: Job, feed: Feed) -> Reconstruct:
    """Options: `bf16`, autocast around the forward pass; `fused`, torch's fused Adam."""
    torch.manual_seed(job.seed)
    sae = DenseTopK(job.d_in, job.d_sae, job.k)
    # Activations at a mean norm of √d_in, as is usual.
    norms = torch.cat([x.norm(dim=1) for x in feed.calibration(SCALE_BATCHES)])
    scale = job.d_in**0.5 / float(norms.mean())
    optimizer = torch.optim.Adam(sae.parameters(), lr=job.lr, fused=job.options.get("fused"))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda i: min(1.0, (i + 1) / job.warmup_steps, max(job.steps - i, 1) / job.decay_steps)
    )
    bf16 = torch.autocast("cpu", torch.bfloat16) if job.options.get("bf16") else contextlib.nullcontext()
    for i, batch in enumerate(feed.batches()):
        x = batch * scale
        if i == 0:
            sae.b_dec.data = x.mean(0)
        with bf16:
            loss = (sae(x) - x).square().sum(-1).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(sae.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        sae.normalize()
    return lambda h: sae(h * scale) / scale
