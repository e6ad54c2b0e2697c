"""What the pairs of a server's scans can be ranked and judged by, made when first asked for."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from functools import cached_property
from math import isfinite
from pathlib import Path
from typing import NamedTuple, TypeVar

from seamark.audit import METHODS, PairScores, score_pairs
from seamark.audit.review import Review
from seamark.errors import ConfigError, FormatError
from seamark.features import FeatureSet, Scan, contrast
from seamark.pipelines.places import beside_scan
from seamark.text import read_pairs
from seamark.text.pairs import Pairs
from seamark.web.problems import NotFoundError
from seamark.web.state import ServeSettings, State

TOP = 32
"""Features of a contrast that speak for and against."""
HELD = 16
"""Rankings and reviews of a scan that are held in memory."""
T = TypeVar("T")


class Source(NamedTuple):
    """Where a pair came from."""

    source: str
    category: str


class ScanReview:
    """One scan's pairs: what they can be ranked by, and what speaks for and against them.

    Args:
        scan: a scan of pairs.
        settings: of the server, which may name further files.
    """

    def __init__(self, scan: Scan, settings: ServeSettings) -> None:
        self.scan, self.settings = scan, settings
        self.key = str(scan.manifest["key"])
        """By which marks are kept."""
        self._beside = beside_scan(scan.path)
        self._held: dict[tuple[str, ...], object] = {}
        self._lock = threading.RLock()  # a ranking asks for its feature set

    @cached_property
    def groups(self) -> dict[str, str]:
        """{pair: its group}."""
        groups = self.scan.texts["group"].to_pylist()
        return {pair: groups[rows[0]] for pair, rows in self.scan.rows_by_pair.items()}

    @cached_property
    def margins(self) -> dict[str, float]:
        """{pair: reward margin}; empty where the scan holds no rewards."""
        return self.scan.margins() if self.scan.config["rewards"] else {}

    @cached_property
    def sources(self) -> dict[str, Source]:
        """{pair: where it came from}, of those that the server was told of.

        Raises:
            SeamarkError: a file of pairs cannot be read.
        """
        if self.settings.pairs:
            pairs = read_pairs({group: list(files) for group, files in self.settings.pairs.items()})
        elif self._beside.pairs is not None:
            try:
                pairs = Pairs.from_jsonl(self._beside.pairs)
            except (OSError, ValueError, KeyError, TypeError) as e:
                raise FormatError("not the pairs of a run", where=str(self._beside.pairs)) from e
        else:
            return {}
        return {p.id: Source(p.source, p.category) for p in pairs if p.id in self.scan.rows_by_pair}

    @property
    def feature_sets(self) -> dict[str, str]:
        """{id: title} of the feature sets to choose from: files first, then contrasts, that of safety before others."""
        several = len(self.scan.sae_ids) > 1
        contrasts = {name: f"contrast of {group}" + (f" at {sae}" if several else "")
                     for name, (group, sae) in self._contrasts().items()}  # fmt: skip
        return {name: f"{path.name} (file)" for name, path in self._feature_files().items()} | contrasts

    def _contrasts(self) -> dict[str, tuple[str, str]]:
        """{id: (group, sae id)}"""
        groups = sorted(self.scan.groups, key=lambda group: group != "safety")
        return {f"contrast:{group}:{sae}": (group, sae) for group in groups for sae in self.scan.sae_ids}

    @property
    def scores(self) -> dict[str, str]:
        """{id: title} of what pairs can be ranked by."""
        found = {"safer": "SAFER, by the features chosen"}
        if self.scan.config["rewards"]:
            found["margin"] = "reward margin"
        found["length"] = "length of the answers"
        return found | {name: f"{path.name} (file)" for name, path in self._score_files().items()}

    def _feature_files(self) -> dict[str, Path]:
        return _named([*self.settings.features, self._beside.features])

    def _score_files(self) -> dict[str, Path]:
        return _named([*self.settings.scores, self._beside.scores])

    def feature_set(self, name: str) -> FeatureSet:
        """A feature set by its id; the empty id stands for the first.

        Raises:
            NotFoundError: there is no such set.
            SeamarkError: it cannot be read, or there is nothing to contrast.
        """
        known = self.feature_sets
        name = name or next(iter(known), "")
        if name not in known:
            raise NotFoundError("there is no such feature set", where=name[:200])
        return self._cached(("features", name), lambda: self._make(name))

    def _make(self, name: str) -> FeatureSet:
        if name in self._feature_files():
            found = FeatureSet.load(self._feature_files()[name])
            for feature in found.features:
                self.scan.check_latent(self.scan.sae_id(feature.sae), feature.latent)
            return found
        group, sae = self._contrasts()[name]
        return contrast(self.scan, group, sae, "paper" if self.scan.config["scope"] == "all" else "default").top(TOP)

    def review(self, features: str) -> Review:
        """The pairs in the light of a feature set; errors as of `feature_set`."""
        chosen = self.feature_set(features)
        return self._cached(("review", features), lambda: Review(self.scan, chosen))

    def blind(self) -> Review:
        """The pairs in the light of nothing, where no feature set can be had."""
        return self._cached(("review",), lambda: Review(self.scan, FeatureSet(features=())))

    def ranking(self, score: str, features: str) -> list[tuple[str, float | None]]:
        """(pair, score), lowest first; pairs without a score last.

        Raises:
            NotFoundError: there is no such score.
            SeamarkError: it cannot be computed or read.
        """
        if score not in self.scores:
            raise NotFoundError("there is no such score", where=score[:200])
        key = ("ranking", score, features if score == "safer" else "")
        return self._cached(key, lambda: self._rank(self._scores(score, features)))

    def _scores(self, score: str, features: str) -> PairScores:
        if score in self._score_files():
            return PairScores.load(self._score_files()[score])
        if score not in METHODS:
            raise ConfigError(f"no scoring method {score!r}")
        return score_pairs(self.scan, self.feature_set(features) if score == "safer" else None, method=score)

    def _rank(self, scores: PairScores) -> list[tuple[str, float | None]]:
        values = {p: v for p, v in scores.values.items() if p in self.groups and isfinite(v)}
        kept = scores.model_copy(update={"values": values})
        known: list[tuple[str, float | None]] = [(pair, values[pair]) for pair in kept.lowest(len(values))]
        return known + [(pair, None) for pair in self.groups if pair not in values]

    def _cached(self, key: tuple[str, ...], make: Callable[[], T]) -> T:
        with self._lock:
            if key not in self._held:
                if len(self._held) >= HELD:
                    self._held.pop(next(iter(self._held)))
                self._held[key] = make()
            value: T = self._held[key]  # type: ignore[assignment]
            return value


class Reviews:
    """The scans of a server, by name."""

    def __init__(self, state: State) -> None:
        self._scans = {name: ScanReview(scan, state.settings) for name, scan in state.scans.items()}

    @property
    def names(self) -> list[str]:
        return list(self._scans)

    def get(self, name: str) -> ScanReview:
        """A scan; the empty name stands for the first. `NotFoundError` where there is none."""
        found = self._scans.get(name or next(iter(self._scans), ""))
        if found is None:
            raise NotFoundError("there is no such scan", where=name[:200], fix="Start the server with --scan FOLDER")
        return found


def _named(files: Sequence[Path | None]) -> dict[str, Path]:
    """{id: file}; of several of the same name the first."""
    return {f"file:{path.name}": path for path in reversed(files) if path is not None}
