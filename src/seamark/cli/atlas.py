"""`seamark atlas build|landscape|info|search`: one file of explained features, made and looked into."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from seamark.cli.options import Many, named_saes, parse_pairs
from seamark.cli.output import finish
from seamark.errors import ConfigError

if TYPE_CHECKING:
    from seamark.atlas import Card, Overview, Query
    from seamark.atlas.build import BuildSummary

Paths = Annotated[tuple[Path, ...], tyro.conf.UseAppendAction]
File = Annotated[Path, tyro.conf.Positional]
Out = Annotated[Path, tyro.conf.arg(aliases=["-o"])]
LONGEST = 90
"""Characters of an explanation in a table."""


@dataclass(frozen=True)
class FilterOptions:
    """Which features; all that is given must hold."""

    layer: int | None = None
    """Of this layer."""
    sae: str | None = None
    """Of this autoencoder."""
    domain: str | None = None
    """With a tag of this domain."""
    concept: str | None = None
    """With this tag: a concept, or domain/concept."""
    state: Literal["text", "masked", "null", "failed"] | None = None
    """Whose explanation shown first is so."""
    language: str | None = None
    """With an explanation in this language."""
    min_score: float | None = None
    """With at least this simulation score."""
    max_score: float | None = None
    """With at most this simulation score."""
    min_rating: int | None = None
    """Rated at least so, 1 to 5."""
    sign: Literal["chosen", "rejected"] | None = None
    """That fire on chosen or on rejected answers."""
    explained: Literal["yes", "no"] | None = None
    """With an explanation, or without."""


Filters = Annotated[FilterOptions, tyro.conf.OmitArgPrefixes]


def atlas_build(
    out: Out, run: Paths = (), scan: Paths = (), explained: Paths = (), simulated: Paths = (), rated: Paths = (),
    contrast: Paths = (), effects: Many = (), features: Paths = (), sae: Many = (), all: bool = False,
    landscape: bool = True, seed: int = 0, json: bool = False,
) -> None:  # fmt: skip
    """Build an atlas from results, or add to one: features that are explained, simulated, rated, contrasted or asked
    for, with all that is known of them.

    Run it again after a break: what is complete is left alone, and the rest goes on.

    Args:
        out: the atlas, a file; it is made where there is none.
        run: a run's folder, such as runs/demo: everything below it is taken. Repeat for more, as all of these.
        scan: a scan's folder: statistics of features, and contexts where no explanation brings some.
        explained: a folder of `explain`; the scan it is from is found by itself if it still lies there.
        simulated: a folder of `simulate`.
        rated: a folder of `ratings import`.
        contrast: a feature set of `contrast`, a file or its folder.
        effects: effects.json of a run, as sae=FILE.
        features: a feature set (JSON) of other features that are to be in it.
        sae: the scan's SAEs as name=folder: for nearest features and the landscape of directions.
        all: take in every latent that ever fires.
        landscape: lay the features out in the plane.
        seed: of the landscapes.
        json: print the result as JSON on stdout, and nothing else there.
    """
    from seamark.atlas.build import build_atlas
    from seamark.atlas.finding import sources_below, suite_of
    from seamark.features import FeatureSet, Scan

    below = [sources_below(folder) for folder in run]
    scans = [*(Scan.open(folder) for folder in scan), *(s for found in below for s in found.scans)]
    suite = _suite(sae) | suite_of((path for found in below for path in found.saes), scans)
    summary = build_atlas(
        out, scans=scans,
        explained=[*explained, *(path for found in below for path in found.explained)],
        simulated=[*simulated, *(path for found in below for path in found.simulated)],
        rated=[*rated, *(path for found in below for path in found.rated)],
        contrasts=[*contrast, *(path for found in below for path in found.contrasts)],
        effects=[*_effects(effects), *(pair for found in below for pair in found.effects)],
        features=[FeatureSet.load(path) for path in features], suite=suite, everything=all, landscape=landscape,
        seed=seed,
    )  # fmt: skip
    finish(summary.model_dump(mode="json"), as_json=json, title=f"Atlas {out}", columns=("what", "value"),
           rows=_built(summary))  # fmt: skip


def atlas_landscape(
    atlas: File, sae: Many = (), seed: int = 0, json: bool = False
) -> None:  # fmt: skip
    """Lay the features of an atlas out in the plane: by their explanations, and by their directions where SAEs are
    given, which also gives nearest features. `build` does so by itself; this is for atlases that were imported.

    Args:
        atlas: the atlas.
        sae: SAEs of the atlas as name=folder.
        seed: another seed gives another picture.
        json: print the result as JSON on stdout, and nothing else there.
    """
    from seamark.atlas.build import add_landscapes

    summary = add_landscapes(atlas, _suite(sae), seed=seed)
    finish(summary.model_dump(mode="json"), as_json=json, title=f"Atlas {atlas}", columns=("what", "value"),
           rows=_built(summary))  # fmt: skip


def atlas_info(atlas: File, update: bool = False, json: bool = False) -> None:
    """What is in an atlas, in numbers.

    Args:
        atlas: the atlas.
        update: first bring a file of an earlier version of Seamark up to date.
        json: print the result as JSON on stdout, and nothing else there.
    """
    from seamark.atlas import Atlas, AtlasWriter

    if update:
        AtlasWriter.open(atlas).close()
    with Atlas.open(atlas) as opened:
        overview = opened.overview()
    finish(overview.model_dump(mode="json"), as_json=json, title=f"Atlas {atlas}", columns=("what", "value"),
           rows=_overview(overview))  # fmt: skip


def atlas_search(
    atlas: File, filters: Filters, words: Annotated[tuple[str, ...], tyro.conf.Positional] = (),
    sort: Literal["relevance", "score", "rating", "contrast", "share", "id"] | None = None, ascending: bool = False,
    limit: int = 20, offset: int = 0, json: bool = False,
) -> None:  # fmt: skip
    """Search an atlas: words of explanations, tags and names; "a phrase" in quotes; -word leaves out (write it behind
    another one, or all of them in one pair of quotes). The last word may be the beginning of one.

    Args:
        atlas: the atlas.
        filters: which features.
        words: what to look for; nothing: all features.
        sort: by what; without it by relevance, or by score where there are no words.
        ascending: smallest first.
        limit: how many to show, at most 500.
        offset: how many to pass over.
        json: print the result as JSON on stdout, and nothing else there.
    """
    from seamark.atlas import Atlas

    text = " ".join(words)
    how = {"sort": sort or ("relevance" if text else "score"), "descending": not ascending and sort != "id"}
    query = query_of(filters, words=text, limit=limit, offset=offset, **how)
    with Atlas.open(atlas) as opened:
        found = opened.find(query)
    total = f"{'at least ' * found.capped}{found.total:,} features"
    finish(found.model_dump(mode="json"), as_json=json, title=f"{total} in {atlas}", columns=COLUMNS,
           rows=[_card(card) for card in found.cards] or [("none", *["–"] * (len(COLUMNS) - 1))])  # fmt: skip


def query_of(filters: FilterOptions, **other: Any) -> Query:
    """The query that options stand for. Raises `ConfigError`, which names the option."""
    from pydantic import ValidationError

    from seamark.atlas import Query

    given = {name: value for name, value in vars(filters).items() if value is not None}
    if filters.sign is not None:
        given["sign"] = 1 if filters.sign == "chosen" else -1
    if filters.explained is not None:
        given["explained"] = filters.explained == "yes"
    try:
        return Query(**given, **other)
    except ValidationError as e:
        first = e.errors()[0]
        raise ConfigError(str(first["msg"]), where=f"--{str(first['loc'][0]).replace('_', '-')}") from None


def _suite(items: Many) -> dict[str, Any]:
    from seamark.sae import SparseAutoencoder

    return {name: SparseAutoencoder.from_pretrained(path) for name, path in named_saes(items).items()} if items else {}


def _effects(items: Many) -> list[tuple[str, Path]]:
    found = parse_pairs(items, "--effects", "sae=runs/demo/clean/effects/effects.json")
    return [(sae, Path(file)) for sae, files in found.items() for file in files]


def _built(summary: BuildSummary) -> list[tuple[str, str]]:
    names = ("features", "explained", "explanations", "simulations", "ratings", "evidence", "contexts", "neighbours")
    rows = [(name, f"{getattr(summary, name):,}") for name in names]
    rows.append(("landscapes", ", ".join(summary.layouts) or "none"))
    rows += [("written", title) for title in summary.written]
    rows += [("complete before", title) for title in summary.skipped]
    return [*rows, *(("note", note) for note in summary.notes)]


def _overview(o: Overview) -> list[tuple[str, str]]:
    from seamark.show.numbers import number

    rows = [
        ("models", ", ".join(o.models) or "none"), ("features", f"{o.features:,}"), ("explained", f"{o.explained:,}"),
        ("tagged", f"{o.tagged:,}"), ("rated", f"{o.rated:,}"), ("scored", f"{o.scored:,}"),
        ("scores: mean, highest", f"{number(o.mean_score)}, {number(o.max_score)}"), ("contexts", f"{o.contexts:,}"),
        ("landscapes", ", ".join(o.layouts) or "none"),
    ]  # fmt: skip
    rows += [(f"SAE {s.id}", f"{s.hookpoint} of {s.model}, {s.features:,} features") for s in o.saes]
    rows += [(f"layer {count.name}", f"{count.count:,}") for count in o.layers]
    rows += [(f"domain {count.name}", f"{count.count:,}") for count in o.domains]
    rows += [
        (f"language {one.language}", f"{one.features:,} features, {one.tagged:,} tagged ({_domains(one.domains)}), "
                                     f"{one.masked:,} masked, {one.null:,} without a text")
        for one in o.languages
    ]  # fmt: skip
    return [*rows, *((f"run {run.kind}", f"{run.title} ({run.created})") for run in o.runs)]


def _domains(domains: Sequence[Any]) -> str:
    return ", ".join(f"{count.name} {count.count:,}" for count in domains) or "none"


COLUMNS = ("feature", "layer", "explanation", "domains", "score", "rating", "contrast")


def _card(card: Card) -> tuple[str, ...]:
    from seamark.show.numbers import number, signed

    label = " ".join((card.label or f"({card.state or 'not explained'})").split())
    return (
        f"{card.sae}/{card.latent}", str(card.layer), label if len(label) <= LONGEST else f"{label[: LONGEST - 1]}…",
        ", ".join(card.domains) or "–", "–" if card.score is None else number(card.score),
        "–" if card.rating is None else str(card.rating), "–" if card.contrast is None else signed(card.contrast),
    )  # fmt: skip
