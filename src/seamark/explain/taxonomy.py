"""What features are tagged with: domains and their concepts, from YAML, extensible by a user's own file.

The default holds the four domains of Safe-SAIL (arXiv 2509.18127, METHODS §2.3) and their sub-concepts.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass as plain_dataclass
from functools import cache, cached_property
from importlib import resources
from os import PathLike
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic.dataclasses import dataclass

from seamark.errors import DataError, FormatError

FORMAT_VERSION = 1
MAX_NAME = 60
"""Characters of a domain's or concept's name, which goes into prompts and tables."""
MAX_DESCRIPTION = 200
"""Characters of a description, which goes into prompts."""
MAX_TAGS, MAX_LIST = 300, 20_000
"""Tags, and characters of all names and descriptions together: every prompt to explain holds them."""
_SEPARATOR = re.compile(r"\s*(?:/|>|::|:|→|\|)\s*")


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Tag:
    """A domain, or a concept within a domain."""

    domain: str
    concept: str | None = None
    """None: the domain as a whole."""

    def __str__(self) -> str:
        return self.domain if self.concept is None else f"{self.domain}/{self.concept}"


@plain_dataclass(frozen=True)
class SortedTags:
    """Free tags, told apart."""

    known: tuple[Tag, ...]
    """In the order given, each once; a domain is left out where one of its concepts is there."""
    unknown: tuple[str, ...]
    """Tags that stand for nothing in the taxonomy, or for more than one thing, as they were given."""


class Concept(BaseModel):
    """A concept within a domain."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    description: str = Field(default="", max_length=MAX_DESCRIPTION)
    keywords: tuple[str, ...] = ()
    """Words and phrases in any language, by which the lexical explainer tags; an LLM is shown the description."""


class Domain(Concept):
    """A domain; its own keywords stand for it as a whole."""

    concepts: dict[str, Concept] = Field(default_factory=dict)

    @field_validator("concepts", mode="before")
    @classmethod
    def _bare(cls, concepts: Any) -> Any:
        """A bare list of names, and names without anything behind them, are allowed."""
        if isinstance(concepts, list):
            concepts = dict.fromkeys(concepts)
        return {k: v if v is not None else {} for k, v in concepts.items()} if isinstance(concepts, dict) else concepts


