"""Every architecture keeps the same promises about hookpoints."""

from __future__ import annotations

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from transformers import (
    BigBirdConfig,
    BigBirdForSequenceClassification,
    LlamaConfig,
    LlamaForSequenceClassification,
)

from seamark.errors import ModelError
from seamark.model.batching import Batch, collate, plan_batches
from seamark.model.hooked import HookedModel
from seamark.model.hookpoints import FAMILIES, backbone, find_family, modules_after_blocks, resolve
from seamark.model.reading import Reader, apply_at, read, reads_side_by_side
from seamark.text.rendering import Rendered
from tiny import TINY_KINDS, tiny_hooked

MODELS = {(kind, head): None for kind in TINY_KINDS for head in ("reward", "lm", "base")}
EVERY = pytest.mark.parametrize(("kind", "head"), MODELS, ids=lambda v: str(v))
REWARD = pytest.mark.parametrize("kind", TINY_KINDS)


@pytest.fixture(scope="module")
def hooked():
    made = {}

    def get(kind, head="reward"):
        if (kind, head) not in made:
            made[kind, head] = tiny_hooked(kind, head)
        return made[kind, head]

    return get


def texts(model, lengths=(9, 3, 14, 6)):
    """Random tokens, none of them special."""
    rng = np.random.default_rng(0)
    special = set(model.tokenizer.all_special_ids)
    usable = np.asarray([i for i in range(len(model.tokenizer)) if i not in special], dtype=np.int32)
    empty = np.zeros((0, 2), np.int32)
    return [
        Rendered(str(i), rng.choice(usable, n), empty, "", (0, 0), (0, n), np.zeros(n, bool))
        for i, n in enumerate(lengths)
    ]


def rows_of(model, rendered, plan, hookpoints, pad_to=None):
    """Activations per text and hookpoint, read by a plan of batches."""
    found = {}
    for rows in plan:
        batch = collate(rendered, model.config.pad_token_id, pad_to, rows=rows)
        reading = read(model, batch, hookpoints)
        for i, row in enumerate(rows):
            for name, h in reading.activations.items():
                found[row, name] = h[i, : len(rendered[row])]
    return found


@contextmanager
def calls_of(modules):
    """Counts forward calls of modules."""
    counts = [0] * len(modules)

    def counter(i):
        def hook(*_):
            counts[i] += 1

        return hook

    handles = [m.register_forward_pre_hook(counter(i)) for i, m in enumerate(modules)]
    try:
        yield counts
    finally:
        for handle in handles:
            handle.remove()


def count_hooks(model):
    """Forward hooks on the model; transformers leaves some of its own on blocks."""
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.hf.modules())


@EVERY
def test_padding_batch_size_and_order_change_nothing(hooked, kind, head):
    model = hooked(kind, head)
    rendered = texts(model)
    names = model.hookpoints
    alone = rows_of(model, rendered, [[i] for i in range(4)], names)
    for plan, pad_to in (([[2, 0, 3, 1]], None), ([[1, 2], [3, 0]], 40), (plan_batches([9, 3, 14, 6], 20), None)):
        other = rows_of(model, rendered, plan, names, pad_to)
        assert other.keys() == alone.keys()
        for key, h in alone.items():
            torch.testing.assert_close(other[key], h, rtol=1e-5, atol=1e-5)


@EVERY
def test_forward_stops_at_the_deepest_hookpoint(hooked, kind, head):
    model = hooked(kind, head)
    _, blocks = find_family(model.hf)
    after = [m for m in modules_after_blocks(model.hf) if "Rotary" not in type(m).__name__]
    batch = collate(texts(model), model.config.pad_token_id)
    with calls_of([*blocks, *after]) as counts:
        read(model, batch, ["layers.0", "layers.1.attn"])
    assert counts == [1, 1] + [0] * (len(counts) - 2)
    with calls_of([*blocks, *after]) as counts:
        read(model, batch, [f"layers.{len(blocks) - 1}"])
    assert counts == [1] * len(blocks) + [0] * len(after)
    mlp = resolve(model.hf, "layers.1.mlp")
    with calls_of([mlp]) as counts:
        read(model, batch, ["layers.1.attn"])
    assert counts == [0] or kind == "neox"  # its attention and MLP run side by side


