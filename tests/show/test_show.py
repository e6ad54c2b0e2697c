"""Escaping, highlighting, numbers, figures and terminal tables."""

from __future__ import annotations

import io
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markupsafe import Markup
from rich.console import Console

from seamark.show import figures, numbers
from seamark.show.html import cut, environment, render_part, visible
from seamark.show.tables import ResultRow, ordered, print_result_table, rich_table
from seamark.show.tokens import highlight, token_view
from seamark.stats import Estimate

UNSEEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff\U000e0000-\U000e0fff]"
)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\r\nb\tc", "a\nb\tc"),
        ("a\x00\x1b\x7f\x85", "a␀␛␡⟦U+0085⟧"),
        ("\u202eabc\u2066\ufeff", "⟦U+202E⟧abc⟦U+2066⟧⟦U+FEFF⟧"),
        ("\ud800\U000e0041\ue000", "⟦U+D800⟧⟦U+E0041⟧\ue000"),
        ("नमस्ते \u200d 👩\u200d🔬 ❤\ufe0f \ufffd", "नमस्ते \u200d 👩\u200d🔬 ❤\ufe0f \ufffd"),
    ],
)
def test_visible(text: str, shown: str) -> None:
    assert visible(text) == shown


@given(st.text(st.characters(codec=None)))
def test_whatever_a_template_prints_is_inert(text: str) -> None:
    template = environment().from_string('<b title="{{ x }}">{{ x }}</b>')
    html = template.render(x=text)
    inside = html.removeprefix('<b title="').removesuffix("</b>")
    assert not UNSEEN.search(html)
    assert not re.search("[<>]", inside.replace('">', "", 1))
    html.encode("utf-8")


def test_templates_fail_on_unknown_names_and_print_none_as_dash() -> None:
    with pytest.raises(Exception, match="undefined"):
        environment().from_string("{{ nothing }}").render()
    assert environment().from_string("{{ x }}").render(x=None) == "–"
    assert render_part("tokens.html", view=token_view(["<"], [0.0])).count("&lt;") == 1


def test_cut() -> None:
    assert cut("abc", 2) == ("ab", 1)
    assert cut("abc", 3) == ("abc", 0)


def test_highlight() -> None:
    html = highlight(["I", " can't", " <b>", "\x00"], [0.0, 1.0, -4.0, 0.0], unit=2.0)
    assert isinstance(html, Markup)
    assert '<span class="t for" style="--a:0.5" title="+1.000 (0.50 of Q)"> can&#39;t</span>' in html
    assert '<span class="t against" style="--a:1.0"' in html, "shade stops at full"
    assert "&lt;b&gt;" in html
    assert "␀" in html


def test_highlight_spreads_clause_ends_and_joins_equal_shades() -> None:
    view = token_view(["a", " b", ",", " c", ".", " d"], [0, 0, 1.0, 0, -0.5, 0], ends=[2, 4])
    assert [(s.text, s.tone) for s in view.spans] == [("a b,", "for"), (" c.", "against"), (" d", "")]


def test_highlight_without_unit_or_finite_values() -> None:
    view = token_view(["a", "b", "c"], [0.5, float("nan"), 0.25], unit=None)
    assert [s.level for s in view.spans] == [1.0, 0.0, 0.5]
    assert "not available" in view.spans[0].title
    with pytest.raises(ValueError, match="2 tokens"):
        token_view(["a", "b"], [1.0])


def test_long_texts_are_shown_around_their_strongest_token() -> None:
    values = [0.0] * 1000
    values[700] = 1.0
    view = token_view([f"t{i} " for i in range(1000)], values, max_tokens=90)
    assert (view.before, view.after) == (640, 270)
    assert "t700" in "".join(s.text for s in view.spans)
    assert token_view(["x" * 10_000], [1.0]).spans[0].left_out == 9800


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (numbers.percent(0.41234), "41.2\u202f%"),
        (numbers.percent(None), "not available"),
        (numbers.percent(float("nan")), "not available"),
        (numbers.points(-0.0712), "−7.1"),
        (numbers.points(-0.00001), "0.0"),
        (numbers.number(12345.6), "12,346"),
        (numbers.number(0.4), "0.400"),
        (numbers.signed(0.5), "+0.500"),
        (numbers.seconds(245), "4\u202fmin 05\u202fs"),
        (numbers.estimate_text(Estimate.not_available("no pairs")), "not available: no pairs"),
        (numbers.estimate_text(Estimate(value=0.5, low=0.4, high=0.6)), "50.0\u202f% [40.0 to 60.0]"),
    ],
)
def test_numbers(shown: str, expected: str) -> None:
    assert shown == expected


