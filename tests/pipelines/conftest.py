"""One finished run of the recipe on a tiny BERT, which the tests here copy, change and compare with."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
import trl

from seamark.pipelines import runner
from seamark.pipelines.recipe import check_recipe
from seamark.run import Run
from seamark.show import drawing, exports
from seamark.show.figures import Chart
from tiny_run import Finished, recipe_data, write_model, write_pairs


@pytest.fixture(scope="package", autouse=True)
def _quick_garbage() -> Iterator[None]:
    """Every stage and every training collects garbage, and would look through all of torch and transformers for it."""
    assert all((torch, transformers, trl))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gc, "collect", lambda *_: 0)
        yield


@pytest.fixture(scope="package", autouse=True)
def _one_figure_is_drawn() -> Iterator[None]:
    """A PDF's fonts take most of the time of a result: only the first chart is drawn, the others stand for it.

    Equal charts still give equal bytes, other charts others (tests/show has the drawing).
    """
    known: dict[str, Any] = {}

    def drawn(chart: Chart) -> Any:
        key = repr(chart)
        if key not in known:
            known[key] = (key.encode(), key.encode()) if known else drawing.drawn(chart)
        return known[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exports, "drawn", drawn)
        yield


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[Run]:
    """Every `Run` that is opened, as it is opened."""
    opened: list[Run] = []

    class Spy(Run):
        def __init__(self, root: Path) -> None:
            super().__init__(root)
            opened.append(self)

    monkeypatch.setattr(runner, "Run", Spy)
    return opened


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    base = tmp_path_factory.mktemp("safer")
    model, pairs = write_model(base / "model", "bert"), write_pairs(base / "pairs")
    folder, result = runner.run_safer(check_recipe(recipe_data(base / "run", model, pairs), "test"))
    return Finished(folder, model, pairs, result)


@pytest.fixture
def again(finished: Finished, runs: list[Run], tmp_path: Path) -> Callable[..., Run]:
    """Run the recipe again in a copy of the finished folder, with changes; the `Run`, with what it built."""

    def go(**changes: Any) -> Run:
        folder = tmp_path / "run"
        if not folder.exists():
            finished.copy(folder)
        runner.run_safer(check_recipe(finished.data(folder, **changes), "test"))
        return runs[-1]

    return go
