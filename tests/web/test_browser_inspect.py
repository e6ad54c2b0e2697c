"""Inspect, Pairs and Runs in a real browser: selecting tokens, marking pairs, reports that cannot run anything."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from live_pages import Watch, overflow, serving, watched_page
from made_atlas import SCRIPT
from made_review import ODD, Made

from seamark.atlas.store import Atlas
from seamark.web.state import ServeSettings, feature_path

PROMPT, ANSWER = "Is it safe to mix bleach and ammonia?", "No, please never do that; the fumes are toxic."
LOOKS = {"dark": (1280, 900, "dark"), "narrow": (320, 640, "light"), "4k": (3840, 2160, "light")}
FIRST = "/runs/" + quote("first run")


@pytest.fixture(scope="module")
def atlas(review: Made, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One that may be written to."""
    return Path(shutil.copy(review.atlas, tmp_path_factory.mktemp("marks") / "copy.db"))


@pytest.fixture(scope="module")
def base(review: Made, atlas: Path) -> Iterator[str]:
    settings = ServeSettings(atlas=atlas, model=review.language, saes={"words": str(review.saes["words"])},
                             scans=(review.scan,), runs=review.runs)  # fmt: skip
    with serving(settings) as address:
        yield address


@pytest.fixture
def page(browser: Any, base: str) -> Iterator[Any]:
    with watched_page(browser, base) as found:
        yield found


@pytest.mark.parametrize("path", ["/inspect", "/pairs", "/runs"])
def test_the_navigation_is_all_in_sight_on_a_narrow_screen(browser: Any, base: str, path: str) -> None:
    context = browser.new_context(base_url=base, viewport={"width": 320, "height": 640})
    page = context.new_page()
    page.goto(path)
    links = page.locator(".bar nav a").all()
    assert len(links) == 6
    boxes = [link.bounding_box() for link in links]
    assert all(box["x"] >= 0 and box["x"] + box["width"] <= 320 for box in boxes), boxes
    context.close()


def wait(page: Any, expression: str) -> None:
    """Until it holds. As a function: to evaluate text is what the pages' policy forbids."""
    page.wait_for_function(f"() => {expression}")


def inspected(page: Any, prompt: str = PROMPT, answer: str = ANSWER, path: str = "/inspect") -> None:
    page.goto(path)
    wait(page, "document.documentElement.dataset.ready === 'inspect'")
    page.locator("[name=prompt]").fill(prompt)
    page.locator("[name=answer]").fill(answer)
    page.locator("#read").click()
    wait(page, "document.documentElement.dataset.inspected !== undefined")


@pytest.mark.parametrize("look", LOOKS)
def test_every_page_is_whole(browser: Any, base: str, look: str) -> None:
    width, height, scheme = LOOKS[look]
    context = browser.new_context(base_url=base, viewport={"width": width, "height": height}, color_scheme=scheme)
    page = context.new_page()
    watch = Watch(page, base)
    inspected(page, f"{PROMPT} {SCRIPT} {'unbroken' * 40}", "Mix. " * 30)
    page.locator("#by-hookpoint").check()
    assert overflow(page) == []
    compare = f"/runs/compare?a={quote('first run')}&b={quote('second & <b>run')}"
    for path in ("/pairs?limit=24", f"/pairs?pair={quote(ODD)}", "/runs", FIRST, "/runs/third", compare):
        page.goto(path)
        assert overflow(page) == [], path
        assert page.evaluate("typeof window.pwned") == "undefined"
    context.close()
    assert watch.wrong == []


