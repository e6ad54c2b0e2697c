"""Labelled texts to find risks in: read, with source and language, and told apart from near duplicates."""

from __future__ import annotations

import hashlib
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from seamark.diagnose.units import MAX_CHARS
from seamark.errors import ConfigError, DataError
from seamark.text.corpus import Corpus, read_texts
from seamark.text.files import PathLike, column_names, read_rows
from seamark.text.pairs import RejectedRow, hash_unit

Integers = NDArray[np.int64]
SHINGLE, BANDS, ROWS = 4, 16, 4
"""Words (characters in scripts without spaces) of a shingle; bands and rows of the MinHash that proposes duplicates."""
ALIKE = 0.8
"""Share of shingles in common (Jaccard) from which on two texts count as near duplicates."""
UNIT = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]|[^\W_\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]+")
"""A word; a single character in scripts without spaces."""


class RiskColumns(BaseModel):
    """The names of the columns of a file of labelled texts."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    text: str = "text"
    label: str = "label"
    """A label, or a list of them."""
    source: str = "source"
    language: str | None = "language"
    """None: all texts are of one language."""


@dataclass(frozen=True)
class LabelledText:
    """One text with what is known of it."""

    id: str
    text: str
    labels: frozenset[str]
    source: str
    language: str


@dataclass(frozen=True, eq=False)
class LabelledTexts(Sequence[LabelledText]):
    """Labelled texts, each once, and the clusters of near duplicates."""

    items: tuple[LabelledText, ...]
    clusters: Integers
    """[texts] code of the near duplicates that a text belongs to."""
    rejected: tuple[RejectedRow, ...] = ()

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: Any) -> Any:
        return self.items[index]

    @property
    def labels(self) -> dict[str, int]:
        """{label: texts}, most frequent first."""
        return dict(Counter(label for item in self.items for label in sorted(item.labels)).most_common())

    @property
    def languages(self) -> list[str]:
        return sorted({item.language for item in self.items})

    def corpus(self) -> Corpus:
        """As plain texts, to be scanned."""
        return Corpus(tuple((item.id, item.text) for item in self.items))

    def only(self, keep: Sequence[int] | Integers) -> LabelledTexts:
        """Some of them, in the order given."""
        rows = np.asarray(keep, np.int64)
        return LabelledTexts(tuple(self.items[i] for i in rows), self.clusters[rows], self.rejected)

    def sampled(self, n: int) -> LabelledTexts:
        """At most n texts of each language, source and set of labels: those whose ids hash lowest."""
        strata: dict[tuple[str, str, frozenset[str]], list[int]] = {}
        for i, item in enumerate(self.items):
            strata.setdefault((item.language, item.source, item.labels), []).append(i)
        kept = [i for rows in strata.values() for i in sorted(rows, key=lambda i: hash_unit(self.items[i].id))[:n]]
        return self.only(sorted(kept))

    def counting(self, domains: Sequence[str], leave_out: Sequence[str], languages: Sequence[str]) -> LabelledTexts:
        """Those that count for one of the domains at least, in these languages (none: all)."""
        counts = np.any([labels_of(self, domain, leave_out) >= 0 for domain in domains], axis=0)
        spoken = np.asarray([not languages or item.language in languages for item in self.items])
        return self.only(np.flatnonzero(counts & spoken))

    @classmethod
    def of(cls, items: Sequence[LabelledText], rejected: Sequence[RejectedRow] = ()) -> LabelledTexts:
        """From texts that are to be told apart from their near duplicates."""
        return cls(tuple(items), near_duplicates([item.text for item in items]), tuple(rejected))


def read_labelled_texts(
    sources: PathLike | Sequence[PathLike], columns: RiskColumns | None = None
) -> LabelledTexts:  # fmt: skip
    """Read labelled texts from files of rows.

    A text counts once, whatever its rows' capitals, spaces and punctuation; the labels of its rows in one file count
    together. Ids are those of `read_texts`, so that a scan of the same file fits.

    Raises:
        DataError: a file that is missing, empty, lacks a column or has no usable row.
    """
    columns = columns or RiskColumns()
    paths = [sources] if isinstance(sources, str | os.PathLike) else list(sources)
    corpus = read_texts(paths, column=columns.text)
    rejected = [bad for bad in corpus.rejected if not bad.reason.startswith("duplicate")]
    about = _about(paths, columns, rejected)
    found: dict[str, LabelledText] = {}
    for text_id, text in corpus.items:
        known = about.get(_key(text))
        if known is None:
            continue
        if len(text) > MAX_CHARS:
            rejected.append(RejectedRow(known.file, known.row, f"more than {MAX_CHARS:,} characters"))
            continue
        folded = " ".join(UNIT.findall(text.casefold())) or text
        earlier = found.get(folded)
        if earlier is not None:
            rejected.append(RejectedRow(known.file, known.row, "the same words as an earlier text"))
            text_id, text = earlier.id, earlier.text
            known.labels.update(earlier.labels)
            known.source, known.language = earlier.source, earlier.language
        found[folded] = LabelledText(text_id, text, frozenset(known.labels), known.source, known.language)
    if not found:
        raise DataError("no text with a label and a source", where=str(paths[0]), fix="Name the columns")
    return LabelledTexts.of(list(found.values()), rejected)


@dataclass
class _Row:
    file: str
    row: int
    labels: set[str]
    source: str
    language: str


def _about(paths: Sequence[PathLike], columns: RiskColumns, rejected: list[RejectedRow]) -> dict[str, _Row]:
    """{hash of a text: what its rows say of it}."""
    found: dict[str, _Row] = {}
    for path in paths:
        seen: set[str] = set()
        for number, data, _ in read_rows(path):
            if data is None or not isinstance(data.get(columns.text), str):
                continue  # told of by `read_texts`
            seen.update(map(str, data))
            labels, source, language, reason = _fields(data, columns)
            if reason:
                rejected.append(RejectedRow(str(path), number, reason))
                continue
            row = found.setdefault(_key(data[columns.text]), _Row(str(path), number, set(), source, language))
            row.labels |= labels
        for name in (columns.label, columns.source):
            if seen and name not in seen:
                raise DataError(f"no column {name}; found {column_names(seen)}", where=str(path),
                                fix="Name the columns of label and source")  # fmt: skip
    return found


def _fields(data: Mapping[str, Any], columns: RiskColumns) -> tuple[set[str], str, str, str]:
    """(labels, source, language, the reason why the row cannot be used)."""
    label, source = data.get(columns.label), data.get(columns.source)
    labels = {label} if isinstance(label, str) else set(label) if isinstance(label, list | tuple) else set()
    if not labels or not all(isinstance(one, str) and one for one in labels):
        return set(), "", "", f"{columns.label} is missing or no text"
    if not isinstance(source, str) or not source:
        return set(), "", "", f"{columns.source} is missing or no text"
    language = data.get(columns.language) if columns.language is not None else ""
    return labels, source, language if isinstance(language, str) else "", ""


def _key(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def near_duplicates(texts: Sequence[str]) -> Integers:
    """Cluster code of each text, [texts]: those that share most of their shingles have the same one.

    MinHash proposes pairs (16 bands of 4), the shingles themselves decide (Jaccard ≥ 0.8); clusters are what hangs
    together.
    """
    shingles = [_shingles(text) for text in texts]
    parent = list(range(len(texts)))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    buckets: dict[tuple[int, bytes], list[int]] = {}
    for i, signature in enumerate(_signatures(shingles)):
        for band in range(BANDS):
            mine = buckets.setdefault((band, signature[band * ROWS : (band + 1) * ROWS].tobytes()), [])
            for j in mine:  # every one of them: a text may be like a member of a cluster and unlike its first
                if root(j) != root(i) and _alike(shingles[i], shingles[j]):
                    parent[max(root(i), root(j))] = min(root(i), root(j))
            mine.append(i)
    return np.unique([root(i) for i in range(len(texts))], return_inverse=True)[1].astype(np.int64)


def _alike(a: frozenset[int], b: frozenset[int]) -> bool:
    both = len(a & b)
    return both >= ALIKE * (len(a) + len(b) - both)


def _shingles(text: str) -> frozenset[int]:
    """Hashes of runs of words; of a shorter text, of all its words at once."""
    words = UNIT.findall(text.casefold()) or [text]
    runs = ("\x1f".join(words[i : i + SHINGLE]) for i in range(max(1, len(words) - SHINGLE + 1)))
    return frozenset(int.from_bytes(hashlib.blake2b(run.encode("utf-8", "surrogatepass"), digest_size=4).digest())
                     for run in runs)  # fmt: skip


def _signatures(shingles: Sequence[frozenset[int]]) -> Iterator[NDArray[np.uint64]]:
    """MinHash of each text, [bands × rows]."""
    rng = np.random.default_rng(0)
    a, b = rng.integers(1, 1 << 31, (2, BANDS * ROWS)).astype(np.uint64)
    prime = np.uint64((1 << 31) - 1)
    for mine in shingles:
        x = np.fromiter(mine, np.uint64, len(mine)) % prime
        yield ((x[:, None] * a + b) % prime).min(0)


def labels_of(texts: LabelledTexts, domain: str, leave_out: Sequence[str] = ()) -> NDArray[np.int8]:
    """[texts] 1: of the domain, 0: not of it, −1: to be left out (it has a label of `leave_out` and not the domain's).

    Raises:
        ConfigError: no text has that label; a domain that is to be left out.
        DataError: all texts are of the domain, or none.
    """
    known = texts.labels
    for name in (domain, *leave_out):
        if name not in known:
            raise ConfigError(f"no text is labelled {name[:80]!r}", where="domain",
                              fix=f"Labels are: {', '.join(list(known)[:20])}")  # fmt: skip
    if domain in leave_out:
        raise ConfigError(f"{domain!r} is to be found, and to be left out", fix="Choose one")
    away = set(leave_out)
    y = np.asarray([1 if domain in t.labels else -1 if t.labels & away else 0 for t in texts], np.int8)
    if not (y == 0).any():
        raise DataError(f"one class only: every text that counts is labelled {domain!r}",
                        fix="Add texts of other labels")  # fmt: skip
    return y
