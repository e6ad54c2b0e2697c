"""How much of a server's limit the LLM client uses: `python -m benchmarks.llm_throughput` prints a row as JSON.

The server is a program of its own (`tests/explain/llm_server.py`) that works on 32 requests at a time and takes 50 ms
for each: 640 requests a second is all it can give. The client asks as it always does: each answer is committed to disk
before it is used, and each call is entered into the ledger. Both share the machine's cores, so this is a lower bound
for a server elsewhere. `disk_ms` is what one commit waits for the disk.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from benchmarks import harness
from benchmarks.harness import Claim, Row
from seamark.explain.answers import AnswerCache
from seamark.explain.ledger import Ledger
from seamark.explain.llm import LLM, LLMConfig, Request
from seamark.explain.prices import Price, PriceTable

SERVER = harness.ROOT / "tests" / "explain" / "llm_server.py"
LATENCY_S, SLOTS = 0.05, 32
WARM_UP = 128
TARGET = ">= 0.9"
NAME = "server_throughput_share"
_SCHEMA = {
    "type": "object", "required": ["word", "levels"], "additionalProperties": False,
    "properties": {"word": {"type": "string"}, "levels": {"type": "array", "items": {"type": "integer"}}},
}  # fmt: skip


def requests(n: int, begin: int = 0) -> list[Request]:
    """Questions of about the length of a segment simulation: some 1,500 characters."""
    text = "\n".join(f"{i}. The boat left the harbour before the storm reached the coast." for i in range(20))
    return [
        Request("simulate", "You predict where a feature of a model fires.", f"{text}\nQuestion {i}", _SCHEMA, "x", 64)
        for i in range(begin, begin + n)
    ]


def measure(n: int = 3000, latency_s: float = LATENCY_S, slots: int = SLOTS) -> Row:
    """Ask `n` questions (after a warm-up) and tell what share of slots / latency was reached.

    Returns:
        `share`, `per_s` (answers a second), `limit_per_s`, `cpu_ms` (of the client,
        per request), `disk_ms` (a commit alone), `n`.

    Raises:
        BenchmarkError: an answer is missing, or the server saw more or fewer requests than there are questions.
    """
    command = [sys.executable, str(SERVER), "--latency", str(latency_s), "--slots", str(slots)]
    with tempfile.TemporaryDirectory() as folder, \
         subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:  # fmt: skip
        assert server.stdout is not None
        assert server.stdin is not None
        url = server.stdout.readline().strip()
        try:
            return _measure(url, Path(folder) / "answers.sqlite", n, latency_s, slots)
        finally:
            server.stdin.close()


def _measure(url: str, path: Path, n: int, latency_s: float, slots: int) -> Row:
    os.environ["SEAMARK_BENCH_KEY"] = "none"  # never a real key
    prices = PriceTable(prices=(Price.model_validate({"model": "*", "input": 1, "output": 2}),))
    with AnswerCache(path) as cache:
        config = LLMConfig(base_url=url, concurrency=slots, api_key_env="SEAMARK_BENCH_KEY", budget=1e6)
        llm = LLM("bench", config=config, cache=cache, ledger=Ledger(cache, prices))
        llm.ask_all(requests(WARM_UP))
        disk_ms = 1000 * median(_commit_s(cache) for _ in range(20))
        todo = requests(n, WARM_UP)
        cpu, begun = time.process_time(), time.perf_counter()
        answers = llm.ask_all(todo)
        seconds, cpu = time.perf_counter() - begun, time.process_time() - cpu
        paid = sum(row.answered for row in llm._ledger.rows())
    if not all(a.data for a in answers) or paid != n + WARM_UP:
        raise harness.BenchmarkError(
            f"{sum(a.data is None for a in answers)} of {n} questions failed, {paid} were paid"
        )
    limit = slots / latency_s
    return {"share": n / seconds / limit, "per_s": n / seconds, "limit_per_s": limit, "cpu_ms": 1000 * cpu / n,
            "disk_ms": disk_ms, "n": n}  # fmt: skip


def _commit_s(cache: AnswerCache) -> float:
    begun = time.perf_counter()
    cache.transact([_touch], durable=True)
    return time.perf_counter() - begun


def _touch(connection: object) -> None:
    connection.execute("UPDATE sessions SET begun = begun + 1")  # type: ignore[attr-defined]


def claim(rows: list[Row]) -> Claim:
    """The claim of `make bench-explain`, from the rows of repeated runs."""
    return harness.from_runs(NAME, [row["share"] for row in rows], "share of 640 requests/s", TARGET)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.llm_throughput", description=__doc__)
    parser.add_argument("--n", type=int, default=3000, help="questions")
    parser.add_argument("--latency", type=float, default=LATENCY_S, help="seconds the server takes for an answer")
    options = parser.parse_args(arguments)
    print(json.dumps(measure(options.n, options.latency)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
