"""Texts to learn from, to measure on and to scan: real ones where there is a folder of them, else the demo's."""

from __future__ import annotations

from pathlib import Path

from benchmarks.explaining.job import Job
from seamark.text.corpus import read_texts
from seamark.text.demo import demo_pairs
from seamark.text.pairs import hash_unit

DOMAIN, PLAIN, CONTRAST = (f"{name}.jsonl.gz" for name in ("domain_texts", "plain_text", "contrast_pairs"))
VARIABLE = "SEAMARK_DATA"
Text = tuple[str, str]
"""(id, text)."""


def real(data: str | None, *names: str) -> list[Path]:
    """These files, if all of them are there."""
    paths = [Path(data) / name for name in names] if data else []
    return paths if all(p.exists() for p in paths) else []


def source(data: str | None) -> str:
    """Where texts come from, as results tell it."""
    return "domain_texts and plain_text" if real(data, DOMAIN, PLAIN) else "demo texts"


def domain_texts(job: Job) -> list[Text]:
    """What is scanned, in the order of hashes. Labels are never read."""
    paths = real(job.data, DOMAIN, PLAIN)
    if paths:
        return drawn(list(read_texts(paths[0])), 1)
    return drawn([(f"{p.id}:{i}", str(t)) for p in demo_pairs() for i, t in enumerate((p.chosen, p.rejected))], 1)


def training_texts(job: Job) -> tuple[list[Text], list[Text]]:
    """(to train on, held out): domain texts and as many general texts as asked for, in the order of hashes. Both sides
    of a demo pair go to one part."""
    paths = real(job.data, DOMAIN, PLAIN)
    plain = drawn(list(read_texts(paths[1])), 2)[: job.settings.plain_texts] if paths else []
    texts = drawn(list(dict([*domain_texts(job), *plain]).items()), 3)
    held_out = [t for t in texts if hash_unit(t[0].partition(":")[0], 4) < job.settings.held_out]
    kept = {text_id for text_id, _ in held_out}
    return [t for t in texts if t[0] not in kept], held_out


def drawn(texts: list[Text], seed: int) -> list[Text]:
    """Texts in the order of a hash of their ids: the first n are a sample."""
    return sorted(texts, key=lambda text: (hash_unit(text[0], seed), text[0]))
