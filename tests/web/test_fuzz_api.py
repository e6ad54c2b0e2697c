"""Every operation of the OpenAPI schema, and every page, with parameters that nobody thought of: never a 500."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from made_atlas import BASE, BIDI, SAES, SCRIPT
from starlette.testclient import TestClient

ODD = ["", " ", "0", "-1", "1e999", "nan", "inf", "9" * 25, "9" * 5000, "null", "true", "[]", "{}", "'", '"', "%", "\0",
       "\ufffd", "\uffff", "🚢", "\u0660", "../..", "a/b", "/", "//", ".", "..", "?", "#", ";", ",", "1,2", "*", SCRIPT,
       BIDI, *SAES, "NEAR(", "x" * 3000]  # fmt: skip
NUMBERS = [0, 1, -1, 5, 24, 500, 501, 2**31, 2**63 - 1, 2**63, -(2**63), -(2**63) - 1, 10**30]
TEXTS = st.one_of(st.sampled_from(ODD), st.text(st.characters(codec="utf-8"), max_size=40))
PAGES = {
    "/": [], "/api": [], "/nothing": [],
    "/features": ["words", "sae", "layer", "domain", "concept", "state", "language", "min_score", "max_score",
                  "min_rating", "sign", "explained", "sort", "descending", "offset", "limit"],
    "/features/{sae}/{latent}": ["sae", "latent"],
    "/landscape": ["layout", "sae", "layer", "hide", "min_score", "at"],
    "/static/{name}": ["name", "v"],
}  # fmt: skip


def of_schema(schema: Mapping[str, Any]) -> st.SearchStrategy[str]:
    """Values that fit a parameter's schema, or nearly."""
    fitting: list[st.SearchStrategy[Any]] = []
    for kind in schema.get("anyOf", [schema]):
        match kind.get("type"):
            case _ if "enum" in kind or "const" in kind:
                fitting.append(st.sampled_from(kind.get("enum") or [kind["const"]]))
            case "integer":
                fitting += [st.sampled_from(NUMBERS), st.integers()]
            case "number":
                fitting.append(st.floats())
            case "boolean":
                fitting.append(st.booleans())
            case _:
                fitting.append(st.sampled_from([*SAES, "decoder", "politics", "en", "harbour lights", "1,2,3"]))
    return st.one_of(*fitting, TEXTS).map(str)


@pytest.fixture(scope="session")
def strict(app: Any) -> TestClient:
    return TestClient(app, base_url=BASE, raise_server_exceptions=False, follow_redirects=False)


@pytest.fixture(scope="session")
def operations(strict: TestClient) -> list[tuple[str, str, list[dict[str, Any]]]]:
    schema = strict.get("/api/v1/openapi.json").json()
    return [(method.upper(), path, about.get("parameters", [])) for path, methods in schema["paths"].items()
            for method, about in methods.items()]  # fmt: skip


MANY = settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck), print_blob=True)


@MANY
@given(data=st.data())
def test_no_operation_ever_fails(strict: TestClient, operations: Any, data: st.DataObject) -> None:
    method, path, parameters = data.draw(st.sampled_from(operations))
    query, headers = {}, {}
    for about in parameters:
        if not about.get("required") and data.draw(st.booleans()):
            continue
        value = data.draw(of_schema(about["schema"]))
        if about["in"] == "path":
            path = path.replace(f"{{{about['name']}}}", quote(value, safe=""))
        elif about["in"] == "query":
            query[about["name"]] = value
        else:
            headers[about["name"]] = value.encode("utf-8").replace(b"\r", b"").replace(b"\n", b"").replace(b"\0", b"")
    answer = strict.request(method, path, params=query, headers=headers)
    assert answer.status_code in (200, 304, 400, 404, 405, 415, 422), (answer.status_code, method, path, query)
    if answer.status_code >= 400:
        assert answer.json()["error"]["what"]


@MANY
@given(data=st.data())
def test_no_page_ever_fails(strict: TestClient, data: st.DataObject) -> None:
    path = data.draw(st.sampled_from(sorted(PAGES)))
    query = {}
    for name in PAGES[path]:
        if f"{{{name}}}" in path:
            path = path.replace(f"{{{name}}}", quote(data.draw(TEXTS), safe=data.draw(st.sampled_from(["", "/"]))))
        elif data.draw(st.booleans()):
            query[name] = data.draw(st.one_of(TEXTS, st.sampled_from([str(n) for n in NUMBERS]), st.floats().map(str)))
    answer = strict.get(path, params=query)
    assert answer.status_code in (200, 304, 400, 404, 422), (answer.status_code, path, query)
    assert "\0" not in answer.text
    assert SCRIPT not in answer.text


@MANY
@given(path=st.binary(max_size=30), query=st.binary(max_size=30), method=st.sampled_from(["GET", "HEAD", "OPTIONS"]))
def test_no_bytes_in_an_address_ever_fail(strict: TestClient, path: bytes, query: bytes, method: str) -> None:
    address = "/" + quote(path) + "?" + quote(query, safe="=&;%+")
    assert strict.request(method, address.replace("//", "/")).status_code in (200, 303, 304, 400, 404, 405, 422)


@MANY
@given(body=st.one_of(st.binary(max_size=200), st.text(max_size=50).map(lambda t: t.encode("utf-8", "replace"))),
       method=st.sampled_from(["POST", "PUT", "PATCH", "DELETE"]), path=st.sampled_from(sorted(PAGES)))  # fmt: skip
def test_no_body_ever_fails(strict: TestClient, body: bytes, method: str, path: str) -> None:
    headers = {"Content-Type": "application/json", "X-Seamark": "1"}
    assert strict.request(method, path, content=body, headers=headers).status_code in (400, 404, 405, 422)
