"""What is measured: model, autoencoder and pairs (`Setup`), one run on them (`Job`), what it found (`Answer`)."""

from __future__ import annotations

import gc
import importlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
import torch
from numpy.typing import NDArray

from seamark.model import DEFAULT_MODEL, RewardModel
from seamark.model.batching import collate
from seamark.model.hookpoints import parse_hookpoint
from seamark.model.reading import read
from seamark.run import write_atomic, write_json
from seamark.sae import SparseAutoencoder
from seamark.text.pairs import Pairs
from seamark.text.positions import positions
from seamark.text.rendering import Rendered

GROUP = "safety"
EXPLAINED, SCORED, SHOWN = 256, 32, 10
"""Features whose contexts are made, features that score pairs, contexts of a feature."""
TOLERANCE = 1e-4
"""Scores of two ways are equal within it: s as it is in [−1, 1], else in units of the largest."""
Positions = NDArray[np.int32]
Contexts = dict[int, list[tuple[float, Any]]]
"""{latent: [(activation, what is shown)]}, strongest first."""


@dataclass(frozen=True)
class Setup:
    """A model, its autoencoder and its pairs."""

    name: str
    hookpoint: str
    d_sae: int
    """8 × the model's width."""
    k: int
    n_pairs: int
    max_length: int = 512
    """Tokens of a text at most, and what the reference pads every text to (the released code: 1,024)."""
    blocks: int = 0
    """A Llama of so many blocks is made on the spot; 0: MiniLM."""
    width: int = 0
    inner: int = 0
    heads: int = 0
    vocabulary: int = 8192

    @property
    def layer(self) -> int:
        return parse_hookpoint(self.hookpoint).layer


SETUPS = {
    "llama": Setup("llama", "layers.5", 4096, 32, 160, blocks=8, width=512, inner=1376, heads=8),
    "minilm": Setup("minilm", "layers.3", 3072, 32, 300),
}  # fmt: skip


@dataclass(frozen=True)
class Job:
    """One run of one way."""

    way: str
    setup: Setup
    folder: str
    """Where the set-up lies and answers go."""
    tokens: int = 0
    """Of the corpus, for `growth`."""

    @classmethod
    def read(cls, path: str | Path) -> Job:
        found = json.loads(Path(path).read_text())
        return cls(**found | {"setup": Setup(**found["setup"])})

    def write(self, path: Path) -> Path:
        write_json(path, asdict(self))
        return path

    @property
    def place(self) -> Path:
        return Path(self.folder)

    @property
    def answer(self) -> Path:
        """Where the answer goes."""
        return self.place / f"{self.way}.safetensors"


@dataclass(frozen=True)
class Loaded:
    """A set-up in memory."""

    model: RewardModel
    sae: SparseAutoencoder
    pairs: Pairs


def load(job: Job) -> Loaded:
    """The set-up that `prepare` left, on the CPU, in float32."""
    model = load_model(job.setup, job.place)
    pairs = Pairs.from_jsonl(job.place / "pairs.jsonl")
    return Loaded(model, SparseAutoencoder.from_pretrained(job.place / "sae"), pairs)


def load_model(setup: Setup, folder: Path) -> RewardModel:
    if setup.blocks:
        return RewardModel.from_pretrained(folder / "model", dtype=torch.float32, device_map="cpu")
    return RewardModel.from_base(DEFAULT_MODEL, device_map="cpu")


def warm_up(loaded: Loaded) -> None:
    """One short text through the whole model and the autoencoder, every weight looked at (files are mapped: a page
    counts once it is touched), the libraries there that any way may need, and no garbage left."""
    importlib.import_module("pandas")  # pyarrow does so at its first table
    for module in (loaded.model.hf, loaded.sae):
        for weights in module.parameters():
            weights.detach().sum()
    text = loaded.model.renderer().render_text("A short text, to begin with.", "warm-up")
    batch = collate([text], int(loaded.model.config.pad_token_id))
    hookpoint = loaded.sae.config.hookpoint
    h_BTD = read(loaded.model, batch, [hookpoint], with_output=True).activations[hookpoint]
    loaded.sae.encode(h_BTD[0].float())
    gc.collect()


def rendered(loaded: Loaded, setup: Setup) -> tuple[list[Rendered], list[Positions]]:
    """Texts in the order of the pairs, chosen before rejected, and their scoring positions by the paper's rule."""
    renderer = loaded.model.renderer(setup.max_length)
    texts = [text for pair in loaded.pairs for text in renderer.render_pair(pair)]
    return texts, [positions(text, "clauses", "paper", "all") for text in texts]


