"""Interventions: exact where nothing is asked, equal to a plain hook, the same with and without the cache."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from seamark.diagnose import Intervention, changes, steer_answer, steer_pairs, steer_rewards, steer_text, steering
from seamark.errors import ConfigError, DataError, ModelError, SeamarkError
from seamark.model import LanguageModel, RewardModel, collate
from seamark.model.generation import Generation
from seamark.model.reading import read
from seamark.sae import SAEConfig, SparseAutoencoder
from seamark.text.pairs import Pairs, PreferencePair
from seamark.text.rendering import Rendered
from tiny import tiny_hooked, tiny_model

D_SAE = 48
ACTIVATIONS = ("topk", "topk_relu", "batch_topk", "jumprelu", "relu")
KINDS = (("bert", "reward"), ("llama", "reward"), ("qwen2", "reward"), ("llama", "lm"), ("qwen2", "lm"))
EVERY = pytest.mark.parametrize(("kind", "head"), KINDS)
Q = {"a": np.linspace(1.0, 3.0, D_SAE), "b": np.linspace(0.5, 1.0, D_SAE)}


def make_sae(activation: str = "topk", normalize: str = "layer_norm", hookpoint: str = "layers.1", seed: int = 0
             ) -> SparseAutoencoder:  # fmt: skip
    config = SAEConfig(d_in=32, d_sae=D_SAE, k=6 if "topk" in activation else None, activation=activation,  # type: ignore[arg-type]
                       normalize=normalize, hookpoint=hookpoint)  # type: ignore[arg-type]  # fmt: skip
    sae = SparseAutoencoder(config, seed=seed)
    with torch.no_grad():
        sae.b_enc -= torch.rand(D_SAE, generator=torch.Generator().manual_seed(9))
        sae.b_dec += 0.05
        if sae.threshold is not None:
            sae.threshold += 0.4
    return sae.eval()


SUITE = {"a": make_sae(), "b": make_sae(hookpoint="layers.2.mlp", seed=4)}


def z_by_formula(sae: SparseAutoencoder, h: Tensor) -> tuple[Tensor, Tensor]:
    """max(z, 0) [..., d_sae] and each position's scale [..., 1]."""
    scale = h.std(-1, keepdim=True) + 1e-6 if sae.config.normalize == "layer_norm" else torch.ones_like(h[..., :1])
    x = (h - h.mean(-1, keepdim=True)) / scale if sae.config.normalize == "layer_norm" else h
    pre = (x - sae.b_dec) @ sae.W_enc + sae.b_enc
    if sae.config.activation in ("topk", "topk_relu"):
        best = pre.topk(6, dim=-1)
        return torch.zeros_like(pre).scatter(-1, best.indices, best.values.relu()), scale
    floor = torch.zeros(D_SAE) if sae.threshold is None else sae.threshold
    return torch.where(pre > floor, pre, 0.0).relu(), scale


Rule = dict[int, Callable[[Tensor], Tensor]]


@contextlib.contextmanager
def plain_hook(hf: Any, path: str, sae: SparseAutoencoder, rule: Rule, spans: Sequence[slice]) -> Iterator[None]:
    """A hook without Seamark: h + (z' − z) · W_dec, for each row in one span of columns."""

    def hook(_m: Any, _a: Any, output: Any) -> Any:
        h = (output[0] if isinstance(output, tuple) else output).clone()
        z, scale = z_by_formula(sae, h)
        for b, span in enumerate(spans):
            for latent, new in rule.items():
                delta = new(z[b, span, latent]) - z[b, span, latent]
                h[b, span] += delta[:, None] * sae.W_dec[latent] * scale[b, span]
        return (h, *output[1:]) if isinstance(output, tuple) else h

    handle = hf.get_submodule(path).register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def block(kind: str, layer: int) -> str:
    return f"bert.encoder.layer.{layer}" if kind == "bert" else f"model.layers.{layer}"


