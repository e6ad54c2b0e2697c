"""What a model loses through an autoencoder, against plain hooks on one unpadded text at a time."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np
import pytest
import torch
from feature_corpus import make_pairs, make_sae, tiny
from torch import Tensor

from seamark.errors import ConfigError, DataError, ModelError
from seamark.features.loss import LossRecovered, loss_recovered, losses_recovered
from seamark.features.reward_change import reward_change, reward_changes
from seamark.features.splice import ablate, replaced, splice
from seamark.model.batching import collate
from seamark.model.loading import LanguageModel, RewardModel
from seamark.sae import SparseAutoencoder, sae_config
from seamark.stats import Estimate
from seamark.text.pairs import Pairs
from seamark.text.rendering import Rendered
from tiny import tiny_hooked

Replacement = Callable[[Tensor, Rendered], Tensor]
"""h [T, d] of one text -> what it becomes."""


@cache
def lm(kind: str = "llama") -> LanguageModel:
    model = tiny_hooked(kind, "lm")
    assert isinstance(model, LanguageModel)
    return model


def texts(kind: str = "llama", n: int = 7) -> list[Rendered]:
    renderer = lm(kind).renderer()
    said = [f"I can't help with number {i}; ask Dr. Smith. " * (1 + i % 3) + "Bake it." for i in range(n)]
    return [renderer.render_text(text, f"t{i}") for i, text in enumerate(said)]


def own_words(kind: str = "llama", n: int = 5, length: int = 24) -> list[Rendered]:
    """What the model itself says next, always its most likely token: there is something to lose."""
    model = lm(kind)
    out = []
    for text in texts(kind, n):
        ids = text.input_ids[:4]
        for _ in range(length):
            with torch.no_grad():
                logits = model.hf(input_ids=torch.from_numpy(ids.astype(np.int64))[None]).logits[0, -1]
            ids = np.append(ids, np.int32(logits.argmax()))
        none = np.zeros((len(ids), 2), dtype=np.int32)
        special = np.zeros(len(ids), dtype=np.bool_)
        out.append(Rendered(text.text_id, ids, none, "", (0, 0), (0, len(ids)), special))
    return out


def lossless(hookpoint: str = "layers.2", d: int = 32) -> SparseAutoencoder:
    """ReLU with ±identity: x̂ = relu(x) − relu(−x) = x."""
    return fixed(torch.cat([torch.eye(d), -torch.eye(d)], 1), torch.cat([torch.eye(d), -torch.eye(d)]), hookpoint)


def silent(hookpoint: str = "layers.2", d: int = 32) -> SparseAutoencoder:
    """Reconstructs everything as 0."""
    return fixed(torch.zeros(d, 2 * d), torch.zeros(2 * d, d), hookpoint)


def fixed(W_enc: Tensor, W_dec: Tensor, hookpoint: str) -> SparseAutoencoder:
    sae = SparseAutoencoder(
        sae_config(d_in=W_enc.shape[0], d_sae=W_enc.shape[1], activation="relu", normalize="none", hookpoint=hookpoint)
    )
    with torch.no_grad():
        sae.W_enc.copy_(W_enc)
        sae.W_dec.copy_(W_dec)
    return sae.eval()


def module_of(model: LanguageModel | RewardModel, hookpoint: str) -> torch.nn.Module:
    """Found without Seamark's own table: the tiny models are Llama, GPT-2 and BERT."""
    layer, part = int(hookpoint.split(".")[1]), hookpoint.split(".")[2:]
    base = model.hf.base_model
    blocks = base.h if hasattr(base, "h") else base.layers if hasattr(base, "layers") else base.encoder.layer
    return blocks[layer].mlp if part else blocks[layer]


def run(model: LanguageModel | RewardModel, text: Rendered, hookpoint: str, make: Replacement | None) -> Tensor:
    """Logits of one text, [T, V] or [1, 1], with activations replaced by a plain hook."""

    def hook(_m, _a, output):
        h = output[0] if isinstance(output, tuple) else output
        new = make(h[0], text)[None]
        return (new, *output[1:]) if isinstance(output, tuple) else new

    handle = module_of(model, hookpoint).register_forward_hook(hook) if make else None
    try:
        with torch.no_grad():
            return model.hf(input_ids=torch.from_numpy(text.input_ids.astype(np.int64))[None]).logits[0]
    finally:
        if handle:
            handle.remove()


