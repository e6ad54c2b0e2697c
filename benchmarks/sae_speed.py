"""Training TopK autoencoders: steps a second and memory of Seamark, of its peers, and what a step costs at least."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from benchmarks import harness, sae_environments
from benchmarks.harness import BenchmarkError, Claim, Result, Row
from benchmarks.peers.feed import Job
from benchmarks.sae_contenders import CONTENDERS, OURS, chosen, environments, left_out
from seamark.run import write_json

FOLDER = harness.SCRATCH / "sae-speed"
TIMEOUT_S = 600.0
POOL = 4
"""Batches of made activations that everybody trains on, over and over."""
FLOOR = "floor"
TUNED = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "100000000000", "OMP_PROC_BIND": "true",
         "OMP_PLACES": "threads"}  # fmt: skip
"""glibc keeps freed memory, threads stay on their cores: what costs page faults costs none."""
MALLOCS: dict[str, dict[str, str]] = {"as_shipped": {}, "tuned_malloc": TUNED}
RUNS, TUNED_RUNS = 5, 3


@dataclass(frozen=True)
class Shape:
    d_in: int
    d_sae: int
    k: int
    batch: int
    seconds: float
    """Timed steps go on for this long, two steps at least."""
    warmup: int


SHAPES = {
    "S": Shape(384, 3072, 32, 1024, 2.0, 3), "M": Shape(1024, 8192, 64, 2048, 3.0, 2),
    "L": Shape(2048, 16384, 64, 2048, 4.0, 1),
}  # fmt: skip
TARGETS = {
    "L_vs_best_peer_as_shipped": ">= 5", "L_vs_best_peer_tuned_malloc": ">= 3", "L_time_vs_bf16_floor": "<= 1.4",
    "L_rss_vs_least_peer": "< 1",
}  # fmt: skip
Rows = Mapping[str, Sequence[Row]]


def run(
    runs: int | None = None, say: Callable[[str], None] = lambda _: None, *, shape: str, contenders: str | None = None,
) -> Result:  # fmt: skip
    """One shape, `runs` rounds (5; with tuned malloc 3), every run in a process of its own."""
    names = chosen(contenders)
    pythons, missing = sae_environments.prepare(environments(names), say)
    rows: dict[str, list[Row]] = {}
    failed: dict[str, str] = {}
    pool = write_pool(SHAPES[shape], FOLDER / f"{shape}.safetensors")
    for malloc in MALLOCS:
        rounds = (runs or RUNS) if malloc == "as_shipped" else min(runs or RUNS, TUNED_RUNS)
        variants = {key(shape, name, malloc): _measure(shape, name, malloc, pool, pythons, missing)
                    for name in [*names, FLOOR]}  # fmt: skip
        found, why = harness.interleave(variants, rounds, say)
        rows, failed = rows | found, failed | why
    pool.unlink()
    return Result(
        f"sae-speed-{shape}", ABOUT + harness.disturbed(rows), claims(rows, failed, left_out(names)), table(rows),
        {"runs": runs or RUNS, "tuned_runs": min(runs or RUNS, TUNED_RUNS), "tuned_malloc": TUNED,
         "shape": asdict(SHAPES[shape]), "failed": failed,
         "variants": {name: CONTENDERS[name].about for name in names}},
    )  # fmt: skip


ABOUT = (
    "training steps of TopK autoencoders on made activations (32 of 4·d_in random directions at each position, plus "
    "noise), the same batches and threads for all, each run in a process of its own; tokens a second of steps after "
    "the first ones, memory of the whole process; floor: encoder product in bf16 + amax of the pre-activations + "
    "8·B·k·d_in operations at the rate of the fp32 product + fused Adam, by library calls"
)


def key(shape: str, name: str, malloc: str) -> str:
    return f"{shape} {name} {malloc}"


def _measure(
    shape: str, name: str, malloc: str, pool: Path, pythons: Mapping[str, str], missing: Mapping[str, str]
) -> Callable[[], Row]:
    job, environment = job_of(shape, name, pool), "" if name == FLOOR else CONTENDERS[name].environment

    def measure() -> Row:
        if environment in missing:
            raise BenchmarkError(missing[environment])
        path = FOLDER / "job.json"
        write_json(path, asdict(job))
        python = {"python": pythons[environment]} if environment else {}
        return harness.run_python(["-m", "benchmarks.peers", str(path)], TIMEOUT_S, extra=MALLOCS[malloc], **python)

    return measure


def job_of(shape: str, name: str, pool: Path) -> Job:
    s, contender = SHAPES[shape], CONTENDERS.get(name)
    module, lr, options = (contender.module, contender.lr, contender.options) if contender else (FLOOR, 1.0, {})
    return Job(name, module, str(pool), s.d_in, s.d_sae, s.k, s.batch, lr, options, warmup=s.warmup, seconds=s.seconds)


def write_pool(shape: Shape, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({"x": made_activations(POOL * shape.batch, shape.d_in)}, path)
    return path


def made_activations(n: int, d_in: int, active: int = 32, seed: int = 0) -> Tensor:
    """[n, d_in], mean norm near √d_in: at each position `active` of 4·d_in directions, exponentially large, + noise."""
    generator = torch.Generator().manual_seed(seed)
    directions = torch.randn(4 * d_in, d_in, generator=generator)
    which = torch.randint(4 * d_in, (n, active), generator=generator)
    size = torch.empty(n, active).exponential_(generator=generator) / (2 * active) ** 0.5
    x = torch.nn.functional.embedding_bag(which, directions, per_sample_weights=size, mode="sum")
    return x + 0.1 * torch.randn(n, d_in, generator=generator)


def table(rows: Rows) -> list[Row]:
    """Medians; of the floor only its sums, since its parts are in other units than a contender's."""
    found = []
    for row in harness.medians(rows):
        shape, name, malloc = str(row["variant"]).split(" ")
        if name == FLOOR:
            row = {k: v for k, v in row.items() if k in ("n", "others_cpu", *FLOOR_COLUMNS)}
        found.append({"table": f"floor {shape}" if name == FLOOR else f"speed {shape}", "variant": name,
                      "malloc": malloc} | {k: v for k, v in row.items() if k != "variant"})  # fmt: skip
    return sorted(found, key=lambda r: list(SHAPES).index(r["table"][-1]))


