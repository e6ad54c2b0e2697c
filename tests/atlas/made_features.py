"""Features that were made up, as plain data: written into an atlas, and looked through in plain Python."""

from __future__ import annotations

import random
import re
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median_low

from seamark.atlas import (
    Atlas,
    AtlasWriter,
    EvidenceRow,
    ExplanationRow,
    FeatureRow,
    Query,
    RatingRow,
    Run,
    Sae,
    SimulationRow,
)
from seamark.explain.taxonomy import Tag
from seamark.stats import Estimate

WORDS = ["harbour", "harbours", "bread", "ship", "shipping", "tea", "éclair", "north-east", "U.S.", "x2"]
CHINESE = ["扬声器", "声音", "面包", "港口灯", "茶"]
TAGS = [
    Tag("violence", "physical"),
    Tag("violence"),
    Tag("politics", "figure"),
    Tag("terror"),
    Tag("war crimes", "x y"),
]
RUNS = ("one", "two")
N_A = Estimate.not_available("too few texts")


@dataclass
class Said:
    """An explanation, with the scores of its simulations: {level: correlation or None}."""

    text: str | None
    state: str
    method: str
    language: str
    run: str
    tags: tuple[Tag, ...]
    rating: int | None
    scores: dict[str, float | None]
    number: int = 0
    """Its id."""


@dataclass
class Made:
    """A feature."""

    sae: str
    layer: int
    latent: int
    share: float | None
    said: list[Said] = field(default_factory=list)
    rated: list[tuple[str, int | None]] = field(default_factory=list)
    """(rater, rating), oldest first."""
    contrasts: dict[str, float | None] = field(default_factory=dict)
    id: int = 0

    # What lists show, by the rules of docs/atlas.md, in plain Python.

    @property
    def shown(self) -> list[Said]:
        state = {"text": 0, "masked": 1}
        method = {"llm": 0, "imported": 1}
        return sorted(self.said, key=lambda s: (state.get(s.state, 2), method.get(s.method, 2), s.language != "en",
                                                -s.number))  # fmt: skip

    @property
    def score(self) -> float | None:
        first = self.shown[:1]
        given = first if first and first[0].scores else sorted(self.said, key=lambda s: -s.number)
        by_level = [s.scores.get(level) for level in ("segment", "token") for s in given]
        return next((v for v in by_level if v is not None), None)

    @property
    def rating(self) -> int | None:
        people = [r for who, r in self.rated if who.startswith("human:") and r is not None]
        others = [r for who, r in reversed(self.rated) if not who.startswith("human:")]
        given = [median_low(people) if people else None, *(s.rating for s in self.shown), *others]
        return next((r for r in given if r is not None), None)

    @property
    def contrast(self) -> float | None:
        known = {group: v for group, v in self.contrasts.items() if v is not None}
        return known.get("safety", next((known[group] for group in sorted(known)), None))

    @property
    def sign(self) -> int | None:
        return None if not self.contrast else 1 if self.contrast > 0 else -1

    @property
    def explained(self) -> bool:
        return any(s.state in ("text", "masked") for s in self.said)

    @property
    def domains(self) -> tuple[str, ...]:
        return tuple(sorted({tag.domain for s in self.said for tag in s.tags}))

    @property
    def tokens(self) -> list[str]:
        """What it is found by, word by word."""
        texts = [s.text for s in self.shown if s.state == "text" and s.text]
        names = [
            n for s in sorted(self.said, key=lambda s: s.number) for t in s.tags for n in (t.domain, t.concept) if n
        ]
        all_of_it = [*dict.fromkeys(texts), *dict.fromkeys(names), f"{self.layer}_{self.latent}", self.sae]
        return tokens_of("\n".join(all_of_it))


def tokens_of(text: str) -> list[str]:
    return re.findall(r"[一-鿿]|[a-z0-9]+", text.lower().replace("é", "e"))


