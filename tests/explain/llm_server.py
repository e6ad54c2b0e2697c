"""A local server that speaks OpenAI's chat completions protocol, and misbehaves as told.

In tests it runs in a thread (`with Server(behave) as server`), for benchmarks as a program of its own
(`python llm_server.py --latency 0.05 --slots 32` prints its address). It keeps count of what a paid service would have
billed: every answer it made, whether it arrived or not.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import email.utils
import json
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

INPUT, OUTPUT = 1000.0, 2000.0
"""Prices per million tokens that the server bills."""


@dataclass(frozen=True)
class Seen:
    """What a behaviour decides by."""

    n: int
    """Requests before this one."""
    times: int
    """Requests with the same user text before this one."""
    body: dict[str, Any]

    @property
    def user(self) -> str:
        return str(self.body["messages"][-1]["content"])

    @property
    def system(self) -> str:
        return str(self.body["messages"][0]["content"])


@dataclass
class Stats:
    """What the server saw and billed."""

    requests: int = 0
    peak: int = 0
    """Most requests in flight at a time."""
    money: float = 0.0
    """Billed, for every answer that was made."""
    delivered: Counter[str] = field(default_factory=Counter)
    """User text -> answers that were made and sent whole."""
    made: Counter[str] = field(default_factory=Counter)
    """User text -> answers that were made."""
    keys: set[str] = field(default_factory=set)
    bodies: list[dict[str, Any]] = field(default_factory=list)


def good(seen: Seen) -> dict[str, Any]:
    """The usable answer of these tests: a word and three levels."""
    return {"word": seen.user.split()[-1], "levels": [1, 2, 3]}


Behaviour = Callable[[Seen], str]


class Server:
    """`behave(seen)` names what happens to each request: a key of `_ANSWERS`, or one of the faults in `_handle`."""

    def __init__(
        self, behave: Behaviour = lambda _: "ok", *, latency_s: float = 0.0, slots: int | None = None,
        slow_s: float = 3.0, per_second: int | None = None, make: Callable[[Seen], dict[str, Any]] = good,
    ) -> None:  # fmt: skip
        self.behave, self.latency_s, self.slow_s, self.per_second, self.make = (
            behave, latency_s, slow_s, per_second, make)  # fmt: skip
        self.stats = Stats()
        self._slots_n, self._times, self._window, self._in_flight = slots, Counter[str](), (0, 0), 0
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self.url = ""

    def __enter__(self) -> Server:
        self._thread.start()
        assert self._ready.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)

    def _serve(self) -> None:
        self._slots = asyncio.Semaphore(self._slots_n) if self._slots_n else contextlib.nullcontext()
        server = self._loop.run_until_complete(asyncio.start_server(self._connected, "127.0.0.1", 0, backlog=512))
        self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
        self._ready.set()
        self._loop.run_forever()
        server.close()
        tasks = asyncio.all_tasks(self._loop)
        for task in tasks:
            task.cancel()
        if tasks:
            self._loop.run_until_complete(asyncio.wait(tasks))
        self._loop.close()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                first, *lines = head.strip().split("\r\n")
                headers = {k.lower(): v.strip() for k, v in (line.split(":", 1) for line in lines)}
                body = await reader.readexactly(int(headers.get("content-length", 0)))
                if first.startswith("GET"):
                    self._send(writer, 200, json.dumps(self._public_stats()))
                elif not await self._request(writer, headers, json.loads(body)):
                    return
                await writer.drain()
        except (asyncio.IncompleteReadError, asyncio.CancelledError, ConnectionError):
            pass
        finally:
            writer.close()

    def _public_stats(self) -> dict[str, Any]:
        s = self.stats
        return {"requests": s.requests, "peak": s.peak, "money": s.money, "made": sum(s.made.values())}

    async def _request(self, writer: asyncio.StreamWriter, headers: dict[str, str], body: dict[str, Any]) -> bool:
        """Serve one request; False: the connection is cut."""
        seen = Seen(self.stats.requests, self._times[str(body["messages"][-1]["content"])], body)
        self.stats.requests += 1
        self.stats.keys.add(headers.get("authorization", ""))
        self.stats.bodies.append(body)
        self._times[seen.user] += 1
        self._in_flight += 1
        self.stats.peak = max(self.stats.peak, self._in_flight)
        try:
            if self.per_second is not None and self._over_rate():
                self._send(writer, 429, _error("rate limit"), {"Retry-After": "0.2"})
                return True
            async with self._slots:
                if self.latency_s:
                    await asyncio.sleep(self.latency_s)
                return await self._handle(writer, seen, self.behave(seen), headers)
        finally:
            self._in_flight -= 1

    def _over_rate(self) -> bool:
        now = int(time.monotonic() * 5)  # windows of 0.2 s
        n = self._window[1] if self._window[0] == now else 0
        self._window = (now, n + 1)
        return n >= self.per_second / 5  # type: ignore[operator]

    async def _handle(self, writer: asyncio.StreamWriter, seen: Seen, what: str, headers: dict[str, str]) -> bool:
        if what in _REFUSALS:
            status, message, extra = _REFUSALS[what]
            date = email.utils.formatdate(time.time() + 1.5, usegmt=True)
            said = message.replace("KEY", headers.get("authorization", "").removeprefix("Bearer "))
            self._send(writer, status, _error(said), {k: v.replace("DATE", date) for k, v in extra.items()})
            return True
        if what == "drop":
            writer.transport.abort()
            return False
        if what == "slow":
            self._bill(seen, 20)
            await asyncio.sleep(self.slow_s)
            self._send(writer, 200, json.dumps(_response(seen, json.dumps(self.make(seen)))))
            return True
        response = _ANSWERS[what](self, seen)
        text = response if isinstance(response, str) else json.dumps(response)
        usage = {} if isinstance(response, str) else response.get("usage") or {}
        self._bill(seen, int(usage.get("completion_tokens", 5)))
        if what == "cut":
            self._send(writer, 200, text, cut=True)
            await writer.drain()
            writer.transport.close()
            return False
        self.stats.delivered[seen.user] += 1
        self._send(writer, 200, text)
        return True

    def _bill(self, seen: Seen, tokens_out: int) -> None:
        self.stats.made[seen.user] += 1
        self.stats.money += (tokens_in(seen) * INPUT + tokens_out * OUTPUT) / 1e6

    @staticmethod
    def _send(
        writer: asyncio.StreamWriter, status: int, text: str, extra: dict[str, str] | None = None, cut: bool = False
    ) -> None:
        data = text.encode()
        lines = [f"HTTP/1.1 {status} X", "Content-Type: application/json", f"Content-Length: {len(data)}",
                 *(f"{k}: {v}" for k, v in (extra or {}).items()), "", ""]  # fmt: skip
        writer.write("\r\n".join(lines).encode() + (data[: len(data) // 2] if cut else data))


def tokens_in(seen: Seen) -> int:
    """What the server counts: a token a byte, the worst a tokenizer can do, and a template of ten tokens."""
    return len((seen.system + seen.user).encode()) + 10


def _error(message: str) -> str:
    return json.dumps({"error": {"message": message, "type": "test", "code": None}})


_REFUSALS: dict[str, tuple[int, str, dict[str, str]]] = {
    "429": (429, "slow down", {"Retry-After": "0.3"}),
    "429-date": (429, "slow down", {"Retry-After": "DATE"}),
    "429-tomorrow": (429, "daily limit reached", {"Retry-After": "40000"}),
    "429-plain": (429, "slow down", {}),
    "500": (500, "internal error", {}),
    "503": (503, "overloaded", {"Retry-After": "0.1"}),
    "401": (401, "Incorrect API key provided: KEY", {}),
    "400": (400, "the prompt holds KEY which is not allowed", {}),
    "no-access": (403, "your account is not allowed to use this model", {}),
    "too-long": (400, "This model's maximum context length is 4096 tokens", {}),
    "content": (400, "The response was filtered by the content management policy", {}),
    "content-403": (403, "Your input was flagged by moderation", {}),
    "404": (404, "model not found", {}),
    "no-format": (400, "response_format is not supported by this model", {}),
    "no-max-tokens": (400, "Unsupported parameter: 'max_tokens' is not supported. Use 'max_completion_tokens'.", {}),
    "no-temperature": (400, "Unsupported value: 'temperature' does not support 0 with this model", {}),
}


def _response(seen: Seen, content: Any, finish: str = "stop", usage: bool = True, **message: Any) -> dict[str, Any]:
    out = max(len(str(content)) // 4, 1)
    found: dict[str, Any] = {
        "id": "x", "object": "chat.completion", "created": 0, "model": seen.body["model"],
        "choices": [{"index": 0, "finish_reason": finish, "message": {"role": "assistant", "content": content,
                                                                      **message}}],
    }  # fmt: skip
    if usage:
        found["usage"] = {"prompt_tokens": tokens_in(seen), "completion_tokens": out,
                          "total_tokens": tokens_in(seen) + out}  # fmt: skip
    return found


def _whole(server: Server, seen: Seen) -> str:
    return json.dumps(server.make(seen))


_ANSWERS: dict[str, Callable[[Server, Seen], dict[str, Any] | str]] = {
    "ok": lambda s, seen: _response(seen, _whole(s, seen)),
    "cut": lambda s, seen: _response(seen, _whole(s, seen)),
    "empty": lambda s, seen: _response(seen, ""),
    "null": lambda s, seen: _response(seen, None),
    "wrong-json": lambda s, seen: _response(seen, '{"word": "x", "levels": [1, 2'),
    "wrong-length": lambda s, seen: _response(seen, json.dumps({**s.make(seen), "levels": [1]})),
    "echo": lambda s, seen: _response(seen, seen.user),
    "fenced": lambda s, seen: _response(seen, f"Sure! Here it is:\n```json\n{_whole(s, seen)}\n```\nAnything else?"),
    "chatty": lambda s, seen: _response(seen, f"I would say {_whole(s, seen)} and nothing more {{really}}."),
    "thinks": lambda s, seen: _response(seen, f'<think>maybe {{"word": "no"}}?</think>\n{_whole(s, seen)}'),
    "thinks-apart": lambda s, seen: _response(seen, _whole(s, seen), reasoning_content="hm, {}"),
    "only-thoughts": lambda s, seen: _response(seen, None, reasoning_content="hm, let me see {"),
    "all-in-thoughts": lambda s, seen: _response(seen, None, reasoning_content=_whole(s, seen)),
    "length": lambda s, seen: _response(seen, '{"word": "x", "lev', finish="length"),
    "filter": lambda s, seen: _response(seen, "", finish="content_filter"),
    "refusal": lambda s, seen: _response(seen, None, refusal="I cannot help with that."),
    "no-usage": lambda s, seen: _response(seen, _whole(s, seen), usage=False),
    "page": lambda s, seen: "<html>It works!</html>",
    "error-in-200": lambda s, seen: {"error": {"message": "upstream failed", "code": 502}},
    "no-choices": lambda s, seen: {"id": "x", "choices": []},
    "surrogate": lambda s, seen: _response(seen, '{"word": "\\ud800", "levels": [1, 2, 3]}'),
}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--latency", type=float, default=0.05)
    parser.add_argument("--slots", type=int, default=32)
    options = parser.parse_args()
    with Server(latency_s=options.latency, slots=options.slots) as server:
        print(server.url, flush=True)
        sys.stdin.read()  # until whoever started it goes away


if __name__ == "__main__":
    main()
