"""The pages Runs: what they show, whom they believe, and reports that can do nothing."""

from __future__ import annotations

import re
from html import unescape
from typing import Any
from urllib.parse import quote

import pytest
from made_atlas import BASE, BIDI, SCRIPT, app_of
from made_review import Made
from starlette.testclient import TestClient

from seamark.web.runs import REPORT_POLICY

FIRST, SECOND = "first run", "second & <b>run"


def text_of(page: str) -> str:
    return " ".join(unescape(re.sub(r"<[^>]+>", " ", page)).split())


@pytest.fixture(scope="module")
def web(review: Made) -> TestClient:
    return TestClient(app_of(review.atlas, runs=review.runs), base_url=BASE, raise_server_exceptions=False,
                      follow_redirects=False)  # fmt: skip


def test_the_list(web: TestClient) -> None:
    page = web.get("/runs").text
    assert page.count("<h1") == 1
    assert ' style="' not in page
    text = text_of(page)
    assert "3 folders, the newest first." in text
    assert text.index(SECOND) < text.index(FIRST), "newest first"
    assert "no run" not in [t.strip() for t in re.findall(r">([^<]*)</a>", page)]
    assert f'href="/runs/{quote(SECOND, safe="")}"' in page
    assert SCRIPT not in page
    assert "<b>run" not in page
    assert [r["name"] for r in web.get("/api/v1/run-folders").json()] == ["third", SECOND, FIRST]


def test_a_run(web: TestClient) -> None:
    page = web.get(f"/runs/{quote(FIRST)}").text
    text = text_of(page)
    assert "reward.accuracy.safety 0.8 0.700 to 0.900" in text
    assert "features[sae 9].direct_effect not available fewer than 10 firings" in text
    assert "poison_summary[safer 0.05].safety 0.61 0.500 to 0.700" in text
    assert "reward.epochs 2" in text
    assert "clean/scan" in text
    assert "2.0" in text
    assert SCRIPT not in page
    assert "window.pwned" in text, "shown, but inert"
    view = web.get("/api/v1/run-folder", params={"name": FIRST}).json()
    assert view["card"]["stages"] == 2
    for link in set(re.findall(r'href="(/[^"]*)"', page)):
        assert web.get(unescape(link)).status_code == 200, link


def test_foreign_json_is_inert(web: TestClient) -> None:
    page = web.get("/runs/third").text
    assert web.get("/runs/third").status_code == 200
    assert SCRIPT not in page
    assert BIDI not in page
    assert "more characters" in page


def test_two_runs_side_by_side(web: TestClient) -> None:
    address = f"/runs/compare?a={quote(FIRST)}&b={quote(SECOND)}"
    page = web.get(address).text
    text = text_of(page)
    assert ' style="' not in page
    assert "reward.epochs 2 3" in text
    assert "torch 2.0 2.1" in text
    assert "reward.accuracy.safety 0.8 0.700 to 0.900 0.9 0.700 to 0.900 +0.1000" in text
    assert "effect.D 0.1 0.0500 to 0.200 0.2 0.0500 to 0.200 +0.1000" in text
    assert "values that are the same" in text
    found = web.get("/api/v1/run-comparison", params={"a": FIRST, "b": SECOND}).json()
    assert [d["name"] for d in found["config"]] == ["reward.epochs"]
    assert "Choose two runs" in web.get(f"/runs/compare?a={quote(FIRST)}").text
    assert web.get("/runs/compare?a=none&b=none").status_code == 404
    assert web.get("/runs/compare").status_code == 404, "no run is called so"


def test_reports_are_served_with_a_policy_of_their_own(web: TestClient) -> None:
    answer = web.get(f"/runs/{quote(FIRST)}/report")
    assert answer.status_code == 200
    assert answer.headers["content-security-policy"] == REPORT_POLICY
    assert "sandbox" in REPORT_POLICY
    assert "script-src" not in REPORT_POLICY, "default-src 'none' holds for scripts"
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert SCRIPT in answer.text, "as it is: the policy keeps it from running"
    assert web.get("/runs/third/report").status_code == 404


@pytest.mark.parametrize(
    "name",
    [
        "%2e%2e%2f%2e%2e%2fetc%2fpasswd",
        "..%2freview.db",
        "first%20run%2fdata",
        "%00",
        "no%20run",
        "%ef%bf%bd",
        "first run%00",
        "~",
        "x" * 5000,
        quote(SCRIPT),
    ],
)
def test_nothing_but_the_list_can_be_asked_for(web: TestClient, name: str) -> None:
    for path in (f"/runs/{name}", f"/runs/{name}/report"):
        answer = web.get(path)
        assert answer.status_code in (400, 404), path
        assert SCRIPT not in answer.text
    assert web.get(f"/api/v1/run-folder?name={name}").status_code in (404, 422)


def test_without_a_folder_there_are_no_runs(review: Made) -> None:
    web: Any = TestClient(app_of(review.atlas), base_url=BASE, raise_server_exceptions=False)
    assert web.get("/runs").status_code == 404
    assert web.get("/api/v1/run-folders").status_code == 404
    assert "/runs" not in re.findall(r'href="([^"]*)"', web.get("/").text)
