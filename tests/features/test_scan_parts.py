"""Parts of a scan: made after kills, by shards, by several processes, they end in the same bytes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from feature_corpus import make_pairs, make_sae, tiny

import seamark.features.gather as gather_module
import seamark.features.scan_texts as scan_texts
from seamark.errors import ConfigError, DataError, FormatError, RunError
from seamark.features import Scan, ScanConfig, contexts, merge_scans, reading, scan, scan_shard
from seamark.features.accumulate import Accumulator
from seamark.features.arrays import load_arrays, map_arrays, save_arrays
from seamark.features.scan_parts import PartReader, PartWriter, batches_of
from seamark.features.scan_texts import ScanTexts
from seamark.model.reading import Reader

SUITE = {"a/1": make_sae(), "b": make_sae("layers.1.mlp", seed=4)}
CONFIG = ScanConfig(batch_tokens=300)
READ = Reader.__call__


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scan_texts, "PART_CHARACTERS", 2500)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "scan"
    before, scan_texts.PART_CHARACTERS = scan_texts.PART_CHARACTERS, 2500
    try:
        found = scan(tiny(), SUITE, make_pairs(), folder, config=CONFIG)
    finally:
        scan_texts.PART_CHARACTERS = before
    assert 4 <= len(found.parts) < len(make_pairs())
    return folder


def test_parts_are_cut_by_characters_and_hold_every_item_once() -> None:
    pairs = make_pairs()
    parts = ScanTexts(pairs).parts
    assert [i for part in parts for i in part] == list(range(len(pairs)))
    assert ScanTexts(pairs, 1).parts == [range(i, i + 1) for i in range(len(pairs))]
    assert ScanTexts(pairs, 10**9).parts == [range(len(pairs))]


def test_parts_change_nothing_but_where_things_lie(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scan_texts, "PART_CHARACTERS", 10**9)
    one, many = scan(tiny(), SUITE, make_pairs(), tmp_path, config=CONFIG), Scan.open(whole)
    assert len(one.parts) == 1
    assert one.texts.drop(["reward"]).equals(many.texts.drop(["reward"]))
    for sae_id in SUITE:
        for stat in ("mean", "sum", "max", "count", "read_max"):
            a, b = one.pooled(sae_id, stat), many.pooled(sae_id, stat)  # type: ignore[arg-type]
            assert abs(a - b).max() <= 1e-4 * abs(a).max()
            few = many.columns(sae_id, [3, 1, 90], stat)  # type: ignore[arg-type]
            assert (few != b[:, [3, 1, 90]]).nnz == 0
        latent = int(many.feature_stats(sae_id).sum.argmax())
        assert many.contexts(sae_id, latent)[0].text == one.contexts(sae_id, latent)[0].text
    safe = many.pooled("b", "mean", group="safety")
    assert (safe != many.pooled("b")[many.in_group("safety")]).nnz == 0


@pytest.mark.parametrize("apart", [False, True])
def test_shards_make_the_same_bytes(whole: Path, tmp_path: Path, apart: bool) -> None:
    folders = [tmp_path / (f"shard{i}" if apart else "all") for i in range(3)]
    for i in (2, 0, 1):
        scan_shard(tiny(), SUITE, make_pairs(), folders[i], (i, 3), config=CONFIG)
        with pytest.raises(FormatError, match="no finished scan"):
            Scan.open(folders[i])
    out = tmp_path / "merged" if apart else folders[0]
    merge_scans(folders, out)
    assert files(out) == files(whole)
    assert not (out / ".scan").exists()
    merge_scans([out], out) if not apart else merge_scans(folders, out)  # nothing is done twice
    assert files(out) == files(whole)


def test_a_shard_that_is_missing_or_foreign(tmp_path: Path) -> None:
    pairs = make_pairs()
    scan_shard(tiny(), SUITE, pairs, tmp_path / "0", (0, 3), config=CONFIG)
    scan_shard(tiny(), SUITE, pairs, tmp_path / "1", (1, 3), config=CONFIG)
    with pytest.raises(DataError, match=r"\d+ of \d+ parts are missing, first 00002"):
        merge_scans([tmp_path / "0", tmp_path / "1"], tmp_path / "out")
    scan_shard(tiny(), {"other": make_sae(seed=9)}, pairs, tmp_path / "2", (2, 3), config=CONFIG)
    with pytest.raises(FormatError, match="a shard of another scan"):
        merge_scans([tmp_path / str(i) for i in range(3)], tmp_path / "out")
    with pytest.raises(FormatError, match="no shard of a scan"):
        merge_scans([tmp_path], tmp_path / "out")
    for shard in ((3, 3), (-1, 3), (0, 0)):
        with pytest.raises(ConfigError, match="there is no shard"):
            scan_shard(tiny(), SUITE, pairs, tmp_path / "x", shard, config=CONFIG)


def test_a_scan_goes_on_with_the_parts_it_lacks(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows: list[int] = []

    def dying(self, batch):
        rows.append(len(batch.rows))
        if sum(rows) > 12:
            raise KeyboardInterrupt
        return READ(self, batch)

    monkeypatch.setattr(Reader, "__call__", dying)
    with pytest.raises(KeyboardInterrupt):
        scan(tiny(), SUITE, make_pairs(), tmp_path, config=CONFIG)
    done = {p.name for p in (tmp_path / ".scan" / "parts").iterdir() if not p.name.startswith(".")}
    assert done
    read_again: list[int] = []

    def counting(self, batch):
        read_again.append(len(batch.rows))
        return READ(self, batch)

    monkeypatch.setattr(Reader, "__call__", counting)
    scan(tiny(), SUITE, make_pairs(), tmp_path, config=CONFIG)
    kept = sum(Scan.open(whole).manifest["rows"][int(name)] for name in done)
    assert sum(read_again) == 2 * len(make_pairs()) - kept
    assert files(tmp_path) == files(whole)


def test_parts_of_another_plan_are_not_used(whole: Path, tmp_path: Path) -> None:
    scan_shard(tiny(), SUITE, make_pairs(), tmp_path, (0, 2), config=ScanConfig(batch_tokens=64))
    scan(tiny(), SUITE, make_pairs(), tmp_path, config=CONFIG)
    assert files(tmp_path) == files(whole)


@pytest.mark.parametrize("cores", [1, 9, 15, 16, 31])
def test_no_more_batches_at_once_than_said(cores: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []

    def noted(work, batches, at_once, ready):
        seen.append((at_once, ready.keywords.get("threads", ready.args[1])))
        return real(work, batches, at_once, ready)

    module = sys.modules[PartReader.__module__]
    real, before = module.in_order, torch.get_num_threads()
    monkeypatch.setattr(module, "in_order", noted)
    torch.set_num_threads(cores)
    try:
        scan(tiny(), SUITE, make_pairs(2), tmp_path, config=CONFIG)
    finally:
        torch.set_num_threads(before)
    ((at_once, threads),) = seen
    assert at_once <= 8
    assert at_once * threads <= cores


@pytest.mark.parametrize("where", ["add", "close", "render"])
def test_a_failure_among_batches_side_by_side(
    whole: Path, where: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """No part lacks a batch afterwards, nothing hangs on the model, and a second call mends it all."""
    model, before, calls = tiny(), torch.get_num_threads(), 0
    kind, name = (ScanTexts, "render") if where == "render" else (PartWriter, where)
    real = getattr(kind, name)

    def failing(self, *arguments):
        nonlocal calls
        calls += 1
        if calls == 3:
            raise DataError("made to fail")
        return real(self, *arguments)

    def hooks() -> int:
        return sum(len(m._forward_hooks) for m in model.hf.modules())

    hung = hooks()
    torch.set_num_threads(4)
    try:
        monkeypatch.setattr(kind, name, failing)
        with pytest.raises(DataError, match="made to fail"):
            scan(model, SUITE, make_pairs(), tmp_path, config=CONFIG)
        assert hooks() == hung
        monkeypatch.setattr(kind, name, real)
        scan(model, SUITE, make_pairs(), tmp_path, config=CONFIG)
    finally:
        torch.set_num_threads(before)
    assert files(tmp_path) == files(whole)


@pytest.mark.parametrize(
    "array", [np.array(3.0), np.arange(3, dtype=">i4"), np.arange(12).reshape(3, 4).T, np.empty((0, 3)), np.arange(3.0)]
)
def test_arrays_come_back(tmp_path: Path, array: np.ndarray) -> None:
    save_arrays(tmp_path / "a", {"odd": np.arange(3, dtype=np.uint8), "x": array})
    for load in (load_arrays, map_arrays):
        found = load(tmp_path / "a")["x"]
        assert found.shape == array.shape
        assert np.array_equal(found, array)
        assert found.flags.aligned
    with pytest.raises(FormatError, match="bool"):
        save_arrays(tmp_path / "b", {"x": np.array([True])})


KILLS = """
import os, random, signal, sys, time
sys.path[:0] = [{tests!r}, {features!r}]
import torch
torch.set_num_threads(1)
from pathlib import Path
import seamark.features.scan_texts as scan_texts
scan_texts.PART_CHARACTERS = 2500
from feature_corpus import make_pairs, make_sae, tiny
from test_scan_parts import CONFIG, SUITE, scan
out, times = Path(sys.argv[1]), int(sys.argv[2])
model, pairs, chance, killed, seconds = tiny(), make_pairs(), random.Random(times), 0, None
while True:
    begun = time.monotonic()
    child = os.fork()
    if child == 0:
        try:
            scan(model, SUITE, pairs, out, config=CONFIG)
        except BaseException:
            os._exit(1)
        os._exit(0)
    if killed < times:
        time.sleep(chance.random() * 0.12)
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    killed += os.WIFSIGNALED(status)
    if not os.WIFSIGNALED(status):
        assert os.WEXITSTATUS(status) == 0
        if killed >= times:
            break
        import shutil
        shutil.rmtree(out)  # it was faster than the kill: once more from the beginning
