"""Pushes: known steps added to activations; and the controls that effects are held against.

Ablating what is known to fire is adding a known step, so the activations need not be encoded again, and texts in which
nothing fires need not be read again: their effect is exactly 0. Controls are random latents of like activation mass
and random directions: the same step, of the same size at the same positions, turned at random.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from seamark.diagnose.attribution import Floats, Key, Recorded
from seamark.diagnose.steering import Suite
from seamark.errors import DataError, ModelError
from seamark.features.contrast import Normalization, contrast
from seamark.features.reading import Scan
from seamark.features.sets import Feature, FeatureSet
from seamark.model.batching import Batch, collate, plan_batches
from seamark.model.loading import RewardModel
from seamark.model.reading import Change, Reader, apply_at
from seamark.run import progress
from seamark.text.rendering import Rendered

Step = tuple[str, NDArray[np.int64], Tensor]
"""(hookpoint, tokens [n], what is added there [n, d])."""
Turned = Mapping[Key, Tensor]
"""{latent: the random direction [d] in place of its decoder direction}."""
Push = Callable[[int], Sequence[Step]]
"""What is added to a text, by its row."""
NEAREST = 50
"""Latents of nearest activation mass among which those that stand for a feature are drawn."""


class Pusher:
    """Reads rewards of texts with pushes; texts of one batch may be pushed differently.

    Attributes:
        passes: texts read so far.
    """

    def __init__(
        self, model: RewardModel, texts: Sequence[Rendered], hookpoints: Sequence[str], batch_tokens: int = 8192
    ) -> None:
        self.model, self.texts, self.hookpoints = model, texts, tuple(dict.fromkeys(hookpoints))
        self.batch_tokens, self.passes = batch_tokens, 0

    def rewards(self, items: Sequence[tuple[int, Push]], title: str) -> Floats:
        """Rewards [items] of texts (row, push). `ModelError` where one is not finite."""
        out = np.full(len(items), np.nan)
        now: list[Sequence[Step]] = []
        plans = plan_batches([len(self.texts[row]) for row, _ in items], self.batch_tokens)
        changes = {name: _adding(name, now) for name in self.hookpoints}
        pad = int(self.model.config.pad_token_id)
        with (
            apply_at(self.model, changes),
            Reader(self.model, [], with_output=True) as read,
            progress(title, len(items), "texts") as advance,
        ):
            for plan in plans:
                now[:] = [items[i][1](items[i][0]) for i in plan]
                rewards = read(collate(self.texts, pad, rows=[items[i][0] for i in plan])).rewards
                assert rewards is not None  # noqa: S101  (with_output gives them)
                out[plan] = rewards.double().cpu().numpy()
                advance(len(plan))
        self.passes += len(items)
        if len(bad := np.flatnonzero(~np.isfinite(out))):
            raise ModelError("a reward is not finite", where=self.texts[items[bad[0]][0]].text_id,
                             fix="Push less far, or load the model in float32")  # fmt: skip
        return out


def _adding(hookpoint: str, now: list[Sequence[Step]]) -> Change:
    def change(h_BTD: Tensor, _batch: Batch) -> Tensor:
        steps = [(b, at, step) for b, some in enumerate(now) for place, at, step in some if place == hookpoint]
        if not steps:
            return h_BTD
        out_BTD = h_BTD.clone()
        for b, at, step_ND in steps:
            out_BTD[b, torch.from_numpy(at).to(h_BTD.device)] += step_ND.to(h_BTD)
        return out_BTD

    return change


def ablation(recorded: Recorded, suite: Suite, keys: Sequence[Key], turned: Turned | None = None) -> Push:
    """Latents do not fire: each one's firings are taken out along its decoder direction.

    Args:
        turned: random directions of equal norm that stand for those of the latents.
    """
    directions = {key: _direction(suite, key, turned) for key in keys}

    def push(row: int) -> list[Step]:
        found = []
        for key, direction_D in directions.items():
            at, size = recorded.fired[key].at(row)
            if len(at):
                found.append((suite[key[0]].config.hookpoint, at, -size[:, None] * direction_D))
        return found

    return push


def raising(recorded: Recorded, suite: Suite, key: Key, value: float, turned: Turned | None = None
            ) -> Push:  # fmt: skip
    """`value` is added to a latent, firing or not, at all positions that were looked at."""
    direction_D = value * _direction(suite, key, turned)
    place = suite[key[0]].config.hookpoint

    def push(row: int) -> list[Step]:
        return [(place, recorded.positions[row], recorded.scale[key[0]][row][:, None] * direction_D)]

    return push


def _direction(suite: Suite, key: Key, turned: Turned | None) -> Tensor:
    return suite[key[0]].W_dec.detach()[key[1]].float().cpu() if turned is None else turned[key]


def rotations(suite: Suite, keys: Sequence[Key], seed: int) -> dict[Key, Tensor]:
    """Decoder directions [d] of latents after a random rotation: norms and angles stay, directions are random.

    Latents of one hookpoint are turned alike. Only they are turned, no matrix [d, d] is made: of their directions
    W = Q R, the orthonormal Q gives way to a random frame, which a rotation of all space would do to it as well.
    """
    generator = torch.Generator().manual_seed(seed)
    places: dict[str, list[Key]] = {}
    for key in dict.fromkeys(keys):
        places.setdefault(suite[key[0]].config.hookpoint, []).append(key)
    found: dict[Key, Tensor] = {}
    for mine in places.values():
        w_DK = torch.stack([_direction(suite, key, None) for key in mine], 1).double()
        r_MK = torch.linalg.qr(w_DK)[1]
        frame_DM, r = torch.linalg.qr(torch.randn(len(w_DK), len(r_MK), generator=generator, dtype=torch.float64))
        turned_KD = ((frame_DM * r.diagonal().sign()) @ r_MK).T.float().contiguous()  # uniform over all frames
        found |= dict(zip(mine, turned_KD, strict=True))
    return found


@dataclass(frozen=True)
class StandIns:
    """Random latents that stand for features.

    Attributes:
        sets: each holds one latent for each feature, in the order of the features, none twice. As many sets as were
            drawn; a feature gets another latent in each, as long as there are others.
        mass: activation mass of every latent in them and of the features.
    """

    sets: tuple[FeatureSet, ...]
    mass: Mapping[Key, float]

    def of(self, place: int) -> list[Key]:
        """The distinct latents that stand for the feature at this place."""
        return list(dict.fromkeys(one.features[place].key for one in self.sets))


def stand_ins(scan: Scan, features: FeatureSet, group: str, draws: int, seed: int) -> StandIns:
    """`draws` sets of random latents of like activation mass.

    Each feature's latents are drawn without replacement among the `NEAREST` whose mass h⁺ + h⁻ is nearest in ratio (a
    quarter more than `draws`, where those are more), none of them a feature. What one set already took is left out
    there, and the next nearest takes its place; features of large mass choose first, since they have few equals. Where
    an autoencoder has too few live latents, some are drawn again: `of` tells the distinct ones. Each has the sign of
    its own contrastive score, as if it had been chosen.

    Features of like mass draw from the same latents, so that what is measured of one latent serves them all.

    Raises:
        DataError: the scan has no such group; too few latents fire; no such latent.
        ConfigError: the scan knows no such autoencoder.
    """
    if not draws:
        return StandIns((), {})
    normalization: Normalization = "paper" if scan.config["scope"] == "all" else "default"
    drawn: dict[Key, list[Feature]] = {}
    masses: dict[Key, float] = {}
    for sae_id in dict.fromkeys(f.sae for f in features.features):
        scores = contrast(scan, group, sae_id, normalization)
        mine = features.latents(sae_id)
        for latent in mine:
            scan.check_latent(sae_id, latent)
        mass = scores.chosen + scores.rejected
        live = (mass > 0) & (scores.scores != 0)  # of a score of 0 there is no sign
        live[mine] = False
        if (n := int(live.sum())) < len(mine):
            raise DataError(f"only {n} other latents fire, too few to replace {len(mine)} features", where=sae_id,
                            fix="Use fewer features or a larger autoencoder")  # fmt: skip
        for latent, some in _drawn(mass, mine, np.flatnonzero(live), draws, seed).items():
            drawn[sae_id, latent] = [
                Feature(sae=sae_id, latent=i, sign=1 if scores.scores[i] > 0 else -1, score=float(scores.scores[i]),
                        why=f"drawn in place of {sae_id}/{latent}") for i in some
            ]  # fmt: skip
            masses |= {(sae_id, i): float(mass[i]) for i in (latent, *some)}
    sets = tuple(FeatureSet(features=tuple(drawn[f.key][d] for f in features.features)) for d in range(draws))
    return StandIns(sets, masses)


def _drawn(
    mass: Floats, latents: Sequence[int], live: NDArray[np.int64], draws: int, seed: int
) -> dict[int, list[int]]:  # fmt: skip
    """{latent: one of `live` for each draw}; no draw takes one twice."""
    chance = np.random.default_rng(seed)
    log_mass = np.log(np.maximum(mass, np.finfo(np.float64).tiny))
    width = max(NEAREST, math.ceil(1.25 * draws))
    found: dict[int, list[int]] = {i: [] for i in sorted(latents, key=lambda i: (-mass[i], i))}
    most = width + draws + len(found)  # no draw can get further than that
    nearest = {i: live[np.lexsort((live, np.abs(log_mass[live] - log_mass[i])))[:most]] for i in found}
    for _ in range(draws):
        taken: list[int] = []
        for latent, before in found.items():
            free = nearest[latent][~np.isin(nearest[latent], taken)]
            unused = free[~np.isin(free, before)]
            some = unused[: max(width - len(before), 1)] if len(unused) else free[:width]
            before.append(int(chance.choice(some)))
            taken.append(before[-1])
    return found


def members(sets: Sequence[FeatureSet]) -> dict[Key, Feature]:
    """Every latent of some sets, once."""
    return {f.key: f for one in sets for f in one.features}
