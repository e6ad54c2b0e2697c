"""What interventions do: rewards before and after, and what a language model writes with and without."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from seamark.diagnose.steering import Intervention, Suite, Units, changes
from seamark.diagnose.units import check_text
from seamark.errors import ConfigError, DataError
from seamark.features.gather import public_name
from seamark.model.generation import Generation, generate
from seamark.model.hookpoints import parse_hookpoint
from seamark.model.loading import HookedModel, LanguageModel, RewardModel
from seamark.model.reading import apply_at
from seamark.model.skipping import skipping_below
from seamark.stats import Estimate, Floats, bootstrap_by_cluster, cluster_codes
from seamark.text.pairs import Pairs, Text
from seamark.text.rendering import Rendered


@dataclass(frozen=True, eq=False)
class SteeredRewards:
    """Rewards of the same texts, both [n]."""

    before: Floats
    after: Floats

    @property
    def change(self) -> Floats:
        """[n] after − before."""
        return self.after - self.before


def steer_rewards(
    model: HookedModel, suite: Suite, interventions: Sequence[Intervention], texts: Sequence[Rendered], *,
    q: Units | None = None, batch_tokens: int = 8192,
) -> SteeredRewards:  # fmt: skip
    """Rewards of texts without and with the interventions (SAFER, arXiv 2507.00665, for one latent).

    The blocks below the lowest hookpoint are read once; their output is held in memory, one activation a token.

    Raises:
        DataError: no texts; a span that lies behind every text, whatever the other spans.
        ConfigError: the model gives no rewards; otherwise as of `changes`.
        ModelError: a text longer than the model can take; a reward that is not finite.
    """
    if not isinstance(model, RewardModel):
        raise ConfigError("this model gives no rewards", where=model.name, fix="Load it with RewardModel")
    found = changes(model, suite, interventions, q, texts)
    _check_texts(model, interventions, texts)
    if not found:
        before = model.rewards(texts, batch_tokens)
        return SteeredRewards(before, before.copy())
    lowest = min(found, key=lambda name: (parse_hookpoint(name).layer, parse_hookpoint(name).part == "block"))
    with skipping_below(model, lowest, texts, batch_tokens=batch_tokens):
        before = model.rewards(texts, batch_tokens)
        with apply_at(model, found):
            return SteeredRewards(before, model.rewards(texts, batch_tokens))


class GroupEffect(BaseModel):
    """What interventions do to the pairs of one group. Intervals resample prompts."""

    model_config = ConfigDict(frozen=True)

    group: str
    n_pairs: int
    chosen: Estimate
    """Mean change of the chosen answers' rewards."""
    rejected: Estimate
    """The same of the rejected ones."""
    margin: Estimate
    """Mean change of r(chosen) − r(rejected)."""
    accuracy_before: Estimate
    """Share of pairs whose chosen answer gets the higher reward; a tie counts one half."""
    accuracy_after: Estimate
    accuracy_change: Estimate
    """`accuracy_after` − `accuracy_before`, pair by pair."""


class SteeredPairs(BaseModel):
    """What interventions do to a reward model's judgement of pairs."""

    model_config = ConfigDict(frozen=True, protected_namespaces=())

    model: str
    interventions: tuple[Intervention, ...]
    groups: tuple[GroupEffect, ...]
    reward_std: float
    """Standard deviation of all rewards before: the measure for changes."""
    truncated_texts: int
    """Texts cut at the left to fit."""
    caveats: tuple[str, ...] = ()
    """What to bear in mind."""


def steer_pairs(
    model: HookedModel, suite: Suite, interventions: Sequence[Intervention], pairs: Pairs, *, q: Units | None = None,
    max_length: int | None = None, batch_tokens: int = 8192, seed: int = 0,
) -> SteeredPairs:  # fmt: skip
    """`steer_rewards` on both answers of every pair, group by group. Errors as there; `DataError` without pairs."""
    if len(pairs) == 0:
        raise DataError("no pairs to steer", where="steer_pairs", fix="Check the files given as pairs")
    renderer = model.renderer(max_length)
    texts = [side for pair in pairs for side in renderer.render_pair(pair)]
    found = steer_rewards(model, suite, interventions, texts, q=q, batch_tokens=batch_tokens)
    before, after = found.before.reshape(-1, 2), found.after.reshape(-1, 2)
    prompts, of_group = cluster_codes([p.prompt_key for p in pairs]), np.asarray([p.group for p in pairs])
    groups = [_effect(g, before[at], after[at], prompts[at], seed) for g in pairs.groups for at in [of_group == g]]
    return SteeredPairs(model=public_name(model), interventions=tuple(interventions), groups=tuple(groups),
                        reward_std=float(found.before.std()), truncated_texts=renderer.truncated_texts)  # fmt: skip


def _effect(group: str, before: Floats, after: Floats, prompts: NDArray[np.int64], seed: int) -> GroupEffect:
    """From rewards [pairs, 2]: chosen, rejected."""

    def mean(values: Floats) -> Estimate:
        return bootstrap_by_cluster(values, prompts, seed=seed)

    change = after - before
    wins, now = ((np.sign(r[:, 0] - r[:, 1]) + 1.0) / 2.0 for r in (before, after))
    return GroupEffect(
        group=group, n_pairs=len(before), chosen=mean(change[:, 0]), rejected=mean(change[:, 1]),
        margin=mean(change[:, 0] - change[:, 1]), accuracy_before=mean(wins), accuracy_after=mean(now),
        accuracy_change=mean(now - wins),
    )  # fmt: skip


