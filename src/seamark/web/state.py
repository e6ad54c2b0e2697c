"""What every router is given: settings, atlas, the model if there is one, scans, runs, and how a page is made."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar
from urllib.parse import quote

from fastapi import Request
from fastapi.responses import HTMLResponse

from seamark import __version__
from seamark.atlas.store import Atlas
from seamark.show.html import render
from seamark.web.assets import Assets
from seamark.web.problems import RefusedError

if TYPE_CHECKING:
    from seamark.atlas.records import Overview
    from seamark.atlas.writing import AtlasWriter
    from seamark.features import Scan
    from seamark.model import HookedModel
    from seamark.sae import SparseAutoencoder

THEMES = ("auto", "light", "dark")
THEME_COOKIE, REVEAL_COOKIE = "seamark_theme", "seamark_reveal"
COMPUTES = ("/api/v1/inspect", "/api/v1/trajectory")
"""POST requests below these paths compute and store nothing: a read-only server takes them too."""
T = TypeVar("T")


@dataclass(frozen=True)
class ServeSettings:
    """What `seamark serve` was asked for."""

    atlas: Path
    model: str | None = None
    """A folder or a Hub name; with `saes`, texts can be inspected."""
    saes: Mapping[str, str] = field(default_factory=dict)
    """{id in the atlas: folder}"""
    scans: tuple[Path, ...] = ()
    """Folders of scans whose pairs can be looked at."""
    pairs: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """{group: files} of the scans' pairs: where their sources and categories come from."""
    features: tuple[Path, ...] = ()
    """Feature sets that speak for and against pairs, besides those found by contrast."""
    scores: tuple[Path, ...] = ()
    """Files of pair scores to rank pairs by."""
    runs: Path | None = None
    """The folder that run folders lie in."""
    host: str = "127.0.0.1"
    port: int = 8700
    read_only: bool = False
    """Refuse every write; the atlas is opened for reading only."""
    token: str | None = None
    """What a client has to show; None: nothing (on the own machine only)."""
    allow_hosts: tuple[str, ...] = ()
    """Further names under which the server may be asked, without a port."""
    max_body: int = 1 << 20
    """Bytes of a request's body."""
    max_prompt: int = 20_000
    """Characters of a text to inspect."""
    timeout: float = 30.0
    """Seconds until a request is given up."""
    compute_timeout: float = 600.0
    """The same for requests below `COMPUTES`."""


class NavItem(NamedTuple):
    """A page of the navigation."""

    path: str
    title: str


@dataclass(frozen=True)
class Site:
    """What the base template (`atlas/base.html`) needs to know; called `site` in templates."""

    nav: tuple[NavItem, ...]
    path: str
    """Of the page that is asked for."""
    theme: str
    """auto, light or dark"""
    reveal: bool
    """Show sensitive text at once."""
    read_only: bool
    version: str
    assets: Assets
    inspect: bool
    """Texts can be tried out."""

    def asset(self, name: str) -> str:
        """The URL of a file of `web/static`, which changes when the file does."""
        return self.assets.url(name)

    def feature(self, sae: str, latent: int) -> str:
        """The URL of a feature's page."""
        return feature_path(sae, latent)

    def current(self, item: NavItem) -> bool:
        """Whether the page asked for lies under this item."""
        return self.path == item.path or (item.path != "/" and self.path.startswith(f"{item.path}/"))


@dataclass(frozen=True)
class State:
    """What every router gets. Make pages with `page`, and write with `writer`; never open the atlas elsewhere."""

    settings: ServeSettings
    atlas: Atlas
    """Read-only; safe with many threads."""
    model: HookedModel | None = None
    """The model of `--model`, loaded; None: there is none, and nothing can be inspected."""
    suite: Mapping[str, SparseAutoencoder] = field(default_factory=dict)
    """{SAE id as in the atlas: autoencoder}; empty without a model."""
    scans: Mapping[str, Scan] = field(default_factory=dict)
    """{name, from the folder's: scan}"""
    runs: Path | None = None
    """The folder of run folders."""
    nav: tuple[NavItem, ...] = ()
    """Pages that are there, in the order of the navigation."""
    assets: Assets = field(default_factory=Assets)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False, compare=False)
    _making: threading.RLock = field(default_factory=threading.RLock, repr=False, compare=False)
    _held: dict[str, tuple[Any, Any]] = field(default_factory=dict, repr=False, compare=False)

    @cached_property
    def can_inspect(self) -> bool:
        """There is a model with autoencoders, and a page for it."""
        return any(item.path == "/inspect" for item in self.nav)

    @contextmanager
    def writer(self) -> Iterator[AtlasWriter]:
        """The atlas, to be written to: one request at a time.

        Raises:
            RefusedError: the server is read-only.
        """
        from seamark.atlas.writing import AtlasWriter

        if self.settings.read_only:
            raise RefusedError("this server is read-only", fix="Start it without --read-only to change the atlas")
        with self._lock, AtlasWriter.open(self.settings.atlas) as writer:
            yield writer

    def stamp(self) -> tuple[int, ...]:
        """Changes whenever the atlas does."""
        found: list[int] = []
        for file in (self.settings.atlas, Path(f"{self.settings.atlas}-wal")):
            with suppress(FileNotFoundError):  # a writer removes its log when it is done
                about = file.stat()
                found += (about.st_mtime_ns, about.st_size)
        return tuple(found)

    def cached(self, key: str, make: Callable[[], T]) -> T:
        """What `make` gave when the atlas was as it is now; made once and again whenever the atlas has changed."""
        held = self._held.get(key)
        if held is None or held[0] != self.stamp():
            with self._making:  # whoever else asks meanwhile waits for it
                held = self._held.get(key)
                stamp = self.stamp()
                if held is None or held[0] != stamp:
                    if len(self._held) > 64:  # keys may hold names from requests
                        self._held.clear()
                    held = self._held[key] = stamp, make()
        value: T = held[1]
        return value

    def overview(self) -> Overview:
        """What is in the atlas."""
        return self.cached("overview", self.atlas.overview)

    def page(self, request: Request, template: str, /, status: int = 200, **data: Any) -> HTMLResponse:
        """A page from a template of `show/templates`, which extends `atlas/base.html`.

        Templates know `site` (`Site`) besides `data`. The policy of all pages forbids inline scripts and styles, also
        `style=` attributes: shades are classes (`atlas/tokens.html`), lengths are attributes of SVG.
        """
        theme = request.cookies.get(THEME_COOKIE, "auto")
        site = Site(
            nav=self.nav, path=request.scope["path"], theme=theme if theme in THEMES else "auto", assets=self.assets,
            reveal=request.cookies.get(REVEAL_COOKIE) == "1", read_only=self.settings.read_only, version=__version__,
            inspect=self.can_inspect,
        )  # fmt: skip
        headers = {"Cache-Control": "private, no-cache"}
        return HTMLResponse(render(template, site=site, **data), status_code=status, headers=headers)


def feature_path(sae: str, latent: int) -> str:
    """The permanent URL of a feature: /features/{SAE id as one escaped segment}/{latent}."""
    return f"/features/{quote(sae, safe='', errors='replace')}/{latent}"
