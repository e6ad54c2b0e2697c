"""Does a feature move the reward? Raise it, and read the reward again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from seamark.errors import ConfigError, DataError
from seamark.features.moving import Move, moving
from seamark.features.scan import check_suite
from seamark.model.loading import RewardModel
from seamark.model.reading import apply_at
from seamark.model.skipping import skipping_below
from seamark.run import progress
from seamark.sae import SparseAutoencoder
from seamark.stats import Estimate, bootstrap_by_cluster, cluster_codes
from seamark.text.rendering import Rendered


def direct_effect(
    model: RewardModel,
    sae: SparseAutoencoder,
    latents: Sequence[int],
    texts: Sequence[Rendered],
    *,
    q: Mapping[int, float] | NDArray[np.floating],
    amount: float = 1.0,
    clusters: Sequence[str] | None = None,
    batch_tokens: int = 8192,
    seed: int = 0,
) -> dict[int, Estimate]:
    """Mean change of the reward when a latent is raised by `amount` · Q_f at every response position.

    The latent's decoder direction is added at the autoencoder's hookpoint, in the hookpoint's units (each position's
    own std when the autoencoder normalises), and the rest of the model runs as ever (SAFER, arXiv 2507.00665, steers
    one latent so). The model reads the texts once, and once more for each latent.

    Args:
        latents: which latents to raise, one at a time.
        texts: sample texts; those without a response token are left out.
        q: Q_f by latent; NaN or missing: the effect is not available.
        amount: how far, in units of Q_f; negative lowers.
        clusters: a label for each text (its prompt), the unit of resampling; each text for itself if absent.

    Returns:
        {latent: mean change with its 95 % interval}, over texts.

    Raises:
        DataError: no texts with a response, or no such latent.
    """
    check_suite(model, {"autoencoder": sae})
    strange = [i for i in latents if not 0 <= i < sae.config.d_sae]
    if strange:
        raise DataError(f"no latent {strange[0]}; there are {sae.config.d_sae}", where="direct_effect")
    if clusters is not None and len(clusters) != len(texts):
        raise ConfigError(f"{len(clusters)} clusters for {len(texts)} texts", where="direct_effect")
    kept = [i for i, t in enumerate(texts) if t.response_span[0] < t.response_span[1]]
    if not kept:
        raise DataError("no text with a response to raise features in", where="direct_effect")
    texts = [texts[i] for i in kept]
    codes = cluster_codes([clusters[i] if clusters is not None else str(i) for i in kept])
    out = {}
    with (
        skipping_below(model, sae.config.hookpoint, texts, batch_tokens=batch_tokens),
        progress("Direct effect", len(latents), "features") as advance,
    ):
        base = model.rewards(texts, batch_tokens)
        for latent in latents:
            size = float(q.get(latent, np.nan) if isinstance(q, Mapping) else q[latent])
            if np.isfinite(size):
                change = moving([(sae, [Move(latent, "add", amount * size)])], texts)
                with apply_at(model, {sae.config.hookpoint: change}):
                    raised = model.rewards(texts, batch_tokens)
                out[latent] = bootstrap_by_cluster(raised - base, codes, seed=seed)
            else:
                out[latent] = Estimate.not_available("the feature fires fewer than 10 times: no Q_f", len(texts))
            advance(1)
    return out
