"""Mean raw activations from the same pass: right, and the same bytes however the scan was made."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from feature_corpus import make_pairs, make_sae, tiny
from test_scan_parts import KILLS

import seamark.features.scan_texts as scan_texts
from seamark.errors import ConfigError, DataError, FormatError
from seamark.features import Scan, ScanConfig, merge_scans, scan, scan_shard
from seamark.features.arrays import load_arrays, save_arrays
from seamark.features.gather import gather
from seamark.model.reading import Reader
from seamark.sae import SparseAutoencoder
from seamark.text.pairs import Pairs
from seamark.text.positions import positions

SUITE = {"a/1": make_sae(), "b": make_sae("layers.1.mlp", seed=4), "c": make_sae(seed=2)}
CONFIG = ScanConfig(batch_tokens=300, raw=True)
READ = Reader.__call__


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def with_a_silent_text() -> Pairs:
    pairs = make_pairs()
    return pairs.with_items([replace(p, chosen="") if p.id == "p1" else p for p in pairs])


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scan_texts, "PART_CHARACTERS", 2500)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("raw") / "scan"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scan_texts, "PART_CHARACTERS", 2500)
        found = scan(tiny(), SUITE, with_a_silent_text(), folder, config=CONFIG)
    assert len(found.parts) >= 4
    return folder


@pytest.mark.parametrize("kind", ["llama", "bert"])
@pytest.mark.parametrize(
    "more", [{}, {"scope": "all", "context_positions": "scoring"}, {"positions": "last", "keep_tokens": "never"}]
)
def test_means_of_every_text(tmp_path: Path, kind: str, more: dict[str, str]) -> None:
    model, pairs = tiny(kind), with_a_silent_text()
    config = ScanConfig.model_validate({"raw": True, "batch_tokens": 300, **more})
    found = scan(model, SUITE, pairs, tmp_path, config=config)
    rendered = [t for p in pairs for t in model.renderer().render_pair(p)]
    assert found.hookpoints == ["layers.1.mlp", "layers.2"]
    assert found.keeps_raw
    for hookpoint in found.hookpoints:
        raw = found.raw(hookpoint)
        assert raw.dtype == np.float32
        assert raw.shape == (len(rendered), 32)
        for row, text in enumerate(rendered):
            at = positions(text, config.positions, config.rule, config.scope)
            assert found.n_positions[row] == len(at)
            if len(at) == 0:
                assert np.isnan(raw[row]).all()
                continue
            h = gather(model, rendered, [row], [at], [hookpoint]).activations[hookpoint].double()
            np.testing.assert_allclose(raw[row], h.mean(0).numpy(), rtol=1e-4, atol=1e-5)
    if config.scope == "response":
        assert (found.n_positions == 0).sum() == 1


def test_the_model_reads_each_text_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows: list[int] = []

    def counting(self, batch):
        rows.append(len(batch.rows))
        return READ(self, batch)

    monkeypatch.setattr(Reader, "__call__", counting)
    scan(tiny(), SUITE, make_pairs(), tmp_path, config=CONFIG)
    assert sum(rows) == 2 * len(make_pairs())


def test_parts_one_by_one(whole: Path) -> None:
    found = Scan.open(whole)
    parts = list(found.raw_parts("layers.2"))
    assert [start for start, _ in parts] == found.starts[:-1].tolist()
    assert [len(means) for _, means in parts] == found.manifest["rows"]
    np.testing.assert_array_equal(np.concatenate([m for _, m in parts]), found.raw("layers.2"))
    one = load_arrays(found.parts[1] / "raw.safetensors")
    assert sorted(one) == found.hookpoints  # once a hookpoint, however many autoencoders share it


def test_raw_changes_nothing_else_and_is_off_by_default(whole: Path, tmp_path: Path) -> None:
    plain = scan(tiny(), SUITE, with_a_silent_text(), tmp_path / "plain", config=ScanConfig(batch_tokens=300))
    made, without = files(whole), files(tmp_path / "plain")
    added = {name for name in made if name.endswith("/raw.safetensors")}
    assert len(added) == len(plain.parts)
    assert made.keys() - added == without.keys()
    assert [name for name in without if without[name] != made[name]] == ["scan.json"]
    assert not plain.keeps_raw
    with pytest.raises(DataError, match="kept no raw activations"):
        plain.raw("layers.2")
    ours, theirs = json.loads(made["scan.json"]), json.loads(without["scan.json"])
    assert "raw" not in theirs["config"]  # as scans made before there was such an option
    assert ours["config"] == theirs["config"] | {"raw": True}
    assert ours.pop("key") != theirs.pop("key")
    ours.pop("config"), theirs.pop("config")
    assert ours == theirs


def test_configs_without_raw_are_those_of_earlier_versions() -> None:
    fields = {
        "positions": "clauses", "rule": "default", "scope": "response", "context_positions": "tokens",
        "max_length": None, "batch_tokens": None, "rewards": True, "precision": "fp32", "keep_tokens": "auto",
    }  # fmt: skip
    assert ScanConfig().model_dump() == fields
    assert list(ScanConfig().model_dump()) == list(fields)
    del fields["rule"]
    assert json.loads(ScanConfig().model_dump_json(exclude={"rule"})) == fields
    assert ScanConfig(raw=True).model_dump(exclude={"rule"}) == fields | {"raw": True}
    assert ScanConfig.model_validate(ScanConfig(raw=True).model_dump()) == ScanConfig(raw=True)


@pytest.mark.parametrize("apart", [False, True])
def test_shards_make_the_same_bytes(whole: Path, tmp_path: Path, apart: bool) -> None:
    folders = [tmp_path / (f"shard{i}" if apart else "all") for i in range(3)]
    for i in (2, 0, 1):
        scan_shard(tiny(), SUITE, with_a_silent_text(), folders[i], (i, 3), config=CONFIG)
    out = tmp_path / "merged" if apart else folders[0]
    merge_scans(folders, out)
    assert files(out) == files(whole)


def test_shards_without_raw_do_not_mix_in(tmp_path: Path) -> None:
    scan_shard(tiny(), SUITE, make_pairs(), tmp_path / "0", (0, 2), config=CONFIG)
    scan_shard(tiny(), SUITE, make_pairs(), tmp_path / "1", (1, 2), config=ScanConfig(batch_tokens=300))
    with pytest.raises(FormatError, match="a shard of another scan"):
        merge_scans([tmp_path / "0", tmp_path / "1"], tmp_path / "out")


@pytest.mark.parametrize("after", [1, 9, 20])
def test_a_scan_goes_on_after_a_kill(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int) -> None:
    rows: list[int] = []

    def dying(self, batch):
        rows.append(len(batch.rows))
        if sum(rows) > after:
            raise KeyboardInterrupt
        return READ(self, batch)

    with monkeypatch.context() as patch:
        patch.setattr(Reader, "__call__", dying)
        with pytest.raises(KeyboardInterrupt):
            scan(tiny(), SUITE, with_a_silent_text(), tmp_path, config=CONFIG)
    scan(tiny(), SUITE, with_a_silent_text(), tmp_path, config=CONFIG)
    assert files(tmp_path) == files(whole)


def test_turning_raw_on_reads_again_and_off_too(tmp_path: Path) -> None:
    off, on = ScanConfig(batch_tokens=300), CONFIG
    first = scan(tiny(), SUITE, make_pairs(), tmp_path / "a", config=off)
    before = files(tmp_path / "a")
    assert scan(tiny(), SUITE, make_pairs(), tmp_path / "a", config=on).raw("layers.2").shape == (24, 32)
    assert scan(tiny(), SUITE, make_pairs(), tmp_path / "a", config=off).manifest == first.manifest
    assert files(tmp_path / "a") == before


def test_batch_size_moves_rounding_only(whole: Path, tmp_path: Path) -> None:
    one = scan(tiny(), SUITE, with_a_silent_text(), tmp_path, config=ScanConfig(batch_tokens=1, raw=True))
    for hookpoint in one.hookpoints:
        np.testing.assert_allclose(one.raw(hookpoint), Scan.open(whole).raw(hookpoint), rtol=1e-3, atol=1e-4)


def test_few_texts_are_held_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Means of a part are written with it: no array is as long as the corpus."""
    module = sys.modules["seamark.features.scan_parts"]
    largest: list[int] = []

    def noted(path, arrays):
        if path.name == "raw.safetensors":
            largest.append(max(len(a) for a in arrays.values()))
        save_arrays(path, arrays)

    monkeypatch.setattr(module, "save_arrays", noted)
    monkeypatch.setattr(scan_texts, "PART_CHARACTERS", 1)
    found = scan(tiny(), SUITE, make_pairs(8), tmp_path, config=CONFIG)
    assert largest == [2] * 8
    assert found.raw("layers.2").shape == (16, 32)


