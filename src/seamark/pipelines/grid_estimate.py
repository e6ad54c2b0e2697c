"""What an audit experiment will cost before it starts: counts from its plan, times and sizes from a short probe.

Where the folder holds finished stages of a kind, their own times are taken. Else the recipe is run on a few pairs of
each group, at two sizes, and a straight line through both gives time and bytes at full size.
"""

from __future__ import annotations

import contextlib
import io
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from math import ceil
from pathlib import Path
from statistics import median
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from seamark.audit.editing import edit_count
from seamark.pipelines import stages
from seamark.pipelines.audit_recipe import AuditRecipe, needs_crossfit
from seamark.pipelines.finished import FinishedRun
from seamark.pipelines.grid import GridRun
from seamark.pipelines.grid_plan import Plan
from seamark.run import MANIFEST, Run, Workers, digest, read_json, say, write_json
from seamark.run.watch import RssMeter
from seamark.text.pairs import Pairs

FILE = "estimate.json"
SIZES = (24, 24, 72)
"""Pairs of each group in the probe. The first round only warms up."""
Work = Literal["retraining", "reward model", "cross-fitted model", "SAE training", "scan", "features", "scores"]
_FOLDERS: Mapping[str, Work] = {"reward": "reward model", "sae": "SAE training", "scan": "scan", "features": "features"}


class WorkEstimate(BaseModel):
    """Work of one kind."""

    model_config = ConfigDict(frozen=True)

    work: Work
    count: int
    done: int
    """Finished in this folder already."""
    seconds_each: float | None
    """None: it could not be measured."""
    mb_each: float
    """Megabytes on disk."""
    source: Literal["probe", "finished stages", "not measured"]

    @property
    def seconds(self) -> float:
        """Of what is left to do, one after the other."""
        return (self.count - self.done) * (self.seconds_each or 0.0)


class Estimated(BaseModel):
    """What is left of an experiment."""

    model_config = ConfigDict(frozen=True)

    work: tuple[WorkEstimate, ...]
    workers: int
    seconds: float
    """Wall-clock time with so many workers."""
    memory_mb: float | None
    """Peak of all workers together, as far as the probe shows; None without a probe."""
    disk_mb: float
    llm_cost: float
    """No language model is asked: `judge` reads a file."""


def keep(root: Path, recipe: AuditRecipe, make: Callable[[], Estimated]) -> dict[str, Any]:
    """The estimate that was made when this recipe was first started in this folder; made, said and kept if none was."""
    key = digest(recipe.model_dump(mode="json", exclude={"out"}))
    file = root / FILE
    if file.exists() and (kept := read_json(file)).get("key") == key:
        return dict(kept["estimate"])
    found = make()
    for line in lines(found):
        say(line)
    write_json(file, {"key": key, "estimate": found})
    return found.model_dump(mode="json")


def lines(e: Estimated) -> Iterator[str]:
    """The estimate in words."""
    for w in e.work:
        each = "not measured" if w.seconds_each is None else f"{w.seconds_each:,.1f} s each"
        done = f", {w.done} of them done" if w.done else ""
        yield f"  {w.count} × {w.work}: {each}{done}"
    memory = f", about {e.memory_mb:,.0f} MB of memory" if e.memory_mb else ""
    yield f"  left: about {_duration(e.seconds)} with {e.workers} workers{memory}, {e.disk_mb:,.0f} MB of disk; no LLM"


def _duration(seconds: float) -> str:
    return f"{seconds:,.0f} s" if seconds < 120 else f"{seconds / 60:,.0f} min" if seconds < 7200 else (
        f"{seconds / 3600:,.1f} h")  # fmt: skip


def estimate(builder: GridRun) -> Estimated:
    """Counts, times, memory and disk of what is left. Reads the pairs, so it raises what `prepare_data` does."""
    data = builder.prepare_data()
    finished = FinishedRun(builder.run.root)
    GridRun(builder.recipe, finished, Workers()).go()
    done = {name: work for name in finished.skipped if (work := work_of(name))}
    counts = planned(builder.grid.plan)
    lacking = {work for work, count in counts.items() if count and work not in set(done.values())}
    probed = Probe(builder, Pairs.from_jsonl(data / stages.TRAIN)).go() if lacking else None
    rows = tuple(
        _work(work, count, [finished.root / n for n, w in done.items() if w == work], probed)
        for work, count in counts.items() if count
    )  # fmt: skip
    workers = builder.workers.count
    return Estimated(
        work=rows, workers=workers, seconds=round(sum(r.seconds for r in rows) / workers, 1),
        memory_mb=round(probed.peak_mb * workers, 0) if probed else None,
        disk_mb=round(sum((r.count - r.done) * r.mb_each for r in rows), 1), llm_cost=0.0,
    )  # fmt: skip


def planned(plan: Plan) -> dict[Work, int]:
    """How often each kind of work is done in all."""
    r, worlds = plan.recipe, plan.worlds
    looks = _looks(plan)
    crossfit = sum(needs_crossfit(w.methods) for w in worlds) * r.crossfit.folds * r.crossfit.repeats
    return {
        "retraining": sum(len(list(arm.cells())) for arm in plan.arms)
        + (len(plan.variations) if plan.arm("poison") else 0),
        "reward model": len(worlds),
        "cross-fitted model": crossfit,
        "SAE training": len(worlds) + looks["sae"],
        "scan": len(worlds) + looks["scan"],
        "features": len(worlds) + looks["features"],
        "scores": sum(len(w.methods) for w in worlds) + len(plan.combined) + looks["features"],
    }


