"""Which number format is chosen for the encoder's product, with the clock in our hands."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from seamark.sae import FitConfig, SAEConfig, measure
from seamark.sae.config import Encoding

D_IN, D_SAE = 512, 4096
CPU = torch.device("cpu")
TOPK = SAEConfig(d_in=D_IN, d_sae=D_SAE, k=8)
RELU = SAEConfig(d_in=D_IN, d_sae=D_SAE, activation="relu")
HOW = FitConfig(batch_size=64)


@pytest.fixture(autouse=True)
def _forget() -> Iterator[None]:
    """What was measured here is no measurement."""
    measure._fastest.cache_clear()
    yield
    measure._fastest.cache_clear()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """Sets the seconds that each format takes, one a round or always the same; gives what is measured, in order."""

    def set_to(int8_here: bool = True, **seconds: Any) -> list[str]:
        measured: list[str] = []

        def timed(encoding: Any) -> float:
            measured.append(encoding)
            mine = seconds[encoding]
            return mine if isinstance(mine, float) else mine[measured.count(encoding) - 1]

        monkeypatch.setattr(measure, "int8_usable", lambda device: int8_here)
        monkeypatch.setattr(measure, "_selection", lambda W, x, k, encoding: encoding)
        monkeypatch.setattr(measure, "_timed", timed)
        return measured

    return set_to


@pytest.mark.parametrize(("seconds", "fastest"), [
    ({"fp32": 1.0, "bf16": 0.5, "int8": 0.3}, "int8"),
    ({"fp32": 1.0, "bf16": 0.3, "int8": 0.5}, "bf16"),
    ({"fp32": 1.0, "bf16": 2.0, "int8": 3.0}, "fp32"),
    ({"fp32": 1.0, "bf16": 0.95, "int8": 0.97}, "fp32"),  # not worth it
    ({"fp32": 1.0, "bf16": [9.0, 0.5, 9.0], "int8": [0.8, 0.8, 0.8]}, "bf16"),  # the best round counts
])  # fmt: skip
def test_the_fastest_is_chosen(seconds: dict[str, Any], fastest: str, clock: Callable[..., list[str]]) -> None:
    measured = clock(**seconds)
    assert measure.choose_encoding(TOPK, HOW, CPU) == fastest
    assert measured == ["fp32", "bf16", "int8"] * measure.ROUNDS  # in turns


@pytest.mark.parametrize("encoding", ["fp32", "bf16", "int8"])
def test_what_is_asked_for_is_not_measured(encoding: Encoding, clock: Callable[..., list[str]]) -> None:
    measured = clock(fp32=1.0, bf16=0.1, int8=0.5)
    assert measure.choose_encoding(TOPK, FitConfig(encoder=encoding), CPU) == encoding
    assert measured == []


def test_int8_is_for_the_k_largest_and_where_torch_has_it(clock: Callable[..., list[str]]) -> None:
    clock(fp32=1.0, bf16=0.5, int8=0.1)
    assert measure.choose_encoding(RELU, HOW, CPU) == "bf16"
    batch = SAEConfig(d_in=D_IN, d_sae=D_SAE, k=8, activation="batch_topk")
    assert measure.choose_encoding(batch, HOW, CPU) == "bf16"
    measure._fastest.cache_clear()
    clock(int8_here=False, fp32=1.0, bf16=0.5)
    assert measure.choose_encoding(TOPK, HOW, CPU) == "bf16"


def test_a_shape_is_measured_once_in_a_process_and_small_ones_never(clock: Callable[..., list[str]]) -> None:
    clock(fp32=1.0, bf16=0.5, int8=0.9)
    assert measure.choose_encoding(TOPK, HOW, CPU) == "bf16"
    measured = clock(fp32=0.1, bf16=0.5, int8=0.9)
    assert measure.choose_encoding(TOPK, HOW, CPU) == "bf16"
    assert measured == []
    wider = SAEConfig(d_in=D_IN, d_sae=2 * D_SAE, k=8)
    assert measure.choose_encoding(wider, HOW, CPU) == "fp32"
    assert len(measured) == 3 * measure.ROUNDS
    measured = clock(fp32=1.0, bf16=0.1, int8=0.1)
    assert measure.choose_encoding(SAEConfig(d_in=64, d_sae=512, k=8), HOW, CPU) == "fp32"
    assert measured == []


def test_a_real_measurement_runs_every_format(monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock is the machine's: whichever wins, each format was run on the shape asked for."""
    made = []
    whole = measure._selection

    def selection(W: torch.Tensor, x: torch.Tensor, k: int, encoding: Encoding) -> Callable[[], object]:
        made.append((tuple(W.shape), tuple(x.shape), k, encoding))
        return whole(W, x, k, encoding)

    monkeypatch.setattr(measure, "_selection", selection)
    assert measure.choose_encoding(TOPK, HOW, CPU) in ("fp32", "bf16", "int8")
    formats = ["fp32", "bf16"] + ["int8"] * measure.int8_usable("cpu")
    assert made == [((D_SAE, D_IN), (64, D_IN), 8, encoding) for encoding in formats]
