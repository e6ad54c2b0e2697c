"""Contexts of a feature as text for a language model: levels marked at their tokens, data set text fenced as data.

The activated token is marked and never blanked (the reference code of SAFER, arXiv 2507.00665, blanks it). Levels are
those of Safe-SAIL (arXiv 2509.18127, METHODS §2.3): activation over Q_f, linearly in ten steps.

Text is hostile: nothing in it can end the fence, forge a mark or become a control token of a chat template. A text is
one line; characters that act unseen, and those that fences, marks and control tokens are made of, are shown otherwise;
and the fence's code is a hash of what is inside.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest

from seamark.errors import ConfigError
from seamark.features.context_choice import LEVELS
from seamark.features.context_sets import FeatureContexts
from seamark.features.contexts import Context
from seamark.features.promoted import Promoted
from seamark.show.html import visible

MAX_CHARS = 24_000
"""Characters of one feature's data in a prompt, some 6,000 tokens of English."""
TOKEN_CHARS = 120
"""Characters of one token; of a longer one the middle is left out."""
MIN_TEXT = TOKEN_CHARS + 40
"""Characters that each text gets at least; where there is no room for that, texts are left out."""
TABLE_CHARS = 1500
PROMOTED_CHARS = 1000
PEAKS = 3
"""Places in a long text around which it is shown."""
_LINE = 8
"""Characters of a line before its text."""
_RESERVED = TABLE_CHARS + PROMOTED_CHARS + 1000
"""Characters for all but the texts: the list of tokens, promoted tokens, headings and the fence."""
_CUT = "⟦…⟧"
_STRUCTURE = re.compile("[«»⟦⟧〚〛⏎⇥]")
_LOOK_ALIKE = str.maketrans({"<": "‹", "[": "［", "\n": "⏎", "\t": "⇥"})


@dataclass(frozen=True)
class Presented:
    """A feature's contexts, fenced."""

    text: str
    """From the line ⟦data CODE⟧ to the line ⟦end CODE⟧."""
    code: str
    """The fence's code, 16 hexadecimal digits."""
    n_texts: int
    left_out: int
    """Texts for which there was no room."""
    notes: tuple[str, ...]
    """What a reader should know about the levels, as sentences."""


@dataclass
class _Line:
    """A text on its way into a line."""

    pieces: list[str]
    """Its tokens as they are shown, marks included."""
    levels: list[int]
    activations: Sequence[float]
    cost: int = field(init=False)

    def __post_init__(self) -> None:
        self.cost = sum(map(len, self.pieces)) + _LINE


def levels(activations: Sequence[float], q: float) -> list[int]:
    """Level 0-10 of each activation: 0 where silent, else ⌈10 z / Q_f⌉, at most 10 (as `context_choice` has them)."""
    return [min(max(math.ceil(LEVELS * (z / q)), 1), LEVELS) if z > 0 else 0 for z in activations]


def escape(text: str) -> str:
    """`text` on one line, unable to act: see the module's docstring. Two texts may come out alike."""
    coded = _STRUCTURE.sub(lambda match: f"⟦U+{ord(match.group()):04X}⟧", text)
    return visible(coded).translate(_LOOK_ALIKE)


def fence(lines: Sequence[str]) -> tuple[str, str]:
    """(text, code): escaped lines between two lines that none of them can hold."""
    body = "\n".join(lines)
    code = hashlib.sha256(body.encode("utf-8", "surrogatepass")).hexdigest()[:16]
    return f"⟦data {code}⟧\n{body}\n⟦end {code}⟧", code


def marked(token: str, level: int) -> str:
    """A token as it is shown: escaped, and with a mark where the feature is active. White space stays outside."""
    shown = _short(escape(token))
    if level == 0:
        return shown
    bare = shown.lstrip(" ")
    bare = bare if bare else shown
    return f"{shown[: len(shown) - len(bare)]}«{bare}|{level}»"


