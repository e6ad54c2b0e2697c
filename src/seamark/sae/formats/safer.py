"""SAFER's released code (xzy-101/SAFER-code, arXiv 2507.00665): `stage2.pt`, a state dictionary.

pre_bias [d], latent_bias [n], encoder.weight [n, d], decoder.weight [d, n]; inputs are normalised at each position
(eps 1e-6) and the k largest latents kept, whatever their sign. k is not in the file.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from seamark.errors import ConfigError
from seamark.sae.formats.files import read_torch
from seamark.sae.formats.stored import Format, Source, Stored, build, flipped

KEYS = ("pre_bias", "latent_bias", "encoder.weight", "decoder.weight")


def is_this(state: Mapping[str, object]) -> bool:
    return all(key in state for key in KEYS)


def read(source: Source) -> Stored:
    state = read_torch(source.path)
    if source.k is None:
        raise ConfigError(
            "a SAFER file does not say how many latents it keeps", where=str(source.path), fix="Give k (the paper: 64)"
        )
    tensors = {key: value for key, value in state.items() if isinstance(value, Tensor)}
    return build(
        source,
        "safer",
        {
            "W_enc": flipped(tensors.get("encoder.weight")),
            "W_dec": flipped(tensors.get("decoder.weight")),
            "b_enc": tensors.get("latent_bias"),
            "b_dec": tensors.get("pre_bias"),
        },
        activation="topk",
        k=source.k,
        normalize="layer_norm",
        eps=1e-6,
    )


FORMAT = Format("safer", "SAFER (a .pt file; give k)", (), read)
