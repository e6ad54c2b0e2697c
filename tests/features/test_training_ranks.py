"""Training under torchrun: two processes on gloo come to what one comes to."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import train_process
from feature_corpus import tiny
from token_texts import token_texts

from seamark.features import blocks
from seamark.features.activations import ActivationStream
from seamark.features.gather import gather
from seamark.features.metrics import TIMINGS, read_metrics
from seamark.run import ranks
from seamark.sae import SparseAutoencoder
from tiny_run import environment

SCRIPT = Path(train_process.__file__)


TRACKER = """
import json, os
from pathlib import Path
FILE = Path({folder!r}) / f"rank-{{os.environ['RANK']}}.jsonl"

def said(what, value):
    with FILE.open("a") as file:
        file.write(json.dumps([what, value]) + "\\n")

def init(**options):
    said("init", options)

def log(numbers):
    said("log", numbers)

def finish():
    said("finish", None)
"""


def torchrun(*arguments: object, processes: int = 2, path: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", str(processes), "--master_port",
               str(29500 + os.getpid() % 2000), *map(str, arguments)]  # fmt: skip
    places = os.pathsep.join(map(str, filter(None, (SCRIPT.parent, path))))
    env = environment() | {"PYTHONPATH": places, "GLOO_SOCKET_IFNAME": "lo"}
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=280)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ranks") / "alone"
    env = environment() | {"PYTHONPATH": str(SCRIPT.parent)}
    subprocess.run([sys.executable, str(SCRIPT), str(folder), "data"], env=env, check=True, timeout=280)
    return folder


def saes(folder: Path) -> dict[str, SparseAutoencoder]:
    return {i: SparseAutoencoder.from_pretrained(folder / "saes" / i) for i in train_process.SUITE}


def lines(folder: Path) -> dict[tuple[str, int], dict[str, object]]:
    return {(e["sae"], e["step"]): {k: v for k, v in e.items() if k not in TIMINGS}
            for e in read_metrics(folder / "metrics.jsonl")}  # fmt: skip


def tracked(place: Path) -> Path:
    """A folder with a tracker that writes down what each rank sends."""
    place.mkdir()
    (place / "trackio.py").write_text(TRACKER.format(folder=str(place)))
    return place


def sent(place: Path) -> dict[int, tuple[str, list[dict[str, object]]]]:
    """{rank: (name of its run, what it logged)}; every run was begun and ended once."""
    found = {}
    for file in sorted(place.glob("rank-*.jsonl")):
        first, *logged, last = [json.loads(line) for line in file.read_text().splitlines()]
        assert (first[0], last[0], {what for what, _ in logged}) == ("init", "finish", {"log"})
        found[int(file.stem.split("-")[1])] = (first[1]["name"], [numbers for _, numbers in logged])
    return found


def steps(logged: list[dict[str, object]]) -> set[tuple[str, int]]:
    """(autoencoder, step) of every line that was sent."""
    found = [(key.rpartition("/")[0], int(str(value))) for e in logged for key, value in e.items()
             if key.endswith("/step")]  # fmt: skip
    assert len(found) == len(set(found)) == len(logged)
    return set(found)


def test_spread_over_two_processes_every_bit_is_the_same(alone: Path, tmp_path: Path) -> None:
    folder, tracker = tmp_path / "two", tracked(tmp_path / "tracker")
    done = torchrun(SCRIPT, folder, "spread", "trackio", path=tracker)
    assert done.returncode == 0, done.stderr
    (first, lines_0), (second, lines_1) = (sent(tracker)[rank] for rank in (0, 1))
    assert (first, second) == ("two", "two-rank1")  # each rank sends its own autoencoders
    assert {sae_id for sae_id, _ in steps(lines_0)} == set(list(train_process.SUITE)[::2])
    assert steps(lines_0) | steps(lines_1) == lines(alone).keys()
    for sae_id, sae in saes(folder).items():
        assert sae.fingerprint() == saes(alone)[sae_id].fingerprint(), sae_id
    assert lines(folder) == lines(alone)
    assert (folder / "result.json").read_text() == (alone / "result.json").read_text()
    assert not list(folder.glob("metrics-*"))


def test_split_batches_differ_by_rounding_only(alone: Path, tmp_path: Path) -> None:
    folder, tracker = tmp_path / "two", tracked(tmp_path / "tracker")
    done = torchrun(SCRIPT, folder, "data", "trackio", path=tracker)
    assert done.returncode == 0, done.stderr
    assert list(sent(tracker)) == [0]  # both took the same steps
    assert steps(sent(tracker)[0][1]) == lines(alone).keys()
    assert max(step for sae_id, step in lines(folder) if sae_id == "topk") > 90
    for sae_id, sae in saes(folder).items():
        other = dict(saes(alone)[sae_id].named_parameters())
        for name in ("W_enc", "W_dec"):
            W, other_W = dict(sae.named_parameters())[name].detach(), other[name].detach()
            assert float((W - other_W).norm() / other_W.norm()) <= 1e-4, (sae_id, name)
    assert lines(folder).keys() == lines(alone).keys()


@pytest.mark.slow
def test_killed_ranks_go_on(alone: Path, tmp_path: Path) -> None:
    folder = tmp_path / "two"
    command = [sys.executable, str(SCRIPT), str(folder), "spread"]
    env = environment() | {"PYTHONPATH": str(SCRIPT.parent), "GLOO_SOCKET_IFNAME": "lo", "WORLD_SIZE": "2",
                           "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(27500 + os.getpid() % 2000)}  # fmt: skip
    both = [subprocess.Popen(command, env=env | {"RANK": str(r)}, stderr=subprocess.DEVNULL) for r in (0, 1)]
    while all(p.poll() is None for p in both) and not list(folder.glob("checkpoints/general/step-*[0-9]")):
        time.sleep(0.01)
    for process in both:
        process.kill()
        process.wait()
    assert not (folder / "result.json").exists()
    done = torchrun(SCRIPT, folder, "spread")
    assert done.returncode == 0, done.stderr
    for sae_id, sae in saes(folder).items():
        assert sae.fingerprint() == saes(alone)[sae_id].fingerprint(), sae_id
    assert lines(folder) == lines(alone)


def test_alone_every_helper_is_the_identity() -> None:
    tensor = torch.ones(2)
    ranks.share(tensor, 0)
    assert (ranks.rank(), ranks.world(), ranks.told(3), ranks.collected("a")) == (0, 1, 3, ["a"])
    assert ranks.together(lambda: 5) == 5
    with ranks.joined() as rank:
        assert rank == 0


def test_an_incomplete_environment_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(Exception, match="Start with torchrun"), ranks.joined():
        pass


SHARED = """
import torch
from feature_corpus import tiny
from token_texts import token_texts
from seamark.errors import DataError
from seamark.features import blocks
from seamark.features.activations import ActivationStream
from seamark.run import ranks