def present(contexts: FeatureContexts, *, max_chars: int = MAX_CHARS, promoted: Promoted | None = None) -> Presented:
    """The explain half of a feature's contexts as one fenced block.

    Every text is shown once: among the strongest, its level, near misses or silent ones. A long text is cut around its
    strongest tokens, never at one. Without Q_f levels are shares of the feature's largest activation here.

    Args:
        max_chars: bound on the block's length.

    Raises:
        ConfigError: `max_chars` leaves room for no text.
    """
    if max_chars < _RESERVED + 2 * MIN_TEXT:
        raise ConfigError(f"{max_chars} characters are too few for the texts of a feature", where="max_chars",
                          fix=f"Give at least {_RESERVED + 2 * MIN_TEXT}")  # fmt: skip
    unit = contexts.q or max((c.max_activation for c in contexts.explain.contexts), default=0.0) or 1.0
    sections = {name: [_line(c, unit) for c in some] for name, some in _sections(contexts)}
    n_all = sum(map(len, sections.values()))
    room = max_chars - _RESERVED
    kept = _kept(sections, room)
    cap = _cap([line.cost for lines in kept.values() for line in lines], room)
    body: list[str] = []
    for name, lines in kept.items():
        body.append(f"== {name} ==")
        body += [f"{i}. {_cut(line, cap - _LINE)}" for i, line in enumerate(lines, 1)]
    body += _table(contexts, unit)
    body += _promoted_lines(promoted)
    text, code = fence(body)
    n_kept = sum(map(len, kept.values()))
    return Presented(text, code, n_kept, n_all - n_kept, _notes(contexts, n_all - n_kept))


def _notes(contexts: FeatureContexts, left_out: int) -> tuple[str, ...]:
    shown = contexts.explain.contexts
    notes = []
    if contexts.q is None:
        notes.append("It fires too rarely for a scale of its own: level 10 is its largest activation in these texts.")
    if any(c.read and not all(c.read) for c in shown):
        notes.append("Some tokens were not measured; they carry no mark.")
    if not contexts.explain.silent and not contexts.explain.near_miss:
        notes.append("There are no texts in which it is silent.")
    if left_out:
        notes.append(f"{left_out} more texts are left out.")
    return tuple(notes)


def _sections(contexts: FeatureContexts) -> Iterator[tuple[str, list[Context]]]:
    """(heading, texts): each text in the first section that has it."""
    half, seen = contexts.explain, set[str]()
    numbered = [(f"level {level}", half.levels[level]) for level in sorted(half.levels, reverse=True)]
    for name, some in (
        ("strongest", half.top), *numbered, ("silent, though alike", half.near_miss), ("silent", half.silent)
    ):  # fmt: skip
        new = [c for c in some if c.text_id not in seen]
        seen.update(c.text_id for c in new)
        if new:
            yield name, new


def _line(context: Context, unit: float) -> _Line:
    found = levels(context.activations, unit)
    pieces = [marked(token, level) for token, level in zip(context.tokens, found, strict=True)]
    return _Line(pieces, found, context.activations)


def _kept(sections: dict[str, list[_Line]], room: int) -> dict[str, list[_Line]]:
    """The first texts of every section in turn, as many as fit with their least characters."""
    kept: dict[str, list[_Line]] = {name: [] for name in sections}
    turns = zip_longest(*([(name, line) for line in lines] for name, lines in sections.items()))
    for name, line in (item for turn in turns for item in turn if item is not None):
        room -= min(line.cost, MIN_TEXT + _LINE)
        if room < 0:
            break
        kept[name].append(line)
    return {name: lines for name, lines in kept.items() if lines}


def _cap(costs: Sequence[int], room: int) -> int:
    """The largest bound on each text with which all fit: short texts leave their room to long ones."""
    left, n = room, len(costs)
    for cost in sorted(costs):
        if cost * n > left:
            return left // n
        left, n = left - cost, n - 1
    return room


