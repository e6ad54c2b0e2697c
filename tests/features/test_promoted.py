from __future__ import annotations

import re

import pytest
import torch
from torch import Tensor

import seamark.features.promoted as module
from seamark.errors import ConfigError, DataError, ModelError
from seamark.features.promoted import promoted_tokens
from seamark.model.batching import collate
from seamark.model.loading import LanguageModel
from seamark.model.reading import apply_at
from seamark.sae import SAEConfig, SparseAutoencoder
from tiny import tiny_hooked

KINDS = ["llama", "qwen2", "gemma", "gemma2", "gemma3", "gpt2", "neox"]


def model_of(kind: str, seed: int = 0) -> LanguageModel:
    """A tiny language model whose norms have gains that differ, as trained ones have."""
    model = tiny_hooked(kind, "lm")
    assert isinstance(model, LanguageModel)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.hf.named_parameters():
            if weight.ndim == 1 and name.endswith("weight"):
                weight += torch.rand(weight.shape, generator=generator)
            elif weight.ndim == 1:
                weight += 0.1 * torch.randn(weight.shape, generator=generator)
    return model


def sae_at(hookpoint: str, d_sae: int = 40) -> SparseAutoencoder:
    return SparseAutoencoder(SAEConfig(d_in=32, d_sae=d_sae, k=4, hookpoint=hookpoint), seed=3)


def logits(model: LanguageModel, direction: Tensor) -> Tensor:
    """Logits [vocabulary] of a stream that is the direction, times a size at which nothing else counts."""
    rendered = [model.renderer().render_text("Mix flour, water and salt.", "a")]
    batch = collate(rendered, model.config.pad_token_id)

    def change(h_BTD: Tensor, _: object) -> Tensor:
        return h_BTD + 1e6 * direction.to(h_BTD)

    last = f"layers.{model.n_blocks - 1}"
    with apply_at(model, {last: change}):
        found: Tensor = model.logits(batch)[0, -1].float()
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_promoted_are_what_the_model_says_of_the_direction(kind: str) -> None:
    """The direction put at the last block's output, so large that it alone decides: an independent way to the order."""
    model, sae = model_of(kind), sae_at("layers.3")
    n_tokens = min(len(model.tokenizer), model.hf.get_output_embeddings().weight.shape[0])
    found = promoted_tokens(model, sae, [0, 5, 39], n=6)
    assert list(found) == [0, 5, 39]
    for latent, tokens in found.items():
        up, down = (logits(model, sign * sae.W_dec[latent].detach())[:n_tokens] for sign in (1, -1))
        change = (up - down) / 2  # biases go away
        cap = getattr(model.config, "final_logit_softcapping", None)
        assert cap is None or change.abs().max() < 0.999 * cap
        order = change.argsort(descending=True).tolist()
        names = [module._token(model.tokenizer, i) for i in order]
        assert [t for t, _ in tokens.promoted] == names[:6]
        assert [t for t, _ in tokens.suppressed] == names[::-1][:6]
        values = [v for _, v in tokens.promoted]
        assert values == sorted(values, reverse=True)
        assert values[0] > 0 > tokens.suppressed[0][1]


@pytest.mark.parametrize("kind", ["llama", "gemma", "gpt2"])
def test_values_are_logits_per_unit_less_their_mean(kind: str) -> None:
    model, sae = model_of(kind), sae_at("layers.1.mlp")
    head, n = model.hf.get_output_embeddings().weight.detach(), len(model.tokenizer)
    direction = sae.W_dec[7].detach()
    if kind == "llama":
        direction = direction * model.hf.model.norm.weight
    elif kind == "gemma":
        direction = direction * (1 + model.hf.model.norm.weight)
    else:
        direction = (direction - direction.mean()) * model.hf.transformer.ln_f.weight
    value = (head @ direction)[:n]
    value = value - value.mean()
    found = promoted_tokens(model, sae, [7], n=5)[7]
    best, worst = value.topk(5).values.tolist(), (-(-value).topk(5).values).tolist()
    assert [v for _, v in found.promoted] == pytest.approx(best, rel=1e-4)
    assert [v for _, v in found.suppressed] == pytest.approx(worst, rel=1e-4)


