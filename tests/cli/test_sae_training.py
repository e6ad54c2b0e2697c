"""`seamark sae train` and `sae suite`: options, what they leave behind, going on, several processes, mistakes."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from seamark.features.metrics import read_metrics
from seamark.sae import SparseAutoencoder
from tiny_run import Place, call, environment, the_error

SMALL = ["--set", "training.batch_tokens=2000", "--set", "stages=[{name: all, batch_size: 64, epochs: 2, lr: 0.003}]"]


def result(*words: object) -> dict[str, Any]:
    code, out, err = call(*words, "--json")
    assert code == 0, err
    assert len(out.splitlines()) == 1
    return dict(json.loads(out))


def test_options_decide_what_is_trained(place: Place, tmp_path: Path) -> None:
    cache, spill = tmp_path / "cache", tmp_path / "spill"
    found = result(
        "sae", "train", *place.options, "--config", place.recipe(tmp_path), "--model", place.causal, "--out",
        tmp_path / "sae", "--hookpoint", "layers.1.mlp", "--activation", "jumprelu", "--expansion", 3,
        "--sparsity", 0.05, "--normalize", "none", "--scale", "expected_norm", "--loss", "squared",
        "--aux", 0.03, "--encoder", "fp32", "--buffer-gib", 0.0001, "--spill", spill, "--cache", cache,
        "--log-every", 3, "--checkpoint-every", 7,
    )  # fmt: skip
    sae = SparseAutoencoder.from_pretrained(tmp_path / "sae")
    assert found["sae"] == sae.config.model_dump()
    assert found["sae"] | {"hookpoint": "layers.1.mlp", "activation": "jumprelu", "d_sae": 96, "k": None,
                           "normalize": "none"} == found["sae"]  # fmt: skip
    asked = json.loads((tmp_path / "sae" / "run.json").read_text())["asked"]
    assert asked["suite"]["layers.1.mlp-jumprelu-s0.05-x3"] | {
        "sparsity": 0.05, "aux_coefficient": 0.03, "scale": "expected_norm", "loss": "squared", "encoder": "fp32",
    } == asked["suite"]["layers.1.mlp-jumprelu-s0.05-x3"]  # fmt: skip
    assert asked["training"]["buffer_bytes"] == int(0.0001 * 2**30)
    assert list(cache.rglob("*.safetensors"))
    assert [line["step"] for line in read_metrics(tmp_path / "sae" / "metrics.jsonl")][:3] == [0, 3, 6]


def test_a_suite_by_options(place: Place, tmp_path: Path) -> None:
    text = tmp_path / "corpus.txt"
    text.write_text("\n\n".join(f"The weather was fine on day {i}, so we walked." for i in range(40)))
    words = ["sae", "suite", "--model", place.causal, "--out", tmp_path / "run", *SMALL, "--text", f"all={text}"]
    words += ["--hookpoint", "layers.1", "--hookpoint", "layers.2.mlp", "--k", 4, "--k", 8, "--expansion", 2]
    found = result(*words)
    ids = [f"layers.{where}-topk{k}-x2" for where in ("1", "2.mlp") for k in (4, 8)]
    assert list(found["saes"]) == list(found["quality"]) == ids
    assert found == json.loads((tmp_path / "run" / "result.json").read_text())
    for sae_id in ids:
        assert SparseAutoencoder.from_pretrained(tmp_path / "run" / "saes" / sae_id).config.d_sae == 64
    code, out, err = call(*words)
    assert code == 0
    assert "1 of 1 stages done before" in err
    assert re.search(r"layers\.2\.mlp-topk8-x2 +\d", out)
    assert "fvu" in out
    assert out.splitlines()[-1] == str(tmp_path / "run" / "result.json")


def test_a_suite_of_the_default_model_and_texts(tmp_path: Path, place: Place) -> None:
    """The demo pairs, an encoder without head, its block at 3/4 depth."""
    stages = "stages=[{name: pairs, batch_size: 256, max_positions: 2000, max_length: 32}]"
    found = result("sae", "suite", "--model", place.base, "--out", tmp_path, "--set", stages, "--k", 4)
    assert list(found["saes"]) == ["layers.2-topk4-x8"]
    assert 1000 < found["stages"][0]["positions"] < 2000


def test_changed_options_do_not_go_on_in_the_same_folder(place: Place, tmp_path: Path) -> None:
    words = ["sae", "suite", "--model", place.causal, "--out", tmp_path / "run", *SMALL, *place.options,
             "--expansion", 2]  # fmt: skip
    result(*words, "--k", 4)
    line = the_error(*call(*words, "--k", 8))
    assert "holds a run of something else: suite.layers.2-topk4-x2" in line
    line = the_error(*call(*words, "--k", 4, "--set", "stages=[{name: all, batch_size: 64, epochs: 3, lr: 0.003}]"))
    assert "stages[0].epochs: 2 → 3" in line


@pytest.mark.parametrize(("options", "problem"), [
    (["--text", "corpus.txt"], r"--text: 'corpus\.txt' is not of the form stage=file"),
    (["--text", "other=corpus.txt"], r"data\.texts names 'other'"),
    (["--k", 100, "--expansion", 2], r"layers\.2-topk100-x2: .*k = 100 is more than d_sae = 64"),
    (["--hookpoint", "layers.7"], r"hookpoint layers\.7 is out of range"),
    (["--hookpoint", "block.7"], r"'block\.7' is not a hookpoint"),
    (["--hookpoint", "layers.1", "--hookpoint", "layers.1"], r"two autoencoders would be named layers\.1-topk64-x8"),
    (["--activation", "relu", "--k", 3, "--k", 4], r"two autoencoders would be named layers\.2-relu-x8|default-relu"),
    (["--set", "training.buffer_tokens=0"], r"training\.buffer_tokens: input should be greater than 0"),
    (["--set", "variants=3"], r"variants: input should be a valid list"),
    (["--text", "general=nowhere.jsonl"], r"nowhere\.jsonl: no such file"),
    (["--track", "wandb"], r"wandb is not installed. pip install wandb"),
])  # fmt: skip
def test_suites_that_cannot_be(
    options: list[Any], problem: str, place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    words = ["sae", "suite", "--model", place.causal, "--out", tmp_path / "run", *place.options]
    line = the_error(*call(*words, *options))
    assert re.search(problem, line), line
    assert not (tmp_path / "run" / "saes").exists()


def test_folders_that_cannot_be_written(place: Place, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    words = ["sae", "suite", "--model", place.causal, *SMALL, *place.options, "--k", 4]
    bad = tmp_path / "file" / "spill"
    line = the_error(*call(*words, "--out", tmp_path / "run", "--spill", bad))
    assert re.search(r"spill folder .*file.*spill: cannot be written to \(Not a directory\)", line)
    assert "file" in the_error(*call(*words, "--out", tmp_path / "file"))


def test_torchrun_prints_one_result(place: Place, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port",
               str(25500 + os.getpid() % 2000), "-m", "seamark", "sae", "suite", "--model", place.causal, "--out",
               tmp_path / "two", *SMALL, *place.options, "--k", 4, "--k", 8, "--json"]  # fmt: skip
    done = subprocess.run(list(map(str, command)), env=environment() | {"GLOO_SOCKET_IFNAME": "lo"}, timeout=280,
                          capture_output=True, text=True)  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found == json.loads((tmp_path / "two" / "result.json").read_text())
    alone = result("sae", "suite", "--model", place.causal, "--out", tmp_path / "one", *SMALL, *place.options, "--k", 4,
                   "--k", 8)  # fmt: skip
    for sae_id, quality in alone["quality"].items():
        assert found["quality"][sae_id]["fvu"] == pytest.approx(quality["fvu"], rel=1e-2)
