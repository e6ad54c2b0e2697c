"""A tiny BERT, pairs and a recipe, as the command line gets them."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest
import torch
import transformers
import trl

from tiny import tiny_folder
from tiny_run import Place, write_model, write_pairs


@pytest.fixture(scope="package", autouse=True)
def _quick_garbage() -> Iterator[None]:
    assert all((torch, transformers, trl))
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    root = tmp_path_factory.mktemp("cli")
    return Place(
        write_model(root / "base"), tiny_folder(root / "reward", "bert"), write_model(root / "causal", "llama"),
        write_pairs(root / "pairs"),
    )  # fmt: skip
