"""The job as SAFER's released code does it (METHODS: defect 16), written anew.

The texts are read in five passes: sums over chosen texts, sums over rejected ones, contexts from both, scores of
chosen, scores of rejected texts. In every pass texts are padded to the maximum length in batches of eight, all blocks
and the head run, hidden states of all layers come back, and latents of clause ends are dense [n, d_sae]; each is also
decoded, as the released forward pass does. Contexts and scores are collected activation by activation.

What is left out is in its favour: texts are tokenised once, the model is loaded once, there is no language-model head,
and positions are found without marker tokens in the texts.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from benchmarks.scans.dense import DenseSAE, contrastive_scores, strongest
from benchmarks.scans.job import EXPLAINED, SCORED, SHOWN, Answer, Contexts, Job, Loaded, call_options, rendered
from seamark.model.batching import collate

BATCH, WINDOW = 8, 128
"""Texts of a batch; tokens of a context."""


@torch.no_grad()
def run(loaded: Loaded, job: Job) -> tuple[Answer, dict[str, float]]:
    """The answer, and nothing else to tell."""
    reader = Reader(loaded, job)
    chosen, rejected = range(0, len(reader.texts), 2), range(1, len(reader.texts), 2)
    scores = contrastive_scores(reader.sums(chosen), reader.sums(rejected))
    explained = strongest(scores, EXPLAINED)
    contexts = reader.contexts(range(len(reader.texts)), explained)
    signs = {i: 1.0 if scores[i] > 0 else -1.0 for i in explained[:SCORED]}
    g_chosen, g_rejected = reader.scores(chosen, signs), reader.scores(rejected, signs)
    pair_scores = [a - b for a, b in zip(g_chosen, g_rejected, strict=True)]
    return Answer.of(scores, explained, contexts, pair_scores), {}


class Reader:
    """Passes over texts."""

    def __init__(self, loaded: Loaded, job: Job) -> None:
        self.hf, self.sae, self.setup = loaded.model.hf.eval(), DenseSAE(loaded.sae), job.setup
        self.pad, self.options = int(loaded.model.config.pad_token_id), call_options(loaded)
        self.texts, self.positions = rendered(loaded, job.setup)

    def batches(self, rows: Sequence[int]) -> Iterator[tuple[list[tuple[int, int]], Tensor]]:
        """(text and position of every clause end, its latents [n, d_sae]) of each batch with any."""
        for start in range(0, len(rows), BATCH):
            mine = list(rows[start : start + BATCH])
            batch = collate(self.texts, self.pad, self.setup.max_length, mine)
            output = self.hf(input_ids=batch.input_ids, attention_mask=batch.attention_mask,
                             output_hidden_states=True, **self.options)  # fmt: skip
            hidden_BTD = output.hidden_states[self.setup.layer + 1]
            at = [(i, int(p)) for i, row in enumerate(mine) for p in self.positions[row]]
            if not at:
                continue
            latents_NF = self.sae.encode(torch.stack([hidden_BTD[i, p] for i, p in at]))
            self.sae.decode(latents_NF)
            yield [(mine[i], p) for i, p in at], latents_NF

    def sums(self, rows: Sequence[int]) -> Tensor:
        """Summed positive activations, [d_sae]."""
        total_F = torch.zeros(self.setup.d_sae)
        for _, latents_NF in self.batches(rows):
            total_F += (latents_NF * (latents_NF > 0)).sum(0)
        return total_F

    def contexts(self, rows: Sequence[int], latents: Sequence[int]) -> Contexts:
        """For each latent the positions where it is strongest, each with the words around it."""
        heaps: dict[int, list[tuple[float, str]]] = {}
        for at, latents_NF in self.batches(rows):
            kept_NF = self.only(latents_NF, latents)
            for place, latent in torch.nonzero(kept_NF > 0).tolist():
                heap = heaps.setdefault(latent, [])
                heapq.heappush(heap, (kept_NF[place, latent].item(), self.words_around(*at[place])))
                if len(heap) > SHOWN:
                    heapq.heappop(heap)
        return {
            latent: [(value, words) for value, words in sorted(heap, reverse=True)] for latent, heap in heaps.items()
        }

    def scores(self, rows: Sequence[int], signs: dict[int, float]) -> list[float]:
        """g of each text: mean over its clause ends of the signed sum."""
        total = dict.fromkeys(rows, 0.0)
        for at, latents_NF in self.batches(rows):
            kept_NF = self.only(latents_NF, list(signs))
            for place, latent in torch.nonzero(kept_NF > 0).tolist():
                total[at[place][0]] += signs[latent] * kept_NF[place, latent].item()
        return [total[row] / max(len(self.positions[row]), 1) for row in rows]

    def only(self, latents_NF: Tensor, wanted: Sequence[int]) -> Tensor:
        """The same with 0 in all other columns."""
        mask_F = torch.zeros(self.setup.d_sae)
        mask_F[list(wanted)] = 1.0
        return latents_NF * mask_F

    def words_around(self, row: int, position: int) -> str:
        text = self.texts[row]
        inside = text.offsets[max(position - WINDOW // 2, 0) : position + WINDOW // 2]
        inside = inside[inside[:, 1] > inside[:, 0]]
        start, end = (int(inside[:, 0].min()), int(inside[:, 1].max())) if len(inside) else (0, 0)
        here = int(np.clip(text.offsets[position, 0], start, end))
        return f"{text.text[start:here]}<ACTIVATED>{text.text[here:end]}"
