"""Inspect, Pairs and Runs with parameters and bodies that nobody thought of: never a 500, never markup."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from made_atlas import BASE, BIDI, SCRIPT, app_of
from made_review import ODD, Made
from starlette.testclient import TestClient
from test_fuzz_api import NUMBERS, TEXTS, of_schema

MANY = settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck), print_blob=True)
OURS = ("/inspect", "/pair", "/marks", "/run-")
PAGES = {
    "/inspect": ["sae", "latent"],
    "/pairs": ["scan", "group", "score", "features", "source", "category", "mark", "highest", "pair", "offset",
               "limit"],
    "/runs": [], "/runs/{name}": ["name", "a", "b"], "/runs/{name}/report": ["name"], "/runs/compare": ["a", "b"],
}  # fmt: skip
KNOWN = ["reward-scan", "safety", "safer", "margin", "length", "contrast:chat:safer", "pair-3", ODD, "first run",
         "third", "words", "wrong", "none", "true", "5", "jsonl", "csv"]  # fmt: skip
VALUES = st.one_of(st.sampled_from(KNOWN), TEXTS, st.sampled_from([str(n) for n in NUMBERS]))
JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.sampled_from(NUMBERS), st.floats(allow_nan=False), VALUES),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(VALUES, inner, max_size=3)), max_leaves=6,
)  # fmt: skip


@pytest.fixture(scope="module")
def web(review: Made, tmp_path_factory: pytest.TempPathFactory) -> TestClient:
    path = Path(shutil.copy(review.atlas, tmp_path_factory.mktemp("fuzz") / "copy.db"))
    app = app_of(path, model=review.language, saes={"words": str(review.saes["words"])}, scans=(review.scan,),
                 runs=review.runs)  # fmt: skip
    return TestClient(app, base_url=BASE, raise_server_exceptions=False, follow_redirects=False,
                      headers={"X-Seamark": "1", "Content-Type": "application/json"})  # fmt: skip


@pytest.fixture(scope="module")
def operations(web: TestClient) -> list[tuple[str, list[dict[str, Any]]]]:
    paths = web.get("/api/v1/openapi.json").json()["paths"]
    found = [(path, about["get"].get("parameters", [])) for path, about in paths.items()
             if "get" in about and path.removeprefix("/api/v1").startswith(OURS)]  # fmt: skip
    assert len(found) == 6
    return found


@MANY
@given(data=st.data())
def test_no_operation_ever_fails(web: TestClient, operations: Any, data: st.DataObject) -> None:
    path, parameters = data.draw(st.sampled_from(operations))
    given_ = [a for a in parameters if a.get("required") or data.draw(st.booleans())]
    query = {a["name"]: data.draw(st.one_of(of_schema(a["schema"]), VALUES)) for a in given_}
    answer = web.get(path, params=query)
    assert answer.status_code in (200, 400, 404, 422), (answer.status_code, path, query)
    if answer.status_code >= 400:
        assert answer.json()["error"]["what"]


@MANY
@given(data=st.data())
def test_no_page_ever_fails(web: TestClient, data: st.DataObject) -> None:
    path, query = data.draw(st.sampled_from(sorted(PAGES))), {}
    for name in PAGES[path]:
        if f"{{{name}}}" in path:
            path = path.replace(f"{{{name}}}", quote(data.draw(VALUES), safe=data.draw(st.sampled_from(["", "/"]))))
        elif data.draw(st.booleans()):
            query[name] = data.draw(VALUES)
    answer = web.get(path, params=query)
    assert answer.status_code in (200, 400, 404, 422), (answer.status_code, path, query)
    if not path.endswith("/report"):
        assert SCRIPT not in answer.text
        assert BIDI not in answer.text
        assert "\0" not in answer.text


@MANY
@given(path=st.sampled_from(["/api/v1/inspect", "/api/v1/marks"]), known=st.booleans(), data=st.data())
def test_no_body_ever_fails(web: TestClient, path: str, known: bool, data: st.DataObject) -> None:
    write = st.one_of(st.none(), st.fixed_dictionaries({"max_new_tokens": st.just(2)}), JSON)
    fitting: dict[str, st.SearchStrategy[Any]] = {
        "prompt": VALUES, "answer": st.one_of(st.none(), VALUES), "chat": st.booleans(), "generate": write,
        "watch": st.one_of(st.just([]), JSON),
    } if path.endswith("inspect") else {
        "scan": VALUES, "pair": VALUES, "mark": st.sampled_from(["wrong", "fine", None]), "note": VALUES}  # fmt: skip
    body = data.draw(st.fixed_dictionaries({}, optional=fitting) if known else JSON)
    answer = web.post(path, content=json.dumps(body))
    assert answer.status_code in (200, 400, 404, 413, 422), (answer.status_code, path, body)
    assert answer.headers["content-type"] == "application/json"


@MANY
@given(body=st.binary(max_size=200), path=st.sampled_from(["/api/v1/inspect", "/api/v1/marks"]))
def test_no_bytes_ever_fail(web: TestClient, body: bytes, path: str) -> None:
    assert web.post(path, content=body).status_code in (400, 422)
