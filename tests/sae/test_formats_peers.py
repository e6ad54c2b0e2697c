"""Round trips through SAELens, sparsify and dictionary_learning themselves, each in an environment of its own.

They run where SEAMARK_PEER_SAELENS, SEAMARK_PEER_SPARSIFY and SEAMARK_PEER_DICTIONARY_LEARNING name a Python that has
the package (or where the benchmarks have made environments for them), and are skipped elsewhere. Run with `-m slow`.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from format_files import assert_same_latents, dense, inputs, make, run_peer
from safetensors.torch import save_file
from torch import Tensor

from seamark.errors import FormatError
from seamark.sae import SparseAutoencoder, formats

pytestmark = pytest.mark.slow  # the peers take long to import

Computed = dict[str, dict[str, Tensor]]

SAELENS = {
    "standard": "relu", "standard_raw_input": "relu", "standard_layer_norm": "relu", "standard_bf16": "relu",
    "topk": "topk_relu", "topk_wide": "topk_relu", "topk_raw_input": "topk_relu", "topk_rescaled": "topk_relu",
    "topk_layer_norm": "topk_relu",
    "jumprelu": "jumprelu", "jumprelu_raw_input": "jumprelu", "jumprelu_negative_threshold": "jumprelu",
    "trained_standard": "relu", "trained_topk": "topk_relu", "trained_topk_plain": "topk_relu",
    "trained_batchtopk": "batch_topk", "trained_batchtopk_fraction": "jumprelu",
    "trained_batchtopk_plain": "batch_topk", "trained_matryoshka": "jumprelu", "trained_jumprelu": "jumprelu",
    "checkpoint_standard": "relu", "checkpoint_topk": "topk_relu", "checkpoint_topk_plain": "topk_relu",
    "checkpoint_batchtopk": "batch_topk", "checkpoint_batchtopk_fraction": "jumprelu",
    "checkpoint_batchtopk_plain": "batch_topk", "checkpoint_matryoshka": "batch_topk",
    "checkpoint_jumprelu": "jumprelu",
    "scaled_standard": "relu", "scaled_topk": "topk_relu", "scaled_batchtopk": "batch_topk",
    "scaled_batchtopk_plain": "batch_topk", "scaled_jumprelu": "jumprelu",
}  # fmt: skip
SAELENS_REFUSED = {
    "GatedSAE": "gated", "AbsTopKSAE": "abstopk", "MatchingPursuitSAE": "matching_pursuit",
    "Transcoder": "transcoder", "SkipTranscoder": "skip_transcoder", "JumpReLUTranscoder": "jumprelu_transcoder",
    "constant_norm_rescale": "constant_norm_rescale", "covariance_whitening": "covariance_whitening",
    "expected_average_only_in": "activation_scaler.json",
}  # fmt: skip
SPARSIFY = ("layers.3", "layers.4", "layers.5", "layers.6.mlp")
DICTIONARY_LEARNING = {
    "standard": "relu", "standard_norms": "relu", "new": "relu", "topk": "topk_relu", "topk_wide": "topk_relu",
    "batchtopk": "batch_topk", "batchtopk_no_threshold": "batch_topk", "matryoshka": "batch_topk",
    "jumprelu": "jumprelu",
}  # fmt: skip
FOR_SAELENS = {
    "relu": {"activation": "relu"}, "relu_raw_input": {"activation": "relu", "subtract_b_dec": False},
    "topk_relu": {"activation": "topk_relu"}, "topk_relu_wide": {"activation": "topk_relu", "k": 35},
    "topk_relu_layer_norm": {"activation": "topk_relu", "normalize": "layer_norm", "eps": 1e-5},
    "jumprelu": {"activation": "jumprelu"}, "jumprelu_raw_input": {"activation": "jumprelu", "subtract_b_dec": False},
    "batch_topk": {"activation": "batch_topk"},
}  # fmt: skip
FOR_SPARSIFY = {
    "topk_relu": {}, "topk_relu_wide": {"k": 35}, "topk_relu_raw_input": {"subtract_b_dec": False},
    "topk_relu_odd_width": {"d_sae": 41},
}  # fmt: skip


def _atol(case: str) -> float:
    """Of reconstructions: SAELens scales them back by std, Seamark by std + 1e-5, and normalised they go up to 50."""
    return 1e-3 if case.endswith("layer_norm") else 1e-4


def _made(name: str, folder: Path) -> tuple[Path, Computed]:
    save_file({"h": inputs()}, folder / "inputs.safetensors")
    return folder, run_peer(name, "make", folder)


def _opened(name: str, folder: Path, cases: dict[str, dict[str, object]]) -> tuple[Path, Computed]:
    save_file({"h": inputs()}, folder / "inputs.safetensors")
    for case, config in cases.items():
        formats.write(make(**{"activation": "topk_relu", "hookpoint": "layers.3", **config}), folder / case, name)
    return folder, run_peer(name, "open", folder)


@pytest.fixture(scope="module")
def by_saelens(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Computed]:
    return _made("saelens", tmp_path_factory.mktemp("saelens"))


@pytest.fixture(scope="module")
def by_sparsify(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Computed]:
    return _made("sparsify", tmp_path_factory.mktemp("sparsify"))


@pytest.fixture(scope="module")
def by_dictionary_learning(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Computed]:
    return _made("dictionary_learning", tmp_path_factory.mktemp("dictionary_learning"))


@pytest.fixture(scope="module")
def in_saelens(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Computed]:
    return _opened("saelens", tmp_path_factory.mktemp("for_saelens"), FOR_SAELENS)


@pytest.fixture(scope="module")
def in_sparsify(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Computed]:
    return _opened("sparsify", tmp_path_factory.mktemp("for_sparsify"), FOR_SPARSIFY)


@pytest.mark.parametrize("case", SAELENS)
def test_saelens_opens_here(by_saelens: tuple[Path, Computed], case: str) -> None:
    folder, computed = by_saelens
    sae = SparseAutoencoder.from_pretrained(folder / case)
    assert_same_latents(sae, inputs(), computed[case]["latents"], computed[case]["out"], out_atol=_atol(case))
    assert sae.config.activation == SAELENS[case]
    assert (sae.config.model, sae.config.hookpoint) == ("gpt2-small", "layers.7")


def test_every_saelens_case_is_checked(by_saelens: tuple[Path, Computed]) -> None:
    assert set(by_saelens[1]) == set(SAELENS)


@pytest.mark.parametrize("case", SAELENS_REFUSED)
def test_saelens_refused_by_name(by_saelens: tuple[Path, Computed], case: str) -> None:
    with pytest.raises(FormatError, match=SAELENS_REFUSED[case]):
        formats.read(by_saelens[0] / "refused" / case)


@pytest.mark.parametrize("case", FOR_SAELENS)
def test_saelens_opens_ours(in_saelens: tuple[Path, Computed], case: str) -> None:
    folder, computed = in_saelens
    ours = make(hookpoint="layers.3", **{"activation": "topk_relu", **FOR_SAELENS[case]})
    latents, out = dense(ours, inputs())
    torch.testing.assert_close(computed[case]["latents"], latents, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(computed[case]["out"], out, rtol=1e-4, atol=_atol(case))
    assert torch.equal(computed[case]["latents"] != 0, latents != 0)
    again = SparseAutoencoder.from_pretrained(folder / case)
    assert_same_latents(again, inputs(), computed[case]["latents"], computed[case]["out"], out_atol=_atol(case))
    assert again.config == ours.config
    cfg = json.loads((folder / "computed" / f"{case}.json").read_text())
    assert cfg["metadata"]["hook_name"] == "blocks.3.hook_resid_post"


@pytest.mark.parametrize("case", SPARSIFY)
def test_sparsify_opens_here(by_sparsify: tuple[Path, Computed], case: str) -> None:
    folder, computed = by_sparsify
    sae = SparseAutoencoder.from_pretrained(folder, hookpoint=case)
    assert_same_latents(sae, inputs(), computed[case]["latents"], computed[case]["out"])
    assert (sae.config.activation, sae.config.hookpoint) == ("topk_relu", case)
    assert sae.config.d_sae == (48 if case == "layers.4" else 40)


@pytest.mark.parametrize("case", ["transcode", "skip", "groupmax"])
def test_sparsify_refused_by_name(by_sparsify: tuple[Path, Computed], case: str) -> None:
    with pytest.raises(FormatError, match={"transcode": "transcoder", "skip": "skip connection"}.get(case, case)):
        formats.read(by_sparsify[0] / "refused" / case)


@pytest.mark.parametrize("case", FOR_SPARSIFY)
def test_sparsify_opens_ours(in_sparsify: tuple[Path, Computed], case: str) -> None:
    folder, computed = in_sparsify
    latents, out = dense(make(**{"activation": "topk_relu", **FOR_SPARSIFY[case]}), inputs())
    assert torch.equal(computed[case]["latents"] != 0, latents != 0)
    torch.testing.assert_close(computed[case]["latents"], latents, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(computed[case]["out"], out, rtol=1e-4, atol=1e-4)
    again = SparseAutoencoder.from_pretrained(folder / case)
    assert_same_latents(again, inputs(), computed[case]["latents"], computed[case]["out"])
    assert again.config.hookpoint == "layers.3"


@pytest.mark.parametrize("case", DICTIONARY_LEARNING)
def test_dictionary_learning_opens_here(by_dictionary_learning: tuple[Path, Computed], case: str) -> None:
    folder, computed = by_dictionary_learning
    sae = SparseAutoencoder.from_pretrained(folder / case)
    assert_same_latents(sae, inputs(), computed[case]["latents"], computed[case]["out"])
    assert sae.config.activation == DICTIONARY_LEARNING[case]
    assert sae.config.model == "EleutherAI/pythia-70m-deduped"
    assert sae.config.hookpoint == ("" if case == "new" else "layers.8")


def test_dictionary_learning_refused_by_name(by_dictionary_learning: tuple[Path, Computed]) -> None:
    with pytest.raises(FormatError, match="GatedAutoEncoder is not supported"):
        formats.read(by_dictionary_learning[0] / "refused" / "gated")
