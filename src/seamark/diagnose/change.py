"""Two checkpoints of a model through one autoencoder: which features appear, vanish and move, and where it shows.

Retraining alone moves features: another seed gives another model. So "moved" is said against a null, the same
checkpoint from other trainings where there are any. Everything is paired by text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from scipy.sparse import csr_matrix

from seamark.diagnose.change_features import Judged, chosen_features, feature_rows, judged_features, turned
from seamark.diagnose.change_measures import Comparison, Levels, Sample
from seamark.diagnose.change_models import attributions, fit_of, texts_of
from seamark.diagnose.change_report import ChangeReport, Fit, Measure, NullAbout, SetChange, State
from seamark.diagnose.change_rewards import group_changes, why_no_rewards
from seamark.diagnose.units import MAX_CHARS
from seamark.errors import ConfigError, DataError
from seamark.features.config import ScanConfig
from seamark.features.reading import Scan
from seamark.features.scan import check_suite, scan
from seamark.features.sets import FeatureSet
from seamark.model.loading import HookedModel, RewardModel
from seamark.run import digest
from seamark.sae import SparseAutoencoder
from seamark.stats import Floats
from seamark.text.corpus import Corpus
from seamark.text.pairs import Pairs, plain

SWAPS = 20
"""Random halves that are swapped where there is no other training to compare with."""
WORSE, WORSE_TIMES = 0.1, 1.5
"""An autoencoder fits a model no longer where its FVU is so much higher than the better one's, or so many times it."""


def change_models(
    before: HookedModel, after: HookedModel, sae: SparseAutoencoder, corpus: Pairs | Corpus,
    out: str | PathLike[str], *, sae_id: str = "sae", null: Sequence[HookedModel] = (),
    config: ScanConfig | None = None, attribution: bool = True, **options: Any,
) -> ChangeReport:  # fmt: skip
    """Read the same texts with both models (and those of the null), one pass each, and compare.

    Args:
        before: the one model; rewards are read of reward models.
        after: the other, of the same architecture and tokenizer.
        sae: an autoencoder of one of them.
        corpus: preference pairs, or plain texts.
        out: folder of the scans: `before`, `after`, `null-1`, …; what is there already is not read again.
        null: other trainings of `before`, such as with another seed.
        config: how to scan.
        attribution: also what features add to the rewards, where both are reward models: a pass forward and back.
        options: of `change`.

    Raises:
        ConfigError: the autoencoder fits one of the models not at all (hookpoint, width), or the models do not read
            the texts as the same tokens.
        DataError: no texts, an empty one, or one of more than 200,000 characters.
        ModelError: no such hookpoint.
    """
    out, suite = Path(out), {sae_id: sae}
    _check_texts(corpus)
    config = config or ScanConfig()
    models = {"before": before, "after": after, **{f"null-{i + 1}": model for i, model in enumerate(null)}}
    for model in models.values():  # before anything is read
        check_suite(model, suite)
    read = {
        name: scan(model, suite, corpus, out / name,
                   config=config.model_copy(update={"rewards": config.rewards and isinstance(model, RewardModel)}))
        for name, model in models.items()
    }  # fmt: skip
    scans = list(read.values())
    return change(scans[0], scans[1], sae_id=sae_id, null=scans[2:], sae=sae, attribution=attribution,
                  models=list(models.values()), **options)  # fmt: skip


