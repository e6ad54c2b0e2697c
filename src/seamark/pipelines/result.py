"""What a SAFER run found: `result.json` (fractions 0-1, stages apart) and the data of its report."""

from __future__ import annotations

from typing import Any

from seamark.audit.detection import detection_auroc
from seamark.audit.editing import EditManifest, edit_count
from seamark.audit.experiment import RESULT, Experiment
from seamark.audit.report import write_report
from seamark.features import FeatureSet
from seamark.pipelines import stages
from seamark.pipelines.report import report_data
from seamark.pipelines.safer import Done, read_experiment
from seamark.run import Run, digest, read_json, to_jsonable, write_json
from seamark.stats import Estimate
from seamark.text.pairs import Pairs

SCHEMA = 1


def write_result(done: Done, run: Run) -> dict[str, Any]:
    """Assemble the result from the stages' files; write `result.json` and `report.html` unless they are up to date.

    The stages' manifests decide whether they are: timings alone never rewrite a finished result.
    """
    poison, denoise = read_experiment(done, "poison"), read_experiment(done, "denoise")
    found = collect(done, poison, denoise)
    key = digest(found)
    report, result_file = run.root / "report.html", run.root / "result.json"
    current = read_json(result_file) if result_file.exists() else {}
    if not (run.built or not report.exists() or digest({k: v for k, v in current.items() if k != "stages"}) != key):
        return current
    with run.measure("report"):
        write_report(report_data(done, found, poison, denoise), report)
    result = found | {"stages": {title: run.timings[title] for title in run.titles if title in run.timings}}
    write_json(result_file, result)
    return result


def collect(done: Done, poison: Experiment | None, denoise: Experiment | None) -> dict[str, Any]:
    """The result without its timings: equal runs give equal data."""
    data = read_json(done.data / stages.SUMMARY)
    reward = read_json(done.clean.reward / RESULT)
    quality = read_json(done.clean.sae / "quality.json")
    groups = reward["evaluation"]["groups"]
    result = {
        "schema_version": SCHEMA,
        "recipe": done.recipe.model_dump(mode="json", exclude={"out", "workers"}),
        "data": {k: data[k] for k in ("groups", "rejected", "reject_reasons")},
        "reward": {
            "accuracy": {g: v["accuracy"]["value"] for g, v in groups.items()},
            "interval": {g: [v["accuracy"]["low"], v["accuracy"]["high"]] for g, v in groups.items()},
            "length_baseline": {g: v["longer_wins"]["value"] for g, v in groups.items()},
            "bag_of_words": {g: v["value"] for g, v in data["bag_of_words"].items()},
            "bag_of_words_estimate": data["bag_of_words"],
            "categories": reward["evaluation"]["categories"],
            "training": reward["training"],
        },
        "sae": quality,
        "features": _features(done),
        "poison": _rows(poison),
        "denoise": _rows(denoise),
        "effect": _effects(done, poison),
        "poison_summary": _summary(poison, data["groups"][done.recipe.target]["train"]),
        "denoise_summary": _summary(denoise, data["groups"][done.recipe.target]["train"]),
        "detection": _detection(done),
        "recovery": _recovery(done, denoise),
    }
    return to_jsonable(result)


def _features(done: Done) -> list[dict[str, Any]]:
    """The chosen features with their direct effect on the reward (null with a reason where not available)."""
    effects = read_json(done.effects / stages.EFFECTS)
    rows = []
    for f in FeatureSet.load(done.clean.features / stages.FEATURES).features:
        e = Estimate.model_validate(effects[str(f.latent)])
        rows.append({
            "sae": f.sae, "latent": f.latent, "sign": f.sign, "score": f.score, "rating": f.rating,
            "rating_method": "statistical", "why": f.why, "direct_effect": e.value,
            "direct_effect_interval": [e.low, e.high] if e.available else None, "direct_effect_reason": e.reason,
        })  # fmt: skip
    return rows


def _rows(experiment: Experiment | None) -> list[dict[str, Any]]:
    return experiment.rows() if experiment else []


def _effects(done: Done, poison: Experiment | None) -> dict[str, Any]:
    """D at the highest poisoning rate (SAFER against random), and against every other method and rate."""
    if poison is None:
        return to_jsonable(_named("D", Estimate.not_available("the poisoning experiment was not run")))
    rates = done.recipe.poison.rates
    main = poison.effect(max(rates))
    others = [m for m in done.recipe.poison.methods if m != "safer"]
    table = [
        {"rate": rate, "baseline": m} | _named("D", poison.effect(rate, "safer", m)) for rate in rates for m in others
    ]
    return _named("D", main) | {"rate": max(rates), "all": table}


def _named(name: str, e: Estimate) -> dict[str, Any]:
    return {name: e.value, "low": e.low, "high": e.high, "reason": e.reason}


def _summary(experiment: Experiment | None, size: int) -> list[dict[str, Any]]:
    """Mean and interval over seeds of every condition, and how much of each group's accuracy is kept."""
    if experiment is None:
        return []
    rows = []
    for method, rate in experiment.conditions():
        edited = edit_count(rate, size) if method != "none" else 0
        row: dict[str, Any] = {"method": method, "rate": rate, "n_edited": edited}
        for g in experiment.groups:
            row[g] = experiment.accuracy(method, rate, g)
            if method != "none":
                row[f"{g}_kept"] = experiment.kept(method, rate, g)
                row[f"{g}_lost"] = experiment.lost(method, rate, g)
        rows.append(row)
    return rows


def _detection(done: Done) -> list[dict[str, Any]]:
    """For each noisy training set: AUROC of each score for the injected wrong labels, within the target group."""
    rows = []
    for seed, world in done.noisy.items():
        wrong = set(EditManifest.load(world.data / "edit" / "manifest.json").edited_ids)
        ids = Pairs.from_jsonl(world.data / stages.TRAIN).group(done.recipe.target)
        for method in done.recipe.denoise.methods:
            scores = stages.method_scores(method, world.features, ids, seed)
            e = detection_auroc({i: scores.values[i] for i in ids.ids if i in scores.values}, wrong)
            rows.append({"method": method, "seed": seed, "auroc": e.value, "reason": e.reason})
    return rows


def _recovery(done: Done, denoise: Experiment | None) -> list[dict[str, Any]]:
    """(denoised − noisy) / (clean − noisy) of every condition; only with injected noise."""
    if denoise is None or not done.noisy:
        return []
    test = Pairs.from_jsonl(done.data / stages.TEST)
    clean = Experiment.read("denoise", test, done.clean_cells, done.recipe.target)
    return [
        {"method": m, "rate": rate} | to_jsonable(denoise.recovery(m, rate, clean))
        for m, rate in denoise.conditions()
        if m != "none"
    ]
