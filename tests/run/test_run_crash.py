"""Real processes and real SIGKILLs: what a run leaves behind and how it goes on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import run_cells as cells

from seamark.errors import RunError
from seamark.run import MANIFEST, Run, read_json

HERE = Path(__file__).parent


def start(*arguments: object, script: str = "run_cells.py") -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, str(HERE / script), *map(str, arguments)], text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE)  # fmt: skip


def wait_until(true: Callable[[], bool], process: subprocess.Popen[str], limit: float = 120.0) -> None:
    end = time.monotonic() + limit
    while not true():
        if process.poll() is not None or time.monotonic() > end:
            process.kill()
            raise AssertionError(f"did not come: {process.communicate()[1]}")
        time.sleep(0.02)


def kill(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGKILL)
    process.wait()
    for pipe in (process.stdout, process.stderr):
        if pipe:
            pipe.close()


def test_a_killed_stage_goes_on_from_what_it_had_to_the_same_bytes(tmp_path):
    root, parts = tmp_path / "run", tmp_path / "run" / ".partial" / "count" / "parts"
    process = start("count", root)
    wait_until(lambda: (parts / "2.json").exists(), process)
    with pytest.raises(RunError, match="another process is working"):
        Run(root)
    kill(process)
    assert not (root / "count").exists()
    had = {p.name: p.stat().st_mtime_ns for p in parts.glob("?.json")}
    assert 3 <= len(had) < 6
    stage = cells.counting_stage(pause=0.4)
    with Run(root) as run:  # the lock died with its process
        run.stage(stage)
    assert {p.name: p.stat().st_mtime_ns for p in (root / "count" / "parts").iterdir() if p.name in had} == had
    with Run(tmp_path / "unharmed") as run:
        run.stages("count", [stage])
    one, other = (read_json(r / "count" / MANIFEST) for r in (root, tmp_path / "unharmed"))
    for apart in ("seconds", "created"):
        del one[apart], other[apart]
    assert one == other


def test_killed_at_every_change_to_a_file_a_run_ends_in_the_same_bytes(tmp_path):
    process = start(tmp_path, script="run_crashes.py")
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err[-2000:]
    assert int(out) > 60


def test_workers_die_with_their_parent_and_write_no_more(tmp_path):
    files = [tmp_path / ".partial" / f"beat-{i}" / "beats" for i in range(2)]
    process = start("beat", tmp_path)
    wait_until(lambda: all(f.exists() and f.stat().st_size for f in files), process)
    workers = [int(f.read_text().split()[0]) for f in files]
    assert len({*workers, process.pid}) == 3
    kill(process)
    end = time.monotonic() + 10
    while any(map(_alive, workers)) and time.monotonic() < end:
        time.sleep(0.02)
    assert not any(map(_alive, workers))
    sizes = [f.stat().st_size for f in files]
    time.sleep(0.3)
    assert [f.stat().st_size for f in files] == sizes
    Run(tmp_path).close()


def _alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_ctrl_c_stops_workers_without_their_tracebacks(tmp_path):
    files = [tmp_path / ".partial" / f"beat-{i}" / "beats" for i in range(2)]
    process = subprocess.Popen([sys.executable, str(HERE / "run_cells.py"), "beat", str(tmp_path)], text=True,
                               stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True)  # fmt: skip
    wait_until(lambda: all(f.exists() and f.stat().st_size for f in files), process)
    os.killpg(process.pid, signal.SIGINT)  # as the terminal does: to all of them
    err = process.communicate(timeout=60)[1]
    assert err.count("Traceback") == 1  # the program's own, which the command line turns into a line
    assert not any(_alive(int(f.read_text().split()[0])) for f in files)


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_FSIZE raises EFBIG on Linux")
def test_a_file_that_cannot_grow_is_one_clear_error_whatever_library_writes_it(tmp_path):
    process = start("disk", tmp_path)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err[-2000:]
    lines = dict(line.split(": ", 1) for line in out.splitlines())
    assert list(lines) == ["json", "numpy", "torch", "safetensors", "parquet", "worker"]
    for writer, line in lines.items():
        assert line.startswith("RunError: "), writer
        problem = "could not be written whole" if writer in ("numpy", "torch") else "grew past the allowed size"
        assert problem in line, writer
        assert not (tmp_path / writer).exists()
        assert not (tmp_path / ".partial" / writer / MANIFEST).exists()
    assert not list(tmp_path.rglob("*.tmp"))


def test_a_script_without_a_main_guard_is_told_so(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "from seamark.run import Workers\n"
        "from seamark.errors import RunError\n"
        "try:\n"
        "    print(list(Workers(2).run(print, {'a': {}, 'b': {}})))\n"
        "except RunError as e:\n"
        "    print(e)\n"
    )
    found = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=120)
    assert 'the worker processes could not start. In a script, call Seamark below `if __name__ == "__main__":`' in (
        found.stdout
    )
