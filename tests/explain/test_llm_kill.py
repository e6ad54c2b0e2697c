"""kill -9 and Ctrl-C in the middle of asking: nothing that was received is asked, or paid, a second time."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from llm_server import INPUT, OUTPUT, Server

from seamark.explain.answers import AnswerCache
from seamark.explain.ledger import Ledger
from seamark.explain.llm import LLM, LLMConfig, Request
from seamark.explain.prices import Price, PriceTable

PRICES = PriceTable(prices=(Price(model="*", input=INPUT, output=OUTPUT),))
N = 400
BUDGET = 400.0


def requests(n: int = N) -> list[Request]:
    schema = {"type": "object", "properties": {"word": {"type": "string"}, "levels": {"type": "array"}},
              "required": ["word", "levels"], "additionalProperties": False}  # fmt: skip
    return [Request("explain", "You explain.", f"A text about the harbour, number {i}", schema, "x", 64)
            for i in range(n)]  # fmt: skip


def model(url: str, cache: AnswerCache) -> LLM:
    config = LLMConfig(base_url=url, backoff_s=0.02, timeout_s=20, budget=BUDGET, grace_s=20)
    return LLM("tester", config=config, cache=cache, ledger=Ledger(cache, PRICES))


def client(url: str, path: str) -> None:
    """Asks for everything, and prints the number of each answer as it is used."""

    def check(request: Request, data: object) -> str:
        os.write(1, f"{request.user.split()[-1]}\n".encode())
        return ""

    with AnswerCache(Path(path)) as cache:
        model(url, cache).ask_all(requests(), check)


def start(server: Server, path: Path) -> subprocess.Popen[str]:
    command = [sys.executable, __file__, server.url, str(path)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                            env={**os.environ, "OPENAI_API_KEY": "sk-0123456789"})  # fmt: skip


def wait_for(server: Server, n: int, process: subprocess.Popen[str]) -> None:
    end = time.monotonic() + 60
    while sum(server.stats.delivered.values()) < n:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.002)


def stored(path: Path) -> set[str]:
    with AnswerCache(path) as cache:
        return {json_user for (json_user,) in cache.select("SELECT json_extract(request, '$.user') FROM answers")}


def test_kill_9_loses_nothing_that_was_received(tmp_path: Path) -> None:
    path = tmp_path / "answers.sqlite"
    with Server(latency_s=0.05) as server:
        doubtful = 0
        for target in (40, 110, 190):
            process = start(server, path)
            wait_for(server, target, process)
            process.kill()
            used = {f"A text about the harbour, number {i}" for i in process.communicate()[0].split()}
            kept = stored(path)
            assert used <= kept
            assert kept <= set(server.stats.delivered)
            # What was sent and is not kept was in flight: at most the 32 slots, and answers on their way to the disk.
            doubtful += len(set(server.stats.made) - kept)
            assert len(set(server.stats.made) - kept) <= 64
        kept, made = stored(path), dict(server.stats.made)
        assert len(kept) >= 40  # of 190; on a busy machine most of the others were in flight
        with AnswerCache(path) as cache:
            llm = model(server.url, cache)
            answers = llm.ask_all(requests())
            assert all(a.data for a in answers)
            assert all(server.stats.made[text] == made[text] for text in kept)
            assert server.stats.money <= BUDGET
            # The books know of every call that may have been billed without an answer.
            row = llm._ledger.rows()[0]
            unknown = sum(server.stats.made.values()) - N
            assert 0 < unknown <= row.lost <= 3 * 64
            assert server.stats.money <= llm._ledger.spent()
            assert f"{row.lost} requests were in flight when their process ended; they may have been billed (at most" \
                in llm._ledger.notes()[0]  # fmt: skip
            requests_so_far = server.stats.requests
            assert all(a.cached for a in llm.ask_all(requests()))
            assert server.stats.requests == requests_so_far


def test_a_rerun_beside_a_dead_process_does_not_wait_for_it(tmp_path: Path) -> None:
    path = tmp_path / "answers.sqlite"
    with Server(latency_s=30.0) as server:
        process = start(server, path)
        end = time.monotonic() + 60
        while server.stats.requests < 32 and time.monotonic() < end:
            time.sleep(0.01)
        process.kill()
        process.communicate()
        server.latency_s = 0.0
        begun = time.monotonic()
        with AnswerCache(path) as cache:
            assert all(a.data for a in model(server.url, cache).ask_all(requests(32)))
        assert time.monotonic() - begun < 15  # the dead one's calls would have lasted 20 s more


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_ctrl_c_keeps_what_is_in_flight(tmp_path: Path) -> None:
    path = tmp_path / "answers.sqlite"
    with Server(latency_s=0.3) as server:
        process = start(server, path)
        wait_for(server, 64, process)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=30)
        assert process.returncode != 0
        assert "KeyboardInterrupt" in said
        assert 64 <= server.stats.requests < N
        # What was sent was paid: all of it arrived, and all of it was kept.
        assert stored(path) == set(server.stats.made)
        assert sum(server.stats.made.values()) == server.stats.requests
        with AnswerCache(path) as cache:
            assert [(r.lost, r.answered) for r in Ledger(cache, PRICES).rows()] == [(0, server.stats.requests)]


if __name__ == "__main__":
    client(*sys.argv[1:])
