"""Tables and figures as files: equal bytes, and no cell that acts on whatever opens it."""

from __future__ import annotations

import csv
import errno
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from seamark.errors import ConfigError, RunError
from seamark.show.exports import csv_text, latex_text, markdown_text, write_figure, write_table
from seamark.show.figures import Chart, histogram, interval_plot
from seamark.stats import Estimate

COLUMNS = ("method", "rate", "Safety")
ROWS: list[tuple[Any, ...]] = [
    ("safer_weighted", 0.05, Estimate(value=0.8, low=0.7, high=0.9, n=10)),
    ("none", None, Estimate.not_available("no pairs")),
    ("margin", -3, Estimate(value=0.925)),
]


def chart(title: str = "Safety by rate") -> Chart:
    points = [("1 %", Estimate(value=0.9, low=0.85, high=0.93)), ("5 %", Estimate(value=0.7, low=0.6, high=0.8))]
    series = {"safer": points, "random": [("1 %", Estimate(value=0.91)), ("5 %", Estimate.not_available("no run"))]}
    unedited = ("unedited", Estimate(value=0.92, low=0.9, high=0.94))
    return interval_plot(title, series, x_label="flipped", y_label="accuracy", baseline=unedited)


def written(folder: Path, rows: list[tuple[Any, ...]], caption: str = "") -> dict[str, str]:
    return {p.suffix[1:]: p.read_text("utf-8") for p in write_table(folder, "t", COLUMNS, rows, caption)}


def test_a_table_for_people_and_one_for_programs(tmp_path: Path) -> None:
    made = written(tmp_path, ROWS, "What is left at 5 %")
    assert made["md"].splitlines() == [
        "What is left at 5 %",
        "",
        "| method | rate | Safety |",
        "| :-- | --: | --: |",
        "| safer\\_weighted | 0.0500 | 80.0\u202f% \\[70.0 to 90.0\\] |",
        "| none | – | not available: no pairs |",
        "| margin | −3 | 92.5\u202f% |",
    ]
    with (tmp_path / "t.csv").open(newline="", encoding="utf-8") as file:
        assert list(csv.reader(file)) == [
            ["method", "rate", "Safety", "Safety low", "Safety high"],
            ["safer_weighted", "0.05", "0.8", "0.7", "0.9"],
            ["none", "", "not available: no pairs", "", ""],
            ["margin", "-3", "0.925", "", ""],
        ]
    body = made["tex"].splitlines()
    assert r"\caption{What is left at 5 \%}" in body
    assert r"\begin{tabular}{lrr}" in body
    assert r"safer\_weighted & 0.0500 & 80.0\,\% {[}70.0 to 90.0{]} \\" in body
    assert r"margin & $-$3 & 92.5\,\% \\" in body


def test_equal_tables_and_figures_have_equal_bytes(tmp_path: Path) -> None:
    def all_files(name: str) -> list[bytes]:
        folder = tmp_path / name
        paths = [*write_table(folder, "t", COLUMNS, ROWS), *write_figure(folder, "f", chart())]
        assert [p.name for p in paths] == ["t.md", "t.csv", "t.tex", "f.png", "f.pdf", "f.html"]
        return [p.read_bytes() for p in paths]

    assert all_files("one") == all_files("two")


def test_a_figure_does_not_follow_the_users_own_settings(tmp_path: Path) -> None:
    import matplotlib as mpl

    plain = [p.read_bytes() for p in write_figure(tmp_path / "a", "f", chart())]
    with mpl.rc_context({"figure.facecolor": "red", "text.usetex": True, "savefig.bbox": "tight", "font.size": 30}):
        assert [p.read_bytes() for p in write_figure(tmp_path / "b", "f", chart())] == plain


def test_figures_hold_no_date_and_show_what_they_should(tmp_path: Path) -> None:
    png, pdf, html = (p.read_bytes() for p in write_figure(tmp_path, "f", chart()))
    assert png[:8] == b"\x89PNG\r\n\x1a\n"
    assert b"Software" not in png
    assert pdf[:5] == b"%PDF-"
    assert b"Date" not in pdf
    assert b"Producer" not in pdf
    page = html.decode()
    assert "<script" not in page
    assert page.count("unedited: ") >= 1
    assert "random, 5 %: not available: no run" in page
    other = chart("Another title")
    assert write_figure(tmp_path, "g", other)[0].read_bytes() != png


def test_every_mark_is_drawn(tmp_path: Path) -> None:
    """Each series' colour is in the picture; without its dots it is not."""
    from dataclasses import replace

    from PIL import Image

    def colours(of: Chart) -> set[tuple[int, ...]]:
        with Image.open(write_figure(tmp_path, "f", of)[0]) as image:
            return {colour for _, colour in image.convert("RGB").getcolors(1 << 24)}

    blue, orange = (0x1B, 0x6F, 0xAE), (0xC0, 0x5A, 0x13)
    full = replace(chart(), legend=())
    assert {blue, orange} <= colours(full)
    assert not {blue, orange} & colours(replace(full, dots=()))
    bars = histogram("h", [0, 1, 2], {"safety": [1, 3], "chat": [2, 2]}, x_label="score")
    assert {blue, orange} <= colours(replace(bars, legend=()))


