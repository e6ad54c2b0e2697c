"""What `causal_effects` found, the rule of its verdict, and the rows it leaves in an atlas."""

from __future__ import annotations

import datetime
import math
from collections.abc import Iterable, Iterator, Sequence
from os import PathLike
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from seamark.atlas.records import Run
from seamark.atlas.rows import EvidenceRow
from seamark.atlas.sources import Known
from seamark.atlas.store import Atlas
from seamark.atlas.writing import AtlasWriter
from seamark.diagnose.attribution import Tokens
from seamark.diagnose.labels import match_saes
from seamark.diagnose.steering import Suite
from seamark.errors import ConfigError
from seamark.run import digest
from seamark.stats import Estimate

Verdict = Literal["yes", "no", "not available"]
FEWEST_PROMPTS = 5
"""Prompts in whose answers a feature must fire before there is a verdict."""
ROUNDING = 1e-5
"""Effects below this share of the rewards' standard deviation are rounding."""
LEVEL = 0.025
"""A latent like any other may do more than the controls' limit with this chance at most, where controls are enough."""
ENOUGH = 39
"""Controls for that level: the largest of them is then exceeded with a chance of 1 / 40."""
RULE = (
    "yes: what the feature's firing adds to the reward of the target group's answers (reward − reward without it) has "
    "a 95 % interval by prompt that lies wholly on the side of its sign, and in the direction of that sign it exceeds, "
    "in the same pairs, the limit of both controls: random latents of like activation mass, and random directions of "
    "equal norm at the same positions. The limit is the k-th largest of n distinct controls, k = 2.5 % of n + 1 "
    "rounded down, at least 1: a latent like any other exceeds it with a chance of k / (n + 1), which is more than "
    "2.5 % where n is below 39. not available: it fires in answers to fewer than 5 prompts, or there is no interval or "
    "no control. no: everything else."
)


class Record(BaseModel):
    model_config = ConfigDict(frozen=True, protected_namespaces=())


class Contribution(Record):
    """What firing adds in the pairs of one group: with it − without it. Intervals resample prompts."""

    group: str
    n_pairs: int
    n_firing: int
    """Answers in which it fires."""
    n_prompts: int
    """Prompts of those answers."""
    reward: Estimate
    """Mean over both answers of every pair."""
    chosen: Estimate
    rejected: Estimate
    margin: Estimate
    """r(chosen) − r(rejected)."""
    accuracy: Estimate
    """Share of pairs whose chosen answer gets the higher reward; a tie counts one half."""
    attribution: Estimate
    """The cheap estimate of `reward`, from gradients."""


class Range(Record):
    """What controls do in the same place. All signs are the feature's: + is the direction of its sign, whatever the
    sign of a random latent's own contrast."""

    n: int
    """Distinct controls."""
    low: float | None = None
    """The k-th smallest, k as of `high`."""
    high: float | None = None
    """The limit: the k-th largest, k = 2.5 % of n + 1 rounded down, at least 1."""
    level: float | None = None
    """k / (n + 1): the chance that a latent like any other exceeds `high`."""
    mean: float | None = None
    own: float | None = None
    """What the feature adds in the same pairs."""
    mass: float | None = None
    """Of random latents: median of their activation mass / the feature's; None: it has none."""
    reason: str = ""

    @classmethod
    def of(cls, own: float, controls: Sequence[float], mass: float | None = None) -> Range:
        """From what the feature and distinct controls add; without any, not available."""
        n = len(controls)
        if not n:
            return cls(n=0, reason="no controls were asked for")
        ordered, rank = sorted(controls), max(1, math.floor(LEVEL * (n + 1) + 1e-9))
        return cls(n=n, low=ordered[rank - 1], high=ordered[-rank], level=rank / (n + 1), mean=sum(ordered) / n,
                   own=own, mass=mass)  # fmt: skip


class Dose(Record):
    amount: float
    """In units of Q_f."""
    target: Estimate
    """Mean change of the chosen answers' rewards."""


class Steered(Record):
    """Raised by one Q_f: mean change of the chosen answers' rewards."""

    target: Estimate
    others: Estimate
    difference: Estimate
    """Target − others."""


