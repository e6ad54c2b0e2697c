"""Worlds: a training set with the reward model, SAE, scan and features found from it.

Recipes differ in which worlds they need and in what they do with them; how a world is made is the same:

    data ─ (lower-blocks) ─ reward ─ sae ─ scan ─ features
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch

from seamark.audit.experiment import retrain
from seamark.errors import ConfigError, DataError
from seamark.features import ScanConfig
from seamark.model import resolve_name
from seamark.model.hookpoints import parse_hookpoint
from seamark.model.precision import resolve_precision
from seamark.model.pretrained import load_config
from seamark.pipelines import stages
from seamark.pipelines.recipe import FeaturesPart, SAEPart, WorldRecipe
from seamark.run import Run, Stage, Workers, disk_errors, file_digest, read_json, write_json
from seamark.run.folder import Build
from seamark.text import demo_pairs

Recipe = TypeVar("Recipe", bound=WorldRecipe)
CHOICES = "choices.json"
_TEXT_FILES = (".txt", ".jsonl", ".gz", ".json", ".parquet", ".csv")


@dataclass(frozen=True)
class World:
    """A training set and the reward model trained on it."""

    name: str
    seed: int
    data: Path
    """Folder with `train.jsonl`."""
    reward: Path
    """Folder with the reward model."""


@dataclass(frozen=True)
class FoundWorld(World):
    """A world with the SAE, scan and features found from it: folders."""

    sae: Path
    scan: Path
    features: Path


@dataclass(frozen=True)
class Settings:
    """How a world is looked into."""

    sae: SAEPart
    scan: ScanConfig
    features: FeaturesPart
    scan_build: Build = stages.scan_pairs
    features_build: Build = stages.choose_features
    more: Mapping[str, Any] = field(default_factory=dict)
    """Further arguments of `features_build`."""
    more_scan: Mapping[str, Any] = field(default_factory=dict)
    """Further arguments of `scan_build`."""


class WorldBuilder(Generic[Recipe]):
    """Plans and does the stages of worlds in a run's folder."""

    def __init__(self, recipe: Recipe, run: Run, workers: Workers) -> None:
        self.recipe, self.run, self.workers = with_precision(recipe, run), run, workers
        self.lower: dict[str, Path] = {}
        base = resolve_name(recipe.model)
        # A local base counts with its bytes: other weights under the same path are another run.
        self.base = {"base": recipe.model, "base_digest": local_digest(base) or base}

    def check(self) -> None:
        """What would only fail after the reward models were trained. Raises `ConfigError`, `DataError`."""
        self.check_hookpoint(self.recipe.sae.hookpoint, "sae.hookpoint")
        training = self.recipe.reward
        check_general_text(self.recipe.data.general_text)
        if training.batch_size % training.accumulate:
            raise ConfigError(
                f"reward.accumulate {training.accumulate} does not divide batch_size {training.batch_size}"
            )
        n_blocks = n_blocks_of(self.recipe.model)
        if training.trainable_blocks is not None and n_blocks is not None and training.trainable_blocks > n_blocks:
            raise ConfigError(f"reward.trainable_blocks is {training.trainable_blocks}, "
                              f"{self.recipe.model} has {n_blocks} blocks")  # fmt: skip

    def check_hookpoint(self, name: str | None, key: str) -> None:
        """`check_hookpoint` of the recipe's model."""
        check_hookpoint(self.recipe.model, name, key)

    def data_stage(self) -> Stage:
        """Pairs read, checked and split."""
        part = self.recipe.data
        files = {f: local_digest(f) for group in part.pairs.values() for f in group}
        if not part.pairs:
            files = {"demo": demo_pairs().fingerprint()}
        return Stage("data", stages.prepare_data, {
            "pairs": list(part.pairs.items()), "test_share": part.test_share, "split_seed": part.split_seed,
            "max_pairs": part.max_pairs, "target": self.recipe.target, "digests": files,
        })  # fmt: skip

    def lower_stage(self, inputs: Mapping[str, Path]) -> Stage | None:
        """What reads the frozen lower blocks once; None where all blocks are trained."""
        training = self.recipe.reward.model_dump(mode="json")
        trained = training["trainable_blocks"]
        if not self.recipe.reuse_lower_blocks or trained is None:
            return None
        if (n_blocks_of(self.recipe.model) or 0) <= trained:
            return None
        return Stage("lower-blocks", stages.read_lower_blocks,
                     {"training": {k: training[k] for k in stages.LOWER_BLOCKS_SETTINGS},
                      "threads": self.recipe.threads, **self.base}, dict(inputs))  # fmt: skip

    def retrain_stage(
        self, name: str, train: Path, test: Path, seed: int, flipped: Sequence[str] = (), removed: Sequence[str] = (),
        keep_model: bool = False, more: Mapping[str, Path] | None = None,
    ) -> Stage:  # fmt: skip
        """A reward model from the base, on the pairs in the folder `train` with some flipped or removed."""
        training = self.recipe.reward.model_dump(mode="json") | {"seed": seed, "threads": self.recipe.threads}
        arguments: dict[str, Any] = {"training": training, "flipped": list(flipped), "removed": list(removed),
                                     "keep_model": keep_model, **self.base}  # fmt: skip
        inputs = {"train": train / stages.TRAIN, "test": test / stages.TEST, **self.lower, **(more or {})}
        return Stage(name, retrain_from, arguments, inputs)

    def settings(self, **builds: Any) -> Settings:
        """Those of the recipe."""
        r = self.recipe
        scan = r.scan.model_copy(update={"max_length": r.scan.max_length or r.reward.max_length})
        return Settings(r.sae, scan, r.features, **builds)

    def sae_stage(self, name: str, world: World, how: Settings) -> Stage:
        """The world's SAE."""
        r = self.recipe
        return Stage(name, stages.fit_sae, {
            "sae": how.sae.model_dump(mode="json"), "max_length": r.reward.max_length,
            "general_text": r.data.general_text, "general_digest": local_digest(r.data.general_text),
            "target": r.target, "threads": r.threads,
        }, {"reward": world.reward, "data": world.data}, version=3)  # fmt: skip

    def scan_stage(self, name: str, world: World, sae: Path, how: Settings) -> Stage:
        """One pass over the world's pairs."""
        arguments = {"config": how.scan.model_dump(mode="json"), "threads": self.recipe.threads, **how.more_scan}
        return Stage(name, how.scan_build, arguments, {"reward": world.reward, "data": world.data, "sae": sae})

    def features_stage(self, name: str, scan: Path, how: Settings) -> Stage:
        """The features chosen from a scan."""
        part = how.features.model_dump(mode="json", exclude={"effect_texts"})
        return Stage(name, how.features_build, part | {"target": self.recipe.target, **how.more}, {"scan": scan})


