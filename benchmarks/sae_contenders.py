"""Who is compared with Seamark at training TopK autoencoders, with which settings and why."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

OURS = "seamark"
NORMALIZED = {"normalize_activations": "expected_average_only_in"}


@dataclass(frozen=True)
class Contender:
    """A library with settings that its users can choose."""

    module: str
    """Of `benchmarks.peers`."""
    about: str
    lr: float
    """Its default at d_sae 3072: the middle of the grid of learning rates."""
    environment: str = ""
    """Whose virtual environment it runs in; empty: ours."""
    options: dict[str, Any] = field(default_factory=dict)
    """Settings wherever it runs."""
    quality: dict[str, Any] = field(default_factory=dict)
    """Settings added where quality is compared: how it treats the scale of real activations."""


_AUTO = 2e-4 / (3072 / 2**14) ** 0.5
"""What sparsify (Adam) and dictionary_learning choose themselves: 2e-4 / √(d_sae / 2¹⁴)."""

CONTENDERS: dict[str, Contender] = {
    OURS: Contender(
        "with_seamark", "seamark.sae.fit with its defaults; quality: normalize none, scale expected_norm, squared loss",
        5e-4, quality={"sae": {"normalize": "none"}, "fit": {"loss": "squared", "scale": "expected_norm"}},
    ),
    "sae_lens": Contender(
        "with_sae_lens", "TopKTrainingSAE in SAETrainer.fit, defaults: fp32, AuxK, decoder norms rescaled, Adam",
        3e-4, "sae-lens", quality=NORMALIZED,
    ),
    "sae_lens_bf16": Contender(
        "with_sae_lens", "the same with its option autocast (bf16 forward)", 3e-4, "sae-lens",
        {"autocast": True}, NORMALIZED,
    ),
    "sae_lens_sparse": Contender(
        "with_sae_lens", "the same in fp32 with its option use_sparse_activations, which on CPU needs "
        "rescale_acts_by_decoder_norm off", 3e-4, "sae-lens", {"use_sparse_activations": True}, NORMALIZED,
    ),
    "sparsify": Contender(
        "with_sparsify", "SparseCoder in its Trainer.fit, defaults: fp32 on CPU, signum, schedule-free",
        5e-3 / (3072 / 2**14) ** 0.5, "sparsify", {"optimizer": "signum"},
    ),
    "sparsify_adam": Contender(
        "with_sparsify", "the same with its option optimizer=adam (torch's Adam, linear warm-up and decay)",
        _AUTO, "sparsify", {"optimizer": "adam"},
    ),
    "sparsify_adam_bf16": Contender(
        "with_sparsify", "the same with Adam under bf16 autocast, which its Trainer offers on CUDA only", _AUTO,
        "sparsify", {"optimizer": "adam", "bf16": True},
    ),
    "dictionary_learning": Contender(
        "with_dictionary_learning", "AutoEncoderTopK with TopKTrainer.update, as its trainSAE runs it on CPU: fp32",
        _AUTO, "dictionary-learning", quality={"normalize_activations": True},
    ),
    "dictionary_learning_bf16": Contender(
        "with_dictionary_learning", "the same under bf16 autocast, which its trainSAE offers on CUDA only",
        _AUTO, "dictionary-learning", {"bf16": True}, {"normalize_activations": True},
    ),
    "torch_dense": Contender(
        "with_torch", "dense products, autograd and Adam in plain torch, fp32", 5e-4,
    ),
    "torch_dense_bf16": Contender(
        "with_torch", "the same under bf16 autocast with torch's fused Adam", 5e-4, "", {"bf16": True, "fused": True},
    ),
}  # fmt: skip
PEERS = [name for name in CONTENDERS if name != OURS]
QUALITY = [OURS, "sae_lens_bf16", "sparsify", "sparsify_adam", "dictionary_learning_bf16", "torch_dense_bf16"]
"""Who is trained for minutes by `sae-fvu` unless `--contenders` says otherwise: of every library the settings that make
the most steps; results name the rest."""


def chosen(names: str | None, default: Sequence[str] = tuple(CONTENDERS)) -> list[str]:
    """Names from a comma-separated list, ours always first; `default` without one. ValueError on unknown ones."""
    if not names:
        return list(default)
    asked = [n.strip() for n in names.split(",")]
    unknown = [n for n in asked if n not in CONTENDERS]
    if unknown:
        raise ValueError(f"no contender {', '.join(unknown)}; there are {', '.join(CONTENDERS)}")
    return [OURS, *(n for n in CONTENDERS if n in asked and n != OURS)]


def environments(names: Sequence[str]) -> list[str]:
    """The virtual environments these contenders run in, besides ours."""
    return list(dict.fromkeys(e for n in names if (e := CONTENDERS[n].environment)))


def left_out(names: list[str], wanted: Sequence[str] = tuple(PEERS)) -> str:
    """Why nothing can be said of the best peer where not all `wanted` run; empty where they do."""
    missing = [n for n in wanted if n not in names]
    return f"not run: {', '.join(missing)}" if missing else ""
