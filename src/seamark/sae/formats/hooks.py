"""Names of hookpoints: what other tools call the places where activations are read, in Seamark's grammar and back."""

from __future__ import annotations

import re

GRAMMAR = re.compile(r"layers\.(?:0|[1-9]\d{0,5})(?:\.(?:attn|mlp))?")
_LENS = re.compile(r"blocks\.(\d+)\.hook_(resid_post|resid_pre|mlp_out|attn_out)")
_MODULE = re.compile(
    r"(?:(?:model|transformer|gpt_neox|language_model|encoder|base_model|backbone)\.)*(layers|h|layer)\.(\d+)(?:\.(.+))?"
)
_FOLDER = re.compile(r"(?:ckpt_|resid_post_|resid_post_layer_)?layer_?(\d+)")
_MLP = ("mlp", "mlp.down_proj", "mlp.c_proj", "mlp.dense_4h_to_h")
_ATTN = ("attn", "attn.c_proj", "self_attn", "self_attn.o_proj", "attention", "attention.dense")
# These normalise what attention and MLP put out before it is added; TransformerLens reads after that, Seamark before.
_NORM_AFTER = re.compile(r"gemma-?v?[23](?!b)")


def from_lens(name: str, model: str) -> str:
    """A TransformerLens hook such as `blocks.11.hook_resid_post` as `layers.11`; what has no equal stays as it is."""
    match = _LENS.fullmatch(name)
    if match is None:
        return from_module(name)
    layer, kind = int(match[1]), match[2]
    if kind == "resid_post":
        return f"layers.{layer}"
    if kind == "resid_pre":  # what goes into a block is what the one before it put out
        return f"layers.{layer - 1}" if layer else name
    return name if _NORM_AFTER.search(model.lower()) else f"layers.{layer}.{kind.removesuffix('_out')}"


def to_lens(hookpoint: str, model: str) -> str:
    """`layers.11` as `blocks.11.hook_resid_post`, and so on; other names stay as they are."""
    if GRAMMAR.fullmatch(hookpoint) is None:
        return hookpoint
    _, layer, *part = hookpoint.split(".")
    if not part:
        return f"blocks.{layer}.hook_resid_post"
    return hookpoint if _NORM_AFTER.search(model.lower()) else f"blocks.{layer}.hook_{part[0]}_out"


def from_module(name: str) -> str:
    """A module of a Hugging Face model, such as `model.layers.10.mlp`, as `layers.10.mlp`; else as it is."""
    match = _MODULE.fullmatch(name)
    if match is None:
        return name
    kind, layer, part = match[1], int(match[2]), match[3]
    if part is None:
        return f"layers.{layer}"
    if kind == "layer":  # BERT and its like: modules by these names end after the residual sum
        return name
    return f"layers.{layer}.mlp" if part in _MLP else f"layers.{layer}.attn" if part in _ATTN else name


def from_folder(name: str) -> str:
    """A folder or file named for its layer (`layers.3`, `layer_20`, `ckpt_layer17.pt`) as a hookpoint; else ""."""
    found = from_lens(name, "")
    if GRAMMAR.fullmatch(found):
        return found
    match = _FOLDER.fullmatch(name.removesuffix(".pt"))
    return f"layers.{int(match[1])}" if match else ""