def test_tokens_are_selected_by_mouse_and_keys(page: Any) -> None:
    inspected(page)
    tokens = page.locator("#tokens .tok")
    count = tokens.count()
    assert count == int(page.evaluate("document.documentElement.dataset.inspected")) > 30
    texts = page.locator(".part.response .tok").all_text_contents()
    assert "".join(texts) == ANSWER
    assert page.locator(".tok.special").count() > 3
    assert page.locator(".tok[tabindex='0']").count() == 1, "one stop of the Tab key"
    word = page.locator(".part.response .tok").nth(3)
    word.click()
    at = int(word.get_attribute("data-i"))
    assert page.locator("#token-title").text_content() == f"Token {at + 1} of {count}"
    page.keyboard.press("ArrowRight")
    assert page.locator("#token-title").text_content() == f"Token {at + 2} of {count}"
    assert page.evaluate("document.activeElement.dataset.i") == str(at + 1)
    for key, expected in (("ArrowLeft", at + 1), ("Home", 1), ("ArrowLeft", 1), ("End", count), ("ArrowRight", count)):
        page.keyboard.press(key)
        assert page.locator("#token-title").text_content() == f"Token {expected} of {count}", key
    page.keyboard.press("ArrowUp")
    above = int(page.evaluate("document.activeElement.dataset.i"))
    assert above < count - 1
    page.keyboard.press("ArrowDown")
    assert above < int(page.evaluate("document.activeElement.dataset.i"))
    assert page.locator(".tok[aria-current]").count() == 1
    assert page.url.endswith("/inspect"), "nothing of the text is in the address"


def test_the_panel_shows_what_the_api_says(page: Any) -> None:
    inspected(page)
    truth = page.evaluate("""(asked) => fetch("/api/v1/inspect", {method: "POST", body: JSON.stringify(asked),
        headers: {"Content-Type": "application/json", "X-Seamark": "1"}}).then((r) => r.json())""",
        {"prompt": PROMPT, "answer": ANSWER})  # fmt: skip
    features, links = truth["inspection"]["features"], truth["links"]
    tokens = truth["inspection"]["tokens"]
    at = next(i for i, t in enumerate(tokens) if t["span"] == "response" and any(f[2] is None for f in t["firings"])
              and any(f[2] is not None for f in t["firings"]))  # fmt: skip
    page.locator(f"#tokens [data-i='{at}']").click()
    known = [f for f in tokens[at]["firings"] if f[2] is not None]
    raw = [f for f in tokens[at]["firings"] if f[2] is None]
    names = [f"words {features[f[0]]['latent']}" for f in known]
    assert page.locator("#features [data-slot=link]").all_text_contents() == names
    assert page.locator("#raw-features [data-slot=link]").all_text_contents() == [
        f"words {features[f[0]]['latent']}" for f in raw
    ]
    shown = [float(t.replace(",", "")) for t in page.locator("#features [data-slot=value]").all_text_contents()]
    assert shown == pytest.approx([f[2] for f in known], rel=0.06)
    assert all(t.startswith("z ") for t in page.locator("#raw-features [data-slot=value]").all_text_contents())
    for i, f in enumerate(known):
        row = page.locator("#features .firing").nth(i)
        assert row.locator("[data-slot=link]").get_attribute("href") == links[f[0]]["url"]
        label = row.locator("[data-slot=label]")
        assert ("sensitive" in (label.get_attribute("class") or "")) == links[f[0]]["sensitive"]
        assert SCRIPT not in label.inner_html()
    assert page.locator("#heat-rows th").all_text_contents() == ["politics", "violence"]


def test_sensitive_labels_are_blurred_until_asked_for(page: Any) -> None:
    inspected(page)
    for i in range(page.locator("#tokens .tok").count()):
        page.locator(f"#tokens [data-i='{i}']").click()
        if page.locator("#features .label.sensitive").count():
            break
    label = page.locator("#features .label.sensitive").first
    blur = "getComputedStyle(document.querySelector('#features .label.sensitive')).filter"
    assert "blur" in page.evaluate(blur)
    label.click()
    wait(page, f"{blur} === 'none'")
    page.locator("#panel [data-reveal-all]").click()
    assert page.evaluate("document.querySelector('#panel [data-reveal-note]').hidden")


