"""Effects of features on the target group's pairs and on the others, and of the controls in their place."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from seamark.diagnose.attribution import Floats, Key, Recorded, Tokens, rank_agreement
from seamark.diagnose.causal_controls import Push, Pusher, StandIns, Turned, ablation, members, rotations
from seamark.diagnose.causal_report import (
    FEWEST_PROMPTS,
    ROUNDING,
    Contribution,
    FeatureEffect,
    Range,
    SetEffect,
    verdict,
)
from seamark.diagnose.doses import Response
from seamark.diagnose.resampled import Side, difference
from seamark.diagnose.steering import Intervention, Suite, changes
from seamark.features.sets import Feature, FeatureSet
from seamark.model.loading import RewardModel
from seamark.model.reading import apply_at
from seamark.stats import Estimate, bootstrap_by_cluster
from seamark.text.pairs import Pairs
from seamark.text.rendering import Rendered

K = TypeVar("K", bound=Hashable)


@dataclass(frozen=True)
class Settings:
    """How effects are measured; see `causal_effects`."""

    controls: int
    steer_controls: int
    amounts: tuple[float, ...]
    control_pairs: int
    dose_pairs: int
    where: Tokens
    draws: int
    batch_tokens: int
    seed: int

    @property
    def most_controls(self) -> int:
        """Sets of controls that are drawn."""
        return max(self.controls, self.steer_controls)


class Study:
    """Everything that is measured, once the texts were read.

    Args:
        features: the set.
        drawn: random latents that stand for the features.
        pairs: pairs of the target group and of the others; `texts` holds both answers of each.
        group: the target group.
        recorded: the first pass, with all latents of `features` and `drawn`.
    """

    def __init__(
        self, model: RewardModel, suite: Suite, features: FeatureSet, drawn: StandIns,
        texts: Sequence[Rendered], pairs: Pairs, group: str, recorded: Recorded, settings: Settings,
    ) -> None:  # fmt: skip
        self.model, self.suite, self.features, self.texts = model, suite, features.features, texts
        self.recorded, self.settings = recorded, settings
        self.sides = _sides(pairs, group, settings)
        self.controlled = self.sides[0].sample(settings.control_pairs, settings.seed)
        self.stand_ins = StandIns(drawn.sets[: settings.controls], drawn.mass)
        hookpoints = [suite[f.sae].config.hookpoint for f in self.features]
        self.pusher = Pusher(model, texts, hookpoints, settings.batch_tokens)
        self.passes = self.saved = 0
        self.floor = ROUNDING * float(recorded.rewards.std())
        saes = list(dict.fromkeys(f.sae for f in self.features))
        self.turns = [rotations(suite, saes, settings.seed + i) for i in range(settings.most_controls)]
        self.exact = self._ablate("Ablation", {f.key: (f.key, None) for f in self.features}, self.sides)
        self.random = self._ablate("Random latents", {key: (key, None) for key in members(self.stand_ins.sets)})
        self.turned = self._ablate("Random directions", {
            (i, f.key): (f.key, turn) for i, turn in enumerate(self.turns[: settings.controls]) for f in self.features
        })  # fmt: skip

    def _ablate(
        self, title: str, asked: Mapping[K, tuple[Key, Turned | None]], sides: Sequence[Side] = ()
    ) -> dict[K, Floats]:  # fmt: skip
        """{name: what a latent's firing adds to the reward of each text [texts]}, in texts of `sides`; without any, in
        those that controls are measured on."""
        texts = _texts_of(sides or [self.controlled])
        items: list[tuple[int, Push]] = []
        rows_of: dict[K, NDArray[np.int64]] = {}
        for name, (key, turned) in asked.items():
            push = ablation(self.recorded, self.suite, [key], turned)
            rows_of[name] = np.intersect1d(self.recorded.fired[key].rows, texts)
            items += [(int(row), push) for row in rows_of[name]]
            self.saved += len(texts) - len(rows_of[name])
        rewards = self.pusher.rewards(items, title)
        found, start = {}, 0
        for name, rows in rows_of.items():
            found[name] = np.zeros(len(self.texts))
            found[name][rows] = self.recorded.rewards[rows] - rewards[start : start + len(rows)]
            start += len(rows)
        return found

    # ---- single features ----

    def feature_effects(self, responses: Mapping[Key, Response]) -> tuple[FeatureEffect, ...]:
        """Every feature's, with what raising it does."""
        return tuple(self._feature(i, f, responses[f.key]) for i, f in enumerate(self.features))

    def _feature(self, i: int, f: Feature, response: Response) -> FeatureEffect:
        worth = self.exact[f.key]
        target, others = self._contributions([f], worth)
        some = self.stand_ins.of(i)
        latents = self._range(worth, [self.random[key] for key in some], f.sign, mass=self._mass([f.key], [some]))
        directions = self._range(worth, [self.turned[d, f.key] for d in range(self.settings.controls)], f.sign)
        said, why = verdict(target.reward, f.sign, target.n_prompts, self.floor, latents, directions)
        return FeatureEffect(
            sae=f.sae, latent=f.latent, sign=f.sign, score=f.score, label=f.label, target=target, others=others,
            difference=difference(self.sides, [s.drawn(s.both(worth).mean(1)) for s in self.sides]),
            random_latents=latents, random_directions=directions, steered=response.steered, doses=response.doses,
            monotone=response.monotone, verdict=said, why=why,
        )  # fmt: skip

    def _contributions(self, some: Sequence[Feature], worth: Floats) -> tuple[Contribution, Contribution | None]:
        cheap = np.sum([self.recorded.attribution[f.key] for f in some], axis=0)
        fires = np.zeros(len(self.texts), np.bool_)
        for f in some:
            fires[self.recorded.fired[f.key].rows] = True
        found = [self._contribution(side, worth, cheap, fires) for side in self.sides]
        return found[0], found[1] if len(found) > 1 else None

    def _contribution(self, side: Side, worth: Floats, cheap: Floats, fires: NDArray[np.bool_]) -> Contribution:
        added, base = side.both(worth), side.both(self.recorded.rewards)
        mine = np.stack([fires[2 * side.rows], fires[2 * side.rows + 1]], 1)
        return Contribution(
            group=side.name, n_pairs=len(side.rows), n_firing=int(mine.sum()),
            n_prompts=len(np.unique(side.codes[mine.any(1)])), reward=side.mean(added.mean(1)),
            chosen=side.mean(added[:, 0]), rejected=side.mean(added[:, 1]), margin=side.mean(added[:, 0] - added[:, 1]),
            accuracy=side.mean(_wins(base) - _wins(base - added)), attribution=side.mean(side.both(cheap).mean(1)),
        )  # fmt: skip

    def _range(
        self, worth: Floats, found: Sequence[Floats], sign: int, *, margin: bool = False, mass: float | None = None
    ) -> Range:  # fmt: skip
        """What controls add to rewards (or margins), in the direction of a sign, beside what the feature, which adds
        `worth`, adds in the same pairs."""
        sides = [self.controlled.both(one) for one in (worth, *found)]
        own, *values = (sign * float((s[:, 0] - s[:, 1]).mean() if margin else s.mean()) for s in sides)
        return Range.of(own, values, mass)

    def _mass(self, keys: Sequence[Key], controls: Sequence[Sequence[Key]]) -> float | None:
        """Median over controls of their activation mass / that of what they stand for. `controls`: of each of `keys`
        the latents that stand for it."""
        own = sum(self.stand_ins.mass.get(key, 0.0) for key in keys)
        if not own or not self.stand_ins.sets:
            return None
        return float(np.median(np.sum([[self.stand_ins.mass[key] for key in some] for some in controls], axis=0)) / own)

    # ---- all at once ----

    def set_effect(self) -> SetEffect:
        """Of all features ablated together."""
        keys = [f.key for f in self.features]
        worth = self._ablate_together(keys, None, self.sides)
        target, others = self._contributions(self.features, worth)
        sets = list({frozenset(f.key for f in one.features): one for one in self.stand_ins.sets}.values())
        latents = [self._ablate_together([f.key for f in one.features]) for one in sets]
        mass = self._mass(keys, [[one.features[i].key for one in sets] for i in range(len(keys))])
        turned = [self._ablate_together(keys, turn) for turn in self.turns[: self.settings.controls]]
        ranges = (self._range(worth, latents, 1, margin=True, mass=mass),
                  self._range(worth, turned, 1, margin=True))  # fmt: skip
        said, why = verdict(target.margin, 1, target.n_prompts, self.floor, *ranges)
        margins = [side.drawn(b[:, 0] - b[:, 1]) for side in self.sides for b in [side.both(worth)]]
        return SetEffect(
            n_features=len(keys), target=target, others=others, difference=difference(self.sides, margins),
            random_latents=ranges[0], random_directions=ranges[1], verdict=said, why=why,
        )  # fmt: skip

    def _ablate_together(self, keys: Sequence[Key], turned: Turned | None = None, sides: Sequence[Side] = ()) -> Floats:
        """What the firing of latents together adds to the reward of each text, [texts]; `sides` as of `_ablate`.

        Where an earlier hookpoint is ablated a later one fires otherwise, so its activations are encoded again. With
        directions turned there is nothing to encode: steps are those of the first pass.
        """
        texts, out = _texts_of(sides or [self.controlled]), np.zeros(len(self.texts))
        rows = np.intersect1d(np.concatenate([self.recorded.fired[key].rows for key in keys]), texts)
        self.saved += len(texts) - len(rows)
        if turned is not None or len({self.suite[sae_id].config.hookpoint for sae_id, _ in keys}) == 1:
            push = ablation(self.recorded, self.suite, keys, turned)
            after = self.pusher.rewards([(int(row), push) for row in rows], "Ablation of a set")
        else:
            some = [self.texts[row] for row in rows]
            asked = [Intervention(sae=s, latent=i, action="ablate", where=self.settings.where) for s, i in keys]
            with apply_at(self.model, changes(self.model, self.suite, asked, None, some)):
                after = self.model.rewards(some, self.settings.batch_tokens)
            self.passes += len(some)
        out[rows] = self.recorded.rewards[rows] - after
        return out

    # ---- summaries ----

    def dose_rows(self) -> list[NDArray[np.int64]]:
        """Of each side, the pairs whose chosen answers are read with features raised: a sample."""
        return [side.some(self.settings.dose_pairs, self.settings.seed) for side in self.sides]

    def accuracy(self) -> dict[str, Estimate]:
        """Of the model as it is."""
        return {s.name: s.mean(_wins(s.both(self.recorded.rewards))) for s in self.sides}

    def agreement(self) -> tuple[Estimate, Estimate]:
        """Spearman's correlation of attribution with ablation: over the features, and over the random latents."""
        return self._agreement(self.exact, self.sides[0]), self._agreement(self.random, self.controlled)

    def _agreement(self, exact: Mapping[Key, Floats], side: Side) -> Estimate:
        if not exact:
            return Estimate.not_available("no controls were asked for")
        cheap, true = (np.stack([side.both(by[key]).mean(1) for key in exact], 1)
                       for by in (self.recorded.attribution, exact))  # fmt: skip
        return rank_agreement(cheap, true, side.codes, floor=self.floor, draws=self.settings.draws,
                              seed=self.settings.seed)  # fmt: skip

    def random_yes(self) -> Estimate:
        """Share of random latents whose effect has an interval wholly on the side of their own sign."""
        side, said = self.controlled, []
        for key, f in members(self.stand_ins.sets).items():
            found = self._contribution(side, self.random[key], self.random[key], self._fires(key))
            if found.n_prompts >= FEWEST_PROMPTS and found.reward.low is not None and found.reward.high is not None:
                least = min(f.sign * found.reward.low, f.sign * found.reward.high)
                said.append(least > 0 and abs(found.reward.value or 0.0) > self.floor)
        if not said:
            return Estimate.not_available("no random latent fires often enough")
        return bootstrap_by_cluster(np.asarray(said, np.float64), np.arange(len(said)), seed=self.settings.seed)

    def _fires(self, key: Key) -> NDArray[np.bool_]:
        fires = np.zeros(len(self.texts), np.bool_)
        fires[self.recorded.fired[key].rows] = True
        return fires


def _sides(pairs: Pairs, group: str, settings: Settings) -> list[Side]:
    of_group = np.asarray([p.group == group for p in pairs])
    prompts = [p.prompt_key for p in pairs]
    rest = [g for g in pairs.groups if g != group]
    names = [group, *([rest[0] if len(rest) == 1 else "others"] if rest else [])]
    rows = [np.flatnonzero(of_group), np.flatnonzero(~of_group)]
    return [Side(name, at, prompts, settings.draws, settings.seed + i)
            for i, (name, at) in enumerate(zip(names, rows, strict=False))]  # fmt: skip


def _texts_of(sides: Sequence[Side]) -> NDArray[np.int64]:
    return np.sort(np.concatenate([side.texts for side in sides]))


def _wins(rewards: Floats) -> Floats:
    """Of [pairs, 2]: 1 where the chosen answer gets more, one half for a tie."""
    wins: Floats = (np.sign(rewards[:, 0] - rewards[:, 1]) + 1.0) / 2.0
    return wins
