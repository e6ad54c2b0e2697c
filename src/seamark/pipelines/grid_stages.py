"""The stages of an audit experiment that the SAFER recipe does not have, each a function from files to files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import logit

from seamark.audit.combine import MIN_LABELS, learn
from seamark.audit.crossfit import fold_of
from seamark.audit.editing import edit_count, write_edit
from seamark.audit.experiment import BENCH, MODEL, RESULT, retrain
from seamark.audit.noise import NoiseKind, make_noise
from seamark.audit.prompts_in_common import prompts_in_common
from seamark.audit.rewardbench import read_rewardbench, subset_of
from seamark.audit.scores import PairScores, score_pairs
from seamark.audit.share import JUDGES, wrong_share
from seamark.errors import DataError
from seamark.explain.ratings import statistical_ratings
from seamark.features import Contrast, FeatureSet, Scan, ScanConfig, contrast
from seamark.features import scan as run_scan
from seamark.features.controls import random_latents
from seamark.model import RewardModel
from seamark.pipelines.audit_recipe import CONTROLS, CROSSFIT
from seamark.pipelines.stages import FEATURES, SAE, SAE_ID, SCAN, SCORES, TRAIN
from seamark.run import read_json, write_json
from seamark.sae import SparseAutoencoder
from seamark.stats import Estimate
from seamark.text.pairs import Pairs, PreferencePair, hash_unit

UNTRAINED = "untrained"
MARGINS, EXTRA, PROBABILITIES, FILLED = "margins.json", "extra.json", "probabilities.json", "filled.json"
LEFT_OUT = "left-out.json"
_SURE = 1e-12
"""Least probability that log-odds are taken of."""
_MOST_WRONG = 0.45
"""Flips of nearly as many wrong labels as right ones teach nothing."""


def flip_labels(
    folder: Path, data: Path, scores: Path | None = None, *, kind: NoiseKind, rate: float, group: str, seed: int,
    category: str | None,
) -> None:  # fmt: skip
    """Training pairs with wrong labels of known ids, and the manifest that undoes them."""
    plan = PairScores.load(scores / SCORES) if scores else None
    edit = make_noise(Pairs.from_jsonl(data / TRAIN), kind, rate, group, seed, plan, category)
    edit.pairs.to_jsonl(folder / TRAIN)
    write_edit(edit, folder / "edit")


def flip_more(
    folder: Path, data: Path, scores: Path | None = None, *, half: str, rate: float, group: str, seed: int
) -> None:
    """More wrong labels in one half of a group's prompts: what a combination of scores learns from.

    Which half a prompt is in depends on its hash alone, so that both halves stay apart in every world. As many labels
    are flipped as the rate says, but no fewer than learning takes: drawn ones, or with `scores` the surest.
    """
    pairs = Pairs.from_jsonl(data / TRAIN)
    mine = [p.id for p in pairs.group(group) if half_of(p) == half]
    sure = PairScores.load(scores / SCORES).values if scores else {}
    order = sorted(mine, key=lambda i: (-sure.get(i, 0.0), hash_unit(f"extra:{half}:{i}", seed), i))
    wrong = frozenset(order[: max(edit_count(rate, len(mine)), MIN_LABELS)])
    pairs.with_items(p.flipped() if p.id in wrong else p for p in pairs).to_jsonl(folder / TRAIN)
    write_json(folder / EXTRA, {"ids": mine, "wrong": sorted(wrong)})


def half_of(pair: PreferencePair) -> str:
    """`a` or `b`, by the prompt's hash."""
    return "a" if hash_unit(f"half:{pair.prompt_key}") < 0.5 else "b"


def scan_world(
    folder: Path, reward: Path, data: Path, sae: Path, *, config: Mapping[str, Any], threads: int, untrained: int | None
) -> None:
    """As `scan_pairs`, with an untrained autoencoder (of that seed) and raw activations from the same pass."""
    model = RewardModel.from_pretrained(str(reward / MODEL))
    trained = SparseAutoencoder.from_pretrained(sae / SAE)
    suite = {SAE_ID: trained}
    if untrained is not None:
        suite[UNTRAINED] = SparseAutoencoder.untrained(trained, untrained)
    run_scan(model, suite, Pairs.from_jsonl(data / TRAIN), folder / SCAN, config=ScanConfig(**config))


