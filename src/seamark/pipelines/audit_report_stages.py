"""The stages of an audit that read data and models, each a function from files to files.

Nothing here holds more than the pairs themselves and what a method needs of them: latents of texts are read from the
scan a part at a time.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from seamark.audit.faults import Faults, find_faults
from seamark.audit.rows import dumps
from seamark.errors import ConfigError, DataError
from seamark.explain.dimension import SAFETY, Dimension
from seamark.explain.ratings import as_pairs, statistical_ratings
from seamark.features import FeatureSet, Scan, ScanConfig, contrast
from seamark.features import scan as run_scan
from seamark.model import RewardModel, RewardTraining, evaluate, train_reward_model
from seamark.pipelines.stages import fit_sae_of
from seamark.run import read_json, say, write_atomic, write_json
from seamark.sae import SparseAutoencoder
from seamark.text import read_pairs, write_rejected
from seamark.text.pairs import MaxPairs, Pairs

PAIRS, RAW, TRAIN, FAULTS, SUMMARY = "pairs.jsonl", "raw.jsonl", "train.jsonl", "faults.json", "summary.json"
MODEL, SAE, SCAN, FEATURES, MARGINS = "model", "sae", "scan", "features.json", "margins.json"


def read_data(
    folder: Path, *, pairs: Sequence[tuple[str, Sequence[str]]], max_pairs: MaxPairs, target: str,
    digests: Mapping[str, str],
) -> None:  # fmt: skip
    """Read the files, look for faults and set the faulty pairs apart; each row is kept as it was read.

    Writes all pairs and, apart, those that are trained on: without contradictions, repetitions and hollow pairs.
    """
    found = read_pairs({g: list(files) for g, files in pairs})
    there = {g: len(found.group(g)) for g in found.groups}
    found = found if max_pairs is None else found.sample(max_pairs)
    if target not in found.groups:
        raise DataError(f"no pair in the group {target!r} that is audited", where="--pairs",
                        fix=f"Give pairs as {target}=FILE, or name another group with --group")  # fmt: skip
    faults = find_faults(found)
    usable = faults.usable(found)
    if not len(usable.group(target)):
        raise DataError(f"no usable pair is left in the group {target!r}", where="--pairs",
                        fix="All contradict others, repeat others or are empty: look at the file")  # fmt: skip
    found.to_jsonl(folder / PAIRS)
    usable.to_jsonl(folder / TRAIN)
    write_atomic(folder / RAW, (_raw_line(i, row) for i, row in found.raw.items()))
    write_rejected(found, folder / "rejected.jsonl")
    write_json(folder / FAULTS, faults)
    lost = Counter(bad.group for bad in found.rejected)
    twice = Counter(bad.group for bad in found.rejected if bad.reason.startswith("duplicate"))
    write_json(folder / SUMMARY, {
        g: {"there": there[g], "pairs": len(found.group(g)), "usable": len(usable.group(g)), "rejected": lost[g],
            "duplicates": twice[g]}
        for g in found.groups
    })  # fmt: skip
    say(f"  {len(found):,} pairs, {len(found.rejected):,} rows rejected, {len(faults.left_out):,} pairs set apart "
        "(contradictions, repetitions, empty texts)")  # fmt: skip


def _raw_line(pair_id: str, row: Mapping[str, Any]) -> bytes:
    return (dumps({"id": pair_id, "row": row}) + "\n").encode()


def load_pairs(data: Path, *, raw: bool = False) -> Pairs:
    """All pairs of `read_data`, with their rows as they were read if asked for."""
    pairs = Pairs.from_jsonl(data / PAIRS)
    if not raw:
        return pairs
    with (data / RAW).open(encoding="utf-8") as lines:
        rows = {found["id"]: found["row"] for found in map(json.loads, lines)}
    return Pairs(pairs.items, raw=rows)


def load_faults(data: Path) -> Faults:
    return Faults.model_validate(read_json(data / FAULTS))


def train_reward(
    folder: Path, data: Path, *, base: str, base_digest: str, training: Mapping[str, Any]
) -> dict[str, Any]:
    """A reward model from a base, on the pairs without faults."""
    config = RewardTraining(**training)
    _, report = train_reward_model(base, Pairs.from_jsonl(data / TRAIN), config, folder / MODEL,
                                   checkpoints=folder / ".checkpoints")  # fmt: skip
    write_json(folder / "training.json", report.model_dump(exclude={"losses", "accuracies", "seconds"}))
    return {"precision": report.precision, "attention": report.attention, "threads": report.threads}


def crossfit_margins(
    folder: Path, data: Path, *, base: str, base_digest: str, training: Mapping[str, Any], folds: int, fold: int,
    seed: int,
) -> None:  # fmt: skip
    """Margins of one fold's pairs by a reward model trained on the other folds: it never saw their prompts."""
    from seamark.audit.crossfit import fold_of

    config = RewardTraining(**training)
    place = fold_of(load_pairs(data), folds, seed)
    usable = Pairs.from_jsonl(data / TRAIN)
    model, _ = train_reward_model(base, usable.where(lambda p: place[p.id] != fold), config,
                                  checkpoints=folder / ".checkpoints", title=f"without fold {fold + 1}")  # fmt: skip
    held_out = load_pairs(data).where(lambda p: place[p.id] == fold)
    if not len(held_out):
        write_json(folder / MARGINS, {})
        return
    measured = evaluate(model, held_out, max_length=config.max_length)
    write_json(folder / MARGINS, dict(zip(measured.ids, map(float, measured.margins), strict=True)))


