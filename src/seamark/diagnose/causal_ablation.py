"""Exact ablations in some texts: what the firing of latents adds to the reward of each.

Only texts in which something fires are read again. Controls need a few of the pairs only, so their firings, gradients
and effects are kept for those alone.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from seamark.diagnose.attribution import Floats, Key, Tokens, record
from seamark.diagnose.causal_controls import Push, Pusher, Turned, ablation
from seamark.diagnose.steering import Intervention, Suite, changes
from seamark.model.loading import RewardModel
from seamark.model.reading import apply_at
from seamark.text.rendering import Rendered

K = TypeVar("K", bound=Hashable)


class Ablations:
    """Some texts, what one pass over them gave, and ablations there. Reads the texts, forward and back.

    Args:
        keys: all latents that will be ablated.
        where: tokens at which they count.

    Attributes:
        recorded: the first pass.
        pusher: reads these texts with pushes.
        saved: texts that ablations left out because nothing fires in them.

    Raises:
        DataError: no text has such a token; a gradient that is not finite.
        ModelError: no such hookpoint; a reward that is not finite.
    """

    def __init__(
        self, model: RewardModel, suite: Suite, keys: Sequence[Key], texts: Sequence[Rendered], where: Tokens,
        batch_tokens: int,
    ) -> None:  # fmt: skip
        self.model, self.suite, self.texts, self.where, self.batch_tokens = model, suite, texts, where, batch_tokens
        latents: dict[str, list[int]] = {}
        for sae_id, latent in dict.fromkeys(keys):
            latents.setdefault(sae_id, []).append(latent)
        self.recorded = record(model, suite, latents, texts, where=where, batch_tokens=batch_tokens)
        self.pusher = Pusher(model, texts, [suite[i].config.hookpoint for i in latents], batch_tokens)
        self.saved = self._encoded = 0

    @property
    def passes(self) -> int:
        """Texts read so far."""
        return len(self.texts) + self.pusher.passes + self._encoded

    def each(self, title: str, asked: Mapping[K, tuple[Key, Turned | None]]) -> dict[K, Floats]:
        """{name: what a latent's firing adds to the reward of each text [texts]}."""
        items: list[tuple[int, Push]] = []
        for key, turned in asked.values():
            push, rows = ablation(self.recorded, self.suite, [key], turned), self._rows([key])
            items += [(int(row), push) for row in rows]
            self.saved += len(self.texts) - len(rows)
        rewards = self.pusher.rewards(items, title)
        found, start = {}, 0
        for name, (key, _) in asked.items():
            rows = self._rows([key])
            found[name] = self._worth(rows, rewards[start : start + len(rows)])
            start += len(rows)
        return found

    def together(self, keys: Sequence[Key], turned: Turned | None = None) -> Floats:
        """What the firing of latents together adds to the reward of each text, [texts].

        Where an earlier hookpoint is ablated a later one fires otherwise, so its activations are encoded again. With
        directions turned there is nothing to encode: steps are those of the first pass.
        """
        rows = self._rows(keys)
        self.saved += len(self.texts) - len(rows)
        if turned is not None or len({self.suite[sae_id].config.hookpoint for sae_id, _ in keys}) == 1:
            push = ablation(self.recorded, self.suite, keys, turned)
            return self._worth(rows, self.pusher.rewards([(int(row), push) for row in rows], "Ablation of a set"))
        some = [self.texts[row] for row in rows]
        asked = [Intervention(sae=s, latent=i, action="ablate", where=self.where) for s, i in keys]
        with apply_at(self.model, changes(self.model, self.suite, asked, None, some)):
            after = self.model.rewards(some, self.batch_tokens)
        self._encoded += len(some)
        return self._worth(rows, after)

    def fires(self, keys: Sequence[Key]) -> Floats:
        """[texts]: 1 where one of the latents fires, else 0."""
        found = np.zeros(len(self.texts))
        found[self._rows(keys)] = 1.0
        return found

    def _rows(self, keys: Sequence[Key]) -> NDArray[np.int64]:
        return np.unique(np.concatenate([self.recorded.fired[key].rows for key in keys]))

    def _worth(self, rows: NDArray[np.int64], after: Floats) -> Floats:
        worth = np.zeros(len(self.texts))
        worth[rows] = self.recorded.rewards[rows] - after
        return worth
