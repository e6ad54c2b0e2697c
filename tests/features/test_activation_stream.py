"""Streams of activations: every position once an epoch, enterable anywhere, from memory, disk or cache."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from feature_corpus import tiny
from hypothesis import given
from hypothesis import strategies as st
from token_texts import texts, token_texts
from torch import Tensor

from seamark.errors import DataError, FormatError, ModelError, RunError
from seamark.features import activations, blocks
from seamark.features.activations import ActivationStream
from seamark.features.blocks import Pieces, empty_block
from seamark.features.cache import ActivationCache
from seamark.features.gather import gather
from seamark.features.tokens import TokenTextsMaker, collect
from seamark.model.hookpoints import find_family
from seamark.text.positions import positions
from seamark.text.rendering import Rendered
from tiny import tiny_hooked
from tiny_run import environment

HOOKPOINTS = ["layers.2", "layers.1.mlp"]
N = token_texts(8).n_positions


def stream(n: int = 8, **options: Any) -> ActivationStream:
    settings: dict[str, Any] = {"epochs": 2, "batch_tokens": 300} | options
    return ActivationStream(tiny(), token_texts(n), settings.pop("hookpoints", HOOKPOINTS), **settings)


def whole(chunks: Iterator[dict[str, Tensor]]) -> dict[str, Tensor]:
    found = list(chunks)
    return {h: torch.cat([chunk[h] for chunk in found]) for h in found[0]}


def expected() -> dict[str, Tensor]:
    """Every position of the corpus, in its order, read text by text."""
    every: dict[str, list[Tensor]] = {h: [] for h in HOOKPOINTS}
    for text in texts(8):
        got = gather(tiny(), [text], [0], [positions(text, "tokens")], HOOKPOINTS)
        for hookpoint, h_ND in got.activations.items():
            every[hookpoint].append(h_ND)
    return {h: torch.cat(parts) for h, parts in every.items()}


def rows_of(h_ND: Tensor, among: Tensor) -> Tensor:
    """Index in `among` of each row; fails where there is none close by."""
    distance, index = torch.cdist(h_ND.double(), among.double()).min(1)
    assert float(distance.max()) < 1e-3
    return index


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(activations, "CHUNK", 64)


MODES = ["memory", "blocks", "spill", "cache", "cached blocks"]


def options_of(mode: str, folder: Path) -> dict[str, Any]:
    return {
        "memory": {}, "blocks": {"block": 150}, "spill": {"block": 150, "spill": folder / "spill"},
        "cache": {"cache": folder / "cache"}, "cached blocks": {"block": 150, "cache": folder / "cache"},
    }[mode]  # fmt: skip


@pytest.mark.parametrize("mode", MODES)
def test_every_position_once_an_epoch_in_a_new_order(mode: str, tmp_path: Path) -> None:
    s = stream(**options_of(mode, tmp_path))
    assert s.total == 2 * N
    assert s.fits == (mode in ("memory", "cache"))
    got, true = whole(iter(s)), expected()
    orders = []
    for epoch in range(2):
        part = {h: h_ND[epoch * N : (epoch + 1) * N] for h, h_ND in got.items()}
        by_hookpoint = {h: rows_of(h_ND, true[h]) for h, h_ND in part.items()}
        # Equal rows (both sides of a pair share their prompt) count as one place.
        first = {h: rows_of(true[h], true[h]) for h in true}
        for h, order in by_hookpoint.items():
            assert torch.equal(order.sort().values, first[h].sort().values)
        orders.append(by_hookpoint["layers.2"])
        again = {h: true[h][by_hookpoint["layers.2"]] for h in true}
        torch.testing.assert_close(part["layers.1.mlp"], again["layers.1.mlp"], rtol=1e-3, atol=1e-3)
    assert not torch.equal(*orders)
    assert float((orders[0][1:] - orders[0][:-1]).abs().float().mean()) > N / 6  # not in the corpus's order
    if mode.endswith("blocks") or mode == "spill":  # the first block mixes texts of the whole corpus
        assert int(orders[0][:150].max() - orders[0][:150].min()) > N / 2
        assert not torch.equal(orders[0][:150].sort().values, orders[1][:150].sort().values)


@pytest.mark.parametrize("mode", MODES)
def test_entered_anywhere_the_rest_is_the_same_bytes(mode: str, tmp_path: Path) -> None:
    options = options_of(mode, tmp_path)
    full = whole(iter(stream(**options)))
    for at in (0, 1, 64, 149, 150, 151, N - 1, N, N + 1, N + 200, 2 * N - 1):
        rest = whole(stream(**options).start_at(at))
        assert all(torch.equal(rest[h], full[h][at:]) for h in HOOKPOINTS), at
    assert list(stream(**options).start_at(2 * N)) == []


def test_the_same_arguments_give_the_same_stream_and_another_seed_another() -> None:
    one, two, other = (whole(iter(stream(block=150, seed=seed)))["layers.2"] for seed in (0, 0, 1))
    assert torch.equal(one, two)
    assert not torch.equal(one, other)


def test_chunks_and_blocks_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    rooms = []
    monkeypatch.setattr(activations, "empty_block", lambda n, d, **k: rooms.append(n) or empty_block(n, d, **k))
    assert max(len(chunk["layers.2"]) for chunk in stream(block=150)) == 64
    assert rooms == [150, 150]  # one for each hookpoint, for all blocks


def test_one_pass_feeds_all_hookpoints_and_stops_at_the_deepest(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_hooked("llama")
    ran = []
    for i, module in enumerate(find_family(model.hf)[1]):
        module.register_forward_hook(lambda *_, i=i: ran.append(i))
    read: list[str] = []

    def counted(model: Any, given: Any, *rest: Any, **options: Any) -> Any:
        read.extend(text.text_id for text in given)
        return gather(model, given, *rest, **options)

    monkeypatch.setattr(blocks, "gather", counted)
    s = ActivationStream(model, token_texts(8), ["layers.1.mlp", "layers.2"], epochs=3, batch_tokens=300)
    whole(iter(s))
    assert sorted(read) == sorted(t.text_id for t in texts(8))  # an epoch that fits is read once for all epochs
    assert set(ran) == {0, 1, 2}
    read.clear()
    assert len(whole(iter(stream(block=150)))["layers.2"]) == 2 * N
    blocks_per_epoch = -(-N // 150)
    assert len(read) <= 2 * (len(texts(8)) + blocks_per_epoch)  # a text on the edge of two blocks is read for both


def fail(*_: Any, **__: Any) -> None:
    raise AssertionError("the model was run")


def test_a_cache_is_read_by_later_epochs_and_runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    options = {"block": 150, "cache": tmp_path}
    first, plain = whole(iter(stream(**options))), whole(iter(stream(block=150)))
    for h in HOOKPOINTS:
        torch.testing.assert_close(first[h], plain[h], rtol=1e-4, atol=1e-4)  # the same order; batches differ
    with monkeypatch.context() as patched:
        patched.setattr(blocks, "gather", fail)
        again = whole(iter(stream(**options)))
        assert all(torch.equal(again[h], first[h]) for h in HOOKPOINTS)
        assert torch.equal(whole(iter(stream(hookpoints=["layers.2"], **options)))["layers.2"], first["layers.2"])
        for other in ({"precision": "bf16"}, {"n": 7}, {"hookpoints": ["layers.2", "layers.0"]}, {"batch_tokens": 200}):
            with pytest.raises(AssertionError, match="was run"):
                whole(iter(stream(**(options | other))))
    asked = []

    def counted(model: Any, given: Any, rows: Any, at: Any, hookpoints: Any, **rest: Any) -> Any:
        asked.append(tuple(hookpoints))
        return gather(model, given, rows, at, hookpoints, **rest)

    monkeypatch.setattr(blocks, "gather", counted)
    whole(iter(stream(hookpoints=["layers.2", "layers.0"], **options)))
    assert set(asked) == {("layers.0",)}  # only what is missing


def test_another_model_does_not_meet_the_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    whole(iter(stream(cache=tmp_path)))
    other = ActivationStream(tiny_hooked("llama", seed=1), token_texts(8), HOOKPOINTS, cache=tmp_path)
    monkeypatch.setattr(blocks, "gather", fail)
    with pytest.raises(AssertionError):
        whole(iter(other))


def cache_of(folder: Path, n: int = 8, shard: int = 200) -> ActivationCache:
    reader = blocks.Reader(tiny(), token_texts(n), HOOKPOINTS, 300)
    return ActivationCache(folder, reader, shard)


def test_a_cache_cut_short_goes_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    cache_of(tmp_path / "whole").load("x")
    calls = itertools.count()
    with monkeypatch.context() as patched:
        patched.setattr(blocks, "gather", lambda *a, **k: _cut(next(calls) >= 5) or gather(*a, **k))
        with pytest.raises(KeyboardInterrupt):
            cache_of(tmp_path / "cut").load("x")
    done = {p: p.stat().st_mtime_ns for p in (tmp_path / "cut").rglob("*.safetensors")}
    assert 0 < len(done) < len(list((tmp_path / "whole").rglob("*.safetensors")))
    cache_of(tmp_path / "cut").load("x")
    assert all(p.stat().st_mtime_ns == at for p, at in done.items())
    for file in (tmp_path / "whole").rglob("*.safetensors"):
        assert (tmp_path / "cut" / file.relative_to(tmp_path / "whole")).read_bytes() == file.read_bytes()


def _cut(now: bool) -> None:
    if now:
        raise KeyboardInterrupt


def test_a_damaged_cache_is_named(tmp_path: Path) -> None:
    cache_of(tmp_path).load("x")
    file = sorted(tmp_path.rglob("*.safetensors"))[0]
    file.write_bytes(file.read_bytes()[:40])
    cache = cache_of(tmp_path)
    cache.load("x")
    room = {h: torch.empty(N, 32) for h in HOOKPOINTS}
    every = Pieces.cut(np.arange(len(cache.texts)), cache.texts.counts, 0, N)
    with pytest.raises(FormatError, match="damaged activations"):
        cache.fill(every, room, lambda _: None)


def test_a_16_bit_model_takes_half_the_cache(tmp_path: Path) -> None:
    model = tiny_hooked("llama")
    model.hf.to(torch.bfloat16)
    s = ActivationStream(model, token_texts(8), ["layers.2"], cache=tmp_path)
    got = whole(iter(s))["layers.2"]
    plain = whole(iter(ActivationStream(model, token_texts(8), ["layers.2"])))["layers.2"]
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, plain, rtol=0.05, atol=0.5)
    size = sum(p.stat().st_size for p in tmp_path.rglob("*.safetensors"))
    assert N * 32 * 2 < size < N * 32 * 2 + 1000


@pytest.mark.parametrize("what", ["spill", "cache"])
def test_folders_that_cannot_be_used(what: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises((RunError, OSError), match="file"):
        whole(iter(stream(block=150, **{what: tmp_path / "file" / "inside"})))


def test_a_full_disk_is_an_error_and_not_a_crash(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"GiB of activations cannot be kept there .*spill|spill folder"):
        empty_block(1 << 40, 1 << 12, spill=tmp_path)
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("U", (), {"free": 1000})())
    with pytest.raises(RunError, match="the cache needs about"):
        whole(iter(stream(cache=tmp_path)))


def test_spilled_blocks_leave_nothing_behind(tmp_path: Path) -> None:
    chunks = iter(stream(block=150, spill=tmp_path))
    next(chunks)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("block", [150, 1 << 18])
def test_a_spilled_block_is_a_file_and_gives_the_same_bytes(
    block: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    plain = whole(iter(stream(block=block)))
    mapped: list[tuple[int, ...]] = []

    def memmap(file: Any, *, shape: tuple[int, ...], **options: Any) -> Any:
        about = os.fstat(file.fileno())
        assert (about.st_dev, about.st_size) == (tmp_path.stat().st_dev, 4 * shape[0] * shape[1])
        mapped.append(shape)
        return np.memmap(file, shape=shape, **options)

    monkeypatch.setattr(blocks, "np", types.SimpleNamespace(**vars(np) | {"memmap": memmap}))
    spilled = whole(iter(stream(block=block, spill=tmp_path)))
    assert mapped == [(min(block, N), 32)] * 2  # one for each hookpoint, for all blocks and epochs
    assert all(torch.equal(spilled[h], plain[h]) for h in HOOKPOINTS)


MEMORY = """
import hashlib, itertools, json, resource, sys
from pathlib import Path
import torch
from feature_corpus import tiny
from token_texts import texts
from seamark.features import TrainingConfig
from seamark.features.activations import ActivationStream
from seamark.features.tokens import TokenTextsMaker, collect
from seamark.text.positions import positions

