"""One request over the wire, and what became of it: an answer, or what kind of trouble.

Seamark asks through the `openai` client with that client's own repetitions off: whether a request is sent again is
decided in one place (`asking.py`), which knows the budget. The API key lives in the client alone. Should a server
repeat it in an answer or an error, it is blotted out before anybody sees or stores it.
"""

from __future__ import annotations

import asyncio
import email.utils
import json
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from seamark.errors import ConfigError, RunError, SeamarkError
from seamark.explain.parsing import short
from seamark.explain.questions import DEFAULT_URL, LLMConfig, Question, server_name

if TYPE_CHECKING:
    from openai import APIConnectionError, APIStatusError, AsyncOpenAI

PLACEHOLDER = "not-needed"
"""Sent as API key where the environment has none: local servers ignore it."""
_UNSENT = ("ConnectError", "ConnectTimeout", "PoolTimeout")
_GATEWAY = (502, 504, 520, 522, 524)
"""A gateway gave up on a server that may still have answered, and billed."""
_ABOUT_SCHEMA = ("response_format", "json_schema", "json_object", "schema", "structured", "guided", "grammar")
_ABOUT_LENGTH = ("context length", "context window", "too large", "too long", "exceed")
_ABOUT_CONTENT = ("content filter", "content_filter", "content management", "content policy", "moderation", "flagged",
                  "inappropriate", "data_inspection")  # fmt: skip


@dataclass(frozen=True)
class Form:
    """How a question is written down for a server; servers differ in what they take."""

    structured: Literal["json_schema", "json_object", "none"]
    output_field: Literal["max_tokens", "max_completion_tokens"]
    temperature: bool = True

    @classmethod
    def first(cls, config: LLMConfig, server: str) -> Form:
        """What to try first: OpenAI wants the newer name of the limit, all others know the older one."""
        new = server == server_name(DEFAULT_URL)
        automatic: Literal["max_tokens", "max_completion_tokens"] = "max_completion_tokens" if new else "max_tokens"
        return cls(structured="json_schema" if config.structured == "auto" else config.structured,
                   output_field=automatic if config.output_field == "auto" else config.output_field)  # fmt: skip

    def plainer(self, reason: str, config: LLMConfig, *, proven: bool) -> list[Form]:
        """Forms to try after a refusal, likeliest first; none where it speaks of something else.

        Args:
            reason: what the server said.
            proven: this form has worked before, so that only a refusal which names the culprit is about the form.
        """
        said = reason.lower()
        if about_text(reason):
            return []
        found = []
        if config.output_field == "auto" and ("max_tokens" in said or "max_completion_tokens" in said):
            other: Any = {"max_tokens": "max_completion_tokens", "max_completion_tokens": "max_tokens"}
            found.append(replace(self, output_field=other[self.output_field]))
        if self.temperature and "temperature" in said:
            found.append(replace(self, temperature=False))
        named = any(word in said for word in _ABOUT_SCHEMA)
        if config.structured == "auto" and self.structured != "none" and (named or not (proven or found)):
            found.append(replace(self, structured="json_object" if self.structured == "json_schema" else "none"))
        return found

    def body(self, question: Question) -> dict[str, Any]:
        """The request's fields."""
        system = question.system
        if self.structured != "json_schema":
            schema = json.dumps(question.schema, ensure_ascii=False)
            system += f"\n\nAnswer with one JSON object and nothing else. It must fit this JSON Schema:\n{schema}"
        messages = [{"role": "system", "content": system}, {"role": "user", "content": question.user}]
        body: dict[str, Any] = {"model": question.model, "messages": messages, self.output_field: question.max_tokens}
        if self.temperature:
            body["temperature"] = question.temperature
        if self.structured == "json_schema":
            schema_field = {"name": question.schema_name, "schema": question.schema, "strict": _strict(question.schema)}
            body["response_format"] = {"type": "json_schema", "json_schema": schema_field}
        elif self.structured == "json_object":
            body["response_format"] = {"type": "json_object"}
        return body