def with_precision(recipe: Recipe, run: Run) -> Recipe:
    """The recipe with every `auto` replaced by what this machine is fast at, measured once and kept with the run."""
    file = run.root / CHOICES
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


def check_hookpoint(model: str, name: str | None, key: str) -> None:
    """Fail before hours of training, not after. Raises `ConfigError`: a block that the model lacks."""
    if name is None:
        return
    layer, n_blocks = parse_hookpoint(name).layer, n_blocks_of(model)
    if n_blocks is not None and layer >= n_blocks:
        raise ConfigError(f"{key} {name} is out of range: {model} has {n_blocks} blocks",
                          fix=f"Choose one from layers.0 to layers.{n_blocks - 1}")  # fmt: skip


def check_general_text(text: str | None) -> None:
    """Raise `DataError` where this is a file and is not there; names on the Hub are not looked up."""
    if text and not Path(text).exists() and (Path(text).suffix in _TEXT_FILES or text.startswith((".", "/", "~"))):
        raise DataError("no such file", where=f"data.general_text: {text}")


def local_digest(name: str | None) -> str:
    """Digest of a local file or folder, so that its content takes part in a key; "" for names on the Hub."""
    return file_digest(Path(name)) if name and Path(name).exists() else ""


def retrain_from(
    folder: Path, train: Path, test: Path, lower: Path | None = None, bench: Path | None = None, *, base_digest: str,
    **arguments: Any,
) -> dict[str, Any]:  # fmt: skip
    """`audit.experiment.retrain` as a stage; `base_digest` only takes part in the key."""
    return retrain(folder, train, test, lower=lower, bench=bench, **arguments)
