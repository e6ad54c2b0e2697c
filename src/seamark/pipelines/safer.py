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
from typing import Any

import torch

from seamark.audit.editing import denoise, edit_count, poison
from seamark.audit.experiment import Cell, Experiment, Kind, retrain
from seamark.errors import ConfigError, DataError
from seamark.model import resolve_name
from seamark.model.hookpoints import parse_hookpoint
from seamark.model.precision import resolve_precision
from seamark.model.pretrained import load_config
from seamark.pipelines import stages
from seamark.pipelines.recipe import ExperimentPart, SaferRecipe
from seamark.run import Run, Stage, Workers, disk_errors, file_digest, read_json, write_json
from seamark.text import demo_pairs
from seamark.text.pairs import Pairs

_TEXT_FILES = (".txt", ".jsonl", ".gz", ".json", ".parquet", ".csv")


@dataclass(frozen=True)
class World:
    """A training set and what was found from it."""

    name: str
    seed: int
    data: Path
    """Folder with `train.jsonl`."""
    reward: Path
    """Folder with the reward model trained on it."""


@dataclass(frozen=True)
class FoundWorld(World):
    """A world with the SAE, scan and features found from it: folders."""

    sae: Path
    scan: Path
    features: Path


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


class SaferRun:
    """One run of a recipe in its folder."""

    def __init__(self, recipe: SaferRecipe, run: Run, workers: Workers) -> None:
        self.recipe, self.run, self.workers = _with_precision(recipe, run), run, workers
        self.lower: dict[str, Path] = {}
        base = resolve_name(recipe.model)
        # A local base counts with its bytes: other weights under the same path are another run.
        self.base = {"base": recipe.model, "base_digest": _local_digest(base) or base}

    def go(self) -> Done:
        """All stages but the report; those that are done are skipped."""
        self._check_hookpoint()
        self._check_before_training()
        data = self.run.stage(self._data_stage())
        self._check_rates(Pairs.from_jsonl(data / stages.TRAIN))
        self.lower = self._lower_blocks(data)
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

    def _data_stage(self) -> Stage:
        part = self.recipe.data
        files = {f: _local_digest(f) for group in part.pairs.values() for f in group}
        if not part.pairs:
            files = {"demo": demo_pairs().fingerprint()}
        return Stage("data", stages.prepare_data, {
            "pairs": list(part.pairs.items()), "test_share": part.test_share, "split_seed": part.split_seed,
            "max_pairs": part.max_pairs, "target": self.recipe.target, "digests": files,
        })  # fmt: skip

    def _check_hookpoint(self) -> None:
        """Fail before hours of training, not after."""
        name = self.recipe.sae.hookpoint
        if name is None:
            return
        layer, n_blocks = parse_hookpoint(name).layer, n_blocks_of(self.recipe.model)
        if n_blocks is not None and layer >= n_blocks:
            raise ConfigError(f"sae.hookpoint {name} is out of range: {self.recipe.model} has {n_blocks} blocks",
                              fix=f"Choose one from layers.0 to layers.{n_blocks - 1}")  # fmt: skip

    def _check_before_training(self) -> None:
        """What would only fail after the reward models were trained."""
        text, training = self.recipe.data.general_text, self.recipe.reward
        if text and not Path(text).exists() and (Path(text).suffix in _TEXT_FILES or text.startswith((".", "/", "~"))):
            raise DataError("no such file", where=f"data.general_text: {text}")
        if training.batch_size % training.accumulate:
            raise ConfigError(
                f"reward.accumulate {training.accumulate} does not divide batch_size {training.batch_size}"
            )
        n_blocks = n_blocks_of(self.recipe.model)
        if training.trainable_blocks is not None and n_blocks is not None and training.trainable_blocks > n_blocks:
            raise ConfigError(f"reward.trainable_blocks is {training.trainable_blocks}, "
                              f"{self.recipe.model} has {n_blocks} blocks")  # fmt: skip

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

    def _lower_blocks(self, data: Path) -> dict[str, Path]:
        """The stage that reads the frozen lower blocks once; none where all blocks are trained."""
        training = self.recipe.reward.model_dump(mode="json")
        trained = training["trainable_blocks"]
        if not self.recipe.reuse_lower_blocks or trained is None:
            return {}
        if (n_blocks_of(self.recipe.model) or 0) <= trained:
            return {}
        stage = Stage("lower-blocks", stages.read_lower_blocks,
                      {"training": {k: training[k] for k in stages.LOWER_BLOCKS_SETTINGS},
                       "threads": self.recipe.threads, **self.base}, {"data": data})  # fmt: skip
        return {"lower": self.run.stage(stage, self.workers)}

    def _retrain_stage(
        self, name: str, train: Path, test: Path, seed: int, flipped: Sequence[str] = (), removed: Sequence[str] = (),
        keep_model: bool = False,
    ) -> Stage:  # fmt: skip
        training = self.recipe.reward.model_dump(mode="json") | {"seed": seed, "threads": self.recipe.threads}
        arguments: dict[str, Any] = {"training": training, "flipped": list(flipped), "removed": list(removed),
                                     "keep_model": keep_model, **self.base}  # fmt: skip
        return Stage(
            name, retrain_from, arguments, {"train": train / stages.TRAIN, "test": test / stages.TEST, **self.lower}
        )

    def _reward_models(self, data: Path, noisy: Mapping[int, Path]) -> tuple[dict[Cell, Path], list[World]]:
        """Unedited reward models of every seed, on the clean and on each noisy training set."""
        seeds = self.recipe.seeds
        first = [self._retrain_stage(f"clean/reward-{s}", data, data, s, keep_model=s == seeds[0]) for s in seeds]
        second = [self._retrain_stage(f"noisy-{s}/reward", d, data, s, keep_model=True) for s, d in noisy.items()]
        made = self.run.stages("reward", first + second, self.workers)
        cells = {Cell(method="none", rate=0.0, seed=s): made[f"clean/reward-{s}"] for s in seeds}
        worlds = [World("clean", seeds[0], data, made[f"clean/reward-{seeds[0]}"])]
        worlds += [World(f"noisy-{s}", s, d, made[f"noisy-{s}/reward"]) for s, d in noisy.items()]
        return cells, worlds

    def _look_into(self, worlds: Sequence[World]) -> list[FoundWorld]:
        """SAE, scan and features of every world."""
        r = self.recipe
        common = {"target": r.target}
        shared = {"threads": r.threads}
        found: list[FoundWorld] = []
        sae = self.run.stages("sae", [
            Stage(f"{w.name}/sae", stages.fit_sae, {
                "sae": r.sae.model_dump(mode="json"), "max_length": r.reward.max_length,
                "general_text": r.data.general_text, "general_digest": _local_digest(r.data.general_text),
                **common, **shared,
            }, {"reward": w.reward, "data": w.data}, version=2)
            for w in worlds
        ], self.workers)  # fmt: skip
        config = r.scan.model_copy(update={"max_length": r.scan.max_length or r.reward.max_length})
        scan = self.run.stages("scan", [
            Stage(f"{w.name}/scan", stages.scan_pairs, {"config": config.model_dump(mode="json"), **shared},
                  {"reward": w.reward, "data": w.data, "sae": sae[f"{w.name}/sae"]})
            for w in worlds
        ], self.workers)  # fmt: skip
        part = r.features.model_dump(mode="json", exclude={"effect_texts"})
        features = self.run.stages("features", [
            Stage(f"{w.name}/features", stages.choose_features, part | common, {"scan": scan[f"{w.name}/scan"]})
            for w in worlds
        ], self.workers)  # fmt: skip
        for w in worlds:
            paths = (x[f"{w.name}/{kind}"] for x, kind in ((sae, "sae"), (scan, "scan"), (features, "features")))
            found.append(FoundWorld(w.name, w.seed, w.data, w.reward, *paths))
        return found

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
                    planned[cell] = self._retrain_stage(
                        f"{kind}/{cell.name}", world.data, data, seed, flipped=flipped, removed=removed
                    )
        made = self.run.stages(kind, list(planned.values()), self.workers)
        return done | {cell: made[s.name] for cell, s in planned.items()}