@EVERY
def test_block_outputs_equal_hidden_states(hooked, kind, head):
    model = hooked(kind, head)
    n = model.n_blocks
    batch = collate(texts(model), model.config.pad_token_id)
    mask = batch.attention_mask.bool()
    read_h = read(model, batch, [f"layers.{i}" for i in range(n)]).activations
    last = []
    handle = find_family(model.hf)[1][-1].register_forward_hook(lambda _m, _a, out: last.append(out))
    with torch.no_grad():
        out = model.hf(input_ids=batch.input_ids, attention_mask=batch.attention_mask, output_hidden_states=True)
    handle.remove()
    for i in range(n - 1):
        torch.testing.assert_close(read_h[f"layers.{i}"][mask], out.hidden_states[i + 1][mask])
    final = last[0][0] if isinstance(last[0], tuple) else last[0]
    assert torch.equal(read_h[f"layers.{n - 1}"], final)


@EVERY
def test_parts_equal_a_plain_hook_on_the_submodule(hooked, kind, head):
    model = hooked(kind, head)
    batch = collate(texts(model), model.config.pad_token_id)
    names = [f"layers.{i}.{part}" for i in range(model.n_blocks) for part in ("attn", "mlp")]
    seen = {}

    def keep(name):
        def hook(_module, _args, out):
            seen[name] = out[0] if isinstance(out, tuple) else out

        return hook

    handles = [resolve(model.hf, n).register_forward_hook(keep(n)) for n in names]
    model.hf(input_ids=batch.input_ids, attention_mask=batch.attention_mask)
    for handle in handles:
        handle.remove()
    reading = read(model, batch, names)
    for name in names:
        assert reading.activations[name].shape == (*batch.input_ids.shape, model.d_model(name))
        assert torch.equal(reading.activations[name], seen[name])


@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3", "mistral", "gpt2", "neox", "bert", "roberta"])
def test_parts_are_what_the_residual_stream_receives(hooked, kind):
    """block output = input + attn + mlp for pre-norm models; for BERT after its two layer norms."""
    model = hooked(kind)
    batch = collate(texts(model), model.config.pad_token_id)
    h = read(model, batch, ["layers.1", "layers.2.attn", "layers.2.mlp", "layers.2"]).activations
    if kind in ("bert", "roberta"):
        block = find_family(model.hf)[1][2]
        middle = block.attention.output.LayerNorm(h["layers.1"] + h["layers.2.attn"])
        expected = block.output.LayerNorm(middle + h["layers.2.mlp"])
    else:
        expected = h["layers.1"] + h["layers.2.attn"] + h["layers.2.mlp"]
    torch.testing.assert_close(h["layers.2"], expected, rtol=1e-4, atol=1e-4)


@EVERY
def test_identity_changes_no_bit(hooked, kind, head):
    model = hooked(kind, head)
    batch = collate(texts(model), model.config.pad_token_id)
    ids = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
    with torch.no_grad():
        before = model.hf(**ids)[0]
        with apply_at(model, {name: lambda h, _batch: h for name in model.hookpoints}):
            same = model.hf(**ids)[0]
        with apply_at(model, {name: lambda h, _batch: h.clone() for name in model.hookpoints}):
            cloned = model.hf(**ids)[0]
    assert torch.equal(before, same)
    assert torch.equal(before, cloned)


