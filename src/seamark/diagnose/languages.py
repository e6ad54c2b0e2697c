"""The same prompts in several languages: which features still fire, and which fall away where (Safe-SAIL,
arXiv 2509.18127, has one prompt in Hindi; here it is sets of prompts, with intervals and a null).

A feature's activation in a text is its largest z / Q_f over the text's tokens. Retention is the share of what fires in
the reference that still fires in the translation; it is judged against what texts of other prompts keep.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import reduce
from operator import add

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from seamark.diagnose.inspecting import Labels
from seamark.diagnose.inspection import About
from seamark.diagnose.languages_report import (
    ALL,
    InLanguage,
    LanguageFeature,
    LanguageResult,
    LanguagesConfig,
    LanguagesReport,
    ReadSae,
    State,
    Stratum,
)
from seamark.diagnose.parallel import ParallelPrompts, Tokenised, token_counts, tokenised
from seamark.diagnose.pooled import Suite, choose_units, foreign_saes, read_pooled
from seamark.diagnose.retention import Draws, FeatureChange, adjusted_together, feature_change, overlap, share
from seamark.errors import ConfigError, DataError
from seamark.features.config import ScanConfig
from seamark.features.contexts import read_positions
from seamark.features.gather import Positions, public_name
from seamark.features.reading import Scan
from seamark.features.scan import check_suite
from seamark.features.sets import FeatureSet
from seamark.model.loading import HookedModel
from seamark.stats import Estimate
from seamark.text.rendering import Rendered, Renderer

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]
EVERY_TOKEN = ScanConfig(positions="tokens", context_positions="scoring", rewards=False)
GIVEN = "given features"
"""The domain of a feature set."""
NOT_CAUSE = (
    "A feature that falls away says that the model's activations differ, not why: a model that was hardly trained on a "
    "language does not know what its texts say, and a translation may say something else."
)


def languages(
    model: HookedModel, suite: Suite, prompts: ParallelPrompts, reference: str = "en", *, scan: Scan | None = None,
    labels: Labels | None = None, features: FeatureSet | None = None, config: LanguagesConfig | None = None,
    top: int = 50,
) -> LanguagesReport:  # fmt: skip
    """Compare every language with the reference.

    Args:
        model: any model with hookpoints.
        suite: {sae id: autoencoder}; all are read in one pass.
        prompts: the same prompts in several languages (`ParallelPrompts.choose` takes a sample).
        reference: the language that others are compared with.
        scan: gives Q_f; without one, the reference's texts do.
        labels: what is known of features (`atlas_labels`): their domains are looked at by themselves.
        features: features that are looked at by themselves, as the domain "given features".
        config: what counts as firing, keeping and falling away.
        top: features in the table that fall away, and as many that are kept.

    Raises:
        ConfigError: an unknown language; a scan, an autoencoder or features of another model or suite; a setting out
            of range.
        DataError: no prompt is in two languages, or none is short enough.
    """
    config = config or LanguagesConfig()
    _check(config, suite, features, top)
    check_suite(model, suite)
    read = _Read.of(model, prompts.choose(reference), reference, config)
    found = read_pooled(model, suite, read.texts, read.positions, units_from=read.language == reference,
                        title="Languages")  # fmt: skip
    units, origin = choose_units(model, suite, found, scan, f"the tokens of the {reference} texts")
    firing = {name: found[name].normalised(units[name]) for name in suite}
    abouts = {name: {} if labels is None else labels(name, np.flatnonzero(np.isfinite(units[name])).tolist())
              for name in suite}  # fmt: skip
    watched = _watched(suite, abouts, features)
    side = _Side(suite, units, firing, watched, config)
    others = [name for name in prompts.languages if name != reference]
    judged = [_language(read, side, reference, language, config) for language in others]
    rows = _features(judged, side, abouts)
    caveats = [NOT_CAUSE, *foreign_saes(model, suite), *(one.result.caveat for one in judged if one.result.caveat)]
    able = {one.result.language for one in judged if any(any(some) for some in one.states.values())}
    return LanguagesReport(
        model=public_name(model), reference=reference, config=config, rule=config.rule,
        feature_rule=config.feature_rule, prompts=len(read.prompts), rejected=len(prompts.rejected),
        saes=tuple(ReadSae(id=name, hookpoint=sae.config.hookpoint, d_sae=sae.config.d_sae,
                           with_q=int(np.isfinite(units[name]).sum()), q_from=origin[name])
                   for name, sae in suite.items()),
        watched=tuple(watched), reference_tokenised=read.tokenised(reference, read.whole(reference), reference),
        languages=tuple(one.result for one in judged),
        in_all=sum(set(row.kept_in) == able for row in rows), in_all_of=tuple(sorted(able)),
        features=tuple(_shown(rows, top)), caveats=tuple(dict.fromkeys(caveats)),
    )  # fmt: skip


def _check(config: LanguagesConfig, suite: Suite, features: FeatureSet | None, top: int) -> None:
    if not (0 < config.threshold <= 1 and 0 < config.fdr < 1 and config.fires_at >= 0):
        raise ConfigError("thresholds are out of range", where="languages",
                          fix="Take threshold in (0, 1], fdr in (0, 1), fires_at from 0")  # fmt: skip
    if config.draws < 2 or config.least < 1 or top < 1:
        raise ConfigError("draws is below 2, or least or top below 1", where="languages", fix="Take 1000, 10 and 50")
    for feature in features.features if features is not None else ():
        if feature.sae not in suite or feature.latent >= suite[feature.sae].config.d_sae:
            raise ConfigError(f"the feature {feature.sae}/{feature.latent} is of another autoencoder",
                              where="features", fix=f"There are: {', '.join(suite)}")  # fmt: skip


@dataclass(frozen=True, eq=False)
class _Read:
    """All texts as tokens, and where each stands."""

    prompts: list[str]
    texts: list[Rendered]
    positions: list[Positions]
    language: NDArray[np.object_]
    """[texts]"""
    row: dict[tuple[str, str], int]
    """{(language, prompt id): its text}, those that were not cut."""
    cut: set[tuple[str, str]]
    counts: Floats
    """`token_counts` of each text [texts, 4]."""

    @classmethod
    def of(cls, model: HookedModel, prompts: ParallelPrompts, reference: str, config: LanguagesConfig) -> _Read:
        renderer = model.renderer(config.max_length)
        texts, positions, where, cut = list[Rendered](), list[Positions](), list[tuple[str, str]](), set()
        for prompt in prompts.items:
            for language, said in prompt.texts.items():
                text, mine = _rendered(renderer, said, f"{language}:{prompt.id}", config.chat)
                if text.truncated:
                    cut.add((language, prompt.id))
                elif len(mine):
                    texts.append(text)
                    positions.append(mine)
                    where.append((language, prompt.id))
        row = {place: i for i, place in enumerate(where)}
        if not any((reference, p.id) in row for p in prompts.items):
            raise DataError(f"no text in {reference} has 1 to {renderer.max_length} tokens", where="prompts",
                            fix="Give shorter texts, or raise max_length as far as the model goes")  # fmt: skip
        counts = np.stack([token_counts(model, text) for text in texts])
        named = np.asarray([name for name, _ in where], dtype=object)
        return cls([p.id for p in prompts.items], texts, positions, named, row, cut, counts)

    def whole(self, *names: str) -> list[str]:
        """Prompts that were read in all of some languages."""
        return [i for i in self.prompts if all((name, i) in self.row for name in names)]

    def rows(self, language: str, prompts: list[str]) -> NDArray[np.int64]:
        return np.asarray([self.row[language, i] for i in prompts], np.int64)

    def tokenised(self, language: str, prompts: list[str], reference: str) -> Tokenised:
        return tokenised(*(self.counts[self.rows(name, prompts)] for name in (language, reference)))


def _rendered(renderer: Renderer, text: str, text_id: str, chat: bool) -> tuple[Rendered, Positions]:
    """A text, and its tokens that are no special ones."""
    if not chat:
        rendered = renderer.render_text(text, text_id)
        return rendered, read_positions(rendered, EVERY_TOKEN)[0]
    rendered = renderer.render_prompt(text, text_id)
    start, end = rendered.prompt_span
    return rendered, (start + np.flatnonzero(~rendered.special[start:end])).astype(np.int32)


@dataclass(frozen=True, eq=False)
class _Side:
    """What the features do in every text."""

    suite: Suite
    units: Mapping[str, Floats]
    firing: Mapping[str, csr_matrix]
    """{sae id: normalised [texts, d_sae]}"""
    watched: Mapping[str, Mapping[str, Mask]]
    """{domain: {sae id: [d_sae]}}"""
    config: LanguagesConfig

    @property
    def hookpoints(self) -> list[str]:
        return list(dict.fromkeys(sae.config.hookpoint for sae in self.suite.values()))

    def known(self, name: str) -> Mask:
        """[d_sae] those with a Q_f."""
        return np.isfinite(self.units[name])


def _watched(
    suite: Suite, abouts: Mapping[str, Mapping[int, About]], features: FeatureSet | None
) -> dict[str, dict[str, Mask]]:  # fmt: skip
    """{domain: {sae id: which features}}: of the labels by name, then those given."""
    found: dict[str, dict[str, Mask]] = {}
    named = [(domain, name, latent) for name, known in abouts.items() for latent, about in known.items()
             for domain in about.domains]  # fmt: skip
    given = [(GIVEN, f.sae, f.latent) for f in (features.features if features is not None else ())]
    for domain, name, latent in [*sorted(named), *given]:
        masks = found.setdefault(domain, {n: np.zeros(sae.config.d_sae, np.bool_) for n, sae in suite.items()})
        masks[name][latent] = True
    return found


@dataclass(frozen=True, eq=False)
class _Judged:
    """A language with what each of its features does."""

    result: LanguageResult
    changes: Mapping[str, FeatureChange]
    q_values: Mapping[str, Floats]
    states: Mapping[str, list[State | None]]


def _language(read: _Read, side: _Side, reference: str, language: str, config: LanguagesConfig) -> _Judged:
    ids = read.whole(reference, language)
    cut = len({i for name, i in read.cut if name in (reference, language)})
    if len(ids) < 2:
        why = f"{len(ids)} prompts are whole in both languages" if len(ids) != 1 else "one prompt is whole in both"
        why += f"; {cut} are longer than the model reads" if cut else ""
        return _Judged(LanguageResult(language=language, prompts=len(ids), cut=cut, reason=why), {}, {}, {})
    draws = Draws.of(len(ids), config.draws, config.seed)
    before, after = (read.rows(name, ids) for name in (reference, language))
    parts = {name: (x[before], x[after]) for name, x in side.firing.items()}
    strata = [_stratum(parts, side, hookpoint, domain, draws)
              for domain in (ALL, *side.watched) for hookpoint in (*side.hookpoints, ALL)]  # fmt: skip
    changes = {name: feature_change(*two, draws, config.fires_at) for name, two in parts.items()}
    tested = {name: side.known(name) & (c.fired >= config.least) for name, c in changes.items()}
    adjusted = adjusted_together(list(changes.values()), [tested[name] for name in changes])
    q_values = dict(zip(changes, adjusted, strict=True))
    states = {name: _states(changes[name], q_values[name], tested[name], config) for name in changes}
    every = [state for some in states.values() for state in some]
    tokens = read.tokenised(language, ids, reference)
    wanted = set(side.watched) or {ALL}
    result = LanguageResult(
        language=language, prompts=len(ids), cut=cut, tokenised=tokens, strata=tuple(strata), kept=every.count("kept"),
        falls_away=every.count("falls away"), unclear=every.count("unclear"),
        flagged=tuple(s.domain for s in strata if s.flagged and s.hookpoint == ALL and s.domain in wanted),
        caveat=_caveat(language, reference, tokens),
    )  # fmt: skip
    return _Judged(result, changes, q_values, states)


def _stratum(
    parts: Mapping[str, tuple[csr_matrix, csr_matrix]], side: _Side, hookpoint: str, domain: str, draws: Draws
) -> Stratum:  # fmt: skip
    names = [name for name, sae in side.suite.items() if hookpoint in (ALL, sae.config.hookpoint)]
    masks = {name: side.known(name) & (side.watched[domain][name] if domain in side.watched else True)
             for name in names}  # fmt: skip
    at = side.config.fires_at
    across, inside, before = (
        reduce(add, [overlap(parts[name][i], parts[name][j], masks[name], draws, at) for name in names])
        for i, j in ((0, 1), (1, 1), (0, 0))
    )
    others = {name: side.known(name) & ~masks[name] for name in names}
    rest = reduce(add, [overlap(*parts[name], others[name], draws, at) for name in names])
    n, none = draws.n, "none of them fires in the reference"
    retention = draws.estimate(across.retention, n, none)
    beyond = draws.estimate(across.retention - across.chance, n, none)
    return Stratum(
        hookpoint=hookpoint, domain=domain, features=int(sum(m.sum() for m in masks.values())),
        fired=draws.estimate(share(across.fired, draws.times.sum(0)), n, none), retention=retention,
        chance=draws.estimate(across.chance, n, none), above_chance=beyond,
        against_others=draws.estimate(
            across.retention - across.chance - (rest.retention - rest.chance), n,
            "there are no others" if domain == ALL else "none of them, or none of the others, fires in the reference",
        ),
        within=draws.estimate(inside.chance, n, "none of them fires in the language"),
        reference_within=draws.estimate(before.chance, n, none),
        flagged=retention.high is not None and retention.high < side.config.threshold,
        chance_only=beyond.low is not None and beyond.low <= 0,
    )  # fmt: skip


def _states(
    change: FeatureChange, q_value: Floats, tested: Mask, config: LanguagesConfig
) -> list[State | None]:  # fmt: skip
    with np.errstate(invalid="ignore"):
        falls = (q_value <= config.fdr) & (change.difference < 0) & (change.retention_high < config.threshold)
        kept = change.retention_low >= config.threshold
    said: list[State | None] = []
    for i in range(len(q_value)):
        said.append(None if not tested[i] else "falls away" if falls[i] else "kept" if kept[i] else "unclear")
    return said


def _caveat(language: str, reference: str, tokens: Tokenised) -> str:
    if tokens.broken is None:
        reasons = (e.reason for e in (tokens.unknown, tokens.in_parts, tokens.premium) if e.value is None)
        return (f"How the tokenizer takes {language} is not available ({', '.join(dict.fromkeys(reasons))}): it may be "
                f"that the model cannot read its texts.")  # fmt: skip
    if not tokens.broken:
        return ""
    unknown, parts = (_said(e, 100, " %") for e in (tokens.unknown, tokens.in_parts))
    return (f"The tokenizer breaks {language}: {unknown} of its tokens are unknown and {parts} are parts of "
            f"characters, and the same prompts take {_said(tokens.premium, 1, ' ×')} the tokens of {reference}. Where "
            f"features fall away here, it may be because the model cannot read the text.")  # fmt: skip


def _said(e: Estimate, times: float, unit: str) -> str:
    return "(not available)" if e.value is None else f"{times * e.value:.1f}{unit}"


def _features(
    judged: list[_Judged], side: _Side, abouts: Mapping[str, Mapping[int, About]]
) -> list[LanguageFeature]:  # fmt: skip
    """Features that are judged in a language at least."""
    rows = []
    able = [one for one in judged if not one.result.reason]
    for name, sae in side.suite.items():
        judged_somewhere = [i for i in range(sae.config.d_sae) if any(one.states[name][i] for one in able)]
        for i in judged_somewhere:
            about = abouts[name].get(i) or About()
            rows.append(LanguageFeature(
                sae=name, latent=i, hookpoint=sae.config.hookpoint, q=float(side.units[name][i]), label=about.label,
                domains=about.domains, languages=tuple(_in_language(one, name, i) for one in able),
            ))  # fmt: skip
    return rows


def _in_language(one: _Judged, name: str, i: int) -> InLanguage:
    c, q_value, prompts = one.changes[name], one.q_values[name][i], one.result.prompts
    fired = int(c.fired[i])
    retention = _estimate(c.retention, c.retention_low, c.retention_high, i, fired, "it fires in no reference prompt")
    return InLanguage(
        language=one.result.language, prompts=prompts, fired=fired, reference=float(c.reference[i]),
        activation=float(c.mean[i]), difference=_estimate(c.difference, c.low, c.high, i, prompts, ""),
        q_value=None if np.isnan(q_value) else float(q_value), retention=retention,
        chance=None if np.isnan(c.chance[i]) else float(c.chance[i]), state=one.states[name][i],
    )  # fmt: skip


def _estimate(value: Floats, low: Floats, high: Floats, i: int, n: int, reason: str) -> Estimate:
    if np.isnan(value[i]):
        return Estimate.not_available(reason, n)
    if np.isnan(low[i]) or np.isnan(high[i]):
        return Estimate(value=float(value[i]), n=n, reason="interval undefined: too few valid resamples")
    return Estimate(value=float(value[i]), low=float(low[i]), high=float(high[i]), n=n)


def _shown(rows: list[LanguageFeature], top: int) -> list[LanguageFeature]:
    """The features that fall away in most languages, the largest fall first; then those kept in most, the farthest
    beyond chance first."""

    def fall(row: LanguageFeature) -> float:
        return min((found.difference.value or 0.0 for found in row.languages if found.state), default=0.0)

    def beyond(row: LanguageFeature) -> float:
        return float(np.mean([(f.retention.value or 0.0) - (f.chance or 0.0) for f in row.languages if f.state]))

    falling = [row for row in rows if row.falls_away_in]
    kept = [row for row in rows if row.kept_in and not row.falls_away_in]
    falling.sort(key=lambda row: (-len(row.falls_away_in), fall(row), row.sae, row.latent))
    kept.sort(key=lambda row: (-len(row.kept_in), -beyond(row), row.sae, row.latent))
    return falling[:top] + kept[:top]
