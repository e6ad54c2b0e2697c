"""Search by threshold in a cheap product: it may propose too much, never too little."""

from __future__ import annotations

import pytest
import torch

from seamark.sae import FitConfig, SAEConfig
from seamark.sae.encoder import Encoder
from seamark.sae.step import Problem, Weights, loss_and_gradients

D_IN, D_SAE, N = 512, 2048, 1024


def strong(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """(x [n, d_in], W_enc [d_sae, d_in]): two directions at each position, with sizes like the thresholds'."""
    g = torch.Generator().manual_seed(seed)
    W = torch.nn.functional.normalize(torch.randn(D_SAE, D_IN, generator=g), dim=1)
    x = sum(W[torch.randint(D_SAE, (N,), generator=g)] * (10 + 22 * torch.rand(N, 1, generator=g)) for _ in range(2))
    return x, W


@pytest.mark.parametrize("floor", [0.5, 8.02, 16.05, 20.04, 24.04])
@pytest.mark.parametrize("bias", [0.0, 6.0])
def test_large_thresholds_lose_no_entry(floor: float, bias: float) -> None:
    """What a bf16 result is off by grows with the result: its last digit at 24 is 0.125."""
    x, W = strong()
    b_enc = bias * torch.randn(D_SAE, generator=torch.Generator().manual_seed(1))
    exact, cheap = (Encoder(W, b_enc, kind).above(x, torch.tensor([floor])) for kind in ("fp32", "bf16"))
    assert len(exact.pre) > 500
    # Values within fp32's own rounding of the floor may fall on either side of it.
    sure = (exact.pre - floor).abs() > 1e-4
    found = set(zip(positions(cheap.bags), cheap.indices.tolist(), strict=True))
    wanted = zip(positions(exact.bags), exact.indices.tolist(), sure.tolist(), strict=True)
    assert not [(n, latent) for n, latent, certain in wanted if certain and (n, latent) not in found]


def test_the_cut_of_batch_top_k_is_the_same() -> None:
    x, W = strong()
    weights = Weights(W, W.clone(), torch.zeros(D_SAE), torch.zeros(D_IN))
    for k in (1, 2):
        problem = Problem(SAEConfig(d_in=D_IN, d_sae=D_SAE, k=k, activation="batch_topk"), FitConfig(), 0.0, N)
        exact, cheap = (loss_and_gradients(weights, x, Encoder(W, weights.b_enc, kind), problem)
                        for kind in ("fp32", "bf16"))  # fmt: skip
        assert cheap.active == exact.active == k * N
        assert float(cheap.cut) == pytest.approx(float(exact.cut), abs=1e-5)


def positions(bags: torch.Tensor | None) -> list[int]:
    assert bags is not None
    return torch.repeat_interleave(torch.arange(N), bags.diff()).tolist()
