from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import Tensor

from seamark.errors import ConfigError, DataError
from seamark.sae import FitConfig, FitLog, SAEConfig, SparseAutoencoder, fit

D_IN, D_SAE, K = 16, 64, 4


def stream(n: int = 3000, chunk: int = 700, seed: int = 0) -> list[Tensor]:
    """Activations made of a few directions, in chunks that do not fit the batches."""
    g = torch.Generator().manual_seed(seed)
    directions = torch.randn(40, D_IN, generator=g)
    active = (torch.rand(n, 40, generator=g) < 0.08) * torch.rand(n, 40, generator=g)
    return list((active @ directions + 0.05 * torch.randn(n, D_IN, generator=g) + 0.5).split(chunk))


SAE = SAEConfig(d_in=D_IN, d_sae=D_SAE, k=K, hookpoint="layers.1")
HOW = FitConfig(lr=3e-3, batch_size=128, seed=5)


def dense_losses(chunks: list[Tensor], how: FitConfig, total: int) -> list[float]:
    """The same training with dense latents, autograd and an ordinary Adam."""
    sae = SparseAutoencoder(SAE, seed=how.seed)
    xs = [sae.preprocess(c)[0] for c in chunks]
    with torch.no_grad():
        sae.b_dec.copy_(xs[0].mean(0))
    optimizer = torch.optim.Adam(sae.parameters(), betas=(0.9, 0.999), fused=True)
    batches = torch.cat(xs).split(how.batch_size)
    losses = []
    for step, x in enumerate(batches):
        pre = (x - sae.b_dec) @ sae.W_enc + sae.b_enc
        z = pre * torch.zeros_like(pre).scatter_(1, pre.topk(K, dim=1).indices, 1.0)
        loss = ((z @ sae.W_dec + sae.b_dec - x).square().sum(1) / x.square().sum(1)).mean()
        optimizer.zero_grad()
        loss.backward()
        if how.clip:
            torch.nn.utils.clip_grad_norm_(sae.parameters(), how.clip)
        optimizer.param_groups[0]["lr"] = how.rate(step, len(batches))
        optimizer.step()
        losses.append(loss.item())
        if (step + 1) % 10 == 0:
            sae.normalize_decoder()
    return losses


def test_loss_curve_coincides_with_dense_training() -> None:
    chunks = stream()
    log: list[FitLog] = []
    fit(chunks, {"a": (SAE, HOW)}, positions=3000, log=log.append)
    expected = dense_losses(chunks, HOW, 3000)
    got = [entry.loss for entry in log]
    assert got == pytest.approx(expected, rel=1e-3)
    assert got[:5] == pytest.approx(expected[:5], rel=1e-5)
    assert got[-1] < 0.7 * got[0]


def test_many_from_one_stream_equal_each_alone() -> None:
    wide = SAE.model_copy(update={"d_sae": 96, "k": 8})
    other = HOW.model_copy(update={"batch_size": 300, "seed": 1})
    together = fit(stream(), {"a": (SAE, HOW), "b": (wide, other)}, positions=3000)
    for name, how in (("a", (SAE, HOW)), ("b", (wide, other))):
        alone = fit(stream(), {name: how}, positions=3000)[name]
        assert alone.fingerprint() == together[name].fingerprint()


def test_the_chunking_of_the_stream_does_not_matter() -> None:
    whole = torch.cat(stream())
    start = SparseAutoencoder(SAE)
    a = fit(list(whole.split(700)), {"a": (SAE, HOW)}, positions=3000, init={"a": start})["a"]
    b = fit(list(whole.split(128)), {"a": (SAE, HOW)}, positions=3000, init={"a": SparseAutoencoder(SAE)})["a"]
    torch.testing.assert_close(a.W_dec, b.W_dec, rtol=1e-5, atol=1e-6)


def test_decoder_has_unit_norm_and_state_is_whole(tmp_path: Path) -> None:
    sae = fit(stream(), {"a": (SAE, HOW)}, positions=3000)["a"]
    torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.ones(D_SAE))
    assert sae.W_enc.shape == (D_IN, D_SAE)
    sae.save_pretrained(tmp_path)
    again = SparseAutoencoder.from_pretrained(tmp_path)
    assert again.fingerprint() == sae.fingerprint()


def test_second_stage_starts_from_the_first() -> None:
    first = fit(stream(), {"a": (SAE, HOW)}, positions=3000)["a"]
    log: list[FitLog] = []
    fit(stream(), {"a": (SAE, HOW)}, positions=3000, init={"a": first}, log=log.append)
    fresh: list[FitLog] = []
    fit(stream(), {"a": (SAE, HOW)}, positions=3000, log=fresh.append)
    assert log[0].loss < 0.8 * fresh[0].loss


def test_rate_has_no_cliff_and_never_is_zero() -> None:
    rates = [HOW.rate(s, 100) for s in range(100)]
    assert max(rates) == HOW.lr
    assert min(rates) > 0
    assert max(abs(a - b) for a, b in pairwise(rates)) <= HOW.lr / 5 + 1e-12
    assert rates[-1] == pytest.approx(HOW.lr / 20)
    assert HOW.rate(0, 1) == HOW.lr
    assert HOW.rate(500, 100) > 0


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_bad_activations_are_named(bad: float) -> None:
    chunks = stream()
    chunks[2][5, 3] = bad
    with pytest.raises(DataError, match=r"layers\.1, step 10 of a: activations hold NaN"):
        fit(chunks, {"a": (SAE, HOW)}, positions=3000)


def test_errors() -> None:
    with pytest.raises(DataError, match="no activations"):
        fit([], {"a": (SAE, HOW)}, positions=0)
    with pytest.raises(DataError, match="wants"):
        fit([torch.randn(5, 3)], {"a": (SAE, HOW)}, positions=5)
    other = SparseAutoencoder(SAEConfig(d_in=D_IN, d_sae=32, k=4))
    with pytest.raises(ConfigError, match="another shape"):
        fit(stream(), {"a": (SAE, HOW)}, positions=3000, init={"a": other})
    with pytest.raises(ConfigError, match="no autoencoder"):
        fit(stream(), {}, positions=3000)
