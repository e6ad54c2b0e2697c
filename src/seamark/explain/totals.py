"""A run's totals, and the calls that they leave out: those whose price was not known when they were made."""

from __future__ import annotations

import sqlite3
from collections import Counter
from dataclasses import dataclass

from seamark.explain.prices import NANO, Price, PriceTable
from seamark.explain.questions import OVERHEAD


def add(connection: sqlite3.Connection, run: str, currency: str, kind: str, tokens: int, nanos: int) -> None:
    """Move a run's totals. `kind` is "", "held" or "maybe": a name of ours, never text from outside."""
    n, t = (f"{kind}_nanos", f"{kind}_tokens") if kind else ("nanos", "tokens")
    connection.execute(
        f"INSERT INTO totals (run, currency, {n}, {t}) VALUES (?, ?, ?, ?)"  # noqa: S608
        f" ON CONFLICT (run, currency) DO UPDATE SET {n} = {n} + excluded.{n}, {t} = {t} + excluded.{t}",
        (run, currency, nanos, tokens),
    )


def why_unknown(connection: sqlite3.Connection, run: str, currency: str, prices: PriceTable | None = None) -> str:
    """Why the money that a run has spent cannot be given in one currency; "" where it can.

    Args:
        prices: calls whose price was not known, but is known here, are no reason; None: they are.
    """
    calls = (call for call in unpriced(connection, run, prices) if call.price is None)
    if models := Counter(f"{call.model!r} at {call.server}" for call in calls):
        named = ", ".join(f"{n:,} to {name}" for name, n in models.items())
        return f"the price of calls that were made is not known ({named})"
    rows = connection.execute(
        "SELECT currency, nanos + held_nanos + maybe_nanos AS spent FROM totals WHERE run = ? AND currency != ?"
        " AND spent > 0 ORDER BY currency",
        (run, currency),
    ).fetchall()
    others = ", ".join(f"{nanos / NANO:.4f} {other}" for other, nanos in rows)
    return f"money was spent in another currency ({others}); Seamark does not convert" if others else ""


def price_late(connection: sqlite3.Connection, run: str, prices: PriceTable) -> int:
    """Calls of a run that ended while their price was not known get the one that the table has now.

    As if nothing had come from the server's own prompt cache at less. Returns how many calls were priced.
    """
    ended = [call for call in unpriced(connection, run, prices) if call.state != "started" and call.price is not None]
    for call in ended:
        nanos = call.paid_nanos() if call.counted else None
        kind, tokens = ("maybe", call.held_tokens) if nanos is None else ("", call.tokens_in + call.tokens_out)
        add(connection, run, call.currency, kind, -tokens, 0)
        add(connection, run, prices.currency, kind, tokens, call.held_nanos() if nanos is None else nanos)
        connection.execute("UPDATE calls SET held_nanos = ?, nanos = ?, currency = ? WHERE id = ?",
                           (call.held_nanos(), nanos, prices.currency, call.number))  # fmt: skip
    return len(ended)


@dataclass(frozen=True)
class Unpriced:
    """A call that may have been billed, at a price not known when it was made."""

    number: int
    model: str
    server: str
    state: str
    currency: str
    counted: bool
    """It was answered, and the server counted its tokens."""
    bytes_in: int
    tokens_in: int
    tokens_out: int
    held_tokens: int
    price: Price | None
    """What the table at hand says."""

    def paid_nanos(self) -> int:
        return self.price.worst_nanos(self.tokens_in, self.tokens_out) if self.price else 0

    def held_nanos(self) -> int:
        sent = min(self.bytes_in + OVERHEAD, self.held_tokens)
        return self.price.worst_nanos(sent, self.held_tokens - sent) if self.price else 0

    def most_nanos(self) -> int:
        return self.paid_nanos() if self.counted else self.held_nanos()


def unpriced(connection: sqlite3.Connection, run: str, prices: PriceTable | None = None) -> list[Unpriced]:
    rows = connection.execute(
        "SELECT c.id, c.model, s.server, c.state, c.currency, c.state = 'answered' AND coalesce(c.counted, 0),"
        " c.bytes_in, coalesce(c.tokens_in, 0), coalesce(c.tokens_out, 0), c.held_tokens"
        " FROM calls c JOIN sessions s ON c.session = s.id"
        " WHERE c.run = ? AND c.held_nanos IS NULL AND c.state != 'refused' ORDER BY c.id",
        (run,),
    ).fetchall()
    known = [prices.price(model, server) if prices else None for _, model, server, *_ in rows]
    return [Unpriced(*values) for values in ((*row, price) for row, price in zip(rows, known, strict=True))]