def load_reward(reward: Path | None, model: str) -> RewardModel:
    """The reward model that was trained here, else the one that was given."""
    return RewardModel.from_pretrained(str(reward / MODEL) if reward else model)


def fit_sae(
    folder: Path, data: Path, reward: Path | None = None, *, model: str, model_digest: str, sae: Mapping[str, Any],
    max_length: int | None, target: str, general_text: str | None, general_digest: str,
) -> dict[str, Any]:  # fmt: skip
    """Train the SAE in two stages: general text (or the pairs of all groups), then the audited group's pairs."""
    return fit_sae_of(load_reward(reward, model), folder, data, sae=sae, max_length=max_length, target=target,
                      general_text=general_text)  # fmt: skip


def load_sae(sae: Path | None, place: str | None) -> SparseAutoencoder:
    """The autoencoder that was trained here, else the one that was given."""
    return SparseAutoencoder.from_pretrained(str(sae / SAE) if sae else str(place))


def scan_pairs(
    folder: Path, data: Path, reward: Path | None = None, sae: Path | None = None, *, model: str, model_digest: str,
    sae_place: str | None, sae_digest: str, sae_id: str, config: Mapping[str, Any],
) -> None:  # fmt: skip
    """One pass over all pairs, faulty ones too: rewards, pooled latents, mean raw activations."""
    suite = {sae_id: load_sae(sae, sae_place)}
    run_scan(load_reward(reward, model), suite, load_pairs(data), folder / SCAN, config=ScanConfig(**config))


def find_features(
    folder: Path, data: Path, scan: Path, *, target: str, sae_id: str, normalization: str, candidates: int,
    min_rating: int, count: int, dimension: Mapping[str, Any] | None = None,
) -> None:  # fmt: skip
    """SAFER's features of the group (arXiv 2507.00665): largest |score|, rated, the best rated kept.

    Ratings need another group. Without one the largest |score| are kept unrated, and where no candidate reaches
    `min_rating` those with the best rating above 1: the file says which.
    """
    opened, usable = Scan.open(scan / SCAN), Pairs.from_jsonl(data / TRAIN)
    scores = contrast(opened, target, sae_id, normalization, pairs=usable.group(target).ids)  # type: ignore[arg-type]
    top = scores.top(candidates)
    about = dimension_of(target, dimension)
    others = [g for g in opened.groups if g != target]
    if not others:
        why = "not rated: there is no pair of another group to tell the features from"
        unrated = {f.key: (None, why) for f in top.features}
        _save(folder, top.with_ratings(unrated, "none").strongest(count), "no other group", min_rating)
        return
    rated = top.with_ratings(
        as_pairs(statistical_ratings(opened, sae_id, top.latents(sae_id), dimension=about)), "statistical"
    )
    best = max((f.rating or 0 for f in rated.features), default=0)
    if best < 2:
        raise DataError(f"no candidate feature tells {target} from {', '.join(about.others(opened.groups))} "
                        f"(best rating: {best})",
                        where=str(scan), fix="Train the SAE longer or on more pairs, or give --features")  # fmt: skip
    how = "rated" if best >= min_rating else "best there is"
    _save(folder, rated.rated(min(best, min_rating)).strongest(count), how, min_rating)


def dimension_of(group: str, dimension: Mapping[str, Any] | None) -> Dimension:
    """What features of a group are rated for: the dimension given, else safety, or what the group is called."""
    if dimension is not None:
        return Dimension.of(dimension)
    if group == SAFETY.group:
        return SAFETY
    name = "".join(c if c.isalnum() else " " for c in group[:40])
    return Dimension(name=" ".join(name.split()) or "group", group=group,
                     question="how strongly the feature has to do with what this group of texts is about.")  # fmt: skip


def _save(folder: Path, features: FeatureSet, how: str, min_rating: int) -> None:
    provenance = {**features.provenance, "selection": how, "min_rating": min_rating}
    features.model_copy(update={"provenance": provenance}).save(folder / FEATURES)


def given_features(folder: Path, scan: Path, *, features: str, features_digest: str, sae_id: str) -> None:
    """A feature set of the user's, checked against the scan."""
    found = FeatureSet.load(features)
    if not len(found):
        raise ConfigError("the feature set is empty", where=features)
    opened = Scan.open(scan / SCAN)
    for f in found.features:
        if f.sae != sae_id:
            raise ConfigError(f"it names features of {f.sae!r}, the autoencoder here is {sae_id!r}", where=features,
                              fix="Give the features of one autoencoder")  # fmt: skip
        opened.check_latent(sae_id, f.latent)
    found.model_copy(update={"provenance": {**found.provenance, "selection": "given"}}).save(folder / FEATURES)
