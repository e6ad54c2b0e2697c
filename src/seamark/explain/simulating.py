"""Simulating features: where an explanation says that its feature fires, on texts it was not made from.

Safe-SAIL's second half (arXiv 2509.18127, METHODS §2.4), by a language model or, for lexical explanations, without one.
The texts are of the simulate half, as many with the feature as without, and of those as many near misses as can be had.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, Field

from seamark.explain.lexical import LexicalSimulator
from seamark.explain.querying import PROMPT, Query, check_queries, queries, units
from seamark.explain.records import Explanation, Key, Level, Method, Simulation
from seamark.explain.scoring import DRAWS, correlation, detection, prompts, segment_truth, token_levels
from seamark.explain.segments import LONGEST, segments
from seamark.features.context_sets import ContextHalf, FeatureContexts
from seamark.features.contexts import Context
from seamark.stats import Estimate

if TYPE_CHECKING:
    from seamark.explain.llm import LLM, Answer

NOT_EXPLAINED = "the feature was not explained"
NEEDS_LLM = "the explanation is a language model's, and only such can simulate it"
ANSWERED_SHARE = 0.5
"""Share of a feature's texts that must be answered for a score."""


class SimulationConfig(BaseModel):
    """On what an explanation is tested."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    n_texts: int = Field(default=40, ge=2)
    """Texts of a feature, at most: half with it, a quarter silent, a quarter near misses."""
    min_texts: int = Field(default=5, ge=1)
    """Texts with the feature, and as many without, that there must be."""
    longest: int = Field(default=LONGEST, ge=1)
    """Tokens of a segment, at most."""
    tau: float = Field(default=0.0, ge=0)
    """A segment fires where z / Q_f exceeds this."""
    batch: int = Field(default=1, ge=1)
    """Texts in a call."""
    draws: int = Field(default=DRAWS, ge=2)
    """Bootstrap draws of the intervals."""


@dataclass(frozen=True)
class Task:
    """One feature to simulate: its explanation and the texts, or why it cannot be."""

    key: Key
    explanation: Explanation | None
    texts: tuple[Context, ...] = ()
    reason: str = ""
    """Why it cannot be simulated; empty where it can."""


@dataclass(frozen=True)
class Predicted:
    """What a simulator says of one feature."""

    values: Mapping[int, Sequence[float]]
    """{text: a value for each unit}; texts without a usable answer are missing."""
    fires: Mapping[int, bool]
    """{text: whether the feature fires there at all}."""
    n_failed: int = 0
    why_failed: str = ""
    tokens_in: int = 0
    tokens_out: int = 0
    cost: float | None = 0.0


def simulate(
    contexts: Mapping[Key, FeatureContexts],
    explanations: Mapping[Key, Explanation],
    llm: LLM | None = None,
    *,
    level: Level = "segment",
    config: SimulationConfig | None = None,
) -> list[Simulation]:
    """Score explanations by how well a simulator predicts firing from them, on the simulate half of the contexts.

    Args:
        contexts: as `context_sets` gives them.
        explanations: of the same features.
        llm: the simulator; None: the lexical one, for lexical explanations.
        level: predict 0/1 for segments of up to `config.longest` tokens, or 0-10 for tokens.
        config: which texts, how many in a call.

    Returns:
        One for every feature of `contexts` and then of `explanations` alone. The score is not available, with the
        reason, where there is no explanation, no Q_f, too few texts with or without the feature, fewer than half of the
        texts were answered, or truth or prediction is constant.

    Raises:
        BudgetError: the budget is spent, and the client was told to raise then.
    """
    config = config or SimulationConfig()
    found = tasks(contexts, explanations, config, by_llm=llm is not None)
    predicted = predictions(found, llm, level, config)
    return [score(task, mine, level, config, llm) for task, mine in zip(found, predicted, strict=True)]


def predictions(found: Sequence[Task], llm: LLM | None, level: Level, config: SimulationConfig) -> list[Predicted]:
    """What the simulator says of each task; nothing where the task has a reason.

    Raises:
        BudgetError: the budget is spent, and the client was told to raise then.
    """
    if llm is None:
        return [_lexically(task, level, config) for task in found]
    asked = {task.key: list(_queries(task, level, config)) for task in found}
    flat = [query for some in asked.values() for query in some]
    answers = iter(llm.ask_all([q.request for q in flat], check_queries(flat), progress_title=f"Simulate {level}s"))
    return [_read([(query, next(answers)) for query in asked[task.key]]) for task in found]


def for_simulation(
    features: Iterable[FeatureContexts], config: SimulationConfig | None = None
) -> dict[Key, FeatureContexts]:
    """Contexts with those texts alone that `simulate` uses: of features that come one by one, a fraction of the memory.
    Scores are the same."""
    most = (config or SimulationConfig()).n_texts // 2
    found = {}
    for feature in features:
        firing, quiet = held_out(feature, most)
        half = ContextHalf(top=tuple(firing), silent=tuple(quiet))
        found[feature.sae_id, feature.latent] = replace(feature, explain=ContextHalf(), simulate=half)
    return found


def simulation_queries(
    contexts: Mapping[Key, FeatureContexts], explanations: Mapping[Key, Explanation], *, level: Level = "segment",
    config: SimulationConfig | None = None,
) -> list[Query]:  # fmt: skip
    """What `simulate` asks an LLM; for estimates of the cost."""
    config = config or SimulationConfig()
    found = tasks(contexts, explanations, config, by_llm=True)
    return [query for task in found for query in _queries(task, level, config)]


def tasks(
    contexts: Mapping[Key, FeatureContexts], explanations: Mapping[Key, Explanation], config: SimulationConfig, *,
    by_llm: bool,
) -> list[Task]:  # fmt: skip
    """Every feature with the texts it is simulated on, or with the reason why it cannot be."""
    keys = dict.fromkeys([*contexts, *explanations])
    return [_task(key, contexts.get(key), explanations.get(key), config, by_llm=by_llm) for key in keys]


def _task(
    key: Key, contexts: FeatureContexts | None, explanation: Explanation | None, config: SimulationConfig, *,
    by_llm: bool,
) -> Task:  # fmt: skip
    task = Task(key, explanation)
    if explanation is None:
        return replace(task, reason=NOT_EXPLAINED)
    if contexts is None:
        return replace(task, reason="there are no contexts of the feature")
    if contexts.q is None:
        return replace(task, reason=contexts.reason)
    if explanation.text is None:
        return replace(task, reason=f"no explanation: {explanation.reason}")
    if not by_llm and not explanation.lexicon:
        return replace(task, reason=NEEDS_LLM)
    firing, quiet = held_out(contexts, config.n_texts // 2)
    for name, some in (("with the feature", firing), ("without the feature", quiet)):
        if len(some) < config.min_texts:
            return replace(task, reason=f"fewer than {config.min_texts} held-out texts {name}")
    n = min(len(firing), len(quiet))
    return replace(task, texts=(*firing[:n], *quiet[:n]))


def held_out(contexts: FeatureContexts, most: int) -> tuple[list[Context], list[Context]]:
    """Up to `most` texts of the simulate half with the feature, and as many without it.

    With: one of each level from 10 down, then a second one, and so on, then the strongest. Without: silent ones and
    near misses in turn. Within each kind, those come first that the contexts have first.
    """
    half = contexts.simulate
    by_level = [half.levels.get(level, ()) for level in sorted(half.levels, reverse=True)]
    firing = [c for turn in zip_longest(*by_level) for c in turn if c is not None]
    quiet = [c for turn in zip_longest(half.silent, half.near_miss) for c in turn if c is not None]
    firing = list({c.text_id: c for c in (*firing, *half.top) if c.max_activation > 0}.values())
    return firing[:most], list({c.text_id: c for c in quiet}.values())[:most]


def _lexically(task: Task, level: Level, config: SimulationConfig) -> Predicted:
    if task.reason or task.explanation is None:
        return Predicted({}, {})
    simulator = LexicalSimulator(task.explanation)
    levels = {i: simulator.levels(c.tokens) for i, c in enumerate(task.texts)}
    fires = {i: simulator.fires(mine) for i, mine in levels.items()}
    if level == "token":
        return Predicted(levels, fires)
    values = {i: simulator.segments(mine, segments(task.texts[i].tokens, config.longest))
              for i, mine in levels.items()}  # fmt: skip
    return Predicted(values, fires)


def _queries(task: Task, level: Level, config: SimulationConfig) -> list[Query]:
    if task.reason or task.explanation is None:
        return []
    texts = [units(c, level, config.longest) for c in task.texts]
    return list(queries(task.explanation, texts, level, config.batch))


def _read(answered: Sequence[tuple[Query, Answer]]) -> Predicted:
    """The answers of one feature's calls. What failed has no values; it is counted."""
    values: dict[int, list[int]] = {}
    failed: list[str] = []
    for query, answer in answered:
        found = query.read(answer.data) if answer.data is not None else answer.failed
        if isinstance(found, str):
            failed.append(found)
        else:
            values |= dict(zip(query.texts, found, strict=True))
    costs = [answer.cost for _, answer in answered]
    return Predicted(
        values, {i: max(mine, default=0) > 0 for i, mine in values.items()}, len(failed), failed[0] if failed else "",
        sum(a.tokens_in for _, a in answered), sum(a.tokens_out for _, a in answered),
        None if None in costs else sum(c for c in costs if c is not None),
    )  # fmt: skip


