"""The LLM client against a local server that misbehaves: every question ends answered or failed, and is paid once."""

from __future__ import annotations

import asyncio
import json
import random
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from llm_server import INPUT, OUTPUT, Behaviour, Seen, Server, good
from pydantic import ValidationError

from seamark.errors import ConfigError, FormatError, RunError
from seamark.explain import answers as answers_module
from seamark.explain.answers import AnswerCache
from seamark.explain.ledger import Ledger
from seamark.explain.llm import LLM, Answer, BudgetError, LLMConfig, Request
from seamark.explain.parsing import Reply, parse_reply, without_surrogates
from seamark.explain.prices import Price, PriceTable
from seamark.explain.questions import Question
from seamark.explain.transport import Form, retry_after

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "word": {"type": "string"},
        "levels": {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 10}, "minItems": 3,
                   "maxItems": 3},
    },
    "required": ["word", "levels"],
    "additionalProperties": False,
}  # fmt: skip
PRICES = PriceTable(prices=(Price(model="*", input=INPUT, output=OUTPUT),))
KEY = "sk-test-0123456789-secret"


def questions(n: int, stage: str = "explain", **fields: Any) -> list[Request]:
    system = "You explain what a feature of a model fires on."
    options = {"max_output_tokens": 64, **fields}
    texts = [f"Three texts about sailing boats in harbours, number {i}" for i in range(n)]
    return [Request(stage, system, text, SCHEMA, "explanation", **options) for text in texts]


@pytest.fixture(autouse=True)
def _key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[AnswerCache]:
    with AnswerCache(tmp_path / "answers.sqlite") as found:
        yield found


def llm_for(server: Server | str, cache: AnswerCache, prices: PriceTable = PRICES, **config: Any) -> LLM:
    url = server if isinstance(server, str) else server.url
    quick = {"backoff_s": 0.02, "timeout_s": 10.0, **config}
    return LLM("tester", config=LLMConfig(base_url=url, **quick), cache=cache, ledger=Ledger(cache, prices))


def ask(behave: Behaviour, cache: AnswerCache, n: int = 1, **config: Any) -> tuple[list[Answer], Server]:
    with Server(behave) as server:
        return llm_for(server, cache, **config).ask_all(questions(n)), server


def test_answers_come_in_order_and_a_rerun_asks_nothing(cache: AnswerCache) -> None:
    with Server() as server:
        llm = llm_for(server, cache)
        first = llm.ask_all(questions(100))
        assert [a.data for a in first] == [{"word": str(i), "levels": [1, 2, 3]} for i in range(100)]
        assert not any(a.failed or a.cached for a in first)
        assert sum(a.cost or 0.0 for a in first) == pytest.approx(server.stats.money)
        again = llm.ask_all(questions(100))
        assert server.stats.requests == 100
    assert all(a.cached for a in again)
    assert [(a.data, a.tokens_in, a.cost) for a in again] == [(a.data, a.tokens_in, a.cost) for a in first]


def test_the_server_need_not_even_run_where_all_is_known(cache: AnswerCache) -> None:
    ask(lambda _: "ok", cache, 5)
    again = llm_for("http://127.0.0.1:9/v1", cache).ask_all(questions(5))  # the address is no part of the key
    assert all(a.data and a.cached for a in again)


def test_equal_questions_at_once_are_asked_once(cache: AnswerCache) -> None:
    with Server(latency_s=0.05) as server:
        answers = llm_for(server, cache).ask_all(questions(1) * 40)
    assert server.stats.requests == 1
    assert len({json.dumps(a.data) for a in answers}) == 1
    assert [a.cached for a in answers].count(False) == 1


def test_32_requests_are_in_flight_and_never_more(cache: AnswerCache) -> None:
    with Server(latency_s=0.15) as server:
        answers = llm_for(server, cache).ask_all(questions(160))
    assert all(a.data for a in answers)
    assert server.stats.peak == 32


FAULTS = ("429", "429-date", "429-plain", "500", "503", "drop", "slow", "cut", "empty", "null", "wrong-json",
          "wrong-length", "echo", "only-thoughts", "length", "filter", "refusal", "page", "error-in-200", "no-choices",
          "no-usage", "fenced", "chatty", "thinks", "thinks-apart", "all-in-thoughts", "surrogate", "ok")  # fmt: skip
HOPELESS = ("empty", "wrong-json", "wrong-length", "echo", "filter", "drop")


