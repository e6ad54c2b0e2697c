"""The graph of a trajectory in a real browser: by mouse, by keys, on several screens; and its operation."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from live_pages import overflow, serving, watched_page
from made_atlas import BASE, SCRIPT, app_of
from made_review import Made
from starlette.testclient import TestClient

from seamark.web import inspecting
from seamark.web.state import ServeSettings

PROMPT, ANSWER = "Is it safe to mix bleach and ammonia?", "No, please never do that; the fumes are toxic."
LOOKS = {"dark": (1280, 900, "dark"), "narrow": (320, 640, "light"), "light": (1280, 900, "light")}
POST = """(asked) => fetch("/api/v1/trajectory", {method: "POST", body: JSON.stringify(asked),
    headers: {"Content-Type": "application/json", "X-Seamark": "1"}}).then((r) => r.json())"""


def saes(review: Made) -> dict[str, str]:
    return {name: str(folder) for name, folder in review.saes.items()}


@pytest.fixture(scope="module")
def base(review: Made) -> Iterator[str]:
    with serving(ServeSettings(atlas=review.atlas, model=review.language, saes=saes(review))) as address:
        yield address


@pytest.fixture
def page(browser: Any, base: str, request: pytest.FixtureRequest) -> Iterator[Any]:
    with watched_page(browser, base, LOOKS[getattr(request, "param", "light")]) as found:
        yield found


def traced(page: Any, prompt: str = PROMPT) -> None:
    page.goto("/inspect")
    page.wait_for_function("() => document.documentElement.dataset.ready === 'inspect'")
    page.locator("[name=prompt]").fill(prompt)
    page.locator("[name=answer]").fill(ANSWER)
    page.locator("#trace").click()
    page.wait_for_function("() => document.documentElement.dataset.traced !== undefined")


def test_the_graph_shows_what_the_api_says(page: Any) -> None:
    traced(page)
    truth = page.evaluate(POST, {"prompt": PROMPT, "answer": ANSWER})
    found, pages = truth["trajectory"], truth["links"]
    assert page.locator("#graph .node").count() == len(found["nodes"]) == 16
    assert page.locator("#graph .link").count() == len(found["links"]) > 8
    assert page.locator("#graph .link.checked").count() == sum(one["ablation"] is not None for one in found["links"])
    assert page.locator("#paths li").count() == len(found["paths"]) > 0
    assert page.locator("#graph .row-name").all_text_contents() == found["hookpoints"] == ["layers.1", "layers.2"]
    assert "rank correlation" in page.locator("#trajectory-summary").inner_text()
    assert SCRIPT not in page.locator("#trajectory").inner_html()
    last = found["paths"][0]["nodes"][-1]
    node = found["nodes"][last]
    assert page.locator("#node-link").inner_text() == f"{node['sae']} {node['latent']}"
    assert page.locator("#node-link").get_attribute("href") == pages[last]["url"]
    into = [one for one in found["links"] if one["target"] == last]
    assert page.locator("#node-from li").count() == len(into) > 0
    assert page.locator("#graph .link.on").count() == sum(last in (one["source"], one["target"])
                                                          for one in found["links"])  # fmt: skip
    for i, one in enumerate(pages):
        if one["sensitive"]:
            name = f"{found['nodes'][i]['sae']} {found['nodes'][i]['latent']} "
            labels = page.locator(f"#graph .node[aria-label^='{name}']").all()
            assert all("harbour" not in (label.get_attribute("aria-label") or "") for label in labels)
    assert page.url.endswith("/inspect")


def test_what_the_time_did_not_allow_is_told(review: Made, browser: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server's limit lies below its time for a request."""
    limit = inspecting.TRACING.max_seconds
    assert limit is not None
    assert limit + inspecting.MAX_SECONDS < ServeSettings(atlas=review.atlas).compute_timeout
    monkeypatch.setattr(inspecting, "TRACING", inspecting.TRACING.model_copy(update={"max_seconds": 1e-9}))
    with (
        serving(ServeSettings(atlas=review.atlas, model=review.language, saes=saes(review))) as address,
        watched_page(browser, address, LOOKS["light"]) as page,
    ):
        traced(page)
        found = page.evaluate(POST, {"prompt": PROMPT, "answer": ANSWER})["trajectory"]
        assert found["left_out"]["features"] == 8
        words = page.locator("#trajectory-summary").inner_text()
        assert "Out of time: no links into 8 features were looked for" in words
        assert f"and {found['left_out']['checks']} ablations were left out" in words


