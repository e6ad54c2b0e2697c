"""What holds the house together: who imports whom, how big a module gets, which formats are read, what is shipped."""

from __future__ import annotations

import ast
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from importlib import resources
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
PACKAGE = REPOSITORY / "src" / "seamark"
MODULES = sorted(PACKAGE.rglob("*.py"))
MAX_LINES = 400
PICKLED_IN_MEMORY = {"run/workers.py"}
"""Looks whether an exception survives the way between processes, as the process pool will pickle it."""


def test_rooms_import_in_one_direction(monkeypatch: pytest.MonkeyPatch) -> None:
    cli = pytest.importorskip("importlinter.cli", reason="needs the extra `lint`")
    monkeypatch.chdir(REPOSITORY)
    assert cli.lint_imports(config_filename="pyproject.toml", no_cache=True) == 0


def test_every_room_has_a_place_in_the_contracts() -> None:
    text = (REPOSITORY / "pyproject.toml").read_text(encoding="utf-8")
    for path in PACKAGE.iterdir():
        if (path / "__init__.py").exists() or (path.suffix == ".py" and not path.stem.startswith("__")):
            assert f"seamark.{path.stem}" in text, f"{path.stem} has no layer in [tool.importlinter]"


@pytest.mark.parametrize("module", ["seamark", "seamark.cli"])
def test_imports_start_at_once(module: str) -> None:
    """Neither the package nor the command line waits for torch until something needs it."""
    program = f"import sys, {module}; print([m for m in ('torch', 'transformers', 'sklearn') if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert found.stdout.strip() == "[]"


def test_modules_stay_small() -> None:
    assert len(MODULES) > 50
    long = {
        str(m.relative_to(PACKAGE)): n for m in MODULES if (n := len(m.read_text("utf-8").splitlines())) > MAX_LINES
    }
    assert long == {}


def calls(module: Path) -> Iterator[tuple[str, ast.Call]]:
    for node in ast.walk(ast.parse(module.read_text("utf-8"))):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


def keywords(call: ast.Call) -> dict[str | None, str]:
    return {k.arg: ast.unparse(k.value) for k in call.keywords}


@pytest.mark.parametrize("module", MODULES, ids=lambda m: str(m.relative_to(PACKAGE)))
def test_only_open_formats_and_no_code_from_strangers(module: Path) -> None:
    name = str(module.relative_to(PACKAGE))
    imported = {
        alias.name.split(".")[0]
        for node in ast.walk(ast.parse(module.read_text("utf-8")))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in ([ast.alias(node.module or "")] if isinstance(node, ast.ImportFrom) else node.names)
    }
    banned = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
    assert not imported & (banned - ({"pickle"} if name in PICKLED_IN_MEMORY else set()))
    for called, call in calls(module):
        given = keywords(call)
        where = f"{name}:{call.lineno}: {called}"
        assert called not in ("eval", "exec", "os.system", "yaml.load", "yaml.unsafe_load"), where
        assert called not in ("pickle.load", "pickle.dump", "torch.save"), where  # the pool's are in memory
        assert called != "torch.load" or given.get("weights_only") == "True", where
        assert given.get("allow_pickle", "False") == "False", where
        assert given.get("trust_remote_code", "False") != "True", where
        assert given.get("shell", "False") == "False", where
        if called.endswith(("np.load", "numpy.load")):
            assert "allow_pickle" not in given, where


def test_remote_code_is_off_unless_the_user_turns_it_on() -> None:
    for module in MODULES:
        for node in ast.walk(ast.parse(module.read_text("utf-8"))):
            if not isinstance(node, ast.FunctionDef):
                continue
            arguments = node.args
            named = [*arguments.posonlyargs, *arguments.args][-len(arguments.defaults) :] if arguments.defaults else []
            defaults = [*zip(named, arguments.defaults, strict=True),
                        *zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)]  # fmt: skip
            for argument, default in defaults:
                if argument.arg == "trust_remote_code" and default is not None:
                    assert ast.unparse(default) == "False", f"{module}:{node.lineno}"


def data_files() -> list[Path]:
    return [p for p in PACKAGE.rglob("*") if p.is_file() and p.suffix not in (".py", ".pyc")]


def test_package_data_are_found_and_not_ignored() -> None:
    files = [str(p.relative_to(PACKAGE)) for p in data_files()]
    assert {"text/data/pairs.jsonl", "show/templates/report.html", "py.typed"} <= set(files)
    root = resources.files("seamark")
    assert all(root.joinpath(f).is_file() for f in files)
    # The wheel holds what git would not ignore.
    ignored = subprocess.run(["git", "check-ignore", *(f"src/seamark/{f}" for f in files)], cwd=REPOSITORY,
                             capture_output=True, text=True, check=False)  # fmt: skip
    assert ignored.returncode in (1, 128), ignored.stdout  # 1: none is ignored; 128: no git checkout


@pytest.mark.slow
def test_the_wheel_holds_every_file(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(tmp_path), "."]
    built = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=300, check=False)
    if built.returncode and ("hatchling" in built.stderr or "No module named pip" in built.stderr):
        pytest.skip("hatchling, which builds wheels, cannot be fetched here")
    assert built.returncode == 0, built.stderr
    (wheel,) = tmp_path.glob("seamark-*.whl")
    held = set(zipfile.ZipFile(wheel).namelist())
    for path in [*MODULES, *data_files()]:
        assert str(path.relative_to(REPOSITORY / "src")) in held
    for recipe in (REPOSITORY / "recipes").glob("*.yaml"):
        assert f"seamark/pipelines/recipes/{recipe.name}" in held