def texts(model: Any) -> list[Rendered]:
    renderer = model.renderer()
    said = [("Is it safe to mix bleach?", "No, please never do that."), ("Bread?", "Mix flour, water, salt and yeast."),
            ("What is the capital of France, and why is it there?", "Paris.")]  # fmt: skip
    return [renderer.render(prompt, answer, f"t{i}") for i, (prompt, answer) in enumerate(said)]


def outputs(model: Any, rendered: Sequence[Rendered]) -> Tensor:
    """What the model says of each text by transformers' own call, at its tokens alone."""
    batch = collate(rendered, int(model.config.pad_token_id))
    with torch.no_grad():
        logits: Tensor = model.hf(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits
    return logits if logits.ndim == 2 else logits[batch.attention_mask.bool()]


def firing(model: Any, sae: SparseAutoencoder, rendered: Sequence[Rendered]) -> Tensor:
    """max(z, 0) summed over the response tokens, [d_sae]."""
    batch = collate(rendered, int(model.config.pad_token_id))
    h = read(model, batch, [sae.config.hookpoint]).activations[sae.config.hookpoint]
    z = z_by_formula(sae, h)[0]
    return torch.stack([z[b, slice(*r.response_span)].sum(0) for b, r in enumerate(rendered)]).sum(0).detach()


def use(latent: int, action: Any = "add", amount: float = 1.0, where: Any = "response", sae: str = "a") -> Intervention:
    return Intervention(sae=sae, latent=latent, action=action, amount=amount, where=where)


# ---- nothing asked ----


@EVERY
def test_no_op_changes_no_bit(kind: str, head: str) -> None:
    model = tiny_hooked(kind, head)
    rendered = texts(model)
    before = outputs(model, rendered)
    silent = int((firing(model, SUITE["a"], rendered) == 0).nonzero()[0])
    nothing = [
        [],
        [use(i, "add", 0.0, "all") for i in range(8)],
        [use(i, "scale", 1.0, "all") for i in range(D_SAE)] + [use(3, "scale", 1.0, "all", "b")],
        [use(silent, "ablate")],
        [use(silent, "scale", 7.0)],
        [use(silent, "set", 0.0)],
    ]
    for asked in nothing:
        with steering(model, SUITE, asked, q=Q, texts=rendered):
            assert torch.equal(outputs(model, rendered), before), asked
    with steering(model, SUITE, [use(3, "add", 1.0)], q=Q, texts=rendered):
        assert not torch.equal(outputs(model, rendered), before)
    assert torch.equal(outputs(model, rendered), before)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_negative_values_are_no_firing(activation: str) -> None:
    """`topk` keeps some values below 0: ablating and scaling leave them alone, and every feature that is silent."""
    model, sae = tiny_hooked("llama"), make_sae(activation)
    with torch.no_grad():
        sae.b_enc -= 1.0
    rendered = texts(model)
    silent = (firing(model, sae, rendered) == 0).nonzero().flatten().tolist()
    if activation == "topk":
        h = read(model, collate(rendered, 0), ["layers.1"]).activations["layers.1"]
        z = sae.encode(h.flatten(0, 1))
        assert bool((z.values < 0).any())
    before = outputs(model, rendered)
    asked = [use(i, "ablate" if i % 2 else "scale", 5.0) for i in silent]
    with steering(model, {"a": sae}, asked, q=Q, texts=rendered):
        assert torch.equal(outputs(model, rendered), before)


# ---- a plain hook ----


@EVERY
@pytest.mark.parametrize("action", ["add", "set", "scale", "ablate"])
def test_equals_a_plain_hook(kind: str, head: str, action: str) -> None:
    model = tiny_hooked(kind, head)
    rendered = texts(model)
    latent = int(firing(model, SUITE["a"], rendered).argmax())
    amount = -1.5 if action == "scale" else 2.0
    value = amount * float(Q["a"][latent])
    rule: Rule = {latent: {
        "add": lambda z: z + value, "set": lambda z: torch.full_like(z, value), "scale": lambda z: amount * z,
        "ablate": torch.zeros_like,
    }[action]}  # fmt: skip
    with plain_hook(model.hf, block(kind, 1), SUITE["a"], rule, [slice(*r.response_span) for r in rendered]):
        expected = outputs(model, rendered)
    with steering(model, SUITE, [use(latent, action, amount)], q=Q, texts=rendered):
        found = outputs(model, rendered)
    assert not torch.allclose(expected, outputs(model, rendered), atol=1e-3)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("normalize", ["layer_norm", "none"])
def test_every_autoencoder(activation: str, normalize: str) -> None:
    model, sae = tiny_hooked("llama"), make_sae(activation, normalize)
    rendered = texts(model)
    order = firing(model, sae, rendered).argsort(descending=True).tolist()
    rule: Rule = {
        order[0]: torch.zeros_like,
        order[1]: lambda z: 3 * z,
        order[2]: lambda z: z + float(Q["a"][order[2]]),
    }
    asked = [use(order[0], "ablate"), use(order[1], "scale", 3.0), use(order[2], "add", 1.0)]
    before = outputs(model, rendered)
    with plain_hook(model.hf, block("llama", 1), sae, rule, [slice(*r.response_span) for r in rendered]):
        expected = outputs(model, rendered)
    with steering(model, {"a": sae}, asked, q=Q, texts=rendered):
        found = outputs(model, rendered)
    assert not torch.allclose(expected, before, atol=1e-3)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_several_features_and_hookpoints_at_once() -> None:
    """A later hookpoint reads what an earlier one made of the activations."""
    model = tiny_hooked("llama")
    rendered = texts(model)
    spans = [slice(*r.response_span) for r in rendered]
    first, second = ({i: lambda z: z + 2.0 for i in latents} for latents in ((3, 9), (5,)))
    with (
        plain_hook(model.hf, block("llama", 1), SUITE["a"], first, spans),
        plain_hook(model.hf, block("llama", 2) + ".mlp", SUITE["b"], {**second, 7: torch.zeros_like}, spans),
    ):
        expected = outputs(model, rendered)
    asked = [Intervention(sae=s, latent=i, amount=2.0 / float(Q[s][i])) for s, i in (("b", 5), ("a", 3), ("a", 9))]
    with steering(model, SUITE, [*asked, use(7, "ablate", sae="b")], q=Q, texts=rendered):
        found = outputs(model, rendered)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(found, outputs(model, rendered), atol=1e-3)


def test_two_autoencoders_of_one_hookpoint_read_the_same_activations() -> None:
    model = tiny_hooked("llama")
    rendered = texts(model)
    pair = {"a": make_sae(), "b": make_sae("relu", "none", seed=3)}
    asked = [use(2, "set", 2.0), use(11, "scale", 4.0, sae="b")]
    results = []
    for order in (asked, asked[::-1]):
        with steering(model, pair, order, q=Q, texts=rendered):
            results.append(outputs(model, rendered))
    torch.testing.assert_close(results[0], results[1], rtol=1e-5, atol=1e-6)


def test_interventions_on_one_feature_follow_one_another() -> None:
    model = tiny_hooked("llama")
    rendered = texts(model)
    unit = float(Q["a"][4])

    def after(*asked: Intervention) -> Tensor:
        with steering(model, SUITE, asked, q=Q, texts=rendered):
            return outputs(model, rendered)

    torch.testing.assert_close(after(use(4, "set", 3.0), use(4, "scale", 2.0)), after(use(4, "set", 6.0)))
    torch.testing.assert_close(after(use(4, "scale", 2.0), use(4, "set", 3.0)), after(use(4, "set", 3.0)))
    torch.testing.assert_close(after(use(4), use(4, "ablate")), after(use(4, "ablate")))
    torch.testing.assert_close(after(use(4), use(4)), after(use(4, "add", 2.0)))
    assert unit > 0


# ---- where ----


def test_spans_all_prompt_and_response() -> None:
    model = tiny_hooked("qwen2", "lm")
    rendered = texts(model)
    rule: Rule = {3: lambda z: z + float(Q["a"][3])}
    cases: list[tuple[Any, list[slice]]] = [
        ("all", [slice(0, len(r)) for r in rendered]),
        ("prompt", [slice(*r.prompt_span) for r in rendered]),
        ("response", [slice(*r.response_span) for r in rendered]),
        (((4, 7),), [slice(4, 7)] * 3),
    ]
    found = []
    for where, spans in cases:
        with plain_hook(model.hf, block("qwen2", 1), SUITE["a"], rule, spans):
            expected = outputs(model, rendered)
        with steering(model, SUITE, [use(3, where=where)], q=Q, texts=rendered):
            found.append(outputs(model, rendered))
        torch.testing.assert_close(found[-1], expected, rtol=1e-4, atol=1e-5)
    assert all(not torch.equal(a, b) for i, a in enumerate(found) for b in found[:i])
    two = (use(3, where=((4, 6), (6, 7))), use(3, where=((4, 7),)))
    with steering(model, SUITE, two[:1], q=Q):  # spans need no texts
        both = outputs(model, rendered)
    assert torch.equal(both, found[-1])


@pytest.mark.parametrize(("kind", "head"), [("bert", "reward"), ("llama", "reward"), ("qwen2", "lm")])
def test_batched_equals_single(kind: str, head: str) -> None:
    model = tiny_hooked(kind, head)
    rendered = texts(model)
    asked = [use(3), use(7, "ablate", where="all"), use(5, "scale", 3.0, ((6, 9),)), use(2, sae="b", where="prompt")]
    with steering(model, SUITE, asked, q=Q, texts=rendered):
        together = outputs(model, rendered)
    alone = []
    for r in rendered:
        with steering(model, SUITE, asked, q=Q, texts=[r]):
            alone.append(outputs(model, [r]))
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-4, atol=1e-5)


