"""Risk identification: which detectors, made of features, find a domain's texts, against a probe on raw activations and
the words alone (the question of Qwen-Scope, arXiv 2605.11887).

Detectors are judged on texts they were not fitted on, in two ways: `within` sources that hold both classes, and
`across` sources of the same language, where whole sources are left out. AUROC over pairs from the same source stands
beside every AUROC, and so does what the source alone gives away.
"""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from seamark.diagnose.learning import LearningPoint, learning_curve
from seamark.diagnose.probes import DETECTORS, DetectorName, Fitted, RiskInputs, count_words, fit
from seamark.diagnose.risk_metrics import Judged, Measures, auroc, auroc_difference, estimates, measure
from seamark.diagnose.risk_splits import (
    FOLDS,
    Scheme,
    SourceRow,
    Split,
    across_sources,
    bootstrap_units,
    one_fit,
    source_rows,
    within_sources,
)
from seamark.diagnose.risk_texts import UNIT, LabelledTexts, labels_of
from seamark.errors import ConfigError, DataError
from seamark.features.config import ScanConfig
from seamark.features.reading import Scan
from seamark.features.scan import scan as scan_texts
from seamark.model.loading import HookedModel
from seamark.run import progress
from seamark.sae import SparseAutoencoder
from seamark.stats import Estimate, cluster_codes

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
RISK_SCAN = ScanConfig(positions="tokens", context_positions="scoring", rewards=False, raw=True, keep_tokens="never")
"""How labelled texts are read: at every token, without the head."""


class RiskConfig(BaseModel):
    """What is fitted and how it is judged."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    leave_out: tuple[str, ...] = ()
    """Labels of texts that are neither of the domain nor surely not of it."""
    languages: tuple[str, ...] = ()
    """Empty: all there are."""
    detectors: tuple[DetectorName, ...] = DETECTORS
    folds: int = Field(default=FOLDS, ge=3)
    draws: int = Field(default=1000, ge=2)
    learning: bool = True
    """Also fit on growing numbers of texts."""
    learning_seeds: int = Field(default=3, ge=1)
    seed: int = Field(default=0, ge=0)


class DetectorResult(BaseModel):
    """A detector on the texts of a split."""

    model_config = ConfigDict(frozen=True)

    detector: DetectorName
    measures: Measures
    auroc_minus_raw: Estimate
    """AUROC less that of the probe on raw activations, on the same draws."""
    auroc_minus_words: Estimate
    """The same against the bag of words."""
    fits: tuple[dict[str, object], ...]
    """What each fold's fit looks at; never texts or words of theirs."""


class SplitResult(BaseModel):
    """All detectors on one split."""

    model_config = ConfigDict(frozen=True)

    scheme: Scheme
    language: str
    n_texts: int = 0
    positives: int = 0
    n_folds: int = 0
    sources: tuple[str, ...] = ()
    unit: str = ""
    """What intervals resample: source or cluster (of near duplicates)."""
    units: int = 0
    detectors: tuple[DetectorResult, ...] = ()
    reason: str = ""
    """Why the split cannot be made."""


class DomainResult(BaseModel):
    """One domain: sources, splits, learning curves."""

    model_config = ConfigDict(frozen=True)

    domain: str
    n_texts: int
    positives: int
    left_out: int
    sources: tuple[SourceRow, ...]
    source_alone: dict[str, Estimate]
    """{language: AUROC of knowing the source alone over all texts}: how much sources give away if nothing is done."""
    splits: tuple[SplitResult, ...]
    learning: tuple[LearningPoint, ...]

    @property
    def one_class(self) -> list[SourceRow]:
        """Sources that give the class away."""
        return [row for row in self.sources if row.one_class]


class RiskReport(BaseModel):
    """All domains."""

    model_config = ConfigDict(frozen=True)

    model: str
    sae: str
    hookpoint: str
    d_sae: int
    config: RiskConfig
    texts: int
    clusters: int
    """Texts that differ by more than a few words."""
    rejected: int
    unread: int
    """Texts without any token to read."""
    truncated: int
    """Texts whose beginning was cut off."""
    domains: tuple[DomainResult, ...]


def risk_scan(
    model: HookedModel, suite: dict[str, SparseAutoencoder], texts: LabelledTexts, out: str | PathLike[str], *,
    max_length: int | None = None,
) -> Scan:  # fmt: skip
    """Read labelled texts as `risk` needs them: made once, as any scan.

    Raises:
        DataError, ConfigError, RunError: as of `scan`.
    """
    config = RISK_SCAN.model_copy(update={"max_length": max_length})
    return scan_texts(model, suite, texts.corpus(), out, config=config)


