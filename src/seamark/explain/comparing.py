"""Segment against token simulation: the same features, texts and calls, both scores, and what each takes.

Both are scored on the texts that were answered in both: long texts fail more often by tokens, and a score on the short
ones would be compared with one on all.

Safe-SAIL (arXiv 2509.18127, METHODS §2.4) reports that segment scores follow token scores at 55 % less cost. With a
language model, tokens and money are those of its answers. Without one nothing is sent: then the tokens are counted
that each mode would send and receive, on the very prompts an LLM would get and the lexical simulator's predictions
written as an answer. What a server adds (chat template, schema) is not counted in either mode.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache

import numpy as np
from pydantic import BaseModel, ConfigDict
from scipy.stats import spearmanr

from seamark.explain.lexical import LexicalSimulator, caveat
from seamark.explain.llm import LLM
from seamark.explain.querying import PROMPT, answer_text, queries, units
from seamark.explain.records import Explanation, Key, Level, Method, Simulation
from seamark.explain.segments import segments
from seamark.explain.simulating import Predicted, SimulationConfig, Task, predictions, score, tasks
from seamark.features.context_sets import FeatureContexts
from seamark.features.contexts import Context
from seamark.stats import Estimate, bootstrap, bootstrap_of_sums

LEVELS: tuple[Level, Level] = ("segment", "token")
BATCH = 8
"""Texts in a call of the line on batching, where none is given."""
MIN_FEATURES = 3
"""Features with both scores that a rank correlation needs."""
Count = Callable[[str], int]


class _Result(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Usage(_Result):
    """What simulating the features at one level takes."""

    queries: int
    """What is asked: a feature and `batch` texts. Second tries and answers from the cache are not told apart."""
    tokens_in: int
    tokens_out: int
    cost: float | None
    """Money, in the price table's currency; None: not known, or nothing was sent."""

    @property
    def tokens(self) -> int:
        """Sent and received."""
        return self.tokens_in + self.tokens_out


class ComparedFeature(_Result):
    """One feature's scores and tokens at both levels."""

    sae: str
    latent: int
    segment: float | None
    token: float | None
    """Correlations; None: not available."""
    n_texts: int
    """Texts answered in both ways, on which both are scored."""
    segment_tokens: int | None
    token_tokens: int | None
    """Sent and received; None: they were not counted."""


class Batching(_Result):
    """What several texts in a call save; counted, not sent."""

    batch: int
    """Texts in a call."""
    segment: Usage
    token: Usage
    segment_saving: float
    token_saving: float
    """1 − tokens with the batch / tokens with one text in a call, each within its level."""


class Comparison(_Result):
    """Segment against token simulation."""

    method: Method
    model: str | None
    prompt_version: str
    measured: bool
    """Whether tokens are those of a language model's answers; else they were counted with `tokenizer`."""
    tokenizer: str | None
    batch: int
    """Texts in a call, of both levels."""
    features: tuple[ComparedFeature, ...]
    n_both: int
    """Features with both scores."""
    spearman: Estimate
    """Rank correlation of segment with token scores over features; the interval resamples features."""
    segment: Usage | None
    token: Usage | None
    """All features together; None: nothing was sent and nothing to count tokens with."""
    token_saving: Estimate
    """1 − tokens of segment mode / tokens of token mode; the interval resamples features."""
    cost_saving: Estimate
    """The same of money."""
    batching: Batching | None
    """None: there was nothing to count tokens with."""
    note: str
    """What the scores say, and what they do not."""


