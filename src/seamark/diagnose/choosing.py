"""Which of all that fires in a text becomes a node: what does most to the output, and what fires strongest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from seamark.diagnose.firing import Entries
from seamark.diagnose.linking import Passed, worth
from seamark.diagnose.steering import Suite
from seamark.features.accumulate import Firings

PER_FEATURE = 2
"""Tokens at which one feature may stand among a hookpoint's nodes, so that it does not take all of them."""
Floats = NDArray[np.float64]


def fired(suite: Suite, units: Mapping[str, Floats], passed: Passed) -> list[Entries]:
    """What fires at every token, by autoencoder."""
    found = []
    for sae_id, sae in suite.items():
        h_TD = passed.activations[sae.config.hookpoint][0].detach()
        latents = sae.encode(h_TD.to(sae.W_dec.device))
        found.append(Entries.of(sae_id, sae.config.hookpoint, Firings.of(latents), units[sae_id]))
    return found


def on_output(
    suite: Suite, found: Sequence[Entries], passed: Passed, toward: Mapping[str, Tensor]
) -> list[Floats]:  # fmt: skip
    """What each firing adds to the output, to first order; `toward`: the output's gradients by hookpoint."""
    out = []
    for e in found:
        device = suite[e.sae].W_dec.device
        latent, token = (torch.from_numpy(x.astype(np.int64)).to(device) for x in (e.latent, e.token))
        value = torch.from_numpy(e.value).to(device)
        effect = worth(suite[e.sae], latent, token, value, passed.activations[e.hookpoint][0], toward[e.hookpoint])
        out.append(effect.double().cpu().numpy())
    return out


def chosen(
    found: Sequence[Entries], effects: Sequence[Floats] | None, allowed: Sequence[NDArray[np.bool_]], n: int
) -> list[tuple[int, int]]:  # fmt: skip
    """(which of `found`, which entry of it) of at most n firings of each hookpoint.

    Half of them, rounded up, by the size of their effect on the output, where there is one; the others by activation /
    Q_f, those without Q_f last, by plain activation.
    """
    kept = []
    for hookpoint in dict.fromkeys(e.hookpoint for e in found):
        here = [i for i, e in enumerate(found) if e.hookpoint == hookpoint]
        kept += _of_one(here, found, effects, allowed, n)
    return kept


def _of_one(
    here: Sequence[int], found: Sequence[Entries], effects: Sequence[Floats] | None,
    allowed: Sequence[NDArray[np.bool_]], n: int,
) -> list[tuple[int, int]]:  # fmt: skip
    rows = [np.flatnonzero(allowed[i]) for i in here]
    source = np.repeat(here, [len(r) for r in rows])
    entry = np.concatenate(rows)
    token, latent, value, share = (
        np.concatenate([getattr(found[i], name)[r] for i, r in zip(here, rows, strict=True)])
        for name in ("token", "latent", "value", "normalised")
    )
    without = np.isnan(share)
    strong = np.lexsort((latent, source, token, -np.where(without, value, share), without))
    picked: list[int] = []
    taken: dict[tuple[int, int], int] = {}

    def fill(order: NDArray[np.int64], until: int) -> None:
        for i in order.tolist():
            if len(picked) >= until:
                return
            key = int(source[i]), int(latent[i])
            if i not in picked and taken.get(key, 0) < PER_FEATURE:
                taken[key] = taken.get(key, 0) + 1
                picked.append(i)

    if effects is not None:
        size = np.concatenate([np.abs(effects[i][r]) for i, r in zip(here, rows, strict=True)])
        order = np.lexsort((latent, source, token, -size))
        fill(order[size[order] > 0], (n + 1) // 2)
    fill(strong, n)
    return [(int(source[i]), int(entry[i])) for i in picked]
