"""What the atlas's users wait for: searches at the API, pages and the landscape in a browser, against a real server."""

from __future__ import annotations

import contextlib
import http.client
import re
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

import numpy as np

from benchmarks import programs
from benchmarks.atlases.job import Job
from benchmarks.atlases.made import DOMAINS, HAN, Made, sae_id

if TYPE_CHECKING:
    from playwright.sync_api import Page

QUERIES = 300
START_S = 60.0
_LOADED = "performance.getEntriesByType('navigation')[0].loadEventEnd"


@contextlib.contextmanager
def server(job: Job) -> Iterator[int]:
    """`seamark serve` on a free port, in a process of its own; its port."""
    command = [*programs.SEAMARK, "serve", str(job.atlas), "--port", "0", "--read-only"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        try:
            yield _port(process)
        finally:
            process.terminate()
            process.communicate(timeout=20)


def _port(process: subprocess.Popen[str]) -> int:
    deadline, told = time.monotonic() + START_S, ""
    assert process.stdout is not None
    while time.monotonic() < deadline and process.poll() is None:
        told += process.stdout.readline()
        if found := re.search(r"http://127\.0\.0\.1:(\d+)", told):
            port = int(found[1])
            _wait(port, deadline)
            return port
    raise RuntimeError(f"the server did not start: {told[-300:]}")


def _wait(port: int, deadline: float) -> None:
    while True:
        try:
            get(port, "/api/v1/saes")
            return
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)


def get(port: int, path: str) -> bytes:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        body = answer.read()
    finally:
        connection.close()
    if answer.status != 200:
        raise RuntimeError(f"{answer.status} for {path}: {body[:200]!r}")
    return body


def queries(job: Job) -> list[dict[str, Any]]:
    """What people ask for, none of it twice in a round: words common and rare, beginnings of words as they are typed,
    two words, phrases, Chinese words of two characters, filters, sorting, further pages."""
    made, rng = Made(job.features), np.random.default_rng((1, job.round))

    def pick(low: int, high: int) -> int:
        return int(rng.integers(low, high))

    def some(values: Sequence[str]) -> str:
        return values[int(rng.integers(len(values)))]

    kinds: list[Callable[[], dict[str, Any]]] = [
        lambda: {"words": made.draw(rng, 1)[0]},
        lambda: {"words": made.words[pick(0, 30)]},
        lambda: {"words": made.words[pick(2000, 20_000)]},
        lambda: {"words": made.draw(rng, 1)[0][: pick(1, 4)]},
        lambda: {"words": " ".join(made.draw(rng, 2))},
        lambda: {"words": f'"{" ".join(made.draw(rng, 2))}"'},
        lambda: {"words": some(HAN) + some(HAN)},
        lambda: {"words": made.draw(rng, 1)[0], "domain": some(DOMAINS), "min_score": 0.3},
        lambda: {"words": made.draw(rng, 1)[0], "sort": "relevance"},
        lambda: {"domain": some(DOMAINS), "layer": 7 * pick(0, 5), "offset": pick(0, 500)},
        lambda: {"sae": sae_id(pick(0, 5)), "sort": "rating", "min_rating": pick(1, 5),
                 "max_score": round(rng.uniform(0.2, 0.8), 3)},
        lambda: {"min_score": round(rng.uniform(0, 0.7), 3), "sort": some(["score", "share", "contrast"])},
    ]  # fmt: skip
    return [kinds[i % len(kinds)]() for i in range(QUERIES)]


def search(job: Job) -> dict[str, Any]:
    """Milliseconds from request to the whole answer, one client, nothing asked before."""
    with server(job) as port:
        taken = []
        for query in queries(job):
            start = time.perf_counter()
            get(port, f"/api/v1/features?{urlencode(query)}")
            taken.append(1000 * (time.perf_counter() - start))
    p50, p95, p99 = np.percentile(taken, [50, 95, 99]).tolist()
    return {"p50_ms": p50, "p95_ms": p95, "p99_ms": p99, "max_ms": max(taken), "queries": len(taken)}


def pages(job: Job) -> dict[str, Any]:
    """Milliseconds from opening a page in a fresh browser until it is loaded (or, the landscape, drawn and ready)."""
    found: dict[str, Any] = {}
    with server(job) as port:
        for name, path in (("features_ms", "/features"), ("overview_ms", "/"), ("landscape_ready_ms", "/landscape")):
            with programs.browser() as browser:
                page = browser.new_page(viewport={"width": 1440, "height": 900})
                page.goto(f"http://127.0.0.1:{port}{path}", wait_until="load", timeout=120_000)
                found[name] = _ready(page) if name == "landscape_ready_ms" else page.evaluate(_LOADED)
    return found


def _ready(page: Page) -> float:
    # Not `wait_for_function`: it evaluates strings in the page, which the pages' policy forbids.
    page.wait_for_selector("html[data-ready]", state="attached", timeout=120_000)
    if page.evaluate("document.documentElement.dataset.ready") != "landscape":
        raise RuntimeError("the landscape did not become ready")
    return float(page.evaluate("performance.getEntriesByName('seamark-ready')[0].startTime"))
