"""The exported site: pages that open from a folder, hostile texts inert in all of them, links that lead somewhere."""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import urldefrag

import formats_atlas
import numpy as np
import pytest

from seamark.atlas import site
from seamark.atlas.records import Query
from seamark.atlas.rows import ExplanationRow
from seamark.atlas.site import export_site
from seamark.atlas.store import Atlas
from seamark.atlas.writing import AtlasWriter
from seamark.errors import ConfigError
from seamark.explain.taxonomy import Tag

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome") or ""
needs_browser = pytest.mark.skipif(not CHROMIUM, reason="there is no chromium here")
VOID = {"meta", "link", "input", "br", "hr", "img"}


class Page(HTMLParser):
    """What a page is made of, and whether its elements close."""

    def __init__(self, path: Path) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._open: list[str] = []
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)
        self.close()
        assert self._open == [], path

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        assert len(dict(attrs)) == len(attrs), attrs
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag, (tag, self.getpos())

    def handle_data(self, data: str) -> None:
        self.text += data

    def links(self) -> Iterator[str]:
        for _, attributes in self.tags:
            yield from (v for k, v in attributes.items() if k in ("href", "src") and v)


def pages(folder: Path) -> dict[str, Page]:
    return {str(path.relative_to(folder)): Page(path) for path in sorted(folder.rglob("*.html"))}


def handed(path: Path) -> list[Any]:
    """What a data script hands over."""
    found = re.fullmatch(r"\w+\((.*)\);\n", path.read_text(encoding="ascii"))
    assert found
    return json.loads(f"[{found[1]}]")


def exported(tmp_path: Path, hostile: str = formats_atlas.HOSTILE, n: int = 4, **options: Any) -> Path:
    if not (tmp_path / "a.db").exists():
        formats_atlas.make(tmp_path / "a.db", hostile=hostile, n=n)
    with Atlas.open(tmp_path / "a.db") as atlas:
        start = export_site(atlas, tmp_path / "site", **options)
    assert start == tmp_path / "site/index.html"
    return start.parent


def test_every_link_leads_to_a_file_of_the_site(tmp_path: Path) -> None:
    folder = exported(tmp_path)
    found = pages(folder)
    assert {"index.html", "search.html", "landscape.html", "lists/all-1.html", "features/0/0.html"} <= set(found)
    assert len([name for name in found if name.startswith("features/")]) == 6  # the explained ones
    reached = set()
    for name, page in found.items():
        for link in page.links():
            if link == "data:,":
                continue
            path = urldefrag(link)[0] or Path(name).name
            target = ((folder / name).parent / path).resolve()
            assert target.is_relative_to(folder.resolve()), (name, link)
            assert target.is_file(), (name, link)
            reached.add(target)
    assert {(folder / name).resolve() for name in found} <= reached | {(folder / "index.html").resolve()}


def test_hostile_texts_are_inert_and_shown_escaped_once(tmp_path: Path) -> None:
    folder = exported(tmp_path, title=f"Mine {formats_atlas.HOSTILE}")
    found = pages(folder)
    shown = 0
    for name, page in found.items():
        for tag, attributes in page.tags:
            assert not [a for a in attributes if a.startswith("on")], (name, tag, attributes)
            assert "style" not in attributes
        scripts = [a["src"] for tag, a in page.tags if tag == "script"]
        assert all(src and re.fullmatch(r"(\.\./)*(assets|data)/[a-z]+\.js", src) for src in scripts)
        assert not set("\x00\u202e\u2028") & set(page.source)
        shown += page.text.count('<script>alert("x")</script>')
        assert "&lt;script&gt;" not in page.text  # once, not twice
        assert "&amp; ⟦U+2028⟧" in page.text or name.startswith("data")
        policy = next(a["content"] for tag, a in page.tags if a.get("http-equiv") == "Content-Security-Policy")
        assert policy is not None
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert "http" not in policy
    assert shown > 20
    feature = found["features/0/0.html"].text
    assert "Names of ships" in feature
    assert "⟦U+202E⟧␀ =1+1" in feature
    assert "船的名字" in feature


