"""Features that nobody has explained: their words follow a Zipf law, their contexts are made, all from one seed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from seamark.atlas.records import Histogram, Run, Sae
from seamark.atlas.rows import ContextRow, ExplanationRow, FeatureRow, SimulationRow
from seamark.atlas.writing import AtlasWriter
from seamark.explain.records import Explanation, Simulation, write_explanations, write_simulations
from seamark.explain.taxonomy import Tag
from seamark.features.context_sets import ContextHalf, FeatureContexts, write_contexts
from seamark.features.contexts import Context
from seamark.stats import Estimate

SAES, CONTEXTS, TOKENS = 5, 20, 40
"""Autoencoders, contexts of a feature, tokens of a context."""
WORDS, IN_EXPLANATION = 20_000, (6, 18)
TAGGED = 0.4
"""Share of features with tags, as in Safe-SAIL's released database."""
DOMAINS = ("politics", "violence", "pornography", "terror")
HAN = "政治暴力宗教选举语言医院学校天气食物音乐港口灯塔航海船只"
SYLLABLES = ("ba", "de", "ki", "lo", "mu", "na", "pe", "ri", "so", "tu", "va", "we", "xi", "yo", "za", "che", "dra")
RUN = "made"
NONE = Estimate.not_available("not measured")


@dataclass(frozen=True)
class Made:
    """So many features, one after the other; the same every time."""

    n: int
    seed: int = 0

    @cached_property
    def words(self) -> list[str]:
        rng = np.random.default_rng(self.seed)
        found: dict[str, None] = {}
        while len(found) < WORDS:
            found["".join(rng.choice(SYLLABLES, rng.integers(1, 5)))] = None
        return list(found)

    @cached_property
    def _chances(self) -> NDArray[np.float64]:
        weights = 1 / np.arange(1, WORDS + 1)
        return np.cumsum(weights / weights.sum())

    def draw(self, rng: np.random.Generator, n: int) -> list[str]:
        """Words by their frequency."""
        return [self.words[min(i, WORDS - 1)] for i in np.searchsorted(self._chances, rng.random(n))]

    def portions(self, size: int = 500) -> Iterator[list[Feature]]:
        for start in range(0, self.n, size):
            rng = np.random.default_rng((self.seed, start))
            yield [self._feature(rng, i) for i in range(start, min(start + size, self.n))]

    def _feature(self, rng: np.random.Generator, i: int) -> Feature:
        text = " ".join(self.draw(rng, int(rng.integers(*IN_EXPLANATION)))).capitalize() + "."
        tags = [Tag(DOMAINS[j]) for j in rng.permutation(len(DOMAINS))[: rng.integers(1, 3)]]
        chinese = "".join(rng.choice(list(HAN), int(rng.integers(6, 16))))
        contexts = [(self.draw(rng, TOKENS), activations(rng)) for _ in range(CONTEXTS)]
        return Feature(i % SAES, i // SAES, text, chinese, tuple(tags) if rng.random() < TAGGED else (),
                       float(rng.uniform(-0.1, 0.8)), int(rng.integers(1, 6)), contexts)  # fmt: skip


def activations(rng: np.random.Generator) -> list[float]:
    """Of a context: a few tokens fire."""
    found = np.zeros(TOKENS)
    found[rng.integers(0, TOKENS, 4)] = rng.exponential(2.0, 4)
    return [round(v, 4) for v in found.tolist()]


@dataclass(frozen=True)
class Feature:
    """A made feature."""

    sae: int
    latent: int
    text: str
    chinese: str
    tags: tuple[Tag, ...]
    score: float
    rating: int
    contexts: list[tuple[list[str], list[float]]]

    @property
    def row(self) -> FeatureRow:
        edges = tuple(round(0.5 * i, 1) for i in range(17))
        counts = tuple(1000 // (i + 1) for i in range(16))
        return FeatureRow(self.latent, 5000, 0.01, 1.5, 9.0, 700, 8.0, histogram=Histogram(edges=edges, counts=counts))

    @property
    def correlation(self) -> Estimate:
        return Estimate(value=self.score, low=self.score - 0.1, high=self.score + 0.1, n=60)


def sae_id(number: int) -> str:
    return f"layers.{7 * number}.mlp"


def begin(writer: AtlasWriter, n: int) -> list[int]:
    """Model, autoencoders and run; the autoencoders' numbers."""
    with writer.transaction():
        writer.add_run(Run(id=RUN, kind="import", title="Made for a benchmark", created="2026-01-01T00:00:00+00:00",
                           manifest={}))  # fmt: skip
        writer.add_model("made/model")
        return [
            writer.add_sae(Sae(number=0, id=sae_id(i), model="made/model", hookpoint=sae_id(i), layer=7 * i, d_in=2048,
                               d_sae=-(-n // SAES), activation="topk_relu", k=64))
            for i in range(SAES)
        ]  # fmt: skip


def write(writer: AtlasWriter, numbers: list[int], some: list[Feature]) -> None:
    """Everything of some features, in one transaction."""
    with writer.transaction():
        for sae in range(SAES):
            mine = [f for f in some if f.sae == sae]
            ids = writer.add_features(numbers[sae], [f.row for f in mine])
            explained = writer.add_explanations([
                ExplanationRow(ids[f.latent], f.text, RUN, "llm", model="made", tags=f.tags, rating=f.rating,
                               rating_reason="made") for f in mine
            ])  # fmt: skip
            writer.add_explanations([ExplanationRow(ids[f.latent], f.chinese, RUN, "llm", model="made", language="zh",
                                                    tags=f.tags) for f in mine])  # fmt: skip
            writer.add_simulations([
                SimulationRow(ids[f.latent], RUN, "segment", "llm", f.correlation, NONE, explanation)
                for f, explanation in zip(mine, explained, strict=True)
            ])  # fmt: skip
            writer.add_contexts([
                ContextRow(ids[f.latent], "top", rank, f"{f.sae}-{f.latent}-{rank}", tokens, values)
                for f in mine for rank, (tokens, values) in enumerate(f.contexts)
            ])  # fmt: skip


def leave_folder(made: Made, folder: Path) -> None:
    """The same features as `seamark explain` and `seamark simulate` leave them: files to build an atlas from."""
    every = [feature for some in made.portions() for feature in some]
    write_contexts((_contexts(f) for f in every), folder / "contexts.jsonl")
    write_explanations(folder / "explanations.jsonl", (
        Explanation(sae=sae_id(f.sae), latent=f.latent, text=f.text, tags=f.tags, rating=f.rating, rating_reason="made",
                    language="en", method="llm", model="made") for f in every
    ))  # fmt: skip
    write_simulations(folder / "simulations.jsonl", (
        Simulation(sae=sae_id(f.sae), latent=f.latent, level="segment", method="llm", model="made",
                   correlation=f.correlation, accuracy=NONE) for f in every
    ))  # fmt: skip


def _contexts(f: Feature) -> FeatureContexts:
    shown = tuple(
        Context(f"{f.sae}-{f.latent}-{i}", None, None, "made", tuple(tokens), tuple(values), (True,) * len(tokens), 8.0)
        for i, (tokens, values) in enumerate(f.contexts)
    )
    half = len(shown) // 2
    return FeatureContexts(sae_id(f.sae), f.latent, 8.0, "", ContextHalf(top=shown[:half]),
                           ContextHalf(top=shown[half:]))  # fmt: skip
