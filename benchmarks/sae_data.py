"""Real activations to learn from: `python -m benchmarks.sae_data FOLDER` reads the model once and writes three files.

Texts are those of SEAMARK_DATA/plain_text.jsonl.gz (a folder of real data that is no part of the project) where that
variable is set, else the demo's.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file

from seamark.features.gather import gather
from seamark.model import DEFAULT_MODEL, RewardModel
from seamark.model.batching import plan_batches
from seamark.run import write_json
from seamark.text import demo_pairs
from seamark.text.corpus import read_texts
from seamark.text.pairs import hash_unit
from seamark.text.positions import positions
from seamark.text.rendering import Rendered

VARIABLE = "SEAMARK_DATA"
PARTS = ("train", "valid", "held_out")
SHARE = 0.015
"""Of the texts, by hash: for the choice of learning rates, and as many for the final measurement."""
LIMITS = {"train": 4_000_000, "valid": 50_000, "held_out": 50_000}
"""Positions at most."""
BATCH_TOKENS, GROUP = 8192, 512


def source() -> str:
    """Where the texts come from, as results tell it."""
    return "plain_text" if real_texts() else "demo texts"


def real_texts() -> Path | None:
    path = Path(os.environ.get(VARIABLE, "")) / "plain_text.jsonl.gz"
    return path if os.environ.get(VARIABLE) and path.exists() else None


def main(folder: Path) -> dict[str, int]:
    """Writes {train, valid, held_out}.safetensors (`x`, float16 [n, d_in]) and `data.json`; returns the counts."""
    model = RewardModel.from_base(DEFAULT_MODEL)
    renderer = model.renderer()
    parts: dict[str, list[Rendered]] = {part: [] for part in PARTS}
    for text_id, text in texts():
        parts[part_of(text_id)].append(renderer.render_text(text, text_id))
    folder.mkdir(parents=True, exist_ok=True)
    counts = {part: write(model, parts[part], LIMITS[part], folder / f"{part}.safetensors") for part in PARTS}
    about = {"source": source(), "model": "MiniLM-L6", "hookpoint": model.default_hookpoint, "positions": counts,
             "d_in": model.d_model(model.default_hookpoint)}  # fmt: skip
    write_json(folder / "data.json", about)
    return counts


def texts() -> list[tuple[str, str]]:
    """(id, text) in the order of their hashes."""
    path = real_texts()
    if path is not None:
        found = list(read_texts(path))
    else:
        found = [(f"{p.id}:{i}", t) for p in demo_pairs() for i, t in enumerate((p.chosen, p.rejected))]
    return sorted(found, key=lambda item: (hash_unit(item[0], 1), item[0]))


def part_of(text_id: str) -> str:
    """Both sides of a demo pair go to one part."""
    place = hash_unit(text_id.partition(":")[0], 2)
    return "held_out" if place < SHARE else "valid" if place < 2 * SHARE else "train"


def write(model: RewardModel, rendered: Sequence[Rendered], limit: int, path: Path) -> int:
    """Activations of all tokens at the default hookpoint, up to `limit`; their number."""
    hookpoint = model.default_hookpoint
    chosen = [positions(r, "tokens") for r in rendered]
    x = torch.empty(min(limit, sum(map(len, chosen))), model.d_model(hookpoint), dtype=torch.float16)
    at = 0
    for start in range(0, len(rendered), GROUP):
        if at == len(x):
            break
        group = range(start, min(start + GROUP, len(rendered)))
        for batch in plan_batches([len(rendered[i]) for i in group], BATCH_TOKENS):
            rows = [start + i for i in batch]
            h = gather(model, rendered, rows, [chosen[r] for r in rows], [hookpoint]).activations[hookpoint]
            n = min(len(h), len(x) - at)
            x[at : at + n] = h[:n]
            at += n
    save_file({"x": x}, path)
    return len(x)


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]))))
