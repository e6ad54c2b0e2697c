"""Stage functions and programs for the tests of the run room; top-level, so that worker processes can import them."""

from __future__ import annotations

import errno
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from seamark.errors import ConfigError, SeamarkError
from seamark.run import Run, Stage, Workers, read_json, write_atomic, write_json


class OddError(Exception):
    """Cannot be rebuilt from its arguments: pickling works, unpickling does not."""

    def __init__(self, what: str, *, code: int) -> None:
        super().__init__(what)
        self.code = code


def write(folder: Path, *, text: str, note: str = "") -> dict[str, Any]:
    (folder / "sub").mkdir(exist_ok=True)
    write_atomic(folder / "sub" / "out.txt", text)
    (folder / ".scratch").mkdir(exist_ok=True)
    (folder / ".scratch" / "x").write_text("gone when whole")
    (folder / "sub" / ".half.tmp").write_text("as a kill would leave it")
    return {"length": len(text)}


def write_other(folder: Path, *, text: str, note: str = "") -> dict[str, Any]:
    return write(folder, text=text, note=note)


def double(folder: Path, source: Path, *, times: int = 2) -> None:
    file = source if source.is_file() else source / "sub" / "out.txt"
    write_json(folder / "doubled.json", {"text": file.read_text() * times})


def nothing(folder: Path) -> None:
    """Writes no file at all."""


def counted(folder: Path, *, steps: int, pause: float = 0.0, extra: int = 0) -> None:
    """Resumable: a file a step; goes on from those it finds."""
    for i in range(steps):
        part = folder / "parts" / f"{i}.json"
        if not part.exists():
            write_json(part, {"step": i, "square": i * i + extra})
            time.sleep(pause)
    total = sum(read_json(folder / "parts" / f"{i}.json")["square"] for i in range(steps))
    write_json(folder / "total.json", {"total": total})


def beat(folder: Path, *, seconds: float) -> None:
    """Writes without end: what an orphan would go on doing."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        with (folder / "beats").open("a") as f:
            f.write(f"{os.getpid()}\n")
        time.sleep(0.02)


def beat_then_die(folder: Path, *, seconds: float) -> None:
    beat(folder, seconds=seconds)
    os.kill(os.getpid(), signal.SIGKILL)


def fails(folder: Path, *, kind: str) -> None:
    if kind == "seamark":
        raise ConfigError("not like this", where="row 3", fix="Do it otherwise")
    if kind == "odd":
        raise OddError("strange", code=7)
    if kind == "full":
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder / "big"))
    if kind == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    raise KeyError(kind)


def slow_then_fails(folder: Path, *, seconds: float) -> None:
    time.sleep(seconds)
    raise KeyError("slow")


def too_big(folder: Path, *, writer: str) -> None:
    """Write 400 kB as one of the libraries does that write Seamark's files."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq
    import torch
    from safetensors.torch import save_file

    numbers = np.random.default_rng(0).random(50_000)
    path = folder / f"big.{writer}"
    if writer == "json":
        write_json(path, numbers.tolist())
    elif writer == "numpy":
        np.save(path.with_suffix(".npy"), numbers)
    elif writer == "torch":
        torch.save({"x": torch.from_numpy(numbers)}, path)
    elif writer == "safetensors":
        save_file({"x": torch.from_numpy(numbers)}, path)
    elif writer == "parquet":
        pq.write_table(pa.table({"x": numbers}), path)


def square(*, x: int, pause: float = 0.0, wait_for: str | None = None, leave: str | None = None) -> int:
    """`leave` a file when done; with `wait_for` be done only after another call has left its own."""
    while wait_for and not Path(wait_for).exists():
        time.sleep(0.01)
    time.sleep(pause)
    if leave:
        Path(leave).touch()
    return x * x


def fail_or_square(*, x: int, kind: str | None = None) -> int:
    if kind:
        time.sleep(0.3)
        fails(Path(), kind=kind)
    return x * x


def environment(*, x: int) -> dict[str, Any]:
    """How a worker computes: threads of every library, the product of two matrices, what was torn loose."""
    import numpy as np
    import torch
    from threadpoolctl import threadpool_info

    a, b = np.random.default_rng(x).random((300, 4000)), np.random.default_rng(x + 1).random((300, 4000))
    print("chatter that must not reach stdout")
    return {
        "torch": torch.get_num_threads(),
        "pools": sorted({i["num_threads"] for i in threadpool_info()}),
        "product": float((a @ b.T).sum()).hex() + float((a @ b[0]).sum()).hex(),
        "torch_product": float((torch.from_numpy(a) @ torch.from_numpy(b).T).sum()).hex(),
    }


def counting_stage(name: str = "count", steps: int = 6, pause: float = 0.0) -> Stage:
    # The pause is part of the key, so the test that resumes gives the same one.
    return Stage(name, counted, {"steps": steps, "pause": pause})


def program(what: str, root: Path) -> None:
    if what == "count":
        with Run(root) as run:
            run.stage(counting_stage(pause=0.4))
    elif what == "beat":
        with Run(root) as run, Workers(2) as workers:
            run.stages("beat", [Stage(f"beat-{i}", beat, {"seconds": 120.0}) for i in range(2)], workers)
    elif what == "disk":
        import resource

        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        for writer in ("json", "numpy", "torch", "safetensors", "parquet"):
            _report(writer, root, Workers(), Stage(writer, too_big, {"writer": writer}))
        with Workers(2) as workers:
            _report("worker", root, workers, Stage("worker", too_big, {"writer": "safetensors"}))


def _report(title: str, root: Path, workers: Workers, stage: Stage) -> None:
    with Run(root) as run:
        try:
            run.stage(stage, workers)
        except SeamarkError as e:
            print(f"{title}: {type(e).__name__}: {' '.join(str(e).split())}")


if __name__ == "__main__":
    import run_cells  # under its own name: a stage's key holds its function's module

    run_cells.program(sys.argv[1], Path(sys.argv[2]))
