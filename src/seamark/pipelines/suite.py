"""Recipes of kind `sae-suite`: many autoencoders on a model's activations, from one pass over the texts."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from seamark.errors import ConfigError
from seamark.features import PAPER_STAGES, SAESpec, StageConfig, TrainedSuite, TrainingConfig, make_suite, train_suite
from seamark.features.metrics import TrackerName
from seamark.features.training import Parallel
from seamark.model import DEFAULT_MODEL, HookedModel, load_model
from seamark.pipelines.recipe import Files, MostPairs, Part, check_data, read_recipe
from seamark.run import disk_errors, ranks, write_atomic
from seamark.text import ReadOptions, demo_pairs, read_pairs, stream_texts
from seamark.text.pairs import Pairs, RejectedRow
from seamark.text.rendering import Rendered, Renderer


class SuiteData(Part):
    """Texts of the stages."""

    texts: Files = Field(default_factory=dict)
    """Plain texts by stage (JSONL with `text`, .txt, Parquet or a hub name), read one by one. A stage without any reads
    both answers of the pairs: the last stage those of the target group, the others all."""
    pairs: Files = Field(default_factory=dict)
    """Preference pairs by group. Empty: the authored demo pairs that are to be trained on."""
    max_pairs: MostPairs = None
    """At most this many pairs a group, or {group: number}; picked by a hash of their ids. None: all."""


class SuiteRecipe(Part):
    """A suite: variants × hookpoints, the texts and the stages."""

    recipe: Literal["sae-suite"] = "sae-suite"
    name: str = "suite"
    model: str = DEFAULT_MODEL
    """A reward model, a language model or an encoder: a folder, a hub name or `seamark/default` (MiniLM-L6)."""
    out: str = "runs/suite"
    """Folder of the run; an interrupted one goes on there."""
    target: str = "safety"
    """Group of the pairs that the last stage reads."""
    hookpoints: list[str] = Field(default_factory=list)
    """Where to read. Empty: the model's block output at ¾ depth."""
    variants: list[dict[str, Any]] = Field([{}], min_length=1)
    """Autoencoders at every hookpoint: fields of `SAESpec`; a list stands for one autoencoder a value, several lists
    for all combinations."""
    data: SuiteData = SuiteData()
    training: TrainingConfig = TrainingConfig()
    """The stream, held-out texts, checkpoints."""
    stages: tuple[StageConfig, ...] = Field(PAPER_STAGES, min_length=1)
    parallel: Parallel | None = None
    """Under torchrun: "data" or "spread"; None: as there are autoencoders."""
    track: TrackerName | None = None
    """Also send metrics to trackio or wandb."""

    @model_validator(mode="after")
    def _texts_have_a_stage(self) -> SuiteRecipe:
        names = [stage.name for stage in self.stages]
        unknown = [name for name in self.data.texts if name not in names]
        if unknown:
            raise ValueError(f"data.texts names {unknown[0]!r}, the stages are {', '.join(names)}")
        return self

    def suite(self, default_hookpoint: str) -> dict[str, SAESpec]:
        """{id: what to train}. Raises `ConfigError` on a variant that makes no sense."""
        return make_suite(self.hookpoints or [default_hookpoint], self.variants)


def load_suite_recipe(path: Path, overrides: dict[str, Any] | None = None) -> SuiteRecipe:
    """Read and check a suite's recipe; errors as for `load_recipe`."""
    return check_data(SuiteRecipe, read_recipe(path, overrides), str(path))


def run_suite(recipe: SuiteRecipe) -> TrainedSuite:
    """Train the recipe's suite in its folder (under torchrun with all processes).

    Raises:
        SeamarkError: whatever can go wrong with texts, model, settings or disk; see `train_suite`.
    """
    make_suite(recipe.hookpoints or ["default"], recipe.variants)  # mistakes show before the model is loaded
    model = load_model(recipe.model)
    rejected: list[RejectedRow] = []
    texts = StageTexts(recipe, model, rejected.append)
    trained = train_suite(model, {s.name: texts.of(s) for s in recipe.stages}, recipe.suite(model.default_hookpoint),
                          recipe.stages, recipe.training, out=recipe.out, parallel=recipe.parallel,
                          track=recipe.track)  # fmt: skip
    write_rejects(rejected, Path(recipe.out))
    return trained


class StageTexts:
    """Rendered texts of each stage of a recipe."""

    def __init__(self, recipe: SuiteRecipe, model: HookedModel, rejected: Callable[[RejectedRow], None]) -> None:
        self.recipe, self.model, self.rejected = recipe, model, rejected
        self._pairs: Pairs | None = None

    def of(self, stage: StageConfig) -> Iterator[Rendered]:
        """One by one."""
        renderer = self.model.renderer(stage.max_length)
        files = self.recipe.data.texts.get(stage.name)
        if files:
            return (renderer.render_text(text, i) for i, text in stream_texts(files, rejected=self.rejected))
        last = stage.name == self.recipe.stages[-1].name
        return self._rendered(renderer, self.pairs.group(self.recipe.target) if last else self.pairs)

    @staticmethod
    def _rendered(renderer: Renderer, pairs: Pairs) -> Iterator[Rendered]:
        return (side for pair in pairs for side in renderer.render_pair(pair))

    @property
    def pairs(self) -> Pairs:
        """All pairs of the recipe."""
        if self._pairs is None:
            part = self.recipe.data
            found = read_pairs(part.pairs, options=ReadOptions(max_pairs=part.max_pairs)) if part.pairs else None
            self._pairs = found if found is not None else demo_pairs("train")
            for row in self._pairs.rejected:
                self.rejected(row)
            if self.recipe.target not in self._pairs.groups:
                raise ConfigError(f"no pair in the target group {self.recipe.target!r}", where="target",
                                  fix=f"Groups are {', '.join(self._pairs.groups)}")  # fmt: skip
        return self._pairs


def write_rejects(rejected: list[RejectedRow], folder: Path) -> None:
    """`rejected.jsonl`: rows that could not be used, by rank 0; no file where all could."""

    def write() -> None:
        if rejected:
            rows = [
                json.dumps({"file": r.file, "row": r.row, "reason": r.reason}, ensure_ascii=False) for r in rejected
            ]
            with disk_errors(folder):
                write_atomic(folder / "rejected.jsonl", "\n".join(rows) + "\n")
        else:  # what a former run rejected was mended
            with disk_errors(folder):
                (folder / "rejected.jsonl").unlink(missing_ok=True)

    ranks.by_first(write)
