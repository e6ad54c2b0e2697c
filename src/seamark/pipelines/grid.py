"""The audit experiment: methods x rates x seeds of retrainings, cell by cell (SAFER, arXiv 2507.00665, §4).

    data ─ (lower-blocks) ─ worlds "clean-<seed>": reward ─ sae ─ scan ─ features ─ scores ─ poison/<cell>
             └─ worlds "noisy-<kind>-<rate>-<seed>": flipped labels ─ the same ─ scores ─ denoise-<kind>-<rate>/<cell>
                   └─ "half-a", "half-b": more flipped labels, to learn how to combine scores

The attacker knows a clean world; the defender knows a noisy one and nothing else. The highest rate of every experiment
comes first, with all methods and seeds, so that an interrupted run has something to say.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from seamark.audit.editing import denoise, poison
from seamark.audit.experiment import Cell
from seamark.audit.scores import METHODS, PairScores
from seamark.errors import DataError
from seamark.pipelines import grid_stages, stages
from seamark.pipelines.audit_recipe import COMBINED, CONTROLS, CROSSFIT, AuditRecipe, needs_crossfit
from seamark.pipelines.grid_plan import Arm, Grid, Plan, Variation, WorldPlan, check_sizes
from seamark.pipelines.worlds import FoundWorld, Settings, World, WorldBuilder, local_digest
from seamark.run import Run, Stage, Workers
from seamark.text.pairs import Pairs

MODEL_METHODS = {"scan", "features", *CONTROLS}
"""What a method may need that comes from a scan."""


class GridRun(WorldBuilder[AuditRecipe]):
    """One run of a recipe in its folder. What cannot be done (see `finished`) is left out with all that follows."""

    def __init__(self, recipe: AuditRecipe, run: Run, workers: Workers) -> None:
        super().__init__(recipe, run, workers)
        self.grid = Grid(self.recipe, Plan(self.recipe), run.root)
        self.rewards: dict[str, World] = {}
        """Worlds whose reward model is there, by name."""
        self.crossfit: dict[str, Path] = {}
        self._trains: dict[Path, Pairs] = {}

    def go(self) -> Grid:
        """All stages; those that are done are skipped."""
        self.check()
        grid, plan = self.grid, self.grid.plan
        if not self._prepare():
            return grid
        self._make("clean", plan.clean)
        poisons = [arm for arm in plan.arms if arm.kind == "poison"]
        denoises = [arm for arm in plan.arms if arm.kind == "denoise"]
        self._highest(poisons)
        for noise in self.recipe.noise.all():
            self._make(f"noisy {noise[0]} {noise[1]:g}", plan.in_noise(noise))
        self._combine()
        self._highest(denoises)
        self._ablate()
        self._retrain(poisons)
        self._retrain(denoises)
        return grid

    def prepare_data(self) -> Path:
        """The folder of the pairs, checked against the recipe's rates. Errors as of `stages.prepare_data`."""
        data = self.run.stage(self.data_stage())
        check_sizes(self.recipe, Pairs.from_jsonl(data / stages.TRAIN))
        return data

    def probe(self, seed: int, flipped: int) -> int:
        """One clean world and one retraining, for their times alone; returns the number of pairs trained on.

        What a handful of pairs is too few for (rating features, fitting scores) is left out.
        """
        world = next(w for w in self.grid.plan.clean if w.seed == seed)
        data = self.grid.data = self.run.stage(self.data_stage())
        train = Pairs.from_jsonl(data / stages.TRAIN)
        if lower := self.lower_stage({"data": data}):
            self.lower = {"lower": self.run.stage(lower)}
        self._train_worlds("probe", [world])
        edited = train.group(self.recipe.target).ids[:flipped]
        self.run.stage(self.retrain_stage(f"probe-seed-{seed}", data, data, seed, flipped=edited))
        with contextlib.suppress(DataError):
            found = self._look("probe", [(world.name, self.rewards[world.name])], {world.name: self._how(world)})
            for method in world.methods:
                with contextlib.suppress(DataError):
                    self._score("probe", [(world.name, found[world.name], [method])])
        return len(train)

    def check(self) -> None:
        super().check()
        for hookpoint in self.recipe.ablations.hookpoint:
            self.check_hookpoint(hookpoint, "ablations.hookpoint")
        if self.recipe.judged is not None and not Path(self.recipe.judged).is_file():
            raise DataError("no such file", where=f"judged: {self.recipe.judged}")

    def _do(self, title: str, planned: Iterable[Stage]) -> dict[str, Path]:
        """The stages that are finished now, by name; the others count as missing."""
        every = list(planned)
        done = self.run.stages(title, every, self.workers) if every else {}
        self.grid.missing += [s.name for s in every if s.name not in done]
        return done

    def _prepare(self) -> bool:
        """Data, RewardBench and lower blocks; False where the data are not there."""
        r, grid = self.recipe, self.grid
        grid.data = self._do("data", [self.data_stage()]).get("data")
        if grid.data is None:
            return False
        check_sizes(r, Pairs.from_jsonl(grid.data / stages.TRAIN))
        read: dict[str, Path] = {}
        if r.rewardbench:
            digests = {source: local_digest(source) for source in r.rewardbench}
            grid.bench = self._do("rewardbench", [Stage("rewardbench", grid_stages.read_bench, {
                "sources": r.rewardbench, "digests": digests}, {"data": grid.data})]).get("rewardbench")  # fmt: skip
            read = {"bench": grid.bench} if grid.bench else {}
        if lower := self.lower_stage({"data": grid.data, **read}):
            done = self._do(lower.name, [lower])
            self.lower = {"lower": done[lower.name]} if done else {}
            return bool(done)
        return True

    def _make(self, title: str, worlds: Sequence[WorldPlan]) -> None:
        """Worlds from their data to the scores of their pairs."""
        self._train_worlds(title, worlds)
        known = [w for w in worlds if w.name in self.rewards]
        found = self._look(
            title, [(w.name, self.rewards[w.name]) for w in known], {w.name: self._how(w) for w in known}
        )
        self.grid.worlds |= found
        self._crossfit(title, known)
        jobs = [(w.name, found[w.name], w.methods) for w in known if w.name in found]
        self._score(title, jobs)

    def _train_worlds(self, title: str, worlds: Sequence[WorldPlan]) -> None:
        """Training sets and reward models."""
        grid = self.grid
        assert grid.data is not None  # noqa: S101 - for the type checker
        flips = {w.name: stage for w in worlds if (stage := self._flips(w)) is not None}
        made = self._do(f"{title}: labels", flips.values())
        for w in worlds:
            if w.kind is None and not w.half:
                grid.data_of[w.name] = grid.data
            elif w.name in flips and flips[w.name].name in made:
                grid.data_of[w.name] = made[flips[w.name].name]
        test = grid.data
        rewards = self._do(f"{title}: reward", [
            self.retrain_stage(f"{w.name}/reward", grid.data_of[w.name], test, w.seed, keep_model=True, more=self._more)
            for w in worlds if w.name in grid.data_of
        ])  # fmt: skip
        for w in worlds:
            if f"{w.name}/reward" in rewards:
                self.rewards[w.name] = World(w.name, w.seed, grid.data_of[w.name], rewards[f"{w.name}/reward"])

    @property
    def _more(self) -> dict[str, Path]:
        """Further inputs of retrainings."""
        return {"bench": self.grid.bench} if self.grid.bench else {}

    def _flips(self, world: WorldPlan) -> Stage | None:
        """What makes the labels of a world wrong; None for clean ones, and where what it needs is not there."""
        r, grid = self.recipe, self.grid
        if world.half:
            return self._further_flips(world)
        if world.kind is None or grid.data is None:
            return None
        inputs = {"data": grid.data}
        if world.attacker:
            scores = grid.scores.get(world.attacker, {}).get(world.kind)
            if scores is None:
                return None
            inputs["scores"] = scores
        return Stage(f"{world.name}/data", grid_stages.flip_labels, {
            "kind": world.kind, "rate": world.rate, "group": r.target, "seed": world.seed,
            "category": r.noise.named if world.kind == "category" else None,
        }, inputs)  # fmt: skip

    def _further_flips(self, world: WorldPlan) -> Stage | None:
        """More wrong labels in half of a world: drawn, or those that its own scores are surest of."""
        r, grid = self.recipe, self.grid
        if (data := grid.data_of.get(world.parent)) is None:
            return None
        inputs = {"data": data}
        if r.combine.kind != "random":
            scores = grid.scores.get(world.parent, {}).get(r.combine.kind)
            if scores is None:
                return None
            inputs["scores"] = scores
        return Stage(f"{world.name}/data", grid_stages.flip_more, {
            "half": world.half, "rate": r.combine.extra, "group": r.target, "seed": world.seed,
        }, inputs)  # fmt: skip

    def _how(self, world: WorldPlan, **changes: Any) -> Settings:
        """How a world is looked into: the recipe's settings with the world's seed, and some changed."""
        return grid_settings(self, world.seed, **changes)

    def _look(
        self, title: str, worlds: Sequence[tuple[str, World]], how: Mapping[str, Settings],
        known: Mapping[str, Mapping[str, Path]] | None = None,
    ) -> dict[str, FoundWorld]:  # fmt: skip
        """SAE, scan and features of worlds by place; `known` names folders (sae, scan) to take instead of anew."""
        have: dict[str, dict[str, Path]] = {place: dict((known or {}).get(place, {})) for place, _ in worlds}

        def step(kind: str, needs: str | None, make: Any) -> None:
            planned = {
                place: make(f"{place}/{kind}", world, have[place].get(needs) if needs else None, how[place])
                for place, world in worlds
                if kind not in have[place] and (needs is None or needs in have[place])
            }
            done = self._do(f"{title}: {kind}", planned.values())
            for place, stage in planned.items():
                if stage.name in done:
                    have[place][kind] = done[stage.name]

        step("sae", None, lambda name, world, _, how: self.sae_stage(name, world, how))
        step("scan", "sae", self.scan_stage)
        step("features", "scan", lambda name, _, scan, how: self.features_stage(name, scan, how))
        return {
            place: FoundWorld(place, w.seed, w.data, w.reward, **have[place])
            for place, w in worlds if "features" in have[place]
        }  # fmt: skip

    def _crossfit(self, title: str, worlds: Sequence[WorldPlan]) -> None:
        """Reward models that leave out a fold of prompts each, where a method reads them."""
        part, target = self.recipe.crossfit, self.recipe.target
        planned: dict[str, list[Stage]] = {}
        for w in worlds:
            if needs_crossfit(w.methods):
                planned[w.name] = [self._fold(w, repeat, fold, target) for repeat in range(part.repeats)
                                   for fold in range(part.folds)]  # fmt: skip
        done = self._do(f"{title}: crossfit", [s for some in planned.values() for s in some])
        gathers = {
            name: Stage(f"{name}/crossfit/margins", grid_stages.gather_margins, {},
                        {s.name.split("/")[-1].replace("-", "_"): done[s.name] for s in some})
            for name, some in planned.items() if all(s.name in done for s in some)
        }  # fmt: skip
        made = self._do(f"{title}: crossfit margins", gathers.values())
        self.crossfit |= {name: made[s.name] for name, s in gathers.items() if s.name in made}

    def _fold(self, world: WorldPlan, repeat: int, fold: int, target: str) -> Stage:
        data = self.grid.data_of[world.name]
        plain = self.retrain_stage("", data, data, world.seed + 1000 * repeat)
        arguments = {k: v for k, v in plain.arguments.items() if k in ("training", "base", "base_digest")}
        arguments |= {"folds": self.recipe.crossfit.folds, "fold": fold, "cut": repeat, "group": target}
        inputs = {k: v for k, v in plain.inputs.items() if k in ("train", "lower")}
        return Stage(f"{world.name}/crossfit/model-{repeat}-{fold}", grid_stages.crossfit_margins, arguments, inputs)

    def _score(self, title: str, jobs: Sequence[tuple[str, FoundWorld, Sequence[str]]]) -> None:
        """Scores by every method of worlds by place."""
        planned = {(place, method): stage for place, world, methods in jobs for method in methods
                   if (stage := self._score_stage(place, world, method)) is not None}  # fmt: skip
        done = self._do(f"{title}: scores", planned.values())
        for (place, method), stage in planned.items():
            if stage.name in done:
                self.grid.scores.setdefault(place, {})[method] = done[stage.name]

    def _score_stage(self, place: str, world: FoundWorld, method: str) -> Stage | None:
        needs = [need.split(" or ") for need in METHODS[method].needs]
        inputs = {"data": world.data}
        if any(set(options) & MODEL_METHODS and "pairs" not in options for options in needs):
            inputs |= {"scan": world.scan, "features": world.features}
        if method in CROSSFIT:
            if world.name not in self.crossfit:
                self.grid.missing.append(f"{place}/scores/{method}")
                return None
            inputs["crossfit"] = self.crossfit[world.name]
        if method == "judge" and self.recipe.judged and self.grid.data:
            inputs |= {"judged": Path(self.recipe.judged), "original": self.grid.data}
        arguments = {"method": method, "group": self.recipe.target, "seed": world.seed}
        return Stage(f"{place}/scores/{method}", grid_stages.score_world, arguments, inputs)

    def _combine(self) -> None:
        """Worlds with more wrong labels, what is learned from them, and `combined` scores of the plain worlds."""
        grid, signals = self.grid, self.recipe.combine.signals
        self._make("calibration", [w for w in grid.plan.halves if w.parent in grid.data_of])
        planned = {}
        for w in grid.plan.combined:
            places = {"plain": w.name, "a": f"{w.name}/half-a", "b": f"{w.name}/half-b"}
            scores = {f"{key}_{m}": path for key, place in places.items()
                      for m, path in grid.scores.get(place, {}).items() if m in signals}  # fmt: skip
            if len(scores) == 3 * len(signals):
                inputs = {"data": grid.data_of[w.name], "half_a": grid.data_of[places["a"]],
                          "half_b": grid.data_of[places["b"]], **scores}  # fmt: skip
                arguments = {"signals": signals, "group": self.recipe.target}
                planned[w.name] = Stage(f"{w.name}/scores/{COMBINED}", grid_stages.combine_scores, arguments, inputs,
                                        version=3)  # fmt: skip
            else:
                grid.missing.append(f"{w.name}/scores/{COMBINED}")
        done = self._do("combination", planned.values())
        for name, stage in planned.items():
            if stage.name in done:
                grid.scores.setdefault(name, {})[COMBINED] = done[stage.name]

    def _highest(self, arms: Sequence[Arm]) -> None:
        """The highest rate of every arm."""
        for arm in arms:
            self._cells(arm, arm.rates[0])

    def _retrain(self, arms: Sequence[Arm]) -> None:
        """The other rates, high ones first."""
        for place in range(1, max((len(arm.rates) for arm in arms), default=0)):
            for arm in arms:
                self._cells(arm, *arm.rates[place : place + 1])

    def _cells(self, arm: Arm, *rates: float) -> None:
        """Retrainings of one arm at some rates; the unedited runs are the worlds' own reward models."""
        done = self.grid.cells.setdefault(arm.name, {})
        for seed, world in arm.worlds.items():
            if world in self.rewards:
                done[Cell(method="none", rate=0.0, seed=seed)] = self.rewards[world].reward
        planned: dict[Cell, Stage] = {}
        for cell in arm.cells(*rates) if rates else ():
            place = arm.worlds[cell.seed]
            scores = self.grid.scores.get(place, {}).get(cell.method)
            name = f"{arm.name}/{cell.name}"
            if scores is None:
                self.grid.missing.append(name)
                continue
            planned[cell] = self._edited(name, place, scores, arm.kind, cell.rate, cell.seed)
        made = self._do(f"{arm.name} {' '.join(f'{r:g}' for r in rates)}", planned.values())
        done |= {cell: made[stage.name] for cell, stage in planned.items() if stage.name in made}

    def _edited(self, name: str, world: str, scores: Path, kind: str, rate: float, seed: int) -> Stage:
        """A retraining on a world's pairs edited by scores."""
        data = self.grid.data_of[world]
        train = self._trains.setdefault(data, Pairs.from_jsonl(data / stages.TRAIN))
        plan = PairScores.load(scores / stages.SCORES)
        edit = (poison if kind == "poison" else denoise)(train, plan, rate, self.recipe.target, seed)
        ids = sorted(edit.manifest.edited_ids)
        flipped, removed = (ids, []) if kind == "poison" else ([], ids)
        assert self.grid.data is not None  # noqa: S101 - for the type checker
        return self.retrain_stage(name, data, self.grid.data, seed, flipped=flipped, removed=removed, more=self._more)

    def _ablate(self) -> None:
        """One setting changed at a time: SAFER's poisoning at the highest rate, and detection in one kind of noise."""
        grid = self.grid
        looked: dict[str, tuple[World, Settings, dict[str, Path]]] = {}
        noise = grid.plan.ablation_noise()
        for v in grid.plan.variations:
            for w in [w for w in grid.plan.clean if w.seed == v.seed] + [
                w for w in (grid.plan.in_noise(noise) if noise else []) if w.seed == v.seed
            ]:
                if w.name in grid.worlds:
                    base = grid.worlds[w.name]
                    how = self._how(w, **{v.setting: v.value})
                    looked[f"{v.folder}/{w.name}"] = (self.rewards[w.name], how, self._unchanged(v, base))
                else:
                    grid.missing.append(f"{v.folder}/{w.name}")
        found = self._look("ablations", [(place, world) for place, (world, _, _) in looked.items()],
                           {place: how for place, (_, how, _) in looked.items()},
                           {place: known for place, (_, _, known) in looked.items()})  # fmt: skip
        self._score("ablations", [(place, world, ("safer",)) for place, world in found.items()])
        self._poison_variations()

    @staticmethod
    def _unchanged(variation: Variation, base: FoundWorld) -> dict[str, Path]:
        """Folders of the base's world that a changed setting leaves as they are."""
        if variation.setting in ("hookpoint", "d_sae", "k"):
            return {}
        return {"sae": base.sae} | ({"scan": base.scan} if variation.setting == "count" else {})

    def _poison_variations(self) -> None:
        arm = self.grid.plan.arm("poison")
        if arm is None:
            return
        planned = {}
        for v in self.grid.plan.variations:
            world, name = arm.worlds[v.seed], f"{v.folder}/poison-seed-{v.seed}"
            scores = self.grid.scores.get(f"{v.folder}/{world}", {}).get("safer")
            if scores is None:
                self.grid.missing.append(name)
            else:
                planned[v] = self._edited(name, world, scores, "poison", arm.rates[0], v.seed)
        made = self._do("ablations: poison", planned.values())
        self.grid.variations |= {v: made[s.name] for v, s in planned.items() if s.name in made}


def grid_settings(builder: WorldBuilder[AuditRecipe], seed: int, **changes: Any) -> Settings:
    """The recipe's settings for a world of a seed, with settings of `AblationPart` changed."""
    r, base = builder.recipe, builder.settings()
    sae = {"seed": seed} | {k: v for k, v in changes.items() if k in ("hookpoint", "d_sae", "k")}
    scan: dict[str, Any] = {"raw": True} | {k: v for k, v in changes.items() if k == "positions"}
    features = {k: v for k, v in changes.items() if k in ("count", "normalization")}
    if "normalization" in changes:
        scan["scope"] = "all" if changes["normalization"] == "paper" else "response"
    asked = {*r.poison.methods, *r.denoise.methods, *r.detect.methods, *r.combine.signals}
    return Settings(
        base.sae.model_copy(update=sae), base.scan.model_copy(update=scan), base.features.model_copy(update=features),
        scan_build=grid_stages.scan_world, features_build=grid_stages.choose_with_controls,
        more={"others": list(r.others), "seed": seed},
        more_scan={"untrained": seed if CONTROLS[0] in asked else None},
    )  # fmt: skip
