"""The token view: one text through the model once, and at every token the features that fire there.

Activations are those of the pass shown. A text is rendered as in training and read whole; a generated answer is read
in one pass over the prompt's tokens and the very tokens generated, never over its text tokenised anew. Features are
compared by activation / Q_f (Safe-SAIL, arXiv 2509.18127); one whose Q_f is not available is shown raw, apart from the
others.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from seamark.diagnose.firing import Entries, Strongest, heat, strongest
from seamark.diagnose.inspection import (
    About,
    Firing,
    HeatRow,
    InspectedFeature,
    InspectedSae,
    InspectedToken,
    Inspection,
    Kind,
    WatchedFeature,
)
from seamark.diagnose.shown import ShownText, shown_text
from seamark.diagnose.units import units_of
from seamark.errors import ConfigError, DataError
from seamark.features.accumulate import Firings
from seamark.features.gather import gather, public_name
from seamark.features.scan import check_suite
from seamark.model.generation import Generation
from seamark.model.loading import HookedModel, LanguageModel, RewardModel
from seamark.sae import SparseAutoencoder
from seamark.text.pairs import Text
from seamark.text.rendering import Rendered

MAX_TOKENS = 1024
"""Tokens of a text that are read by default; what is longer loses its beginning."""
TOP = 20
READ = "one pass over the text"
READ_GENERATED = "one pass over the prompt's tokens and the very tokens generated"

Labels = Callable[[str, Sequence[int]], Mapping[int, About]]
"""(sae id, latents) → what is known of those that are known."""


def inspect_text(
    model: HookedModel, suite: Mapping[str, SparseAutoencoder], prompt: Text, answer: Text | None = None, *,
    q: Mapping[str, NDArray[np.float64]] | None = None, labels: Labels | None = None, top: int = TOP,
    max_tokens: int = MAX_TOKENS, generate: Generation | None = None, chat: bool = True,
    watch: Sequence[tuple[str, int]] = (),
) -> Inspection:  # fmt: skip
    """Read one text and tell what fires at each token.

    With an answer, prompt and answer are rendered as a scan renders a pair's. Without one, a language model reads the
    prompt up to where its answer begins, any other model a conversation with an empty answer.

    Args:
        model: any model with hookpoints; rewards come of reward models alone.
        suite: {sae id: autoencoder}.
        prompt: a string or chat messages.
        answer: the answer; None: none.
        q: {sae id: Q_f [d_sae]}; NaN, and autoencoders that are not in it: not available.
        labels: what is known of features; without it there is no heat-map.
        top: features shown of each token and hookpoint.
        max_tokens: most tokens; a longer text loses its beginning, which `truncated` tells.
        generate: let a language model write the answer.
        chat: render as a conversation; else `prompt`, a string, is a plain text without template.
        watch: (sae id, latent) of features whose activation is told at every token.

    Raises:
        DataError: an empty prompt, one that is too long, a lone surrogate, roles that the template refuses; no such
            feature to watch; NaN or infinite activations.
        ConfigError: the autoencoders do not fit the model; limits below 1; an answer and `generate`; `generate` with a
            model that is no language model.
    """
    check_suite(model, suite)
    _check(top, max_tokens)
    _check_watched(suite, watch)
    units = {sae_id: units_of(sae_id, sae, q) for sae_id, sae in suite.items()}
    text = shown_text(model, prompt, answer, max_tokens=max_tokens, generate=generate, chat=chat)
    found, reward = _read(model, suite, units, text.rendered, with_reward=_has_reward(model, answer))
    known = _known(found, labels, watch)
    n = len(text.rendered)
    shown = strongest(found, n, top)
    keys = [(found[i].sae, int(found[i].latent[j])) for i, j in shown.entries]
    features, place = _features(suite, units, known, keys)
    watched = tuple(_watched(_feature(suite, units, known, key), found, n) for key in watch)
    return Inspection(
        model=public_name(model), kind=kind_of(model), features=features, watched=watched, top=top,
        heat=_heat(found, known, n),
        tokens=_tokens(text, found, shown, [place[key] for key in keys]), truncated=text.rendered.truncated,
        saes=tuple(InspectedSae(id=i, hookpoint=s.config.hookpoint, d_sae=s.config.d_sae,
                                with_q=int(np.isfinite(units[i]).sum())) for i, s in suite.items()),
        reward=reward, reward_reason="" if reward is not None else _why_no_reward(model), generated=text.generated,
        read=READ if text.generated is None else READ_GENERATED,
    )  # fmt: skip


def _check(top: int, max_tokens: int) -> None:
    if top < 1 or max_tokens < 1:
        raise ConfigError(f"top is {top} and max_tokens {max_tokens}", fix="Take at least 1")


def _check_watched(suite: Mapping[str, SparseAutoencoder], watch: Sequence[tuple[str, int]]) -> None:
    for sae_id, latent in watch:
        if sae_id not in suite:
            raise DataError(f"no autoencoder {sae_id[:200]!r}", where="watch", fix=f"There are: {', '.join(suite)}")
        if not 0 <= latent < suite[sae_id].config.d_sae:
            raise DataError(f"no latent {latent}; there are {suite[sae_id].config.d_sae}", where=sae_id)


def _read(
    model: HookedModel, suite: Mapping[str, SparseAutoencoder], units: Mapping[str, NDArray[np.float64]],
    text: Rendered, *, with_reward: bool,
) -> tuple[list[Entries], float | None]:  # fmt: skip
    """What fires at every token, by autoencoder, and the reward: one pass."""
    hookpoints = list(dict.fromkeys(sae.config.hookpoint for sae in suite.values()))
    every = np.arange(len(text), dtype=np.int32)
    got = gather(model, [text], [0], [every], hookpoints, with_rewards=with_reward)
    found = []
    for sae_id, sae in suite.items():
        hookpoint = sae.config.hookpoint
        firings = Firings.of(sae.to(model.device).encode(got.activations[hookpoint]))
        found.append(Entries.of(sae_id, hookpoint, firings, units[sae_id]))
    return found, None if got.rewards is None else float(got.rewards[0])


def _known(
    found: Sequence[Entries], labels: Labels | None, watch: Sequence[tuple[str, int]]
) -> dict[str, Mapping[int, About]]:  # fmt: skip
    """{sae id: {latent: what is known of it}} of all that fire and are watched."""
    if labels is None:
        return {e.sae: {} for e in found}
    return {e.sae: labels(e.sae, sorted({*e.latent.tolist(), *(i for sae, i in watch if sae == e.sae)})) for e in found}


def _features(
    suite: Mapping[str, SparseAutoencoder], units: Mapping[str, NDArray[np.float64]],
    known: Mapping[str, Mapping[int, About]], keys: Sequence[tuple[str, int]],
) -> tuple[tuple[InspectedFeature, ...], dict[tuple[str, int], int]]:  # fmt: skip
    """The features of `keys`, each once, and the place of each."""
    order = {sae_id: i for i, sae_id in enumerate(suite)}
    ordered = sorted(set(keys), key=lambda key: (order[key[0]], key[1]))
    return tuple(_feature(suite, units, known, key) for key in ordered), {key: i for i, key in enumerate(ordered)}


def _feature(
    suite: Mapping[str, SparseAutoencoder], units: Mapping[str, NDArray[np.float64]],
    known: Mapping[str, Mapping[int, About]], key: tuple[str, int],
) -> InspectedFeature:  # fmt: skip
    sae_id, latent = key
    unit, about = units[sae_id][latent], known[sae_id].get(latent) or About()
    return InspectedFeature(sae=sae_id, latent=latent, hookpoint=suite[sae_id].config.hookpoint,
                            q=None if np.isnan(unit) else float(unit), **about.model_dump())  # fmt: skip


def _watched(feature: InspectedFeature, found: Sequence[Entries], n: int) -> WatchedFeature:
    activations = np.zeros(n)
    for e in found:
        if e.sae == feature.sae:
            mine = e.latent == feature.latent
            activations[e.token[mine]] = e.value[mine]
    return WatchedFeature(**feature.model_dump(), activations=tuple(_short(v) for v in activations.tolist()))


def _tokens(
    text: ShownText, found: Sequence[Entries], shown: Strongest, features: Sequence[int]
) -> tuple[InspectedToken, ...]:  # fmt: skip
    """All tokens; `features` are the places of the features of `shown.entries`."""
    r = text.rendered
    firings: list[list[Firing]] = [[] for _ in text.pieces]
    for (i, j), token, feature in zip(shown.entries, shown.tokens, features, strict=True):
        normalised = float(found[i].normalised[j])
        firings[token].append(Firing(feature, _short(float(found[i].value[j])),
                                     None if np.isnan(normalised) else _short(normalised)))  # fmt: skip
    tokens = []
    for i, piece in enumerate(text.pieces):
        tokens.append(InspectedToken(text=piece, id=int(r.input_ids[i]), special=bool(r.special[i]), span=text.span(i),
                                     firings=tuple(firings[i]), n_firing=int(shown.firing[i])))  # fmt: skip
    return tuple(tokens)


def _heat(found: Sequence[Entries], known: Mapping[str, Mapping[int, About]], n: int) -> tuple[HeatRow, ...]:
    """Rows by domain, then by hookpoint in the order of `found`."""
    tagged: dict[tuple[str, str], list[tuple[Entries, list[int]]]] = {}
    for e in found:
        by_domain: dict[str, list[int]] = {}
        for latent, about in known[e.sae].items():
            for domain in about.domains:
                by_domain.setdefault(domain, []).append(latent)
        for domain, latents in by_domain.items():
            tagged.setdefault((domain, e.hookpoint), []).append((e, latents))
    order = {hookpoint: i for i, hookpoint in enumerate(dict.fromkeys(e.hookpoint for e in found))}
    rows = []
    for domain, hookpoint in sorted(tagged, key=lambda key: (key[0], order[key[1]])):
        values = [None if v is None else _short(v) for v in heat(tagged[domain, hookpoint], n)]
        if any(v != 0 for v in values):
            rows.append(HeatRow(domain=domain, hookpoint=hookpoint, values=tuple(values)))
    return tuple(rows)


def _has_reward(model: HookedModel, answer: Text | None) -> bool:
    return isinstance(model, RewardModel) and answer is not None


def kind_of(model: HookedModel) -> Kind:
    """What a model is good for."""
    if isinstance(model, RewardModel):
        return "reward"
    return "language" if isinstance(model, LanguageModel) else "encoder"


def _why_no_reward(model: HookedModel) -> str:
    return "no answer was given" if isinstance(model, RewardModel) else "the model is no reward model"


def _short(value: float) -> float:
    """Seven digits, what float32 holds: half the bytes in JSON."""
    return float(f"{value:.7g}")
