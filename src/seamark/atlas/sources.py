"""What an atlas is built from: results of other commands, each a run in the atlas that is written whole or again.

A source says which features it speaks of before anything is written, and then writes its rows in batches.
"""

from __future__ import annotations

import datetime
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from seamark.atlas.context_lines import context_lines, line_rows
from seamark.atlas.records import ContextKind, Run
from seamark.atlas.rows import (
    ContextRow,
    ExplanationRow,
    FeatureRow,
    RatingRow,
    SimulationRow,
)
from seamark.atlas.writing import AtlasWriter
from seamark.errors import ConfigError, DataError, FormatError
from seamark.explain import folder as explained
from seamark.explain.human import RatedFeature
from seamark.explain.records import Explanation, Key, Simulation, read_explanations, read_simulations
from seamark.features.contexts import Context
from seamark.run import digest, file_digest, read_json

AT_ONCE = 256
"""Features that are written in one transaction."""
SIMULATIONS, RATINGS, RESULT = "simulations.jsonl", "ratings.jsonl", "result.json"
Latents = Mapping[str, Iterable[int]]
"""{sae id: latents}."""
T = TypeVar("T")


class Known:
    """The atlas at work, and the ids of its features."""

    def __init__(self, writer: AtlasWriter) -> None:
        self.writer = writer
        self._ids: dict[str, dict[int, int]] = {}
        self._numbers: dict[str, int] = {}

    def ids(self, sae: str) -> dict[int, int]:
        """{latent: id} of an autoencoder's features."""
        if sae not in self._ids:
            self._ids[sae] = self.writer.feature_ids(self.number(sae))
        return self._ids[sae]

    def number(self, sae: str) -> int:
        """The number of an autoencoder that is in the atlas."""
        if sae not in self._numbers:
            self._numbers = {s.id: s.number for s in self.writer.saes()}
        if sae not in self._numbers:
            raise DataError(f"nothing says what the autoencoder {sae!r} is", where=str(self.writer.path),
                            fix="Give the scan it is from: --scan")  # fmt: skip
        return self._numbers[sae]

    def id(self, key: Key) -> int:
        """The id of a feature that is in the atlas."""
        return self.ids(key[0])[key[1]]

    def add(self, latents: Latents) -> None:
        """Add the features that are not in the atlas yet."""
        for sae, some in latents.items():
            known = self.ids(sae)
            if missing := [latent for latent in some if latent not in known]:
                known |= self.writer.add_features(self.number(sae), map(FeatureRow, missing))


class Source(ABC):
    """One run."""

    run: Run
    """Its manifest holds what decides the rows; equal manifests, equal rows."""
    latents: Latents
    """Features it speaks of."""

    def prepare(self, known: Known) -> None:
        """Add what rows are about."""
        known.add(self.latents)

    @abstractmethod
    def write(self, known: Known) -> None:
        """Write all rows. Simulations, ratings and evidence of an earlier, broken attempt are gone by then."""


