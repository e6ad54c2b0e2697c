"""What a user can get wrong: one line that says what, where and what to do; exit code 2; nothing half-written."""

from __future__ import annotations

import os
import re
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from seamark.audit import inject_noise, write_edit
from seamark.run import Run
from seamark.text.pairs import Pairs, PreferencePair
from tiny_run import Place, call, seamark, the_error

ONE_CELL = {"seeds": [0], "poison__rates": [], "denoise__rates": []}


def unfinished(folder: Path, whole: tuple[str, ...] = ()) -> bool:
    """No result, no report and no finished stage but those named."""
    stages = {str(p.parent.relative_to(folder)) for p in folder.rglob("manifest.json") if ".partial" not in p.parts}
    return stages == set(whole) and not any((folder / name).exists() for name in ("result.json", "report.html"))


@pytest.mark.parametrize(("changes", "problem"), [
    ({"poison__rates": [0]}, r"recipe\.yaml: poison\.rates\.0: input should be greater than 0"),
    ({"poison__rates": [1.5]}, r"poison\.rates\.0: input should be less than 1"),
    ({"denoise__rates": 0.1}, r"denoise\.rates: input should be a valid list"),
    ({"denoise__rates": [0.1, 0.1]}, r"denoise\.rates: 0\.1 is named twice"),
    ({"denoise__noise": 0.5}, r"denoise\.noise: input should be less than 0\.5"),
    ({"poison__methods": ["safest"]}, r"poison\.methods: no scoring method 'safest'; the methods are .*safer"),
    ({"poison__methods": ["none"]}, r"poison\.methods: no scoring method 'none'"),
    ({"poison__methods": []}, r"poison\.methods: list should have at least 1 item"),
    ({"seeds": []}, r"seeds: list should have at least 1 item"),
    ({"seeds": [0, 0]}, r"seeds: 0 is named twice"),
    ({"seeds": [-1]}, r"seeds\.0: input should be greater than or equal to 0"),
    ({"sae__k": 65}, r"sae: k 65 is more than the 64 latents of d_sae"),
    ({"sae__k": "many"}, r"sae\.k: input should be a valid integer"),
    ({"sae__kk": 4}, r"sae\.kk: extra inputs are not permitted"),
    ({"colour": "blue"}, r"colour: extra inputs are not permitted"),
    ({"features__min_rating": 6}, r"features\.min_rating: input should be less than or equal to 5"),
    ({"workers": 0}, r"workers: input should be greater than or equal to 1"),
    ({"recipe": "sefar"}, r"recipe: input should be 'safer'"),
])  # fmt: skip
def test_a_recipe_is_checked_before_anything_is_done(
    place: Place, tmp_path: Path, changes: dict[str, Any], problem: str
) -> None:
    line = the_error(*call("run", place.recipe(tmp_path, **changes)))
    assert re.search(problem, line)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("changes", "problem"), [
    ({"sae__hookpoint": "layers.99"}, r"sae\.hookpoint layers\.99 is out of range: .* has 4 blocks. Choose one from "
                                      r"layers\.0 to layers\.3"),
    ({"sae__hookpoint": "layer.1"}, r"'layer\.1' is not a hookpoint. Write layers\.N"),
    ({"target": "danger"}, r"no training pair in the target group 'danger'. Give pairs as danger=FILE"),
    ({"model": "/nowhere/model"}, r"/nowhere/model"),
])  # fmt: skip
def test_what_would_fail_later_fails_at_once(
    place: Place, tmp_path: Path, changes: dict[str, Any], problem: str
) -> None:
    line = the_error(*call("run", place.recipe(tmp_path, **changes)))
    assert re.search(problem, line)
    assert unfinished(tmp_path / "run")


@pytest.mark.parametrize("changes", [{"poison__rates": [0.2, 0.01]}, {"denoise__rates": [0.019]}])
def test_a_rate_of_less_than_one_pair(place: Place, tmp_path: Path, changes: dict[str, Any]) -> None:
    line = the_error(*call("run", place.recipe(tmp_path, **changes)))
    assert re.search(r"rate 0\.01\d* of 25 safety pairs is less than one pair. Choose a higher rate", line)
    assert unfinished(tmp_path / "run", ("data",))


def test_noise_of_less_than_one_pair(place: Place, tmp_path: Path) -> None:
    assert "less than one pair" in the_error(*call("run", place.recipe(tmp_path, denoise__noise=0.01)))