def test_whatever_a_server_does_every_question_ends_answered_or_failed_and_is_paid_once(cache: AnswerCache) -> None:
    """28 kinds of behaviour on first asking; for some questions it never gets better."""

    def behave(seen: Seen) -> str:
        number = int(seen.user.split()[-1])
        if number % 4 == 0:
            return HOPELESS[number // 4 % len(HOPELESS)]
        return FAULTS[(number - number // 4 - 1) % len(FAULTS)] if seen.times == 0 else "ok"

    with Server(behave, slow_s=2.0) as server:
        llm = llm_for(server, cache, timeout_s=1.0, retries=2)
        answers = llm.ask_all(questions(168))
        for i, answer in enumerate(answers):
            assert (answer.data is None) == bool(answer.failed)
            assert (answer.data is None) == (i % 4 == 0), (i, answer)
        reasons = " ".join(a.failed for a in answers)
        for said in ("empty answer", "no JSON object", "has 1 items", "echo", "content filter", "connection cut"):
            assert said in reasons
        requests, delivered = server.stats.requests, dict(server.stats.delivered)
        server.behave = lambda _: "ok"
        rerun = llm.ask_all(questions(168))
        # Only questions that never brought an answer are asked again; an unusable answer is an answer.
        cut = [i for i in range(168) if i % 4 == 0 and HOPELESS[i // 4 % len(HOPELESS)] == "drop"]
        assert server.stats.requests == requests + len(cut)
        assert [i for i, a in enumerate(rerun) if not a.cached] == cut
        assert all(server.stats.delivered[text] == n for text, n in delivered.items())


@pytest.mark.parametrize(
    ("fault", "reason"),
    [("empty", "empty answer"), ("null", "empty answer"), ("wrong-json", "no JSON object"),
     ("wrong-length", "levels has 1 items, minItems is 3"), ("echo", "echo: the answer repeats the prompt"),
     ("length", "cut off"), ("filter", "refused: content filter"), ("refusal", "refused: I cannot help with that."),
     ("only-thoughts", "thoughts only"), ("no-choices", "no answer in the response")],
)  # fmt: skip
def test_an_unusable_answer_fails_with_its_reason_after_all_tries(fault: str, reason: str, cache: AnswerCache) -> None:
    answers, server = ask(lambda _: fault, cache, tries=3)
    assert answers[0].data is None
    assert reason in answers[0].failed
    assert server.stats.requests == 3
    kept = cache.select("SELECT failure, response FROM answers")
    assert len(kept) == 3
    assert all(reason in failure for failure, _ in kept)
    assert all(json.loads(response)["id"] == "x" for _, response in kept)
    assert answers[0].tokens_in == sum(t for (t,) in cache.select("SELECT tokens_in FROM answers"))


@pytest.mark.parametrize("shape", ["fenced", "chatty", "thinks", "thinks-apart", "all-in-thoughts", "no-usage"])
def test_answers_in_other_shapes_are_read(shape: str, cache: AnswerCache) -> None:
    answers, server = ask(lambda _: shape, cache)
    assert answers[0].data == {"word": "0", "levels": [1, 2, 3]}
    assert server.stats.requests == 1
    if shape == "no-usage":
        assert answers[0].cost is None
        assert answers[0].tokens_in > 0


@pytest.mark.parametrize("fault", ["429", "429-date", "429-plain", "500", "503", "drop", "cut", "slow", "page",
                                   "error-in-200"])  # fmt: skip
def test_a_request_that_brought_no_answer_is_sent_again(fault: str, cache: AnswerCache) -> None:
    begun = time.monotonic()
    answers, server = ask(lambda s: fault if s.times == 0 else "ok", cache, timeout_s=1.5)
    assert answers[0].data
    assert server.stats.requests == 2
    if fault in ("429", "429-date"):
        assert time.monotonic() - begun >= 0.3


@pytest.mark.parametrize(
    ("fault", "reason"),
    [("500", "500: internal error (sent 3 times)"), ("drop", "connection cut"), ("slow", "time-out"),
     ("429-plain", "busy for more than 0.3 s")],
)  # fmt: skip
def test_repetitions_end(fault: str, reason: str, cache: AnswerCache) -> None:
    answers, server = ask(lambda _: fault, cache, timeout_s=0.5, retries=2, patience_s=0.3)
    assert reason in answers[0].failed
    assert answers[0].cost == 0.0  # nothing received, nothing paid: the ledger has what may have been billed
    if fault != "429-plain":
        assert server.stats.requests == 3


def test_a_dripping_server_meets_the_time_limit(cache: AnswerCache) -> None:
    """A byte now and then: no single read is late, but the whole answer is."""
    stop = threading.Event()
    started: list[str] = []

    async def drip(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 1000\r\n\r\n")
        for _ in range(100):
            writer.write(b" ")
            await asyncio.sleep(0.1)

    async def serve() -> None:
        server = await asyncio.start_server(drip, "127.0.0.1", 0)
        started.append(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1")
        while not stop.is_set():
            await asyncio.sleep(0.05)

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    try:
        while not started:
            time.sleep(0.01)
        begun = time.monotonic()
        answers = llm_for(started[0], cache, timeout_s=0.6, retries=0).ask_all(questions(1))
        assert "time-out" in answers[0].failed
        assert time.monotonic() - begun < 5
    finally:
        stop.set()
        thread.join()


def test_a_server_that_is_down_is_not_knocked_at_for_ever(cache: AnswerCache) -> None:
    ask(lambda _: "ok", cache, 5)
    llm = llm_for("http://127.0.0.1:9/v1", cache, retries=1, concurrency=4)
    answers = llm.ask_all(list(reversed(questions(200))))
    assert all(a.failed or a.cached for a in answers)
    assert sum("cannot connect" in a.failed and "not asked" not in a.failed for a in answers) <= 16
    assert sum("not asked" in a.failed for a in answers) > 150
    assert sum(a.cached for a in answers) == 5  # what is known comes all the same
    assert Ledger(cache, PRICES).rows()[0].lost == 0


def test_a_rate_limit_is_met_with_patience(cache: AnswerCache) -> None:
    with Server(per_second=100) as server:
        answers = llm_for(server, cache, retries=0).ask_all(questions(120))
    assert all(a.data for a in answers)
    assert server.stats.requests > 120


def test_a_server_that_is_closed_until_tomorrow_is_not_waited_for(cache: AnswerCache) -> None:
    begun = time.monotonic()
    answers, server = ask(lambda s: "429-tomorrow" if s.n >= 40 else "ok", cache, 200)
    assert time.monotonic() - begun < 20
    assert sum(a.data is not None for a in answers) == 40
    assert any("daily limit reached (busy for more than 600 s)" in a.failed for a in answers)
    assert sum("left alone for 40,000 s" in a.failed for a in answers) >= 96
    assert server.stats.requests <= 40 + 64


@pytest.mark.parametrize(("fault", "kind"), [("401", ConfigError), ("404", ConfigError)])
def test_a_refused_key_and_an_unknown_model_end_all(fault: str, kind: type[Exception], cache: AnswerCache) -> None:
    with Server(lambda _: fault) as server, pytest.raises(kind) as error:
        llm_for(server, cache).ask_all(questions(100))
    assert server.stats.requests <= 64
    assert KEY not in str(error.value)


def test_what_a_check_refuses_is_asked_again_and_at_last_failed(cache: AnswerCache) -> None:
    def check(request: Request, data: Mapping[str, Any]) -> str:
        return "" if data["levels"][0] == 7 else "the first level must be 7"

    def make(seen: Seen) -> dict[str, Any]:
        late = int(seen.user.split()[-1]) % 2 == 0 and seen.times == 1
        return {**good(seen), "levels": [7 if late else 1, 2, 3]}

    with Server(make=make) as server:
        answers = llm_for(server, cache).ask_all(questions(10), check)
        again = llm_for(server, cache).ask_all(questions(10), check)
    assert [a.data is not None for a in answers] == [True, False] * 5
    assert {a.failed for a in answers[1::2]} == {"the first level must be 7"}
    assert server.stats.requests == 20
    assert [(a.data, a.failed) for a in again] == [(a.data, a.failed) for a in answers]
    temperatures = {b["temperature"] for b in server.stats.bodies}
    assert temperatures == {0.0, 0.3}  # at 0 the second answer would be the first one again


def test_an_error_in_a_check_is_raised(cache: AnswerCache) -> None:
    def check(request: Request, data: Mapping[str, Any]) -> str:
        raise ZeroDivisionError("a bug")

    with Server() as server, pytest.raises(ZeroDivisionError):
        llm_for(server, cache).ask_all(questions(3), check)


def refuse(seen: Seen) -> str:
    """A server that knows neither response formats, nor `max_tokens`, nor temperatures."""
    for field, fault in (("response_format", "no-format"), ("max_tokens", "no-max-tokens"),
                         ("temperature", "no-temperature")):  # fmt: skip
        if field in seen.body:
            return fault
    return "ok"


def test_a_server_that_takes_less_is_learnt_once(cache: AnswerCache) -> None:
    with Server(refuse) as server:
        llm = llm_for(server, cache)
        assert llm.ask_all(questions(1))[0].data
        assert server.stats.requests == 5  # schema, object, max_tokens, temperature refused; then right
        assert all(a.data for a in llm.ask_all(questions(40, "simulate")[1:]))
        assert server.stats.requests == 5 + 39
    assert '"minItems": 3' in server.stats.bodies[-1]["messages"][0]["content"]  # the schema is now in the text
    assert server.stats.bodies[-1]["max_completion_tokens"] == 64


def test_a_structured_mode_that_is_set_stays(cache: AnswerCache) -> None:
    answers, server = ask(refuse, cache, structured="json_schema")
    assert "response_format is not supported" in answers[0].failed
    assert server.stats.requests == 1
    answers, server = ask(lambda _: "ok", cache, structured="none")
    assert answers[0].data
    assert "response_format" not in server.stats.bodies[0]


def test_a_bad_request_does_not_change_how_the_others_are_asked(cache: AnswerCache) -> None:
    def behave(seen: Seen) -> str:
        return "400" if seen.user.endswith(" 7") else "ok"

    with Server(behave) as server:
        llm = llm_for(server, cache, concurrency=1)
        answers = llm.ask_all(questions(12))
    assert [i for i, a in enumerate(answers) if a.failed] == [7]
    assert all("response_format" in b for b in server.stats.bodies)


@pytest.mark.parametrize("fault", ["400", "no-access"])
def test_a_server_that_refuses_everything_is_asked_a_handful_of_times(fault: str, cache: AnswerCache) -> None:
    with Server(lambda _: fault) as server:  # twice as many questions as slots are on their way
        with pytest.raises(ConfigError if fault == "no-access" else RunError, match="refuse") as error:
            llm_for(server, cache, concurrency=2).ask_all(questions(200))
        assert server.stats.requests <= (4 if fault == "no-access" else 3 * (5 + 4))
    assert "not allowed" in str(error.value)
    assert KEY not in str(error.value)


def test_requests_refused_by_a_server_that_knows_better_fail_and_let_the_results_be_written(cache: AnswerCache) -> None:
    with Server(lambda s: "400" if int(s.user.split()[-1]) >= 20 else "ok") as server:
        for _ in range(2):
            answers = llm_for(server, cache, concurrency=1).ask_all(questions(40))
            assert all(a.data for a in answers[:20])
            assert all("400: the prompt holds [key]" in a.failed for a in answers[20:])
            assert sum("not asked: 5 requests in a row were refused" in a.failed for a in answers) in (13, 14, 15)
        assert server.stats.requests <= 20 + 2 * 3 * 7


@pytest.mark.parametrize("fault", ["too-long", "content", "content-403"])
def test_refusals_of_texts_end_nothing(fault: str, cache: AnswerCache) -> None:
    """A server may not like what the texts say, or how long they are: the next one may do."""
    with Server(lambda s: fault if s.n < 20 else "ok") as server:
        answers = llm_for(server, cache, concurrency=1).ask_all(questions(30))
        assert server.stats.requests == 30  # nor are other forms tried
    assert [bool(a.failed) for a in answers] == [True] * 20 + [False] * 10


# Limits of tokens, and second chances


def test_more_room_for_thoughts_is_paid_only_where_it_was_lacking(cache: AnswerCache) -> None:
    def behave(seen: Seen) -> str:
        number = int(seen.user.split()[-1])
        return "length" if number < 3 and seen.body["max_tokens"] < 1000 else "empty" if number == 9 else "ok"

    with Server(behave) as server:
        first = llm_for(server, cache).ask_all(questions(10))
        assert [i for i, a in enumerate(first) if a.failed] == [0, 1, 2, 9]
        asked = server.stats.requests
        assert asked == 6 + 2 * 4
        more = llm_for(server, cache, reasoning_tokens=4096)
        assert more.estimate(questions(10)).to_ask == 3
        assert more.estimate(questions(10)).cached == 7
        second = more.ask_all(questions(10))
        assert [i for i, a in enumerate(second) if a.failed] == [9]
        assert server.stats.requests == asked + 3
        assert [b["temperature"] for b in server.stats.bodies[asked:]] == [0.0] * 3  # a first try, not a third
        assert second[0].tokens_in == 3 * first[3].tokens_in  # all tries are told
        less = llm_for(server, cache, reasoning_tokens=100).ask_all(questions(10))  # and back again
        assert [a.data for a in less] == [a.data for a in second]
        assert all(a.cached for a in less)
        assert server.stats.requests == asked + 3


def test_a_usable_second_try_stands_under_every_limit(cache: AnswerCache) -> None:
    with Server(lambda s: "length" if s.times == 0 else "ok") as server:
        assert llm_for(server, cache).ask_all(questions(1))[0].data
        again = llm_for(server, cache, reasoning_tokens=4096).ask_all(questions(1))[0]
        assert (again.data, again.cached) == ({"word": "0", "levels": [1, 2, 3]}, True)
        assert server.stats.requests == 2


def test_what_is_cut_off_under_the_same_limit_stays_so(cache: AnswerCache) -> None:
    with Server(lambda _: "length") as server:
        for reasoning in (0, 4096, 4096, 100):
            answer = llm_for(server, cache, reasoning_tokens=reasoning).ask_all(questions(1))[0]
            assert "cut off" in answer.failed
        assert server.stats.requests == 4


def test_failures_are_asked_again_only_when_told_so(cache: AnswerCache) -> None:
    with Server(lambda s: "empty" if int(s.user.split()[-1]) < 4 else "ok") as server:
        llm_for(server, cache).ask_all(questions(20))
        asked = server.stats.requests
        assert asked == 16 + 2 * 4
        server.behave = lambda s: "empty" if s.user.endswith(" 0") else "ok"
        assert sum(a.data is None for a in llm_for(server, cache).ask_all(questions(20))) == 4
        assert server.stats.requests == asked
        retrying = llm_for(server, cache, retry_failed=True, concurrency=1)  # so that equals come one after the other
        assert retrying.estimate(questions(20)).to_ask == 4
        second = retrying.ask_all([*questions(20), *questions(20)])
        assert [i for i, a in enumerate(second[:20]) if a.failed] == [0]
        assert [(a.data, a.failed) for a in second[20:]] == [(a.data, a.failed) for a in second[:20]]
        assert server.stats.requests == asked + 3 + 2  # equal requests share the new tries of the hopeless one
        # What came the second time is an answer like any other, without the option too.
        third = llm_for(server, cache).ask_all(questions(20))
        assert [(a.data, a.failed) for a in third] == [(a.data, a.failed) for a in second[:20]]
        assert server.stats.requests == asked + 5


def test_a_cache_tag_keeps_answers_apart(cache: AnswerCache) -> None:
    with Server() as server:
        for tag in ("one", "two", "one"):
            llm_for(server, cache, cache_tag=tag).ask_all(questions(3))
        assert server.stats.requests == 6


def test_a_cache_of_the_first_version_keeps_its_answers(tmp_path: Path) -> None:
    """Version 1 had the limit of tokens in its keys."""
    path = tmp_path / "old.sqlite"
    with Server(lambda s: "length" if s.user.endswith(" 3") else "ok") as server:
        with AnswerCache(path) as cache:
            llm_for(server, cache).ask_all(questions(4))
            cache.transact([_to_version_1], durable=True)
        asked = server.stats.requests
        server.behave = lambda _: "ok"
        with AnswerCache(path) as cache:
            assert cache.select("PRAGMA user_version") == [(answers_module.FORMAT,)]
            llm = llm_for(server, cache)
            answers = llm.ask_all(questions(4))
            assert [a.cached for a in answers] == [True] * 4
            assert "cut off" in answers[3].failed
            assert server.stats.requests == asked
            assert llm._ledger.spent() == pytest.approx(server.stats.money)
            assert cache.select("SELECT count(*) FROM calls JOIN answers USING (key) WHERE calls.counted") == [(5,)]
            assert llm_for(server, cache, reasoning_tokens=99).ask_all(questions(4))[3].data
            assert server.stats.requests == asked + 1


def _to_version_1(connection: Any) -> None:
    connection.execute("DROP INDEX calls_unpriced")
    connection.execute("CREATE TABLE a1 (key TEXT PRIMARY KEY, at REAL NOT NULL, model TEXT NOT NULL, stage TEXT NOT"
                       " NULL, request TEXT NOT NULL, response TEXT NOT NULL, tokens_in INTEGER NOT NULL, tokens_out"
                       " INTEGER NOT NULL, counted INTEGER NOT NULL, nanos INTEGER, currency TEXT NOT NULL, seconds"
                       " REAL NOT NULL, failure TEXT NOT NULL) WITHOUT ROWID")  # fmt: skip
    connection.execute("INSERT INTO a1 SELECT 'old-' || key, at, model, stage, request, response, tokens_in,"
                       " tokens_out, counted, nanos, currency, seconds, failure FROM answers")  # fmt: skip
    connection.execute("DROP TABLE answers")
    connection.execute("ALTER TABLE a1 RENAME TO answers")
    connection.execute("ALTER TABLE calls DROP COLUMN counted")
    connection.execute("UPDATE calls SET key = 'old-' || key")
    connection.execute("PRAGMA user_version = 1")


# Keys and texts


def test_the_key_is_never_written_nor_shown(
    cache: AnswerCache, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def behave(seen: Seen) -> str:
        return "400" if seen.times == 0 else "ok"

    def make(seen: Seen) -> dict[str, Any]:
        return {**good(seen), "word": f"the key is {KEY}"}

    with Server(behave, make=make) as server:
        llm = llm_for(server, cache, structured="json_schema")
        failed, answered = llm.ask_all(questions(2)), llm.ask_all(questions(2))
        assert server.stats.keys == {f"Bearer {KEY}"}
    assert "the prompt holds [key]" in failed[0].failed
    assert answered[0].data == {"word": "the key is [key]", "levels": [1, 2, 3]}
    assert KEY not in repr(llm) + repr(llm.config) + repr(vars(llm)) + str(llm._ledger.rows())
    cache.transact([lambda c: None], durable=True)
    for file in cache.path.parent.iterdir():
        assert KEY.encode() not in file.read_bytes(), file
    assert KEY not in "".join(capfd.readouterr())


def test_settings_hold_no_secrets() -> None:
    with pytest.raises(ValidationError) as error:
        LLMConfig(api_key_env=KEY)
    assert KEY not in str(error.value)
    with pytest.raises(ValidationError) as error:
        LLMConfig(base_url=f"https://me:{KEY}@example.com/v1")
    assert KEY not in str(error.value)
    with pytest.raises(ValidationError):
        LLMConfig(base_url="localhost:8000")
    with pytest.raises(ValidationError, match="max_tokens"):
        LLMConfig(extra_body={"max_tokens": 100_000})


def test_a_hosted_server_needs_a_key_and_a_local_one_does_not(
    cache: AnswerCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY")
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    with pytest.raises(ConfigError, match="OPENAI_API_KEY is not set"):
        LLM("m", config=LLMConfig(), cache=cache, ledger=Ledger(cache))
    estimate = LLM("m", config=LLMConfig(), cache=cache, ledger=Ledger(cache), asks=False).estimate(questions(2))
    assert estimate.to_ask == 2
    with Server() as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.url)
        answers = LLM("m", config=LLMConfig(), cache=cache, ledger=Ledger(cache)).ask_all(questions(1))
        assert answers[0].data
        assert server.stats.keys == {"Bearer not-needed"}


@pytest.mark.parametrize("key", ["sk-one 0123456789", "sk-one\nsk-two", "sk-“0123456789”"])
def test_a_key_that_no_request_can_carry_is_refused_and_not_shown(
    key: str, cache: AnswerCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Server() as server:
        monkeypatch.setenv("OPENAI_API_KEY", key)
        with pytest.raises(ConfigError, match="OPENAI_API_KEY: the API key holds") as error:
            llm_for(server, cache).ask_all(questions(1))
        assert server.stats.requests == 0
    assert key[:6] not in str(error.value)
    assert cache.select("SELECT * FROM calls") == []


def test_texts_of_any_kind_survive(cache: AnswerCache) -> None:
    nasty = ["\ud800 half a pair 0", "nul \x00 here 1", "'; DROP TABLE answers; -- 2", "\u202e right to left 3", "  4"]
    requests = [Request("explain", "s", text, SCHEMA, "x", 64) for text in nasty]
    with Server(lambda s: "surrogate" if s.user.endswith("1") else "ok") as server:
        answers = llm_for(server, cache).ask_all(requests)
    assert [a.data["word"] if a.data else a.failed for a in answers] == ["0", "\ufffd", "2", "3", "4"]
    assert llm_for("http://127.0.0.1:9/v1", cache).ask_all(requests)[1].data == answers[1].data


@given(st.text(st.characters(codec=None), max_size=40))
@settings(max_examples=200, deadline=None)
def test_without_surrogates(text: str) -> None:
    clean = without_surrogates(text)
    clean.encode("utf-8")
    if not any("\ud800" <= c <= "\udfff" for c in text):
        assert clean == text


def test_extra_fields_of_the_body_are_sent_and_part_of_the_key(cache: AnswerCache) -> None:
    with Server() as server:
        for extra in ({"reasoning_effort": "low"}, {"reasoning_effort": "high"}, {"reasoning_effort": "low"}):
            llm_for(server, cache, extra_body=extra, reasoning_tokens=100).ask_all(questions(1))
        assert [b["reasoning_effort"] for b in server.stats.bodies] == ["low", "high"]
        assert server.stats.bodies[0]["max_tokens"] == 164


# Cancelling, loops, several processes


def test_below_a_running_loop(cache: AnswerCache) -> None:
    async def notebook() -> list[Answer]:
        with Server() as server:
            return llm_for(server, cache).ask_all(questions(5))

    assert all(a.data for a in asyncio.run(notebook()))


def test_a_full_disk_ends_asking(cache: AnswerCache, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = 0

    def full(*args: Any, **kwargs: Any) -> None:
        nonlocal calls
        calls += 1
        raise OSError(28, "No space left on device")

    from seamark.explain import asking

    monkeypatch.setattr(asking, "keep", full)
    with Server(latency_s=0.02) as server, pytest.raises(RunError, match="disk is full"):
        llm_for(server, cache, concurrency=4).ask_all(questions(100))
    assert calls >= 1
    assert server.stats.requests <= 12


def test_two_users_of_one_cache_ask_once(cache: AnswerCache, tmp_path: Path) -> None:
    """Two connections to one file, as two processes have; each question is asked by one of them."""
    with Server(latency_s=0.1) as server, AnswerCache(tmp_path / "answers.sqlite") as other:
        one, two = llm_for(server, cache), llm_for(server, other)
        found: list[Sequence[Answer]] = []
        threads = [threading.Thread(target=lambda m=m: found.append(m.ask_all(questions(40)))) for m in (one, two)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert server.stats.requests == 40
    assert [a.data for a in found[0]] == [a.data for a in found[1]]
    assert sum(a.cached for answers in found for a in answers) == 40


def test_a_foreign_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("This is no database, however long it may be. " * 50)
    with pytest.raises(FormatError):
        AnswerCache(tmp_path / "text")
    import sqlite3

    with sqlite3.connect(tmp_path / "other.sqlite") as other:
        other.execute("CREATE TABLE mine (x)")
    with pytest.raises(FormatError, match="not an answer cache"):
        AnswerCache(tmp_path / "other.sqlite")
    with AnswerCache(tmp_path / "new.sqlite") as new:
        new.transact([lambda c: c.execute(f"PRAGMA user_version = {answers_module.FORMAT + 1}")], durable=True)
    with pytest.raises(FormatError, match="version"):
        AnswerCache(tmp_path / "new.sqlite")


# Budgets


@pytest.mark.parametrize("seed", [0, 1])
def test_the_budget_is_never_exceeded_with_32_in_flight(cache: AnswerCache, seed: int) -> None:
    """The server bills every answer it makes, also those that are cut or come too late; the client knows only some."""
    draw = random.Random(seed)
    kinds = ["ok"] * 12 + ["cut", "slow", "429-plain", "500", "wrong-json", "no-usage"]

    def behave(seen: Seen) -> str:
        return draw.choice(kinds)

    budget = 40.0
    with Server(behave, latency_s=0.1, slow_s=2.0) as server:
        llm = llm_for(server, cache, budget=budget, timeout_s=1.5, retries=3)
        answers = llm.ask_all(questions(600))
        stopped = [a for a in answers if "budget reached" in a.failed]
        assert stopped
        assert server.stats.peak > 16  # fewer on a busy machine, more where the client gave up and the server goes on
        assert 0.4 * budget < server.stats.money <= budget
        assert server.stats.money <= llm._ledger.spent() <= budget
        before = server.stats.requests
        again = llm_for(server, cache, budget=budget, timeout_s=1.5).ask_all(questions(600))  # a restart counts on
        assert server.stats.money <= budget
        assert server.stats.requests <= before + 5
        assert sum("budget reached" in a.failed for a in again) >= len(stopped) - 5
        more = llm_for(server, cache, budget=400.0, timeout_s=1.5).ask_all(questions(600))
    assert sum(a.data is not None for a in more) > 570


def test_a_budget_in_tokens(cache: AnswerCache) -> None:
    with Server(latency_s=0.01) as server:
        answers = llm_for(server, cache, prices=PriceTable(), budget_tokens=20_000).ask_all(questions(300))
    assert 0 < sum(a.data is not None for a in answers) < 300
    assert sum(a.tokens_in + a.tokens_out for a in answers) <= 20_000
    assert all(a.cost is None for a in answers if a.data)


def test_a_budget_may_raise(cache: AnswerCache) -> None:
    with Server() as server:
        with pytest.raises(BudgetError, match="what was received is kept"):
            llm_for(server, cache, budget=2.0, on_budget="raise").ask_all(questions(100))
        asked = server.stats.requests
        assert 0 < asked < 100
        assert server.stats.money <= 2.0
        assert sum(a.cached for a in llm_for(server, cache).ask_all(questions(100))) == asked


def test_a_budget_of_nothing_asks_nothing(cache: AnswerCache) -> None:
    with Server() as server:
        answers = llm_for(server, cache, budget=0.0).ask_all(questions(5))
        assert {a.failed for a in answers} == {"budget reached"}
        assert server.stats.requests == 0


def test_a_budget_in_money_needs_a_price(cache: AnswerCache) -> None:
    with pytest.raises(ConfigError, match="price of 'tester'"):
        llm_for("http://127.0.0.1:9/v1", cache, prices=PriceTable(), budget=1.0)


# Throughput


def test_the_slots_of_a_server_are_used(cache: AnswerCache) -> None:
    """The machine may be busy, so the bound is low; `benchmarks/llm_throughput.py` measures the true share (>= 0.9).

    At 0.5 s an answer the client's own work hides behind the waiting: 128 requests in 32 slots are 4 rounds, 2.0 s. A
    client that waited for the disk between rounds, or used fewer slots, would take 5 rounds or more.
    """
    with Server(latency_s=0.5, slots=32) as server:
        llm = llm_for(server, cache)
        llm.ask_all(questions(4))  # imports, tables
        begun = time.monotonic()
        answers = llm.ask_all(questions(132)[4:])
        seconds = time.monotonic() - begun
    assert all(a.data for a in answers)
    assert server.stats.peak == 32
    assert 128 / seconds >= 0.6 * (32 / 0.5), seconds


# Pieces


def test_retry_after_in_seconds_and_as_a_date() -> None:
    assert retry_after({"retry-after": "2"}) == 2.0
    assert retry_after({"retry-after": "Wed, 21 Oct 2015 07:28:10 GMT"}, now=1445412480.0) == 10.0
    assert retry_after({"retry-after": "Wed, 21 Oct 2015 07:28:10 GMT"}, now=1445412499.0) == 0.0
    assert retry_after({"retry-after-ms": "250", "retry-after": "9"}) == 0.25
    assert all(retry_after({"retry-after": bad}) is None for bad in ("", "soon", "inf", "nan"))
    assert retry_after({}) is None


def parsed(text: str, schema: Mapping[str, Any] = SCHEMA, **fields: Any) -> dict[str, Any] | str:
    return parse_reply(Reply(text=text, finish="stop", **fields), schema, ("x" * 50,))


def test_parsing() -> None:
    whole = '{"word": "a", "levels": [0, 10, 5]}'
    data = json.loads(whole)
    assert parsed(whole) == data
    assert parsed(f'First {{"word": 1}}, no: {whole}') == data
    assert parsed(f"<think>{whole.replace('a', 'draft')}</think> {whole}") == data
    assert parsed(f"thinking without a tag at the start</think>{whole}") == data
    assert "empty" in str(parsed(f"<think>never ends {whole}"))
    quoting = {"word": "on </think> alone", "levels": [0, 1, 2]}  # what a feature fires on may be called by its name
    for thoughts in ("", "<think>hm</think>\n", "hm</think>"):
        assert parsed(thoughts + json.dumps(quoting)) == quoting
    assert "no JSON" in str(parsed(f"<think>draft: {whole}</think> I cannot tell."))
    assert "levels[1]" in str(parsed('{"word": "a", "levels": [0, 11, 5]}'))
    assert "required" in str(parsed('{"levels": [0, 1, 5]}'))
    assert "additional" in str(parsed('{"word": "a", "levels": [0, 1, 5], "more": 1}')).lower()
    assert "no JSON" in str(parsed('{"word": "a", "levels": [NaN, 1, 5]}'))
    assert "no JSON" in str(parsed("[1, 2, 3]"))
    assert "levels[0]" in str(parsed('{"word": "a", "levels": [true, 1, 5]}'))
    assert "echo" in str(parsed('{"word": "%s", "levels": [0, 1, 5]}' % ("x" * 60)))
    assert "echo" in str(parsed(f"The text says: {'x' * 50} {whole}"))
    # An object of thoughts counts only where they end with it, one of an answer cut off only where it is whole.
    assert parsed("", thoughts=f"so: {whole}") == data
    assert "thoughts only" in str(parsed("", thoughts=f"perhaps {whole}, or not?"))
    cut = Reply(text='{"a": ' + whole, finish="length")
    assert "cut off" in str(parse_reply(cut, SCHEMA))
    assert parse_reply(Reply(text=whole, finish="length"), SCHEMA) == data


@pytest.mark.parametrize("bomb", ["[" * 200_000, '{"a":' * 100_000, "{" * 200_000, '{"levels": [' + "9" * 10_000 + "]}",
                                  "```json\n" * 20_000])  # fmt: skip
def test_hostile_answers_are_refused_quickly(bomb: str) -> None:
    begun = time.monotonic()
    assert isinstance(parsed(bomb), str)
    assert time.monotonic() - begun < 5


@given(st.text(max_size=200))
@settings(max_examples=200, deadline=None)
def test_no_text_breaks_the_parser(text: str) -> None:
    found = parsed(text)
    assert isinstance(found, str)
    assert found


def test_of_different_answers_none_is_taken() -> None:
    """The first may be quoted from a text that pretends to be an answer."""
    whole = '{"word": "a", "levels": [0, 10, 5]}'
    injected, fenced = whole.replace("a", "HACKED"), f"```json\n{whole}\n```"
    for text in (f"A text says {injected}; I say {whole}", f"```\n{injected}\n``` is quoted, so {fenced}",
                 f"```\n{injected}\n``` is quoted, so {whole}", injected + fenced):  # fmt: skip
        assert parsed(text) == "2 different answers in one"
    assert parsed(f"{whole}\nThat is, as a block:\n{fenced}") == json.loads(whole)


def test_answers_nested_as_deep_as_can_be_read_are_refused() -> None:
    """Near the limit an object can be read, but no longer be quoted in the reason why it does not fit."""
    for depth in range(1, 1200):
        assert isinstance(parsed(f'{{"word": "a", "levels": {"[" * depth}{"]" * depth}}}'), str)


def test_strict_output_only_for_closed_schemas() -> None:
    def strict(schema: dict[str, Any]) -> bool:
        request = Request("s", "a", "b", schema, "x")
        question = Question.of(request, 0, "m", LLMConfig(base_url="http://h/v1"))
        body = Form("json_schema", "max_tokens").body(question)
        return bool(body["response_format"]["json_schema"]["strict"])

    assert strict(SCHEMA)
    assert not strict({**SCHEMA, "required": ["word"]})
    assert not strict({k: v for k, v in SCHEMA.items() if k != "additionalProperties"})


def test_the_worst_case_covers_any_tokenizer() -> None:
    for text in ("plain words", "航海标志" * 20, "\U0001f6a2" * 30, "\x00\x01"):
        question = Question.of(Request("s", text, text, SCHEMA, "x"), 0, "m", LLMConfig(base_url="http://h/v1"))
        assert question.worst_tokens_in() > 2 * len(text.encode())
