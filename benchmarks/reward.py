"""Training a reward model: Seamark with the demo's settings against TRL's RewardTrainer on the same pairs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from benchmarks import harness
from benchmarks.harness import Claim, Result, Row

PAIRS = 192
TIMEOUT_S = 300.0
VARIANTS = {
    "seamark": "demo recipe: last 3 of 6 blocks trained, no dropout, eager attention, bf16 where the machine is fast "
               "at it, batches of similar length",
    "trl_default": "RewardTrainer's defaults with use_cpu (its defaults stop without a GPU and ask for it): bf16, "
                   "gradient checkpointing, no dropout, SDPA, random order, all blocks trained",
    "trl_bf16": "the same without gradient checkpointing: all blocks trained in bf16",
    "trl_fp32": "float32 with the base's own dropout (disable_dropout off), all blocks trained, no checkpointing",
    "trl_frozen": "TRL with Seamark's settings (3 blocks trained, eager, bf16, no checkpointing) in TRL's order",
}  # fmt: skip
CLAIMS = {
    "reward_tokens_per_s_vs_trl_default": ("trl_default", ">= 1.5"),
    "reward_tokens_per_s_vs_trl_bf16": ("trl_bf16", ">= 1.2"),
    "reward_tokens_per_s_vs_trl_fp32": ("trl_fp32", ""),
    "reward_tokens_per_s_vs_trl_frozen": ("trl_frozen", ""),
}


def run(runs: int | None = None, say: Callable[[str], None] = lambda _: None) -> Result:
    """Each variant in a process of its own, `runs` rounds (5)."""

    def measure(variant: str) -> Callable[[], Row]:
        return lambda: harness.run_python(["-m", "benchmarks.reward_run", variant, str(PAIRS)], TIMEOUT_S)

    rows, failed = harness.interleave({v: measure(v) for v in VARIANTS}, runs or 5, say)
    return Result(
        "reward",
        f"tokens per second (without padding) of one epoch over {PAIRS} demo pairs, model loading and tokenising "
        "included; the same tokens, batch size and threads for all. Seamark trains half of the blocks, TRL's defaults "
        "all: that is part of the difference (see trl_frozen)" + harness.disturbed(rows),
        claims(rows, failed), harness.medians(rows), {"pairs": PAIRS, "runs": runs or 5, "variants": VARIANTS},
    )  # fmt: skip


def claims(rows: dict[str, list[Row]], failed: dict[str, str]) -> list[Claim]:
    found = [_ratio(name, rows, failed, other, target) for name, (other, target) in CLAIMS.items()]
    for name, key, unit in (("reward_tokens_per_s", "tokens_per_s", "tokens/s"),
                            ("reward_peak_rss_mb", "peak_rss_mb", "MB")):  # fmt: skip
        values = [r[key] for r in rows["seamark"]]
        found.append(
            harness.missing(name, unit, "", failed["seamark"])
            if "seamark" in failed
            else harness.from_runs(name, values, unit)
        )
    return found


def _ratio(name: str, rows: dict[str, list[Row]], failed: dict[str, str], other: str, target: str) -> Claim:
    for variant in ("seamark", other):
        if variant in failed:
            return harness.missing(name, "x", target, f"{variant}: {failed[variant]}")
    ours, theirs = rows["seamark"], rows[other]
    if _all(ours, "tokens") != _all(theirs, "tokens"):
        return harness.missing(name, "x", target, "the two did not see the same number of tokens")
    if other == "trl_bf16" and _all(ours, "precision") != ["bf16"]:
        return harness.missing(name, "x", target, "this machine is not fast at bf16: Seamark trained in float32")
    return harness.ratio(name, [r["tokens_per_s"] for r in ours], [r["tokens_per_s"] for r in theirs], target)


def _all(rows: Sequence[Row], key: str) -> list[Any]:
    return sorted({r[key] for r in rows})
