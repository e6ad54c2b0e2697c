"""Run an audit experiment from its estimate to its tables, or read what is finished of one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from seamark.pipelines.audit_recipe import AuditRecipe
from seamark.pipelines.finished import FinishedRun
from seamark.pipelines.grid import GridRun
from seamark.pipelines.grid_estimate import Estimated, estimate, keep
from seamark.pipelines.grid_result import collect
from seamark.pipelines.grid_tables import write_exports
from seamark.pipelines.runner import make_workers
from seamark.run import Run, Workers, digest, disk_errors, read_json, say, write_json

RESULT, SO_FAR = "result.json", "result-so-far.json"
_APART = ("estimate", "timings")


def run_audit(recipe: AuditRecipe) -> tuple[Path, dict[str, Any]]:
    """Run a recipe in its folder; finished cells are skipped. Writes `result.json`, `tables/` and `figures/` there.

    Returns:
        The run folder and the result.
    """
    with Run(Path(recipe.out)) as run, make_workers(recipe) as workers:
        builder = GridRun(recipe, run, workers)
        builder.check()
        expected = keep(run.root, recipe, lambda: estimate(builder))
        grid = builder.go()
        workers.close()
        with run.measure("result"):
            found = collect(grid)
        timings = {t: run.timings[t] for t in run.titles if t in run.timings}
        result = _write(run.root, RESULT, found, {"estimate": expected, "timings": timings}, fresh=bool(run.built))
        if not run.built:
            say("Nothing to do: every cell was done before with this recipe.")
        return run.root, result


def estimate_audit(recipe: AuditRecipe) -> Estimated:
    """What a recipe would cost, without running it (but for a short probe, where the folder holds no timings)."""
    with Run(Path(recipe.out)) as run, make_workers(recipe) as workers:
        builder = GridRun(recipe, run, workers)
        builder.check()
        return estimate(builder)


def audit_so_far(recipe: AuditRecipe) -> tuple[Path, dict[str, Any]]:
    """The result of the cells that are finished, with the missing ones named; may run beside the run itself.

    Writes `result-so-far.json`, and tables and figures in `so-far/`.
    """
    with FinishedRun(Path(recipe.out)) as run:
        grid = GridRun(recipe, run, Workers()).go()
        result = _write(run.root, SO_FAR, collect(grid), {"timings": run.timings}, fresh=True, exports="so-far")
        return run.root, result


def _write(
    root: Path, name: str, found: dict[str, Any], apart: dict[str, Any], *, fresh: bool, exports: str = ""
) -> dict[str, Any]:
    """Write a result with its tables and figures, unless an equal one is there."""
    file, folder = root / name, root / exports if exports else root
    if not fresh and file.exists() and (folder / "tables").is_dir():
        current: dict[str, Any] = read_json(file)
        if digest({k: v for k, v in current.items() if k not in _APART}) == digest(found):
            return current
    result = found | apart
    with disk_errors(root):
        write_exports(folder, found)
        write_json(file, result)
    return result
