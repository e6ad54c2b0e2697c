"""The stages of the SAFER recipe, each a function from files to files (arguments are JSON-able: they make the key)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from seamark.audit.editing import inject_noise, write_edit
from seamark.audit.experiment import BENCH, MODEL
from seamark.audit.scores import PairScores, score_pairs
from seamark.errors import DataError
from seamark.explain.ratings import statistical_ratings
from seamark.features import (
    Contrast,
    FeatureSet,
    Scan,
    ScanConfig,
    contrast,
    direct_effect,
    train_sae,
)
from seamark.features import scan as run_scan
from seamark.model import BlockCache, HookedModel, RewardModel, RewardTraining
from seamark.model.precision import resolve_precision
from seamark.pipelines.recipe import SAEPart
from seamark.run import say, write_json
from seamark.sae import SparseAutoencoder
from seamark.text import (
    bag_of_words_accuracy,
    demo_pairs,
    longer_wins,
    read_pairs,
    stream_texts,
    write_rejected,
)
from seamark.text.pairs import MaxPairs, Pairs, hash_unit
from seamark.text.rendering import Rendered

SAE_ID = "sae"
TRAIN, TEST, SUMMARY = "train.jsonl", "test.jsonl", "summary.json"
SCAN, SAE = "scan", "sae"
FEATURES, EFFECTS, SCORES = "features.json", "effects.json", "scores.json"


def prepare_data(
    folder: Path,
    *,
    pairs: Sequence[tuple[str, Sequence[str]]],
    test_share: float,
    split_seed: int,
    max_pairs: MaxPairs,
    target: str,
    digests: Mapping[str, str],
) -> dict[str, Any]:
    """Read, check and split the pairs; note what was rejected and what baselines without a model reach.

    `pairs` are (group, files): in this order they are trained on, so the order is part of the key.
    """
    if pairs:
        found = read_pairs({g: list(files) for g, files in pairs})
        sizes = {g: len(found.group(g)) for g in found.groups}
        found = found.sample(max_pairs) if max_pairs else found
        train, test = found.split(test_share, split_seed)
    else:
        found, train, test = demo_pairs(), demo_pairs("train"), demo_pairs("test")
        sizes = {g: len(found.group(g)) for g in found.groups}
        if max_pairs:
            found, train, test = (side.sample(max_pairs) for side in (found, train, test))
    for name, side in (("training", train), ("test", test)):
        if not len(side.group(target)):
            fix = "Give more pairs" if target in found.groups else f"Give pairs as {target}=FILE"
            raise DataError(f"no {name} pair in the target group {target!r}", fix=fix)
    if not set(train.groups) - {target}:
        raise DataError(f"there are only pairs of the group {target!r}", fix="Give pairs of another group too, such as "
                        "chat=FILE: safety features are told from others by them")  # fmt: skip
    train.to_jsonl(folder / TRAIN)
    test.to_jsonl(folder / TEST)
    write_rejected(found, folder / "rejected.jsonl")
    say(f"  {sum(sizes.values())} usable pairs, {len(found.rejected)} rows rejected"
        f"{', see rejected.jsonl in the data folder' if found.rejected else ''}; {len(train)} to train on, {len(test)} "
        "held out")  # fmt: skip
    reasons = Counter(row.reason.split(" of row ")[0] for row in found.rejected)
    lost = Counter(row.group for row in found.rejected)
    twice = Counter(row.group for row in found.rejected if row.reason.startswith("duplicate"))
    write_json(
        folder / SUMMARY,
        {
            "groups": {
                g: {
                    "read": sizes[g] + lost[g],
                    "pairs": len(found.group(g)),
                    "train": len(train.group(g)),
                    "test": len(test.group(g)),
                    "rejected": lost[g],
                    "duplicates": twice[g],
                }
                for g in found.groups
            },
            "rejected": len(found.rejected),
            "reject_reasons": dict(sorted(reasons.items())),
            "bag_of_words": bag_of_words_accuracy(train, test),
            "longer_wins": longer_wins(test),
        },
    )
    return {}


LOWER_BLOCKS_SETTINGS = ("max_length", "precision", "attention", "dropout", "trainable_blocks")
"""Settings of the training that decide what the frozen blocks give."""


def read_lower_blocks(
    folder: Path, data: Path, bench: Path | None = None, *, base: str, base_digest: str, training: Mapping[str, Any],
    threads: int,
) -> dict[str, Any]:  # fmt: skip
    """What the blocks that no retraining changes give for every text, once for all retrainings."""
    config = RewardTraining(**training)
    model = RewardModel.from_base(base, attention=config.attention, dropout=config.dropout)
    renderer = model.renderer(config.max_length)
    files = [data / TRAIN, data / TEST, *([bench / BENCH] if bench else [])]
    pairs = [p for file in files for p in Pairs.from_jsonl(file)]
    texts = [side for pair in pairs for side in renderer.render_pair(pair)]
    n_blocks = model.n_blocks - (config.trainable_blocks or 0)
    precision = resolve_precision(config.precision, model.device.type)
    BlockCache.make(model, texts, n_blocks, precision=precision).save(folder)
    return {"n_blocks": n_blocks, "precision": precision}


def add_noise(folder: Path, data: Path, *, rate: float, group: str, seed: int) -> None:
    """Training pairs with a known random share of wrong labels in one group, and the manifest that undoes them."""
    edit = inject_noise(Pairs.from_jsonl(data / TRAIN), rate, group, seed)
    edit.pairs.to_jsonl(folder / TRAIN)
    write_edit(edit, folder / "edit")


def fit_sae(
    folder: Path, reward: Path, data: Path, *, sae: Mapping[str, Any], max_length: int | None, target: str,
    general_text: str | None, general_digest: str, threads: int,
) -> dict[str, Any]:  # fmt: skip
    """Train the SAE in two stages on the activations of a reward model: general text, then the target group's pairs.

    Checkpoints lie in the stage's folder while it is at work, so that an interrupted training goes on.
    """
    model = RewardModel.from_pretrained(str(reward / MODEL))
    return fit_sae_of(model, folder, data, sae=sae, max_length=max_length, target=target, general_text=general_text)


def fit_sae_of(
    model: HookedModel, folder: Path, data: Path, *, sae: Mapping[str, Any], max_length: int | None, target: str,
    general_text: str | None,
) -> dict[str, Any]:  # fmt: skip
    """`fit_sae` of a model that is open."""
    pairs = Pairs.from_jsonl(data / TRAIN)
    renderer = model.renderer(max_length)

    def rendered(some: Pairs) -> Iterator[Rendered]:
        return (side for pair in some for side in renderer.render_pair(pair))

    general = rendered(pairs)
    if general_text:
        general = (renderer.render_text(text, text_id) for text_id, text in stream_texts(general_text))
    part = SAEPart(**sae)
    first, second = part.stages
    texts = {first.name: general, second.name: rendered(pairs.group(target))}
    trained = train_sae(model, texts, part.training_of(), part.stages, out=folder / ".training")
    trained.sae.save_pretrained(folder / SAE)
    write_json(folder / "quality.json", {"quality": trained.quality, "stages": trained.stages})
    return trained.choices


def scan_pairs(folder: Path, reward: Path, data: Path, sae: Path, *, config: Mapping[str, Any], threads: int) -> None:
    """One pass over the training pairs: rewards, pooled latents, statistics, token-level latents."""
    model = RewardModel.from_pretrained(str(reward / MODEL))
    suite = {SAE_ID: SparseAutoencoder.from_pretrained(sae / SAE)}
    run_scan(model, suite, Pairs.from_jsonl(data / TRAIN), folder / SCAN, config=ScanConfig(**config))


def choose_features(
    folder: Path, scan: Path, *, target: str, normalization: str, candidates: int, min_rating: int, count: int
) -> None:
    """SAFER's selection: the largest |score|, rated for safety relevance, the best rated kept."""
    found = Scan.open(scan / SCAN)
    scores: Contrast = contrast(found, target, normalization=normalization)  # type: ignore[arg-type]
    top = scores.top(candidates)
    others = [g for g in found.groups if g != target]
    ratings = {r.latent: r for r in statistical_ratings(found, SAE_ID, top.latents(SAE_ID), target, others)}
    rated = [
        f.model_copy(update={"rating": ratings[f.latent].rating, "why": ratings[f.latent].why}) for f in top.features
    ]
    kept = [f for f in rated if f.rating is not None and f.rating >= min_rating][:count]
    if not kept:
        best = max((f.rating or 0 for f in rated), default=0)
        raise DataError(
            f"none of the {len(rated)} candidate features is rated {min_rating} (best: {best})",
            where=str(scan), fix="Lower features.min_rating, raise features.candidates or train the SAE longer",
        )  # fmt: skip
    provenance = dict(top.provenance) | {
        "rating_method": "statistical", "min_rating": min_rating, "candidates": len(rated),
        "rated": {str(r): sum(f.rating == r for f in rated) for r in range(1, 6)},
        "not_rated": sum(f.rating is None for f in rated),
    }  # fmt: skip
    features = FeatureSet(features=tuple(kept), provenance=provenance)
    features.save(folder / FEATURES)
    FeatureSet(features=tuple(rated), provenance=provenance).save(folder / "candidates.json")
    score_pairs(found, features, method="safer").save(folder / SCORES)
    score_pairs(found, method="margin").save(folder / "margins.json")


