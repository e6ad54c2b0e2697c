"""The same for another contrast than safety: a scan with planted verbosity features, from contrast to reliance."""

from __future__ import annotations

import numpy as np
from findings_scan import Floats, planted_scan, sparse

from seamark.audit.dimension import SAFETY, Dimension
from seamark.audit.overlap import overlap
from seamark.audit.reliance import reliance
from seamark.audit.scores import score_pairs
from seamark.explain.ratings import as_pairs, statistical_ratings
from seamark.features import Scan, contrast

N, D = 150, 30
WORDY, PADDED, POLITE, SHINY = 4, 9, 15, 21
"""Latents of wordy answers (chosen, rejected), one of good answers everywhere, one that only the reward likes."""
VERBOSITY = Dimension(
    name="verbosity", group="verbose", against=("plain",),
    question="how strongly the feature has to do with saying in many words what few would say",
)  # fmt: skip


def planted(wrong: int = 10) -> Scan:
    """Pairs in which the wordy answer is preferred; of the first `wrong` the label is swapped."""
    rng = np.random.default_rng(3)
    found: dict[str, tuple[Floats, Floats]] = {}
    rewards = {}
    for group in ("verbose", "plain"):
        chosen, rejected = (0.3 * sparse(rng, N, D, 0.2) for _ in range(2))
        for side in (chosen, rejected):
            side[:, [WORDY, PADDED]] = 0.0
        chosen[:, POLITE] += rng.random(N) < 0.6
        if group == "verbose":
            chosen[:, WORDY] = 1 + rng.random(N)
            rejected[:, PADDED] = 1 + rng.random(N)
            chosen[:wrong], rejected[:wrong] = rejected[:wrong].copy(), chosen[:wrong].copy()
        found[group] = (chosen, rejected)
        rewards[group] = np.stack([3 * side[:, SHINY] + 0.3 * rng.normal(size=N) for side in found[group]], axis=1)
    return planted_scan(found, rewards=rewards, parts=2)


def test_verbosity_from_contrast_to_reliance() -> None:
    scan = planted()
    candidates = contrast(scan, VERBOSITY.group).top(10)
    assert POLITE in candidates.latents("s")
    ratings = statistical_ratings(scan, "s", candidates.latents("s"), dimension=VERBOSITY)
    features = candidates.with_ratings(as_pairs(ratings), "statistical").rated(5)
    assert {(f.latent, f.sign) for f in features.features} == {(WORDY, 1), (PADDED, -1)}
    assert all("verbose responses" in f.why for f in features.features)
    scores = score_pairs(scan, features, method="safer").values
    lowest = sorted((i for i in scores if i.startswith("verbose")), key=scores.__getitem__)[:10]
    assert set(lowest) == {f"verbose{i}" for i in range(10)}
    assert overlap(scan, features, VERBOSITY.group, "plain", draws=50).outside.value == 0.0
    found = reliance(scan, features, VERBOSITY.group, dimension=VERBOSITY, draws=50)
    assert found.dimension == "verbosity"
    assert found.latents[0].latent == SHINY
    assert "verbose responses" in found.latents[0].why
    assert SAFETY.name == "safety"
