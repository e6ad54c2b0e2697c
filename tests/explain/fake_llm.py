"""A language model that answers what it is told to: what such stand-ins share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from seamark.explain.llm import Request


class Scripted:
    """Holds its answers (text: the reason of a failure) and the requests of the last call; subclasses ask."""

    name = "fake-1"

    def __init__(self, *answers: Mapping[str, Any] | str) -> None:
        self.answers, self.requests = answers, list[Request]()
