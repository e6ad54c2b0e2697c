"""What `causal_effects` found, the rule of its verdict, and the rows it leaves in an atlas."""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Iterator
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
RULE = (
    "yes: what the feature's firing adds to the reward of the target group's answers (reward − reward without it) has "
    "a 95 % interval by prompt that lies wholly on the side of its sign, and in that direction it exceeds, in the same "
    "pairs, the 97.5 % quantile of both controls: random latents of equal activation mass, and random directions of "
    "equal norm at the same positions. not available: it fires in answers to fewer than 5 prompts, or there is no "
    "interval or no control. no: everything else."
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
    """What controls do in the same place, in the direction of the feature's sign: their middle 95 %."""

    n: int
    """Controls; latents that were drawn more than once count as often."""
    low: float | None = None
    high: float | None = None
    mean: float | None = None
    own: float | None = None
    """What the feature adds in the same pairs."""
    reason: str = ""


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
    """Features, or controls, raised by one Q_f each: means over them, with intervals over them and prompts together."""

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
    """Share of the random latents whose own interval lies wholly on the side of their sign: what the first half of the
    rule says of latents that nobody chose."""
    pooled: tuple[Pooled, ...]
    controls: int
    control_pairs: int
    """Pairs of the target group that controls are measured on."""
    dose_pairs: dict[str, int]
    truncated_texts: int
    passes: Passes
    seed: int
    rule: str = RULE
    key: str
    """Digest of model, autoencoders, features, pairs and settings."""

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
    limits = f"{latents.own:+.3g} where random latents reach {latents.high:+.3g}, directions {directions.high:+.3g}"
    if abs(effect.value) <= floor:
        return "no", "moves nothing"
    if least <= 0:
        against = max(sign * effect.low, sign * effect.high) < 0
        return "no", f"{'acts against its sign' if against else 'the interval holds 0'}: {numbers}"
    if latents.own <= latents.high or directions.own <= directions.high:
        return "no", f"no more than controls: {numbers}; {limits}"
    return "yes", f"{numbers}; {limits}"


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
        "model", "group", "others", "where", "n_pairs", "controls", "rule", "agreement", "agreement_random", "seed",
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
    return digest({"causal": 1, **about})
