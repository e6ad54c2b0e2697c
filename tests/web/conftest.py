"""One small atlas for all tests of the pages, which only read it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from live_pages import chromium
from made_atlas import BASE, app_of, make_atlas
from made_review import Made, make_review
from starlette.testclient import TestClient


@pytest.fixture(scope="session")
def atlas_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_atlas(tmp_path_factory.mktemp("atlas") / "made.db")


@pytest.fixture(scope="session")
def app(atlas_file: Path) -> Any:
    return app_of(atlas_file)


@pytest.fixture
def web(app: Any) -> TestClient:
    """A browser without scripts, whose errors are answers."""
    return TestClient(app, base_url=BASE, raise_server_exceptions=False, follow_redirects=False)


@pytest.fixture(scope="session")
def review(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Models, a scan, an atlas and runs. Who marks pairs takes a copy of the atlas."""
    return make_review(tmp_path_factory.mktemp("review"))


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as found:
        yield found
