"""Checkpoints of a fit: each holds autoencoders that load as they are, and what training needs to go on."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor

from seamark.errors import ConfigError, FormatError
from seamark.run import digest, read_json, write_atomic, write_json
from seamark.sae.autoencoder import SparseAutoencoder
from seamark.sae.config import FitConfig, SAEConfig
from seamark.sae.parallel import Ranks
from seamark.sae.trainer import Trainer

STATE_FILE, NUMBERS_FILE, FIT_FILE = "state.safetensors", "state.json", "fit.json"
VERSION = 1


@dataclass(frozen=True)
class Checkpoints:
    """Where and how often a fit is saved.

    `folder/step-00000500/<name>/` is an autoencoder for `SparseAutoencoder.from_pretrained` plus its training state. A
    checkpoint is written beside its place and renamed when whole, so the last good one is always intact.
    """

    folder: str | PathLike[str]
    every: int = 500
    """Steps between checkpoints (rounded up to the end of a chunk of the stream)."""
    keep: int = 2
    """How many stay; older ones are removed."""

    def latest(self) -> Path | None:
        """The newest whole checkpoint."""
        found = sorted(p for p in Path(self.folder).glob("step-*") if p.is_dir() and p.suffix != ".partial")
        return found[-1] if found else None

    def save(
        self, trainers: Sequence[Trainer], step: int, consumed: int, asked: Mapping[str, Any], ranks: Ranks
    ) -> Path:
        """Write one checkpoint; each autoencoder by a rank that trains it, rank 0 puts the whole in place."""
        place = Path(self.folder) / f"step-{step:08d}"
        partial = place.with_name(place.name + ".partial")
        if ranks.rank == 0:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
        ranks.wait()
        for trainer in trainers:
            if trainer.ranks.rank == 0:  # data-parallel ranks hold the same
                self._write(trainer, partial / trainer.name)
        ranks.wait()
        if ranks.rank == 0:
            write_json(partial / FIT_FILE, {"version": VERSION, "consumed": consumed, "fit": digest(asked), **asked})
            shutil.rmtree(place, ignore_errors=True)
            partial.rename(place)
            self._forget()
        ranks.wait()
        return place

    @staticmethod
    def _write(trainer: Trainer, folder: Path) -> None:
        trainer.usable().save_pretrained(folder)
        numbers, tensors = trainer.state()
        stored = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
        write_atomic(folder / STATE_FILE, safetensors.torch.save(stored))
        write_json(folder / NUMBERS_FILE, numbers)

    def _forget(self) -> None:
        whole = sorted(p for p in Path(self.folder).glob("step-*") if p.suffix != ".partial")
        for old in whole[: -self.keep]:
            shutil.rmtree(old, ignore_errors=True)


def describe(
    configs: Mapping[str, tuple[SAEConfig, FitConfig]], positions: int, init: Mapping[str, SparseAutoencoder]
) -> dict[str, Any]:
    """What a checkpoint must agree on with the fit that continues it."""
    return {
        "positions": positions,
        "configs": {n: {"sae": s.model_dump(), "fit": f.model_dump()} for n, (s, f) in configs.items()},
        "init": {name: sae.fingerprint() for name, sae in init.items()},
    }


def read_fit(place: Path, asked: Mapping[str, Any]) -> int:
    """Positions the checkpoint has consumed. Raises `ConfigError` if it belongs to another fit."""
    stored = read_json(place / FIT_FILE)
    if not isinstance(stored, dict) or stored.get("version") != VERSION:
        raise FormatError("not a checkpoint of this version", where=str(place), fix="Use another folder")
    if stored["fit"] != digest(asked):
        raise ConfigError(
            f"this folder holds a checkpoint of another fit ({_difference(stored, asked)})", where=str(place),
            fix="Use another folder, or remove this one to start over",
        )  # fmt: skip
    return int(stored["consumed"])


def _difference(stored: Mapping[str, Any], asked: Mapping[str, Any]) -> str:
    """The first things that differ, as `name.field: old → new`."""
    if stored["positions"] != asked["positions"]:
        return f"positions: {stored['positions']} → {asked['positions']}"
    old, new = stored["configs"], asked["configs"]
    if old.keys() != new.keys():
        return f"autoencoders: {', '.join(old)} → {', '.join(new)}"
    if stored["init"] != asked["init"]:
        return "other autoencoders to start from"
    changed = [
        f"{name}.{part}.{field}: {old[name][part].get(field)} → {value}"
        for name in new for part in ("sae", "fit") for field, value in new[name][part].items()
        if old[name][part].get(field) != value
    ]  # fmt: skip
    return "; ".join(changed[:3]) or "fields of another version"


def read_state(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """What `Trainer.restore` takes. Raises `FormatError` on a damaged file."""
    try:
        tensors: dict[str, Tensor] = safetensors.torch.load_file(folder / STATE_FILE)
    except (OSError, safetensors.SafetensorError) as e:
        raise FormatError(f"damaged checkpoint ({e})", where=str(folder / STATE_FILE), fix="Remove it") from e
    return read_json(folder / NUMBERS_FILE), tensors
