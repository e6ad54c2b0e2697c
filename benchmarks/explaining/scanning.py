"""One scan of domain texts with the whole suite, latents of single tokens kept."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from benchmarks.explaining import suite
from benchmarks.explaining.job import Job, Row
from benchmarks.explaining.texts import Text, domain_texts, source
from seamark.features.config import ScanConfig
from seamark.features.scan import scan
from seamark.text.corpus import Corpus
from seamark.text.rendering import Renderer

BYTES_OF_A_LATENT = 8
"""Its number and its value."""


def run(job: Job) -> Row:
    """Scan as many of the drawn texts as may be kept on disk."""
    model, saes = suite.load(job)
    s = job.settings
    per_position = sum(BYTES_OF_A_LATENT * (1 + (sae.config.k or 0)) for sae in saes.values())
    wanted = domain_texts(job)[: s.scan_texts]
    texts = wanted[: fitting(wanted, model.renderer(s.max_length), s.scan_bytes // per_position)]
    config = ScanConfig(positions="tokens", rewards=False, max_length=s.max_length, keep_tokens="always")
    found = scan(model, saes, Corpus(tuple(texts)), job.place / "scan", config=config)
    files = [f for f in (job.place / "scan").rglob("*") if f.is_file()]
    return {
        "source": source(job.data).partition(" and")[0], "texts": len(texts), "texts_asked": len(wanted),
        "positions": int(found.n_positions.sum()), "bytes": sum(f.stat().st_size for f in files),
        "with_q": {i: int((~np.isnan(found.q(i))).sum()) for i in found.sae_ids},
    }  # fmt: skip


def fitting(texts: Sequence[Text], renderer: Renderer, most: int) -> int:
    """How many of the first texts have `most` positions together at most."""
    total = 0
    for n, (text_id, text) in enumerate(texts):
        total += len(renderer.render_text(text, text_id))
        if total > most:
            return n
    return len(texts)
