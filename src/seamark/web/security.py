"""What stands between the network and the pages. Each guard is one ASGI layer; `guard` puts them in their order.

A browser may hold hostile pages beside this one, and a hostile page may make its own name point to this machine. So the
Host header is checked, other sites' requests are refused, writes need what only this page's own script can send, and no
page runs a script or loads anything that is not of this server.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from urllib.parse import parse_qsl, quote, unquote_to_bytes, urlencode

from fastapi import Request
from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import RedirectResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from seamark.errors import SeamarkError
from seamark.web.answers import tell, tell_failure
from seamark.web.hosts import host_allowed, same_token, session_of
from seamark.web.problems import MediaError, RefusedError, RequestError, TimedOutError, TokenNeededError, TooLongError
from seamark.web.state import COMPUTES, State

log = logging.getLogger("seamark.web")
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=(), payment=(), usb=()",
}
"""Of every answer; what a page sets itself stays."""
SAFE = ("GET", "HEAD", "OPTIONS")
MARKER = "x-seamark"
"""A header that forms and other sites cannot send without being asked first."""
Check = Callable[[State, Scope], None]


def guard(app: ASGIApp, state: State) -> ASGIApp:
    """`app` behind all guards, the outermost last here."""
    app = Bodies(app, state)
    for check in (check_write, check_site, check_token):
        app = Checked(app, state, check)
    app = Tokens(app, state)
    for check in (check_encoding, check_host):
        app = Checked(app, state, check)
    return Failures(Times(app, state), state)


class Failures:
    """Headers on every answer, and a plain page in place of whatever went wrong."""

    def __init__(self, app: ASGIApp, state: State) -> None:
        self.app, self.state = app, state

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started = False

        async def send_with_headers(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        try:
            await self.app(scope, receive, send_with_headers)
        except Exception:
            log.exception("%s %r failed", scope["method"], scope["path"])
            if started:  # the connection is cut, so that nobody takes half an answer for a whole one
                raise
            await tell_failure(self.state, Request(scope))(scope, receive, send_with_headers)


class Times:
    """Gives a request up after a while. Its thread goes on until it is done; the client need not wait for it."""

    def __init__(self, app: ASGIApp, state: State) -> None:
        self.app, self.state = app, state
        self._abandoned: set[asyncio.Task[None]] = set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        settings = self.state.settings
        limit = settings.compute_timeout if computes(scope["path"]) else settings.timeout
        started, given_up = False, False

        async def send_in_time(message: Message) -> None:
            nonlocal started
            if not given_up:
                started = True
                await send(message)

        task = asyncio.ensure_future(_call(self.app, scope, receive, send_in_time))
        try:
            await asyncio.wait({task}, timeout=limit)
        except asyncio.CancelledError:
            task.cancel()
            raise
        if task.done():
            task.result()
            return
        given_up = True
        self._abandoned.add(task)
        task.add_done_callback(self._forget)
        task.cancel()
        log.warning("%s %r was given up after %g s", scope["method"], scope["path"], limit)
        error = TimedOutError("this took too long", where=f"{limit:g} seconds", fix="Ask for less, or try again")
        if started:
            raise error
        await tell(self.state, Request(scope), error)(scope, receive, send)

    def _forget(self, task: asyncio.Task[None]) -> None:
        self._abandoned.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.warning("a request that was given up failed: %r", error)


async def _call(app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
    await app(scope, receive, send)


class Checked:
    """Answers with the error that a check raises, or goes on."""

    def __init__(self, app: ASGIApp, state: State, check: Check) -> None:
        self.app, self.state, self.check = app, state, check

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            try:
                self.check(self.state, scope)
            except SeamarkError as e:
                await _refuse(self.state, e, scope, receive, send)
                return
        await self.app(scope, receive, send)


def check_host(state: State, scope: Scope) -> None:
    """The server is asked under one of its own names."""
    hosts = Headers(scope=scope).getlist("host")
    settings = state.settings
    if len(hosts) != 1 or not host_allowed(hosts[0], settings.host, settings.allow_hosts):
        raise RefusedError(
            "this server has another name", where="Host", fix="Start it with --allow-host NAME to add one"
        )


def check_encoding(state: State, scope: Scope) -> None:
    """Path and query are UTF-8."""
    for part in (scope.get("raw_path") or scope["path"].encode("utf-8", "replace"), scope["query_string"]):
        try:
            unquote_to_bytes(part).decode("utf-8")
        except UnicodeDecodeError:
            raise RequestError("the address is not UTF-8", fix="Follow a link instead of typing it") from None


def check_token(state: State, scope: Scope) -> None:
    """The client has shown the token, where there is one."""
    token = state.settings.token
    if token is None or scope["path"].startswith("/static/"):
        return
    request = Request(scope)
    scheme, _, value = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and same_token(value.strip(), token):
        return
    if not same_token(request.cookies.get(cookie_name(state)), session_of(token)):
        raise TokenNeededError("this server asks for a token",
                               fix="Open the address that `seamark serve` printed, or send it as a bearer")  # fmt: skip


def check_site(state: State, scope: Scope) -> None:
    """No other site asks, but by a link that somebody follows."""
    headers = Headers(scope=scope)
    site = headers.get("sec-fetch-site", "none")
    followed = scope["method"] in SAFE and headers.get("sec-fetch-mode") == "navigate" and (
        headers.get("sec-fetch-dest") == "document")  # fmt: skip
    if site not in ("none", "same-origin") and not followed:
        raise RefusedError("another site asks for this", where="Sec-Fetch-Site", fix="Open it in a tab of its own")
    origin = headers.get("origin")
    host = headers.get("host", "")
    if origin is not None and origin not in (f"http://{host}", f"https://{host}"):
        raise RefusedError("another site asks for this", where="Origin", fix="Open it in a tab of its own")


def check_write(state: State, scope: Scope) -> None:
    """A request that may change something comes from this server's own page, or from a program that says so."""
    if scope["method"] in SAFE:
        return
    if state.settings.read_only and not computes(scope["path"]):
        raise RefusedError("this server is read-only", fix="Start it without --read-only to change the atlas")
    headers = Headers(scope=scope)
    if headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise MediaError("the body is not JSON", where="Content-Type", fix="Send application/json")
    if MARKER not in headers:
        raise RefusedError("a header is missing", where="X-Seamark", fix="Send X-Seamark: 1")