@dataclass
class Explained(Source):
    """A folder of `seamark explain`: explanations, and the contexts they were made from and are tested on."""

    folder: Path
    run: Run = field(init=False)
    latents: Latents = field(init=False)
    scan: Path | None = field(init=False, default=None)
    """Where the scan lay; None: not told."""

    def __post_init__(self) -> None:
        path = self.folder / explained.EXPLANATIONS
        if not path.is_file():
            raise ConfigError("no explanations here", where=str(self.folder), fix="Name a folder of `seamark explain`")
        manifest = explained.check_folder(self.folder)
        if manifest is None:
            files = {explained.EXPLANATIONS: file_digest(path)}
            about: dict[str, Any] = {"files": files}
            key, title = digest(files), f"Explanations of {self.folder.name}"
            self.latents = by_sae(self.explanations)
        else:
            about = manifest.model_dump(mode="json", exclude={"features"})
            by = manifest.settings.model or "their words"
            key, title = manifest.key, f"Explanations by {by}"
            self.latents, self.scan = manifest.features, Path(manifest.scan)
        self.run = Run(id=key, kind="explain", title=title, created=made(path), manifest=about)

    @cached_property
    def explanations(self) -> dict[Key, Explanation]:
        return read_explanations(self.folder / explained.EXPLANATIONS)

    @property
    def has_contexts(self) -> bool:
        return (self.folder / explained.CONTEXTS).is_file()

    def write(self, known: Known) -> None:
        left = dict(self.explanations)
        written: list[int] = []
        contexts = context_lines(self.folder / explained.CONTEXTS) if self.has_contexts else iter(())
        while (some := self._write_contexts(known, contexts, left)) is not None:
            written += some
        for rest in portions(left.values(), AT_ONCE):
            with known.writer.transaction():
                written += self._write_explanations(known, rest)
        known.writer.clear_explanations(self.run.id, but=written)

    def _write_contexts(
        self, known: Known, contexts: Iterator[tuple[Key, Mapping[str, Any], str]], left: dict[Key, Explanation]
    ) -> list[int] | None:
        """Contexts of the next features, and their explanations, which are taken out of `left`; None after the last.

        Returns:
            Ids of the explanations.
        """
        keys: list[Key] = []

        def rows() -> Iterator[ContextRow]:
            for key, line, where in islice(contexts, AT_ONCE):
                keys.append(key)
                feature = known.id(key)
                known.writer.clear_contexts([feature])
                yield from line_rows(feature, line, where)

        with known.writer.transaction():
            known.writer.add_contexts(rows())
            written = self._write_explanations(known, [left.pop(key) for key in keys if key in left])
        return written if keys else None

    def _write_explanations(self, known: Known, found: Sequence[Explanation]) -> list[int]:
        """Explanations, and the tokens that their features promote. Those that are there are replaced in place:
        simulations still know whose they are."""
        with_sides = [e for e in found if e.promoted or e.suppressed]
        for sae in dict.fromkeys(e.sae for e in with_sides):
            known.writer.add_features(known.number(sae), [
                FeatureRow(e.latent, promoted=e.promoted, suppressed=e.suppressed) for e in with_sides if e.sae == sae
            ])  # fmt: skip
        return known.writer.add_explanations(_explanation(known.id(e.key), e, self.run.id) for e in found)


def _explanation(feature: int, e: Explanation, run: str) -> ExplanationRow:
    return ExplanationRow(
        feature, e.text, run, e.method, reason=e.reason, model=e.model or "", prompt_version=e.prompt_version,
        language=e.language, tags=e.tags, rating=e.rating, rating_reason=e.rating_reason, tokens_in=e.tokens_in,
        tokens_out=e.tokens_out, cost=e.cost,
    )  # fmt: skip


def rows_of(feature: int, kind: ContextKind, contexts: Iterable[Context]) -> Iterator[ContextRow]:
    """Contexts of one kind, in their order."""
    for rank, c in enumerate(contexts):
        yield ContextRow(feature, kind, rank, c.text_id, c.tokens, c.activations, source=c.group)