def about_text(reason: str) -> bool:
    """Whether a refusal speaks of a request's texts: too long for the model, or not to the server's liking."""
    said = reason.lower()
    return any(word in said for word in (*_ABOUT_LENGTH, *_ABOUT_CONTENT))


def _strict(schema: Any) -> bool:
    """Whether a schema keeps OpenAI's rules for strict output: every object closed, all its properties required."""
    if isinstance(schema, Mapping):
        properties = schema.get("properties")
        if isinstance(properties, Mapping):
            closed = schema.get("additionalProperties") is False
            if not closed or set(schema.get("required", ())) != set(properties):
                return False
        return all(_strict(value) for value in schema.values())
    return all(_strict(item) for item in schema) if isinstance(schema, list | tuple) else True


@dataclass(frozen=True)
class Received:
    """A response with status 200 and a JSON body."""

    body: Mapping[str, Any]
    seconds: float


@dataclass(frozen=True)
class Trouble:
    """A request without an answer."""

    kind: Literal["busy", "error", "lost", "bad", "fatal"]
    """`busy`: asked to come later; `error`: failed, unbilled; `lost`: failed, perhaps billed; `bad`: this request is
    refused; `fatal`: every request will be."""
    reason: str
    wait_s: float | None = None
    """Seconds that the server asks to wait."""
    error: SeamarkError | None = None
    """What to raise where it is fatal."""
    about_text: bool = False
    """The refusal is about this request's texts (their length, what they say), not about how or who asks."""


