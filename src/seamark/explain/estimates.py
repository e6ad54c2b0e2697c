"""What asking is expected to cost, and the most it can: a dry run."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict


class CostEstimate(BaseModel):
    """What a set of requests is expected to take: a dry run."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    requests: int
    cached: int
    """Requests whose answers (or final failures) are known: free."""
    to_ask: int
    tokens_in: int
    """Expected tokens to be sent."""
    tokens_out: int
    """Expected tokens to be received."""
    cost: float | None
    """Expected money; None: not known."""
    once_cost: float | None
    """The most that asking everything once can cost: every byte a token, every answer as long as it may be."""
    worst_cost: float | None
    """The most that all of it can cost, all tries and repetitions billed: if nothing else runs or is killed."""
    tries: int
    """Tries of a question that `worst_cost` allows for, until its answer is usable."""
    sends: int
    """Times that each try may be sent, and billed, because no whole answer came."""
    spent: float | None
    """What the run has spent before, at most; None: not known."""
    spent_reason: str
    """Why that is not known."""
    budget_once: float | None
    """`spent` + `once_cost`: a budget that is enough if no question is asked twice; None: not known."""
    budget: float | None
    """`spent` + `worst_cost`: a budget that is enough whatever fails; None: not known."""
    currency: str
    reason: str
    """Why there is no cost; empty where there is one."""
    basis: str
    """What the expectation rests on, in words."""

    def __add__(self, other: CostEstimate) -> CostEstimate:
        """Both sets of requests, which have none in common, after the same spending."""
        sums = {name: plus(getattr(self, name), getattr(other, name)) for name in _SUMMED}
        budgets = {name: plus(self.spent, sums[cost]) for name, cost in _BUDGETS.items()}
        basis = self.basis if self.basis == other.basis else f"{self.basis}; {other.basis}"
        return self.model_copy(update={**sums, **budgets, "basis": basis})


_SUMMED = ("requests", "cached", "to_ask", "tokens_in", "tokens_out", "cost", "once_cost", "worst_cost")
_BUDGETS = {"budget_once": "once_cost", "budget": "worst_cost"}


def plus(one: Any, two: Any) -> Any:
    """The sum of two amounts; None where one is not known."""
    return None if one is None or two is None else one + two