FLOOR_COLUMNS = ("floor_bf16_ms", "floor_fp32_ms", "product_bf16_ms", "product_fp32_ms", "amax_bf16_ms", "sparse_ms",
                 "adam_ms", "fp32_gflops")  # fmt: skip


def claims(rows: Rows, failed: Mapping[str, str], incomplete: str = "") -> list[Claim]:
    """For every shape that was run. Of the best peer nothing is said unless every peer ran."""
    found = []
    for shape in SHAPES:
        if key(shape, OURS, "as_shipped") not in rows:
            continue
        for malloc in MALLOCS:
            found.append(_against_best(f"{shape}_vs_best_peer_{malloc}", rows, failed, incomplete, shape, malloc))
        found.append(_against_floor(f"{shape}_time_vs_bf16_floor", rows, failed, shape))
        found.append(_against_least(f"{shape}_rss_vs_least_peer", rows, failed, incomplete, shape))
    return found


def _peers(
    rows: Rows, failed: Mapping[str, str], incomplete: str, shape: str, malloc: str
) -> tuple[dict[str, Sequence[Row]], str]:
    """The peers' rows, and why they cannot be compared with ours (or "")."""
    prefix, suffix = f"{shape} ", f" {malloc}"
    here = {k[len(prefix) : -len(suffix)]: k for k in rows if k.startswith(prefix) and k.endswith(suffix)}
    reasons = [f"{name}: {failed[k]}" for name, k in here.items() if k in failed and name != FLOOR]
    peers = {name: rows[k] for name, k in here.items() if name not in (OURS, FLOOR) and k not in failed}
    return peers, "; ".join([*reasons, incomplete] if incomplete else reasons) or ("" if peers else "no peer ran")


def best(peers: Mapping[str, Sequence[Row]], column: str, *, largest: bool) -> str:
    """The peer with the largest (or smallest) median."""
    return (max if largest else min)(peers, key=lambda name: statistics.median(r[column] for r in peers[name]))


def _ratio(name: str, ours: Sequence[Row], theirs: Sequence[Row], column: str, other: str = "") -> Claim:
    return harness.ratio(name, [r[column] for r in ours], [r[other or column] for r in theirs], TARGETS.get(name, ""))


def _against_best(
    name: str, rows: Rows, failed: Mapping[str, str], incomplete: str, shape: str, malloc: str
) -> Claim:  # fmt: skip
    peers, reason = _peers(rows, failed, incomplete, shape, malloc)
    if reason:
        return harness.missing(name, "x", TARGETS.get(name, ""), reason)
    return _ratio(name, rows[key(shape, OURS, malloc)], peers[best(peers, "tokens_per_s", largest=True)],
                  "tokens_per_s")  # fmt: skip


def _against_least(name: str, rows: Rows, failed: Mapping[str, str], incomplete: str, shape: str) -> Claim:
    peers, reason = _peers(rows, failed, incomplete, shape, "as_shipped")
    if reason:
        return harness.missing(name, "x", TARGETS.get(name, ""), reason)
    return _ratio(name, rows[key(shape, OURS, "as_shipped")], peers[best(peers, "peak_rss_mb", largest=False)],
                  "peak_rss_mb")  # fmt: skip


def _against_floor(name: str, rows: Rows, failed: Mapping[str, str], shape: str) -> Claim:
    ours, floor = key(shape, OURS, "as_shipped"), key(shape, FLOOR, "as_shipped")
    for needed in (ours, floor):
        if needed in failed or not rows.get(needed):
            return harness.missing(name, "x", TARGETS.get(name, ""), failed.get(needed, f"{needed} was not run"))
    return _ratio(name, rows[ours], rows[floor], "ms_per_step", "floor_bf16_ms")
