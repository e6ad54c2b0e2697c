"""Damaged, foreign and hostile files: a clear refusal each time, and nothing run or unpacked."""

from __future__ import annotations

import io
import json
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from format_files import D_IN, D_SAE, K, make
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

from seamark.errors import ConfigError, FormatError
from seamark.sae import SparseAutoencoder, formats


def linear(t: dict[str, Tensor]) -> dict[str, Tensor]:
    return {"encoder.weight": t["W_enc"].T, "encoder.bias": t["b_enc"], "decoder.weight": t["W_dec"].T}


def write_folder(folder: Path, format: str, change: Callable[[dict[str, Any]], None] = lambda t: None) -> Path:
    """A small autoencoder of a format, its named tensors changed first; the file of its weights."""
    t = make("jumprelu").tensors
    folder.mkdir(parents=True, exist_ok=True)
    if format in ("seamark", "saelens", "sparsify"):
        formats.write(make("jumprelu" if format != "sparsify" else "topk_relu"), folder, format)
        path = folder / ("sae_weights.safetensors" if format == "saelens" else "sae.safetensors")
        tensors: dict[str, Any] = load_file(path)
        change(tensors)
        save_file(tensors, path)
        return path
    if format == "gemma-scope":
        tensors = dict(t)
        change(tensors)
        np.savez(folder / "params.npz", **{n: x.numpy() for n, x in tensors.items()})
        return folder / "params.npz"
    tensors = (
        linear(t)
        | {
            "dictionary-learning": {"bias": t["b_dec"]},
            "safer": {"pre_bias": t["b_dec"], "latent_bias": t["b_enc"]},
            "safe-sail": {"pre_encoder_bias._bias_reference": t["b_dec"]},
        }[format]
    )
    change(tensors)
    if format == "safe-sail":
        tensors = {n: x[None] if isinstance(x, Tensor) else x for n, x in tensors.items()}
    if format == "dictionary-learning":
        (folder / "config.json").write_text('{"trainer": {"dict_class": "AutoEncoder"}}')
    path = folder / ("ae.pt" if format == "dictionary-learning" else "stage2.pt")
    torch.save(tensors, path)
    return path


def open_it(folder: Path, format: str) -> formats.Stored:
    return formats.read(folder, k=K if format in ("safer", "safe-sail") else None)


ENCODER = {"sparsify": "encoder.weight", "dictionary-learning": "encoder.weight", "safer": "encoder.weight",
           "safe-sail": "encoder.weight"}  # fmt: skip
ALL = ("seamark", "saelens", "sparsify", "gemma-scope", "dictionary-learning", "safer", "safe-sail")


@pytest.mark.parametrize("format", ALL)
def test_these_files_are_good(tmp_path: Path, format: str) -> None:
    write_folder(tmp_path, format)
    assert open_it(tmp_path, format).format == format == formats.detect(tmp_path)


@pytest.mark.parametrize("format", ALL)
@pytest.mark.parametrize("size", [0, 10, 300, -200])
def test_cut_off(tmp_path: Path, format: str, size: int) -> None:
    path = write_folder(tmp_path, format)
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(FormatError, match=str(tmp_path)):
        open_it(tmp_path, format)


@pytest.mark.parametrize("format", ALL)
@pytest.mark.parametrize(
    "content", [b"<html>Not found</html>", b"version https://git-lfs.github.com/spec/v1\n", b"\0" * 999]
)
def test_something_else_by_that_name(tmp_path: Path, format: str, content: bytes) -> None:
    write_folder(tmp_path, format).write_bytes(content)
    with pytest.raises(FormatError, match=str(tmp_path)):
        open_it(tmp_path, format)


@pytest.mark.parametrize("format", ALL)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_nan_and_inf(tmp_path: Path, format: str, value: float) -> None:
    name = ENCODER.get(format, "W_enc")

    def change(t: dict[str, Any]) -> None:
        t[name] = t[name].clone()
        t[name][0, 0] = value

    write_folder(tmp_path, format, change)
    with pytest.raises(FormatError, match=r"W_enc holds NaN or infinite values"):
        open_it(tmp_path, format)


@pytest.mark.parametrize("format", ALL)
@pytest.mark.parametrize(
    ("spoil", "match"),
    [
        (lambda x: x[:-1].clone(), "W_enc is .*fits the rest|components"),
        (lambda x: x[0].clone(), r"W_enc is \[|is not \[components"),
        (lambda x: x.T.contiguous(), r"(W|b)_enc is \["),
        (lambda x: x.to(torch.int32), "W_enc holds int32, not real numbers"),
    ],
    ids=["rows", "flat", "transposed", "int"],
)
def test_wrong_shapes_and_kinds(tmp_path: Path, format: str, spoil: Callable[[Tensor], Tensor], match: str) -> None:
    name = ENCODER.get(format, "W_enc")

    def change(t: dict[str, Any]) -> None:
        t[name] = spoil(t[name])

    write_folder(tmp_path, format, change)
    with pytest.raises(FormatError, match=match):
        open_it(tmp_path, format)


