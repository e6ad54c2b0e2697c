"""What is asked of a language model, what comes back, and how it is to be asked."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, field_validator

from seamark.errors import ConfigError
from seamark.explain.answers import AnswerCache
from seamark.explain.parsing import parse_reply, read_reply, without_surrogates

DEFAULT_URL = "https://api.openai.com/v1"
OVERHEAD = 256
"""Tokens allowed for what a server's chat template adds to the texts, in the worst case."""
BYTES_PER_TOKEN = 4.0
"""UTF-8 bytes of a token on average, where nothing was measured yet (English prose)."""
RESERVED = frozenset({"model", "messages", "max_tokens", "max_completion_tokens", "response_format", "temperature", "n",
                      "stream"})  # fmt: skip
"""Fields of a request that `extra_body` may not set: the budget and the reading of answers rest on them."""


@dataclass(frozen=True)
class Request:
    """A question to a language model whose answer is a JSON object."""

    stage: str
    """What it is for (`explain`, `simulate`, …): rows of the ledger."""
    system: str
    user: str
    schema: Mapping[str, Any]
    """JSON Schema of the answer, an object."""
    schema_name: str
    """Letters, digits, `_` and `-`."""
    max_output_tokens: int = 1024
    temperature: float = 0.0
    attempt: int = 0
    """Part of the cache key: a second try is another request."""


@dataclass(frozen=True)
class Answer:
    """What a request brought. Tokens and cost are those of all its tries, as they were when they were paid."""

    data: Mapping[str, Any] | None
    """The JSON object; None: failed."""
    failed: str = ""
    """Why there is no object; empty: good."""
    text: str = ""
    """The answer's text as received (of the last try)."""
    tokens_in: int = 0
    tokens_out: int = 0
    cost: float | None = None
    """Money in the price table's currency; None: not known, or paid in another."""
    cached: bool = False
    """Everything came from the cache: nothing was paid now."""


class LLMConfig(BaseModel):
    """Where and how a language model is asked. Holds no secrets: the API key stays in the environment."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    base_url: str | None = None
    """Address of any server that speaks OpenAI's protocol, up to /v1; None: OPENAI_BASE_URL, or OpenAI's own."""
    api_key_env: str = "OPENAI_API_KEY"
    """Name of the environment variable with the API key. A local server may have none: then a placeholder is sent."""
    concurrency: int = Field(default=32, ge=1, le=1024)
    """Most requests in flight."""
    timeout_s: float = Field(default=120.0, gt=0)
    """Seconds from sending a request to its whole answer. What is given up may still be billed: choose it long."""
    retries: int = Field(default=6, ge=0)
    """How often a request is sent again after 5xx, a time-out or a cut connection."""
    backoff_s: float = Field(default=0.5, gt=0)
    """Seconds before the first repetition; they double with each one, up to 30, and are cut at random by up to half."""
    patience_s: float = Field(default=600.0, ge=0)
    """Seconds that a request waits for a server that is busy (429), before it fails; Retry-After is honoured."""
    tries: int = Field(default=2, ge=1)
    """How often a question is asked until its answer is usable; every try is paid."""
    retry_temperature: float = Field(default=0.3, ge=0, le=2)
    """Least temperature of the second and later tries: at 0 the same question gets the same answer."""
    budget: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    """Most money, in the price table's currency, that the ledger's run may cost, restarts included; None: no limit."""
    budget_tokens: int | None = Field(default=None, ge=0)
    """Most tokens, sent and received, that the ledger's run may take; None: no limit."""
    on_budget: Literal["stop", "raise"] = "stop"
    """What a request that does not fit into the budget does: come back as failed, or raise `BudgetError`."""
    structured: Literal["auto", "json_schema", "json_object", "none"] = "auto"
    """How the server is told of the schema. "auto": by JSON Schema; where the server refuses that, plainer."""
    output_field: Literal["auto", "max_tokens", "max_completion_tokens"] = "auto"
    """What the server calls the limit of the answer's tokens; "auto" learns it from a refusal."""
    reasoning_tokens: int = Field(default=0, ge=0)
    """Tokens that every answer may have beyond its own limit, for models that think before they answer."""
    extra_body: dict[str, Any] = Field(default_factory=dict)
    """Further fields of the request's body, such as `reasoning_effort`. They are stored in the cache: no secrets."""
    cache_tag: str = ""
    """Part of the cache key. Set it to keep answers apart of two servers that have a model of the same name."""
    retry_failed: bool = False
    """Ask questions again whose every try brought an unusable answer; else such an answer is final."""
    grace_s: float = Field(default=10.0, ge=0)
    """After Ctrl-C, seconds that answers in flight have to arrive: they are paid."""

    @field_validator("api_key_env")
    @classmethod
    def _is_a_name(cls, value: str) -> str:
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", value):
            raise ValueError("this is the NAME of an environment variable, never the key itself")
        return value

    @field_validator("extra_body")
    @classmethod
    def _leaves_ours_alone(cls, value: dict[str, Any]) -> dict[str, Any]:
        if taken := sorted(RESERVED & set(value)):
            raise ValueError(f"set by Seamark itself: {', '.join(taken)}")
        return value

    @field_validator("base_url")
    @classmethod
    def _has_no_secret(cls, value: str | None) -> str | None:
        if value is not None and (why := _bad_url(value)):
            raise ValueError(why)
        return value

    def url(self) -> str:
        """The server's address. Raises `ConfigError` where OPENAI_BASE_URL is none, or holds credentials."""
        if self.base_url is not None:
            return self.base_url
        found = os.environ.get("OPENAI_BASE_URL") or DEFAULT_URL
        if why := _bad_url(found):
            raise ConfigError(why, where="OPENAI_BASE_URL")
        return found


