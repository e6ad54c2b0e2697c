"""Recipes of kind `audit-experiment`: what flipping and removing pairs does, by method, rate and seed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from seamark.audit.noise import NoiseKind
from seamark.errors import ConfigError
from seamark.explain.dimension import Dimension
from seamark.pipelines.recipe import (
    ExperimentPart,
    Part,
    Rate,
    WorldRecipe,
    check_data,
    check_unique,
    known_methods,
    read_recipe,
)

COMBINED = "combined"
CONTROLS = ("untrained", "random_latents")
"""Methods that read features of their own."""
CROSSFIT = ("margin_crossfit", "voting")
"""Methods that need reward models which never saw a pair's prompt."""
DETECTED = ["safer", "random", "margin", "latents", "length", "direction", "untrained", "random_latents"]


class PoisonGrid(ExperimentPart):
    """The highest-scoring pairs of the target group are flipped."""

    methods: list[str] = Field(
        default_factory=lambda: ["safer", "random", "margin", "direction", "untrained", "random_latents"], min_length=1
    )
    rates: list[Rate] = Field(default_factory=lambda: [0.005, 0.01, 0.025, 0.05])
    """Shares of the target group (fractions). Empty: the experiment is not run."""


class DenoiseGrid(ExperimentPart):
    """The lowest-scoring pairs of the target group are removed, in every noisy world of these kinds."""

    rates: list[Rate] = Field(default_factory=lambda: [0.02, 0.04, 0.06, 0.08, 0.1])
    """Shares of the target group (fractions). Empty: the experiment is not run."""
    kinds: list[NoiseKind] = Field(["random"])
    """Kinds of noise whose worlds are denoised and retrained; in the others wrong labels are only looked for."""


class NoisePart(Part):
    """Labels of the target group that are made wrong on purpose: shares by kind. Each makes a world a seed."""

    random: list[Rate] = Field(default_factory=lambda: [0.1, 0.2, 0.3])
    category: list[Rate] = Field(default_factory=list)
    """Within one category, or in a few of them that the seed draws where none is named."""
    safer: list[Rate] = Field(default_factory=list)
    """Flipped where an attacker's SAFER score is highest. The attacker's world has other seeds than the defender's."""
    margin: list[Rate] = Field(default_factory=list)
    """The same by the margin of the attacker's reward model."""
    named: str | None = None
    """The category of `category`."""

    @field_validator("random", "category", "safer", "margin")
    @classmethod
    def _differ(cls, value: list[float]) -> list[float]:
        check_unique(f"{rate:g}" for rate in value)
        if too_many := [rate for rate in value if rate >= 0.5]:
            raise ValueError(f"with {too_many[0]:g} of the labels wrong, right ones would be the exception")
        return value

    def all(self) -> list[tuple[NoiseKind, float]]:
        """Every (kind, rate); within a kind the highest rate first."""
        kinds: tuple[NoiseKind, ...] = ("random", "category", "safer", "margin")
        return [(kind, rate) for kind in kinds for rate in sorted(getattr(self, kind), reverse=True)]


class DetectPart(Part):
    """How well scores find the wrong labels of each noisy world."""

    methods: list[str] = Field(default_factory=lambda: list(DETECTED))
    """Besides those of `denoise`."""
    share: float = Field(0.05, gt=0, lt=1)
    """Recall is taken among the worst share of the target group."""

    _known = field_validator("methods")(known_methods)


class CrossfitPart(Part):
    """Reward models that never saw a pair's prompt, for `margin_crossfit` and `voting`; trained where asked for."""

    folds: int = Field(5, ge=2)
    repeats: int = Field(1, ge=1)
    """Every repeat cuts other folds and trains with another seed."""


class CombinePart(Part):
    """How `combined` is learned: more labels of one half of the prompts are flipped, the weights judge the other."""

    extra: float = Field(0.1, gt=0, lt=0.5)
    """Share of a half's pairs that is flipped besides (20 at least)."""
    kind: Literal["random", "safer", "margin"] = "random"
    """Which ones: drawn, or those that this score of the world itself is surest of. Flips of the kind that is feared
    teach what finds that kind."""
    signals: list[str] = Field(default_factory=lambda: ["safer", "margin", "latents", "direction"], min_length=1)

    @field_validator("signals")
    @classmethod
    def _known(cls, value: list[str]) -> list[str]:
        if COMBINED in value:
            raise ValueError(f"{COMBINED} cannot be a signal of itself")
        return known_methods(value)


