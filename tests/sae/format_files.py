"""Helpers of the format tests: autoencoders with nothing trivial in them, latents by the plain formula, peers."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from seamark.sae import SAEConfig, SparseAutoencoder
from seamark.sae.formats import Stored

D_IN, D_SAE, K = 12, 40, 5
PEERS = Path(__file__).parent / "peers"
_NAMES = {"saelens": "sae-lens", "sparsify": "sparsify", "dictionary_learning": "dictionary-learning"}
_VENVS = Path(__file__).parents[2] / "benchmarks" / ".scratch" / "venvs"


def make(activation: str = "topk_relu", *, seed: int = 0, **config: object) -> Stored:
    """An autoencoder with non-zero biases, decoder rows of all norms and different thresholds."""
    fields = {"d_in": D_IN, "d_sae": D_SAE, "activation": activation, "normalize": "none"} | config
    if "topk" in activation:
        fields.setdefault("k", K)
    checked = SAEConfig.model_validate(fields)
    g = torch.Generator().manual_seed(seed)
    n, d = checked.d_sae, checked.d_in
    tensors = {
        "W_enc": torch.randn(d, n, generator=g),
        "W_dec": torch.randn(n, d, generator=g) * torch.rand(n, 1, generator=g).add(0.2),
        "b_enc": torch.randn(n, generator=g),
        "b_dec": torch.randn(d, generator=g),
    }
    if checked.has_threshold:
        tensors["threshold"] = torch.rand(n, generator=g) * 3
    return Stored(checked, tensors)


def inputs(n: int = 64, d_in: int = D_IN) -> Tensor:
    """Activations [n, d_in] away from mean 0 and scale 1, some so small that the eps of a normalisation shows."""
    h = torch.randn(n, d_in, generator=torch.Generator().manual_seed(7)) * 2 + 0.5
    h[::4] *= 0.01
    return h


def dense(stored: Stored, h_ND: Tensor) -> tuple[Tensor, Tensor]:
    """Latents [n, d_sae] and reconstruction [n, d_in] by the formula, in the plainest way."""
    c, t = stored.config, stored.tensors
    x, mean, std = h_ND, torch.zeros(1), torch.ones(1)
    if c.normalize == "layer_norm":
        mean, std = h_ND.mean(1, keepdim=True), h_ND.std(1, keepdim=True) + c.eps
        x = (h_ND - mean) / std
    pre = (x - t["b_dec"] * c.subtract_b_dec) @ t["W_enc"] + t["b_enc"]
    if c.fixed_k is not None:
        top = pre.topk(c.fixed_k)
        z = torch.zeros_like(pre).scatter(1, top.indices, top.values)
        z = z if c.activation == "topk" else z.relu()
    else:
        z = pre * (pre > t["threshold"] if c.has_threshold else pre > 0)
    return z, (z @ t["W_dec"] + t["b_dec"]) * std + mean


def assert_same_latents(
    sae: SparseAutoencoder, h_ND: Tensor, latents_NF: Tensor, out_ND: Tensor | None = None, *, out_atol: float = 1e-4
) -> None:
    """That an autoencoder encodes to given latents: the same ones active, values to 1e-5, and decodes alike."""
    found = sae.encode(h_ND)
    z = found.dense()
    assert torch.equal(z != 0, latents_NF != 0)
    torch.testing.assert_close(z, latents_NF, rtol=1e-5, atol=1e-5)
    assert (latents_NF != 0).any(1).all(), "a test of silent latents shows nothing"
    if out_ND is not None:
        torch.testing.assert_close(sae.decode(found), out_ND, rtol=1e-4, atol=out_atol)


def peer(name: str) -> str:
    """The Python of a peer's own virtual environment; skips the test where there is none."""
    variable = f"SEAMARK_PEER_{name.upper()}"
    python = os.environ.get(variable) or str(_VENVS / _NAMES[name] / "bin" / "python")
    if not Path(python).is_file():
        pytest.skip(f"{name} is not installed: set {variable} to the Python of an environment that has it")
    return python


def run_peer(name: str, task: str, folder: Path) -> dict[str, dict[str, Tensor]]:
    """Let a peer make, or open, the autoencoders in a folder; what it computed, by their names."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": ""}
    done = subprocess.run(
        [peer(name), str(PEERS / f"with_{name}.py"), task, str(folder)],
        capture_output=True, text=True, env=env, timeout=500, check=False, cwd=folder,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return {p.stem: load_file(p) for p in sorted((folder / "computed").glob("*.safetensors"))}