class Taxonomy(BaseModel):
    """Domains → concepts → descriptions and keywords."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    domains: dict[str, Domain]
    """{name: domain}, in the order they are shown."""
    format_version: int = FORMAT_VERSION

    @model_validator(mode="after")
    def _check(self) -> Taxonomy:
        if self.format_version != FORMAT_VERSION:
            raise ValueError(f"format version {self.format_version}, not {FORMAT_VERSION}")
        _check_names("domain", self.domains)
        for name, domain in self.domains.items():
            _check_names(f"concept of {name}", domain.concepts)
        size = sum(len(str(tag)) + len(self.concept(tag).description) for tag in self.tags)
        if len(self.tags) > MAX_TAGS or size > MAX_LIST:
            raise ValueError(f"{len(self.tags)} tags of {size:,} characters with their descriptions: "
                             f"at most {MAX_TAGS} and {MAX_LIST:,}")  # fmt: skip
        return self

    @classmethod
    def default(cls) -> Taxonomy:
        """Politics, pornography, violence, terror, and their concepts."""
        return _default()

    @classmethod
    def load(cls, path: str | PathLike[str], extend: bool = False) -> Taxonomy:
        """A taxonomy from YAML.

        Args:
            path: a file with `domains: {name: {description, keywords, concepts: {name: {description, keywords}}}}`.
            extend: add the file's domains, concepts and keywords to the default's; its descriptions win.

        Raises:
            FormatError: no such file, no YAML, or not a taxonomy; names the key.
        """
        try:
            text = Path(path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as e:
            why = e.strerror if isinstance(e, OSError) else "no UTF-8"
            raise FormatError(f"cannot be read ({why})", where=str(path), fix="Name a taxonomy's YAML file") from e
        found = _parse(text, str(path))
        try:
            return cls.default().extended(found) if extend else found
        except ValidationError as e:  # both together are too much
            raise FormatError(f"not a taxonomy: {e.errors()[0]['msg']}", where=str(path)) from None

    def extended(self, other: Taxonomy) -> Taxonomy:
        """This one with the domains, concepts and keywords of `other` added, whose descriptions win. Names that differ
        in case, plural or spacing alone count as one, and the name here stays."""
        domains = dict(self.domains)
        for name, theirs in other.domains.items():
            mine = _same_name(name, domains)
            old = domains.get(mine, Domain())
            concepts = dict(old.concepts)
            for sub, concept in theirs.concepts.items():
                same = _same_name(sub, concepts)
                concepts[same] = Concept(**_joined(concepts.get(same, Concept()), concept))
            domains[mine] = Domain(**_joined(old, theirs), concepts=concepts)
        return Taxonomy(domains=domains)

    @cached_property
    def tags(self) -> tuple[Tag, ...]:
        """Every tag there is: each domain, then its concepts."""
        return tuple(
            tag
            for name, domain in self.domains.items()
            for tag in (Tag(name), *(Tag(name, c) for c in domain.concepts))
        )

    def concept(self, tag: Tag) -> Concept:
        """Description and keywords of a tag. `DataError` where there is no such tag."""
        domain = self.domains.get(tag.domain)
        found = domain if tag.concept is None or domain is None else domain.concepts.get(tag.concept)
        if found is None:
            raise DataError(f"no tag {str(tag)!r} in the taxonomy", fix=f"Known: {', '.join(map(str, self.tags))}")
        return found

    @cached_property
    def keywords(self) -> dict[str, tuple[Tag, ...]]:
        """{keyword in the form of `fold`: the tags it speaks for}."""
        found: dict[str, dict[Tag, None]] = {}
        for tag in self.tags:
            for word in self.concept(tag).keywords:
                found.setdefault(fold(word), {})[tag] = None
        return {word: tuple(tags) for word, tags in found.items()}

    def sort_out(self, tags: Iterable[str | Tag]) -> SortedTags:
        """Tell known tags from unknown ones.

        "Violence / Physical", "violence: physical" and, where only one domain has it, "physical" are all the tag
        violence/physical; case, spaces, hyphens, plural and British or American endings do not matter.
        """
        known: dict[Tag, None] = {}
        unknown: dict[str, None] = {}
        for given in map(str, tags):
            found = self._find(given)
            if found is None:
                unknown[given] = None
            else:
                known[found] = None
        narrower = {tag.domain for tag in known if tag.concept is not None}
        kept = [tag for tag in known if tag.concept is not None or tag.domain not in narrower]
        return SortedTags(tuple(kept), tuple(unknown))

    def check(self, tags: Iterable[str | Tag]) -> list[Tag]:
        """The tags that `tags` stand for, as in `sort_out`.

        Raises:
            DataError: one of them is unknown; none is dropped in silence.
        """
        found = self.sort_out(tags)
        if found.unknown:
            known = ", ".join(map(str, self.tags))
            raise DataError(f"unknown tags: {', '.join(map(repr, found.unknown))}", fix=f"Known: {known}")
        return list(found.known)

    def _find(self, given: str) -> Tag | None:
        parts = [fold(part) for part in _SEPARATOR.split(given.strip())]
        if len(parts) > 2:
            return None
        names = self._names.get(" / ".join(parts), ())
        return names[0] if len(names) == 1 else None

    @cached_property
    def _names(self) -> dict[str, tuple[Tag, ...]]:
        """{folded name: tags}: domains, "domain / concept", and concepts alone where no domain has that name."""
        found: dict[str, list[Tag]] = {}
        for tag in self.tags:
            found.setdefault(" / ".join(fold(part) for part in (tag.domain, tag.concept) if part), []).append(tag)
        domains = set(found)
        for tag in self.tags:
            if tag.concept is not None and fold(tag.concept) not in domains:
                found.setdefault(fold(tag.concept), []).append(tag)
        return {name: tuple(tags) for name, tags in found.items()}


def fold(text: str) -> str:
    """A word or phrase in the form in which names and keywords are compared.

    Compatibility form, lower case, one space for spaces, hyphens and underscores, singular, -or for -our and -ize for
    -ise.
    """
    words = re.sub(r"[\s_\-‐‑–]+", " ", unicodedata.normalize("NFKC", text).casefold()).strip().split(" ")
    return " ".join(map(_singular, words))


def _singular(word: str) -> str:
    if len(word) > 4 and word.endswith("ies"):
        word = word[:-3] + "y"
    elif len(word) > 4 and word.endswith(("ches", "shes", "sses", "xes")):
        word = word[:-2]
    elif len(word) > 3 and word.endswith("s") and not word.endswith(("ss", "us", "is")):
        word = word[:-1]
    word = re.sub(r"(?<=\w{3})our$", "or", word)
    return re.sub(r"(?<=\w{3})is(e|ation|ing|ed)$", r"iz\1", word)


def _check_names(what: str, names: Mapping[str, Any]) -> None:
    seen: dict[str, str] = {}
    for name in names:
        if not name.strip() or len(name) > MAX_NAME or name != name.strip() or not name.isprintable():
            raise ValueError(f"{what} {name[:MAX_NAME]!r}: a name is printable, of 1 to {MAX_NAME} characters")
        if _SEPARATOR.search(name):
            raise ValueError(f"{what} {name!r}: a name holds none of / > : → |")
        if (other := seen.setdefault(fold(name), name)) != name:
            raise ValueError(f"{what}: {other!r} and {name!r} cannot be told apart")


def _same_name(name: str, names: Mapping[str, Any]) -> str:
    """The name in `names` that is the same but for case, spaces and plural; else `name` itself."""
    return next((n for n in names if fold(n) == fold(name)), name)


def _joined(old: Concept, new: Concept) -> dict[str, Any]:
    keywords = tuple({fold(word): word for word in (*old.keywords, *new.keywords)}.values())
    return {"description": new.description or old.description, "keywords": keywords}


@cache
def _default() -> Taxonomy:
    text = resources.files("seamark.explain").joinpath("taxonomy.yaml").read_text(encoding="utf-8")
    return _parse(text, "taxonomy.yaml")


def _parse(text: str, where: str) -> Taxonomy:
    try:
        data = yaml.safe_load(text)
    except yaml.YAMLError as e:
        mark = getattr(e, "problem_mark", None)
        place = f"{where}, line {mark.line + 1}" if mark else where
        raise FormatError(f"no YAML ({getattr(e, 'problem', None) or 'not readable'})", where=place) from e
    if not isinstance(data, dict) or not data.get("domains"):
        raise FormatError("not a taxonomy: no domains", where=where, fix="Write domains: {name: {concepts: …}}")
    try:
        return Taxonomy.model_validate(data)
    except ValidationError as e:
        first = e.errors()[0]
        place = f"{where}, key {'.'.join(map(str, first['loc']))}" if first["loc"] else where
        raise FormatError(f"not a taxonomy: {first['msg']}", where=place) from None
