"""Signs that an audit should not be trusted, or that data or model are at fault: each with its number and advice.

Those that need retraining (SAFER, arXiv 2507.00665: what flips cost) cannot be had from one pass of a model. They are
listed all the same, as not available, with the command that measures them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from seamark.audit.overlap import Overlap
from seamark.audit.report_data import Check, Checks, Missing
from seamark.audit.shortcuts import Shortcuts
from seamark.stats import Estimate

ABOVE_WORDS = 0.03
LENGTH = 0.3
REFUSAL = 0.2
OUTSIDE = 1 / 3
FVU = 0.5
CONTRADICTIONS = 0.01
EXPERIMENT = "run `seamark audit experiment`"


def failure_signs(
    *, group: str, others: list[str], above_words: Estimate, features_agree: Estimate, overlap: Overlap | Missing,
    shortcuts: Shortcuts | Missing, fvu: Estimate, contradictions: Estimate, judge: str = "margin",
    lost: Mapping[tuple[str, float], Estimate] | None = None,
) -> Checks:  # fmt: skip
    """All signs, those that could be measured first.

    Args:
        above_words: share of labels that `judge` sides with, less that of a bag of words (out-of-fold).
        features_agree: share of labels that the feature set sides with.
        fvu: variance of held-out activations that the autoencoder leaves unexplained.
        contradictions: share of the group's pairs that another contradicts.
        lost: {(group, share flipped): accuracy that SAFER's flips cost it}, from an experiment on these pairs, if any.
        judge: the reward model's `margin`, or the out-of-fold method that stands for a model trained on these pairs.
    """
    own = "" if judge == "margin" else (
        f" Measured by `{judge}`, fitted on other prompts: the reward model was trained on these labels and sides with "
        "them whatever it knows.")  # fmt: skip
    checks = [
        _check("The reward model knows more than words", f"at least {100 * ABOVE_WORDS:.0f} points above them",
               above_words, "points", above_words.value is not None and above_words.value >= ABOVE_WORDS,
               f"Less: the labels can be told from vocabulary alone, and what is found here may be words.{own}"),
        _check("The features side with the labels", "interval above one half", features_agree, "share",
               (features_agree.low or 0.0) > 0.5,
               "If not, extraction failed: another layer (sae.hookpoint), a longer training or more pairs. Features "
               "found on these pairs were chosen by these labels, so this is the least they must do."),
        *_of_shortcuts(group, shortcuts),
        _outside(group, others, overlap),
        _check("The autoencoder reconstructs", f"at most {FVU:g} of the variance left", fvu, "number",
               fvu.value is not None and fvu.value <= FVU,
               "More: features miss much of what the model knows. More latents, a larger k, a longer training."),
        _check("Few pairs contradict each other", f"at most {100 * CONTRADICTIONS:.0f} %", contradictions, "share",
               contradictions.value is not None and contradictions.value <= CONTRADICTIONS,
               "More: annotators disagree. Settle these first, they are listed under the data's faults."),
        *_after_retraining(group, others, lost),
    ]  # fmt: skip
    return Checks(intro="A sign that fails says where to look before the list of pairs is believed. Signs that need "
                  "retraining or people are open until they are measured.", checks=tuple(checks))  # fmt: skip


def _check(name: str, rule: str, value: Estimate, unit: str, holds: bool, note: str) -> Check:
    decided = holds if value.available else None
    return Check(name=name, rule=rule, value=value, unit=unit, holds=decided, note=note)


def _of_shortcuts(group: str, found: Shortcuts | Missing) -> list[Check]:
    if isinstance(found, Missing):
        length = refusal = Estimate.not_available(found.missing)
    else:
        length, refusal = found.of(group).length_correlation, found.of(group).refusal.gap
    return [
        _check("Margins do not follow length", f"correlation between −{LENGTH:g} and +{LENGTH:g}", length, "signed",
               abs(length.value or 0.0) <= LENGTH,
               "More: balance lengths, or read the ranking by `safer_length`, which takes length out."),
        _check("Margins do not follow refusals", f"accuracies within {100 * REFUSAL:.0f} points", refusal, "points",
               abs(refusal.value or 0.0) <= REFUSAL,
               "More: the model rewards refusing as such. Add pairs in which the refusal is the worse answer."),
    ]  # fmt: skip


def _outside(group: str, others: list[str], found: Overlap | Missing) -> Check:
    other = others[0] if others else "another group"
    value = Estimate.not_available(found.missing) if isinstance(found, Missing) else found.outside
    return _check(f"The features are about {group}", f"at most {100 * OUTSIDE:.0f} % of their activation in {other}",
                  value, "share", value.value is not None and value.value <= OUTSIDE,
                  f"More: edits by these features will move {other} too. Ask for a higher rating "
                  "(features.min_rating).")  # fmt: skip


def _after_retraining(
    group: str, others: list[str], lost: Mapping[tuple[str, float], Estimate] | None
) -> list[Check]:  # fmt: skip
    """Signs named by SAFER and by the first checks of its ratings."""
    flips, ratings = Estimate.not_available(EXPERIMENT), Estimate.not_available("run `seamark ratings export`")

    def cost(of: str, rate: float, rule: str, holds: Callable[[float], bool], note: str) -> Check:
        none = flips if lost is None else Estimate.not_available(f"the experiment has no flips of {100 * rate:g} %")
        value = (lost or {}).get((of, rate), none)
        decided = value.value is not None and holds(value.value)
        return _check(f"{of} lost at {100 * rate:g} % flips", rule, value, "points", decided, note)

    checks = [
        cost(group, 0.05, "at least 5 points", lambda v: v >= 0.05,
             "Less: extraction failed, or the wrong layer was read."),
        cost(group, 0.005, "at least 8 points", lambda v: v >= 0.08, "SAFER's first check of its features."),
    ]  # fmt: skip
    for other in others:
        checks += [
            cost(other, 0.05, "at most 10 points", lambda v: v <= 0.1, f"More: the features overlap with {other}."),
            cost(other, 0.005, "within 2 points", lambda v: abs(v) <= 0.02, "SAFER's first check of its features."),
        ]
    return [
        *checks,
        _check("Layers compared", "this one is the best of four", flips, "share", False,
               "With layers 1/4, 1/2, 3/4 and the last, as an ablation."),
        _check("People agree with the ratings", "more than 80 % of 100 features", ratings, "share", False,
               "Below 70 %, the ratings of these features should not be used."),
    ]  # fmt: skip
