"""What is wrong with preference data before any model reads it: contradictions, repetitions, hollow and hostile rows.

Reading (`text.reading`) already refuses rows that no model could use; they are counted here by file and reason. Among
the rows it lets through, pairs are compared after normalising: Unicode NFKC, no format or control characters, case
folded, white space as single spaces. Faults name pairs by id; no text is ever quoted.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, get_args

from pydantic import BaseModel, ConfigDict

from seamark.audit.near import Matches, near_pairs
from seamark.text.pairs import Pairs, PreferencePair
from seamark.text.rows import ALIASES, text_of

FaultKind = Literal[
    "contradiction", "group_contradiction", "near_contradiction", "duplicate", "group_duplicate", "near_duplicate",
    "same_answers", "empty", "repeated_answer", "hostile", "too_long", "unreadable", "changed_id",
]  # fmt: skip
KINDS: tuple[FaultKind, ...] = get_args(FaultKind)
ABOUT: Mapping[FaultKind, str] = {
    "contradiction": "same prompt and the same two answers with opposite labels, in one group",
    "group_contradiction": "the same, in different groups",
    "near_contradiction": "opposite labels on prompt and answers that differ by small edits",
    "duplicate": "same prompt, answers and label, in one group",
    "group_duplicate": "the same, in different groups",
    "near_duplicate": "same label on prompt and answers that differ by small edits",
    "same_answers": "both answers are the same",
    "empty": "prompt or an answer without a visible character",
    "repeated_answer": "one answer under many prompts",
    "hostile": "control characters, reordering marks or hidden tag characters",
    "too_long": "a text of more than 100,000 characters",
    "unreadable": "half a surrogate pair, which no tokenizer reads",
    "changed_id": "an id that another row has too, completed by a hash of the content",
}
TREATMENT: Mapping[FaultKind, str] = {
    "contradiction": "left out: one of the labels is wrong, and nothing says which",
    "group_contradiction": "kept: groups may prefer different things; the reward model is taught both",
    "near_contradiction": "kept: the edit may be what the label is about; look at them",
    "duplicate": "left out but the first",
    "group_duplicate": "kept: it counts in each of its groups",
    "near_duplicate": "kept; they weigh several times what one pair does",
    "same_answers": "left out: there is nothing to prefer",
    "empty": "left out: there is nothing to read",
    "repeated_answer": "kept; a canned answer teaches its wording, not its fitness",
    "hostile": "kept: pages show the characters by name",
    "too_long": "kept: models read the end of it",
    "unreadable": "left out: no tokenizer reads it",
    "changed_id": "kept under the completed id",
}
"""What a kind's pairs are used for in training and scoring; kinds that are left out begin with `left out`."""
LONG = 100_000
"""Characters above which a text is named as too long."""
MANY_PROMPTS = 5
"""Different prompts from which an answer counts as repeated."""
_HOSTILE = {
    "control characters": re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x84\x86-\x9f]"),
    "reordering marks": re.compile("[\u202a-\u202e\u2066-\u2069]"),
    "hidden tag characters": re.compile("(?<![\U0001f3f4\U000e0000-\U000e007f])[\U000e0000-\U000e007f]"),
}
"""Right-to-left marks and joiners are not among them: Arabic, Persian and emoji need them. Flags are spelt in tags."""
_SURROGATE = re.compile("[\ud800-\udfff]")
_INVISIBLE = re.compile(
    "[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180e"
    "\u200b-\u200f\u202a-\u202e\u2060-\u206f\u3164\ufe00-\ufe0f\ufeff\uffa0\U000e0000-\U000e0fff]"
)
_DETAILS = re.compile(r"(?<=\bmessage )\d+ (?=of )| \(.*\)")
"""What a reason for refusing a row says of that row alone."""


