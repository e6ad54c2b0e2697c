"""Seamark's own format: `config.json` (all of `SAEConfig`, with `format_version`) and `sae.safetensors`."""

from __future__ import annotations

from pathlib import Path

from seamark.run import write_json
from seamark.sae.config import migrate
from seamark.sae.formats.files import read_json, read_safetensors, save_tensors
from seamark.sae.formats.stored import Format, Source, Stored, build

CONFIG, WEIGHTS = "config.json", "sae.safetensors"


def read(source: Source) -> Stored:
    fields = migrate(read_json(source.path / CONFIG))
    return build(source, "seamark", read_safetensors(source.path / WEIGHTS), **fields)


def write(stored: Stored, folder: Path, approximate: bool) -> tuple[str, ...]:
    save_tensors(folder / WEIGHTS, stored.tensors)
    write_json(folder / CONFIG, stored.config)
    return ()


FORMAT = Format("seamark", "Seamark (config.json, sae.safetensors)", (CONFIG, WEIGHTS), read, write)