def _looks(plan: Plan) -> dict[str, int]:
    """SAE trainings, scans and choices of features of the ablations."""
    each = 2 if plan.ablation_noise() else 1
    settings = [v.setting for v in plan.variations]
    sae = sum(s in ("hookpoint", "d_sae", "k") for s in settings)
    return {"sae": each * sae, "scan": each * sum(s != "count" for s in settings), "features": each * len(settings)}


def work_of(stage: str) -> Work | None:
    """What kind of work a stage is, by its name."""
    *parents, last = stage.split("/")
    if "scores" in parents:
        return "scores"
    if last.startswith("model-") and "crossfit" in parents:
        return "cross-fitted model"
    if last in _FOLDERS and parents:
        return _FOLDERS[last]
    return "retraining" if "-seed-" in last else None


def _work(work: Work, count: int, folders: Sequence[Path], probed: Probe | None) -> WorkEstimate:
    """From finished stages where there are any, else from the probe."""
    if folders:
        seconds = median(read_json(f / MANIFEST)["seconds"] for f in folders)  # one that had to wait counts for no more
        size = sum(_size(f) for f in folders) / len(folders)
        return WorkEstimate(work=work, count=count, done=len(folders), seconds_each=round(seconds, 3),
                            mb_each=round(size, 3), source="finished stages")  # fmt: skip
    seconds_each, mb = probed.at_full_size(work) if probed else (None, 0.0)
    return WorkEstimate(work=work, count=count, done=0, seconds_each=seconds_each, mb_each=mb,
                        source="not measured" if seconds_each is None else "probe")  # fmt: skip


def _size(folder: Path) -> float:
    return sum(p.stat().st_size for p in folder.rglob("*") if p.is_file()) / 2**20


class Probe:
    """One clean world and one retraining on a few pairs, in a scratch folder of the run."""

    def __init__(self, builder: GridRun, train: Pairs) -> None:
        self.recipe, self.n_train = builder.recipe, len(train)
        self.smallest = min(len(train.group(g)) for g in train.groups)
        self.root = builder.run.root / ".probe"
        self.peak_mb = 0.0
        self._found: list[tuple[int, dict[Work, tuple[float, float]]]] = []

    def go(self) -> Probe:
        """Measure."""
        start = time.monotonic()
        say("▸ probe: the recipe on a few pairs")
        try:
            with RssMeter() as rss:
                self._found = [self._round(i, size) for i, size in enumerate(self._sizes())][1:]
            self.peak_mb = rss.peak_mb
        finally:
            shutil.rmtree(self.root, ignore_errors=True)
        say(f"✓ probe: {time.monotonic() - start:,.1f} s")
        return self

    def _sizes(self) -> list[int]:
        """Pairs of each group, before the split. Of few pairs all are taken, once: there is nothing to go on to."""
        every = max(10, ceil(self.smallest / (1 - self.recipe.data.test_share)))
        return [min(SIZES[0], every), every] if every <= SIZES[2] else list(SIZES)

    def _round(self, number: int, size: int) -> tuple[int, dict[Work, tuple[float, float]]]:
        """(pairs trained on, {work: (seconds, MB)}) with `size` pairs of each group."""
        seed = self.recipe.seeds[0]
        data = self.recipe.data.model_copy(update={"max_pairs": size})
        small = self.recipe.model_copy(update={"data": data, "seeds": [seed], "rewardbench": []})
        # The probe's own stages are nobody's business.
        with Run(self.root / str(number)) as run, contextlib.redirect_stderr(io.StringIO()):
            builder = GridRun(small, run, Workers(1, self.recipe.threads))
            n = builder.probe(seed, max(1, edit_count(0.1, size)))
            works = {work for stage in run.built if (work := work_of(stage))}
            return n, {work: self._measured(run, work) for work in works}

    @staticmethod
    def _measured(run: Run, work: Work) -> tuple[float, float]:
        """Mean seconds and MB of the stages of a kind."""
        folders = [run.root / s for s in run.built if work_of(s) == work]
        seconds = [read_json(f / MANIFEST)["seconds"] for f in folders]
        return sum(seconds) / len(folders), sum(map(_size, folders)) / len(folders)

    def at_full_size(self, work: Work) -> tuple[float | None, float]:
        """(seconds, MB) of one such stage with all pairs."""
        if work == "cross-fitted model":
            return self.at_full_size("retraining")
        points = [(n, measured[work]) for n, measured in self._found if work in measured]
        if len(points) < 2 or points[0][0] == points[1][0]:
            return (points[-1][1][0], points[-1][1][1]) if points else (None, 0.0)
        (x0, low), (x1, high) = points
        seconds, mb = (_line(x0, b, x1, h, self.n_train) for b, h in zip(low, high, strict=True))
        return round(seconds, 3), round(mb, 3)


def _line(x0: int, y0: float, x1: int, y1: float, x: int) -> float:
    """The straight line through two points at `x`, no lower than the last point and no steeper than one from 0.

    Work has a fixed part and one that grows with the pairs, neither below 0; a busy machine may make it look otherwise.
    """
    return min(max(y1, y1 + (y1 - y0) / (x1 - x0) * (x - x1)), y1 * max(x / x1, 1.0))
