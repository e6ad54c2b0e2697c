"""Run by dictionary_learning's own Python: `make FOLDER` saves one autoencoder of every class, as its trainers do, with
what they compute once `load_dictionary` has opened them."""

import json
import sys
from pathlib import Path

import torch
from dictionary_learning.dictionary import AutoEncoder, AutoEncoderNew, GatedAutoEncoder, JumpReluAutoEncoder
from dictionary_learning.trainers.batch_top_k import BatchTopKSAE
from dictionary_learning.trainers.matryoshka_batch_top_k import MatryoshkaBatchTopKSAE
from dictionary_learning.trainers.top_k import AutoEncoderTopK
from dictionary_learning.utils import load_dictionary
from safetensors.torch import load_file, save_file

D, N, K = 12, 40, 5


def fill(ae, threshold=None):
    g = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, p in sorted(ae.named_parameters()):
            p.copy_(torch.rand(p.shape, generator=g) * 3 if name == "threshold" else torch.randn(p.shape, generator=g))
        if threshold is not None:
            ae.threshold.fill_(threshold)
    return ae


def save(ae, path, **trainer):
    path.mkdir(parents=True)
    torch.save({k: v.cpu() for k, v in ae.state_dict().items()}, path / "ae.pt")
    where = {"layer": 8, "lm_name": "EleutherAI/pythia-70m-deduped", "activation_dim": D, "dict_size": N}
    config = {"trainer": {"dict_class": type(ae).__name__, **where, **trainer}, "buffer": {"ctx_len": 128}}
    (path / "config.json").write_text(json.dumps(config))


def make(root, h):
    unit = fill(AutoEncoder(D, N))
    unit.decoder.weight.data /= unit.decoder.weight.data.norm(dim=0)
    post = {"submodule_name": "resid_post_layer_8"}
    save(unit, root / "standard", **post)
    save(fill(AutoEncoder(D, N)), root / "standard_norms", **post)
    save(fill(AutoEncoderNew(D, N)), root / "new")
    save(fill(AutoEncoderTopK(D, N, K), 1.5), root / "topk", k=K, **post)
    save(fill(AutoEncoderTopK(D, N, 30), -1.0), root / "topk_wide", k=30, **post)
    save(fill(BatchTopKSAE(D, N, K), 2.5), root / "batchtopk", k=K, **post)
    save(fill(BatchTopKSAE(D, N, K), -1.0), root / "batchtopk_no_threshold", k=K, **post)
    save(fill(MatryoshkaBatchTopKSAE(D, N, K, [10, 10, 20]), 2.5), root / "matryoshka", k=K, **post)
    save(fill(JumpReluAutoEncoder(D, N)), root / "jumprelu", **post)
    for path in sorted(p.parent for p in root.glob("*/ae.pt")):
        ae, _ = load_dictionary(str(path), "cpu")
        with torch.no_grad():
            found = {"latents": ae.encode(h), "out": ae(h)}
        save_file({k: v.contiguous() for k, v in found.items()}, root / "computed" / f"{path.name}.safetensors")
    save(fill(GatedAutoEncoder(D, N)), root / "refused" / "gated")


if __name__ == "__main__":
    task, folder = sys.argv[1], Path(sys.argv[2])
    (folder / "computed").mkdir(exist_ok=True)
    {"make": make}[task](folder, load_file(folder / "inputs.safetensors")["h"])
