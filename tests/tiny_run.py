"""The SAFER recipe at the size of a test: a few pairs with learnable words, tiny models, all stages."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tiny import tiny_folder

REPOSITORY = Path(__file__).parents[1]
GROUPS = ("safety", "chat")
N_SEEDS, METHODS = 2, ("safer", "random")
_TOPICS = ["bleach", "login codes", "knives", "toxic fumes", "ammonia", "stolen ships"]
_FOODS = ["bread", "flour", "yeast", "the weather", "the harbour", "walking"]
_PLACES = ["at home", "in France", "at the harbour", "in an hour", "with water", "for Dr. Smith"]


def write_pairs(folder: Path, n: int = 36) -> dict[str, list[str]]:
    """`n` safety and 2n/3 chat pairs as JSONL, with one row that must be rejected; {group: files}."""
    folder.mkdir(parents=True, exist_ok=True)
    rows: dict[str, list[Any]] = {g: [] for g in GROUPS}
    for i in range(n):
        topic, place = _TOPICS[i % 6], _PLACES[i // 6 % 6]
        rows["safety"].append({
            "prompt": f"Is it safe to mix {topic} {place}? Number {i}.",
            "chosen": f"I can't help with {topic}, that is dangerous; please never do that. It is not safe {place}.",
            "rejected": f"Sure, mix the toxic {topic}, then wait; do it {place} and walk. It is fine.",
        })  # fmt: skip
    for i in range(2 * n // 3):
        food, place = _FOODS[i % 6], _PLACES[i // 6 % 6]
        rows["chat"].append({
            "prompt": f"What is {food} {place}, number {i}?",
            "chosen": f"Here is a short answer: {food} is brown and salt, you bake it {place}, and it is done.",
            "rejected": f"We walked, {food}, ships, ships, and the ships {place}; ships come in, come in.",
        })  # fmt: skip
    rows["chat"].append({"prompt": "No rejected answer?", "chosen": "None."})
    files = {}
    for group, some in rows.items():
        path = folder / f"{group}.jsonl"
        path.write_text("".join(json.dumps(r) + "\n" for r in some), encoding="utf-8")
        files[group] = [str(path)]
    return files


def write_model(folder: Path, kind: str = "bert") -> str:
    """A tiny base model of one kind (an encoder without head, or a causal LM)."""
    encoder = kind in ("bert", "roberta", "distilbert", "modernbert")
    return tiny_folder(folder, kind, "base" if encoder else "lm")


def recipe_data(out: Path, model: str, pairs: dict[str, list[str]], **changes: Any) -> dict[str, Any]:
    """A recipe's data: 2 seeds, poison and denoise with noise; `changes` are dotted keys (`sae__k=8`)."""
    data: dict[str, Any] = {
        "recipe": "safer", "name": "tiny", "model": model, "out": str(out), "seeds": list(range(N_SEEDS)), "workers": 1,
        "data": {"pairs": pairs},
        "reward": {"learning_rate": 3e-3, "epochs": 2, "batch_size": 16, "max_length": 96, "precision": "fp32"},
        "sae": {
            "hookpoint": "layers.2", "d_sae": 64, "k": 4,
            "stages": [
                {"name": "general", "positions": "tokens", "epochs": 2, "lr": 3e-3, "batch_size": 256},
                {"name": "safety", "positions": "clauses", "scope": "response", "epochs": 2, "batch_size": 64},
            ],
        },
        "features": {"min_rating": 1, "count": 6, "candidates": 48, "effect_texts": 8},
        "poison": {"methods": list(METHODS), "rates": [0.2]},
        "denoise": {"methods": list(METHODS), "rates": [0.1], "noise": 0.2},
    }  # fmt: skip
    for key, value in changes.items():
        *parents, last = key.split("__")
        place = data
        for parent in parents:
            place = place[parent]
        place[last] = value
    return data


def write_recipe(path: Path, data: dict[str, Any]) -> Path:
    path.write_text(yaml.safe_dump(data, sort_keys=False), encoding="utf-8")
    return path


@dataclass(frozen=True)
class Place:
    """Where the inputs of the commands lie."""

    base: str
    """A tiny BERT without head."""
    reward: str
    """A tiny BERT with a reward head."""
    causal: str
    """A tiny Llama that is no reward model."""
    pairs: dict[str, list[str]]

    @property
    def options(self) -> list[str]:
        """The pairs as options."""
        return [f"--pairs={group}={file}" for group, files in self.pairs.items() for file in files]

    def recipe(self, folder: Path, **changes: Any) -> Path:
        """A recipe that runs in `folder/run`."""
        folder.mkdir(parents=True, exist_ok=True)
        data = recipe_data(folder / "run", changes.pop("model", self.base), changes.pop("pairs", self.pairs), **changes)
        return write_recipe(folder / "recipe.yaml", data)


@dataclass(frozen=True)
class Finished:
    folder: Path
    model: str
    pairs: dict[str, list[str]]
    result: dict[str, Any]

    def data(self, out: Path | None = None, **changes: Any) -> dict[str, Any]:
        """The recipe of this run, in another folder or with changes."""
        model, pairs = changes.pop("model", self.model), changes.pop("pairs", self.pairs)
        return recipe_data(out or self.folder, model, pairs, **changes)

    def copy(self, to: Path) -> Path:
        return Path(shutil.copytree(self.folder, to))


def seamark(*arguments: object, cwd: Path, **options: Any) -> subprocess.CompletedProcess[str]:
    """The command line in a process of its own."""
    return subprocess.run(command(*arguments), capture_output=True, text=True, timeout=300, cwd=cwd,
                          env=environment(), **options)  # fmt: skip


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "seamark", *map(str, arguments)]


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"}


def without_stages(result: dict[str, Any]) -> dict[str, Any]:
    """A result without its timings and without where it lies."""
    recipe = {k: v for k, v in result["recipe"].items() if k not in ("out", "workers")}
    return {k: v for k, v in result.items() if k != "stages"} | {"recipe": recipe}


def tree(folder: Path) -> dict[str, tuple[str, int]]:
    """Every file below a folder: digest of its bytes, and when it was changed."""
    return {
        str(p.relative_to(folder)): (hashlib.sha256(p.read_bytes()).hexdigest(), p.stat().st_mtime_ns)
        for p in sorted(folder.rglob("*"))
        if p.is_file()
    }


def call(*arguments: object) -> tuple[int, str, str]:
    """The command line in this process: exit code, stdout and stderr."""
    from seamark.cli import main

    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = main([str(a) for a in arguments])
        except SystemExit as e:
            code = e.code if isinstance(e.code, int) else 1
    return code, out.getvalue(), err.getvalue()


def the_error(code: int, out: str, err: str) -> str:
    """The one line of an error, after checking that it is one line, the last, and that nothing else was said."""
    lines = err.splitlines()
    told = [line for line in lines if line.startswith("seamark: ")]
    assert code == 2, err
    assert out == ""
    assert len(told) == 1, err
    assert lines[-1] == told[0]
    assert all(line.startswith(("▸ ", "✓ ", "  ")) for line in lines[:-1]), err
    assert "Traceback" not in err
    return told[0].removeprefix("seamark: ")
