"""Run by sparsify's own Python: `make FOLDER` saves autoencoders with what they compute; `open FOLDER` opens those
that are there."""

import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from sparsify import SparseCoder, SparseCoderConfig

D_IN = 12


def build(**config):
    sae = SparseCoder(D_IN, SparseCoderConfig(**config))
    g = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for _, p in sorted(sae.named_parameters()):
            p.copy_(torch.randn(p.shape, generator=g))
        sae.W_dec *= torch.rand(len(sae.W_dec), 1, generator=g) + 0.2
    return sae


def compute(sae, h):
    with torch.no_grad():
        found = sae.encode(h)
        latents = torch.zeros(len(h), sae.num_latents).scatter(1, found.top_indices, found.top_acts)
        return {"latents": latents, "out": sae.decode(found.top_acts, found.top_indices)}


def make(root, h):
    made = {
        "layers.3": build(num_latents=40, k=5),
        "layers.4": build(num_latents=0, expansion_factor=4, k=5),
        "layers.5": build(num_latents=40, k=30),  # more than are positive
        "layers.6.mlp": build(num_latents=40, k=5, multi_topk=True, normalize_decoder=False),
    }
    for name, sae in made.items():
        sae.save_to_disk(root / name)
        save_file(compute(SparseCoder.load_from_disk(root / name), h), root / "computed" / f"{name}.safetensors")
    refused = {
        "transcode": build(num_latents=40, k=5, transcode=True),
        "skip": build(num_latents=40, k=5, skip_connection=True),
        "groupmax": build(num_latents=40, k=5, activation="groupmax"),
    }
    for name, sae in refused.items():
        sae.save_to_disk(root / "refused" / name)


def open_all(root, h):
    for path in sorted(root.glob("*/cfg.json")):
        found = compute(SparseCoder.load_from_disk(path.parent), h)
        save_file(found, root / "computed" / f"{path.parent.name}.safetensors")


if __name__ == "__main__":
    task, folder = sys.argv[1], Path(sys.argv[2])
    (folder / "computed").mkdir(exist_ok=True)
    {"make": make, "open": open_all}[task](folder, load_file(folder / "inputs.safetensors")["h"])
