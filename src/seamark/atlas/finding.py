"""Everything that an atlas can be built from, below a folder: a run of a recipe, or results that lie side by side."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from seamark.atlas.pair_sources import FEATURES
from seamark.atlas.sources import RATINGS, SIMULATIONS
from seamark.errors import ConfigError, FormatError, RunError, SeamarkError
from seamark.explain.folder import EXPLANATIONS
from seamark.features.reading import MANIFEST as SCAN
from seamark.features.reading import Scan
from seamark.features.sets import FeatureSet
from seamark.run import read_json

if TYPE_CHECKING:
    from seamark.sae import SparseAutoencoder

CANDIDATES, EFFECTS, CONFIG = "candidates.json", "effects.json", "config.json"
"""Of a recipe's run: features that were rated, effects on the reward; of an autoencoder's folder."""
NOISY = "noisy-"
"""Folders of a recipe whose reward models were trained on wrong labels begin so."""


@dataclass(frozen=True)
class Found:
    """What lies below a folder."""

    scans: tuple[Scan, ...] = ()
    explained: tuple[Path, ...] = ()
    simulated: tuple[Path, ...] = ()
    rated: tuple[Path, ...] = ()
    contrasts: tuple[Path, ...] = ()
    """Files of feature sets."""
    effects: tuple[tuple[str, Path], ...] = ()
    """(sae id, file)"""
    saes: tuple[Path, ...] = ()
    """Folders of what may be autoencoders."""


def sources_below(folder: Path) -> Found:
    """What an atlas can be built from below `folder`, by path. Hidden folders, and those that a recipe made from noisy
    labels, are passed over.

    Raises:
        ConfigError: no such folder, or nothing in it.
    """
    if not folder.is_dir():
        raise ConfigError("no such folder", where=str(folder), fix="Name the folder of a run")
    found: dict[str, list[Path]] = {}
    for path in _files(folder):
        found.setdefault(path.name, []).append(path)

    def holding(name: str) -> tuple[Path, ...]:
        return tuple(path.parent for path in found.get(name, ()))

    contrasts = [path for name in (FEATURES, CANDIDATES) for path in found.get(name, ()) if _is_feature_set(path)]
    scans = tuple(Scan.open(path) for path in holding(SCAN))
    below = Found(
        scans, holding(EXPLANATIONS), holding(SIMULATIONS), holding(RATINGS), tuple(contrasts),
        tuple((_sae_of(path, contrasts, scans), path) for path in found.get(EFFECTS, ())),
        tuple(path.parent for path in found.get(CONFIG, ()) if _is_sae(path)),
    )  # fmt: skip
    if not any((below.scans, below.explained, below.simulated, below.rated, below.contrasts)):
        raise ConfigError("neither a scan nor explanations lie here", where=str(folder),
                          fix="Name the folder of a run: `seamark demo` makes runs/demo")  # fmt: skip
    return below


def suite_of(folders: Iterable[Path], scans: Iterable[Scan]) -> dict[str, SparseAutoencoder]:
    """{sae id: autoencoder} of those folders whose autoencoder one of the scans was made with."""
    from seamark.sae import SparseAutoencoder

    wanted = {fingerprint: sae_id for scan in scans for sae_id, fingerprint in scan.manifest["saes"].items()}
    suite: dict[str, SparseAutoencoder] = {}
    for folder in folders:
        try:
            sae = SparseAutoencoder.from_pretrained(folder)
        except SeamarkError:
            continue  # what was looked for is not that important
        if (sae_id := wanted.get(sae.fingerprint())) is not None:
            suite[sae_id] = sae
    return suite


def _files(folder: Path) -> Iterator[Path]:
    """Files below a folder that may be a source, by path; parts of a scan are not looked through."""
    names = {SCAN, EXPLANATIONS, SIMULATIONS, RATINGS, FEATURES, CANDIDATES, EFFECTS, CONFIG}
    for at, folders, files in os.walk(folder):
        if SCAN in files:
            folders.clear()
        folders[:] = sorted(name for name in folders if not name.startswith((".", NOISY)))
        yield from (Path(at) / name for name in sorted(names.intersection(files)))


def _is_feature_set(path: Path) -> bool:
    found = _read(path)
    return isinstance(found.get("features"), list) and isinstance(found.get("provenance"), dict)


def _is_sae(path: Path) -> bool:
    return {"d_sae", "d_in", "hookpoint"} <= set(_read(path))


def _read(path: Path) -> Mapping[str, Any]:
    try:
        found = read_json(path)
    except RunError:
        return {}
    return found if isinstance(found, dict) else {}


def _sae_of(path: Path, contrasts: Iterable[Path], scans: Iterable[Scan]) -> str:
    """The autoencoder whose latents' effects a file holds: the file does not say it."""
    named = {f.sae for one in contrasts for f in FeatureSet.load(one).features} or {i for s in scans for i in s.sae_ids}
    if len(named) != 1:
        raise FormatError("the file does not say which autoencoder its effects are of", where=str(path),
                          fix="Build without --run, and give --effects sae=FILE")  # fmt: skip
    return named.pop()