class AblationPart(Part):
    """One thing at a time is changed from the recipe's own settings, with the same reward models."""

    hookpoint: list[str] = Field(default_factory=list)
    d_sae: list[Annotated[int, Field(ge=1)]] = Field(default_factory=list)
    k: list[Annotated[int, Field(ge=1)]] = Field(default_factory=list)
    count: list[Annotated[int, Field(ge=1)]] = Field(default_factory=list)
    """Number of features."""
    positions: list[Literal["tokens", "clauses", "sentences", "last"]] = Field(default_factory=list)
    """Scoring positions of the scan."""
    normalization: list[Literal["default", "paper"]] = Field(default_factory=list)
    """`paper` scans prompts too (`scope: all`)."""

    @model_validator(mode="after")
    def _each_once(self) -> AblationPart:
        check_unique(f"{name} {value}" for name, value in self.all())
        return self

    def all(self) -> list[tuple[str, Any]]:
        """Every (name, value)."""
        return [(name, value) for name in AblationPart.model_fields for value in getattr(self, name)]


class AuditRecipe(WorldRecipe):
    """Methods x rates x seeds: poisoning, denoising and detection of wrong labels (SAFER, arXiv 2507.00665, §4)."""

    recipe: Literal["audit-experiment"] = "audit-experiment"
    name: str = "audit"
    out: str = "runs/audit"
    """Run folder."""
    others: list[str] = Field(default_factory=list)
    """Groups that safety features are told from. Empty: all but the target."""
    dimension: Dimension | None = None
    """In place of `target` and `others`: name, group, question and, if wanted, against; or a YAML file of these."""
    poison: PoisonGrid = PoisonGrid()
    noise: NoisePart = NoisePart()
    denoise: DenoiseGrid = DenoiseGrid()
    detect: DetectPart = DetectPart()
    crossfit: CrossfitPart = CrossfitPart()
    combine: CombinePart = CombinePart()
    ablations: AblationPart = AblationPart()
    judged: str | None = None
    """Scores of `seamark audit score --method judge`, for the method `judge`: no language model is asked here."""
    rewardbench: list[str] = Field(default_factory=list)
    """RewardBench files or `allenai/reward-bench`: every retrained model is evaluated there too."""

    @model_validator(mode="before")
    @classmethod
    def _of_the_dimension(cls, data: Any) -> Any:
        """`target` and `others` are those of the dimension, where one is given."""
        given = data.get("dimension") if isinstance(data, dict) else None
        if given is None or isinstance(given, Dimension):
            return data
        about = Dimension.load(given) if isinstance(given, str | Path) else Dimension.of(given)
        theirs = {"target": about.group, "others": list(about.against)}
        for key, value in theirs.items():
            if data.get(key) not in (None, [], value):
                raise ConfigError(f"{key} is given, and so is the dimension {about.name}", where=key,
                                  fix="Give one of the two")  # fmt: skip
        return {**data, **theirs, "dimension": about}

    @model_validator(mode="after")
    def _makes_sense(self) -> AuditRecipe:
        asked = {*self.poison.methods, *self.denoise.methods, *self.detect.methods, *self.combine.signals}
        if "judge" in asked and self.judged is None:
            raise ValueError("the method judge needs `judged`: the file of `seamark audit score --method judge`")
        if "voting" in asked and self.crossfit.repeats < 2:
            raise ValueError("the method voting needs crossfit.repeats of 2 or more: one model has no vote")
        if self.target in self.others:
            raise ValueError(f"others holds the target group {self.target!r}")
        if self.denoise.rates and not any(kind in self.denoise.kinds for kind, _ in self.noise.all()):
            raise ValueError("denoise.rates are given, but noise has no rate of the kinds in denoise.kinds")
        d_sae, ks = self.sae.d_sae, [self.sae.k, *self.ablations.k]
        smallest = min([d for d in (d_sae, *self.ablations.d_sae) if d is not None], default=None)
        if smallest is not None and max(ks) > smallest:
            raise ValueError(f"k {max(ks)} is more than the {smallest} latents of d_sae")
        return self

    def attacker(self, seed: int) -> int:
        """Seed of the attacker's world against a defender's of `seed`: never the same."""
        if len(self.seeds) == 1:
            return seed + 1
        return self.seeds[(self.seeds.index(seed) + 1) % len(self.seeds)]

    def methods_in(self, kind: NoiseKind | None) -> list[str]:
        """Methods that score a noisy world of a kind, or (None) a clean one; signals of `combined` included."""
        if kind is None:
            asked = [*self.poison.methods, *(k for k, _ in self.noise.all() if k in ("safer", "margin"))]
        else:
            asked = [*self.detect.methods, *(self.denoise.methods if kind in self.denoise.kinds else [])]
        if COMBINED in asked:
            asked += [*self.combine.signals, *([self.combine.kind] if self.combine.kind != "random" else [])]
        if self.ablations.all():
            asked.append("safer")  # what changed settings are compared with
        return list(dict.fromkeys(asked))


def load_audit_recipe(path: Path, overrides: dict[str, Any] | None = None) -> AuditRecipe:
    """Read and check a recipe of this kind; errors as for `load_recipe`."""
    return check_data(AuditRecipe, read_recipe(path, overrides), str(path))


def needs_crossfit(methods: Sequence[str]) -> bool:
    """Whether one of the methods reads margins by models that never saw the prompt."""
    return any(m in CROSSFIT for m in methods)
