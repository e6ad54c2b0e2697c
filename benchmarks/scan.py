"""The scan against two other ways to the same scores, against its own parts, and from small corpora to large ones."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

from benchmarks import harness
from benchmarks.harness import BenchmarkError, Claim, Result, Row
from benchmarks.scans.job import SETUPS, Answer, Comparison, Doubt, Job, Setup, compare

FOLDER = harness.SCRATCH / "scan"
RUNS = 5
TIMEOUT_S = 1200.0
OURS, REFERENCE, TIDY, PARTS = "seamark", "reference", "tidy", "parts"
WAYS = {
    REFERENCE: "as SAFER's released code does it: five passes over texts padded to the maximum in batches of 8, all "
               "blocks and the head, contexts and pair scores activation by activation",
    TIDY: "one pass in inference mode, batches of 32 texts padded to their longest, output_hidden_states, dense TopK "
          "latents and sums in torch, running top contexts",
    OURS: "scan with ScanConfig.paper(rewards=False), contrast in `paper` mode, contexts, text_scores",
    PARTS: "forward pass of the model without its later blocks, encoder product and one amax over the pre-activations "
           "on the scan's batches, by library calls",
}  # fmt: skip
SIZES = {"10k": 10_000, "100k": 100_000, "1M": 1_000_000, "5M": 5_000_000}
"""Corpora of the growth, in tokens."""
GROWING = Setup("growing", "layers.1", 512, 32, 64, blocks=2, width=64, inner=172, heads=4, vocabulary=4096)
TARGETS = {
    "speedup_vs_reference_llama": ">= 10", "speedup_vs_reference_minilm": ">= 10", "speedup_vs_tidy_llama": ">= 3",
    "speedup_vs_tidy_minilm": ">= 3", "memory_vs_tidy": "<= 0.25", "time_vs_parts": "<= 1.15",
    "rss_growth_10k_to_5M_tokens": "<= 0.1", "paper_score_difference": "<= 1e-4",
}  # fmt: skip
ABOUT = (
    "the same job three ways, each run in a process of its own, in float32, with the same weights and pairs: sums over "
    "chosen and rejected texts and scores from them (`paper` mode), contexts of the 256 strongest features, pair "
    "scores by 32; time from texts to results, model loading not counted; memory: the largest size of the process "
    "less its size once model and autoencoder are loaded and warm. Growth: scans of made texts with a tiny Llama"
)
Rows = Mapping[str, Sequence[Row]]
Failed = Mapping[str, str]
Say = Callable[[str], None]


def run(
    runs: int | None = None, say: Say = lambda _: None, *, setups: str = "llama,minilm", pairs: int | None = None,
    tokens: int | None = None, folder: Path = FOLDER,
) -> Result:  # fmt: skip
    """All ways on both set-ups, `runs` rounds (5), then the growth, once for each size.

    Args:
        setups: only these, separated by commas.
        pairs: so many pairs instead of each set-up's own number.
        tokens: sizes of the growth up to this one (5,000,000; 0: none).
    """
    chosen = {name: SETUPS[name] if pairs is None else replace(SETUPS[name], n_pairs=pairs)
              for name in setups.split(",")}  # fmt: skip
    rows: dict[str, list[Row]] = {}
    failed: dict[str, str] = {}
    found: dict[str, dict[str, Comparison]] = {}
    corpora: dict[str, Row] = {}
    for name, setup in chosen.items():
        corpora[name] = _corpus(prepare(setup, folder / name, say))
        variants = {f"{name} {way}": _measure(way, setup, folder / name) for way in WAYS}
        measured, why = harness.interleave(variants, runs or RUNS, say)
        rows, failed = rows | measured, failed | why
        found[name] = compared(folder / name, [w for w in (REFERENCE, TIDY) if f"{name} {w}" not in failed])
    sizes = {name: n for name, n in SIZES.items() if n <= (SIZES["5M"] if tokens is None else tokens)}
    grown, why = grow(sizes, folder / GROWING.name, say)
    rows, failed = rows | grown, failed | why
    return Result(
        "scan", ABOUT + told(corpora) + harness.disturbed(rows), claims(rows, failed, found, list(chosen)), table(rows),
        {"runs": runs or RUNS, "setups": {n: asdict(s) for n, s in chosen.items()}, "corpora": corpora,
         "variants": WAYS, "failed": failed, "growing": asdict(GROWING),
         "ties": {n: {way: c.ties for way, c in of.items()} for n, of in found.items()}},
    )  # fmt: skip


def prepare(setup: Setup, folder: Path, say: Say) -> Row:
    """Make a set-up's folder; what it holds."""
    row = harness.run_python(["-m", "benchmarks.scans", str(_job("prepare", setup, folder))], TIMEOUT_S)
    say(f"{setup.name}: {row['pairs']} pairs ({row['source']}), {row['tokens']:,} tokens")
    return row


def _job(way: str, setup: Setup, folder: Path, tokens: int = 0) -> Path:
    return Job(way, setup, str(folder), tokens).write(folder / "job.json")


def _measure(way: str, setup: Setup, folder: Path, tokens: int = 0) -> Callable[[], Row]:
    def measure() -> Row:
        return harness.run_python(["-m", "benchmarks.scans", str(_job(way, setup, folder, tokens))], TIMEOUT_S)

    return measure


def _corpus(row: Row) -> Row:
    return {k: v for k, v in row.items() if k != "others_cpu"}


def told(corpora: Mapping[str, Row]) -> str:
    """What the set-ups' texts are."""
    parts = [f"{name}: {c['pairs']} pairs ({c['source']}), {c['tokens']:,} tokens, the longest text {c['longest']}"
             for name, c in corpora.items()]  # fmt: skip
    return ". Corpora: " + "; ".join(parts) if parts else ""