def activations(model: LanguageModel | RewardModel, text: Rendered, hookpoint: str) -> Tensor:
    seen: list[Tensor] = []

    def keep(h: Tensor, _text: Rendered) -> Tensor:
        seen.append(h.clone())
        return h

    run(model, text, hookpoint, keep)
    return seen[0]


def only(text: Rendered, replace: str) -> Tensor:
    """[T, 1] what is replaced, said anew."""
    inside = torch.ones(len(text), 1, dtype=torch.bool)
    if replace == "text":
        inside[torch.from_numpy(text.special.copy())] = False
        inside[0] = False
    return inside


def conditions(
    model: LanguageModel | RewardModel, sae: SparseAutoencoder, data: list[Rendered], replace: str
) -> dict[str, Replacement | None]:
    """The clean model, the autoencoder and both ablations."""
    hookpoint = sae.config.hookpoint
    kept = [activations(model, t, hookpoint)[only(t, replace)[:, 0]] for t in data]
    mean = torch.cat(kept).double().mean(0).float()
    to = {"sae": lambda h: sae(h), "zero": torch.zeros_like, "mean": lambda h: mean.expand_as(h)}
    made = {name: lambda h, t, f=f: torch.where(only(t, replace), f(h), h) for name, f in to.items()}
    return {"clean": None, **made}


def by_hand(sae: SparseAutoencoder, data: list[Rendered], replace: str = "all", kind: str = "llama", scope: str = "all"
            ) -> dict[str, float]:  # fmt: skip
    """Token-weighted cross-entropy and KL of every condition, float64."""
    model, hookpoint = lm(kind), sae.config.hookpoint
    ce: dict[str, list[Tensor]] = {}
    kl: dict[str, list[Tensor]] = {}
    for name, make in conditions(model, sae, data, replace).items():
        for text in data:
            first = max(text.response_span[0] if scope == "response" else 0, 1)
            last = text.response_span[1] if scope == "response" else len(text)
            targets = torch.from_numpy(text.input_ids.astype(np.int64))[first:last]
            log_q = run(model, text, hookpoint, make).double().log_softmax(-1)[first - 1 : last - 1]
            log_p = run(model, text, hookpoint, None).double().log_softmax(-1)[first - 1 : last - 1]
            ce.setdefault(name, []).append(-log_q[torch.arange(len(targets)), targets])
            kl.setdefault(name, []).append((log_p.exp() * (log_p - log_q)).sum(-1))
    return {f"ce_{c}": float(torch.cat(v).mean()) for c, v in ce.items()} | {
        f"kl_{c}": float(torch.cat(v).mean()) for c, v in kl.items()
    }


def value(estimate: Estimate) -> float:
    assert estimate.value is not None, estimate.reason
    return estimate.value


@pytest.mark.parametrize(("kind", "hookpoint"), [
    *((kind, "layers.2") for kind in ("llama", "gpt2", "qwen2", "gemma3", "mistral", "neox")),
    *((kind, h) for kind in ("llama", "gpt2") for h in ("layers.2.mlp", "layers.0", "layers.0.mlp", "layers.3")),
])  # fmt: skip
def test_loss_equals_plain_hooks(kind: str, hookpoint: str) -> None:
    sae, data = make_sae(hookpoint), texts(kind, 3) + own_words(kind, 4)
    found = loss_recovered(lm(kind), sae, data, batch_tokens=90)
    expected = by_hand(sae, data, kind=kind)
    for name in ("ce_clean", "ce_sae", "ce_zero", "ce_mean", "kl_sae", "kl_zero", "kl_mean"):
        assert value(getattr(found, name)) == pytest.approx(expected[name], rel=1e-4, abs=1e-5), name
    for worst, share in (("ce_zero", found.ce_recovered), ("ce_mean", found.ce_recovered_from_mean)):
        lost = expected[worst] - expected["ce_clean"]
        assert lost > 0.01 or (kind, hookpoint) != ("llama", "layers.2")  # other random models may lose little
        if lost > 0.01:
            assert value(share) == pytest.approx((expected[worst] - expected["ce_sae"]) / lost, abs=1e-3)
    assert value(found.kl_recovered) == pytest.approx(1 - expected["kl_sae"] / expected["kl_zero"], abs=1e-3)
    assert value(found.kl_recovered_from_mean) == pytest.approx(1 - expected["kl_sae"] / expected["kl_mean"], abs=1e-3)
    assert value(found.ce_increase) == pytest.approx(expected["ce_sae"] - expected["ce_clean"], abs=1e-4)
    assert (found.hookpoint, found.n_texts) == (hookpoint, 7)
    assert found.n_tokens == sum(len(t) - 1 for t in data)
    assert found.n_replaced == sum(len(t) for t in data)