config = TrainingConfig(buffer_bytes=int(sys.argv[1]), spill=sys.argv[3] if len(sys.argv) > 3 else None)
torch.set_num_threads(1)
some = texts(40)
at = [positions(text, "tokens") for text in some]

def read(n):
    where = itertools.cycle(at)
    maker = TokenTextsMaker(lambda text: (text, next(where)), n)
    collect(itertools.cycle(some), [maker])
    stream = ActivationStream(tiny(), maker.done(), ["layers.2", "layers.1.mlp"], batch_tokens=4096,
                              block=config.block(32), spill=config.spill)
    most, seen = 0, hashlib.sha256()
    for chunk in stream:
        most = max(most, anonymous())
        seen.update(chunk["layers.2"].numpy().tobytes())
    return most, seen.hexdigest()

def anonymous():
    return int(Path("/proc/self/status").read_text().split("RssAnon:")[1].split()[0]) << 10

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10

read(8000)  # what the model's pass and the libraries take
before, top = anonymous(), peak()
most, seen = read(int(sys.argv[2]))
print(json.dumps({"anonymous": most - before, "peak": peak() - top, "seen": seen}))
"""
BUFFER, POSITIONS, BESIDE = 16 << 20, 300_000, 22 << 20
"""Bytes of the block for each of two hookpoints; positions of 256 bytes, more than two blocks; what may come on top:
token ids, the order, chunks."""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_is_what_the_user_sets(tmp_path: Path) -> None:
    assert POSITIONS * 256 > 2 * BUFFER + BESIDE
    script = tmp_path / "memory.py"
    script.write_text(MEMORY)
    places = [str(Path(__file__).parent), str(Path(__file__).parents[1])]
    env = environment() | {"PYTHONPATH": os.pathsep.join(places), "OMP_NUM_THREADS": "1"}

    def measured(*spill: Path) -> dict[str, Any]:
        command = [sys.executable, script, BUFFER, POSITIONS, *spill]
        done = subprocess.run(list(map(str, command)), env=env, capture_output=True, text=True, timeout=280)
        assert done.returncode == 0, done.stderr
        return dict(json.loads(done.stdout))

    held, spilled = measured(), measured(tmp_path / "spill")
    assert 0.95 * 2 * BUFFER < held["anonymous"] <= 2 * BUFFER + BESIDE
    assert held["peak"] <= 2 * BUFFER + BESIDE
    assert spilled["anonymous"] <= BESIDE  # the block's pages belong to its file, which the system may write out
    assert spilled["seen"] == held["seen"]


def test_bad_activations_and_hookpoints_are_named() -> None:
    with pytest.raises(ModelError, match=r"layers\.9"):
        stream(hookpoints=["layers.9"])
    model = tiny_hooked("llama")
    with torch.no_grad():
        find_family(model.hf)[1][1].mlp.down_proj.weight[0, 0] = float("nan")
    s = ActivationStream(model, token_texts(8), ["layers.0", "layers.1.mlp"], block=150)
    with pytest.raises(DataError, match=r"layers\.1\.mlp of text p\d+:\w+: activations hold NaN"):
        whole(iter(s))


def test_texts_keep_ids_and_positions_only() -> None:
    kept, rendered = token_texts(6, "clauses"), texts(6)
    assert len(kept) == len(rendered)
    for i, text in enumerate(rendered):
        assert np.array_equal(kept.text(i).input_ids, text.input_ids)
        assert np.array_equal(kept.positions(i), positions(text, "clauses"))
        assert kept.name(i) == text.text_id
    n_tokens = sum(map(len, rendered))
    assert kept.ids.nbytes + kept.chosen.nbytes == 5 * n_tokens
    assert kept.subset([3, 1]).name(1) == kept.name(1)
    assert kept.digest() != token_texts(6, "tokens").digest() != kept.subset([1, 0]).digest()
    assert token_texts(0).n_positions == 0


def test_an_endless_corpus_stops_at_max_positions() -> None:
    def endless() -> Iterator[Rendered]:
        yield from itertools.cycle(texts(3))

    maker = TokenTextsMaker(lambda t: (t, positions(t, "tokens")), 500)
    collect(endless(), [maker])
    assert maker.done().n_positions == 500
    assert token_texts(8, max_positions=100).n_positions == 100


@given(st.lists(st.integers(1, 9), min_size=1, max_size=12), st.randoms(use_true_random=False), st.data())
def test_pieces_are_exactly_a_range_of_positions(counts: list[int], random: Any, data: st.DataObject) -> None:
    order = list(range(len(counts)))
    random.shuffle(order)
    flat = [(row, i) for row in order for i in range(counts[row])]
    start = data.draw(st.integers(0, len(flat)))
    stop = data.draw(st.integers(start, len(flat)))
    pieces = Pieces.cut(np.asarray(order), np.asarray(counts), start, stop)
    found = [(int(r), i) for r, a, b in zip(pieces.rows, pieces.first, pieces.last, strict=True) for i in range(a, b)]
    assert found == flat[start:stop]
    assert len(pieces) == stop - start
