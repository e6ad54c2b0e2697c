"""Labelled texts whose right detector is known: in a scan, and as activations."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.sparse import csr_matrix

from seamark.diagnose.probes import RiskInputs, count_words
from seamark.diagnose.risk_texts import LabelledText, LabelledTexts

D_SAE, D_IN = 30, 8
WORDS = [
    "harbour", "bread", "flour", "yeast", "ships", "weather", "walking", "lantern", "meadow", "copper", "violin",
    "saddle", "orchard", "pebble", "ribbon", "candle", "marble", "timber", "feather", "anchor",
]  # fmt: skip


def sentences(n: int, seed: int = 0, word: str = "", length: int = 9) -> list[str]:
    """Texts that are no near duplicates of one another; each may hold one word more."""
    rng = np.random.default_rng(seed)
    return [" ".join([*rng.choice(WORDS, length), word, f"n{seed}x{i}"]).strip() for i in range(n)]


def texts_of(counts: dict[str, tuple[int, int]], language: str = "en", word: str = "") -> LabelledTexts:
    """{source: (texts of "storm", texts of "none")}."""
    items = []
    for number, (source, (positive, negative)) in enumerate(counts.items()):
        for label, n in (("storm", positive), ("none", negative)):
            said = sentences(n, 2 * number + (label == "none"), word if label == "storm" else "")
            items += [LabelledText(f"{source}-{label}-{i}", text, frozenset({label}), source, language)
                      for i, text in enumerate(said)]  # fmt: skip
    return LabelledTexts.of(items)


def planted(texts: LabelledTexts, seed: int = 1) -> RiskInputs:
    """Latent 3 fires in 90 % of the texts of "storm" and in 5 % of others; 5 and 7 both fire in those of "storm", and
    one of the two in half of the others; all else is noise. Raw activations tell a little."""
    rng = np.random.default_rng(seed)
    y = np.asarray(["storm" in t.labels for t in texts])
    n = len(texts)
    z = rng.random((n, D_SAE)) * (rng.random((n, D_SAE)) < 0.2)
    z[:, 3] = np.where(rng.random(n) < np.where(y, 0.9, 0.05), 1 + rng.random(n), 0)
    one = rng.integers(0, 2, n)
    for side, latent in enumerate((5, 7)):
        z[:, latent] = np.where(y | ((one == side) & (rng.random(n) < 0.9)), 1 + rng.random(n), 0)
    raw = (rng.standard_normal((n, D_IN)) + y[:, None] * 0.4).astype(np.float32)
    words, vocabulary = count_words(texts)
    lengths = np.asarray([len(t.text.split()) for t in texts])
    return RiskInputs(texts, csr_matrix(z), csr_matrix(z / 4), raw, words, vocabulary, lengths)


def write_rows(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def as_rows(texts: LabelledTexts) -> list[dict[str, Any]]:
    return [{"id": t.id, "text": t.text, "label": sorted(t.labels)[0], "source": t.source, "language": t.language}
            for t in texts]  # fmt: skip