def test_names_of_files_do_not_come_from_ids(tmp_path: Path) -> None:
    folder = exported(tmp_path, hostile="../../../x/../y", title="../../up")
    allowed = re.compile(
        r"(index|search|landscape)\.html|lists/(all|sae-\d+|domain-\d+)-\d+\.html|features/\d+/\d+\.html|"
        r"assets/(site|landscape)\.(js|css)|data/(site|index-\d+|points-\d+)\.js|seamark-export\.json"
    )
    assert all(allowed.fullmatch(str(p.relative_to(folder))) for p in folder.rglob("*") if p.is_file())
    assert {p.name for p in tmp_path.iterdir()} <= {"a.db", "a.db-wal", "a.db-shm", "site"}


def test_a_features_page_shows_what_is_known(tmp_path: Path) -> None:
    folder = exported(tmp_path, hostile="calm")
    page = Page(folder / "features/0/0.html")
    for words in ("layers.3.mlp", "#0", "lab/Small.Model-2B-it", "violence/cyber", "politics", "Names of ships calm",
                  "船的名字", "0.300", "12.5", "contrast:safety", "human:ann", "reason calm", "Level 4 of 10",
                  "Strongest", "Near misses", "Silent", " sail", "text-1", "0.750", " sea", "lab/llm-7b",
                  "0 to 1.00: 30 tokens"):  # fmt: skip
        assert words in page.text, words
    classes = [a.get("class") for tag, a in page.tags if tag == "span"]
    assert "t for l10" in classes
    near = {a["href"] for tag, a in page.tags if tag == "a" and (a.get("href") or "").startswith("../../features/")}
    assert near == {"../../features/0/2.html", "../../features/0/1.html"}
    masked = Page(folder / "features/0/1.html")
    assert "masked in its source" in masked.text
    plain = Page(folder / "features/0/2.html")
    assert "not available" in plain.text
    assert not [a for _, a in plain.tags if "veil" in (a.get("class") or "")]  # neither tag nor text


def test_sensitive_texts_are_blurred(tmp_path: Path) -> None:
    formats_atlas.make(tmp_path / "a.db", n=4)
    with AtlasWriter.open(tmp_path / "a.db") as writer:  # tagged, but neither rated nor scored
        feature = writer.feature_ids(0)[3]
        writer.add_explanations([ExplanationRow(feature, "Storms", formats_atlas.RUN, "llm", tags=(Tag("politics"),))])
    folder = exported(tmp_path)
    page = Page(folder / "features/0/0.html")
    veiled = [a for _, a in page.tags if "veil" in (a.get("class") or "").split()]
    assert len(veiled) == 1 + 2 + 5  # the explanation on top, two explanations, five texts
    listed = (folder / "lists/all-1.html").read_text(encoding="utf-8")
    assert '<span class="plain veil" dir="auto">Names of ships calm' in listed
    assert '<span class="plain" dir="auto">Words about harbours' in listed
    rows = {tuple(row[:2]): row for row in handed(folder / "data/index-0.js")[1]}
    assert (rows[0, 0][8], rows[0, 2][8], rows[0, 3][8]) == (True, False, True)
    assert "veil" in (folder / "features/0/3.html").read_text(encoding="utf-8")


def test_what_search_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(site, "CHUNK", 4)
    folder = exported(tmp_path)
    [about] = handed(folder / "data/site.js")
    assert (about["chunks"], about["size"], about["domains"]) == (2, 4, ["politics", "violence"])
    assert set(about["saes"]) == {"0", "1"}
    rows = []
    for n in range(2):
        number, some = handed(folder / f"data/index-{n}.js")
        assert number == n
        rows += some
    assert len(rows) == 6
    assert [row[:2] for row in rows] == [[n, latent] for n in (0, 1) for latent in (0, 1, 2)]
    assert [row[5] for row in rows] == [0.3, None, None, 0.7, None, None]
    best = rows[3]
    assert (best[0], best[1], best[3], best[4], best[6]) == (1, 0, "text", [0, 1], 4)
    assert "names of ships" in best[7]
    assert "船的名字" in best[7]
    assert "⟦u+202e⟧" in best[7].lower()
    assert best[2].startswith("Names of ships <script>")
    assert "⟦U+202E⟧" in best[2]
    assert not set("\x00\u202e\u2028") & set("".join(row[2] + row[7] for row in rows) + "".join(about["saes"].values()))
    assert all("***" not in row[7] for row in rows)


