"""`seamark concepts`: which SAE of a suite to explain, measured on contrast pairs before anything is explained."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from seamark.cli.options import Common, Many, named_saes, the_recipe
from seamark.cli.output import finish
from seamark.errors import ConfigError, FormatError

if TYPE_CHECKING:
    from seamark.features import ConceptMetrics, Scan, SuiteRanking
    from seamark.sae import Quality
    from seamark.stats import Estimate
    from seamark.text import ContrastPairs

Shared = Annotated[Common, tyro.conf.OmitArgPrefixes]


def concepts(
    common: Shared, out: Path, model: str | None = None, sae: Many = (), contrast: Many = (), scan: Path | None = None,
    reference: Path | None = None, margin: float | None = None, quality: Path | None = None, draws: int = 1000,
    seed: int = 0,
) -> None:  # fmt: skip
    """Rank SAEs by how many latents tell a concept from its absence (I_CDF), less what swapped pairs give by chance.

    Writes result.json, ranking.csv, the figure concepts.svg, the scan of the pairs, and rejected.jsonl if rows of the
    files could not be used.

    Args:
        common: options of every command.
        out: folder for the results.
        model: a folder or a Hub name; not needed with --scan.
        sae: an SAE's folder, or name=folder; repeat for a suite; not needed with --scan.
        contrast: pairs as JSONL, CSV or Parquet with with, without, concept and domain; without any, the demo pairs.
        scan: a scan of these pairs made before, instead of model and SAEs.
        reference: a scan of a reference corpus with the same SAEs, which gives Q_f for --margin.
        margin: count a latent if its activation with the concept exceeds that without it by more, in units of Q_f.
        quality: result.json of `sae eval` for the same SAEs: adds FVU to table and figure.
        draws: bootstrap draws.
        seed: seed of the bootstrap.
    """
    from seamark.features import Scan, concept_metrics, rank_suite
    from seamark.pipelines.suite import write_rejects
    from seamark.run import disk_errors, write_atomic
    from seamark.run.ranks import joined
    from seamark.show.suite_figures import suite_figure
    from seamark.text import demo_contrast_pairs, read_contrast_pairs

    if (margin is None) != (reference is None):
        raise ConfigError("a margin and the scan that gives its unit go together", where="--margin, --reference",
                          fix="Give both or neither")  # fmt: skip
    if scan is not None and (model or sae):
        raise ConfigError("a scan is given, and what to scan with too", where="--scan", fix="Give one or the other")
    pairs = read_contrast_pairs(contrast) if contrast else demo_contrast_pairs()
    with joined() as rank:
        scanned = _scanned(common, model, sae, pairs, out) if scan is None else Scan.open(scan)
        write_rejects(list(pairs.rejected), out)
        if rank != 0:
            return
        metrics = concept_metrics(scanned, pairs, reference=Scan.open(reference) if reference else None, margin=margin,
                                  draws=draws, seed=seed)  # fmt: skip
        ranking = rank_suite(metrics, _quality(quality, metrics) if quality is not None else None)
        with disk_errors(out):
            write_atomic(out / "ranking.csv", _csv(ranking))
            write_atomic(out / "concepts.svg", suite_figure(ranking))
        result = {"metrics": metrics.model_dump(mode="json"), "ranking": ranking.model_dump(mode="json"),
                  "rejected_rows": len(pairs.rejected), "drafted_pairs": sum(p.drafted for p in pairs)}  # fmt: skip
        finish(result, as_json=common.json, out=out, title=_title(metrics, ranking), columns=COLUMNS,
               rows=_rows(ranking))  # fmt: skip


def _scanned(common: Common, model: str | None, sae: Many, pairs: ContrastPairs, out: Path) -> Scan:
    """The pairs scanned into `out/scan` (made once), with the recipe's settings and at every token."""
    from seamark.features import CONTRAST_SCAN, scan
    from seamark.model import load_model
    from seamark.sae import SparseAutoencoder
    from seamark.text import contrast_corpus

    if model is None:
        raise ConfigError("no model is given", where="--model", fix="Give --model and --sae, or --scan")
    recipe = the_recipe(common)
    fixed = CONTRAST_SCAN.model_dump(include={"positions", "rewards"})
    config = recipe.scan.model_copy(update=fixed | {"max_length": recipe.scan.max_length or recipe.reward.max_length})
    suite = {name: SparseAutoencoder.from_pretrained(path) for name, path in named_saes(sae).items()}
    return scan(load_model(model), suite, contrast_corpus(pairs), out / "scan", config=config)


