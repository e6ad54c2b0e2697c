"""kill -9 in the middle of a stage, the same command again: the same result, timings aside."""

from __future__ import annotations

import json
import re
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from seamark.pipelines.recipe import load_recipe
from seamark.pipelines.runner import run_safer
from tiny_run import Finished, command, environment, seamark, without_stages, write_recipe

STAGES = (
    "data", "noisy-1/data", "clean/reward-0", "noisy-0/reward", "clean/sae", "noisy-1/sae", "clean/scan",
    "clean/features", "clean/effects", "poison/safer-0.2-seed-0", "poison/random-0.2-seed-1",
    "denoise/safer-0.1-seed-1",
)  # fmt: skip


def kill_in(recipe: Path, stage: str, delay: float = 0.0) -> None:
    """Run the recipe in a process of its own and kill it while it works on a stage."""
    root = Path(str(load_recipe(recipe).out))
    partial, final = root / ".partial" / stage.replace("/", "~"), root / stage / "manifest.json"
    log = recipe.with_suffix(".log")
    with log.open("w") as err, subprocess.Popen(
        command("run", recipe), stdout=subprocess.DEVNULL, stderr=err, env=environment(), cwd=recipe.parent
    ) as process:  # fmt: skip
        try:
            end = time.monotonic() + 240
            while not partial.exists():
                assert process.poll() is None, log.read_text()
                assert not final.exists(), f"{stage} was over before it was seen"
                assert time.monotonic() < end
                time.sleep(0.002)
            time.sleep(delay)
        finally:
            process.kill()
    assert process.returncode == -9
    assert not (root / "result.json").exists()


def without_costs(report: Path) -> str:
    """A report without the numbers of its section on cost."""
    text = report.read_text(encoding="utf-8")
    found = re.subn(r'<section aria-labelledby="costs">.*?</section>', "", text, flags=re.DOTALL)
    assert found[1] == 1
    return found[0]


def check(folder: Path, finished: Finished) -> dict[str, Any]:
    result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    assert without_stages(result) == without_stages(finished.result)
    assert set(result["stages"]) == set(finished.result["stages"])
    assert without_costs(folder / "report.html") == without_costs(finished.folder / "report.html")
    assert not [p.name for p in folder.rglob(".*") if p.name not in (".lock", ".partial")]
    for manifest in finished.folder.rglob("manifest.json"):
        stage = manifest.parent.relative_to(finished.folder)
        one, other = json.loads(manifest.read_text()), json.loads((folder / stage / "manifest.json").read_text())
        assert {k: v for k, v in one.items() if k not in ("created", "seconds")} == {
            k: v for k, v in other.items() if k not in ("created", "seconds")
        }
    return result


def test_killed_in_three_stages_a_run_ends_in_the_same_result(finished: Finished, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path / "recipe.yaml", finished.data(tmp_path / "run"))
    reward = tmp_path / "run" / "clean" / "reward-0" / "manifest.json"
    kill_in(recipe, "clean/reward-1")
    kill_in(recipe, "noisy-0/sae")
    whole = reward.stat().st_mtime_ns
    kill_in(recipe, "poison/safer-0.2-seed-1", delay=0.7)
    run_safer(load_recipe(recipe))
    assert reward.stat().st_mtime_ns == whole
    check(tmp_path / "run", finished)


@pytest.mark.slow
@pytest.mark.parametrize(("stage", "workers"), [(stage, 1 + i % 2) for i, stage in enumerate(STAGES)])
def test_killed_in_any_stage(stage: str, workers: int, finished: Finished, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path / "recipe.yaml", finished.data(tmp_path / "run", workers=workers))
    for delay in (0.0, 0.15):  # the second time it goes on, and is killed later
        kill_in(recipe, stage, delay)
    found = seamark("run", recipe, "--json", cwd=tmp_path)
    assert found.returncode == 0, found.stderr
    assert check(tmp_path / "run", finished) == json.loads(found.stdout)


@pytest.mark.slow
def test_killed_while_the_report_is_written(finished: Finished, tmp_path: Path) -> None:
    folder = finished.copy(tmp_path / "run")
    recipe = write_recipe(tmp_path / "recipe.yaml", finished.data(folder))
    for leave in ("report.html", "result.json", ""):  # whatever was written when it was killed
        for name in ("report.html", "result.json"):
            if name != leave:
                (folder / name).unlink(missing_ok=True)
        run_safer(load_recipe(recipe))
        check(folder, finished)
