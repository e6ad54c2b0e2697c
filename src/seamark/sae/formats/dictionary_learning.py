"""dictionary_learning (saprmarks/dictionary_learning 0.1): a trainer's folder with `ae.pt` and `config.json`.

The config's trainer.dict_class names the class. encoder.weight [n, d], encoder.bias, decoder.weight [d, n] and bias or
b_dec; or W_enc [d, n], W_dec [n, d], b_enc, b_dec. Opened as its own `load_dictionary` does.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from seamark.errors import FormatError
from seamark.sae.formats.files import read_json, read_torch
from seamark.sae.formats.hooks import from_folder, from_module
from seamark.sae.formats.stored import Format, Source, Stored, build, fold_decoder_norms, no_negative_values

CONFIG, WEIGHTS = "config.json", "ae.pt"
_ACTIVATIONS = {
    "AutoEncoder": "relu",
    "AutoEncoderNew": "relu",
    "AutoEncoderTopK": "topk_relu",  # keeps a threshold too, which its encode does not use
    "BatchTopKSAE": "batch_topk",
    "MatryoshkaBatchTopKSAE": "batch_topk",
    "JumpReluAutoEncoder": "jumprelu",
}
_NAMES = {
    "encoder.weight": "W_enc",
    "decoder.weight": "W_dec",
    "encoder.bias": "b_enc",
    "decoder.bias": "b_dec",
    "bias": "b_dec",
} | {name: name for name in ("W_enc", "W_dec", "b_enc", "b_dec", "threshold")}
_INPUT_AS_IT_IS = ("AutoEncoderNew", "JumpReluAutoEncoder")


def config_near(weights: Path) -> Path | None:
    """The config of a weights file: beside it, or one folder up (`checkpoints/ae_1000.pt`)."""
    return next((p for p in (weights.parent / CONFIG, weights.parent.parent / CONFIG) if p.is_file()), None)


def read(source: Source) -> Stored:
    path = source.path / WEIGHTS if source.path.is_dir() else source.path
    config_path = config_near(path)
    if config_path is None:
        raise FormatError(f"{CONFIG} is missing", where=str(path.parent), fix="Fetch the trainer's whole folder")
    config = read_json(config_path)
    trainer = config["trainer"] if isinstance(config.get("trainer"), dict) else {}
    kind = str(trainer.get("dict_class") or "")
    if kind not in _ACTIVATIONS:
        what = f"{kind} is not supported" if kind else "it does not name its class (trainer.dict_class)"
        raise FormatError(what, where=str(config_path), fix=f"Supported are {', '.join(_ACTIVATIONS)}")
    state = read_torch(path)
    if isinstance(state.get("ae"), dict):
        raise FormatError("a backup of unfinished training, not its result", where=str(path), fix="Finish training")
    k = int(state["k"]) if isinstance(state.get("k"), Tensor) and state["k"].numel() == 1 else trainer.get("k")
    hookpoint, notes = _hookpoint(trainer)
    stored = build(
        source,
        "dictionary-learning",
        _tensors(state),
        notes=notes,
        activation=_ACTIVATIONS[kind],
        k=k if _ACTIVATIONS[kind] in ("topk_relu", "batch_topk") else None,
        normalize="none",
        subtract_b_dec=kind not in _INPUT_AS_IT_IS,
        model=str(trainer.get("lm_name") or ""),
        hookpoint=hookpoint,
    )
    return _normalized(stored) if kind == "AutoEncoder" else stored


def _tensors(state: dict[str, Any]) -> dict[str, Tensor]:
    """The tensors by their names here; those of torch's linear layers are transposed."""
    tensors: dict[str, Tensor] = {}
    for theirs, ours in _NAMES.items():
        value = state.get(theirs)
        if isinstance(value, Tensor):
            tensors[ours] = value.T if theirs.endswith(".weight") and value.ndim == 2 else value
    threshold, b_enc = tensors.get("threshold"), tensors.get("b_enc")
    if threshold is not None and b_enc is not None:
        # One for all, or one a latent. A negative one was never set: then only the ReLU cuts.
        threshold = no_negative_values(threshold.float())
        tensors["threshold"] = threshold.expand(b_enc.numel()) if threshold.ndim == 0 else threshold
    return tensors


def _normalized(stored: Stored) -> Stored:
    """An AutoEncoder as `load_dictionary` opens it: decoder rows of unit norm, latents in its units."""
    norms = stored.tensors["W_dec"].norm(dim=1)
    return stored if torch.allclose(norms, torch.ones_like(norms)) else fold_decoder_norms(stored)


def _hookpoint(trainer: dict[str, Any]) -> tuple[str, list[str]]:
    submodule = trainer.get("submodule_name")
    if submodule:
        return from_folder(str(submodule)) or from_module(str(submodule)), []
    return "", [f"The config names layer {trainer.get('layer')}, but not which part of it was read"]


FORMAT = Format("dictionary-learning", "dictionary_learning (ae.pt, config.json)", (WEIGHTS, CONFIG), read)
