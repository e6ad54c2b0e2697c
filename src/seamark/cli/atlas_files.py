"""`seamark atlas import|export`: atlases from and to the formats of others."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from seamark.cli.atlas import File, FilterOptions, Filters, Out, Paths, query_of
from seamark.cli.options import Many
from seamark.cli.output import finish
from seamark.errors import ConfigError

if TYPE_CHECKING:
    from seamark.atlas import Atlas, Query
    from seamark.atlas.importing import ImportSummary
    from seamark.atlas.safe_sail import Suite

REJECTED = 10
"""Rejected entries that are printed; JSON has all."""


@dataclass(frozen=True)
class SuiteOptions:
    """The autoencoders that a Safe-SAIL file speaks of, if not the paper's."""

    model: str | None = None
    """The model they read; without it they are those of the paper, with it whatever is not given is not known."""
    hookpoint: str | None = None
    """Where they read, {layer} standing for a key's layer; layers.{layer}.mlp if not given."""
    d_in: int | None = None
    """Width of what they read."""
    d_sae: int | None = None
    """Latents of each; entries of others are rejected."""
    activation: str | None = None
    """Their activation function, such as topk."""
    k: int | None = None
    """Active latents at a position."""


SuiteGiven = Annotated[SuiteOptions, tyro.conf.OmitArgPrefixes]


def atlas_import(
    out: Out, suite: SuiteGiven, safe_sail: Many = (), neuronpedia: Paths = (), language: str = "en",
    contexts: int | None = None, json: bool = False,
) -> None:  # fmt: skip
    """Import explained features of others into an atlas.

    Args:
        out: the atlas, a file; it is made where there is none.
        suite: the autoencoders of Safe-SAIL's database.
        safe_sail: Safe-SAIL's database: a folder with en_db.json and cn_db.json (or .json.gz), or one file as en=FILE
            or zh=FILE; repeat for the other.
        neuronpedia: a folder of Neuronpedia's bulk export (JSON lines); repeat for more.
        language: code of the language of Neuronpedia's explanations, which the files do not name.
        contexts: texts kept of each feature of Neuronpedia's, of each kind; without it, a few.
        json: print the result as JSON on stdout, and nothing else there.
    """
    from seamark.atlas import AtlasWriter
    from seamark.atlas.neuronpedia import import_neuronpedia
    from seamark.atlas.safe_sail import import_safe_sail

    if not (safe_sail or neuronpedia):
        raise ConfigError("nothing to import", fix="Give --safe-sail or --neuronpedia")
    files, own = safe_sail_files(safe_sail), suite_given(suite)
    if own is not None and not files:
        raise ConfigError("only Safe-SAIL's files take it", where="--model", fix="Give --safe-sail, or leave it out")
    how = {} if contexts is None else {"contexts": contexts}
    summaries: list[ImportSummary] = []
    with _whole_or_none(out), AtlasWriter.open(out, create=True) as writer:
        if files:
            summaries.append(import_safe_sail(writer, files.get("en"), files.get("zh"), suite=own))
        for folder in neuronpedia:
            summaries.append(import_neuronpedia(writer, folder, language=language, **how))
        counts = writer.counts()
    rows = [row for summary in summaries for row in _imported(summary)]
    rows += [("features in the atlas now", f"{counts['features']:,}"),
             ("with an explanation", f"{counts['explained']:,}")]  # fmt: skip
    result = {"path": str(out), "imports": [s.model_dump(mode="json") for s in summaries], "counts": counts}
    finish(result, as_json=json, title=f"Atlas {out}", columns=("what", "value"), rows=rows)


@contextlib.contextmanager
def _whole_or_none(out: Path) -> Iterator[None]:
    """Takes a new atlas away again if nothing could be put into it."""
    was = out.exists()
    try:
        yield
    except BaseException:
        if not was and out.is_file() and _is_empty(out):
            for path in (out, Path(f"{out}-wal"), Path(f"{out}-shm")):
                path.unlink(missing_ok=True)
        raise


def _is_empty(path: Path) -> bool:
    from seamark.atlas import Atlas

    with Atlas.open(path) as atlas:
        return not atlas.runs()


def suite_given(options: SuiteOptions) -> Suite | None:
    """The autoencoders of `--model` and its like; None: those of the paper. Raises `ConfigError`."""
    from seamark.atlas.safe_sail import Suite

    given = {name: value for name, value in vars(options).items() if value is not None}
    if not given:
        return None
    if options.model is None:
        raise ConfigError("the autoencoders of which model?", where=f"--{next(iter(given)).replace('_', '-')}",
                          fix="Give --model, too")  # fmt: skip
    unknown = {"d_in": None, "d_sae": None, "activation": None, "k": None}
    return Suite(**(unknown | given))


