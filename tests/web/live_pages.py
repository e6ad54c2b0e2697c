"""A server in a thread and the system's Chromium, for tests of what scripts do."""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest

from seamark.cli.serve import bound, server_of
from seamark.web.app import create_app
from seamark.web.state import ServeSettings

CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which(
    "google-chrome")  # fmt: skip
FLAGS = ["--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--disable-dev-shm-usage"]


@contextmanager
def serving(settings: ServeSettings) -> Iterator[str]:
    """The address of a server for `settings`, on a free port."""
    with bound("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
        app = create_app(replace(settings, port=port))
        server = server_of(app)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{port}"
        finally:
            server.should_exit = True
            thread.join(10)


@contextmanager
def chromium() -> Iterator[Any]:
    """A headless browser; skips where there is none."""
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        try:
            yield browser
        finally:
            browser.close()


class Watch:
    """What goes wrong on a page: errors of scripts, words on the console, requests to others, failed answers."""

    def __init__(self, page: Any, base: str) -> None:
        self.wrong: list[str] = []
        page.on("pageerror", lambda error: self.wrong.append(f"error: {error}"))
        page.on("console", lambda said: self.wrong.append(said.text) if said.type in ("error", "warning") else None)
        page.on("request", lambda asked: None if asked.url.startswith(base) else self.wrong.append(asked.url))
        page.on("response", lambda got: self.wrong.append(f"{got.status} {got.url}") if got.status >= 400 else None)


@contextmanager
def watched_page(browser: Any, base: str, look: tuple[int, int, str] = (1280, 900, "light")) -> Iterator[Any]:
    """A page of the server on a screen of (width, height, colour scheme), on which nothing may go wrong."""
    width, height, scheme = look
    context = browser.new_context(base_url=base, viewport={"width": width, "height": height}, color_scheme=scheme)
    page = context.new_page()
    page.set_default_timeout(20_000)
    watch = Watch(page, base)
    yield page
    assert page.evaluate("typeof window.pwned") == "undefined"
    context.close()
    assert watch.wrong == []


def until(page: Any, holds: str | Callable[[], bool], seconds: float = 10.0) -> None:
    """Wait until a script's expression, or a function, is true. Playwright's own way needs `eval`, which the policy
    forbids."""
    end = time.monotonic() + seconds
    while not (page.evaluate(holds) if isinstance(holds, str) else holds()):
        assert time.monotonic() < end, f"{holds} did not become true"
        page.wait_for_timeout(25)


def overflow(page: Any) -> list[str]:
    """What is wider than the page, unless it lies in something that scrolls."""
    found: list[str] = page.evaluate("""() => {
        const wide = document.documentElement.clientWidth;
        if (document.documentElement.scrollWidth <= wide) return [];
        const scrolls = (node) => node && (/auto|scroll|hidden|clip/.test(getComputedStyle(node).overflowX)
            || scrolls(node.parentElement));
        return [...document.body.querySelectorAll("*")]
            .filter((node) => node.getBoundingClientRect().right > wide + 1 && !scrolls(node.parentElement))
            .map((node) => `${node.tagName}.${node.className}`).concat(`${document.documentElement.scrollWidth}`);
    }""")
    return found
