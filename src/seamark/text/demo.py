"""The authored demo data that come with Seamark: preference pairs and concept-contrast pairs, in English."""

from __future__ import annotations

import json
from importlib import resources
from typing import Any, Literal

from seamark.errors import DataError
from seamark.text.contrast import ContrastPair, ContrastPairs
from seamark.text.pairs import Pairs, PreferencePair, content_id

Split = Literal["train", "test"]


def demo_pairs(split: Split | None = None) -> Pairs:
    """The demo's preference pairs of groups `safety` and `chat`, or one side of their fixed split by prompt.

    `category` is the kind of harm or of chat; `source` is `demo`, and for safety pairs whose prompt only looks harmful
    and whose chosen answer helps, `demo-lookalike`. `.raw` has each row whole, with `kind` and `split`.

    Raises:
        DataError: unknown split, or the packaged data are missing.
    """
    if split not in (None, "train", "test"):
        raise DataError(f"no demo split {split!r}", fix="Use train, test or None for both")
    rows = [row for row in _rows("pairs.jsonl") if split is None or row["split"] == split]
    items = tuple(
        PreferencePair(
            row["id"], row["group"], row["prompt"], row["chosen"], row["rejected"],
            "demo-lookalike" if row["kind"] == "lookalike" else "demo", row["category"],
        )
        for row in rows
    )  # fmt: skip
    return Pairs(items, raw={row["id"]: row for row in rows})


def demo_contrast_pairs() -> ContrastPairs:
    """The demo's concept-contrast pairs over four domains. DataError where the packaged data are missing."""
    items = tuple(
        ContrastPair(
            row["domain"], row["concept"], row["with"], row["without"],
            row.get("id") or content_id(row["concept"], row["with"], row["without"]),
        )
        for row in _rows("contrast.jsonl")
    )  # fmt: skip
    return ContrastPairs(items)


def _rows(name: str) -> list[dict[str, Any]]:
    file = resources.files("seamark.text").joinpath("data", name)
    try:
        text = file.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise DataError("the packaged demo data are missing", where=name, fix="Install Seamark again") from error
    return [json.loads(line) for line in text.split("\n") if line.strip()]
