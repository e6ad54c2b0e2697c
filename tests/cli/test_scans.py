"""`seamark scan run`, `scan merge` and `scan info`: results, shards, and what a user can get wrong."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import seamark.features.scan_texts as scan_texts
from seamark.features import Scan
from seamark.sae import SparseAutoencoder, sae_config
from tiny_run import Place, call, the_error

PART = 1500
"""Characters of a part here: some ten parts."""
FIELDS = {
    "scan", "model", "config", "choices", "groups", "n_pairs", "texts", "tokens", "truncated_texts", "positions",
    "parts", "saes",
}  # fmt: skip


def write_sae(folder: Path, hookpoint: str = "layers.2", seed: int = 0, **config: Any) -> str:
    chosen = {"d_in": 32, "d_sae": 64, "k": 6, "hookpoint": hookpoint} | config
    SparseAutoencoder(sae_config(**chosen), seed=seed).save_pretrained(folder)
    return str(folder)


def write_texts(folder: Path) -> Path:
    rows: list[Any] = [{"id": f"t{i}", "text": f"Bake bread number {i}, then wait. Ships came in."} for i in range(9)]
    file = folder / "texts.jsonl"
    rows += [{"id": "empty", "text": " "}, {"id": "none"}, rows[0]]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows) + "no JSON\n", encoding="utf-8")
    return file


def strict(text: str) -> Any:
    """JSON without NaN and infinity."""

    def refuse(word: str) -> None:
        raise AssertionError(word)

    return json.loads(text, parse_constant=refuse)


def run(*words: object) -> dict[str, Any]:
    """`seamark scan …` with `--json`, which must print one object and nothing else."""
    code, out, err = call("scan", *words, "--json")
    assert code == 0, err
    assert len(out.splitlines()) == 1
    assert "Traceback" not in err
    return dict(strict(out))


def files(folder: Path) -> dict[str, bytes]:
    """All a scan's folder holds but the command's result, which names the folder."""
    found = {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}
    found.pop("result.json", None)
    return found


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scan_texts, "PART_CHARACTERS", PART)


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """`--sae` options of two autoencoders."""
    root = tmp_path_factory.mktemp("suite")
    mlp = write_sae(root / "mlp", "layers.1.mlp", activation="relu", k=None)
    return [f"--sae=l2={write_sae(root / 'l2')}", f"--sae={mlp}"]


@pytest.fixture(scope="module")
def words(place: Place, suite: list[str]) -> list[str]:
    return ["--model", place.reward, *suite, *place.options]


@pytest.fixture(scope="module")
def whole(words: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A scan of all pairs by one process."""
    folder = tmp_path_factory.mktemp("whole") / "scan"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scan_texts, "PART_CHARACTERS", PART)
        run("run", *words, "--out", folder)
    return folder