@pytest.mark.parametrize("scope", ["all", "response"])
@pytest.mark.parametrize("replace", ["all", "text"])
def test_which_positions_are_replaced_and_predicted(replace: str, scope: str) -> None:
    renderer = lm().renderer()
    data = [side for pair in make_pairs(4) for side in renderer.render_pair(pair)]
    assert all(t.special.any() for t in data)
    sae = make_sae()
    found = loss_recovered(lm(), sae, data, replace=replace, scope=scope)
    expected = by_hand(sae, data, replace, scope=scope)
    for name in ("ce_clean", "ce_sae", "ce_zero", "ce_mean", "kl_sae", "kl_zero", "kl_mean"):
        assert value(getattr(found, name)) == pytest.approx(expected[name], rel=1e-4, abs=1e-5), name
    assert found.n_replaced == sum(int(only(t, replace).sum()) for t in data)
    spans = [t.response_span if scope == "response" else (1, len(t)) for t in data]
    assert found.n_tokens == sum(end - start for start, end in spans)


@pytest.mark.parametrize("replace", ["all", "text"])
def test_padding_and_what_is_spared_keep_every_bit(replace: str) -> None:
    renderer = lm().renderer()
    data = [side for pair in make_pairs(3) for side in renderer.render_pair(pair)]
    rows = [4, 0, 3]
    batch = collate(data, 1, pad_to=max(len(t) for t in data) + 5, rows=rows)
    h = torch.randn(*batch.input_ids.shape, 32)
    inside = torch.zeros(*batch.input_ids.shape, 1, dtype=torch.bool)
    for b, row in enumerate(rows):
        inside[b, : len(data[row])] = only(data[row], replace)
    sae = make_sae()
    for change, expected in (
        (splice(sae, data, replace), sae(h.flatten(0, 1)).view_as(h)),
        (ablate(0.0, data, replace), torch.zeros_like(h)),
        (ablate(torch.arange(32.0), data, replace), torch.arange(32.0).expand_as(h)),
    ):
        out = change(h, batch)
        assert torch.equal(out[~inside[..., 0]], h[~inside[..., 0]])
        torch.testing.assert_close(out[inside[..., 0]], expected[inside[..., 0]])
        assert not torch.equal(out, h)


def test_the_first_token_of_a_text_stays_even_where_it_is_not_special() -> None:
    (text,) = texts("qwen2", 1)
    assert not text.special.any()
    assert replaced(text, "text").tolist() == [False] + [True] * (len(text) - 1)


@pytest.mark.parametrize(
    ("kind", "hookpoint"), [("llama", "layers.1"), ("llama", "layers.2.mlp"), ("gpt2", "layers.1")]
)
def test_a_lossless_autoencoder_loses_nothing(kind: str, hookpoint: str) -> None:
    found = loss_recovered(lm(kind), lossless(hookpoint), own_words(kind))
    assert value(found.ce_sae) == pytest.approx(value(found.ce_clean), abs=1e-5)
    assert value(found.ce_increase) == pytest.approx(0, abs=1e-5)
    assert value(found.kl_sae) == pytest.approx(0, abs=1e-6)
    for name in ("ce_recovered", "ce_recovered_from_mean", "kl_recovered", "kl_recovered_from_mean"):
        share = getattr(found, name)
        assert value(share) == pytest.approx(1, abs=1e-5), name
        assert share.low == pytest.approx(1, abs=1e-5), name


