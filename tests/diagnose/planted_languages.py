"""Prompts in three languages whose features are known beforehand, in place of what a model would read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from seamark.diagnose.parallel import ParallelPrompt, ParallelPrompts
from seamark.diagnose.pooled import PooledTexts
from seamark.text.rendering import Rendered
from tiny import tiny_hooked

N, D_SAE = 60, 80
SAFETY = (3, 5)
"""Fire by the prompt's topic in en and fr; in hi they are silent but for a prompt in ten."""


def prompts(n: int = N) -> ParallelPrompts:
    words = ["harbour", "bread", "flour", "yeast", "ships", "weather", "walking", "lantern"]
    return ParallelPrompts(tuple(
        ParallelPrompt(f"p{i}", {lang: f"{words[i % 8]} {words[i // 8 % 8]} {lang} {i}" for lang in ("en", "fr", "hi")})
        for i in range(n)
    ))  # fmt: skip


def planted(language: str, prompt: int) -> NDArray[np.float64]:
    """z [d_sae]: 0 always fires; 3 and 5 fire in prompts of an even number; 10 to 29 each by a prompt's own hash; 30
    to 49 by chance, in every text anew."""
    own = np.random.default_rng(prompt)
    chance = np.random.default_rng([prompt, *language.encode()])
    z = np.zeros(D_SAE)
    z[0] = 2.0
    topic = 1.0 + 0.2 * own.random(2)
    if prompt % 2 == 0 and (language != "hi" or prompt % 20 == 0):
        z[list(SAFETY)] = topic
    z[10:30] = (own.random(20) < 0.4) * (1.0 + own.random(20))
    if language == "hi":
        z[10:30] *= chance.random(20) < 0.7
    z[30:50] = (chance.random(20) < 0.4) * (1.0 + chance.random(20))
    return z


def read_planted(
    model: Any, suite: Mapping[str, Any], texts: Sequence[Rendered], positions: Any, *,
    units_from: NDArray[np.bool_] | None = None, title: str = "", batch_tokens: int | None = None,
) -> dict[str, PooledTexts]:  # fmt: skip
    """In place of `read_pooled`; Q_f is 2 everywhere but for latent 49, which has none."""
    english = [t.text_id.startswith("en:") for t in texts]
    assert units_from is not None
    assert units_from.tolist() == english, "Q_f is the reference's alone"
    rows = [planted(lang, int(i[1:])) for lang, i in (t.text_id.split(":") for t in texts)]
    q = np.full(D_SAE, 2.0)
    q[49] = np.nan
    return {name: PooledTexts(name, sae.config.hookpoint, csr_matrix(np.stack(rows)), q)
            for name, sae in suite.items()}  # fmt: skip


def bert() -> Any:
    return tiny_hooked("bert", "base")
