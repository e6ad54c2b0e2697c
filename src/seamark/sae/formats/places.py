"""Finding an autoencoder at an address: a folder, a file, or a repository on the Hub that may hold many."""

from __future__ import annotations

import os
import posixpath
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from seamark.errors import FormatError
from seamark.sae.formats.hooks import GRAMMAR, from_folder, from_lens
from seamark.sae.formats.stored import Format

_DEPTH, _FILES, _SHOWN = 6, 50_000, 10
_LONE = (".pt", ".pth", ".npz")
_NO_WEIGHTS = ("optimizer", "lr_scheduler", "scheduler", "state", "rank_", "rng_", "training_args", "trainer_")


@dataclass(frozen=True)
class Tree:
    """The files below an address."""

    address: str
    files: Sequence[str]
    """Their paths, with "/"."""
    bring: Callable[[Iterable[str]], Path]
    """Makes files available; the folder below which they lie."""


@dataclass(frozen=True)
class Entry:
    """One autoencoder in a tree."""

    path: str
    """Its folder, or its file where that is all there is."""
    format: Format | None
    """None: a lone file, told by its content."""
    files: tuple[str, ...]
    """What has to be there to read it."""


@dataclass(frozen=True)
class Place:
    """One autoencoder, now on this machine."""

    path: Path
    name: str
    format: Format | None


def locate(
    address: str | os.PathLike[str],
    formats: Sequence[Format],
    *,
    hookpoint: str | None = None,
    revision: str | None = None,
    token: str | None = None,
) -> Place:
    """The one autoencoder at an address.

    Raises:
        FormatError: nothing there, no autoencoder there, or several and no way to choose.
    """
    tree, inside = _tree(address, formats, hookpoint, revision, token)
    entry = _file_entry(tree, inside, formats) if inside in tree.files else _choose(tree, inside, formats, hookpoint)
    root = tree.bring(entry.files)
    return Place(root / entry.path, posixpath.join(tree.address, entry.path).rstrip("/."), entry.format)


def _tree(
    address: str | os.PathLike[str],
    formats: Sequence[Format],
    hookpoint: str | None,
    revision: str | None,
    token: str | None,
) -> tuple[Tree, str]:
    """The tree an address lies in, and its path inside."""
    text = os.fspath(address)
    local = Path(text).expanduser()
    if not text:
        raise FormatError("no folder, file or repository is named", fix="Give one")
    if local.is_dir():
        return Tree(text, _walk(local, formats, hookpoint), lambda _: local), ""
    if local.exists():
        return Tree(os.path.dirname(text), _names(local.parent), lambda _: local.parent), local.name
    looks_local = isinstance(address, Path) or text.startswith((".", "/", "~")) or "\\" in text
    from seamark.sae.formats import hub  # late: huggingface_hub takes a while to import

    found = None if looks_local else hub.parse(text, revision, token)
    if found is None:
        raise FormatError("there is no such folder or file", where=text, fix="Or give a name on the Hub: owner/name")
    repository, inside = found
    return Tree(repository.id, repository.files(), repository.bring), inside


def _names(folder: Path) -> list[str]:
    """Names of the files in a folder."""
    try:
        return sorted(p.name for p in folder.iterdir() if p.is_file())
    except OSError as e:
        raise FormatError(f"cannot be read ({e.strerror})", where=str(folder)) from e


def _walk(root: Path, formats: Sequence[Format], hookpoint: str | None) -> list[str]:
    """Files below a folder; only its own where they are an autoencoder already."""
    names = _names(root)
    if hookpoint is None and any(f.files and set(f.files) <= set(names) for f in formats):
        return names
    found = list(names)
    for folder, inner, files in os.walk(root):
        below = Path(folder).relative_to(root)
        hidden = len(below.parts) >= _DEPTH
        inner[:] = [] if hidden else sorted(d for d in inner if not d.startswith(".") and not d.endswith(".partial"))
        if below.parts:
            found += [(below / name).as_posix() for name in sorted(files)]
        if len(found) > _FILES:
            raise FormatError(f"more than {_FILES} files", where=str(root), fix="Give the autoencoder's own folder")
    return found