def test_nodes_are_selected_by_mouse_and_keys(page: Any) -> None:
    traced(page)
    assert page.locator("#graph .node[tabindex='0']").count() == 1, "one stop of the Tab key"
    nodes = page.locator("#graph .node")
    nodes.nth(2).click()
    assert page.evaluate("document.activeElement.dataset.i") == "2"
    for key, expected in (("ArrowRight", "3"), ("ArrowLeft", "2"), ("Home", "0"), ("End", "15")):
        page.keyboard.press(key)
        assert page.evaluate("document.activeElement.dataset.i") == expected, key
        assert page.locator("#graph .node[aria-current]").get_attribute("data-i") == expected
    page.keyboard.press("ArrowUp")
    assert int(page.evaluate("document.activeElement.dataset.i")) < 8, "the later layer lies above"
    named = nodes.nth(0).get_attribute("aria-label")
    assert " at “" in named
    assert "layers.2" in named
    page.locator("#paths li button").first.click()
    first = page.locator("#paths li button").first.inner_text().split(" at ")[0]
    assert page.locator("#node-link").inner_text() == first
    page.locator("#read").click()
    page.wait_for_function("() => document.documentElement.dataset.inspected !== undefined")
    assert page.locator("#trajectory").is_hidden(), "the graph of another text does not stay"


@pytest.mark.parametrize("page", LOOKS, indirect=True)
def test_the_page_is_whole(page: Any) -> None:
    traced(page, f"{PROMPT} {SCRIPT} {'unbroken' * 20}")
    assert overflow(page) == []
    if shots := os.environ.get("SEAMARK_SHOTS"):
        page.locator("#trajectory").screenshot(path=str(Path(shots) / f"{page.viewport_size['width']}-"
               f"{page.evaluate('matchMedia(`(prefers-color-scheme: dark)`).matches')}.png"))  # fmt: skip


def test_one_hookpoint_has_no_graph(review: Made) -> None:
    app = app_of(review.atlas, model=review.language, saes={"words": saes(review)["words"]}, read_only=True)
    web = TestClient(app, base_url=BASE, raise_server_exceptions=False, headers={"X-Seamark": "1"})
    assert 'id="trace"' not in web.get("/inspect").text
    asked = web.post("/api/v1/trajectory", json={"prompt": PROMPT})
    assert asked.status_code == 400
    assert "nothing leads from one layer to another" in asked.json()["error"]["what"]


def test_the_operation(review: Made) -> None:
    app = app_of(review.atlas, model=review.language, saes=saes(review), read_only=True)
    web = TestClient(app, base_url=BASE, raise_server_exceptions=False, headers={"X-Seamark": "1"})
    found = web.post("/api/v1/trajectory", json={"prompt": PROMPT, "generate": {"max_new_tokens": 4}})
    assert found.status_code == 200
    body = found.json()
    assert body["trajectory"]["generated"]["tokens"] <= 4
    assert body["trajectory"]["output"]["kind"] == "logit"
    assert len(body["links"]) == len(body["trajectory"]["nodes"])
    assert web.post("/api/v1/trajectory", json={"prompt": " "}).status_code == 400
    assert web.post("/api/v1/trajectory", json={"prompt": "x" * 30_000}).status_code == 413
    assert web.post("/api/v1/trajectory", json={"prompt": PROMPT, "watch": []}).status_code == 422
