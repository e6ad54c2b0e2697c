"""`seamark reward …`, `seamark contrast`: the stages, one at a time."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from seamark.cli.options import Common, Many, the_pairs, the_recipe
from seamark.cli.output import finish, percent
from seamark.cli.rewardbench import eval_rewardbench
from seamark.errors import ConfigError

Shared = Annotated[Common, tyro.conf.OmitArgPrefixes]


def reward_train(
    common: Shared, out: Path, pairs: Many = (), model: str | None = None, all_pairs: bool = False
) -> None:
    """Train a reward model (Bradley-Terry) and evaluate it on held-out prompts.

    Args:
        common: options of every command.
        out: folder for the model in the Hub's layout.
        pairs: preference pairs as group=file; without any, the demo pairs.
        model: base: a folder, a Hub name or seamark/default.
        all_pairs: train on all pairs and hold none out.
    """
    from seamark.model import evaluate, train_reward_model

    recipe = the_recipe(common, model=model)
    train = the_pairs(recipe, pairs, None if all_pairs else "train")
    trained, report = train_reward_model(recipe.model, train, recipe.reward, out)
    result = {"training": report.model_dump(exclude={"losses", "accuracies"})}
    rows = []
    if not all_pairs:
        found = evaluate(trained, the_pairs(recipe, pairs, "test"), max_length=recipe.reward.max_length)
        result |= {"evaluation": found.to_json()}
        rows = [(g, percent(found.accuracy(g)), percent(found.longer_wins(g))) for g in dict.fromkeys(found.groups)]
    finish(result, as_json=common.json, out=out, title="Held-out accuracy", columns=("group", "model", "longer wins"),
           rows=rows)  # fmt: skip


def reward_eval(
    common: Shared, model: str, pairs: Many = (), out: Path | None = None, split: Literal["test", "all"] = "all",
    rewardbench: Many = (), trained_on: Many = (), keep_seen: bool = False,
) -> None:  # fmt: skip
    """Accuracy of a reward model by group and category, beside "the longer answer wins"; or on RewardBench.

    Args:
        common: options of every command.
        model: the reward model: a folder or a Hub name.
        pairs: preference pairs as group=file; without any, the demo pairs.
        out: folder for result.json (and the table as rewardbench.md, .csv and .tex).
        split: all pairs, or the held-out side of the recipe's split.
        rewardbench: instead of pairs: allenai/reward-bench, or a file of it with a column subset. Repeat for more.
        trained_on: pairs the model was trained on, as group=file: what they share with RewardBench is left out.
        keep_seen: count prompts that the model was trained on nevertheless.
    """
    from seamark.model import RewardModel, evaluate

    if rewardbench:
        if pairs or split != "all":
            raise ConfigError("RewardBench is all test, and its pairs are its own", where="--rewardbench",
                              fix="Leave out --pairs and --split")  # fmt: skip
        return eval_rewardbench(common, model, rewardbench, trained_on, keep_seen, out)
    if trained_on or keep_seen:
        raise ConfigError("this is about --rewardbench", where="--trained-on" if trained_on else "--keep-seen",
                          fix="Give --rewardbench allenai/reward-bench, or a file of it")  # fmt: skip
    recipe = the_recipe(common)
    loaded = RewardModel.from_pretrained(model)
    found = evaluate(loaded, the_pairs(recipe, pairs, "test" if split == "test" else None),
                     max_length=recipe.reward.max_length)  # fmt: skip
    cells = [(g, None) for g in dict.fromkeys(found.groups)] + [(g, c) for g, c in found.cells() if c]
    rows = [
        (f"{g} / {c}" if c else g, percent(found.accuracy(g, c)), percent(found.longer_wins(g, c))) for g, c in cells
    ]
    finish(found.to_json(), as_json=common.json, out=out, title="Accuracy", columns=("pairs", "model", "longer wins"),
           rows=rows)  # fmt: skip


def contrast(
    common: Shared, scan: Annotated[Path, tyro.conf.Positional], out: Path | None = None, sae: str | None = None,
    top: int = 32,
) -> None:  # fmt: skip
    """Latents that tell a group's chosen answers from its rejected ones (a correlation, not an effect), and what is
    signal in it: difference with interval by prompt, signed-rank test with false discovery rate over all latents,
    agreement of pairs, and the difference at equal length.

    Args:
        common: options of every command.
        scan: the scan's folder.
        out: folder for features.json.
        sae: which SAE of the scan; not needed where there is one.
        top: how many, by |score|.
    """
    from seamark.features import Scan, significance
    from seamark.features import contrast as compute

    recipe = the_recipe(common)
    opened = Scan.open(scan)
    found = compute(opened, recipe.target, sae, recipe.features.normalization)
    features = found.top(top)
    if out is not None:
        features.save(out / "features.json")
    doubt = significance(opened, recipe.target, found.sae_id)
    told = {row["latent"]: row for row in doubt.rows()}
    shown = [told[f.latent] for f in features.features]
    rows = [
        (f"{f.sae}/{f.latent}", f"{f.score:+.3f}", "chosen" if f.sign > 0 else "rejected",
         _interval(row, "effect", "low", "high"),
         _number(row["q_value"], ".3f"), percent(row["agreeing"]), _number(row["length_controlled"], "+.3g"))
        for f, row in zip(features.features, shown, strict=True)
    ]  # fmt: skip
    about = {"n_pairs": doubt.n_pairs, "n_prompts": doubt.n_prompts, "left_out": list(doubt.left_out),
             "reasons": doubt.reasons}  # fmt: skip
    finish(features.model_dump() | {"significance": about | {"features": shown}}, as_json=common.json, out=out,
           title=f"Contrast on {recipe.target}: {doubt.n_pairs} pairs, {doubt.n_prompts} prompts", rows=rows,
           columns=("feature", "score", "fires on", "difference [95 %]", "q", "agree", "at equal length"))  # fmt: skip


def _interval(row: dict[str, Any], value: str, low: str, high: str) -> str:
    return f"{_number(row[value], '+.3g')} [{_number(row[low], '+.3g')}, {_number(row[high], '+.3g')}]"


def _number(value: float | None, form: str) -> str:
    return "n/a" if value is None else format(value, form)
