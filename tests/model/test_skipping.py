"""Skipping the lowest blocks with their known output: nothing changes but the time."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from seamark.errors import ConfigError, FormatError, ModelError
from seamark.model.loading import RewardModel
from seamark.model.skipping import BlockCache
from seamark.model.training import RewardTraining, train_reward_model
from seamark.text.pairs import Pairs, PreferencePair
from tiny import tiny_folder

KINDS = ["bert", "llama", "qwen2", "gpt2", "neox"]
WORDS = ["please", "safe", "help", "explain", "never", "sure", "bake", "weather", "ships", "toxic"]


def pairs(n: int = 12) -> Pairs:
    def words(i: int, length: int) -> str:
        return " ".join(WORDS[(i * 7 + j * 3) % len(WORDS)] for j in range(length))

    sides = [(words(i, 3 + i % 7), words(i + 1, 9 - i % 6)) for i in range(n)]
    return Pairs(tuple(PreferencePair(f"p{i}", "safety", f"question {i}", c, r) for i, (c, r) in enumerate(sides)))


def texts_of(model: RewardModel, data: Pairs) -> list:
    renderer = model.renderer(None)
    return [side for pair in data for side in renderer.render_pair(pair)]


def folder_of(tmp_path, kind: str) -> str:
    return tiny_folder(tmp_path / kind, kind)


@pytest.mark.parametrize("kind", KINDS)
def test_rewards_are_the_same(tmp_path, kind):
    model = RewardModel.from_pretrained(folder_of(tmp_path, kind))
    texts = texts_of(model, pairs())
    plain = model.rewards(texts)
    ran: list[int] = []
    for n_blocks in range(1, model.n_blocks):
        cache = BlockCache.make(model, texts, n_blocks)
        block = model.hf.get_submodule(_block_path(model, 0))
        first = block.register_forward_hook(lambda *_: ran.append(1))
        inner = next(m for m in block.modules() if isinstance(m, torch.nn.Linear) or type(m).__name__ == "Conv1D")
        inside = inner.register_forward_hook(lambda *_: ran.append(2))
        with cache.skipping(model):
            ran.clear()
            np.testing.assert_allclose(model.rewards(texts, batch_tokens=64), plain, rtol=1e-4, atol=1e-5)
            assert 2 not in ran, "the skipped block computed something"
        first.remove()
        inside.remove()
        np.testing.assert_array_equal(model.rewards(texts), plain)


def _block_path(model: RewardModel, index: int) -> str:
    from seamark.model.hookpoints import find_family

    block = find_family(model.hf)[1][index]
    return next(name for name, module in model.hf.named_modules() if module is block)


@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_training_gives_the_same_model(tmp_path, kind):
    folder = folder_of(tmp_path, kind)
    config = RewardTraining(learning_rate=5e-3, epochs=2, batch_size=4, max_length=160, threads=1, precision="fp32",
                            attention="eager", trainable_blocks=1)  # fmt: skip
    base = RewardModel.from_base(folder, attention="eager")
    cache = BlockCache.make(base, texts_of(base, pairs()), base.n_blocks - 1)
    plain, _ = train_reward_model(folder, pairs(), config, progress=False)
    skipped, _ = train_reward_model(folder, pairs(), config, lower=cache, progress=False)
    for (name, a), (_, b) in zip(plain.hf.named_parameters(), skipped.hf.named_parameters(), strict=True):
        if not name.endswith(
            ("classifier.bias", "key.bias", "k_proj.bias")
        ):  # gradient 0 but for rounding: Adam blows it up
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4, msg=name)


def test_save_and_load(tmp_path):
    model = RewardModel.from_pretrained(folder_of(tmp_path, "bert"))
    texts = texts_of(model, pairs())
    (tmp_path / "cache").mkdir()
    BlockCache.make(model, texts, 2).save(tmp_path / "cache")
    with BlockCache.load(tmp_path / "cache").skipping(model):
        found = model.rewards(texts)
    np.testing.assert_allclose(found, model.rewards(texts), rtol=1e-4, atol=1e-5)
    (tmp_path / "cache" / "activations.safetensors").write_bytes(b"nothing")
    with pytest.raises(FormatError):
        BlockCache.load(tmp_path / "cache")


def test_refusals(tmp_path):
    model = RewardModel.from_pretrained(folder_of(tmp_path, "bert"))
    texts = texts_of(model, pairs())
    cache = BlockCache.make(model, texts[:4], 2)
    with cache.skipping(model), pytest.raises(ModelError, match="not among those"):
        model.rewards(texts[4:])
    changed = RewardModel.from_pretrained(folder_of(tmp_path, "bert"))
    with torch.no_grad():
        next(p for n, p in changed.hf.named_parameters() if ".0." in n).add_(1.0)
    with pytest.raises(ModelError, match="other weights"), cache.skipping(changed):
        pass
    config = RewardTraining(trainable_blocks=model.n_blocks, batch_size=4)
    with pytest.raises(ConfigError, match="skipped"):
        train_reward_model(folder_of(tmp_path, "bert"), pairs(), config, lower=cache, progress=False)
