"""Rating sheets: nothing in a text acts on the page or in a spreadsheet, and firings are marked where they are."""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import re
import shutil
import subprocess
from html.parser import HTMLParser
from importlib import resources
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seamark.features.contexts import Context
from seamark.show.rating_sheet import MAX_CELL, MAX_TOKENS, SCALE, SheetFeature, instructions, sheet_page, sheet_table

HOSTILE = (
    "<script>alert(1)</script>", "</style><img src=x onerror=alert(1)>", '" onmouseover="alert(1)', "<!-- ", "-->",
    "{{ 7 * 7 }}", "\u202egnihton", "\x00\x1b[31m", "&lt;b&gt;", "\ud800", "</article></main>", "javascript:alert(1)",
)  # fmt: skip
FORMULA = tuple("=+-@＝＋－＠")


def context(tokens: tuple[str, ...], activations: tuple[float, ...] | None = None, q: float | None = 2.0) -> Context:
    values = activations or tuple(float(i % 3) for i in range(1, len(tokens) + 1))
    return Context("id-7", "pair-7", "chosen", "grp", tokens, values, (True,) * len(tokens), q, (True,) * len(tokens))


def feature(*contexts: Context, code: str = "F-2b3c", q: float | None = 2.0) -> SheetFeature:
    return SheetFeature(code, contexts, q)


def cells(table: str, delimiter: str = ",") -> list[list[str]]:
    return list(csv.reader(io.StringIO(table.removeprefix("\ufeff"), newline=""), delimiter=delimiter))