def test_a_silent_autoencoder_recovers_nothing() -> None:
    found = loss_recovered(lm(), silent(), own_words())
    assert value(found.ce_sae) == value(found.ce_zero)
    assert (value(found.kl_recovered), value(found.ce_recovered)) == (0, 0)
    assert found.ce_recovered.low == found.ce_recovered.high == 0
    assert value(found.ce_recovered_from_mean) != 0


def test_an_ablation_that_costs_nothing_gives_no_share() -> None:
    """A model whose head is its input's business alone: the last block's MLP is disconnected."""
    model = tiny_hooked("gpt2", "lm")
    with torch.no_grad():
        model.hf.transformer.h[3].mlp.c_proj.weight.zero_()
        model.hf.transformer.h[3].mlp.c_proj.bias.zero_()
    found = loss_recovered(model, lossless("layers.3.mlp"), texts("gpt2"))
    for share in (found.ce_recovered, found.ce_recovered_from_mean, found.kl_recovered, found.kl_recovered_from_mean):
        assert share.value is None
    assert found.ce_recovered.reason == "zero ablation costs nothing"
    assert found.kl_recovered_from_mean.reason == "mean ablation costs nothing"


def test_an_ablation_that_helps_gives_no_share_either() -> None:
    """An untrained model predicts text at random worse than one that says nothing: the ratio would turn its sign."""
    found = loss_recovered(lm(), make_sae(), texts())
    assert value(found.ce_zero) < value(found.ce_clean)
    assert (found.ce_recovered.value, found.ce_recovered.reason) == (None, "zero ablation costs nothing")
    assert value(found.kl_recovered) < 1


def test_intervals_are_over_texts_or_the_clusters_given() -> None:
    data, sae = texts(n=9), make_sae()
    found = loss_recovered(lm(), sae, data)
    for name in LossRecovered.model_fields:
        e = getattr(found, name)
        if isinstance(e, Estimate) and e.value is not None and not e.reason:
            assert e.low <= e.value <= e.high, name
            assert e.n == 9
    clustered = loss_recovered(lm(), sae, data, clusters=list("aaabbbccc"))
    assert clustered.ce_sae.value == found.ce_sae.value
    assert clustered.ce_sae.low != found.ce_sae.low
    alone = loss_recovered(lm(), sae, data[:1])
    assert alone.ce_sae.low is None
    assert alone.ce_sae.reason.startswith("no interval")


def test_a_suite_is_each_alone_and_batches_move_rounding_only() -> None:
    suite = {"a": make_sae("layers.2"), "b": make_sae("layers.1.mlp", seed=1), "c": make_sae("layers.2", k=30, seed=2)}
    data = texts()
    together = losses_recovered(lm(), suite, data)
    assert list(together) == list("abc")
    for name, sae in suite.items():
        assert together[name] == loss_recovered(lm(), sae, data)
    small = losses_recovered(lm(), suite, data, batch_tokens=1)
    for name in suite:
        assert value(small[name].ce_sae) == pytest.approx(value(together[name].ce_sae), abs=1e-5)


def test_blocks_below_run_once_and_weights_and_hooks_stay_as_they_were() -> None:
    model, data = lm(), texts()
    before = {k: v.clone() for k, v in model.hf.state_dict().items()}
    ran: list[int] = []
    handle = model.hf.model.layers[0].mlp.register_forward_hook(lambda *_: ran.append(1))
    try:
        loss_recovered(model, make_sae(), data, batch_tokens=1 << 20)
        assert len(ran) == 3  # one pass over the one batch; is the model causal; how blocks hand on their output
    finally:
        handle.remove()
    assert all(torch.equal(v, before[k]) for k, v in model.hf.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.hf.modules())


def test_large_vocabularies_make_smaller_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    from seamark.features import loss

    data, sae = texts(), make_sae()
    whole = loss_recovered(lm(), sae, data)
    sizes: list[int] = []
    real = LanguageModel.logits

    def logits(self, batch, **more):
        sizes.append(batch.input_ids.numel())
        return real(self, batch, **more)

    monkeypatch.setattr(LanguageModel, "logits", logits)
    monkeypatch.setattr(loss, "LOGITS", 60 * int(lm().config.vocab_size))
    small = loss_recovered(lm(), sae, data)
    assert max(sizes) <= max(60, max(len(t) for t in data), 2 * min(len(t) for t in data))
    assert value(small.ce_sae) == pytest.approx(value(whole.ce_sae), abs=1e-5)


