"""Asking language models: any server that speaks OpenAI's protocol (vLLM, Ollama, hosted ones), at a known cost.

    with AnswerCache(Path("answers.sqlite")) as cache:
        llm = LLM("my-model", config=LLMConfig(base_url="http://localhost:8000/v1"), cache=cache, ledger=Ledger(cache))
        print(llm.estimate(requests))
        answers = llm.ask_all(requests)

Every answer lies in the cache before it is used, so a rerun costs nothing and a crash loses nothing that was paid; the
ledger knows what was spent. A failed, refused or unparseable answer comes back as failed with its reason, and is never
a value. Modules: `questions` (what is asked), `transport` (one request), `asking` (many), `parsing` (reading answers),
`answers` (the cache), `ledger` and `prices` (money).
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import threading
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any

from seamark.errors import ConfigError
from seamark.explain.answers import AnswerCache, Stored, open_session
from seamark.explain.asking import Asking, Books, Check, Forms
from seamark.explain.ledger import BudgetError, CostEstimate, Ledger, Limits
from seamark.explain.prices import NANO
from seamark.explain.questions import BYTES_PER_TOKEN, Answer, LLMConfig, Question, Request
from seamark.explain.transport import Form, Transport
from seamark.run import progress

__all__ = ["LLM", "Answer", "BudgetError", "Check", "CostEstimate", "LLMConfig", "Request"]

ENOUGH = 5
"""Answers of a stage from which on an estimate rests on them."""


class LLM:
    """A language model behind a server.

    Args:
        model: its name there.
        cache: where answers are kept. Several models may share it, and several processes.
        ledger: the books; its run shares one budget, whichever models are asked.

    Raises:
        ConfigError: OpenAI's own server without a key; a budget in money for a model whose price is not known.
    """

    def __init__(self, model: str, *, config: LLMConfig | None = None, cache: AnswerCache, ledger: Ledger) -> None:
        self.name, self.config = model, config or LLMConfig()
        self._cache, self._ledger = cache, ledger
        self._server = Transport(self.config).server
        self._price = ledger.prices.price(model, self._server)
        self._forms = Forms(Form.first(self.config, self._server))
        self._session: int | None = None
        if self.config.budget is not None and self._price is None:
            raise ConfigError(f"a budget in money, but the price of {model!r} at {self._server} is not known",
                              where="budget", fix="Add it to a price table (--prices), or limit tokens")  # fmt: skip

    def __repr__(self) -> str:
        return f"LLM({self.name!r}, {self._server!r})"

    def __enter__(self) -> LLM:
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing stays open between calls of `ask_all`; the cache is its owner's."""

    def ask_all(
        self, requests: Sequence[Request], check: Check | None = None, *, progress_title: str = ""
    ) -> list[Answer]:
        """Answers in the order of the requests; what is in the cache is not asked again, and equals are asked once.

        Args:
            check: says whether an object is usable: "" or why not (a wrong length, say). A question is then asked
                again, up to `config.tries` times, as are answers that do not fit the schema.
            progress_title: shows a progress bar on stderr; empty: none.

        Raises:
            ConfigError: the server refuses the key, or does not know the model.
            BudgetError: the budget is reached, and `config.on_budget` is "raise"; otherwise such requests come back as
                failed ("budget reached").
            RunError: the cache cannot be written (nothing more is sent then), or the account's credit is used up.
            KeyboardInterrupt: after answers in flight had `config.grace_s` to arrive; what was received is kept.
        """
        if not requests:
            return []
        shown = progress(progress_title, len(requests), "requests") if progress_title else _nothing()
        with shown as advance:
            return _run(self._asking, requests, check, advance)

    def _asking(self) -> Asking:
        """A round of questions; made within its event loop."""
        config = self.config
        if self._session is None:
            # A call waits at most a time-out for its slot, and another one for its answer.
            longest_s = 2 * config.timeout_s + 60
            self._session = self._cache.transact(
                [lambda c: open_session(c, self._ledger.run, self.name, self._server, longest_s)], durable=False
            )[0]
        limits = Limits(
            None if config.budget is None else int(Decimal(str(config.budget)) * NANO), config.budget_tokens
        )
        books = Books(self._cache, self._session, self._ledger.run, limits, self._price, self._ledger.prices.currency)
        return Asking(self.name, config, Transport(config), books, self._forms)

    def estimate(self, requests: Sequence[Request], check: Check | None = None) -> CostEstimate:
        """What `ask_all` is expected to take; asks nothing.

        Tokens to be sent: UTF-8 bytes x tokens per byte as measured on this model's answers in the cache, stage by
        stage; where there are fewer than 5, bytes / 4. Tokens to be received: their mean there; else half of what the
        answer may have. Second tries and repetitions are not foreseen.
        """
        still_open = [q for q in (self._open_question(request, check) for request in requests) if q is not None]
        questions = {q.key(): q for q in still_open}
        tokens_in = tokens_out = 0.0
        worst, measured = 0, 0
        stages = {stage: self._ledger.experience(self.name, stage) for stage in {q.stage for q in questions.values()}}
        for q in questions.values():
            n, per_byte, received = stages[q.stage] or (0, 0.0, 0.0)
            measured += n >= ENOUGH
            tokens_in += q.bytes_in() * per_byte if n >= ENOUGH else q.bytes_in() / BYTES_PER_TOKEN
            tokens_out += received if n >= ENOUGH else q.max_tokens / 2
            worst += self._price.worst_nanos(q.worst_tokens_in(), q.max_tokens) if self._price else 0
        basis = (
            f"{measured:,} of {len(questions):,} by this model's earlier answers; the others guessed: a token per "
            f"{BYTES_PER_TOKEN:g} bytes sent, half of the longest answer received"
        )
        price = self._price
        return CostEstimate(
            requests=len(requests), cached=len(requests) - len(still_open), to_ask=len(questions),
            tokens_in=round(tokens_in), tokens_out=round(tokens_out), basis=basis,
            currency=self._ledger.prices.currency,
            cost=price.nanos(round(tokens_in), round(tokens_out)) / NANO if price else None,
            worst_cost=worst / NANO if price else None,
            reason="" if price else f"the price of {self.name!r} at {self._server} is not known",
        )  # fmt: skip

    def _open_question(self, request: Request, check: Check | None) -> Question | None:
        """The first try of a request that is not in the cache; None where the cache decides it."""
        for attempt in range(request.attempt, request.attempt + self.config.tries):
            question = Question.of(request, attempt, self.name, self.config)
            stored = self._cache.get(question.key())
            if stored is None:
                return question
            if _usable(question, stored, request, check):
                return None
        return None