def _bad_url(url: str) -> str:
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        return "not an address"
    if parts.scheme not in ("http", "https") or not parts.hostname:
        return "not an address: it begins with http:// or https://, and ends with /v1 as a rule"
    if "@" in parts.netloc or parts.query or parts.fragment:
        return "the address holds more than host and path: put keys into the environment variable of api_key_env"
    return ""


def server_name(url: str) -> str:
    """The address as it is recorded and matched with price tables: with a slash at its end."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.lower()}{parts.path.rstrip('/')}/"


@dataclass(frozen=True)
class Question:
    """A request as one try sends it to one model."""

    model: str
    stage: str
    system: str
    user: str
    schema: Mapping[str, Any]
    schema_name: str
    max_tokens: int
    temperature: float
    attempt: int
    extra_body: Mapping[str, Any] = field(default_factory=dict)
    tag: str = ""

    @classmethod
    def of(cls, request: Request, attempt: int, model: str, config: LLMConfig) -> Question:
        """The question of the `attempt`-th try."""
        again = attempt > request.attempt
        return cls(
            model=model, stage=request.stage, schema=request.schema, schema_name=request.schema_name, attempt=attempt,
            system=without_surrogates(request.system), user=without_surrogates(request.user),
            max_tokens=request.max_output_tokens + config.reasoning_tokens,
            temperature=max(request.temperature, config.retry_temperature) if again else request.temperature,
            extra_body=config.extra_body, tag=config.cache_tag,
        )  # fmt: skip

    def content(self) -> dict[str, Any]:
        """What is asked, with the limit of the answer; how the schema is sent is no part of it, nor is the stage."""
        return {
            "model": self.model, "system": self.system, "user": self.user, "schema": self.schema,
            "schema_name": self.schema_name, "max_tokens": self.max_tokens, "temperature": self.temperature,
            "attempt": self.attempt, "extra_body": self.extra_body, "tag": self.tag,
        }  # fmt: skip

    def key(self) -> str:
        """Where its answers lie in the cache, those under other limits of tokens too."""
        return AnswerCache.key(self.content())

    def bytes_in(self) -> int:
        """UTF-8 bytes of all texts that are sent, the schema among them."""
        schema = json.dumps(self.schema, ensure_ascii=False)
        return sum(len(text.encode("utf-8", "replace")) for text in (self.system, self.user, schema))

    def worst_tokens_in(self) -> int:
        """More tokens than any tokenizer makes of the texts: one a byte (none has less), and the template's."""
        return self.bytes_in() + OVERHEAD

    def read(self, response: Mapping[str, Any]) -> tuple[str, dict[str, Any] | str]:
        """A response's text, and its object or why it has none."""
        reply = read_reply(response)
        if reply is None:
            return "", "no answer in the response"
        return reply.text or reply.thoughts, parse_reply(reply, self.schema, (self.system, self.user))
