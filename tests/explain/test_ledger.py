"""Prices, the books and estimates."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from llm_server import INPUT, OUTPUT, Seen, Server

from seamark.errors import ConfigError
from seamark.explain.answers import AnswerCache, Stored, open_session
from seamark.explain.ledger import Call, Ledger, Limits, Verdict, begin, settle, settle_answered
from seamark.explain.llm import LLM, LLMConfig, Request
from seamark.explain.prices import NANO, Price, PriceTable
from seamark.explain.totals import price_late

PRICES = PriceTable(currency="EUR", prices=(Price(model="*", input=INPUT, output=OUTPUT),))


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[AnswerCache]:
    with AnswerCache(tmp_path / "answers.sqlite") as found:
        yield found


def requests(n: int, stage: str = "explain") -> list[Request]:
    schema = {"type": "object", "properties": {"word": {"type": "string"}}, "required": ["word"]}
    return [Request(stage, "You explain.", f"A text about the harbour of {stage}, {i}", schema, "x", 64)
            for i in range(n)]  # fmt: skip


def llm_for(server: Server, cache: AnswerCache, prices: PriceTable = PRICES, run: str = "a", **config: Any) -> LLM:
    made = LLMConfig(base_url=server.url, backoff_s=0.02, **config)
    return LLM("tester", config=made, cache=cache, ledger=Ledger(cache, prices, run))


# Prices


def test_money_is_exact_and_rounded_up() -> None:
    price = Price(model="m", input=0.15, output=0.6, cached_input=0.075)  # type: ignore[arg-type]
    assert price.nanos(1_000_000, 0) == 0.15 * NANO
    assert price.nanos(0, 1_000_000) == 0.6 * NANO
    assert price.nanos(1_000_000, 0, 1_000_000) == 0.075 * NANO
    assert price.nanos(3, 1, 2) == 150 + 2 * 75 + 600
    assert Price(model="m", input=0.0001, output=0).nanos(1, 0) == 1  # type: ignore[arg-type]


@given(st.integers(0, 10**6), st.integers(0, 10**6), st.integers(0, 10**6), st.floats(0, 100), st.floats(0, 100))
def test_the_worst_case_is_the_worst(sent: int, received: int, cached: int, one: float, two: float) -> None:
    price = Price(model="m", input=one, output=1, cached_input=two)  # type: ignore[arg-type]
    assert price.nanos(sent, received, cached) <= price.worst_nanos(sent, received)


def test_the_packaged_table_knows_only_what_is_free() -> None:
    table = PriceTable.load()
    assert all(p.input == p.output == 0 for p in table.prices)
    assert table.price("anything", "http://localhost:11434/v1/") is not None
    assert table.price("anything", "https://api.openai.com/v1/") is None
    assert table.price("anything", "http://localhost:8000/v1/") is None


def test_a_user_s_rules_come_first(tmp_path: Path) -> None:
    file = tmp_path / "prices.yaml"
    file.write_text("currency: EUR\nprices:\n  - {model: large*, input: 2.5, output: 10}\n"
                    "  - {model: '*', server: 'http://localhost:11434/*', input: 0.01, output: 0}\n")  # fmt: skip
    table = PriceTable.load(file)
    assert table.currency == "EUR"
    assert str(table.price("large-2", "https://h/").input) == "2.5"  # type: ignore[union-attr]
    assert str(table.price("other", "http://localhost:11434/v1/").input) == "0.01"  # type: ignore[union-attr]
    assert table.price("other", "http://127.0.0.1:11434/v1/").input == 0  # type: ignore[union-attr]
    assert table.price("other", "https://h/") is None


@pytest.mark.parametrize(
    ("text", "said"),
    [("prices: [{model: m, input: -1, output: 0}]", "prices.0.input"), ("prices: [{model: m, output: 0}]", "input"),
     ("prices: [{model: m, input: .nan, output: 0}]", "prices.0.input"), ("[1]", "keys currency and prices"),
     ("prices: {", "no YAML"), ("price: []", "price"), ("prices: [{model: m, input: 1, output: 1, x: 2}]", "x")],
)  # fmt: skip
def test_a_bad_table_is_refused_by_name(text: str, said: str, tmp_path: Path) -> None:
    file = tmp_path / "prices.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=said) as error:
        PriceTable.load(file)
    assert str(file) in str(error.value)
    with pytest.raises(ConfigError, match="not found"):
        PriceTable.load(tmp_path / "none.yaml")


# The books


def test_rows_per_stage_paid_against_cached(cache: AnswerCache) -> None:
    def behave(seen: Seen) -> str:
        if seen.user.endswith("explain, 0"):
            return "empty"
        return "429" if seen.user.endswith("explain, 3") and seen.times == 0 else "ok"

    with Server(behave) as server:
        llm = llm_for(server, cache)
        llm.ask_all(requests(10))
        llm.ask_all(requests(4, "simulate"))
        llm.ask_all(requests(14))
        explain, simulate = llm._ledger.rows()
        assert (explain.stage, explain.model, explain.currency) == ("explain", "tester", "EUR")
        # 14 questions, one of them asked twice in vain; of the first ten, 9 came whole the second time and 2 in vain.
        assert (explain.answered, explain.unusable, explain.cached, explain.refused, explain.lost) == (15, 2, 11, 1, 0)
        assert (simulate.answered, simulate.cached) == (4, 0)
        assert (explain.cost or 0) + (simulate.cost or 0) == pytest.approx(server.stats.money)
        assert llm._ledger.spent() == pytest.approx(server.stats.money)
        assert 0 < (explain.cached_cost or 0) < (explain.cost or 0)
        assert explain.cost_reason == ""
    table = llm._ledger.table()
    assert len(table[0]) == len(Ledger.COLUMNS)
    assert table[0][:4] == ("explain", "tester", "15", "11")
    assert llm._ledger.notes() == []
    assert Ledger(cache, PRICES, "another run").rows() == []


def test_an_unknown_price_is_no_free_lunch(cache: AnswerCache) -> None:
    with Server() as server:
        llm = llm_for(server, cache, PriceTable())
        answers = llm.ask_all(requests(3))
    assert [a.cost for a in answers] == [None] * 3
    row = llm._ledger.rows()[0]
    assert (row.cost, row.answered) == (None, 3)
    assert "3 of 3" in row.cost_reason
    assert llm._ledger.table()[0][-1] == "not available"
    assert row.tokens_in == sum(a.tokens_in for a in answers) > 0
    assert any("price or token count not known for 3 of 3" in note for note in llm._ledger.notes())


def test_answers_from_another_run_s_cache_cost_this_run_nothing(cache: AnswerCache) -> None:
    with Server() as server:
        llm_for(server, cache, run="a").ask_all(requests(5))
        second = llm_for(server, cache, run="b", budget=0.0)
        assert all(a.data and a.cached for a in second.ask_all(requests(5)))
    row = second._ledger.rows()[0]
    assert (row.answered, row.cached, row.cost) == (0, 5, 0.0)
    assert row.cached_cost == pytest.approx(server.stats.money)
    assert second._ledger.spent() == 0.0


def call(session: int, key: str = "k", tokens: int = 100, nanos: int | None = 1000) -> Call:
    return Call(session, "a", key, "s", "m", "EUR", 10, tokens, nanos, 64)


def test_what_is_held_comes_back_settled_refused_or_stays(cache: AnswerCache) -> None:
    def totals() -> tuple[int, ...]:
        sql = "SELECT nanos, tokens, held_nanos, held_tokens, maybe_nanos, maybe_tokens FROM totals"
        return cache.select(sql)[0]

    def do(op: Any) -> Any:
        return cache.transact([op], durable=False)[0]

    session = do(lambda c: open_session(c, "a", "m", "http://h/", 60.0))
    limits = Limits(nanos=2500, tokens=None)
    one = do(lambda c: begin(c, call(session, "1"), limits))
    two = do(lambda c: begin(c, call(session, "2"), limits))
    assert totals() == (0, 0, 2000, 200, 0, 0)
    assert do(lambda c: begin(c, call(session, "3"), limits)) is Verdict.WAIT
    assert do(lambda c: begin(c, call(session, "3", nanos=2501), limits)) is Verdict.OVER
    assert do(lambda c: begin(c, call(session, "1"), limits)) is Verdict.ELSEWHERE
    answer = Stored("1", {"x": 1}, 30, 20, True, 700, "EUR", 0.1, "", 64)
    do(lambda c: settle_answered(c, one, answer))
    assert totals() == (700, 50, 1000, 100, 0, 0)
    do(lambda c: settle(c, two, "lost", "cut"))
    assert totals() == (700, 50, 0, 0, 1000, 100)
    assert do(lambda c: begin(c, call(session, "3"), limits)) is Verdict.OVER
    three = do(lambda c: begin(c, call(session, "3", nanos=800), limits))  # to the last nano
    do(lambda c: settle(c, three, "refused", "429"))
    assert totals() == (700, 50, 0, 0, 1000, 100)
    # A call that was given up as lost, and whose answer came all the same.
    do(lambda c: settle_answered(c, two, Stored("2", {}, 1, 1, True, 10, "EUR", 0.1, "", 64)))
    assert totals() == (710, 52, 0, 0, 0, 0)
    # An answer without a count of tokens counts with the most it can have cost.
    four = do(lambda c: begin(c, call(session, "4"), limits))
    do(lambda c: settle_answered(c, four, Stored("4", {}, 1, 1, False, None, "EUR", 0.1, "", 64)))
    assert totals() == (710, 52, 0, 0, 1000, 100)


def test_a_failed_step_undoes_its_whole_transaction(cache: AnswerCache) -> None:
    session = cache.transact([lambda c: open_session(c, "a", "m", "http://h/", 60.0)], durable=False)[0]

    def broken(connection: Any) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        cache.transact([lambda c: begin(c, call(session), Limits()), broken], durable=True)
    assert cache.select("SELECT * FROM calls") == []
    assert isinstance(cache.transact([lambda c: begin(c, call(session), Limits())], durable=True)[0], int)


# Dry runs


def test_an_estimate_asks_nothing_and_learns(cache: AnswerCache) -> None:
    with Server() as server:
        llm = llm_for(server, cache)
        before = llm.estimate(requests(20))
        assert server.stats.requests == 0
        assert (before.requests, before.cached, before.to_ask) == (20, 0, 20)
        assert before.tokens_out == 20 * 32
        assert before.cost is not None
        assert before.worst_cost is not None
        assert before.cost < before.worst_cost
        assert "0 of 20" in before.basis
        llm.ask_all(requests(10))
        after = llm.estimate([*requests(20), *requests(20)])
        assert (after.requests, after.cached, after.to_ask) == (40, 20, 10)  # equals are asked once
        paid = server.stats.money
        llm.ask_all(requests(20))
        assert after.cost == pytest.approx(server.stats.money - paid, rel=0.02)
        assert llm.estimate(requests(20)).cost == 0.0
        assert before.worst_cost >= server.stats.money


def test_an_estimate_without_a_price_says_so(cache: AnswerCache) -> None:
    with Server() as server:
        found = llm_for(server, cache, PriceTable()).estimate(requests(3))
    assert (found.cost, found.worst_cost) == (None, None)
    assert "price of 'tester'" in found.reason
    assert found.tokens_in > 0


def test_a_dry_run_s_budgets_hold_all_that_was_spent_before(cache: AnswerCache) -> None:
    with Server() as server:
        llm = llm_for(server, cache)
        llm.ask_all(requests(20))
        spent = server.stats.money
        found = llm.estimate(requests(40))
        assert found.spent == pytest.approx(spent)
        assert (found.tries, found.sends) == (2, 7)
        assert found.worst_cost == pytest.approx(14 * (found.once_cost or 0))
        assert found.budget_once == pytest.approx(spent + (found.once_cost or 0))
        assert found.budget == pytest.approx(spent + (found.worst_cost or 0))
        answers = llm_for(server, cache, budget=found.budget_once).ask_all(requests(40))
        assert all(a.data for a in answers)
        assert llm.estimate(requests(40)).budget == pytest.approx(server.stats.money)  # all known: nothing on top


def test_the_highest_budget_of_a_dry_run_is_enough_for_a_server_at_its_worst(cache: AnswerCache) -> None:
    """Every try is cut as often as it may be, then its answer is unusable, and the next try goes the same way."""

    def behave(seen: Seen) -> str:
        return "empty" if seen.times % 3 == 2 else "cut"

    with Server(behave) as server:
        found = llm_for(server, cache, retries=2).estimate(requests(6))
        assert (found.tries, found.sends) == (2, 3)
        llm = llm_for(server, cache, retries=2, budget=found.budget)
        answers = llm.ask_all(requests(6))
        assert {a.failed for a in answers} == {"empty answer"}
        assert server.stats.requests == 6 * 6
        assert (found.budget_once or 0) < (llm._ledger.spent() or 0) <= (found.budget or 0)


def test_estimates_of_several_sets_have_one_sum(cache: AnswerCache) -> None:
    with Server() as server:
        llm = llm_for(server, cache)
        llm.ask_all(requests(5))
        one, two = llm.estimate(requests(9)), llm.estimate(requests(7, "simulate"))
    both = one + two
    assert (both.requests, both.cached, both.to_ask) == (16, 5, 11)
    assert both.spent == one.spent == two.spent
    assert both.budget == pytest.approx((one.budget or 0) + (two.worst_cost or 0))
    assert both.budget_once == pytest.approx((one.spent or 0) + (one.once_cost or 0) + (two.once_cost or 0))
    assert (one + two.model_copy(update={"worst_cost": None})).budget is None


# What a budget counts


def in_currency(currency: str) -> PriceTable:
    return PriceTable(currency=currency, prices=PRICES.prices)


def test_a_budget_in_tokens_counts_those_of_all_currencies(cache: AnswerCache) -> None:
    with Server() as server:
        taken = 0
        for i, currency in enumerate(("USD", "EUR", "CHF")):
            llm = llm_for(server, cache, in_currency(currency), budget_tokens=3000)
            answers = llm.ask_all(requests(60)[20 * i : 20 * (i + 1)])
            taken += sum(a.tokens_in + a.tokens_out for a in answers)
        assert 2000 < taken <= 3000


def test_a_budget_in_money_refuses_money_of_another_currency(cache: AnswerCache) -> None:
    with Server() as server:
        llm_for(server, cache, in_currency("USD")).ask_all(requests(3))
        euro = llm_for(server, cache, budget=100.0)
        with pytest.raises(ConfigError, match=r"another currency \(\d\.\d{4} USD\)"):
            euro.ask_all(requests(4))
        assert server.stats.requests == 3
        assert all(a.cached for a in euro.ask_all(requests(3)))  # what is known is free all the same
        assert euro._ledger.spent() is None
        assert "another currency" in euro._ledger.why_not_known()
        assert euro.estimate(requests(4)).budget is None
        assert "another currency" in euro.estimate(requests(4)).spent_reason


def test_the_cost_of_an_answer_is_in_the_table_s_currency_or_not_known(cache: AnswerCache) -> None:
    with Server() as server:
        assert sum(a.cost or 0 for a in llm_for(server, cache, in_currency("USD")).ask_all(requests(3))) > 0
        assert [a.cost for a in llm_for(server, cache).ask_all(requests(3))] == [None] * 3
        free = PriceTable(currency="USD", prices=(Price(model="*", input=0, output=0),))  # type: ignore[arg-type]
        llm_for(server, cache, free).ask_all(requests(3, "simulate"))
        assert [a.cost for a in llm_for(server, cache).ask_all(requests(3, "simulate"))] == [0.0] * 3


def test_calls_without_a_price_are_not_free(cache: AnswerCache) -> None:
    other = PriceTable(currency="EUR", prices=(Price(model="second", input=INPUT, output=OUTPUT),))
    with Server(lambda s: "no-usage" if s.n == 0 else "ok") as server:
        unpriced = llm_for(server, cache, PriceTable(currency="EUR"))
        unpriced.ask_all(requests(3))
        assert unpriced._ledger.spent() is None
        assert "3 to 'tester' at http://127.0.0.1" in unpriced._ledger.why_not_known()
        assert any("what was spent is not available" in note for note in unpriced._ledger.notes())
        config = LLMConfig(base_url=server.url, budget=1000.0)
        second = LLM("second", config=config, cache=cache, ledger=Ledger(cache, other, "a"))
        with pytest.raises(ConfigError, match="price of calls that were made is not known"):
            second.ask_all(requests(4))
        assert server.stats.requests == 3
        assert second.estimate(requests(4)).budget is None


_TOKENS = "SELECT sum(tokens), sum(maybe_tokens), sum(held_tokens) FROM totals"


def test_calls_get_the_price_that_becomes_known(cache: AnswerCache) -> None:
    def behave(seen: Seen) -> str:
        return "no-usage" if seen.user.endswith(" 0") else "cut" if seen.user.endswith(" 1") else "ok"

    with Server(behave) as server:
        llm_for(server, cache, PriceTable(), retries=0).ask_all(requests(12))
        assert Ledger(cache, PriceTable(), "a").spent() is None
        before, tokens = cache.select("SELECT * FROM totals"), cache.select(_TOKENS)
        known = Ledger(cache, PRICES, "a").spent()
        assert known is not None
        assert known > server.stats.money  # what was lost or not counted, at its worst
        assert cache.select("SELECT * FROM totals") == before  # looking changes nothing
        tight = llm_for(server, cache, budget=known + 0.001)
        assert {a.failed for a in tight.ask_all(requests(14)) if not a.cached} == {"budget reached"}
        assert server.stats.requests == 12
        assert tight._ledger.spent() == pytest.approx(known)
        assert cache.select(_TOKENS) == tokens  # they moved from the one currency to the other, of each kind
        assert cache.select("SELECT tokens, maybe_tokens FROM totals WHERE currency = 'USD'") == [(0, 0)]
        row = tight._ledger.rows()[0]
        assert (row.currency, row.answered, row.cost, row.lost) == ("EUR", 11, None, 1)
        assert (row.lost_cost or 0) > 0
        assert "1 of 11" in row.cost_reason
        more, paid = llm_for(server, cache, budget=known + 5), server.stats.money
        more.ask_all(requests(14)[2:])
        assert more._ledger.spent() == pytest.approx(known + server.stats.money - paid)


def test_calls_of_a_process_that_died_get_the_price_that_becomes_known(cache: AnswerCache) -> None:
    """Else nobody knew what the run has spent, and the budget would be refused until something else looks."""
    session = cache.transact([lambda c: open_session(c, "a", "m", "http://h/", 60.0)], durable=False)[0]
    for key in ("1", "2"):
        cache.transact([lambda c, key=key: begin(c, call(session, key, nanos=None), Limits())], durable=False)
    cache.transact([lambda c: c.execute("UPDATE sessions SET born = 0")], durable=False)  # another process had the pid
    with Server() as server:
        llm = llm_for(server, cache, budget=1000.0)
        assert all(a.data for a in llm.ask_all(requests(3)))
        spent = llm._ledger.spent()
        assert spent is not None
        assert spent > server.stats.money  # what was in flight counts as the most it can have cost
    assert cache.select("SELECT state, held_nanos > 0 FROM calls WHERE model = 'm'") == [("lost", 1)] * 2


def test_an_answer_that_comes_after_its_call_was_given_up_and_priced_is_not_free(cache: AnswerCache) -> None:
    """Its asker has no price table; the process that gave it up has one, and holds the most it can cost."""
    session = cache.transact([lambda c: open_session(c, "a", "m", "http://h/", 60.0)], durable=False)[0]
    number = cache.transact([lambda c: begin(c, call(session, nanos=None), Limits())], durable=False)[0]
    late = Stored("k", {}, 30, 20, True, None, "EUR", 0.1, "", 64)
    cache.transact([lambda c: settle(c, number, "lost", "given up"), lambda c: price_late(c, "a", PRICES),
                    lambda c: settle_answered(c, number, late)], durable=False)  # fmt: skip
    most = PRICES.price("m").worst_nanos(100, 0)  # type: ignore[union-attr]
    assert cache.select("SELECT nanos, tokens, maybe_nanos, maybe_tokens FROM totals") == [(0, 0, most, 100)]
    assert Ledger(cache, PRICES, "a").spent() == most / NANO