def _cut(line: _Line, cap: int) -> str:
    """The text in at most `cap` characters: its strongest token, and as much as fits around that and the next ones."""
    if line.cost - _LINE <= cap:
        return "".join(line.pieces)
    room, shown = cap - (PEAKS + 1) * len(_CUT), set[int]()
    for i in _by_nearness(line):
        if shown and len(line.pieces[i]) > room:
            break
        shown.add(i)
        room -= len(line.pieces[i])
    parts: list[str] = []
    for i, piece in enumerate(line.pieces):
        if i in shown:
            parts.append(piece)
        elif not parts or parts[-1] is not _CUT:
            parts.append(_CUT)
    return "".join(parts)


def _by_nearness(line: _Line) -> list[int]:
    """Tokens in the order in which they are wanted: around the strongest ones, twice as far before as behind."""
    firing = [i for i, level in enumerate(line.levels) if level]
    strongest = sorted(firing, key=lambda i: (-line.activations[i], i))
    peaks = strongest[:1]
    for i in strongest[1:]:  # others nearby are shown with the first anyway
        if len(peaks) < PEAKS and all(abs(i - p) > 8 for p in peaks):
            peaks.append(i)

    def distance(i: int) -> tuple[float, int]:
        return min(((p - i if i < p else 2 * (i - p)) + 6 * rank for rank, p in enumerate(peaks)), default=i), i

    return sorted(range(len(line.pieces)), key=distance)


def _table(contexts: FeatureContexts, unit: float) -> list[str]:
    """Tokens at which the feature is active: mean level there, and how often among the times they were seen."""
    total: dict[str, int] = {}
    fires: dict[str, int] = {}
    seen: dict[str, int] = {}
    for context in contexts.explain.contexts:
        read = context.read or (True,) * len(context.tokens)
        for token, level, was_read in zip(context.tokens, levels(context.activations, unit), read, strict=True):
            name = token.strip() or token
            if was_read or level:
                seen[name] = seen.get(name, 0) + 1
            if level:
                total[name], fires[name] = total.get(name, 0) + level, fires.get(name, 0) + 1
    order = sorted(total, key=lambda name: (-total[name], name))
    items = [f"«{_short(escape(n))}» {total[n] / fires[n]:.1f} ({fires[n]} of {seen[n]})" for n in order]
    return ["== tokens: mean level where active (times active, of times seen) ==", _list(items, TABLE_CHARS - 80)]


def _promoted_lines(promoted: Promoted | None) -> list[str]:
    if promoted is None:
        return []
    lines = []
    for name, tokens in (("more", promoted.promoted), ("less", promoted.suppressed)):
        items = [f"«{_short(escape(token))}»" for token, _ in tokens]
        lines += [f"== tokens made {name} likely ==", _list(items, PROMOTED_CHARS // 2 - 40)]
    return lines


def _list(items: Sequence[str], most: int) -> str:
    """As many items as fit, parted by commas."""
    kept: list[str] = []
    for item in items:
        most -= len(item) + 2
        if most < 0:
            break
        kept.append(item)
    return ", ".join(kept) or "none"


def _short(shown: str) -> str:
    """An escaped token, without its middle where it is too long; codes stay whole."""
    if len(shown) <= TOKEN_CHARS:
        return shown
    units = re.findall(r"⟦[^⟧]*⟧|.", shown, re.DOTALL)
    return f"{_units(units)}{_CUT}{_units(units[::-1], end=True)}"


def _units(units: Sequence[str], *, end: bool = False) -> str:
    """The first units that fit in half a token's room."""
    kept: list[str] = []
    room = TOKEN_CHARS // 2 - len(_CUT)
    for unit in units:
        room -= len(unit)
        if room < 0:
            break
        kept.append(unit)
    return "".join(reversed(kept) if end else kept)
