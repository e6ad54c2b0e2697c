"""`python -m benchmarks NAME|all [--runs N] [--check]`: measure, write `results/NAME.json`, print the claims."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path

from benchmarks import demo, harness, reward, tables
from benchmarks.harness import Result
from seamark.run import read_json

BENCHMARKS: dict[str, Callable[..., Result]] = {"reward": reward.run, "demo": demo.run}
"""In this order by `all`: the short ones first."""


def main(arguments: list[str] | None = None, results: Path = harness.RESULTS) -> int:
    """Returns 0; with --check, 1 where a claim does not hold or could not be measured."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("name", choices=[*BENCHMARKS, "all"])
    parser.add_argument("--runs", type=int, help="rounds of measurement (each benchmark has its own default)")
    parser.add_argument("--check", action="store_true", help="exit with 1 unless every claim with a target holds")
    options = parser.parse_args(arguments)
    if options.runs is not None and options.runs < 1:
        parser.error("--runs must be at least 1")
    names = list(BENCHMARKS) if options.name == "all" else [options.name]
    for name in names:
        load = os.getloadavg()[0]
        if load > 0.5 * harness.threads():
            sys.stderr.write(f"{name}: the machine is busy (load {load:.1f}): numbers will be off\n")
        result = BENCHMARKS[name](options.runs, lambda line: sys.stderr.write(f"  {line}\n") and None)
        path = harness.save(result, load, results)
        tables.show(result)
        sys.stderr.write(f"{name}: written to {os.path.relpath(path)}\n")
    claims = [c for name in names for c in read_json(results / f"{name}.json")["claims"]]
    if options.name == "all":
        tables.show_claims(claims, tables.wide_console(), "all")
    return int(options.check and any(c["target"] and not c["holds"] for c in claims))


if __name__ == "__main__":
    sys.exit(main())
