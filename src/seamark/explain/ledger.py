"""The ledger: tokens and money of every call, and the budget that holds before a call is made.

The books lie in the answer cache's file, so they outlive the process. Before a request is sent, the most it can cost
is *held*; the answer turns that into what it did cost, a refusal gives it back. A call that ended without an answer
but may have been billed (time-out, cut connection, crash) keeps its hold: it counts against the budget as if it had
cost the most it could. So the budget of a run holds over restarts and over processes that share the file. It counts
tokens whatever they were paid in, and refuses to count money it cannot: calls without a known price (they get the
present table's, where it has one), and money in another currency.
"""

from __future__ import annotations

import enum
import sqlite3
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from seamark.errors import RunError
from seamark.explain.answers import AnswerCache, Stored, T, find, is_alive
from seamark.explain.prices import NANO, PriceTable
from seamark.explain.totals import add, unpriced, why_unknown

CRASH = "the process that asked has ended"
"""Reason of calls that were in flight when their process died."""


class BudgetError(RunError):
    """The budget does not allow the next request."""


class Verdict(enum.Enum):
    """Why a call may not be made now."""

    ELSEWHERE = "another process is asking the same"
    WAIT = "does not fit beside what is held for requests in flight"
    OVER = "does not fit into the budget"
    UNKNOWN = "nobody knows what the run has spent, so no budget in money can hold"


@dataclass(frozen=True)
class Limits:
    """A run's budget; None: no limit."""

    nanos: int | None = None
    tokens: int | None = None


@dataclass(frozen=True)
class Call:
    """A request that is about to be sent, with the most it can take."""

    session: int
    run: str
    key: str
    stage: str
    model: str
    currency: str
    bytes_in: int
    """UTF-8 bytes of its texts."""
    held_tokens: int
    held_nanos: int | None
    """None: the price is not known."""
    max_tokens: int
    """Most tokens of the answer."""


def begin(connection: sqlite3.Connection, call: Call, limits: Limits) -> Stored | int | Verdict:
    """Look the answer up, else enter the call into the books and hold its worst case: in one step, for all processes.

    Returns:
        The stored answer; or the number of the call, which may now be sent; or why not.
    """
    if (stored := find(connection, call.key, call.max_tokens)) is not None:
        return stored
    if _asked_elsewhere(connection, call.key):
        return Verdict.ELSEWHERE
    if limits.nanos is not None and why_unknown(connection, call.run, call.currency):
        return Verdict.UNKNOWN
    if not _fits(connection, call, limits, held=True):
        reap(connection)
        return Verdict.WAIT if _fits(connection, call, limits, held=False) else Verdict.OVER
    number = connection.execute(
        "INSERT INTO calls (session, run, key, stage, model, state, at, bytes_in, held_tokens, held_nanos, currency)"
        " VALUES (?, ?, ?, ?, ?, 'started', ?, ?, ?, ?, ?)",
        (call.session, call.run, call.key, call.stage, call.model, time.time(), call.bytes_in, call.held_tokens,
         call.held_nanos, call.currency),
    ).lastrowid  # fmt: skip
    add(connection, call.run, call.currency, "held", call.held_tokens, call.held_nanos or 0)
    return int(number or 0)


def settle_answered(connection: sqlite3.Connection, number: int, answer: Stored) -> None:
    """The call brought an answer: what was held becomes what it cost. Uncounted tokens leave the hold as it was, and so
    does a cost that the asker does not know, where another process has given the call a price since (`price_late`)."""
    run, currency, held_tokens, held_nanos = _release(connection, number)
    if answer.counted and (answer.nanos is not None or held_nanos is None):
        add(connection, run, currency, "", answer.tokens_in + answer.tokens_out, answer.nanos or 0)
    else:
        add(connection, run, currency, "maybe", held_tokens, held_nanos or 0)
    connection.execute(
        "UPDATE calls SET state = 'answered', reason = ?, seconds = ?, tokens_in = ?, tokens_out = ?, nanos = ?,"
        " counted = ? WHERE id = ?",
        (answer.failure, answer.seconds, answer.tokens_in, answer.tokens_out, answer.nanos, answer.counted, number),
    )


def settle(
    connection: sqlite3.Connection, number: int, state: Literal["refused", "lost", "unsent"], reason: str = ""
) -> None:
    """The call brought no answer.

    Args:
        state: `refused`: the server said no, nothing was billed; `lost`: nobody knows, what was held stays counted;
            `unsent`: it was not made, and leaves no trace.
    """
    run, currency, held_tokens, held_nanos = _release(connection, number)
    if state == "unsent":
        connection.execute("DELETE FROM calls WHERE id = ?", (number,))
        return
    if state == "lost":
        add(connection, run, currency, "maybe", held_tokens, held_nanos or 0)
    connection.execute("UPDATE calls SET state = ?, reason = ? WHERE id = ?", (state, reason, number))