@pytest.fixture(scope="module")
def sharded(words: list[str], tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Its three shards, in folders of their own."""
    root = tmp_path_factory.mktemp("sharded")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scan_texts, "PART_CHARACTERS", PART)
        for i in (3, 1, 2):
            run("run", *words, "--out", root / str(i), "--shard", f"{i}/3")
    return [root / str(i) for i in (1, 2, 3)]


def test_pairs(whole: Path, place: Place) -> None:
    result = strict((whole / "result.json").read_text())
    assert set(result) == FIELDS
    assert result["groups"] == {"safety": 36, "chat": 24}
    assert (result["n_pairs"], result["texts"], result["model"]) == (60, 120, Path(place.reward).name)
    assert result["config"]["max_length"] == 1024  # as the reward model was trained
    assert result["config"]["rewards"]
    assert list(result["saes"]) == ["l2", "mlp"]
    l2, mlp = result["saes"].values()
    assert (l2["hookpoint"], l2["d_sae"], l2["k"], mlp["hookpoint"], mlp["k"]) == ("layers.2", 64, 6, "layers.1.mlp",
                                                                                   None)  # fmt: skip
    found = Scan.open(whole)
    assert result["parts"] == len(found.parts) > 6
    assert result["positions"] == found.manifest["positions"]
    assert sum(result["positions"].values()) == found.n_positions.sum()
    for name in ("l2", "mlp"):
        z = found.pooled(name, "count")
        about = result["saes"][name]
        assert about["firing"] == len(set(z.indices))
        assert about["l0"] == pytest.approx(z.sum() / found.n_positions.sum())
        assert about["with_q"] == np.isfinite(found.q(name)).sum() > 0


def test_bad_rows_are_listed(whole: Path, place: Place) -> None:
    (row,) = (strict(line) for line in (whole / "rejected.jsonl").read_text().splitlines())
    assert row["file"] == place.pairs["chat"][0]
    assert row["row"] == 25
    assert "rejected" in row["reason"]


def test_info(whole: Path) -> None:
    result = run("info", whole)
    assert result == strict((whole / "result.json").read_text())
    code, out, err = call("scan", "info", whole)
    assert (code, err) == (0, "")
    assert "safety: pairs, positions" in out
    assert "layers.1.mlp" in out
    assert re.search(r"rewards\W+yes", out)


def test_the_table_of_a_run(words: list[str], whole: Path) -> None:
    """A finished scan is shown, not made again."""
    before = {p: p.stat().st_mtime_ns for p in (whole / "parts").rglob("*")}
    code, out, _ = call("scan", "run", *words, "--out", whole)
    assert code == 0
    assert "latents of single tokens" in out
    assert out.splitlines()[-1] == str(whole / "result.json")
    assert before == {p: p.stat().st_mtime_ns for p in (whole / "parts").rglob("*")}


def test_shards_are_merged_to_the_same_bytes(whole: Path, sharded: list[Path], tmp_path: Path) -> None:
    result = run("merge", *sharded, "--out", tmp_path / "scan")
    assert files(tmp_path / "scan") == files(whole)
    assert result | {"scan": str(whole)} == run("info", whole)
    assert strict((tmp_path / "scan" / "result.json").read_text()) == result
    again = run("merge", *sharded, "--out", tmp_path / "scan")  # nothing is left to do
    assert again == result
    assert files(tmp_path / "scan") == files(whole)


def test_shards_that_share_a_folder(words: list[str], whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "scan"
    for i in (2, 3, 1):
        told = run("run", *words, "--out", out, "--shard", f"{i}/3")
        assert told == {"shard": f"{i}/3", "parts": told["parts"], "out": str(out)}
        assert "no finished scan here" in the_error(*call("scan", "info", out))
    run("merge", out, "--out", out)
    assert files(out) == files(whole)
    run("merge", out, "--out", out)  # nothing is left to do
    assert files(out) == files(whole)


def test_a_shard_tells_what_comes_next(words: list[str], sharded: list[Path]) -> None:
    code, out, _ = call("scan", "run", *words, "--out", sharded[0], "--shard", "1/3")
    assert code == 0
    assert "parts of this shard" in out
    assert "seamark scan merge" in out


def test_more_shards_than_parts(
    place: Place, suite: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scan_texts, "PART_CHARACTERS", 10**6)
    texts = write_texts(tmp_path)
    words = ["--model", place.reward, suite[0], "--texts", texts]
    assert run("run", *words, "--out", tmp_path / "one")["parts"] == 1
    folders = [tmp_path / f"shard{i}" for i in range(1, 4)]
    parts = [run("run", *words, "--out", f, "--shard", f"{i}/3")["parts"] for i, f in enumerate(folders, 1)]
    assert parts == [1, 0, 0]
    run("merge", *folders, "--out", tmp_path / "merged")
    assert files(tmp_path / "merged") == files(tmp_path / "one")


def test_plain_texts(place: Place, suite: list[str], tmp_path: Path) -> None:
    file, out = write_texts(tmp_path), tmp_path / "scan"
    (tmp_path / "more.txt").write_text("One paragraph, of two lines.\nHere it ends.\n\nAnother; then no more.\n")
    result = run("run", "--model", place.reward, *suite, "--texts", file, "--texts", tmp_path / "more.txt",
                 "--out", out)  # fmt: skip
    assert (result["groups"], result["n_pairs"], result["texts"]) == ({"texts": 11}, 0, 11)
    texts = Scan.open(out).texts
    assert texts["text_id"].to_pylist()[:9] == [f"t{i}" for i in range(9)]
    assert texts["pair_id"].null_count == texts["side"].null_count == 11
    assert texts["reward"].null_count == 0
    rejected = [strict(line) for line in (out / "rejected.jsonl").read_text().splitlines()]
    assert [(r["file"], r["row"]) for r in rejected] == [(str(file), n) for n in (10, 11, 12, 13)]
    assert "texts: texts, positions" in call("scan", "info", out)[1]


def test_a_model_that_is_no_reward_model(place: Place, suite: list[str], tmp_path: Path) -> None:
    for name, model in (("causal", place.causal), ("base", place.base)):
        result = run("run", "--model", model, suite[0], *place.options, "--out", tmp_path / name)
        assert not result["config"]["rewards"]
        assert Scan.open(tmp_path / name).texts["reward"].null_count == 120
        assert re.search(r"rewards\W+no\b", call("scan", "info", tmp_path / name)[1])


def test_sides_of_the_split(place: Place, words: list[str], suite: list[str], whole: Path, tmp_path: Path) -> None:
    ids = {}
    for side in ("train", "test"):
        result = run("run", *words, "--split", side, "--out", tmp_path / side)
        ids[side] = set(Scan.open(tmp_path / side).rows_by_pair)
        assert len(ids[side]) == result["n_pairs"] > 0
    assert ids["train"] | ids["test"] == set(Scan.open(whole).rows_by_pair)
    assert not ids["train"] & ids["test"]
    recipe = place.recipe(tmp_path, data__test_share=0.5)
    run("run", "--config", recipe, "--model", place.reward, suite[0], "--split", "test", "--out", tmp_path / "half")
    assert len(ids["test"]) < len(Scan.open(tmp_path / "half").rows_by_pair) < 60


def test_the_recipe_decides_how_is_read(place: Place, suite: list[str], tmp_path: Path) -> None:
    settings = ["--set", "scan.positions=last", "--set", "scan.keep_tokens=never", "--set", "scan.rewards=false"]
    settings += ["--set", "scan.raw=true"]
    result = run("run", "--model", place.reward, suite[0], *place.options, *settings, "--set", "scan.max_length=20",
                 "--out", tmp_path)  # fmt: skip
    assert result["positions"] == {"safety": 72, "chat": 48}
    assert result["choices"]["keep_tokens"] is False
    assert result["truncated_texts"] > 0
    assert result["config"]["max_length"] == 20
    found = Scan.open(tmp_path)
    assert set(found.n_positions.tolist()) == {1}
    assert len(found.raw()) == 120
    assert found.texts["reward"].null_count == 120
    line = the_error(*call("scan", "run", "--model", place.reward, suite[0], "--set", "scan.positions=words",
                           "--out", tmp_path / "x"))  # fmt: skip
    assert "scan.positions: input should be 'tokens', 'clauses', 'sentences' or 'last'" in line


def test_a_silent_sae_has_numbers_too(place: Place, tmp_path: Path) -> None:
    sae = SparseAutoencoder(sae_config(d_in=32, d_sae=64, k=6, hookpoint="layers.2"))
    sae.b_enc.data.fill_(-100.0)
    sae.save_pretrained(tmp_path / "sae")
    run("run", "--model", place.reward, f"--sae={tmp_path / 'sae'}", *place.options, "--out", tmp_path / "scan")
    about = run("info", tmp_path / "scan")["saes"]["sae"]
    assert (about["firing"], about["l0"], about["with_q"]) == (0, 0.0, 0)


@pytest.mark.parametrize("shard", ["0/3", "4/3", "x", "1", "1/0", "-1/3", "1/3/5", "1.5/3", "", "²/3"])
def test_shards_that_are_none(words: list[str], tmp_path: Path, shard: str) -> None:
    line = the_error(*call("scan", "run", *words, "--out", tmp_path / "out", f"--shard={shard}"))
    assert line == f"--shard: {shard!r} is no shard. Write i/n, i from 1 to n, as in --shard 3/16"
    assert not (tmp_path / "out").exists()


Change = Callable[[Place, Path], list[object]]
CASES: dict[str, tuple[Change, str]] = {
    "pairs and texts": (lambda p, f: ["--texts", write_texts(f)], r"--texts: both pairs and texts are given"),
    "a width that does not fit": (lambda p, f: [f"--sae=w={write_sae(f / 's', d_in=16)}"],
                                  r"w: d_in is 16 but layers\.2 of .* is 32 wide. Use the model it was trained on"),
    "no such hookpoint": (lambda p, f: [f"--sae=w={write_sae(f / 's', 'layers.9')}"], r"layers\.9"),
    "no hookpoint": (lambda p, f: [f"--sae=w={write_sae(f / 's', '')}"], r"w: the autoencoder names no hookpoint"),
    "no SAE in the folder": (lambda p, f: [f"--sae={f}"], r"--sae|config|SAE|autoencoder"),
    "two of a name": (lambda p, f: [f"--sae=l2={write_sae(f / 's')}"], r"--sae: two SAEs are called l2. Name them"),
    "an SAE without a name": (lambda p, f: [f"--sae=={f}"], r"--sae: '=.*' is not of the form name=folder"),
    "a name without an SAE": (lambda p, f: ["--sae=x="], r"--sae: 'x=' is not of the form name=folder"),
    "no such pairs": (lambda p, f: ["--pairs", f"more={f / 'nothing.jsonl'}"], r"nothing\.jsonl"),
}  # fmt: skip


@pytest.mark.parametrize("case", list(CASES))
def test_what_a_scan_cannot_be_made_of(place: Place, words: list[str], tmp_path: Path, case: str) -> None:
    change, problem = CASES[case]
    line = the_error(*call("scan", "run", *words, *change(place, tmp_path), "--out", tmp_path / "out"))
    assert re.search(problem, line), line
    assert not (tmp_path / "out").exists()


def test_a_scan_without_saes(place: Place, tmp_path: Path) -> None:
    code, out, err = call("scan", "run", "--model", place.reward, *place.options, "--out", tmp_path / "out")
    assert (code, out) == (2, "")
    assert "--sae" in err
    assert not (tmp_path / "out").exists()


def test_texts_have_no_split(place: Place, suite: list[str], tmp_path: Path) -> None:
    line = the_error(*call("scan", "run", "--model", place.reward, *suite, "--texts", write_texts(tmp_path),
                           "--split", "test", "--out", tmp_path / "out"))  # fmt: skip
    assert line == "--split: only pairs are split. Leave it out with --texts"
    assert not (tmp_path / "out").exists()


def test_texts_without_one_that_can_be_used(place: Place, suite: list[str], tmp_path: Path) -> None:
    file = tmp_path / "texts.jsonl"
    for content in ("", "{}\n", '{"text": ""}\n', '{"other": "x"}\n'):
        file.write_text(content)
        line = the_error(*call("scan", "run", "--model", place.reward, *suite, "--texts", file,
                               "--out", tmp_path / "out"))  # fmt: skip
        assert str(file) in line
        assert not (tmp_path / "out").exists()


def stranger(folder: Path) -> dict[str, bytes]:
    """A folder with someone's work."""
    for name in ("thesis.tex", "parts/one.txt", "saes/list.csv"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("mine")
    return files(folder)


def test_a_folder_that_holds_other_things_is_left_alone(words: list[str], sharded: list[Path], tmp_path: Path) -> None:
    before = stranger(tmp_path / "work")
    for command in (["run", *words], ["run", *words, "--shard", "1/3"], ["merge", *sharded]):
        line = the_error(*call("scan", *command, "--out", tmp_path / "work"))
        assert re.search(r"work: the folder holds '[a-z.]+' and is no scan. Choose another --out", line)
        assert files(tmp_path / "work") == before


def test_folders_named_like_those_of_a_scan_are_left_alone_too(
    words: list[str], sharded: list[Path], tmp_path: Path
) -> None:
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts" / "bolts.csv").write_text("mine")
    for command in (["run", *words], ["merge", *sharded]):
        assert "and is no scan" in the_error(*call("scan", *command, "--out", tmp_path))
    assert (tmp_path / "parts" / "bolts.csv").read_text() == "mine"


def test_a_shard_is_missing(sharded: list[Path], tmp_path: Path) -> None:
    line = the_error(*call("scan", "merge", *sharded[:2], "--out", tmp_path / "out"))
    assert re.search(r"\d+ of \d+ parts are missing, first 00002. Run the shards that are not done", line)
    assert "no finished scan" in the_error(*call("scan", "info", tmp_path / "out"))
    run("merge", *sharded, "--out", tmp_path / "out")  # and with all of them it goes on


@pytest.mark.parametrize("other", [
    ["--set", "scan.positions=last"], ["--split", "train"], ["--set", "scan.batch_tokens=256"],
    ["--set", "scan.keep_tokens=never"],
])  # fmt: skip
def test_shards_of_different_scans(words: list[str], sharded: list[Path], tmp_path: Path, other: list[str]) -> None:
    """Of other positions, texts, batches (other bytes), or without token-level latents: nothing that can be joined."""
    run("run", *words, *other, "--shard", "3/3", "--out", tmp_path / "other")
    line = the_error(*call("scan", "merge", *sharded[:2], tmp_path / "other", "--out", tmp_path / "out"))
    assert re.search(r"other: a shard of another scan than .*\. Merge shards of one model", line)
    assert not (tmp_path / "out").exists()


def test_parts_left_by_another_scan_are_not_merged(
    words: list[str], whole: Path, sharded: list[Path], tmp_path: Path
) -> None:
    run("run", *words, "--set", "scan.positions=last", "--shard", "1/3", "--out", tmp_path / "out")
    run("merge", *sharded, "--out", tmp_path / "out")
    assert files(tmp_path / "out") == files(whole)


def test_a_kill_right_after_the_end_leaves_nothing(words: list[str], whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole, tmp_path / "out")
    (tmp_path / "out" / ".scan").mkdir()  # as it is when its parts are gone and its manifest too
    (tmp_path / "out" / ".scan" / "plan.json").write_text("{}")
    run("run", *words, "--out", tmp_path / "out")
    assert files(tmp_path / "out") == files(whole)


def test_a_merge_replaces_an_older_scan(words: list[str], whole: Path, sharded: list[Path], tmp_path: Path) -> None:
    shutil.copytree(whole, tmp_path / "out")
    run("run", *words, "--set", "scan.positions=last", "--out", tmp_path / "out")
    assert files(tmp_path / "out") != files(whole)
    run("merge", *sharded, "--out", tmp_path / "out")
    assert files(tmp_path / "out") == files(whole)


def test_a_finished_scan_holds_all_shards(words: list[str], whole: Path, sharded: list[Path], tmp_path: Path) -> None:
    run("merge", sharded[0], whole, "--out", tmp_path / "out")
    assert files(tmp_path / "out") == files(whole)
    run("merge", whole, "--out", tmp_path / "copy")
    assert files(tmp_path / "copy") == files(whole)


def test_parts_of_a_finished_scan_do_not_fill_the_gaps_of_another(
    words: list[str], whole: Path, tmp_path: Path
) -> None:
    shutil.copytree(whole, tmp_path / "out")
    run("run", *words, "--set", "scan.positions=last", "--shard", "1/3", "--out", tmp_path / "out")
    line = the_error(*call("scan", "merge", tmp_path / "out", "--out", tmp_path / "out"))
    assert "parts are missing, first 00001" in line
    assert {k: v for k, v in files(tmp_path / "out").items() if not k.startswith(".scan")} == files(whole)


def test_folders_that_are_no_shards(sharded: list[Path], tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "nowhere", sharded[0] / "rejected.jsonl"):
        line = the_error(*call("scan", "merge", sharded[0], folder, "--out", tmp_path / "out"))
        assert line == f"{folder}: no shard of a scan here. Name the folders given to --out"
        assert not (tmp_path / "out").exists()
    code, out, err = call("scan", "merge", "--out", tmp_path / "out")
    assert (code, out) == (2, "")
    assert "Traceback" not in err


def test_a_damaged_shard_is_named(sharded: list[Path], tmp_path: Path) -> None:
    copies = [Path(shutil.copytree(folder, tmp_path / folder.name)) for folder in sharded]
    part = sorted((copies[1] / ".scan" / "parts").iterdir())[0]
    (part / "texts.parquet").write_bytes(b"rubbish")
    line = the_error(*call("scan", "merge", *copies, "--out", tmp_path / "out"))
    assert f"{part.name}/texts.parquet: missing or damaged" in line
    (copies[1] / ".scan" / "plan.json").write_text("[1]")
    assert "no shard of a scan here" in the_error(*call("scan", "merge", *copies, "--out", tmp_path / "other"))


def test_a_file_where_the_folder_should_be(words: list[str], sharded: list[Path], tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("mine")
    for command in (["run", *words], ["merge", *sharded], ["run", *words, "--shard", "1/2"]):
        for out in (file, file / "below"):
            assert str(file) in the_error(*call("scan", *command, "--out", out))
    assert file.read_text() == "mine"


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"format_version": 1}', "rubbish"])
def test_info_of_what_is_no_scan(tmp_path: Path, content: str) -> None:
    (tmp_path / "scan.json").write_text(content)
    line = the_error(*call("scan", "info", tmp_path))
    assert str(tmp_path) in line
    assert re.search(r"no finished scan here|another format version", line)
