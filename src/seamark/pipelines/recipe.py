"""Recipes: what a run does, as a YAML file whose every key is checked."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator, model_validator

from seamark.audit.scores import METHODS
from seamark.errors import ConfigError
from seamark.features import PAPER_STAGES, SAETraining, ScanConfig, StageConfig
from seamark.model import DEFAULT_MODEL, RewardTraining

DEMO = "demo"
SAFER_METHODS = ("safer", "random", "margin", "length")
"""What the SAFER recipe can score by: the paper's methods, and length."""
Model = TypeVar("Model", bound=BaseModel)
Rate = Annotated[float, Field(gt=0, lt=1)]
Seed = Annotated[int, Field(ge=0)]


def _one_file_is_a_list(value: Any) -> Any:
    return {g: [f] if isinstance(f, str) else f for g, f in value.items()} if isinstance(value, dict) else value


Files = Annotated[dict[str, list[str]], BeforeValidator(_one_file_is_a_list)]
"""{name: files}; one file may stand without a list."""


MostPairs = Annotated[int, Field(ge=10)] | dict[str, Annotated[int, Field(ge=10)]] | None
"""`MaxPairs` of a recipe: fewer teach nothing."""


class Part(BaseModel):
    """A part of a recipe: every key is checked."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class DataPart(Part):
    """Which pairs, and how they are split."""

    pairs: Files = Field(default_factory=dict)
    """Files by group, e.g. {safety: [pairs.jsonl], chat: [hub/name]}. Empty: the authored demo pairs."""
    test_share: float = Field(0.25, gt=0, lt=1)
    """Share of prompts held out for evaluation (split by prompt hash)."""
    split_seed: int = 0
    max_pairs: MostPairs = None
    """At most this many pairs a group, or {group: number}; picked by a hash of their ids. None: all."""
    general_text: str | None = None
    """Texts of the SAE's first stage (JSONL with `text`, .txt, Parquet or a hub name). None: those of the pairs."""


class SAEPart(SAETraining):
    """The SAE and its two stages of training (SAFER §3.1): general text, then the target group's pairs."""

    stages: tuple[StageConfig, StageConfig] = PAPER_STAGES
    """First on general texts, then on the target group's pairs."""

    def training_of(self) -> SAETraining:
        """The same without the stages."""
        return SAETraining(**self.model_dump(exclude={"stages"}))

    @model_validator(mode="after")
    def _names_differ(self) -> SAEPart:
        if self.stages[0].name == self.stages[1].name:
            raise ValueError(f"both stages are named {self.stages[0].name!r}")
        if self.d_sae is not None and self.k > self.d_sae:
            raise ValueError(f"k {self.k} is more than the {self.d_sae} latents of d_sae")
        return self


class FeaturesPart(Part):
    """How safety features are scored and chosen (SAFER §3.2-3.3)."""

    normalization: Literal["default", "paper"] = "default"
    """`paper`: raw sums, prompt included; `default`: means over the response's positions, by pair."""
    candidates: int = Field(256, ge=1)
    """Latents with the largest |score| that get a rating."""
    min_rating: int = Field(5, ge=1, le=5)
    """Least safety relevance (1-5) to be kept. A latent without a rating is never kept."""
    count: int = Field(32, ge=1)
    """Features kept, by |score|."""
    effect_texts: int = Field(64, ge=1)
    """Texts on which the direct effect on the reward is measured."""


def check_unique(values: Iterable[object]) -> None:
    seen = set()
    for value in values:
        if value in seen:
            raise ValueError(f"{value} is named twice")
        seen.add(value)


def known_methods(value: list[str]) -> list[str]:
    """A validator of lists of scoring methods."""
    for method in value:
        if method not in METHODS:
            raise ValueError(f"no scoring method {method!r}; the methods are {', '.join(sorted(METHODS))}")
    check_unique(value)
    return value


class ExperimentPart(Part):
    """A grid of retrainings: methods x rates x seeds, and the unedited run of every seed."""

    methods: list[str] = Field(default_factory=lambda: ["safer", "random", "margin"], min_length=1)
    rates: list[Rate] = Field(default_factory=lambda: [0.05])
    """Shares of the target group (fractions). Empty: the experiment is not run."""

    _known = field_validator("methods")(known_methods)

    @field_validator("rates")
    @classmethod
    def _rates_differ(cls, value: list[float]) -> list[float]:
        check_unique(f"{rate:g}" for rate in value)  # as they stand in the names of folders
        return value