def choose_with_controls(
    folder: Path, scan: Path, *, target: str, others: Sequence[str], normalization: str, candidates: int,
    min_rating: int, count: int, seed: int,
) -> None:  # fmt: skip
    """SAFER's features, and by the same procedure those of the controls.

    Where no latent is rated `min_rating`, those with the best rating there is are taken, and the set's provenance says
    so: a grid of many worlds does not end because one autoencoder found little.
    """
    found = Scan.open(scan / SCAN)

    def chosen(sae: str) -> tuple[Contrast, FeatureSet]:
        scores = contrast(found, target, sae, normalization)  # type: ignore[arg-type]
        top = scores.top(candidates)
        rest = list(others) or [g for g in found.groups if g != target]
        ratings = statistical_ratings(found, sae, top.latents(sae), target, rest)
        rated = top.with_ratings({(r.sae, r.latent): (r.rating, r.why) for r in ratings}, "statistical")
        best = max((f.rating or 0 for f in rated.features), default=0)
        if best == 0:
            raise DataError(f"none of the {len(rated)} candidate features could be rated", where=f"{scan}, {sae}",
                            fix="Give more pairs, raise features.candidates or train the SAE longer")  # fmt: skip
        return scores, rated.rated(min(best, min_rating)).strongest(count)

    scores, features = chosen(SAE_ID)
    features.save(folder / FEATURES)
    random_latents(found, features, scores, seed).save(folder / f"{CONTROLS[1]}.json")
    if UNTRAINED in found.sae_ids:
        chosen(UNTRAINED)[1].save(folder / f"{UNTRAINED}.json")


def crossfit_margins(
    folder: Path, train: Path, lower: Path | None = None, *, folds: int, fold: int, cut: int, group: str,
    base_digest: str, **arguments: Any,
) -> dict[str, Any]:  # fmt: skip
    """Margins of one fold's pairs by a reward model that saw none of their prompts.

    Args:
        cut: seed of the folds.
        arguments: of `retrain`.
    """
    pairs = Pairs.from_jsonl(train)
    prompts = {key for key, place in fold_of({p.id: p.prompt_key for p in pairs.group(group)}, folds, cut).items()
               if place == fold}  # fmt: skip
    mine = pairs.where(lambda p: p.id in prompts)
    keys = {p.prompt_key for p in mine}
    mine.to_jsonl(folder / ".fold.jsonl")
    unseen = [p.id for p in pairs if p.prompt_key in keys]
    return retrain(folder, train, folder / ".fold.jsonl", lower=lower, removed=unseen, **arguments)


def gather_margins(folder: Path, **models: Path) -> None:
    """{pair id: margins by models that never saw its prompt}, from all folds and repeats."""
    margins: dict[str, list[float]] = {}
    for name in sorted(models):
        for pair, margin in read_json(models[name] / RESULT)["margins"].items():
            margins.setdefault(pair, []).append(margin)
    write_json(folder / MARGINS, margins)


def score_world(
    folder: Path, data: Path, scan: Path | None = None, features: Path | None = None, crossfit: Path | None = None,
    judged: Path | None = None, original: Path | None = None, *, method: str, group: str, seed: int,
) -> None:  # fmt: skip
    """One method's scores of the target group's pairs.

    A pair that the method cannot score (no scoring position, say) gets the median, so that it is neither flipped nor
    removed; how many those are is noted.
    """
    pairs = Pairs.from_jsonl(data / TRAIN).group(group)
    controls = {
        name: FeatureSet.load(file) for name in CONTROLS if features and (file := features / f"{name}.json").exists()
    }
    scores = score_pairs(
        Scan.open(scan / SCAN) if scan else None,
        FeatureSet.load(features / FEATURES) if features else None,
        method=method,
        pairs=pairs,
        seed=seed,
        group=group,
        sae=SAE_ID if scan else None,
        controls=controls,
        margins=read_json(crossfit / MARGINS) if crossfit and method in CROSSFIT else None,
        judged=_judged(judged, original, pairs) if judged and original else None,
    )
    unknown = [i for i in pairs.ids if i not in scores.values]
    if len(unknown) == len(pairs):
        raise DataError(f"the method {method!r} scored none of the {len(pairs)} pairs", where=str(data))
    middle = float(np.median(list(scores.values.values())))
    values = {i: scores.values.get(i, middle) for i in pairs.ids}
    scores.model_copy(update={"values": values}).save(folder / SCORES)
    write_json(folder / FILLED, unknown)