@pytest.mark.parametrize(("text", "problem"), [
    ("seeds: [0, 1\nname: x", r"recipe\.yaml: not valid YAML \(line 2\)"),
    ("", r"a recipe is a mapping of keys to values"),
    ("- safer", r"a recipe is a mapping of keys to values"),
])  # fmt: skip
def test_broken_yaml(tmp_path: Path, text: str, problem: str) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(text)
    assert re.search(problem, the_error(*call("run", recipe)))


@pytest.mark.parametrize("arguments", [
    ["run", "nowhere.yaml"], ["run", "."], ["demo", "--config", "nowhere.yaml"],
])  # fmt: skip
def test_no_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str]) -> None:
    monkeypatch.chdir(tmp_path)
    assert "cannot read the recipe" in the_error(*call(*arguments))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("options", "problem"), [
    (["--pairs", "pairs.jsonl"], r"--pairs: 'pairs\.jsonl' is not of the form group=file"),
    (["--pairs", "=pairs.jsonl"], r"--pairs: '=pairs\.jsonl' is not of the form"),
    (["--set", "seeds"], r"--set: 'seeds' is not of the form key=value"),
    (["--set", "seeds=[0"], r"--set: the value of 'seeds' is not valid YAML"),
    (["--set", "sae=3", "--set", "sae.k=4"], r"--set: 'sae\.k' is set, and so is 'sae' as a whole"),
    (["--set", "data=3", "--set", "sae.k=4"], r"data: input should be a valid dictionary"),
    (["--set", "seeds.a.b=3"], r"seeds: input should be a valid list"),
    (["--config", "other.yaml"], r"--config: give the recipe once"),
])  # fmt: skip
def test_options_that_make_no_sense(place: Place, tmp_path: Path, options: list[str], problem: str) -> None:
    assert re.search(problem, the_error(*call("run", place.recipe(tmp_path), *options)))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("content", "problem"), [
    (None, r"bad\.jsonl"),
    ("", r"bad\.jsonl"),
    ('{"question": "a", "answer": "b"}\n', r"bad\.jsonl"),
    ("not json\n", r"bad\.jsonl"),
])  # fmt: skip
def test_pairs_that_cannot_be_read(place: Place, tmp_path: Path, content: str | None, problem: str) -> None:
    bad = tmp_path / "bad.jsonl"
    if content is not None:
        bad.write_text(content)
    for line in (
        the_error(*call("run", place.recipe(tmp_path), f"--pairs=safety={bad}", f"--pairs=chat={bad}")),
        the_error(*call("reward", "eval", "--model", place.reward, f"--pairs=safety={bad}", "--out", tmp_path / "e")),
    ):
        assert re.search(problem, line)
    assert unfinished(tmp_path / "run")
    assert not (tmp_path / "e").exists()


def test_one_group_alone_has_nothing_to_be_told_from(place: Place, tmp_path: Path) -> None:
    recipe = place.recipe(tmp_path, pairs={"safety": place.pairs["safety"]})
    assert "there are only pairs of the group 'safety'" in the_error(*call("run", recipe))
    assert unfinished(tmp_path / "run")


def test_no_reward_model(place: Place, tmp_path: Path) -> None:
    line = the_error(*call("reward", "eval", "--model", place.causal, *place.options, "--out", tmp_path / "out"))
    assert "not a reward model: LlamaForCausalLM has no reward head" in line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("arguments", "problem"), [
    (["scan", "info", "nowhere"], r"nowhere"),
    (["contrast", "nowhere"], r"nowhere"),
    (["audit", "score", "--scan", "nowhere"], r"nowhere"),
    (["audit", "score"], r"scan"),
    (["audit", "score", "--method", "best"], r"no scoring method 'best'. The methods are: .*safer"),
    (["audit", "undo", "e.jsonl", "m.json", "--out", "o"], r"m\.json|e\.jsonl"),
    (["audit", "poison", "--rate", "0.1", "--scores", "s.json", "--out", "o"], r"s\.json"),
    (["reward", "eval", "--model", "nowhere/model"], r"nowhere/model"),
    (["scan", "run", "--model", "x", "--sae", "nowhere", "--out", "o"], r"nowhere"),
])  # fmt: skip
def test_files_that_are_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], problem: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert re.search(problem, the_error(*call(*arguments)))
    assert list(tmp_path.iterdir()) == []