# ---- generation ----

GIVEN = ("Is it safe to mix bleach?", "How do I bake bread, and wait?", "Walk.")


def prompts(model: Any, said: Sequence[str]) -> dict[str, Tensor]:
    """As a user would make them: chat template, padded on the left."""
    tokenizer = model.tokenizer
    tokenizer.padding_side = "left"
    chats = [tokenizer.apply_chat_template([{"role": "user", "content": s}], tokenize=False,
                                           add_generation_prompt=True) for s in said]  # fmt: skip
    made = tokenizer(chats, return_tensors="pt", padding=True, add_special_tokens=False)
    return {"input_ids": made["input_ids"], "attention_mask": made["attention_mask"]}


def written(hf: Any, given: dict[str, Tensor], **how: Any) -> tuple[Tensor, Tensor]:
    """New tokens [B, n] and their logits [B, n, vocabulary]."""
    settings = {"max_new_tokens": 8, "min_new_tokens": 8, "do_sample": False, "pad_token_id": 0}
    with torch.no_grad():
        out = hf.generate(**given, **(settings | how), output_logits=True, return_dict_in_generate=True)
    return out.sequences[:, given["input_ids"].shape[1] :], torch.stack(out.logits, 1)


ASKED = [use(3, "add", 2.0, "all"), use(7, "ablate", where="response"), use(5, "scale", 3.0, "prompt"),
         use(2, "set", 2.0, ((3, 40),), "b"), use(9, "add", -2.0, "response", "b")]  # fmt: skip


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
def test_generation_with_and_without_the_cache(kind: str) -> None:
    model = tiny_hooked(kind, "lm")
    given = prompts(model, GIVEN)
    plain, _ = written(model.hf, given)
    with steering(model.hf, SUITE, ASKED, q=Q):
        tokens, logits = written(model.hf, given, use_cache=True)
        again, bare = written(model.hf, given, use_cache=False)
    assert torch.equal(tokens, again)
    torch.testing.assert_close(logits, bare, rtol=0, atol=1e-5)
    assert not torch.equal(tokens, plain)
    assert torch.equal(written(model.hf, given)[0], plain)


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
def test_generation_equals_a_plain_hook_over_the_whole_text(kind: str) -> None:
    """Logits of what was generated with the cache are those of one pass over prompt and answer with the hook."""
    model = tiny_hooked(kind, "lm")
    given = prompts(model, GIVEN[:1])
    n = given["input_ids"].shape[1]
    with steering(model.hf, SUITE, [use(3, "add", 2.0), use(7, "ablate", where="all")], q=Q):
        tokens, logits = written(model.hf, given)
    whole = torch.cat([given["input_ids"], tokens], 1)
    in_prompt: Rule = {7: torch.zeros_like}
    in_answer: Rule = {7: torch.zeros_like, 3: lambda z: z + 2.0 * float(Q["a"][3])}
    with torch.no_grad():
        plain = model.hf(input_ids=whole).logits[:, n - 1 : -1]
        with (
            plain_hook(model.hf, block(kind, 1), SUITE["a"], in_prompt, [slice(0, n)]),
            plain_hook(model.hf, block(kind, 1), SUITE["a"], in_answer, [slice(n, None)]),
        ):
            expected = model.hf(input_ids=whole).logits[:, n - 1 : -1]
    assert not torch.allclose(expected, plain, atol=1e-3)
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("cache", [True, False])
def test_generation_in_a_padded_batch_equals_single(cache: bool) -> None:
    model = tiny_hooked("llama", "lm")
    with steering(model.hf, SUITE, ASKED, q=Q):
        tokens, logits = written(model.hf, prompts(model, GIVEN), use_cache=cache)
        for b, said in enumerate(GIVEN):
            alone, its = written(model.hf, prompts(model, [said]), use_cache=cache)
            assert torch.equal(tokens[b], alone[0])
            torch.testing.assert_close(logits[b], its[0], rtol=1e-4, atol=1e-5)


