"""The pages in a real browser: nothing is refused or fails, nothing overflows, scripts do what they should."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from live_pages import Watch, overflow, serving, until, watched_page
from made_atlas import SAES, N

from seamark.atlas.records import Run, Sae
from seamark.atlas.rows import FeatureRow
from seamark.atlas.writing import AtlasWriter
from seamark.show.html import visible
from seamark.web.state import ServeSettings, feature_path

FIRST, ODD = feature_path(SAES[0], 0), feature_path(SAES[1], 3)
PAGES = (
    "/",
    "/features",
    FIRST,
    ODD,
    feature_path(SAES[0], 4),
    feature_path(SAES[0], 6),
    "/landscape",
    "/api",
    "/none",
)
LOOKS = {"light": (1280, 900, "light"), "dark": (1280, 900, "dark"), "narrow": (320, 640, "light"),
         "4k": (3840, 2160, "light")}  # fmt: skip
READY = "document.documentElement.dataset.ready"


@pytest.fixture(scope="module")
def base(atlas_file: Path) -> Iterator[str]:
    with serving(ServeSettings(atlas=atlas_file)) as address:
        yield address


@pytest.fixture
def page(browser: Any, base: str) -> Iterator[Any]:
    with watched_page(browser, base) as found:
        yield found


@pytest.mark.parametrize("look", LOOKS)
def test_every_page_is_whole(browser: Any, base: str, look: str) -> None:
    width, height, scheme = LOOKS[look]
    context = browser.new_context(base_url=base, viewport={"width": width, "height": height}, color_scheme=scheme)
    page = context.new_page()
    watch = Watch(page, base)
    for path in PAGES[: 3 if look == "4k" else None]:
        page.goto(path)
        if path == "/landscape":
            until(page, f"{READY} === 'landscape'")
        assert overflow(page) == [], path
        assert page.evaluate("typeof window.pwned") == "undefined"
        dark = (
            sum(page.evaluate("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)")[:3]) < 384
        )
        assert dark == (scheme == "dark"), path
    context.close()
    assert [w for w in watch.wrong if "404" not in w] == []


BROKEN = """[...document.querySelectorAll(".two table.bars tbody th")].filter((cell) => {
  const range = document.createRange();
  return [...cell.querySelectorAll("a, :scope:not(:has(*))"), cell].some((node) => {
    const text = [...node.childNodes].find((child) => child.nodeType === 3 && child.data.trim());
    if (!text) return false;
    return [...text.data.matchAll(/\\S+/g)].some((word) => {
      range.setStart(text, word.index);
      range.setEnd(text, word.index + word[0].length);
      return range.getClientRects().length > 1;
    });
  });
}).map((cell) => cell.textContent.trim())"""
"""Names of the overview's bars of which a word is broken over two lines."""


def test_words_stay_whole_on_a_narrow_screen(browser: Any, base: str) -> None:
    context = browser.new_context(base_url=base, viewport={"width": 320, "height": 640})
    page = context.new_page()
    page.goto("/")
    assert page.locator(".two table.bars tbody th").count() >= 7
    assert page.evaluate(BROKEN) == []
    context.close()


def found(page: Any, total: int) -> None:
    until(page, f"document.documentElement.dataset.found === '{total}'")


def test_search_as_you_type(page: Any) -> None:
    page.goto("/features")
    page.locator("#words").press_sequentially("plain keep", delay=5)
    until(page, lambda: page.url.endswith("/features?words=plain+keep"))  # each keystroke asks, the last one counts
    found(page, 3)
    assert page.locator("#count").text_content() == "3 features"
    assert page.locator(".card").count() == 3
    page.locator("select[name=layer]").select_option("1")
    found(page, 1)
    assert "layer=1" in page.url
    page.reload()
    assert page.locator(".card").count() == 1
    assert page.locator("#words").input_value() == "plain keep"
    page.locator("#words").fill("no such thing anywhere")
    found(page, 0)
    assert page.locator("#count").text_content() == "No feature fits."


def test_cards_of_scripts_are_those_of_the_server(page: Any) -> None:
    outer = "[...document.querySelectorAll('#cards .card')].map((card) => card.outerHTML.replace(/>\\s+/g, '>'))"
    for query in (f"sae={SAES[0]}&sort=id&descending=false", "sort=contrast", "words=script&limit=40"):
        page.goto(f"/features?{query}")
        served = page.evaluate(outer)
        total = page.evaluate("fetch('/api/v1/features' + location.search).then((r) => r.json()).then((f) => f.total)")
        page.locator("#words").press("Enter")
        found(page, total)
        until(page, "!document.getElementById('cards').hasAttribute('aria-busy')")
        made = page.evaluate(outer)
        assert len(made) == len(served) > 0
        for one, other in zip(made, served, strict=True):
            assert attributes(one) == attributes(other)


