"""The SAFER recipe: which stages, in which order (arXiv 2507.00665).

    data ─ reward ─ sae ─ scan ─ features ─ effects          the reward model that is looked into, once
             │                        └─ poison ─┐
             └─ (with injected noise, once a seed) sae ─ scan ─ features ─ denoise ─ report

Every reward model of a retraining starts from the same base with the same order of ids. A "world" is a training set
with the reward model, SAE and features found from it: `clean`, and `noisy-<seed>` for denoising, where everything the
method knows comes from the noisy file.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from seamark.audit.editing import denoise, edit_count, poison
from seamark.audit.experiment import Cell, Experiment, Kind
from seamark.errors import ConfigError
from seamark.pipelines import stages
from seamark.pipelines.recipe import ExperimentPart, SaferRecipe
from seamark.pipelines.worlds import FoundWorld, World, WorldBuilder
from seamark.run import Stage
from seamark.text.pairs import Pairs


@dataclass(frozen=True)
class Done:
    """Where everything lies when the run is through."""

    recipe: SaferRecipe
    root: Path
    data: Path
    clean: FoundWorld
    effects: Path
    noisy: Mapping[int, FoundWorld]
    cells: Mapping[Kind, Mapping[Cell, Path]]
    clean_cells: Mapping[Cell, Path]
    timings: Mapping[str, Mapping[str, float]]


class SaferRun(WorldBuilder[SaferRecipe]):
    """One run of a recipe in its folder."""

    def go(self) -> Done:
        """All stages but the report; those that are done are skipped."""
        self.check()
        data = self.run.stage(self.data_stage())
        self._check_rates(Pairs.from_jsonl(data / stages.TRAIN))
        if lower := self.lower_stage({"data": data}):
            self.lower = {"lower": self.run.stage(lower, self.workers)}
        noisy = self._noisy_data(data)
        clean_cells, worlds = self._reward_models(data, noisy)
        found = self._look_into(worlds)
        clean = found[0]
        effects = self.run.stage(self._effects_stage(data, clean), self.workers)
        poisoned = self._experiment(
            "poison", self.recipe.poison, data, dict.fromkeys(self.recipe.seeds, clean), clean_cells
        )
        by_seed = {w.seed: w for w in found[1:]} or dict.fromkeys(self.recipe.seeds, clean)
        denoised = self._experiment("denoise", self.recipe.denoise, data, by_seed, clean_cells)
        return Done(self.recipe, self.run.root, data, clean, effects, {w.seed: w for w in found[1:]},
                    {"poison": poisoned, "denoise": denoised}, clean_cells,
                    {t: self.run.timings[t] for t in self.run.titles if t in self.run.timings})  # fmt: skip

    def _check_rates(self, train: Pairs) -> None:
        """The same for what depends on the number of pairs."""
        size = len(train.group(self.recipe.target))
        denoise = self.recipe.denoise
        noise = [denoise.noise] if denoise.rates and denoise.noise else []
        for rate in [*self.recipe.poison.rates, *denoise.rates, *noise]:
            if edit_count(rate, size) < 1:
                raise ConfigError(f"rate {rate:g} of {size} {self.recipe.target} pairs is less than one pair",
                                  fix="Choose a higher rate or give more pairs")  # fmt: skip

    def _noisy_data(self, data: Path) -> dict[int, Path]:
        part = self.recipe.denoise
        if not part.rates or part.noise == 0:
            return {}
        made = self.run.stages("noise", [
            Stage(f"noisy-{seed}/data", stages.add_noise,
                  {"rate": part.noise, "group": self.recipe.target, "seed": seed}, {"data": data})
            for seed in self.recipe.seeds
        ])  # fmt: skip
        return {seed: made[f"noisy-{seed}/data"] for seed in self.recipe.seeds}

    def _reward_models(self, data: Path, noisy: Mapping[int, Path]) -> tuple[dict[Cell, Path], list[World]]:
        """Unedited reward models of every seed, on the clean and on each noisy training set."""
        seeds = self.recipe.seeds
        first = [self.retrain_stage(f"clean/reward-{s}", data, data, s, keep_model=s == seeds[0]) for s in seeds]
        second = [self.retrain_stage(f"noisy-{s}/reward", d, data, s, keep_model=True) for s, d in noisy.items()]
        made = self.run.stages("reward", first + second, self.workers)
        cells = {Cell(method="none", rate=0.0, seed=s): made[f"clean/reward-{s}"] for s in seeds}
        worlds = [World("clean", seeds[0], data, made[f"clean/reward-{seeds[0]}"])]
        worlds += [World(f"noisy-{s}", s, d, made[f"noisy-{s}/reward"]) for s, d in noisy.items()]
        return cells, worlds

    def _look_into(self, worlds: Sequence[World]) -> list[FoundWorld]:
        """SAE, scan and features of every world."""
        how = self.settings()
        sae = self.run.stages("sae", [self.sae_stage(f"{w.name}/sae", w, how) for w in worlds], self.workers)
        scan = self.run.stages("scan", [
            self.scan_stage(f"{w.name}/scan", w, sae[f"{w.name}/sae"], how) for w in worlds
        ], self.workers)  # fmt: skip
        features = self.run.stages("features", [
            self.features_stage(f"{w.name}/features", scan[f"{w.name}/scan"], how) for w in worlds
        ], self.workers)  # fmt: skip
        return [
            FoundWorld(w.name, w.seed, w.data, w.reward,
                       *(x[f"{w.name}/{kind}"] for x, kind in ((sae, "sae"), (scan, "scan"), (features, "features"))))
            for w in worlds
        ]  # fmt: skip

    def _effects_stage(self, data: Path, clean: FoundWorld) -> Stage:
        r = self.recipe
        return Stage("clean/effects", stages.measure_effects, {
            "target": r.target, "texts": r.features.effect_texts, "max_length": r.reward.max_length,
            "threads": r.threads,
        }, {"reward": clean.reward, "data": data, "sae": clean.sae, "scan": clean.scan,
            "features": clean.features})  # fmt: skip

    def _experiment(
        self, kind: Kind, part: ExperimentPart, data: Path, worlds: Mapping[int, FoundWorld], clean: Mapping[Cell, Path]
    ) -> dict[Cell, Path]:
        """The grid of one experiment; {cell: folder}, the unedited runs first."""
        if not part.rates:
            return {}
        done: dict[Cell, Path] = {}
        planned: dict[Cell, Stage] = {}
        for seed, world in worlds.items():
            none = Cell(method="none", rate=0.0, seed=seed)
            done[none] = world.reward if world.name != "clean" else clean[none]
            train = Pairs.from_jsonl(world.data / stages.TRAIN)
            for method in part.methods:
                scores = stages.method_scores(method, world.features, train, seed)
                for rate in part.rates:
                    cell = Cell(method=method, rate=rate, seed=seed)
                    edit = (poison if kind == "poison" else denoise)(train, scores, rate, self.recipe.target, seed)
                    ids = sorted(edit.manifest.edited_ids)
                    flipped, removed = (ids, []) if kind == "poison" else ([], ids)
                    planned[cell] = self.retrain_stage(
                        f"{kind}/{cell.name}", world.data, data, seed, flipped=flipped, removed=removed
                    )
        made = self.run.stages(kind, list(planned.values()), self.workers)
        return done | {cell: made[s.name] for cell, s in planned.items()}


def read_experiment(done: Done, kind: Kind) -> Experiment | None:
    """Margins of an experiment's retrainings; None if it was not run."""
    if not done.cells[kind]:
        return None
    test = Pairs.from_jsonl(done.data / stages.TEST)
    return Experiment.read(kind, test, done.cells[kind], done.recipe.target)