def _quality(path: Path, metrics: ConceptMetrics) -> dict[str, Quality]:
    """{sae id: quality} of `sae eval`'s result, for the same autoencoders."""
    from pydantic import ValidationError

    from seamark.features import SAEEvaluation
    from seamark.run import read_json

    try:
        evaluated = SAEEvaluation.model_validate(read_json(path))
    except ValidationError as e:
        raise FormatError("not the result of `seamark sae eval`", where=str(path), fix="Give its result.json") from e
    found = {one.name: one for one in evaluated.saes}
    mine = [sae for sae in metrics.saes if sae.sae in found]
    if not mine:
        raise ConfigError(f"it measures {', '.join(found)}, none of these SAEs", where=str(path),
                          fix="Name the SAEs there as here")  # fmt: skip
    for sae in mine:
        if found[sae.sae].fingerprint != sae.fingerprint:
            raise ConfigError(f"it measured another SAE called {sae.sae!r}", where=str(path), fix="Measure these SAEs")
    return {sae.sae: found[sae.sae].quality for sae in mine}


COLUMNS = ("SAE", "rank", "hookpoint", "kind", "L0", "FVU", "I_CDF", "swapped", "difference [95 %]", "rank by I_CDF")


def _rows(ranking: SuiteRanking) -> list[tuple[str, ...]]:
    from seamark.show.numbers import estimate_text, number

    return [
        (row.sae, str(row.rank), row.hookpoint, f"{row.activation} {row.k}" if row.k else row.activation,
         number(row.l0), "–" if row.fvu is None else number(row.fvu), number(row.i_cdf.value), number(row.null.value),
         estimate_text(row.difference, "number"), str(row.rank_i_cdf))
        for row in ranking.rows
    ]  # fmt: skip


def _title(metrics: ConceptMetrics, ranking: SuiteRanking) -> str:
    from seamark.show.numbers import estimate_text

    overall = metrics.saes[0].overall
    title = f"Concept metrics on {metrics.model}: {overall.n_pairs} pairs, {overall.n_concepts} concepts"
    if metrics.left_out:
        title += f" ({len(metrics.left_out)} pairs left out)"
    if len(metrics.saes) == 1:
        return title
    tau, stays = estimate_text(ranking.kendall_tau, "number"), estimate_text(ranking.top_stays)
    return f"{title}. Over other pairs: Kendall's τ {tau}; share in which the first stays first: {stays}"


def _csv(ranking: SuiteRanking) -> str:
    """A row an autoencoder, best first; empty cells are not available."""
    plain = ("rank", "rank_i_cdf", "sae", "hookpoint", "activation", "k", "d_sae", "l0", "fvu", "quality_l0")
    estimates = ("i_cdf", "null", "difference")
    file = io.StringIO()
    table = csv.writer(file, lineterminator="\n")
    table.writerow([*plain, *(f"{name}{end}" for name in estimates for end in ("", "_low", "_high"))])
    for row in ranking.rows:
        cells: list[Any] = [getattr(row, name) for name in plain]
        table.writerow([*cells, *(v for name in estimates for v in _cells(getattr(row, name)))])
    return file.getvalue()


def _cells(estimate: Estimate) -> tuple[float | None, float | None, float | None]:
    return estimate.value, estimate.low, estimate.high
