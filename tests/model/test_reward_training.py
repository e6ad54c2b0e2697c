"""Training reward models: it learns, repeats itself to the byte and resumes after kill -9."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import TrainerCallback

from seamark.errors import ConfigError, DataError, ModelError
from seamark.model import trainer as trainer_module
from seamark.model.hookpoints import find_family, modules_after_blocks
from seamark.model.loading import RewardModel
from seamark.model.order import TokenPair, training_order
from seamark.model.training import RewardTraining, TrainingReport, train_reward_model, trainable_part
from seamark.run import read_json
from seamark.text.pairs import Pairs, PreferencePair
from tiny import tiny_folder

CONFIG = RewardTraining(
    learning_rate=5e-3, epochs=2, batch_size=8, max_length=160, threads=1, precision="fp32", attention="eager"
)
KINDS = ["bert", "llama", "gpt2"]


def pairs(n: int = 32) -> Pairs:
    """Kind answers are chosen, curt ones rejected."""
    rng = random.Random(0)
    kind, curt = ["please", "safe", "help", "explain", "never"], ["sure", "bake", "weather", "ships", "toxic"]

    def words(own: list[str]) -> str:
        return " ".join(rng.choice(own) for _ in range(rng.randint(3, 12)))

    items = [PreferencePair(f"p{i:03d}", "safety", f"How do I {i}?", words(kind), words(curt)) for i in range(n)]
    return Pairs(tuple(items))


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    root = tmp_path_factory.mktemp("bases")
    return {kind: tiny_folder(root / kind, kind, "base" if kind == "bert" else "lm") for kind in KINDS}


def train(base, data=None, out=None, **changes) -> tuple[RewardModel, TrainingReport]:
    return train_reward_model(base, data or pairs(), CONFIG.model_copy(update=changes), out, progress=False)


@pytest.mark.parametrize("kind", KINDS)
def test_it_learns_and_saves_in_the_hubs_layout(bases, tmp_path, kind, capfd):
    here = set(os.listdir())
    model, report = train(bases[kind], out=tmp_path, epochs=6)
    assert report.steps == 24 == len(report.losses)
    assert report.losses[0] == pytest.approx(np.log(2), abs=0.7)
    assert np.mean(report.losses[-4:]) < 0.5 * np.mean(report.losses[:2])
    assert np.mean(report.accuracies[-4:]) > 0.9
    assert report.n_pairs == 32
    assert report.tokens < report.padded_tokens < 1.5 * report.tokens
    loaded = RewardModel.from_pretrained(tmp_path)
    assert loaded.fingerprint() == model.fingerprint()
    assert not model.hf.training
    assert {p.dtype for p in model.hf.parameters()} == {torch.float32}
    assert all(p.requires_grad for p in model.hf.parameters())
    assert all(p.grad is None for p in model.hf.parameters())
    saved = read_json(tmp_path / "training.json")
    assert saved["steps"] == 24
    assert "seconds" not in saved
    assert not list(tmp_path.glob("**/checkpoint*"))
    assert not list(tmp_path.glob("**/*.bin"))
    assert set(os.listdir()) == here
    assert capfd.readouterr().out == ""  # the trainer prints nothing


def test_bf16_training_leaves_a_float32_model(bases):
    model, report = train(bases["bert"], epochs=1, precision="bf16")
    assert report.precision == "bf16"
    assert {p.dtype for p in model.hf.parameters()} == {torch.float32}
    assert not any("forward" in vars(m) for m in model.hf.modules())  # the trainer's autocast is off again
    renderer = model.renderer()
    r = [renderer.render("How?", "please help", "a")]
    with torch.no_grad():
        plain = model.hf(input_ids=torch.as_tensor(r[0].input_ids[None].astype(np.int64))).logits
    assert plain.dtype == torch.float32
    assert model.rewards(r)[0] == plain.item()
    halved = torch.as_tensor(model.rewards(r, precision="bf16"), dtype=torch.float32)
    assert halved.item() == pytest.approx(plain.item(), rel=0.1, abs=0.05)
    assert halved.to(torch.bfloat16).float() != halved  # the head itself stays in float32


def test_frozen_blocks_stay_and_see_no_gradient(bases):
    for kind in KINDS:
        before = RewardModel.from_base(bases[kind], seed=CONFIG.seed)
        after, report = train(bases[kind], trainable_blocks=1)
        blocks = find_family(before.hf)[1]
        free = [*blocks[-1:], *modules_after_blocks(before.hf)]
        free_ids = {id(p) for m in free for p in m.parameters()}
        assert report.trainable_parameters == sum(p.numel() for m in free for p in m.parameters())
        for name, p in before.hf.named_parameters():
            same = torch.equal(p, after.hf.get_parameter(name))
            if name != "classifier.bias":  # it cancels in every pair, so it has no gradient
                assert same == (id(p) not in free_ids), name


def test_autograd_does_not_run_through_the_frozen_part(bases):
    model = RewardModel.from_base(bases["llama"])
    blocks = find_family(model.hf)[1]
    needs = {}
    for i, block in enumerate(blocks):
        block.register_forward_hook(lambda _m, _a, out, i=i: needs.update({i: out.requires_grad}))
    with trainable_part(model.hf, 2):
        model.hf(input_ids=torch.arange(5)[None]).logits.sum().backward()
        assert needs == {0: False, 1: False, 2: True, 3: True}
        assert model.hf.model.embed_tokens.weight.grad is None
    with trainable_part(model.hf, 0) as n:
        assert n == 32 + 32  # final norm and head
    with pytest.raises(ConfigError, match="the model has 4 blocks"), trainable_part(model.hf, 5):
        pass


def test_gradient_accumulation_and_checkpointing_give_the_same_losses(bases):
    _, whole = train(bases["llama"], epochs=1)
    _, split = train(bases["llama"], epochs=1, accumulate=4)
    _, recomputed = train(bases["llama"], epochs=1, gradient_checkpointing=True)
    assert split.steps == whole.steps
    np.testing.assert_allclose(split.losses, whole.losses, rtol=1e-3)
    np.testing.assert_allclose(recomputed.losses, whole.losses, rtol=1e-4)
    with pytest.raises(ConfigError, match="does not divide"):
        train(bases["llama"], accumulate=3)


def test_order_of_rows_does_not_matter_but_seed_and_labels_do(bases, tmp_path):
    model, _ = train(bases["bert"])
    backwards, _ = train(bases["bert"], data=pairs().with_items(reversed(pairs().items)))
    assert backwards.fingerprint() == model.fingerprint()
    assert train(bases["bert"], seed=1)[0].fingerprint() != model.fingerprint()
    flipped = pairs().with_items(p.flipped() for p in pairs())
    assert train(bases["bert"], data=flipped)[0].fingerprint() != model.fingerprint()


def test_training_order():
    rows = [TokenPair(f"{i}", [1] * (i % 13 + 1), [1] * (i * 7 % 19 + 1)) for i in range(501)]
    order = training_order(rows, 2, 8, seed=0)
    assert sorted(r.id for r in order) == sorted([r.id for r in rows] * 2)
    # Flipping labels moves nothing.
    flipped = training_order([TokenPair(r.id, r.rejected_ids, r.chosen_ids) for r in rows[::-1]], 2, 8, seed=0)
    assert [r.id for r in flipped] == [r.id for r in order]
    assert [r.id for r in training_order(rows, 2, 8, seed=1)] != [r.id for r in order]
    # Batches are filled with pairs of one length, nearly.
    batches = [order[i : i + 8] for i in range(0, len(order), 8)]
    padding = sum(max(r.length for r in b) * len(b) for b in batches) / sum(r.length for r in order)
    assert padding < 1.15
    firsts = [b[0].length for b in batches[:16]]
    assert firsts != sorted(firsts)
    epoch = {r.id for r in order[: len(rows) // 128 * 128]}
    assert len(epoch) == len(rows) // 128 * 128  # no pair twice before all have been seen once


def test_long_texts_are_cut_or_listed(bases):
    long = PreferencePair("zz", "safety", "How? " * 100, "please help", "sure")
    data = pairs(8).with_items([*pairs(8), long])
    _, cut = train(bases["bert"], data=data, epochs=1)
    assert (cut.truncated_texts, cut.dropped_ids, cut.n_pairs) == (2, (), 9)
    _, dropped = train(bases["bert"], data=data, epochs=1, too_long="drop")
    assert (dropped.truncated_texts, dropped.dropped_ids, dropped.n_pairs) == (0, ("zz",), 8)
    with pytest.raises(DataError, match="no pairs to train"):
        train(bases["bert"], data=pairs(0).with_items([long]), too_long="drop")
    with pytest.raises(DataError, match="no pairs to train"):
        train_reward_model(bases["bert"], Pairs(()), CONFIG)


def test_a_bad_loss_names_its_step(bases):
    with pytest.raises(ModelError, match=r"the loss of training step [2-8] is (nan|inf)"):
        train(bases["llama"], learning_rate=1e30)


def test_global_state_is_put_back(bases):
    torch.manual_seed(7)
    random.seed(7)
    np.random.seed(7)
    expected = (torch.rand(1).item(), random.random(), np.random.rand())
    torch.manual_seed(7)
    random.seed(7)
    np.random.seed(7)
    threads = torch.get_num_threads()
    train(bases["bert"], epochs=1)
    assert torch.get_num_threads() == threads
    assert (torch.rand(1).item(), random.random(), np.random.rand()) == expected


class Stop(Exception):  # noqa: N818
    """Ends training early, for tests."""


def weights(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


def test_killed_training_goes_on_to_the_same_bytes(bases, tmp_path):
    """kill -9 in another process; the checkpoint is taken up here and ends where an undisturbed run ends."""
    train(bases["llama"], out=tmp_path / "whole")
    script = f"""
        import os, signal
        from seamark.model import trainer
        from seamark.model.training import RewardTraining, train_reward_model
        from test_reward_training import CONFIG, pairs
        plain = trainer._Watch.on_step_end
        def killing(self, args, state, control, **more):
            plain(self, args, state, control, **more)
            if state.global_step == 6:
                os.kill(os.getpid(), signal.SIGKILL)
        trainer._Watch.on_step_end = killing
        from pathlib import Path
        config = CONFIG.model_copy(update={{"checkpoint_steps": 2}})
        train_reward_model({bases["llama"]!r}, pairs(), config, Path({str(tmp_path / "cut")!r}), progress=False)
    """
    here = str(Path(__file__).parent)
    paths = os.pathsep.join([here, str(Path(here).parent), *sys.path])
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], env={**os.environ, "PYTHONPATH": paths}, capture_output=True
    )
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()[-2000:]
    folder = tmp_path / "cut" / ".checkpoints"
    assert {p.name for p in folder.glob("checkpoint-*")} == {"checkpoint-2", "checkpoint-4"}
    (folder / "checkpoint-6").mkdir()  # cut while being written
    (folder / "checkpoint-6" / "model.safetensors").write_bytes(b"half")
    steps = []

    class Counting(trainer_module._Watch):
        def on_step_end(self, args, state, control, **_):
            steps.append(state.global_step)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer_module, "_Watch", Counting)
        _, report = train(bases["llama"], out=tmp_path / "cut", checkpoint_steps=2)
    assert steps == [5, 6, 7, 8]
    assert not folder.exists()
    assert weights(tmp_path / "cut") == weights(tmp_path / "whole")
    assert report.losses == TrainingReport(**read_json(tmp_path / "whole" / "training.json"), seconds=0).losses
    ours = {p.name: p.read_bytes() for p in (tmp_path / "cut").iterdir()}
    assert ours == {p.name: p.read_bytes() for p in (tmp_path / "whole").iterdir()}


def test_checkpoints_of_another_training_are_not_taken_up(bases, tmp_path):
    class Stopping(trainer_module._Watch, TrainerCallback):
        def on_step_end(self, args, state, control, **_):
            if state.global_step == 5:
                raise Stop

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer_module, "_Watch", Stopping)
        with pytest.raises(Stop):
            train(bases["bert"], out=tmp_path / "a", checkpoint_steps=2)
    assert (tmp_path / "a" / ".checkpoints" / "checkpoint-4" / "complete").exists()
    other, _ = train(bases["bert"], out=tmp_path / "a", checkpoint_steps=2, learning_rate=1e-3)
    fresh, _ = train(bases["bert"], learning_rate=1e-3)
    assert other.fingerprint() == fresh.fingerprint()
    with pytest.raises(ConfigError, match="needs a folder"):
        train(bases["bert"], checkpoint_steps=2)


@pytest.mark.slow
def test_speed_of_the_embedded_default():
    """≥ 5,000 tokens a second on one thread where bfloat16 is fast; run it on an idle machine."""
    from seamark.model.precision import fast_bf16

    if not fast_bf16("cpu"):
        pytest.skip("no fast bfloat16 here")
    rng = random.Random(0)
    words = ["safe", "help", "explain", "never", "bake", "weather", "ships", "ask"]
    text = lambda: " ".join(rng.choice(words) for _ in range(36))  # noqa: E731
    data = Pairs(tuple(PreferencePair(f"{i:04d}", "s", f"How {i}?", text(), text()) for i in range(512)))
    config = RewardTraining(epochs=1, batch_size=32, trainable_blocks=3, attention="eager", threads=1)
    _, report = train_reward_model("seamark/default", data, config, progress=False)
    assert report.tokens / report.seconds > 4000  # with loading
