"""The audit's experiments on the demo pairs and on real ones: what flips do, what removal mends, what is found.

Each setup is one `seamark audit experiment` in the scratch folder: cells that are finished stay, so that a benchmark
that was broken off goes on, and every run claims what is finished of all setups. It takes many hours on two cores.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import harness, programs
from benchmarks.harness import BenchmarkError, Claim, Result, Row
from seamark.run import read_json

FOLDER = harness.SCRATCH / "audit"
VARIABLE = "SEAMARK_DATA"
RATE, NOISE, TARGETED, REMOVED = 0.05, 0.1, ("safer", 0.05), 0.1
"""Flips that D is about; noise of the detection claims; the attack; share removed for recovery."""
RECOVERY_NOISE = 0.2
"""Twice what is removed: of 10 % noise as much is removed as is wrong, and the noise costs next to nothing."""
METHOD = "combined"
"""The best combination: what detection and recovery are claimed for."""
CONTROLS = ("direction", "untrained", "random_latents")
CONTRAST = "chat"
RESULTS = ("result.json", "result-so-far.json")


@dataclass(frozen=True)
class Setup:
    """One experiment."""

    recipe: str
    files: Mapping[str, str]
    """{group: file of the folder of real data}; none: the authored pairs."""
    sets: Sequence[str] = ()

    def command(self, out: Path, data: str | None) -> list[str]:
        given = [f"--pairs={group}={Path(data or '') / file}" for group, file in self.files.items()]
        return [*programs.SEAMARK, "audit", "experiment", "--config", str(harness.ROOT / "recipes" / self.recipe),
                *given, *(f"--set={s}" for s in self.sets), "--out", str(out)]  # fmt: skip


_HELPFUL = {CONTRAST: "prefs_helpful_hh.jsonl.gz"}
_SMALLER = ("data.max_pairs={safety: 1000, chat: 200}", "data.test_share=0.35", "reward.max_length=128",
            "reward.attention=eager", "denoise.rates=[0.02,0.06,0.1]")  # fmt: skip
"""What lets 300 retrainings and 80 models finish in some hours: most pairs and most held-out ones where the measures
look, texts cut to their last 128 tokens (held-out accuracy of RM-Bench's safety pairs: 92 % so, 94 % with 256), and
attention that takes a quarter less time at this length."""
SETUPS = {
    "demo": Setup("audit-demo.yaml", {}),
    "rmbench": Setup("audit-local.yaml", {"safety": "prefs_safety_rmbench.jsonl.gz", **_HELPFUL}, _SMALLER),
    "pku": Setup("audit-local.yaml", {"safety": "prefs_safety_pku.jsonl.gz", **_HELPFUL}, _SMALLER),
}
ABOUT = (
    "`seamark audit experiment` with the recipes audit-demo (the authored pairs) and audit-local (RM-Bench's safety "
    "pairs and PKU-SafeRLHF's, at most 1,000, each beside 200 of hh-rlhf's helpful ones, 35 % of the prompts held out, "
    "texts cut to their last 128 tokens): MiniLM-L6 as reward model, five seeds, each with a reward model, an "
    "autoencoder, features and retrainings of its own; intervals resample seeds and prompts. D: safety accuracy lost "
    "by SAFER's flips less that lost by random ones (by the margin's), 5 % of the group flipped. Detection: AUROC for "
    "injected wrong labels within the group, of the combination, at 10 % random noise, and at 5 % flipped by another "
    "seed's SAFER score. Recovery: 10 % removed by the combination after 20 % noise"
)
Found = Mapping[str, Any]
Pick = Callable[[Found], Row | None]


def run(
    runs: int | None = None, say: Callable[[str], None] = lambda _: None, *, setups: str | None = None,
    so_far: bool = False, folder: Path = FOLDER,
) -> Result:  # fmt: skip
    """All setups one after the other; `runs` does not count here, seeds do.

    Args:
        setups: only these, separated by commas; of the others what an earlier run left.
        so_far: train nothing, claim what is finished.
        folder: where experiments lie.
    """
    names = [name.strip() for name in setups.split(",")] if setups else list(SETUPS)
    if unknown := [name for name in names if name not in SETUPS]:
        raise ValueError(f"no setup {', '.join(unknown)}; there are {', '.join(SETUPS)}")
    data = os.environ.get(VARIABLE) or None
    why = {}
    for name in names:
        if SETUPS[name].files and data is None:
            why[name] = f"{VARIABLE} names no folder of real data"
        elif so_far and not (folder / name).exists():
            why[name] = "not run"
        else:
            say(f"{name}: {'looking at what is finished' if so_far else 'at work'}")
            if problem := experiment(SETUPS[name], folder / name, data, so_far=so_far):
                why[name] = problem
    found = {name: result for name in SETUPS if (result := finished(folder / name)) is not None}
    about = ABOUT + "".join(f". {name}: {len(r['missing'])} stages are not finished" for name, r in found.items()
                            if r["missing"])  # fmt: skip
    about += "".join(f". {name}: figures of an earlier run; this one failed ({why[name]})" for name in found
                     if name in why)  # fmt: skip
    seeds = {name: r["recipe"]["seeds"] for name, r in found.items()}
    return Result("audit", about, claims(found, why), list(table(found)), {"seeds": seeds, "missing": why})


def experiment(setup: Setup, out: Path, data: str | None, *, so_far: bool) -> str:
    """Run one, or go on with it; why it failed."""
    command = [*setup.command(out, data), *(["--so-far"] if so_far else [])]
    if not so_far:  # what was written about a part of it is out of date
        (out / RESULTS[1]).unlink(missing_ok=True)
    try:
        programs.watched(command, out.parent / f"{out.name}.log", "seamark audit experiment")
    except BenchmarkError as e:
        return str(e)
    return ""


def finished(out: Path) -> Found | None:
    """The result of a whole run, else of what was finished when somebody last looked."""
    there = [out / name for name in RESULTS if (out / name).exists()]
    return dict(read_json(max(there, key=lambda path: path.stat().st_mtime))) if there else None


# -- claims: {name: (setup, unit, target, what to pick)}


def _whole(found: Found, row: Row) -> bool:
    """Whether a row is of all the recipe's seeds: of some only it is an estimate, but not the one that is claimed."""
    return set(row["seeds"]) == set(found["recipe"]["seeds"])


def _effect(baseline: str) -> Pick:
    def pick(found: Found) -> Row | None:
        rows = (found.get("poison") or {}).get("effects", [])
        mine = [r for r in rows if r["rate"] == RATE and r["baseline"] == baseline and _whole(found, r)]
        return dict(mine[0]["D"]) if mine else None

    return pick


def _best_control(found: Found) -> Row | None:
    """D against the control whose flips cost most."""
    known = [e for control in CONTROLS if (e := _effect(control)(found)) and e["value"] is not None]
    return min(known, key=lambda e: float(e["value"])) if len(known) == len(CONTROLS) else None


def _kept(found: Found) -> Row | None:
    for row in (found.get("poison") or {}).get("summary", []):
        if (row["method"], row["rate"]) == ("safer", RATE) and _whole(found, row):
            return dict(row["kept"][CONTRAST])
    return None


def _detected(part: str, noise: str, rate: float, measure: str) -> Pick:
    def pick(found: Found) -> Row | None:
        for row in found.get(part, []):
            mine = (row["noise"], row["noise_rate"], row["method"]) == (noise, rate, METHOD)
            if mine and measure in row and _whole(found, row):
                return dict(row[measure])
        return None

    return pick


def _recovered(found: Found) -> Row | None:
    for arm in found.get("denoise", []):
        if arm["noise"] == {"kind": "random", "rate": RECOVERY_NOISE}:
            for row in arm["summary"]:
                if (row["method"], row["rate"]) == (METHOD, REMOVED) and _whole(found, row):
                    return dict(row["recovery"])
    return None


_D = ("share", ">= 0.05 and low > 0")
CLAIMS: dict[str, tuple[str, tuple[str, str], Pick]] = {
    **{f"poison_D_{s}": (s, _D, _effect("random")) for s in ("demo", "rmbench")},
    **{f"poison_D_vs_margin_{s}": (s, ("share", ""), _effect("margin")) for s in ("demo", "rmbench")},
    "chat_kept_demo": ("demo", ("share", ">= 0.9"), _kept),
    **{f"detect_random_auroc_{s}": (s, ("AUROC", ""), _detected("detection", "random", NOISE, "auroc"))
       for s in SETUPS},
    **{f"detect_random_vs_margin_{s}": (s, ("AUROC", "low > 0"),
                                        _detected("detection", "random", NOISE, "above_margin"))
       for s in ("demo", "rmbench")},
    **{f"detect_targeted_auroc_{s}": (s, ("AUROC", ">= 0.9"), _detected("defence", *TARGETED, "auroc"))
       for s in ("demo", "rmbench")},
    **{f"denoise_recovery_{s}": (s, ("share", ">= 0.5"), _recovered) for s in ("demo", "rmbench")},
    "safer_vs_best_control_D_demo": ("demo", ("share", "low > 0"), _best_control),
}  # fmt: skip


def claims(found: Mapping[str, Found], why: Mapping[str, str]) -> list[Claim]:
    """One for each of `CLAIMS`, without a value where its cells are not finished."""
    made = []
    for name, (setup, (unit, target), pick) in CLAIMS.items():
        estimate = pick(found[setup]) if setup in found else None
        reason = why.get(setup) or f"{setup}: these cells are not finished"
        made.append(harness.from_estimate(name, estimate, unit, target, "95 % interval over seeds and prompts", reason))
    return made


# -- tables


def table(found: Mapping[str, Found]) -> Iterator[Row]:
    """Every condition of every setup; intervals in brackets, shares as percent."""
    for setup, result in found.items():
        for arm in [result.get("poison"), *result.get("denoise", [])]:
            if arm:
                yield from _arm(setup, arm)
        for part in ("detection", "defence"):
            for row in result.get(part, []):
                yield {"table": f"{setup}, {part}", "noise": f"{row['noise']} {_rate(row['noise_rate'])}",
                       "method": row["method"], "seeds": len(row["seeds"]), "AUROC": _shown(row["auroc"], 1, 3),
                       "above margin": _shown(row.get("above_margin"), 1, 3),
                       f"recall in the first {_rate(row['share'])}": _shown(row["recall"])}  # fmt: skip
        for row in result.get("calibration", []):
            told = row["calibration"]
            yield {"table": f"{setup}, probability of a wrong label by the combination",
                   "noise": f"{row['noise']} {_rate(row['noise_rate'])}", "seeds": len(row["seeds"]),
                   "Brier score": _shown(told["brier"], 1, 3),
                   "of the share alone": _shown(told["brier_of_share"], 1, 3),
                   "calibration error": _shown(told["ece"], 1, 3)}  # fmt: skip


def _arm(setup: str, arm: Found) -> Iterator[Row]:
    noise = arm["noise"]
    title = "labels flipped" if noise is None else f"pairs removed after {_rate(noise['rate'])} {noise['kind']} noise"
    effects = {(e["rate"], e["baseline"]): e["D"] for e in arm["effects"]}
    for row in arm["summary"]:
        shown = {"table": f"{setup}, {title}", "rate": _rate(row["rate"]), "method": row["method"],
                 "seeds": len(row["seeds"])}  # fmt: skip
        shown |= {group: _shown(e) for group, e in row["accuracy"].items()}
        shown |= {f"{group} lost": _shown(e) for group, e in row.get("lost", {}).items()}
        if noise is None:
            shown["D of SAFER against it"] = _shown(effects.get((row["rate"], row["method"])))
        else:
            shown["recovery"] = _shown(row.get("recovery"))
        yield shown


def _rate(rate: float) -> str:
    return f"{100 * rate:g} %"


def _shown(e: Row | None, scale: float = 100, digits: int = 1) -> str:
    if e is None:
        return ""
    if e["value"] is None:
        return f"n/a ({e['reason']})"
    value = f"{scale * e['value']:.{digits}f}"
    return value if e["low"] is None else f"{value} [{scale * e['low']:.{digits}f}, {scale * e['high']:.{digits}f}]"
