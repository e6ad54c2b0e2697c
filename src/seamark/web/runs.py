"""The pages on which run folders are looked at: what each was asked and found, its report, and two beside each other.

Reports are pages of their own, made elsewhere: they are served with a policy that lets them be styled and nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, NamedTuple
from urllib.parse import quote

from fastapi import APIRouter, Query, Request
from fastapi.responses import HTMLResponse, Response

from seamark.errors import DataError
from seamark.run.entries import Entry
from seamark.run.looking import Comparison, Difference, RunCard, RunView, compare_runs, list_runs, run_names
from seamark.run.looking import read_report as report_of
from seamark.run.looking import read_run as run_of
from seamark.web.answers import json_answer
from seamark.web.api import ROOT, WRONG
from seamark.web.problems import NotFoundError
from seamark.web.state import State

REPORT_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'; sandbox"
)
"""Of a report: its own styles and figures; no scripts, no forms, no network, and none of this server's cookies."""
Name = Annotated[str, Query(max_length=300, description="Name of a run folder.")]


class Listed(NamedTuple):
    """A run of a list, with its address."""

    card: RunCard
    path: str
    report: str | None


def router(state: State) -> APIRouter:
    """The pages below /runs, and run folders in the API (where /runs are the runs that an atlas came from)."""
    routes = APIRouter()
    _add_pages(routes, state)
    _add_api(routes, state)
    return routes


def _add_pages(routes: APIRouter, state: State) -> None:
    @routes.get("/runs", include_in_schema=False)
    def runs(request: Request) -> HTMLResponse:
        found = [_listed(card) for card in list_runs(_root(state))]
        return state.page(request, "atlas/runs.html", runs=found)

    @routes.get("/runs/{name}", include_in_schema=False)
    def run(request: Request, name: str, a: Name = "", b: Name = "") -> HTMLResponse:
        if name == "compare" and (a or b):
            return compare_page(state, request, a, b)
        view = read_run(state, name)
        others = [other for other in run_names(_root(state)) if other != name]
        return state.page(request, "atlas/run.html", view=view, run=_listed(view.card), others=others)

    @routes.get("/runs/{name}/report", include_in_schema=False)
    def report(name: str) -> Response:
        headers = {"Content-Security-Policy": REPORT_POLICY, "Cache-Control": "private, no-cache"}
        return Response(read_report(state, name), media_type="text/html; charset=utf-8", headers=headers)


def _add_api(routes: APIRouter, state: State) -> None:
    @routes.get(f"{ROOT}/run-folders", response_model=list[RunCard], responses=WRONG, summary="Run folders")
    def run_folders() -> Response:
        return json_answer(list_runs(_root(state)))

    @routes.get(f"{ROOT}/run-folder", response_model=RunView, responses=WRONG, summary="What lies in a run folder")
    def run_folder(name: Name) -> Response:
        return json_answer(read_run(state, name))

    @routes.get(f"{ROOT}/run-comparison", response_model=Comparison, responses=WRONG, summary="Two runs compared")
    def run_comparison(a: Name, b: Name) -> Response:
        return json_answer(compared(state, a, b))


def compare_page(state: State, request: Request, a: str, b: str) -> HTMLResponse:
    """Two runs beside each other; with one alone, the question which the other is."""
    names = run_names(_root(state))
    found = compared(state, a, b) if a and b else None
    results = () if found is None else found.result
    return state.page(
        request, "atlas/compare.html", a=a, b=b, names=names, found=found, changed=[d for d in results if not d.same],
        same=[d for d in results if d.same], runs=() if found is None else (_listed(found.a), _listed(found.b)),
        differences=_differences(results),
    )  # fmt: skip


def read_run(state: State, name: str) -> RunView:
    """A run folder. `NotFoundError` where there is none of that name."""
    _known(state, name)
    return run_of(_root(state), name)


def read_report(state: State, name: str) -> bytes:
    """A run's report; errors as of `read_run`, and where it has none."""
    _known(state, name)
    try:
        return report_of(_root(state), name)
    except DataError as e:
        raise NotFoundError(e.what, where=e.where, fix="Reports are made by `seamark run` and `seamark demo`") from None


def compared(state: State, a: str, b: str) -> Comparison:
    """Two run folders; errors as of `read_run`."""
    for name in (a, b):
        _known(state, name)
    return compare_runs(_root(state), a, b)


def _known(state: State, name: str) -> None:
    if name not in run_names(_root(state)):
        raise NotFoundError("there is no such run folder", where=name[:200], fix="Choose one of the list")


def _root(state: State) -> Path:
    if state.runs is None:
        raise NotFoundError("this server shows no run folders", fix="Start it with --runs FOLDER")
    return state.runs


def _listed(card: RunCard) -> Listed:
    path = f"/runs/{quote(card.name, safe='')}"
    return Listed(card, path, f"{path}/report" if card.report else None)


def _differences(found: Sequence[Difference]) -> dict[str, float]:
    """{name: b − a} of numbers that both have and that differ."""
    both = ((d.name, _value(d.a), _value(d.b)) for d in found)
    return {name: b - a for name, a, b in both if a is not None and b is not None and a != b}


def _value(entry: Entry | None) -> float | None:
    return None if entry is None or entry.value is None else entry.value.value