def make(n: int, seed: int = 0) -> list[Made]:
    """n features of three autoencoders, two of them in the same layer."""
    rng = random.Random(seed)
    saes = [("a/one", 3), ("b'two", 3), ("c", 17)]
    places = rng.sample([(sae, layer, latent) for sae, layer in saes for latent in range(2 * n)], n)
    return [_feature(rng, *place) for place in sorted(places)]


def _feature(rng: random.Random, sae: str, layer: int, latent: int) -> Made:
    found = Made(sae, layer, latent, rng.choice([None, rng.random(), 0.25]))
    ways = [(method, language, run) for method in ("llm", "lexical", "imported") for language in ("en", "zh", "fr")
            for run in RUNS]  # fmt: skip
    for method, language, run in rng.sample(ways, rng.choice([0, 1, 1, 2, 3])):
        state = rng.choice(["text", "text", "text", "masked", "null", "failed"])
        text = " ".join(rng.choices(CHINESE if language == "zh" else WORDS, k=rng.randint(1, 6)))
        text = {"text": text, "masked": "***"}.get(state)
        tags = tuple(dict.fromkeys(rng.choices(TAGS, k=rng.choice([0, 0, 1, 2])))) if state != "failed" else ()
        scores = {level: rng.choice([None, round(rng.uniform(-1, 1), 3), 0.5]) for level in ("segment", "token")
                  if rng.random() < 0.4}  # fmt: skip
        rating = rng.choice([None, rng.randint(1, 5)]) if text else None
        found.said.append(Said(text, state, method, language, run, tags, rating, scores))
    for who in ("human:ann", "human:bo", "statistical"):
        if rng.random() < 0.2:
            found.rated.append((who, rng.choice([None, 1, 2, 3, 4, 5])))
    for group in ("chat", "safety"):
        if rng.random() < 0.4:
            found.contrasts[group] = rng.choice([0.0, None, round(rng.uniform(-1, 1), 3)])
    return found


def write(path: Path, features: list[Made]) -> Path:
    """Into an atlas, in one transaction; ids are noted in `features`."""
    with AtlasWriter.open(path, create=True) as atlas, atlas.transaction():
        add(atlas, features)
    return path


def add(atlas: AtlasWriter, features: list[Made]) -> None:
    for run in RUNS:
        atlas.add_run(Run(id=run, kind="test", title=f"Run {run}", created="2025-01-01T00:00:00+00:00", manifest={}))
    numbers = {(f.sae, f.layer): atlas.add_sae(sae(f.sae, f.layer)) for f in features}
    for f in features:
        f.id = atlas.add_features(numbers[f.sae, f.layer], [FeatureRow(f.latent, share=f.share)])[f.latent]
        rows = [ExplanationRow(f.id, s.text, s.run, s.method, state=s.state, language=s.language, tags=s.tags,
                               rating=s.rating, reason="" if s.text else "none came") for s in f.said]  # fmt: skip
        for s, number in zip(f.said, atlas.add_explanations(rows), strict=True):
            s.number = number
            atlas.add_simulations(
                SimulationRow(f.id, s.run, level, s.method, N_A if v is None else Estimate(value=v), N_A, s.number)
                for level, v in s.scores.items()
            )  # fmt: skip
        atlas.add_ratings(RatingRow(f.id, who, rating, "one") for who, rating in f.rated)
        atlas.add_evidence(
            EvidenceRow(f.id, f"contrast:{group}", N_A if v is None else Estimate(value=v), "one")
            for group, v in f.contrasts.items()
        )  # fmt: skip


def sae(name: str, layer: int, **changes: object) -> Sae:
    fields = {"number": 0, "id": name, "model": "m/one", "hookpoint": f"layers.{layer}", "layer": layer, "d_in": 8,
              "d_sae": 4096, "activation": "topk", "k": 4, "fingerprint": f"print of {name}"}  # fmt: skip
    return Sae(**(fields | changes))


def all_ids(atlas: Atlas, query: Query) -> list[int]:
    """Ids of a whole list, page by page."""
    found: list[int] = []
    while True:
        page = atlas.find(query.model_copy(update={"offset": len(found), "limit": 7})).cards
        found += [card.id for card in page]
        if len(page) < 7:
            return found
