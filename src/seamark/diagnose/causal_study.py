"""Effects of features on the target group's pairs and on the others, and of the controls in their place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from seamark.diagnose.attribution import Floats, Key, Tokens, rank_agreement
from seamark.diagnose.causal_ablation import Ablations
from seamark.diagnose.causal_controls import StandIns, members, rotations
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
from seamark.diagnose.steering import Suite
from seamark.features.sets import Feature, FeatureSet
from seamark.model.loading import RewardModel
from seamark.stats import Estimate, bootstrap_by_cluster
from seamark.text.pairs import Pairs
from seamark.text.rendering import Rendered


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
    """Everything that is measured.

    Args:
        features: the set.
        drawn: random latents that stand for the features.
        pairs: pairs of the target group and of the others; `texts` holds both answers of each.
        group: the target group.

    Attributes:
        sides: the target group's pairs, and the others.
        whole: all texts, with the features.
        near: the control pairs' texts, with random latents too; values there are by these texts, `side` are the pairs.
    """

    def __init__(
        self, model: RewardModel, suite: Suite, features: FeatureSet, drawn: StandIns,
        texts: Sequence[Rendered], pairs: Pairs, group: str, settings: Settings,
    ) -> None:  # fmt: skip
        self.features, self.settings = features.features, settings
        self.stand_ins = StandIns(drawn.sets[: settings.controls], drawn.mass)
        self.random_features = members(self.stand_ins.sets)
        keys = [f.key for f in self.features]
        self.sides = _sides(pairs, group, settings)
        some = self.sides[0].sample(settings.control_pairs, settings.seed)
        self.near_rows = some.texts
        self.side = Side(some.name, np.arange(len(some.rows)), [some.prompts[i] for i in some.rows], settings.draws,
                         settings.seed)  # fmt: skip
        self.whole = Ablations(model, suite, keys, texts, settings.where, settings.batch_tokens)
        self.near = Ablations(model, suite, [*keys, *self.random_features], [texts[i] for i in self.near_rows],
                              settings.where, settings.batch_tokens)  # fmt: skip
        self.floor = ROUNDING * float(self.whole.recorded.rewards.std())
        self.turns = [rotations(suite, keys, settings.seed + i) for i in range(settings.most_controls)]
        self.exact = self.whole.each("Ablation", {key: (key, None) for key in keys})
        self.random = self.near.each("Random latents", {key: (key, None) for key in self.random_features})
        self.turned = self.near.each("Random directions", {
            (i, key): (key, turn) for i, turn in enumerate(self.turns[: settings.controls]) for key in keys
        })  # fmt: skip

    @property
    def passes(self) -> tuple[int, int]:
        """Texts read, and texts saved."""
        return self.whole.passes + self.near.passes, self.whole.saved + self.near.saved

    # ---- single features ----

    def feature_effects(self, responses: Mapping[Key, Response]) -> tuple[FeatureEffect, ...]:
        """Every feature's, with what raising it does."""
        return tuple(self._feature(i, f, responses[f.key]) for i, f in enumerate(self.features))

    def _feature(self, i: int, f: Feature, response: Response) -> FeatureEffect:
        worth = self.exact[f.key]
        target, others = self._contributions([f], worth)
        own, n_prompts = f.sign * self._mean(worth[self.near_rows]), self._prompts([f.key])
        some = self.stand_ins.of(i)
        # each in the direction of its own sign: nothing then sets the feature apart from them but what it is
        values = [self.random_features[key].sign * self._mean(self.random[key]) for key in some]
        latents = self._latents(own, values, [f.key], [[key] for key in some])
        turned = [f.sign * self._mean(self.turned[d, f.key]) for d in range(self.settings.controls)]
        directions = Range.of(own, turned, n_prompts=n_prompts)
        said, why = verdict(target.reward, f.sign, target.n_prompts, self.floor, latents, directions)
        return FeatureEffect(
            sae=f.sae, latent=f.latent, sign=f.sign, score=f.score, label=f.label, target=target, others=others,
            difference=difference(self.sides, [s.drawn(s.both(worth).mean(1)) for s in self.sides]),
            random_latents=latents, random_directions=directions, steered=response.steered, doses=response.doses,
            monotone=response.monotone, verdict=said, why=why,
        )  # fmt: skip

    def _contributions(self, some: Sequence[Feature], worth: Floats) -> tuple[Contribution, Contribution | None]:
        found = [self._contribution(self.whole, side, worth, [f.key for f in some]) for side in self.sides]
        return found[0], found[1] if len(found) > 1 else None

    def _contribution(self, place: Ablations, side: Side, worth: Floats, keys: Sequence[Key]) -> Contribution:
        cheap = np.sum([place.recorded.attribution[key] for key in keys], axis=0)
        added, base, mine = (side.both(v) for v in (worth, place.recorded.rewards, place.fires(keys)))
        return Contribution(
            group=side.name, n_pairs=len(side.rows), n_firing=int(mine.sum()),
            n_prompts=len(np.unique(side.codes[mine.any(1)])), reward=side.mean(added.mean(1)),
            chosen=side.mean(added[:, 0]), rejected=side.mean(added[:, 1]), margin=side.mean(added[:, 0] - added[:, 1]),
            accuracy=side.mean(_wins(base) - _wins(base - added)), attribution=side.mean(side.both(cheap).mean(1)),
        )  # fmt: skip

    # ---- controls ----

    def _mean(self, worth: Floats) -> float:
        """Mean over the control pairs of what is added to rewards."""
        return float(self.side.both(worth).mean())

    def _margin(self, worth: Floats) -> float:
        added = self.side.both(worth)
        return float((added[:, 0] - added[:, 1]).mean())

    def _prompts(self, keys: Sequence[Key]) -> int:
        """Prompts of the control pairs in whose answers one of some latents fires."""
        return len(np.unique(self.side.codes[self.side.both(self.near.fires(keys)).any(1)]))

    def _latents(
        self, own: float, values: Sequence[float], keys: Sequence[Key], controls: Sequence[Sequence[Key]]
    ) -> Range:  # fmt: skip
        """The range of random latents, or of sets of them.

        What fires in too few prompts does not count: the feature does not either, so that those that count are alike.

        Args:
            own: what `keys` add; `values`: what each of `controls` adds.
        """
        kept = [i for i, some in enumerate(controls) if self._prompts(some) >= FEWEST_PROMPTS]
        mass = sum(self.stand_ins.mass.get(key, 0.0) for key in keys)
        masses = [sum(self.stand_ins.mass[key] for key in controls[i]) / mass for i in kept] if mass else None
        return Range.of(own, [values[i] for i in kept], masses, n_prompts=self._prompts(keys),
                        silent=len(controls) - len(kept))  # fmt: skip

    # ---- all at once ----

    def set_effect(self) -> SetEffect:
        """Of all features ablated together."""
        keys = [f.key for f in self.features]
        worth = self.whole.together(keys)
        target, others = self._contributions(self.features, worth)
        own, n_prompts = self._margin(worth[self.near_rows]), self._prompts(keys)
        sets = [list(some) for some in dict.fromkeys(tuple(sorted(members([one]))) for one in self.stand_ins.sets)]
        latents = self._latents(own, [self._margin(self.near.together(some)) for some in sets], keys, sets)
        turned = [self._margin(self.near.together(keys, turn)) for turn in self.turns[: self.settings.controls]]
        directions = Range.of(own, turned, n_prompts=n_prompts)
        said, why = verdict(target.margin, 1, target.n_prompts, self.floor, latents, directions)
        margins = [side.drawn(b[:, 0] - b[:, 1]) for side in self.sides for b in [side.both(worth)]]
        return SetEffect(
            n_features=len(keys), target=target, others=others, difference=difference(self.sides, margins),
            random_latents=latents, random_directions=directions, pool=len(self.random_features), verdict=said, why=why,
        )  # fmt: skip

    # ---- summaries ----

    def dose_rows(self) -> list[NDArray[np.int64]]:
        """Of each side, the pairs whose chosen answers are read with features raised: a sample."""
        return [side.some(self.settings.dose_pairs, self.settings.seed) for side in self.sides]

    def accuracy(self) -> dict[str, Estimate]:
        """Of the model as it is."""
        return {s.name: s.mean(_wins(s.both(self.whole.recorded.rewards))) for s in self.sides}

    def agreement(self) -> tuple[Estimate, Estimate]:
        """Spearman's correlation of attribution with ablation: over the features, and over the random latents."""
        return (self._agreement(self.whole, self.exact, self.sides[0]),
                self._agreement(self.near, self.random, self.side))  # fmt: skip

    def _agreement(self, place: Ablations, exact: Mapping[Key, Floats], side: Side) -> Estimate:
        if not exact:
            return Estimate.not_available("no controls were asked for")
        cheap, true = (np.stack([side.both(by[key]).mean(1) for key in exact], 1)
                       for by in (place.recorded.attribution, exact))  # fmt: skip
        return rank_agreement(cheap, true, side.codes, floor=self.floor, draws=self.settings.draws,
                              seed=self.settings.seed)  # fmt: skip

    def random_yes(self) -> Estimate:
        """Share of random latents whose effect has an interval wholly on the side of their own sign."""
        return self._yes([*self.random_features.values()], self.random, "no random latent fires often enough")

    def features_yes(self) -> Estimate:
        """The same of the features, in the same pairs."""
        worth = {key: one[self.near_rows] for key, one in self.exact.items()}
        return self._yes(self.features, worth, "no feature fires often enough")

    def _yes(self, some: Sequence[Feature], worth: Mapping[Key, Floats], none: str) -> Estimate:
        said = []
        for f in some:
            found = self._contribution(self.near, self.side, worth[f.key], [f.key])
            if found.n_prompts >= FEWEST_PROMPTS and found.reward.low is not None and found.reward.high is not None:
                least = min(f.sign * found.reward.low, f.sign * found.reward.high)
                said.append(least > 0 and abs(found.reward.value or 0.0) > self.floor)
        if not said:
            return Estimate.not_available(none)
        return bootstrap_by_cluster(np.asarray(said, np.float64), np.arange(len(said)), seed=self.settings.seed)


def _sides(pairs: Pairs, group: str, settings: Settings) -> list[Side]:
    of_group = np.asarray([p.group == group for p in pairs])
    prompts = [p.prompt_key for p in pairs]
    rest = [g for g in pairs.groups if g != group]
    names = [group, *([rest[0] if len(rest) == 1 else "others"] if rest else [])]
    rows = [np.flatnonzero(of_group), np.flatnonzero(~of_group)]
    return [Side(name, at, prompts, settings.draws, settings.seed + i)
            for i, (name, at) in enumerate(zip(names, rows, strict=False))]  # fmt: skip


def _wins(rewards: Floats) -> Floats:
    """Of [pairs, 2]: 1 where the chosen answer gets more, one half for a tie."""
    wins: Floats = (np.sign(rewards[:, 0] - rewards[:, 1]) + 1.0) / 2.0
    return wins
