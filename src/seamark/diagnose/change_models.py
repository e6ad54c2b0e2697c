"""What needs the models themselves: whether the autoencoder fits them, and what features add to their rewards."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from scipy.sparse import csr_matrix, vstack

from seamark.diagnose.attribution import units_in
from seamark.diagnose.change_report import Fit
from seamark.errors import DataError
from seamark.features.contexts import ShownTexts
from seamark.features.gather import gather, public_name
from seamark.features.reading import Scan
from seamark.model.batching import collate, plan_batches
from seamark.model.gradients import reward_gradients
from seamark.model.loading import HookedModel, RewardModel
from seamark.run import progress
from seamark.sae import SparseAutoencoder
from seamark.sae.quality import quality
from seamark.text.pairs import hash_unit
from seamark.text.rendering import Rendered

FIT_TEXTS = 512
"""Texts on which reconstruction is measured, at most."""
POSITIONS = 1024
"""Positions whose products with all decoder directions lie in memory at once."""


def texts_of(scan: Scan) -> list[Rendered]:
    """The texts of a scan as the model was shown them."""
    shown = ShownTexts(scan.parts, scan.starts, prompts=False)
    return [shown.rendered(row) for row in range(int(scan.starts[-1]))]


def fit_of(
    who: str, model: HookedModel, sae: SparseAutoencoder, texts: Sequence[Rendered], batch_tokens: int = 8192
) -> Fit:
    """Reconstruction of the answers' tokens, on at most `FIT_TEXTS` texts chosen by a hash of their ids.

    Raises:
        DataError: no text has an answer; NaN or infinite activations.
    """
    some = [t for t in texts if t.response_span[0] < t.response_span[1]]
    some = sorted(some, key=lambda t: hash_unit(t.text_id))[:FIT_TEXTS]
    if not some:
        raise DataError("no text has a token to reconstruct", where=sae.config.hookpoint, fix="Give other texts")

    def stream() -> Iterator[torch.Tensor]:
        for plan in plan_batches([len(t) for t in some], batch_tokens):
            at = [np.arange(*some[row].response_span, dtype=np.int32) for row in plan]
            yield gather(model, some, plan, at, [sae.config.hookpoint]).activations[sae.config.hookpoint]

    found = quality(sae, stream())
    return Fit(who=who, model=public_name(model), fvu=found.fvu, l0=found.l0_positive, dead_share=found.dead_share,
               n=found.n)  # fmt: skip


def attributions(
    model: RewardModel, sae: SparseAutoencoder, texts: Sequence[Rendered], batch_tokens: int = 8192
) -> csr_matrix:
    """What the firings of every latent in a text's answer add to its reward, to first order: [texts, d_sae].

    Σ over the answer's tokens of ∂reward/∂h · z · W_dec (see `attribution.record`, which takes some latents and keeps
    every firing). One pass forward and one back.

    Raises:
        DataError: a gradient that is not finite.
    """
    found: list[csr_matrix] = [csr_matrix((1, sae.config.d_sae))] * len(texts)
    plans = plan_batches([len(t) for t in texts], batch_tokens)
    with progress("Attribution", len(texts), "texts") as advance:
        for plan in plans:
            graded = reward_gradients(model, collate(texts, int(model.config.pad_token_id), rows=plan),
                                      [sae.config.hookpoint])  # fmt: skip
            h_BTD, g_BTD = (x[sae.config.hookpoint].float() for x in (graded.activations, graded.gradients))
            if not bool(torch.isfinite(g_BTD).all()):
                raise DataError("a gradient of the reward is not finite", where=sae.config.hookpoint,
                                fix="Load the model in float32")  # fmt: skip
            spans = [texts[row].response_span for row in plan]
            h_ND, g_ND = (torch.cat([x[b, s:e] for b, (s, e) in enumerate(spans)]) for x in (h_BTD, g_BTD))
            owner = np.repeat(np.arange(len(plan)), [e - s for s, e in spans])
            worth = _worth(sae, h_ND, g_ND, owner, len(plan))
            for i, row in enumerate(plan):
                found[row] = worth[i]
            advance(len(plan))
    return vstack(found, format="csr")


@torch.no_grad()
def _worth(
    sae: SparseAutoencoder, h_ND: torch.Tensor, g_ND: torch.Tensor, owner: np.ndarray, n: int
) -> csr_matrix:  # fmt: skip
    """Sums by text of g · z · W_dec over the entries that fire, [texts of the batch, d_sae]."""
    weight = sae.W_dec
    rows, columns, values = [], [], []
    for first in range(0, len(h_ND), POSITIONS):
        h, g = (x[first : first + POSITIONS].to(weight.device, weight.dtype) for x in (h_ND, g_ND))
        latents = sae.encode(h)
        along = g @ weight.T
        at, index = latents.rows(), latents.indices.flatten().long()
        size = latents.values.flatten().clamp_min(0) * units_in(sae, h)[at] * along[at, index]
        rows.append(owner[first : first + POSITIONS][at.cpu().numpy()])
        columns.append(index.cpu().numpy())
        values.append(size.double().cpu().numpy())
    if not values:
        return csr_matrix((n, sae.config.d_sae))
    data, row, column = (np.concatenate(part) for part in (values, rows, columns))
    summed = csr_matrix((data, (row, column)), shape=(n, sae.config.d_sae))
    summed.eliminate_zeros()
    return summed