def test_colours_follow_the_choice(page: Any) -> None:
    inspected(page, path="/inspect?sae=words&latent=5")
    assert page.locator("#watched a").first.get_attribute("href") == feature_path("words", 5)
    options = page.locator("#shade option").all_text_contents()
    assert options == ["words 5", "the strongest feature", "politics", "violence"]
    assert page.locator("#shade").input_value() == "watched:0"

    def shaded() -> int:
        return int(page.locator("#tokens .tok.t").count())

    watched = shaded()
    page.locator("#shade").select_option("strongest")
    strongest = shaded()
    page.locator("#shade").select_option("domain:violence")
    assert watched < strongest
    assert 0 < shaded() < strongest
    row = page.locator("#heat-rows tr", has_text="violence").locator("svg")
    assert row.locator("rect[class^=c]").count() == shaded()
    row.click(position={"x": 5, "y": 8})
    assert page.locator("#token-title").text_content().startswith("Token 1 of")


def test_the_model_writes_the_answer(page: Any) -> None:
    page.goto("/inspect")
    page.locator("[name=prompt]").fill(PROMPT)
    page.locator("[name=write]").check()
    assert page.locator("[name=answer]").is_hidden()
    page.locator("[name=max_new_tokens]").fill("5")
    page.keyboard.press("Control+Enter")
    wait(page, "document.documentElement.dataset.inspected !== undefined")
    assert page.locator(".part.response .tok").count() >= 1
    assert "The model wrote 5 tokens" in page.locator("#notes").inner_text()
    assert "the very tokens generated" in page.locator("#summary").inner_text()
    page.locator("[name=plain]").check()
    assert page.locator("[name=write]").is_disabled()


def test_what_goes_wrong_is_told(page: Any, base: str) -> None:
    page.goto("/inspect")
    page.locator("[name=prompt]").fill("   ")
    page.locator("#read").click()
    page.wait_for_selector("#problem:not([hidden])")
    assert "the prompt is empty" in page.locator("#problem").inner_text()
    assert page.locator("#result").is_hidden()
    page.goto("about:blank")  # the answer was a 400, which the watch would take for a fault
    page.goto(base + "/inspect")


