"""What would only fail after hours of an audit, looked at before anything is trained."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from seamark.audit.scores import METHODS
from seamark.errors import ConfigError, DataError
from seamark.features import FeatureSet
from seamark.model import is_reward_model, resolve_name
from seamark.model.pretrained import load_config
from seamark.pipelines.recipe import SaferRecipe
from seamark.pipelines.worlds import check_general_text, check_hookpoint, n_blocks_of
from seamark.run import read_json
from seamark.sae import SAEConfig, SparseAutoencoder
from seamark.stats import Estimate

if TYPE_CHECKING:
    from seamark.pipelines.audit_report_options import AuditOptions

_THERE = ("scan", "features", "pairs")
"""What every audit has to score pairs with; a method that needs more cannot be ranked by."""


def check_options(options: AuditOptions, recipe: SaferRecipe) -> bool:
    """Whether a reward model has to be trained.

    Raises:
        ConfigError: options that do not fit together, a method that cannot rank, a hookpoint the model lacks, an
            autoencoder or features of another model.
        DataError: no such file of general texts.
        FormatError: an autoencoder or a feature set that cannot be read.
        ModelError: no such model or base.
    """
    o = options
    is_reward = is_reward_model(o.model)
    if o.features and not o.sae:
        raise ConfigError("a feature set means nothing without its autoencoder", where="--features",
                          fix="Give the autoencoder with --sae")  # fmt: skip
    if is_reward and o.base is None and not o.train and o.crossfit:
        raise ConfigError("the model given has seen these pairs, or may have: cross-fitted ones need a base",
                          where="--crossfit", fix="Give what they are to start from with --base")  # fmt: skip
    if o.experiment is not None:
        experiment_costs(o.experiment, o.group)
    if o.base is not None:
        n_blocks_of(o.base)
    if o.dimension is not None and (lost := [g for g in o.dimension.against if g not in o.pairs]):
        raise DataError(f"no pairs of group {lost[0]!r}, which {o.dimension.name} is told from", where="--pairs",
                        fix=f"Give pairs as {lost[0]}=FILE")  # fmt: skip
    _check_ranking(o)
    if o.sae is None:
        check_hookpoint(o.model, recipe.sae.hookpoint, "sae.hookpoint")
        check_general_text(recipe.data.general_text)
    else:
        config = _check_sae(o.model, o.sae)
        if o.features is not None:
            _check_features(o.features, config)
    return o.train or not is_reward


def experiment_costs(folder: str, group: str) -> dict[tuple[str, float], Estimate]:
    """{(group, share flipped): accuracy that SAFER's flips cost it}, from the result of an audit experiment.

    Raises:
        ConfigError: an experiment with pairs of another group.
        RunError: no result there, or none that can be read.
    """
    files = [Path(folder) / name for name in ("result.json", "result-so-far.json")]
    file = next((f for f in files if f.is_file()), files[0])
    found = read_json(file)
    recipe = found.get("recipe") if isinstance(found, dict) else None
    if not isinstance(recipe, dict) or recipe.get("recipe") != "audit-experiment":
        raise ConfigError("this is no result of `seamark audit experiment`", where=str(file))
    if recipe["target"] != group:
        raise ConfigError(f"the experiment edits {recipe['target']!r}, the audit is of {group!r}", where="--experiment")
    rows = (found.get("poison") or {}).get("summary", [])
    return {(of, row["rate"]): Estimate.model_validate(cost) for row in rows if row["method"] == "safer"
            for of, cost in row["lost"].items()}  # fmt: skip


def _check_ranking(o: AuditOptions) -> None:
    there = {*_THERE, *(["margins"] if o.crossfit else [])}
    possible = [m.name for m in METHODS.values() if all(set(n.split(" or ")) & there for n in m.needs)]
    if o.by is None or o.by in possible:
        return
    if o.by in METHODS and "margins" in METHODS[o.by].needs:
        raise ConfigError(f"{o.by} needs reward models that never saw the pairs", where="--by",
                          fix="Ask for them with --crossfit 5")  # fmt: skip
    what = f"an audit cannot rank by {o.by}" if o.by in METHODS else f"no scoring method {o.by!r}"
    raise ConfigError(what, where="--by", fix=f"One of: {', '.join(possible)}")


def _check_sae(model: str, place: str) -> SAEConfig:
    config = SparseAutoencoder.from_pretrained(place).config
    if not config.hookpoint:
        raise ConfigError("the autoencoder names no hookpoint", where="--sae", fix="Set it in its config.json")
    check_hookpoint(model, config.hookpoint, "--sae: its hookpoint")
    width = getattr(load_config(resolve_name(model)).get_text_config(), "hidden_size", None)
    if width is not None and width != config.d_in:
        raise ConfigError(f"the autoencoder reads activations of width {config.d_in}, {model} is {width} wide",
                          where="--sae", fix="Give one of this model")  # fmt: skip
    return config


def _check_features(place: str, config: SAEConfig) -> None:
    found = FeatureSet.load(place)
    if not len(found):
        raise ConfigError("the feature set is empty", where=place)
    named = {f.sae for f in found.features}
    if len(named) > 1:
        raise ConfigError(f"it names features of {len(named)} autoencoders", where=place,
                          fix="Give the features of one")  # fmt: skip
    largest = max(f.latent for f in found.features)
    if largest >= config.d_sae:
        raise ConfigError(f"it names latent {largest}, the autoencoder has {config.d_sae}", where=place,
                          fix="Give the features of this autoencoder")  # fmt: skip