def _with_precision(recipe: SaferRecipe, run: Run) -> SaferRecipe:
    """The recipe with every `auto` replaced by what this machine is fast at, measured once and kept with the run."""
    file = run.root / "choices.json"
    if not file.exists():
        with disk_errors(run.root):
            write_json(file, {"auto": resolve_precision("auto", "cuda" if torch.cuda.is_available() else "cpu")})
    auto = read_json(file)["auto"]
    parts = {name: getattr(recipe, name) for name in ("reward", "sae", "scan")}
    fixed = {
        name: part.model_copy(update={"precision": auto}) for name, part in parts.items() if part.precision == "auto"
    }
    return recipe.model_copy(update=fixed)


def n_blocks_of(model: str) -> int | None:
    """Blocks of a model by its config; None where it names none. Raises `ModelError`: no such model."""
    config = load_config(resolve_name(model))
    blocks: int | None = getattr(config.get_text_config(), "num_hidden_layers", None)
    return blocks


def _local_digest(name: str | None) -> str:
    """Digest of a local file or folder, so that its content takes part in a key; "" for names on the Hub."""
    return file_digest(Path(name)) if name and Path(name).exists() else ""


def retrain_from(
    folder: Path, train: Path, test: Path, lower: Path | None = None, *, base_digest: str, **arguments: Any
) -> dict[str, Any]:
    """`audit.experiment.retrain` as a stage; `base_digest` only takes part in the key."""
    return retrain(folder, train, test, lower=lower, **arguments)


def read_experiment(done: Done, kind: Kind) -> Experiment | None:
    """Margins of an experiment's retrainings; None if it was not run."""
    if not done.cells[kind]:
        return None
    test = Pairs.from_jsonl(done.data / stages.TEST)
    return Experiment.read(kind, test, done.cells[kind], done.recipe.target)