print(killed)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("times", [8, pytest.param(50, marks=pytest.mark.slow)])
def test_kills_at_random_moments_end_in_the_same_bytes(whole: Path, tmp_path: Path, times: int) -> None:
    here = Path(__file__).parent
    script = KILLS.format(tests=str(here.parent), features=str(here))
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path / "scan"), str(times)], capture_output=True,
                          text=True, check=False, timeout=600)  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout.split()[-1]) == times
    assert files(tmp_path / "scan") == files(whole)


RANKS = """
import sys
sys.path[:0] = [{tests!r}, {features!r}]
import torch
torch.set_num_threads(1)
import seamark.features.scan_texts as scan_texts
scan_texts.PART_CHARACTERS = 2500
from seamark.run.ranks import joined
from feature_corpus import make_pairs, tiny
from test_scan_parts import CONFIG, SUITE, scan
with joined() as rank:
    found = scan(tiny(), SUITE, make_pairs(), sys.argv[1], config=CONFIG)
    assert found.texts.num_rows == 2 * len(make_pairs())
"""


def test_two_processes_make_the_same_bytes(whole: Path, tmp_path: Path) -> None:
    here = Path(__file__).parent
    script = RANKS.format(tests=str(here.parent), features=str(here))
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "--no-python",
         sys.executable, "-c", script, str(tmp_path / "scan")],
        capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert files(tmp_path / "scan") == files(whole)


