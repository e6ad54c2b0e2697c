"""Gradients of the reward at hookpoints: against small steps, with several hookpoints and with skipped blocks."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from seamark.errors import ModelError
from seamark.model import RewardModel, collate
from seamark.model.gradients import Graded, reward_gradients
from seamark.model.reading import apply_at, read
from seamark.model.skipping import skipping_below
from tiny import tiny_hooked

SAID = [("Is it safe to mix bleach?", "No, please never do that."), ("Bread?", "Mix flour, water, salt and yeast.")]


def prepared(kind: str) -> tuple[RewardModel, list[Any], Any]:
    model = tiny_hooked(kind)
    rendered = [model.renderer().render(prompt, answer, f"t{i}") for i, (prompt, answer) in enumerate(SAID)]
    return model, rendered, collate(rendered, int(model.config.pad_token_id))


@pytest.mark.parametrize("kind", ["bert", "llama", "gpt2"])
@pytest.mark.parametrize("hookpoint", ["layers.1", "layers.2.mlp"])
def test_a_small_step_moves_the_reward_by_the_gradient(kind: str, hookpoint: str) -> None:
    model, _, batch = prepared(kind)
    model.hf.double()
    found = reward_gradients(model, batch, ["layers.0", hookpoint])
    clean = read(model, batch, [hookpoint], with_output=True)
    assert torch.equal(found.activations[hookpoint], clean.activations[hookpoint])
    assert clean.rewards is not None
    assert torch.allclose(found.rewards, clean.rewards)
    step = torch.zeros_like(found.activations[hookpoint])
    step[0, 3], step[1, 2] = torch.randn(2, step.shape[-1], generator=torch.Generator().manual_seed(1)).double()
    with apply_at(model, {hookpoint: lambda h, _batch: h + 1e-3 * step}):
        up = read(model, batch, [], with_output=True).rewards
    with apply_at(model, {hookpoint: lambda h, _batch: h - 1e-3 * step}):
        down = read(model, batch, [], with_output=True).rewards
    assert up is not None and down is not None  # noqa: PT018
    expected = (found.gradients[hookpoint] * step).sum((1, 2))
    assert torch.allclose((up - down).double() / 2e-3, expected, rtol=2e-2, atol=2e-4)
    assert float(expected.abs().max()) > 2e-3


def test_an_early_gradient_goes_through_the_later_hookpoint() -> None:
    model, _, batch = prepared("llama")
    alone: Graded = reward_gradients(model, batch, ["layers.0"])
    both = reward_gradients(model, batch, ["layers.2", "layers.0"])
    assert list(both.gradients) == ["layers.0", "layers.2"]
    assert torch.allclose(alone.gradients["layers.0"], both.gradients["layers.0"], atol=1e-6)


def test_skipped_blocks_change_nothing_and_weights_get_no_gradient() -> None:
    model, rendered, batch = prepared("bert")
    whole = reward_gradients(model, batch, ["layers.2"])
    with skipping_below(model, "layers.2", rendered):
        skipped = reward_gradients(model, batch, ["layers.2"])
    mask = batch.attention_mask.bool()
    assert torch.allclose(whole.gradients["layers.2"][mask], skipped.gradients["layers.2"][mask], atol=1e-5)
    assert torch.allclose(whole.rewards, skipped.rewards, atol=1e-5)
    assert all(p.grad is None for p in model.hf.parameters())
    assert float(whole.gradients["layers.2"][~mask].abs().max()) == 0.0


def test_no_such_hookpoint() -> None:
    model, _, batch = prepared("bert")
    with pytest.raises(ModelError, match="out of range"):
        reward_gradients(model, batch, ["layers.9"])