def test_no_op_in_generation_changes_no_bit() -> None:
    model = tiny_hooked("qwen2", "lm")
    given = prompts(model, GIVEN)
    tokens, logits = written(model.hf, given)
    for asked in ([], [use(i, "scale", 1.0, "all") for i in range(D_SAE)], [use(3, "add", 0.0)]):
        with steering(model.hf, SUITE, asked, q=Q):
            same, its = written(model.hf, given)
        assert torch.equal(same, tokens)
        assert torch.equal(its, logits)


def test_several_answers_of_one_prompt() -> None:
    """Beams: with and without the cache, every beam is steered as its own text."""
    model = tiny_hooked("llama", "lm")
    given = prompts(model, GIVEN)
    how = {"num_beams": 3, "max_new_tokens": 5, "do_sample": False, "pad_token_id": 0}
    found = []
    with steering(model.hf, SUITE, ASKED, q=Q), torch.no_grad():
        for cache in (True, False):
            found.append(model.hf.generate(**given, **how, use_cache=cache))
    assert torch.equal(*found)


def test_a_model_in_bfloat16() -> None:
    """Nothing asked changes no bit there either; the push is computed in the autoencoder's format and rounded once."""
    model = tiny_hooked("llama", "lm")
    model.hf.to(torch.bfloat16)
    rendered = texts(model)
    before = outputs(model, rendered)
    with steering(model, SUITE, [use(i, "scale", 1.0, "all") for i in range(D_SAE)], texts=rendered):
        assert torch.equal(outputs(model, rendered), before)
    batch = collate(rendered, 0)
    plain = read(model, batch, ["layers.1"]).activations["layers.1"]
    with steering(model, SUITE, [use(3, where="all")], q=Q):
        pushed = read(model, batch, ["layers.1"]).activations["layers.1"]
    inside = batch.attention_mask.bool()
    h = plain[inside].float()
    step = float(Q["a"][3]) * SUITE["a"].W_dec[3] * (h.std(-1, keepdim=True) + 1e-6)
    assert pushed.dtype == torch.bfloat16
    assert torch.equal(pushed[inside], (h + step).to(torch.bfloat16))
    assert torch.equal(pushed[~inside], plain[~inside])


