"""What every format is read into and written from: a config and its tensors, checked."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor

from seamark.errors import FormatError
from seamark.sae.config import SAEConfig, first_line


@dataclass(frozen=True)
class Stored:
    """An autoencoder as tensors, apart from the module that runs it."""

    config: SAEConfig
    tensors: dict[str, Tensor]
    """float32: W_enc [d_in, d_sae], W_dec [d_sae, d_in], b_enc [d_sae], b_dec [d_in] and, where the config has one,
    threshold [d_sae]. Some are views: not always contiguous."""
    format: str = "seamark"
    """Where they come from: a name of `seamark.sae.formats.FORMATS`."""
    notes: tuple[str, ...] = ()
    """What a user should know about how the file was understood."""


@dataclass(frozen=True)
class Source:
    """One autoencoder on this machine, and what the caller says of it."""

    path: Path
    """Its folder, or its file where a format is one file."""
    name: str
    """The address it was asked for by, in which some formats write layer and width."""
    k: int | None = None
    """Latents a position, for formats that do not store it."""
    activation: str | None = None
    """For formats that do not store it."""
    component: int | None = None
    """Which of several autoencoders stacked in one file."""


@dataclass(frozen=True)
class Format:
    """One way to lay an autoencoder out on disk."""

    name: str
    title: str
    """For lists that people read."""
    files: tuple[str, ...]
    """What a folder of this format holds. Empty: a lone `.pt` file, told by its keys."""
    read: Callable[[Source], Stored]
    write: Callable[[Stored, Path, bool], tuple[str, ...]] | None = None
    """Writes (autoencoder, folder, approximate) and returns notes; None where Seamark only reads."""
    extras: tuple[str, ...] = ()
    """Further files, relative to the folder, that are used where they exist."""


def build(
    source: Source, format: str, tensors: Mapping[str, Tensor | None], *, notes: Iterable[str] = (), **config: Any
) -> Stored:
    """Check tensors and config of one autoencoder.

    Args:
        source: where they were read.
        format: the format's name.
        tensors: as in `Stored`; None (and names that are absent) count as missing.
        notes: as in `Stored`.
        config: fields of `SAEConfig`; d_in and d_sae, where given, must agree with the tensors.

    Raises:
        FormatError: a tensor is missing, of the wrong shape, not of real numbers, or holds NaN; or the config is bad.
    """
    where = str(source.path)
    W_dec = tensors.get("W_dec")
    if W_dec is None:
        raise FormatError("it has no decoder", where=where, fix="Fetch or save the whole autoencoder")
    if W_dec.ndim != 2:
        raise FormatError(f"the decoder has shape {list(W_dec.shape)}, not two dimensions", where=where)
    d_sae, d_in = W_dec.shape
    for key, size in (("d_in", d_in), ("d_sae", d_sae)):
        if config.get(key, size) != size:
            raise FormatError(
                f"the config says {key} = {config[key]}, the weights {size}",
                where=where,
                fix="Config and weights are not of the same autoencoder: fetch or save it again",
            )
    try:
        checked = SAEConfig.model_validate(config | {"d_in": d_in, "d_sae": d_sae})
    except ValidationError as e:
        raise FormatError(f"not an autoencoder's config ({first_line(e)})", where=where) from e
    shapes = {"W_enc": (d_in, d_sae), "W_dec": (d_sae, d_in), "b_enc": (d_sae,), "b_dec": (d_in,)}
    if checked.has_threshold:
        shapes["threshold"] = (d_sae,)
    found = {name: _checked(name, tensors.get(name), shape, where) for name, shape in shapes.items()}
    return Stored(checked, found, format, tuple(notes))


def _checked(name: str, tensor: Tensor | None, shape: tuple[int, ...], where: str) -> Tensor:
    if tensor is None:
        raise FormatError(f"tensor {name} is missing", where=where, fix="Fetch or save the autoencoder again")
    if tuple(tensor.shape) != shape:
        raise FormatError(f"{name} is {list(tensor.shape)}, but {list(shape)} fits the rest", where=where)
    if not tensor.dtype.is_floating_point:
        raise FormatError(f"{name} holds {str(tensor.dtype).removeprefix('torch.')}, not real numbers", where=where)
    tensor = tensor.detach().to(torch.float32)
    if tensor.numel() and not all(torch.isfinite(end) for end in torch.aminmax(tensor)):
        raise FormatError(f"{name} holds NaN or infinite values", where=where, fix="Fetch or train it again")
    return tensor


def flipped(tensor: object) -> Tensor | None:
    """A matrix transposed (a view); other tensors as they are, for `build` to refuse; None for anything else."""
    if not isinstance(tensor, Tensor):
        return None
    return tensor.T if tensor.ndim == 2 else tensor


def no_negative_values(threshold: Tensor) -> Tensor:
    """Thresholds that cut what a ReLU after the jump would cut: relu(p)·1[p > t] = p·1[p > max(t, 0)]."""
    return threshold.clamp_min(0)


def fold_decoder_norms(stored: Stored) -> Stored:
    """The same autoencoder with latents (not thresholds) in units of their decoder row's norm, rows of unit norm."""
    tensors = stored.tensors
    norm = tensors["W_dec"].norm(dim=1)
    divisor = torch.where(norm > 0, norm, torch.ones_like(norm))
    folded = {
        "W_enc": tensors["W_enc"] * norm,
        "b_enc": tensors["b_enc"] * norm,
        "W_dec": tensors["W_dec"] / divisor[:, None],
    }
    return replace(stored, tensors=tensors | folded)
