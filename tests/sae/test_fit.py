from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
import torch
from dense_reference import dense_loss
from torch import Tensor

from seamark.errors import ConfigError, DataError
from seamark.sae import Checkpoints, FitConfig, FitLog, SAEConfig, SparseAutoencoder, fit, quality, trainer
from seamark.sae.config import Activation
from seamark.sae.step import Problem, Weights
from seamark.sae.trainer import Trainer, geometric_median

D_IN, D_SAE, K = 16, 64, 4


def stream(n: int = 3000, chunk: int = 700, seed: int = 0) -> list[Tensor]:
    """Activations made of a few directions, in chunks that do not fit the batches."""
    g = torch.Generator().manual_seed(seed)
    directions = torch.randn(40, D_IN, generator=g)
    active = (torch.rand(n, 40, generator=g) < 0.08) * torch.rand(n, 40, generator=g)
    return list((active @ directions + 0.05 * torch.randn(n, D_IN, generator=g) + 0.5).split(chunk))


SAE = SAEConfig(d_in=D_IN, d_sae=D_SAE, k=K, hookpoint="layers.1")
HOW = FitConfig(lr=3e-3, batch_size=128, seed=5)


def dense_training(chunks: list[Tensor], what: SAEConfig, how: FitConfig) -> tuple[list[float], Weights]:
    """The same training with dense latents, autograd and an ordinary Adam: (loss of every step, what was learnt)."""
    sae = SparseAutoencoder(what, seed=how.seed)
    batches = torch.cat([sae.preprocess(c)[0] for c in chunks]).split(how.batch_size)
    theta = torch.full((what.d_sae,), how.initial_threshold).log() if what.activation == "jumprelu" else None
    first = (sae.W_enc.T, sae.W_dec, sae.b_enc, batches[0].mean(0), theta)
    w = Weights(*(None if t is None else t.detach().clone().requires_grad_() for t in first))
    optimizer = torch.optim.Adam(w.tensors(), betas=(0.9, 0.999), fused=True)
    losses = []
    for step, x in enumerate(batches):
        loss = dense_loss(w, x, Problem(what, how, how.sparsity_at(step, len(batches)), len(x)))
        optimizer.zero_grad()
        loss.backward()
        assert w.W_dec.grad is not None
        with torch.no_grad():
            if how.remove_parallel:
                w.W_dec.grad -= (w.W_dec.grad * w.W_dec).sum(1, keepdim=True) * w.W_dec
            if how.clip:
                torch.nn.utils.clip_grad_norm_(w.tensors(), how.clip)
            optimizer.param_groups[0]["lr"] = how.rate(step, len(batches))
            optimizer.step()
            if (step + 1) % how.decoder_norm_every == 0:
                w.W_dec.div_(w.W_dec.norm(dim=1, keepdim=True))
        losses.append(loss.item())
    with torch.no_grad():
        w.W_dec.div_(w.W_dec.norm(dim=1, keepdim=True))
    return losses, w


@pytest.mark.parametrize("encoder", ["fp32", "bf16", "int8"])
@pytest.mark.parametrize("clip", [1.0, 0.01, None])
def test_loss_curve_coincides_with_dense_training(encoder: str, clip: float | None) -> None:
    chunks = stream()
    log: list[FitLog] = []
    how = HOW.model_copy(update={"encoder": encoder, "clip": clip})
    fit(chunks, {"a": (SAE, how)}, positions=3000, log=log.append)
    expected, _ = dense_training(chunks, SAE, how)
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
    a, b = (fit(list(whole.split(n)), {"a": (SAE, HOW)}, positions=3000)["a"] for n in (700, 128))
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


VARIANTS: dict[Activation, dict[str, object]] = {
    "topk": {}, "topk_relu": {"loss": "squared"}, "batch_topk": {"loss": "squared"},
    "jumprelu": {"loss": "squared", "sparsity": 0.5, "bandwidth": 0.05, "initial_threshold": 0.05},
    "relu": {"loss": "squared", "sparsity": 0.3},
}  # fmt: skip


def variant(name: Activation, **more: object) -> tuple[SAEConfig, FitConfig]:
    k = K if "topk" in name else None
    what = SAEConfig(d_in=D_IN, d_sae=D_SAE, k=k, activation=name, hookpoint="layers.1")
    return what, FitConfig(**({"lr": 3e-3, "batch_size": 128} | VARIANTS[name] | more))


