"""Entities a model knows against ones it does not: which features tell them apart (the question of Safe-SAIL,
arXiv 2509.18127), with a control for how frequent and how long the names are.

A feature's activation for an entity is z / Q_f at the last token of its name, the mean over its texts. What is known is
mostly frequent too: a feature counts only for what it adds to frequency and length.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix, hstack

from seamark.atlas.records import Record
from seamark.diagnose.answering import Asked, ask
from seamark.diagnose.entities import EntityText, EntityTexts, Positions, entity_tokens
from seamark.diagnose.inspecting import Labels
from seamark.diagnose.inspection import About
from seamark.diagnose.knowing import FOLDS, Doubt, Separation, folds_of, held_out_best, out_of_fold, separate
from seamark.diagnose.languages_report import ReadSae
from seamark.diagnose.pooled import Suite, choose_units, foreign_saes, read_pooled
from seamark.errors import ConfigError, DataError
from seamark.features.gather import public_name
from seamark.features.reading import Scan
from seamark.features.scan import check_suite
from seamark.model.loading import HookedModel
from seamark.stats import Estimate, cluster_codes
from seamark.text.rendering import Rendered

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
CONFOUNDED = 0.9
"""AUROC of frequency and length alone from which on they hardly leave anything to explain."""


class KnowledgeConfig(Record):
    """How features are judged."""

    least: int = 10
    """Entities for which a feature must fire to be tested."""
    fdr: float = 0.05
    draws: int = 1000
    seed: int = 0
    max_length: int | None = None
    chat: bool | None = None
    """Ask questions with the chat template; None: if the tokenizer has one."""
    new_tokens: int = 16


class KnowledgeFeature(Record):
    """A feature's activation at the last token of an entity's name."""

    sae: str
    latent: int
    hookpoint: str
    q: float
    label: str | None = None
    side: Literal["known", "unknown"]
    """For which entities it is stronger."""
    fired: int
    known: float
    unknown: float
    difference: Estimate
    """`known` − `unknown`; intervals resample entities."""
    auroc: Estimate
    """Share of pairs (known, unknown) in which the known one is higher."""
    q_value: float | None
    """Rank-sum test, Benjamini-Hochberg over all features of all autoencoders that were tested."""
    controlled_q: float | None
    """The same of the score test beside the covariates."""
    controlled_side: Literal["known", "unknown"] | None
    """For which entities it is stronger than the covariates let expect."""
    no_control: str = ""
    """Why there is no such test."""
    added: Estimate
    """AUROC, on entities held out, of the covariates with the feature less that of the covariates alone."""
    beyond_covariates: bool | None
    """Both q-values are at most the rate, `controlled_side` is `side`, and the interval of `added` lies above 0; none
    where there is no `controlled_q`."""


class KnowledgeReport(Record):
    """Known against unknown entities."""

    model: str
    config: KnowledgeConfig
    saes: tuple[ReadSae, ...]
    known: int
    unknown: int
    texts: int
    rejected: int
    """Rows that could not be used."""
    unread: int
    """Texts whose entity was cut off, or has no token."""
    asked: Asked | None
    """None: the file says what is known."""
    covariates: tuple[str, ...]
    no_frequency: str = ""
    """Why frequency is not among them."""
    covariates_auroc: Estimate
    """Of the covariates alone, on entities held out."""
    tested: int
    apart: int
    """Features that tell them apart, by `q_value`."""
    controlled: int
    """Features of which enough is left beside the covariates to test them."""
    apart_controlled: int
    """By both q-values, on the same side."""
    apart_otherwise: int
    """By both q-values, but beside the covariates on the other side."""
    held_out: Estimate
    """AUROC of the single best feature, chosen in the other four fifths: what the table's best promises for other
    entities."""
    features: tuple[KnowledgeFeature, ...]
    """Of those tested, the farthest from an AUROC of ½."""
    caveats: tuple[str, ...]


def knowledge(
    model: HookedModel, suite: Suite, texts: EntityTexts, *, scan: Scan | None = None, labels: Labels | None = None,
    config: KnowledgeConfig | None = None, top: int = 30,
) -> KnowledgeReport:  # fmt: skip
    """Find the features that tell known from unknown entities.

    Args:
        model: any model with hookpoints; a causal language model where questions decide what is known.
        suite: {sae id: autoencoder}; all are read in one pass.
        texts: entities (`read_entities`), with frequencies if there are any.
        scan: gives Q_f; without one, the last tokens of the entities do.
        labels: what is known of features.
        config: how they are judged.
        top: features in the table.

    Raises:
        ConfigError: autoencoders or a scan of another model; settings out of range; questions for a model that does
            not answer.
        DataError: all entities are known, or none; no text in which an entity can be read.
    """
    config = config or KnowledgeConfig()
    if config.draws < 2 or config.least < 1 or top < 1 or not 0 < config.fdr < 1:
        raise ConfigError("a setting is out of range", where="knowledge",
                          fix="Take draws from 2, least and top from 1, fdr in (0, 1)")  # fmt: skip
    check_suite(model, suite)
    asked = None
    if texts.undecided:
        texts, asked = ask(model, texts, chat=config.chat, new_tokens=config.new_tokens)
    entities = _Entities.of(model, texts, config)
    found = read_pooled(model, suite, entities.texts, entities.positions, title="Entities")
    units, origin = choose_units(model, suite, found, scan, "the last tokens of the entities")
    joined = {name: entities.mean(found[name].normalised(units[name])) for name in suite}
    y, names = entities.known, list(suite)
    whole = hstack([joined[name] for name in names], format="csr")
    split = separate(whole, y, entities.covariates, config.least)
    doubt = Doubt(y, folds_of(y, config.seed), config.draws, config.seed)
    base = out_of_fold(entities.covariates, y, doubt.fold)
    order = np.argsort(-np.abs(split.auroc - 0.5), kind="stable")  # NaN come last
    chosen = order[np.isfinite(split.p[order])][:top]
    places = _places(suite, chosen)
    rows = [_numbers(i, whole, split, entities, doubt, base, config) for i in chosen.tolist()]
    abouts = {place: _about(labels, *place) for place in places}
    alone = doubt.area(base, by_fold=True)
    with np.errstate(invalid="ignore"):
        apart = split.q_value <= config.fdr
        both = apart & (split.controlled_q <= config.fdr)
        agree = (split.auroc >= 0.5) == (split.direction > 0)
    return KnowledgeReport(
        model=public_name(model), config=config,
        saes=tuple(ReadSae(id=name, hookpoint=suite[name].config.hookpoint, d_sae=suite[name].config.d_sae,
                           with_q=int(np.isfinite(units[name]).sum()), q_from=origin[name]) for name in names),
        known=int(y.sum()), unknown=int((y == 0).sum()), texts=len(entities.texts), rejected=len(texts.rejected),
        unread=entities.unread, asked=asked, covariates=entities.names, no_frequency=entities.no_frequency,
        covariates_auroc=alone, tested=int(np.isfinite(split.p).sum()), apart=int(apart.sum()),
        controlled=int(np.isfinite(split.controlled_p).sum()), apart_controlled=int((both & agree).sum()),
        apart_otherwise=int((both & ~agree).sum()),
        held_out=doubt.area(held_out_best(whole, y, doubt.fold, config.least), by_fold=True),
        features=tuple(
            KnowledgeFeature(sae=sae, latent=latent, hookpoint=suite[sae].config.hookpoint,
                             q=float(units[sae][latent]), label=abouts[sae, latent].label, **row)
            for row, (sae, latent) in zip(rows, places, strict=True)
        ),
        caveats=(*foreign_saes(model, suite), *_caveats(entities, alone)),
    )  # fmt: skip


@dataclass(frozen=True, eq=False)
class _Entities:
    """The texts that are read, and what is known of each entity [entities]."""

    texts: list[Rendered]
    positions: list[Positions]
    owner: Integers
    """[texts] the entity of each."""
    known: Integers
    covariates: Floats
    """[entities, covariates]"""
    names: tuple[str, ...]
    no_frequency: str
    unread: int

    @classmethod
    def of(cls, model: HookedModel, given: EntityTexts, config: KnowledgeConfig) -> _Entities:
        renderer = model.renderer(config.max_length)
        items = {(item.entity, item.text): item for item in given.items}
        kept, texts, positions = list[EntityText](), list[Rendered](), list[Positions]()
        for number, item in enumerate(items.values(), 1):
            text = renderer.render_text(item.text, f"text {number}")
            at = entity_tokens(text, item.entity)
            if len(at):
                kept.append(item)
                texts.append(text)
                positions.append(at)
        if not kept:
            raise DataError("no entity can be read: none has a token, or all were cut off", where="entities",
                            fix="Give shorter texts, or raise max_length as far as the model goes")  # fmt: skip
        owner = cluster_codes([item.entity for item in kept])
        known = np.zeros(int(owner.max()) + 1, np.int64)
        known[owner] = [bool(item.known) for item in kept]
        for side, name in ((1, "known"), (0, "unknown")):
            if (known == side).sum() < FOLDS:
                raise DataError(f"{(known == side).sum()} {name} entities; {FOLDS} are needed at least",
                                where="entities", fix="Give entities of both kinds")  # fmt: skip
        covariates, names, no_frequency = _covariates(kept, positions, owner)
        return cls(texts, [at[-1:] for at in positions], owner, known, covariates, names, no_frequency,
                   len(items) - len(kept))  # fmt: skip

    def mean(self, x: csr_matrix) -> csr_matrix:
        """Rows of texts [texts, d_sae] as means of entities [entities, d_sae]."""
        return _mean_of(self.owner, len(self.known)) @ x


def _mean_of(owner: Integers, n: int) -> csr_matrix:
    weight = 1.0 / np.bincount(owner, minlength=n)[owner]
    return csr_matrix((weight, (owner, np.arange(len(owner)))), shape=(n, len(owner)))


def _covariates(
    items: Sequence[EntityText], positions: Sequence[Positions], owner: Integers
) -> tuple[Floats, tuple[str, ...], str]:  # fmt: skip
    """(values [entities, covariates], their names, why frequency is not among them)."""
    found = {
        "tokens of the name": [len(at) for at in positions],
        "characters of the name": [len(item.entity) for item in items],
        "tokens before its last": [int(at[-1]) for at in positions],
    }
    missing = sum(item.frequency is None for item in items)
    why = ""
    if missing:
        none = missing == len(items)
        why = "no frequency is given" if none else f"{missing} of {len(items)} texts have no frequency"
        why += "; count them in a corpus"
    else:
        found = {"log(1 + frequency)": [np.log1p(item.frequency or 0.0) for item in items], **found}
    columns = np.stack([np.asarray(column, np.float64) for column in found.values()], axis=1)
    values, names = np.asarray(_mean_of(owner, int(owner.max()) + 1) @ columns), tuple(found)
    if not missing:
        # What is known need not rise with log frequency along a logistic curve: rare names may all be unknown alike.
        values = np.column_stack([values, (values[:, 0] - values[:, 0].mean()) ** 2])
        names = (*names, "log(1 + frequency) squared")
    return values, names, why


def _places(suite: Suite, columns: Integers) -> list[tuple[str, int]]:
    """(sae id, latent) of columns of all autoencoders side by side."""
    names = list(suite)
    starts = np.cumsum([0, *(suite[name].config.d_sae for name in names)])
    of = np.searchsorted(starts, columns, side="right") - 1
    return [(names[k], int(column - starts[k])) for k, column in zip(of.tolist(), columns.tolist(), strict=True)]


def _about(labels: Labels | None, sae: str, latent: int) -> About:
    return About() if labels is None else labels(sae, [latent]).get(latent) or About()


def _numbers(
    i: int, x: csr_matrix, split: Separation, entities: _Entities, doubt: Doubt, base: Floats, config: KnowledgeConfig
) -> dict[str, Any]:  # fmt: skip
    """A feature's row, but for its name."""
    value = x[:, [i]].toarray().ravel()
    both = out_of_fold(np.column_stack([entities.covariates, value]), doubt.y, doubt.fold)
    added = doubt.difference(both, base)
    side = "known" if split.auroc[i] >= 0.5 else "unknown"
    tested = bool(np.isfinite(split.controlled_p[i]))
    beside = ("known" if split.direction[i] > 0 else "unknown") if tested else None
    surely = bool(split.q_value[i] <= config.fdr and split.controlled_q[i] <= config.fdr) and beside == side
    return {
        "side": side, "controlled_side": beside, "no_control": split.why_no_control(i), "fired": int(split.fired[i]),
        "known": float(split.known[i]), "unknown": float(split.unknown[i]),
        "difference": doubt.mean_difference(value), "auroc": doubt.area(value),
        "q_value": _number(split.q_value[i]), "controlled_q": _number(split.controlled_q[i]), "added": added,
        "beyond_covariates": (surely and added.low is not None and added.low > 0) if tested else None,
    }  # fmt: skip


def _number(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


def _caveats(entities: _Entities, alone: Estimate) -> list[str]:
    said = []
    if entities.no_frequency:
        said.append(f"Frequency is not controlled for: {entities.no_frequency}. What is known is mostly frequent too, "
                    f"and a feature may follow frequency alone.")  # fmt: skip
    if alone.value is not None and alone.value >= CONFOUNDED:
        said.append(
            f"{', '.join(entities.names)} alone tell known from unknown entities with an AUROC of {alone.value:.2f}: "
            f"hardly anything is left that a feature could add. Match the entities."
        )
    return said
