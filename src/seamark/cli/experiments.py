"""`seamark audit experiment`: methods x rates x seeds."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro
from rich.console import Console

from seamark.cli.options import Common, Many, parse_pairs, parse_sets, recipe_folder
from seamark.errors import ConfigError
from seamark.run import to_jsonable
from seamark.show.tables import rich_table

if TYPE_CHECKING:
    from seamark.pipelines.audit_recipe import AuditRecipe
    from seamark.pipelines.grid_estimate import Estimated

KIND = "audit-experiment"


def audit_experiment(
    common: Annotated[Common, tyro.conf.OmitArgPrefixes], pairs: Many = (), model: str | None = None,
    out: str | None = None, workers: int | None = None, dimension: Path | None = None, estimate: bool = False,
    so_far: bool = False,
) -> None:  # fmt: skip
    """What flipping and removing pairs does, by method, rate and seed: a grid of retrainings, cell by cell.

    What is finished is skipped, what was interrupted goes on.

    Args:
        common: options of every command. Without --config, the recipe audit-demo on the authored pairs.
        pairs: preference pairs as group=file, e.g. --pairs safety=a.jsonl --pairs chat=b.jsonl.
        model: base of the reward models (a folder, a Hub name or seamark/default).
        out: run folder.
        workers: processes side by side.
        dimension: what it is about instead of safety: a YAML file with name, group, question and, if wanted, against.
        estimate: print what is left to do and what it costs, and stop. Measures on a few pairs if it must.
        so_far: print the tables of the finished cells and stop; the run may be at work meanwhile.
    """
    given = {"model": model, "out": out, "workers": workers, "dimension": str(dimension) if dimension else None}
    run_experiment(common, pairs, estimate=estimate, so_far=so_far, **given)


def run_experiment(
    common: Common, pairs: Many, *, estimate: bool = False, so_far: bool = False, **given: Any
) -> None:  # fmt: skip
    """The command, for `seamark run` too."""
    from seamark.pipelines.grid_runner import audit_so_far, estimate_audit, run_audit
    from seamark.pipelines.grid_tables import grid_tables

    if estimate and so_far:
        raise ConfigError("--estimate and --so-far are two questions", fix="Ask one at a time")
    recipe = _recipe(common, pairs, given)
    if estimate:
        _print_estimate(estimate_audit(recipe), as_json=common.json)
        return
    folder, result = audit_so_far(recipe) if so_far else run_audit(recipe)
    if common.json:
        sys.stdout.write(json.dumps(result, ensure_ascii=False) + "\n")
        return
    console = Console()
    for table in grid_tables(result):
        console.print(table)
    told = [*result.get("notes", []), *_missing(result["missing"])]
    for line in [*told, f"Result: {folder / ('result-so-far.json' if so_far else 'result.json')}"]:
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def _recipe(common: Common, pairs: Many, given: dict[str, Any]) -> AuditRecipe:
    from seamark.pipelines.audit_recipe import load_audit_recipe
    from seamark.pipelines.recipe import merge

    changes = {k: v for k, v in given.items() if v is not None}
    if pairs:
        changes["data"] = {"pairs": parse_pairs(pairs)}
    path = common.config or recipe_folder() / "audit-demo.yaml"
    return load_audit_recipe(path, merge(parse_sets(common.set), changes))


def _missing(names: list[str], shown: int = 5) -> list[str]:
    if not names:
        return []
    rest = f" and {len(names) - shown} more" if len(names) > shown else ""
    return [f"Not finished: {', '.join(names[:shown])}{rest}"]


def _print_estimate(found: Estimated, *, as_json: bool) -> None:
    from seamark.pipelines.grid_estimate import lines

    if as_json:
        sys.stdout.write(json.dumps(to_jsonable(found), ensure_ascii=False) + "\n")
        return
    rows = [
        (w.work, w.count, w.done, "not measured" if w.seconds_each is None else f"{w.seconds_each:,.1f}",
         f"{w.seconds / 60:,.1f}", f"{w.mb_each:,.1f}", w.source)
        for w in found.work
    ]  # fmt: skip
    columns = ("work", "count", "done", "seconds each", "minutes left", "MB each", "source")
    Console().print(rich_table("What is left", columns, rows))
    Console().print(list(lines(found))[-1].strip(), markup=False, highlight=False, soft_wrap=True)
