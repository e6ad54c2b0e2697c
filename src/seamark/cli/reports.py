"""`seamark audit report`: one command from a reward model and preference files to a report."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from seamark.cli.explain import AskOptions, asked, cost_rows
from seamark.cli.options import Common, Many, parse_pairs, parse_sets, recipe_folder, the_recipe
from seamark.cli.output import finish
from seamark.errors import ConfigError

if TYPE_CHECKING:
    from seamark.audit.judge import Judged
    from seamark.pipelines.audit_report import Judge
    from seamark.pipelines.recipe import SaferRecipe
    from seamark.text import Pairs


@dataclass(frozen=True)
class JudgeOptions(AskOptions):
    """The language model that gives a second opinion of the most suspicious pairs."""

    pairs: int = 100
    """Of how many pairs."""
    criterion: str = ""
    """What "better" means, a sentence; needed for groups other than safety."""


@dataclass(frozen=True)
class More:
    """Extras that cost more than the audit itself."""

    crossfit: int = 0
    """Folds of reward models that never saw a pair's prompt: at least 2, or 0 for none."""
    voting: int = 1
    """How often the folds of --crossfit are drawn anew, so that several such models vote."""
    base: str | None = None
    """What those models start from, where --model is a reward model already."""


NO_JUDGE = JudgeOptions()


def report(
    common: Annotated[Common, tyro.conf.OmitArgPrefixes], more: Annotated[More, tyro.conf.OmitArgPrefixes], model: str,
    out: Path, pairs: Many = (), group: str | None = None, dimension: Path | None = None, sae: str | None = None,
    features: str | None = None, experiment: str | None = None, remove: float = 0.04, by: str | None = None,
    show: int = 25, train: bool = False, workers: int | None = None, seed: int = 0, judge: JudgeOptions = NO_JUDGE,
) -> None:  # fmt: skip
    """Audit preference pairs: which labels are suspicious, why, and what the reward model leans on.

    Writes report.html, result.json, scores.parquet, and clean.jsonl, flipped.jsonl and removed.jsonl with the manifests
    that undo them. Run again after a break it goes on where it was. Without --config, settings are those of
    recipes/safer-local.yaml, over all pairs.

    Args:
        common: options of every command.
        more: extras that cost more.
        model: a reward model, or a base that one is trained from first: a folder, a Hub name or seamark/default.
        out: folder of the audit.
        pairs: preference pairs as group=file; repeat for more. Ratings of features need two groups. Without any, those
            of the recipe (data.pairs).
        group: the group whose labels are audited (safety).
        dimension: what its features are about instead of safety: a YAML file with name, group, question and, if wanted,
            against.
        sae: an autoencoder of the model; without it one is trained.
        features: a feature set of that autoencoder; without it one is found.
        experiment: folder of an audit experiment on these pairs; it decides the failure signs that need retraining.
        remove: share of the group taken out of clean.jsonl, e.g. 0.04.
        by: method to rank pairs by (see `audit score --list`); without it, the mean rank of margin and latents.
        show: pairs on the page.
        train: train on, even if the model is a reward model.
        workers: processes side by side, for cross-fitting.
        seed: of training, folds and ties.
        judge: a language model's second opinion.
    """
    from seamark.explain.dimension import Dimension
    from seamark.pipelines.audit_report import run_audit
    from seamark.pipelines.audit_report_options import AuditOptions
    from seamark.pipelines.recipe import check_data

    about = None if dimension is None else Dimension.load(dimension)
    recipe = _recipe(common, workers=workers, target=group or (about.group if about else None))
    files = parse_pairs(pairs) or recipe.data.pairs
    if not files:
        raise ConfigError("no pairs are given", where="--pairs",
                          fix="Write --pairs safety=safety.jsonl, or name them in the recipe (data.pairs)")  # fmt: skip
    data: dict[str, Any] = {
        "model": model, "pairs": files, "out": str(out), "group": recipe.target, "dimension": about, "train": train,
        "base": more.base, "sae": sae, "features": features, "experiment": experiment, "remove": remove, "by": by,
        "show": show, "crossfit": more.crossfit, "voting": more.voting, "judge_pairs": judge.pairs, "seed": seed,
    }  # fmt: skip
    options = check_data(AuditOptions, data, "options")
    folder, result = run_audit(recipe, options, _judge(judge, recipe.target))
    finish(result, as_json=common.json, title=f"Audit of {recipe.target}", columns=("what", "value"),
           rows=[*result_rows(result), ("report", str(folder / "report.html"))])  # fmt: skip


def _recipe(common: Common, **overrides: Any) -> SaferRecipe:
    """The recipe's settings; without a recipe those of safer-local.yaml, but over all pairs."""
    if common.config is not None:
        return the_recipe(common, **overrides)
    given = parse_sets(common.set).get("data", {})
    everything = {} if "max_pairs" in given else {"data": {"max_pairs": None}}
    local = replace(common, config=recipe_folder() / "safer-local.yaml")
    return the_recipe(local, **overrides, **everything)


def result_rows(result: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The result in a few lines."""
    from seamark.cli.output import percent
    from seamark.pipelines.audit_report_edits import NOTHING
    from seamark.pipelines.audit_report_scores import SAW_NONE
    from seamark.stats import Estimate

    rows = [(f"pairs of {g}", f"{n:,}") for g, n in result["pairs"].items()]
    for g, shares in result["wrong_share"].items():
        rows += [(f"wrong labels in {g}, {'at most' if method in SAW_NONE else 'if not learned'} ({method})",
                  percent(Estimate.model_validate(e))) for method, e in shares.items()]  # fmt: skip
    rows += [(f"pairs with a fault: {kind}", f"{n:,}") for kind, n in result["faults"].items() if n]
    failed = [c["name"] for c in result["failure_signs"] if c["holds"] is False]
    rows.append(("failure signs", "; ".join(failed) or "none of those that could be measured"))
    if result["edits"]["edited"] == 0:
        rows.append(("edits", NOTHING))
    rows += [(name, place) for name, place in result["files"].items()]
    return rows


def _judge(ask: JudgeOptions, group: str) -> Judge | None:
    """Asks the language model of the options; None where none is named.

    Raises:
        ConfigError: options for a language model and none is named, or no criterion for a group other than safety.
    """
    if ask.llm is None:
        given = [f.name.replace("_", "-") for f in fields(ask) if getattr(ask, f.name) != f.default]
        if given:
            raise ConfigError(f"--judge.{given[0]} is given, but no language model", where="--judge.llm",
                              fix="Write --judge.llm NAME, as its server calls it")  # fmt: skip
        return None
    if group != "safety" and not ask.criterion:
        raise ConfigError(f"what is a better answer in group {group!r}?", where="--judge.criterion",
                          fix="Say it in a sentence")  # fmt: skip
    return partial(_judged, ask)


def _judged(ask: JudgeOptions, some: Pairs, folder: Path) -> Judged | None:
    """Judgements of the pairs, after saying what they are expected to cost; None after a dry run."""
    from seamark.audit.judge import SAFETY, judge_estimate, judge_pairs
    from seamark.run import say

    criterion = ask.criterion or SAFETY
    with asked(ask, folder) as asking:
        if asking is None:
            return None
        expected = judge_estimate(asking.llm, some, criterion)
        told = [("pairs", f"{len(some):,}"), ("questions to ask", f"{expected.to_ask:,}"), *cost_rows(expected)]
        for what, value in told:
            say(f"  LLM judge, {what}: {value}")
        return None if ask.dry_run else judge_pairs(asking.llm, some, criterion)
