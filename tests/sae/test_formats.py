"""Each format written by hand, as its own tool lays it out, and what its tool would compute by a formula of its own."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from format_files import D_IN, D_SAE, K, assert_same_latents, dense, inputs, make
from safetensors.torch import load_file, save_file
from torch import Tensor

from seamark.errors import ConfigError, FormatError
from seamark.sae import SparseAutoencoder, formats
from seamark.sae.formats.hooks import from_folder, from_lens, from_module, to_lens

ACTIVATIONS = ("topk", "topk_relu", "batch_topk", "jumprelu", "relu")


def top_k(x: Tensor, k: int) -> Tensor:
    found = x.topk(k)
    return torch.zeros_like(x).scatter(1, found.indices, found.values)


def cfg_json(folder: Path, **fields: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "cfg.json").write_text(json.dumps(fields))
    return folder


# ---- Seamark's own


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("more", [{}, {"normalize": "layer_norm", "eps": 1e-5, "subtract_b_dec": False}])
def test_own_format_keeps_everything(tmp_path: Path, activation: str, more: dict[str, Any]) -> None:
    stored = make(activation, model="m", hookpoint="layers.3", **more)
    assert formats.write(stored, tmp_path / "sae") == ()
    again = formats.read(tmp_path / "sae")
    assert (again.config, again.format, again.notes) == (stored.config, "seamark", ())
    assert {n: t.tolist() for n, t in again.tensors.items()} == {n: t.tolist() for n, t in stored.tensors.items()}
    assert_same_latents(SparseAutoencoder.from_pretrained(tmp_path / "sae"), inputs(), *dense(stored, inputs()))
    assert (tmp_path / "sae" / "sae.safetensors").stat().st_mode & 0o777 == 0o666 & ~_umask()


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current


def test_version_1_is_migrated(tmp_path: Path) -> None:
    stored = make("topk", normalize="layer_norm")
    formats.write(stored, tmp_path)
    old = {"d_in": D_IN, "d_sae": D_SAE, "k": K, "activation": "topk", "normalize": "layer_norm", "model": "",
           "hookpoint": "", "format_version": 1}  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(old))
    again = formats.read(tmp_path)
    assert again.config == stored.config
    assert again.config.eps == 1e-6


# ---- SAELens


def saelens(folder: Path, tensors: dict[str, Tensor], **fields: Any) -> Path:
    cfg_json(folder, **{"d_in": D_IN, "d_sae": D_SAE, "dtype": "float32", "device": "cpu", **fields})
    save_file({n: t.contiguous() for n, t in tensors.items()}, folder / "sae_weights.safetensors")
    return folder


def version_6(**fields: Any) -> dict[str, Any]:
    meta = {"sae_lens_version": "6.54.12", "model_name": "pythia-70m", "hook_name": "blocks.4.hook_mlp_out"}
    return {"apply_b_dec_to_input": True, "normalize_activations": "none", "metadata": meta, **fields}


def test_saelens_standard_and_layer_norm(tmp_path: Path) -> None:
    t, h = make("relu").tensors, inputs()
    z = ((h - t["b_dec"]) @ t["W_enc"] + t["b_enc"]).relu()
    plain = SparseAutoencoder.from_pretrained(saelens(tmp_path / "a", t, **version_6(architecture="standard")))
    assert_same_latents(plain, h, z, z @ t["W_dec"] + t["b_dec"])
    assert (plain.config.model, plain.config.hookpoint) == ("pythia-70m", "layers.4.mlp")
    x = (h - h.mean(1, keepdim=True)) / (h.std(1, keepdim=True) + 1e-5)
    fields = version_6(architecture="standard", normalize_activations="layer_norm", apply_b_dec_to_input=False)
    assert_same_latents(
        SparseAutoencoder.from_pretrained(saelens(tmp_path / "b", t, **fields)), h, (x @ t["W_enc"] + t["b_enc"]).relu()
    )


def test_saelens_topk_rescaled_by_decoder_norms(tmp_path: Path) -> None:
    t, h = make("topk_relu").tensors, inputs()
    norm = t["W_dec"].norm(dim=1)
    z = top_k(((h - t["b_dec"]) @ t["W_enc"] + t["b_enc"]) * norm, K).relu()
    path = saelens(tmp_path, t, **version_6(architecture="topk", k=K, rescale_acts_by_decoder_norm=True))
    sae = SparseAutoencoder.from_pretrained(path)
    assert_same_latents(sae, h, z, (z / norm) @ t["W_dec"] + t["b_dec"])
    assert torch.allclose(sae.W_dec.norm(dim=1), torch.ones(D_SAE))


def test_saelens_dead_decoder_rows_are_no_nan(tmp_path: Path) -> None:
    t = make("topk_relu").tensors
    t["W_dec"][3] = 0
    path = saelens(tmp_path, t, **version_6(architecture="topk", k=K, rescale_acts_by_decoder_norm=True))
    assert all(torch.isfinite(found).all() for found in formats.read(path).tensors.values())


@pytest.mark.parametrize(("training", "activation"), [(None, "jumprelu"), ("batchtopk", "batch_topk")])
def test_saelens_jumprelu(tmp_path: Path, training: str | None, activation: str) -> None:
    t, h = make("jumprelu").tensors, inputs()
    t["threshold"][:10] -= 2  # a ReLU comes first there, so these cut at 0
    pre = (h - t["b_dec"]) @ t["W_enc"] + t["b_enc"]
    fields = version_6(architecture="jumprelu")
    fields["metadata"] |= {"training_architecture": training, "training_architecture_details": {"k": 5.0}}
    sae = SparseAutoencoder.from_pretrained(saelens(tmp_path, t, **fields))
    assert_same_latents(sae, h, pre.relu() * (pre > t["threshold"]))
    assert sae.config.activation == activation
    assert sae.config.k == (5 if training else None)


def test_saelens_checkpoint_of_scaled_activations(tmp_path: Path) -> None:
    t, h = make("jumprelu").tensors, inputs()
    fields = version_6(architecture="batchtopk", k=5, normalize_activations="expected_average_only_in")
    fields["rescale_acts_by_decoder_norm"] = True
    one = {n: x for n, x in t.items() if n != "threshold"} | {"topk_threshold": torch.tensor(1.5, dtype=torch.double)}
    path = saelens(tmp_path, one, **fields)
    with pytest.raises(FormatError, match=r"no file says by how much.*activation_scaler\.json"):
        formats.read(path)
    (path / "activation_scaler.json").write_text('{"scaling_factor": 0.5}')
    norm = t["W_dec"].norm(dim=1)
    z = (((h * 0.5 - t["b_dec"]) @ t["W_enc"] + t["b_enc"]) * norm).relu()
    z = z * (z > 1.5)
    # SAELens folds the factor before the norms, so its latents are in units of the activations as they come.
    out = ((z / norm) @ t["W_dec"] + t["b_dec"]) / 0.5
    assert_same_latents(SparseAutoencoder.from_pretrained(path), h, z / 0.5, out)


def test_saelens_before_version_6(tmp_path: Path) -> None:
    t, h = make("jumprelu").tensors, inputs()
    pre = (h - t["b_dec"]) @ t["W_enc"] + t["b_enc"]
    flat = {"model_name": "gpt2-small", "hook_point": "blocks.8.hook_resid_pre", "normalize_activations": False}
    topk = flat | {"activation_fn_str": "topk", "activation_fn_kwargs": {"k": 7}}
    plain = {n: x for n, x in t.items() if n != "threshold"}
    found = SparseAutoencoder.from_pretrained(
        saelens(tmp_path / "a", plain | {"scaling_factor": torch.ones(D_SAE)}, **flat)
    )
    assert_same_latents(found, h, pre.relu())
    assert found.config.hookpoint == "layers.7"  # what goes into block 8
    assert_same_latents(
        SparseAutoencoder.from_pretrained(saelens(tmp_path / "b", plain, **topk)), h, top_k(pre, 7).relu()
    )
    old = plain | {"log_threshold": t["threshold"].log()}
    jump = SparseAutoencoder.from_pretrained(saelens(tmp_path / "c", old, **flat, architecture="jumprelu"))
    assert_same_latents(jump, h, pre * (pre > t["threshold"]))
    with pytest.raises(FormatError, match="scaling_factor is not supported"):
        formats.read(saelens(tmp_path / "d", plain | {"scaling_factor": torch.full((D_SAE,), 2.0)}, **flat))
    with pytest.raises(FormatError, match="standard with tanh-relu is not supported"):
        formats.read(saelens(tmp_path / "e", plain, **flat, activation_fn="tanh-relu"))


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"architecture": "gated"}, "gated is not supported: it has separate gates"),
        ({"architecture": "transcoder"}, "transcoder is not supported: it predicts"),
        ({"architecture": "temporal"}, "temporal"),
        ({"architecture": "standard", "normalize_activations": "constant_norm_rescale"}, "constant_norm_rescale"),
        ({"architecture": "topk"}, "topk_relu needs k"),
        ({"architecture": "standard", "d_sae": 99}, "the config says d_sae = 99, the weights 40"),
    ],
)
def test_saelens_refused(tmp_path: Path, fields: dict[str, Any], match: str) -> None:
    with pytest.raises(FormatError, match=match):
        formats.read(saelens(tmp_path, make("relu").tensors, **version_6(**fields)))


# ---- sparsify


def sparsify(folder: Path, tensors: dict[str, Tensor], **fields: Any) -> Path:
    cfg_json(
        folder, **{"activation": "topk", "expansion_factor": 32, "num_latents": D_SAE, "k": K, "d_in": D_IN, **fields}
    )
    theirs = {"encoder.weight": tensors["W_enc"].T, "encoder.bias": tensors["b_enc"]}
    theirs |= {"W_dec": tensors["W_dec"], "b_dec": tensors["b_dec"]}
    save_file({n: t.contiguous() for n, t in theirs.items()}, folder / "sae.safetensors")
    return folder


def test_sparsify(tmp_path: Path) -> None:
    t, h = make("topk_relu").tensors, inputs()
    z = top_k(((h - t["b_dec"]) @ t["W_enc"] + t["b_enc"]).relu(), K)
    (tmp_path / "config.json").write_text('{"model": "EleutherAI/pythia-160m"}')
    sae = SparseAutoencoder.from_pretrained(sparsify(tmp_path / "layers.10.mlp", t))
    assert_same_latents(sae, h, z, z @ t["W_dec"] + t["b_dec"])
    assert (sae.config.model, sae.config.hookpoint) == ("EleutherAI/pythia-160m", "layers.10.mlp")
    seeds = sparsify(tmp_path / "layers.2" / "seed1", t)
    assert formats.read(seeds).config.hookpoint == "layers.2"
    assert formats.read(sparsify(tmp_path / "h.0.ln_1", t)).config.hookpoint == "h.0.ln_1"  # not in Seamark's words
    assert formats.read(sparsify(tmp_path / "downloaded", t)).config.hookpoint == ""


def test_sparsify_width_from_expansion(tmp_path: Path) -> None:
    t = make("topk_relu", d_sae=48).tensors
    assert formats.read(sparsify(tmp_path, t, num_latents=0, expansion_factor=4)).config.d_sae == 48
    with pytest.raises(FormatError, match="d_sae = 36, the weights 48"):
        formats.read(sparsify(tmp_path, t, num_latents=0, expansion_factor=3))


@pytest.mark.parametrize(
    ("fields", "match"),
    [({"transcode": True}, "transcoder"), ({"skip_connection": True}, "skip connection"),
     ({"signed": True}, "signed"), ({"activation": "groupmax"}, "groupmax"), ({"d_in": "12"}, "no whole number")],
)  # fmt: skip
def test_sparsify_refused(tmp_path: Path, fields: dict[str, Any], match: str) -> None:
    with pytest.raises(FormatError, match=match):
        formats.read(sparsify(tmp_path, make("topk_relu").tensors, **fields))


# ---- Gemma Scope


def gemma(folder: Path, tensors: dict[str, Tensor]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(folder / "params.npz", **{n: t.numpy() for n, t in tensors.items()})
    return folder


def test_gemma_scope(tmp_path: Path) -> None:
    t, h = make("jumprelu").tensors, inputs()
    t["threshold"][:10] -= 2
    pre = h @ t["W_enc"] + t["b_enc"]
    z = (pre > t["threshold"]) * pre.relu()
    inner = Path("layer_20/width_16k/average_l0_71")
    sae = SparseAutoencoder.from_pretrained(gemma(tmp_path / "gemma-scope-2b-pt-res" / inner, t))
    assert_same_latents(sae, h, z, z @ t["W_dec"] + t["b_dec"])
    assert (sae.config.model, sae.config.hookpoint) == ("google/gemma-2-2b", "layers.20")
    mlp = formats.read(gemma(tmp_path / "gemma-scope-9b-it-mlp" / inner, t) / "params.npz")
    assert (mlp.config.model, mlp.config.hookpoint) == ("google/gemma-2-9b-it", "blocks.20.hook_mlp_out")
    assert "second norm" in mlp.notes[0]  # Seamark's layers.20.mlp would be another place
    assert formats.read(gemma(tmp_path / "x", t), hookpoint="layers.9").config.hookpoint == "layers.9"
    with pytest.raises(FormatError, match="transcoder"):
        formats.read(gemma(tmp_path / "gemma-scope-2b-pt-transcoders" / inner, t))


# ---- dictionary_learning


def dictionary(folder: Path, kind: str, state: dict[str, Tensor], **trainer: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(state, folder / "ae.pt")
    where = {"dict_class": kind, "layer": 8, "lm_name": "google/gemma-2-2b", "submodule_name": "resid_post_layer_8"}
    (folder / "config.json").write_text(json.dumps({"trainer": where | trainer, "buffer": {}}))
    return folder


def linear(t: dict[str, Tensor]) -> dict[str, Tensor]:
    return {"encoder.weight": t["W_enc"].T, "encoder.bias": t["b_enc"], "decoder.weight": t["W_dec"].T}


def test_dictionary_learning_relu(tmp_path: Path) -> None:
    t, h = make("relu").tensors, inputs()
    pre, norm = (h - t["b_dec"]) @ t["W_enc"] + t["b_enc"], t["W_dec"].norm(dim=1)
    plain = SparseAutoencoder.from_pretrained(
        dictionary(tmp_path / "a", "AutoEncoder", linear(t) | {"bias": t["b_dec"]})
    )
    # load_dictionary brings decoder columns to unit norm, so latents are in their units.
    assert_same_latents(plain, h, pre.relu() * norm, pre.relu() @ t["W_dec"] + t["b_dec"])
    assert (plain.config.model, plain.config.hookpoint) == ("google/gemma-2-2b", "layers.8")
    new = linear(t) | {"decoder.bias": t["b_dec"]}
    found = SparseAutoencoder.from_pretrained(dictionary(tmp_path / "b", "AutoEncoderNew", new))
    z = (h @ t["W_enc"] + t["b_enc"]).relu()
    assert_same_latents(found, h, z, z @ t["W_dec"] + t["b_dec"])


def test_dictionary_learning_topk_and_thresholds(tmp_path: Path) -> None:
    t, h = make("jumprelu").tensors, inputs()
    pre = (h - t["b_dec"]) @ t["W_enc"] + t["b_enc"]
    k = {"k": torch.tensor(K, dtype=torch.int), "threshold": torch.tensor(1.5)}
    state = linear(t) | {"b_dec": t["b_dec"]} | k
    found = SparseAutoencoder.from_pretrained(dictionary(tmp_path / "a", "AutoEncoderTopK", state, k=K))
    assert_same_latents(found, h, top_k(pre.relu(), K))
    batch = SparseAutoencoder.from_pretrained(dictionary(tmp_path / "b", "BatchTopKSAE", state, k=K))
    assert_same_latents(batch, h, pre.relu() * (pre.relu() > 1.5))
    assert (batch.config.activation, batch.config.k) == ("batch_topk", K)
    unset = state | {"threshold": torch.tensor(-1.0)}
    assert_same_latents(
        SparseAutoencoder.from_pretrained(dictionary(tmp_path / "c", "BatchTopKSAE", unset)), h, pre.relu()
    )
    jump = SparseAutoencoder.from_pretrained(dictionary(tmp_path / "d", "JumpReluAutoEncoder", t))
    raw = h @ t["W_enc"] + t["b_enc"]
    assert_same_latents(jump, h, (raw * (raw > t["threshold"])).relu())


def test_dictionary_learning_checkpoints_and_refusals(tmp_path: Path) -> None:
    t = make("relu").tensors
    folder = dictionary(tmp_path / "trainer_0", "AutoEncoder", linear(t) | {"bias": t["b_dec"]})
    (folder / "checkpoints").mkdir()
    torch.save(torch.load(folder / "ae.pt"), folder / "checkpoints" / "ae_100.pt")
    early = formats.read(folder / "checkpoints" / "ae_100.pt")
    assert (early.format, early.config.hookpoint) == ("dictionary-learning", "layers.8")
    with pytest.raises(FormatError, match="GatedAutoEncoder is not supported"):
        formats.read(dictionary(tmp_path / "gated", "GatedAutoEncoder", linear(t)))
    with pytest.raises(FormatError, match="does not name its class"):
        formats.read(dictionary(tmp_path / "none", "", linear(t)))
    backup = {"step": 5, "ae": linear(t), "optimizer": {}}
    with pytest.raises(FormatError, match="backup of unfinished training"):
        formats.read(dictionary(tmp_path / "backup", "AutoEncoder", backup))
    (folder / "config.json").unlink()
    with pytest.raises(FormatError, match=r"no autoencoder that Seamark knows: it holds encoder\.weight"):
        formats.read(folder / "ae.pt")


# ---- SAFER and Safe-SAIL


def test_safer(tmp_path: Path) -> None:
    t, h = make("topk", d_sae=8 * D_IN).tensors, inputs()
    state = linear(t) | {"pre_bias": t["b_dec"], "latent_bias": t["b_enc"]}
    del state["encoder.bias"]
    torch.save(state, tmp_path / "stage2.pt")
    x = (h - h.mean(-1, keepdim=True)) / (h.std(-1, keepdim=True) + 1e-6)
    z = top_k((x - t["b_dec"]) @ t["W_enc"] + t["b_enc"], 90)
    assert (z < 0).any()
    sae = SparseAutoencoder.from_pretrained(tmp_path / "stage2.pt", k=90, hookpoint="layers.11")
    assert_same_latents(
        sae, h, z, (z @ t["W_dec"] + t["b_dec"]) * (h.std(-1, keepdim=True) + 1e-6) + h.mean(-1, keepdim=True)
    )
    assert sae.config.hookpoint == "layers.11"
    with pytest.raises(ConfigError, match=r"how many latents it keeps.*Give k"):
        formats.read(tmp_path)


def safe_sail(t: dict[str, Tensor], copies: int = 1, **more: Tensor) -> dict[str, Tensor]:
    one = {
        "tied_bias": t["b_dec"], "pre_encoder_bias._bias_reference": t["b_dec"],
        "post_decoder_bias._bias_reference": t["b_dec"], "encoder.weight": t["W_enc"].T, "encoder.bias": t["b_enc"],
        "decoder.weight": t["W_dec"].T, **more,
    }  # fmt: skip
    return {name: torch.stack([x * (i + 1) for i in range(copies)]) for name, x in one.items()}


def test_safe_sail(tmp_path: Path) -> None:
    t, h = make("jumprelu").tensors, inputs()
    torch.save(safe_sail(t), tmp_path / "ckpt_layer17.pt")
    pre = (h - t["b_dec"]) @ t["W_enc"] + t["b_enc"]
    sae = SparseAutoencoder.from_pretrained(tmp_path / "ckpt_layer17.pt", k=30)
    z = top_k(pre, 30).relu()
    assert_same_latents(sae, h, z, z @ t["W_dec"] + t["b_dec"])
    assert (sae.config.activation, sae.config.hookpoint) == ("topk_relu", "layers.17.mlp")
    assert formats.read(tmp_path, activation="relu").config.activation == "relu"
    with pytest.raises(ConfigError, match=r"does not say how latents are selected.*200"):
        formats.read(tmp_path)
    with pytest.raises(ConfigError, match="no activation topk"):
        formats.read(tmp_path, activation="topk")


def test_safe_sail_jumprelu_components_and_output_bias(tmp_path: Path) -> None:
    t, h = make("jumprelu").tensors, inputs()
    t["threshold"][:10] -= 2  # no ReLU there: a negative threshold lets negative values pass
    theta = {"encoder.theta": t["threshold"]}
    torch.save(safe_sail(t, 2, **theta), tmp_path / "two.pt")
    with pytest.raises(ConfigError, match=r"2 autoencoders.*component"):
        formats.read(tmp_path / "two.pt")
    with pytest.raises(ConfigError, match="component 2 is not among"):
        formats.read(tmp_path / "two.pt", component=2)
    second = formats.read(tmp_path / "two.pt", component=1)
    torch.testing.assert_close(second.tensors["b_enc"], 2 * t["b_enc"])
    assert formats.read(tmp_path / "two.pt", component=1, k=9).config.activation == "topk_relu"

    state = safe_sail(t, **theta)
    state["post_decoder_bias._bias_reference"] = t["b_dec"][None] * 3 + 1
    torch.save(state, tmp_path / "own.pt")
    pre = (h - t["b_dec"]) @ t["W_enc"] + t["b_enc"]
    z = pre * (pre > t["threshold"])
    assert (z < 0).any()
    sae = SparseAutoencoder.from_pretrained(tmp_path / "own.pt")
    assert_same_latents(sae, h, z, z @ t["W_dec"] + 3 * t["b_dec"] + 1)
    del state["decoder.weight"]
    torch.save(state, tmp_path / "half.pt")
    with pytest.raises(FormatError, match=r"no decoder\.weight, only an encoder"):
        formats.read(tmp_path / "half.pt")


def test_arguments_that_contradict_the_file(tmp_path: Path) -> None:
    formats.write(make("topk", hookpoint="layers.3"), tmp_path)
    assert formats.read(tmp_path, k=K, hookpoint="layers.3").config.k == K
    with pytest.raises(ConfigError, match="k is 5 in the file, not 6"):
        formats.read(tmp_path, k=6)
    with pytest.raises(ConfigError, match="activation is topk in the file, not relu"):
        formats.read(tmp_path, activation="relu")
    with pytest.raises(FormatError, match=r"of layers\.3, not of layers\.4"):
        formats.read(tmp_path, hookpoint="layers.4")


# ---- writing


@pytest.mark.parametrize(("to", "config", "match"), [
    ("saelens", {"activation": "topk"}, "negative latents to 0"),
    ("saelens", {"activation": "relu", "normalize": "layer_norm", "eps": 1e-6}, "eps 1e-05, .* with 1e-06"),
    ("sparsify", {"activation": "topk"}, "no activation like topk, only topk_relu.*approximate"),
    ("sparsify", {"activation": "relu"}, "no activation like relu"),
    ("sparsify", {"activation": "jumprelu"}, "no activation like jumprelu"),
    ("sparsify", {"activation": "batch_topk"}, "no activation like batch_topk"),
    ("sparsify", {"activation": "topk_relu", "normalize": "layer_norm"}, "no input normalisation like layer_norm"),
])  # fmt: skip
def test_what_a_format_cannot_say_is_refused(tmp_path: Path, to: str, config: dict[str, Any], match: str) -> None:
    with pytest.raises(FormatError, match=match):
        formats.write(make(**config), tmp_path / "out", to)
    assert not (tmp_path / "out").exists()


def test_negative_thresholds_are_no_saelens(tmp_path: Path) -> None:
    stored = make("jumprelu")
    stored.tensors["threshold"][0] = -1
    with pytest.raises(FormatError, match="thresholds are negative"):
        formats.write(stored, tmp_path, "saelens", approximate=True)


def test_approximate_says_what_changed(tmp_path: Path) -> None:
    stored = make("topk", k=30, normalize="layer_norm")
    notes = formats.write(stored, tmp_path / "a", "saelens", approximate=True)
    assert len(notes) == 3
    found, h = SparseAutoencoder.from_pretrained(tmp_path / "a"), inputs()[1::4]
    torch.testing.assert_close(found.encode(h).dense(), dense(stored, h)[0].relu(), rtol=1e-4, atol=1e-4)
    assert len(formats.write(make("topk", k=30), tmp_path / "b", "sparsify", approximate=True)) == 1
    with pytest.raises(FormatError, match="layer_norm"):
        formats.write(stored, tmp_path / "c", "sparsify", approximate=True)


@pytest.mark.parametrize(("to", "config"), [
    ("saelens", {"activation": "batch_topk"}), ("saelens", {"activation": "jumprelu", "subtract_b_dec": False}),
    ("saelens", {"activation": "topk_relu", "normalize": "layer_norm", "eps": 1e-5}),
    ("saelens", {"activation": "relu"}),
    ("sparsify", {"activation": "topk_relu"}), ("sparsify", {"activation": "topk_relu", "subtract_b_dec": False}),
])  # fmt: skip
def test_there_and_back(tmp_path: Path, to: str, config: dict[str, Any]) -> None:
    stored = make(**config, model="m", hookpoint="layers.3.attn")
    folder = tmp_path / "layers.9"  # a name is only a hint
    notes = formats.write(stored, folder, to)
    assert [("std" in note) for note in notes] == [True] * (config.get("normalize") == "layer_norm")
    again = formats.read(folder)
    assert again.format == to == formats.detect(folder)
    assert (again.config.model, again.config.hookpoint) == ("m", "layers.3.attn")
    assert again.config.activation == stored.config.activation
    assert again.config.k == stored.config.k
    assert_same_latents(SparseAutoencoder.from_pretrained(folder), inputs(), *dense(stored, inputs()))
    weights = load_file(folder / ("sae.safetensors" if to == "sparsify" else "sae_weights.safetensors"))
    assert weights["W_dec"].shape == (D_SAE, D_IN)


def test_names_and_what_can_be_written(tmp_path: Path) -> None:
    assert set(formats.names(writable=True)) == {"seamark", "saelens", "sparsify"}
    assert set(formats.names()) == {
        "seamark", "saelens", "sparsify", "gemma-scope", "dictionary-learning", "safer", "safe-sail"
    }  # fmt: skip
    with pytest.raises(ConfigError, match=r"cannot be written as safer.*Choose saelens, sparsify, seamark"):
        formats.write(make(), tmp_path, "safer")


def test_two_formats_do_not_share_a_folder(tmp_path: Path) -> None:
    formats.write(make(), tmp_path, "sparsify")
    with pytest.raises(ConfigError, match="already holds an autoencoder of sparsify"):
        formats.write(make(), tmp_path, "seamark")
    formats.write(make(seed=1), tmp_path, "sparsify")
    torch.testing.assert_close(formats.read(tmp_path).tensors["W_dec"], make(seed=1).tensors["W_dec"])


@pytest.mark.parametrize(
    ("lens", "model", "ours"),
    [
        ("blocks.11.hook_resid_post", "", "layers.11"),
        ("blocks.11.hook_resid_pre", "", "layers.10"),
        ("blocks.0.hook_resid_pre", "", "blocks.0.hook_resid_pre"),
        ("blocks.17.hook_mlp_out", "gpt2-small", "layers.17.mlp"),
        ("blocks.17.hook_mlp_out", "gemma-2-2b", "blocks.17.hook_mlp_out"),
        ("blocks.17.hook_attn_out", "google/gemma-3-1b-pt", "blocks.17.hook_attn_out"),
        ("blocks.17.hook_attn_out", "gemma-2b", "layers.17.attn"),
        ("blocks.3.attn.hook_z", "", "blocks.3.attn.hook_z"),
        ("model.layers.30", "", "layers.30"),
    ],
)
def test_transformer_lens_names(lens: str, model: str, ours: str) -> None:
    assert from_lens(lens, model) == ours


def test_names_of_modules_and_folders() -> None:
    named = {
        "layers.3": "layers.3", "model.layers.3": "layers.3", "transformer.h.3.mlp": "layers.3.mlp",
        "layers.3.mlp.down_proj": "layers.3.mlp", "gpt_neox.layers.3.attention": "layers.3.attn",
        "model.layers.3.self_attn": "layers.3.attn", "encoder.layer.3": "layers.3",
        "encoder.layer.3.attention": "encoder.layer.3.attention", "layers.3.mlp.act": "layers.3.mlp.act",
        "vision_tower.layers.3": "vision_tower.layers.3", "embed_tokens": "embed_tokens",
    }  # fmt: skip
    assert {name: from_module(name) for name in named} == named
    folders = {"layer_20": "layers.20", "ckpt_layer17.pt": "layers.17", "resid_post_layer_8": "layers.8",
               "width_16k": "", "blocks.4.hook_mlp_out": "layers.4.mlp"}  # fmt: skip
    assert {name: from_folder(name) for name in folders} == folders
    assert to_lens("layers.3", "") == "blocks.3.hook_resid_post"
    assert to_lens("layers.3.mlp", "gpt2") == "blocks.3.hook_mlp_out"
    assert to_lens("layers.3.mlp", "google/gemma-2-2b") == "layers.3.mlp"
    assert to_lens("somewhere", "") == "somewhere"