def call_options(loaded: Loaded) -> dict[str, Any]:
    """For calls of the model by the other ways: nobody wants keys and values back."""
    return {"use_cache": False} if hasattr(loaded.model.config, "use_cache") and _causal(loaded) else {}


def _causal(loaded: Loaded) -> bool:
    return not hasattr(loaded.model.hf, "bert")


@dataclass(frozen=True)
class Answer:
    """What a way found, in arrays: enough to see that two ways did the same."""

    scores: NDArray[np.float64]
    """s of every latent, [d_sae]."""
    explained: NDArray[np.int64]
    """The 256 latents with the largest |s|, strongest first."""
    shown: NDArray[np.float64]
    """The strongest activation in the contexts of each of them; 0: no context."""
    features: NDArray[np.int64]
    """The first 32 of them, which score pairs."""
    pair_scores: NDArray[np.float64]
    """g(chosen) − g(rejected), [pairs]; NaN: not available."""

    @classmethod
    def of(
        cls, scores: NDArray[np.float64], explained: Sequence[int], contexts: Contexts, pair_scores: Sequence[float]
    ) -> Answer:
        shown = [contexts[i][0][0] if contexts.get(i) else 0.0 for i in explained]
        latents = np.asarray(explained, np.int64)
        return cls(scores, latents, np.asarray(shown), latents[:SCORED], np.asarray(pair_scores, np.float64))

    def save(self, path: Path) -> None:
        write_atomic(path, safetensors.numpy.save({f.name: getattr(self, f.name) for f in fields(self)}))

    @classmethod
    def load(cls, path: Path) -> Answer:
        return cls(**safetensors.numpy.load_file(path))


@dataclass(frozen=True)
class Doubt:
    """Where the k-th and the next latent of a position are so near each other that rounding decides between them."""

    latents: frozenset[int]
    pairs: frozenset[int]
    """Rows of pairs."""

    @classmethod
    def load(cls, path: Path) -> Doubt:
        found = json.loads(path.read_text())
        return cls(frozenset(found["latents"]), frozenset(found["pairs"]))


@dataclass(frozen=True)
class Comparison:
    """How far two answers lie apart."""

    reason: str
    """Why they are not equal; empty where they are."""
    difference: float
    """Largest |Δs| outside of the ties."""
    ties: int
    """Latents and pairs that differ by more than the tolerance, all of them in doubt."""


def compare(ours: Answer, theirs: Answer, doubt: Doubt) -> Comparison:
    """Whether two ways came to the same scores, contexts and pair scores.

    At a tie of the k-th latent two ways may choose differently; only latents and pairs in `doubt` may differ for that.
    """
    apart = np.abs(ours.scores - theirs.scores)
    sure = np.asarray([i not in doubt.latents for i in range(len(apart))])
    difference = float(apart[sure].max(initial=0.0))
    ties = int((apart[~sure] > TOLERANCE).sum())
    if difference > TOLERANCE:
        return Comparison(f"scores differ by up to {difference:.2g}", difference, ties)
    if set(ours.features.tolist()) != set(theirs.features.tolist()):
        return Comparison("other features were chosen to score pairs", difference, ties)
    known = dict(zip(theirs.explained.tolist(), theirs.shown.tolist(), strict=True))
    unit = max(float(np.abs(ours.shown).max(initial=0.0)), 1e-30)
    for latent, value in zip(ours.explained.tolist(), ours.shown.tolist(), strict=True):
        if latent not in doubt.latents and abs(known.get(latent, value) - value) > TOLERANCE * unit:
            return Comparison(f"the strongest context of latent {latent} is another one", difference, ties)
    return _pairs_equal(ours, theirs, doubt, difference, ties)


def _pairs_equal(ours: Answer, theirs: Answer, doubt: Doubt, difference: float, ties: int) -> Comparison:
    there = np.isfinite(ours.pair_scores)
    apart = np.abs(ours.pair_scores - theirs.pair_scores)[there]
    unit = float(np.abs(ours.pair_scores[there]).max(initial=0.0))
    off = np.flatnonzero(there)[~(apart <= TOLERANCE * unit)].tolist()
    wrong = [i for i in off if i not in doubt.pairs]
    reason = f"{len(wrong)} of {len(there)} pair scores differ" if wrong else ""
    return Comparison(reason, difference, ties + len(off))
