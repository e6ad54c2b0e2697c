"""`seamark ratings export|import`: have people rate features blindly, and compare."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from seamark.cli.output import finish
from seamark.errors import DataError

if TYPE_CHECKING:
    from seamark.explain.agreement import Comparison
    from seamark.explain.human import Agreement, Rated
    from seamark.features.context_choice import Key

CONTEXTS, EXPLANATIONS = "contexts.jsonl", "explanations.jsonl"


def ratings_export(
    explained: Path, out: Path, scan: Path | None = None, group: str = "safety", n: int = 100, seed: int = 0,
    per_level: bool = True, json: bool = False,
) -> None:  # fmt: skip
    """Write a blind rating sheet of sampled features: a folder for the rater, and the key to it for you.

    Args:
        explained: folder that `explain` wrote: contexts, and explanations with the ratings to check.
        scan: check statistical ratings from this scan instead of the explanations' (lexical ones have none).
        group: with --scan, the group of safety texts.
        out: folder to write to; give the rater its folder `sheet` alone.
        n: how many features.
        seed: another seed draws other features and gives other codes.
        per_level: the same number of each rating, as far as there are any; --no-per-level: as they come.
        json: print the result as JSON on stdout, and nothing else there.
    """
    from seamark.explain.folder import check_folder
    from seamark.explain.human import KEY, SHEET, export_sheet
    from seamark.explain.records import read_explanations
    from seamark.features.context_sets import read_contexts

    check_folder(explained)
    contexts = read_contexts(explained / CONTEXTS)
    ratings: Mapping[Key, Rated] = (
        read_explanations(explained / EXPLANATIONS) if scan is None else _statistical(scan, list(contexts), group)
    )
    key = export_sheet(contexts, ratings, out, n, seed, per_level=per_level)
    sampled = {level: sum(e.rating == level for e in key.features) for level in key.population}
    result = key.model_dump(mode="json", exclude={"features"}) | {"features": len(key.features), "sampled": sampled}
    rows = [(f"rated {level} by the machine", f"{sampled[level]} of {key.population[level]:,}")
            for level in sorted(sampled, reverse=True)]  # fmt: skip
    rows += [(f"left out: {reason}", f"{count:,}") for reason, count in key.left_out.items()]
    rows += [("for the rater", str(out / SHEET)), ("not for the rater", str(out / KEY)),
             ("next", f"seamark ratings import FILE… --key {out / KEY} --out …")]  # fmt: skip
    finish(result, as_json=json, out=out, title=f"Rating sheet {key.sheet}: {len(key.features)} features",
           columns=("what", "value"), rows=rows)  # fmt: skip


def _statistical(path: Path, keys: Sequence[Key], group: str) -> dict[Key, Rated]:
    from seamark.explain.ratings import statistical_ratings
    from seamark.features import Scan

    scan = Scan.open(path)
    saes = dict.fromkeys(sae for sae, _ in keys)
    return {(rating.sae, rating.latent): rating for sae in saes
            for rating in statistical_ratings(scan, sae, [i for name, i in keys if name == sae], group)}  # fmt: skip


def ratings_import(
    sheets: Annotated[tuple[Path, ...], tyro.conf.Positional], key: Path, out: Path, draws: int = 1000, seed: int = 0,
    json: bool = False,
) -> None:  # fmt: skip
    """Compare what raters sent back with the machine's ratings, and with each other.

    Args:
        sheets: the raters' CSV files, named after them.
        key: the key.json of the export.
        out: folder for the result and for all ratings, feature by feature.
        draws: resamples of the intervals.
        seed: of the resampling.
        json: print the result as JSON on stdout, and nothing else there.
    """
    from seamark.explain.human import SheetKey, import_sheet

    if not sheets:
        raise DataError("no rating sheet is given", fix="Name the CSV files that the raters sent back")
    found = import_sheet(sheets, SheetKey.load(key), draws=draws, seed=seed)
    _write_features(found, out)
    result = found.model_dump(mode="json", exclude={"features"})
    _show(found, result, out, as_json=json)


def _write_features(found: Agreement, out: Path) -> None:
    from seamark.run import disk_errors, write_atomic

    rows = (json.dumps(f.model_dump(mode="json"), ensure_ascii=False) for f in found.features)
    with disk_errors(out):
        write_atomic(out / "ratings.jsonl", "".join(f"{row}\n" for row in rows))


def _show(found: Agreement, result: dict[str, Any], out: Path, *, as_json: bool) -> None:
    """Table of the machine against the raters and of the raters against each other; level by level; the checks."""
    if not as_json:
        _print(f"Human check: {found.machine} against {found.overall.second}", ("measure", "value"), _measures(found))
        if len(found.raters) > 1:
            _print("One by one", ("who", "features", "equal", "κ, quadratic weights"), _raters(found))
        _print("Machine's rating (rows) and the raters' (columns)", *_levels(found.overall))
        if found.bad_rows:
            _print("Rows not used", ("rater", "row", "code", "why"),
                   [(b.rater, b.row, b.code or "–", b.reason) for b in found.bad_rows])  # fmt: skip
    checks = [(c.name, c.value, c.status, c.note or "–") for c in found.checks]
    finish(result, as_json=as_json, out=out, title="Thresholds, on equal ratings",
           columns=("check", "value", "status", "note"), rows=checks)  # fmt: skip


def _print(title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    from rich.console import Console

    from seamark.show.tables import rich_table

    Console().print(rich_table(title, columns, rows))


def _measures(found: Agreement) -> list[tuple[str, Any]]:
    from seamark.show.numbers import estimate_text

    overall = found.overall
    rows: list[tuple[str, Any]] = [
        ("features", f"{overall.n_features:,} of {found.n_features:,}"), ("equal", overall.exact),
        ("equal, each level as among all features", found.population_exact), ("at most one apart", overall.within_one),
        ("agree on whether it is rated 5", overall.relevant),
    ]  # fmt: skip
    for name, estimate in (("κ", overall.kappa), ("κ, linear weights", overall.kappa_linear), ("κ, quadratic weights",
                           overall.kappa_quadratic), ("κ of being rated 5", overall.relevant_kappa)):  # fmt: skip
        rows.append((name, estimate_text(estimate, "number")))
    return rows


def _raters(found: Agreement) -> list[tuple[Any, ...]]:
    """The machine with each rater, then the raters with each other."""
    from seamark.show.numbers import estimate_text

    named = [(f"machine, {c.second}", c) for c in found.by_rater]
    named += [(f"{c.first}, {c.second}", c) for c in found.between]
    return [(name, f"{c.n_features:,}", c.exact, estimate_text(c.kappa_quadratic, "number")) for name, c in named]


def _levels(overall: Comparison) -> tuple[tuple[str, ...], list[tuple[Any, ...]]]:
    rows = [(level, *overall.confusion[level - 1], overall.by_level[level]) for level in (5, 4, 3, 2, 1)]
    return ("machine", "1", "2", "3", "4", "5", "equal"), rows
