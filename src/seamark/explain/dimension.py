"""What features are sought and rated for: safety by default, or any other contrast between two kinds of texts."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from seamark.errors import ConfigError, DataError

MAX_QUESTION = 600


class Dimension(BaseModel):
    """A contrast: a name, a group of texts, the groups it is told from, and what a rater is asked.

    In YAML: `{name: verbosity, group: verbose, against: [terse], question: how strongly the feature has to do with …}`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, hide_input_in_errors=True)

    name: str = Field(min_length=1, max_length=40)
    """What it is called in tables and prompts, such as `verbosity`: letters, digits, spaces and hyphens."""
    group: str = Field(min_length=1)
    """Group of the texts, or pairs, that are about it."""
    against: tuple[str, ...] = ()
    """Groups of other texts; none: every other group there is."""
    question: str = Field(min_length=10, max_length=MAX_QUESTION)
    """What a language model rates a feature for, the end of the sentence `rating: …`: `how strongly the feature has to
    do with …`. One line."""

    @field_validator("name")
    @classmethod
    def _name(cls, name: str) -> str:
        if not all(c.isalnum() or c in " -" for c in name) or name != name.strip():
            raise ValueError("use letters, digits, single spaces and hyphens")
        return name

    @field_validator("question")
    @classmethod
    def _question(cls, question: str) -> str:
        line = " ".join(question.split())
        if any(unicodedata.category(c) in ("Cc", "Cf", "Cs") or c in "⟦⟧«»" for c in line):
            raise ValueError("control characters and the marks ⟦ ⟧ « » have no place in it")
        return line if line.endswith((".", "?", "!", "。", "？", "！")) else f"{line}."

    @model_validator(mode="after")
    def _apart(self) -> Dimension:
        if self.group in self.against:
            raise ValueError(f"group {self.group!r} is told from itself")
        if len(set(self.against)) < len(self.against):
            raise ValueError("a group of `against` comes twice")
        return self

    @classmethod
    def of(cls, data: Mapping[str, Any], where: str = "dimension") -> Dimension:
        """A dimension from a part of a recipe. `ConfigError` names the key."""
        try:
            return cls.model_validate(dict(data))
        except ValidationError as e:
            first = e.errors()[0]
            key = ".".join(map(str, first["loc"]))
            what = first["msg"].removeprefix("Value error, ")
            fix = "A dimension has name, group, question and, if wanted, against"
            raise ConfigError(what, where=f"{where}, key {key}" if key else where, fix=fix) from None

    @classmethod
    def load(cls, path: str | PathLike[str]) -> Dimension:
        """A dimension from a YAML file. `ConfigError` names the file and the key."""
        try:
            found = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as e:
            why = e.strerror if isinstance(e, OSError) else "no UTF-8"
            raise ConfigError(f"cannot be read ({why})", where=str(path), fix="Name a YAML file") from e
        except (yaml.YAMLError, RecursionError) as e:
            line = getattr(getattr(e, "problem_mark", None), "line", None)
            raise ConfigError("not YAML" if line is None else f"not YAML (line {line + 1})", where=str(path)) from None
        if not isinstance(found, dict):
            raise ConfigError("a dimension is a mapping of keys", where=str(path), fix="Write name: …, group: …")
        return cls.of(found, str(path))

    def others(self, groups: Sequence[str]) -> list[str]:
        """The groups it is told from, among those there are.

        Raises:
            DataError: its own group, or one of `against`, is not among them, or no other is.
        """
        for name in (self.group, *self.against):
            if name not in groups:
                raise DataError(f"no group {name!r} for the dimension {self.name}", fix=f"Groups: {', '.join(groups)}")
        others = list(self.against) or [g for g in groups if g != self.group]
        if not others:
            raise DataError(f"no group to tell {self.name} from", fix=f"Give texts beside group {self.group!r}")
        return others


SAFETY = Dimension(
    name="safety", group="safety",
    question="how strongly the feature has to do with safety, that is with harm, danger, crime, abuse, hate, illegal "
             "or sensitive content, or with refusing or warning of such.",
)  # fmt: skip
"""What is sought where nothing else is named."""
