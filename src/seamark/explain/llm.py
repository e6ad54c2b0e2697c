"""Asking language models: any server that speaks OpenAI's protocol (vLLM, Ollama, hosted ones), at a known cost.

    with AnswerCache(Path("answers.sqlite")) as cache:
        llm = LLM("my-model", config=LLMConfig(base_url="http://localhost:8000/v1"), cache=cache, ledger=Ledger(cache))
        print(llm.estimate(requests))
        answers = llm.ask_all(requests)

Every answer lies in the cache before it is used, so a rerun costs nothing and a crash loses nothing that was paid; the
ledger knows what was spent. A failed, refused or unparseable answer comes back as failed with its reason, and is never
a value. Modules: `questions` (what is asked), `transport` (one request), `asking` (many), `parsing` (reading answers),
`answers` (the cache), `past` (what it knows of a request), `ledger`, `totals`, `estimates` and `prices` (money).
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import threading
from collections.abc import Sequence
from decimal import Decimal
from typing import Any

from seamark.errors import ConfigError
from seamark.explain.answers import AnswerCache, open_session
from seamark.explain.asking import Asking, Books, Forms
from seamark.explain.estimates import CostEstimate, plus
from seamark.explain.ledger import BudgetError, Ledger, Limits, reap
from seamark.explain.past import Check, Past, Tally
from seamark.explain.prices import NANO
from seamark.explain.questions import BYTES_PER_TOKEN, Answer, LLMConfig, Question, Request
from seamark.explain.totals import price_late
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
        asks: False: for `estimate` alone, which needs no key.

    Raises:
        ConfigError: OpenAI's own server without a key; a budget in money for a model whose price is not known.
    """

    def __init__(
        self, model: str, *, config: LLMConfig | None = None, cache: AnswerCache, ledger: Ledger, asks: bool = True
    ) -> None:
        self.name, self.config = model, config or LLMConfig()
        self._cache, self._ledger = cache, ledger
        self._server = Transport(self.config, sends=asks).server
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
            ConfigError: the server refuses the key, or does not know the model; a budget in money where nobody knows
                what the run has spent.
            BudgetError: the budget is reached, and `config.on_budget` is "raise"; otherwise such requests come back as
                failed ("budget reached").
            RunError: the cache cannot be written (nothing more is sent then), the account's credit is used up, or the
                server refuses one request after the other.
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
            run, prices = self._ledger.run, self._ledger.prices
            # Calls that were in flight when their process died have ended: only then do they get a price.
            self._session = self._cache.transact(
                [lambda c: open_session(c, run, self.name, self._server, longest_s), reap,
                 lambda c: price_late(c, run, prices)], durable=False,
            )[0]  # fmt: skip
        limits = Limits(
            None if config.budget is None else int(Decimal(str(config.budget)) * NANO), config.budget_tokens
        )
        books = Books(self._cache, self._session, self._ledger.run, limits, self._price, self._ledger.prices.currency)
        return Asking(self.name, config, Transport(config), books, self._forms)

    def estimate(self, requests: Sequence[Request], check: Check | None = None) -> CostEstimate:
        """What `ask_all` is expected to take; asks nothing.

        Tokens to be sent: UTF-8 bytes x tokens per byte as measured on this model's answers in the cache, stage by
        stage; where there are fewer than 5, bytes / 4. Tokens to be received: their mean there; else half of what the
        answer may have. Second tries and repetitions are not foreseen in what is expected, but in the worst case.
        """
        still_open = [q for q in (self._open(request, check) for request in requests) if q is not None]
        questions = {question.key(): (question, tries) for question, tries in still_open}
        tokens_in = tokens_out = 0.0
        once, worst, measured, sends = 0, 0, 0, self.config.retries + 1
        stages = {s: self._ledger.experience(self.name, s) for s in {q.stage for q, _ in questions.values()}}
        for q, tries in questions.values():
            n, per_byte, received = stages[q.stage] or (0, 0.0, 0.0)
            measured += n >= ENOUGH
            tokens_in += q.bytes_in() * per_byte if n >= ENOUGH else q.bytes_in() / BYTES_PER_TOKEN
            tokens_out += received if n >= ENOUGH else q.max_tokens / 2
            most = self._price.worst_nanos(q.worst_tokens_in(), q.max_tokens) if self._price else 0
            once, worst = once + most, worst + most * tries * sends
        basis = (
            f"{measured:,} of {len(questions):,} by this model's earlier answers; the others guessed: a token per "
            f"{BYTES_PER_TOKEN:g} bytes sent, half of the longest answer received"
        )
        price, spent = self._price, self._ledger.spent()
        once_cost, worst_cost = (amount / NANO if price else None for amount in (once, worst))
        return CostEstimate(
            requests=len(requests), cached=len(requests) - len(still_open), to_ask=len(questions),
            tokens_in=round(tokens_in), tokens_out=round(tokens_out), basis=basis,
            currency=self._ledger.prices.currency,
            cost=price.nanos(round(tokens_in), round(tokens_out)) / NANO if price else None,
            once_cost=once_cost, worst_cost=worst_cost,
            tries=self.config.tries, sends=sends, spent=spent, spent_reason=self._ledger.why_not_known(),
            budget_once=plus(spent, once_cost), budget=plus(spent, worst_cost),
            reason="" if price else f"the price of {self.name!r} at {self._server} is not known",
        )  # fmt: skip

    def _open(self, request: Request, check: Check | None) -> tuple[Question, int] | None:
        """The next try of a request and how many there may be; None where the cache decides it."""
        past = Past.of(request, self.name, self.config, self._cache.get)
        tally = Tally(request, check, self._ledger.prices.currency)
        if any(tally.read(question, stored) is not None for question, stored in past.answers()):
            return None
        tries = past.open_tries(past.start())
        return (past.question(tries[0]), len(tries)) if tries else None


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