@EVERY
def test_apply_at_in_a_plain_forward_pass(hooked, kind, head):
    model = hooked(kind, head)
    batch = collate(texts(model), model.config.pad_token_id)
    ids = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
    got: list[Batch] = []

    direction = torch.linspace(-3.0, 3.0, 32)  # a constant would vanish in the next layer norm

    def push(h, seen):
        got.append(seen)
        return h + direction * seen.attention_mask[..., None]

    with torch.no_grad():
        before = model.hf(**ids)[0]
        with apply_at(model, {"layers.1": push}):
            moved = model.hf(**ids)[0]
            then = read(model, batch, ["layers.1"]).activations["layers.1"]
        after = model.hf(**ids)[0]
    assert torch.equal(got[0].input_ids, batch.input_ids)
    assert got[1].rows == batch.rows
    assert not torch.allclose(before, moved)
    assert torch.equal(before, after)
    plain = read(model, batch, ["layers.1"]).activations["layers.1"]
    mask = batch.attention_mask.bool()
    torch.testing.assert_close(then[mask], plain[mask] + direction)


@REWARD
def test_rewards_do_not_depend_on_batches(hooked, kind):
    model = hooked(kind)
    rendered = texts(model, (9, 3, 14, 6, 3, 20))
    together = model.rewards(rendered)
    one_by_one = model.rewards(rendered, batch_tokens=1)
    backwards = model.rewards(rendered[::-1], batch_tokens=30)[::-1]
    assert together.dtype == np.float64
    assert len(set(together.round(4))) > 3
    np.testing.assert_allclose(one_by_one, together, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(backwards, together, rtol=1e-4, atol=1e-5)


@REWARD
def test_activations_and_rewards_in_one_pass(hooked, kind):
    model = hooked(kind)
    rendered = texts(model)
    batch = collate(rendered, model.config.pad_token_id)
    blocks = find_family(model.hf)[1]
    with calls_of([*blocks, backbone(model.hf)]) as counts:
        reading = read(model, batch, ["layers.1"], with_output=True)
    assert counts == [1] * (len(blocks) + 1)
    np.testing.assert_allclose(reading.rewards.numpy(), model.rewards(rendered), rtol=1e-4, atol=1e-5)
    only = read(model, batch, ["layers.1"])
    assert only.rewards is None
    assert torch.equal(only.activations["layers.1"], reading.activations["layers.1"])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("layers.4", "the model has 4 blocks.*layers.0 to layers.3"),
        ("layers.99.mlp", "the model has 4 blocks"),
        ("layers.-1", "not a hookpoint"),
        ("layers.01", "not a hookpoint"),
        ("layers.1.resid", "not a hookpoint.*layers.N.attn"),
        ("model.layers.1", "not a hookpoint"),
        ("", "not a hookpoint"),
    ],
)
def test_unknown_hookpoints(hooked, name, message):
    model = hooked("llama")
    batch = collate(texts(model), model.config.pad_token_id)
    hooks = count_hooks(model)
    with pytest.raises(ModelError, match=message):
        read(model, batch, [name])
    with pytest.raises(ModelError, match=message), apply_at(model, {name: lambda h, _b: h}):
        pass
    assert count_hooks(model) == hooks


def test_unsupported_architecture_names_what_is_supported():
    import transformers

    albert = transformers.AlbertModel(
        transformers.AlbertConfig(
            vocab_size=50, embedding_size=8, hidden_size=8, num_attention_heads=2, intermediate_size=16
        )
    )
    with pytest.raises(ModelError) as error:
        resolve(albert, "layers.0")
    assert "AlbertModel" in str(error.value)
    for family in FAMILIES:
        assert family.models in str(error.value)


def test_state_after_an_early_stop(hooked):
    """A cut forward pass leaves no hooks, no training flag and no captured outputs behind."""
    model = hooked("llama")
    batch = collate(texts(model), model.config.pad_token_id)
    hooks = count_hooks(model)
    model.hf.train()
    before = read(model, batch, ["layers.3"]).activations["layers.3"]
    assert model.hf.training
    model.hf.eval()
    assert torch.equal(before, read(model, batch, ["layers.3"]).activations["layers.3"])
    assert model.batch is None
    assert count_hooks(model) == hooks
    out = model.hf(input_ids=batch.input_ids, attention_mask=batch.attention_mask)
    assert out.hidden_states is None