def attributes(card: str) -> Any:
    """A card's markup without what does not matter: the order of attributes, spaces, digits of lengths."""
    import re

    tags = []
    for whole in re.findall(r"<[^>]+>|[^<]+", card):
        if whole.startswith("<"):
            name, *rest = re.findall(r'[\w/-]+(?:="[^"]*")?', whole[1:])
            rest = [re.sub(r'="(\d+\.?\d*)"', lambda m: f'="{float(m[1]):.1f}"', r) for r in rest]
            tags.append((name, frozenset(r for r in rest if not r.startswith(("xmlns", "data-id")))))
        elif whole.strip():
            tags.append((" ".join(whole.split()),))
    return tags


def test_concepts_follow_the_domain(page: Any) -> None:
    page.goto("/features?domain=terror&concept=crowds")
    page.locator("select[name=domain]").select_option("politics")
    until(page, "!location.search.includes('concept')")
    assert page.locator("select[name=concept] optgroup:not([hidden])").count() == 1


def test_the_list_is_used_by_keys(page: Any) -> None:
    page.goto("/features")
    page.locator("#main").press("/")
    assert page.evaluate("document.activeElement.id") == "words"
    page.keyboard.type("harbour")
    until(page, "document.documentElement.dataset.found > 50")
    page.keyboard.press("ArrowDown")
    here = "[...document.querySelectorAll('.card')].findIndex((c) => c.contains(document.activeElement))"
    assert page.evaluate(here) == 0
    for key, place in (("j", 1), ("j", 2), ("k", 1), ("k", 0), ("k", 0)):
        page.keyboard.press(key)
        assert page.evaluate(here) == place
    target = page.evaluate("document.activeElement.getAttribute('href')")
    page.keyboard.press("Enter")
    page.wait_for_url(f"**{target}")
    page.keyboard.press("/")
    page.wait_for_url("**/features#words")
    assert page.evaluate("document.activeElement.id") == "words"
    page.keyboard.press("Tab")
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") != "none"


def test_without_scripts_the_form_and_the_links_do(browser: Any, base: str) -> None:
    context = browser.new_context(base_url=base, java_script_enabled=False)
    page = context.new_page()
    page.goto("/features")
    page.locator("#words").fill("harbour")
    page.locator("select[name=layer]").select_option("0")
    page.locator("noscript button, .actions button").first.click()
    assert "words=harbour" in page.url
    assert "layer=0" in page.url
    assert page.locator(".results .card").count() == 23
    page.goto("/features")
    page.locator("#next").click()
    assert page.locator("#range").inner_text() == "25–48"
    page.goto("/landscape")
    assert "scripts are off" in page.locator("main").inner_text()
    context.close()


def test_sensitive_text_is_blurred_until_asked_for(page: Any) -> None:
    page.goto(FIRST)
    text = page.locator(".contexts .sensitive").first
    blurred = "(node) => getComputedStyle(node).filter.includes('blur')"
    assert text.evaluate(blurred)
    text.click()
    page.locator("h2").first.click()
    until(page, lambda: not text.evaluate(blurred))
    other = page.locator(".contexts .sensitive").nth(1)
    assert other.evaluate(blurred)
    other.focus()
    until(page, lambda: not other.evaluate(blurred))
    page.locator("[data-reveal-all]").first.click()
    until(page, lambda: not page.locator(".sensitive").nth(5).evaluate(blurred))
    page.goto("/features")
    assert not page.locator(".sensitive").first.evaluate(blurred)
    page.locator(".settings summary").click()
    page.locator("[name=reveal]").uncheck()
    page.wait_for_timeout(250)
    assert page.locator(".sensitive").first.evaluate(blurred)


def test_the_theme_is_remembered(page: Any) -> None:
    page.goto("/")
    light = page.evaluate("getComputedStyle(document.body).backgroundColor")
    page.locator(".settings summary").click()
    page.locator("[name=theme][value=dark]").check()
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert dark != light
    page.reload()
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == dark
    cookies = {c["name"]: c for c in page.context.cookies()}
    assert set(cookies) == {"seamark_theme"}
    assert cookies["seamark_theme"]["sameSite"] == "Strict"
    page.locator(".settings summary").click()
    page.keyboard.press("Escape")
    assert page.locator(".settings[open]").count() == 0


