"""From the files of an audit to its result and its page."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from pydantic import TypeAdapter

from seamark.audit import report_data as rd
from seamark.audit.breakdown import Breakdown
from seamark.audit.faults import Faults
from seamark.audit.overlap import Overlap
from seamark.audit.reliance import Reliance
from seamark.audit.report import write_audit
from seamark.audit.shortcuts import Shortcuts
from seamark.audit.verdict import failure_signs
from seamark.features import FeatureSet, Scan
from seamark.pipelines import audit_report_edits as edits
from seamark.pipelines import audit_report_scores as scoring
from seamark.pipelines import audit_report_stages as stages
from seamark.pipelines.audit_report_blocks import (
    beside_block,
    breakdown_block,
    data_block,
    edits_block,
    extras_block,
    overlap_block,
    reliance_block,
    shortcuts_block,
    wrong_block,
)
from seamark.pipelines.audit_report_checks import experiment_costs
from seamark.pipelines.audit_report_done import Audited
from seamark.run import MANIFEST, Run, digest, read_json, to_jsonable, write_json
from seamark.show.numbers import estimate_text
from seamark.stats import Estimate, bootstrap_by_cluster, cluster_codes

SCHEMA = 1
RESULT, PAGE = "result.json", "report.html"


class Found:
    """What the stages found, read from their files."""

    def __init__(self, done: Audited) -> None:
        self.done, self.group = done, done.options.group
        self.scan = Scan.open(done.scan / stages.SCAN)
        self.sizes: dict[str, dict[str, int]] = read_json(done.data / stages.SUMMARY)
        self.others = done.options.others(self.sizes)
        self.faults: Faults = stages.load_faults(done.data)
        self.scores: dict[str, Any] = read_json(done.scores / scoring.SUMMARY)
        parts = read_json(done.findings / scoring.FINDINGS)
        self.judge: str = parts["judge"]
        self.breakdown = Breakdown.model_validate(parts["breakdown"])
        self.shortcuts: Shortcuts | rd.Missing = _part(Shortcuts, parts["shortcuts"])
        self.overlap: Overlap | rd.Missing = _part(Overlap, parts["overlap"])
        self.reliance: Reliance | rd.Missing = _part(Reliance, parts["reliance"])
        self.features = FeatureSet.load(done.features / stages.FEATURES) if done.features else None
        self.edits: dict[str, Any] = read_json(done.edits / edits.EDITS)
        self.quality = None if done.sae is None else read_json(done.sae / "quality.json")
        self.shares = {g: {m: Estimate.model_validate(e) for m, e in of.items()}
                       for g, of in self.scores["shares"].items()}  # fmt: skip
        self.agreement = {g: {m: Estimate.model_validate(e) for m, e in of.items()}
                          for g, of in self.scores["agreement"].items()}  # fmt: skip

    @property
    def share(self) -> tuple[str, Estimate]:
        """(method, estimated share of wrong labels in the audited group).

        Of judges that saw none of the labels the lowest estimate, since each bounds the share from above; without one
        the first judge that has an estimate.
        """
        of = {m: e for m, e in self.shares[self.group].items() if e.value is not None}
        bounds = {m: e.value or 0.0 for m, e in of.items() if m in scoring.SAW_NONE}
        first = next((m for m in scoring.SHARE_JUDGES if m in of), "latents")
        method = min(bounds, key=bounds.__getitem__) if bounds else first
        return method, self.shares[self.group][method]


def _part(kind: Any, data: Any) -> Any:
    return TypeAdapter(kind | rd.Missing).validate_python(data)


def write_page(done: Audited, run: Run) -> dict[str, Any]:
    """Write `result.json` and `report.html` unless they are up to date; returns the result.

    Timings alone never rewrite them.
    """
    found = Found(done)
    checks = _checks(found)
    result = to_jsonable(_result(found, checks))
    page, file = run.root / PAGE, run.root / RESULT
    current = read_json(file) if file.exists() else {}
    if (
        not run.built
        and page.exists()
        and digest({k: v for k, v in current.items() if k != "stages"}) == digest(result)
    ):
        return dict(current)
    with run.measure("report"):
        write_audit(_audit_data(found, checks), page)
    whole: dict[str, Any] = result | {"stages": dict(done.timings)}
    write_json(file, whole)
    return whole


def _result(found: Found, checks: rd.Checks) -> dict[str, Any]:
    done = found.done
    return {
        "schema_version": SCHEMA,
        "options": done.options.model_dump(mode="json", exclude={"out"}),
        "trained_here": done.trained,
        "pairs": {g: v["pairs"] for g, v in found.sizes.items()},
        "data": found.sizes,
        "faults": {c.kind: c.pairs for c in found.faults.counts},
        "rejected_rows": found.faults.n_rejected,
        "left_out": len(found.faults.left_out),
        "wrong_share": found.shares,
        "wrong_share_by": found.share[0],
        "agreement": found.agreement,
        "missing": found.scores["missing"],
        "ranked_by": found.scores["ranked_by"],
        "features": [] if found.features is None else [f.model_dump() for f in found.features.features],
        "no_features": done.no_features,
        "breakdown": found.breakdown,
        "shortcuts": found.shortcuts,
        "overlap": found.overlap,
        "reliance": found.reliance,
        "failure_signs": checks.checks,
        "edits": found.edits,
        "extras": done.prices,
        "files": {
            "scores": f"{done.scores.name}/{scoring.TABLE}", "clean": f"{done.edits.name}/{edits.CLEAN}",
            "flipped": f"{done.edits.name}/{edits.FLIPPED}", "removed": f"{done.edits.name}/{edits.REMOVED}",
            "faults": f"{done.data.name}/{stages.FAULTS}", "rejected": f"{done.data.name}/rejected.jsonl",
        },
    }  # fmt: skip


def _checks(found: Found) -> rd.Checks:
    of = found.agreement[found.group]
    none = Estimate.not_available
    judge, above = _above_words(found)
    quality = (found.quality or {}).get("quality")
    fvu = none("the autoencoder was given" if found.quality is None else "no text was held out")
    if quality:
        fvu = Estimate(value=quality["fvu"], n=quality["n"])
    return failure_signs(
        group=found.group, others=found.others, above_words=above, judge=judge,
        features_agree=of.get("safer", none(found.done.no_features or "no pair could be scored")),
        overlap=found.overlap, shortcuts=found.shortcuts, fvu=fvu, contradictions=_contradicted(found),
        lost=None if (folder := found.done.options.experiment) is None else experiment_costs(folder, found.group),
    )  # fmt: skip


def _contradicted(found: Found) -> Estimate:
    """Share of the group's pairs that another pair contradicts on the very same texts.

    Near contradictions do not count: the small edit may be what the labels are about.
    """
    opposed = found.faults.ids("contradiction", "group_contradiction")
    mine = stages.load_pairs(found.done.data).group(found.group)
    return Estimate(value=sum(p.id in opposed for p in mine) / len(mine), n=len(mine))


def _above_words(found: Found) -> tuple[str, Estimate]:
    """(judge, share of the group's labels it sides with less that of a bag of words, paired by pair).

    The judge is the reward model where it was given. One that was trained on these very labels sides with them whatever
    it knows, so that what was fitted on other prompts stands for it.
    """
    judges = ("margin_crossfit", "latents", "probe") if found.done.trained else ("margin",)
    known = found.agreement[found.group]
    judge = next((m for m in judges if m in known), judges[-1])
    if lacking := [m for m in (judge, "bag_of_words") if m not in known]:
        return judge, Estimate.not_available(found.scores["missing"].get(lacking[0], f"{lacking[0]} scored no pair"))
    scores = scoring.columns_of(found.done.scores, judge, "bag_of_words")
    mine = [p for p in stages.load_pairs(found.done.data).group(found.group) if all(p.id in s for s in scores.values())]
    sides = {m: (np.sign([s[p.id] for p in mine]) + 1) / 2 for m, s in scores.items()}
    prompts = cluster_codes([p.prompt_key for p in mine])
    return judge, bootstrap_by_cluster(sides[judge] - sides["bag_of_words"], prompts)


def _audit_data(found: Found, checks: rd.Checks) -> rd.AuditData:
    done = found.done
    suspicious = TypeAdapter(tuple[rd.SuspiciousPair, ...]).validate_python(
        read_json(done.evidence / scoring.SUSPICIOUS)["pairs"]
    )
    return rd.AuditData(
        title=f"Audit of {found.sizes[found.group]['pairs']:,} {found.group} pairs",
        summary=_summary(found, checks),
        run=_run_info(found),
        wrong=wrong_block(found.shares, found.agreement, done.scores, found.judge),
        suspicious=suspicious,
        suspicious_rule=f"The {len(suspicious)} of {found.sizes[found.group]['pairs']:,} {found.group} pairs that come "
        f"first by {found.scores['rule']}, lowest first. All of them, in order, are in {done.scores.name}/"
        f"{scoring.TABLE} (column {scoring.RANK}).",
        breakdown=breakdown_block(found.breakdown, found.judge),
        data=data_block(found.sizes, found.faults),
        shortcuts=shortcuts_block(found.shortcuts, in_sample=done.trained),
        beside=beside_block(found.agreement, found.scores["missing"], in_sample=done.trained),
        features=_features(found),
        overlap=overlap_block(found.overlap),
        reliance=reliance_block(found.reliance),
        sae=_sae(found),
        failure_signs=checks,
        edits=edits_block(found.edits, done.edits),
        extras=extras_block(done.prices),
        costs=_costs(found),
        notes=_notes(found),
    )


def _summary(found: Found, checks: rd.Checks) -> tuple[str, ...]:
    lines = [_share_line(found)]
    left, rejected = len(found.faults.left_out), found.faults.n_rejected
    if left or rejected:
        lines.append(f"Left out before anything was trained: {_counted(left, 'pair')} (contradictions, repetitions, "
                     f"empty texts), and {_counted(rejected, 'row')} that could not be used.")  # fmt: skip
    failed = [c.name for c in checks.checks if c.holds is False]
    if failed:
        lines.append(f"Failed: {'; '.join(failed)}. Read these before the list of pairs.")
    return tuple(lines)


def _share_line(found: Found) -> str:
    """How many labels are wrong, and from which side: a model that learned wrong labels takes them for right."""
    method, share = found.share
    if not share.available:
        return f"How many {found.group} labels are wrong could not be estimated: {share.reason}."
    name, kinds = scoring.NAMES.get(method, method), "A kind of pair that is mislabelled throughout is not among them."
    if method in scoring.SAW_NONE:
        return (f"Up to {estimate_text(share)} of the {found.group} labels are wrong, by a judge that saw none of the "
                f"labels it judges ({name}): an upper estimate for labels that are wrong here and there. {kinds}"
                )  # fmt: skip
    return (f"About {estimate_text(share)} of the {found.group} labels are wrong, by {name}: too low as far as the "
            f"reward model has learned wrong labels that it was trained on. {kinds}")  # fmt: skip


def _counted(n: int, what: str) -> str:
    return f"{n:,} {what}{'' if n == 1 else 's'}"


def _run_info(found: Found) -> rd.RunInfo:
    done, manifest = found.done, read_json(found.done.data / MANIFEST)
    config = found.scan.manifest["sae_configs"][done.sae_id]
    how = "trained here on the pairs without faults" if done.trained else "given"
    about = done.options.dimension
    kind = config["activation"] + (f", k {config['k']}" if config.get("k") else "")
    facts = (
        rd.Fact(name="Reward model", value=how),
        rd.Fact(name="Audited group", value=found.group),
        *([rd.Fact(name="Dimension", value=f"{about.name}: {about.question}")] if about else []),
        rd.Fact(name="Ranked by", value=found.scores["rule"]),
        rd.Fact(name="Positions", value=f"{found.scan.config['positions']} of the {found.scan.config['scope']}"),
        rd.Fact(name="Texts cut at the left", value=f"{_truncated(found.scan):,} of {len(found.scan.n_positions):,}"),
    )
    return rd.RunInfo(
        recipe=done.recipe.name, model=done.options.model, hookpoint=config["hookpoint"],
        sae=f"{'given' if done.sae is None else 'trained here'}: {config['d_sae']:,} latents, {kind}",
        seeds=(done.options.seed,), date=manifest["created"][:10], facts=facts, versions=manifest["versions"],
    )  # fmt: skip


def _truncated(scan: Scan) -> int:
    return int((scan.texts["truncated"].to_numpy() > 0).sum())


def _features(found: Found) -> rd.FeatureTable | rd.Missing:
    if found.features is None:
        return rd.Missing(missing=found.done.no_features)
    texts = read_json(found.done.evidence / scoring.CONTEXTS)
    how: Mapping[str, Any] = found.features.provenance
    effect = Estimate.not_available("not measured by the audit")
    selection = {
        "given": "The feature set was given.",
        "no other group": "There is no other group, so ratings are not available: these have the largest |score|.",
        "rated": f"Of those rated {how.get('min_rating')} or more, the largest |score|.",
        "best there is": f"No candidate is rated {how.get('min_rating')} or more: these have the best rating there is.",
    }
    rows = tuple(
        rd.FeatureRow(
            sae=f.sae, latent=f.latent, sign=f.sign, score=f.score or 0.0, rating=f.rating,
            rating_method="statistical" if f.rating else "", why=f.label or f.why, effect=effect,
            contexts=tuple(rd.Context.model_validate(c) for c in texts.get(f"{f.sae}/{f.latent}", ())),
        )
        for f in found.features.features
    )  # fmt: skip
    return rd.FeatureTable(features=rows, selection=selection.get(str(how.get("selection")), ""))


def _sae(found: Found) -> rd.SaeQuality | rd.Missing:
    if found.quality is None:
        return rd.Missing(missing="the autoencoder was given; `seamark sae eval` measures it")
    config = found.scan.manifest["sae_configs"][found.done.sae_id]
    none = Estimate.not_available("no text was held out")
    rows = []
    for stage, part in zip(found.quality["stages"], found.done.recipe.sae.stages, strict=True):
        q = stage.get("quality") or {}
        measures = {m: Estimate(value=q[m], n=q["n"]) if q.get(m) is not None else none
                    for m in ("fvu", "l0", "dead_share", "cosine")}  # fmt: skip
        rows.append(rd.SaeStage(name=part.name, positions=part.positions, n_positions=stage["positions"], **measures))
    return rd.SaeQuality(d_in=config["d_in"], d_sae=config["d_sae"], k=config.get("k") or 0, stages=tuple(rows))


def _costs(found: Found) -> rd.Costs:
    return rd.Costs(stages=tuple(
        rd.StageCost(stage=name, seconds=t.get("seconds"), peak_rss_mb=t.get("peak_rss_mb"))
        for name, t in found.done.timings.items()
    ))  # fmt: skip


def _notes(found: Found) -> tuple[str, ...]:
    notes = [
        "A suspicious pair is not a wrong one: low scores say that the model or the features disagree with the label. "
        "Look before you remove.",
        "The share of wrong labels is an upper estimate where the judge saw none of the labels (cross-fitted "
        "margins, words): where it is sure and mistaken, its own errors count as wrong labels. Judges that read "
        "the reward model's activations see what it has learned, wrong labels too, and may say too little. It "
        "takes labels to be wrong regardless of what the pair says, and so does P(wrong): where one kind of pair "
        "is mislabelled throughout, judges learn that as the rule, and both are too low.",
        "A contrastive score is a correlation with the label, and so is what goes with the margin: neither is a cause.",
    ]
    if found.done.trained:
        notes.append("The reward model was trained on these pairs, so its margins side with the labels it was taught. "
                     "Cross-fitted margins do not.")  # fmt: skip
    else:
        notes.append("The reward model was given. If these pairs were among those it was trained on, its margins side "
                     "with the labels it was taught.")  # fmt: skip
    if found.faults.left_out:
        notes.append("Pairs that were left out are scored and listed, and they are still in clean.jsonl unless their "
                     "score is among the lowest: data/faults.json names them.")  # fmt: skip
    notes += [*found.faults.notes, *found.breakdown.notes]
    return tuple(notes)
