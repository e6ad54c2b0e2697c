"""The Triton kernels, each way they can be checked: in Triton's interpreter, by compiling them, on a GPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from seamark.errors import ConfigError
from seamark.sae import kernels, ops

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parents[1]))
needs_triton = pytest.mark.skipif(find_spec("triton") is None, reason="Triton is made for Linux only")


def python(*arguments: str | Path, **environment: str) -> str:
    """What `python …` prints; the test fails with it where that does."""
    kept = {k: v for k, v in os.environ.items() if k not in ("TRITON_INTERPRET", kernels.VARIABLE)}
    done = subprocess.run(
        [sys.executable, *arguments],
        env=kept | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def check_all(folder: Path, **environment: str) -> None:
    """In a process of its own: Triton's choice between interpreter and compiler is made once, when it is imported."""
    said = python(
        "-m", "pytest", HERE / "kernel_checks.py", "-p", "no:cacheprovider", "--basetemp", folder / "checks",
        OMP_NUM_THREADS="1", TRITON_CACHE_DIR=str(folder / "triton"), **environment,
    )  # fmt: skip
    assert " passed" in said
    assert " skipped" not in said


@needs_triton
def test_kernels_equal_the_torch_path_in_the_interpreter(tmp_path: Path) -> None:
    check_all(tmp_path, TRITON_INTERPRET="1")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_kernels_equal_the_torch_path_on_a_gpu(tmp_path: Path) -> None:
    assert kernels.usable()
    check_all(tmp_path)


@needs_triton
def test_kernels_compile_for_gpus_without_spilling(tmp_path: Path) -> None:
    """The interpreter lets pass what the compiler refuses; many more registers a thread would halve the occupancy."""
    said = python(HERE / "kernel_compile.py", TRITON_CACHE_DIR=str(tmp_path))
    found = [json.loads(line) for line in said.splitlines() if line.startswith("{")]
    names = {"_find_candidates", "_select", "_weighted_rows", "_pair_products", "_segment_sums"}
    assert {(kernel["kernel"], kernel["capability"]) for kernel in found} == {(n, c) for n in names for c in (80, 90)}
    for kernel in found:
        assert kernel["spilled"] == 0, kernel
        assert kernel["registers"] <= 144, kernel
        assert kernel["shared"] <= 48 << 10, kernel
        assert not kernel["atomics"], kernel


def test_without_cuda_there_are_no_kernels_and_triton_is_not_imported() -> None:
    said = python("-c", "import sys; from seamark.sae import kernels; print(kernels.usable(), 'triton' in sys.modules)",
                  CUDA_VISIBLE_DEVICES="")  # fmt: skip
    assert said.split() == ["False", "False"]


@pytest.fixture
def pretended_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(kernels.VARIABLE, raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(kernels, "_works", lambda: True)


@pytest.mark.usefixtures("pretended_cuda")
def test_kernels_are_for_cuda_tensors_without_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    class OnCuda:
        is_cuda = True

        def __init__(self, requires_grad: bool = False) -> None:
            self.requires_grad = requires_grad

    assert kernels.usable()
    assert kernels.usable(OnCuda(), OnCuda())
    assert not kernels.usable(OnCuda(), torch.ones(1))
    assert not kernels.usable(OnCuda(requires_grad=True))
    with torch.no_grad():
        assert kernels.usable(OnCuda(requires_grad=True))
    monkeypatch.setenv(kernels.VARIABLE, "torch")
    assert not kernels.usable(OnCuda())
    monkeypatch.setenv(kernels.VARIABLE, "Triton")
    with pytest.raises(ConfigError, match="SEAMARK_KERNELS is 'Triton'"):
        kernels.usable(OnCuda())


@pytest.mark.skipif(torch.cuda.is_available(), reason="with CUDA they do work")
def test_kernels_that_do_not_work_are_left_out_with_one_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(kernels.VARIABLE, raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    kernels._works.cache_clear()
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        answers = [kernels.usable(), kernels.usable()]
    kernels._works.cache_clear()
    assert answers == [False, False]
    assert len(said) == 1
    assert "Triton kernels are not usable (" in str(said[0].message)


def test_other_names_are_not_there() -> None:
    with pytest.raises(AttributeError, match="no attribute 'sort'"):
        kernels.sort  # noqa: B018


def test_the_torch_path_serves_where_there_is_no_gpu() -> None:
    if not torch.cuda.is_available():
        assert not kernels.usable()
    W = torch.eye(3)
    assert torch.equal(ops.decode_rows(torch.tensor([[2]]), torch.ones(1, 1), W), W[2:])


def test_the_benchmark_refuses_without_a_gpu(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    from benchmarks import kernels as script

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert script.main([], tmp_path) == 2
    assert "no CUDA device" in capsys.readouterr().err
    for wrong in (["--shapes", "XL"], ["--runs", "0"], ["--runs", "many"]):
        with pytest.raises(SystemExit, match="2"):
            script.main(wrong, tmp_path)
    assert not list(tmp_path.iterdir())


def test_the_benchmark_says_which_kernel_is_wrong(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    from benchmarks import harness
    from benchmarks import kernels as script

    row = {"variant": "S a", "shape": "S", "kernel": "a", "n": 2, "error": 1e-3}
    asked = {}

    def measure(shapes: dict[str, script.Shape], runs: int, device: str) -> harness.Result:
        asked.update(shapes=list(shapes), runs=runs, device=device)
        return harness.Result("kernels", "about", [], [row, row | {"kernel": "b", "error": 1e-8}])

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(kernels, "usable", lambda: True)
    monkeypatch.setattr(script, "measure", measure)
    monkeypatch.setattr(harness, "machine", dict)
    assert script.main(["--shapes", "S", "M", "--runs", "2"], tmp_path) == 1
    assert asked == {"shapes": ["S", "M"], "runs": 2, "device": "cuda"}
    assert capsys.readouterr().err == "kernels: S a is off by 0.001\n"
    assert (tmp_path / "kernels.json").exists()
