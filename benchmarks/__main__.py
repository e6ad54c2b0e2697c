"""`python -m benchmarks NAME|all [--runs N] [--check]`: measure, write `results/NAME.json`, print the claims.

`sae` is `sae-speed` (`sae-speed-S`, `-M`, `-L`) and `sae-fvu`; they also take `--contenders a,b`, and `sae-fvu`
`--minutes 2,5,10`, `--fresh`, `--lanes N`. `scan` takes `--setups a,b`, `--pairs N`, `--tokens N`; `explain`
`--stage a,b`, `--features N`, `--trial`; `atlas` `--features N`; `audit-large` `--pairs N`; `audit` `--setups a,b`,
`--so-far`; `diagnose` `--so-far`.
"""

from __future__ import annotations

import argparse
import inspect
import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

from benchmarks import (
    atlas,
    audit,
    audit_large,
    demo,
    diagnose,
    explain,
    harness,
    reward,
    sae_fvu,
    sae_speed,
    scan,
    tables,
)
from benchmarks.harness import Result
from seamark.run import read_json

BENCHMARKS: dict[str, Callable[..., Result]] = {
    "reward": reward.run, "demo": demo.run, "scan": scan.run,
    "explain": explain.run, "atlas": atlas.run, "audit-large": audit_large.run, "audit": audit.run,
    "diagnose": diagnose.run,
    **{f"sae-speed-{shape}": partial(sae_speed.run, shape=shape) for shape in sae_speed.SHAPES}, "sae-fvu": sae_fvu.run,
}  # fmt: skip
"""In this order by `all`: the short ones first."""
SPEED = [f"sae-speed-{shape}" for shape in sae_speed.SHAPES]
GROUPS = {"sae-speed": SPEED, "sae": [*SPEED, "sae-fvu"]}
OPTIONS = ("contenders", "minutes", "fresh", "lanes", "setups", "pairs", "tokens", "stage", "features", "trial",
           "so_far")  # fmt: skip
"""Of some benchmarks only: those that take an argument of that name."""


def main(arguments: list[str] | None = None, results: Path = harness.RESULTS) -> int:
    """Returns 0; with --check, 1 where a claim does not hold or could not be measured."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("name", choices=[*BENCHMARKS, *GROUPS, "all"])
    parser.add_argument("--runs", type=int, help="rounds of measurement (each benchmark has its own default)")
    parser.add_argument("--check", action="store_true", help="exit with 1 unless every claim with a target holds")
    parser.add_argument("--contenders", help="sae: only these, separated by commas")
    parser.add_argument("--minutes", help="sae-fvu: wall clock of the trainings, separated by commas")
    parser.add_argument("--fresh", action="store_true", default=None, help="sae-fvu: train again what is there")
    parser.add_argument("--lanes", type=int, help="sae-fvu: trainings side by side, once speeds are known")
    parser.add_argument("--setups", help="scan, audit: only these, separated by commas")
    parser.add_argument("--pairs", type=int, help="scan, audit-large: so many pairs, for a trial")
    parser.add_argument("--tokens", type=int, help="scan: largest corpus of the growth (0: none)")
    parser.add_argument("--stage", help="explain: only these stages, separated by commas")
    parser.add_argument("--features", type=int, help="explain: so many features of each SAE, for a trial")
    parser.add_argument("--trial", action="store_true", default=None, help="explain: everything small")
    parser.add_argument("--so-far", action="store_true", default=None, help="audit, diagnose: claim what is finished")
    options = parser.parse_args(arguments)
    if options.runs is not None and options.runs < 1:
        parser.error("--runs must be at least 1")
    names = list(BENCHMARKS) if options.name == "all" else GROUPS.get(options.name, [options.name])
    given = {k: v for k in OPTIONS if (v := getattr(options, k)) is not None}
    takes = {name: inspect.signature(BENCHMARKS[name]).parameters for name in names}
    for option in given:
        if not any(option in takes[name] for name in names):
            parser.error(f"{options.name} has no --{option}")
    for name in names:
        load = os.getloadavg()[0]
        if load > 0.5 * harness.threads():
            sys.stderr.write(f"{name}: the machine is busy (load {load:.1f}): numbers will be off\n")
        result = BENCHMARKS[name](options.runs, lambda line: sys.stderr.write(f"  {line}\n") and None,
                                  **{k: v for k, v in given.items() if k in takes[name]})  # fmt: skip
        path = harness.save(result, load, results)
        tables.show(result)
        sys.stderr.write(f"{name}: written to {os.path.relpath(path)}\n")
    claims = [c for name in names for c in read_json(results / f"{name}.json")["claims"]]
    if len(names) > 1:
        tables.show_claims(claims, tables.wide_console(), options.name)
    return int(options.check and any(c["target"] and not c["holds"] for c in claims))


if __name__ == "__main__":
    sys.exit(main())
