"""Options that commands share, and what they stand for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro
import yaml

from seamark.errors import ConfigError

if TYPE_CHECKING:
    from seamark.pipelines.recipe import SaferRecipe
    from seamark.text import Pairs

Many = Annotated[tuple[str, ...], tyro.conf.UseAppendAction]


@dataclass(frozen=True)
class Common:
    """Options of every command that works from a recipe."""

    config: Path | None = None
    """A recipe (YAML) whose settings apply; without it, the defaults."""
    set: Many = ()
    """Override a setting of the recipe: --set reward.epochs=3. Repeat for more."""
    json: bool = False
    """Print the result as JSON on stdout, and nothing else there."""


def recipe_folder() -> Path:
    """Where the recipes lie: in the installed package, or beside the sources."""
    packaged = Path(str(resources.files("seamark.pipelines"))) / "recipes"
    return packaged if packaged.is_dir() else Path(__file__).parents[3] / "recipes"


def parse_pairs(
    pairs: Sequence[str], option: str = "--pairs", example: str = "safety=pairs.jsonl"
) -> dict[str, list[str]]:
    """`group=file` options as {group: files}. Raises `ConfigError` on anything else."""
    files: dict[str, list[str]] = {}
    for item in pairs:
        group, equals, file = item.partition("=")
        if not (group and equals and file):
            raise ConfigError(f"{item!r} is not of the form {'group' if option == '--pairs' else 'stage'}=file",
                              where=option, fix=f"Write {option} {example}")  # fmt: skip
        files.setdefault(group, []).append(file)
    return files


def parse_sets(items: Sequence[str]) -> dict[str, Any]:
    """`a.b=value` options as nested data; values are YAML. Raises `ConfigError` on anything else."""
    data: dict[str, Any] = {}
    for item in items:
        key, equals, text = item.partition("=")
        if not (key and equals):
            raise ConfigError(
                f"{item!r} is not of the form key=value", where="--set", fix="Write --set reward.epochs=3"
            )
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError:
            raise ConfigError(f"the value of {key!r} is not valid YAML", where="--set") from None
        *parents, last = key.split(".")
        place = data
        for parent in parents:
            place = place.setdefault(parent, {})
            if not isinstance(place, dict):
                raise ConfigError(f"{key!r} is set, and so is {parent!r} as a whole", where="--set", fix="Give one")
        place[last] = value
    return data


def named_saes(items: Sequence[str]) -> dict[str, str]:
    """`name=place` or `place` options as {name: place}. `ConfigError` where there is none, or a name comes twice."""
    named: dict[str, str] = {}
    for item in items:
        name, place = item.split("=", 1) if "=" in item else (Path(item).name or "sae", item)
        if not (name and place):
            raise ConfigError(f"{item!r} is not of the form name=folder", where="--sae", fix="Write --sae l2=runs/sae")
        if name in named:
            raise ConfigError(f"two SAEs are called {name}", where="--sae", fix="Name them: --sae one=… --sae two=…")
        named[name] = place
    if not named:
        raise ConfigError("no SAE is given", where="--sae", fix="Write --sae runs/sae")
    return named


def the_recipe(common: Common, **overrides: Any) -> SaferRecipe:
    """The recipe of a command: its file or the defaults, `--set`, and the command's own options (None: not given)."""
    from seamark.pipelines.recipe import check_recipe, load_recipe

    data = parse_sets(common.set)
    given = {k: v for k, v in overrides.items() if v is not None}
    for key, value in given.items():
        earlier = data.get(key)
        data[key] = {**earlier, **value} if isinstance(value, Mapping) and isinstance(earlier, Mapping) else value
    return load_recipe(common.config, data) if common.config else check_recipe(data, "options")


def the_pairs(recipe: SaferRecipe, pairs: Sequence[str], split: str | None = None) -> Pairs:
    """Pairs of `--pairs` (or the recipe's), whole or one side of the split; without any, the demo pairs."""
    from seamark.text import ReadOptions, demo_pairs, read_pairs

    files = parse_pairs(pairs) or recipe.data.pairs
    if not files:
        return demo_pairs(split)  # type: ignore[arg-type]
    found = read_pairs(files, options=ReadOptions(max_pairs=recipe.data.max_pairs))
    if split is None:
        return found
    train, test = found.split(recipe.data.test_share, recipe.data.split_seed)
    return train if split == "train" else test