class Transport:
    """Sends questions to one server; belongs to one event loop.

    Args:
        config: where it is, and whose key.
        sends: False: nothing is to be sent, so no key is needed.

    Raises:
        ConfigError: OpenAI's own server, and no key in the environment; a key that no request can carry.
    """

    def __init__(self, config: LLMConfig, *, sends: bool = True) -> None:
        self._config, self._url = config, config.url()
        self.server = server_name(self._url)
        self._key = os.environ.get(config.api_key_env, "").strip()
        if sends and not self._key and self.server == server_name(DEFAULT_URL):
            fix = f"export {config.api_key_env}=…, or give the address of a server of your own"
            raise ConfigError(f"no API key: the environment variable {config.api_key_env} is not set", fix=fix)
        if sends and not all("!" <= c <= "~" for c in self._key):
            # Refused here: the client's own error would quote it.
            raise ConfigError("the API key holds spaces, line breaks or characters that are not ASCII",
                              where=config.api_key_env, fix="Set it again, to the key alone")  # fmt: skip
        self._client: AsyncOpenAI | None = None

    def __repr__(self) -> str:
        return f"Transport({self.server!r})"

    async def __aenter__(self) -> Transport:
        from openai import AsyncOpenAI

        self._client = AsyncOpenAI(api_key=self._key or PLACEHOLDER, base_url=self._url, max_retries=0,
                                   timeout=self._config.timeout_s)  # fmt: skip
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._client is not None:
            await self._client.close()
            self._client = None

    async def send(self, question: Question, form: Form) -> Received | Trouble:
        """Send a question once. Never raises for what a server or network does; at most `timeout_s` seconds."""
        import openai

        begun = time.monotonic()
        try:
            # The client's own limit is on each read: a server that drips a byte a second would never meet it.
            async with asyncio.timeout(self._config.timeout_s):
                text = await self._post(form.body(question), question.extra_body)
        except (TimeoutError, openai.APITimeoutError) as e:
            if type(e.__cause__).__name__ in _UNSENT:
                return Trouble("error", "cannot connect: time-out")
            return Trouble("lost", f"time-out: no whole answer within {self._config.timeout_s:g} s")
        except openai.APIStatusError as e:
            return self._status(e)
        except openai.APIConnectionError as e:
            return self._connection(e)
        except openai.OpenAIError as e:
            return Trouble("lost", self._scrub(f"{type(e).__name__}: {e}"))
        return self._received(text, time.monotonic() - begun)

    async def _post(self, body: dict[str, Any], extra: Mapping[str, Any]) -> str:
        assert self._client is not None, "use `async with`"  # noqa: S101
        # As text, by the client's door for any endpoint: bodies of servers that bend the protocol are read by ours, and
        # turning requests and responses into the client's own classes would take as long as all the rest.
        text = await self._client.post("/chat/completions", body={**body, **extra}, cast_to=str)
        return text.replace(self._key, "[key]") if len(self._key) >= 8 else text

    def _received(self, text: str, seconds: float) -> Received | Trouble:
        try:
            body = json.loads(text)
        except (ValueError, RecursionError):
            return Trouble("lost", f"the response is no JSON: {short(text, 80)}")
        if not isinstance(body, dict):
            return Trouble("lost", "the response is no JSON object")
        if not body.get("choices") and body.get("error"):
            return Trouble("lost", self._scrub(f"error in the response: {_message(body)}"))
        return Received(body, seconds)

    def _status(self, e: APIStatusError) -> Trouble:
        status, message = e.status_code, self._scrub(_message(e.body) or e.message)
        reason = f"{status}: {message}"
        wait = retry_after(e.response.headers)
        if status == 402 or (status == 429 and e.code == "insufficient_quota"):
            what = "the server asks for money: the account's credit is used up"
            return Trouble("fatal", reason, error=RunError(what, where=self.server, fix="What was received is kept"))
        if status == 401:
            fix = f"Set the environment variable {self._config.api_key_env}"
            return Trouble("fatal", reason, error=ConfigError("the server refuses the API key", where=self.server,
                                                              fix=fix))  # fmt: skip
        if status == 403 and not about_text(reason):
            fix = f"The key in {self._config.api_key_env} must be allowed to use this model there"
            return Trouble("fatal", reason, error=ConfigError(f"the server refuses access: {message}",
                                                              where=self.server, fix=fix))  # fmt: skip
        if status == 404:
            fix = "Look at the model's name and the address (it ends with /v1 as a rule)"
            return Trouble("fatal", reason, error=ConfigError(f"not found: {message}", where=self.server, fix=fix))
        if status == 429 or (status == 503 and wait is not None):
            return Trouble("busy", reason, wait)
        if status in _GATEWAY:
            return Trouble("lost", reason, wait)
        if (status >= 500 and status != 501) or status in (408, 409, 425):
            return Trouble("error", reason, wait)
        return Trouble("bad", reason, about_text=about_text(f"{reason} {e.code}"))

    def _connection(self, e: APIConnectionError) -> Trouble:
        cause = e.__cause__
        name = type(cause).__name__ if cause is not None else ""
        reason = self._scrub(f"{name or 'connection'}: {cause or e}")
        if name in _UNSENT:
            return Trouble("error", f"cannot connect: {reason}")
        return Trouble("lost", f"connection cut: {reason}")

    def _scrub(self, text: str) -> str:
        return short(text.replace(self._key, "[key]") if self._key else text)


def _message(body: object) -> str:
    """The message in an error's body, whatever its shape."""
    if isinstance(body, Mapping):
        inner = body.get("error", body)
        found = inner.get("message") or inner.get("detail") if isinstance(inner, Mapping) else inner
        return str(found or "")
    return body if isinstance(body, str) else ""


def retry_after(headers: Mapping[str, str], now: float | None = None) -> float | None:
    """Seconds to wait by `retry-after-ms` or `Retry-After` (seconds, or an HTTP date); None: not said."""
    try:
        return max(0.0, float(headers["retry-after-ms"]) / 1000)
    except (KeyError, ValueError):
        pass
    value = headers.get("retry-after", "").strip()
    try:
        seconds = float(value)
        return max(0.0, seconds) if seconds < float("inf") else None
    except ValueError:
        pass
    try:
        date = email.utils.parsedate_to_datetime(value)
    except (ValueError, TypeError, IndexError):
        return None
    return max(0.0, date.timestamp() - (time.time() if now is None else now))
