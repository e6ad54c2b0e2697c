"""The web application: an atlas, and whatever else there is to show, behind the guards of `security`."""

from __future__ import annotations

import importlib
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException

from seamark import __version__
from seamark.atlas.store import Atlas
from seamark.errors import ConfigError, SeamarkError
from seamark.web import api, pages
from seamark.web.answers import tell
from seamark.web.assets import Assets
from seamark.web.hosts import is_loopback
from seamark.web.problems import BY_STATUS, MethodError, NotFoundError, RequestError
from seamark.web.queries import invalid
from seamark.web.security import guard
from seamark.web.state import NavItem, ServeSettings, State

if TYPE_CHECKING:
    from seamark.features import Scan
    from seamark.model import HookedModel
    from seamark.sae import SparseAutoencoder

FOREVER = "public, max-age=31536000, immutable"
Handler = Callable[[Request, Exception], Awaitable[Response]]


def create_app(settings: ServeSettings) -> FastAPI:
    """The application; call its `state.seamark` (`State`) what the routers get.

    Raises:
        ConfigError: no atlas, a model without autoencoders or the other way round, or an address that other machines
            reach without a token.
        SeamarkError: atlas, model, autoencoders or scans cannot be opened.
    """
    state = open_state(settings)
    app = FastAPI(
        title="Seamark atlas", version=__version__, openapi_url=api.SCHEMA, docs_url=None, redoc_url=None,
        redirect_slashes=False, generate_unique_id_function=_operation_id,
        description="Explained features of language models and reward models, and evidence about them.",
    )  # fmt: skip
    app.state.seamark = state
    for router in (_static(state), api.router(state), *_further(state), pages.router(state)):
        app.include_router(router)
    app.add_exception_handler(SeamarkError, _handler(state, _seamark_error))
    app.add_exception_handler(RequestValidationError, _handler(state, _validation_error))
    app.add_exception_handler(HTTPException, _handler(state, _http_error))
    app.add_middleware(_Guarded, state=state)
    return app


def open_state(settings: ServeSettings) -> State:
    """What the routers get: everything that `settings` names, opened."""
    if not is_loopback(settings.host) and settings.token is None:
        raise ConfigError(f"other machines reach {settings.host}, and there is no token", where="--host",
                          fix="Give a token, or serve on 127.0.0.1")  # fmt: skip
    if (settings.model is None) != (not settings.saes):
        raise ConfigError("a model and its autoencoders go together", where="--model, --sae", fix="Give both, or none")
    if settings.runs is not None and not settings.runs.is_dir():
        raise ConfigError("there is no such folder", where=str(settings.runs), fix="Check --runs")
    model, suite = _models(settings)
    nav = [NavItem("/", "Overview"), NavItem("/features", "Features"), NavItem("/landscape", "Landscape")]
    nav += [NavItem(path, title) for path, title, there in (
        ("/inspect", "Inspect", model is not None), ("/pairs", "Pairs", bool(settings.scans)),
        ("/runs", "Runs", settings.runs is not None)) if there]  # fmt: skip
    return State(settings=settings, atlas=Atlas.open(settings.atlas), model=model, suite=suite,
                 scans=_scans(settings.scans), runs=settings.runs, nav=tuple(nav))  # fmt: skip


def _models(settings: ServeSettings) -> tuple[HookedModel | None, Mapping[str, SparseAutoencoder]]:
    if settings.model is None:
        return None, {}
    from seamark.model import load_model
    from seamark.sae import SparseAutoencoder

    return load_model(settings.model), {n: SparseAutoencoder.from_pretrained(p) for n, p in settings.saes.items()}


def _scans(folders: tuple[Path, ...]) -> dict[str, Scan]:
    """{name: scan}, by the folder's name, or its path where two have the same."""
    if not folders:
        return {}
    from seamark.features import Scan

    found: dict[str, Scan] = {}
    for folder in folders:
        name = folder.resolve().name or "scan"
        if name in found:
            name = f"{folder.resolve().parent.name}-{name}"
        if name in found:
            raise ConfigError("two scans have the same name", where=str(folder), fix="Rename one of the folders")
        found[name] = Scan.open(folder)
    return found


def _further(state: State) -> list[APIRouter]:
    """Routers of the pages that need more than the atlas; imported only where they are needed."""
    modules = {"/inspect": "inspecting", "/pairs": "pairs", "/runs": "runs"}
    there = [modules[item.path] for item in state.nav if item.path in modules]
    return [importlib.import_module(f"seamark.web.{name}").router(state) for name in there]


def _static(state: State) -> APIRouter:
    routes = APIRouter(include_in_schema=False)

    @routes.get("/static/{name:path}")
    def static(request: Request, name: str, v: str = "") -> Response:
        asset = Assets.get(name)
        if asset is None:
            raise NotFoundError("there is no such file", where=name[:200])
        tag = f'"{asset.digest}"'
        headers = {"ETag": tag, "Cache-Control": FOREVER if v == asset.digest else "no-cache"}
        if request.headers.get("if-none-match") == tag:
            return Response(status_code=304, headers=headers)
        return Response(asset.content, media_type=asset.media_type, headers=headers)

    return routes


def _seamark_error(state: State, request: Request, error: SeamarkError) -> Response:
    return tell(state, request, error)


def _validation_error(state: State, request: Request, error: RequestValidationError) -> Response:
    return tell(state, request, invalid(error.errors()))


def _http_error(state: State, request: Request, error: HTTPException) -> Response:
    if error.status_code == NotFoundError.status:
        return tell(state, request, NotFoundError("there is no such page", where=str(request.scope["path"])[:200]))
    if error.status_code == MethodError.status:
        wrong: RequestError = MethodError("this cannot be asked for in that way", where=request.method)
    else:
        wrong = BY_STATUS.get(error.status_code, RequestError)("this request cannot be read", fix="Check its body")
    return tell(state, request, wrong, error.headers)


def _handler(state: State, answer: Callable[[State, Request, Any], Response]) -> Any:
    async def handle(request: Request, error: Exception) -> Response:
        return answer(state, request, error)

    return handle


def _operation_id(route: APIRoute) -> str:
    return f"{min(route.methods or {'get'}).lower()}_{route.name}"


class _Guarded:
    """`guard` in the form that `add_middleware` takes."""

    def __init__(self, app: Any, state: State) -> None:
        self.app = guard(app, state)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await self.app(scope, receive, send)
