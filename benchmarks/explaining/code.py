"""Which files of code a stage depends on: it is run again when one of them changes, and only then."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from seamark.run import file_digest

ROOT = Path(__file__).parents[2]
ROOTS = {"seamark": ROOT / "src", "benchmarks": ROOT}


def code_of(module: str) -> dict[str, str]:
    """{file: SHA-256} of a module of `seamark` or `benchmarks`, of all it imports of these, wherever in its text the
    import stands, and of the data files that lie beside them (prompts, taxonomy, demo data)."""
    files: set[Path] = set()
    waiting = [module]
    seen = {module}
    while waiting:
        file = _file(waiting.pop())
        if file is None:
            continue
        files |= {file, *_data(file.parent)}
        new = _imports(file, file.stat().st_mtime_ns) - seen
        seen |= new
        waiting += sorted(new)
    return {str(f.relative_to(ROOT)): _digest(f, f.stat().st_mtime_ns) for f in sorted(files)}


@cache
def _digest(file: Path, changed: int) -> str:
    """Of a file as it was last changed at `changed`."""
    return file_digest(file)


def _file(module: str) -> Path | None:
    top = ROOTS.get(module.partition(".")[0])
    if top is None:
        return None
    path = top.joinpath(*module.split("."))
    return next((f for f in (path.with_suffix(".py"), path / "__init__.py") if f.is_file()), None)


@cache
def _data(folder: Path) -> tuple[Path, ...]:
    """Files that are no code, below the folder of a module that is not the package itself."""
    if folder in (ROOTS["seamark"] / "seamark", ROOTS["benchmarks"] / "benchmarks"):
        return ()
    return tuple(f for f in folder.rglob("*") if f.is_file() and f.suffix != ".py" and "__pycache__" not in f.parts)


@cache
def _imports(file: Path, changed: int) -> frozenset[str]:
    """Modules that a file, last changed at `changed`, imports; of a package those of its modules that are named, or the
    package itself where it gives something else."""
    return frozenset(name for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))) for name in _names(node))


def _names(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
        for alias in node.names:
            inner = f"{node.module}.{alias.name}"
            yield inner if _file(inner) else node.module
