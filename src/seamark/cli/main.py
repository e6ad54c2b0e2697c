"""The table of commands and the one place where errors become a line and an exit code."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import tyro

from seamark.cli import (
    atlas,
    atlas_files,
    audits,
    concepts,
    diagnose_causal,
    diagnose_change,
    diagnose_knowledge,
    diagnose_languages,
    diagnose_risk,
    diagnose_steer,
    diagnose_trajectory,
    experiments,
    explain,
    inspect,
    models,
    ratings,
    recipes,
    reports,
    saes,
    saes_eval,
    scans,
    serve,
    simulate,
)
from seamark.errors import SeamarkError
from seamark.run import disk_errors

COMMANDS: dict[str, Callable[..., Any]] = {
    "demo": recipes.demo,
    "run": recipes.run,
    "reward train": models.reward_train,
    "reward eval": models.reward_eval,
    "sae train": saes.sae_train,
    "sae suite": saes.sae_suite,
    "sae eval": saes_eval.sae_eval,
    "sae convert": saes_eval.sae_convert,
    "scan run": scans.scan_run,
    "scan merge": scans.scan_merge,
    "scan info": scans.scan_info,
    "contrast": models.contrast,
    "concepts": concepts.concepts,
    "explain": explain.explain,
    "simulate": simulate.simulate,
    "ratings export": ratings.ratings_export,
    "ratings import": ratings.ratings_import,
    "atlas build": atlas.atlas_build,
    "atlas import": atlas_files.atlas_import,
    "atlas export": atlas_files.atlas_export,
    "atlas landscape": atlas.atlas_landscape,
    "atlas search": atlas.atlas_search,
    "atlas info": atlas.atlas_info,
    "inspect": inspect.inspect,
    "diagnose causal": diagnose_causal.diagnose_causal,
    "diagnose change": diagnose_change.diagnose_change,
    "diagnose knowledge": diagnose_knowledge.diagnose_knowledge,
    "diagnose languages": diagnose_languages.diagnose_languages,
    "diagnose risk": diagnose_risk.diagnose_risk,
    "diagnose steer": diagnose_steer.diagnose_steer,
    "diagnose trajectory": diagnose_trajectory.diagnose_trajectory,
    "serve": serve.serve,
    "audit report": reports.report,
    "audit score": audits.score,
    "audit poison": audits.poison,
    "audit denoise": audits.denoise,
    "audit undo": audits.undo,
    "audit experiment": experiments.audit_experiment,
}


def main(args: Sequence[str] | None = None) -> int:
    """Run one command. Returns 0, 2 for an error the user can mend (one line on stderr), 130 when interrupted."""
    words = list(sys.argv[1:] if args is None else args)
    if " ".join(words[:2]) in COMMANDS:  # groups and verbs are two words
        words[:2] = [" ".join(words[:2])]
    elif words and (verbs := [c for c in COMMANDS if c.startswith(f"{words[0]} ")]):
        return _group(words, verbs)
    try:
        with disk_errors(Path.cwd()):
            tyro.extras.subcommand_cli_from_dict(
                COMMANDS, prog="seamark", description="Find, explain and repair safety features.", args=words
            )
    except SeamarkError as e:
        return _tell(str(e))
    except OSError as e:
        if e.filename is None:  # not about a path that the user gave
            raise
        return _tell(f"{e.filename}: cannot be used ({e.strerror}). Check the path, or choose another --out")
    except KeyboardInterrupt:
        sys.stderr.write("seamark: interrupted; run the same command again to go on\n")
        return 130
    return 0


def _group(words: Sequence[str], verbs: Sequence[str]) -> int:
    """What a group has: a line for each command; after a verb that it lacks, their names alone."""
    if len(words) > 1 and not words[1].startswith("-"):
        names = ", ".join(f"seamark {v}" for v in verbs)
        return _tell(f"{words[0]} {words[1]!r} is unknown. Commands: {names}")
    width = max(map(len, verbs))
    lines = [f"  seamark {v:<{width}}  {(COMMANDS[v].__doc__ or '').strip().partition(chr(10))[0]}" for v in verbs]
    sys.stderr.write("\n".join(["Commands:", *lines, f"Options of one: seamark {words[0]} COMMAND --help"]) + "\n")
    return 2 if len(words) == 1 else 0


def _tell(problem: str) -> int:
    sys.stderr.write(" ".join(f"seamark: {problem}".split()) + "\n")
    return 2
