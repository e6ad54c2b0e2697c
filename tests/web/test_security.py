"""Hostile pages, names, bodies and texts: who is let in, what may change something, and that no text acts."""

from __future__ import annotations

import asyncio
import io
import logging
import sqlite3
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from made_atlas import ATTRIBUTE, BASE, BIDI, SAES, SCRIPT, app_of, client_of
from pydantic import BaseModel
from starlette.testclient import TestClient

from seamark.errors import ConfigError, DataError
from seamark.web import security
from seamark.web.hosts import TOKEN_VARIABLE, host_allowed, is_loopback, needed_token
from seamark.web.problems import RefusedError
from seamark.web.security import HEADERS, guard
from seamark.web.state import COMPUTES, State, feature_path

TOKEN = "a-token-of-some-length"
JSON = {"Content-Type": "application/json", "X-Seamark": "1"}
DIRECTIVES = {
    "default-src 'none'", "script-src 'self'", "style-src 'self'", "img-src 'self' data:", "connect-src 'self'",
    "form-action 'self'", "base-uri 'none'", "frame-ancestors 'none'",
}  # fmt: skip


class Note(BaseModel):
    text: str


def wired(atlas: Path, **settings: Any) -> tuple[TestClient, FastAPI]:
    """An application with further routes: one that writes, one that fails, one that waits."""
    app = app_of(atlas, **settings)

    @app.post("/api/v1/notes")
    def note(asked: Note) -> dict[str, int]:
        return {"length": len(asked.text)}

    @app.post(f"{COMPUTES[0]}/again")
    def compute(asked: Note) -> dict[str, int]:
        return {"length": len(asked.text)}

    @app.get("/fails")
    def fails() -> None:
        raise ZeroDivisionError("a secret detail")

    @app.get("/api/v1/told")
    def told() -> None:
        raise DataError(f"bad {SCRIPT}", where="file.json:3", fix="Mend it")

    @app.get("/waits")
    def waits() -> None:
        time.sleep(1.0)

    app.router.routes.sort(key=lambda route: getattr(route, "path", "").startswith("/features"))
    return TestClient(app, base_url=BASE, raise_server_exceptions=False, follow_redirects=False), app


@pytest.fixture
def wire(atlas_file: Path) -> TestClient:
    return wired(atlas_file)[0]


@pytest.mark.parametrize("path", ["/", "/nothing", "/fails", "/static/atlas.css", "/api/v1/saes", "/api/v1/told"])
def test_every_answer_carries_the_headers(wire: TestClient, path: str) -> None:
    headers = wire.get(path).headers
    assert {part.strip() for part in headers["content-security-policy"].split(";")} == DIRECTIVES
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"
    assert headers["cross-origin-opener-policy"] == headers["cross-origin-resource-policy"] == "same-origin"
    assert "server" not in headers
    assert set(HEADERS) <= {name.title() if name != "permissions-policy" else "Permissions-Policy" for name in headers}


@pytest.mark.parametrize(("host", "allowed"), [
    ("127.0.0.1:8700", True), ("localhost:8700", True), ("LocalHost", True), ("[::1]:8700", True),
    ("localhost:9000", True),
    ("evil.example:8700", False), ("127.0.0.1.evil.example", False), ("localhost@evil.example", False), ("", False),
    ("127.0.0.1:8700, evil.example", False), ("evil.example/127.0.0.1", False), ("[", False), ("localhost:x", False),
    ("192.168.0.7:8700", False),
])  # fmt: skip
def test_only_its_own_names_are_answered(wire: TestClient, host: str, allowed: bool) -> None:
    assert wire.get("/", headers={"Host": host}).status_code == (200 if allowed else 403)


def test_a_given_host_is_a_name_of_the_server() -> None:
    assert host_allowed("box.lan:8700", "box.lan")
    assert host_allowed("box.lan", "0.0.0.0", ("box.lan",))
    assert host_allowed("192.168.0.7:8700", "0.0.0.0")  # an address is no name that somebody could make point here
    assert not host_allowed("192.168.0.7:8700", "127.0.0.1")
    assert not host_allowed("evil.example", "0.0.0.0")
    assert is_loopback("127.1.2.3")
    assert is_loopback("::1")
    assert not is_loopback("0.0.0.0")
    assert not is_loopback("localhost.evil.example")


