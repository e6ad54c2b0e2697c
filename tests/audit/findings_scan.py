"""Scans of pairs with given activations, without a folder or a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from seamark.features.accumulate import Pooled
from seamark.features.reading import Scan

Floats = NDArray[np.float64]


def planted_scan(
    groups: Mapping[str, tuple[Floats, Floats]], *, rewards: Mapping[str, Floats] | None = None,
    prompts: Mapping[str, Sequence[str]] | None = None, lengths: Mapping[str, Any] | None = None, parts: int = 1,
    silent: Sequence[str] = (),
) -> Scan:  # fmt: skip
    """A scan whose pairs have the given mean activations, by group (chosen, rejected), each [pairs × latents].

    Pairs are called `group0`, `group1`, …; `rewards` and `lengths` (response tokens) are [pairs, 2]; of the pairs in
    `silent` the chosen answer has no scoring position.
    """
    columns: dict[str, list[Any]] = {name: [] for name in (
        "text_id", "pair_id", "side", "group", "prompt", "n_positions", "n_response", "reward")}  # fmt: skip
    rows = []
    for group, sides in groups.items():
        for i in range(len(sides[0])):
            for side, name in enumerate(("chosen", "rejected")):
                pair = f"{group}{i}"
                heard = not (name == "chosen" and pair in silent)
                columns["text_id"].append(f"{pair}:{name}")
                columns["pair_id"].append(pair)
                columns["side"].append(name)
                columns["group"].append(group)
                columns["prompt"].append(prompts[group][i] if prompts else f"q-{pair}")
                columns["n_positions"].append(2 if heard else 0)
                columns["n_response"].append(int(lengths[group][i][side]) if lengths else 7)
                columns["reward"].append(float(rewards[group][i, side]) if rewards else 0.0)
                rows.append(sides[side][i] * (2.0 if heard else 0.0))
    sums = np.stack(rows)
    n, d_sae = sums.shape
    cut = [2 * len(c) for c in np.array_split(np.arange(n // 2), parts)]
    found = [csr_matrix(s) for s in np.split(sums, np.cumsum(cut)[:-1])]
    manifest = {"config": {"rewards": rewards is not None, "scope": "response"}, "rows": cut, "key": "k",
                "sae_configs": {"s": {"d_sae": d_sae}},
                "groups": {g: len(sides[0]) for g, sides in groups.items()}}  # fmt: skip
    scan = Scan(Path("planted"), manifest)
    scan.__dict__["texts"] = pa.table(columns)
    none = np.empty(0)
    scan._pooled = lambda _, part: Pooled(
        found[part].indptr, found[part].indices, found[part].data, none, none, none, none, none
    )
    return scan


def sparse(rng: np.random.Generator, n: int, d_sae: int, share: float = 0.4) -> Floats:
    """Activations of which only a share are not 0."""
    values: Floats = rng.exponential(size=(n, d_sae)) * (rng.random((n, d_sae)) < share)
    return values
