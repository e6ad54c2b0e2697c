"""`seamark diagnose causal`: features ablated and raised, against controls."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from seamark.cli.options import Common, Many, named_saes, the_pairs, the_recipe
from seamark.cli.output import finish
from seamark.errors import ConfigError

if TYPE_CHECKING:
    from seamark.diagnose.causal_report import CausalReport, FeatureEffect, Range
    from seamark.stats import Estimate

Shared = Annotated[Common, tyro.conf.OmitArgPrefixes]
Amounts = Annotated[tuple[float, ...], tyro.conf.UseAppendAction]
COLUMNS = ("feature", "score", "effect", "by gradient", "others", "random latents", "directions", "raised by Q",
           "others", "dose", "evidence")  # fmt: skip


def diagnose_causal(
    common: Shared, model: str, features: Path, scan: Path, sae: Many = (), pairs: Many = (),
    split: Literal["train", "test", "all"] = "all", group: str | None = None, others: Many = (), top: int | None = None,
    controls: int = 40, steer_controls: int = 3, control_pairs: int = 32, amount: Amounts = (), dose_pairs: int = 64,
    where: Literal["response", "prompt", "all"] = "response", atlas: Path | None = None, draws: int = 1000,
    seed: int = 0, max_length: int | None = None, out: Path | None = None,
) -> None:  # fmt: skip
    """Does a feature cause what its contrast says? Ablate it, raise it, and hold the effects against controls.

    Each feature, and all together, is ablated on pairs of the target group and of the others, and raised by multiples
    of Q_f. Beside it: the estimate by gradients with its rank correlation, random latents of like activation mass, and
    random directions of equal norm. The rule of "yes", "no" and "not available" is in result.json and in the docs.

    Args:
        common: options of every command.
        model: a reward model: a folder or a Hub name.
        features: features.json of `seamark contrast`, or its folder.
        scan: the scan the features were found on: it gives Q_f, and activation masses for the controls.
        sae: an SAE's folder, or name=folder; repeat for a suite.
        pairs: group=file; repeat for more. Without them: those of the recipe, or the demo pairs.
        split: only one side of the recipe's split of the pairs: test are those the features were not found on.
        group: the target group; else the recipe's.
        others: a group to compare with; repeat for more. Without it, all others.
        top: only so many features, by |score|.
        controls: random latents that stand for each feature, and random directions of each; fewer than 39 make the
            verdict's level coarser than 2.5 %.
        steer_controls: sets of each that are raised by Q_f too.
        control_pairs: most pairs that controls are measured on; a feature that fires in answers to fewer than 5 of
            their prompts gets no verdict.
        amount: of the dose-response curves, in units of Q_f; repeat for more (-2, -1, -0.5, 0.5, 1, 2).
        dose_pairs: most pairs of each side whose chosen answers are read with features raised; 0 for none.
        where: tokens at which features are ablated and raised.
        atlas: an atlas that gets the findings as evidence.
        draws: bootstrap draws.
        seed: of draws and controls.
        max_length: most tokens of a text; else as in training.
        out: folder for result.json.
    """
    from seamark.atlas.store import Atlas
    from seamark.diagnose.causal import AMOUNTS, causal_effects
    from seamark.diagnose.causal_report import atlas_names, write_evidence
    from seamark.features import FeatureSet, Scan
    from seamark.model import load_model
    from seamark.sae import SparseAutoencoder

    recipe = the_recipe(common)
    if top is not None and top < 1:
        raise ConfigError(f"{top} features", where="--top", fix="Ask for 1 or more")
    found = FeatureSet.load(features / "features.json" if features.is_dir() else features)
    suite = {name: SparseAutoencoder.from_pretrained(place) for name, place in named_saes(sae).items()}
    if atlas is not None:  # before anything is measured
        with Atlas.open(atlas) as opened:
            atlas_names(opened, suite, [f.sae for f in found.features])
    report = causal_effects(
        load_model(model), suite, found if top is None else found.strongest(top),
        the_pairs(recipe, pairs, None if split == "all" else split), scan=Scan.open(scan), group=group or recipe.target,
        others=others or None, controls=controls, steer_controls=steer_controls, control_pairs=control_pairs,
        amounts=amount or AMOUNTS, dose_pairs=dose_pairs, where=where, draws=draws, seed=seed,
        max_length=max_length or recipe.reward.max_length,
    )  # fmt: skip
    result = report.model_dump(mode="json") | {"verdicts": report.verdicts}
    if atlas is not None:
        result["evidence_rows"] = write_evidence(atlas, report, suite)
    finish(result, as_json=common.json, out=out, title=_title(report), columns=COLUMNS, rows=_rows(report))


def _title(report: CausalReport) -> str:
    from seamark.show.numbers import estimate_text, number

    p, said = report.passes, report.verdicts
    lines = [
        f"Causal evidence on {report.group}: {said['yes']} yes, {said['no']} no, {said['not available']} not available",
        f"effect: what firing adds to the reward (standard deviation {number(report.reward_std)}); "
        f"raised by Q: change of the chosen answers' reward",
        "controls: the limits of what they do (how many distinct ones); of random latents, each in the direction of "
        "its own sign, also the upper limit at the feature's activation mass (× their median mass / the feature's)",
        f"rank correlation of gradients and ablation: {estimate_text(report.agreement, 'signed')} over the features, "
        f"{estimate_text(report.agreement_random, 'signed')} over random latents",
        *(f"{one.kind} raised by Q, in the direction of the sign: {estimate_text(one.target, 'signed')}, others "
          f"{estimate_text(one.others, 'signed')}, difference {estimate_text(one.difference, 'signed')}"
          for one in report.pooled),
        f"{p.run:,} texts read, {p.saved:,} saved where nothing fires; {p.blocks_skipped} of {p.blocks} blocks skipped",
    ]  # fmt: skip
    seen = ", ".join(f"{n:,} of {report.n_pairs[name]:,} {name}" for name, n in report.seen_pairs.items())
    lines.append(f"pairs that the features were found on: {seen}")
    if report.truncated_texts:
        lines.append(f"{report.truncated_texts} texts were cut")
    return "\n".join([*lines, *(f"note: {caveat}" for caveat in report.caveats)])


def _rows(report: CausalReport) -> list[tuple[str, ...]]:
    rows = [_row(f) for f in report.features]
    both = report.together
    rows.append((
        f"all {both.n_features}: margin", "", _estimate(both.target.margin), "",
        _estimate(both.others.margin) if both.others else "", _range(both.random_latents),
        _range(both.random_directions), "", "", "", both.verdict,
    ))  # fmt: skip
    return rows


def _row(f: FeatureEffect) -> tuple[str, ...]:
    from seamark.show.numbers import signed

    return (
        f"{f.sae}/{f.latent}" + (f" {f.label}" if f.label else ""),
        signed(f.score) if f.score is not None else "+" if f.sign > 0 else "−", _estimate(f.target.reward),
        signed(f.target.attribution.value), signed(f.others.reward.value) if f.others else "", _range(f.random_latents),
        _range(f.random_directions), _estimate(f.steered.target), signed(f.steered.others.value),
        signed(f.monotone.value, 2), f.verdict,
    )  # fmt: skip


def _estimate(e: Estimate) -> str:
    from seamark.show.numbers import NOT_AVAILABLE, estimate_text

    return NOT_AVAILABLE if e.value is None else estimate_text(e, "signed")


def _range(found: Range) -> str:
    from seamark.show.numbers import NOT_AVAILABLE, number, signed

    if found.low is None:
        return NOT_AVAILABLE
    own = "" if found.own is None else f"{signed(found.own)} against "
    said = f"{own}{signed(found.low)} to {signed(found.high)} ({found.n})"
    if found.limit_by_mass is None or found.mass is None:
        return said
    return f"{said}, by mass {signed(found.limit_by_mass)} (× {number(found.mass)})"
