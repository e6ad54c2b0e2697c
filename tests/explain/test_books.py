"""The books under whatever order calls begin, end, die and get prices in: totals are what the calls add up to."""

from __future__ import annotations

import random
import sqlite3
from pathlib import Path

import pytest

from seamark.explain.answers import AnswerCache, Stored, open_session
from seamark.explain.ledger import Call, Limits, begin, reap, settle, settle_answered
from seamark.explain.prices import Price, PriceTable
from seamark.explain.totals import price_late, unpriced

TABLES = tuple(
    PriceTable(currency=currency, prices=(Price(model="*", input=dear, output=2),) if dear else ())
    for currency, dear in (("USD", 0), ("USD", 1), ("EUR", 3))
)
"""Nobody's prices, and those of two currencies."""
ENDS = {"lose": "lost", "refuse": "refused", "take back": "unsent"}
STEPS = ("begin", "begin", "begin", "answer", "answer", *ENDS, "die", "price", "price")


class Books:
    """Three processes on one cache, each with a table of its own."""

    def __init__(self, connection: sqlite3.Connection, draw: random.Random) -> None:
        self.c, self.draw, self.n = connection, draw, 0
        self.sessions = [open_session(connection, "a", "m", "http://h/", 1e9) for _ in TABLES]
        self.open: list[tuple[int, PriceTable]] = []

    def step(self, what: str) -> None:
        if what == "begin":
            i = self.draw.randrange(len(TABLES))
            price, self.n = TABLES[i].price("m"), self.n + 1
            held = None if price is None else price.worst_nanos(356, 44)
            call = Call(self.sessions[i], "a", f"k{self.n}", "s", "m", TABLES[i].currency, 100, 400, held, 44)
            number = begin(self.c, call, Limits())
            assert isinstance(number, int)
            self.open.append((number, TABLES[i]))
        elif what == "die":  # and yet its answers may still come
            self.c.execute("UPDATE sessions SET born = -born WHERE id = ?", (self.draw.choice(self.sessions),))
            reap(self.c)
            self.c.execute("UPDATE sessions SET born = abs(born)")
        elif what == "price":
            price_late(self.c, "a", self.draw.choice(TABLES))
        elif self.open:
            number, table = self.open.pop(self.draw.randrange(len(self.open)))
            if what == "answer":
                counted, price = self.draw.random() < 0.7, table.price("m")
                nanos = price.nanos(50, 10) if price and counted else None
                settle_answered(self.c, number, Stored("k", {}, 50, 10, counted, nanos, table.currency, 0.1, "", 44))
            else:
                settle(self.c, number, ENDS[what])  # type: ignore[arg-type]

    def check(self) -> None:
        """Totals add up, and what is not listed as unpriced has a price: nothing is free unsaid."""
        wanted: dict[str, list[int]] = {}
        listed = {call.number for call in unpriced(self.c, "a")}
        for number, state, currency, tokens, nanos, held, most, counted in self.c.execute(
            "SELECT id, state, currency, tokens_in + tokens_out, nanos, held_nanos, held_tokens, counted FROM calls"
        ):
            mine = wanted.setdefault(currency, [0] * 6)
            known = state == "answered" and counted and (nanos is not None or held is None)
            at = 0 if known else {"started": 2, "answered": 4, "lost": 4}.get(state)
            if at is not None:
                mine[at] += (nanos if known else held) or 0
                mine[at + 1] += tokens if known else most
                assert number in listed or held is not None
        columns = "currency, nanos, tokens, held_nanos, held_tokens, maybe_nanos, maybe_tokens"
        found = {row[0]: list(row[1:]) for row in self.c.execute(f"SELECT {columns} FROM totals")}
        nothing = [0] * 6
        assert {c: t for c, t in found.items() if t != nothing} == {c: t for c, t in wanted.items() if t != nothing}


@pytest.mark.parametrize("seed", range(12))
def test_totals_are_what_the_calls_add_up_to(seed: int, tmp_path: Path) -> None:
    draw = random.Random(seed)
    with AnswerCache(tmp_path / "answers.sqlite") as cache:

        def go(connection: sqlite3.Connection) -> None:
            books = Books(connection, draw)
            for _ in range(150):
                books.step(draw.choice(STEPS))
                books.check()

        cache.transact([go], durable=False)
