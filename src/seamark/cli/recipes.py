"""`seamark demo` and `seamark run`: whole recipes."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.console import Console

from seamark.cli.options import Common, Many, parse_pairs, recipe_folder, the_recipe
from seamark.errors import ConfigError


def demo(
    common: Annotated[Common, tyro.conf.OmitArgPrefixes], out: str | None = None, workers: int | None = None
) -> None:
    """The main job on the embedded default: ends in the result table and the path of the report.

    Args:
        common: options of every command.
        out: run folder (runs/demo).
        workers: processes side by side.
    """
    config = common.config or recipe_folder() / "safer-demo.yaml"
    _run(Common(config, common.set, common.json), out=out, workers=workers)


def run(
    recipe: Annotated[Path, tyro.conf.Positional],
    common: Annotated[Common, tyro.conf.OmitArgPrefixes],
    pairs: Many = (),
    model: str | None = None,
    out: str | None = None,
    workers: int | None = None,
) -> None:
    """Run a recipe of any kind: what is finished is skipped, what was interrupted goes on.

    Args:
        recipe: the recipe's YAML file.
        common: options of every command.
        pairs: preference pairs as group=file, e.g. --pairs safety=a.jsonl --pairs chat=b.jsonl.
        model: base of the reward models (a folder, a Hub name or seamark/default).
        out: run folder.
        workers: processes side by side.
    """
    from seamark.cli import experiments
    from seamark.cli.saes import run_suite_recipe
    from seamark.pipelines.recipe import read_recipe

    if common.config is not None:
        raise ConfigError("give the recipe once", where="--config", fix="Write: seamark run recipe.yaml")
    files = {"pairs": parse_pairs(pairs)} if pairs else None
    kind = read_recipe(recipe).get("recipe")
    if kind == experiments.KIND:
        given = Common(recipe, common.set, common.json)
        experiments.run_experiment(given, pairs, model=model, out=out, workers=workers)
        return
    if kind == "sae-suite":
        run_suite_recipe(Common(recipe, common.set, common.json), data=files, model=model, out=out)
        return
    _run(Common(recipe, common.set, common.json), data=files, model=model, out=out, workers=workers)


def _run(common: Common, **overrides: Any) -> None:
    from seamark.pipelines.runner import run_safer
    from seamark.pipelines.tables import result_tables

    recipe = the_recipe(common, **overrides)
    folder, result = run_safer(recipe)
    if common.json:
        sys.stdout.write(json.dumps(result, ensure_ascii=False) + "\n")
        return
    console = Console()
    for table in result_tables(result, recipe.target):
        console.print(table)
    console.print(f"Result: {folder / 'result.json'}", markup=False, highlight=False, soft_wrap=True)
    console.print(f"Report: {folder / 'report.html'}", markup=False, highlight=False, soft_wrap=True)