@pytest.mark.parametrize("nth", [1, 2, 5, 9])
def test_a_part_that_lacks_a_batch_is_never_finished(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nth: int
) -> None:
    calls = []
    add = Accumulator.add

    def failing(self, stored, firings):
        calls.append(1)
        if len(calls) == nth:
            raise MemoryError("no room")
        add(self, stored, firings)

    monkeypatch.setattr(Accumulator, "add", failing)
    with pytest.raises(MemoryError, match="no room"):
        scan(tiny(), SUITE, make_pairs(), tmp_path, config=CONFIG)
    monkeypatch.undo()
    monkeypatch.setattr(scan_texts, "PART_CHARACTERS", 2500)
    scan(tiny(), SUITE, make_pairs(), tmp_path, config=CONFIG)
    assert files(tmp_path) == files(whole)


def test_a_part_made_twice_at_once_is_whole(tmp_path: Path) -> None:
    """Two processes on the same part: whoever ends first has made it, the other's is thrown away."""
    reader = PartReader(tiny(), SUITE, ScanTexts(make_pairs()), CONFIG, batch_tokens=300, keep_tokens=True)
    texts = reader.corpus.render(0, reader.renderer, CONFIG)
    writers = [PartWriter(tmp_path / "both", 0, texts, reader) for _ in range(2)]
    for rows in batches_of(texts, 300):
        chosen = [texts.positions[r] for r in rows]
        got = gather_module.gather(tiny(), texts.texts, rows, chosen, reader.hookpoints, with_rewards=True)
        found = {i: sae.encode(got.activations[sae.config.hookpoint]) for i, sae in SUITE.items()}
        for writer in writers:
            writer.add(rows, found, got.rewards)
    writers[0].close()
    first = files(tmp_path / "both" / "00000")
    writers[1].close()
    assert files(tmp_path / "both") == {f"00000/{name}": data for name, data in first.items()}
    reader.read([0], tmp_path / "alone", lambda n: None)
    assert files(tmp_path / "alone" / "00000") == first


