"""`seamark reward …`, `seamark scan …`, `seamark contrast`: the stages, one at a time."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from seamark.cli.options import Common, Many, the_pairs, the_recipe
from seamark.cli.output import finish, percent

if TYPE_CHECKING:
    from seamark.features import Scan

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
    common: Shared, model: str, pairs: Many = (), out: Path | None = None, split: Literal["test", "all"] = "all"
) -> None:
    """Accuracy of a reward model by group and category, beside "the longer answer wins".

    Args:
        common: options of every command.
        model: the reward model: a folder or a Hub name.
        pairs: preference pairs as group=file; without any, the demo pairs.
        out: folder for result.json.
        split: all pairs, or the held-out side of the recipe's split.
    """
    from seamark.model import RewardModel, evaluate

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


def scan_run(common: Shared, model: str, sae: Many, out: Path, pairs: Many = ()) -> None:
    """Read all pairs once: rewards, latents, statistics; everything later reads the folder this writes.

    Args:
        common: options of every command.
        model: the reward model: a folder or a Hub name.
        sae: an SAE's folder, or name=folder; repeat for a suite.
        out: folder of the scan.
        pairs: preference pairs as group=file; without any, the demo pairs.
    """
    from seamark.features import scan
    from seamark.model import RewardModel
    from seamark.sae import SparseAutoencoder

    recipe = the_recipe(common)
    named = [item.partition("=")[::2] if "=" in item else (Path(item).name or "sae", item) for item in sae]
    suite = {name: SparseAutoencoder.from_pretrained(path) for name, path in named}
    config = recipe.scan.model_copy(update={"max_length": recipe.scan.max_length or recipe.reward.max_length})
    found = scan(RewardModel.from_pretrained(model), suite, the_pairs(recipe, pairs), out, config=config)
    _show_scan(found, out, common, out)


def scan_info(common: Shared, scan: Annotated[Path, tyro.conf.Positional]) -> None:
    """What a scan holds.

    Args:
        common: options of every command.
        scan: the scan's folder.
    """
    from seamark.features import Scan

    _show_scan(Scan.open(scan), scan, common)


def _show_scan(found: Scan, scan: Path, common: Common, out: Path | None = None) -> None:
    manifest = found.manifest
    result = {"scan": str(scan), "groups": manifest["groups"], "n_pairs": manifest["n_pairs"],
              "saes": manifest["sae_configs"], "config": manifest["config"],
              "model": manifest["model_name"]}  # fmt: skip
    rows = [("model", manifest["model_name"]), *((f"{g} pairs", str(n)) for g, n in manifest["groups"].items())]
    rows += [(f"SAE {name}", f"{c['hookpoint']}, {c['d_sae']} latents, k {c['k']}")
             for name, c in manifest["sae_configs"].items()]  # fmt: skip
    finish(result, as_json=common.json, out=out, title="Scan", columns=("what", "value"), rows=rows)


def contrast(
    common: Shared, scan: Annotated[Path, tyro.conf.Positional], out: Path | None = None, sae: str | None = None,
    top: int = 32,
) -> None:  # fmt: skip
    """Latents that tell a group's chosen answers from its rejected ones (a correlation, not an effect).

    Args:
        common: options of every command.
        scan: the scan's folder.
        out: folder for features.json.
        sae: which SAE of the scan; not needed where there is one.
        top: how many, by |score|.
    """
    from seamark.features import Scan
    from seamark.features import contrast as compute

    recipe = the_recipe(common)
    found = compute(Scan.open(scan), recipe.target, sae, recipe.features.normalization)
    features = found.top(top)
    if out is not None:
        features.save(out / "features.json")
    rows = [
        (f"{f.sae}/{f.latent}", f"{f.score:+.3f}", "chosen" if f.sign > 0 else "rejected") for f in features.features
    ]
    finish(features.model_dump(), as_json=common.json, out=out, title=f"Contrast on {recipe.target}",
           columns=("feature", "score", "fires on"), rows=rows)  # fmt: skip