def test_half_precision_is_near() -> None:
    data, sae = texts(), make_sae(k=40)
    exact, half = loss_recovered(lm(), sae, data), loss_recovered(lm(), sae, data, precision="bf16")
    assert value(half.ce_clean) == pytest.approx(value(exact.ce_clean), rel=0.05)
    assert value(half.ce_clean) != value(exact.ce_clean)
    model = tiny_hooked("llama", "lm")
    model.hf.to(torch.bfloat16)
    assert value(loss_recovered(model, sae, data).ce_clean) == pytest.approx(value(exact.ce_clean), rel=0.05)


def test_bad_input_of_the_loss() -> None:
    data = texts()
    with pytest.raises(ModelError, match="out of range"):
        loss_recovered(lm(), make_sae("layers.9"), data)
    with pytest.raises(ConfigError, match="names no hookpoint"):
        loss_recovered(lm(), make_sae(""), data)
    with pytest.raises(ConfigError, match=r"sae: d_in is 16 but layers\.2 of tiny/llama is 32 wide"):
        loss_recovered(lm(), lossless(d=16), data)
    with pytest.raises(DataError, match="no text with a token to predict"):
        loss_recovered(lm(), make_sae(), [])
    with pytest.raises(DataError, match="no text with a token to predict"):
        loss_recovered(lm(), make_sae(), [lm().renderer().render_text("", "empty")])
    with pytest.raises(ConfigError, match="unknown positions to replace 'some'"):
        loss_recovered(lm(), make_sae(), data, replace="some")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="2 clusters for 7 texts"):
        loss_recovered(lm(), make_sae(), data, clusters=["a", "b"])
    encoder = [lm("bert").renderer().render_text("I can help with that.", "t")]
    with pytest.raises(ModelError, match="no causal language model"):
        loss_recovered(lm("bert"), make_sae(), encoder)


def test_a_loss_that_is_no_number_names_hookpoint_and_text() -> None:
    sae = lossless()
    with torch.no_grad():
        sae.W_dec.fill_(float("inf"))
    with pytest.raises(DataError, match=r"layers\.2, text t\d: the loss is not a finite number"):
        loss_recovered(lm(), sae, texts())


# Rewards


def rewards(kind: str, sae: SparseAutoencoder, pairs: Pairs, replace: str = "all") -> dict[str, np.ndarray]:
    """[pairs, 2] of every condition."""
    model = tiny(kind)
    data = [side for pair in pairs for side in model.renderer().render_pair(pair)]

    def one(make: Replacement | None) -> np.ndarray:
        found = [float(run(model, t, sae.config.hookpoint, make).ravel()[0]) for t in data]
        return np.asarray(found).reshape(-1, 2)

    return {name: one(make) for name, make in conditions(model, sae, data, replace).items()}


def wins(r: np.ndarray) -> np.ndarray:
    return np.where(r[:, 0] == r[:, 1], 0.5, r[:, 0] > r[:, 1])


