"""Controls of a feature set: what a method would do with latents that nobody chose."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from seamark.errors import ConfigError, DataError
from seamark.features.contrast import Contrast
from seamark.features.reading import Scan
from seamark.features.sets import Feature, FeatureSet

NEAREST = 10
"""Latents of nearest activation mass among which a stand-in is drawn."""


def random_latents(scan: Scan, features: FeatureSet, scores: Contrast, seed: int = 0) -> FeatureSet:
    """Each feature replaced by a random other latent that fires about as much: random latents of equal activation mass.

    The mass of a latent is h⁺ + h⁻ of `scores`. A stand-in is drawn among the `NEAREST` latents whose mass is nearest
    in ratio, none of them a feature and each used once; features of large mass choose first, since they have few
    equals. It has the sign of its own contrastive score (SAFER, arXiv 2507.00665), as if it had been chosen, so that
    only the choice of latents differs. Provenance says who stands for whom, and the masses.

    Args:
        scan: the scan that `scores` come from.
        features: features of the autoencoder of `scores`.
        scores: contrastive scores of every latent.
        seed: of the draw.

    Returns:
        As many features, in the order of those they replace.

    Raises:
        DataError: no features, or fewer live latents than features besides them.
        ConfigError: features of another autoencoder, or scores of another scan.
    """
    _check(scan, features, scores)
    mass = scores.chosen + scores.rejected
    latents = np.asarray([f.latent for f in features.features])
    live = (mass > 0) & (scores.scores != 0)  # of a score of 0 there is no sign
    live[latents] = False
    n = int(live.sum())
    if n < len(latents):
        raise DataError(f"only {n} other latents fire, too few to replace {len(latents)} features",
                        where=scores.sae_id, fix="Use fewer features or a larger autoencoder")  # fmt: skip
    drawn = _drawn(mass, latents, live, np.random.default_rng(seed))
    found = tuple(
        Feature(sae=f.sae, latent=i, sign=1 if scores.scores[i] > 0 else -1, score=float(scores.scores[i]),
                why=f"drawn in place of {f.sae}/{f.latent}")
        for f, i in zip(features.features, drawn, strict=True)
    )  # fmt: skip
    provenance = {
        "method": "random latents of equal activation mass", "seed": seed, "scores": scores.provenance,
        "replaced": latents.tolist(), "mass": mass[drawn].tolist(), "mass_replaced": mass[latents].tolist(),
        "features": features.provenance,
    }  # fmt: skip
    return FeatureSet(features=found, provenance=provenance)


def _drawn(
    mass: NDArray[np.float64], latents: NDArray[np.int64], live: NDArray[np.bool_], chance: np.random.Generator
) -> list[int]:
    """A latent for each of `latents`, in their order."""
    log_mass = np.log(np.maximum(mass, np.finfo(np.float64).tiny))
    free = np.flatnonzero(live)
    found = dict.fromkeys(latents.tolist(), -1)
    for latent in sorted(found, key=lambda i: (-mass[i], i)):
        order = np.lexsort((free, np.abs(log_mass[free] - log_mass[latent])))
        place = order[chance.integers(min(NEAREST, len(free)))]
        found[latent] = int(free[place])
        free = np.delete(free, place)
    return list(found.values())


def _check(scan: Scan, features: FeatureSet, scores: Contrast) -> None:
    if not len(features):
        raise DataError("there is no feature to replace", where=scores.sae_id)
    other = next((f.sae for f in features.features if f.sae != scores.sae_id), None)
    if other is not None:
        raise ConfigError(f"a feature of {other!r}, but the scores are of {scores.sae_id!r}", where=str(scan.path),
                          fix="Replace the features of one autoencoder at a time")  # fmt: skip
    if scores.provenance.get("scan") != scan.manifest["key"]:
        raise ConfigError("the scores are of another scan", where=str(scan.path), fix="Use contrast(scan, …)")
    for feature in features.features:
        scan.check_latent(scores.sae_id, feature.latent)
