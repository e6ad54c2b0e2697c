"""Errors written for people: what happened, where, and what to do about it.

Every error a user can cause is a `SeamarkError`. The command line prints it in one line and exits with 2;
anything else is a bug in Seamark and shows its traceback.
"""

from __future__ import annotations

from typing import Any


class SeamarkError(Exception):
    """A problem the user can mend.

    Args:
        what: what is wrong, in one sentence without a final full stop.
        where: the file, row, key or command it happened at.
        fix: what to do about it.
    """

    def __init__(self, what: str, *, where: str = "", fix: str = "") -> None:
        self.what, self.where, self.fix = what, where, fix
        super().__init__(what, where, fix)

    def __reduce__(self) -> tuple[Any, ...]:
        # Errors come back from worker processes; the default would call the class with three positional arguments.
        return _rebuild, (type(self), self.what, self.where, self.fix)

    def __str__(self) -> str:
        text = f"{self.where}: {self.what}" if self.where else self.what
        return f"{text}. {self.fix}" if self.fix else text


def _rebuild(kind: type[SeamarkError], what: str, where: str, fix: str) -> SeamarkError:
    return kind(what, where=where, fix=fix)


class DataError(SeamarkError):
    """A data file, a row in it or a set of pairs cannot be used."""


class ModelError(SeamarkError):
    """A model, tokenizer or hookpoint cannot be used."""


class FormatError(SeamarkError):
    """A file is corrupt, foreign, or of a version this Seamark cannot read."""


class ConfigError(SeamarkError):
    """A recipe, option or combination of options makes no sense."""


class RunError(SeamarkError):
    """A run folder cannot be used, or a stage could not finish (disk full, locked, interrupted)."""
