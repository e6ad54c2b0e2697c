"""EleutherAI's sparsify (eai-sparsify 1.3): a folder named for its hookpoint with `cfg.json` and `sae.safetensors`.

encoder.weight [n, d], encoder.bias [n], W_dec [n, d], b_dec [d]; latents are TopK_k(relu(W (x − b_dec) + b)).
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch

from seamark.errors import FormatError
from seamark.run import write_json
from seamark.sae.formats.files import read_json, read_safetensors, save_tensors
from seamark.sae.formats.hooks import from_module
from seamark.sae.formats.stored import Format, Source, Stored, build, flipped

CONFIG, WEIGHTS, RUN = "cfg.json", "sae.safetensors", "../config.json"
_REFUSED = {
    "transcode": "a transcoder: it predicts a module's output from its input",
    "skip_connection": "has a linear skip connection",
    "signed": "selects latents by magnitude (signed)",
}


def read(source: Source) -> Stored:
    cfg, run = read_json(source.path / CONFIG), _run_config(source.path)
    for key, what in _REFUSED.items():
        if cfg.get(key):
            raise FormatError(f"this is no plain autoencoder: {what}", where=str(source.path / CONFIG))
    if (activation := cfg.get("activation", "topk")) != "topk":
        raise FormatError(f"its activation {activation} is unknown here", where=str(source.path / CONFIG))
    tensors = read_safetensors(source.path / WEIGHTS)
    return build(
        source,
        "sparsify",
        {
            "W_enc": flipped(tensors.get("encoder.weight")),
            "W_dec": tensors.get("W_dec"),
            "b_enc": tensors.get("encoder.bias"),
            "b_dec": tensors.get("b_dec"),
        },
        activation="topk_relu",
        normalize="none",
        k=cfg.get("k", 32),
        model=str(cfg.get("model") or run.get("model") or ""),
        hookpoint=str(cfg.get("hookpoint") or _hookpoint(source.path.resolve())),
        **_sizes(cfg, str(source.path / CONFIG)),
    )


def _hookpoint(folder: Path) -> str:
    """The hookpoint a folder is named for; runs of several seeds have one more level (`layers.3/seed1`)."""
    name = folder.parent.name if re.fullmatch(r"seed\d+", folder.name) else folder.name
    return from_module(name) if re.search(r"\.\d+(\.|$)", name) else ""


def _sizes(cfg: dict[str, Any], where: str) -> dict[str, Any]:
    d_in, latents, factor = cfg.get("d_in"), cfg.get("num_latents", 0), cfg.get("expansion_factor", 32)
    if not all(isinstance(n, int) for n in (d_in, latents, factor)):
        raise FormatError("d_in, num_latents or expansion_factor is no whole number", where=where)
    return {"d_in": d_in, "d_sae": latents or d_in * factor}


def _run_config(folder: Path) -> dict[str, Any]:
    """What sparsify writes beside its hookpoints: among other things, the model."""
    path = folder / RUN
    return read_json(path) if path.is_file() else {}


def write(stored: Stored, folder: Path, approximate: bool) -> tuple[str, ...]:
    config, tensors, notes = stored.config, stored.tensors, []
    if config.activation == "topk" and approximate:
        notes.append("sparsify sets negative latents to 0, which this autoencoder keeps")
    elif config.activation != "topk_relu":
        raise FormatError(
            f"sparsify has no activation like {config.activation}, only topk_relu",
            where=str(folder),
            fix="With approximate=True its negative latents become 0" if config.activation == "topk" else "",
        )
    if config.normalize != "none":
        raise FormatError(f"sparsify has no input normalisation like {config.normalize}", where=str(folder))
    b_enc = tensors["b_enc"]
    if not config.subtract_b_dec:  # sparsify always subtracts b_dec: give it back in the bias
        b_enc = b_enc + tensors["b_dec"] @ tensors["W_enc"]
    norms = tensors["W_dec"].norm(dim=1)
    save_tensors(
        folder / WEIGHTS,
        {
            "encoder.weight": tensors["W_enc"].T,
            "encoder.bias": b_enc,
            "W_dec": tensors["W_dec"],
            "b_dec": tensors["b_dec"],
        },
    )
    write_json(
        folder / CONFIG,
        {
            "activation": "topk",
            "expansion_factor": max(config.d_sae // config.d_in, 1),
            "normalize_decoder": bool(torch.allclose(norms, torch.ones_like(norms), atol=1e-4)),
            "num_latents": config.d_sae,
            "k": config.k,
            "multi_topk": False,
            "skip_connection": False,
            "transcode": False,
            "d_in": config.d_in,
            # sparsify drops fields it does not know; its own place for these is the folder's name and the run's config
            "model": config.model,
            "hookpoint": config.hookpoint,
        },
    )
    return tuple(notes)


FORMAT = Format("sparsify", "EleutherAI sparsify (cfg.json, sae.safetensors)", (CONFIG, WEIGHTS), read, write, (RUN,))
