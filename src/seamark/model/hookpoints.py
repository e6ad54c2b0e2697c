"""Where activations are read: one small grammar for every architecture.

    layers.11        what block 11 (counted from 0) puts out
    layers.11.attn   what its attention adds to the residual stream
    layers.11.mlp    what its MLP adds to the residual stream

Architectures are told apart by how their modules are named, not by a list of class names, so a new model
that is built like a known one works at once.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from seamark.errors import ModelError

Part = Literal["block", "attn", "mlp"]
_GRAMMAR = re.compile(r"layers\.(0|[1-9][0-9]{0,5})(?:\.(attn|mlp))?")


@dataclass(frozen=True)
class Family:
    """How one family of models names its parts: the list of blocks (below the backbone) and two modules of a block."""

    models: str
    blocks: str
    attn: str
    mlp: str


# BERT-like blocks normalise after each residual sum. The modules named here end before that sum, so that
# `.attn` and `.mlp` mean the same everywhere: what is added to the residual stream.
FAMILIES = (
    Family("Llama, Mistral, Qwen2, Qwen3, Gemma, Gemma 2, Gemma 3", "layers", "self_attn", "mlp"),
    Family("multimodal Gemma 3 and its like", "language_model.layers", "self_attn", "mlp"),
    Family("ModernBERT", "layers", "attn", "mlp"),
    Family("GPT-2", "h", "attn", "mlp"),
    Family("GPT-NeoX", "layers", "attention", "mlp"),
    Family("BERT, RoBERTa, ELECTRA, DeBERTa", "encoder.layer", "attention.output.dense", "output.dense"),
    Family("DistilBERT", "transformer.layer", "attention.out_lin", "ffn"),
    Family("DistilBERT", "transformer.layer", "attention", "ffn"),
)


@dataclass(frozen=True)
class Hookpoint:
    """A parsed hookpoint: block index (from 0) and which part of the block."""

    layer: int
    part: Part = "block"

    def __str__(self) -> str:
        return f"layers.{self.layer}" if self.part == "block" else f"layers.{self.layer}.{self.part}"


def parse_hookpoint(name: str) -> Hookpoint:
    """`layers.11`, `layers.11.attn` or `layers.11.mlp` as a `Hookpoint`.

    Raises:
        ModelError: the name does not follow the grammar.
    """
    match = _GRAMMAR.fullmatch(name)
    if match is None:
        raise ModelError(
            f"'{name}' is not a hookpoint", fix="Write layers.N, layers.N.attn or layers.N.mlp, with N from 0"
        )
    part = match.group(2)
    return Hookpoint(int(match.group(1)), "attn" if part == "attn" else "mlp" if part == "mlp" else "block")


def three_quarter_depth(n_blocks: int) -> str:
    """The default hookpoint: the output of the block at ¾ depth (16 blocks: `layers.11`; 6: `layers.3`).

    SAFER (arXiv 2507.00665) reads `hidden_states[12]` of a 16-block model, which is the output of block 11.
    """
    return f"layers.{max(3 * n_blocks // 4 - 1, 0)}"


def backbone(model: nn.Module) -> nn.Module:
    """The model without its head and without a PEFT wrapper."""
    inner = _without_peft(model)
    base = getattr(inner, "base_model", inner)
    return base if isinstance(base, nn.Module) else inner


def _without_peft(model: Any) -> nn.Module:
    inner: nn.Module = model.get_base_model() if hasattr(model, "get_base_model") else model
    return inner


def _child(module: nn.Module, path: str) -> nn.Module | None:
    for name in path.split("."):
        found = getattr(module, name, None)
        if not isinstance(found, nn.Module):
            return None
        module = found
    return module


def find_family(model: nn.Module) -> tuple[Family, nn.ModuleList]:
    """The family a model belongs to, and its list of blocks.

    Raises:
        ModelError: its modules are named like no family Seamark knows.
    """
    base = backbone(model)
    for family in FAMILIES:
        blocks = _child(base, family.blocks)
        if isinstance(blocks, nn.ModuleList) and len(blocks) > 0 and _child(blocks[0], family.attn) and _child(
            blocks[0], family.mlp
        ):  # fmt: skip
            return family, blocks
    supported = ", ".join(dict.fromkeys(f.models for f in FAMILIES))
    raise ModelError(
        f"no hookpoints are known for the architecture {type(model).__name__}",
        fix=f"Supported are models built like {supported}",
    )


def resolve(model: nn.Module, hookpoint: str) -> nn.Module:
    """The module whose output is the hookpoint's activation.

    Raises:
        ModelError: unknown grammar, unknown architecture, or a block the model does not have.
    """
    point = parse_hookpoint(hookpoint)
    family, blocks = find_family(model)
    if point.layer >= len(blocks):
        raise ModelError(
            f"hookpoint {hookpoint} is out of range: the model has {len(blocks)} blocks",
            fix=f"Choose one from layers.0 to layers.{len(blocks) - 1}",
        )
    block = blocks[point.layer]
    if point.part == "block":
        return block
    module = _child(block, family.attn if point.part == "attn" else family.mlp)
    if module is None:  # hybrid models: not every block has attention
        raise ModelError(f"block {point.layer} of {type(model).__name__} has no part named '{point.part}'")
    return module


def head_modules(model: nn.Module) -> list[nn.Module]:
    """What lies outside the backbone: the classifier or the language-model head."""
    inner, base = _without_peft(model), backbone(model)
    return [m for m in inner.children() if m is not base] if inner is not base else []


def modules_after_blocks(model: nn.Module) -> list[nn.Module]:
    """What runs after the last block: the final norm or pooler, and the head. In registration order."""
    base = backbone(model)
    family, _ = find_family(model)
    children = dict(base.named_children())
    names = list(children)
    inner = [children[n] for n in names[names.index(family.blocks.split(".")[0]) + 1 :]]
    return inner + head_modules(model)
