"""Training under torchrun against one process."""

from __future__ import annotations

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
import torch
from test_parallel import N, Checkpoints, chunks, fit, suite
from seamark.run import ranks
torch.set_num_threads(1)
mode, out, stop = sys.argv[1], sys.argv[2], int(sys.argv[3])
saver = Checkpoints(out + "/checkpoints", every=20)
with ranks.joined() as rank:
    found = fit(chunks()[: stop or None], suite(), positions=N, checkpoints=saver, parallel=mode)
    same = ranks.collected({{name: sae.fingerprint() for name, sae in found.items()}})
    assert all(s == same[0] for s in same), same
    if rank == 0:
        for name, sae in found.items():
            sae.save_pretrained(out + "/" + name)
"""


def chunks() -> list[torch.Tensor]:
    return one_of_each.chunks(N, 700)


def suite() -> dict[str, tuple[SAEConfig, FitConfig]]:
    return one_of_each.suite(FitConfig(lr=2e-3, batch_size=BATCH, encoder="fp32"), scale="expected_norm")


def run(mode: str, out: Path, stop: int = 0, ranks: int = 2) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(ranks), "--no-python",
         sys.executable, "-c", SCRIPT.format(tests=str(Path(__file__).parent)), mode, str(out), str(stop)],
        capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.fixture(scope="module")
def alone() -> dict[str, SparseAutoencoder]:
    return fit(chunks(), suite(), positions=N)


def difference(sae: SparseAutoencoder, other: SparseAutoencoder) -> float:
    """The largest ‖ΔW‖/‖W‖ of the weight matrices."""
    pairs = ((sae.W_enc, other.W_enc), (sae.W_dec, other.W_dec))
    return max(((a - b).norm() / b.norm()).item() for a, b in pairs)


def test_data_parallel_is_one_process(tmp_path: Path, alone: dict[str, SparseAutoencoder]) -> None:
    run("data", tmp_path)
    for name, expected in alone.items():
        assert difference(SparseAutoencoder.from_pretrained(tmp_path / name), expected) <= 1e-4, name


def test_spread_autoencoders_are_the_same_bits(tmp_path: Path, alone: dict[str, SparseAutoencoder]) -> None:
    run("spread", tmp_path)
    for name, expected in alone.items():
        assert difference(SparseAutoencoder.from_pretrained(tmp_path / name), expected) <= 1e-6, name


def test_continued_by_another_number_of_processes(tmp_path: Path, alone: dict[str, SparseAutoencoder]) -> None:
    """A checkpoint of two data-parallel ranks is an ordinary one."""
    run("data", tmp_path, stop=5)
    saver = Checkpoints(tmp_path / "checkpoints", every=20)
    assert saver.latest() is not None
    found = fit(chunks(), suite(), positions=N, checkpoints=saver)
    for name, expected in alone.items():
        assert difference(found[name], expected) <= 1e-4, name
