"""Independent calls side by side in worker processes."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import Any

from seamark.errors import RunError

_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


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
            RunError: a worker was killed (out of memory, most likely).
            Exception: whatever the call raised; the other workers are stopped.
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
                yield name, _timed(call, dict(task))
        finally:
            torch.set_num_threads(before)

    def _run_pool(
        self, call: Callable[..., Any], tasks: Mapping[str, Mapping[str, Any]]
    ) -> Iterator[tuple[str, Outcome]]:
        try:
            pool = self._pool or self._start()
            names: dict[Future[Outcome], str] = {pool.submit(_timed, call, dict(t)): n for n, t in tasks.items()}
            waiting = set(names)
            while waiting:
                done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                for future in done:
                    yield names[future], future.result()
        except BrokenProcessPool as e:
            self.close()
            raise RunError("a worker process was killed, most likely for want of memory",
                           fix="Run again with fewer workers; what is finished is kept") from e  # fmt: skip
        except BaseException:
            self.close()
            raise

    def _start(self) -> ProcessPoolExecutor:
        with _environment(dict.fromkeys(_THREAD_VARIABLES, str(self.threads)) | {"TOKENIZERS_PARALLELISM": "false"}):
            self._pool = ProcessPoolExecutor(
                self.count,
                multiprocessing.get_context("spawn"),
                initializer=_start_worker,
                initargs=(self.threads, os.getpid()),
            )
            # Processes start with the first calls: start them all now, while the environment is theirs.
            for ready in [self._pool.submit(time.sleep, 0.01) for _ in range(self.count)]:
                ready.result()
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


def _start_worker(threads: int, parent: int) -> None:
    import torch

    torch.set_num_threads(threads)
    sys.stdout = sys.stderr  # results of a command go to stdout; a library's chatter must not
    threading.Thread(target=_die_with, args=(parent,), daemon=True).start()


def _die_with(parent: int) -> None:
    """End this process when its parent is gone: a killed run leaves no worker behind that writes into its folder."""
    while os.getppid() == parent:
        time.sleep(0.25)
    os._exit(1)


def _timed(call: Callable[..., Any], task: dict[str, Any]) -> Outcome:
    start = time.monotonic()
    value = call(**task)
    return Outcome(value, time.monotonic() - start)