def _usable(question: Question, stored: Stored, request: Request, check: Check | None) -> bool:
    _, data = question.read(stored.response)
    return isinstance(data, Mapping) and not (check(request, data) if check is not None else "")


@contextlib.contextmanager
def _nothing() -> Any:
    yield lambda _: None


def _run(make: Any, requests: Sequence[Request], check: Check | None, advance: Any) -> list[Answer]:
    """Ask in a thread with an event loop of its own: works below a running loop (a notebook) as anywhere else.

    Ctrl-C reaches the caller's thread. It stops the asking, waits until what is in flight has been kept or given up,
    and is raised on.
    """
    done: concurrent.futures.Future[list[Answer]] = concurrent.futures.Future()
    running: list[tuple[Asking, asyncio.AbstractEventLoop]] = []

    async def main() -> list[Answer]:
        asking: Asking = make()
        running.append((asking, asyncio.get_running_loop()))
        return await asking.run(requests, check, advance)

    def work() -> None:
        try:
            done.set_result(asyncio.run(main()))
        except BaseException as e:
            done.set_exception(e)

    thread = threading.Thread(target=work, name="seamark-llm", daemon=True)
    thread.start()
    try:
        return done.result()
    except BaseException:
        if not done.done():
            for asking, loop in running:
                asking.interrupt(loop)
        thread.join()
        raise
