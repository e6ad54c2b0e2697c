"""Run a recipe from its first stage to its report."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import psutil
import torch

from seamark.pipelines.recipe import SaferRecipe, WorldRecipe
from seamark.pipelines.result import write_result
from seamark.pipelines.safer import SaferRun
from seamark.run import Run, Workers, say

_WORKER_GIB = 1.5


def run_safer(recipe: SaferRecipe) -> tuple[Path, dict[str, Any]]:
    """Run a recipe in its folder and write `result.json` and `report.html` there.

    Returns:
        The run folder and the result.
    """
    with Run(Path(recipe.out)) as run, make_workers(recipe) as workers:
        done = SaferRun(recipe, run, workers).go()
        workers.close()
        result = write_result(done, run)
        if not run.built:
            say("Nothing to do: every stage was done before with this recipe.")
        return run.root, result


def make_workers(recipe: WorldRecipe) -> Workers:
    """As many processes as cores and memory allow on a CPU; one where there is a GPU, which they would share."""
    if recipe.workers is not None:
        return Workers(recipe.workers, recipe.threads)
    if torch.cuda.is_available():
        return Workers(1, max(recipe.threads, os.cpu_count() or 1))
    cores = max(1, len(os.sched_getaffinity(0)) // recipe.threads) if hasattr(os, "sched_getaffinity") else 1
    fits = max(1, int(psutil.virtual_memory().available / 2**30 / _WORKER_GIB))
    return Workers(min(cores, fits), recipe.threads)
