"""From the files of a SAFER run to the data of its report."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from seamark.audit import report_data as rd
from seamark.audit.editing import edit_count
from seamark.audit.experiment import Experiment
from seamark.audit.scores import PairScores
from seamark.features import Context, FeatureSet, Scan
from seamark.pipelines import stages
from seamark.pipelines.evidence import suspicious_pairs
from seamark.pipelines.safer import Done
from seamark.run import MANIFEST, read_json
from seamark.show.tables import ResultRow
from seamark.stats import Estimate
from seamark.text.pairs import Pairs

CONTEXTS = 5
BINS = 40
WEAK_JUDGE = 0.7


def report_data(
    done: Done, found: Mapping[str, Any], poison: Experiment | None, denoise: Experiment | None
) -> rd.ReportData:
    """Everything the report shows.

    Args:
        done: where the run's files lie.
        found: the result without timings (`result.collect`).
        poison: the poisoning experiment, if it was run.
        denoise: the denoising experiment, if it was run.
    """
    recipe = done.recipe
    return rd.ReportData(
        title=f"SAFER on {recipe.name}",
        summary=_summary(found, recipe.target),
        run=_run_info(done),
        data=_data(found, done),
        accuracy=_accuracy(found),
        sae=_sae(done, found),
        features=_features(done, found),
        scores=_scores(done),
        suspicious=suspicious_pairs(done),
        poisoning=_experiment(poison, "poison", done),
        denoising=_experiment(denoise, "denoise", done, found),
        targets=_targets(found, poison, recipe.target),
        failure_signs=_failure_signs(poison, recipe.target, max(recipe.poison.rates, default=0.0)),
        costs=_costs(done),
        notes=_notes(found, recipe.target),
    )


def _summary(found: Mapping[str, Any], target: str) -> tuple[str, ...]:
    accuracy = ", ".join(f"{g} {100 * a:.1f} %" for g, a in found["reward"]["accuracy"].items())
    lines = [f"The reward model ranks held-out pairs right: {accuracy}."]
    effect = found["effect"]
    if effect["D"] is not None:
        if effect["low"] is None:
            sure = f"no interval: {effect['reason']}"
        else:
            side = "excludes" if effect["low"] > 0 or effect["high"] < 0 else "includes"
            sure = f"95 % interval {100 * effect['low']:+.1f} to {100 * effect['high']:+.1f}, which {side} 0"
        lines.append(
            f"Flipping {100 * effect['rate']:g} % of the {target} pairs by SAFER's score costs "
            f"{100 * effect['D']:+.1f} points of {target} accuracy more than flipping random ones "
            f"({sure})."
        )
    return tuple(lines)


def _run_info(done: Done) -> rd.RunInfo:
    recipe = done.recipe
    manifest = read_json(done.data / MANIFEST)
    scan = Scan.open(done.clean.scan / stages.SCAN)
    config = scan.manifest["sae_configs"][stages.SAE_ID]
    facts = (
        rd.Fact(name="Retrainings", value=str(sum(len(c) for c in done.cells.values()))),
        rd.Fact(name="Positions", value=f"{recipe.scan.positions} of the {recipe.scan.scope}"),
        rd.Fact(name="Normalisation", value=recipe.features.normalization),
        rd.Fact(name="Edited group", value=recipe.target),
    )
    return rd.RunInfo(
        recipe=recipe.name, model=recipe.model, hookpoint=config["hookpoint"],
        sae=f"TopK, {config['d_sae']} latents, k {config['k']}", seeds=tuple(recipe.seeds),
        date=manifest["created"][:10], facts=facts, versions=manifest["versions"],
    )  # fmt: skip


def _data(found: Mapping[str, Any], done: Done) -> rd.DataSummary:
    reasons = found["data"]["reject_reasons"]
    truncated = _truncated(done)
    return rd.DataSummary(
        groups=tuple(
            rd.GroupSummary(
                group=g, read=v["read"], rejected=v["rejected"], duplicates=v["duplicates"],
                train=v["train"], test=v["test"], truncated=truncated.get(g),
            )
            for g, v in found["data"]["groups"].items()
        ),
        reject_reasons=tuple(rd.RejectReason(reason=r, rows=n) for r, n in sorted(reasons.items())),
    )  # fmt: skip


def _truncated(done: Done) -> dict[str, int]:
    """Training texts that lost their left end, by group."""
    table = Scan.open(done.clean.scan / stages.SCAN).texts
    counts: dict[str, int] = {}
    for group, lost in zip(table["group"].to_pylist(), table["truncated"].to_pylist(), strict=True):
        counts[group] = counts.get(group, 0) + (lost > 0)
    return counts


def _accuracy(found: Mapping[str, Any]) -> rd.Accuracy:
    reward = found["reward"]
    rows = []
    for g, counts in found["data"]["groups"].items():
        if g not in reward["accuracy"]:
            none = Estimate.not_available("no pair of this group was held out")
            rows.append(rd.AccuracyRow(group=g, pairs=0, model=none, length=none, bag_of_words=none))
            continue
        low, high = reward["interval"][g]
        rows.append(rd.AccuracyRow(
            group=g, pairs=counts["test"],
            model=Estimate(value=reward["accuracy"][g], low=low, high=high, n=counts["test"]),
            length=Estimate(value=reward["length_baseline"][g], n=counts["test"]),
            bag_of_words=Estimate.model_validate(found["reward"]["bag_of_words_estimate"][g]),
        ))  # fmt: skip
        rows += [
            rd.AccuracyRow(
                group=g, category=c["category"], pairs=c["accuracy"]["n"],
                model=Estimate.model_validate(c["accuracy"]), length=Estimate.model_validate(c["longer_wins"]),
                bag_of_words=None,
            )
            for c in reward["categories"]
            if c["group"] == g and c["category"]
        ]  # fmt: skip
    return rd.Accuracy(rows=tuple(rows))


def _sae(done: Done, found: Mapping[str, Any]) -> rd.SaeQuality | rd.Missing:
    config = Scan.open(done.clean.scan / stages.SCAN).manifest["sae_configs"][stages.SAE_ID]
    stages_run = []
    for stage, part in zip(found["sae"]["stages"], done.recipe.sae.stages, strict=True):
        q = stage.get("quality")

        def measure(name: str, q: Mapping[str, Any] | None = q) -> Estimate:
            if q is None or q.get(name) is None:
                return Estimate.not_available("no text was held out")
            return Estimate(value=q[name], n=q["n"])

        stages_run.append(rd.SaeStage(
            name=part.name, positions=part.positions, n_positions=stage["positions"], fvu=measure("fvu"),
            l0=measure("l0"), dead_share=measure("dead_share"), cosine=measure("cosine"),
        ))  # fmt: skip
    return rd.SaeQuality(d_in=config["d_in"], d_sae=config["d_sae"], k=config["k"], stages=tuple(stages_run))


def _features(done: Done, found: Mapping[str, Any]) -> rd.FeatureTable:
    scan = Scan.open(done.clean.scan / stages.SCAN)
    places = {r["text_id"]: f"{r['group']}, {r['side']}" for r in scan.texts.to_pylist()}
    rows = []
    for f in found["features"]:
        interval = f["direct_effect_interval"] or (None, None)
        effect = Estimate(value=f["direct_effect"], low=interval[0], high=interval[1], reason=f["direct_effect_reason"])
        contexts = scan.contexts(f["sae"], f["latent"], CONTEXTS)
        rows.append(rd.FeatureRow(
            sae=f["sae"], latent=f["latent"], sign=f["sign"], score=f["score"], rating=f["rating"],
            rating_method=f["rating_method"], why=f["why"], effect=effect,
            contexts=tuple(_context(c, places[c.text_id], f["sign"]) for c in contexts),
        ))  # fmt: skip
    provenance = FeatureSet.load(done.clean.features / stages.FEATURES).provenance
    part = done.recipe.features
    selection = (
        f"Of the {provenance['candidates']} latents with the largest |score|, those rated {part.min_rating} or more "
        f"({sum(n for r, n in provenance['rated'].items() if int(r) >= part.min_rating)}; "
        f"{provenance['not_rated']} could not be rated), the first {part.count}."
    )
    return rd.FeatureTable(features=tuple(rows), selection=selection)


def _context(context: Context, label: str, sign: int) -> rd.Context:
    values = tuple(sign * float(a) for a in context.activations)
    text = rd.TokenText(tokens=context.tokens, values=values, unit=context.q or None)
    return rd.Context(text=text, label=label)


def _scores(done: Done) -> rd.ScoreSummary:
    scores = PairScores.load(done.clean.features / stages.SCORES)
    train = Pairs.from_jsonl(done.data / stages.TRAIN)
    values = np.asarray([scores.values[p.id] for p in train if p.id in scores.values])
    edges = np.linspace(values.min(), values.max() + 1e-9, BINS + 1)
    groups = tuple(
        rd.GroupHistogram(group=g, counts=tuple(
            int(n) for n in np.histogram([scores.values[i] for i in train.group(g).ids if i in scores.values], edges)[0]
        ))
        for g in train.groups
    )  # fmt: skip
    return rd.ScoreSummary(method="safer", edges=tuple(float(e) for e in edges), groups=groups)


def _experiment(
    e: Experiment | None, kind: Any, done: Done, found: Mapping[str, Any] | None = None
) -> rd.Experiment | rd.Missing:
    if e is None:
        return rd.Missing(missing="the recipe names no rates, so it was not run")
    target = done.recipe.target
    recovered = {
        (r["method"], r["rate"]): Estimate.model_validate({k: r[k] for k in Estimate.model_fields})
        for r in (found or {}).get("recovery", [])
    }
    others = [g for g in e.groups if g != target]
    size = len(Pairs.from_jsonl(done.data / stages.TRAIN).group(target))
    rows = []
    for method, rate in e.conditions():
        edited = method != "none"
        measures = {g: e.accuracy(method, rate, g) for g in e.groups}
        measures[f"{target} lost"] = e.lost(method, rate, target) if edited else Estimate.not_available("unedited")
        for g in others:
            measures[f"{g} kept"] = e.kept(method, rate, g) if edited else Estimate.not_available("unedited")
        if recovered:
            measures["recovery"] = recovered.get((method, rate), Estimate.not_available("unedited"))
        rows.append(ResultRow(method=method, rate=rate if edited else None,
                              n_edited=edit_count(rate, size) if edited else None, measures=measures))  # fmt: skip
    intro = {
        "poison": f"Labels of {target} pairs are flipped, those with the highest score first; {len(e.seeds)} seeds.",
        "denoise": f"{target} pairs are removed, those with the lowest score first; {len(e.seeds)} seeds."
        + (f" Before that, {100 * done.recipe.denoise.noise:g} % of them got a wrong label at random, and reward "
           "model, SAE and features were found from the noisy data." if done.noisy else ""),
    }[kind]  # fmt: skip
    return rd.Experiment(kind=kind, intro=intro, rows=tuple(rows), plotted=tuple(e.groups))


def _targets(found: Mapping[str, Any], poison: Experiment | None, target: str) -> rd.Checks | rd.Missing:
    """The demo's goals, as numbers with a verdict; a goal that is missed is shown as missed."""
    if poison is None:
        return rd.Missing(missing="the poisoning experiment was not run")
    effect = found["effect"]
    d = Estimate(value=effect["D"], low=effect["low"], high=effect["high"], reason=effect["reason"] or "")
    reached = d.value is not None and d.low is not None and d.value >= 0.05 and d.low > 0
    checks = [rd.Check(name="D: SAFER's flips cost more than random ones", rule="at least 5 points, interval above 0",
                       value=d, unit="points", holds=reached if d.available else None)]  # fmt: skip
    for g in poison.groups:
        if g != target:
            kept = poison.kept("safer", effect["rate"], g) if ("safer", effect["rate"]) in poison.conditions() else None
            value = kept or Estimate.not_available("SAFER was not run")
            holds = None if value.value is None else value.value >= 0.9
            checks.append(rd.Check(name=f"{g} kept under SAFER's flips", rule="at least 90 %", value=value,
                                   unit="share", holds=holds))  # fmt: skip
    return rd.Checks(checks=tuple(checks))


