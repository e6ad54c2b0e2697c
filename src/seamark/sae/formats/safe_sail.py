"""Safe-SAIL's checkpoints (Alibaba-AAIG/Safe-SAIL, arXiv 2509.18127): `ckpt_layer17.pt`, C autoencoders stacked.

pre_encoder_bias._bias_reference [C, d], encoder.weight [C, n, d], encoder.bias [C, n], encoder.theta [C, n] (JumpReLU),
decoder.weight [C, d, n], and post_decoder_bias._bias_reference [C, d], which in the library they were trained with
(ai-safety-foundation/sparse_autoencoder) is the same as the first. The activation is not in the file: the released ones
are TopKReLU with k = 200.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from seamark.errors import ConfigError, FormatError
from seamark.sae.formats.files import read_torch
from seamark.sae.formats.stored import Format, Source, Stored, build

PRE, POST = "pre_encoder_bias._bias_reference", "post_decoder_bias._bias_reference"
_LAYER = re.compile(r"layer_?(\d+)\.pt$")


def is_this(state: Mapping[str, object]) -> bool:
    return PRE in state


def read(source: Source) -> Stored:
    state = _one(read_torch(source.path), source)
    fields = _activation(source, "encoder.theta" in state)
    decoder, encoder, pre = state.get("decoder.weight"), state["encoder.weight"], state[PRE]
    post = state.get(POST, state.get("tied_bias", pre))
    if decoder is None:
        raise FormatError("it has no decoder.weight, only an encoder", where=str(source.path))
    if decoder.shape == encoder.shape[::-1]:
        decoder = decoder.T
    stored = build(
        source,
        "safe-sail",
        {
            "W_enc": encoder.T,
            "W_dec": decoder,
            "b_enc": state.get("encoder.bias"),
            "b_dec": pre,
            "threshold": state.get("encoder.theta"),
        },
        normalize="none",
        hookpoint=_hookpoint(source.name),
        **fields,
    )
    return stored if torch.equal(post, pre) else _with_own_output_bias(source, stored, post)


def _one(state: Mapping[str, Any], source: Source) -> dict[str, Tensor]:
    """The tensors of one of the C stacked autoencoders."""
    tensors = {name: t for name, t in state.items() if isinstance(t, Tensor)}
    weight = tensors.get("encoder.weight")
    if PRE not in tensors or weight is None or weight.ndim != 3:
        raise FormatError("encoder.weight is not [components, latents, width]", where=str(source.path))
    count = weight.shape[0]
    if count != 1 and source.component is None:
        raise ConfigError(f"it holds {count} autoencoders", where=str(source.path), fix="Give component, from 0")
    index = source.component or 0
    if not 0 <= index < count:
        raise ConfigError(f"component {index} is not among its {count}", where=str(source.path))
    for name, tensor in tensors.items():
        if tensor.ndim == 0 or tensor.shape[0] != count:
            raise FormatError(
                f"{name} is {list(tensor.shape)}, but there are {count} components", where=str(source.path)
            )
    return {name: tensor[index] for name, tensor in tensors.items()}


def _activation(source: Source, has_theta: bool) -> dict[str, Any]:
    """The code that comes with the files picks the activation by class, so what the caller says decides."""
    chosen = source.activation or ("topk_relu" if source.k is not None else "jumprelu" if has_theta else None)
    if chosen is None:
        raise ConfigError(
            "a Safe-SAIL file does not say how latents are selected",
            where=str(source.path),
            fix='Give k (the released ones: 200), or activation="relu"',
        )
    if chosen not in ("topk_relu", "jumprelu", "relu"):
        raise ConfigError(f"Safe-SAIL has no activation {chosen}", where=str(source.path))
    return {"activation": chosen, "k": source.k}


def _with_own_output_bias(source: Source, stored: Stored, post: Tensor) -> Stored:
    """b_dec may be one thing before the encoder and another after the decoder: the first goes into b_enc."""
    tensors = stored.tensors
    b_enc = tensors["b_enc"] - tensors["b_dec"] @ tensors["W_enc"]
    fields = stored.config.model_dump() | {"subtract_b_dec": False}
    return build(source, "safe-sail", tensors | {"b_enc": b_enc, "b_dec": post}, **fields)


def _hookpoint(name: str) -> str:
    match = _LAYER.search(name)
    return f"layers.{int(match[1])}.mlp" if match else ""


FORMAT = Format("safe-sail", "Safe-SAIL (a .pt file; give k unless it is JumpReLU)", (), read)