def test_undo_of_a_group_that_is_not_there(tmp_path: Path) -> None:
    pairs = Pairs(tuple(PreferencePair(f"p{i}", "safety", "q", f"a{i}", f"b{i}") for i in range(4)))
    files = write_edit(inject_noise(pairs, 0.5), tmp_path)
    out = tmp_path / "again.jsonl"
    error = the_error(*call("audit", "undo", *files, "--group", "safty", "--out", out))
    assert re.search(r"no pairs in group 'safty'.*The groups are: safety", error)
    assert not out.exists()
    (tmp_path / "stage.json").write_text('{"schema_version": 1, "stage": "edits"}')
    error = the_error(*call("audit", "undo", files[0], tmp_path / "stage.json", "--out", out))
    assert "clean-manifest.json for clean.jsonl" in error


@pytest.mark.parametrize(("rate", "problem"), [
    ("0", r"the rate must be between 0 and 1, not 0\.0"),
    ("1.5", r"the rate must be between 0 and 1, not 1\.5"),
    ("nan", r"the rate must be between 0 and 1, not nan"),
])  # fmt: skip
def test_rates_of_an_edit(place: Place, tmp_path: Path, rate: str, problem: str) -> None:
    code, _, err = call("audit", "score", "--method", "random", *place.options, "--out", tmp_path / "scores")
    assert code == 0, err
    for verb in ("poison", "denoise"):
        options = ["--rate", rate, "--scores", tmp_path / "scores" / "scores.json", "--out", tmp_path / "edit"]
        assert re.search(problem, the_error(*call("audit", verb, *place.options, *options)))
        assert not (tmp_path / "edit").exists()


def test_a_folder_that_is_in_use_or_no_folder(place: Place, tmp_path: Path) -> None:
    recipe = place.recipe(tmp_path)
    Run(tmp_path / "run").close()
    hold = "import fcntl, sys; f = open(sys.argv[1]); fcntl.flock(f, fcntl.LOCK_EX); print('held', flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", hold, str(tmp_path / "run" / ".lock")], text=True,
                          stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:  # fmt: skip
        assert other.stdout
        assert other.stdout.readline() == "held\n"
        line = the_error(*call("run", recipe))
        other.communicate("\n")
    assert "another process is working in this run folder. Wait for it, stop it, or choose another --out" in line
    assert unfinished(tmp_path / "run")
    (tmp_path / "file").touch()
    assert "a file is where the run folder should be" in the_error(*call("run", recipe, "--out", tmp_path / "file"))


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_FSIZE raises EFBIG on Linux")
def test_a_file_that_cannot_grow(place: Place, tmp_path: Path) -> None:
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))

    found = seamark("run", place.recipe(tmp_path, **ONE_CELL), cwd=tmp_path, preexec_fn=limit)
    line = the_error(found.returncode, found.stdout, found.stderr)
    assert "grew past the allowed size" in line
    assert unfinished(tmp_path / "run", ("data",))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 256 KiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounting = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(disk)]
    if os.geteuid() != 0 or subprocess.run(mounting, capture_output=True, check=False).returncode != 0:
        pytest.skip("a small disk can be mounted by root only, and not in every container")
    try:
        yield disk
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)


def test_a_full_disk(place: Place, tmp_path: Path, small_disk: Path) -> None:
    recipe = place.recipe(tmp_path, **ONE_CELL)
    line = the_error(*call("run", recipe, "--out", small_disk / "run"))
    assert re.search(r"the disk is (most likely )?full. Free some space and run again", line)
    assert unfinished(small_disk / "run", ("data",))
    options = ["--config", recipe, "--model", place.base, *place.options]
    assert "full" in the_error(*call("reward", "train", *options, "--out", small_disk / "model"))
    assert not (small_disk / "model" / "result.json").exists()


def test_an_out_that_cannot_be_written(place: Place, tmp_path: Path) -> None:
    recipe, file = place.recipe(tmp_path), tmp_path / "file"
    file.write_text("mine")
    score = ["audit", "score", "--method", "random", *place.options]
    for out in (file, file / "below", "/proc/seamark"):  # nobody, not even root, can write below /proc
        for command in (["run", recipe], score):
            assert str(out) in the_error(*call(*command, "--out", out))
    assert file.read_text() == "mine"


def test_wrong_words_are_told_with_the_right_ones() -> None:
    for arguments in (["reward"], ["reward", "evaluate"], ["audit"], ["scan", "--json"]):
        code, out, err = call(*arguments)
        assert code == (0 if arguments == ["scan", "--json"] else 2)
        assert out == ""
        if arguments == ["reward", "evaluate"]:
            assert len(err.splitlines()) == 1
        else:  # a line for each command, with what it does
            assert all(len(line.split()) > 4 for line in err.splitlines()[1:])
        assert f"seamark {arguments[0]} " in err
    code, out, err = call("reword", "train")
    assert code == 2
    assert "Traceback" not in err