def _judged(file: Path, original: Path, pairs: Pairs) -> dict[str, float]:
    """Judgements of the original pairs, turned round where a label was made wrong."""
    judged = PairScores.load(file).values
    before = {p.id: p.chosen for p in Pairs.from_jsonl(original / TRAIN)}
    return {p.id: judged[p.id] * (1 if p.chosen == before[p.id] else -1) for p in pairs if p.id in judged}


def combine_scores(
    folder: Path, data: Path, half_a: Path, half_b: Path, *, signals: Sequence[str], group: str, **scores: Path
) -> None:
    """`combined`: weights learned on the added wrong labels of one half of the prompts judge the other half.

    Each half has a regression of its own, learned at its own share of wrong labels. The scores of both are log-odds at
    one share, so that their pairs can stand in one ranking.

    Args:
        half_a: data of the world with more wrong labels in half a; `half_b` likewise.
        scores: folders of scores, `<plain|a|b>_<signal>`.
    """

    def of(world: str) -> dict[str, PairScores]:
        return {m: PairScores.load(scores[f"{world}_{m}"] / SCORES) for m in signals}

    pairs = Pairs.from_jsonl(data / TRAIN).group(group)
    plain = of("plain")
    extra = {"a": read_json(half_a / EXTRA), "b": read_json(half_b / EXTRA)}
    share = _share(plain, pairs)
    # A share of 0 would leave no doubt about any pair: half a pair stands for it.
    prior = None if share.value is None else max(share.value, 0.5 / len(pairs))
    before = min(prior or 0.0, _MOST_WRONG)
    learned = {half: learn(of(half), extra[half]["ids"], extra[half]["wrong"], before) for half in extra}
    # Where the share is not known, any one share ranks the pairs of both halves; it is no probability then.
    common = prior if prior is not None else float(np.mean([c.prior for c in learned.values()]))
    wrong: dict[str, float] = {}
    for half, other in (("a", "b"), ("b", "a")):
        wrong |= learned[half].probability(plain, extra[other]["ids"], common)
    values = {i: -float(logit(np.clip(p, _SURE, 1 - _SURE))) for i, p in wrong.items()}
    PairScores(method="combined", values=values).save(folder / SCORES)
    write_json(folder / PROBABILITIES, {"wrong": wrong if prior is not None else {}, "share": share})
    write_json(folder / "combinations.json", learned)
    write_json(folder / FILLED, [])


def read_bench(folder: Path, data: Path, *, sources: Sequence[str], digests: Mapping[str, str]) -> None:
    """RewardBench's pairs as one file, without prompts that are trained on, and how many those are.

    Raises:
        DataError: as `read_rewardbench`, and where no pair is left.
    """
    found = read_rewardbench(list(sources))
    common = prompts_in_common(found, Pairs.from_jsonl(data / TRAIN))
    seen = set(common.pairs)
    unseen = found.where(lambda p: p.id not in seen and subset_of(p.category) is not None)
    if not len(unseen):
        raise DataError(f"all {len(found)} pairs have prompts that are trained on", where=", ".join(sources),
                        fix="Give other files")  # fmt: skip
    unseen.to_jsonl(folder / BENCH)
    unknown = sum(subset_of(p.category) is None for p in found)
    write_json(folder / LEFT_OUT, {"seen": len(seen), "by_subset": common.by_category, "of_no_subset": unknown})


def _share(scores: Mapping[str, PairScores], pairs: Pairs) -> Estimate:
    """The share of wrong labels by the best judge among the signals."""
    judge = next((m for m in JUDGES if m in scores), None)
    if judge is None:
        return Estimate.not_available(f"none of the signals is out of fold; these are: {', '.join(JUDGES)}", len(pairs))
    return wrong_share(scores[judge].values, {p.id: p.prompt_key for p in pairs})