@pytest.mark.parametrize("encoder", ["fp32", "bf16"])
@pytest.mark.parametrize(("name", "dense_share"), [
    ("topk", 0.03), ("topk_relu", 0.03), ("batch_topk", 0.03), ("jumprelu", 0.0), ("jumprelu", 1.0), ("relu", 0.0),
    ("relu", 1.0),
])  # fmt: skip
def test_loss_curve_of_every_variant_coincides_with_dense_training(
    name: Activation, dense_share: float, encoder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """relu and jumprelu by sparse steps only (share 1) and by dense products only (share 0)."""
    monkeypatch.setattr(trainer, "DENSE_SHARE", dense_share)
    unused = "dense_loss_and_gradients" if dense_share else "loss_and_gradients"
    monkeypatch.setattr(trainer, unused, None)
    chunks = stream(12_000)
    log: list[FitLog] = []
    what, how = variant(name, encoder=encoder)
    sae = fit(chunks, {"a": (what, how)}, positions=12_000, log=log.append)["a"]
    expected, w = dense_training(chunks, what, how)
    got = [entry.loss for entry in log]
    assert len(got) == 94
    assert got == pytest.approx(expected, rel=1e-3)
    assert got[:5] == pytest.approx(expected[:5], rel=1e-5)
    assert got[-1] < 0.7 * max(got)
    for mine, reference in ((sae.W_enc.T, w.W_enc), (sae.W_dec, w.W_dec), (sae.b_enc, w.b_enc), (sae.b_dec, w.b_dec)):
        assert (mine - reference).norm() <= 1e-3 * reference.norm()
    if w.log_threshold is not None and sae.threshold is not None:  # saved as they were learnt
        moved = w.log_threshold.exp() - how.initial_threshold
        assert (sae.threshold - how.initial_threshold - moved).norm() <= 1e-2 * moved.norm()
        assert moved.abs().max() > 0.01 * how.initial_threshold


@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_learns_and_encodes_as_it_was_trained(name: Activation) -> None:
    whole = torch.cat(stream(14_000))
    log: list[FitLog] = []
    sae = fit(whole[2000:].split(700), {"a": variant(name)}, positions=12_000, log=log.append)["a"]
    assert log[-1].fvu is not None
    assert log[0].fvu is not None
    assert log[-1].fvu < 0.5 * log[0].fvu
    q = quality(sae, [whole[:2000]])
    assert q.fvu == pytest.approx(log[-1].fvu, abs=0.1)
    assert q.l0 == pytest.approx(log[-1].l0, rel=0.35)


def test_a_suite_of_variants_equals_each_alone() -> None:
    suite = {name: variant(name, seed=i, aux_coefficient=1 / 32, dead_after=500) for i, name in enumerate(VARIANTS)}
    together = fit(stream(), suite, positions=3000)
    for name, how in suite.items():
        assert fit(stream(), {name: how}, positions=3000)[name].fingerprint() == together[name].fingerprint()


def test_hookpoints_get_their_own_part_of_the_stream() -> None:
    a, b = stream(seed=0), stream(seed=1)
    other = SAE.model_copy(update={"hookpoint": "layers.2.mlp"})
    both = [{"layers.1": x, "layers.2.mlp": y} for x, y in zip(a, b, strict=True)]
    suite = fit(both, {"a": (SAE, HOW), "b": (other, HOW)}, positions=3000)
    assert suite["a"].fingerprint() == fit(a, {"a": (SAE, HOW)}, positions=3000)["a"].fingerprint()
    assert suite["b"].fingerprint() == fit(b, {"b": (other, HOW)}, positions=3000)["b"].fingerprint()
    with pytest.raises(ConfigError, match=r"no activations of 'layers\.9'"):
        fit(both, {"a": (SAE.model_copy(update={"hookpoint": "layers.9"}), HOW)}, positions=3000)


def test_expected_norm_scaling_is_folded() -> None:
    """Training on 1000 · x with the scale gives the autoencoder of x without, in the units of 1000 · x."""
    whole = torch.cat(stream())
    mean_norm = float(whole[:128].norm(dim=1).mean())
    what = SAE.model_copy(update={"normalize": "none"})
    plain = whole * (D_IN**0.5 / mean_norm)
    expected = fit([plain], {"a": (what, HOW)}, positions=3000)["a"]
    for threshold in (False, True):
        kind = {"activation": "batch_topk"} if threshold else {}
        config = (what.model_copy(update=kind), HOW.model_copy(update={"scale": "expected_norm"}))
        sae = fit([whole * 1000], {"a": config}, positions=3000)["a"]
        if not threshold:
            torch.testing.assert_close(sae(whole * 1000), expected(plain) * (1000 * mean_norm / D_IN**0.5),
                                       rtol=1e-3, atol=1.0)  # fmt: skip
        again = fit([whole * 1000], {"a": config}, positions=3000, init={"a": sae})["a"]
        q = quality(again, [whole * 1000])
        assert q.fvu is not None
        assert q.fvu < 0.5


@pytest.mark.parametrize("name", ["batch_topk", "jumprelu"])
def test_expected_norm_scaling_is_folded_into_thresholds(name: Activation) -> None:
    """Thresholds are in the units of the activations that the finished autoencoder reads, not in those of training."""
    whole = torch.cat(stream())
    what, how = variant(name)
    what = what.model_copy(update={"normalize": "none"})
    factor = 1000 * float(whole[:128].norm(dim=1).mean()) / D_IN**0.5
    plain = fit([whole * 1000 / factor], {"a": (what, how)}, positions=3000)["a"]
    scaled = how.model_copy(update={"scale": "expected_norm"})
    sae = fit([whole * 1000], {"a": (what, scaled)}, positions=3000)["a"]
    assert plain.threshold is not None
    assert sae.threshold is not None
    assert (plain.threshold > 0).all()
    torch.testing.assert_close(sae.threshold, plain.threshold * factor, rtol=1e-3, atol=0)
    # The same latents fire; a few lie on the edge.
    mine, other = sae.encode(whole * 1000).dense() != 0, plain.encode(whole * 1000 / factor).dense() != 0
    assert other.sum() > len(whole)
    assert (mine != other).sum() < 1e-3 * other.sum()


def test_aux_k_revives_dead_latents() -> None:
    dead = {}
    for coefficient in (0.0, 1.0):
        how = HOW.model_copy(update={"aux_coefficient": coefficient, "dead_after": 500, "clip": None})
        start = SparseAutoencoder(SAE, seed=1)
        with torch.no_grad():
            start.b_enc[: D_SAE // 2] = -2.0
        log: list[FitLog] = []
        fit(stream(12_000), {"a": (SAE, how)}, positions=12_000, init={"a": start}, log=log.append)
        dead[coefficient] = log[-1].dead_share
    assert dead[0.0] > 0.3
    assert dead[1.0] < 0.5 * dead[0.0]


def test_first_b_dec() -> None:
    x = torch.cat(stream())[:128]
    x[0] += 1e4  # one position far off
    for init in ("mean", "geometric_median", "zeros"):
        what = SAE.model_copy(update={"normalize": "none"})
        how = HOW.model_copy(update={"b_dec_init": init, "lr": 1e-12})
        b_dec = fit([x], {"a": (what, how)}, positions=128)["a"].b_dec
        middle = {"mean": x.mean(0), "geometric_median": geometric_median(x), "zeros": torch.zeros(D_IN)}[init]
        torch.testing.assert_close(b_dec, middle)
    assert (geometric_median(x) - x[1:].mean(0)).norm() < 0.1 * (x.mean(0) - x[1:].mean(0)).norm()
    square = torch.tensor([[1.0, 1.0], [-1.0, 1.0], [1.0, -1.0], [-1.0, -1.0]])
    torch.testing.assert_close(geometric_median(square), torch.zeros(2))


def test_log_says_what_happened() -> None:
    log: list[FitLog] = []
    fit(stream(), {"a": (SAE, HOW)}, positions=3000, log=log.append)
    assert [entry.step for entry in log] == list(range(24))
    assert {entry.steps for entry in log} == {24}
    assert [entry.positions for entry in log] == [*range(128, 3000, 128), 3000]
    assert [entry.step for entry in log if entry.fvu is not None] == [0, 10, 20, 23]
    assert all(entry.l0 == K for entry in log)
    assert log[0].per_second > 0
    assert log[-1].seconds_left == 0 < log[0].seconds_left
    assert log[0].encoding == "fp32"  # too small for anything else to pay


def test_rows_of_one_batch_do_not_outlive_it() -> None:
    """What waits for the next batch is a copy: a chunk that its maker overwrites does no harm."""
    sae = SparseAutoencoder(SAE.model_copy(update={"normalize": "none"}))
    one = Trainer("a", sae, HOW, 3000, fresh=True)
    chunk = torch.cat(stream())[:200].clone()
    one.feed(chunk)
    kept = one.state()[1]["waiting"].clone()
    chunk.zero_()
    assert torch.equal(one.state()[1]["waiting"], kept)


def test_a_restart_keeps_the_number_format_it_was_begun_with(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A busy moment may make another format win; the checkpoint's stays, and with it every bit."""
    suite = {"a": (SAE, HOW)}

    def run(preferred: str, chunks: list[Tensor], folder: str) -> tuple[SparseAutoencoder, list[FitLog]]:
        log: list[FitLog] = []
        monkeypatch.setattr(trainer, "choose_encoding", lambda *_: preferred)
        saver = Checkpoints(tmp_path / folder, every=5)
        return fit(chunks, suite, positions=3000, checkpoints=saver, log=log.append)["a"], log

    straight, log = run("bf16", stream(), "straight")
    assert {entry.encoding for entry in log} == {"bf16"}
    run("bf16", stream()[:3], "cut")
    resumed, log = run("fp32", stream(), "cut")
    assert 0 < log[0].step < 24
    assert {entry.encoding for entry in log} == {"bf16"}
    assert resumed.fingerprint() == straight.fingerprint()