@dataclass
class Simulated(Source):
    """A folder of `seamark simulate`: scores of explanations."""

    folder: Path
    run: Run = field(init=False)
    latents: Latents = field(init=False)
    explained_key: str | None = field(init=False)
    """The run that the explanations are of; None: not told."""

    def __post_init__(self) -> None:
        path = self.folder / SIMULATIONS
        if not path.is_file():
            raise ConfigError("no simulations here", where=str(self.folder), fix="Name a folder of `seamark simulate`")
        result = result_of(self.folder)
        about = {name: result[name] for name in ("explained_key", "method", "model", "config") if name in result}
        key = result.get("explained_key")
        self.explained_key = key if isinstance(key, str) else None
        self.latents = by_sae(s.key for s in self.simulations)
        title = f"Simulation by {result.get('model') or 'words'}"
        files = {SIMULATIONS: file_digest(path)}
        self.run = Run(id=digest({"simulated": about or files}), kind="simulate", title=title, created=made(path),
                       manifest={**about, "files": files})  # fmt: skip

    @cached_property
    def simulations(self) -> list[Simulation]:
        return read_simulations(self.folder / SIMULATIONS)

    def write(self, known: Known) -> None:
        explanations = known.writer.explanation_ids(self.explained_key)
        for some in portions(self.simulations, AT_ONCE):
            known.writer.add_simulations(self._row(known.id(s.key), s, explanations) for s in some)

    def _row(self, feature: int, s: Simulation, explanations: Mapping[int, int]) -> SimulationRow:
        return SimulationRow(
            feature, self.run.id, s.level, s.method, s.correlation, s.accuracy, explanations.get(feature),
            s.model or "", s.prompt_version, s.n_texts, s.n_units, s.n_failed, s.tokens_in, s.tokens_out, s.cost,
        )  # fmt: skip


@dataclass
class Rated(Source):
    """A folder of `seamark ratings import`: what people say of features."""

    folder: Path
    run: Run = field(init=False)
    latents: Latents = field(init=False)

    def __post_init__(self) -> None:
        path = self.folder / RATINGS
        if not path.is_file():
            raise ConfigError(
                "no ratings here", where=str(self.folder), fix="Name a folder of `seamark ratings import`"
            )
        about = {name: value for name, value in result_of(self.folder).items() if name in ("sheet", "machine")}
        self.latents = by_sae((f.sae, f.latent) for f in self.features)
        raters = sorted({name for f in self.features for name in f.raters})
        files = {RATINGS: file_digest(path)}
        self.run = Run(id=digest({"rated": [about or files, raters]}), kind="ratings",
                       title=f"Ratings by {', '.join(raters) or 'nobody'}", created=made(path),
                       manifest={**about, "raters": raters, "files": files})  # fmt: skip

    @cached_property
    def features(self) -> list[RatedFeature]:
        path, lines = self.folder / RATINGS, TypeAdapter(RatedFeature)
        found = []
        for number, line in enumerate(path.read_bytes().splitlines(), 1):
            try:
                found.append(lines.validate_json(line))
            except ValidationError as e:
                what = f"not the ratings of a feature ({e.errors()[0]['msg']})"
                raise FormatError(what, where=f"{path}, line {number}", fix="Run `ratings import` again") from None
        return found

    def write(self, known: Known) -> None:
        known.writer.add_ratings(
            RatingRow(known.id((f.sae, f.latent)), f"human:{rater}", rating, self.run.id, f.comments.get(rater, ""))
            for f in self.features for rater, rating in f.raters.items()
        )  # fmt: skip


def by_sae(keys: Iterable[Key]) -> dict[str, list[int]]:
    """{sae id: latents, each once}."""
    found: dict[str, dict[int, None]] = {}
    for sae, latent in keys:
        found.setdefault(sae, {})[latent] = None
    return {sae: list(latents) for sae, latents in found.items()}


def result_of(folder: Path) -> dict[str, Any]:
    """The result.json of a command; empty where there is none."""
    return object_in(folder / RESULT)


def object_in(path: Path) -> dict[str, Any]:
    """The object in a JSON file; empty where there is none."""
    found = read_json(path) if path.is_file() else {}
    return found if isinstance(found, dict) else {}


def made(path: Path) -> str:
    """When a file was written, UTC: a second build says the same as the first."""
    return datetime.datetime.fromtimestamp(path.stat().st_mtime, datetime.UTC).isoformat(timespec="seconds")


def portions(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Lists of `size` items, the last one shorter."""
    held: list[T] = []
    for item in items:
        held.append(item)
        if len(held) == size:
            yield held
            held = []
    if held:
        yield held
