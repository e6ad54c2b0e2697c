"""What an audit experiment consists of: worlds and arms of cells, by name, before anything is computed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from seamark.audit.combine import MIN_LABELS
from seamark.audit.editing import edit_count
from seamark.audit.experiment import Cell, Kind
from seamark.audit.noise import NoiseKind, make_noise
from seamark.errors import ConfigError
from seamark.pipelines.audit_recipe import COMBINED, AuditRecipe
from seamark.pipelines.grid_stages import half_of
from seamark.pipelines.worlds import FoundWorld
from seamark.text.pairs import Pairs

Half = Literal["a", "b"]


@dataclass(frozen=True)
class WorldPlan:
    """A world that is to be made; see `grid.GridRun`."""

    name: str
    seed: int
    methods: tuple[str, ...]
    """What scores its pairs, `combined` aside."""
    kind: NoiseKind | None = None
    """None: clean."""
    rate: float = 0.0
    attacker: str = ""
    """The clean world that a targeted noise is planned in."""
    parent: str = ""
    """The world that a calibration world adds wrong labels to."""
    half: Half | None = None

    @property
    def noise(self) -> tuple[NoiseKind, float] | None:
        return (self.kind, self.rate) if self.kind else None


@dataclass(frozen=True)
class Arm:
    """Retrainings that are compared with one another: methods x rates, in one world a seed."""

    name: str
    kind: Kind
    worlds: dict[int, str]
    """Seed -> world."""
    methods: tuple[str, ...]
    rates: tuple[float, ...]
    """Highest first."""
    noise: tuple[NoiseKind, float] | None = None

    def cells(self, *rates: float) -> Iterator[Cell]:
        """Of these rates (all, without any), every method and seed."""
        for rate in rates or self.rates:
            for method in self.methods:
                for seed in self.worlds:
                    yield Cell(method=method, rate=rate, seed=seed)


@dataclass(frozen=True)
class Variation:
    """One setting changed, for one seed."""

    setting: str
    value: Any
    seed: int

    @property
    def folder(self) -> str:
        return f"ablations/{self.setting}-{self.value}"


class Plan:
    """All worlds, arms and variations of a recipe."""

    def __init__(self, recipe: AuditRecipe) -> None:
        self.recipe = recipe
        self.clean = self._clean()
        self.noisy = [self._noisy(kind, rate, seed) for kind, rate in recipe.noise.all() for seed in recipe.seeds]
        self.combined = [w for w in [*self.clean, *self.noisy] if COMBINED in recipe.methods_in(w.kind)]
        self.halves = [_half(recipe, world, half) for world in self.combined for half in ("a", "b")]
        self.arms = self._arms()
        self.variations = [Variation(setting, value, seed)
                           for setting, value in recipe.ablations.all() for seed in recipe.seeds]  # fmt: skip

    @property
    def worlds(self) -> list[WorldPlan]:
        return [*self.clean, *self.noisy, *self.halves]

    def arm(self, name: str) -> Arm | None:
        return next((arm for arm in self.arms if arm.name == name), None)

    def in_noise(self, noise: tuple[NoiseKind, float]) -> list[WorldPlan]:
        """The noisy worlds of one kind and rate, a seed each."""
        return [world for world in self.noisy if world.noise == noise]

    def ablation_noise(self) -> tuple[NoiseKind, float] | None:
        """Where ablations look for wrong labels: the lowest rate of the first kind of noise."""
        first = self.recipe.noise.all()[:1]
        return (first[0][0], min(r for k, r in self.recipe.noise.all() if k == first[0][0])) if first else None

    def _clean(self) -> list[WorldPlan]:
        r = self.recipe
        seeds = list(r.seeds)
        if len(r.seeds) == 1 and any(kind in ("safer", "margin") for kind, _ in r.noise.all()):
            seeds.append(r.attacker(r.seeds[0]))
        methods = tuple(m for m in r.methods_in(None) if m != COMBINED)
        return [WorldPlan(f"clean-{seed}", seed, methods) for seed in seeds]

    def _noisy(self, kind: NoiseKind, rate: float, seed: int) -> WorldPlan:
        r = self.recipe
        methods = tuple(m for m in r.methods_in(kind) if m != COMBINED)
        attacker = f"clean-{r.attacker(seed)}" if kind in ("safer", "margin") else ""
        return WorldPlan(f"noisy-{kind}-{rate:g}-{seed}", seed, methods, kind, rate, attacker)

    def _arms(self) -> list[Arm]:
        r = self.recipe
        arms = []
        if r.poison.rates:
            worlds = {seed: f"clean-{seed}" for seed in r.seeds}
            arms.append(Arm("poison", "poison", worlds, tuple(r.poison.methods), _falling(r.poison.rates)))
        for kind, rate in r.noise.all():
            if r.denoise.rates and kind in r.denoise.kinds:
                worlds = {w.seed: w.name for w in self.in_noise((kind, rate))}
                arms.append(Arm(f"denoise-{kind}-{rate:g}", "denoise", worlds, tuple(r.denoise.methods),
                                _falling(r.denoise.rates), (kind, rate)))  # fmt: skip
        return arms


@dataclass
class Grid:
    """Folders of all that is finished."""

    recipe: AuditRecipe
    plan: Plan
    root: Path
    data: Path | None = None
    bench: Path | None = None
    data_of: dict[str, Path] = field(default_factory=dict)
    """World -> folder with its training pairs."""
    worlds: dict[str, FoundWorld] = field(default_factory=dict)
    scores: dict[str, dict[str, Path]] = field(default_factory=dict)
    """World (or `<variation>/<world>`) -> method -> folder."""
    cells: dict[str, dict[Cell, Path]] = field(default_factory=dict)
    """Arm -> cell -> folder, unedited runs included."""
    variations: dict[Variation, Path] = field(default_factory=dict)
    """Retrainings of the ablations."""
    missing: list[str] = field(default_factory=list)
    """Stages that are planned and not finished."""


def _half(recipe: AuditRecipe, world: WorldPlan, half: Half) -> WorldPlan:
    return WorldPlan(f"{world.name}/half-{half}", world.seed, tuple(recipe.combine.signals), world.kind, world.rate,
                     parent=world.name, half=half)  # fmt: skip


def _falling(rates: list[float]) -> tuple[float, ...]:
    return tuple(sorted(rates, reverse=True))


def check_sizes(recipe: AuditRecipe, train: Pairs) -> None:
    """What depends on the pairs, before anything is trained. Raises `ConfigError`, `DataError`."""
    target = recipe.target
    size = len(train.group(target))
    if unknown := [g for g in recipe.others if g not in train.groups]:
        raise ConfigError(f"no pairs of group {unknown[0]!r}", where="others",
                          fix=f"The groups are: {', '.join(train.groups)}")  # fmt: skip
    for rate in [*recipe.poison.rates, *recipe.denoise.rates, *(rate for _, rate in recipe.noise.all())]:
        if edit_count(rate, size) < 1:
            raise ConfigError(f"rate {rate:g} of {size} {target} pairs is less than one pair",
                              fix="Choose a higher rate or give more pairs")  # fmt: skip
    if recipe.denoise.rates and edit_count(most := max(recipe.denoise.rates), size) >= size:
        raise ConfigError(f"rate {most:g} removes all {size} {target} pairs", where="denoise.rates",
                          fix="Choose a lower rate")  # fmt: skip
    for rate in recipe.noise.category:
        for seed in recipe.seeds:
            make_noise(train, "category", rate, target, seed, category=recipe.noise.named)
    if Plan(recipe).combined:
        for half in ("a", "b"):
            n = sum(half_of(p) == half for p in train.group(target))
            if n < 2 * MIN_LABELS:
                raise ConfigError(f"{COMBINED} learns from {MIN_LABELS} wrong and as many right labels, but a half of "
                                  f"the {target} prompts has {n} pairs", fix="Give more, or leave it out")  # fmt: skip
