"""What an atlas knows of the features of a suite: labels, domains, scores, and the unit of their activations."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from seamark.atlas.records import Sae
from seamark.atlas.store import Atlas
from seamark.diagnose.inspecting import Labels
from seamark.diagnose.inspection import About
from seamark.errors import ConfigError
from seamark.sae import SparseAutoencoder


def match_saes(atlas: Atlas, suite: Mapping[str, SparseAutoencoder]) -> dict[str, str]:
    """{sae id of the suite: its id in the atlas}: by name, else by fingerprint; those that are not there are left out.

    Raises:
        ConfigError: the atlas has another autoencoder of that name.
    """
    known = {sae.id: sae for sae in atlas.saes()}
    by_fingerprint = {sae.fingerprint: sae.id for sae in known.values() if sae.fingerprint}
    found = {}
    for name, sae in suite.items():
        if name in known:
            _check(name, sae, known[name])
            found[name] = name
        elif by_fingerprint and (other := by_fingerprint.get(sae.fingerprint())) is not None:
            found[name] = other
    return found


def atlas_labels(atlas: Atlas, names: Mapping[str, str]) -> Labels:
    """Labels for `inspect_text`; `names` as of `match_saes`."""

    def labels(sae: str, latents: Sequence[int]) -> Mapping[int, About]:
        if sae not in names:
            return {}
        cards = atlas.cards_at(names[sae], latents)
        return {latent: About(label=card.label, state=card.state, domains=card.domains, score=card.score,
                              rating=card.rating) for latent, card in cards.items()}  # fmt: skip

    return labels


def atlas_quantiles(
    atlas: Atlas, names: Mapping[str, str], suite: Mapping[str, SparseAutoencoder]
) -> dict[str, NDArray[np.float64]]:  # fmt: skip
    """{sae id: Q_f [d_sae]} as the atlas has it; NaN: not available."""
    found = {}
    for name, there in names.items():
        units = np.full(suite[name].config.d_sae, np.nan)
        for latent, card in atlas.cards_at(there, range(len(units))).items():
            units[latent] = np.nan if card.q is None else card.q
        found[name] = units
    return found


def filled(units: NDArray[np.float64] | None, others: Iterable[NDArray[np.float64]]) -> NDArray[np.float64] | None:
    """Q_f of an autoencoder, with those that are missing taken from the first of `others` that agrees wherever both
    know one: then both come from the same scan. Units of different corpora are never mixed."""
    for other in others:
        if units is None:
            return other
        both = np.isfinite(units) & np.isfinite(other)
        if np.allclose(units[both], other[both], rtol=1e-6, atol=0):
            return np.where(np.isfinite(units), units, other)
    return units


def _check(name: str, sae: SparseAutoencoder, known: Sae) -> None:
    """Raise `ConfigError` where they cannot be the same autoencoder."""
    differs = known.d_sae not in (None, sae.config.d_sae)
    if differs or (known.fingerprint and known.fingerprint != sae.fingerprint()):
        raise ConfigError(f"the atlas has another autoencoder called {name!r}", where="--sae",
                          fix="Give it another name: --sae name=folder, or the atlas's own autoencoder")  # fmt: skip