def test_other_addresses_need_a_token() -> None:
    assert needed_token("127.0.0.1", None, {}) == (None, False)
    token, made = needed_token("0.0.0.0", None, {})
    assert made
    assert token is not None
    assert len(token) >= 32
    assert needed_token("0.0.0.0", None, {})[0] != token
    assert needed_token("0.0.0.0", None, {TOKEN_VARIABLE: TOKEN}) == (TOKEN, False)
    assert needed_token("127.0.0.1", TOKEN, {}) == (TOKEN, False)
    with pytest.raises(ConfigError, match="fewer than 16"):
        needed_token("127.0.0.1", "short", {})


def test_a_token_is_asked_for_and_goes_into_a_cookie(atlas_file: Path) -> None:
    web, _ = wired(atlas_file, host="0.0.0.0", token=TOKEN)
    assert web.get("/").status_code == 401
    assert web.get("/api/v1/saes").status_code == 401
    assert web.post("/api/v1/notes", json={"text": "x"}, headers=JSON).status_code == 401
    assert web.get("/static/atlas.css").status_code == 200
    assert TOKEN not in web.get("/").text
    for wrong in ("x", TOKEN + "x", TOKEN[:-1], "é", ""):
        assert web.get("/", headers={"Authorization": f"Bearer {wrong}".encode()}).status_code == 401
        assert web.get("/", params={"token": wrong}).status_code == 401
    assert web.get("/", headers={"Authorization": f"Bearer {TOKEN}"}).status_code == 200
    shown = web.get("/features", params={"words": "a&b", "token": TOKEN})
    assert shown.status_code == 303
    assert shown.headers["location"] == "/features?words=a%26b"
    cookie = shown.headers["set-cookie"]
    assert TOKEN not in cookie
    assert {"httponly", "samesite=strict", "path=/"} <= {part.strip().lower() for part in cookie.split(";")}
    assert web.get("/").status_code == 200  # the client keeps it
    other = TestClient(web.app, base_url=BASE)
    other.cookies.set("seamark_session_8700", TOKEN)  # the cookie is not the token itself
    assert other.get("/").status_code == 401


def test_a_token_never_redirects_elsewhere(atlas_file: Path) -> None:
    web, _ = wired(atlas_file, token=TOKEN)
    for path in ("//evil.example/", "/%2Fevil.example/", "/%5Cevil.example/", "/\\evil.example"):
        to = web.get(f"{BASE}{path}?token={TOKEN}").headers.get("location", "/")
        assert to.startswith("/")
        assert not to.startswith(("//", "/\\"))


@pytest.mark.parametrize(("headers", "status"), [
    (JSON, 200), (JSON | {"Origin": BASE}, 200), (JSON | {"Sec-Fetch-Site": "same-origin"}, 200),
    ({"Content-Type": "application/json"}, 403), ({"X-Seamark": "1", "Content-Type": "text/plain"}, 415),
    ({"X-Seamark": "1", "Content-Type": "application/x-www-form-urlencoded"}, 415), ({"X-Seamark": "1"}, 415),
    (JSON | {"Origin": "http://evil.example"}, 403), (JSON | {"Origin": "null"}, 403),
    (JSON | {"Origin": "http://127.0.0.1:9999"}, 403), (JSON | {"Sec-Fetch-Site": "cross-site"}, 403),
    (JSON | {"Sec-Fetch-Site": "same-site"}, 403),
    (JSON | {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}, 403),
])  # fmt: skip
def test_writes_come_from_the_own_page_or_a_program(wire: TestClient, headers: dict[str, str], status: int) -> None:
    assert wire.post("/api/v1/notes", content=b'{"text": "ahoy"}', headers=headers).status_code == status


