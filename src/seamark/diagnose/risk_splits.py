"""How texts are divided to judge detectors of a risk, so that neither a source nor a duplicate gives the class away."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from seamark.diagnose.risk_texts import LabelledTexts
from seamark.stats import cluster_codes
from seamark.text.pairs import hash_unit

Integers = NDArray[np.int64]
Scheme = Literal["within", "across"]
LEAST = 5
"""Clusters of each class that a source must hold to be split within, and that every part for fitting must hold."""
FOLDS = 5
VALIDATION = 4
"""One in so many clusters of the training sources is for validation, where sources are left out."""


class SourceRow(BaseModel):
    """One source of a language, and what knowing it tells."""

    model_config = ConfigDict(frozen=True)

    source: str
    language: str
    positives: int
    negatives: int

    @property
    def one_class(self) -> bool:
        """Whether it gives the class away."""
        return not (self.positives and self.negatives)


@dataclass(frozen=True, eq=False)
class Fold:
    """Rows of texts to fit on, to choose settings and thresholds with, and to judge by."""

    train: Integers
    validation: Integers
    test: Integers


@dataclass(frozen=True, eq=False)
class Split:
    """The folds of one language and scheme; each text is judged in one of them at most."""

    scheme: Scheme
    language: str
    folds: tuple[Fold, ...]
    sources: tuple[str, ...]
    """Those that are judged."""
    reason: str = ""
    """Why there are no folds."""


def source_rows(texts: LabelledTexts, y: NDArray[np.int8]) -> list[SourceRow]:
    """Sources by language with the number of texts of each class; those that hold one class only come first."""
    counts: dict[tuple[str, str], list[int]] = {}
    for text, label in zip(texts, y.tolist(), strict=True):
        if label >= 0:
            counts.setdefault((text.language, text.source), [0, 0])[label] += 1
    rows = [SourceRow(source=s, language=lang, positives=n[1], negatives=n[0]) for (lang, s), n in counts.items()]
    return sorted(rows, key=lambda r: (r.language, not r.one_class, r.source))


def within_sources(texts: LabelledTexts, y: NDArray[np.int8], language: str, folds: int = FOLDS) -> Split:
    """Every fold judges a part of each source that holds both classes; near duplicates stay in one part."""
    sources, rows = _texts_of(texts, y, language)
    kept = [s for s in dict.fromkeys(sources) if _holds_both(texts, y, rows[sources == s])]
    if not kept:
        return Split("within", language, (), (), f"no source holds {LEAST} texts of each class that differ")
    rows = rows[np.isin(sources, kept)]
    fold_of = _dealt(texts, y, rows, folds)
    made = []
    for i in range(folds):
        check = (i + 1) % folds
        made.append(Fold(rows[(fold_of != i) & (fold_of != check)], rows[fold_of == check], rows[fold_of == i]))
    return _checked(texts, y, "within", language, made, kept)


def across_sources(texts: LabelledTexts, y: NDArray[np.int8], language: str, folds: int = FOLDS) -> Split:
    """Every fold judges whole sources that no detector was fitted on; what is like them elsewhere is not fitted on."""
    sources, rows = _texts_of(texts, y, language)
    names = list(dict.fromkeys(sources))
    counts = {s: (int((y[rows[sources == s]] == 1).sum()), int((y[rows[sources == s]] == 0).sum())) for s in names}
    for n in range(min(folds, len(names)), 1, -1):
        groups = _grouped(counts, n)
        if groups is None:
            continue
        made = []
        for held in groups:
            test = rows[np.isin(sources, held)]
            others = rows[~np.isin(sources, held)]
            others = others[~np.isin(texts.clusters[others], texts.clusters[test])]
            check = _dealt(texts, y, others, VALIDATION) == 0
            made.append(Fold(others[~check], others[check], test))
        split = _checked(texts, y, "across", language, made, names)
        if not split.reason:
            return split
    return Split("across", language, (), (), "too few sources hold texts of the domain, or others, to leave some out")


def source_shares(texts: LabelledTexts, y: NDArray[np.int8], rows: Integers) -> dict[str, float]:
    """{source: share of texts of the domain} among some texts."""
    found: dict[str, list[int]] = {}
    for row in rows.tolist():
        found.setdefault(texts[row].source, []).append(int(y[row]))
    return {source: float(np.mean(labels)) for source, labels in found.items()}


def one_fit(texts: LabelledTexts, y: NDArray[np.int8], rows: Integers) -> Fold:
    """All texts for a detector that is to be used: one part in four for settings, calibration and threshold."""
    check = _dealt(texts, y, rows, VALIDATION) == 0
    return Fold(rows[~check], rows[check], rows[check])


def _texts_of(texts: LabelledTexts, y: NDArray[np.int8], language: str) -> tuple[NDArray[np.object_], Integers]:
    """(source of each, rows) of a language's texts that are not left out."""
    rows = np.asarray([i for i, t in enumerate(texts) if t.language == language and y[i] >= 0], np.int64)
    return np.asarray([texts[i].source for i in rows], dtype=object), rows


