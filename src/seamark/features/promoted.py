"""Tokens that a feature makes more and less likely to come next: its decoder direction read through the unembedding.

The direct path only: what later blocks make of the direction is left out (the "logit lens" of a feature). It makes
sense because block, attention and MLP outputs are all added to the residual stream that the final norm and the
unembedding read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from seamark.errors import ConfigError, DataError
from seamark.model.hookpoints import find_family, parse_hookpoint, resolve
from seamark.model.loading import HookedModel, LanguageModel
from seamark.sae import SparseAutoencoder

LATENTS_AT_ONCE, TOKENS_AT_ONCE = 1024, 1 << 14
"""Sizes of the blocks that are multiplied: 64 MB of products."""
_FINAL_NORMS = ("norm", "ln_f", "final_layer_norm", "final_layernorm", "norm_f")
_PROBE = 1e3
"""Size of the vectors by which a norm is measured: large, so that its epsilon does not count."""


@dataclass(frozen=True)
class Promoted:
    """Tokens a feature promotes and suppresses, the strongest first, with the change of their logit per unit of its
    direction, less the mean over the vocabulary."""

    promoted: tuple[tuple[str, float], ...]
    suppressed: tuple[tuple[str, float], ...]


@torch.no_grad()
def promoted_tokens(
    model: HookedModel, sae: SparseAutoencoder, latents: Sequence[int], n: int = 10
) -> dict[int, Promoted]:
    """The `n` tokens that each latent's decoder direction promotes most, and those it suppresses most.

    The direction goes through the gain of the final norm (mean-centred for LayerNorm) and of a norm between an
    attention or MLP output and the stream (Gemma 2 and its like); the norm's scale, which depends on the text, biases
    and logit caps are left out. None of them changes the order of tokens but the biases.

    Args:
        model: a language model.
        sae: an autoencoder of one of its hookpoints.

    Raises:
        ConfigError: the model has no unembedding, one in a format that cannot be read, or a final norm of unknown
            name; the widths do not fit.
        DataError: no such latent.
    """
    weight_VD = _unembedding(model)
    if sae.config.d_in != weight_VD.shape[1]:
        raise ConfigError(f"the autoencoder's width {sae.config.d_in} is not the model's, {weight_VD.shape[1]}",
                          where=model.name, fix="Give the autoencoder's own model")  # fmt: skip
    if strange := [i for i in latents if not 0 <= i < sae.config.d_sae]:
        raise DataError(f"no latent {strange[0]}; there are {sae.config.d_sae}", where=sae.config.hookpoint)
    norms = _norms(model.hf, sae.config.hookpoint)
    gains = [_gain(norm, weight_VD.shape[1]) for norm in norms]
    n_tokens = min(len(model.tokenizer), weight_VD.shape[0])  # the rest are rows that no token uses
    weight_VD = weight_VD[:n_tokens]
    found: dict[int, Promoted] = {}
    for start in range(0, len(latents), LATENTS_AT_ONCE):
        some = list(latents[start : start + LATENTS_AT_ONCE])
        direction_LD = sae.W_dec[some].to(weight_VD.device, torch.float32)
        for gain_D, centred in gains:
            if centred:
                direction_LD = direction_LD - direction_LD.mean(1, keepdim=True)
            direction_LD = direction_LD * gain_D.to(direction_LD)
        for latent, (up, down) in zip(some, _extremes(weight_VD, direction_LD, min(n, n_tokens)), strict=True):
            named = [tuple((_token(model.tokenizer, i), value) for i, value in side) for side in (up, down)]
            found[latent] = Promoted(*named)
    return found


Extreme = list[tuple[int, float]]
"""(token id, value), the strongest first."""


def _extremes(weight_VD: Tensor, direction_LD: Tensor, n: int) -> list[tuple[Extreme, Extreme]]:
    """Per direction the `n` largest and the `n` smallest products with rows of the unembedding, a block at a time."""
    mean_L = torch.zeros(len(direction_LD), device=direction_LD.device)
    tops: list[tuple[Tensor, Tensor]] = []
    for start in range(0, len(weight_VD), TOKENS_AT_ONCE):
        product_LV = direction_LD @ weight_VD[start : start + TOKENS_AT_ONCE].float().T
        mean_L += product_LV.sum(1) / len(weight_VD)
        for sign, i in ((1.0, 0), (-1.0, 1)):
            value_LN, index_LN = (sign * product_LV).topk(min(n, product_LV.shape[1]))
            if start == 0:
                tops.append((value_LN, index_LN))
                continue
            value_LN, index_LN = torch.cat([tops[i][0], value_LN], 1), torch.cat([tops[i][1], index_LN + start], 1)
            best_LN = value_LN.topk(n).indices if value_LN.shape[1] > n else value_LN.argsort(1, descending=True)
            tops[i] = value_LN.gather(1, best_LN), index_LN.gather(1, best_LN)
    mean = mean_L.tolist()
    sides = [
        [_ordered(v, i, sign, m) for v, i, m in zip(value.tolist(), index.tolist(), mean, strict=True)]
        for sign, (value, index) in zip((1.0, -1.0), tops, strict=True)
    ]
    return list(zip(*sides, strict=True))


def _ordered(values: list[float], ids: list[int], sign: float, mean: float) -> Extreme:
    """Strongest first, by id where equal."""
    order = sorted(zip(values, ids, strict=True), key=lambda item: (-item[0], item[1]))
    return [(i, sign * value - mean) for value, i in order]


def _unembedding(model: HookedModel) -> Tensor:
    """The weight of the language-model head, [rows, width]."""
    head = model.hf.get_output_embeddings() if isinstance(model, LanguageModel) else None
    weight = getattr(head, "weight", None)
    if weight is None:
        raise ConfigError("the model has no unembedding, so features promote no tokens", where=model.name,
                          fix="Give a causal language model")  # fmt: skip
    if not weight.is_floating_point() or weight.ndim != 2:
        raise ConfigError("the unembedding is quantised and cannot be read", where=model.name,
                          fix="Load the model without quantisation")  # fmt: skip
    return weight


def _norms(hf: Any, hookpoint: str) -> list[nn.Module]:
    """What a direction at the hookpoint passes on its direct way out: a norm before the sum, if any, and the last."""
    resolve(hf, hookpoint)  # says what is wrong where there is no such hookpoint
    family, blocks = find_family(hf)
    point, found = parse_hookpoint(hookpoint), []
    block: Any = blocks[point.layer]
    if point.part != "block" and isinstance(getattr(block, "post_feedforward_layernorm", None), nn.Module):
        name = "post_feedforward_layernorm" if point.part == "mlp" else "post_attention_layernorm"
        found.append(getattr(block, name))
    holder = getattr(hf, "base_model", hf)
    for name in family.blocks.split(".")[:-1]:
        holder = getattr(holder, name)
    for name in _FINAL_NORMS:
        if isinstance(last := getattr(holder, name, None), nn.Module):
            return [*found, last]
    raise ConfigError(f"no final norm is known for {type(hf).__name__}", where=hookpoint,
                      fix=f"Known names: {', '.join(_FINAL_NORMS)}")  # fmt: skip


def _gain(norm: nn.Module, width: int) -> tuple[Tensor, bool]:
    """(gain [width], whether the norm takes the mean away), measured: norms store their gain in several ways.

    A vector of mean 0 and mean square 1 comes out of RMSNorm and LayerNorm alike as gain · vector + bias; a constant
    one comes out of LayerNorm as the bias alone.
    """
    first = next(iter(norm.parameters()), torch.zeros(1))
    probe = torch.ones(width, device=first.device, dtype=torch.float32)
    probe[1::2] = -1.0
    if width % 2:
        probe[-3:] = torch.tensor([0.5, 0.5, -1.0]) * 2.0**0.5
    constant = torch.ones_like(probe)
    plus, minus, level, under = (
        norm((_PROBE * v).to(first.dtype)[None]).float()[0] for v in (probe, -probe, constant, -constant)
    )
    centred = bool((level - under).abs().max() < 1e-2 * (plus - minus).abs().max())
    return (plus - minus) / (2 * probe), centred


def _token(tokenizer: Any, token_id: int) -> str:
    """A token as it stands in text, with the space before it where it has one."""
    raw = str(tokenizer.convert_ids_to_tokens(token_id))
    text = str(tokenizer.convert_tokens_to_string([raw]))
    if not text or "\ufffd" in text:  # a piece of a character
        return raw
    return f" {text}" if raw.startswith("▁") and not text.startswith(" ") else text
