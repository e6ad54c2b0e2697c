"""What the cache holds for a request, try by try, and which tries are still to be asked."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from seamark.explain.answers import Stored
from seamark.explain.prices import NANO
from seamark.explain.questions import Answer, LLMConfig, Question, Request

Check = Callable[[Request, Mapping[str, Any]], str]
"""Whether an object is usable: "" or why not."""
Read = tuple[str, dict[str, Any] | str]
"""An answer's text, and its object or why it has none."""


@dataclass(frozen=True)
class Past:
    """The answers to a request that are known before anything is asked."""

    request: Request
    model: str
    config: LLMConfig
    tries: tuple[tuple[Question, tuple[Stored, ...]], ...]
    """From the first try on, as far as there are answers; several where limits of tokens differed."""

    @classmethod
    def of(cls, request: Request, model: str, config: LLMConfig, look: Callable[[str], list[Stored]]) -> Past:
        """What `look` finds under the keys of the tries. It goes on behind `config.tries`: failed ones may have been
        asked again."""
        found: list[tuple[Question, tuple[Stored, ...]]] = []
        while True:
            question = Question.of(request, request.attempt + len(found), model, config)
            stored = tuple(look(question.key()))
            if not stored:
                return cls(request, model, config, tuple(found))
            found.append((question, stored))

    def answers(self) -> Iterator[tuple[Question, Stored]]:
        """All of them, by try and limit."""
        return ((question, stored) for question, answers in self.tries for stored in answers)

    def question(self, n: int) -> Question:
        """What the n-th try asks."""
        return Question.of(self.request, self.request.attempt + n, self.model, self.config)

    def is_final(self, n: int) -> bool:
        """Whether the n-th try has an answer that counts under the present limit of tokens."""
        if n >= len(self.tries):
            return False
        question, answers = self.tries[n]
        return any(stored.counts(question.max_tokens) for stored in answers)

    def start(self) -> int:
        """The try that this round begins with: the first, or the first open one where failures are asked again."""
        if not self.config.retry_failed:
            return 0
        return next(n for n in range(len(self.tries) + 1) if not self.is_final(n))

    def open_tries(self, start: int) -> list[int]:
        """Tries that may be asked in a round, if none of the known answers is usable."""
        return [n for n in range(start, start + self.config.tries) if not self.is_final(n)]


class Tally:
    """The answers to one request as they are read: the first usable one, and what all of them took. What was paid in
    another currency is not known in `currency`."""

    def __init__(self, request: Request, check: Check | None, currency: str) -> None:
        self._request, self._check, self._currency = request, check, currency
        self._n = self._tokens_in = self._tokens_out = 0
        self._nanos: int | None = 0
        self._text = self._why = ""
        self._cached = True

    def read(
        self, question: Question, stored: Stored, *, cached: bool = True, fresh: Read | None = None
    ) -> Answer | None:
        """Enter an answer, and return the request's where it is usable. `fresh`: what `question.read` gave before."""
        self._n += 1
        self._cached = self._cached and cached
        self._tokens_in, self._tokens_out = self._tokens_in + stored.tokens_in, self._tokens_out + stored.tokens_out
        nanos = stored.nanos if stored.currency == self._currency or not stored.nanos else None
        self._nanos = None if self._nanos is None or nanos is None else self._nanos + nanos
        self._text, data = question.read(stored.response) if fresh is None else fresh
        if isinstance(data, str):
            self._why = data
            return None
        self._why = self._check(self._request, data) if self._check is not None else ""
        return None if self._why else self._answer(data, "", self._cached)

    def failed(self, why: str = "") -> Answer:
        """The request's answer where no usable one came; `why`: what kept the next try from one."""
        if not why:
            return self._answer(None, self._why, self._cached)
        return self._answer(None, f"{why} (after: {self._why})" if self._why else why, self._cached and self._n > 0)

    def _answer(self, data: dict[str, Any] | None, why: str, cached: bool) -> Answer:
        cost = None if self._nanos is None else self._nanos / NANO
        return Answer(data, why, self._text, self._tokens_in, self._tokens_out, cost, cached)