def test_a_model_can_be_copied_and_pickled():
    model = tiny_hooked("bert", "reward")  # fresh: transformers leaves hooks on blocks that cannot be pickled
    again = pickle.loads(pickle.dumps(copy.deepcopy(model)))
    assert again.batch is None
    batch = collate(texts(model), model.config.pad_token_id)
    assert torch.equal(read(again, batch, ["layers.1"]).activations["layers.1"],
                       read(model, batch, ["layers.1"]).activations["layers.1"])  # fmt: skip


def test_a_change_holds_when_backward_runs_in_another_thread(hooked):
    """As it does on CUDA, where checkpointed blocks run again in autograd's own thread."""
    model = hooked("llama")
    model.hf.train()
    model.hf.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    ids = torch.arange(12)[None] + 5
    try:
        with apply_at(model, {"layers.1.attn": lambda h, _b: h * 2}), ThreadPoolExecutor(1) as other:
            out = model.hf(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False)
            other.submit(out.logits.sum().backward).result()
    finally:
        model.hf.gradient_checkpointing_disable()
        model.hf.zero_grad()
        model.hf.eval()


def test_threads_read_side_by_side(hooked):
    """Each gets the activations of its own batch, hooks of other readers notwithstanding."""
    model = hooked("llama")
    batches = [collate([t], model.config.pad_token_id) for t in texts(model)]
    alone = [read(model, b, ["layers.3", "layers.1.mlp"]).activations for b in batches]
    hooks = count_hooks(model)
    two = ["layers.3", "layers.1.mlp"]
    with Reader(model, two) as reader, Reader(model, ["layers.0"]), ThreadPoolExecutor(4) as pool:
        found = list(pool.map(reader, batches * 20))
    for i, reading in enumerate(found):
        for name, h in alone[i % len(batches)].items():
            assert torch.equal(reading.activations[name], h)
    assert count_hooks(model) == hooks


def test_models_that_keep_something_of_a_call_are_read_alone(hooked):
    model = hooked("llama")
    assert reads_side_by_side(model)
    with apply_at(model, {"layers.1": lambda h, _b: h}):
        assert not reads_side_by_side(model)
    assert reads_side_by_side(model)
    tiny = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64,
            "vocab_size": 50, "pad_token_id": 0}  # fmt: skip
    bird = HookedModel(BigBirdForSequenceClassification(BigBirdConfig(**tiny)), model.tokenizer, "bird")
    assert not reads_side_by_side(bird)
    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
    changing = LlamaForSequenceClassification(LlamaConfig(**tiny, rope_parameters=rope))
    assert not reads_side_by_side(HookedModel(changing, model.tokenizer, "rope"))


def test_wrong_shapes_and_missing_input_are_refused(hooked):
    model = hooked("bert")
    batch = collate(texts(model), model.config.pad_token_id)
    with apply_at(model, {"layers.1": lambda h, _b: h[:, :-1]}), pytest.raises(ModelError, match="shape"):
        model.rewards(texts(model))
    with apply_at(model, {"layers.1": lambda h, _b: h}), pytest.raises(ModelError, match="input_ids"):
        model.hf(inputs_embeds=torch.zeros(1, 3, 32))
    with apply_at(model, {"layers.1": lambda h, _b: h}), pytest.raises(ModelError, match="whole model"):
        find_family(model.hf)[1][1](torch.zeros(1, 3, 32))
    with pytest.raises(ModelError, match="gives no rewards"):
        read(hooked("bert", "base"), batch, [], with_output=True)


def test_default_hookpoint_is_at_three_quarters(hooked):
    assert hooked("llama").default_hookpoint == "layers.2"
    assert hooked("distilbert").default_hookpoint == "layers.1"
    assert hooked("gpt2").hookpoints[:4] == ["layers.0.attn", "layers.0.mlp", "layers.0", "layers.1.attn"]
    assert len(hooked("gpt2").hookpoints) == 12