@pytest.mark.parametrize("replace", ["all", "text"])
@pytest.mark.parametrize("kind", ["llama", "bert"])
def test_reward_change_equals_plain_hooks(kind: str, replace: str) -> None:
    pairs, sae = make_pairs(12), make_sae("layers.1")
    found = reward_change(tiny(kind), sae, pairs, replace=replace, batch_tokens=300)
    r = rewards(kind, sae, pairs, replace)
    of_group = np.asarray([p.group for p in pairs])
    assert set(found.groups) == {"chat", "safety"}
    for rows, shift in [(slice(None), found.overall), *((of_group == g, found.groups[g]) for g in found.groups)]:
        clean, through, ablated = r["clean"][rows], r["sae"][rows], r["mean"][rows]
        near = {"rel": 1e-3, "abs": 1e-4}
        assert value(shift.delta) == pytest.approx((through - clean).mean(), **near)
        assert value(shift.abs_delta) == pytest.approx(np.abs(through - clean).mean(), **near)
        assert shift.clean_std == pytest.approx(clean.std(), rel=1e-4)
        assert value(shift.correlation) == pytest.approx(np.corrcoef(clean.ravel(), through.ravel())[0, 1], abs=1e-3)
        margins = [x[:, 0] - x[:, 1] for x in (clean, through)]
        assert value(shift.margin_correlation) == pytest.approx(np.corrcoef(*margins)[0, 1], abs=1e-3)
        assert value(shift.accuracy_clean) == wins(clean).mean()
        assert value(shift.accuracy_sae) == wins(through).mean()
        assert value(shift.accuracy_change) == pytest.approx(wins(through).mean() - wins(clean).mean())
        assert value(shift.reranked) == (wins(through) != wins(clean)).mean()
        if len(np.unique(ablated)) == ablated.size:  # else the mean leaves ties, which rounding decides
            assert value(shift.accuracy_mean) == pytest.approx(wins(ablated).mean(), abs=0.1)
        assert shift.n_pairs == len(clean)


@pytest.mark.parametrize("kind", ["llama", "bert"])
def test_a_lossless_autoencoder_changes_no_reward(kind: str) -> None:
    found = reward_change(tiny(kind), lossless("layers.2.mlp" if kind == "llama" else "layers.2"), make_pairs(8))
    everything = found.overall
    assert value(everything.abs_delta) == pytest.approx(0, abs=1e-5)
    assert value(everything.correlation) == pytest.approx(1, abs=1e-6)
    assert value(everything.margin_correlation) == pytest.approx(1, abs=1e-6)
    assert (value(everything.accuracy_change), value(everything.reranked)) == (0, 0)
    assert value(everything.accuracy_sae) == value(everything.accuracy_clean)


def test_intervals_of_rewards_resample_prompts() -> None:
    pairs = make_pairs(12)
    found = reward_change(tiny(), make_sae(), pairs)
    shift = found.overall
    for e in (shift.delta, shift.correlation, shift.margin_correlation, shift.accuracy_sae):
        assert e.low is not None
        assert e.low <= value(e) <= e.high
    one_prompt = reward_change(tiny(), make_sae(), Pairs(pairs.items[:1]))
    assert one_prompt.overall.delta.low is None
    assert one_prompt.overall.margin_correlation.value is None


def test_constant_rewards_have_no_correlation() -> None:
    """A model whose head is zero rewards every text the same, clean and through the autoencoder."""
    model = tiny_hooked("llama")
    with torch.no_grad():
        model.hf.score.weight.zero_()
    shift = reward_change(model, make_sae(), make_pairs(6)).overall
    assert shift.correlation.value is None
    assert shift.correlation.reason == "the clean rewards are all the same"
    assert shift.margin_correlation.reason == "the clean margins are all the same"
    assert value(shift.accuracy_sae) == 0.5
    # A silent autoencoder at the last block leaves the same reward for all.
    through = reward_change(tiny(), silent("layers.3"), make_pairs(6)).overall
    assert through.correlation.value is None
    assert through.correlation.reason == "the spliced rewards are all the same"


def test_a_suite_of_rewards_is_each_alone() -> None:
    suite = {"a": make_sae("layers.2"), "b": make_sae("layers.0", seed=1), "c": make_sae("layers.2", k=20)}
    together = reward_changes(tiny(), suite, make_pairs(6))
    assert list(together) == list("abc")
    for name, sae in suite.items():
        assert together[name] == reward_change(tiny(), sae, make_pairs(6))


def test_bad_input_of_rewards() -> None:
    with pytest.raises(DataError, match="no pairs"):
        reward_change(tiny(), make_sae(), Pairs(()))
    with pytest.raises(ModelError, match="out of range"):
        reward_change(tiny(), make_sae("layers.9"), make_pairs(2))
    with pytest.raises(ConfigError, match="32 wide"):
        reward_change(tiny(), lossless(d=16), make_pairs(2))
    broken = lossless()
    with torch.no_grad():
        broken.W_dec.fill_(float("nan"))
    with pytest.raises(ModelError, match="not finite"):
        reward_change(tiny(), broken, make_pairs(2))