def reap(connection: sqlite3.Connection) -> int:
    """Calls whose process has died become `lost`; returns how many did."""
    rows = connection.execute(
        "SELECT c.id, s.host, s.pid, s.born, c.at, s.longest_s FROM calls c JOIN sessions s ON c.session = s.id"
        " WHERE c.state = 'started'"
    ).fetchall()
    dead = [row[0] for row in rows if not is_alive(*row[1:])]
    for number in dead:
        settle(connection, number, "lost", CRASH)
    return len(dead)


def count_hits(connection: sqlite3.Connection, session: int, run: str, model: str, hits: Iterable[Hit]) -> None:
    """Enter answers that came from the cache."""
    for hit in hits:
        connection.execute(
            "INSERT INTO hits VALUES (?, ?, ?, ?, ?, 1, ?, ?, ?)"
            " ON CONFLICT (session, stage, model, currency) DO UPDATE SET n = n + 1,"
            " tokens_in = tokens_in + excluded.tokens_in, tokens_out = tokens_out + excluded.tokens_out,"
            " nanos = nanos + excluded.nanos",
            (
                session,
                run,
                hit.stage,
                model,
                hit.answer.currency,
                hit.answer.tokens_in,
                hit.answer.tokens_out,
                hit.answer.nanos,
            ),
        )


@dataclass(frozen=True)
class Hit:
    """An answer that came from the cache, with what it cost when it was paid."""

    stage: str
    answer: Stored


def _asked_elsewhere(connection: sqlite3.Connection, key: str) -> bool:
    rows = connection.execute(
        "SELECT c.id, s.host, s.pid, s.born, c.at, s.longest_s FROM calls c JOIN sessions s ON c.session = s.id"
        " WHERE c.state = 'started' AND c.key = ?",
        (key,),
    ).fetchall()
    for number, *session in rows:
        if is_alive(*session):
            return True
        settle(connection, number, "lost", CRASH)
    return False


def _fits(connection: sqlite3.Connection, call: Call, limits: Limits, *, held: bool) -> bool:
    """Whether the call's worst case fits beside all that is spent, perhaps spent and (if asked) held.

    Money is summed over all currencies too: a limit of money is only looked at where there is one (`why_unknown`).
    """
    nanos, tokens = connection.execute(
        "SELECT coalesce(sum(nanos + maybe_nanos + held_nanos * :held), 0),"
        " coalesce(sum(tokens + maybe_tokens + held_tokens * :held), 0) FROM totals WHERE run = :run",
        {"held": held, "run": call.run},
    ).fetchone()
    money_fits = limits.nanos is None or nanos + (call.held_nanos or 0) <= limits.nanos
    return money_fits and (limits.tokens is None or tokens + call.held_tokens <= limits.tokens)


def _release(connection: sqlite3.Connection, number: int) -> tuple[str, str, int, int | None]:
    """Give back what a call holds; returns its run, currency, tokens and money held (None: its price is not known)."""
    run, currency, tokens, nanos, state = connection.execute(
        "SELECT run, currency, held_tokens, held_nanos, state FROM calls WHERE id = ?", (number,)
    ).fetchone()
    # Another process may have given this call up as lost, and the answer came all the same.
    add(connection, run, currency, "maybe" if state == "lost" else "held", -tokens, -(nanos or 0))
    return run, currency, tokens, nanos


