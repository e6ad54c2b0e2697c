"""Independent calls side by side in worker processes."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import multiprocessing
import os
import pickle
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import Any

from threadpoolctl import threadpool_limits

from seamark.errors import RunError
from seamark.run.watch import be_silent

_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
# oneDNN keeps a compiled primitive, with its scratch memory, for each of the last 1,024 matrix shapes. Batches of texts
# have a new shape nearly every time, so a small cache loses no speed and saves 0.3 GB a worker.
_WORKER_VARIABLES = {"TOKENIZERS_PARALLELISM": "false", "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "16"}


@dataclass(frozen=True)
class Outcome:
    """What a call returned and how many seconds it took."""

    value: Any
    seconds: float


class Workers:
    """A pool of `count` processes, started when first needed; with `count` 1 calls run in this process.

    Each worker computes with `threads` CPU threads: on few cores, several one-threaded trainings side by side beat
    one that uses all cores. Results depend on `threads` in the last bits, never on `count`.
    """

    def __init__(self, count: int = 1, threads: int = 1) -> None:
        self.count, self.threads = max(1, count), max(1, threads)
        self._pool: ProcessPoolExecutor | None = None

    def run(self, call: Callable[..., Any], tasks: Mapping[str, Mapping[str, Any]]) -> Iterator[tuple[str, Outcome]]:
        """Call `call(**arguments)` (a top-level function) for every task; yields (name, outcome) as they finish.

        Raises:
            RunError: a worker was killed (out of memory, most likely), or workers cannot start here.
            Exception: whatever the call raised; the other workers are stopped. What had finished was yielded before.
        """
        if self.count == 1 or (self._pool is None and len(tasks) == 1 and self.threads > 1):
            yield from self._run_here(call, tasks)
        elif tasks:
            yield from self._run_pool(call, tasks)

    def _run_here(
        self, call: Callable[..., Any], tasks: Mapping[str, Mapping[str, Any]]
    ) -> Iterator[tuple[str, Outcome]]:
        import torch

        before = torch.get_num_threads()
        torch.set_num_threads(self.threads)
        try:
            for name, task in tasks.items():
                # NumPy's products differ in the last bits with their threads; chatter stays off stdout, as in a worker.
                with threadpool_limits(self.threads), contextlib.redirect_stdout(sys.stderr):
                    outcome = _timed(call, dict(task))
                yield name, outcome
        finally:
            torch.set_num_threads(before)

    def _run_pool(
        self, call: Callable[..., Any], tasks: Mapping[str, Mapping[str, Any]]
    ) -> Iterator[tuple[str, Outcome]]:
        try:
            pool = self._pool or self._start()
            names: dict[Future[Outcome], str] = {pool.submit(_carried, call, dict(t)): n for n, t in tasks.items()}
            waiting = set(names)
            while waiting:
                done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                for future in sorted(done, key=lambda f: f.exception() is not None):  # whole ones first: they are kept
                    yield names[future], future.result()
        except BrokenProcessPool as e:
            self.close()
            raise RunError("a worker process was killed, most likely for want of memory",
                           fix="Run again with fewer workers; what is finished is kept") from e  # fmt: skip
        except BaseException:
            self.close()
            raise

    def _start(self) -> ProcessPoolExecutor:
        with _environment(dict.fromkeys(_THREAD_VARIABLES, str(self.threads)) | _WORKER_VARIABLES):
            self._pool = ProcessPoolExecutor(
                self.count,
                multiprocessing.get_context("spawn"),
                initializer=_start_worker,
                initargs=(self.threads, os.getpid(), threading.current_thread() is threading.main_thread()),
            )
            # Processes start with the first calls: start them all now, while the environment is theirs.
            try:
                for ready in [self._pool.submit(time.sleep, 0.01) for _ in range(self.count)]:
                    ready.result()
            except BrokenProcessPool as e:
                self.close()
                raise RunError(
                    "the worker processes could not start",
                    fix='In a script, call Seamark below `if __name__ == "__main__":`; or use one worker',
                ) from e
        return self._pool

    def close(self) -> None:
        """Stop the workers at once. Safe to call twice."""
        pool, self._pool = self._pool, None
        if pool is None:
            return
        processes = list((pool._processes or {}).values())
        pool.shutdown(wait=False, cancel_futures=True)
        for process in processes:
            process.terminate()
        for process in processes:
            process.join(timeout=10)
            if process.is_alive():
                process.kill()
                process.join()

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@contextlib.contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _start_worker(threads: int, parent: int, from_main_thread: bool) -> None:
    _die_with(parent, from_main_thread)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all; the parent stops its workers, without a word
    import torch

    torch.set_num_threads(threads)
    sys.stdout = sys.stderr  # results of a command go to stdout; a library's chatter must not
    be_silent()


def _die_with(parent: int, from_main_thread: bool) -> None:
    """End this process when its parent is gone: a killed run leaves no worker behind that writes into its folder.

    Linux does it at once, but takes the end of the *thread* that started the process for the parent's: so it is
    asked only where that was the main thread. A watching thread does it everywhere else.
    """
    if from_main_thread and sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # 1: PR_SET_PDEATHSIG
    threading.Thread(target=_watch_parent, args=(parent,), daemon=True).start()


def _watch_parent(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.25)
    os._exit(1)


def _timed(call: Callable[..., Any], task: dict[str, Any]) -> Outcome:
    start = time.monotonic()
    try:
        value = call(**task)
    finally:
        give_back_memory()
    return Outcome(value, time.monotonic() - start)


def _carried(call: Callable[..., Any], task: dict[str, Any]) -> Outcome:
    """`_timed` in a worker: an exception that would not survive the way back is replaced by its text.

    The pool takes an answer it cannot unpack for a dead worker, and would blame the memory.
    """
    try:
        return _timed(call, task)
    except Exception as e:
        try:
            pickle.loads(pickle.dumps(e))  # noqa: S301 - made here, a line ago
        except Exception:
            raise RuntimeError(f"{type(e).__module__}.{type(e).__qualname__}: {e}") from None
        raise


def give_back_memory(*, collect: bool = True) -> None:
    """Return freed memory to the system: glibc would keep a training's peak through everything that follows.

    Without `collect`, Python's garbage stays where it is, which looking for takes a tenth of a second and more.
    """
    if collect:
        gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
