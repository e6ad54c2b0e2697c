"""`seamark sae eval` and `seamark sae convert`: results, tables, and what a user can get wrong."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from seamark.features import evaluation
from seamark.features.evaluation import SAEEvaluation
from seamark.model.loading import HookedModel
from seamark.sae import SparseAutoencoder, sae_config
from tiny_run import Place, call, the_error

TEXTS = [
    "I can't help with that, it is dangerous.",
    "Bake the bread until it is brown. Wait an hour.",
    "Ships came in.",
]


def write_sae(folder: Path, hookpoint: str = "layers.2", seed: int = 0, **config: Any) -> str:
    chosen = {"d_in": 32, "d_sae": 64, "k": 6, "hookpoint": hookpoint} | config
    SparseAutoencoder(sae_config(**chosen), seed=seed).save_pretrained(folder)
    return str(folder)


def write_lossless(folder: Path, hookpoint: str = "layers.2") -> str:
    """ReLU with ±identity."""
    config = sae_config(d_in=32, d_sae=64, activation="relu", normalize="none", hookpoint=hookpoint)
    sae = SparseAutoencoder(config)
    with torch.no_grad():
        sae.W_dec.copy_(torch.cat([torch.eye(32), -torch.eye(32)]))
        sae.W_enc.copy_(sae.W_dec.T)
    sae.save_pretrained(folder)
    return str(folder)


def write_texts(folder: Path, n: int = 9) -> str:
    file = folder / "texts.jsonl"
    rows = [{"id": f"t{i}", "text": f"{TEXTS[i % 3]} Number {i}."} for i in range(n)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(file)


def run(*words: object) -> SAEEvaluation:
    code, out, err = call("sae", "eval", *words, "--json")
    assert code == 0, err
    assert len(out.splitlines()) == 1
    return SAEEvaluation.model_validate_json(out)


def test_a_language_model(place: Place, tmp_path: Path) -> None:
    sae, texts, out = write_lossless(tmp_path / "lossless"), write_texts(tmp_path), tmp_path / "out"
    found = run("--model", place.causal, "--sae", sae, "--text", texts, "--out", out)
    assert SAEEvaluation.model_validate_json((out / "result.json").read_text()) == found
    assert (found.schema_version, found.kind, found.n_texts) == (1, "language model", 9)
    assert found.model == "causal"
    assert str(tmp_path) not in (out / "result.json").read_text()
    assert "torch" in found.versions
    (one,) = found.saes
    assert one.name == "lossless"
    assert one.fingerprint == SparseAutoencoder.from_pretrained(sae).fingerprint()
    assert one.quality.fvu == pytest.approx(0, abs=1e-9)
    assert one.loss is not None
    assert one.loss.ce_sae.value == pytest.approx(one.loss.ce_clean.value, abs=1e-5)
    assert one.loss.kl_recovered.value == pytest.approx(1, abs=1e-4)
    assert one.reward is None
    assert one.reasons == {"reward": "the model is no reward model"}


def test_a_reward_model(place: Place, tmp_path: Path) -> None:
    found = run("--model", place.reward, "--sae", write_lossless(tmp_path / "s"), *place.options)
    (one,) = found.saes
    assert found.kind == "reward model"
    assert found.n_texts == 2 * 60
    assert one.reward is not None
    assert one.reward.overall.n_pairs == 60
    assert one.reward.overall.abs_delta.value == pytest.approx(0, abs=1e-4)
    assert {g: s.n_pairs for g, s in one.reward.groups.items()} == {"safety": 36, "chat": 24}
    assert one.reasons == {"loss": "the model is no language model"}


def test_an_encoder_has_activations_only(place: Place, tmp_path: Path) -> None:
    found = run("--model", place.base, "--sae", write_sae(tmp_path / "s"), *place.options)
    (one,) = found.saes
    assert found.kind == "model"
    assert one.quality.n > 1000
    assert (one.loss, one.reward) == (None, None)
    assert set(one.reasons) == {"loss", "reward"}


def test_several_saes_are_one_row_each_from_one_pass(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    folders = {"a": write_sae(tmp_path / "x"), "b": write_sae(tmp_path / "y", "layers.0", 1),
               "c": write_sae(tmp_path / "z", "layers.2.mlp", 2)}  # fmt: skip
    passes: list[list[str]] = []
    gather = evaluation.gather

    def counted(model: HookedModel, texts: Any, rows: Any, at: Any, hookpoints: list[str], **more: Any) -> Any:
        passes.append(hookpoints)
        return gather(model, texts, rows, at, hookpoints, **more)

    monkeypatch.setattr(evaluation, "gather", counted)
    common = ["--model", place.causal, "--text", write_texts(tmp_path)]
    together = run(*common, *(f"--sae={n}={f}" for n, f in folders.items()))
    assert passes == [["layers.2", "layers.0", "layers.2.mlp"]]
    assert [s.name for s in together.saes] == ["a", "b", "c"]
    for one, folder in zip(together.saes, folders.values(), strict=True):
        (alone,) = run(*common, f"--sae={one.name}={folder}").saes
        assert alone == one
    code, out, _ = call("sae", "eval", *common, *(f"--sae={n}={f}" for n, f in folders.items()))
    assert code == 0
    assert "SAEs on causal" in out
    assert re.findall(r"^ (\w) .* \d", out, re.MULTILINE) == ["a", "b", "c"]


def test_tables_of_both_kinds(place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    sae = write_sae(tmp_path / "mine")
    code, out, _ = call("sae", "eval", "--model", place.causal, "--sae", sae, "--text", write_texts(tmp_path))
    assert code == 0
    assert re.search(r"SAE\s+FVU\s+L0\s+dead\s+dense\s+CE\s+with SAE\s+KL\s+CE recovered", out)
    code, out, _ = call("sae", "eval", "--model", place.reward, "--sae", sae, *place.options)
    assert code == 0
    assert re.search(r"dense\s+\|Δ reward\|\s+r\s+accuracy\s+with SAE\s+change", out)
    assert re.search(r"mine\s.*points \[", out)
    code, out, _ = call("sae", "eval", "--model", place.reward, "--sae", sae, "--text", write_texts(tmp_path))
    assert code == 0
    assert "reward|" not in out


def test_texts_and_pairs_with_either_model(place: Place, tmp_path: Path) -> None:
    sae, texts = write_sae(tmp_path / "s"), write_texts(tmp_path)
    (plain,) = run("--model", place.reward, "--sae", sae, "--text", texts).saes
    assert plain.quality.n > 50
    assert plain.reasons["reward"] == "rewards are compared on pairs"
    (answers,) = run("--model", place.causal, "--sae", sae, *place.options, "--scope", "response").saes
    (both,) = run("--model", place.causal, "--sae", sae, *place.options).saes
    assert answers.loss is not None
    assert both.loss is not None
    assert 0 < answers.loss.n_tokens < both.loss.n_tokens
    assert 0 < answers.quality.n < both.quality.n
    assert answers.loss.n_replaced == both.loss.n_replaced  # the scope is what is measured, not what is replaced


def test_options_reach_what_they_name(place: Place, tmp_path: Path) -> None:
    common = ["--model", place.causal, "--sae", write_sae(tmp_path / "s")]
    texts = ["--text", write_texts(tmp_path)]
    every, clauses = run(*common, *texts), run(*common, *texts, "--positions", "clauses")
    assert clauses.saes[0].quality.n < every.saes[0].quality.n
    assert clauses.saes[0].loss == every.saes[0].loss
    text = run(*common, *texts, "--replace", "text")
    assert text.config.replace == "text"
    assert text.saes[0].loss.n_replaced < every.saes[0].loss.n_replaced  # type: ignore[union-attr]
    assert text.saes[0].quality == every.saes[0].quality
    few = run(*common, *texts, "--max-texts", 4)
    assert few.n_texts == 4
    assert run(*common, *texts, "--max-texts", 99) == every
    short = run(*common, *texts, "--set", "scan.max_length=8")
    assert short.truncated_texts == 9
    assert short.config.max_length == 8
    test = run(*common, *place.options, "--split", "test")
    assert 0 < test.n_texts < 120
    assert run(*common, *place.options, "--set", "data.max_pairs=10").n_texts == 40


def test_a_foreign_sae_without_hookpoint(place: Place, tmp_path: Path) -> None:
    sae = write_sae(tmp_path / "s", hookpoint="")
    texts = ["--model", place.causal, "--text", write_texts(tmp_path)]
    line = the_error(*call("sae", "eval", *texts, "--sae", sae))
    assert "s: the autoencoder names no hookpoint" in line
    assert run(*texts, "--sae", sae, "--hookpoint", "layers.1").saes[0].config.hookpoint == "layers.1"


@pytest.mark.parametrize(("words", "problem"), [
    (["--sae", "SAE", "--text", "TEXTS", "--pairs", "a=b"], r"--text, --pairs: texts and pairs are given. Give one"),
    (["--text", "TEXTS"], r"--sae: no SAE is given"),
    (["--sae", "a=SAE", "--sae", "a=SAE", "--text", "TEXTS"], r"--sae: two SAEs are called a"),
    (["--sae", "=SAE", "--text", "TEXTS"], r"--sae: '=.*' is not of the form name=folder"),
    (["--sae", "/nowhere/sae", "--text", "TEXTS"], r"/nowhere/sae"),
    (["--sae", "SAE", "--text", "nowhere.jsonl"], r"nowhere\.jsonl"),
    (["--sae", "SAE", "--text", "EMPTY"], r"empty\.txt: the file is empty"),
    (["--sae", "SAE", "--text", "TEXTS", "--max-texts", "0"], r"--max-texts: 0 texts are too few"),
    (["--sae", "SAE", "--text", "TEXTS", "--set", "scan.precision=fp8"], r"scan\.precision"),
    (["--sae", "DEEP", "--text", "TEXTS"], r"hookpoint layers\.40 is out of range: the model has 4 blocks"),
    (["--sae", "WIDE", "--text", "TEXTS"], r"wide: d_in is 48 but layers\.2 of .* is 32 wide"),
])  # fmt: skip
def test_what_a_user_can_get_wrong(place: Place, tmp_path: Path, words: list[str], problem: str) -> None:
    (tmp_path / "empty.txt").touch()
    places = {"SAE": write_sae(tmp_path / "sae"), "TEXTS": write_texts(tmp_path), "EMPTY": str(tmp_path / "empty.txt"),
              "DEEP": write_sae(tmp_path / "deep", "layers.40"),
              "WIDE": write_sae(tmp_path / "wide", d_in=48)}  # fmt: skip
    given = [re.sub(r"[A-Z]{3,}", lambda m: places.get(m[0], m[0]), w) for w in words]
    line = the_error(*call("sae", "eval", "--model", place.causal, *given, "--out", tmp_path / "out"))
    assert re.search(problem, line)
    assert not (tmp_path / "out").exists()


def test_an_unknown_choice_or_model(place: Place, tmp_path: Path) -> None:
    sae, texts = write_sae(tmp_path / "s"), write_texts(tmp_path)
    code, out, _ = call("sae", "eval", "--model", place.causal, "--sae", sae, "--text", texts, "--positions", "words")
    assert (code, out) == (2, "")
    line = the_error(*call("sae", "eval", "--model", "/nowhere/model", "--sae", sae, "--text", texts))
    assert "/nowhere/model" in line


# Conversion


def convert(*words: object) -> dict[str, Any]:
    code, out, err = call("sae", "convert", *words, "--json")
    assert code == 0, err
    return dict(json.loads(out))


def test_there_and_back(tmp_path: Path) -> None:
    """TopK + ReLU without normalisation is what all three formats can say."""
    sae = write_sae(tmp_path / "mine", activation="topk_relu", normalize="none")
    h = torch.randn(20, 32)
    expected = SparseAutoencoder.from_pretrained(sae).encode(h)
    for format in ("saelens", "sparsify", "seamark"):
        to = tmp_path / format / "layers.2"
        found = convert("--from", sae, "--to", to, "--format", format)
        assert (found["from_format"], found["format"]) == ("seamark", format)
        assert found["sae"]["k"] == 6
        assert not (to / "result.json").exists()  # the folder is the other tool's
        back = tmp_path / format / "back"
        assert convert("--from", to, "--to", back, "--format", "seamark")["from_format"] == format
        latents = SparseAutoencoder.from_pretrained(back).encode(h)
        torch.testing.assert_close(latents.dense(), expected.dense(), rtol=1e-4, atol=1e-5)


def test_what_a_format_cannot_say_is_refused_unless_close_will_do(tmp_path: Path) -> None:
    sae = write_sae(tmp_path / "mine", normalize="none")  # TopK with negative latents
    words = ["sae", "convert", "--from", sae, "--format", "sparsify", "--to", tmp_path / "layers.2"]
    line = the_error(*call(*words))
    assert "--approximate" in line
    assert "approximate=True" not in line
    assert not (tmp_path / "layers.2" / "cfg.json").exists()
    code, out, _ = call(*words, "--approximate")
    assert code == 0
    assert "Converted" in out
    assert "note" in out


def test_k_for_files_that_do_not_say_it(tmp_path: Path) -> None:
    file = tmp_path / "sae.pt"
    d, f = 16, 32
    torch.save({"pre_bias": torch.zeros(d), "latent_bias": torch.zeros(f), "encoder.weight": torch.randn(f, d),
                "decoder.weight": torch.randn(d, f)}, file)  # fmt: skip
    words = ["--from", file, "--to", tmp_path / "out", "--format", "seamark"]
    assert "k" in the_error(*call("sae", "convert", *words))
    found = convert(*words, "--k", 4)
    assert (found["from_format"], found["sae"]["k"], found["sae"]["d_sae"]) == ("safer", 4, f)
    assert SparseAutoencoder.from_pretrained(tmp_path / "out").config.k == 4


@pytest.mark.parametrize("content", ["missing", "foreign", "damaged"])
def test_what_is_no_sae(tmp_path: Path, content: str) -> None:
    source = tmp_path / "source"
    if content == "foreign":
        source.mkdir()
        (source / "readme.txt").write_text("nothing here")
    elif content == "damaged":
        write_sae(source)
        weights = source / "sae.safetensors"
        weights.write_bytes(weights.read_bytes()[:100])
    line = the_error(*call("sae", "convert", "--from", source, "--to", tmp_path / "out", "--format", "saelens"))
    assert str(source) in line
    assert not (tmp_path / "out").exists()
