"""What the expensive extras of an audit would take, from the time that the audit's own stages took."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from seamark.audit.report_data import Section
from seamark.pipelines.audit_report_stages import SUMMARY
from seamark.pipelines.recipe import SaferRecipe
from seamark.run import read_json
from seamark.show.numbers import seconds

if TYPE_CHECKING:
    from seamark.pipelines.audit_report_options import AuditOptions

PASSES = 3.0
"""A training step beside a reading of the same texts: forwards, and twice as much backwards."""
FOLDS = 5
CELLS = 18
"""Retrainings of a small experiment: 3 seeds, 5 methods and the unedited run."""


class Price(Section):
    """An extra: what it adds, what it takes, whether it was asked for."""

    name: str
    adds: str
    how: str
    """The flag or the command."""
    estimate: str
    asked: bool


def prices(
    options: AuditOptions, recipe: SaferRecipe, data: Path, timings: Mapping[str, Mapping[str, float]], *,
    trained: bool, judged: bool,
) -> tuple[Price, ...]:  # fmt: skip
    """Every extra with its estimate; said to be rough where no reward model was trained here to go by."""
    training, rough = _training_seconds(timings, recipe, trained=trained)
    folds = options.crossfit or FOLDS
    draws = options.voting if options.crossfit and options.voting > 1 else 3
    most = read_json(data / SUMMARY)[options.group]["pairs"]
    base = options.base or ("" if trained else "BASE")  # a given reward model has seen the pairs, or may have
    crossfit = f"--crossfit {folds}" + (f" --base {base}" if base else "")

    def time_of(trainings: float) -> str:
        if training is None:
            return "not known: nothing was trained or read in this run to go by"
        return f"{seconds(training * trainings)}{' (a rough guess from the time of the scan)' if rough else ''}"

    return (
        Price(name="Cross-fitted margin", how=crossfit, asked=options.crossfit > 0,
              adds="Margins by reward models that never saw the pair's prompt: the model's own margin knows the label "
                   "it was taught.",
              estimate=f"{time_of(folds - 1)}: {folds} trainings on {folds - 1}/{folds} of the pairs each"),
        Price(name="Voting", how=f"{crossfit} --voting {draws}",
              asked=options.crossfit > 0 and options.voting > 1,
              adds=f"{draws} such models for every pair: how many of them side with the label.",
              estimate=f"{time_of((folds - 1) * draws)}: {folds * draws} trainings"),
        Price(name="LLM judge", how="--judge.llm NAME", asked=judged,
              adds="A language model's opinion, which knows nothing of these labels.",
              estimate=f"{min(options.judge_pairs, most):,} pairs, each asked in both orders; "
                       "`--judge.dry-run` says what it costs"),
        Price(name="Retraining experiment", how="seamark audit experiment", asked=False,
              adds="What flipping or removing these pairs does to a model: the failure signs that are open here.",
              estimate=f"{time_of(CELLS)} for {CELLS} retrainings"),
    )  # fmt: skip


def _training_seconds(
    timings: Mapping[str, Mapping[str, float]], recipe: SaferRecipe, *, trained: bool
) -> tuple[float | None, bool]:
    """(seconds of one training on all pairs, whether that is a guess)."""
    if trained and "reward" in timings:
        return timings["reward"]["seconds"], False
    if "scan" in timings:
        return timings["scan"]["seconds"] * PASSES * recipe.reward.epochs, True
    return None, True
