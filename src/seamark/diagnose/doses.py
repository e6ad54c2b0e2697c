"""Features raised by multiples of Q_f: dose-response curves, and the target group against the others.

SAFER (arXiv 2507.00665) raises one latent of a reward model: +1.04 on the chosen answers of safety pairs, +0.02 on
those of chat pairs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from seamark.diagnose.attribution import Floats, Key, Recorded, spearman
from seamark.diagnose.causal_controls import Push, Pusher, Turned, raising
from seamark.diagnose.causal_report import Dose, Pooled, PooledKind, Steered
from seamark.diagnose.resampled import NO_OTHERS, Side, difference
from seamark.diagnose.steering import Suite, Units
from seamark.diagnose.units import NO_UNIT, units_of
from seamark.features.sets import Feature, FeatureSet
from seamark.stats import Estimate

STEERED = 1.0
"""The amount, in units of Q_f, at which the target group is compared with the others."""


@dataclass(frozen=True)
class Response:
    """What raising one feature does."""

    steered: Steered
    doses: tuple[Dose, ...]
    monotone: Estimate


@dataclass(frozen=True, eq=False)
class Doses:
    """What is raised, by how much, and in which texts."""

    suite: Suite
    recorded: Recorded
    units: Units
    amounts: tuple[float, ...]
    sides: Sequence[Side]
    rows: Sequence[NDArray[np.int64]]
    """Of each side, which of its pairs are read; only chosen answers are."""
    pusher: Pusher
    seed: int
    floor: float
    """Changes up to this size are rounding."""

    def texts(self, side: int) -> NDArray[np.int64]:
        """Rows of the chosen answers that are read."""
        rows: NDArray[np.int64] = 2 * self.sides[side].rows[self.rows[side]]
        return rows

    def unit(self, key: Key) -> float:
        """Q_f, NaN where there is none."""
        return float(units_of(key[0], self.suite[key[0]], self.units)[key[1]])

    def response(self, asked: Sequence[tuple[Key, float, Turned | None]], title: str, sides: Sequence[int]
                 ) -> list[list[Floats]]:  # fmt: skip
        """Of each (latent, value, turned): by side, the change of each chosen answer's reward."""
        items: list[tuple[int, Push]] = []
        for key, value, turned in asked:
            push = raising(self.recorded, self.suite, key, value, turned)
            items += [(int(row), push) for side in sides for row in self.texts(side)]
        change = self.pusher.rewards(items, title) - self.recorded.rewards[[row for row, _ in items]]
        parts = iter(np.split(change, np.cumsum([len(self.rows[side]) for _ in asked for side in sides])[:-1]))
        return [[next(parts) for _ in sides] for _ in asked]


def steer(
    features: Sequence[Feature], stand_ins: Sequence[FeatureSet], turns: Sequence[Turned], doses: Doses
) -> tuple[dict[Key, Response], tuple[Pooled, ...]]:  # fmt: skip
    """Raise every feature by every amount, and random latents and directions by one Q_f.

    Args:
        stand_ins: sets of random latents, in the order of `features`.
        turns: as many rotations for random directions.
    """
    known = [f for f in features if np.isfinite(doses.unit(f.key))]
    if not len(doses.rows[0]):
        return {f.key: _silent("no pairs were asked for") for f in features}, ()
    if not known:
        return {f.key: _silent(NO_UNIT) for f in features}, ()
    both = list(range(len(doses.sides)))
    at_one = doses.response([(f.key, STEERED * doses.unit(f.key), None) for f in known], "Features raised", both)
    curve = {STEERED: [found[0] for found in at_one]}
    for amount in doses.amounts:
        if amount not in curve:
            asked = [(f.key, amount * doses.unit(f.key), None) for f in known]
            curve[amount] = [found[0] for found in doses.response(asked, f"Raised by {amount:g}", [0])]
    out = {f.key: _silent(NO_UNIT) for f in features}
    for i, f in enumerate(known):
        out[f.key] = _response(doses, at_one[i], {a: curve[a][i] for a in doses.amounts})
    pooled = [_pooled("features", doses, at_one, [f.sign for f in known])]
    others = [f for one in stand_ins for f in one.features if np.isfinite(doses.unit(f.key))]
    if others:
        found = doses.response([(f.key, STEERED * doses.unit(f.key), None) for f in others], "Random latents", both)
        pooled.append(_pooled("random latents", doses, found, [f.sign for f in others]))
    asked_turned = [(f.key, STEERED * doses.unit(f.key), turn) for turn in turns for f in known]
    if asked_turned:
        found = doses.response(asked_turned, "Random directions", both)
        pooled.append(_pooled("random directions", doses, found, [f.sign for _ in turns for f in known]))
    return out, tuple(pooled)


def _silent(reason: str) -> Response:
    none = Estimate.not_available(reason)
    return Response(Steered(target=none, others=none, difference=none), (), none)


def _response(doses: Doses, at_one: Sequence[Floats], curve: Mapping[float, Floats]) -> Response:
    drawn = [side.drawn(v, rows) for side, v, rows in zip(doses.sides, at_one, doses.rows, strict=True)]
    steered = Steered(
        target=doses.sides[0].estimate(drawn[0], len(at_one[0])),
        others=_others(doses, drawn),
        difference=difference(doses.sides, drawn),
    )  # fmt: skip
    target, rows = doses.sides[0], doses.rows[0]
    means = {a: target.drawn(v, rows) for a, v in sorted(curve.items())}
    found = tuple(Dose(amount=a, target=target.estimate(drawn, len(rows))) for a, drawn in means.items())
    return Response(steered, found, _monotone(target, means, len(rows), doses.floor))


def _others(doses: Doses, drawn: Sequence[Floats]) -> Estimate:
    if len(drawn) < 2:
        return Estimate.not_available(NO_OTHERS)
    return doses.sides[1].estimate(drawn[1], len(doses.rows[1]))


def _monotone(target: Side, means: Mapping[float, Floats], n: int, floor: float) -> Estimate:
    """Spearman's correlation of amount and mean response; at 0 the response is 0."""
    if len(means) < 2:
        return Estimate.not_available("fewer than two amounts")
    if all(abs(drawn[0]) <= floor for drawn in means.values()):
        return Estimate.not_available("no amount moves anything", n)
    amounts = np.asarray([0.0, *means])
    responses = np.stack([np.zeros(target.draws.times.shape[1]), *means.values()])
    found = np.asarray([spearman(amounts, column) for column in responses.T])
    return target.draws.estimate(found, n, "every amount does the same")


def _pooled(kind: PooledKind, doses: Doses, found: Sequence[Sequence[Floats]], signs: Sequence[int]) -> Pooled:
    """Means over features; every draw takes features and prompts with replacement."""
    n = len(found)
    rng = np.random.default_rng(doses.seed)
    width = doses.sides[0].draws.times.shape[1]
    some = np.concatenate([np.arange(n)[:, None], rng.integers(0, n, (n, width - 1))], axis=1)
    by_side = []
    for i, (side, rows) in enumerate(zip(doses.sides, doses.rows, strict=True)):
        means = np.stack([side.drawn(one[i], rows) for one in found])
        by_side.append(np.take_along_axis(means, some, 0))
    sign = np.asarray(signs)[some]
    signed = [(means * sign).mean(0) for means in by_side]
    target = doses.sides[0]
    n = len(doses.rows[0])
    return Pooled(
        kind=kind, n=len(found), target=target.estimate(signed[0], n),
        others=_others(doses, signed),
        difference=difference(doses.sides, signed),
        size=target.estimate(np.abs(by_side[0]).mean(0), n),
    )  # fmt: skip
