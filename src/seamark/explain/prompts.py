"""Prompts are files of this package with a version in their name, so that a record can say what it was made with.

A file holds the system's and the user's part, parted by a line `===== user =====`, with `${name}` where values go.
A changed prompt is a new file: versions that records name are never edited, which a test watches by their hashes.
"""

from __future__ import annotations

import re
import string
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources

from seamark.errors import ConfigError

EXPLAIN = "explain-1"
EXPLAIN_DIMENSION = "explain-dimension-1"
"""`EXPLAIN` with another question than that for safety."""
DRAFT = "draft-1"
JUDGE = "judge-1"
_PARTED = "===== user =====\n"
_VERSION = re.compile(r"[a-z]+(-[a-z]+)*-[0-9]+")


@dataclass(frozen=True)
class Prompt:
    """A prompt with places for values."""

    version: str
    """Such as `explain-1`; goes into records."""
    system: str
    user: str

    def fill(self, values: Mapping[str, str]) -> tuple[str, str]:
        """(system, user) with every `${name}` replaced; what stands in a value is never looked at again.

        Raises:
            ConfigError: a value is missing, or one has no place.
        """
        parts = string.Template(self.system), string.Template(self.user)
        places = {name for part in parts for name in part.get_identifiers()}
        if places != set(values):
            wrong = ", ".join(sorted(places ^ set(values)))
            raise ConfigError(f"values and places do not match: {wrong}", where=f"prompt {self.version}")
        return parts[0].substitute(values), parts[1].substitute(values)


@cache
def load_prompt(version: str) -> Prompt:
    """A prompt of the package. `ConfigError` where there is none of that version."""
    file = resources.files("seamark.explain").joinpath("prompts", f"{version}.txt")
    if not _VERSION.fullmatch(version) or not file.is_file():
        raise ConfigError(f"no prompt {version!r}", fix=f"Known: {', '.join(prompt_versions())}")
    parts = file.read_text(encoding="utf-8").split(_PARTED)
    if len(parts) != 2 or not all(string.Template(part).is_valid() for part in parts):
        raise ConfigError("a prompt holds a system part, one parting line and a user part", where=f"prompt {version}")
    return Prompt(version, parts[0].strip(), parts[1].strip())


def prompt_versions() -> list[str]:
    """All prompts of the package."""
    files = resources.files("seamark.explain").joinpath("prompts").iterdir()
    return sorted(f.name.removesuffix(".txt") for f in files if f.name.endswith(".txt"))