def work():
    if ranks.rank() == 1:
        raise DataError("nothing but noise", where="rank one")

def counting(*a, **k):
    read.append(1)
    return gather(*a, **k)

gather, blocks.gather, read = blocks.gather, counting, []
with ranks.joined() as rank:
    stream = ActivationStream(tiny(), token_texts(8), ["layers.2"], batch_tokens=300, block=200, cache=CACHE)
    rows = torch.cat([chunk["layers.2"] for chunk in stream])
    said = f"rank {rank}: {len(read)} batches, sum {float(rows.double().sum()):.9f}, {float(rows[0, 0]):.9f}"
    try:
        ranks.together(work)
    except DataError as e:
        print(f"{said}; {e}\\n", end="", flush=True)
"""


@pytest.mark.parametrize("cached", [False, True])
def test_ranks_share_the_passes_and_their_errors(cached: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    script = tmp_path / "shared.py"
    cache = f"__import__('pathlib').Path({str(tmp_path / 'cache')!r})" if cached else "None"
    script.write_text(f"import sys\nsys.path.insert(0, {str(SCRIPT.parents[1])!r})\n" + SHARED.replace("CACHE", cache))
    done = torchrun(script)
    found = re.findall(r"rank (\d): (\d+) batches, (.*); rank one: nothing but noise", done.stdout)
    assert [r for r, _, _ in sorted(found)] == ["0", "1"], done.stderr
    (_, one, rows), (_, two, same) = sorted(found)
    assert rows == same
    calls = []
    monkeypatch.setattr(blocks, "gather", lambda *a, **k: calls.append(1) or gather(*a, **k))
    where = tmp_path / "other" if cached else None
    stream = ActivationStream(tiny(), token_texts(8), ["layers.2"], batch_tokens=300, block=200, cache=where)
    for _ in stream:
        pass
    assert int(one) + int(two) == len(calls)
    assert 0 <= int(one) - int(two) <= 3  # a batch more for each block (or shard) with an odd number of them
