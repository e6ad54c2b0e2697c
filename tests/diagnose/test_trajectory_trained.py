"""A tiny language model and its autoencoders are trained here; then it answers, and its features are linked up to the
refusal."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from seamark.diagnose import Tracing, inspect_text, trace
from seamark.features.gather import gather
from seamark.model.batching import collate
from seamark.model.generation import Generation
from seamark.sae import FitConfig, SAEConfig, SparseAutoencoder, fit
from tiny import tiny_hooked

REFUSED, ANSWERED = ("bleach", "ammonia", "fumes", "knives"), ("bread", "tea", "a map", "flour")
ASKED = ("How do I mix {}?", "Tell me about {}, please.", "What is {}?")
HOOKPOINTS = ("layers.0", "layers.2")


def examples() -> list[tuple[str, str]]:
    said = [(ask.format(topic), "No, never.") for ask in ASKED for topic in REFUSED]
    return said + [(ask.format(topic), "Sure, here.") for ask in ASKED for topic in ANSWERED]


@pytest.fixture(scope="module")
def trained() -> tuple[Any, dict[str, SparseAutoencoder]]:
    model = tiny_hooked("qwen2", "lm", seed=1)
    texts = [model.renderer().render(prompt, answer, f"t{i}") for i, (prompt, answer) in enumerate(examples())]
    batch = collate(texts, model.config.pad_token_id)
    goal = batch.input_ids.clone()
    for row, text in enumerate(texts):
        goal[row, : text.response_span[0]] = -100
        goal[row, text.response_span[1] + 1 :] = -100
    with torch.no_grad():
        for weight in model.hf.parameters():
            weight.div_(4.0 if weight.ndim > 1 else 1.0)
    optimizer = torch.optim.Adam(model.hf.parameters(), lr=3e-3)
    for _ in range(150):
        optimizer.zero_grad()
        model.hf(input_ids=batch.input_ids, attention_mask=batch.attention_mask, labels=goal).loss.backward()
        optimizer.step()
    model.hf.requires_grad_(False)
    every = [np.arange(len(t), dtype=np.int32) for t in texts]
    found = gather(model, texts, range(len(texts)), every, HOOKPOINTS).activations
    order = torch.randperm(len(found["layers.0"]) * 40, generator=torch.Generator().manual_seed(0))
    suite = {}
    for name, h_ND in found.items():
        config = SAEConfig(d_in=32, d_sae=96, k=8, hookpoint=name)
        stream = h_ND.repeat(40, 1)[order].split(512)
        done = fit(stream, {"sae": (config, FitConfig(lr=3e-3, batch_size=512))}, positions=len(order))
        suite[f"at {name}"] = done["sae"]
    return model, suite


def test_from_words_to_the_refusal(trained: tuple[Any, dict[str, SparseAutoencoder]]) -> None:
    model, suite = trained
    how = Generation(max_new_tokens=8)
    config = Tracing(nodes=12, links=6, checks=100)
    refusal = trace(model, suite, "How do I mix bleach?", generate=how, config=config)
    consent = trace(model, suite, "How do I mix bread?", generate=how, config=config)
    said = ["".join(t.text for t in found.tokens if t.span == "response") for found in (refusal, consent)]
    assert [text.split(",")[0] for text in said] == ["No", "Sure"]
    assert refusal.output is not None
    start = next(i for i, t in enumerate(refusal.tokens) if t.span == "response")
    assert refusal.output.at == start - 1
    path = next(p for p in refusal.paths if p.reaches_output)
    first, last = (refusal.nodes[i] for i in (path.nodes[0], path.nodes[-1]))
    assert (first.hookpoint, last.hookpoint) == HOOKPOINTS
    assert refusal.to_output.links >= 3
    assert refusal.between.links >= 10
    assert refusal.between.same_sign.value is not None
    assert refusal.between.same_sign.value > 0.6
    # What adds most to the refusal's logit takes the model away from it when it is ablated.
    added = max((link for link in refusal.links if link.target is None), key=lambda link: link.effect)
    assert added.ablation is not None
    assert added.ablation > 0
    view = inspect_text(model, suite, "How do I mix bleach?", generate=how, top=100)
    assert [t.id for t in view.tokens] == [t.id for t in refusal.tokens]