def safe_sail_files(items: Sequence[str]) -> dict[str, Path]:
    """{language: file} of `--safe-sail`. Raises `ConfigError` on anything else."""
    from seamark.atlas.safe_sail import FILES

    found: dict[str, Path] = {}
    for item in items:
        language, equals, file = item.partition("=")
        if equals and language in FILES and file:
            given = {language: Path(file)}
        else:
            places = {code: [Path(item) / name, Path(item) / f"{name}.gz"] for code, name in FILES.items()}
            given = {code: path for code, paths in places.items() for path in paths if path.is_file()}
        if not given:
            what = f"{item!r} is neither a folder with {' or '.join(FILES.values())} nor language=file"
            raise ConfigError(what, where="--safe-sail", fix="Write --safe-sail en=en_db.json for the English file")
        if twice := [code for code in given if code in found]:
            raise ConfigError(f"two files for {twice[0]}", where="--safe-sail", fix="Give one for each language")
        found |= given
    return found


def _imported(summary: ImportSummary) -> list[tuple[str, str]]:
    rows = [("file", file) for file in summary.files]
    rows += [("imported before, left alone", file) for file in summary.already]
    rows += [("features", f"{summary.features:,}"), ("scores", f"{summary.scores:,}")]
    rows += [(f"explanations, {language}", f"{n:,}") for language, n in summary.explanations.items()]
    if summary.contexts:
        rows.append(("contexts", f"{summary.contexts:,}"))
    if summary.n_rejected:
        rows.append(("entries that could not be used", f"{summary.n_rejected:,}"))
    return rows + [(f"  {r.file}, {r.key}", r.reason) for r in summary.rejected[:REJECTED]]


def atlas_export(
    atlas: File, out: Out, to: Literal["safe-sail", "neuronpedia", "parquet", "csv", "site"], filters: Filters,
    words: str = "", contexts: int | None = None, limit: int | None = None, title: str | None = None,
    json: bool = False,
) -> None:  # fmt: skip
    """Write an atlas for others: Safe-SAIL's JSON, Neuronpedia's bulk layout, Parquet, CSV, or pages that open without
    a server.

    Args:
        atlas: the atlas.
        out: folder for the files; with --to csv, the file.
        to: in which form.
        filters: only these features (not with safe-sail).
        words: only features with these words.
        contexts: texts of each feature, at most (neuronpedia, site; 0 leaves them out of parquet).
        limit: features that get a page of their own (site).
        title: of the pages (site).
        json: print the result as JSON on stdout, and nothing else there.
    """
    from seamark.atlas import Atlas

    query = query_of(filters, words=words) if words or filters != FilterOptions() else None
    wrong = {"--title": title is not None and to != "site", "--limit": limit is not None and to != "site",
             "--contexts": contexts is not None and to in ("safe-sail", "csv"),
             "--words and filters": query is not None and to == "safe-sail"}  # fmt: skip
    if given := next((option for option, is_wrong in wrong.items() if is_wrong), None):
        raise ConfigError(f"not with --to {to}", where=given, fix="Leave it out")
    if contexts is not None and contexts < 0:
        raise ConfigError("fewer than no texts", where="--contexts", fix="Give 0 or more")
    with Atlas.open(atlas) as opened:
        paths = _written(opened, out, to, query, contexts, limit, title)
    result = {"to": to, "out": str(out), "files": [str(path) for path in paths]}
    finish(result, as_json=json, title=f"{atlas} as {to}", columns=("written",), rows=[(str(p),) for p in paths])


def _written(
    atlas: Atlas, out: Path, to: str, query: Query | None, contexts: int | None, limit: int | None, title: str | None
) -> list[Path]:
    from seamark.atlas.neuronpedia_export import export_neuronpedia
    from seamark.atlas.safe_sail import export_safe_sail
    from seamark.atlas.site import export_site
    from seamark.atlas.tables_export import export_csv, export_parquet

    texts: dict[str, Any] = {} if contexts is None else {"contexts": contexts}
    pages = texts | {name: v for name, v in (("limit", limit), ("title", title)) if v is not None}
    match to:
        case "safe-sail":
            return export_safe_sail(atlas, out)
        case "neuronpedia":
            return export_neuronpedia(atlas, out, query=query, **texts)
        case "parquet":
            return export_parquet(atlas, out, contexts=contexts != 0, query=query)
        case "csv":
            return [export_csv(atlas, out, query=query)]
    return [export_site(atlas, out, query=query, **pages)]
