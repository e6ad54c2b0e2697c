"""Concept-contrast pairs: two queries alike in grammar, length and kind, of which one holds a concept (Safe-SAIL §2.2).

Read from files where bad rows are listed with their reason, and turned into the plain texts that a scan reads.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, overload

from seamark.errors import DataError
from seamark.text.corpus import Corpus
from seamark.text.files import PathLike, column_names, read_rows
from seamark.text.pairs import RejectedRow, content_id
from seamark.text.rows import BadRowError, check_text

SIDES = ("with", "without")
"""The sides of a pair; the text id of a side is `{pair id}:{side}`."""
COLUMNS = (*SIDES, "concept", "domain")
"""Columns that a file of pairs has; `id` and `drafted` may be there too."""
MOST_APART = 3
"""Words by which two queries may always differ in length."""
MOST_SHARE_APART = 1 / 3
"""Share of the longer query by which they may differ."""

_NO_SPACES = (
    "\u0e00-\u0eff\u0f00-\u0fff\u1000-\u109f\u1780-\u17ff"  # Thai, Lao, Tibetan, Myanmar, Khmer
    "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"  # kana, Han
)
_WORDS = re.compile(f"[{_NO_SPACES}]|[^\\s{_NO_SPACES}]+")
_TRUTH = {"true": True, "1": True, "false": False, "0": False, "": False}


@dataclass(frozen=True, slots=True)
class ContrastPair:
    """Two queries alike in grammar, length and kind, of which one holds a concept and the other leaves it out."""

    domain: str
    concept: str
    with_text: str
    without_text: str
    id: str
    drafted: bool = False
    """Whether a language model wrote it."""

    def to_row(self) -> dict[str, Any]:
        """The pair as a JSON-able row that `read_contrast_pairs` reads."""
        return {"id": self.id, "domain": self.domain, "concept": self.concept, "with": self.with_text,
                "without": self.without_text, "drafted": self.drafted}  # fmt: skip


@dataclass(frozen=True)
class ContrastPairs(Sequence[ContrastPair]):
    """Pairs with unique ids in the order of files and rows, and the rows that could not be used."""

    items: tuple[ContrastPair, ...]
    rejected: tuple[RejectedRow, ...] = ()

    def __len__(self) -> int:
        return len(self.items)

    @overload
    def __getitem__(self, index: int) -> ContrastPair: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[ContrastPair, ...]: ...
    def __getitem__(self, index: int | slice) -> ContrastPair | tuple[ContrastPair, ...]:
        return self.items[index]

    def __iter__(self) -> Iterator[ContrastPair]:
        return iter(self.items)

    @property
    def ids(self) -> list[str]:
        return [p.id for p in self.items]

    @property
    def concepts(self) -> list[tuple[str, str]]:
        """(domain, concept), by first appearance."""
        return list(dict.fromkeys((p.domain, p.concept) for p in self.items))

    def fingerprint(self) -> str:
        """SHA-256 of the pairs in their order."""
        rows = json.dumps([p.to_row() for p in self.items], ensure_ascii=False, sort_keys=True)
        return hashlib.sha256(rows.encode("utf-8", "surrogatepass")).hexdigest()


def contrast_problem(with_text: str, without_text: str) -> str:
    """Why two queries make no contrast pair; empty where they do. Never quotes them.

    Each must hold a word, and no tokenizer may choke on it. They must differ by more than case and white space, and
    in length by at most 3 words or a third of the longer one, whichever allows more: a longer query has more chances
    to make a feature fire. Each character of a script written without spaces (Han, kana, Thai, …) counts as a word.
    """
    for text, side in zip((with_text, without_text), SIDES, strict=True):
        try:
            check_text(text, side)
        except BadRowError as error:
            return str(error)
        if not text.strip():
            return f"{side} is empty"
        if not any(c.isalnum() for c in text):
            return f"{side} holds no word"
    if _same(with_text) == _same(without_text):
        return "both queries are the same, up to case and white space"
    a, b = (len(_WORDS.findall(text)) for text in (with_text, without_text))
    if abs(a - b) > max(MOST_APART, MOST_SHARE_APART * max(a, b)):
        return f"the queries differ too much in length ({a} and {b} words)"
    return ""


def read_contrast_pairs(sources: PathLike | Sequence[PathLike], *, split: str | None = None) -> ContrastPairs:
    """Read pairs from files or data sets as `read_rows` takes them, columns `with`, `without`, `concept`, `domain`.

    `drafted` (true or false) may say that a language model wrote a row. An id is a row's own where it is text or a
    whole number, and unique; else it is a hash of the content, so that order does not matter to it. Within a
    concept a couple of texts counts once, up to case and white space. What cannot be used is in `.rejected` with its
    reason; see `contrast_problem` for what makes a pair.

    Raises:
        DataError: no source, or one that is missing, empty, unreadable, lacks a column or has no usable row.
    """
    paths = [sources] if isinstance(sources, str | os.PathLike) else list(sources)
    if not paths:
        raise DataError("no contrast pairs given", fix="Give a file or several")
    reading = _Reading()
    for path in paths:
        reading.add(path, split)
    return ContrastPairs(tuple(reading.pairs.values()), tuple(reading.rejected))


def contrast_corpus(pairs: Iterable[ContrastPair]) -> Corpus:
    """Both texts of every pair as plain texts for a scan, ids `{pair id}:with` and `{pair id}:without`.

    A text that is in several pairs is there once for each of them.

    Raises:
        DataError: no pair, or two of the same id.
    """
    items, counts = [], Counter[str]()
    for pair in pairs:
        counts[pair.id] += 1
        for side, text in zip(SIDES, (pair.with_text, pair.without_text), strict=True):
            items.append((f"{pair.id}:{side}", text))
    if not items:
        raise DataError("no contrast pairs", fix="Give at least one pair")
    if twice := [pair_id for pair_id, n in counts.items() if n > 1]:
        raise DataError(f"{len(twice)} ids of contrast pairs come more than once (the first: {twice[0][:60]!r})",
                        fix="Give every pair an id of its own")  # fmt: skip
    return Corpus(tuple(items), pairs.rejected if isinstance(pairs, ContrastPairs) else ())


@dataclass
class _Reading:
    """What has been read so far."""

    pairs: dict[str, ContrastPair] = field(default_factory=dict)
    rejected: list[RejectedRow] = field(default_factory=list)
    seen: dict[tuple[str, ...], tuple[str, int]] = field(default_factory=dict)
    """(domain, concept, with, without) to the file and row that had it first."""

    def add(self, source: PathLike, split: str | None) -> None:
        """Read one source."""
        file, before = str(source), len(self.pairs)
        columns, reasons = set[str](), Counter[str]()
        for number, data, reason in read_rows(source, split=split):
            if data is not None:
                columns.update(map(str, data))
                reason = self._take(file, number, data)
            if reason:
                reasons[reason.split(" (")[0]] += 1
                self.rejected.append(RejectedRow(file, number, reason))
        missing = [c for c in COLUMNS if c not in columns]
        if columns and missing:
            what = f"no column {', '.join(missing)}; found {column_names(columns)}"
            raise DataError(what, where=file, fix="Contrast pairs need with, without, concept and domain")
        if len(self.pairs) == before:
            common = "; ".join(f"{n} × {reason}" for reason, n in reasons.most_common(3))
            raise DataError(f"no usable contrast pair ({common or 'no rows'})", where=file, fix="Mend the rows")

    def _take(self, file: str, number: int, data: Mapping[str, Any]) -> str:
        """Add a row as a pair, or give the reason why not."""
        for name in COLUMNS:
            if problem := _field_problem(data.get(name), name):
                return problem
        with_text, without_text = data["with"].strip(), data["without"].strip()
        domain, concept = (" ".join(data[name].split()) for name in ("domain", "concept"))
        drafted = _truth(data.get("drafted"))
        if drafted is None:
            return "drafted is neither true nor false"
        if problem := contrast_problem(with_text, without_text):
            return problem
        key, swapped = ((domain, concept, *map(_same, sides)) for sides in
                        ((with_text, without_text), (without_text, with_text)))  # fmt: skip
        if swapped in self.seen:
            return f"both sides are swapped in row {_place(file, self.seen[swapped])}"
        if (first := self.seen.setdefault(key, (file, number))) != (file, number):
            return f"duplicate of row {_place(file, first)}"
        pair_id = self._free_id(_own_id(data.get("id")), domain, content_id(concept, with_text, without_text))
        self.pairs[pair_id] = ContrastPair(domain, concept, with_text, without_text, pair_id, drafted)
        return ""

    def _free_id(self, own: str, domain: str, content: str) -> str:
        """The row's own id, else one made of its content; a row before may have either."""
        candidates = [own] * bool(own) + [content, content_id(domain, content, "")]
        free = next((c for c in candidates if c not in self.pairs), None)
        n = 2
        while free is None:  # only ids made up to clash come here
            free = f"{content}-{n}" if f"{content}-{n}" not in self.pairs else None
            n += 1
        return free


def _place(file: str, first: tuple[str, int]) -> str:
    """The number of an earlier row, as a row of `file` names it."""
    return f"{first[1]}" if first[0] == file else f"{first[1]} of {first[0]}"


def _field_problem(value: Any, name: str) -> str:
    if value is None:
        return f"{name} is missing"
    if not isinstance(value, str):
        return f"{name} has the wrong type ({type(value).__name__}; text is needed)"
    try:
        check_text(value, name)
    except BadRowError as error:
        return str(error)
    return "" if value.strip() else f"{name} is empty"


def _truth(value: Any) -> bool | None:
    """true or false as JSON, YAML and CSV write them; None for anything else. Nothing means false."""
    if value is None or isinstance(value, bool):
        return bool(value)
    return _TRUTH.get(str(value).strip().lower()) if isinstance(value, str | int) else None


def _own_id(value: Any) -> str:
    """An id that a row brings along, if it is text or a whole number that can be printed."""
    good = isinstance(value, str | int) and not isinstance(value, bool) and str(value).isprintable()
    return str(value).strip() if good else ""


def _same(text: str) -> str:
    """What two texts share that differ in case, white space or the form of their characters only."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())