def test_gradients_pass() -> None:
    """In training code of one's own, steering is a constant push: weights below still learn."""
    model = tiny_hooked("llama", "lm")
    with steering(model.hf, SUITE, [use(3, where="all"), use(7, "ablate", where="all")], q=Q):
        model.hf(**prompts(model, GIVEN)).logits.sum().backward()
    weight = model.hf.model.layers[0].mlp.down_proj.weight
    assert weight.grad is not None
    assert float(weight.grad.abs().sum()) > 0
    assert SUITE["a"].W_dec.grad is None


# ---- what is made of it ----


def test_rewards_of_texts_and_pairs() -> None:
    model = tiny_hooked("llama")
    assert isinstance(model, RewardModel)
    rendered = texts(model)
    asked = [use(3), use(5, sae="b")]
    found = steer_rewards(model, SUITE, asked, rendered, q=Q)
    np.testing.assert_allclose(found.before, model.rewards(rendered), rtol=1e-5, atol=1e-5)
    with steering(model, SUITE, asked, q=Q, texts=rendered):
        np.testing.assert_allclose(found.after, model.rewards(rendered), rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(outputs(model, rendered)[:, 0], found.after, rtol=1e-4, atol=1e-5)
    assert np.abs(found.change).min() > 1e-4
    for nothing in ([], [use(3, "add", 0.0)]):
        same = steer_rewards(model, SUITE, nothing, rendered, q=Q)
        assert np.array_equal(same.before, same.after)
    pairs = Pairs(tuple(PreferencePair(id=f"p{i}", group="chat" if i % 3 else "safety", prompt=f"Number {i}?",
                                       chosen="It is safe. " * (1 + i % 3), rejected=f"Wait, {i}!")
                        for i in range(9)))  # fmt: skip
    done = steer_pairs(model, SUITE, asked, pairs, q=Q)
    assert [(g.group, g.n_pairs) for g in done.groups] == [("safety", 3), ("chat", 6)]
    renderer = model.renderer()
    sides = [renderer.render_pair(p) for p in pairs.group("chat")]
    change = [steer_rewards(model, SUITE, asked, [s[side] for s in sides], q=Q).change for side in (0, 1)]
    chat = done.groups[1]
    assert chat.chosen.value == pytest.approx(change[0].mean(), rel=1e-3, abs=1e-5)
    assert chat.rejected.value == pytest.approx(change[1].mean(), rel=1e-3, abs=1e-5)
    assert chat.margin.value == pytest.approx((change[0] - change[1]).mean(), rel=1e-3, abs=1e-5)
    assert chat.accuracy_before.value is not None
    assert chat.accuracy_after.value is not None
    assert chat.accuracy_change.value == pytest.approx(chat.accuracy_after.value - chat.accuracy_before.value)


def test_a_text_and_what_a_model_writes() -> None:
    model = tiny_hooked("llama", "lm")
    how = Generation(max_new_tokens=8)
    found = steer_text(model, SUITE, ASKED, GIVEN[0], how, q=Q)
    ids = torch.from_numpy(model.renderer().render_prompt(GIVEN[0], "t").input_ids.astype(np.int64))[None]
    given = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    assert found.prompt_tokens == given["input_ids"].shape[1]
    with torch.no_grad():
        plain = model.hf.generate(**given, max_new_tokens=8, do_sample=False, pad_token_id=0)[0, found.prompt_tokens :]
    assert list(found.before.ids) == plain.tolist()
    assert found.differs_at is not None
    assert found.before.ids[: found.differs_at] == found.after.ids[: found.differs_at]
    nothing = steer_text(model, SUITE, [], GIVEN[0], how, q=Q)
    assert nothing.differs_at is None
    assert nothing.before == nothing.after == found.before
    judge = tiny_hooked("llama")
    reward = steer_answer(judge, SUITE, [use(3)], GIVEN[0], "No.", q=Q)
    rendered = judge.renderer().render(GIVEN[0], "No.", "t")
    assert reward.before == pytest.approx(judge.rewards([rendered])[0], abs=1e-5)
    assert reward.after != reward.before


def test_the_last_place_that_a_span_can_reach() -> None:
    """What is read there writes the last new token, and nothing else."""
    model = tiny_hooked("llama", "lm")
    how, tried = Generation(max_new_tokens=8), []
    prompt = len(model.renderer().render_prompt(GIVEN[0], "t"))
    for latent in range(0, D_SAE, 4):
        last = use(latent, "set", 300.0, where=((prompt + 6, prompt + 7),))
        found = steer_text(model, SUITE, [last], GIVEN[0], how, q=Q)
        assert found.before.ids[:7] == found.after.ids[:7]
        tried.append(found.differs_at)
    assert set(tried) <= {7, None}
    assert 7 in tried


# ---- what can go wrong ----


def test_errors_of_features() -> None:
    model = tiny_hooked("llama")
    empty = {"a": np.full(D_SAE, np.nan)}
    other = make_sae(seed=8).fingerprint()
    cases: list[tuple[type[SeamarkError], str, dict[str, Any], dict[str, Any]]] = [
        (ConfigError, "no autoencoder 'c'", {"sae": "c"}, {}),
        (DataError, "no latent 48; there are 48", {"latent": 48}, {}),
        (DataError, "no latent -1", {"latent": -1}, {}),
        (ConfigError, "another autoencoder", {"fingerprint": other}, {}),
        (ConfigError, "Q_f of 47 features", {}, {"q": {"a": np.ones(47)}}),
        (DataError, "no Q_f is known of a", {}, {"q": None}),
        (DataError, "fewer than 10 times: no Q_f", {}, {"q": empty}),
        (DataError, "fewer than 10 times: no Q_f", {}, {"q": {"a": np.zeros(D_SAE)}}),
        (ConfigError, "amount is nan", {"amount": float("nan")}, {}),
        (ConfigError, "amount is inf", {"amount": float("inf"), "action": "scale"}, {}),
        (ConfigError, "too large", {"amount": 1e39}, {}),
        (ConfigError, "5:5 is no span", {"where": ((5, 5),)}, {}),
        (ConfigError, "no span of tokens is given", {"where": ()}, {}),
        (ModelError, "out of range: the model has 4 blocks", {}, {"suite": {"a": make_sae(hookpoint="layers.4")}}),
        (ConfigError, "names no hookpoint", {}, {"suite": {"a": make_sae(hookpoint="")}}),
        (ConfigError, "d_in is 16 but layers.1", {},
         {"suite": {"a": SparseAutoencoder(SAEConfig(d_in=16, d_sae=D_SAE, k=4, hookpoint="layers.1"))}}),
    ]  # fmt: skip
    for kind, message, fields, how in cases:
        one = Intervention(**({"sae": "a", "latent": 3} | fields))
        with pytest.raises(kind, match=message):
            changes(model, how.get("suite", SUITE), [one], how.get("q", Q))
    fine = Intervention(sae="a", latent=3, fingerprint=SUITE["a"].fingerprint())
    assert list(changes(model, SUITE, [fine], Q)) == ["layers.1"]
    assert list(changes(model, SUITE, [use(3, "ablate"), use(3, "scale", 2.0)], None)) == ["layers.1"]
    assert changes(model, {}, []) == {}


def test_errors_of_texts() -> None:
    judge, writer = tiny_hooked("llama"), tiny_hooked("llama", "lm")
    assert isinstance(writer, LanguageModel)
    how, long = Generation(max_new_tokens=8), "a " * 100_000
    for empty in ("", "  \n"):
        with pytest.raises(DataError, match="prompt is empty"):
            steer_text(writer, SUITE, [use(3)], empty, how, q=Q)
        with pytest.raises(DataError, match="prompt is empty"):
            steer_answer(judge, SUITE, [use(3)], empty, "No.", q=Q)
    for prompt, message in ((long, "100,[0-9]{3} tokens; there is room for 248"), (long * 2, "400,000 characters")):
        with pytest.raises(DataError, match=message):
            steer_text(writer, SUITE, [use(3)], prompt, how, q=Q)
        with pytest.raises(DataError, match=message.replace("248", "256")):
            steer_answer(judge, SUITE, [use(3)], prompt, "", q=Q)
    with pytest.raises(ConfigError, match="no room for a prompt"):
        steer_text(writer, SUITE, [use(3)], "Bread?", Generation(max_new_tokens=300), q=Q)
    with pytest.raises(ConfigError, match="only language models"):
        steer_text(judge, SUITE, [use(3)], "Bread?", how, q=Q)
    with pytest.raises(ConfigError, match="gives no rewards"):
        steer_rewards(writer, SUITE, [use(3)], texts(judge), q=Q)
    with pytest.raises(DataError, match="no texts"):
        steer_rewards(judge, SUITE, [use(3)], [], q=Q)
    with pytest.raises(DataError, match="no text reaches token 240"):
        steer_rewards(judge, SUITE, [use(3, where=((240, 250),))], texts(judge), q=Q)
    prompt = len(writer.renderer().render_prompt("Bread?", "t"))
    beyond = use(3, where=((prompt + 8, prompt + 20),))
    with pytest.raises(DataError, match=f"token {prompt + 8}; of prompt and answer at most {prompt + 7} go through"):
        steer_text(writer, SUITE, [use(3), beyond], "Bread?", how, q=Q)
    for spans in (((prompt + 7, prompt + 20),), ((0, 3), (prompt + 7, prompt + 20))):  # where the last new token stands
        with pytest.raises(DataError, match=f"no text reaches token {prompt + 7}"):
            steer_text(writer, SUITE, [use(3, where=spans)], "Bread?", how, q=Q)
    some = texts(judge)
    with pytest.raises(DataError, match="no text reaches token 240"):
        steer_rewards(judge, SUITE, [use(3, where=((0, 5), (240, 250)))], some, q=Q)
    one = Generation(max_new_tokens=1)
    with pytest.raises(ConfigError, match="no response can be changed"):
        steer_text(writer, SUITE, [use(3, where="all"), use(4, where="response")], "Bread?", one, q=Q)
    assert len(steer_text(writer, SUITE, [use(3, where="all")], "Bread?", one, q=Q).after.ids) == 1
    with pytest.raises(DataError, match="no pairs"):
        steer_pairs(judge, SUITE, [use(3)], Pairs(()), q=Q)
    n = np.zeros(300, np.int32)
    endless = Rendered("long", n + 9, np.zeros((300, 2), np.int32), "", (0, 0), (0, 300), n.astype(bool))
    with pytest.raises(DataError, match="300 tokens; the model takes 256"):
        steer_rewards(judge, SUITE, [use(3)], [endless], q=Q)


def test_errors_in_calls() -> None:
    hf, judge = tiny_model("llama", "lm"), tiny_hooked("llama")
    rendered = texts(judge)
    ids = torch.arange(20, 29)[None]
    with (
        steering(hf, SUITE, [use(3)], q=Q),
        pytest.raises(ConfigError, match="response is not known outside of generate"),
    ):
        hf(input_ids=ids)
    with steering(judge, SUITE, [use(3)], q=Q, texts=rendered):
        with pytest.raises(ConfigError, match="3 texts"):
            outputs(judge, [*rendered, rendered[0]])
        with pytest.raises(ConfigError, match="row 0 of the batch is another text than 't0'"):
            outputs(judge, rendered[::-1])
        # Seamark's own reading numbers the texts of each call: they must be those that were given.
        with pytest.raises(ConfigError, match="is another text than"):
            judge.rewards(rendered[::-1])
        with pytest.raises(ConfigError, match="3 texts"):
            judge.rewards([*rendered, judge.renderer().render("Salt?", "A pinch.", "t3")])
        judge.rewards(rendered)
    assert judge.changes == 0
    assert not hf.model.layers[1]._forward_hooks
    with (
        pytest.raises(ModelError, match="no hookpoints are known"),
        steering(torch.nn.Linear(2, 2), SUITE, [use(3)], q=Q),
    ):
        pass