def _holds_both(texts: LabelledTexts, y: NDArray[np.int8], rows: Integers) -> bool:
    return all(len(np.unique(texts.clusters[rows[y[rows] == label]])) >= LEAST for label in (0, 1))


def _dealt(texts: LabelledTexts, y: NDArray[np.int8], rows: Integers, n: int) -> Integers:
    """Fold of each of some texts: whole clusters, dealt out in turn within source and class by a hash."""
    strata: dict[tuple[str, int], list[int]] = {}
    first: dict[int, int] = {}
    for row in rows.tolist():
        first.setdefault(int(texts.clusters[row]), row)
    for cluster, row in first.items():
        strata.setdefault((texts[row].source, int(y[row])), []).append(cluster)
    fold_of: dict[int, int] = {}
    begin = {0: 0, 1: 0}
    for (_, label), clusters in sorted(strata.items()):
        for place, cluster in enumerate(sorted(clusters, key=lambda c: hash_unit(texts[first[c]].id))):
            fold_of[cluster] = (begin[label] + place) % n
        begin[label] += len(clusters)
    return np.asarray([fold_of[int(texts.clusters[row])] for row in rows], np.int64)


def _grouped(counts: dict[str, tuple[int, int]], n: int) -> list[list[str]] | None:
    """Sources in n groups with about as many texts of each class; None where a group would lack one."""
    groups: list[list[str]] = [[] for _ in range(n)]
    held = np.zeros((n, 2), np.int64)
    for source in sorted(counts, key=lambda s: (counts[s][0] == 0, -counts[s][0], -counts[s][1], s)):
        positives, negatives = counts[source]
        to = int(np.argmin(held[:, 0])) if positives else int(np.argmin(held[:, 1]))
        groups[to].append(source)
        held[to] += (positives, negatives)
    return groups if (held > 0).all() else None


def _checked(
    texts: LabelledTexts, y: NDArray[np.int8], scheme: Scheme, language: str, folds: Sequence[Fold],
    sources: Sequence[str],
) -> Split:  # fmt: skip
    """The split, or why there is none: every part to fit on needs some texts of each class that differ."""
    for fold in folds:
        for part, least in ((fold.train, LEAST), (fold.validation, 2), (fold.test, 1)):
            found = [len(np.unique(texts.clusters[part[y[part] == label]])) for label in (0, 1)]
            if min(found) < least:
                return Split(scheme, language, (), (), "too few texts of a class to fit, to validate and to judge")
    return Split(scheme, language, tuple(folds), tuple(sources))


def bootstrap_units(
    texts: LabelledTexts, rows: Integers, scheme: Scheme
) -> tuple[Literal["source", "cluster"], Integers]:  # fmt: skip
    """What is drawn for intervals: whole sources where at least `LEAST` were left out in turn, else near duplicates."""
    sources = [texts[row].source for row in rows.tolist()]
    if scheme == "across" and len(set(sources)) >= LEAST:
        return "source", cluster_codes(sources)
    return "cluster", np.unique(texts.clusters[rows], return_inverse=True)[1].astype(np.int64)
