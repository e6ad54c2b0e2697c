"""What an audit experiment found: fractions 0-1, from the files of finished cells alone."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import Any

from seamark.audit.detection import Trial, calibration, compare, detect
from seamark.audit.editing import EditManifest, edit_count
from seamark.audit.experiment import ONE_SEED, UNEDITED, Cell, Experiment
from seamark.audit.scores import PairScores
from seamark.features import FeatureSet
from seamark.pipelines import grid_stages, stages
from seamark.pipelines.audit_recipe import COMBINED
from seamark.pipelines.grid_bench import bench_rows
from seamark.pipelines.grid_plan import Arm, Grid, Variation, WorldPlan
from seamark.run import read_json, to_jsonable
from seamark.stats import Estimate
from seamark.text.pairs import Pairs

SCHEMA = 1
BASELINE = "margin"
TARGETED = ("safer", "margin")
Row = dict[str, Any]


def collect(grid: Grid) -> Row:
    """The result without estimate and timings: equal runs give equal data. Half a run gives what is finished."""
    return to_jsonable(Collector(grid).collect())


class Collector:
    """Reads the folders of a grid."""

    def __init__(self, grid: Grid) -> None:
        self.grid, self.recipe = grid, grid.recipe
        self.target = grid.recipe.target
        if grid.data is None:
            return
        self.test = Pairs.from_jsonl(grid.data / stages.TEST)
        train = Pairs.from_jsonl(grid.data / stages.TRAIN).group(self.target)
        self.size = len(train)
        self.prompts = {p.id: p.prompt_key for p in train}
        self.arms = {
            arm.name: Experiment.read(arm.kind, self.test, grid.cells.get(arm.name, {}), self.target)
            for arm in grid.plan.arms
        }
        clean = {Cell(method="none", rate=0.0, seed=w.seed): grid.worlds[w.name].reward
                 for w in grid.plan.clean if w.name in grid.worlds and w.seed in self.recipe.seeds}  # fmt: skip
        self.clean = Experiment.read("poison", self.test, clean, self.target)

    def collect(self) -> Row:
        found: Row = {
            "schema_version": SCHEMA, "recipe": self.recipe.model_dump(mode="json", exclude={"out", "workers"}),
            "complete": not self.grid.missing, "missing": self.grid.missing,
        }  # fmt: skip
        if self.grid.data is None:
            return found
        data = read_json(self.grid.data / stages.SUMMARY)
        poison = next((arm for arm in self.grid.plan.arms if arm.kind == "poison"), None)
        return found | {
            "data": {k: data[k] for k in ("groups", "rejected", "reject_reasons")},
            "reward": self._reward(data),
            "poison": self._arm(poison) if poison else None,
            "denoise": [self._arm(arm) for arm in self.grid.plan.arms if arm.kind == "denoise"],
            "detection": [row for noise in self.recipe.noise.all() if noise[0] not in TARGETED
                          for row in self._detection(noise)],
            "defence": [row for noise in self.recipe.noise.all() if noise[0] in TARGETED
                        for row in self._detection(noise)],
            "calibration": [row for noise in self.recipe.noise.all() for row in self._calibration(noise)],
            "ablations": self._ablations(),
            "rewardbench": bench_rows(self.grid, self.arms),
            "notes": list(self._notes()),
        }  # fmt: skip

    def _reward(self, data: Row) -> Row:
        """Unedited reward models on the data as they are, beside what needs no model."""
        return {
            "seeds": self.clean.seeds,
            "accuracy": {g: self.clean.accuracy(*UNEDITED, g) for g in self.test.groups},
            "bag_of_words": data["bag_of_words"],
            "longer_wins": data["longer_wins"],
        }

    def _arm(self, arm: Arm) -> Row:
        """Rows of one experiment: a row a cell, a summary a condition, and SAFER against the other methods."""
        e = self.arms[arm.name]
        conditions = [UNEDITED, *((m, rate) for rate in arm.rates for m in arm.methods)]
        done = [c for c in conditions if e.seeds_of(c)]
        others = [m for m in arm.methods if m != "safer"]
        return {
            "name": arm.name,
            "noise": {"kind": arm.noise[0], "rate": arm.noise[1]} if arm.noise else None,
            "rows": sorted(e.rows(), key=lambda r: (conditions.index((r["method"], r["rate"])), r["seed"])),
            "summary": [self._condition(arm, e, method, rate) for method, rate in done],
            "effects": [
                {"rate": rate, "method": "safer", "baseline": m, "seeds": e.seeds_of(("safer", rate), (m, rate)),
                 "D": e.effect(rate, "safer", m)}
                for rate in arm.rates for m in others if "safer" in arm.methods and ("safer", rate) in done
            ],
            "missing": [c.name for c in arm.cells() if c not in e.cells],
        }  # fmt: skip

    def _condition(self, arm: Arm, e: Experiment, method: str, rate: float) -> Row:
        """Accuracy by group of one method at one rate; what it lost and kept against the unedited runs."""
        edited = method != "none"
        row: Row = {"method": method, "rate": rate, "n_edited": edit_count(rate, self.size) if edited else 0,
                    "seeds": e.seeds_of((method, rate))}  # fmt: skip
        row["accuracy"] = {g: e.accuracy(method, rate, g) for g in e.groups}
        if edited:
            row["lost"] = {g: e.lost(method, rate, g) for g in e.groups}
            row["kept"] = {g: e.kept(method, rate, g) for g in e.groups}
        if edited and arm.kind == "denoise":
            row["recovery"] = e.recovery(method, rate, self.clean)
            if method != "random" and e.seeds_of(("random", rate)):
                row["above_random"] = e.lost("random", rate, self.target, (method, rate))
        return row

    def _trial(self, world: WorldPlan, place: str, method: str) -> Trial | None:
        """A method's scores in a noisy world, and which labels were made wrong there."""
        folder = self.grid.scores.get(place, {}).get(method)
        if folder is None:
            return None
        return Trial(PairScores.load(folder / stages.SCORES).values, self._wrong(world))

    def _wrong(self, world: WorldPlan) -> frozenset[str]:
        return frozenset(EditManifest.load(self.grid.data_of[world.name] / "edit" / "manifest.json").edited_ids)

    def _detection(self, noise: tuple[Any, float]) -> Iterator[Row]:
        """How well each method finds the wrong labels of one kind and rate."""
        worlds = self.grid.plan.in_noise(noise)
        methods = self._detecting(worlds)
        trials = {m: {w.seed: t for w in worlds if (t := self._trial(w, w.name, m))} for m in methods}
        for method in methods:
            ours, theirs = trials[method], trials.get(BASELINE, {})
            if not ours:
                continue
            found = detect(list(ours.values()), self.prompts, (self.recipe.detect.share,))
            row: Row = {"noise": noise[0], "noise_rate": noise[1], "method": method, "seeds": sorted(ours),
                        "auroc": _of_seeds(found.auroc, ours), "share": self.recipe.detect.share,
                        "recall": _of_seeds(found.recall[self.recipe.detect.share], ours)}  # fmt: skip
            shared = [s for s in ours if s in theirs]
            if method != BASELINE and shared:
                difference = compare([ours[s] for s in shared], [theirs[s] for s in shared], self.prompts)
                row["above_margin"] = _of_seeds(difference, shared)
            yield row

    def _detecting(self, worlds: Sequence[WorldPlan]) -> list[str]:
        """Methods that score these worlds for their own sake, not only as signals."""
        kind = worlds[0].kind
        asked = [*(self.recipe.denoise.methods if kind in self.recipe.denoise.kinds else []),
                 *self.recipe.detect.methods]  # fmt: skip
        return list(dict.fromkeys(asked))

    def _calibration(self, noise: tuple[Any, float]) -> Iterator[Row]:
        """Whether `combined` means what it says, over all seeds."""
        said: dict[str, float] = {}
        wrong: set[str] = set()
        prompts: dict[str, str] = {}
        seeds: dict[str, int] = {}
        shares = []
        for w in self.grid.plan.in_noise(noise):
            folder = self.grid.scores.get(w.name, {}).get(COMBINED)
            if folder is None:
                continue
            told = read_json(folder / grid_stages.PROBABILITIES)
            shares.append({"seed": w.seed, "share": Estimate.model_validate(told["share"])})
            said |= {f"{w.seed}:{i}": p for i, p in told["wrong"].items()}
            prompts |= {f"{w.seed}:{i}": self.prompts[i] for i in told["wrong"]}
            seeds |= {f"{w.seed}:{i}": w.seed for i in told["wrong"]}
            wrong |= {f"{w.seed}:{i}" for i in self._wrong(w)}
        if shares:
            found = calibration(said, wrong, prompts=prompts, seeds=seeds)
            if said:
                found = found.model_copy(update={"brier": _of_seeds(found.brier, set(seeds.values()))})
            yield {"noise": noise[0], "noise_rate": noise[1], "method": COMBINED, "wrong_share": shares,
                   "seeds": sorted(set(seeds.values())), "calibration": found}  # fmt: skip

    def _ablations(self) -> list[Row]:
        """SAFER with one setting changed beside SAFER with the recipe's settings."""
        grid, poison = self.grid, self.grid.plan.arm("poison")
        noise = grid.plan.ablation_noise()
        by_value: dict[tuple[str, str], list[Variation]] = {}
        for v in grid.plan.variations:
            by_value.setdefault((v.setting, str(v.value)), []).append(v)
        rows = []
        for (setting, _), some in by_value.items():
            row: Row = {"setting": setting, "value": some[0].value, "base": self._base(setting)}
            if poison and (lost := self._lost(poison, some)) is not None:
                row |= lost
            if noise:
                row |= {"noise": noise[0], "noise_rate": noise[1], **self._found_by(noise, some)}
            rows.append(row)
        return rows

    def _base(self, setting: str) -> Any:
        r = self.recipe
        values = {**r.sae.model_dump(), **r.scan.model_dump(), **r.features.model_dump()}
        return values[setting]

    def _lost(self, poison: Arm, some: Sequence[Variation]) -> Row | None:
        """Accuracy lost by flips that the changed setting chose, against the recipe's own."""
        rate, grid = poison.rates[0], self.grid
        cells = {Cell(method="changed", rate=rate, seed=v.seed): grid.variations[v] for v in some
                 if v in grid.variations}  # fmt: skip
        if not cells:
            return None
        known = {c: f for c, f in grid.cells.get("poison", {}).items() if c.method in ("none", "safer")
                 and c.rate in (0.0, rate)}  # fmt: skip
        e = Experiment.read("poison", self.test, known | cells, self.target)
        return {
            "rate": rate, "seeds": e.seeds_of(("changed", rate)),
            "lost": {g: e.lost("changed", rate, g) for g in e.groups},
            "above_base": e.lost("changed", rate, self.target, ("safer", rate)),
        }  # fmt: skip

    def _found_by(self, noise: tuple[Any, float], some: Sequence[Variation]) -> Row:
        worlds = {w.seed: w for w in self.grid.plan.in_noise(noise)}
        changed, base = {}, {}
        for v in some:
            ours = self._trial(worlds[v.seed], f"{v.folder}/{worlds[v.seed].name}", "safer")
            theirs = self._trial(worlds[v.seed], worlds[v.seed].name, "safer")
            if ours and theirs:
                changed[v.seed], base[v.seed] = ours, theirs
        if not changed:
            return {}
        auroc = detect(list(changed.values()), self.prompts).auroc
        difference = compare(list(changed.values()), list(base.values()), self.prompts)
        return {"auroc": _of_seeds(auroc, changed), "auroc_above_base": _of_seeds(difference, changed)}

    def _notes(self) -> Iterator[str]:
        """What a reader must know: settings that had to give way, pairs that a method could not score."""
        if len(self.recipe.seeds) == 1:
            yield "one seed only: nothing here has an interval; run at least three"
        wanted = self.recipe.features.min_rating
        for name, world in self.grid.worlds.items():
            ratings = [f.rating or 0 for f in FeatureSet.load(world.features / stages.FEATURES).features]
            if min(ratings) < wanted:
                yield f"{name}: no latent is rated {wanted}, so those rated {min(ratings)} were taken"
        if self.grid.bench and (out := read_json(self.grid.bench / grid_stages.LEFT_OUT))["seen"]:
            yield f"RewardBench: {out['seen']} pairs have prompts that are trained on, and are left out"
        for place, methods in self.grid.scores.items():
            for method, folder in methods.items():
                if unknown := read_json(folder / grid_stages.FILLED):
                    yield f"{place}: {method} could not score {len(unknown)} pairs, which got the median"


def _of_seeds(e: Estimate, seeds: Collection[Any]) -> Estimate:
    """An estimate whose interval must hold the doubt of training: none from a single seed."""
    if len(seeds) == 1 and e.value is not None:
        return Estimate(value=e.value, n=e.n, reason=ONE_SEED)
    return e
