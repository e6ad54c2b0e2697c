"""Where clauses end in a string: the paper's rule, and ours that knows numbers, abbreviations and other scripts."""

from __future__ import annotations

import re
from typing import NamedTuple

_PAPER_RUN = re.compile(r"[.,?!;\n]+")
_PAPER_SENTENCE = re.compile(r"[.?!\n]")


class ClauseEnd(NamedTuple):
    """The index of a clause's last character, and whether a sentence ends there too."""

    at: int
    sentence: bool


# Full stops, question and exclamation marks. Each is plain where its script uses it; only "." needs a second look.
_STOPS = (
    ".!?…‼⁇⁈⁉‽。！？．｡﹒﹖﹗।॥؟۔։׃"  # Latin, Greek, Cyrillic, CJK, Devanagari and kin, Arabic, Urdu, Armenian, Hebrew
    "።፧፨။។៕๚๛།༎༏༐༑"  # Ethiopic, Myanmar, Khmer, Thai, Tibetan
    "܀܁܂᠃᠉߹჻෴᙮᱾᱿"  # Syriac, Mongolian, N'Ko, Georgian, Sinhala, Canadian syllabics, Ol Chiki
    "᭚᭛᭟꧈꧉꧊꩝꩞꩟꘎꘏꫰꫱꯫꓿⸮⸼\u037e"  # Balinese, Javanese, Cham, Vai, Meetei, Lisu, Greek question mark
)
# Commas, semicolons, colons and dashes.
_PAUSES = ",;:،؛、，；：､﹐﹑﹔﹕፣፤፥፦၊៖՝᠂᠄᠈߸᭞᭝꘍꓾܃܄܅܆܇܈܉\u0387\u00b7—―"
_CLOSERS = "\"'”’»›)]}」』】》〉〕）］｝｣*_`~"
_NEWLINES = "\n\r\u2028\u2029\x0b\x0c\x85"

_RUN = re.compile(
    rf"(?P<marks>[{re.escape(_STOPS + _PAUSES)}]+)|(?P<line>[{_NEWLINES}])"
    r"|(?P<dash>(?<=[^\s\d] )(?:--?|–)(?=\s))"
    # Thai and Lao put a space where others put a comma or a full stop.
    r"|(?P<space>(?<=[\u0e00-\u0eff])[ \u00a0\u200b](?=[\u0e00-\u0eff]))"
)
# Lengths are bounded so that no text, however hostile, takes quadratic time.
_ADDRESS = re.compile(
    r"(?:[a-zA-Z][a-zA-Z0-9+.-]{1,15}://|www\.)[^\s<>\"。！？，、；「」（）]{1,2000}"
    r"|(?<![\w.+-])[\w.+-]{1,64}@[\w-]{1,64}(?:\.[\w-]{1,64}){1,8}"
    r"|&(?:[a-zA-Z]{2,12}|#[0-9]{1,7});"
)
_WORD_BEFORE = re.compile(r"(?<![\w.])[^\W\d_](?:[^\W\d_]|\.(?=[^\W\d_])){0,15}\Z")
_ACRONYM = re.compile(r"[^\W\d_](?:\.[^\W\d_])+")
_ITEM_NUMBER = re.compile(r"(?:^|[\n\r])[ \t>*(-]{0,8}(?:\d{1,3}|[a-zA-Z]|[ivxIVX]{1,5})\Z")


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Abbreviations, lower case, without their last point.
_NEVER = _words(  # never the end of a clause, whatever follows
    "mr mrs dr prof e.g i.e eg ie viz cf vs approx resp bzw z.b d.h ggf evtl sog p.ej sra srta dra ee.uu м.б т.е"
    " w.r.t a.k.a n.b messrs mme mlle dott sig ing"
)
_TITLES = _words(  # not where they begin with a capital
    "ms mx rev hon st gen col lt sgt capt cpt maj cmdr adm gov sen rep pres supt fr mt ft sr jr hr ph"
)
_NUMBERED = _words("no nos nr p pp fig figs eq eqs sec ch art vol vols op ext c ca n стр ст гл рис")
_MAYBE = _words(  # the end only where the next word begins with a capital
    "etc a.m p.m inc ltd co corp bros ph.d m.d b.a m.a b.sc m.sc usw u.a al dept est ext др т.д т.п г гг jan feb"
    " mar apr jun jul aug sept sep oct nov dec"
)
_BEFORE_COMMA = _words("e.g i.e eg ie viz cf z.b d.h p.ej т.е")  # "e.g., x" is one clause