def test_points_of_the_landscape(tmp_path: Path) -> None:
    folder = exported(tmp_path, hostile="calm")
    rows = handed(folder / "data/index-0.js")[1]
    for n, number in ((0, 0), (1, 1)):
        given, points = handed(folder / f"data/points-{n}.js")
        assert given == n

        def numbers(name: str, kind: str, of: dict[str, str] = points) -> list[int]:
            return np.frombuffer(base64.b64decode(of[name]), kind).tolist()

        assert [rows[i][:2] for i in numbers("row", "<u4")] == [[number, 0], [number, 1], [number, 2]]
        assert numbers("rank", "<u4") == [[1, 2, 3], [0, 4, 5]][number]
        assert numbers("sae", "<u2") == [number] * 3
        assert numbers("domain", "u1") == [0, 0, 255]
        assert numbers("y", "<u2") == [65535, 32768, 0]  # the fourth feature has no page
        assert numbers("x", "<u2") == [16384, 32768, 49151]


def test_lists_are_paged_by_score(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(site, "PER_PAGE", 4)
    folder = exported(tmp_path, hostile="calm", n=8)
    found = pages(folder)
    assert sorted(n for n in found if n.startswith("lists/all")) == [f"lists/all-{i}.html" for i in (1, 2, 3, 4)]
    listed = [a["href"] for i in (1, 2, 3, 4) for tag, a in found[f"lists/all-{i}.html"].tags if a.get("class") == "id"]
    assert len(set(listed)) == len(listed) == 14
    assert listed[:2] == ["../features/1/0.html", "../features/0/0.html"]
    assert "Page 2 of 4" in found["lists/all-2.html"].text
    domain = [a["href"] for tag, a in found["lists/domain-1-1.html"].tags if a.get("class") == "id"]
    assert set(domain) == {"../features/1/0.html", "../features/0/0.html"}  # violence


def test_only_some_features(tmp_path: Path) -> None:
    folder = exported(tmp_path, hostile="calm", n=8, limit=3)
    assert len(list((folder / "features").rglob("*.html"))) == 3
    start = Page(folder / "index.html").text
    assert "3 have a page here" in start
    assert "the 3 of the 14 explained ones that have the best scores" in start
    assert [row[:2] for row in handed(folder / "data/index-0.js")[1]] == [[0, 0], [0, 1], [1, 0]]
    exported(tmp_path, limit=2)  # both have a score
    assert {str(p.relative_to(folder)) for p in (folder / "features").rglob("*.html")} == {
        "features/0/0.html", "features/1/0.html"}  # fmt: skip
    exported(tmp_path, query=Query(layer=7, explained=False))
    assert {p.name for p in (folder / "features").rglob("*.html")} == {"7.html"}
    with Atlas.open(tmp_path / "a.db") as atlas, pytest.raises(ConfigError, match="no feature"):
        export_site(atlas, tmp_path / "none", query=Query(words="nothinglikeit"))
    assert not (tmp_path / "none").exists()


def test_an_atlas_without_explanations_and_without_layouts(tmp_path: Path) -> None:
    with AtlasWriter.open(tmp_path / "a.db", create=True) as writer:
        number = writer.add_sae(formats_atlas.sae(1))
        writer.add_features(number, ({"latent": i} for i in range(3)))
    folder = exported(tmp_path)
    found = pages(folder)
    assert len(list((folder / "features").rglob("*.html"))) == 3
    assert "landscape.html" not in found
    assert "not explained" in found["lists/all-1.html"].text


def test_long_texts_stay_small_on_a_page(tmp_path: Path) -> None:
    folder = exported(tmp_path, hostile="wave " * 200_000, n=1)
    assert max(p.stat().st_size for p in folder.rglob("*") if p.is_file()) < 60_000


# In a browser.


def opened(page: Path, query: str = "", dark: bool = False) -> tuple[str, str]:
    """(the page's DOM when its scripts are done, what the browser logged)."""
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--enable-logging=stderr", "--v=0",
             "--virtual-time-budget=4000", f"--user-data-dir={page.parent / 'profile'}", "--window-size=1000,800",
             *(["--force-dark-mode"] if dark else [])]  # fmt: skip
    done = subprocess.run([CHROMIUM, *flags, "--dump-dom", f"{page.as_uri()}{query}"], capture_output=True, timeout=60,
                          check=True, env=os.environ | {"HOME": str(page.parent)})  # fmt: skip
    logged = "\n".join(line for line in done.stderr.decode("utf-8", "replace").splitlines() if "CONSOLE" in line)
    return done.stdout.decode(), logged