def compare(
    contexts: Mapping[Key, FeatureContexts],
    explanations: Mapping[Key, Explanation],
    llm: LLM | None = None,
    *,
    config: SimulationConfig | None = None,
    count: Count | None = None,
    tokenizer: str | None = None,
) -> tuple[Comparison, list[Simulation]]:
    """Simulate the same features on the same texts by segments and by tokens.

    Args:
        contexts: as `context_sets` gives them.
        explanations: of the same features.
        llm: the simulator; None: the lexical one.
        config: which texts, and how many in a call, for both levels.
        count: tokens of a text; without it, tokens that were not sent are not available.
        tokenizer: what `count` counts with, for the record.

    Returns:
        The comparison, and the simulations of both levels, segments first, scored on the same texts.
    """
    config = config or SimulationConfig()
    found = tasks(contexts, explanations, config, by_llm=llm is not None)
    said = _on_the_same(*(predictions(found, llm, level, config) for level in LEVELS))
    by_level = {level: [score(task, mine, level, config, llm) for task, mine in zip(found, said[level], strict=True)]
                for level in LEVELS}  # fmt: skip
    counted = _counts(found, config, count) if count is not None else None
    usage = counted if llm is None else _measured(found, by_level, config.batch)
    pairs = zip(by_level["segment"], by_level["token"], strict=True)
    features = tuple(_feature(segment, token, _tokens(usage, i)) for i, (segment, token) in enumerate(pairs))
    totals = {level: _total(usage[level]) if usage else None for level in LEVELS}
    both = [(f.segment, f.token) for f in features if f.segment is not None and f.token is not None]
    comparison = Comparison(
        method="lexical" if llm is None else "llm", model=llm.name if llm else None, prompt_version=PROMPT,
        measured=llm is not None, tokenizer=tokenizer, batch=config.batch, features=features, n_both=len(both),
        spearman=rank_correlation(both), segment=totals["segment"], token=totals["token"],
        token_saving=_saving(usage, lambda used: used.tokens, "tokens were not counted"),
        cost_saving=_saving(usage if llm else None, lambda used: used.cost, "nothing was sent"),
        batching=_batching(found, config, count, counted), note=caveat(explanations.values(), by_llm=llm is not None),
    )  # fmt: skip
    return comparison, [s for level in LEVELS for s in by_level[level]]


def _on_the_same(segment: Sequence[Predicted], token: Sequence[Predicted]) -> dict[Level, list[Predicted]]:
    """Predictions of both levels without those of texts that only one of them has."""
    found: dict[Level, list[Predicted]] = {level: [] for level in LEVELS}
    for pair in zip(segment, token, strict=True):
        both = pair[0].values.keys() & pair[1].values.keys()
        why = "; ".join(f"by {level}s: {p.why_failed}" for level, p in zip(LEVELS, pair, strict=True) if p.why_failed)
        for level, p in zip(LEVELS, pair, strict=True):
            values, fires = {i: p.values[i] for i in both}, {i: p.fires[i] for i in both}
            found[level].append(replace(p, values=values, fires=fires, why_failed=why))
    return found


def rank_correlation(pairs: Sequence[tuple[float, float]], *, draws: int = 1000, seed: int = 0) -> Estimate:
    """Spearman correlation with an interval from resampling pairs; not available below three, or if a side is tied."""
    if len(pairs) < MIN_FEATURES:
        return Estimate.not_available(f"{len(pairs)} features have both scores: {MIN_FEATURES} are needed", len(pairs))
    x, y = np.array(pairs, np.float64).T
    if min(np.ptp(x), np.ptp(y)) == 0:
        return Estimate.not_available("all features have the same score", len(pairs))

    def of_rows(rows: np.ndarray[tuple[int], np.dtype[np.int64]]) -> float | None:
        if min(np.ptp(x[rows]), np.ptp(y[rows])) == 0:
            return None
        return float(spearmanr(x[rows], y[rows]).statistic)

    return bootstrap(of_rows, len(pairs), draws=draws, seed=seed)


def _counts(found: Sequence[Task], config: SimulationConfig, count: Count) -> dict[Level, list[Usage]]:
    """What each feature would take at each level."""
    count = cache(count)
    return {level: [_would_take(task, level, config, count) for task in found] for level in LEVELS}


def _would_take(task: Task, level: Level, config: SimulationConfig, count: Count) -> Usage:
    """Tokens of a feature's prompts and answers, rendered and not sent."""
    if task.reason or task.explanation is None:
        return Usage(queries=0, tokens_in=0, tokens_out=0, cost=None)
    asked = list(queries(task.explanation, [units(c, level, config.longest) for c in task.texts], level, config.batch))
    values = _values(task.explanation, task.texts, level, config)
    answers = [answer_text([values[i] for i in query.texts], nested=query.nested) for query in asked]
    sent = sum(count(query.request.system) + count(query.request.user) for query in asked)
    return Usage(queries=len(asked), tokens_in=sent, tokens_out=sum(map(count, answers)), cost=None)


