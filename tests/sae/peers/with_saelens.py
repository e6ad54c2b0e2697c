"""Run by SAELens' own Python: `make FOLDER` saves autoencoders of every kind with what they compute for given inputs;
`open FOLDER` opens those that are there."""

import json
import sys
from pathlib import Path

import sae_lens
import torch
from sae_lens import SAE
from sae_lens.saes.sae import SAEMetadata
from safetensors.torch import load_file, save_file

WHERE = {"model_name": "gpt2-small", "hook_name": "blocks.7.hook_resid_post"}
SHAPE = {"d_in": 12, "d_sae": 40}


def build(kind, **config):
    """An autoencoder of a class, every tensor random."""
    cfg = getattr(sae_lens, kind + "Config")(**SHAPE, metadata=SAEMetadata(**WHERE), **config)
    sae = getattr(sae_lens, kind)(cfg)
    g = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, p in sorted(sae.named_parameters()):
            p.copy_(torch.rand(p.shape, generator=g) * 3 if "threshold" in name else torch.randn(p.shape, generator=g))
        sae.W_dec *= torch.rand(len(sae.W_dec), 1, generator=g) + 0.2
        if hasattr(sae, "topk_threshold"):
            sae.topk_threshold.fill_(2.5)
    return sae


def compute(sae, h):
    """Latents and reconstruction; in float32, whatever the file holds."""
    with torch.no_grad():
        latents = sae.encode(h).to_dense()
        return {"latents": latents.float().contiguous(), "out": sae.decode(latents).float().contiguous()}


def reopen(path):
    return SAE.load_from_disk(path, dtype="float32")


def make(root, h):
    inference = {
        "standard": build("StandardSAE"),
        "standard_raw_input": build("StandardSAE", apply_b_dec_to_input=False),
        "standard_layer_norm": build("StandardSAE", normalize_activations="layer_norm"),
        "standard_bf16": build("StandardSAE", dtype="bfloat16"),
        "topk": build("TopKSAE", k=5),
        "topk_wide": build("TopKSAE", k=30),  # negative ones among the k
        "topk_raw_input": build("TopKSAE", k=5, apply_b_dec_to_input=False),
        "topk_rescaled": build("TopKSAE", k=5, rescale_acts_by_decoder_norm=True),
        "topk_layer_norm": build("TopKSAE", k=5, normalize_activations="layer_norm"),
        "jumprelu": build("JumpReLUSAE"),
        "jumprelu_raw_input": build("JumpReLUSAE", apply_b_dec_to_input=False),
        "jumprelu_negative_threshold": build("JumpReLUSAE"),
    }
    with torch.no_grad():
        inference["jumprelu_negative_threshold"].threshold -= 2
    for name, sae in inference.items():
        sae.save_model(root / name)
        save_file(compute(reopen(root / name), h), root / "computed" / f"{name}.safetensors")
    trained = {
        "trained_standard": build("StandardTrainingSAE"),
        "trained_topk": build("TopKTrainingSAE", k=5),  # rescales by the decoder's norms unless told not to
        "trained_topk_plain": build("TopKTrainingSAE", k=5, rescale_acts_by_decoder_norm=False),
        "trained_batchtopk": build("BatchTopKTrainingSAE", k=5),
        "trained_batchtopk_fraction": build("BatchTopKTrainingSAE", k=4.5),
        "trained_batchtopk_plain": build("BatchTopKTrainingSAE", k=5, rescale_acts_by_decoder_norm=False),
        "trained_matryoshka": build("MatryoshkaBatchTopKTrainingSAE", k=5, matryoshka_widths=[10, 20, 40]),
        "trained_jumprelu": build("JumpReLUTrainingSAE"),
    }
    for name, sae in trained.items():
        checkpoint(sae, root / name.replace("trained", "checkpoint"))
        sae.save_inference_model(root / name)
        save_file(compute(reopen(root / name), h), root / "computed" / f"{name}.safetensors")
        same = name.replace("trained", "checkpoint")
        save_file(compute(reopen(root / name), h), root / "computed" / f"{same}.safetensors")
    scaled(root, h)
    for kind, config in REFUSED.items():
        name, _, option = kind.partition(":")
        sae = build(name, **config)
        sae.save_model(root / "refused" / (option or name))


def checkpoint(sae, path):
    """As SAELens' trainer saves on the way."""
    sae.save_model(path)


def scaled(root, h):
    """Checkpoints before the factor of expected_average_only_in is folded, with what they are once it is."""
    for name, kind, config in [
        ("scaled_standard", "StandardTrainingSAE", {}),
        ("scaled_topk", "TopKTrainingSAE", {"k": 5}),
        ("scaled_batchtopk", "BatchTopKTrainingSAE", {"k": 5}),
        ("scaled_batchtopk_plain", "BatchTopKTrainingSAE", {"k": 5, "rescale_acts_by_decoder_norm": False}),
        ("scaled_jumprelu", "JumpReLUTrainingSAE", {}),
    ]:
        sae = build(kind, normalize_activations="expected_average_only_in", **config)
        checkpoint(sae, root / name)
        (root / name / "activation_scaler.json").write_text(json.dumps({"scaling_factor": 0.7, "has_whitening": False}))
        sae.fold_activation_norm_scaling_factor(0.7)
        sae.save_inference_model(root / "folded" / name)
        save_file(compute(reopen(root / "folded" / name), h), root / "computed" / f"{name}.safetensors")


REFUSED = {
    "GatedSAE": {},
    "AbsTopKSAE": {"k": 5},
    "MatchingPursuitSAE": {},
    "Transcoder": {"d_out": 12, "apply_b_dec_to_input": False},
    "SkipTranscoder": {"d_out": 12, "apply_b_dec_to_input": False},
    "JumpReLUTranscoder": {"d_out": 12, "apply_b_dec_to_input": False},
    "StandardSAE:constant_norm_rescale": {"normalize_activations": "constant_norm_rescale"},
    "StandardSAE:covariance_whitening": {"normalize_activations": "covariance_whitening"},
    "StandardSAE:expected_average_only_in": {"normalize_activations": "expected_average_only_in"},
}


def open_all(root, h):
    for path in sorted(root.glob("*/cfg.json")):
        sae = reopen(path.parent)
        found = compute(sae, h)
        (root / "computed" / f"{path.parent.name}.json").write_text(json.dumps(sae.cfg.to_dict()))
        save_file(found, root / "computed" / f"{path.parent.name}.safetensors")


if __name__ == "__main__":
    task, folder = sys.argv[1], Path(sys.argv[2])
    (folder / "computed").mkdir(exist_ok=True)
    {"make": make, "open": open_all}[task](folder, load_file(folder / "inputs.safetensors")["h"])
