"""Evaluating a reward model: how often it ranks a pair as its label does, by group and category."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from seamark.model.loading import RewardModel
from seamark.model.precision import Precision
from seamark.stats import Estimate, bootstrap_by_cluster, cluster_codes
from seamark.text.pairs import Pairs
from seamark.text.rows import text_of

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Evaluation:
    """Rewards of n pairs and what follows from them.

    Accuracies are shares 0-1; a tie counts one half. Intervals resample prompts, not rows.
    """

    ids: tuple[str, ...]
    groups: tuple[str, ...]
    categories: tuple[str, ...]
    prompts: tuple[str, ...]
    """Hash of each pair's prompt: the unit of resampling."""
    chosen: Floats
    """[n] rewards of the chosen responses."""
    rejected: Floats
    """[n] rewards of the rejected responses."""
    longer: Floats
    """[n] 1 where the chosen response has more characters, ½ where both have as many, else 0."""
    truncated_texts: int

    @property
    def margins(self) -> Floats:
        """[n] reward of the chosen minus reward of the rejected response."""
        return self.chosen - self.rejected

    @property
    def correct(self) -> Floats:
        """[n] 1, ½ (tie) or 0."""
        return _wins(self.margins)

    def accuracy(self, group: str | None = None, category: str | None = None) -> Estimate:
        """Accuracy over all pairs, a group, or a category of a group."""
        return self._mean(self.correct, group, category)

    def longer_wins(self, group: str | None = None, category: str | None = None) -> Estimate:
        """Accuracy of preferring the longer response: the baseline beside every accuracy."""
        return self._mean(self.longer, group, category)

    def cells(self) -> list[tuple[str, str]]:
        """Every (group, category) there is, by first appearance."""
        return list(dict.fromkeys(zip(self.groups, self.categories, strict=True)))

    def _mean(self, values: Floats, group: str | None, category: str | None) -> Estimate:
        rows = [
            i
            for i in range(len(self.ids))
            if group in (None, self.groups[i]) and category in (None, self.categories[i])
        ]
        if not rows:
            return Estimate.not_available("no pairs")
        return bootstrap_by_cluster(values[rows], cluster_codes([self.prompts[i] for i in rows]))

    def to_json(self) -> dict[str, Any]:
        """Accuracies and baselines by group and by category, and the mean margin by group."""
        of_group = np.asarray(self.groups)
        return {
            "n": len(self.ids),
            "truncated_texts": self.truncated_texts,
            "accuracy": self.accuracy().model_dump(),
            "groups": {
                g: {
                    "accuracy": self.accuracy(g).model_dump(),
                    "longer_wins": self.longer_wins(g).model_dump(),
                    "mean_margin": float(self.margins[of_group == g].mean()),
                }
                for g in dict.fromkeys(self.groups)
            },
            "categories": [
                {
                    "group": g,
                    "category": c,
                    "accuracy": self.accuracy(g, c).model_dump(),
                    "longer_wins": self.longer_wins(g, c).model_dump(),
                }
                for g, c in self.cells()
            ],
        }


def _wins(difference: Floats) -> Floats:
    return (np.sign(difference) + 1.0) / 2.0


def evaluate(
    model: RewardModel,
    pairs: Pairs,
    *,
    max_length: int | None = None,
    batch_tokens: int = 8192,
    precision: Precision = "fp32",
) -> Evaluation:
    """Rewards of both sides of every pair.

    Args:
        model: the reward model.
        pairs: labelled pairs.
        max_length: tokens of a text, as in training.
        batch_tokens: padded tokens in a batch.
        precision: as in `RewardModel.rewards`.

    Raises:
        ModelError: a reward is not finite.
    """
    renderer = model.renderer(max_length)
    sides = [r for pair in pairs for r in renderer.render_pair(pair)]
    rewards = model.rewards(sides, batch_tokens, precision=precision)
    lengths = np.asarray([len(text_of(side)) for p in pairs for side in (p.chosen, p.rejected)], dtype=np.float64)
    return Evaluation(
        ids=tuple(p.id for p in pairs),
        groups=tuple(p.group for p in pairs),
        categories=tuple(p.category for p in pairs),
        prompts=tuple(p.prompt_key for p in pairs),
        chosen=rewards[0::2],
        rejected=rewards[1::2],
        longer=_wins(lengths[0::2] - lengths[1::2]),
        truncated_texts=renderer.truncated_texts,
    )
