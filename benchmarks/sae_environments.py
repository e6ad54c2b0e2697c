"""A virtual environment for each library that is compared, made when first needed and kept."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

from benchmarks import harness
from benchmarks.harness import BenchmarkError
from seamark.run import digest, file_digest

FOLDER = harness.SCRATCH / "venvs"
CONSTRAINTS = harness.ROOT / "constraints.txt"
TIMEOUT_S = 1800.0
UNWANTED = {"dictionary-learning": ("torchvision",)}
"""nnsight pulls in a build for CUDA, which fails to import beside a CPU build of torch; training never uses it."""
IMPORTS = {"sae-lens": "sae_lens", "sparsify": "sparsify", "dictionary-learning": "dictionary_learning"}


def requirements(name: str) -> Path:
    return harness.ROOT / "benchmarks" / f"requirements-{name}.txt"


def torch_pin() -> str:
    """The torch everybody gets: the version Seamark's own tests ran with."""
    return next(line for line in CONSTRAINTS.read_text().splitlines() if line.startswith("torch=="))


def fingerprint(name: str) -> str:
    """Changes with what is installed."""
    return digest([torch_pin(), file_digest(requirements(name)), list(UNWANTED.get(name, ()))]) if name else torch_pin()


def prepare(
    names: Iterable[str], say: Callable[[str], None] = lambda _: None, folder: Path = FOLDER
) -> tuple[dict[str, str], dict[str, str]]:
    """{name: python} of the environments, and {name: reason} of those that cannot be had."""
    found, missing = {}, {}
    for name in names:
        try:
            found[name] = python_of(name, say, folder)
        except BenchmarkError as e:
            missing[name] = f"{name} cannot be installed: {e}"
            say(missing[name])
    return found, missing


def python_of(name: str, say: Callable[[str], None], folder: Path = FOLDER) -> str:
    """The interpreter of an environment, which is made unless it is there with the same requirements."""
    home = folder / name
    python, done = home / "bin" / "python", home / "installed"
    if done.exists() and done.read_text() == fingerprint(name) and python.exists():
        return str(python)
    say(f"installing {name}")
    done.unlink(missing_ok=True)
    if not python.exists():
        _run([sys.executable, "-m", "venv", str(home)])
    pip = [str(python), "-m", "pip", "--quiet", "--disable-pip-version-check"]
    _run([*pip, "install", torch_pin()])  # first: a later resolution would fetch gigabytes of CUDA
    _run([*pip, "install", torch_pin(), "-r", str(requirements(name))])
    if UNWANTED.get(name):
        _run([*pip, "uninstall", "--yes", *UNWANTED[name]])
    _run([str(python), "-c", f"import {IMPORTS[name]}"])
    done.write_text(fingerprint(name))
    return str(python)


def _run(command: list[str]) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as e:
        raise BenchmarkError(harness.without_paths(str(e))[:200]) from None
    if done.returncode:
        lines = [line for line in done.stderr.strip().splitlines() if line.strip()] or ["no output"]
        raise BenchmarkError(harness.without_paths(lines[-1])[:200])