def test_other_sites_may_link_and_nothing_else(wire: TestClient) -> None:
    followed = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}
    assert wire.get("/", headers=followed).status_code == 200
    assert wire.get("/", headers=followed | {"Sec-Fetch-Dest": "iframe"}).status_code == 403
    loaded = {"Sec-Fetch-Site": "same-site", "Sec-Fetch-Mode": "no-cors", "Sec-Fetch-Dest": "script"}
    assert wire.get("/api/v1/saes", headers=loaded).status_code == 403
    assert "access-control-allow-origin" not in wire.get("/api/v1/saes", headers={"Origin": BASE}).headers


def test_read_only_refuses_writes_and_opens_the_file_to_read(atlas_file: Path) -> None:
    web, app = wired(atlas_file, read_only=True)
    for method in ("POST", "PUT", "PATCH", "DELETE"):
        answer = web.request(method, "/api/v1/notes", json={"text": "x"}, headers=JSON)
        assert answer.status_code == 403
        assert "read-only" in answer.json()["error"]["what"]
    assert web.post(f"{COMPUTES[0]}/again", json={"text": "x"}, headers=JSON).status_code == 200
    assert web.post(f"{COMPUTES[0]}x", json={"text": "x"}, headers=JSON).status_code == 403
    assert "read-only" in web.get("/").text
    state: State = app.state.seamark
    with pytest.raises(RefusedError), state.writer():
        pass
    with state.atlas._reading() as db, pytest.raises(sqlite3.OperationalError, match="readonly"):
        db.execute("DELETE FROM features")


def test_a_server_that_may_write_writes(tmp_path: Path, atlas_file: Path) -> None:
    import shutil

    path = Path(shutil.copy(atlas_file, tmp_path / "copy.db"))
    state: State = app_of(path).state.seamark
    with state.writer() as writer:
        writer.mark("scan", "pair", "wrong", "a note")
    assert state.atlas.marks("scan")["pair"].note == "a note"


@pytest.mark.parametrize("told", [True, False])
def test_long_bodies_are_refused_while_they_come(atlas_file: Path, told: bool) -> None:
    _, app = wired(atlas_file, max_body=1000)
    taken = 0

    async def body() -> AsyncIterator[bytes]:
        nonlocal taken
        for _ in range(1000):
            taken += 1
            yield b" " * 100

    async def send() -> int:
        headers = JSON | ({"Content-Length": "100000"} if told else {})
        async with client_of(app)() as web:
            return (await web.post("/api/v1/notes", content=body(), headers=headers)).status_code

    assert asyncio.run(send()) == 413
    assert taken < (1 if told else 15)


def test_bodies_that_are_no_json_are_told(wire: TestClient) -> None:
    for body in (b"", b"{", b"\xff\xfe", b'{"text": 1}', b'{"text": "\\ud800"}', b"[" * 100_000, b"null", b"9" * 5000):
        answer = wire.post("/api/v1/notes", content=body, headers=JSON)
        assert answer.status_code in (200, 400, 422), body[:20]
    answer = wire.post("/api/v1/notes", content=b"{}", headers=JSON | {"Content-Length": "x"})
    assert answer.status_code == 400


