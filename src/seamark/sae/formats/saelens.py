"""SAELens: a folder with `cfg.json` and `sae_weights.safetensors`.

W_enc [d, n], W_dec [n, d], b_enc, b_dec, and threshold for JumpReLU.
Written as version 6 reads it. Read: what version 6 saves for inference, the checkpoints of its trainer, and the flat
configs of versions before 6.
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from seamark.errors import FormatError
from seamark.run import write_json
from seamark.sae.config import EPS
from seamark.sae.formats.files import read_json, read_safetensors, save_tensors
from seamark.sae.formats.hooks import from_lens, to_lens
from seamark.sae.formats.stored import Format, Source, Stored, build, fold_decoder_norms, no_negative_values

CONFIG, WEIGHTS, SCALER = "cfg.json", "sae_weights.safetensors", "activation_scaler.json"
VERSION = "6.0.0"
LAYER_NORM_EPS = 1e-5
_ACTIVATIONS = {
    "standard": "relu",
    "topk": "topk_relu",
    "jumprelu": "jumprelu",
    "batchtopk": "batch_topk",  # trainer's checkpoints; for inference it is saved as jumprelu
    "matryoshka_batchtopk": "batch_topk",
}
_SCALED_BACK = "Seamark scales reconstructions back by std + 1e-5, SAELens by std alone"
_WHY_NOT = {
    "gated": "it has separate gates",
    "abstopk": "it selects latents by magnitude",
    "matching_pursuit": "it encodes in many steps",
    "temporal": "it encodes a position by those before it",
    "constant_norm_rescale": "it scales each position to a constant norm",
    "covariance_whitening": "it whitens activations",
}


def read(source: Source) -> Stored:
    where = str(source.path / CONFIG)
    cfg = _as_version_6(read_json(source.path / CONFIG))
    architecture, metadata = str(cfg.get("architecture")), cfg["metadata"]
    if architecture not in _ACTIVATIONS:
        why = "it predicts one place from another" if "transcoder" in architecture else _WHY_NOT.get(architecture, "")
        raise _refused(f"architecture {architecture}", why, where)
    activation, k, notes = _activation(architecture, cfg, metadata)
    normalize = str(cfg.get("normalize_activations") or "none")
    if normalize not in ("none", "layer_norm", "expected_average_only_in"):
        raise _refused(f"normalize_activations {normalize}", _WHY_NOT.get(normalize, ""), where)
    if normalize == "layer_norm":
        notes.append(_SCALED_BACK)
    model, hook = str(metadata.get("model_name") or ""), str(metadata.get("hook_name") or "")
    if metadata.get("hook_head_index") is not None:
        hook = f"{hook}.{metadata['hook_head_index']}"
    if metadata.get("model_from_pretrained_kwargs"):
        notes.append(f"Its activations come from a model loaded with {metadata['model_from_pretrained_kwargs']}")
    stored = build(
        source,
        "saelens",
        _tensors(source.path, where),
        notes=notes,
        d_in=cfg.get("d_in"),
        d_sae=cfg.get("d_sae"),
        activation=activation,
        k=k,
        normalize="layer_norm" if normalize == "layer_norm" else "none",
        eps=LAYER_NORM_EPS if normalize == "layer_norm" else EPS,
        subtract_b_dec=bool(cfg.get("apply_b_dec_to_input", True)),
        model=model,
        hookpoint=from_lens(hook, model),
    )
    rescaled = bool(cfg.get("rescale_acts_by_decoder_norm"))
    if normalize == "expected_average_only_in":
        stored = _scaled(stored, source.path, rescaled)
    return fold_decoder_norms(stored) if rescaled else stored


def _refused(what: str, why: str, where: str) -> FormatError:
    return FormatError(f"{what} is not supported" + (f": {why}" if why else ""), where=where)


def _as_version_6(cfg: dict[str, Any]) -> dict[str, Any]:
    """Configs of SAELens 3 to 5 were flat, and TopK an activation of the standard architecture."""
    metadata = cfg.get("metadata")
    if isinstance(metadata, dict):
        return cfg
    new = {"architecture": "standard", **cfg}
    new["metadata"] = {
        "model_name": cfg.get("model_name"),
        "hook_name": cfg.get("hook_name", cfg.get("hook_point")),
        "hook_head_index": cfg.get("hook_head_index", cfg.get("hook_point_head_index")),
    }
    chosen = cfg.get("activation_fn", cfg.get("activation_fn_str", "relu"))
    if new["architecture"] == "standard" and chosen != "relu":
        new["architecture"] = chosen if chosen == "topk" else f"standard with {chosen}"
    new["k"] = _dict(cfg.get("activation_fn_kwargs")).get("k", cfg.get("k"))
    if isinstance(cfg.get("normalize_activations"), bool):
        new["normalize_activations"] = "expected_average_only_in" if cfg["normalize_activations"] else "none"
    return new


def _dict(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _activation(architecture: str, cfg: dict[str, Any], metadata: dict[str, Any]) -> tuple[str, Any, list[str]]:
    activation, k = _ACTIVATIONS[architecture], cfg.get("k")
    if architecture == "jumprelu" and metadata.get("training_architecture") == "batchtopk":
        activation, k = "batch_topk", _dict(metadata.get("training_architecture_details")).get("k")
    if activation != "batch_topk":
        return activation, k if activation == "topk_relu" else None, []
    if isinstance(k, int | float) and float(k).is_integer():
        return activation, int(k), []
    return "jumprelu", None, [f"Trained as BatchTopK with k = {k}; opened as JumpReLU, which encodes the same"]


def _tensors(folder: Path, where: str) -> dict[str, Tensor]:
    tensors = read_safetensors(folder / WEIGHTS)
    factor = tensors.pop("scaling_factor", None)
    if factor is not None and not torch.allclose(factor.float(), torch.ones_like(factor.float())):
        raise _refused("scaling_factor", "latents are scaled again before decoding", where)
    if "log_threshold" in tensors:
        tensors["threshold"] = tensors.pop("log_threshold").float().exp()
    one = tensors.get("topk_threshold")
    if one is not None and one.numel() == 1 and "b_enc" in tensors:
        tensors["threshold"] = one.float().reshape(1).expand(len(tensors["b_enc"]))
    if "threshold" in tensors:
        tensors["threshold"] = no_negative_values(tensors["threshold"])
    return tensors


def _scaled(stored: Stored, folder: Path, rescaled: bool) -> Stored:
    """Fold the factor that activations were multiplied with in training, which checkpoints keep in a file beside."""
    factor = read_json(folder / SCALER).get("scaling_factor") if (folder / SCALER).is_file() else None
    if not isinstance(factor, int | float) or not 0 < factor < math.inf:
        raise FormatError(
            "activations are to be scaled (expected_average_only_in), but no file says by how much",
            where=str(folder),
            fix=f"Put {SCALER} beside it, or save it again with SAELens, which then folds the factor into the weights",
        )
    tensors = stored.tensors
    folded = {
        "W_enc": tensors["W_enc"] * factor,
        "W_dec": tensors["W_dec"] / factor,
        "b_dec": tensors["b_dec"] / factor,
    }
    if rescaled and "threshold" in tensors:  # it is in units of the decoder's norms, which have just changed
        folded["threshold"] = tensors["threshold"] / factor
    return replace(stored, tensors=tensors | folded)


def write(stored: Stored, folder: Path, approximate: bool) -> tuple[str, ...]:
    config, tensors, where = stored.config, stored.tensors, str(folder)
    notes = _differences(stored, where)
    if notes and not approximate:
        raise FormatError(notes[0], where=where, fix="With approximate=True it is written all the same")
    architecture = {"relu": "standard", "topk": "topk", "topk_relu": "topk"}.get(config.activation, "jumprelu")
    training = {"training_architecture": "batchtopk", "training_architecture_details": {"k": config.k}}
    cfg = {
        "architecture": architecture,
        "d_in": config.d_in,
        "d_sae": config.d_sae,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": config.subtract_b_dec,
        "normalize_activations": config.normalize,
        "reshape_activations": "none",
        "metadata": {
            "sae_lens_version": VERSION,  # SAELens takes a config without it for one of before 6
            "model_name": config.model or None,
            "hook_name": to_lens(config.hookpoint, config.model) or None,
            **(training if config.activation == "batch_topk" else {}),
        },
        **({"k": config.k, "rescale_acts_by_decoder_norm": False} if architecture == "topk" else {}),
    }
    save_tensors(folder / WEIGHTS, tensors)
    write_json(folder / CONFIG, cfg)
    return (*notes, _SCALED_BACK) if config.normalize == "layer_norm" else tuple(notes)


def _differences(stored: Stored, where: str) -> list[str]:
    """What SAELens would do otherwise, and approximate would put up with."""
    config, notes = stored.config, []
    if config.has_threshold and bool((stored.tensors["threshold"] < 0).any()):
        raise FormatError("some thresholds are negative, where SAELens cuts latents at 0", where=where)
    if config.activation == "topk":
        notes.append("SAELens sets negative latents to 0, which this autoencoder keeps")
    if config.normalize == "layer_norm" and config.eps != LAYER_NORM_EPS:
        notes.append(f"SAELens normalises with eps {LAYER_NORM_EPS:g}, this autoencoder with {config.eps:g}")
    return notes


FORMAT = Format(
    "saelens", "SAELens 6 (cfg.json, sae_weights.safetensors)", (CONFIG, WEIGHTS), read, write, extras=(SCALER,)
)