class SteeredReward(BaseModel):
    """One conversation's reward without and with the interventions."""

    model_config = ConfigDict(frozen=True, protected_namespaces=())

    model: str
    interventions: tuple[Intervention, ...]
    tokens: int
    before: float
    after: float
    caveats: tuple[str, ...] = ()
    """What to bear in mind."""


def steer_answer(
    model: HookedModel, suite: Suite, interventions: Sequence[Intervention], prompt: Text, answer: Text, *,
    q: Units | None = None,
) -> SteeredReward:  # fmt: skip
    """The reward of one answer. Errors as of `steer_rewards`; `DataError` where the prompt is empty or the text longer
    than the model can take."""
    check_text(prompt, answer)
    rendered = _whole(model, model.renderer().render(prompt, answer, "text"))
    found = steer_rewards(model, suite, interventions, [rendered], q=q)
    return SteeredReward(model=public_name(model), interventions=tuple(interventions), tokens=len(rendered),
                         before=float(found.before[0]), after=float(found.after[0]))  # fmt: skip


class Continuation(BaseModel):
    """What a language model wrote."""

    model_config = ConfigDict(frozen=True)

    text: str
    ids: tuple[int, ...]
    stopped: Literal["end", "length", "time"]


class SteeredText(BaseModel):
    """The same prompt, gone on from without and with the interventions."""

    model_config = ConfigDict(frozen=True, protected_namespaces=())

    model: str
    interventions: tuple[Intervention, ...]
    how: Generation
    prompt_tokens: int
    before: Continuation
    after: Continuation
    differs_at: int | None
    """The first token of the answer that is another one; None: they are the same."""
    caveats: tuple[str, ...] = ()
    """What to bear in mind."""


def steer_text(
    model: HookedModel, suite: Suite, interventions: Sequence[Intervention], prompt: Text, how: Generation, *,
    q: Units | None = None,
) -> SteeredText:  # fmt: skip
    """Let a language model answer a prompt without and with the interventions, from equal draws.

    "response" means the tokens it writes, "prompt" those of the prompt's messages, spans count from the first token.

    The last new token never goes through the model, so nothing can be changed there.

    Raises:
        ConfigError: the model is no language model; "response" with one new token; otherwise as of `changes`.
        DataError: the prompt is empty, or longer than the model can take with the answer; a span that lies behind both.
        ModelError: the model cannot generate.
    """
    if not isinstance(model, LanguageModel):
        raise ConfigError("only language models generate", where=model.name, fix="Give an answer and a reward model")
    check_text(prompt)
    room = model.max_length - how.max_new_tokens
    if room < 1:
        raise ConfigError(f"{how.max_new_tokens} new tokens leave no room for a prompt: the model takes "
                          f"{model.max_length}", where=model.name, fix="Ask for fewer")  # fmt: skip
    rendered = _whole(model, model.renderer(room).render_prompt(prompt, "text"))
    found = changes(model, suite, interventions, q, [rendered])
    longest = len(rendered) + how.max_new_tokens - 1
    _check_spans(interventions, longest, f"of prompt and answer at most {longest} go through the model")
    if how.max_new_tokens == 1 and (responses := [one for one in interventions if one.where == "response"]):
        raise ConfigError("a single new token never goes through the model, so no response can be changed",
                          where=responses[0].name, fix="Ask for 2 or more, or change prompt or all")  # fmt: skip
    before = _written(model, rendered, how)
    with apply_at(model, found):
        after = _written(model, rendered, how)
    return SteeredText(model=public_name(model), interventions=tuple(interventions), how=how,
                       prompt_tokens=len(rendered), before=before, after=after,
                       differs_at=_difference(before.ids, after.ids))  # fmt: skip


def _written(model: LanguageModel, prompt: Rendered, how: Generation) -> Continuation:
    answer = generate(model, prompt, how)
    ids = tuple(answer.ids.tolist())
    return Continuation(text=model.tokenizer.decode(ids, skip_special_tokens=True), ids=ids, stopped=answer.stopped)


def _difference(one: Sequence[int], other: Sequence[int]) -> int | None:
    if one == other:
        return None
    places = (i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b)
    return next(places, min(len(one), len(other)))


def _whole(model: HookedModel, text: Rendered) -> Rendered:
    """The text itself. Raises `DataError` where its beginning was cut off: an effect on the rest is another one."""
    if text.truncated:
        n = len(text) + text.truncated
        raise DataError(f"{n:,} tokens; there is room for {len(text):,}", where=model.name, fix="Give a shorter text")
    return text


def _check_texts(model: HookedModel, interventions: Sequence[Intervention], texts: Sequence[Rendered]) -> None:
    if not texts:
        raise DataError("no texts to steer on", where="steer_rewards", fix="Give at least one")
    longest = max(texts, key=len)
    if len(longest) > model.max_length:
        raise DataError(f"{len(longest):,} tokens; the model takes {model.max_length:,}", where=longest.text_id,
                        fix="Render it with the model's renderer")  # fmt: skip
    _check_spans(interventions, len(longest), f"the longest has {len(longest)}")


def _check_spans(interventions: Sequence[Intervention], longest: int, words: str) -> None:
    """Raise `DataError` where a span lies behind the longest text: it would change nothing."""
    for one in interventions:
        behind = [] if isinstance(one.where, str) else [start for start, _ in one.where if start >= longest]
        if behind:
            raise DataError(f"no text reaches token {behind[0]}; {words}", where=one.name,
                            fix="Name places from 0 in the text with its template")  # fmt: skip
