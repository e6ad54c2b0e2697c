"""What a scan costs at least with this machine's library calls: truncated forward, encoder product, one amax.

The same batches as the scan makes, in the same format. The forward pass is that of transformers on a model whose later
blocks are gone; the product is of as many positions as the scan reads in a batch, into memory that is there already;
amax is one pass over the pre-activations. Tokenising, choosing positions, top-k and writing are not in it.
"""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import Tensor

from benchmarks.scans.job import Job, Loaded, call_options
from benchmarks.scans.ours import config
from seamark.features.scan import BATCH_TOKENS
from seamark.features.scan_parts import batches_of
from seamark.features.scan_texts import ScanTexts
from seamark.model.batching import Batch, collate
from seamark.model.hookpoints import backbone, find_family

Planned = list[tuple[Batch, int]]
"""Batches, and how many positions are read in each."""


def measure(loaded: Loaded, job: Job) -> dict[str, Any]:
    """Seconds of each part over the whole corpus, and their sum."""
    batches = planned(loaded, job)
    forward = truncated(loaded, job.setup.layer)
    seconds = {"forward_s": 0.0, "product_s": 0.0, "amax_s": 0.0}
    W_DF = loaded.sae.W_enc.detach()
    pre_NF = torch.zeros(max(n for _, n in batches), W_DF.shape[1])
    x_ND = torch.randn(len(pre_NF), len(W_DF))
    with torch.inference_mode():
        for batch, n in batches:
            ticks = [time.perf_counter()]
            forward(batch)
            ticks.append(time.perf_counter())
            torch.mm(x_ND[:n], W_DF, out=pre_NF[:n])
            ticks.append(time.perf_counter())
            pre_NF[:n].amax(1) if n else None
            ticks.append(time.perf_counter())
            for name, begin, end in zip(seconds, ticks, ticks[1:], strict=False):
                seconds[name] += end - begin
    tokens = sum(int(batch.attention_mask.sum()) for batch, _ in batches)
    return seconds | {"parts_s": sum(seconds.values()), "positions": sum(n for _, n in batches), "tokens": tokens}


def planned(loaded: Loaded, job: Job) -> Planned:
    """The scan's batches, part by part."""
    texts, renderer, asked = ScanTexts(loaded.pairs), loaded.model.renderer(job.setup.max_length), config(job)
    pad, found = int(loaded.model.config.pad_token_id), []
    for i in range(len(texts.parts)):
        part = texts.render(i, renderer, asked)
        for rows in batches_of(part, asked.batch_tokens or BATCH_TOKENS["cpu"]):
            found.append((collate(part.texts, pad, rows=rows), sum(len(part.positions[r]) for r in rows)))
    return found


def truncated(loaded: Loaded, layer: int) -> Any:
    """A call of the model's body that ends after block `layer`; the blocks behind it are taken out for good."""
    blocks, body, options = find_family(loaded.model.hf)[1], backbone(loaded.model.hf), call_options(loaded)
    del blocks[layer + 1 :]

    def forward(batch: Batch) -> Tensor:
        output = body(input_ids=batch.input_ids, attention_mask=batch.attention_mask, **options)
        hidden: Tensor = output.last_hidden_state
        return hidden

    return forward