def test_scripts_mark_the_characters_that_the_server_marks(page: Any) -> None:
    page.goto("/")
    marked = page.evaluate("""async () => {
        const { visible } = await import("/static/lib.js");
        const found = [];
        for (let code = 0; code < 0x110000; code++) {
            const sign = String.fromCodePoint(code);
            if (visible(sign) !== sign) found.push(`${code}:${visible(sign)}`);
        }
        return [found.join("|"), visible("a\\r\\nb")];
    }""")
    expected = [f"{code}:{visible(chr(code))}" for code in range(sys.maxunicode + 1) if visible(chr(code)) != chr(code)]
    assert marked == ["|".join(expected), "a\nb"]


def test_scripts_write_numbers_as_the_server_does(page: Any) -> None:
    from seamark.show.numbers import number

    values = [0.0, 0.5, 0.126, -0.0449, 0.9999, 1.0, 3.14159, 12.6, -250.4, 1234567.0, 0.00012]
    page.goto("/")
    made = page.evaluate("async (all) => { const { number } = await import('/static/lib.js'); "
                         "return all.map((v) => number(v, 2)); }", values)  # fmt: skip
    assert made == [number(v, 2) for v in values]


@pytest.fixture(params=["webgl2", "2d"])
def land(page: Any, request: pytest.FixtureRequest) -> Any:
    """The landscape page, drawn in both ways."""
    if request.param == "2d":
        page.add_init_script("""const real = HTMLCanvasElement.prototype.getContext;
            HTMLCanvasElement.prototype.getContext = function (kind, ...more) {
                return kind === "webgl2" ? null : real.call(this, kind, ...more); };""")
    page.goto("/landscape")
    until(page, f"{READY} === 'landscape'")
    assert page.evaluate("performance.getEntriesByName('seamark-ready').length") == 1
    kind = page.locator("#map").get_attribute("data-renderer")
    if kind != request.param:
        pytest.skip("this browser has no WebGL 2")
    return page


def drag(page: Any, corners: list[tuple[float, float]]) -> None:
    """Along corners, given as shares of the map."""
    box = page.locator("#map").bounding_box()
    places = [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in corners]
    page.mouse.move(*places[0])
    page.mouse.down()
    for place in places[1:]:
        page.mouse.move(*place, steps=4)
    page.mouse.up()


def chosen(page: Any) -> int:
    until(page, "document.getElementById('map').dataset.chosen !== undefined")
    page.wait_for_timeout(150)
    return int(page.locator("#map").get_attribute("data-chosen"))