def change(
    before: Scan, after: Scan, *, sae_id: str | None = None, group: str | None = None, null: Sequence[Scan] = (),
    features: FeatureSet | None = None, models: Sequence[HookedModel] = (), sae: SparseAutoencoder | None = None,
    attribution: bool = True, by: Measure = "activation", top: int = 20, least: int = 10, draws: int = 1000,
    seed: int = 0,
) -> ChangeReport:  # fmt: skip
    """Compare two scans of the same texts with the same autoencoder, made with two models.

    Args:
        before, after: the scans.
        sae_id: which autoencoder; None: the only one.
        group: the texts that count for features; None: `safety`, or the first group where there is none. Rewards are
            compared in all groups.
        null: scans with other trainings of the model before. None: halves of the prompts are swapped.
        features: a feature set, for which it is asked whether it moved more than others.
        models: the models of `before`, `after` and `null`, in this order: how well the autoencoder fits them, and
            attributions, take them. None: neither is available.
        sae: the autoencoder, with `models`.
        attribution: whether to read gradients.
        by: the measure that features are ordered by.
        top: features that are told of, besides those of the set.
        least: texts in which a feature must fire, before or after, to be judged.
        draws: bootstrap draws.
        seed: of draws, swaps and permutations.

    Raises:
        ConfigError: scans of other texts, tokens, settings or autoencoders; a measure or group that is not there;
            models that are not those of the scans.
        DataError: no text to compare, or no feature that fires in `least` texts.
    """
    if min(draws, least, top) < 1:
        raise ConfigError(f"draws, least and top are {draws}, {least}, {top}", where="change", fix="Give 1 or more")
    sae_id, scans = before.sae_id(sae_id), [before, after, *null]
    for other in scans[1:]:
        _check_same(before, other, sae_id)
    _check_features(before, features, sae_id)
    group = _group(before, group)
    fits, worth, reasons = _by_models(scans, models, sae, sae_id, attribution=attribution)
    sample = Sample.of(before, group, draws, seed)
    levels = [Levels.of(s, sae_id, sample, w) for s, w in zip(scans, worth, strict=True)]
    unit = _unit(before, after, sae_id)
    texts = levels[0].texts, levels[1].texts
    judged = judged_features(*texts, unit, least)
    measures = _measures(sample, unit, levels, judged, reasons, seed)
    if by not in measures:
        raise ConfigError(f"features cannot be ordered by {by}: {reasons.get(by, 'no such measure')}", where="--by",
                          fix=f"Choose one of: {', '.join(measures)}")  # fmt: skip
    listed = chosen_features(measures[by], features, top)
    turns = turned(*texts, unit, least)
    nulls = [turned(texts[0], level.texts, _unit(before, other, sae_id), least)
             for other, level in zip(null, levels[2:], strict=True)]  # fmt: skip
    why = why_no_rewards(before, after)
    reasons |= {"rewards": why} if why else {}
    groups, reranked = ((), ()) if why else group_changes(before, after, null, draws=draws, seed=seed)
    about = before.manifest["sae_configs"][sae_id]
    names = [str(s.manifest["model_name"]) for s in scans]
    truncated = int((before.texts["truncated"].to_numpy() > 0).sum())
    return ChangeReport(
        before=names[0], after=names[1], sae=sae_id, sae_model=str(about["model"]), hookpoint=str(about["hookpoint"]),
        d_sae=before.d_sae(sae_id), group=group, n_texts=len(sample.rows), n_pairs=len(sample.chosen),
        n_prompts=sample.draws.n, judged=len(judged), least=least, appears=len(turns["appears"]),
        vanishes=len(turns["vanishes"]), null_appears=tuple(len(one["appears"]) for one in nulls),
        null_vanishes=tuple(len(one["vanishes"]) for one in nulls), by=by,
        null=NullAbout(kind="other trainings" if null else "swapped halves", models=tuple(names[2:]),
                       n=len(null) or SWAPS),
        fits=fits, measures=tuple(m.summary(draws, seed) for m in measures.values()),
        features=feature_rows(listed, measures, by, (before, after), sae_id, features, least, nulls),
        feature_set=_set_changes(measures, features, seed), groups=groups, reranked=reranked,
        truncated_texts=truncated,
        caveats=(*_caveats(fits, truncated, bool(null), before, after, str(about["model"])), *_turning(turns, nulls)),
        reasons=reasons, seed=seed,
        key=digest({"change": 1, "scans": [s.manifest["key"] for s in scans], "sae": sae_id, "group": group, "by": by,
                    "features": [f.key for f in features.features] if features else None, "top": top, "least": least,
                    "draws": draws, "seed": seed, "attribution": sorted(measures)}),
    )  # fmt: skip


def _unit(before: Scan, after: Scan, sae_id: str) -> Floats:
    """The larger of the two Q_f, [d_sae]; NaN: none."""
    unit = np.fmax(before.q(sae_id), after.q(sae_id))
    found: Floats = np.where(unit > 0, unit, np.nan)
    return found