@pytest.mark.parametrize(
    ("part", "norm"), [("mlp", "post_feedforward_layernorm"), ("attn", "post_attention_layernorm")]
)
def test_norms_before_the_sum_count_too(part: str, norm: str) -> None:
    model, sae = model_of("gemma2"), sae_at(f"layers.1.{part}")
    first, last = getattr(model.hf.model.layers[1], norm).weight, model.hf.model.norm.weight
    value = model.hf.lm_head.weight @ (sae.W_dec[2] * (1 + first) * (1 + last))
    names = [module._token(model.tokenizer, i) for i in value[: len(model.tokenizer)].topk(4).indices.tolist()]
    assert [t for t, _ in promoted_tokens(model, sae, [2], n=4)[2].promoted] == names


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model, sae = model_of("llama"), sae_at("layers.2")
    whole = promoted_tokens(model, sae, range(40), n=12)
    monkeypatch.setattr(module, "LATENTS_AT_ONCE", 7)
    monkeypatch.setattr(module, "TOKENS_AT_ONCE", 11)
    parts = promoted_tokens(model, sae, range(40), n=12)
    for latent, expected in whole.items():
        for side in ("promoted", "suppressed"):
            mine, theirs = getattr(parts[latent], side), getattr(expected, side)
            assert [t for t, _ in mine] == [t for t, _ in theirs]
            assert [v for _, v in mine] == pytest.approx([v for _, v in theirs], abs=1e-5)


def test_rows_that_no_token_uses_are_left_out() -> None:
    model = tiny_hooked("llama", "lm", vocab_size=700)
    with torch.no_grad():
        model.hf.lm_head.weight[len(model.tokenizer) :] = 100.0
    found = promoted_tokens(model, sae_at("layers.2"), [1], n=1000)[1]
    assert len(found.promoted) == len(found.suppressed) == len(model.tokenizer)
    assert max(abs(v) for _, v in found.promoted) < 50


def test_tokens_stand_as_in_text() -> None:
    llama, mistral = tiny_hooked("llama", "lm"), tiny_hooked("mistral", "lm")
    for model, space in ((llama, "Ġ"), (mistral, "▁")):
        raw = next(t for t in model.tokenizer.get_vocab() if re.fullmatch(f"{space}[a-z]{{2,}}", t))
        assert module._token(model.tokenizer, model.tokenizer.convert_tokens_to_ids(raw)) == f" {raw[1:]}"
    piece = llama.tokenizer.convert_tokens_to_ids("ã")  # a byte that is no character by itself
    assert module._token(llama.tokenizer, piece) == "ã"


def test_none_asked_for() -> None:
    assert promoted_tokens(model_of("llama"), sae_at("layers.2"), []) == {}


@pytest.mark.parametrize(("kind", "head"), [("bert", "base"), ("llama", "reward"), ("bert", "reward")])
def test_no_unembedding(kind: str, head: str) -> None:
    with pytest.raises(ConfigError, match="no unembedding"):
        promoted_tokens(tiny_hooked(kind, head), sae_at("layers.2"), [0])


def test_what_does_not_fit() -> None:
    model = model_of("llama")
    with pytest.raises(DataError, match="no latent 40; there are 40"):
        promoted_tokens(model, sae_at("layers.2"), [0, 40])
    wide = SparseAutoencoder(SAEConfig(d_in=16, d_sae=20, k=4, hookpoint="layers.2"))
    with pytest.raises(ConfigError, match="width 16 is not the model's, 32"):
        promoted_tokens(model, wide, [0])
    with pytest.raises(ModelError, match="out of range"):
        promoted_tokens(model, sae_at("layers.9"), [0])
    model.hf.model.norm_of_another_name = model.hf.model.norm
    del model.hf.model.norm
    with pytest.raises(ConfigError, match="no final norm is known"):
        promoted_tokens(model, sae_at("layers.2"), [0])


@pytest.mark.parametrize("width", [32, 33])
def test_gains_are_measured(width: int) -> None:
    gain = torch.rand(width) + 0.5
    for norm, centred in ((torch.nn.LayerNorm(width), True), (torch.nn.RMSNorm(width, eps=1e-5), False)):
        with torch.no_grad():
            norm.weight.copy_(gain)
            if centred:
                norm.bias.normal_()
        found, told = module._gain(norm, width)
        torch.testing.assert_close(found, gain, rtol=1e-4, atol=1e-5)
        assert told is centred