def test_unexpected_errors_show_nothing_and_are_logged(wire: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    log, told_log = logging.Logger("its own"), io.StringIO()  # some library may have silenced the real one by now
    log.addHandler(logging.StreamHandler(told_log))
    monkeypatch.setattr(security, "log", log)
    page = wire.get("/fails")
    assert page.status_code == 500
    assert "secret" not in page.text
    assert "Traceback" not in page.text
    assert "a secret detail" in told_log.getvalue()
    told = wire.get("/api/v1/told")
    assert told.status_code == 400
    assert told.json()["error"] == {"status": 400, "what": f"bad {SCRIPT}", "where": "file.json:3", "fix": "Mend it"}


def test_slow_answers_are_given_up(atlas_file: Path) -> None:
    web, _ = wired(atlas_file, timeout=0.1)
    start = time.monotonic()
    assert web.get("/waits").status_code == 503
    assert time.monotonic() - start < 0.9
    assert web.get("/static/atlas.css").status_code == 200


@pytest.mark.parametrize("path", ["/features/%ff/0", "/%c3%28", "/features?words=%ff", "/static/%80"])
def test_addresses_that_are_no_utf8_are_refused(wire: TestClient, path: str) -> None:
    assert wire.get(path).status_code == 400


@pytest.mark.parametrize("name", [
    "../../etc/passwd", "..%2f..%2fetc%2fpasswd", "%2e%2e/%2e%2e/x", "....//x", "/etc/passwd", "a%00b", "\\..\\x",
    "con", "x" * 3000, "%F0%9F%92%A9", "%E2%80%AE",
])  # fmt: skip
def test_ids_and_names_are_never_paths(wire: TestClient, name: str) -> None:
    for path in (f"/features/{name}/0", f"/api/v1/features/{name}/0", f"/static/{name}", f"/api/v1/landscape/{name}"):
        assert wire.get(path).status_code in (400, 404, 422), path


SYNTAX = [
    "'; DROP TABLE features; --", '" OR 1=1 --', "NEAR(a b, 2)", "words:x", "a AND OR NOT", "(((", '"', "*", "^a",
    "a*b", "-", "--", '-"', "{a b}:c", "\\", "%", "_", "a\0b", "\u202e", "港口", "-" * 500, '"' * 500, "NOT " * 100,
    "🚢", "ﷺ" * 400,
]  # fmt: skip


@pytest.mark.parametrize("words", SYNTAX)
def test_no_word_is_syntax(wire: TestClient, words: str) -> None:
    for key in ("words", "sae", "domain", "concept", "language"):
        assert wire.get("/features", params={key: words}).status_code == 200, key
        assert wire.get("/api/v1/features", params={key: words}).status_code == 200, key
    assert wire.get("/api/v1/features").json()["total"] == 90  # still there


def test_markup_is_shown_inert_and_escaped_once(web: TestClient) -> None:
    for path in ("/", "/features", "/features?words=script", *(feature_path(s, i) for s in SAES for i in (0, 1, 3))):
        page = web.get(path).text
        assert SCRIPT not in page
        assert ATTRIBUTE not in page
        assert "onmouseover='" not in page
        assert "&amp;lt;" not in page
        assert "&amp;#" not in page
    page = web.get(feature_path(SAES[0], 3)).text
    assert "&lt;script&gt;window.pwned = 1&lt;/script&gt;" in page
    error = web.get(f"/features?words={'x' * 600}&sort={SCRIPT}").text
    assert SCRIPT not in error
    assert SCRIPT not in web.get(f"/{SCRIPT}").text


def test_characters_that_act_unseen_are_marked(web: TestClient) -> None:
    page = web.get(feature_path(SAES[0], 5)).text
    assert "abc⟦U+202E⟧def" in page
    assert "␀" in page
    assert not {"\u202e", "\0"} & set(page)
    found = web.get("/api/v1/features", params={"words": "def end", "sae": SAES[0]}).json()
    assert BIDI in found["cards"][0]["label"]  # programs get texts as they are
    contexts = web.get(f"/api/v1{feature_path(SAES[0], 5)}/contexts")
    assert contexts.status_code == 200
    assert contexts.json()[0]["tokens"][0] == BIDI


def test_long_texts_are_cut(web: TestClient) -> None:
    for path in ("/features?words=lighthouse", feature_path(SAES[0], 4)):
        assert len(web.get(path).text) < 300_000
    assert "more characters" in web.get(feature_path(SAES[0], 4)).text


def test_guards_leave_other_protocols_alone(atlas_file: Path) -> None:
    app = app_of(atlas_file)
    seen: list[str] = []

    async def inner(scope: Any, receive: Any, send: Any) -> None:
        seen.append(scope["type"])

    asyncio.run(guard(inner, app.state.seamark)({"type": "lifespan"}, None, None))  # type: ignore[arg-type]
    assert seen == ["lifespan"]
    assert threading.active_count() < 100