def risk_inputs(scan: Scan, texts: LabelledTexts, sae_id: str | None = None) -> RiskInputs:
    """What detectors read of the texts, joined by id; texts without a position to read are left out.

    Raises:
        DataError: the scan lacks texts, or kept no raw activations.
        ConfigError: no such autoencoder, or several and none is named; a scan at other positions.
    """
    sae_id = scan.sae_id(sae_id)
    if scan.config["positions"] != "tokens" or scan.config["scope"] != "response":
        raise ConfigError("the scan did not read every token of the texts", where=str(scan.path),
                          fix="Scan with positions: tokens, scope: response, raw: true")  # fmt: skip
    place = {text_id: row for row, text_id in enumerate(scan.texts["text_id"].to_pylist())}
    missing = sum(t.id not in place for t in texts)
    if missing:
        raise DataError(f"the scan lacks {missing:,} of {len(texts):,} texts", where=str(scan.path),
                        fix="Scan the same file, or give --model and --sae")  # fmt: skip
    rows = np.asarray([place[t.id] for t in texts], np.int64)
    keep = np.flatnonzero(scan.n_positions[rows] > 0)
    if not len(keep):
        raise DataError("no text has a token to read", where=str(scan.path))
    texts, rows = texts.only(keep), rows[keep]
    raw = scan.raw(str(scan.manifest["sae_configs"][sae_id]["hookpoint"]))[rows]
    words, vocabulary = count_words(texts)
    lengths = np.asarray([len(UNIT.findall(t.text)) for t in texts], np.int64)
    return RiskInputs(texts, scan.pooled(sae_id, "max")[rows], scan.pooled(sae_id, "mean")[rows], raw, words,
                      vocabulary, lengths)  # fmt: skip


def risk(
    scan: Scan, texts: LabelledTexts, domains: Sequence[str], *, sae_id: str | None = None,
    config: RiskConfig | None = None,
) -> RiskReport:  # fmt: skip
    """Judge every detector of every domain, by language and split.

    Args:
        scan: of the texts (`risk_scan`).
        texts: labelled texts.
        domains: labels to find.
        sae_id: which autoencoder of the scan.
        config: what is fitted.

    Raises:
        ConfigError: an unknown domain, label or language.
        DataError: one class only; texts that the scan lacks.
    """
    config = config or RiskConfig()
    sae_id = scan.sae_id(sae_id)
    if not domains:
        raise ConfigError("no domain is given", where="domain", fix=f"Labels are: {', '.join(list(texts.labels)[:20])}")
    unknown = sorted(set(config.languages) - set(texts.languages))
    if unknown:
        raise ConfigError(f"no text is in {unknown[0][:40]!r}", where="language",
                          fix=f"Languages are: {', '.join(texts.languages)}")  # fmt: skip
    for domain in domains:
        labels_of(texts, domain, config.leave_out)  # mistakes show before anything is read
    x = risk_inputs(scan, texts, sae_id)
    about = scan.manifest["sae_configs"][sae_id]
    ids = {t.id for t in x.texts}
    cut = sum(n > 0 for i, n in zip(scan.texts["text_id"].to_pylist(), scan.texts["truncated"].to_pylist(), strict=True)
              if i in ids)  # fmt: skip
    return RiskReport(
        model=scan.manifest["model_name"], sae=sae_id, hookpoint=about["hookpoint"], d_sae=about["d_sae"],
        config=config, texts=len(x.texts), clusters=len(np.unique(x.texts.clusters)), rejected=len(texts.rejected),
        unread=len(texts) - len(x.texts), truncated=cut,
        domains=tuple(_domain(x, domain, config) for domain in dict.fromkeys(domains)),
    )  # fmt: skip


def final_fit(x: RiskInputs, domain: str, detector: DetectorName, config: RiskConfig) -> tuple[Fitted, Integers]:
    """(a detector fitted on all texts of the languages, rows of the part that chose its settings and threshold).

    Raises:
        ConfigError, DataError: as of `risk`; too few texts of a class.
    """
    y = labels_of(x.texts, domain, config.leave_out)
    languages = config.languages or tuple(x.texts.languages)
    rows = np.asarray([i for i, t in enumerate(x.texts) if y[i] >= 0 and t.language in languages], np.int64)
    fold = one_fit(x.texts, y, rows)
    for part in (fold.train, fold.validation):
        if min((y[part] == 1).sum(), (y[part] == 0).sum()) < 2:
            raise DataError("too few texts of a class to fit a guard", where=domain, fix="Add labelled texts")
    return fit(detector, x, y.astype(np.int64), fold), fold.validation