def measure_effects(
    folder: Path, reward: Path, data: Path, sae: Path, scan: Path, features: Path,
    *, target: str, texts: int, max_length: int | None, threads: int,
) -> None:  # fmt: skip
    """The direct effect of each chosen feature on the reward, on a sample of held-out texts of the target group."""
    model = RewardModel.from_pretrained(str(reward / MODEL))
    autoencoder = SparseAutoencoder.from_pretrained(sae / SAE)
    q = Scan.open(scan / SCAN).q(SAE_ID)
    chosen = FeatureSet.load(features / FEATURES)
    sample, prompts = _sample(model, Pairs.from_jsonl(data / TEST).group(target), texts, max_length)
    effects = direct_effect(model, autoencoder, chosen.latents(SAE_ID), sample, q=q, clusters=prompts)
    write_json(folder / EFFECTS, {str(latent): effect for latent, effect in effects.items()})


def _sample(model: HookedModel, pairs: Pairs, count: int, max_length: int | None) -> tuple[list[Rendered], list[str]]:
    """Both answers of the pairs with the smallest hash, `count` texts at most, and their prompts."""
    renderer = model.renderer(max_length)
    picked = sorted(pairs, key=lambda p: (hash_unit(p.id), p.id))[: max(1, count // 2)]
    return [r for p in picked for r in renderer.render_pair(p)], [p.prompt_key for p in picked for _ in range(2)]


def method_scores(method: str, features: Path, train: Pairs, seed: int) -> PairScores:
    """Scores of one method for an experiment, from the files of `choose_features`."""
    if method == "safer":
        return PairScores.load(features / SCORES)
    if method == "margin":
        return PairScores.load(features / "margins.json")
    return score_pairs(method=method, pairs=train, seed=seed)


__all__ = [
    "add_noise",
    "choose_features",
    "fit_sae",
    "fit_sae_of",
    "measure_effects",
    "method_scores",
    "prepare_data",
    "scan_pairs",
]
