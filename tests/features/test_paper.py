"""The real scan in paper mode against a plain dense reading of the SAFER paper."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from feature_corpus import make_pairs, make_sae, tiny

from seamark.features import ScanConfig, contrast, scan, text_scores
from seamark.sae import SparseAutoencoder
from seamark.text.rendering import Rendered


def paper_clause_ends(text: Rendered) -> list[int]:
    """Runs of `. , ? ! ; newline` end a clause; the first kept at token 5 or later, the next ones 5 or more apart."""
    kept: list[int] = []
    for run in re.finditer(r"[.,?!;\n]+", text.text):
        char = run.end() - 1
        holders = [t for t, (s, e) in enumerate(text.offsets) if not text.special[t] and s <= char < e]
        if not holders:
            continue  # the character was cut off at the left
        token = max(holders)
        if token - (kept[-1] if kept else 0) >= 5:
            kept.append(token)
    return kept


def dense_latents(hf: torch.nn.Module, sae: SparseAutoencoder, text: Rendered, block: int) -> torch.Tensor:
    """max(z, 0) of every token [T, d_sae], the text alone in its batch."""
    ids = torch.from_numpy(text.input_ids.astype(np.int64))[None]
    with torch.no_grad():
        h = hf(input_ids=ids, output_hidden_states=True).hidden_states[block + 1][0].double()
        x = (h - h.mean(1, keepdim=True)) / (h.std(1, unbiased=True, keepdim=True) + 1e-6)
        pre = (x - sae.b_dec.double()) @ sae.W_enc.double() + sae.b_enc.double()
        top = pre.topk(sae.config.k, dim=1)
        z = torch.zeros_like(pre).scatter_(1, top.indices, top.values)
        assert (z < 0).any()
    return z.clamp_min(0)


@pytest.mark.parametrize("batch_tokens", [60, 4096])
def test_scan_contrast_and_scores_equal_the_plain_definition(tmp_path: Path, batch_tokens: int) -> None:
    model, sae, pairs = tiny("llama"), make_sae(k=40), make_pairs()
    result = scan(model, {"s": sae}, pairs, tmp_path, config=ScanConfig.paper(batch_tokens=batch_tokens))

    sums = {"chosen": torch.zeros(96).double(), "rejected": torch.zeros(96).double()}
    mean_latents: dict[str, torch.Tensor] = {}
    renderer = model.renderer()
    for pair in pairs:
        for side, text in zip(("chosen", "rejected"), renderer.render_pair(pair), strict=True):
            ends = paper_clause_ends(text)
            assert len(ends) > 2
            z = dense_latents(model.hf, sae, text, 2)[ends]
            mean_latents[text.text_id] = z.mean(0)
            if pair.group == "safety":
                sums[side] += z.sum(0)
    plus, minus = sums["chosen"], sums["rejected"]
    C = (plus + minus).mean()
    scores = ((plus - minus) / (plus + minus + C)).numpy()

    found = contrast(result, "safety", normalization="paper")
    assert found.constant == pytest.approx(float(C), rel=1e-5)
    np.testing.assert_allclose(found.scores, scores, atol=1e-5)

    top = found.top(8)
    expected = sorted(range(96), key=lambda i: (-abs(scores[i]), i))[:8]
    assert [f.latent for f in top.features] == expected
    g = text_scores(result, top)
    for text_id, z in mean_latents.items():
        plain = sum(float(z[i]) for i in expected if scores[i] > 0) - sum(
            float(z[i]) for i in expected if scores[i] < 0
        )
        assert g[text_id] == pytest.approx(plain, abs=1e-5)
    for pair in pairs:
        alone = g[f"{pair.id}:chosen"] - g[f"{pair.id}:rejected"]
        z = mean_latents[f"{pair.id}:chosen"] - mean_latents[f"{pair.id}:rejected"]
        assert alone == pytest.approx(float(sum(f.sign * z[f.latent] for f in top.features)), abs=2e-5)


def test_default_normalisation_is_the_mean_of_means(tmp_path: Path) -> None:
    model, sae, pairs = tiny("llama"), make_sae(k=40), make_pairs()
    result = scan(model, {"s": sae}, pairs, tmp_path, config=ScanConfig(positions="tokens"))
    renderer = model.renderer()
    h = {"chosen": torch.zeros(96).double(), "rejected": torch.zeros(96).double()}
    safety = pairs.group("safety")
    for pair in safety:
        for side, text in zip(("chosen", "rejected"), renderer.render_pair(pair), strict=True):
            h[side] += dense_latents(model.hf, sae, text, 2)[slice(*text.response_span)].mean(0) / len(safety)
    plus, minus = h["chosen"], h["rejected"]
    scores = (plus - minus) / (plus + minus + (plus + minus).mean())
    np.testing.assert_allclose(contrast(result, "safety").scores, scores.numpy(), atol=1e-5)