class _Value(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Fault(_Value):
    """Pairs that share one fault."""

    kind: FaultKind
    ids: tuple[str, ...]
    """In the order of the pairs; of duplicates the first is the one that is kept."""
    groups: tuple[str, ...]
    """Groups of the pairs, each once."""
    detail: str = ""
    """More on it, never a text: `chosen: control characters`."""


class FaultCount(_Value):
    """How often a kind was found; every kind has a line, also one that was not found."""

    kind: FaultKind
    about: str
    treatment: str
    """What the pairs are used for, and why."""
    faults: int | None
    """Sets of pairs; None: not available, see `reason`."""
    pairs: int | None
    """Different pairs in them."""
    left_out: int
    """Of these, pairs that are left out of training and scoring because of this kind."""
    reason: str = ""


class RejectedCount(_Value):
    """Rows that reading refused, by file and reason."""

    file: str
    reason: str
    rows: int


class Faults(_Value):
    """What was found in a set of pairs."""

    n_pairs: int
    """Pairs looked at: rows that reading let through."""
    n_rejected: int
    """Rows that it refused."""
    counts: tuple[FaultCount, ...]
    faults: tuple[Fault, ...]
    """By kind, then in the order of their first pair."""
    rejected: tuple[RejectedCount, ...]
    made_ids: int | None
    """Pairs whose rows had no usable id: theirs is a hash of the content. None: the rows are not known."""
    left_out: dict[str, str]
    """{pair id: why it is left out of training and scoring}."""
    notes: tuple[str, ...] = ()

    def of(self, *kinds: FaultKind) -> tuple[Fault, ...]:
        """The faults of some kinds."""
        return tuple(f for f in self.faults if f.kind in kinds)

    def ids(self, *kinds: FaultKind) -> set[str]:
        """Ids of the pairs with a fault of these kinds."""
        return {i for f in self.of(*kinds) for i in f.ids}

    def usable(self, pairs: Pairs) -> Pairs:
        """`pairs` without those that are left out."""
        return pairs.where(lambda p: p.id not in self.left_out)


class _Keys(NamedTuple):
    """Hashes of a pair's normalised texts."""

    prompt: bytes
    chosen: bytes
    rejected: bytes


def find_faults(pairs: Pairs) -> Faults:
    """Look for faults in pairs, without a model. The same pairs in the same order give the same result.

    Near duplicates come from MinHash with an exact check (`near.near_pairs`); time grows with the length of the texts,
    not with the square of their number.

    Args:
        pairs: as `read_pairs` gave them; their `rejected` rows are counted.
    """
    keys = [_keys(p) for p in pairs]
    found = [*_single(pairs), *_repeated_answers(pairs, keys)]
    hollow = {i for f in found if f.kind in ("empty", "same_answers", "unreadable") for i in f.ids}
    alike, single = _same_content(pairs, keys, hollow)
    found += alike
    near = near_pairs([(text_of(p.prompt), text_of(p.chosen), text_of(p.rejected)) for p in single])
    found += _near(single, near)
    found += _changed_ids(pairs)
    place = {p.id: n for n, p in enumerate(pairs)}
    found.sort(key=lambda f: (KINDS.index(f.kind), place[f.ids[0]], f.detail))
    left_out = _left_out(found)
    notes = [f"Near duplicates were looked for up to a limit of {near.checked:,} comparisons."] if near.cut else []
    return Faults(
        n_pairs=len(pairs), n_rejected=len(pairs.rejected), counts=_counts(pairs, found), faults=tuple(found),
        rejected=_rejected(pairs), made_ids=_made_ids(pairs), left_out=left_out, notes=tuple(notes),
    )  # fmt: skip


def normal(text: str) -> str:
    """`text` as it is compared: NFKC, without invisible characters, case folded, white space as single spaces."""
    if not text.isascii():
        text = unicodedata.normalize("NFKC", text)
    return " ".join(_INVISIBLE.sub("", text).casefold().split())


def _hash(text: str) -> bytes:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def _keys(pair: PreferencePair) -> _Keys:
    return _Keys(*(_hash(normal(text_of(t))) for t in (pair.prompt, pair.chosen, pair.rejected)))


def _fault(kind: FaultKind, members: Sequence[PreferencePair], detail: str = "") -> Fault:
    groups = tuple(dict.fromkeys(p.group for p in members))
    return Fault(kind=kind, ids=tuple(p.id for p in members), groups=groups, detail=detail)


def _single(pairs: Pairs) -> Iterable[Fault]:
    """Faults that a pair has on its own."""
    for pair in pairs:
        texts = {"prompt": text_of(pair.prompt), "chosen": text_of(pair.chosen), "rejected": text_of(pair.rejected)}
        if empty := [name for name, text in texts.items() if not normal(text)]:
            yield _fault("empty", [pair], ", ".join(empty))
        elif normal(texts["chosen"]) == normal(texts["rejected"]):
            yield _fault("same_answers", [pair])
        if long := [f"{name}: {len(text):,} characters" for name, text in texts.items() if len(text) > LONG]:
            yield _fault("too_long", [pair], "; ".join(long))
        if broken := [name for name, text in texts.items() if not text.isascii() and _SURROGATE.search(text)]:
            yield _fault("unreadable", [pair], ", ".join(broken))
        what = [f"{name}: {kind}" for name, text in texts.items() for kind, mark in _HOSTILE.items()
                if mark.search(text)]  # fmt: skip
        if what:
            yield _fault("hostile", [pair], "; ".join(what))


def _repeated_answers(pairs: Pairs, keys: Sequence[_Keys]) -> Iterable[Fault]:
    """Answers that stand under `MANY_PROMPTS` different prompts or more."""
    prompts: dict[bytes, set[bytes]] = defaultdict(set)
    for key in keys:
        prompts[key.chosen].add(key.prompt)
        prompts[key.rejected].add(key.prompt)
    empty = _hash("")
    many = {answer for answer, under in prompts.items() if len(under) >= MANY_PROMPTS and answer != empty}
    members: dict[bytes, list[PreferencePair]] = defaultdict(list)
    sides: dict[bytes, Counter[str]] = defaultdict(Counter)
    for pair, key in zip(pairs, keys, strict=True):
        for answer in {key.chosen, key.rejected} & many:
            members[answer].append(pair)
            sides[answer].update({"chosen": answer == key.chosen, "rejected": answer == key.rejected})
    for answer, some in members.items():
        detail = f"{len(prompts[answer]):,} prompts; chosen {sides[answer]['chosen']:,} times, rejected "
        yield _fault("repeated_answer", some, f"{detail}{sides[answer]['rejected']:,} times")


def _same_content(pairs: Pairs, keys: Sequence[_Keys], hollow: set[str]) -> tuple[list[Fault], list[PreferencePair]]:
    """Contradictions and duplicates among pairs equal after normalising, and one pair of every content and group."""
    alike: dict[tuple[bytes, frozenset[bytes]], list[int]] = defaultdict(list)
    for n, (pair, key) in enumerate(zip(pairs, keys, strict=True)):
        if pair.id not in hollow:
            alike[key.prompt, frozenset(key[1:])].append(n)
    found: list[Fault] = []
    single: list[PreferencePair] = []
    for rows in alike.values():
        single.append(pairs[rows[0]])
        if len(rows) > 1:
            found += _judge([(pairs[n], keys[n].chosen) for n in rows])
    return found, single


def _judge(members: Sequence[tuple[PreferencePair, bytes]]) -> Iterable[Fault]:
    """Faults among pairs of the same content; `members` holds each with the key of its chosen answer."""
    by_group: dict[str, list[tuple[PreferencePair, bytes]]] = defaultdict(list)
    for member in members:
        by_group[member[0].group].append(member)
    agreed: dict[bytes, list[PreferencePair]] = defaultdict(list)  # the first pair of each group that does agree
    for some in by_group.values():
        labels: dict[bytes, list[PreferencePair]] = defaultdict(list)
        for pair, chosen in some:
            labels[chosen].append(pair)
        if len(labels) > 1:
            yield _fault("contradiction", [p for p, _ in some],
                         " against ".join(f"{len(v):,}" for v in labels.values()))  # fmt: skip
            continue
        ((chosen, same),) = labels.items()
        if len(same) > 1:
            yield _fault("duplicate", same)
        agreed[chosen].append(same[0])
    if len(agreed) > 1:
        yield _fault("group_contradiction", [p for same in agreed.values() for p in same])
    for same in agreed.values():
        if len(same) > 1:
            yield _fault("group_duplicate", same)


def _near(single: Sequence[PreferencePair], near: Matches) -> Iterable[Fault]:
    for kind, clusters in (("near_duplicate", near.same), ("near_contradiction", near.opposite)):
        for rows in clusters:
            yield _fault(kind, [single[n] for n in rows])  # type: ignore[arg-type]


def _own_id(raw: Mapping[str, Any]) -> str:
    value = next((raw[name] for name in ALIASES["id"] if name in raw), None)
    return str(value).strip() if isinstance(value, str | int) and not isinstance(value, bool) else ""


def _changed_ids(pairs: Pairs) -> Iterable[Fault]:
    for pair in pairs:
        own = _own_id(pairs.raw.get(pair.id, {}))
        if own and pair.id != own and pair.id.startswith(f"{own}-"):
            yield _fault("changed_id", [pair])


def _made_ids(pairs: Pairs) -> int | None:
    if len(pairs) and not pairs.raw:
        return None
    return sum(not _own_id(pairs.raw.get(p.id, {})) for p in pairs)


def _left_out(found: Iterable[Fault]) -> dict[str, str]:
    """{pair id: why}; the first reason in the order of `KINDS` counts."""
    left: dict[str, str] = {}
    for fault in found:
        for pair_id in _dropped(fault):
            left.setdefault(pair_id, f"{ABOUT[fault.kind]} ({fault.kind})")
    return left


def _dropped(fault: Fault) -> tuple[str, ...]:
    if not TREATMENT[fault.kind].startswith("left out"):
        return ()
    return fault.ids[1:] if fault.kind == "duplicate" else fault.ids


def _counts(pairs: Pairs, found: Sequence[Fault]) -> tuple[FaultCount, ...]:
    unknown = "the rows as they were read are not known" if len(pairs) and not pairs.raw else ""
    rows = []
    for kind in KINDS:
        mine = [f for f in found if f.kind == kind]
        missing = unknown if kind == "changed_id" else ""
        rows.append(FaultCount(
            kind=kind, about=ABOUT[kind], treatment=TREATMENT[kind], faults=None if missing else len(mine),
            pairs=None if missing else len({i for f in mine for i in f.ids}),
            left_out=len({i for f in mine for i in _dropped(f)}), reason=missing,
        ))  # fmt: skip
    return tuple(rows)


def _rejected(pairs: Pairs) -> tuple[RejectedCount, ...]:
    """Refused rows by file and reason, the most frequent first. Numbers of rows in a reason are left away."""
    seen = Counter((bad.file, _reason(bad.reason)) for bad in pairs.rejected)
    ordered = sorted(seen.items(), key=lambda item: (item[0][0], -item[1], item[0][1]))
    return tuple(RejectedCount(file=file, reason=reason, rows=rows) for (file, reason), rows in ordered)


def _reason(reason: str) -> str:
    if reason.startswith("duplicate of row"):
        return "duplicate of another row of the group"
    return _DETAILS.sub("", reason)
