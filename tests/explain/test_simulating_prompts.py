"""Simulations are as sure as the prompts they rest on, not as the answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from planted_contexts import on_word, plant
from seamark.explain.explaining import explain_features
from seamark.explain.simulating import simulate
from seamark.features.context_sets import ContextHalf
from seamark.features.contexts import Context

KEY = ("sae", 7)
FEATURE = plant(on_word("bread", 6.0), ["bread"])


def of_prompts(n: int) -> ContextHalf:
    """The simulate half, as if its texts were answers to `n` prompts."""

    def some(contexts: Sequence[Context]) -> tuple[Context, ...]:
        return tuple(replace(c, prompt=f"prompt {int(c.text_id[1:]) // 2 % n}") for c in contexts)

    half = FEATURE.simulate
    levels = {level: some(mine) for level, mine in half.levels.items()}
    return ContextHalf(some(half.top), levels, some(half.silent), some(half.near_miss))


def test_intervals_resample_prompts() -> None:
    explained = explain_features({KEY: FEATURE})
    many, few = (simulate({KEY: replace(FEATURE, simulate=of_prompts(n))}, explained)[0] for n in (1000, 1))
    for name in ("correlation", "accuracy"):
        one, other = getattr(few, name), getattr(many, name)
        assert other.low is not None
        assert (one.value, one.low) == (other.value, None)
        assert "belong together" in one.reason
