"""The job as a careful engineer writes it today without a library for it.

One pass in inference mode over batches padded to their longest text, in the order of the data; hidden states through
`output_hidden_states`; latents dense [n, d_sae] at the tokens that are read (clause ends of the whole text, and all
tokens of the answer, for contexts); sums and maxima of each text in torch; the strongest texts of each latent in a
running top-k; and of every token the k latents that top-k gave, so that contexts need no second pass.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.scans.dense import DenseSAE, contrastive_scores, strongest
from benchmarks.scans.job import (
    EXPLAINED,
    SCORED,
    SHOWN,
    Answer,
    Job,
    Loaded,
    Positions,
    call_options,
    rendered,
)
from seamark.model.batching import collate
from seamark.text.positions import positions
from seamark.text.rendering import Rendered

BATCH = 32
"""Texts of a batch."""


@dataclass(frozen=True)
class Places:
    """The tokens of a text that are read, ascending, and which of them are scored."""

    at: NDArray[np.int64]
    scored: Tensor


@torch.inference_mode()
def run(loaded: Loaded, job: Job) -> tuple[Answer, dict[str, float]]:
    """The answer, and nothing else to tell."""
    texts, scoring = rendered(loaded, job.setup)
    places = [places_of(text, at) for text, at in zip(texts, scoring, strict=True)]
    hf, pad, options = loaded.model.hf.eval(), int(loaded.model.config.pad_token_id), call_options(loaded)
    sae, found = DenseSAE(loaded.sae), Found(len(texts), job.setup.d_sae)
    for start in range(0, len(texts), BATCH):
        rows = list(range(start, min(start + BATCH, len(texts))))
        batch = collate(texts, pad, rows=rows)
        output = hf(
            input_ids=batch.input_ids, attention_mask=batch.attention_mask, output_hidden_states=True, **options
        )
        hidden_BTD = output.hidden_states[job.setup.layer + 1]
        h_ND = torch.cat([hidden_BTD[i, places[row].at] for i, row in enumerate(rows)])
        found.add(rows, [places[row] for row in rows], sae, h_ND)
    scores = contrastive_scores(found.sums_TF[0::2].sum(0), found.sums_TF[1::2].sum(0))
    explained = strongest(scores, EXPLAINED)
    contexts = {latent: found.contexts(latent, texts, places) for latent in explained}
    return Answer.of(scores, explained, contexts, pair_scores(found.sums_TF, places, scores, explained[:SCORED])), {}


def places_of(text: Rendered, scoring: Positions) -> Places:
    at = np.union1d(scoring, positions(text, "tokens")).astype(np.int64)
    return Places(at, torch.from_numpy(np.isin(at, scoring)))


def pair_scores(sums_TF: Tensor, places: list[Places], scores: Any, features: list[int]) -> list[float]:
    """g(chosen) − g(rejected) of every pair."""
    signs_F = torch.as_tensor(np.sign(scores[features]), dtype=sums_TF.dtype)
    n_T = torch.tensor([int(p.scored.sum()) for p in places])
    g_T = (sums_TF[:, features] @ signs_F) / n_T.clamp(min=1)
    return (g_T[0::2] - g_T[1::2]).tolist()


class Found:
    """What the pass collects."""

    def __init__(self, n_texts: int, d_sae: int) -> None:
        self.sums_TF = torch.zeros(n_texts, d_sae)
        self.best_NF, self.best_text_NF = torch.zeros(SHOWN, d_sae), torch.zeros(SHOWN, d_sae, dtype=torch.int64)
        self.kept: list[tuple[Tensor, Tensor]] = []
        """Of each text (values, latents), [tokens, k] both."""

    def add(self, rows: list[int], places: list[Places], sae: DenseSAE, h_ND: Tensor) -> None:
        """Add a batch: h [n, d_in] of the places of its texts, one behind the other."""
        pre_NF, values, indices = sae.top(h_ND)
        values = values.relu()
        latents_NF = torch.zeros_like(pre_NF).scatter_(1, indices, values)
        counts = [len(p.at) for p in places]
        maxima = []
        for row, place, z_NF in zip(rows, places, latents_NF.split(counts), strict=True):
            z_NF = z_NF[place.scored]
            self.sums_TF[row] = z_NF.sum(0)
            maxima.append(z_NF.amax(0) if len(z_NF) else torch.zeros(z_NF.shape[1]))
        self.kept += zip(values.split(counts), indices.int().split(counts), strict=True)
        self._best(torch.stack(maxima), torch.tensor(rows))

    def _best(self, maxima_BF: Tensor, rows_B: Tensor) -> None:
        values = torch.cat([self.best_NF, maxima_BF])
        texts = torch.cat([self.best_text_NF, rows_B[:, None].expand_as(maxima_BF)])
        self.best_NF, chosen = values.topk(SHOWN, dim=0)
        self.best_text_NF = texts.gather(0, chosen)

    def contexts(self, latent: int, texts: list[Rendered], places: list[Places]) -> list[tuple[float, Any]]:
        """The texts where a latent is strongest, each with its activation at every token that was read."""
        found = []
        for value, row in zip(self.best_NF[:, latent].tolist(), self.best_text_NF[:, latent].tolist(), strict=True):
            if value <= 0:
                break
            values, indices = self.kept[row]
            activations = (values * (indices == latent)).sum(1).tolist()
            spans = texts[row].offsets[places[row].at].tolist()
            found.append((value, [(texts[row].text[a:b], z) for (a, b), z in zip(spans, activations, strict=True)]))
        return found