def score(task: Task, predicted: Predicted, level: Level, config: SimulationConfig, llm: LLM | None) -> Simulation:
    """Score what a simulator said of a feature, on the texts that have an answer."""
    method: Method = "llm" if llm else "lexical"
    answered = sorted(predicted.values)
    truth = [_truth(task.texts[i], level, config) for i in answered]
    reason = task.reason
    if not reason and len(answered) < ANSWERED_SHARE * len(task.texts):
        reason = f"fewer than half of the texts were answered ({predicted.why_failed})"
    if reason:
        alike = accuracy = Estimate.not_available(reason)
    else:
        clusters = prompts([task.texts[i] for i in answered])
        guess = [predicted.values[i] for i in answered]
        alike = correlation(truth, guess, draws=config.draws, clusters=clusters)
        fires = [any(v is not None and v > 0 for v in mine) for mine in truth]
        accuracy = detection(fires, [predicted.fires[i] for i in answered], draws=config.draws, clusters=clusters)
    return Simulation(
        sae=task.key[0], latent=task.key[1], level=level, method=method, model=llm.name if llm else None,
        prompt_version=PROMPT if llm else "", correlation=alike, accuracy=accuracy,
        n_texts=len(answered), n_units=sum(v is not None for mine in truth for v in mine),
        n_failed=predicted.n_failed, tokens_in=predicted.tokens_in, tokens_out=predicted.tokens_out,
        cost=predicted.cost,
    )  # fmt: skip


def _truth(context: Context, level: Level, config: SimulationConfig) -> list[int | None]:
    if level == "token":
        return token_levels(context)
    return segment_truth(context, segments(context.tokens, config.longest), config.tau)
