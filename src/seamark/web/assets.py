"""The files of `web/static`, read once: styles and scripts of this package, and nothing else that lies on the disk."""

from __future__ import annotations

import hashlib
from functools import cache
from importlib import resources
from typing import NamedTuple

TYPES = {"css": "text/css; charset=utf-8", "js": "text/javascript; charset=utf-8", "svg": "image/svg+xml"}


class Asset(NamedTuple):
    """A file, its media type, and the digest that its URL carries."""

    content: bytes
    media_type: str
    digest: str


class Assets:
    """Styles and scripts by name."""

    @staticmethod
    def get(name: str) -> Asset | None:
        """The file of that name; None: there is none."""
        return _all().get(name)

    @staticmethod
    def url(name: str) -> str:
        """Its URL, which changes when the file does, so that browsers may keep it for good."""
        return f"/static/{name}?v={_all()[name].digest}"


@cache
def _all() -> dict[str, Asset]:
    folder = resources.files("seamark.web") / "static"
    found = {}
    for file in folder.iterdir():
        kind = file.name.rpartition(".")[2]
        if file.is_file() and kind in TYPES:
            content = file.read_bytes()
            found[file.name] = Asset(content, TYPES[kind], hashlib.sha256(content).hexdigest()[:16])
    return found