def test_shards_with_other_settings_delete_nothing(tmp_path: Path) -> None:
    pairs = make_pairs()
    scan_shard(tiny(), SUITE, pairs, tmp_path, (0, 2), config=CONFIG)
    before = files(tmp_path)
    for suite, config in ((SUITE, ScanConfig(batch_tokens=64)), ({"other": make_sae(seed=9)}, CONFIG)):
        with pytest.raises(RunError, match="shards of another scan lie here"):
            scan_shard(tiny(), suite, pairs, tmp_path, (1, 2), config=config)
    assert files(tmp_path) == before
    scan_shard(tiny(), SUITE, pairs, tmp_path, (1, 2), config=ScanConfig())  # batch_tokens left open: as it was begun
    assert merge_scans([tmp_path], tmp_path).manifest["batch_tokens"] == CONFIG.batch_tokens


def test_the_order_of_the_suite_changes_no_byte(whole: Path, tmp_path: Path) -> None:
    scan(tiny(), dict(reversed(SUITE.items())), make_pairs(), tmp_path, config=CONFIG)
    assert files(tmp_path) == files(whole)


def test_reading_many_parts_needs_few_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    resource = pytest.importorskip("resource", reason="needs limits on open files")
    monkeypatch.setattr(scan_texts, "PART_CHARACTERS", 1)
    monkeypatch.setattr(reading, "OPEN_PARTS", 2)
    monkeypatch.setattr(contexts, "OPEN_PARTS", 2)
    scan(tiny(), SUITE, make_pairs(30), tmp_path, config=CONFIG)
    found = Scan.open(tmp_path)
    assert len(found.parts) == 30
    open_now = len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").exists() else 64
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (open_now + 12, limits[1]))
    try:
        latent = int(found.feature_stats("b").sum.argmax())
        assert found.pooled("b").shape[0] == 60
        assert found.contexts("b", latent, 20)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def test_histograms(whole: Path) -> None:
    found = Scan.open(whole)
    for latent in range(0, 96, 5):
        edges, counts = found.histogram("b", latent)
        values = [a for row in range(found.texts.num_rows) for a in found.token_texts.activations(
            found.token_texts.read(row), "b", {latent: 1.0}) if a > 0]  # fmt: skip
        assert counts.sum() == len(values)
        if values:
            assert len(edges) == len(counts) + 1
            np.testing.assert_array_equal(np.histogram(values, edges)[0], counts)
    with pytest.raises(DataError, match="no latent 96"):
        found.histogram("b", 96)


def test_damaged_parts_are_named(whole: Path, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(whole, tmp_path / "scan")
    path = tmp_path / "scan" / "parts" / "00001" / "saes" / "b" / "pooled.safetensors"
    data = path.read_bytes()
    for damaged in (b"", data[:30], data[:-8], b"\xff" * 8 + data[8:]):
        path.write_bytes(damaged)
        with pytest.raises(FormatError, match=r"00001.*pooled\.safetensors"):
            Scan.open(tmp_path / "scan").pooled("b")
    shutil.rmtree(tmp_path / "scan" / "parts" / "00001")
    with pytest.raises(FormatError, match="00001"):
        _ = Scan.open(tmp_path / "scan").texts


def test_a_kill_before_the_manifest_is_made_good(whole: Path, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(whole, tmp_path / "scan")
    work = tmp_path / "scan" / ".scan"
    work.mkdir()
    (tmp_path / "scan" / "scan.json").rename(work / "scan.json")
    (work / "plan.json").write_text("{}")
    scan(tiny(), SUITE, make_pairs(), tmp_path / "scan", config=CONFIG)
    assert files(tmp_path / "scan") == files(whole)
