"""The report: whole, self-contained, inert, and honest about what is missing."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from seamark.audit.report import SECTIONS, render_report, write_report
from seamark.audit.report_data import Experiment, Missing, ReportData, SuspiciousPair, TokenText

HOSTILE = (
    "<script>alert(1)</script>\"'><img src=x onerror=alert(2)> {{ 7*7 }} {% raw %} &amp; \u202eevil\u202c \x00\x1b[31m"
    " </style></details><style>*{display:none}</style> javascript:alert(3) \ud800 \U000e0041 --> ]]>"
)
VOID = {"meta", "br", "img", "link", "hr", "input"}


class Page(HTMLParser):
    """Tags must nest; collects tags, attributes and text."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(html)
        self.close()
        assert not self.open, f"not closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> without a start"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return "".join(self.words)


def hostile(data: ReportData) -> ReportData:
    """Every string a data set can reach is hostile; one text is a megabyte long."""
    text = TokenText(tokens=(HOSTILE, "x" * 1_000_000, HOSTILE), values=(1.0, float("nan"), -2.0))
    assert not isinstance(data.suspicious, Missing)
    first = data.suspicious[0]
    bad = SuspiciousPair(id=HOSTILE, group=HOSTILE, category=HOSTILE, score=-9.0, prompt="y" * 1_000_000,
                         chosen=text, rejected=text, note=HOSTILE)  # fmt: skip
    assert isinstance(data.poisoning, Experiment)
    row = data.poisoning.rows[1]
    rows = (*data.poisoning.rows, row.model_copy(update={"method": HOSTILE}))
    return data.model_copy(update={
        "title": HOSTILE, "summary": (HOSTILE,), "notes": (HOSTILE,), "suspicious": (bad, first),
        "poisoning": data.poisoning.model_copy(update={"rows": rows}),
        "sae": Missing(missing=HOSTILE),
    })  # fmt: skip


def assert_inert(html: str) -> Page:
    page = Page(html)
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]", html)
    assert not {"script", "iframe", "object", "embed", "link", "img", "form", "base"} & {t for t, _ in page.tags}
    assert [t for t, _ in page.tags].count("style") == 1
    for _, attributes in page.tags:
        for name, value in attributes.items():
            assert not name.startswith("on")
            assert name not in {"src", "srcset", "action", "formaction", "xlink:href"}
            if name == "href":
                assert (value or "").startswith("#")
            if name == "style":
                assert re.fullmatch(r"--a:[01](\.\d+)?", value or "")
    assert "http" not in html.replace("http-equiv", "")
    assert "url(" not in html
    return page


def test_report_is_whole_and_self_contained(report_data: ReportData, tmp_path: Path) -> None:
    write_report(report_data, tmp_path / "report.html")
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    page = assert_inert(html)
    policy = next(a["content"] for t, a in page.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    assert "default-src 'none'" in policy
    for key, heading in SECTIONS:
        assert any(a.get("id") == key for t, a in page.tags if t == "h2"), key
        assert heading in page.text
    ids = [a["id"] for _, a in page.tags if "id" in a]
    assert len(ids) == len(set(ids))
    assert html == render_report(report_data), "equal data give equal bytes"
    assert len(html) < 600_000


@pytest.mark.parametrize(
    "words",
    ["87.3\u202f%", "85.2 to 89.4", "Q_f: only 7 firings", "seed 2 did not finish", "no human ratings were imported",
     "fires in 8 texts, too few to rate", "1,204,112", "not available", "2026-11-22", "✗ fails", "? open", "✓ holds",
     "1\u202fh 13\u202fmin", "label was flipped on purpose", "−0.34", "fewer than 10 held-out pairs"],
)  # fmt: skip
def test_report_says(report_data: ReportData, words: str) -> None:
    assert words in Page(render_report(report_data)).text


def test_hostile_text_is_inert_and_long_text_is_cut(report_data: ReportData) -> None:
    html = render_report(hostile(report_data))
    page = assert_inert(html)
    assert "<script>alert(1)</script>" in page.text, "shown, as text"
    assert "{{ 7*7 }}" in page.text
    assert "⟦U+202E⟧evil⟦U+202C⟧ ␀␛[31m" in page.text
    assert "⟦U+D800⟧ ⟦U+E0041⟧" in page.text
    assert "996,000 more characters" in page.text
    assert len(html) < 700_000


def test_every_section_can_be_missing(report_data: ReportData) -> None:
    keys = [k for k in ReportData.model_fields if k not in {"schema_version", "title", "summary", "run", "notes"}]
    bare = report_data.model_copy(update={k: Missing(missing=f"reason for {k}") for k in keys})
    text = assert_inert(render_report(bare)).text
    for key in keys:
        assert f"Not available: reason for {key}" in text


def test_report_data_round_trip(report_data: ReportData) -> None:
    assert ReportData.model_validate_json(report_data.model_dump_json()) == report_data


def test_tables_have_headers_and_texts_stay_closed(report_data: ReportData) -> None:
    page = Page(render_report(report_data))
    headers = [a for t, a in page.tags if t == "th"]
    assert headers
    assert all(a.get("scope") in {"col", "row"} for a in headers)
    assert all("open" not in a for t, a in page.tags if t == "details")
