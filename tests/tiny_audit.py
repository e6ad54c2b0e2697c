"""The audit experiment at the size of a test."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tiny_run import recipe_data

METHODS = ["safer", "random", "untrained"]


def audit_data(out: Path, model: str, pairs: dict[str, list[str]], **changes: Any) -> dict[str, Any]:
    """A recipe's data: 2 seeds, one rate, one kind of noise; `changes` are dotted keys (`noise__safer=[0.1]`)."""
    data = recipe_data(out, model, pairs) | {
        "recipe": "audit-experiment", "name": "tiny audit",
        "poison": {"methods": METHODS, "rates": [0.2]},
        "noise": {"random": [0.2]},
        "denoise": {"methods": ["safer"], "rates": [0.1]},
        "detect": {"methods": ["margin", "latents"]},
    }  # fmt: skip
    data["features"] = {"min_rating": 1, "count": 6, "candidates": 48}
    data["scan"] = {"keep_tokens": "never"}
    data["reward"] |= {"epochs": 1}
    for key, value in changes.items():
        *parents, last = key.split("__")
        place = data
        for parent in parents:
            place = place.setdefault(parent, {})
        place[last] = value
    return data
