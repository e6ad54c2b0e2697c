"""A fit that is killed and run again ends in the same weights."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import one_of_each
import pytest
import torch
from torch import Tensor

from seamark.errors import ConfigError, DataError, FormatError
from seamark.sae import Checkpoints, FitConfig, SAEConfig, SparseAutoencoder, fit

N = 6000


def chunks() -> list[Tensor]:
    return one_of_each.chunks(N, 350)


def suite(**more: object) -> dict[str, tuple[SAEConfig, FitConfig]]:
    """Batches do not divide the chunks."""
    how = FitConfig(**({"lr": 3e-3, "batch_size": 128, "scale": "expected_norm"} | more))
    return one_of_each.suite(how, batch_size=200, loss="squared")


def fingerprints(found: dict[str, SparseAutoencoder]) -> dict[str, str]:
    return {name: sae.fingerprint() for name, sae in found.items()}


class Stream:
    """Chunks that may break off, and that tell where they were asked to begin."""

    def __init__(self, after: int | None = None) -> None:
        self.after, self.starts = after, []

    def __iter__(self) -> Iterator[Tensor]:
        return self.start_at(0)

    def start_at(self, position: int) -> Iterator[Tensor]:
        self.starts.append(position)
        for i, chunk in enumerate(torch.cat(chunks())[position:].split(350)):
            if self.after is not None and i >= self.after:
                raise KeyboardInterrupt
            yield chunk


@pytest.fixture(scope="module")
def whole() -> dict[str, str]:
    return fingerprints(fit(chunks(), suite(), positions=N))


@pytest.mark.parametrize("seekable", [True, False])
def test_interrupted_anywhere(tmp_path: Path, whole: dict[str, str], seekable: bool) -> None:
    saver = Checkpoints(tmp_path, every=7)
    for after in (5, 8):
        broken = Stream(after)
        with pytest.raises(KeyboardInterrupt):
            fit(broken if seekable else iter(broken), suite(), positions=N, checkpoints=saver)
    assert saver.latest() is not None
    last = Stream()
    found = fit(last if seekable else iter(last), suite(), positions=N, checkpoints=saver)
    assert fingerprints(found) == whole
    assert (last.starts[0] > 0) == seekable


def test_checkpoints_are_usable_bounded_and_whole(tmp_path: Path) -> None:
    seen: list[str] = []

    def watched() -> Iterator[Tensor]:
        for chunk in chunks():
            yield chunk
            seen[:] = sorted(p.name for p in tmp_path.iterdir())
            for place in tmp_path.glob("step-*[0-9]"):  # while training goes on
                for name, (config, _) in suite().items():
                    sae = SparseAutoencoder.from_pretrained(place / name)
                    assert sae.config == config
                    assert torch.isfinite(sae(chunk)).all()

    fit(watched(), suite(), positions=N, checkpoints=Checkpoints(tmp_path, every=5, keep=2))
    assert len(seen) == 2
    assert not [name for name in seen if name.endswith(".partial")]


KILLED = """
import sys, time, torch
sys.path.insert(0, {tests!r})
torch.set_num_threads(1)
from test_checkpoints import N, Checkpoints, Stream, fit, fingerprints, suite
class Slow(Stream):
    def start_at(self, position):
        for chunk in super().start_at(position):
            yield chunk
            time.sleep(0.05)
            print("x", flush=True)
print(fingerprints(fit(Slow(), suite(), positions=N, checkpoints=Checkpoints(sys.argv[1], every=3))), flush=True)
"""


def test_kill_9_again_and_again(tmp_path: Path) -> None:
    """In processes of their own: killed at whatever point, in the middle of writing too, until one gets through."""
    script = [sys.executable, "-c", KILLED.format(tests=str(Path(__file__).parent)), str(tmp_path)]
    straight = subprocess.run([*script[:-1], str(tmp_path / "straight")], capture_output=True, text=True, check=True)
    killed = tmp_path / "killed"
    for lines in (4, 3, 5):
        process = subprocess.Popen([*script[:-1], str(killed)], stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        for _ in range(lines):
            process.stdout.readline()
        time.sleep(0.01 * lines)
        process.send_signal(signal.SIGKILL)
        process.wait()
    again = subprocess.run([*script[:-1], str(killed)], capture_output=True, text=True, check=True)
    assert again.stdout.count("x\n") < straight.stdout.count("x\n")
    assert again.stdout.splitlines()[-1] == straight.stdout.splitlines()[-1]


def test_left_over_partials_do_no_harm(tmp_path: Path, whole: dict[str, str]) -> None:
    (tmp_path / "step-00009999.partial" / "topk").mkdir(parents=True)
    (tmp_path / "step-00000005.partial").mkdir()
    saver = Checkpoints(tmp_path, every=5)
    assert saver.latest() is None
    assert fingerprints(fit(chunks(), suite(), positions=N, checkpoints=saver)) == whole


def test_nan_leaves_the_last_good_checkpoint(tmp_path: Path) -> None:
    bad = chunks()
    bad[12][3, 2] = float("nan")
    saver = Checkpoints(tmp_path, every=5)
    with pytest.raises(DataError, match="NaN"):
        fit(bad, suite(), positions=N, checkpoints=saver)
    place = saver.latest()
    assert place is not None
    for name in suite():
        sae = SparseAutoencoder.from_pretrained(place / name)
        assert all(torch.isfinite(p).all() for p in sae.parameters())
    fit(chunks(), suite(), positions=N, checkpoints=saver)  # with good data it goes on from there


def test_another_fit_is_refused(tmp_path: Path) -> None:
    saver = Checkpoints(tmp_path, every=5)
    with pytest.raises(KeyboardInterrupt):
        fit(Stream(9), suite(), positions=N, checkpoints=saver)
    with pytest.raises(ConfigError, match=r"topk\.fit\.lr: 0\.003 → 0\.001"):
        fit(chunks(), suite(lr=1e-3), positions=N, checkpoints=saver)
    with pytest.raises(ConfigError, match="positions: 6000 → 7000"):
        fit(chunks(), suite(), positions=7000, checkpoints=saver)
    with pytest.raises(ConfigError, match="autoencoders: topk, aux"):
        fit(chunks(), {"topk": suite()["topk"]}, positions=N, checkpoints=saver)
    start = {"topk": SparseAutoencoder(suite()["topk"][0])}
    with pytest.raises(ConfigError, match="other autoencoders to start from"):
        fit(chunks(), suite(), positions=N, checkpoints=saver, init=start)
    place = saver.latest()
    assert place is not None
    (place / "fit.json").write_text(json.dumps({"version": 99}))
    with pytest.raises(FormatError, match="not a checkpoint of this version"):
        fit(chunks(), suite(), positions=N, checkpoints=saver)


def test_damaged_state_is_named(tmp_path: Path) -> None:
    saver = Checkpoints(tmp_path, every=5)
    with pytest.raises(KeyboardInterrupt):
        fit(Stream(9), suite(), positions=N, checkpoints=saver)
    place = saver.latest()
    assert place is not None
    state = place / "topk" / "state.safetensors"
    state.write_bytes(state.read_bytes()[:100])
    with pytest.raises(FormatError, match=r"topk/state\.safetensors: damaged checkpoint"):
        fit(chunks(), suite(), positions=N, checkpoints=saver)