def _turning(turns: Mapping[State, np.ndarray], nulls: Sequence[Mapping[State, np.ndarray]]) -> list[str]:
    """That features appear and vanish in other trainings too."""
    said = []
    verbs: dict[State, str] = {"appears": "appear", "vanishes": "vanish"}
    for way, verb in verbs.items():
        n, others = len(turns[way]), [len(one[way]) for one in nulls]
        if n and not nulls:
            said.append(f"{n} {verb} by counts alone: without another training it is not known how many would anyway")
        elif n and n <= max(others):
            said.append(f"{n} {verb}, and {max(others)} in another training: no more than retraining alone does")
    return said


def _measures(
    sample: Sample, unit: Floats, levels: Sequence[Levels], judged: np.ndarray, reasons: dict[str, str], seed: int
) -> dict[Measure, Judged]:  # fmt: skip
    """Each measure that there is, with its null; why others are not there goes to `reasons`."""
    names: list[Measure] = ["activation", "firing"]
    if len(sample.chosen):
        names.append("contrast")
    else:
        reasons |= dict.fromkeys(("contrast", "margin"), "the texts are no pairs")
    if all(level.attribution is not None for level in levels):
        names += ["attribution", "margin"] if len(sample.chosen) else ["attribution"]
    found: dict[Measure, Judged] = {}
    nulls = [(levels[0], other) for other in levels[2:]]
    if not nulls:
        swaps = list(sample.signs(SWAPS, seed))
        nulls = [(levels[0].swapped(levels[1], s), levels[1].swapped(levels[0], s)) for s in swaps]
    for name in names:
        others = [Comparison(name, sample, unit, a, b) for a, b in nulls]
        found[name] = Judged(Comparison(name, sample, unit, levels[0], levels[1]),
                             np.stack([other.change for other in others]), judged,
                             tuple(others) if len(levels) > 2 else ())  # fmt: skip
    return found


def _set_changes(
    measures: Mapping[Measure, Judged], features: FeatureSet | None, seed: int
) -> tuple[SetChange, ...]:  # fmt: skip
    if features is None:
        return ()
    return tuple(s for judged in measures.values() if (s := judged.of_set(features, seed)) is not None)


def _by_models(
    scans: Sequence[Scan], models: Sequence[HookedModel], sae: SparseAutoencoder | None, sae_id: str, *,
    attribution: bool,
) -> tuple[tuple[Fit, ...], list[csr_matrix | None], dict[str, str]]:  # fmt: skip
    """(how the autoencoder fits each, attributions of each, what is not there)."""
    nothing: list[csr_matrix | None] = [None] * len(scans)
    if not models or sae is None:
        why = "the models and the autoencoder were not given, only scans"
        return (), nothing, dict.fromkeys(("fit", "attribution", "margin"), why)
    if len(models) != len(scans):
        raise ConfigError(f"{len(models)} models for {len(scans)} scans", where="change", fix="Give one for each scan")
    if sae.fingerprint() != scans[0].manifest["saes"][sae_id]:
        raise ConfigError(f"the scans were made with another autoencoder called {sae_id!r}", where="change",
                          fix="Give the one of the scans")  # fmt: skip
    for model, made in zip(models, scans, strict=True):
        check_suite(model, {sae_id: sae})
        if model.fingerprint() != made.manifest["model"]:
            raise ConfigError(f"the scan was made with another model than {model.name}", where=str(made.path),
                              fix="Give the models of the scans, in their order")  # fmt: skip
    texts = texts_of(scans[0])
    names = ["before", "after", *(f"null {i + 1}" for i in range(len(scans) - 2))]
    fits = tuple(fit_of(name, model, sae, texts) for name, model in zip(names, models, strict=True))
    rewarding = [m for m in models if isinstance(m, RewardModel)]
    if not attribution or len(rewarding) < len(models):
        why = "not asked for" if not attribution else "not all of the models give rewards"
        return fits, nothing, dict.fromkeys(("attribution", "margin"), why)
    return fits, [attributions(model, sae, texts) for model in rewarding], {}


