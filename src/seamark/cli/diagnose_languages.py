"""`seamark diagnose languages`: the same prompts in several languages, and which features fall away where."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from seamark.cli.options import Common, Many, named_saes, the_recipe
from seamark.cli.output import finish
from seamark.errors import ConfigError

if TYPE_CHECKING:
    from seamark.diagnose.languages_report import LanguageFeature, LanguageResult, LanguagesReport, Stratum

Shared = Annotated[Common, tyro.conf.OmitArgPrefixes]
COLUMNS = ("language", "prompts", "layer", "features", "fire", "still fire", "by chance", "beyond chance",
           "against others", "any two of the reference", "tokens ×", "unread", "flag")  # fmt: skip


def diagnose_languages(
    common: Shared, model: str, prompts: Many, sae: Many = (), reference: str = "en", language: Many = (),
    scan: Path | None = None, atlas: Path | None = None, features: Path | None = None, sample: int | None = None,
    id_column: str = "id", texts_column: str = "texts", language_column: Many = (), fires_at: float = 0.0,
    threshold: float = 0.5, least: int = 10, draws: int = 1000, seed: int = 0, chat: bool = False,
    max_length: int | None = None, top: int = 50, out: Path | None = None,
) -> None:  # fmt: skip
    """Read the same prompts in several languages and tell which features still fire, and which fall away where.

    Retention is the share of the features firing in the reference that still fire in the translation, by layer and,
    with --atlas or --features, by domain, beside what texts of other prompts keep by chance. A domain is flagged
    where the interval's upper end stays below --threshold. Writes result.json.

    Args:
        common: options of every command.
        model: a folder or a Hub name.
        prompts: JSONL, CSV or Parquet of {id, texts: {language: text}}; repeat for more.
        sae: an SAE's folder, or name=folder; repeat for a suite: all layers are read in one pass.
        reference: the language others are compared with.
        language: only these languages; repeat for more.
        scan: a scan with the same model and SAEs, which gives Q_f; without one, the reference's texts do.
        atlas: an atlas; its domains are looked at by themselves.
        features: a feature set (JSON) that is looked at by itself, such as safety features.
        sample: at most so many prompts.
        id_column: where the id is.
        texts_column: where the mapping from languages to texts is.
        language_column: language=column, for files with a column for each language; repeat for more.
        fires_at: a feature fires in a text where z / Q_f is above this.
        threshold: retention that has to be reached.
        least: prompts in whose reference text a feature must fire to be judged by itself.
        draws: bootstrap draws.
        seed: of the sample and the draws.
        chat: read prompts with the chat template.
        max_length: most tokens; longer texts are left out.
        top: features kept of each end of the table.
        out: folder for result.json.
    """
    from seamark.atlas.store import Atlas
    from seamark.diagnose import LanguagesConfig, ParallelColumns, atlas_labels, languages, match_saes, read_parallel
    from seamark.features import FeatureSet, Scan
    from seamark.model import load_model
    from seamark.pipelines.suite import write_rejects
    from seamark.sae import SparseAutoencoder

    the_recipe(common)
    columns = ParallelColumns(id=id_column, texts=texts_column, languages=_columns(language_column))
    found = read_parallel(prompts, columns).choose(reference, language, sample, seed)
    suite = {name: SparseAutoencoder.from_pretrained(place) for name, place in named_saes(sae).items()}
    config = LanguagesConfig(fires_at=fires_at, threshold=threshold, least=least, draws=draws, seed=seed, chat=chat,
                             max_length=max_length)  # fmt: skip
    with ExitStack() as held:
        labels = None
        if atlas is not None:
            opened = held.enter_context(Atlas.open(atlas))
            labels = atlas_labels(opened, match_saes(opened, suite))
        done = languages(
            load_model(model), suite, found, reference, scan=None if scan is None else Scan.open(scan), labels=labels,
            features=None if features is None else FeatureSet.load(features), config=config, top=top,
        )  # fmt: skip
    if out is not None:
        write_rejects(list(found.rejected), out)
    finish(done.model_dump(mode="json"), as_json=common.json, out=out, title=_title(done), columns=COLUMNS,
           rows=[row for one in done.languages for row in _rows(one)])  # fmt: skip


def _columns(given: Many) -> dict[str, str]:
    found = {}
    for item in given:
        language, equals, column = item.partition("=")
        if not (language and equals and column) or language in found:
            raise ConfigError(f"{item[:80]!r} is no language=column of its own", where="--language-column",
                              fix="Write --language-column hi=Hindi")  # fmt: skip
        found[language] = column
    return found


def _rows(one: LanguageResult) -> list[tuple[str, ...]]:
    from seamark.show.numbers import number, percent

    if one.tokenised is None:
        return [(one.language, str(one.prompts), f"not available: {one.reason}", *[""] * 10)]
    parts = (one.tokenised.unknown.value, one.tokenised.in_parts.value)
    unread = None if None in parts else sum(part for part in parts if part is not None)
    rows = []
    layers = {s.hookpoint for s in one.strata}
    shown = [s for s in one.strata if s.hookpoint != "all" or len(layers) > 2]  # of one layer, all is that layer
    for i, stratum in enumerate(shown):
        name = stratum.hookpoint if stratum.domain == "all" else f"{stratum.hookpoint} {stratum.domain}"
        first = (one.language, str(one.prompts)) if i == 0 else ("", "")
        last = (number(one.tokenised.premium.value), percent(unread)) if i == 0 else ("", "")
        rows.append((*first, name, *_cells(stratum), *last, _flag(stratum)))
    return rows


def _flag(stratum: Stratum) -> str:
    flags = ("missing" * stratum.flagged, "by chance" * stratum.chance_only)
    return ", ".join(flag for flag in flags if flag)


def _cells(stratum: Stratum) -> tuple[str, ...]:
    from seamark.show.numbers import estimate_text, number

    return (str(stratum.features), number(stratum.fired.value), estimate_text(stratum.retention),
            estimate_text(stratum.chance), estimate_text(stratum.above_chance, "points"),
            "–" if stratum.domain == "all" else estimate_text(stratum.against_others, "points"),
            estimate_text(stratum.reference_within))  # fmt: skip


def _title(done: LanguagesReport) -> str:
    lines = [f"{done.prompts:,} prompts in {done.reference} and {len(done.languages)} other languages through "
             f"{done.model}"]  # fmt: skip
    lines += [f"{s.id} at {s.hookpoint}: {s.with_q:,} of {s.d_sae:,} features have a Q_f, from {s.q_from}"
              for s in done.saes]  # fmt: skip
    if done.rejected:
        lines.append(f"{done.rejected:,} texts or rows rejected")
    lines += [
        done.rule,
        done.feature_rule,
        f"{done.in_all:,} features are kept in each of {', '.join(done.in_all_of) or 'no language'}",
    ]
    lines += [f"{one.language}: {one.kept:,} kept, {one.falls_away:,} fall away, {one.unclear:,} unclear"
              + (f"; {one.cut:,} prompts too long" if one.cut else "") for one in done.languages]  # fmt: skip
    lines += [f"falls away in {', '.join(row.falls_away_in)}: {_feature(row)}" for row in done.features[:5]
              if row.falls_away_in]  # fmt: skip
    return "\n".join([*lines, *(f"note: {caveat}" for caveat in done.caveats)])


def _feature(row: LanguageFeature) -> str:
    """`l3/12 label: en 0.41, hi 0.08 (−0.33 [−0.36 to −0.30])` of the language in which it falls furthest."""
    from seamark.show.numbers import estimate_text, number

    falling = [found for found in row.languages if found.state == "falls away"]
    where = min(falling, key=lambda found: found.difference.value or 0.0)
    label = f" {row.label[:60]}" if row.label else ""
    return (f"{row.sae}/{row.latent}{label}: {number(where.reference)}, in {where.language} "
            f"{number(where.activation)} ({estimate_text(where.difference, 'signed')})")  # fmt: skip