class LedgerRow(BaseModel):
    """What one stage took of one model in a run."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    stage: str
    model: str
    currency: str
    answered: int
    """Answers that were paid, usable or not."""
    unusable: int
    """Of these, those that were refused, cut off or unparseable."""
    cached: int
    """Answers that came from the cache instead."""
    refused: int
    """Calls that the server turned down unbilled (429, 5xx, bad requests)."""
    lost: int
    """Calls without an answer that may have been billed."""
    tokens_in: int
    tokens_out: int
    cost: float | None
    """Money; None: not known."""
    cost_reason: str
    """Why the cost is not known."""
    cached_tokens: int
    """Tokens, sent and received, of the answers that came from the cache."""
    cached_cost: float | None
    """What these cost when they were paid; None: not known."""
    lost_cost: float | None
    """The most that lost calls can have cost; None: not known."""


class Ledger:
    """The books of a run, in the file of its answer cache.

    Args:
        cache: where they are kept.
        prices: what tokens cost; None: the packaged table.
        run: names what shares a budget: a restart under the same name goes on counting, another name begins at 0.
    """

    COLUMNS = ("stage", "model", "paid", "cached", "refused", "lost", "tokens in", "tokens out", "cost")

    def __init__(self, cache: AnswerCache, prices: PriceTable | None = None, run: str = "default") -> None:
        self.cache, self.run = cache, run
        self.prices = PriceTable.load() if prices is None else prices

    def rows(self) -> list[LedgerRow]:
        """A row per stage, model and currency, by first use."""
        self.cache.transact([reap], durable=False)
        calls = {row[:3]: row for row in self.cache.select(_CALLS, (self.run,))}
        hits = {row[:3]: row[3:] for row in self.cache.select(_HITS, (self.run,))}
        return [self._row(calls.get(of, (*of, *[0] * 9)), hits.get(of, (0, 0, 0))) for of in {**calls, **hits}]

    @staticmethod
    def _row(call: Sequence[Any], hit: Sequence[Any]) -> LedgerRow:
        (stage, model, currency, answered, unusable, refused, lost, tokens_in, tokens_out, nanos, unpriced,
         lost_nanos) = call  # fmt: skip
        reason = f"price or token count not known for {unpriced:,} of {answered:,} answers" if unpriced else ""
        return LedgerRow.model_validate({
            "stage": stage, "model": model, "currency": currency, "answered": answered, "unusable": unusable,
            "cached": hit[0], "refused": refused, "lost": lost, "tokens_in": tokens_in, "tokens_out": tokens_out,
            "cost": None if unpriced else _money(nanos), "cost_reason": reason, "cached_tokens": hit[1],
            "cached_cost": _money(hit[2]), "lost_cost": _money(lost_nanos),
        })  # fmt: skip

    def table(self) -> list[tuple[str, ...]]:
        """The rows as text, in the order of `COLUMNS`."""
        return [
            (r.stage, r.model, f"{r.answered:,}", f"{r.cached:,}", f"{r.refused:,}", f"{r.lost:,}", f"{r.tokens_in:,}",
             f"{r.tokens_out:,}", "not available" if r.cost is None else f"{r.cost:.4f} {r.currency}")
            for r in self.rows()
        ]  # fmt: skip

    def notes(self) -> list[str]:
        """What the numbers do not say by themselves, in sentences."""
        self.cache.transact([reap], durable=False)
        found = []
        for crash, n, nanos, currency in self.cache.select(_LOST, (CRASH, self.run)):
            money = "" if nanos is None else f" (at most {nanos / NANO:.4f} {currency})"
            what = "were in flight when their process ended" if crash else "ended without a whole answer"
            found.append(f"{n:,} requests {what}; they may have been billed{money}")
        found += [f"{row.stage}, {row.model}: {row.cost_reason}" for row in self.rows() if row.cost_reason]
        return found + [f"what was spent is not available: {why}" for why in (self.why_not_known(),) if why]

    def spent(self) -> float | None:
        """Money of the run so far, in the table's currency, with the most that lost and open calls may cost.

        None where that is not known: `why_not_known` says why.
        """
        return None if self.why_not_known() else self._known() / NANO

    def why_not_known(self) -> str:
        """Why `spent` is None (calls without a price, money in other currencies), and what is known; "" where not."""
        self.cache.transact([reap], durable=False)
        why = self._look(lambda c: why_unknown(c, self.run, self.prices.currency, self.prices))
        return why and f"{why}; beside it at most {self._known() / NANO:.4f} {self.prices.currency}"

    def _known(self) -> int:
        """Billionths that were spent in the table's currency, or are to be at its prices."""
        sql = "SELECT coalesce(sum(nanos + held_nanos + maybe_nanos), 0) FROM totals WHERE run = ? AND currency = ?"
        late = self._look(lambda c: unpriced(c, self.run, self.prices))
        return int(self.cache.select(sql, (self.run, self.prices.currency))[0][0]) + sum(c.most_nanos() for c in late)

    def _look(self, op: Callable[[sqlite3.Connection], T]) -> T:
        found: T = self.cache.transact([op], durable=False)[0]
        return found

    def experience(self, model: str, stage: str) -> tuple[int, float, float] | None:
        """Over the cache's answers of a model in a stage: their number, tokens per byte sent, tokens received each."""
        sql = (
            "SELECT count(*), sum(tokens_in), sum(bytes_in), sum(tokens_out) FROM calls"
            " WHERE model = ? AND stage = ? AND state = 'answered'"
        )
        n, tokens_in, bytes_in, tokens_out = self.cache.select(sql, (model, stage))[0]
        return (n, tokens_in / bytes_in, tokens_out / n) if n and bytes_in else None


def _money(nanos: int | None) -> float | None:
    return None if nanos is None else nanos / NANO


_CALLS = """
SELECT stage, model, currency, sum(state = 'answered'), sum(state = 'answered' AND reason != ''),
  sum(state = 'refused'), sum(state = 'lost'), coalesce(sum(tokens_in), 0), coalesce(sum(tokens_out), 0),
  coalesce(sum(nanos), 0), sum(state = 'answered' AND nanos IS NULL),
  CASE WHEN sum(state = 'lost' AND held_nanos IS NULL) THEN NULL
       ELSE coalesce(sum(CASE WHEN state = 'lost' THEN held_nanos END), 0) END
FROM calls WHERE run = ? GROUP BY stage, model, currency ORDER BY min(id)
"""
_HITS = """
SELECT stage, model, currency, sum(n), sum(tokens_in + tokens_out),
  CASE WHEN sum(nanos IS NULL) THEN NULL ELSE sum(nanos) END
FROM hits WHERE run = ? GROUP BY stage, model, currency ORDER BY min(session)
"""
_LOST = """
SELECT reason = ? AS crash, count(*), CASE WHEN sum(held_nanos IS NULL) THEN NULL ELSE sum(held_nanos) END,
  currency
FROM calls WHERE run = ? AND state = 'lost' GROUP BY crash, currency ORDER BY crash DESC
"""