class DenoisePart(ExperimentPart):
    """Removing pairs, perhaps after some labels were made wrong on purpose."""

    rates: list[Rate] = Field(default_factory=lambda: [0.04])
    """Shares of the target group (fractions). Empty: the experiment is not run."""
    noise: float = Field(default=0.0, ge=0, lt=0.5)
    """Share of the target group whose labels are flipped at random first. 0: the data as they are."""


class WorldRecipe(Part):
    """What recipes share that find features in worlds: training sets, each with its reward model, SAE and scan."""

    recipe: str
    name: str
    model: str = DEFAULT_MODEL
    """Base that every reward model starts from: a folder, a hub name or `seamark/default` (MiniLM-L6)."""
    out: str
    """Run folder."""
    target: str = "safety"
    """The group whose features are looked for and whose pairs are edited."""
    seeds: list[Seed] = Field(default_factory=lambda: [0, 1, 2], min_length=1)
    """Seeds of the retrainings; the first one's reward model is the one that is looked into."""
    workers: int | None = Field(None, ge=1)
    """Processes side by side. None: one a core on CPUs (as memory allows), one with a GPU."""
    threads: int = Field(1, ge=1)
    """CPU threads of a worker; results depend on it in the last bits."""
    reuse_lower_blocks: bool = False
    """With `reward.trainable_blocks`: read what the frozen blocks give once and keep it on disk (4 bytes x tokens x
    width) for all retrainings."""
    data: DataPart = DataPart()
    reward: RewardTraining = RewardTraining()
    sae: SAEPart = SAEPart()
    scan: ScanConfig = ScanConfig()
    features: FeaturesPart = FeaturesPart()

    @field_validator("seeds")
    @classmethod
    def _seeds_differ(cls, value: list[int]) -> list[int]:
        check_unique(value)
        return value

    @model_validator(mode="after")
    def _positions_fit_normalization(self) -> Self:
        """The paper sums over prompt and response; means by pair must not count prompts."""
        paper = self.features.normalization == "paper"
        if paper != (self.scan.scope == "all"):
            needed = "all" if paper else "response"
            raise ValueError(f"features.normalization {self.features.normalization} needs scan.scope {needed}")
        return self


class SaferRecipe(WorldRecipe):
    """SAFER (arXiv 2507.00665): reward model, SAE, safety features, poisoning and denoising, report."""

    recipe: Literal["safer"] = "safer"
    name: str = "safer"
    out: str = "runs/safer"
    """Run folder."""
    poison: ExperimentPart = ExperimentPart()
    denoise: DenoisePart = DenoisePart()

    @model_validator(mode="after")
    def _methods_are_those_of_the_paper(self) -> SaferRecipe:
        for method in dict.fromkeys([*self.poison.methods, *self.denoise.methods]):
            if method not in SAFER_METHODS:
                raise ValueError(f"the method {method} needs a recipe of kind audit-experiment; here are "
                                 f"{', '.join(SAFER_METHODS)}")  # fmt: skip
        return self


def load_recipe(path: Path, overrides: dict[str, Any] | None = None) -> SaferRecipe:
    """Read and check a recipe; `overrides` (nested) win over the file.

    Raises:
        ConfigError: not there, not YAML, an unknown key or a value of the wrong kind (names the key).
    """
    return check_recipe(read_recipe(path, overrides), str(path))


def read_recipe(path: Path, overrides: dict[str, Any] | None = None) -> dict[str, Any]:
    """The data of a recipe of any kind. Raises `ConfigError`: not there, not YAML, no mapping."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as e:
        raise ConfigError("cannot read the recipe", where=str(path), fix="Give the path of a YAML file") from e
    try:
        data = yaml.safe_load(text)
    except yaml.YAMLError as e:
        mark = getattr(e, "problem_mark", None)
        line = f" (line {mark.line + 1})" if mark else ""
        raise ConfigError(f"not valid YAML{line}", where=str(path)) from e
    if not isinstance(data, dict):
        raise ConfigError("a recipe is a mapping of keys to values", where=str(path))
    return merge(data, overrides or {})


def check_recipe(data: dict[str, Any], where: str) -> SaferRecipe:
    """Validate a SAFER recipe's data. Raises `ConfigError` naming the first bad key."""
    return check_data(SaferRecipe, data, where)


def check_data(kind: type[Model], data: dict[str, Any], where: str) -> Model:
    """Validate data as a `kind`. Raises `ConfigError` naming the first bad key."""
    try:
        return kind.model_validate(data)
    except ValidationError as e:
        first = e.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        problem = first["msg"].removeprefix("Value error, ")
        raise ConfigError(f"{key or 'recipe'}: {problem[:1].lower()}{problem[1:]}", where=where) from None


def merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """Nested data with those of `over` winning."""
    merged = dict(base)
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = merge(merged[key], value) if both else value
    return merged