def _check_same(before: Scan, other: Scan, sae_id: str) -> None:
    """`ConfigError` unless both read the same texts, as the same tokens, with the same autoencoder and settings."""
    where, mine, theirs = str(other.path), before.manifest, other.manifest
    if sae_id not in other.sae_ids:
        raise ConfigError(f"no autoencoder {sae_id!r} in this scan", where=where,
                          fix=f"It has: {', '.join(other.sae_ids)}")  # fmt: skip
    if mine["saes"][sae_id] != theirs["saes"][sae_id]:
        raise ConfigError(f"{sae_id!r} is another autoencoder in {before.path}: {_difference(before, other, sae_id)}",
                          where=where, fix="Scan both models with one autoencoder")  # fmt: skip
    if mine["texts"] != theirs["texts"]:
        raise ConfigError(f"other texts than in {before.path}", where=where, fix="Scan the same texts with both models")
    if mine["renderer"] != theirs["renderer"] or before.texts["n_tokens"] != other.texts["n_tokens"]:
        raise ConfigError(f"the model reads the texts as other tokens than that of {before.path}", where=where,
                          fix="Compare models with the same tokenizer, template and length")  # fmt: skip
    for key in ("positions", "rule", "scope", "context_positions", "max_length"):
        if before.config[key] != other.config[key]:
            raise ConfigError(f"{key} is {other.config[key]}, but {before.config[key]} in {before.path}", where=where,
                              fix="Scan with the same settings")  # fmt: skip


def _difference(before: Scan, other: Scan, sae_id: str) -> str:
    mine, theirs = (s.manifest["sae_configs"][sae_id] for s in (before, other))
    said = [
        f"{key} {theirs[key]} against {mine[key]}" for key in ("hookpoint", "d_in", "d_sae") if mine[key] != theirs[key]
    ]
    return ", ".join(said) or "other weights"


def _check_features(before: Scan, features: FeatureSet | None, sae_id: str) -> None:
    if features is None:
        return
    if not len(features):
        raise DataError("the set holds no feature", where="--features", fix="Give at least one")
    for f in features.features:
        if f.sae != sae_id:
            raise ConfigError(f"a feature of {f.sae!r}, but the scans are of {sae_id!r}", where="--features",
                              fix=f"Give features of {sae_id}")  # fmt: skip
        before.check_latent(sae_id, f.latent)


def _group(scan: Scan, group: str | None) -> str:
    if group is None:
        return "safety" if "safety" in scan.groups else scan.groups[0]
    if group not in scan.groups:
        raise ConfigError(f"no texts of group {group!r}", where=str(scan.path), fix=f"Groups: {', '.join(scan.groups)}")
    return group


def _check_texts(corpus: Pairs | Corpus) -> None:
    """`DataError` on no texts, and on one that is empty or far too long: before any model reads."""
    if not len(corpus):
        raise DataError("no texts to compare on", where="change", fix="Check the files given as pairs or texts")
    for item in corpus:
        if isinstance(item, tuple):
            name, parts = item[0], [item[1]]
        else:
            name, parts = item.id, [plain(t) for t in (item.prompt, item.chosen, item.rejected)]
        if not all(part.strip() for part in parts):
            raise DataError("a text is empty", where=f"text {name}", fix="Leave it out")
        if (size := sum(map(len, parts))) > MAX_CHARS:
            raise DataError(f"{size:,} characters; at most {MAX_CHARS:,} are read", where=f"text {name}",
                            fix="Leave it out, or shorten it")  # fmt: skip


def _caveats(
    fits: Sequence[Fit], truncated: int, has_null: bool, before: Scan, after: Scan, sae_model: str
) -> list[str]:  # fmt: skip
    said = []
    if before.manifest["model"] == after.manifest["model"]:
        said.append("both are the same model")
    if not has_null:
        said.append("no other training was given: the null holds the doubt of texts, not what retraining alone moves")
    known = {fit.who: fit.fvu for fit in fits if fit.fvu is not None}
    best = min((known[w] for w in ("before", "after") if w in known), default=None)
    for who, fvu in known.items():
        if best is not None and (fvu > best + WORSE or fvu > WORSE_TIMES * best):
            said.append(f"the autoencoder no longer fits the model {who}: FVU {fvu:.3f} against {best:.3f}; "
                        "its features need not mean the same there")  # fmt: skip
    if fits and min(fit.fvu if fit.fvu is not None else 1.0 for fit in fits) > 0.5:
        said.append("the autoencoder explains less than half of the variance of any of the models")
    names = {str(before.manifest["model_name"]), str(after.manifest["model_name"])}
    if sae_model not in names:
        said.append(f"the autoencoder names {sae_model or 'no model'} as its own, neither of the two")
    if truncated:
        said.append(f"{truncated} texts were cut to fit")
    return said
