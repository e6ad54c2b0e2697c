"""Causal evidence: what a reward model loses without features that a contrast found, against controls.

A contrastive score is a correlation. Here each feature, and the whole set, is ablated exactly (its firings are taken
out, what the autoencoder does not explain stays) and raised by multiples of Q_f (SAFER, arXiv 2507.00665, raises one
latent), on pairs of the target group and of the others. Gradient attribution is the cheap estimate beside it, with its
rank correlation (reward-lens, arXiv 2604.26130). The rule of the verdict is `causal_report.RULE`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict

import numpy as np
from numpy.typing import NDArray

from seamark.diagnose.attribution import Tokens
from seamark.diagnose.causal_controls import members, stand_ins
from seamark.diagnose.causal_report import CausalReport, Passes, control_caveats, key_of
from seamark.diagnose.causal_study import Settings, Study
from seamark.diagnose.doses import Doses, steer
from seamark.diagnose.steering import Intervention, Suite, Units, changes
from seamark.diagnose.units import other_model, scan_units, units_of
from seamark.errors import ConfigError, DataError
from seamark.features.gather import public_name
from seamark.features.reading import Scan
from seamark.features.scan import check_suite
from seamark.features.sets import FeatureSet
from seamark.model.hooked import HookedModel
from seamark.model.hookpoints import parse_hookpoint
from seamark.model.loading import RewardModel
from seamark.model.skipping import skipping_below
from seamark.text.pairs import Pairs

AMOUNTS = (-2.0, -1.0, -0.5, 0.5, 1.0, 2.0)


def causal_effects(
    model: HookedModel, suite: Suite, features: FeatureSet, pairs: Pairs, *, scan: Scan, group: str = "safety",
    others: Sequence[str] | None = None, q: Units | None = None, controls: int = 40, steer_controls: int = 3,
    control_pairs: int = 32, amounts: Sequence[float] = AMOUNTS, dose_pairs: int = 64, where: Tokens = "response",
    max_length: int | None = None, draws: int = 1000, batch_tokens: int = 8192, seed: int = 0,
) -> CausalReport:  # fmt: skip
    """Ablate and raise each feature of a set, and the set, and hold the effects against controls.

    All texts run once forward and back; after that, only the blocks above the lowest hookpoint run, and only texts in
    which what is ablated fires.

    Args:
        model: a reward model.
        suite: {sae id: autoencoder}; features name them.
        features: features with their signs.
        pairs: preference pairs, best ones that the features were not found on; the report counts the others.
        scan: the scan they were found on: activation masses for the random latents, and Q_f.
        group: the target group.
        others: groups that are compared with it; None: all others.
        q: {sae id: Q_f [d_sae]}; None: those of the scan.
        controls: random latents that stand for each feature, and random directions of each; fewer than 39 make the
            verdict's level coarser than 2.5 %.
        steer_controls: sets of each that are raised too.
        control_pairs: most pairs of the target group that controls are measured on; a feature that fires in answers to
            fewer than 5 of their prompts gets no verdict.
        amounts: of the dose-response curves, in units of Q_f.
        dose_pairs: most pairs of the target and of the others whose chosen answers are read for that; 0: none.
        where: tokens at which features are ablated and raised.
        max_length: most tokens of a text; a longer one loses its beginning.
        draws: bootstrap draws.
        seed: of draws and controls.

    Raises:
        ConfigError: no reward model; an autoencoder that is missing, does not fit the model, or is not that of the
            scan; no such group; settings that make no sense.
        DataError: no features or pairs; no such latent; too few latents to draw controls from.
        ModelError: no such hookpoint; a reward that is not finite.
    """
    settings = Settings(controls, steer_controls, tuple(float(a) for a in amounts), control_pairs, dose_pairs, where,
                        draws, batch_tokens, seed)  # fmt: skip
    _check(settings)
    reward_model = _checked(model, suite, features)
    names = _groups(pairs, group, others)
    kept = pairs.where(lambda p: p.group in (group, *names))
    renderer = reward_model.renderer(max_length)
    texts = [side for pair in kept for side in renderer.render_pair(pair)]
    known = scan_units(scan, suite)
    units = known if q is None else q
    drawn = stand_ins(scan, features, group, settings.most_controls, seed)
    lowest = min((suite[f.sae].config.hookpoint for f in features.features), key=_depth)
    latents: dict[str, list[int]] = {}
    for sae_id, latent in members([features, *drawn.sets]):
        latents.setdefault(sae_id, []).append(latent)
    with skipping_below(reward_model, lowest, texts, batch_tokens=batch_tokens):
        study = Study(reward_model, suite, features, drawn, texts, kept, group, settings)
        recorded = study.whole.recorded
        doses = Doses(suite, recorded, units, settings.amounts, study.sides, study.dose_rows(), study.whole.pusher,
                      seed, study.floor)  # fmt: skip
        responses, pooled = steer(features.features, drawn.sets[:steer_controls], study.turns[:steer_controls], doses)
        effects, together = study.feature_effects(responses), study.set_effect()
    fingerprint, seen = reward_model.fingerprint(), _seen(scan, kept)
    seen_pairs = {side.name: int(seen[side.rows].sum()) for side in study.sides}
    raised = {i: [_or_none(units_of(i, suite[i], units)[latent]) for latent in some] for i, some in latents.items()}
    about = {"model": fingerprint, "saes": {i: suite[i].fingerprint() for i in latents},
             "features": [(f.sae, f.latent, f.sign) for f in features.features], "pairs": kept.fingerprint(),
             "scan": scan.manifest["key"], "group": group, "max_length": max_length,
             "units": raised if dose_pairs else {}, "settings": asdict(settings)}  # fmt: skip
    agreement, agreement_random = study.agreement()
    return CausalReport(
        model=public_name(model), group=group, others=names, where=where,
        n_pairs={side.name: len(side.rows) for side in study.sides}, reward_std=float(recorded.rewards.std()),
        accuracy=study.accuracy(), features=effects, together=together, agreement=agreement,
        agreement_random=agreement_random, random_yes=study.random_yes(), features_yes=study.features_yes(),
        pooled=pooled, controls=controls, control_pairs=len(study.side.rows),
        dose_pairs={side.name: len(rows) for side, rows in zip(study.sides, doses.rows, strict=True)},
        seen_pairs=seen_pairs, truncated_texts=renderer.truncated_texts, seed=seed, key=key_of(**about),
        caveats=(*_seen_caveat(seen_pairs, len(kept)), *other_model(scan, fingerprint),
                 *control_caveats(effects, together)),
        passes=Passes(run=study.passes[0], saved=study.passes[1], blocks=model.n_blocks,
                      blocks_skipped=parse_hookpoint(lowest).layer + _depth(lowest)[1]),
    )  # fmt: skip


def _seen(scan: Scan, pairs: Pairs) -> NDArray[np.bool_]:
    """[pairs]: those that the scan read, by id."""
    known = set(scan.texts["pair_id"].to_pylist())
    return np.asarray([pair.id in known for pair in pairs], np.bool_)


def _seen_caveat(seen: Mapping[str, int], n: int) -> tuple[str, ...]:
    if not (some := sum(seen.values())):
        return ()
    return (f"{some:,} of {n:,} pairs are among those of the scan that the features were found on. What was chosen for "
            f"its contrast there looks better there: give held-out pairs.",)  # fmt: skip


def _or_none(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _depth(hookpoint: str) -> tuple[int, bool]:
    """(block, whether it is its output): the order in which a model comes to hookpoints."""
    point = parse_hookpoint(hookpoint)
    return point.layer, point.part == "block"


def _check(settings: Settings) -> None:
    for name in ("controls", "steer_controls", "dose_pairs"):
        if getattr(settings, name) < 0:
            raise ConfigError(f"{name} is {getattr(settings, name)}", where="causal_effects", fix="Give 0 or more")
    for name in ("draws", "control_pairs"):
        if getattr(settings, name) < 1:
            raise ConfigError(f"{name} is {getattr(settings, name)}", where="causal_effects", fix="Give 1 or more")
    if settings.where not in ("response", "prompt", "all"):
        raise ConfigError(f"unknown tokens {settings.where!r}", fix="Take response, prompt or all")
    if strange := [a for a in settings.amounts if not math.isfinite(a) or a == 0]:
        raise ConfigError(f"the amount is {strange[0]}", where="amounts", fix="Give finite numbers other than 0")
    if len(set(settings.amounts)) < len(settings.amounts):
        raise ConfigError("an amount is given twice", where="amounts", fix="Give each once")


def _checked(model: HookedModel, suite: Suite, features: FeatureSet) -> RewardModel:
    if not isinstance(model, RewardModel):
        raise ConfigError("this model gives no rewards", where=model.name, fix="Load it with RewardModel")
    check_suite(model, suite)
    if not len(features):
        raise DataError("the set holds no feature", where="causal_effects", fix="Give at least one")
    for f in features.features:
        changes(model, suite, [Intervention(sae=f.sae, latent=f.latent, action="ablate")])
    return model


def _groups(pairs: Pairs, group: str, others: Sequence[str] | None) -> tuple[str, ...]:
    """The groups compared with the target."""
    known = pairs.groups
    names = [g for g in known if g != group] if others is None else list(dict.fromkeys(others))
    if missing := [g for g in (group, *names) if g not in known]:
        raise ConfigError(f"no pair of group {missing[0]!r}", where="causal_effects",
                          fix=f"Groups are: {', '.join(known)}")  # fmt: skip
    if group in names:
        raise ConfigError(f"group {group!r} is compared with itself", where="causal_effects", fix="Name another")
    return tuple(names)
