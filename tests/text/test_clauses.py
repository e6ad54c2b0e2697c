"""Clause ends by both rules, in many scripts, and no text that takes long."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seamark.text.clauses import clause_ends, paper_clause_ends


def cut(text: str) -> list[str]:
    """The clauses of `text`, stripped; what follows the last end comes last."""
    ends = [e.at + 1 for e in clause_ends(text)]
    pieces = [text[a:b].strip() for a, b in zip([0, *ends], [*ends, len(text)], strict=True)]
    return [p for p in pieces if p]


@pytest.mark.parametrize(
    ("text", "clauses"),
    [
        ("No, please stop. Why? Go!", ["No,", "please stop.", "Why?", "Go!"]),
        ("It is 3.14 or 1,000 at 12:30.", ["It is 3.14 or 1,000 at 12:30."]),
        ("It costs 5. Then 6,5 and 1.000.000,50.", ["It costs 5.", "Then 6,5 and 1.000.000,50."]),
        ("Fruit, e.g. apples, i.e., food.", ["Fruit,", "e.g. apples,", "i.e., food."]),
        ("Dr. Smith met Mr. J. K. Bean. He left.", ["Dr. Smith met Mr. J. K. Bean.", "He left."]),
        ("The U.S. Army and the U.S.", ["The U.S. Army and the U.S."]),
        ("Tea, milk, etc. Then sugar.", ["Tea,", "milk,", "etc.", "Then sugar."]),
        ("At 5 p.m. on Monday. No. 5 is here.", ["At 5 p.m. on Monday.", "No. 5 is here."]),
        ("The answer is no. Then he left.", ["The answer is no.", "Then he left."]),
        ("See https://a.b/c,d;e.html. Or www.x.org, ok.", ["See https://a.b/c,d;e.html.", "Or www.x.org,", "ok."]),
        ("Write to a.b@c.org; open report.pdf v1.2.3 now.", ["Write to a.b@c.org;", "open report.pdf v1.2.3 now."]),
        ("Wait... what? Well… yes.", ["Wait...", "what?", "Well…", "yes."]),
        ('She said "no." Then (he left!) ok', ['She said "no."', "Then (he left!)", "ok"]),
        ("one?! two", ["one?!", "two"]),
        ("1. Mix flour.\n2. Add salt", ["1. Mix flour.", "2. Add salt"]),
        ("First line\nsecond line\n\n\nthird", ["First line", "second line", "third"]),
        ("**Note:** read this", ["**Note:**", "read this"]),
        ("x &amp; y; z", ["x &amp; y;", "z"]),
        ("C:\\dir and std::string and a != b", ["C:\\dir and std::string and a != b"]),
        ("Bonjour ! Ça va ?", ["Bonjour !", "Ça va ?"]),
        ("我不能。因为危险，请不要！", ["我不能。", "因为危险，", "请不要！"]),
        ("「はい。」と言った。", ["「はい。」", "と言った。"]),
        ("안녕하세요. 네, 좋아요.", ["안녕하세요.", "네,", "좋아요."]),
        ("मैं नहीं कर सकता। यह खतरनाक है॥", ["मैं नहीं कर सकता।", "यह खतरनाक है॥"]),
        ("هل هذا آمن؟ لا، خطير؛ نعم.", ["هل هذا آمن؟", "لا،", "خطير؛", "نعم."]),
        ("یہ محفوظ نہیں۔ نہ کریں", ["یہ محفوظ نہیں۔", "نہ کریں"]),
        ("ሰላም ነው። አይደለም፣ እሺ", ["ሰላም ነው።", "አይደለም፣", "እሺ"]),
        ("မကောင်းပါဘူး။ ရပ်၊ ပါ", ["မကောင်းပါဘူး။", "ရပ်၊", "ပါ"]),
        ("នេះមិនល្អទេ។ កុំធ្វើ", ["នេះមិនល្អទេ។", "កុំធ្វើ"]),
        ("Բարեւ։ Այո՝ ոչ", ["Բարեւ։", "Այո՝", "ոչ"]),
        ("ไม่ควรทำ มันอันตราย", ["ไม่ควรทำ", "มันอันตราย"]),
        ("བཀྲ་ཤིས། བདེ་ལེགས།", ["བཀྲ་ཤིས།", "བདེ་ལེགས།"]),
        ("Это опасно, т.е. нельзя. Да", ["Это опасно,", "т.е. нельзя.", "Да"]),
        ("Was ist z.B. das? Nein", ["Was ist z.B. das?", "Nein"]),
        ("Τι κάνεις; Καλά· εσύ", ["Τι κάνεις;", "Καλά·", "εσύ"]),
    ],
)
def test_default_rule(text: str, clauses: list[str]) -> None:
    assert cut(text) == clauses


def test_sentences_are_the_ends_with_a_stop_or_a_line_break() -> None:
    text = "No, stop. Yes; go\nWhy?"
    assert [text[e.at] for e in clause_ends(text) if e.sentence] == [".", "\n", "?"]


def test_paper_rule_takes_every_run() -> None:
    text = "Dr. S, 3.14?!\n\nx"
    assert paper_clause_ends(text) == [2, 5, 8, 14]


@pytest.mark.parametrize(
    "text",
    ["a" * 100_000, "." * 100_000, "a.b" * 40_000, "www." * 30_000, "\n \n" * 30_000, "x@" * 50_000, "!'" * 40_000,
     "&" * 100_000, "e.g." * 30_000, "http://" * 20_000, " " * 100_000],
)  # fmt: skip
def test_no_text_takes_long(text: str) -> None:
    start = time.perf_counter()
    clause_ends(text)
    assert time.perf_counter() - start < 5


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet=st.sampled_from("ab I1.,:;!?…\n\"')( 。，؟।&@w/-–—·ก"), max_size=60) | st.text(max_size=60))
def test_ends_are_sorted_and_inside(text: str) -> None:
    ends = [e.at for e in clause_ends(text)]
    assert ends == sorted(set(ends))
    assert all(0 <= i < len(text) for i in ends)
