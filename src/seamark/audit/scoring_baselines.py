"""Scores that know no features: chance, length, words, reward margins, and a language model's judgement."""

from __future__ import annotations

from collections.abc import Mapping
from math import nan

import numpy as np

from seamark.audit.crossfit import crossfit_logistic
from seamark.audit.scoring_inputs import Method, ScoreInputs, T, given
from seamark.errors import DataError
from seamark.text.bow import STRENGTHS, count_differences
from seamark.text.pairs import hash_unit, plain


def _random(inputs: ScoreInputs) -> Mapping[str, float]:
    """A hash of pair id and seed, so that neither order nor company of a pair changes it."""
    return {i: hash_unit(i, inputs.seed) for i in inputs.ids}


def _margin(inputs: ScoreInputs) -> Mapping[str, float]:
    return inputs.the_scan.margins()


def _length(inputs: ScoreInputs) -> Mapping[str, float]:
    """In characters where the pairs are given, else in tokens that were scanned of the answers."""
    if inputs.pairs is not None:
        return {p.id: float(len(plain(p.chosen)) - len(plain(p.rejected))) for p in inputs.pairs}
    # Not n_tokens: of long texts the prompt is cut first, so that both sides would be as long as the model reads.
    tokens = inputs.the_scan.texts["n_response"].to_pylist()
    return {pair: float(tokens[c] - tokens[r]) for pair, (c, r) in inputs.the_scan.rows_by_pair.items()}


def _bag_of_words(inputs: ScoreInputs) -> Mapping[str, float]:
    """Cross-fitted on counts of words and word pairs, chosen − rejected; a word's rarity is not made up for."""
    pairs = given(inputs.pairs, "pairs", "--pairs").group(inputs.group)
    if len(pairs) == 0:
        raise DataError(f"no pairs in group {inputs.group!r}")
    x = count_differences(pairs)
    if x is None:
        raise DataError(f"the answers of group {inputs.group!r} share no words")
    prompts = [p.prompt_key for p in pairs]
    scores = crossfit_logistic(x, prompts, inputs.folds, inputs.seed, STRENGTHS, scale=False)
    return dict(zip(pairs.ids, scores.tolist(), strict=True))


def _joined(inputs: ScoreInputs, values: Mapping[str, T], what: str) -> dict[str, T | None]:
    """Values of the pairs of scan or pairs, by id; all of them where there is neither. `DataError` where none fits."""
    ids = list(values) if inputs.pairs is None and inputs.scan is None else inputs.ids
    if ids and not any(i in values for i in ids):
        raise DataError(f"none of the {len(ids)} pairs has {what}", fix="Give those of the same pairs; ids join them")
    return {i: values.get(i) for i in ids}


def _margin_crossfit(inputs: ScoreInputs) -> Mapping[str, float]:
    """Mean margin of reward models that never saw the pair's prompt (confident learning, arXiv 1911.00068)."""
    margins = _joined(inputs, given(inputs.margins, "margins", "--margins"), "margins")
    return {i: float(np.mean(m)) if m else nan for i, m in margins.items()}


def _voting(inputs: ScoreInputs) -> Mapping[str, float]:
    """Votes for the label less votes against it, of all votes; what the mean margin adds is less than half a vote."""
    margins = _joined(inputs, given(inputs.margins, "margins", "--margins"), "margins")
    most = max((len(m) for m in margins.values() if m), default=1)
    found = {}
    for i, m in margins.items():
        mean = float(np.mean(m)) if m else nan
        found[i] = float(np.sign(m).mean()) + mean / (1 + abs(mean)) / (2 * most) if m else nan
    return found


def _judge(inputs: ScoreInputs) -> Mapping[str, float]:
    judged = _joined(inputs, given(inputs.judged, "judgements", "--llm"), "a judgement")
    return {i: nan if value is None else float(value) for i, value in judged.items()}


METHODS = (
    Method("random", "baseline", ("pairs or scan",), "chance: a hash of id and seed", _random),
    Method("margin", "baseline", ("scan",), "reward of chosen less that of rejected, by the scanned model", _margin),
    Method("margin_crossfit", "baseline", ("margins",),
           "mean margin of reward models that never saw the pair's prompt", _margin_crossfit),
    Method("voting", "baseline", ("margins",),
           "share of such models that side with the label; ties by mean margin", _voting),
    Method("judge", "baseline", ("judged",), "a language model's judgement of the two answers", _judge),
    Method("length", "baseline", ("pairs or scan",), "how much longer chosen is than rejected", _length),
    Method("bag_of_words", "baseline", ("pairs",), "logistic regression on words, fitted on other folds of prompts",
           _bag_of_words, fitted=True),
)  # fmt: skip
