"""Many questions to one server: what is known comes from the cache, the rest is asked, up to N at a time.

    look up, hold the worst cost (`ledger.begin`) → wait for a slot → send → leave the slot → commit → read → check

Twice as many questions are on their way as there are slots, so that a slot never waits for the disk.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from seamark.errors import ConfigError, RunError
from seamark.explain import ledger as books
from seamark.explain.answers import AnswerCache, GroupCommit, Stored, find, find_all, keep
from seamark.explain.ledger import BudgetError, Call, Hit, Limits, Verdict
from seamark.explain.parsing import read_reply
from seamark.explain.past import Check, Past, Read, Tally
from seamark.explain.prices import Price
from seamark.explain.questions import BYTES_PER_TOKEN, Answer, LLMConfig, Question, Request
from seamark.explain.totals import why_unknown
from seamark.explain.transport import Form, Received, Transport, Trouble

BUDGET = "budget reached"
INTERRUPTED = "interrupted"
MAX_BACKOFF_S = 30.0
HANDFUL = 5
"""Requests refused in a row, for nothing in their texts, from which on no more are sent."""
_UNKNOWN_FIX = "Add the prices to a table (--prices), limit tokens (--budget-tokens), or choose another cache"


@dataclass
class Forms:
    """What a server was found to take; shared by all that is asked of it."""

    form: Form
    proven: set[Form] = field(default_factory=set)


@dataclass(frozen=True)
class Books:
    """Where calls are entered, and what they may take."""

    cache: AnswerCache
    session: int
    run: str
    limits: Limits
    price: Price | None
    currency: str


class Asking:
    """One round of questions. Lives in one event loop; only `interrupt` may be called from another thread."""

    def __init__(self, model: str, config: LLMConfig, transport: Transport, accounts: Books, forms: Forms) -> None:
        self._model, self._config, self._transport, self._books, self._forms = model, config, transport, accounts, forms
        self._slots = asyncio.Semaphore(config.concurrency)
        self._commits = GroupCommit(accounts.cache)
        self._flying: dict[tuple[str, int], asyncio.Future[Stored | str]] = {}  # by key and limit of tokens
        self._hits: list[Hit] = []
        self._fresh: dict[tuple[str, int], Read] = {}  # answers just read, until they are used
        self._stop, self._why_stopped = asyncio.Event(), ""
        self._fatal: BaseException | None = None
        self._settled = asyncio.Event()
        self._closed_until = 0.0
        self._failures = self._refusals = 0  # in a row
        self._retried: dict[str, int] = {}  # first key of a request that had failed -> the try it goes on with
        self._tasks: list[asyncio.Task[None]] = []
        self._random = random.Random()  # jitter moves when a request is sent, never what comes back

    async def run(
        self, requests: Sequence[Request], check: Check | None, advance: Callable[[int], None]
    ) -> list[Answer]:
        """Answers in order. Raises only what ends all asking: a refused key, a full disk, a budget if so configured."""
        answers: list[Answer | None] = [None] * len(requests)
        numbers = iter(range(len(requests)))

        async def work() -> None:
            for i in numbers:
                if self._fatal is not None or self._why_stopped == INTERRUPTED:
                    return
                try:
                    answers[i] = await self._answer(requests[i], check)
                except Exception as e:
                    self._end(e)
                advance(1)

        async with self._transport:
            self._tasks = [asyncio.create_task(work()) for _ in range(min(len(requests), 2 * self._config.concurrency))]
            if self._tasks:
                await asyncio.wait(self._tasks)
            await self._commits.flush()
        if self._hits:
            await self._enter_hits()
        if self._fatal is not None:
            raise self._fatal
        return [answer or Answer(None, self._why_stopped or INTERRUPTED) for answer in answers]

    async def _enter_hits(self) -> None:
        hits, accounts = self._hits, self._books
        await self._commits.do(lambda c: books.count_hits(c, accounts.session, accounts.run, self._model, hits))

    def interrupt(self, loop: asyncio.AbstractEventLoop) -> None:
        """Send nothing more; answers in flight have `grace_s` to arrive. For other threads."""

        def halt() -> None:
            self._halt(INTERRUPTED)
            loop.call_later(self._config.grace_s, lambda: [task.cancel() for task in self._tasks])

        with contextlib.suppress(RuntimeError):  # the loop has just ended by itself
            loop.call_soon_threadsafe(halt)

    def _halt(self, why: str) -> None:
        self._why_stopped = self._why_stopped or why
        self._stop.set()

    def _end(self, error: BaseException) -> None:
        self._fatal = self._fatal or error
        self._halt(str(error))

    # One request: up to `tries` questions.

    async def _answer(self, request: Request, check: Check | None) -> Answer:
        past: Past = await self._commits.do(
            lambda c: Past.of(request, self._model, self._config, lambda key: find_all(c, key))
        )
        tally = Tally(request, check, self._books.currency)
        for question, stored in past.answers():
            self._hits.append(Hit(question.stage, stored))
            if (good := tally.read(question, stored)) is not None:
                return good
        start = past.start()
        if start:  # equal requests of a round share their new tries
            start = self._retried.setdefault(past.question(0).key(), start)
        for n in past.open_tries(start):
            question = past.question(n)
            key = question.key()
            got, from_cache = await self._once(question, key)
            if isinstance(got, str):
                return tally.failed(got)
            fresh = self._fresh.pop((key, question.max_tokens), None)
            if (good := tally.read(question, got, cached=from_cache, fresh=fresh)) is not None:
                return good
        return tally.failed()

    async def _once(self, question: Question, key: str) -> tuple[Stored | str, bool]:
        """The stored answer (and whether it was there before), or why there is none. The same at once is asked once."""
        at = (key, question.max_tokens)
        if (flying := self._flying.get(at)) is not None:
            got = await asyncio.shield(flying)
            if isinstance(got, Stored):
                self._hits.append(Hit(question.stage, got))
            return got, True
        mine: asyncio.Future[Stored | str] = asyncio.get_running_loop().create_future()
        self._flying[at] = mine
        got, from_cache = INTERRUPTED, False
        try:
            got, from_cache = await self._fetch(question, key)
        finally:
            del self._flying[at]
            mine.set_result(got)
        if from_cache and isinstance(got, Stored):
            self._hits.append(Hit(question.stage, got))
        return got, from_cache

    # One question: sent until it is answered, refused for good, or patience ends.

    async def _fetch(self, question: Question, key: str) -> tuple[Stored | str, bool]:
        patience = _Patience(self._config, self._random)
        forms = [self._forms.form]
        tried: set[Form] = set()
        while True:
            begun = await self._begin(question, key)
            if not isinstance(begun, int):
                return begun, isinstance(begun, Stored)
            form = forms[-1]
            outcome = await self._send(question, key, form, begun)
            if outcome is None:
                continue
            if isinstance(outcome, Stored):
                self._failures = self._refusals = 0
                self._forms.proven.add(form)
                if tried:
                    self._forms.form = form
                return outcome, False
            if outcome.kind == "bad":
                tried.add(form)
                forms = self._other_forms(form, forms[:-1], outcome.reason, tried)
                if forms:
                    continue
            if outcome.kind == "bad":
                await self._refused(outcome)
            why = self._failed(outcome, patience)
            if why:
                return why, False
            await self._nap(patience.wait_s(outcome))

    def _other_forms(self, form: Form, waiting: list[Form], reason: str, tried: set[Form]) -> list[Form]:
        """Forms still to try, the next one last."""
        plainer = form.plainer(reason, self._config, proven=form in self._forms.proven)
        if plainer and self._forms.form != form:
            plainer.insert(0, self._forms.form)  # others found out meanwhile
        return [f for f in [*waiting, *reversed(plainer)] if f not in tried]

    def _failed(self, trouble: Trouble, patience: _Patience) -> str:
        """Why a question is given up now, or "" where it is to be sent again."""
        if trouble.kind == "fatal":
            self._end(trouble.error or RunError(trouble.reason))
            return trouble.reason
        if trouble.kind == "bad":
            return trouble.reason
        if trouble.kind == "busy" and trouble.wait_s is not None:
            # The server means all who ask, not only this one.
            if trouble.wait_s > self._config.patience_s:
                self._halt(f"not asked: the server wants to be left alone for {trouble.wait_s:,.0f} s")
            self._closed_until = max(
                self._closed_until, time.monotonic() + min(trouble.wait_s, self._config.patience_s)
            )
        why = patience.ends(trouble)
        if why:
            self._failures += 1
            if self._failures >= max(8, self._config.concurrency):
                self._halt(f"not asked: {self._failures} requests in a row failed, the last one with {trouble.reason}")
        return why

    async def _refused(self, trouble: Trouble) -> None:
        """A request was turned down whatever its form: after some in a row, so would be the others."""
        self._refusals += not trouble.about_text
        if self._refusals < HANDFUL or trouble.about_text or self._stop.is_set():
            return
        what = f"{self._refusals} requests in a row were refused, the last one with {trouble.reason}"
        answered = "SELECT 1 FROM calls WHERE model = ? AND state = 'answered' LIMIT 1"
        if await self._commits.do(lambda c: c.execute(answered, (self._model,)).fetchone()):
            self._halt(f"not asked: {what}")
        else:  # the model never answered: it is no matter of these requests
            fix = "See what the server says; --base-url and the model's name say where requests go"
            self._end(RunError(what, where=self._transport.server, fix=fix))

    async def _begin(self, question: Question, key: str) -> Stored | int | str:
        """The call's number once it may be sent; or the answer; or why it may not be sent."""
        worst_in, price = question.worst_tokens_in(), self._books.price
        call = Call(
            session=self._books.session, run=self._books.run, key=key, stage=question.stage, model=self._model,
            currency=self._books.currency, bytes_in=question.bytes_in(), held_tokens=worst_in + question.max_tokens,
            held_nanos=None if price is None else price.worst_nanos(worst_in, question.max_tokens),
            max_tokens=question.max_tokens,
        )  # fmt: skip
        while True:
            while (closed := self._closed_until - time.monotonic()) > 0 and not self._stop.is_set():
                await self._nap(closed + self._random.uniform(0, 0.05))
            if self._stop.is_set():  # what is known is still given
                return await self._commits.do(lambda c: find(c, key, question.max_tokens)) or self._why_stopped
            begun = await self._commits.do(lambda connection: books.begin(connection, call, self._books.limits))
            if begun is Verdict.UNKNOWN:
                why = await self._commits.do(lambda c: why_unknown(c, call.run, call.currency))
                self._end(ConfigError(f"a budget in money cannot hold: {why}", where="budget", fix=_UNKNOWN_FIX))
                return why
            if begun is Verdict.OVER:
                if self._config.on_budget == "raise":
                    self._end(BudgetError("the budget does not allow the next request",
                                          fix="Raise it and run again: what was received is kept"))  # fmt: skip
                return BUDGET
            if not isinstance(begun, Verdict):
                return begun
            settled = self._settled
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(settled.wait(), 0.2)  # another process settles without a word to this one

    async def _send(self, question: Question, key: str, form: Form, number: int) -> Stored | Trouble | None:
        """Send a begun call and settle it; None: it was not sent after all (the server closed its door meanwhile)."""
        outcome: Received | Trouble | None = None
        state = "unsent"
        try:
            async with self._slots:
                if not (self._stop.is_set() or self._closed_until > time.monotonic()):
                    state = "lost"
                    outcome = await self._transport.send(question, form)
        except BaseException:
            self._commits.post(_settling(number, state, INTERRUPTED))  # cancelled: only `flush` waits for it
            raise
        if isinstance(outcome, Received):
            stored = self._stored(question, key, outcome)
            await self._commits.do(_keeping(question, stored, number), durable=True)
        elif outcome is None:
            await self._commits.do(_settling(number, "unsent"))
        else:
            state = "lost" if outcome.kind == "lost" else "refused"
            await self._commits.do(_settling(number, state, outcome.reason))
        self._settled.set()
        self._settled = asyncio.Event()
        return stored if isinstance(outcome, Received) else outcome

    def _stored(self, question: Question, key: str, received: Received) -> Stored:
        reply = read_reply(received.body)
        text, data = self._fresh[key, question.max_tokens] = question.read(received.body)
        tokens_in, tokens_out = (reply.tokens_in, reply.tokens_out) if reply else (None, None)
        counted = tokens_in is not None and tokens_out is not None
        price, nanos = self._books.price, None
        if price is not None and tokens_in is not None and tokens_out is not None:
            nanos = price.nanos(tokens_in, tokens_out, reply.tokens_in_cached if reply else 0)
        return Stored(
            key=key, response=received.body, counted=counted, nanos=nanos, currency=self._books.currency,
            tokens_in=round(question.bytes_in() / BYTES_PER_TOKEN) if tokens_in is None else tokens_in,
            tokens_out=round(len(text.encode()) / BYTES_PER_TOKEN) if tokens_out is None else tokens_out,
            seconds=received.seconds, failure=data if isinstance(data, str) else "", max_tokens=question.max_tokens,
            cut=isinstance(data, str) and reply is not None and reply.finish == "length",
        )  # fmt: skip

    async def _nap(self, seconds: float) -> None:
        """Sleep, unless asking ends meanwhile."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._stop.wait(), max(seconds, 0.0))


class _Patience:
    """How often, and for how long, one question has been in trouble."""

    def __init__(self, config: LLMConfig, jitter: random.Random) -> None:
        self._config, self._jitter = config, jitter
        self._failures, self._refusals, self._busy_since = 0, 0, 0.0

    def ends(self, trouble: Trouble) -> str:
        """Enter a trouble; why it was one too many, or ""."""
        if trouble.kind == "busy":
            now = time.monotonic()
            self._busy_since = self._busy_since or now
            self._refusals += 1
            if now - self._busy_since + (trouble.wait_s or 0.0) > self._config.patience_s:
                return f"{trouble.reason} (busy for more than {self._config.patience_s:g} s)"
            return ""
        self._failures += 1
        return f"{trouble.reason} (sent {self._failures} times)" if self._failures > self._config.retries else ""

    def wait_s(self, trouble: Trouble) -> float:
        """Seconds until the next try: what the server asks for, else doubling, cut at random by up to half."""
        if trouble.kind == "busy" and trouble.wait_s is not None:
            return 0.0  # the door is closed for all until then
        steps = max(self._refusals if trouble.kind == "busy" else self._failures, 1)
        pause = min(self._config.backoff_s * 2.0 ** min(steps - 1, 16), MAX_BACKOFF_S) * self._jitter.uniform(0.5, 1.0)
        return max(pause, min(trouble.wait_s or 0.0, self._config.patience_s))


def _settling(number: int, state: Any, reason: str = "") -> Callable[[Any], None]:
    return lambda connection: books.settle(connection, number, state, reason)


def _keeping(question: Question, stored: Stored, number: int) -> Callable[[Any], None]:
    """The answer and what it cost, in one step: never the one without the other."""

    def op(connection: Any) -> None:
        keep(connection, stored, question.content(), model=question.model, stage=question.stage)
        books.settle_answered(connection, number, stored)

    return op
