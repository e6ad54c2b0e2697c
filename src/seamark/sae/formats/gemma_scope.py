"""Gemma Scope (arXiv 2408.05147): `layer_20/width_16k/average_l0_71/params.npz`, JumpReLU.

W_enc [d, n], W_dec [n, d], b_enc, b_dec, threshold [n]; z = relu(p)·1[p > threshold] with p = x W_enc + b_enc.
Model and place stand in the repository's name only: google/gemma-scope-2b-pt-res.
"""

from __future__ import annotations

import re

from seamark.errors import FormatError
from seamark.sae.formats.files import read_npz
from seamark.sae.formats.stored import Format, Source, Stored, build, no_negative_values

WEIGHTS = "params.npz"
_REPOSITORY = re.compile(r"gemma-scope-(2b|9b|27b)-(pt|it)-(res|mlp|att)\b")
_LAYER = re.compile(r"layer_(\d+)\b")


def read(source: Source) -> Stored:
    path = source.path / WEIGHTS if source.path.is_dir() else source.path
    if "transcoder" in source.name:
        raise FormatError("this is a transcoder: it predicts an MLP's output from its input", where=str(path))
    # Transcoders and some releases write w_enc.
    tensors = {re.sub("^w_", "W_", name): tensor for name, tensor in read_npz(path).items()}
    threshold = tensors.get("threshold")
    model, hookpoint, notes = _place(source.name)
    return build(
        source,
        "gemma-scope",
        tensors | ({} if threshold is None else {"threshold": no_negative_values(threshold)}),
        notes=notes,
        activation="jumprelu",
        normalize="none",
        subtract_b_dec=False,
        model=model,
        hookpoint=hookpoint,
    )


def _place(name: str) -> tuple[str, str, list[str]]:
    """Model, hookpoint and notes, from an address."""
    repository, layer = _REPOSITORY.search(name), _LAYER.search(name)
    if repository is None:
        return "", "", ["The file does not say which model and hookpoint it belongs to, and nor does its address"]
    size, tuned, kind = repository.groups()
    model = f"google/gemma-2-{size}" + ("-it" if tuned == "it" else "")
    if layer is None:
        return model, "", ["Its address names no layer"]
    if kind == "res":
        return model, f"layers.{int(layer[1])}", []
    hook = "hook_mlp_out" if kind == "mlp" else "attn.hook_z"
    what = "the MLP's output after Gemma's second norm" if kind == "mlp" else "the heads' outputs before they are mixed"
    return model, f"blocks.{int(layer[1])}.{hook}", [f"It reads {what}, for which Seamark has no hookpoint"]


FORMAT = Format("gemma-scope", "Gemma Scope (params.npz)", (WEIGHTS,), read)