@needs_browser
def test_search_in_a_browser(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(site, "CHUNK", 4)
    folder = exported(tmp_path, n=8)
    dom, logged = opened(folder / "search.html", "#q=ships")
    assert logged == ""
    assert "2 features" in dom
    assert dom.count('class="card"') == 2
    assert dom.index('href="features/1/0.html"') < dom.index('href="features/0/0.html"')  # the better score first
    assert '&lt;script&gt;alert("x")&lt;/script&gt;' in dom
    dom, _ = opened(folder / "search.html", "#q=%E5%90%8D%E5%AD%97")
    assert dom.count('class="card"') == 2
    dom, _ = opened(folder / "search.html")
    assert "14 features" in dom


@needs_browser
def test_landscape_in_a_browser(tmp_path: Path) -> None:
    folder = exported(tmp_path)
    dom, logged = opened(folder / "landscape.html")
    assert logged == ""
    assert "3 points" in dom
    assert dom.count("aria-pressed") == 2  # politics, and without a tag
    dom, logged = opened(folder / "features/0/0.html", dark=True)
    assert logged == ""
    assert 'role="button"' in dom  # blurred texts can be reached


@needs_browser
def test_reading_in_a_browser(tmp_path: Path) -> None:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    folder = exported(tmp_path)
    with playwright.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 320, "height": 700})
        wrong: list[str] = []
        page.on("pageerror", lambda e: wrong.append(str(e)))
        page.on("console", lambda m: wrong.append(m.text) if m.type in ("error", "warning") else None)
        page.on("dialog", lambda d: wrong.append("dialog"))
        asked: list[str] = []
        page.on("request", lambda r: asked.append(r.url))
        for name in ("landscape", "search", "lists/all-1", "index"):
            page.goto((folder / f"{name}.html").as_uri())
            assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), name
        page.fill("input.go", "ships")
        page.press("input.go", "Enter")
        page.wait_for_selector("li.card")
        assert page.locator("li.card").count() == 2
        page.click("li.card >> nth=0 >> a.id")
        page.wait_for_selector("h1")
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        veil = page.locator(".veil").first
        blur = "e => getComputedStyle(e).filter"
        assert "blur" in veil.evaluate(blur)
        veil.focus()
        page.keyboard.press("Enter")
        page.wait_for_function("e => getComputedStyle(e).filter === 'none'", arg=page.query_selector(".veil"))
        second = page.locator(".veil").nth(1)
        assert "blur" in second.evaluate(blur)
        page.check("#reveal", force=True)
        page.wait_for_function("() => getComputedStyle(document.querySelectorAll('.veil')[1]).filter === 'none'")
        page.goto((folder / "landscape.html").as_uri())
        page.wait_for_function("() => document.getElementById('found').textContent.includes('points')")
        box = page.locator("#map").bounding_box()
        page.keyboard.down("Shift")
        page.mouse.move(box["x"] + 2, box["y"] + 2)
        page.mouse.down()
        page.mouse.move(box["x"] + box["width"] - 2, box["y"] + box["height"] - 2)
        page.mouse.up()
        page.keyboard.up("Shift")
        page.wait_for_selector("li.card")
        assert page.locator("li.card").count() == 3
        browser.close()
    assert wrong == []
    assert all(url.startswith(("file:", "data:")) for url in asked)


def test_a_domain_with_any_name(tmp_path: Path) -> None:
    formats_atlas.make(tmp_path / "a.db", n=2)
    with AtlasWriter.open(tmp_path / "a.db") as writer:
        feature = writer.feature_ids(0)[0]
        writer.add_explanations([ExplanationRow(feature, "x", formats_atlas.RUN, "llm", language="de",
                                                tags=(Tag('a"b<c>/../d', "sub\u202econcept"),))])  # fmt: skip
    folder = exported(tmp_path)
    assert 'a"b<c>/../d' in Page(folder / "lists/domain-0-1.html").text
    assert 'a"b<c>/../d' in Page(folder / "index.html").text
    assert 'a"b<c>/../d/sub⟦U+202E⟧concept' in Page(folder / "features/0/0.html").text
