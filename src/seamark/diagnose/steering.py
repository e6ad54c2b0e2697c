"""Interventions: raise, set, scale or ablate features while a model runs.

SAFER (arXiv 2507.00665) raises one latent of a reward model and reads the reward again. Here several features of
several hookpoints are moved at once, in a reward or a language model, also while it generates, and in code of one's
own (`steering`). What the autoencoder does not explain stays in the activations. An effect seen here is that of the
intervention: activations pushed far from what the model ever met can move anything.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict
from torch import nn

from seamark.diagnose.units import NO_UNIT, units_of
from seamark.errors import ConfigError, DataError
from seamark.features.moving import Action, Move, Where, moving
from seamark.features.scan import check_suite
from seamark.model.hooked import HookedModel
from seamark.model.reading import Change, apply_at
from seamark.sae import SparseAutoencoder
from seamark.text.rendering import Rendered

Suite = Mapping[str, SparseAutoencoder]
Units = Mapping[str, NDArray[np.float64]]
_LARGEST = float(np.finfo(np.float32).max)


class Intervention(BaseModel):
    """What is done to one feature."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    sae: str
    """Id of the autoencoder in its suite."""
    latent: int
    action: Action = "add"
    """`add`: add to its activation, whether it fires or not; `set`: what its activation becomes; `scale`: multiply its
    activation; `ablate`: it does not fire. Only firings count (z > 0): what does not fire is neither scaled nor
    ablated."""
    amount: float = 1.0
    """In units of Q_f; for `scale` the factor; `ablate` takes none."""
    where: Where = "response"
    """At which tokens."""
    fingerprint: str = ""
    """Fingerprint of the autoencoder the feature was found with; where given, another one is refused."""

    @property
    def name(self) -> str:
        """`sae/latent`."""
        return f"{self.sae}/{self.latent}"


def changes(
    model: HookedModel, suite: Suite, interventions: Sequence[Intervention], q: Units | None = None,
    texts: Sequence[Rendered] | None = None,
) -> dict[str, Change]:  # fmt: skip
    """The interventions as functions for `model.apply_at`, by hookpoint; of nothing, nothing.

    Adding 0 and scaling by 1 change no bit, and ablating changes none where the feature does not fire. Interventions on
    the same feature follow one another; those on different features do not see each other at their hookpoint, but a
    later hookpoint sees what an earlier one did.

    Args:
        model: the model they will be applied to.
        suite: {sae id: autoencoder}.
        interventions: what to do.
        q: {sae id: Q_f [d_sae]}, the unit of `add` and `set`.
        texts: the texts that batches hold rows of; needed for "response" and "prompt" outside of `generate`.

    Raises:
        ConfigError: no such autoencoder, one that does not fit the model, is another than the feature's, or whose Q_f
            are of another width; an amount that is no finite number; spans that are none.
        DataError: no such latent; no Q_f where one is needed.
        ModelError: no such hookpoint in this model.
    """
    if suite:
        check_suite(model, suite)
    prints: dict[str, str] = {}
    by_hookpoint: dict[str, dict[str, list[Move]]] = {}
    for one in interventions:
        sae = _the_sae(one, suite, prints)
        move = Move(one.latent, one.action, _value(one, sae, q), _the_where(one))
        by_hookpoint.setdefault(sae.config.hookpoint, {}).setdefault(one.sae, []).append(move)
    return {
        hookpoint: moving([(suite[sae_id], moves) for sae_id, moves in members.items()], texts)
        for hookpoint, members in by_hookpoint.items()
    }


@contextlib.contextmanager
def steering(
    model: HookedModel | nn.Module, suite: Suite, interventions: Sequence[Intervention], *, q: Units | None = None,
    texts: Sequence[Rendered] | None = None,
) -> Iterator[None]:  # fmt: skip
    """While the context is open, the model runs with the interventions: calls of a Seamark model, and calls of a
    transformers model itself, `generate` too, with its cache, in batches padded on either side.

    In `generate`, "prompt" means the tokens it was given and "response" the new ones. Elsewhere these two need `texts`,
    the rows of each call in their order. Spans count from 0 in each row, without padding; padding is never touched.

    Args:
        model: a Seamark model or a transformers model.
        suite, interventions, q, texts: as of `changes`.

    Raises:
        ConfigError, DataError, ModelError: as of `changes`; in the calls, where `texts` are missing or others.
    """
    hooked = model if isinstance(model, HookedModel) else HookedModel(model, None, type(model).__name__)
    with apply_at(hooked, changes(hooked, suite, interventions, q, texts)):
        yield


def _the_sae(one: Intervention, suite: Suite, prints: dict[str, str]) -> SparseAutoencoder:
    if one.sae not in suite:
        raise ConfigError(f"no autoencoder {one.sae[:200]!r}", where="steering", fix=f"There are: {', '.join(suite)}")
    sae = suite[one.sae]
    if not 0 <= one.latent < sae.config.d_sae:
        raise DataError(f"no latent {one.latent}; there are {sae.config.d_sae}", where=one.sae,
                        fix="Take a feature of this autoencoder")  # fmt: skip
    if one.fingerprint:
        if one.sae not in prints:
            prints[one.sae] = sae.fingerprint()
        if prints[one.sae] != one.fingerprint:
            raise ConfigError(f"feature {one.name} is of another autoencoder", where="steering",
                              fix="Take the autoencoder it was found with")  # fmt: skip
    return sae


def _value(one: Intervention, sae: SparseAutoencoder, q: Units | None) -> float:
    """The amount in the autoencoder's own units; the factor of `scale`."""
    if one.action == "ablate":
        return 0.0
    if not math.isfinite(one.amount):
        raise ConfigError(f"the amount is {one.amount}", where=one.name, fix="Give a finite number")
    value = one.amount
    if one.action != "scale":
        unit = float(units_of(one.sae, sae, q)[one.latent])
        if math.isnan(unit):
            known = q is not None and one.sae in q
            raise DataError(f"the feature {NO_UNIT}" if known else f"no Q_f is known of {one.sae}", where=one.name,
                            fix="Scale or ablate it, or give the scan that knows Q_f")  # fmt: skip
        value *= unit
    if abs(value) > _LARGEST:
        raise ConfigError(f"the amount {one.amount:g} is too large", where=one.name, fix="Give a smaller one")
    return value


def _the_where(one: Intervention) -> Where:
    if not isinstance(one.where, str):
        strange = [span for span in one.where if not 0 <= span[0] < span[1]]
        if strange or not one.where:
            what = f"{strange[0][0]}:{strange[0][1]} is no span of tokens" if strange else "no span of tokens is given"
            raise ConfigError(what, where=one.name, fix="Give (start, end) with 0 ≤ start < end")
    return one.where
