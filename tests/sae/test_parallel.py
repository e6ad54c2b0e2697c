"""Training under torchrun against one process."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import one_of_each
import pytest
import torch

from seamark.sae import Checkpoints, FitConfig, SAEConfig, SparseAutoencoder, fit

STEPS, BATCH = 100, 64
N = STEPS * BATCH - 5  # the last batch is small

SCRIPT = """
import sys
sys.path.insert(0, {tests!r})
import json
import torch
from test_parallel import N, Checkpoints, chunks, fit, suite
from seamark.run import ranks
from seamark.sae import trainer
torch.set_num_threads(1)
mode, out, stop = sys.argv[1], sys.argv[2], int(sys.argv[3])
saver = Checkpoints(out + "/checkpoints", every=20)
seen, gradients_of = {{}}, trainer.Trainer._gradients_of

def counted(self, x_ND, problem):
    seen.setdefault(self.name, []).append((len(x_ND), problem.n))
    return gradients_of(self, x_ND, problem)

trainer.Trainer._gradients_of = counted
with ranks.joined() as rank:
    found = fit(chunks()[: stop or None], suite(), positions=N, checkpoints=saver, parallel=mode)
    same = ranks.collected({{name: sae.fingerprint() for name, sae in found.items()}})
    assert all(s == same[0] for s in same), same
    with open(out + f"/seen-{{rank}}.json", "w") as file:
        json.dump(seen, file)
    if rank == 0:
        for name, sae in found.items():
            sae.save_pretrained(out + "/" + name)
"""
BATCHES = [BATCH] * (STEPS - 1) + [BATCH - 5]


def chunks() -> list[torch.Tensor]:
    return one_of_each.chunks(N, 700)


def suite() -> dict[str, tuple[SAEConfig, FitConfig]]:
    return one_of_each.suite(FitConfig(lr=2e-3, batch_size=BATCH, encoder="fp32"), scale="expected_norm")


def run(mode: str, out: Path, stop: int = 0, ranks: int = 2, script: str = SCRIPT) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(ranks), "--no-python",
         sys.executable, "-c", script.format(tests=str(Path(__file__).parent)), mode, str(out), str(stop)],
        capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.fixture(scope="module")
def alone() -> dict[str, SparseAutoencoder]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    found = fit(chunks(), suite(), positions=N)
    torch.set_num_threads(before)
    return found


def seen(out: Path, ranks: int = 2) -> list[dict[str, list[tuple[int, int]]]]:
    """For each rank {autoencoder: (positions it worked on, of how many) of every step}."""
    found = [json.loads((out / f"seen-{rank}.json").read_text()) for rank in range(ranks)]
    return [{name: [(a, b) for a, b in steps] for name, steps in one.items()} for one in found]


def difference(sae: SparseAutoencoder, other: SparseAutoencoder) -> float:
    """The largest ‖ΔW‖/‖W‖ of the weight matrices."""
    pairs = ((sae.W_enc, other.W_enc), (sae.W_dec, other.W_dec))
    return max(((a - b).norm() / b.norm()).item() for a, b in pairs)


def test_data_parallel_is_one_process(tmp_path: Path, alone: dict[str, SparseAutoencoder]) -> None:
    run("data", tmp_path)
    for name, expected in alone.items():
        assert difference(SparseAutoencoder.from_pretrained(tmp_path / name), expected) <= 1e-4, name
    first, second = seen(tmp_path)
    assert set(first) == set(second) == set(alone)
    for name in alone:  # each rank did its half of every batch, and no more
        assert first[name] == [(n - n // 2, n) for n in BATCHES]
        assert second[name] == [(n // 2, n) for n in BATCHES]


FORMATS = """
import json, sys
sys.path.insert(0, {tests!r})
import torch
from test_parallel import BATCH, FitConfig, fit, one_of_each
from seamark.run import ranks
from seamark.sae import trainer
torch.set_num_threads(1)
with ranks.joined() as rank:
    trainer.choose_encoding = lambda *_: ("bf16", "fp32")[rank]  # a busy moment for one of them
    log = []
    suite = one_of_each.suite(FitConfig(batch_size=BATCH))
    fit(one_of_each.chunks(2 * BATCH, 700), suite, positions=2 * BATCH, parallel="data", log=log.append)
    with open(sys.argv[2] + f"/formats-{{rank}}.json", "w") as file:
        json.dump(sorted({{entry.encoding for entry in log}}), file)
"""


def test_ranks_agree_on_the_number_format(tmp_path: Path) -> None:
    run("data", tmp_path, script=FORMATS)
    assert [json.loads((tmp_path / f"formats-{rank}.json").read_text()) for rank in (0, 1)] == [["bf16"], ["bf16"]]


def test_spread_autoencoders_are_the_same_bits(tmp_path: Path, alone: dict[str, SparseAutoencoder]) -> None:
    run("spread", tmp_path)
    for name, expected in alone.items():
        assert SparseAutoencoder.from_pretrained(tmp_path / name).fingerprint() == expected.fingerprint(), name
    first, second = seen(tmp_path)
    assert list(first) == list(alone)[::2]
    assert list(second) == list(alone)[1::2]
    assert all(steps == [(n, n) for n in BATCHES] for steps in (first | second).values())


def test_continued_by_another_number_of_processes(tmp_path: Path, alone: dict[str, SparseAutoencoder]) -> None:
    """A checkpoint of two data-parallel ranks is an ordinary one."""
    run("data", tmp_path, stop=5)
    saver = Checkpoints(tmp_path / "checkpoints", every=20)
    assert saver.latest() is not None
    found = fit(chunks(), suite(), positions=N, checkpoints=saver)
    for name, expected in alone.items():
        assert difference(found[name], expected) <= 1e-4, name
