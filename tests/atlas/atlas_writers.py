"""Writers of an atlas that can be killed: a process that starts one after the other, each at once."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from seamark.atlas import AtlasWriter, ContextRow, ExplanationRow, FeatureRow, Run, Sae

RUN = Run(id="run", kind="test", title="A run", created="2025-01-01T00:00:00+00:00", manifest={})
SAE = Sae(number=0, id="s", model="m", hookpoint="layers.1", layer=1)


def say(line: str) -> None:
    """A line that arrives whole, whoever else speaks."""
    os.write(1, f"{line}\n".encode())


def write_for_ever(path: str) -> None:
    """Features in transactions of 1 to 30, with all that belongs to them; says how many are committed."""
    rng = random.Random(os.getpid())
    with AtlasWriter.open(path, create=True) as w:
        w.add_run(RUN)
        number = w.add_sae(SAE)
        latent = max(w.feature_ids(number), default=-1) + 1
        while True:
            n = rng.randint(1, 30)
            with w.transaction():
                ids = w.add_features(number, map(FeatureRow, range(latent, latent + n)))
                w.add_explanations(ExplanationRow(i, f"word{k} harbour", "run", "llm") for k, i in ids.items())
                w.add_contexts(ContextRow(i, "top", r, f"t{k % 50}", ("a", f"b{k % 50}"), (0.0, 1.0))
                               for k, i in ids.items() for r in range(5))  # fmt: skip
            latent += n
            w.mark("scan", f"pair{latent}", "wrong")
            say(str(latent))


def build_once(path: str, results: str) -> None:
    """An atlas of all that lies in a folder, and of every latent."""
    from seamark.atlas.build import build_atlas
    from seamark.atlas.finding import sources_below

    found = sources_below(Path(results))
    build_atlas(path, scans=found.scans, explained=found.explained, simulated=found.simulated, everything=True,
                contrasts=found.contrasts, landscape=False)  # fmt: skip


class Writers:
    """The process that starts writers."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self._tell, self._hear = process.stdin, process.stdout
        assert next(self._hear) == "ready\n"

    def run(self, *, seconds: float = 0.0, commits: int = 0, end: bool = False) -> list[str]:
        """Start a writer, and kill -9 it some seconds after so many commits (`end`: let it end); the lines it said."""
        self._tell.write(f"{commits} {'end' if end else seconds}\n")
        heard = []
        while (line := next(self._hear).strip()) != "dead":
            heard.append(line)
        return heard


@contextlib.contextmanager
def writers(*words: object) -> Iterator[Writers]:
    """Writers of `write_for_ever(path)`, or `build_once(path, results)` where two words are given."""
    command = [sys.executable, __file__, *map(str, words)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1) as process:
        yield Writers(process)
        assert process.stdin is not None
        process.stdin.close()


def serve(path: str, *results: str) -> None:
    if results:  # what takes long to import is there before the first writer starts
        import torch

        import seamark.atlas.build
        import seamark.atlas.finding

        assert seamark.atlas.build
        assert seamark.atlas.finding
        torch.set_num_threads(1)
    say("ready")
    for line in sys.stdin:
        heard, tell = os.pipe()
        child = os.fork()
        if child == 0:
            tell_commits(tell)
            (build_once if results else write_for_ever)(path, *results)
            os._exit(0)
        os.close(tell)
        commits, seconds = line.split()
        told = 0
        while told < int(commits) and os.read(heard, 1):  # nothing comes any more once the writer has ended
            told += 1
        if seconds != "end":
            time.sleep(float(seconds))
            os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(heard)
        say("dead")


def tell_commits(pipe: int) -> None:
    """A byte for each transaction of this process."""
    real = AtlasWriter.transaction

    @contextlib.contextmanager
    def transaction(self: AtlasWriter) -> Iterator[None]:
        outer = not self._connection().in_transaction
        with real(self):
            yield
        if outer:
            os.write(pipe, b".")

    AtlasWriter.transaction = transaction  # type: ignore[method-assign]


if __name__ == "__main__":
    serve(*sys.argv[1:])