def paper_clause_ends(text: str, *, sentences_only: bool = False) -> list[int]:
    """Indices of the last character of every run of `. , ? ! ;` and newline (SAFER, released code); with
    `sentences_only` of those runs that hold one of `. ? !` or a newline (ours: the code knows clauses only)."""
    runs = _PAPER_RUN.finditer(text)
    return [m.end() - 1 for m in runs if not sentences_only or _PAPER_SENTENCE.search(m[0])]


def clause_ends(text: str) -> list[ClauseEnd]:
    """Ends of clauses in `text`, in order, by the default rule.

    A run of punctuation together with the closing quotes and brackets behind it is one end, at its last character.
    A line break is an end where no end stands right before it. No ends: points and commas inside numbers, after
    abbreviations (e.g., Dr., U.S.) and initials, inside addresses, file names and versions, after the number of a
    list item, and colons inside times.
    """
    addresses = [(m.start(), _address_end(m)) for m in _ADDRESS.finditer(text)]
    ends: list[ClauseEnd] = []
    nearest = 0
    for match in _RUN.finditer(text):
        while nearest < len(addresses) and addresses[nearest][1] <= match.start():
            nearest += 1
        if nearest < len(addresses) and addresses[nearest][0] <= match.start():
            continue
        if match["line"]:
            _end_line(text, match.start(), ends)
        elif match["marks"] is None:
            ends.append(ClauseEnd(match.start() - 1 if match["space"] else match.end() - 1, False))
        elif _ends_clause(text, match.start(), match.end()):
            ends.append(_mark_end(text, match))
    return ends


def _address_end(match: re.Match[str]) -> int:
    """End of an address without the punctuation that closes the sentence around it."""
    if match.group().startswith("&"):
        return match.end()
    return match.start() + len(match.group().rstrip(_STOPS + _PAUSES + _CLOSERS))


def _end_line(text: str, at: int, ends: list[ClauseEnd]) -> None:
    """End the line at the break `at`: a new end, or none where the line is empty or has just ended."""
    before = len(text[max(0, at - 64) : at].rstrip(" \t")) + max(0, at - 64)
    if before == 0 or text[before - 1] in _NEWLINES:
        return
    if ends and ends[-1].at == before - 1:
        ends[-1] = ClauseEnd(before - 1, True)
    else:
        ends.append(ClauseEnd(at, True))


def _mark_end(text: str, match: re.Match[str]) -> ClauseEnd:
    marks = match["marks"]
    sentence = any(m in _STOPS for m in marks) and marks[-1] not in _PAUSES
    return ClauseEnd(_past_closers(text, match.end()) - 1, sentence)


def _past_closers(text: str, at: int) -> int:
    """Index behind the closing quotes and brackets at `at`; `at` itself where they open the next word instead."""
    end = at
    while end < len(text) and text[end] in _CLOSERS and end - at < 8:
        end += 1
    opens = end < len(text) and text[end].isascii() and text[end].isalnum()
    return at if opens else end


def _ends_clause(text: str, start: int, end: int) -> bool:
    """Whether the punctuation at [start, end) ends a clause and is no part of a number, word or name."""
    marks, before, after = text[start:end], text[max(0, start - 1) : start], text[end : end + 1]
    # Scripts from Thai on, and with them all of East Asia, put no space behind a full stop.
    apart = not after or after.isspace() or after == "<" or after >= "\u0e00" or _past_closers(text, end) > end
    if len(marks) == 1 and before.isdigit() and after.isdigit():
        return marks not in ".,:،．，：\u00b7"
    if set(marks) <= set(":\u00b7"):
        return apart
    if marks == "!" and after == "=":
        return False
    if marks[0] == "." and marks.count(".") == 1:
        return (apart or len(marks) > 1) and not _abbreviation(text, start, end)
    return True


def _abbreviation(text: str, start: int, end: int) -> bool:
    """Whether the point at `start` belongs to an abbreviation, an initial or the number of a list item."""
    head, rest = text[max(0, start - 24) : start], text[end : end + 64].lstrip(" \t\u00a0")
    if not rest or rest[0] in _NEWLINES:
        return False
    word = _WORD_BEFORE.search(head)
    name = word.group() if word else ""
    key = name.lower()
    if end - start > 1:
        return key in _BEFORE_COMMA
    if _ITEM_NUMBER.search(head) or key in _NEVER:
        return True
    if key in _TITLES and name[0].isupper():
        return True
    if key in _NUMBERED and rest[0].isdigit():
        return True
    if key in _MAYBE:
        return not rest[0].isupper()
    initial = len(name) == 1 and name.isupper() and name != "I"
    return initial or _ACRONYM.fullmatch(name) is not None