class FeatureEffect(Record):
    """One feature."""

    sae: str
    latent: int
    sign: Literal[1, -1]
    score: float | None
    label: str
    target: Contribution
    others: Contribution | None
    difference: Estimate
    """What it adds to rewards of the target group − of the others."""
    random_latents: Range
    random_directions: Range
    steered: Steered
    doses: tuple[Dose, ...]
    monotone: Estimate
    """Spearman's correlation of amount and mean response, 0 included; the interval resamples prompts."""
    verdict: Verdict
    why: str


class SetEffect(Record):
    """All features ablated at once; the verdict is about the margin."""

    n_features: int
    target: Contribution
    others: Contribution | None
    difference: Estimate
    """What it adds to margins of the target group − of the others."""
    random_latents: Range
    random_directions: Range
    verdict: Verdict
    why: str


PooledKind = Literal["features", "random latents", "random directions"]


class Pooled(Record):
    """Features, or controls, raised by one Q_f each: means over them, with intervals over them and prompts together.

    Random latents count in the direction of their own sign, as if their contrast had chosen them; random directions in
    that of the feature whose step was turned.
    """

    kind: PooledKind
    n: int
    target: Estimate
    """Mean change of the chosen answers' rewards in the direction of the sign."""
    others: Estimate
    difference: Estimate
    size: Estimate
    """Mean over features of |mean change| in the target group: what any direction does."""


class Passes(Record):
    """Texts that were read."""

    run: int
    saved: int
    """Texts that ablations left out because nothing that is ablated fires in them: their effect is exactly 0."""
    blocks: int
    blocks_skipped: int
    """Lowest blocks of the model, read once for everything."""


class CausalReport(Record):
    """Causal evidence for a feature set of a reward model."""

    model: str
    group: str
    others: tuple[str, ...]
    where: Tokens
    n_pairs: dict[str, int]
    reward_std: float
    """Standard deviation of all rewards: the measure for effects."""
    accuracy: dict[str, Estimate]
    """Of the model as it is, by target and others."""
    features: tuple[FeatureEffect, ...]
    together: SetEffect
    agreement: Estimate
    """Spearman's correlation of attribution with ablation over the features; resamples features and prompts."""
    agreement_random: Estimate
    """The same over the random latents."""
    random_yes: Estimate
    """Share of the random latents whose own interval lies wholly on the side of their own sign: what the first half of
    the rule says of latents that nobody chose."""
    pooled: tuple[Pooled, ...]
    controls: int
    control_pairs: int
    """Pairs of the target group that controls are measured on."""
    dose_pairs: dict[str, int]
    seen_pairs: dict[str, int]
    """Of `n_pairs`: those that the scan read in which the features were found, by their ids."""
    truncated_texts: int
    caveats: tuple[str, ...]
    """What to bear in mind."""
    passes: Passes
    seed: int
    rule: str = RULE
    key: str
    """Digest of model, autoencoders, features, pairs, settings and the units of what is raised."""

    @property
    def verdicts(self) -> dict[Verdict, int]:
        """How many features got which verdict."""
        found: dict[Verdict, int] = {"yes": 0, "no": 0, "not available": 0}
        for f in self.features:
            found[f.verdict] += 1
        return found


def verdict(
    effect: Estimate, sign: int, prompts: int, floor: float, latents: Range, directions: Range
) -> tuple[Verdict, str]:  # fmt: skip
    """`RULE` for one effect, and why. `floor`: effects up to it are rounding."""
    missing = next((r.reason or "no controls" for r in (latents, directions) if r.high is None), "")
    for problem in (
        f"fires in answers to {prompts} prompts, fewer than {FEWEST_PROMPTS}" if prompts < FEWEST_PROMPTS else "",
        effect.reason if effect.low is None else "",
        missing,
    ):
        if problem:
            return "not available", problem
    assert effect.value is not None and effect.low is not None and effect.high is not None  # noqa: S101, PT018
    assert latents.high is not None and latents.own is not None  # noqa: S101, PT018
    assert directions.high is not None and directions.own is not None  # noqa: S101, PT018
    size, least = sign * effect.value, min(sign * effect.low, sign * effect.high)
    numbers = f"{size:+.3g} in its direction, at least {least:+.3g}"
    limits = (f"{latents.own:+.3g} where random latents reach {latents.high:+.3g} (of {latents.n}), directions "
              f"{directions.high:+.3g} (of {directions.n})")  # fmt: skip
    if abs(effect.value) <= floor:
        return "no", "moves nothing"
    if least <= 0:
        against = max(sign * effect.low, sign * effect.high) < 0
        return "no", f"{'acts against its sign' if against else 'the interval holds 0'}: {numbers}"
    if latents.own <= latents.high or directions.own <= directions.high:
        return "no", f"no more than controls: {numbers}; {limits}"
    return "yes", f"{numbers}; {limits}"