def test_hostile_titles_are_drawn_and_not_read(tmp_path: Path) -> None:
    of = interval_plot("$\\frac{", {"<b>\x00\u202e": [("中\nb" * 60, Estimate(value=0.5))]}, x_label="$", y_label="")
    page = write_figure(tmp_path, "f", of)[2].read_text("utf-8")
    assert "<b>" not in page
    assert "\u202e" not in page


def test_formulas_stay_text(tmp_path: Path) -> None:
    for text in ("=1+1", "+1", "-1+1", "@SUM(A1)", " =1", "\t=1", "\r\n=1", "＝1", "\u00a0=1"):
        assert csv_text(text).startswith("'"), text
    assert csv_text("x;=1+1") == "x;'=1+1"
    assert csv_text('x;" +1') == "x;\" '+1"
    assert csv_text("a-b; c = d") == "a-b; c = d"
    hostile = [('=HYPERLINK("http://a.example")\n=1', -1, Estimate.not_available("=1"))]
    made = written(tmp_path, hostile)
    row = next(csv.reader(made["csv"].splitlines()[1:]))
    assert row == ['\'=HYPERLINK("http://a.example") =1', "-1", "not available: =1", "", ""]


def test_a_cell_stays_one_cell_of_one_line(tmp_path: Path) -> None:
    for text in ("a|b", "a\\|b", "a\\\\|b", "`a|b`", "a\nb", "a\r\n\r\n| b |", "a\u2028b", "a&b\\\\c", "\\", "a\x0bb"):
        made = written(tmp_path, [(text, None, None)])
        assert len(made["md"].splitlines()) == 3
        assert made["md"].splitlines()[2].count("|") == 4
        assert len(list(csv.reader(made["csv"].splitlines()))) == 2
        line = made["tex"].splitlines()[-4]
        assert line.endswith(r" & -- & -- \\")
        assert len(re.findall(r"(?<!\\)&", line)) == 2


def test_markdown_has_no_markup_of_its_cells() -> None:
    made = markdown_text("<img src=x> [l](http://a.example) @x *b* `c` ~d~ $e$ www.a.example &lt;")
    assert not re.search(r"(?<!\\)[\[\]*`~$<>@_#]|://|www\.|&lt;$", made.replace("&#", "")), made
    assert markdown_text("\u202ea\x00") == "⟦U+202E⟧a␀"


@given(st.text(max_size=60))
def test_latex_has_no_command_but_its_own(text: str) -> None:
    made = latex_text(text)
    known = r"\\(text(backslash|asciitilde|asciicircum|less|greater|bar|quotedbl|quotesingle|asciigrave)|ldots)\{\}"
    left = re.sub(
        known + r"|\\[{}$&#_%,]|\$(-|\\(pm|times|le|ge|to|uparrow|downarrow))\$|\{[][*]\}|(?<=[-,])\{\}", "", made
    )
    assert not re.search(r"[\\{}$&#_%^<>|\"'`*\[\]]", left)


def test_latex_joins_no_letters() -> None:
    assert latex_text("--set ,, 1,200 − – a-b") == "-{}-set ,{}, 1,200 $-$ -- a-b"


@pytest.mark.skipif(not shutil.which("lualatex"), reason="no LaTeX on this machine")
def test_latex_compiles(tmp_path: Path) -> None:
    hostile = "".join(map(chr, range(128))) + "[*\\\\ \\input{x} −–…"
    written(tmp_path, [("[x", None, None), ("*", 1.5, None), (hostile, 1, ROWS[0][2])], hostile)
    head = "\\documentclass{article}\\usepackage{booktabs}\\begin{document}\\input{t.tex}\\end{document}"
    (tmp_path / "main.tex").write_text(head, "utf-8")
    done = subprocess.run(
        ["lualatex", "-interaction=nonstopmode", "-halt-on-error", "main.tex"], cwd=tmp_path, capture_output=True
    )
    assert done.returncode == 0, done.stdout[-2000:]


def test_bad_names_and_rows_are_refused(tmp_path: Path) -> None:
    for name in ("", "../t", "a/b", ".t", "a\nb", "x" * 200):
        with pytest.raises(ConfigError, match="name of a file"):
            write_table(tmp_path, name, COLUMNS, ROWS)
        with pytest.raises(ConfigError, match="name of a file"):
            write_figure(tmp_path, name, chart())
    with pytest.raises(ValueError, match="a row of 1 values in a table of 3 columns"):
        write_table(tmp_path, "t", COLUMNS, [("a",)])


def test_a_full_disk_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("seamark.show.exports.write_atomic", full)
    with pytest.raises(RunError, match="disk is full"):
        write_table(tmp_path, "t", COLUMNS, ROWS)
    with pytest.raises(RunError, match="disk is full"):
        write_figure(tmp_path, "f", chart())
