"""A scan of a corpus of a given size: its time and its largest size in memory.

A tiny Llama, so that millions of tokens take minutes, and texts that are made when they are asked for, so that only
the scan's own memory counts.
"""

from __future__ import annotations

import random
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, overload

from benchmarks.scans.job import Job, Loaded
from benchmarks.scans.memory import field_mb
from seamark.features import ScanConfig, scan
from seamark.text import demo_pairs
from seamark.text.corpus import Corpus
from seamark.text.pairs import plain

SENTENCES = 6
"""Of a text."""


@dataclass(frozen=True)
class MadeTexts(Corpus):
    """Texts of demo sentences, drawn by their number; none is kept."""

    sentences: tuple[str, ...] = ()
    n: int = 0

    def __len__(self) -> int:
        return self.n

    @overload
    def __getitem__(self, index: int) -> tuple[str, str]: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[tuple[str, str], ...]: ...
    def __getitem__(self, index: int | slice) -> tuple[str, str] | tuple[tuple[str, str], ...]:
        if isinstance(index, slice):
            return tuple(self[i] for i in range(*index.indices(self.n)))
        if not 0 <= index < self.n:
            raise IndexError(index)
        drawn = random.Random(index)
        return f"t{index}", " ".join(drawn.choice(self.sentences) for _ in range(drawn.randint(2, 2 * SENTENCES - 2)))

    def __iter__(self) -> Iterator[tuple[str, str]]:
        return (self[i] for i in range(self.n))


def sentences() -> tuple[str, ...]:
    """All sentences of the demo's answers."""
    texts = [plain(t) for p in demo_pairs() for t in (p.chosen, p.rejected)]
    return tuple(dict.fromkeys(s.strip() + "." for t in texts for s in t.split(". ") if len(s) > 20))


def corpus(loaded: Loaded, tokens: int) -> MadeTexts:
    """About so many tokens."""
    found, renderer, sample = sentences(), loaded.model.renderer(), 200
    some = MadeTexts((), sentences=found, n=sample)
    each = sum(len(renderer.render_text(text, text_id)) for text_id, text in some) / sample
    return MadeTexts((), sentences=found, n=max(1, round(tokens / each)))


def measure(loaded: Loaded, job: Job) -> dict[str, Any]:
    """Seconds and peak of a scan with the default config but rewards."""
    out = job.place / f"scan-{job.tokens}"
    shutil.rmtree(out, ignore_errors=True)
    texts = corpus(loaded, job.tokens)
    start = time.perf_counter()
    found = scan(loaded.model, {"sae": loaded.sae}, texts, out, config=ScanConfig(rewards=False))
    seconds = time.perf_counter() - start
    peak = field_mb("VmHWM")
    tokens = sum(found.texts["n_tokens"].to_pylist())
    shutil.rmtree(out)
    return {"tokens": tokens, "seconds": seconds, "us_per_token": 1e6 * seconds / tokens, "peak_rss_mb": peak}
