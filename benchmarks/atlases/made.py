"""Features that nobody has explained: their words follow a Zipf law, their contexts are made, all from one seed."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

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
WORDS, IN_EXPLANATION, IN_CHINESE = 20_000, (6, 18), (6, 16)
"""Words there are; how many words, or Chinese characters, an explanation has."""
TAGGED = 0.4
"""Share of features with tags, as in Safe-SAIL's released database."""
DOMAINS = ("politics", "violence", "pornography", "terror")
HAN = "政治暴力宗教选举语言医院学校天气食物音乐港口灯塔航海船只"
SYLLABLES = ("ba", "de", "ki", "lo", "mu", "na", "pe", "ri", "so", "tu", "va", "we", "xi", "yo", "za", "che", "dra")
RUN = "made"
EDGES = tuple(0.5 * i for i in range(17))
NONE = Estimate.not_available("not measured")


@cache
def words(seed: int) -> list[str]:
    """The language, the most frequent word first."""
    rng = np.random.default_rng(seed)
    found: dict[str, None] = {}
    while len(found) < WORDS:
        found["".join(rng.choice(SYLLABLES, rng.integers(1, 5)))] = None
    return list(found)


@dataclass(frozen=True)
class Made:
    """So many features, one after the other; the same every time."""

    n: int
    seed: int = 0

    @property
    def words(self) -> list[str]:
        return words(self.seed)

    @cached_property
    def _chances(self) -> NDArray[np.float64]:
        weights = 1 / np.arange(1, WORDS + 1)
        return np.cumsum(weights / weights.sum())

    def draw(self, rng: np.random.Generator, n: int) -> list[str]:
        """Words by their frequency."""
        return self._drawn(rng, n).tolist()

    @cached_property
    def _spelled(self) -> NDArray[np.object_]:
        return np.asarray(self.words, object)

    @cached_property
    def _spaced(self) -> NDArray[np.object_]:
        """The words as they stand within a text."""
        return np.asarray([f" {word}" for word in self.words], object)

    def _drawn(self, rng: np.random.Generator, n: int, among: NDArray[np.object_] | None = None) -> NDArray[np.object_]:
        places = np.searchsorted(self._chances, rng.random(n)).clip(max=WORDS - 1)
        return (self._spelled if among is None else among)[places]

    def portions(self, size: int = 500) -> Iterator[list[Feature]]:
        """All of them; arrays of a whole portion are drawn at once."""
        for start in range(0, self.n, size):
            rng = np.random.default_rng((self.seed, start))
            yield self._portion(rng, start, min(size, self.n - start))

    def _portion(self, rng: np.random.Generator, start: int, n: int) -> list[Feature]:
        texts = _cut(self._drawn(rng, n * IN_EXPLANATION[1]), rng.integers(*IN_EXPLANATION, n))
        chinese = _cut(rng.choice(list(HAN), n * IN_CHINESE[1]), rng.integers(*IN_CHINESE, n))
        tokens = _rows(self._drawn(rng, n * CONTEXTS * TOKENS, self._spaced))
        values = _rows(activations(rng, n * CONTEXTS).ravel())
        contexts = zip(tokens, values, strict=True)
        scores, shares, tagged = rng.uniform(-0.1, 0.8, n), 10 ** rng.uniform(-5, -1, n), rng.random(n) < TAGGED
        ratings, n_tags = rng.integers(1, 6, n), rng.integers(1, 3, n)
        domains = rng.permuted(np.tile(np.arange(len(DOMAINS)), (n, 1)), axis=1)
        return [
            Feature(
                (start + i) % SAES, (start + i) // SAES, " ".join(texts[i]).capitalize() + ".", "".join(chinese[i]),
                tuple(Tag(DOMAINS[j]) for j in domains[i, : n_tags[i]]) if tagged[i] else (), correlation(scores[i]),
                int(ratings[i]), measured((start + i) // SAES, float(shares[i])),
                list(itertools.islice(contexts, CONTEXTS)),
            )
            for i in range(n)
        ]  # fmt: skip


def _cut(drawn: NDArray[Any], lengths: NDArray[np.int64]) -> list[list[str]]:
    """Rows of these lengths, from as many equally long ones."""
    return [row[:length] for row, length in zip(drawn.reshape(len(lengths), -1).tolist(), lengths, strict=True)]


def _rows(values: NDArray[Any]) -> list[list[Any]]:
    """Lists of `TOKENS`; several times as fast as `tolist` of an array of rows."""
    flat = values.tolist()
    return [flat[i : i + TOKENS] for i in range(0, len(flat), TOKENS)]


def activations(rng: np.random.Generator, n: int) -> NDArray[np.float64]:
    """Of n contexts [n, tokens]: a few tokens fire."""
    found = np.zeros((n, TOKENS))
    np.put_along_axis(found, rng.integers(0, TOKENS, (n, 4)), rng.exponential(2.0, (n, 4)).round(4), axis=1)
    return found


def correlation(score: float) -> Estimate:
    """A simulation's score with its interval."""
    return Estimate(value=float(score), low=float(score) - 0.1, high=float(score) + 0.1, n=60)


def measured(latent: int, share: float) -> FeatureRow:
    """What a scan of half a million positions would say of a feature that fires at this share of them."""
    firings = int(500_000 * share)
    histogram = Histogram(edges=EDGES, counts=tuple(firings // (3 * i) for i in range(1, len(EDGES))))
    return FeatureRow(latent, firings, share, 1.5, 9.0, firings // 7, 8.0, histogram=histogram)


@dataclass(frozen=True)
class Feature:
    """A made feature."""

    sae: int
    latent: int
    text: str
    chinese: str
    tags: tuple[Tag, ...]
    correlation: Estimate
    rating: int
    row: FeatureRow
    contexts: list[tuple[list[str], list[float]]]


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
            writer.add_contexts(
                ContextRow(ids[f.latent], "top", rank, f"{f.sae}-{f.latent}-{rank}", tokens, values)
                for f in mine for rank, (tokens, values) in enumerate(f.contexts)
            )  # fmt: skip


def leave_folder(every: Sequence[Feature], folder: Path) -> None:
    """Features as `seamark explain` and `seamark simulate` leave them: files to build an atlas from."""
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
