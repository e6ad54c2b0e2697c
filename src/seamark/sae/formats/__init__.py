"""File formats of sparse autoencoders: Seamark's own and those of other tools.

    stored = formats.read("EleutherAI/sae-llama-3-8b-32x", hookpoint="layers.10")
    formats.write(stored, "runs/sae-for-saelens", "saelens")

Nothing in a file is ever run: `torch.load` and `np.load` without pickle, safetensors and JSON for the rest.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from seamark.errors import ConfigError, FormatError
from seamark.run import disk_errors
from seamark.sae.formats import dictionary_learning, gemma_scope, saelens, safe_sail, safer, seamark, sparsify
from seamark.sae.formats.files import read_torch
from seamark.sae.formats.hooks import GRAMMAR
from seamark.sae.formats.places import Place, locate
from seamark.sae.formats.stored import Format, Source, Stored

FORMATS: dict[str, Format] = {
    module.FORMAT.name: module.FORMAT
    # A folder is of the first format whose files it holds, so sparsify (cfg.json) comes before Seamark (config.json).
    for module in (saelens, sparsify, seamark, gemma_scope, dictionary_learning, safer, safe_sail)
}

__all__ = ["FORMATS", "Format", "Stored", "detect", "names", "push", "read", "write"]


def names(*, writable: bool = False) -> tuple[str, ...]:
    """Names of the formats that can be read, or written."""
    return tuple(name for name, f in FORMATS.items() if f.write is not None or not writable)


def detect(path: str | os.PathLike[str]) -> str:
    """The format's name of the one autoencoder at `path`; `FormatError` where there is none, or several."""
    return _format(locate(path, tuple(FORMATS.values()))).name


def read(
    path: str | os.PathLike[str],
    *,
    hookpoint: str | None = None,
    revision: str | None = None,
    token: str | None = None,
    k: int | None = None,
    activation: str | None = None,
    component: int | None = None,
) -> Stored:
    """Read an autoencoder in any known format.

    Args:
        path: a folder or file; else a name on the Hub: `owner/name`, `owner/name/folder`, `hf://owner/name@revision/folder`.
        hookpoint: which one, where there are several; where the file names no hookpoint, its hookpoint.
        revision: branch, tag or commit on the Hub.
        token: for repositories on the Hub that are not public.
        k: latents a position, for formats that do not store it (SAFER, Safe-SAIL). Elsewhere it must agree.
        activation: for Safe-SAIL, which does not store it: "topk_relu", "jumprelu" or "relu".
        component: for a Safe-SAIL file of several autoencoders, which one, from 0.

    Raises:
        FormatError: nothing there; several and none chosen; damaged, foreign or unsupported; code in the file; NaN.
        ConfigError: something the format does not store is needed, or an argument contradicts the file.
    """
    place = locate(path, tuple(FORMATS.values()), hookpoint=hookpoint, revision=revision, token=token)
    source = Source(place.path, place.name, k, activation, component)
    stored = _format(place).read(source)
    for name, given in (("k", k), ("activation", activation)):
        if given is not None and given != (said := getattr(stored.config, name)):
            raise ConfigError(f"{name} is {said} in the file, not {given}", where=place.name, fix=f"Leave out {name}")
    return stored if hookpoint is None else _at(stored, hookpoint, place)


def _format(place: Place) -> Format:
    if place.format is not None:
        return place.format
    state = read_torch(place.path)
    for module in (safer, safe_sail):
        if module.is_this(state):
            return module.FORMAT
    if dictionary_learning.config_near(place.path) is not None:
        return dictionary_learning.FORMAT
    keys = ", ".join(list(state)[:6]) or "nothing"
    raise FormatError(f"no autoencoder that Seamark knows: it holds {keys}", where=str(place.path))


def _at(stored: Stored, hookpoint: str, place: Place) -> Stored:
    """Check the hookpoint asked for against the file's, and fill it in where the file has none in Seamark's words."""
    own = stored.config.hookpoint
    if hookpoint == own or GRAMMAR.fullmatch(hookpoint) is None:
        return stored
    if GRAMMAR.fullmatch(own):
        raise FormatError(f"this autoencoder is of {own}, not of {hookpoint}", where=place.name)
    config = stored.config.model_copy(update={"hookpoint": hookpoint})
    notes = (*stored.notes, f"Its file calls the hookpoint {own}") if own else stored.notes
    return Stored(config, stored.tensors, stored.format, notes)


def write(
    stored: Stored, path: str | os.PathLike[str], format: str = "seamark", *, approximate: bool = False
) -> tuple[str, ...]:
    """Write an autoencoder into a folder, each file whole or not at all.

    Args:
        stored: the autoencoder.
        path: the folder; made where it is missing.
        format: "seamark", "saelens" or "sparsify". For sparsify, name the folder for its hookpoint.
        approximate: write also where the format has no exact words for it but close ones; the notes tell what changed.

    Returns:
        Notes for the user.

    Raises:
        FormatError: the format cannot express this autoencoder.
        ConfigError: no such format, or the folder holds an autoencoder of another one.
        RunError: the disk is full or cannot be written.
    """
    chosen = FORMATS.get(format)
    if chosen is None or chosen.write is None:
        can = ", ".join(names(writable=True))
        raise ConfigError(f"autoencoders cannot be written as {format}", where=os.fspath(path), fix=f"Choose {can}")
    folder = Path(path).expanduser()
    for other in FORMATS.values():
        held = other is not chosen and other.files and all((folder / name).is_file() for name in other.files)
        if held:
            raise ConfigError(
                f"this folder already holds an autoencoder of {other.name}",
                where=str(folder),
                fix="Choose another folder: their files have names in common",
            )
    with disk_errors(folder):
        return chosen.write(stored, folder, approximate)


def push(stored: Stored, repo_id: str, *, private: bool = True, token: str | None = None, message: str = "") -> str:
    """Upload an autoencoder, in Seamark's format, to the Hub; its address there.

    Args:
        stored: the autoencoder.
        repo_id: `owner/name`; created where it is missing.
        private: whether a repository that is created can be seen by its owner only.
        token: to log in with; None: the one that is logged in.
        message: of the commit.

    Raises:
        FormatError: not a name on the Hub; the Hub cannot be reached, or refuses.
    """
    from seamark.sae.formats import hub  # late: huggingface_hub takes a while to import

    with tempfile.TemporaryDirectory() as folder:
        write(stored, folder)
        to = hub.Repository(repo_id, token=token)
        return hub.push(Path(folder), to, private=private, message=message or "Upload a sparse autoencoder")
