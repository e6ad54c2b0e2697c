"""What `causal_effects` found, the rule of its verdict, and the rows it leaves in an atlas."""

from __future__ import annotations

import datetime
import math
import statistics
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
LIKE_MASS = 1.5
"""Random latents are of like mass where the median of theirs and the feature's are within this factor."""
SMALL_POOL = 4
"""The level told for a whole set is too fine where its controls are made of fewer latents than so many times its
size."""
RULE = (
    "yes: what the feature's firing adds to the reward of the target group's answers (reward − reward without it) has "
    "a 95 % interval by prompt that lies wholly on the side of its sign, and in the direction of that sign it exceeds, "
    "in the control pairs, three limits: that of random latents of like activation mass, each in the direction of the "
    "sign of its own contrast; that of the same latents per unit of activation mass; and that of random directions of "
    "equal norm at the same positions, in the direction of the feature's sign. A limit is the k-th largest of n "
    "distinct controls, k = 2.5 % of n + 1 rounded down, at least 1: a latent like any other exceeds it with a chance "
    "of k / (n + 1), which is more than 2.5 % where n is below 39. Random latents count that fire in answers to 5 "
    "prompts of the control pairs. not available: the feature fires in answers to fewer than 5 prompts, of all pairs "
    "or of the control pairs; there is no interval, no control or no activation mass in the scan. no: everything else. "
    "The whole set is held, by margins and without signs, against sets of such latents; its level is about k / (n + 1)."
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
    """What controls do in the control pairs. + is the direction of a sign: of the feature's for the feature itself and
    for random directions, of its own contrast for each random latent. Margins of sets have no sign."""

    n: int
    """Distinct controls."""
    silent: int = 0
    """Random latents, or sets, left out: they fire in answers to too few prompts of the control pairs."""
    n_prompts: int = 0
    """Prompts of the control pairs in whose answers the feature fires."""
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
    limit_by_mass: float | None = None
    """Of random latents: the k-th largest of what each does × the feature's activation mass / its own."""
    reason: str = ""

    @classmethod
    def of(
        cls, own: float, controls: Sequence[float], masses: Sequence[float] | None = None, *, n_prompts: int = 0,
        silent: int = 0,
    ) -> Range:  # fmt: skip
        """From what the feature and distinct controls add; without any, not available.

        Args:
            masses: of each control, its activation mass / the feature's.
        """
        n = len(controls)
        if not n:
            none = f"none of {silent} controls fires in answers to {FEWEST_PROMPTS} prompts of the control pairs"
            return cls(n=0, silent=silent, n_prompts=n_prompts,
                       reason=none if silent else "no controls were asked for")  # fmt: skip
        ordered, rank = sorted(controls), max(1, math.floor(LEVEL * (n + 1) + 1e-9))
        by_mass = None if masses is None else sorted(v / m for v, m in zip(controls, masses, strict=True))
        return cls(n=n, silent=silent, n_prompts=n_prompts, low=ordered[rank - 1], high=ordered[-rank],
                   level=rank / (n + 1), mean=sum(ordered) / n, own=own,
                   mass=None if masses is None else statistics.median(masses),
                   limit_by_mass=None if by_mass is None else by_mass[-rank])  # fmt: skip


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
    """Of different sets of random latents. They share latents with one another, and none with the set, so that the
    level is about `level`; it is larger where `pool` is not many times `n_features`."""
    random_directions: Range
    pool: int
    """Distinct latents of those sets."""
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
    """Share of the random latents whose own interval, in the control pairs, lies wholly on the side of their own sign:
    what the first half of the rule says of latents that nobody chose."""
    features_yes: Estimate
    """The same of the features in the same pairs, which are fewer than the verdict's."""
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
    if problem := _missing(effect, prompts, latents, directions):
        return "not available", problem
    assert effect.value is not None and effect.low is not None and effect.high is not None  # noqa: S101, PT018
    assert latents.high is not None and latents.own is not None  # noqa: S101, PT018
    assert directions.high is not None and directions.own is not None  # noqa: S101, PT018
    assert latents.limit_by_mass is not None and latents.mass is not None  # noqa: S101, PT018
    size, least = sign * effect.value, min(sign * effect.low, sign * effect.high)
    numbers = f"{size:+.3g} in its direction, at least {least:+.3g}"
    limits = (f"{latents.own:+.3g} where random latents reach {latents.high:+.3g} (of {latents.n}) and, at its "
              f"activation mass, {latents.limit_by_mass:+.3g}, directions {directions.high:+.3g} (of {directions.n})"
              )  # fmt: skip
    if not of_like_mass(latents):
        limits += f"; no latents of like mass, the median has {latents.mass:.2g} times its own"
    if abs(effect.value) <= floor:
        return "no", "moves nothing"
    if least <= 0:
        against = max(sign * effect.low, sign * effect.high) < 0
        return "no", f"{'acts against its sign' if against else 'the interval holds 0'}: {numbers}"
    if latents.own <= latents.high or directions.own <= directions.high:
        return "no", f"no more than controls: {numbers}; {limits}"
    if latents.own <= latents.limit_by_mass:
        return "no", f"no more than random latents per unit of activation mass: {numbers}; {limits}"
    return "yes", f"{numbers}; {limits}"


def _missing(effect: Estimate, prompts: int, latents: Range, directions: Range) -> str:
    """Why there can be no verdict; empty where there can be one."""
    if prompts < FEWEST_PROMPTS:
        return f"fires in answers to {prompts} prompts, fewer than {FEWEST_PROMPTS}"
    if effect.low is None:
        return effect.reason
    if latents.n_prompts < FEWEST_PROMPTS:
        return (f"fires in answers to {latents.n_prompts} prompts of the control pairs, fewer than {FEWEST_PROMPTS}: "
                f"ask for more of those")  # fmt: skip
    for found in (latents, directions):
        if found.high is None:
            return found.reason or "no controls"
    return "has no activation mass in the scan" if latents.limit_by_mass is None else ""


def of_like_mass(latents: Range) -> bool:
    """Whether the median of random latents is near what they stand for; so it is where that has no mass."""
    return latents.mass is None or 1 / LIKE_MASS <= latents.mass <= LIKE_MASS


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
    if unlike := sum(not of_like_mass(f.random_latents) for f in features):
        found.append(f"{unlike} of {len(features)} features have no random latents of like activation mass: the median "
                     f"of those that stand for them has less than 2/3 or more than 3/2 of theirs. There only the limit "
                     f"per unit of mass compares like with like.")  # fmt: skip
    if together.random_latents.n and together.pool < SMALL_POOL * together.n_features:
        found.append(f"The sets that the whole set is held against are made of {together.pool} latents for "
                     f"{together.n_features} features: they are more like each other than the set is like them, and "
                     f"its level is coarser than told.")  # fmt: skip
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
    return digest({"causal": 3, **about})