def computes(path: str) -> bool:
    """Whether requests to `path` compute and change nothing."""
    return any(path == p or path.startswith(f"{p}/") for p in COMPUTES)


class Tokens:
    """Takes a token from the address into a cookie, so that it stays in no history."""

    def __init__(self, app: ASGIApp, state: State) -> None:
        self.app, self.state = app, state

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        token = self.state.settings.token
        if token is None or scope["type"] != "http" or scope["method"] != "GET":
            await self.app(scope, receive, send)
            return
        pairs = parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True)
        given = [value for name, value in pairs if name == "token"]
        if not given or not same_token(given[-1], token):
            await self.app(scope, receive, send)
            return
        rest = urlencode([(n, v) for n, v in pairs if n != "token"])
        path = quote(scope["path"]) if not scope["path"].startswith("//") else "/"  # two would name another server
        response = RedirectResponse(path + (f"?{rest}" if rest else ""), HTTPStatus.SEE_OTHER,
                                    headers={"Cache-Control": "no-store"})  # fmt: skip
        response.set_cookie(cookie_name(self.state), session_of(token), httponly=True, samesite="strict", path="/",
                            secure=scope.get("scheme") == "https")  # fmt: skip
        await response(scope, receive, send)


def cookie_name(state: State) -> str:
    """Cookies are shared by all ports of a host, so the name holds the port."""
    return f"seamark_session_{state.settings.port}"


class Bodies:
    """Reads a request's body up to the limit before anything else sees it."""

    def __init__(self, app: ASGIApp, state: State) -> None:
        self.app, self.state = app, state

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] in SAFE:
            if scope.get("method") == "HEAD":  # answered as GET; the server leaves the body out
                scope = {**scope, "method": "GET"}
            await self.app(scope, receive, send)
            return
        limit = self.state.settings.max_body
        told = Headers(scope=scope).get("content-length", "0")
        error: SeamarkError | None = None
        body = b""
        if not (told.isascii() and told.isdigit()):
            error = RequestError("the length of the body is no number", where="Content-Length")
        elif len(told) > 18 or int(told) > limit:
            error = _too_long(limit)
        else:
            read = await _read(receive, limit)
            body, error = (read, None) if read is not None else (b"", _too_long(limit))
        if error is not None:
            await _refuse(self.state, error, scope, receive, send, {"Connection": "close"})
            return
        sent = False

        async def replay() -> Message:
            nonlocal sent
            if sent:
                return await receive()
            sent = True
            return {"type": "http.request", "body": body, "more_body": False}

        await self.app(scope, replay, send)


async def _read(receive: Receive, limit: int) -> bytes | None:
    """The body; None: it is longer than the limit, and the rest was not read."""
    parts: list[bytes] = []
    size, more = 0, True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            break
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        more = message.get("more_body", False)
        if size > limit:
            return None
    return b"".join(parts)


def _too_long(limit: int) -> TooLongError:
    return TooLongError("the body is too long", where=f"at most {limit:,} bytes", fix="Send less")


async def _refuse(
    state: State, error: SeamarkError, scope: Scope, receive: Receive, send: Send, headers: dict[str, str] | None = None
) -> None:
    respond: Callable[[Scope, Receive, Send], Awaitable[None]] = tell(state, Request(scope), error, headers)
    await respond(scope, receive, send)