def painted(page: Any) -> int:
    """Pixels of the map that hold a point, from a picture of it."""
    import io

    import matplotlib.image as image

    picture = image.imread(io.BytesIO(page.locator("#canvas").screenshot(type="png")))
    background = picture[picture.shape[0] // 2, 2]
    return int((abs(picture - background).max(axis=2) > 0.15).sum())


def test_the_landscape_draws_and_lists(land: Any) -> None:
    page = land
    assert page.locator("#status").text_content() == "90 features"
    everything = painted(page)
    assert everything > 500
    page.locator("[data-tool=box]").click()
    drag(page, [(0.001, 0.12), (0.999, 0.999)])
    inside = chosen(page)
    assert 70 <= inside <= 90
    page.wait_for_selector("#cards .card")
    assert page.locator("#chosen-title").text_content() == f"In the box: {inside}"
    assert page.locator("#cards .card").count() == 50
    page.locator("#cards button").click()
    until(page, f"document.querySelectorAll('#cards .card').length === {inside}")
    assert page.locator("#cards button").count() == 0
    scores = page.locator("#cards [data-slot=score]").all_text_contents()
    known = [float(s.replace("−", "-")) for s in scores if s != "–"]
    assert known == sorted(known, reverse=True)
    page.locator("[data-tool=lasso]").click()
    drag(page, [(0.3, 0.3), (0.7, 0.3), (0.7, 0.7), (0.3, 0.7), (0.3, 0.31)])
    lasso = chosen(page)
    assert 0 < lasso < inside
    empty = "!document.getElementById('overlay').getContext('2d').getImageData(0, 0, 900, 800).data.some(Boolean)"
    until(page, empty)  # the line goes when the button does
    page.locator("[data-tool=box]").click()
    drag(page, [(0.3, 0.3), (0.7, 0.7)])
    assert abs(chosen(page) - lasso) <= 2
    page.locator("#canvas").press("Escape")
    assert chosen(page) == 0
    assert page.locator("#chosen").is_hidden()


def test_the_landscape_tells_what_has_no_place(browser: Any, tmp_path: Path) -> None:
    path = tmp_path / "some.db"
    with AtlasWriter.open(path, create=True) as atlas:
        atlas.add_run(Run(id="r", kind="made", title="", created="2025-05-01T10:00:00Z", manifest={}))
        sae = Sae(number=0, id="s", model="m", hookpoint="layers.0", layer=0, d_sae=9)
        ids = atlas.add_features(atlas.add_sae(sae), [FeatureRow(i) for i in range(5)])
        atlas.set_layout("explanations", {}, [ids[0], ids[1]], np.zeros(2), np.arange(2.0), "r")
    with serving(ServeSettings(atlas=path)) as address:
        page = browser.new_page()
        page.goto(f"{address}/landscape")
        until(page, f"{READY} === 'landscape'")
        told = page.locator("#status").text_content()
        page.close()
    assert told == "2 features; 3 more have no place in this layout"


def test_the_landscape_is_filtered_and_keeps_its_address(land: Any) -> None:
    page = land
    before = painted(page)
    page.locator("[name=show][value='-']").uncheck()
    assert page.locator("#status").text_content() == "33 of 90 features"
    assert painted(page) < before
    page.locator("select[name=layer]").select_option("2")
    assert page.locator("#status").text_content() == "11 of 90 features"
    until(page, "location.search === '?layout=decoder&layer=2&hide=-'")
    page.locator("[name=min_score]").fill("0.3")
    until(page, "location.search.includes('min_score=0.3')")
    text = page.locator("#status").text_content()
    page.reload()
    until(page, f"{READY} === 'landscape'")
    assert page.locator("#status").text_content() == text
    assert page.locator("#as-list").get_attribute("href") == "/features?layer=2&min_score=0.3"


def test_the_landscape_moves_and_tells(land: Any) -> None:
    page = land
    canvas = page.locator("#canvas")
    canvas.focus()
    page.keyboard.press("+")
    page.keyboard.press("ArrowLeft")
    until(page, "/at=-?[\\d.e-]+%2C-?[\\d.e-]+%2C1\\.4/.test(location.search)")
    page.keyboard.press("0")
    until(page, "!location.search.includes('at=')")
    box = page.locator("#map").bounding_box()
    page.mouse.move(box["x"] + 300, box["y"] + 300)
    page.mouse.wheel(0, -400)
    until(page, "location.search.includes('at=')")
    place = page.evaluate("""async () => {
        const { decode, positions } = await import("/static/points.js");
        const data = decode(await (await fetch("/api/v1/landscape/decoder")).arrayBuffer());
        const { xy } = positions(data);
        return [xy[0], xy[1]];
    }""")
    page.goto(f"/landscape?at={place[0]},{place[1]},6")
    until(page, f"{READY} === 'landscape'")
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x + 1, y + 1)
    until(page, "document.querySelector('[data-tip=label]').textContent.includes('harbour')")
    assert page.locator("#tip").is_visible()
    assert "layers.0.mlp 0" in page.locator("#tip").inner_text()
    page.mouse.click(x + 1, y + 1)
    page.wait_for_selector("#cards .card")
    assert page.locator("#cards .card [data-slot=link]").get_attribute("href") == FIRST
    assert page.locator("#tip").is_hidden()
    page.locator("#canvas").press("0")
    page.locator("#canvas").press("l")
    until(page, "document.getElementById('map').dataset.chosen === '90'")
    until(page, "document.activeElement.id === 'chosen'")
    assert page.locator("#cards button").inner_text() == f"{3 * N - 50} more"
    page.keyboard.press("j")
    assert page.evaluate("document.activeElement.dataset.slot") == "link"


def test_the_landscape_follows_the_theme_and_the_window(land: Any) -> None:
    page = land
    before = page.locator("#canvas").screenshot()
    page.locator(".settings summary").click()
    page.locator("[name=theme][value=dark]").check()
    page.keyboard.press("Escape")
    page.wait_for_timeout(200)
    assert page.locator("#canvas").screenshot() != before
    page.set_viewport_size({"width": 700, "height": 700})
    until(page, "document.getElementById('canvas').width === "
                           "Math.round(document.getElementById('map').clientWidth * devicePixelRatio)")  # fmt: skip
    assert painted(page) > 300