class Page(HTMLParser):
    """The page's tags in order, its attributes, and what its scripts and styles hold."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.inside = {"script": [""], "style": [""]}
        self.text = ""
        self._open = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        self._open = tag
        if tag in self.inside:
            self.inside[tag].append("")

    def handle_endtag(self, tag: str) -> None:
        self._open = ""

    def handle_data(self, data: str) -> None:
        if self._open in self.inside:
            self.inside[self._open][-1] += data
        else:
            self.text += data

    def values(self, name: str) -> list[str]:
        return [value for _, n, value in self.attributes if n == name]


def test_the_policy_allows_this_script_and_style_and_nothing_else() -> None:
    page = Page(sheet_page([feature(context(HOSTILE))], "ab12"))
    (policy,) = [v for v in page.values("content") if "default-src" in v]
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules.pop("default-src") == "'none'"
    for kind in ("script", "style"):
        (source,) = page.inside[kind][1:]
        assert len(source) > 1000
        digest = base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()
        assert rules.pop(f"{kind}-src") == f"'sha256-{digest}'"
    assert rules == {"base-uri": "'none'", "form-action": "'none'"}
    names = {name for _, name, _ in page.attributes}
    assert not names & {"style", "src", "href", "action", "srcset"}, "what the policy would refuse"
    assert not [name for name in names if name.startswith("on")]
    assert "url(" not in page.inside["style"][1]
    assert not re.search(r"\b(fetch|XMLHttpRequest|WebSocket|innerHTML|eval|import)\b", page.inside["script"][1])


def test_texts_are_inert_on_the_page() -> None:
    hostile, mild = (Page(sheet_page([feature(context(tokens))], "ab12")) for tokens in (HOSTILE, ("word",) * 12))
    assert hostile.tags == mild.tags
    assert len(hostile.attributes) == len(mild.attributes)
    assert hostile.inside == mild.inside
    for shown in ("<script>alert(1)</script>", "{{ 7 * 7 }}", "⟦U+202E⟧gnihton", "␀␛[31m", "&lt;b&gt;", "⟦U+D800⟧"):
        assert shown in hostile.text


@given(st.lists(st.text(st.sampled_from([*"=+-@＝＋;,\t\n\r\"'| a1⟪⟩", "\u2028", "\x00"]), max_size=6), min_size=1))
@settings(max_examples=300, deadline=None)
def test_no_cell_starts_a_formula_whatever_the_separator(tokens: list[str]) -> None:
    table = sheet_table([feature(context(tuple(tokens)))])
    assert [len(row) for row in cells(table)] == [4, 4]
    for delimiter in ",;\t|":
        for row in cells(table, delimiter):
            assert not [c for c in row if c.strip(" \"'\n") and c.lstrip().startswith(FORMULA)]
    for line in table.splitlines():  # quotes may be lost with the separator
        for cell in re.split(r"[,;\t|\"]", line):
            assert not cell.strip().startswith(FORMULA)


def test_firings_are_marked_where_they_are_by_strength() -> None:
    tokens = ("Stay", " off", " the", " wet", " floor", ".\n", " Now")
    shown = feature(context(tokens, (0.0, 2.0, 0.0, 0.2, 3.0, 0.0, 1.1)))
    (_, (code, text, rating, comment)) = cells(sheet_table([shown]))
    assert (code, rating, comment) == ("F-2b3c", "", "")
    assert text == "1. Stay ⟪off⟫ the ⟨wet⟩ ⟪floor⟫. ⏎ ⟪Now⟫"
    html = sheet_page([shown], "ab12")
    for piece in ("l10|+2.000 (1.0 of Q)|off", "l1|+0.200 (0.10 of Q)|wet", "l10|+3.000 (1.5 of Q)|floor",
                  "l6|+1.100 (0.55 of Q)|Now"):  # fmt: skip
        shade, title, word = piece.split("|")
        assert f'<span class="t for {shade}" title="{title}">{word}</span>' in html
    assert "Stay <span" in html, "white space stands before the shade, not in it"


def test_marks_in_a_text_do_not_pass_for_marks_of_the_sheet() -> None:
    (_, (_, text, _, _)) = cells(sheet_table([feature(context(("⟪no⟫", " yes⟩"), (0.0, 2.0)))]))
    assert text == "1. ⟦U+27EA⟧no⟦U+27EB⟧ ⟪yes⟦U+27E9⟧⟫"


def test_without_q_the_strongest_of_all_texts_is_full_shade() -> None:
    texts = (context(("a", " b"), (4.0, 0.0), None), context(("c", " d"), (0.0, 1.0), None))
    html = sheet_page([feature(*texts, q=None)], "ab12")
    assert '<span class="t for l10" title="+4.000 (1.0 of the strongest here)">a</span>' in html
    assert '<span class="t for l3" title="+1.000 (0.25 of the strongest here)">d</span>' in html
    assert "1. ⟪a⟫ b\n2. c ⟨d⟩" in sheet_table([feature(*texts, q=None)])


def test_long_texts_are_shown_around_their_strongest_token() -> None:
    values = [0.0] * 3000
    values[2000] = 2.0
    long = feature(context(tuple(f"w{i} " for i in range(3000)), tuple(values)))
    (_, (_, text, _, _)) = cells(sheet_table([long]))
    assert "⟪w2000⟫" in text
    assert len(text.split()) == MAX_TOKENS + 3, "the number and two ellipses"
    assert "tokens before" in sheet_page([long], "ab12")
    huge = feature(*[context(("x" * 9000,) * 100, (1.0, *[0.0] * 99)) for _ in range(9)])
    (_, (_, cut, _, _)) = cells(sheet_table([huge]))
    assert len(cut) <= MAX_CELL


def test_texts_are_blurred_by_style_alone_until_the_box_is_ticked() -> None:
    page = Page(sheet_page([feature(context(("a",)))], "ab12"))
    style = page.inside["style"][1]
    assert re.search(r"\.context \.tokens \{[^}]*filter: blur\(", style)
    assert re.search(r"#reveal:checked ~ main \.tokens \{ filter: none", style)
    assert page.tags[page.tags.index("body") :][1] == "input", "the box comes before its siblings"
    assert page.tags.index("main") > page.tags.index("input")
    assert not [a for a in page.attributes if a[:2] == ("input", "checked") and "reveal" in a[2]]


def test_a_page_has_a_named_answer_for_each_feature() -> None:
    codes = ["F-2b3c", "F-9xzq"]
    page = Page(sheet_page([feature(context(("a",)), code=code) for code in codes], "ab12"))
    assert page.values("data-code") == codes
    radios = [value for tag, name, value in page.attributes if (tag, name) == ("input", "value")]
    assert radios == ["", "1", "2", "3", "4", "5"] * 2
    assert page.tags.count("legend") == page.tags.count("fieldset") == 2
    assert "2 of 2" in page.text


def test_people_are_asked_in_the_words_of_the_prompt() -> None:
    """Agreement means little between answers to different questions."""
    prompts = resources.files("seamark.explain") / "prompts"
    names = sorted(p.name for p in prompts.iterdir() if re.fullmatch(r"explain-\d+\.txt", p.name))
    prompt = (prompts / names[-1]).read_text(encoding="utf-8")
    text, page = instructions(7), Page(sheet_page([feature(context(("a",)))], "ab12")).text
    for rating, words in SCALE.items():
        assert f"{rating}: {words.split(' safety')[0]}" in prompt
        assert words in text
        assert words in page
    assert "harm, danger, crime, abuse, hate, illegal or sensitive content" in prompt.replace("\n", " ")
    assert "harm, danger, crime, abuse, hate, illegal or sensitive content" in text.replace("\n", " ")
    assert "7 features" in text


def test_equal_features_give_equal_bytes() -> None:
    features = [feature(context(HOSTILE))]
    assert sheet_page(features, "ab12") == sheet_page(features, "ab12")
    assert sheet_table(features) == sheet_table(features)
    assert sheet_table(features).startswith("\ufeffcode,contexts,rating,comment\r\n")


@pytest.mark.slow
def test_the_script_runs_in_a_browser(tmp_path: Path) -> None:
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no Chromium on this machine")
    page = tmp_path / "sheet.html"
    page.write_text(sheet_page([feature(context(HOSTILE)), feature(context(("a",)), code="F-9xzq")], "ab12"), "utf-8")
    found = subprocess.run([browser, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}/user",
                            "--virtual-time-budget=2000", "--dump-dom", page.as_uri()],
                           capture_output=True, text=True, timeout=120, check=False)  # fmt: skip
    assert '<output id="progress">0 of 2 rated</output>' in found.stdout, found.stderr[-2000:]
    assert "Content Security Policy" not in found.stderr