@pytest.fixture(autouse=True)
def _expected_faults(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Answers that a test asks for wrongly are no faults of the page."""
    if request.node.name == "test_what_goes_wrong_is_told":
        real = Watch.__init__

        def lenient(self: Watch, page: Any, base: str) -> None:
            real(self, page, base)

            class Without(list[str]):
                def append(self, item: str) -> None:
                    if "400" not in item:
                        super().append(item)

            self.wrong = Without()

        monkeypatch.setattr(Watch, "__init__", lenient)


def marks(atlas: Path, review: Made) -> dict[str, tuple[str, str]]:
    with Atlas.open(atlas) as opened:
        found = opened.marks(review.open_scan().manifest["key"])
    return {pair: (m.mark, m.note) for pair, m in found.items()}


def test_pairs_are_marked_by_keys_and_buttons(page: Any, atlas: Path, review: Made) -> None:
    page.goto("/pairs?limit=3")
    wait(page, "document.documentElement.dataset.ready === 'pairs'")
    articles = page.locator("article.pair")
    first, second = (articles.nth(i) for i in range(2))
    ids = page.evaluate("[...document.querySelectorAll('article.pair')].map((a) => decodeURIComponent(a.dataset.pair))")
    page.keyboard.press("j")
    assert first.evaluate("(node) => node === document.activeElement")
    page.keyboard.press("w")
    first.locator(".said", has_text="marked as wrong, saved").wait_for()
    assert marks(atlas, review)[ids[0]] == ("wrong", "")
    assert first.locator("[data-mark=wrong]").get_attribute("aria-pressed") == "true"
    page.keyboard.press("j")
    page.keyboard.press("f")
    second.locator(".said", has_text="marked as fine, saved").wait_for()
    note = second.locator("[name=note]")
    note.fill(f"w f u {SCRIPT}")  # letters in a note are no commands
    note.press("Enter")
    page.wait_for_timeout(300)
    assert marks(atlas, review)[ids[1]] == ("fine", f"w f u {SCRIPT}")
    second.locator("[data-mark=wrong]").click()
    second.locator(".said", has_text="marked as wrong, saved").wait_for()
    page.reload()
    wait(page, "document.documentElement.dataset.ready === 'pairs'")
    assert second.get_attribute("data-mark-now") == "wrong"
    assert second.locator("[name=note]").input_value() == f"w f u {SCRIPT}"
    page.keyboard.press("j")
    page.keyboard.press("u")
    first.locator(".said", has_text="mark taken back").wait_for()
    assert set(marks(atlas, review)) == {ids[1]}
    page.locator("select[name=mark]").select_option("wrong")
    page.wait_for_url("**mark=wrong*")
    assert page.locator("article.pair").count() == 1


def test_a_word_shows_what_speaks_for_and_against(page: Any) -> None:
    page.goto("/pairs?pair=pair-7")
    wait(page, "document.documentElement.dataset.ready === 'pairs'")
    truth = page.evaluate("fetch('/api/v1/pair?scan=reward-scan&pair=pair-7').then((r) => r.json())")
    side = truth["pair"]["rejected"]
    at = next(i for i, c in enumerate(side["contributions"]) if len(c) > 1)
    blur = "getComputedStyle(document.querySelector('[data-side=rejected] .tokens')).filter"
    assert "blur" in page.evaluate(blur)
    page.locator(f"[data-side=rejected] [data-i='{at}']").click()
    page.wait_for_selector(".word .parts li")
    rows = page.locator(".word .parts li")
    assert rows.count() == len(side["contributions"][at])
    for i, (feature, value) in enumerate(side["contributions"][at]):
        text = rows.nth(i).inner_text()
        assert f"safer {truth['features'][feature]['latent']}" in text
        assert text.startswith("+" if value > 0 else "−")
    wait(page, f"{blur} === 'none'")
    page.keyboard.press("ArrowRight")
    assert page.evaluate("document.activeElement.dataset.i") == str(at + 1)
    page.keyboard.press("Home")
    wait(page, "document.querySelector('.word').dataset.wanted === 'rejected 0'")
    page.locator("[data-side=chosen] .tokens").focus()
    wait(page, "document.querySelector('.word').dataset.wanted.startsWith('chosen')")


def test_marks_wait_for_each_other_and_failures_are_told(page: Any, base: str) -> None:
    page.goto("/pairs?pair=pair-9")
    wait(page, "document.documentElement.dataset.ready === 'pairs'")
    said = page.locator(".said")
    for key in "wfwfw":
        page.keyboard.press(key)
    wait(page, "document.querySelector('.said').textContent === 'marked as wrong, saved'")
    page.wait_for_timeout(300)
    assert page.evaluate("fetch('/api/v1/marks').then((r) => r.json()).then((m) => "
                         "m.find((one) => one.pair === 'pair-9').mark)") == "wrong"  # fmt: skip
    page.evaluate("() => { window.fetch = () => Promise.reject(new Error('the network is away')); }")
    page.keyboard.press("f")
    said.get_by_text("Not saved. the network is away").wait_for()
    assert page.locator("[data-mark=wrong]").get_attribute("aria-pressed") == "true"


def test_reports_are_styled_and_run_nothing(browser: Any, base: str) -> None:
    context = browser.new_context(base_url=base)
    page = context.new_page()
    page.goto(FIRST)
    page.get_by_role("link", name="Report").click()
    page.wait_for_url("**/report")
    assert page.evaluate("typeof window.pwned") == "undefined"
    assert page.locator("h1").inner_text() == "Report 0"
    assert page.evaluate("getComputedStyle(document.querySelector('h1')).color") == "rgb(1, 2, 3)"
    assert page.evaluate("origin") == "null", "it is nobody's page"
    context.close()


def test_runs_are_compared(page: Any) -> None:
    page.goto("/runs")
    page.locator("select[name=a]").select_option("first run")
    page.locator("select[name=b]").select_option("second & <b>run")
    page.get_by_role("button", name="Side by side").click()
    page.wait_for_url("**/runs/compare*")
    assert page.locator("table.compare").count() >= 3
    row = page.locator("tr", has_text="reward.accuracy.safety")
    assert row.locator("td").last.inner_text() == "+0.1000"
