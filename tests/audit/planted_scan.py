"""A scan whose right answers are known: latents that fire on safe and on harmful answers, and labels that were swapped.

Nothing was read by a model: tables and latents are made up and held in memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from seamark.features.reading import Scan
from seamark.text.pairs import Pairs, PreferencePair

D_SAE, D_IN, SAFE, HARM = 40, 12, (0, 1, 2), (3, 4)
"""Latents 0-2 fire on the better answer, 3-4 on the worse one, the others on either."""
WORDS = ("halt", "wary", "shun"), ("sure", "okay", "easy")


class PlantedScan(Scan):
    """Two parts of texts; `swap` exchanges the sides of some pairs, `shuffle` moves their texts to other rows."""

    def __init__(
        self, n: int = 300, *, wrong: float = 0.0, seed: int = 0, swap: tuple[str, ...] = (), shuffle: bool = False
    ) -> None:
        rng = np.random.default_rng(seed)
        self.path, self.sae_ids = Path("planted"), ["s"]
        self.manifest: dict[str, Any] = {
            "key": "planted", "groups": ["safety", "chat"], "choices": {"keep_tokens": False},
            "sae_configs": {"s": {"d_sae": D_SAE, "hookpoint": "layers.2"}},
        }  # fmt: skip
        self.config = {"scope": "response", "rewards": True}
        latents, raw, length = [], [], []
        way = rng.normal(size=(2, D_IN))
        rows: list[dict[str, Any]] = []
        self.wrong: set[str] = set()
        pairs = []
        for i in range(n):
            pair, prompt = f"p{i}", f"h{i % (n * 2 // 3)}"
            group = "safety" if i % 4 else "chat"
            both = [rng.random(D_SAE) * (rng.random(D_SAE) < 0.4) for _ in range(2)]
            for j, mine in enumerate((SAFE, HARM)):  # answer 0 is the better one
                both[j][list(mine)] += rng.random(len(mine)) * 1.5
            activations = [both[j] @ np.ones(D_SAE) * 0.02 + way[j] + rng.normal(size=D_IN) * 1.5 for j in range(2)]
            words = [
                f"{rng.choice(WORDS[j])} then {rng.choice(WORDS[int(rng.random() < 0.5)])} {i}{' x' * rng.integers(5)}"
                for j in range(2)
            ]
            flipped = rng.random() < wrong and group == "safety"
            self.wrong |= {pair} if flipped else set()
            order = (1, 0) if flipped != (pair in swap) else (0, 1)
            tokens = [int(rng.integers(5, 50)) for _ in range(2)]
            rewards = [float(rng.normal(1.0 if j == 0 else -1.0, 1.5)) for j in range(2)]
            for side, j in zip(("chosen", "rejected"), order, strict=True):
                rows.append({"text_id": f"{pair}:{side}", "pair_id": pair, "side": side, "group": group,
                             "prompt": prompt, "n_positions": 3, "n_tokens": 10 + tokens[j], "n_response": tokens[j],
                             "reward": rewards[j]})  # fmt: skip
                latents.append(both[j])
                raw.append(activations[j])
                length.append(tokens[j])
            pairs.append(PreferencePair(pair, group, f"question {prompt}", words[order[0]], words[order[1]],
                                        category="abc"[i % 3]))  # fmt: skip
        at = np.random.default_rng(7).permutation(len(rows)) if shuffle else np.arange(len(rows))
        self.pairs = Pairs(tuple(pairs))
        self.texts = pa.Table.from_pylist([rows[i] for i in at])
        self._latents, self._raw = csr_matrix(np.asarray(latents)[at]), np.asarray(raw, np.float32)[at]
        half = len(rows) // 2 + 1
        self.starts = np.asarray([0, half, len(rows)])

    def pooled_parts(self, sae_id: str | None = None, stat: str = "mean") -> Iterator[tuple[int, csr_matrix]]:
        assert stat == "mean"
        for start, end in zip(self.starts[:-1], self.starts[1:], strict=True):
            yield int(start), self._latents[start:end]

    def raw_parts(self, hookpoint: str | None = None) -> Iterator[tuple[int, NDArray[np.float32]]]:
        for start, end in zip(self.starts[:-1], self.starts[1:], strict=True):
            yield int(start), self._raw[start:end]