def judge(x: RiskInputs, y: NDArray[np.int8], split: Split, detector: DetectorName) -> tuple[Judged, list[Fitted]]:
    """A detector fitted on every fold, and what it says of their test texts."""
    labels = y.astype(np.int64)
    fitted = [fit(detector, x, labels, fold) for fold in split.folds]
    rows = np.concatenate([fold.test for fold in split.folds])
    score = np.concatenate([f.score(fold.test) for f, fold in zip(fitted, split.folds, strict=True)])
    said = [f.probability(fold.test) for f, fold in zip(fitted, split.folds, strict=True)]
    flagged = np.concatenate([p >= f.threshold for p, f in zip(said, fitted, strict=True)])
    which = np.repeat(np.arange(len(split.folds)), [len(fold.test) for fold in split.folds])
    source = cluster_codes([x.texts[row].source for row in rows.tolist()])
    unit = bootstrap_units(x.texts, rows, split.scheme)[1]
    return Judged(labels[rows], score, np.concatenate(said), flagged, which, source, unit), fitted


def _domain(x: RiskInputs, domain: str, config: RiskConfig) -> DomainResult:
    y = labels_of(x.texts, domain, config.leave_out)
    languages = [lang for lang in config.languages or x.texts.languages if _has_positive(x.texts, y, lang)]
    splits, curve, alone = [], [], {}
    for language in languages:
        alone[language] = _source_alone(x.texts, y, language, config)
        for make in (within_sources, across_sources):
            split = make(x.texts, y, language, config.folds)
            splits.append(_split(x, y, split, config, domain))
            if config.learning and split.scheme == "within" and split.folds:
                curve += learning_curve(x, y.astype(np.int64), split, seeds=config.learning_seeds, draws=config.draws,
                                        seed=config.seed)  # fmt: skip
    if not languages:
        raise DataError(f"no text of {domain!r} in {', '.join(config.languages)}", where="language")
    return DomainResult(
        domain=domain, n_texts=int((y >= 0).sum()), positives=int((y == 1).sum()), left_out=int((y < 0).sum()),
        sources=tuple(source_rows(x.texts, y)), source_alone=alone, splits=tuple(splits), learning=tuple(curve),
    )  # fmt: skip


def _has_positive(texts: LabelledTexts, y: NDArray[np.int8], language: str) -> bool:
    return any(label == 1 and t.language == language for t, label in zip(texts, y.tolist(), strict=True))


def _source_alone(texts: LabelledTexts, y: NDArray[np.int8], language: str, config: RiskConfig) -> Estimate:
    """AUROC of the share of the domain among a text's source, over all texts of a language."""
    rows = np.asarray([i for i, t in enumerate(texts) if t.language == language and y[i] >= 0], np.int64)
    codes = cluster_codes([texts[row].source for row in rows.tolist()])
    labels = y[rows].astype(np.int64)
    share = np.bincount(codes, labels) / np.bincount(codes)
    statistic = auroc(labels, share[codes], np.zeros(len(rows), np.int64))
    reasons = {"auroc": "one class only"}
    return estimates({"auroc": statistic}, texts.clusters[rows], draws=config.draws, seed=config.seed,
                     reasons=reasons)["auroc"]  # fmt: skip


def _split(x: RiskInputs, y: NDArray[np.int8], split: Split, config: RiskConfig, domain: str) -> SplitResult:
    about = {"scheme": split.scheme, "language": split.language, "reason": split.reason, "sources": split.sources}
    if not split.folds:
        return SplitResult(**about)
    rows = np.concatenate([fold.test for fold in split.folds])
    unit, codes = bootstrap_units(x.texts, rows, split.scheme)
    judged = {}
    with progress(f"{domain}, {split.language} {split.scheme} sources", len(config.detectors), "detectors") as advance:
        for name in config.detectors:
            judged[name] = judge(x, y, split, name)
            advance(1)
    found = []
    for name, (mine, fitted) in judged.items():
        found.append(DetectorResult(
            detector=name, measures=measure(mine, draws=config.draws, seed=config.seed),
            auroc_minus_raw=_against("raw_probe", name, judged, config),
            auroc_minus_words=_against("words", name, judged, config),
            fits=tuple(dict(f.about) | {"threshold": f.threshold} for f in fitted),
        ))  # fmt: skip
    return SplitResult(**about, n_texts=len(rows), positives=int((y[rows] == 1).sum()), n_folds=len(split.folds),
                       unit=unit, units=len(np.unique(codes)), detectors=tuple(found))  # fmt: skip


def _against(
    other: DetectorName, name: DetectorName, judged: dict[DetectorName, tuple[Judged, list[Fitted]]],
    config: RiskConfig,
) -> Estimate:  # fmt: skip
    if other == name or other not in judged:
        return Estimate.not_available("the detector itself" if other == name else f"{other} was not fitted")
    return auroc_difference(judged[name][0], judged[other][0], draws=config.draws, seed=config.seed)
