"""What an earlier feature does to a later one: by the gradient, and exactly by ablation.

One pass forward keeps its graph; each later number (a feature's pre-activation at its token, a reward, a logit) then
costs one pass back, which gives the effects of all earlier features at once: gradient · (z · W_dec), in the hookpoint's
units. These are total effects: they go through everything that lies between, other features too. The activations are
the model's own, so what the autoencoders do not explain is in them. A gradient is an estimate (reward-lens, arXiv
2604.26130, found it to agree badly with patching): `ablated` is the truth it is held against.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from seamark.diagnose.attribution import units_in
from seamark.diagnose.steering import Suite
from seamark.errors import DataError
from seamark.features.moving import Move, firings_of, moving
from seamark.model.batching import Batch, collate
from seamark.model.hookpoints import parse_hookpoint
from seamark.model.loading import HookedModel, LanguageModel, RewardModel
from seamark.model.precision import autocast
from seamark.model.reading import Change, apply_at, evaluating, in_eval
from seamark.sae import SparseAutoencoder
from seamark.text.rendering import Rendered

ROWS = 4096
"""Firings whose directions are looked up at once."""


def depth_of(hookpoint: str) -> tuple[int, int]:
    """Sorts hookpoints from the input to the output: attention before MLP before the block's output."""
    point = parse_hookpoint(hookpoint)
    return point.layer, ("attn", "mlp", "block").index(point.part)


@dataclass(frozen=True)
class Place:
    """A feature at a token."""

    sae: str
    latent: int
    hookpoint: str
    token: int


@dataclass(frozen=True, eq=False)
class Passed:
    """One text, once through the model."""

    activations: Mapping[str, Tensor]
    """By hookpoint [1, T, d]."""
    head: Tensor | None
    """What the model says: the reward [1], or the logits [vocabulary] behind the token asked for; None: nothing."""


class Passes:
    """Passes of one text through one model, with and without a graph, with and without an ablated feature.

    Args:
        model: any model with hookpoints.
        suite: {sae id: autoencoder}, on the model's device.
        text: the text.
        at: behind which token a language model's logits are read.
        reads_head: whether the model's output is wanted.
    """

    def __init__(self, model: HookedModel, suite: Suite, text: Rendered, at: int, *, reads_head: bool) -> None:
        self.model, self.suite, self.at, self.reads_head = model, suite, at, reads_head
        self.hookpoints = sorted({sae.config.hookpoint for sae in suite.values()}, key=depth_of)
        self._batch = collate([text], int(model.config.pad_token_id)).to(model.device)

    def with_graph(self) -> Passed:
        """A pass to go back through. Nothing below the lowest hookpoint is kept.

        Raises:
            DataError: activations that are not finite.
        """
        seen: dict[str, Tensor] = {}
        exact = autocast(self.model.device.type, "fp32")
        with in_eval(self.model.hf), torch.inference_mode(False), torch.enable_grad(), exact:
            passed = self._run(seen, {}, graph=True)
        for name, h_BTD in passed.activations.items():
            if not bool(torch.isfinite(h_BTD).all()):
                raise DataError("activations hold NaN or infinite values", where=name,
                                fix="Read the model in float32, or choose another hookpoint")  # fmt: skip
        return passed

    def plain(self) -> Passed:
        """A pass to compare ablations with."""
        with evaluating(self.model.hf, "fp32"):
            return self._run({}, {}, graph=False)

    def ablated(self, place: Place) -> Passed:
        """A pass in which a feature does not fire at its token. What its autoencoder does not explain stays."""
        move = Move(place.latent, "ablate", 0.0, ((place.token, place.token + 1),))
        with evaluating(self.model.hf, "fp32"):
            return self._run({}, {place.hookpoint: moving([(self.suite[place.sae], [move])])}, graph=False)

    def activation(self, passed: Passed, place: Place) -> float:
        """max(z, 0) of a feature at its token, as the autoencoder selects it."""
        sae = self.suite[place.sae]
        h_ND = passed.activations[place.hookpoint][0, place.token : place.token + 1]
        return float(firings_of(sae, [place.latent], h_ND.to(sae.W_dec.device, sae.W_dec.dtype))[0, 0])

    def _run(self, seen: dict[str, Tensor], changes: Mapping[str, Change], *, graph: bool) -> Passed:
        def watching(name: str) -> Change:
            def watch(h_BTD: Tensor, _batch: Batch) -> Tensor:
                # The graph begins where nothing that is asked for lies below.
                begins = name == self.hookpoints[0] or not h_BTD.requires_grad
                seen[name] = h_BTD.detach().requires_grad_() if graph and begins else h_BTD
                return seen[name]

            return watch

        with ExitStack() as held:
            held.enter_context(apply_at(self.model, changes))  # first, so that what is watched is what it left
            held.enter_context(apply_at(self.model, {name: watching(name) for name in self.hookpoints}))
            held.enter_context(self.model.reading(self._batch))
            head = self._head(self.model.forward(self._batch))
        return Passed(seen, head)

    def _head(self, output: Any) -> Tensor | None:
        if not self.reads_head:
            return None
        if isinstance(self.model, RewardModel):
            return self.model.rewards_of(output)
        if isinstance(self.model, LanguageModel):
            logits: Tensor = output.logits[0, self.at]
            return logits.float()
        return None


def pre_activation(sae: SparseAutoencoder, h_D: Tensor, latent: int) -> Tensor:
    """W_enc x + b_enc of one latent at one position, through which gradients go: x as the autoencoder normalises h."""
    x_D = h_D.to(sae.W_enc.device, sae.W_enc.dtype)
    if sae.config.normalize == "layer_norm":
        x_D = x_D - x_D.mean()
        x_D = x_D / (x_D.norm() / math.sqrt(max(sae.config.d_in - 1, 1)) + sae.config.eps)
    if sae.config.subtract_b_dec:
        x_D = x_D - sae.b_dec.detach()
    return x_D @ sae.W_enc.detach()[:, latent] + sae.b_enc.detach()[latent]


def gradients(of: Tensor, passed: Passed, hookpoints: Sequence[str]) -> dict[str, Tensor]:
    """∂ of / ∂ activations [T, d], float32, by hookpoint; 0 where nothing leads there.

    Raises:
        DataError: a gradient that is not finite.
    """
    inputs = [passed.activations[name] for name in hookpoints]
    found = torch.autograd.grad(of, inputs, retain_graph=True, allow_unused=True)
    out = {}
    for name, h_BTD, g_BTD in zip(hookpoints, inputs, found, strict=True):
        out[name] = torch.zeros_like(h_BTD[0]).float() if g_BTD is None else g_BTD[0].float()
        if not bool(torch.isfinite(out[name]).all()):
            raise DataError("a gradient is not finite", where=name, fix="Load the model in float32")
    return out


@torch.no_grad()
def worth(
    sae: SparseAutoencoder, latent_N: Tensor, token_N: Tensor, z_N: Tensor, h_TD: Tensor, g_TD: Tensor
) -> Tensor:  # fmt: skip
    """gradient · (z · W_dec) of n firings, in the hookpoint's units, [n]."""
    weight = sae.W_dec.detach()
    h_TD, g_TD = h_TD.detach().to(weight.device, weight.dtype), g_TD.to(weight.device, weight.dtype)
    size_N = z_N.to(weight) * units_in(sae, h_TD)[token_N]
    parts = [(g_TD[t] * weight[f]).sum(1) for t, f in zip(token_N.split(ROWS), latent_N.split(ROWS), strict=True)]
    return size_N * torch.cat(parts) if parts else size_N
