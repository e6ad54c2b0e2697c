"""The whole demo, from nothing to its report: how long, how much memory, and what it finds."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import harness, programs
from benchmarks.harness import BenchmarkError, Claim, Result, Row
from seamark.errors import SeamarkError
from seamark.run import digest, file_digest, read_json, write_json

COMMAND = (*programs.SEAMARK, "demo")
TARGETS = {
    "demo_seconds": ("s", "<= 600"),
    "demo_peak_rss_mb": ("MB", "<= 4096"),
    "demo_safety_accuracy": ("share", ">= 0.90"),
    "demo_chat_accuracy": ("share", ">= 0.75"),
    "demo_D": ("share", ">= 0.05 and low > 0"),
    "demo_chat_kept": ("share", ">= 0.9"),
    "demo_retrainings": ("retrainings", "== 24"),
}
_INTERVAL = "95 % interval over prompts"


def run(
    runs: int | None = None,
    say: Callable[[str], None] = lambda _: None,
    *,
    command: Sequence[str] = COMMAND,
    scratch: Path = harness.SCRATCH / "demo",
) -> Result:
    """`runs` demos (1), each in a fresh folder.

    A benchmark that was interrupted goes on: demos it had finished count, one that was cut resumes, and its time is
    then the sum over its stages. Other code starts anew.
    """
    runs = runs or 1
    code = digest([file_digest(p) for p in sorted((harness.ROOT / "src").rglob("*.py"))])
    if (scratch / "code").exists() and (scratch / "code").read_text() != code:
        shutil.rmtree(scratch)
    scratch.mkdir(parents=True, exist_ok=True)
    (scratch / "code").write_text(code)
    rows: list[Row] = []
    try:
        for i in range(runs):
            rows.append(_one(command, scratch / str(i)))
            say(f"demo {i + 1}/{runs}: {rows[-1]['seconds']:,.1f} s, {rows[-1]['peak_rss_mb']:,.0f} MB")
        result = read_json(scratch / "0" / "run" / "result.json")
    except (BenchmarkError, SeamarkError) as e:
        return _result([harness.missing(n, unit, target, harness.without_paths(str(e)))
                        for n, (unit, target) in TARGETS.items()], rows, runs)  # fmt: skip
    same = len({digest(_found(read_json(scratch / str(i) / "run" / "result.json"))) for i in range(runs)}) == 1
    for row in rows:
        row["results_equal"] = same if runs > 1 else None
    found = _result(claims(result, [r["seconds"] for r in rows], [r["peak_rss_mb"] for r in rows]), rows, runs)
    shutil.rmtree(scratch)
    return found


def _result(claimed: list[Claim], rows: list[Row], runs: int) -> Result:
    about = f"one whole `seamark demo` in a fresh folder, report included; n = {runs}"
    return Result("demo", about, claimed, rows, {"runs": runs})


def _one(command: Sequence[str], folder: Path) -> Row:
    """One demo with its time and memory, or the notes on one that is finished."""
    note = folder / "measured.json"
    if note.exists():
        return dict(read_json(note))
    resumed = (folder / "run").exists()
    watched = programs.watched([*command, "--out", str(folder / "run")], folder / "log", "seamark demo",
                               without=["OMP_NUM_THREADS"])  # fmt: skip
    stages = read_json(folder / "run" / "result.json")["stages"]
    row = {
        "seconds": sum(s["seconds"] for s in stages.values()) if resumed else watched.seconds,
        "peak_rss_mb": max([watched.peak_mb, *(s["peak_rss_mb"] for s in stages.values())])
        if resumed
        else watched.peak_mb,
        "resumed": resumed,
    }
    write_json(note, row | {"stages": {name: s["seconds"] for name, s in stages.items()}})
    return dict(read_json(note))


def _found(result: Mapping[str, Any]) -> Row:
    """A result without what differs from run to run: timings, and the folder in its recipe."""
    recipe = {k: v for k, v in result.get("recipe", {}).items() if k != "out"}
    return {k: v for k, v in result.items() if k != "stages"} | {"recipe": recipe}


def claims(result: Mapping[str, Any], seconds: Sequence[float], peaks: Sequence[float]) -> list[Claim]:
    """From the demo's `result.json` and what was measured from outside."""
    reward, effect = result["reward"], result["effect"]
    found = [harness.from_runs("demo_seconds", seconds, *TARGETS["demo_seconds"]),
             harness.from_runs("demo_peak_rss_mb", peaks, *TARGETS["demo_peak_rss_mb"])]  # fmt: skip
    for group in ("safety", "chat"):
        low, high = reward["interval"][group]
        n = result["data"]["groups"][group]["test"]
        found.append(_claim(f"demo_{group}_accuracy", reward["accuracy"][group], low, high, n))
    found.append(_claim("demo_D", effect["D"], effect["low"], effect["high"], 0, effect.get("reason") or ""))
    found.append(_kept(result))
    found.append(_claim("demo_retrainings", retrainings(result), None, None, 1))
    return found


def _claim(name: str, value: float | None, low: float | None, high: float | None, n: int, reason: str = "") -> Claim:
    unit, target = TARGETS[name]
    return Claim(name, value, unit, target, low=low, high=high, n=n, spread=_INTERVAL, reason=reason)


def _kept(result: Mapping[str, Any]) -> Claim:
    """The share of the chat accuracy above chance that SAFER's flips leave, at the rate of D."""
    rate = result["effect"].get("rate")
    for row in result["poison_summary"]:
        if (row["method"], row["rate"]) == ("safer", rate):
            e = row["chat_kept"]
            return _claim("demo_chat_kept", e["value"], e["low"], e["high"], e["n"], e["reason"])
    return harness.missing("demo_chat_kept", *TARGETS["demo_chat_kept"], "poisoning by SAFER's score was not run")


def retrainings(result: Mapping[str, Any]) -> int:
    """Reward models trained; without injected noise both experiments share the unedited ones."""
    noise = result["recipe"]["denoise"]["noise"]
    shared = bool(result["poison"]) and not noise
    return len(result["poison"]) + sum(not (shared and r["method"] == "none") for r in result["denoise"])