@pytest.mark.parametrize("format", ALL)
def test_missing_tensors(tmp_path: Path, format: str) -> None:
    bias = {"safer": "latent_bias"}.get(format, "b_enc" if format not in ENCODER else "encoder.bias")
    write_folder(tmp_path, format, lambda t: t.pop(bias))
    # Without one of its keys a lone file is of no known format at all.
    match = "no autoencoder that Seamark knows" if format == "safer" else "b_enc is missing"
    with pytest.raises(FormatError, match=match):
        open_it(tmp_path, format)


class Evil:
    """Leaves a file behind where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("format", ["dictionary-learning", "safer", "safe-sail"])
@pytest.mark.parametrize("how", ["inside", "whole", "plain pickle", "old torch"])
def test_code_in_a_pickle_is_never_run(tmp_path: Path, format: str, how: str) -> None:
    trace = tmp_path / "it ran".replace(" ", "_")
    path = write_folder(
        tmp_path / "sae", format, (lambda t: t.update(x=Evil(trace))) if how == "inside" else lambda t: None
    )
    if how == "whole":
        torch.save(Evil(trace), path)
    elif how == "plain pickle":
        path.write_bytes(pickle.dumps(Evil(trace)))
    elif how == "old torch":
        torch.save({"x": Evil(trace)}, path, _use_new_zipfile_serialization=False)
    with pytest.raises(FormatError, match=r"holds (Python code \(\w+\.system\)|more than weights).*never runs code"):
        open_it(tmp_path / "sae", format)
    assert not trace.exists()


def test_a_whole_module_is_refused(tmp_path: Path) -> None:
    torch.save(torch.nn.Linear(2, 2), tmp_path / "sae.pt")
    with pytest.raises(FormatError, match=r"Python code \(torch\.nn.*state_dict"):
        formats.read(tmp_path / "sae.pt")


def test_python_objects_in_an_archive_are_refused(tmp_path: Path) -> None:
    trace = tmp_path / "ran"
    np.savez(tmp_path / "params.npz", W_enc=np.array([Evil(trace)], dtype=object))
    with pytest.raises(FormatError, match="Python objects"):
        formats.read(tmp_path)
    assert not trace.exists()


def test_archives_that_unpack_to_far_more_than_they_are(tmp_path: Path) -> None:
    for name in ("params.npz", "stage2.pt"):
        with zipfile.ZipFile(tmp_path / name, "w", zipfile.ZIP_DEFLATED) as z, z.open("W_enc.npy", "w") as f:
            for _ in range(200):
                f.write(bytes(1 << 20))
        assert (tmp_path / name).stat().st_size < 1e6
        with pytest.raises(FormatError, match=r"unpacks to 0\.2 GB, which no weights do"):
            formats.read(tmp_path / name, k=K)


def test_an_array_that_claims_to_be_huge(tmp_path: Path) -> None:
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": (10**6, 10**6)})
    with zipfile.ZipFile(tmp_path / "params.npz", "w") as z:
        z.writestr("W_dec.npy", header.getvalue() + bytes(400))
    with pytest.raises(FormatError, match="cut off"):
        formats.read(tmp_path)


def test_a_tensor_that_claims_to_be_huge(tmp_path: Path) -> None:
    def change(t: dict[str, Any]) -> None:
        t["decoder.weight"] = torch.zeros(1).expand(1 << 20, 1 << 20)  # four bytes in the file, 4 TB when copied

    write_folder(tmp_path, "safer", change)
    with pytest.raises(FormatError, match=r"decoder\.weight claims more memory than the file has"):
        open_it(tmp_path, "safer")


@pytest.mark.parametrize("value", ["text", [1, 2], torch.eye(9).to_sparse()], ids=["text", "list", "sparse"])
def test_values_that_are_no_plain_tensors(tmp_path: Path, value: object) -> None:
    write_folder(tmp_path, "safer", lambda t: t.update({"encoder.weight": value}))
    with pytest.raises(FormatError, match=r"W_enc is missing|more memory"):
        open_it(tmp_path, "safer")


def test_a_list_instead_of_names(tmp_path: Path) -> None:
    torch.save([torch.zeros(3)], tmp_path / "x.pt")
    with pytest.raises(FormatError, match="holds a list, not named tensors"):
        formats.read(tmp_path / "x.pt")


def test_foreign_weights_say_what_they_hold(tmp_path: Path) -> None:
    torch.save({"model.embed_tokens.weight": torch.zeros(3)}, tmp_path / "x.pt")
    with pytest.raises(FormatError, match=r"no autoencoder that Seamark knows: it holds model\.embed_tokens\.weight"):
        formats.read(tmp_path / "x.pt")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "3",
        "null",
        '"x"',
        "\ud800",
        '{"d_in": ' + "9" * 5000 + "}",
        "[" * 100_000,
        '{"d_in": NaN}',
        "\x00",
    ],
    ids=["empty", "open", "list", "number", "null", "string", "surrogate", "digits", "deep", "nan", "zero"],
)
@pytest.mark.parametrize("format", ["seamark", "saelens", "sparsify", "dictionary-learning"])
def test_bad_json(tmp_path: Path, format: str, text: str) -> None:
    write_folder(tmp_path, format)
    config = tmp_path / ("cfg.json" if format in ("saelens", "sparsify") else "config.json")
    config.write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(FormatError, match=str(tmp_path)):
        open_it(tmp_path, format)


def test_unreadable_files(tmp_path: Path) -> None:
    write_folder(tmp_path, "seamark").unlink()
    (tmp_path / "sae.safetensors").mkdir()
    with pytest.raises(FormatError, match=r"no autoencoder here.*sae_weights\.safetensors"):
        formats.read(tmp_path)


def test_newer_format_and_unknown_fields(tmp_path: Path) -> None:
    write_folder(tmp_path, "seamark")
    config = json.loads((tmp_path / "config.json").read_text())
    for change, match in (
        ({"format_version": 99}, "99 is newer than this Seamark"),
        ({"activation": "gelu"}, "activation"),
        ({"tricks": True}, "tricks"),
        ({"d_in": 13}, "the config says d_in = 13, the weights 12"),
        ({"activation": "topk"}, "topk needs k"),
        ({"activation": "topk", "k": 41}, "more than d_sae"),
    ):
        (tmp_path / "config.json").write_text(json.dumps(config | change))
        with pytest.raises(FormatError, match=match):
            SparseAutoencoder.from_pretrained(tmp_path)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=8), inner, max_size=2),
    max_leaves=4,
)
CONFIGS: dict[str, dict[str, Any]] = {
    "saelens": {
        "architecture": "topk", "d_in": D_IN, "d_sae": D_SAE, "k": K, "normalize_activations": "none",
        "apply_b_dec_to_input": True, "rescale_acts_by_decoder_norm": False, "activation_fn_kwargs": {"k": 3},
        "metadata": {"model_name": "m", "hook_name": "x", "training_architecture_details": {"k": 3}},
    },
    "sparsify": {"d_in": D_IN, "num_latents": D_SAE, "expansion_factor": 2, "k": K, "activation": "topk", "model": "m",
                 "hookpoint": "layers.1", "transcode": False},
    "dictionary-learning": {"trainer": {"dict_class": "AutoEncoder", "layer": 3, "lm_name": "m", "k": 3,
                                        "submodule_name": "x"}},
    "seamark": {"d_in": D_IN, "d_sae": D_SAE, "activation": "jumprelu", "eps": 1e-6, "normalize": "none", "model": "m",
                "hookpoint": "h", "format_version": 2},
}  # fmt: skip


@pytest.mark.parametrize("format", CONFIGS)
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_value_in_a_config_is_read_or_refused(tmp_path: Path, format: str, data: st.DataObject) -> None:
    if not list(tmp_path.iterdir()):
        write_folder(tmp_path, format)
    config = json.loads(json.dumps(CONFIGS[format]))
    inner = config
    if "metadata" in config and data.draw(st.booleans()):
        inner = config["metadata"]
    elif "trainer" in config and data.draw(st.booleans()):
        inner = config["trainer"]
    key = data.draw(st.sampled_from(sorted(inner)))
    inner[key] = data.draw(JSON)
    if format == "saelens":
        config["architecture"] = data.draw(
            st.sampled_from(["topk", "standard", "jumprelu", "batchtopk", config["architecture"]])
        )
    name = "cfg.json" if format in ("saelens", "sparsify") else "config.json"
    (tmp_path / name).write_text(json.dumps(config))
    try:
        stored = formats.read(tmp_path)
    except (FormatError, ConfigError):
        return
    assert stored.tensors["W_dec"].shape == (D_SAE, D_IN)
