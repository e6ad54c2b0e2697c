"""Which features are alike: nearest decoder directions, and landscapes. Each is a run, of all features of the atlas."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from seamark.atlas.landscape import explanation_vectors, layout_of, side_by_side
from seamark.atlas.neighbours import K, nearest
from seamark.atlas.records import Run
from seamark.atlas.rows import NeighbourRow
from seamark.atlas.sources import Known, Latents, Source, portions
from seamark.atlas.store import Atlas
from seamark.errors import DataError
from seamark.run import digest, say

if TYPE_CHECKING:
    from seamark.sae import SparseAutoencoder

AT_ONCE = 4096
"""Features whose neighbours are written in one transaction."""
FEWEST = 3
"""Features of which there is a landscape."""


@dataclass(frozen=True)
class Directions:
    """Decoder directions of features of one hookpoint, which lie in one space."""

    hookpoint: str
    ids: NDArray[np.int64]
    """[n], of the features."""
    decoders: NDArray[np.float32]
    """[n, d_in]"""


def nearness_sources(
    atlas: Atlas, suite: Mapping[str, SparseAutoencoder], notes: list[str], *, landscape: bool = True, seed: int = 0
) -> Iterator[Source]:
    """What can be said of nearness: by directions where `suite` holds autoencoders of the atlas, by explanations where
    there are texts. `notes` gets why something cannot."""
    found = directions(atlas, suite)
    n = sum(len(group.ids) for group in found)
    if n > 1:
        yield Nearest(atlas, found)
    else:
        notes.append("No autoencoder of these features was given: no nearest features, no landscape of directions.")
    if not landscape:
        return
    if n >= FEWEST:
        yield DecoderLandscape(atlas, found, seed)
    ids, texts, languages = atlas.shown_texts()
    if len(ids) >= FEWEST:
        yield ExplanationLandscape(atlas, ids, texts, languages, seed)
    else:
        notes.append(f"Fewer than {FEWEST} features have an explanation: no landscape of explanations.")


def directions(atlas: Atlas, suite: Mapping[str, SparseAutoencoder]) -> list[Directions]:
    """Directions of all features of the atlas whose autoencoder is in `suite`, by model and hookpoint."""
    groups: dict[tuple[str, str], list[tuple[NDArray[np.int64], NDArray[np.float32]]]] = {}
    for sae in atlas.saes():
        if sae.id not in suite:
            continue
        known = atlas.feature_ids(sae.number)
        latents = np.fromiter(known, np.int64, len(known))
        if len(latents) and latents[-1] >= len(suite[sae.id].W_dec):
            raise DataError(f"latent {latents[-1]} is in the atlas; this autoencoder has {len(suite[sae.id].W_dec):,}",
                            where=sae.id, fix="Give the autoencoder that the atlas speaks of")  # fmt: skip
        rows = suite[sae.id].W_dec.detach()[latents.tolist()].float().cpu().numpy()
        groups.setdefault((sae.model, sae.hookpoint), []).append((np.fromiter(known.values(), np.int64), rows))
    return [Directions(hookpoint, np.concatenate([ids for ids, _ in some]), np.concatenate([rows for _, rows in some]))
            for (_, hookpoint), some in groups.items()]  # fmt: skip


@dataclass
class _OfAll(Source):
    """A run that takes all features of the atlas into account."""

    atlas: Atlas
    latents: Latents = field(init=False, default_factory=dict)

    def _run(self, name: str, title: str, about: Mapping[str, Any], rows: Any) -> Run:
        created = max((run.created for run in self.atlas.runs()), default="")  # a second build says the same
        return Run(id=name, kind=name, title=title, created=created, manifest={**about, "rows": digest(rows)})


@dataclass
class Nearest(_OfAll):
    """The ten nearest features of each."""

    groups: Sequence[Directions]

    def __post_init__(self) -> None:
        about = {"k": K, "hookpoints": {group.hookpoint: len(group.ids) for group in self.groups}}
        self.run = self._run("neighbours", "Nearest decoder directions", about, _of(self.groups))

    def write(self, known: Known) -> None:
        for group in self.groups:
            say(f"▸ nearest of {len(group.ids):,} directions at {group.hookpoint}")
            nearest_FK, cosines_FK = nearest(group.decoders, K)
            for some in portions(range(len(group.ids)), AT_ONCE):
                known.writer.add_neighbours(
                    NeighbourRow(int(group.ids[i]), rank, int(group.ids[j]), cosine)
                    for i in some
                    for rank, (j, cosine) in enumerate(zip(nearest_FK[i].tolist(), cosines_FK[i].tolist(), strict=True))
                    if j >= 0
                )


@dataclass
class DecoderLandscape(_OfAll):
    """Features by their directions; hookpoints, which cannot be compared, side by side."""

    groups: Sequence[Directions]
    seed: int

    def __post_init__(self) -> None:
        about = {"seed": self.seed, "hookpoints": [group.hookpoint for group in self.groups]}
        self.run = self._run("landscape decoder", "Landscape of decoder directions", about, _of(self.groups))

    def write(self, known: Known) -> None:
        n = sum(len(group.ids) for group in self.groups)
        say(f"▸ landscape of {n:,} decoder directions")
        places = side_by_side([layout_of(group.decoders, self.seed) for group in self.groups])
        _write(known, "decoder", self.run, np.concatenate([g.ids for g in self.groups]), np.concatenate(places))


@dataclass
class ExplanationLandscape(_OfAll):
    """Features by the words of the explanations that are shown first."""

    ids: Sequence[int]
    texts: Sequence[str]
    languages: Sequence[str]
    seed: int

    def __post_init__(self) -> None:
        about = {"seed": self.seed, "languages": sorted(set(self.languages))}
        rows = [self.ids, self.texts, self.languages]
        self.run = self._run("landscape explanations", "Landscape of explanations", about, rows)

    def write(self, known: Known) -> None:
        say(f"▸ landscape of {len(self.ids):,} explanations")
        vectors = explanation_vectors(self.texts, self.languages)
        _write(known, "explanations", self.run, np.asarray(self.ids, np.int64), layout_of(vectors, self.seed))


def _of(groups: Sequence[Directions]) -> list[Any]:
    """What directions hang on, for a digest."""
    return [[g.hookpoint, g.ids.tolist(), digest(g.decoders.astype("<f4").tobytes().hex())] for g in groups]


def _write(known: Known, name: str, run: Run, ids: NDArray[np.int64], places: NDArray[np.float32]) -> None:
    placed = np.isfinite(places).all(axis=1)
    about = {**run.manifest, "features": int(placed.sum()), "left_out": int((~placed).sum())}
    known.writer.set_layout(name, about, ids[placed], places[placed, 0], places[placed, 1], run.id)
