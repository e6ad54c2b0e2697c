"""Gradients of the reward at hookpoints: one pass forward, one backward."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from seamark.model.batching import Batch
from seamark.model.loading import RewardModel
from seamark.model.precision import autocast
from seamark.model.reading import Change, apply_at, in_eval


@dataclass(frozen=True)
class Graded:
    """What one batch gave, at each hookpoint."""

    activations: dict[str, Tensor]
    """[B, T, d]."""
    gradients: dict[str, Tensor]
    """∂ reward of a row / ∂ its activations [B, T, d]. That of an early hookpoint goes through the later ones."""
    rewards: Tensor
    """float32 [B]."""


def reward_gradients(model: RewardModel, batch: Batch, hookpoints: Sequence[str]) -> Graded:
    """Run a batch forward and backward. Nothing below the lowest hookpoint is kept for the way back.

    A row's reward depends on no other row, so one pass back gives the gradients of all rows. Weights get none.

    Raises:
        ModelError: an unknown hookpoint.
    """
    seen: dict[str, Tensor] = {}

    def watching(name: str) -> Change:
        def watch(h_BTD: Tensor, _batch: Batch) -> Tensor:
            free = not seen or not h_BTD.requires_grad  # nothing that is asked for lies below it
            seen[name] = h_BTD.detach().requires_grad_() if free else h_BTD
            return seen[name]

        return watch

    changes = {name: watching(name) for name in dict.fromkeys(hookpoints)}
    with in_eval(model.hf), torch.inference_mode(False), torch.enable_grad(), apply_at(model, changes):
        with model.reading(batch.to(model.device)) as moved, autocast(model.device.type, "fp32"):
            rewards = model.rewards_of(model.forward(moved))
        found = torch.autograd.grad(rewards.sum(), list(seen.values()))
    return Graded(
        {name: seen[name].detach() for name in changes},
        dict(zip(seen, found, strict=True)),
        rewards.detach(),
    )