def test_which_hookpoint(whole: Path, tmp_path: Path) -> None:
    found = Scan.open(whole)
    with pytest.raises(ConfigError, match=r"several hookpoints.*layers\.1\.mlp, layers\.2"):
        found.raw()
    with pytest.raises(ConfigError, match=r"did not read 'layers\.3'"):
        found.raw_parts("layers.3")
    single = scan(tiny(), {"s": make_sae()}, make_pairs(3), tmp_path, config=CONFIG)
    np.testing.assert_array_equal(single.raw(), single.raw("layers.2"))


def test_damaged_files_are_named(tmp_path: Path) -> None:
    found = scan(tiny(), {"s": make_sae()}, make_pairs(), tmp_path, config=CONFIG)
    path = found.parts[1] / "raw.safetensors"
    data, n = path.read_bytes(), found.manifest["rows"][1]
    for damaged in (b"", data[:-8], b"\xff" * 8 + data[8:]):
        path.write_bytes(damaged)
        with pytest.raises(FormatError, match=r"00001.*raw\.safetensors"):
            found.raw()
    for arrays in ({"other": np.zeros((n, 32), np.float32)}, {"layers.2": np.zeros((n - 1, 32), np.float32)}):
        save_arrays(path, arrays)
        with pytest.raises(FormatError, match=rf"no activations of {n} texts at layers\.2"):
            found.raw()
    path.unlink()
    with pytest.raises(FormatError, match=r"raw\.safetensors"):
        found.raw()


def test_an_untrained_autoencoder_in_the_same_pass(tmp_path: Path) -> None:
    suite = {"sae": make_sae(), "untrained": SparseAutoencoder.untrained(make_sae(), seed=8)}
    both = scan(tiny(), suite, make_pairs(), tmp_path, config=CONFIG)
    assert both.raw().shape == (24, 32)
    assert (both.pooled("sae") != both.pooled("untrained")).nnz


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_kills_at_random_moments_end_in_the_same_bytes(tmp_path: Path) -> None:
    here = Path(__file__).parent
    script = KILLS.format(tests=str(here.parent), features=str(here)).replace("test_scan_parts", "test_scan_raw")
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path / "killed"), "3"], capture_output=True,
                          text=True, check=False, timeout=300)  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    scan(tiny(), SUITE, make_pairs(), tmp_path / "whole", config=CONFIG)
    assert files(tmp_path / "killed") == files(tmp_path / "whole")
    assert Scan.open(tmp_path / "killed").keeps_raw
