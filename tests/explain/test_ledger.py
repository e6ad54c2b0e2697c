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
    return Call(session, "a", key, "s", "m", "EUR", 10, tokens, nanos)


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
    answer = Stored("1", {"x": 1}, 30, 20, True, 700, "EUR", 0.1, "")
    do(lambda c: settle_answered(c, one, answer))
    assert totals() == (700, 50, 1000, 100, 0, 0)
    do(lambda c: settle(c, two, "lost", "cut"))
    assert totals() == (700, 50, 0, 0, 1000, 100)
    assert do(lambda c: begin(c, call(session, "3"), limits)) is Verdict.OVER
    three = do(lambda c: begin(c, call(session, "3", nanos=800), limits))  # to the last nano
    do(lambda c: settle(c, three, "refused", "429"))
    assert totals() == (700, 50, 0, 0, 1000, 100)
    # A call that was given up as lost, and whose answer came all the same.
    do(lambda c: settle_answered(c, two, Stored("2", {}, 1, 1, True, 10, "EUR", 0.1, "")))
    assert totals() == (710, 52, 0, 0, 0, 0)
    # An answer without a count of tokens counts with the most it can have cost.
    four = do(lambda c: begin(c, call(session, "4"), limits))
    do(lambda c: settle_answered(c, four, Stored("4", {}, 1, 1, False, None, "EUR", 0.1, "")))
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