def test_interval_plot_places_values_and_names_what_is_missing() -> None:
    series = {"safer": [("1 %", Estimate(value=0.8, low=0.7, high=0.9)), ("5 %", Estimate.not_available("no"))]}
    chart = figures.interval_plot("t", series, x_label="x", y_label="y", baseline=("unedited", Estimate(value=0.85)))
    assert len(chart.dots) == 1
    dot = chart.dots[0]
    assert dot.low is not None
    assert dot.high is not None
    assert dot.low > dot.y > dot.high, "pixels run downwards"
    assert chart.levels[0].at < dot.y
    assert chart.missing == ("safer, 5 %: not available: no",)
    assert figures.draw(chart) == figures.draw(chart)
    assert "not available: no" in figures.draw(chart)


@pytest.mark.parametrize("values", [[], [0.5], [0.5, 0.5], [0.0, 1.0]])
def test_interval_plot_of_few_or_equal_values(values: list[float]) -> None:
    series = {"a": [(str(i), Estimate(value=v)) for i, v in enumerate(values)]}
    chart = figures.interval_plot("t", series, x_label="x", y_label="y")
    assert len(chart.y_ticks) >= 2
    assert all(chart.top - 0.01 <= d.y <= chart.bottom + 0.01 for d in chart.dots)
    figures.draw(chart)


def test_histogram_shares_sum_to_one() -> None:
    chart = figures.histogram("t", [0.0, 1.0, 2.0], {"a": [1, 3], "empty": [0, 0]}, x_label="score")
    bars = [b for b in chart.bars if b.series == 0]
    assert bars[1].height == pytest.approx(3 * bars[0].height, abs=0.05)
    assert all(b.height == 0 for b in chart.bars if b.series == 1)
    with pytest.raises(ValueError, match="bins"):
        figures.histogram("t", [0.0, 1.0], {"a": [1, 2]}, x_label="")


def test_terminal_tables() -> None:
    measures = {"safety": Estimate(value=0.873, low=0.85, high=0.89), "chat": Estimate.not_available("no pairs")}
    rows = [ResultRow(method="safer", rate=r, n_edited=5, measures=measures) for r in (0.05, 0.005)]
    rows += [ResultRow(method="[red]x", rate=0.01, measures={"safety": measures["safety"]})]
    rows += [ResultRow(method="none", measures=measures)]
    assert [(r.method, r.rate) for r in ordered(rows)] == [
        ("none", None), ("safer", 0.005), ("safer", 0.05), ("[red]x", 0.01)]  # fmt: skip
    out = io.StringIO()
    console = Console(file=out, width=140)
    print_result_table("Poisoning [bold]\x1b[31m", rows, console)
    console.print(rich_table("t", ["a", "b"], [["x\x07", measures["chat"]]]))
    text = out.getvalue()
    assert "87.3\u202f% [85.0 to 89.0]" in text
    assert "[red]x" in text
    assert "Poisoning [bold]␛[31m" in text
    assert "not available: no pairs" in text
    assert "\x07" not in text


def test_what_becomes_text_only_when_printed_is_made_visible_too() -> None:
    class Tag:
        def __str__(self) -> str:
            return "a\u202eb<i>"

    made = environment().from_string('{{ tag }} {{ texts|join("<,>") }} {{ n }} {{ nothing }}')
    shown = made.render(tag=Tag(), texts=["x\u202ey", Tag(), 3, None, "<b>"], n=1.5, nothing=None)
    bidi = "⟦U+202E⟧"
    assert shown == f"a{bidi}b&lt;i&gt; x{bidi}y&lt;,&gt;a{bidi}b&lt;i&gt;&lt;,&gt;3&lt;,&gt;–&lt;,&gt;&lt;b&gt; 1.5 –"