def compared(folder: Path, others: Sequence[str]) -> dict[str, Comparison]:
    """{way: how its last answer compares with ours}."""
    if not (folder / f"{OURS}.safetensors").exists():
        return {}
    doubt, ours = Doubt.load(folder / "doubt.json"), Answer.load(folder / f"{OURS}.safetensors")
    return {way: compare(ours, Answer.load(folder / f"{way}.safetensors"), doubt) for way in others}


def grow(sizes: Mapping[str, int], folder: Path, say: Say) -> tuple[dict[str, list[Row]], dict[str, str]]:
    """Scans of corpora of these sizes, one each."""
    if not sizes:
        return {}, {}
    try:
        prepare(GROWING, folder, say)
    except BenchmarkError as e:
        return {}, {f"growth {name}": str(e) for name in sizes}
    scans = {f"growth {name}": _measure("growth", GROWING, folder, n) for name, n in sizes.items()}
    return harness.interleave(scans, 1, say)


# -- what follows from the rows


def claims(
    rows: Rows, failed: Failed, found: Mapping[str, Mapping[str, Comparison]], setups: Sequence[str]
) -> list[Claim]:
    """Speed, memory and time for each set-up that was run; of memory and time also the worse of the set-ups."""
    speed = [_against(f"speedup_vs_{way}_{name}", rows, failed, found, name, way, "seconds", turned=True)
             for way in (REFERENCE, TIDY) for name in setups]  # fmt: skip
    memory = [_against(f"memory_vs_tidy_{name}", rows, failed, found, name, TIDY, "above_model_mb") for name in setups]
    overhead = [_against_parts(f"time_vs_parts_{name}", rows, failed, name) for name in setups]
    return [
        *speed, worst("memory_vs_tidy", memory), *memory, worst("time_vs_parts", overhead), *overhead,
        difference(found), growth(rows, failed),
    ]  # fmt: skip


def _missing(name: str, reason: str, unit: str = "x") -> Claim:
    return harness.missing(name, unit, TARGETS.get(name, ""), reason)


def _reason(rows: Rows, failed: Failed, keys: Sequence[str]) -> str:
    """Why one of these has no rows; empty where all have."""
    return next((f"{key}: {failed.get(key, 'not run')}" for key in keys if key in failed or not rows.get(key)), "")


def _against(
    name: str, rows: Rows, failed: Failed, found: Mapping[str, Mapping[str, Comparison]], setup: str, way: str,
    column: str, *, turned: bool = False,
) -> Claim:  # fmt: skip
    """Ours / theirs in a column, or theirs / ours; nothing unless both came to the same scores."""
    ours, theirs = f"{setup} {OURS}", f"{setup} {way}"
    reason = _reason(rows, failed, [ours, theirs])
    if not reason and (way not in found.get(setup, {}) or found[setup][way].reason):
        reason = (
            f"not the same job: {found[setup][way].reason}" if way in found.get(setup, {}) else "scores not compared"
        )
    pair = [[row[column] for row in rows.get(key, ())] for key in (ours, theirs)]
    if not reason and any(value is None for values in pair for value in values):
        reason = "this system does not tell a process's peak memory"
    if reason:
        return _missing(name, reason)
    above, below = reversed(pair) if turned else pair
    return harness.ratio(name, above, below, TARGETS.get(name, ""))


def _against_parts(name: str, rows: Rows, failed: Failed, setup: str) -> Claim:
    ours, parts = f"{setup} {OURS}", f"{setup} {PARTS}"
    reason = _reason(rows, failed, [ours, parts])
    if reason:
        return _missing(name, reason)
    return harness.ratio(name, [r["scan_s"] for r in rows[ours]], [r["parts_s"] for r in rows[parts]])


def worst(name: str, of: Sequence[Claim]) -> Claim:
    """The largest of claims under a common name; nothing where one of them has no value."""
    lacking = next((c for c in of if c.value is None), None)
    if lacking is not None or not of:
        return _missing(name, f"{lacking.name}: {lacking.reason}" if lacking else "no set-up was run")
    largest = max(of, key=lambda c: c.value or 0.0)
    return replace(largest, name=name, target=TARGETS[name])


def difference(found: Mapping[str, Mapping[str, Comparison]]) -> Claim:
    """Largest |Δs| between our scores and another way's."""
    name = "paper_score_difference"
    if set(found) == {*SETUPS} and all(set(of) == {REFERENCE, TIDY} for of in found.values()):
        values = [c.difference for of in found.values() for c in of.values()]
        return Claim(name, max(values), "", TARGETS[name], n=len(values))
    return _missing(name, "not all ways were run on both set-ups", "")


def growth(rows: Rows, failed: Failed) -> Claim:
    """(rss(5M) − rss(10k)) / rss(10k)."""
    name = "rss_growth_10k_to_5M_tokens"
    reason = _reason(rows, failed, ["growth 10k", "growth 5M"])
    if reason:
        return _missing(name, reason, "share")
    small, large = (statistics.median(r["peak_rss_mb"] for r in rows[f"growth {size}"]) for size in ("10k", "5M"))
    return Claim(name, (large - small) / small, "share", TARGETS[name])


def table(rows: Rows) -> list[Row]:
    """Medians, a table for each set-up, one for the parts of a scan's time, one for the growth."""
    found = []
    for row in harness.medians(rows):
        setup, way = str(row.pop("variant")).split(" ")
        title = f"parts {setup}" if way == PARTS else setup
        found.append({"table": title, "tokens" if setup == "growth" else "variant": way}
                     | {k: v for k, v in row.items() if k != "tokens" or setup != "growth"})  # fmt: skip
    return found