def _values(
    explanation: Explanation, texts: Sequence[Context], level: Level, config: SimulationConfig
) -> list[list[int]]:
    """What the lexical simulator would answer; zeros, as long, where there is no lexicon."""
    simulator = LexicalSimulator(explanation) if explanation.lexicon else None
    found = []
    for context in texts:
        levels = simulator.levels(context.tokens) if simulator else [0.0] * len(context.tokens)
        spans = segments(context.tokens, config.longest)
        if level == "token":
            found.append([round(v) for v in levels])
        else:
            found.append(simulator.segments(levels, spans) if simulator else [0] * len(spans))
    return found


def _measured(
    found: Sequence[Task], simulations: Mapping[Level, Sequence[Simulation]], batch: int
) -> dict[Level, list[Usage]]:
    """What each feature took at each level, by the answers."""
    n_queries = [len(range(0, len(task.texts), batch)) for task in found]
    return {
        level: [Usage(queries=n, tokens_in=s.tokens_in, tokens_out=s.tokens_out, cost=s.cost)
                for n, s in zip(n_queries, simulations[level], strict=True)]
        for level in LEVELS
    }  # fmt: skip


def _total(usage: Sequence[Usage]) -> Usage:
    costs = [u.cost for u in usage if u.tokens]
    return Usage(
        queries=sum(u.queries for u in usage), tokens_in=sum(u.tokens_in for u in usage),
        tokens_out=sum(u.tokens_out for u in usage),
        cost=None if None in costs or not costs else math.fsum(c for c in costs if c is not None),
    )  # fmt: skip


def _tokens(usage: Mapping[Level, Sequence[Usage]] | None, i: int) -> tuple[int, int] | tuple[None, None]:
    return (usage["segment"][i].tokens, usage["token"][i].tokens) if usage else (None, None)


def _feature(segment: Simulation, token: Simulation, tokens: tuple[int, int] | tuple[None, None]) -> ComparedFeature:
    return ComparedFeature(
        sae=segment.sae, latent=segment.latent, segment=segment.correlation.value, token=token.correlation.value,
        n_texts=segment.n_texts, segment_tokens=tokens[0], token_tokens=tokens[1],
    )  # fmt: skip


def _saving(
    usage: Mapping[Level, Sequence[Usage]] | None, of: Callable[[Usage], float | None], why_not: str
) -> Estimate:
    """1 − sum of segment mode / sum of token mode, over features that took something in both."""
    if usage is None:
        return Estimate.not_available(why_not)
    rows = [(of(s), of(t)) for s, t in zip(usage["segment"], usage["token"], strict=True) if s.tokens and t.tokens]
    if any(None in row for row in rows):
        return Estimate.not_available("the price is not known", len(rows))
    if not rows:
        return Estimate.not_available("no feature could be simulated")
    sums = np.array(rows, np.float64).T
    return bootstrap_of_sums(lambda total: 1 - float(total[0] / total[1]) if total[1] else None, sums,
                             np.arange(len(rows)), undefined="it cost nothing")  # fmt: skip


def _batching(
    found: Sequence[Task], config: SimulationConfig, count: Count | None,
    counted: Mapping[Level, Sequence[Usage]] | None,
) -> Batching | None:  # fmt: skip
    """Several texts in a call against one; both counted, so that nothing but the batch differs."""
    if count is None or counted is None:
        return None
    batch = config.batch if config.batch > 1 else BATCH
    many = _counts(found, config.model_copy(update={"batch": batch}), count)
    one = counted if config.batch == 1 else _counts(found, config.model_copy(update={"batch": 1}), count)
    total = {level: (_total(many[level]), _total(one[level])) for level in LEVELS}
    if not total["token"][1].tokens:
        return None
    savings = {f"{level}_saving": 1 - a.tokens / b.tokens for level, (a, b) in total.items()}
    return Batching(batch=batch, segment=total["segment"][0], token=total["token"][0], **savings)
