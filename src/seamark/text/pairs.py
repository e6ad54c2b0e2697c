"""Preference pairs: the value that flows through every room. Everything joins by pair id, never by line."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple, overload

from seamark.errors import DataError


class Message(NamedTuple):
    """One chat message."""

    role: str
    content: str


Text = str | tuple[Message, ...]
"""A plain string, or chat messages."""


def plain(text: Text) -> str:
    """A canonical string of `text`, used for hashing, de-duplication and splitting; not for models."""
    if isinstance(text, str):
        return text
    return "\n".join(f"{m.role}: {m.content}" for m in text)


def content_id(prompt: Text, chosen: Text, rejected: Text) -> str:
    """Stable 16-hex-digit id of a pair's content (independent of group, order and file)."""
    canonical = json.dumps([plain(prompt), plain(chosen), plain(rejected)], ensure_ascii=False)
    return hashlib.sha256(canonical.encode("utf-8", "surrogatepass")).hexdigest()[:16]


MaxPairs = int | Mapping[str, int] | None
"""Most pairs of every group, or {group: most} with all pairs of the groups it does not name; None: all."""


def limit_of(most: MaxPairs, group: str) -> int | None:
    """Most pairs of a group; None: all."""
    return most.get(group) if isinstance(most, Mapping) else most


def check_limits(most: MaxPairs, groups: Iterable[str]) -> None:
    """Raise `DataError` where a limit is for a group that is not there."""
    known = sorted(groups)
    if isinstance(most, Mapping) and (unknown := sorted(set(most) - set(known))):
        raise DataError(f"max_pairs limits the group {unknown[0]!r}, which is not there",
                        fix=f"The groups are: {', '.join(known)}")  # fmt: skip


def hash_unit(key: str, seed: int = 0) -> float:
    """A number in [0, 1) from a hash of `key`: sampling and splitting that do not depend on order."""
    digest = hashlib.sha256(f"{seed}:{key}".encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:7], "big") / float(1 << 56)


@dataclass(frozen=True, slots=True)
class PreferencePair:
    """One labelled comparison: `chosen` was preferred to `rejected` as an answer to `prompt`.

    `group` names what the pair is for (`safety`, `chat` or a user's own); `source` and `category` are free labels.
    """

    id: str
    group: str
    prompt: Text
    chosen: Text
    rejected: Text
    source: str = ""
    category: str = ""

    def flipped(self) -> PreferencePair:
        """The same pair with its label swapped. The id stays: it names the pair, not the label."""
        return replace(self, chosen=self.rejected, rejected=self.chosen)

    @property
    def prompt_key(self) -> str:
        """Hash of the prompt: the unit of splitting and of resampling."""
        return hashlib.sha256(plain(self.prompt).encode("utf-8", "surrogatepass")).hexdigest()[:16]

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> PreferencePair:
        """The pair that `to_row` wrote; further fields are ignored. Raises `KeyError` on other rows."""

        def load(value: Any) -> Text:
            return value if isinstance(value, str) else tuple(Message(m["role"], m["content"]) for m in value)

        return cls(
            id=row["id"], group=row["group"], prompt=load(row["prompt"]), chosen=load(row["chosen"]),
            rejected=load(row["rejected"]), source=row.get("source") or "", category=row.get("category") or "",
        )  # fmt: skip

    def to_row(self) -> dict[str, Any]:
        """The pair as a JSON-able row that TRL and `read_pairs` load."""

        def dump(text: Text) -> Any:
            return text if isinstance(text, str) else [{"role": m.role, "content": m.content} for m in text]

        return {
            "id": self.id, "group": self.group, "prompt": dump(self.prompt), "chosen": dump(self.chosen),
            "rejected": dump(self.rejected), "source": self.source, "category": self.category,
        }  # fmt: skip


@dataclass(frozen=True, slots=True)
class RejectedRow:
    """A row that could not be used: its file, 1-based row number and reason. The text itself is not kept."""

    file: str
    row: int
    reason: str
    group: str = ""
    """Of preference pairs, the group that it was read for."""


@dataclass(frozen=True)
class Pairs(Sequence[PreferencePair]):
    """An ordered set of pairs with unique ids, and the rows that did not make it in.

    `raw` keeps each row as it was read, by id, so that an edited file can be turned back field for field.
    """

    items: tuple[PreferencePair, ...]
    rejected: tuple[RejectedRow, ...] = ()
    raw: Mapping[str, Mapping[str, Any]] = field(default_factory=dict, repr=False)

    def __len__(self) -> int:
        return len(self.items)

    @overload
    def __getitem__(self, index: int) -> PreferencePair: ...
    @overload
    def __getitem__(self, index: slice) -> Pairs: ...
    def __getitem__(self, index: int | slice) -> PreferencePair | Pairs:
        return self.with_items(self.items[index]) if isinstance(index, slice) else self.items[index]

    def __iter__(self) -> Iterator[PreferencePair]:
        return iter(self.items)

    def with_items(self, items: Iterable[PreferencePair]) -> Pairs:
        """Other items with the same rejected rows, and the raw rows of those items."""
        kept = tuple(items)
        raw = {p.id: self.raw[p.id] for p in kept if p.id in self.raw} if self.raw else self.raw
        return replace(self, items=kept, raw=raw)

    def where(self, keep: Callable[[PreferencePair], bool]) -> Pairs:
        return self.with_items(p for p in self.items if keep(p))

    def group(self, name: str) -> Pairs:
        """Only the pairs of one group."""
        return self.where(lambda p: p.group == name)

    @property
    def ids(self) -> list[str]:
        return [p.id for p in self.items]

    @property
    def groups(self) -> list[str]:
        """Group names, by first appearance."""
        return list(dict.fromkeys(p.group for p in self.items))

    def split(self, test_share: float, seed: int = 0) -> tuple[Pairs, Pairs]:
        """(train, test), split by prompt hash: no prompt is on both sides, whatever the order of rows."""
        is_test = {p.id: hash_unit(p.prompt_key, seed) < test_share for p in self.items}
        return self.where(lambda p: not is_test[p.id]), self.where(lambda p: is_test[p.id])

    def sample(self, most: MaxPairs) -> Pairs:
        """At most `most` pairs of each group (or {group: most}), those whose ids hash lowest, in their order.

        Raises:
            DataError: a limit is for a group that is not there.
        """
        check_limits(most, self.groups)
        kept: set[str] = set()
        for name in self.groups:
            kept |= set(sorted(self.group(name).ids, key=lambda i: (hash_unit(i), i))[: limit_of(most, name)])
        return self.where(lambda p: p.id in kept)

    def fingerprint(self) -> str:
        """Hash of ids, groups and labels in order: equal fingerprints mean equal training data."""
        h = hashlib.sha256()
        for p in self.items:
            h.update(f"{p.id}|{p.group}|{content_id(p.prompt, p.chosen, p.rejected)}\n".encode())
        return h.hexdigest()

    @classmethod
    def from_jsonl(cls, path: Path) -> Pairs:
        """Read back what `to_jsonl` wrote. For files from elsewhere use `read_pairs`."""
        with path.open(encoding="utf-8") as f:
            return cls(tuple(PreferencePair.from_row(json.loads(line)) for line in f))

    def to_jsonl(self, path: Path) -> None:
        """Write one `PreferencePair.to_row` a line (UTF-8)."""
        with path.open("w", encoding="utf-8") as f:
            for p in self.items:
                f.write(json.dumps(p.to_row(), ensure_ascii=False) + "\n")