def control_caveats(features: Sequence[FeatureEffect], together: SetEffect) -> tuple[str, ...]:
    """Sentences on controls that are fewer, or of other mass, than the rule would have them."""
    effects: list[FeatureEffect | SetEffect] = [*features, together]
    ranges = [r for f in effects for r in (f.random_latents, f.random_directions) if r.level is not None]
    fewest = min((r.n for r in ranges), default=ENOUGH)
    found = []
    if fewest < ENOUGH:
        found.append(f"The level is coarser than {100 * LEVEL:g} % where controls are fewer than {ENOUGH}: there are "
                     f"as few as {fewest}, and a latent like any other does more than all of those with a chance of "
                     f"{100 / (fewest + 1):.1f} %.")  # fmt: skip
    unlike = [f for f in features if f.random_latents.mass is not None and not 0.5 <= f.random_latents.mass <= 2]
    if unlike:
        found.append(f"{len(unlike)} of {len(features)} features have more than twice, or less than half, the "
                     f"activation mass of the random latents that stand for them: few fire like them.")  # fmt: skip
    return tuple(found)


def atlas_names(atlas: Atlas, suite: Suite, saes: Iterable[str]) -> dict[str, str]:
    """{sae id: its id in the atlas}. `ConfigError` where one of `saes` is not in it, or another of its name."""
    names = match_saes(atlas, suite)
    if missing := [sae for sae in saes if sae not in names]:
        raise ConfigError(f"the atlas does not know the autoencoder {missing[0]!r}", where=str(atlas.path),
                          fix="Build the atlas from a scan with it")  # fmt: skip
    return names


def write_evidence(path: str | PathLike[str], report: CausalReport, suite: Suite) -> int:
    """Write the report's findings into an atlas, as `evidence` of its features; the number of rows.

    Kinds: causal_evidence (1 yes, 0 no, none: not available, with why), causal_effect (what firing adds to rewards of
    the target group), causal_margin, causal_accuracy, causal_difference (target − others), attribution, steer_effect
    and steer_difference (raised by one Q_f), dose_monotonicity. The same report again changes nothing.

    Raises:
        ConfigError: no such atlas; one of the autoencoders is not in it, or another of its name.
    """
    with AtlasWriter.open(path) as writer:
        names = atlas_names(writer, suite, [f.sae for f in report.features])
        known, n = Known(writer), 0
        with writer.transaction():
            writer.add_run(_run(report))
            for name in dict.fromkeys(names.values()):
                known.add({name: [f.latent for f in report.features if names[f.sae] == name]})
            for f in report.features:
                rows = [EvidenceRow(known.id((names[f.sae], f.latent)), kind, found, report.key)
                        for kind, found in _evidence(f)]  # fmt: skip
                writer.add_evidence(rows)
                n += len(rows)
    return n


def _run(report: CausalReport) -> Run:
    about: dict[str, Any] = report.model_dump(mode="json", include={
        "model", "group", "others", "where", "n_pairs", "seen_pairs", "controls", "rule", "agreement",
        "agreement_random", "seed", "caveats",
    })  # fmt: skip
    created = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    return Run(id=report.key, kind="causal", title=f"Causal evidence on {report.group}", created=created,
               manifest=about | {"complete": True})  # fmt: skip


def _evidence(f: FeatureEffect) -> Iterator[tuple[str, Estimate]]:
    said = {"yes": 1.0, "no": 0.0, "not available": None}[f.verdict]
    yield "causal_evidence", Estimate(value=said, n=f.target.n_pairs, reason=f.why)
    yield "causal_effect", f.target.reward
    yield "causal_margin", f.target.margin
    yield "causal_accuracy", f.target.accuracy
    yield "causal_difference", f.difference
    yield "attribution", f.target.attribution
    yield "steer_effect", f.steered.target
    yield "steer_difference", f.steered.difference
    yield "dose_monotonicity", f.monotone


def key_of(**about: Any) -> str:
    """Digest of what decides a report."""
    return digest({"causal": 2, **about})
