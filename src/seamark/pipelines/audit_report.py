"""`seamark audit report`: from a reward model (or a base) and preference files to a report and edited files.

    data ─ (reward) ─ (sae) ─ scan ─ features ─ scores ─ findings, evidence, edits ─ report.html, result.json
                                         (crossfit) ┘        (judge) ┘

Stages in brackets are skipped where what they make was given, or not asked for. Each is resumable; the model reads the
pairs once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from seamark.audit.judge import Judged
from seamark.audit.scores import PairScores
from seamark.errors import DataError
from seamark.features import FeatureSet
from seamark.model import is_reward_model, resolve_name
from seamark.pipelines import audit_report_edits as edits
from seamark.pipelines import audit_report_scores as scoring
from seamark.pipelines import audit_report_stages as stages
from seamark.pipelines.audit_report_checks import check_options
from seamark.pipelines.audit_report_done import Audited
from seamark.pipelines.audit_report_options import AuditOptions
from seamark.pipelines.audit_report_page import write_page
from seamark.pipelines.audit_report_price import Price, prices
from seamark.pipelines.recipe import SaferRecipe
from seamark.pipelines.runner import make_workers
from seamark.pipelines.worlds import local_digest, with_precision
from seamark.run import Run, Stage, Workers, say, write_json
from seamark.text.pairs import Pairs

SAE_ID = "sae"
VERSIONS = {"data": 2, "scores": 2, "findings": 2, "evidence": 2, "edits": 2}
"""Stages whose code gives another result than it once did."""
Judge = Callable[[Pairs, Path], Judged | None]
"""Asks a language model about pairs, in a folder for its answers; None: it was only to say what that costs."""


@dataclass
class AuditRun:
    """One audit in its folder."""

    recipe: SaferRecipe
    options: AuditOptions
    run: Run
    workers: Workers
    """For stages side by side."""
    judge: Judge | None = None
    model_inputs: dict[str, Path] = field(default_factory=dict)
    """The folder of the reward model, if it is trained here."""

    def go(self) -> Audited:
        """All stages but the page; those that are done are skipped."""
        o, r = self.options, self.recipe
        trained = check_options(o, r)
        self._say_model(trained)
        data = self._stage("data", stages.read_data, {
            "pairs": list(o.pairs.items()), "max_pairs": r.data.max_pairs, "target": o.group,
            "digests": {f: local_digest(f) for files in o.pairs.values() for f in files},
        })  # fmt: skip
        if trained:
            how = {**self._base(o.model), "training": self._training()}
            self.model_inputs = {"reward": self._stage("reward", stages.train_reward, how, data=data)}
        sae_id = self._sae_id()
        sae = self._sae(data)
        scan = self._stage("scan", stages.scan_pairs, {
            **self._model(), **self._given_sae(), "sae_id": sae_id, "config": self._scan_config(),
        }, data=data, **self.model_inputs, **_some(sae=sae))  # fmt: skip
        features, why = self._features(data, scan, sae_id)
        priced = self._prices(data, trained)
        margins = self._crossfit(data)
        scores = self._stage("scores", scoring.score_all, {
            "target": o.group, "sae_id": sae_id, "by": o.by, "folds": 5, "seed": o.seed, "no_features": why,
            "margins": list(margins),
        }, data=data, scan=scan, **_some(features=features), **margins)  # fmt: skip
        common = {"data": data, "scan": scan, "scores": scores, **_some(features=features)}
        findings = self._stage("findings", scoring.look_for, {
            "target": o.group, "sae_id": sae_id, "no_features": why, **self._dimension(),
        }, **common)  # fmt: skip
        judged = self._judged(data, scores)
        evidence = self._stage("evidence", scoring.gather_evidence, {
            **self._model(), **self._given_sae(), "sae_id": sae_id, "count": o.show,
        }, **common, **self.model_inputs, **_some(sae=sae, judged=judged))  # fmt: skip
        edited = self._stage("edits", edits.write_edits, {"share": o.remove, "group": o.group, "seed": o.seed},
                             data=data, scores=scores)  # fmt: skip
        timings = {t: self.run.timings[t] for t in self.run.titles if t in self.run.timings}
        return Audited(r, o, self.run.root, trained, data, scan, scores, findings, evidence, edited, sae, features,
                       why, judged, sae_id, priced, timings)  # fmt: skip

    def _say_model(self, trained: bool) -> None:
        """Whether the model is audited as it is."""
        o = self.options
        if not trained:
            say(f"  {o.model} is a reward model: it is audited as it is.")
            return
        known = is_reward_model(o.model)
        what = "is a reward model, and --train asks to train it on" if known else "is no reward model but a base"
        say(f"  {o.model} {what}: a reward model is trained from it on the pairs without faults.")

    def _stage(self, name: str, build: Callable[..., Any], arguments: dict[str, Any], **inputs: Path) -> Path:
        """One stage after another, each with all cores."""
        stage = Stage(name, build, arguments, inputs, VERSIONS.get(name, 1))
        return self.run.stage(stage, Workers(1, torch.get_num_threads()))

    def _base(self, base: str) -> dict[str, str]:
        return {"base": base, "base_digest": local_digest(resolve_name(base)) or base}

    def _model(self) -> dict[str, str]:
        """The model as an argument; none where it is the result of a stage."""
        if self.model_inputs:
            return {"model": "", "model_digest": ""}
        name = resolve_name(self.options.model)
        return {"model": self.options.model, "model_digest": local_digest(name) or name}

    def _dimension(self) -> dict[str, Any]:
        """The dimension as an argument, where one is given."""
        given = self.options.dimension
        return {} if given is None else {"dimension": given.model_dump(mode="json")}

    def _training(self, threads: int | None = None) -> dict[str, Any]:
        return self.recipe.reward.model_dump(mode="json") | {"seed": self.options.seed, "threads": threads}

    def _scan_config(self) -> dict[str, Any]:
        scan = self.recipe.scan
        update = {"rewards": True, "raw": True, "max_length": scan.max_length or self.recipe.reward.max_length}
        return scan.model_copy(update=update).model_dump(mode="json")

    def _sae_id(self) -> str:
        """What the autoencoder is called: as in the feature set that is given, if any."""
        if self.options.features is None:
            return SAE_ID
        return FeatureSet.load(self.options.features).features[0].sae

    def _given_sae(self) -> dict[str, str | None]:
        return {"sae_place": self.options.sae, "sae_digest": local_digest(self.options.sae)}

    def _sae(self, data: Path) -> Path | None:
        r = self.recipe
        if self.options.sae is not None:
            return None
        return self._stage("sae", stages.fit_sae, {
            **self._model(), "sae": r.sae.model_dump(mode="json"), "max_length": r.reward.max_length,
            "target": self.options.group, "general_text": r.data.general_text,
            "general_digest": local_digest(r.data.general_text),
        }, data=data, **self.model_inputs)  # fmt: skip

    def _features(self, data: Path, scan: Path, sae_id: str) -> tuple[Path | None, str]:
        """The stage that finds features, or why it found none: an audit goes on without them."""
        o = self.options
        if o.features is not None:
            arguments = {"features": o.features, "features_digest": local_digest(o.features), "sae_id": sae_id}
            return self._stage("features", stages.given_features, arguments, scan=scan), ""
        part = self.recipe.features.model_dump(mode="json", exclude={"effect_texts"})
        try:
            return self._stage("features", stages.find_features, {
                "target": o.group, "sae_id": sae_id, **part, **self._dimension(),
            }, data=data, scan=scan), ""  # fmt: skip
        except DataError as e:
            say(f"  No features: {e.what}")
            return None, e.what

    def _prices(self, data: Path, trained: bool) -> tuple[Price, ...]:
        """What the expensive extras would take here, told before any of them starts."""
        found = prices(
            self.options, self.recipe, data, self.run.timings, trained=trained, judged=self.judge is not None
        )
        for price in found:
            if price.asked:
                say(f"  {price.name}: about {price.estimate}")
        return found

    def _crossfit(self, data: Path) -> dict[str, Path]:
        """Folders of margins by reward models that never saw a pair's prompt, by name of stage input."""
        o = self.options
        base = o.base or o.model
        how = {**self._base(base), "folds": o.crossfit}
        made: dict[str, Path] = {}
        for draw in range(o.voting if o.crossfit else 0):  # other folds, and another order of pairs
            training = self._training(self.recipe.threads) | {"seed": o.seed + 1000 * draw}
            found = self.run.stages(f"crossfit-{draw}", [
                Stage(f"crossfit/{draw}-{fold}", stages.crossfit_margins,
                      {**how, "training": training, "fold": fold, "seed": o.seed + draw}, {"data": data})
                for fold in range(o.crossfit)
            ], self.workers)  # fmt: skip
            made |= {f"margins_{draw}_{n}": path for n, path in enumerate(found.values())}
        return made

    def _judged(self, data: Path, scores: Path) -> Path | None:
        """A language model's opinion of the most suspicious pairs; its answers are paid once and kept."""
        if self.judge is None:
            return None
        ranking = PairScores.load(scores / scoring.SCORES)
        wanted = set(ranking.lowest(self.options.judge_pairs))
        folder = self.run.root / "judge"
        with self.run.measure("judge"):
            found = self.judge(stages.load_pairs(data).where(lambda p: p.id in wanted), folder)
        if found is None:
            return None
        write_json(folder / scoring.JUDGED, found)
        return folder / scoring.JUDGED


def _some(**paths: Path | None) -> dict[str, Path]:
    return {name: path for name, path in paths.items() if path is not None}


def run_audit(recipe: SaferRecipe, options: AuditOptions, judge: Judge | None = None) -> tuple[Path, dict[str, Any]]:
    """Audit pairs in the folder `options.out`; writes `report.html` and `result.json` there.

    Args:
        recipe: settings of training, autoencoder, scan and features.
        options: what is audited.
        judge: asks a language model about the most suspicious pairs.

    Returns:
        The folder and the result.

    Raises:
        ConfigError: options that do not fit together.
        DataError: no usable pair in the audited group, unreadable files.
        ModelError: no such model.
    """
    with Run(Path(options.out)) as run, make_workers(recipe) as workers:
        done = AuditRun(with_precision(recipe, run), options, run, workers, judge).go()
        workers.close()
        return run.root, write_page(done, run)
