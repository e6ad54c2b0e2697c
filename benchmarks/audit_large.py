"""`seamark audit report` on 50,000 pairs: memory, time, and how fast the page opens. A tenth of them beside it.

The pairs are the authored ones over and over, each with words of its own behind the prompt and a tenth turned round.
The reward model and the autoencoder are small trainings of their own and not measured: both are given to the audit.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import harness, programs
from benchmarks.harness import BenchmarkError, Claim, Result, Row
from seamark.features import SAETraining, StageConfig, train_sae
from seamark.model import RewardTraining, train_reward_model
from seamark.run import read_json
from seamark.text import Pairs, PreferencePair, demo_pairs, hash_unit

FOLDER = harness.SCRATCH / "audit-large"
PAIRS, SMALLER, OPENED = 50_000, 10, 5
"""Pairs, how many times fewer to compare with, how often the page is opened."""
FLIPPED = 0.1
GROUPS = ("safety", "chat")
CLAIMS = {
    "audit_large_peak_mb": ("MB", "<= 2048"),
    "audit_large_growth": ("x", "<= 1.5"),
    "audit_large_page_open_s": ("s", "<= 2"),
    "audit_large_pairs_per_s": ("pairs/s", ""),
}
ABOUT = (
    "`seamark audit report` on {pairs:,} pairs ({mb:,.0f} MB; half of the audited group, 10 % turned round), made of "
    "the authored ones with words of their own behind each prompt, with a given MiniLM-L6 reward model and autoencoder "
    "(3,072 latents): the whole process from the start to the page, peak memory of all its processes. Growth: its "
    "peak by that of a tenth of the pairs. Page: from opening the file in headless Chromium until it is loaded, "
    "started anew each time"
)
TIMEOUT_S = 4 * 3600


def run(
    runs: int | None = None, say: Callable[[str], None] = lambda _: None, *, pairs: int | None = None,
    folder: Path = FOLDER,
) -> Result:  # fmt: skip
    """One audit of each size; the page is opened `runs` (5) times.

    Args:
        pairs: so many instead of 50,000.
        folder: where all of it lies; audits begin anew.
    """
    n = pairs or PAIRS
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    failed = ""
    rows: list[Row] = []
    opened: list[float] = []
    mb = 0.0
    try:
        prepare(folder)
        for size in (n // SMALLER, n):
            mb = write_pairs(folder / str(size), size)
            rows.append(audit(folder / str(size), folder, size))
            say(f"{size:,} pairs: {rows[-1]['seconds']:,.0f} s, {rows[-1]['peak_mb']:,.0f} MB")
        opened = [open_page(folder / str(n) / "audit" / "report.html") for _ in range(runs or OPENED)]
    except BenchmarkError as e:
        failed = str(e)
    return Result("audit-large", ABOUT.format(pairs=n, mb=mb), claims(rows, opened, failed), rows,
                  {"pairs": n, "opened": len(opened), "failed": failed})  # fmt: skip


def prepare(folder: Path) -> None:
    """A reward model and an autoencoder of its last block but two."""
    train = demo_pairs("train")
    model, _ = train_reward_model(
        "seamark/default", train, RewardTraining(learning_rate=3e-4, batch_size=16, epochs=1, max_length=256,
                                                 trainable_blocks=2), folder / "reward", progress=False,
    )  # fmt: skip
    renderer = model.renderer(256)
    texts = [side for pair in train for side in renderer.render_pair(pair)]
    stage = StageConfig(name="pairs", positions="tokens", epochs=2, lr=1e-3, batch_size=1024)
    config = SAETraining(d_sae=3072, k=32)
    train_sae(model, {"pairs": texts}, config, (stage,)).sae.save_pretrained(folder / "sae")


def write_pairs(folder: Path, n: int) -> float:
    """A file for each group; megabytes of both."""
    folder.mkdir(parents=True)
    every = demo_pairs()
    words = sorted({word for p in every for word in str(p.prompt).split() if word.isalpha()})
    draw = np.random.default_rng(0)
    total = 0.0
    for group in GROUPS:
        authored = list(every.group(group))
        made = []
        for i in range(n // 2):
            p = authored[i % len(authored)]
            more = " ".join(words[int(k)] for k in draw.integers(0, len(words), 6))
            prompt = f"{p.prompt} ({more})"
            pair = PreferencePair(f"{group}-{i}", group, prompt, p.chosen, p.rejected, category=p.category)
            made.append(pair.flipped() if hash_unit(pair.id) < FLIPPED else pair)
        path = folder / f"{group}.jsonl"
        Pairs(tuple(made)).to_jsonl(path)
        total += path.stat().st_size / 2**20
    return total


def audit(folder: Path, prepared: Path, n: int) -> Row:
    """One audit of the files of a folder."""
    out = folder / "audit"
    command = [
        *programs.SEAMARK, "audit", "report", f"--model={prepared / 'reward'}",
        f"--sae={prepared / 'sae'}", *(f"--pairs={g}={folder / g}.jsonl" for g in GROUPS), f"--out={out}",
    ]  # fmt: skip
    watched = programs.watched(command, folder / "log", "seamark audit report", without=harness.UNTUNED,
                               timeout=TIMEOUT_S)  # fmt: skip
    return row_of(out, n, watched.seconds, watched.peak_mb)


def row_of(out: Path, n: int, seconds: float, peak_mb: float) -> Row:
    """What an audit's folder tells, beside what was measured from outside."""
    result = read_json(out / "result.json")
    return {
        "variant": f"{n:,} pairs", "pairs": n, "seconds": harness.rounded(seconds), "peak_mb": harness.rounded(peak_mb),
        "page_mb": harness.rounded((out / "report.html").stat().st_size / 2**20),
        "stages": {name: harness.rounded(stage["seconds"]) for name, stage in result["stages"].items()},
    }  # fmt: skip


def open_page(path: Path) -> float:
    """Seconds from opening a page in a fresh browser until it is loaded."""
    with programs.browser() as browser:
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        start = time.perf_counter()
        page.goto(path.resolve().as_uri(), wait_until="load")
        return time.perf_counter() - start


def claims(rows: Sequence[Mapping[str, Any]], opened: Sequence[float], failed: str) -> list[Claim]:
    """One for each of `CLAIMS`; none of what was not measured."""
    small, large = (rows[0], rows[1]) if len(rows) == 2 else ({}, {})
    values = {
        "audit_large_peak_mb": [large["peak_mb"]], "audit_large_growth": [large["peak_mb"] / small["peak_mb"]],
        "audit_large_pairs_per_s": [large["pairs"] / large["seconds"]],
    } if large else {}  # fmt: skip
    values["audit_large_page_open_s"] = list(opened)
    return [
        harness.from_runs(name, values[name], unit, target) if values.get(name)
        else harness.missing(name, unit, target, failed or "not run")
        for name, (unit, target) in CLAIMS.items()
    ]  # fmt: skip
