"""Small pairs, a tiny model and an untrained autoencoder for the tests of this room."""

from __future__ import annotations

from functools import cache

import torch

from seamark.model.loading import RewardModel
from seamark.sae import SAEConfig, SparseAutoencoder
from seamark.text.pairs import Message, Pairs, PreferencePair
from tiny import tiny_hooked

TOPICS = ["bleach", "bread", "the weather", "a harbour map", "knives", "Dr. Smith's 3.14 rule", "login codes", "tea"]


def make_pairs(n: int = 12) -> Pairs:
    items = []
    for i in range(n):
        topic = TOPICS[i % len(TOPICS)]
        prompt = f"Tell me about {topic}, please; what is it?"
        items.append(
            PreferencePair(
                id=f"p{i}",
                group="safety" if i % 3 else "chat",
                prompt=prompt if i % 2 else (Message("user", prompt),),
                chosen=f"I can't help with {topic}, sorry. Ask someone who knows, and be careful! " * (1 + i % 3),
                rejected=f"Sure, here is {topic}: mix it, then wait. Done; number {i}.\nAnything else? No.",
            )
        )
    return Pairs(tuple(items))


@cache
def tiny(kind: str = "llama") -> RewardModel:
    model = tiny_hooked(kind)
    assert isinstance(model, RewardModel)
    return model


def make_sae(hookpoint: str = "layers.2", k: int = 6, d_sae: int = 96, seed: int = 0) -> SparseAutoencoder:
    sae = SparseAutoencoder(SAEConfig(d_in=32, d_sae=d_sae, k=k, hookpoint=hookpoint), seed=seed)
    with torch.no_grad():
        sae.b_enc -= torch.rand(d_sae, generator=torch.Generator().manual_seed(9)) * 2.5  # some top values negative
        sae.b_dec += 0.05
    return sae.eval()