def _failure_signs(poison: Experiment | None, target: str, rate: float) -> rd.Checks | rd.Missing:
    """SAFER's own signs that extraction failed or that features overlap with other abilities."""
    if poison is None or ("safer", rate) not in poison.conditions():
        return rd.Missing(missing="SAFER's flips were not run")
    lost = poison.lost("safer", rate, target)
    checks = [rd.Check(
        name=f"{target} lost at {100 * rate:g} % flips", rule="at least 5 points", value=lost, unit="points",
        holds=None if lost.value is None else lost.value >= 0.05,
        note="Less means that extraction failed, or the wrong layer was read, or that the flips are too few to matter.",
    )]  # fmt: skip
    for g in poison.groups:
        if g != target:
            e = poison.lost("safer", rate, g)
            checks.append(rd.Check(
                name=f"{g} lost", rule="at most 10 points", value=e, unit="points",
                holds=None if e.value is None else e.value <= 0.10,
                note=f"More means that the features overlap with {g}.",
            ))  # fmt: skip
    return rd.Checks(intro="Failure signs named by the paper.", checks=tuple(checks))


def _costs(done: Done) -> rd.Costs:
    return rd.Costs(stages=tuple(
        rd.StageCost(stage=name, seconds=t.get("seconds"), peak_rss_mb=t.get("peak_rss_mb"))
        for name, t in done.timings.items() if name != "report"
    ))  # fmt: skip


def _notes(found: Mapping[str, Any], target: str) -> tuple[str, ...]:
    notes = [
        "Safety ratings are statistical: how far a feature tells the target group's texts from the others'. No "
        "language model was asked.",
        "A contrastive score is a correlation with the label. The direct effect is an intervention: the mean change of "
        "the reward when the feature is raised by its own top activation on every response position.",
    ]
    part = found["recipe"]["features"]
    if part["min_rating"] < 5:
        notes.append(f"Features rated {part['min_rating']} or more were kept; SAFER keeps those that an LLM rates 5. "
                     "The statistical rater gives 5 to features that fire in few texts only.")  # fmt: skip
    for g, accuracy in found["reward"]["accuracy"].items():
        words = found["reward"]["bag_of_words"].get(g)
        if accuracy < WEAK_JUDGE:
            notes.append(
                f"The reward model is a weak judge of {g} pairs ({100 * accuracy:.1f} %): read its tables with care."
            )
        if words is not None and accuracy - words < 0.03:
            notes.append(f"On {g} pairs a bag-of-words classifier is within 3 points of the reward model or above it: "
                         "these labels can be told from vocabulary alone.")  # fmt: skip
    return tuple(notes)