def _file_entry(tree: Tree, file: str, formats: Sequence[Format]) -> Entry:
    """The autoencoder a single file is, or is part of."""
    folder, name = posixpath.split(file)
    if name.endswith(_LONE):
        return _lone(tree, file, formats)
    if name.endswith((".safetensors", ".json")):
        found = [e for e in _folders(tree, folder, formats) if e.path == folder]
        if found:
            return found[0]
    fix = "Give the folder of an autoencoder"
    raise FormatError("this file is no autoencoder", where=posixpath.join(tree.address, file), fix=fix)


def _lone(tree: Tree, file: str, formats: Sequence[Format]) -> Entry:
    """A file by itself; a config near it comes along."""
    folder = posixpath.dirname(file)
    near = {posixpath.normpath(posixpath.join(folder, up, "config.json")) for up in (".", "..")}
    format = next((f for f in formats if f.name == "gemma-scope"), None) if file.endswith(".npz") else None
    return Entry(file, format, (file, *sorted(near & set(tree.files))))


def _folders(tree: Tree, inside: str, formats: Sequence[Format]) -> list[Entry]:
    """Every autoencoder that is a folder at or below a path."""
    names: dict[str, set[str]] = defaultdict(set)
    for file in tree.files:
        if not inside or file.startswith(inside + "/"):
            folder, name = posixpath.split(file)
            names[folder].add(name)
    known = set(tree.files)
    entries = []
    for folder, held in names.items():
        format = next((f for f in formats if f.files and set(f.files) <= held), None)
        if format is not None:
            extras = {posixpath.normpath(posixpath.join(folder, e)) for e in format.extras} & known
            files = (*(posixpath.join(folder, f) for f in format.files), *sorted(extras))
            entries.append(Entry(folder, format, files))
    return sorted(entries, key=lambda e: e.path)


def _choose(tree: Tree, inside: str, formats: Sequence[Format], hookpoint: str | None) -> Entry:
    entries = _folders(tree, inside, formats) or [
        _lone(tree, file, formats)
        for file in tree.files
        if file.endswith(_LONE)
        and not posixpath.basename(file).startswith(_NO_WEIGHTS)
        and (not inside or file.startswith(inside + "/"))
    ]
    where = posixpath.join(tree.address, inside).rstrip("/")
    if not entries:
        needs = "; ".join(", ".join(f.files) for f in formats if f.files)
        raise FormatError("no autoencoder here", where=where, fix=f"It needs one of: {needs}; or a .pt file")
    matching = [e for e in entries if hookpoint and _is_at(e.path, inside, hookpoint)]
    own = [e for e in entries if e.path == inside]
    chosen = matching or own or entries
    if len(chosen) == 1:
        return chosen[0]
    ids = [e.path.removeprefix(inside).strip("/") for e in chosen]
    shown = ", ".join(ids[:_SHOWN]) + (f" and {len(ids) - _SHOWN} more" if len(ids) > _SHOWN else "")
    at = f" at {hookpoint}" if matching else ""
    fix = f"Choose one: {where}/{ids[0]}" + ("" if matching else ", or give hookpoint")
    raise FormatError(f"{len(ids)} autoencoders here{at}: {shown}", where=where, fix=fix)


def _is_at(path: str, inside: str, hookpoint: str) -> bool:
    """Whether a path names a hookpoint: as a run of its parts, or as a part in another tool's words."""
    parts = path.removeprefix(inside).strip("/").split("/")
    if f"/{hookpoint}/" in f"/{'/'.join(parts)}/":
        return True
    if hookpoint in {from_folder(part) for part in parts}:
        return True
    # `layer_20`, unlike `layers.20`, may be of any part of the block.
    vague = {from_folder(part) for part in parts if not GRAMMAR.fullmatch(from_lens(part, ""))}
    return hookpoint.rpartition(".")[0] in vague - {""}
