"""Loading, saving, and one clear line for everything that is no reward model."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

from seamark.errors import ModelError
from seamark.model.batching import collate
from seamark.model.loading import DEFAULT_MODEL, HookedModel, LanguageModel, RewardModel, load_model, resolve_name
from seamark.model.reading import read
from seamark.text.pairs import Message
from tiny import TINY_KINDS, tiny_folder, tiny_model, tiny_tokenizer

PROMPT = "How do I bake bread?"
ANSWERS = ["Mix flour, water, salt and yeast.", "No.", "Wait an hour. Bake it until it is brown."]


def rendered(model, max_length=None):
    renderer = model.renderer(max_length)
    return [renderer.render(PROMPT, a, str(i)) for i, a in enumerate(ANSWERS)]


@pytest.mark.parametrize("kind", TINY_KINDS)
def test_save_and_load_give_the_same_model(tmp_path, kind):
    folder = tiny_folder(tmp_path / "first", kind)
    model = RewardModel.from_pretrained(folder)
    rewards = model.rewards(rendered(model))
    model.save_pretrained(tmp_path / "second")
    again = RewardModel.from_pretrained(tmp_path / "second")
    assert again.fingerprint() == model.fingerprint()
    np.testing.assert_array_equal(again.rewards(rendered(again)), rewards)
    plain = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "second")
    ids = torch.as_tensor(rendered(model)[0].input_ids[None].astype(np.int64))
    with torch.no_grad():
        assert plain(input_ids=ids).logits.item() == pytest.approx(rewards[0], rel=1e-4)
    assert {p.suffix for p in (tmp_path / "second").iterdir()} <= {".json", ".safetensors", ".txt", ".jinja"}


@pytest.mark.parametrize("kind", TINY_KINDS)
@pytest.mark.parametrize("head", ["base", "lm"])
def test_from_base_draws_a_head_from_the_seed(tmp_path, kind, head):
    folder = tiny_folder(tmp_path, kind, head, num_labels=2)
    state = torch.get_rng_state()
    one, same, other = (RewardModel.from_base(folder, seed=s) for s in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    assert one.fingerprint() == same.fingerprint() != other.fingerprint()
    r = rendered(one)
    assert len(set(one.rewards(r))) == 3
    assert not np.allclose(one.rewards(r), other.rewards(r))
    blocks = [n for n, _ in one.hf.named_parameters() if "layers.0" in n or "layer.0" in n or "h.0" in n]
    for name in blocks:  # the base's own weights
        assert torch.equal(one.hf.get_parameter(name), other.hf.get_parameter(name))
    assert one.hf.config.num_labels == 1
    assert not [m for m in one.hf.modules() if isinstance(m, torch.nn.Dropout) and m.p > 0]


def test_from_base_keeps_the_head_of_a_reward_model(tmp_path):
    folder = tiny_folder(tmp_path, "llama")
    trained = RewardModel.from_pretrained(folder)
    going_on = RewardModel.from_base(folder, seed=3)
    r = rendered(trained)
    np.testing.assert_array_equal(trained.rewards(r), going_on.rewards(r))


def test_dropout_can_be_asked_for(tmp_path):
    folder = tiny_folder(tmp_path, "bert", "base")
    model = RewardModel.from_base(folder, dropout=0.25)
    assert {m.p for m in model.hf.modules() if isinstance(m, torch.nn.Dropout)} == {0.25}


def test_embedded_default_is_a_base():
    assert Path(resolve_name(DEFAULT_MODEL)).is_dir()
    model = RewardModel.from_base()
    assert (model.n_blocks, model.default_hookpoint, model.d_model("layers.3.mlp")) == (6, "layers.3", 384)
    assert model.max_length == 512
    assert len(rendered(model, 16)[2]) == 16
    assert len(rendered(model, 100_000)[2]) < 512


def test_embedded_default_without_its_package(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    assert resolve_name(DEFAULT_MODEL) == "sentence-transformers/all-MiniLM-L6-v2"
    with pytest.raises(ModelError, match=r"seamark\[demo\]") as error:
        RewardModel.from_base()
    assert one_line(error)


def one_line(error) -> str:
    text = str(error.value)
    assert "\n" not in text
    assert len(text) < 600
    return text


def corrupt(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])


def lose_head(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    weights.pop("score.weight")
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def misfit(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"intermediate_size": 48}))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (corrupt, "damaged"),
        (lambda f: (f / "model.safetensors").write_bytes(b""), "damaged|cannot be loaded"),
        (lambda f: (f / "model.safetensors").unlink(), "cannot be loaded"),
        (lambda f: (f / "config.json").unlink(), "cannot be loaded"),
        (lambda f: (f / "config.json").write_text("{"), "cannot be loaded"),
        (lambda f: (f / "tokenizer.json").unlink(), "cannot be loaded"),
        (lose_head, r"lack 1 of the model's weights \(score.weight\)"),
        (misfit, "cannot be loaded|lack"),
    ],
)
def test_damaged_folders(tmp_path, damage, message):
    folder = Path(tiny_folder(tmp_path / "m", "llama"))
    damage(folder)
    with pytest.raises(ModelError, match=message) as error:
        RewardModel.from_pretrained(folder)
    assert str(folder) in one_line(error)


def test_what_is_no_reward_model(tmp_path):
    lm = tiny_folder(tmp_path / "lm", "qwen2", "lm")
    with pytest.raises(ModelError, match="not a reward model: Qwen2ForCausalLM has no reward head") as error:
        RewardModel.from_pretrained(lm)
    assert "from_base" in one_line(error)
    three = tiny_folder(tmp_path / "three", "bert", num_labels=3)
    with pytest.raises(ModelError, match="not a reward model: its classifier has 3 labels") as error:
        RewardModel.from_pretrained(three)
    one_line(error)
    with pytest.raises(ModelError, match=r"not a language model|cannot be loaded"):
        LanguageModel.from_pretrained(three)
    with pytest.raises(ModelError, match="there is no such model folder") as error:
        RewardModel.from_pretrained(tmp_path / "nowhere")
    assert "nowhere" in one_line(error)
    file = tmp_path / "file.safetensors"
    file.write_bytes(b"x")
    with pytest.raises(ModelError, match="is a folder, this is a file"):
        RewardModel.from_pretrained(file)


@pytest.mark.parametrize("name", ["someone/no-such-model", "nosuchmodel", "./x", "~/x", "a/b/c", "has space"])
def test_names_that_cannot_be_fetched_offline(name):
    with pytest.raises(ModelError, match=r"cannot be fetched from the Hub|no such model folder") as error:
        RewardModel.from_pretrained(name)
    assert name in one_line(error)


def test_base_without_most_of_its_weights(tmp_path):
    from safetensors.torch import load_file, save_file

    folder = Path(tiny_folder(tmp_path, "llama", "lm"))
    weights = load_file(folder / "model.safetensors")
    kept = {k: v for k, v in weights.items() if "layers.2" not in k}
    save_file(kept, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match="the files lack 9 of the model's weights"):
        RewardModel.from_base(folder)


def test_bf16_checkpoint_is_float32_on_a_cpu(tmp_path):
    tiny_model("llama").to(torch.bfloat16).save_pretrained(tmp_path)
    tiny_tokenizer("llama").save_pretrained(tmp_path)
    assert next(RewardModel.from_pretrained(tmp_path, device_map="cpu").hf.parameters()).dtype == torch.float32
    model = RewardModel.from_pretrained(tmp_path, dtype="bfloat16")
    assert next(model.hf.parameters()).dtype == torch.bfloat16
    assert np.isfinite(model.rewards(rendered(model))).all()


def test_language_model(tmp_path):
    model = LanguageModel.from_pretrained(tiny_folder(tmp_path, "gpt2", "lm"))
    assert model.hookpoints[-1] == "layers.3"
    assert model.tokenizer.pad_token_id == model.config.pad_token_id


@pytest.mark.parametrize("kind", ["llama", "gpt2", "neox", "gemma3", "bert", "roberta", "modernbert"])
@pytest.mark.parametrize("head", ["reward", "lm", "base"])
def test_whatever_a_folder_holds(tmp_path, kind, head):
    folder = tiny_folder(tmp_path, kind, head)
    model = load_model(folder)
    encoder = kind in ("bert", "roberta", "modernbert")
    expected = RewardModel if head == "reward" else LanguageModel if head == "lm" and not encoder else HookedModel
    assert type(model) is expected
    assert model.name == folder
    batch = collate(rendered(model), model.config.pad_token_id)
    h = read(model, batch, ["layers.2"]).activations["layers.2"]
    inner = tiny_model(kind, head).base_model
    mask = batch.attention_mask
    with torch.no_grad():
        plain = inner(input_ids=batch.input_ids, attention_mask=mask, output_hidden_states=True).hidden_states[3]
    torch.testing.assert_close(h[mask.bool()], plain[mask.bool()], rtol=1e-4, atol=1e-4)


def test_whatever_it_holds_must_be_whole_and_of_use(tmp_path):
    from safetensors.torch import load_file, save_file

    with pytest.raises(ModelError, match="its classifier has 3 labels"):
        load_model(tiny_folder(tmp_path / "three", "bert", num_labels=3))
    folder = Path(tiny_folder(tmp_path / "torn", "bert", "base"))
    weights = load_file(folder / "model.safetensors")
    kept = {k: v for k, v in weights.items() if "layer.2" not in k}
    save_file(kept, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match="the files lack 16 of the model's weights"):
        load_model(folder)
    with pytest.raises(ModelError, match="there is no such model folder"):
        load_model(tmp_path / "nowhere")


def test_logits_are_those_of_the_model_itself(tmp_path):
    model = LanguageModel.from_pretrained(tiny_folder(tmp_path, "llama", "lm"))
    batch = collate(rendered(model), model.config.pad_token_id)
    model.hf.train()
    logits = model.logits(batch)
    assert model.hf.training
    with torch.no_grad():
        plain = model.hf.eval()(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits
    torch.testing.assert_close(logits, plain)
    half = model.logits(batch, precision="bf16")
    assert half.dtype == torch.float32  # the head is computed in its weights' own format
    assert not torch.equal(half, plain)


def test_pad_token_is_found_when_there_is_none(tmp_path):
    tiny_model("mistral", "lm", pad_token_id=None).save_pretrained(tmp_path)
    tokenizer = tiny_tokenizer("mistral")
    tokenizer.pad_token = None
    tokenizer.save_pretrained(tmp_path)
    model = RewardModel.from_base(tmp_path)
    assert model.tokenizer.pad_token == "</s>"
    assert model.hf.config.pad_token_id == model.tokenizer.pad_token_id == 2
    r = rendered(model)
    np.testing.assert_allclose(model.rewards(r), [model.rewards([x])[0] for x in r], rtol=1e-5)


def test_the_models_own_pad_token_decides(tmp_path):
    tiny_model("llama", pad_token_id=2).save_pretrained(tmp_path)
    tiny_tokenizer("llama").save_pretrained(tmp_path)  # pads with token 1
    model = RewardModel.from_pretrained(tmp_path)
    assert model.tokenizer.pad_token_id == model.config.pad_token_id == 2


def test_adapters(tmp_path):
    from peft import LoraConfig, TaskType, get_peft_model

    base = tiny_folder(tmp_path / "base", "llama", "lm", num_labels=2)
    reward = RewardModel.from_base(base)
    lora = LoraConfig(task_type=TaskType.SEQ_CLS, r=4, target_modules=["q_proj", "v_proj"])
    wrapped = get_peft_model(reward.hf, lora)
    wrapped.peft_config["default"].base_model_name_or_path = base
    with torch.no_grad():
        for name, p in wrapped.named_parameters():
            if "lora_B" in name:
                p.normal_(0, 0.5)
    wrapped.eval()
    expected = RewardModel(wrapped, reward.tokenizer, "wrapped")
    r = rendered(expected)
    assert expected.hookpoints == RewardModel.from_base(base).hookpoints
    rewards = expected.rewards(r)
    wrapped.save_pretrained(tmp_path / "adapter")
    for model in (
        RewardModel.from_pretrained(tmp_path / "adapter"),
        RewardModel.from_pretrained(base, adapter=tmp_path / "adapter"),
    ):
        np.testing.assert_allclose(model.rewards(r), rewards, rtol=1e-4, atol=1e-5)
        model.save_pretrained(tmp_path / "merged")
        merged = RewardModel.from_pretrained(tmp_path / "merged")
        np.testing.assert_allclose(merged.rewards(r), rewards, rtol=1e-4, atol=1e-5)
    with pytest.raises(ModelError, match=r"cannot be loaded|not here"):
        RewardModel.from_pretrained(base, adapter=tmp_path / "no-adapter")


def test_quantised_weights_without_bitsandbytes(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    folder = tiny_folder(tmp_path, "llama")
    import importlib.util

    real = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda n: None if n == "bitsandbytes" else real(n))
    with pytest.raises(ModelError, match=r"bitsandbytes.*seamark\[quantized\]"):
        RewardModel.from_pretrained(folder, quantization="4bit")
    with pytest.raises(ModelError, match="unknown"):
        RewardModel.from_pretrained(folder, quantization="2bit")


def test_remote_code_stays_off(tmp_path):
    folder = Path(tiny_folder(tmp_path, "llama"))
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "evil", "auto_map": {"AutoConfig": "evil.EvilConfig"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()")
    with pytest.raises(ModelError, match=r"code of its own.*trust_remote_code=True"):
        RewardModel.from_pretrained(folder)
    assert not (tmp_path / "ran").exists()


def test_rewards_that_are_not_finite_are_an_error(tmp_path):
    model = RewardModel.from_pretrained(tiny_folder(tmp_path, "llama"))
    with torch.no_grad():
        model.hf.score.weight.fill_(float("nan"))
    with pytest.raises(ModelError, match="3 of 3 rewards are not finite"):
        model.rewards(rendered(model))
    assert model.rewards([]).shape == (0,)


def test_chat_messages_render_through_the_template(tmp_path):
    model = RewardModel.from_pretrained(tiny_folder(tmp_path, "qwen2"))
    prompt = (Message("system", "Be kind."), Message("user", PROMPT))
    assert "Be kind." in model.renderer().render(prompt, ANSWERS[0], "x").text
