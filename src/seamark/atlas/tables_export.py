"""An atlas as tables: Parquet for programs, with everything in it, and CSV for spreadsheets, a row per feature."""

from __future__ import annotations

import contextlib
import csv
import io
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from seamark.atlas.exporting import whole_folder
from seamark.atlas.records import FeatureDetail, Query
from seamark.atlas.store import Atlas
from seamark.atlas.texts import storable
from seamark.run import disk_errors, write_atomic
from seamark.show.rating_sheet import harmless_cell
from seamark.stats import Estimate

if TYPE_CHECKING:
    import pyarrow as pa

KIND = "Parquet"
GROUP = 20_000
"""Rows of a row group, which are what is held in memory of a table."""
GROUP_CONTEXTS = 2_000
CONTEXTS = 1_000_000
"""Contexts of a feature; all of them."""
CSV_COLUMNS = (
    "sae", "latent", "model", "hookpoint", "layer", "state", "explanation", "language", "method", "domains", "concepts",
    "score", "score_low", "score_high", "rating", "sign", "contrast", "firings", "share", "mean", "max", "texts", "q",
    "explanations", "other_explanations", "promoted", "suppressed",
)  # fmt: skip
_TEXT = ("sae", "model", "hookpoint", "state", "explanation", "language", "method", "domains", "concepts",
         "other_explanations", "promoted", "suppressed")  # fmt: skip
_CARD = {"state", "domains", "score", "rating", "sign", "contrast", "share", "q", "max"}


def export_parquet(atlas: Atlas, folder: Path, *, contexts: bool = True, query: Query | None = None) -> list[Path]:
    """Write features, explanations, tags, simulations, ratings, evidence, neighbours and contexts, a file each, and the
    runs they came from. Rows join by `sae` and `latent`, and by the atlas's ids of explanations.

    The folder is whole or not there at all; an earlier export in it is replaced. Memory does not grow with the atlas.
    Texts are written as they are: see `export_csv` for what a spreadsheet may open.

    Args:
        contexts: write them too; they are most of it.
        query: only features that it finds.

    Returns:
        The files.

    Raises:
        ConfigError: `folder` holds something else.
        RunError: the disk is full or cannot be written.
    """
    schemas = _schemas()
    if not contexts:
        del schemas["contexts"]
    with whole_folder(folder, KIND) as partial, contextlib.ExitStack() as stack:
        tables = {name: stack.enter_context(_Table(partial / f"{name}.parquet", schema))
                  for name, schema in schemas.items()}  # fmt: skip
        for run in atlas.runs():
            tables["runs"].add({**run.model_dump(), "manifest": json.dumps(run.manifest)})
        for feature in atlas.iter_features(query):
            for name, row in _rows(feature):
                tables[name].add(row)
            for row in _contexts(atlas, feature) if contexts else ():
                tables["contexts"].add(row)
    return [folder / f"{name}.parquet" for name in schemas]


def export_csv(atlas: Atlas, path: Path, *, query: Query | None = None) -> Path:
    """Write one row per feature, with the explanation that is shown first and all others in one cell.

    The file begins with a byte-order mark, else Excel takes it for another encoding: read it with `utf-8-sig`. Cells of
    text are made harmless to spreadsheet programs, which run what looks like a formula: an apostrophe stands before
    `=`, `+`, `-` and `@` where a cell, a line or what could be another cell begins, also behind tabs and line ends,
    unseen characters become marks, and a cell ends at 30,000 characters. For texts as they are take `export_parquet`.
    Lists in a cell are separated by ` | `; what is not available is an empty cell.

    Raises:
        RunError: the disk is full or cannot be written.
    """
    with disk_errors(path):
        write_atomic(path, _csv_lines(atlas, query))
    return path


def _csv_lines(atlas: Atlas, query: Query | None) -> Iterator[bytes]:
    line = io.StringIO()
    writer = csv.writer(line, lineterminator="\r\n")
    line.write("\ufeff")
    writer.writerow(CSV_COLUMNS)
    for feature in atlas.iter_features(query):
        row = _flat(feature)
        writer.writerow([harmless_cell(row[c] or "") if c in _TEXT else row[c] for c in CSV_COLUMNS])
        if line.tell() > 1 << 20:
            yield line.getvalue().encode()
            line.seek(0)
            line.truncate()
    yield line.getvalue().encode()


def _flat(f: FeatureDetail) -> dict[str, Any]:
    """A feature in one row."""
    first = f.explanations[0] if f.explanations else None
    own = [s.correlation for s in f.simulations if first and s.explanation == first.id and s.correlation.available]
    score = own[0] if own else Estimate.not_available("")
    tags = [tag for e in f.explanations for tag in e.tags]
    others = [f"{e.language}: {e.text}" for e in f.explanations[1:] if e.state == "text"]
    return {
        "sae": f.sae.id, "latent": f.card.latent, "model": f.sae.model, "hookpoint": f.sae.hookpoint,
        "layer": f.sae.layer, "state": f.card.state, "explanation": first.text if first else None,
        "language": first.language if first else None, "method": first.method if first else None,
        "domains": _listed(f.card.domains), "concepts": _listed(str(tag) for tag in tags if tag.concept),
        "score": f.card.score, "score_low": score.low, "score_high": score.high, "rating": f.card.rating,
        "sign": f.card.sign, "contrast": f.card.contrast, "firings": f.firings, "share": f.card.share, "mean": f.mean,
        "max": f.card.max, "texts": f.texts, "q": f.card.q, "explanations": len(f.explanations),
        "other_explanations": _listed(others), "promoted": _listed(f.promoted), "suppressed": _listed(f.suppressed),
    }  # fmt: skip


def _listed(items: Any) -> str:
    return " | ".join(dict.fromkeys(items))


class _Table:
    """A Parquet file, a row group at a time."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        import pyarrow.parquet as pq

        self._schema = schema
        self._file = pq.ParquetWriter(path, schema, compression="zstd")
        self._rows: list[dict[str, Any]] = []
        self._size = GROUP_CONTEXTS if "tokens" in schema.names else GROUP

    def __enter__(self) -> _Table:
        return self

    def __exit__(self, *_: object) -> None:
        self._write()
        self._file.close()

    def add(self, row: Mapping[str, Any]) -> None:
        self._rows.append(dict(row))
        if len(self._rows) >= self._size:
            self._write()

    def _write(self) -> None:
        import pyarrow as pa

        if self._rows:
            self._file.write_table(pa.Table.from_pylist(self._rows, schema=self._schema))
            self._rows.clear()


def _rows(f: FeatureDetail) -> Iterator[tuple[str, dict[str, Any]]]:
    """(table, row) for all that is known of a feature."""
    place = {"sae": f.sae.id, "latent": f.card.latent}
    histogram, first = f.histogram, f.explanations[0].id if f.explanations else None
    yield "features", {
        **place, **f.card.model_dump(include=_CARD),
        "model": f.sae.model, "hookpoint": f.sae.hookpoint, "layer": f.sae.layer, "firings": f.firings, "mean": f.mean,
        "texts": f.texts, "q_reason": f.q_reason, "promoted": list(map(storable, f.promoted)),
        "suppressed": list(map(storable, f.suppressed)), "explanation": first,
        "histogram_edges": histogram.edges if histogram else None,
        "histogram_counts": histogram.counts if histogram else None,
    }  # fmt: skip
    for e in f.explanations:
        yield "explanations", {**place, **e.model_dump(exclude={"tags"})}
        for rank, tag in enumerate(e.tags):
            yield "tags", {**place, "explanation": e.id, "rank": rank, "domain": tag.domain, "concept": tag.concept}
    for s in f.simulations:
        scores = {**_estimate("correlation", s.correlation), **_estimate("accuracy", s.accuracy)}
        yield "simulations", {**place, **s.model_dump(exclude={"correlation", "accuracy"}), **scores}
    for r in f.ratings:
        yield "ratings", {**place, **r.model_dump()}
    for m in f.evidence:
        yield "evidence", {**place, "kind": m.kind, **_estimate("value", m.estimate), "n": m.estimate.n, "run": m.run}
    for rank, n in enumerate(f.neighbours):
        yield "neighbours", {**place, "rank": rank, "other_sae": n.card.sae, "other_latent": n.card.latent,
                             "cosine": n.cosine}  # fmt: skip


def _estimate(name: str, e: Estimate) -> dict[str, Any]:
    return {name: e.value, f"{name}_low": e.low, f"{name}_high": e.high, f"{name}_reason": e.reason}


def _contexts(atlas: Atlas, f: FeatureDetail) -> Iterator[dict[str, Any]]:
    for rank, c in enumerate(atlas.contexts(f.sae.id, f.card.latent, limit=CONTEXTS)):
        tokens = list(map(storable, c.tokens))  # half a surrogate pair has no UTF-8
        yield {"sae": f.sae.id, "latent": f.card.latent, "rank": rank, **c.model_dump(), "tokens": tokens}


def _schemas() -> dict[str, pa.Schema]:
    """{table: columns and their types}; columns of a feature's place are never null."""
    import pyarrow as pa

    text, number, whole, real = pa.string(), pa.int64(), pa.int32(), pa.float64()
    place = [pa.field("sae", text, nullable=False), pa.field("latent", number, nullable=False)]
    tokens = {"tokens_in": number, "tokens_out": number, "cost": real}
    columns: dict[str, dict[str, Any]] = {
        "features": {"model": text, "hookpoint": text, "layer": whole, "state": text, "domains": pa.list_(text),
                     "score": real, "rating": whole, "sign": whole, "contrast": real, "firings": number, "share": real,
                     "mean": real, "max": real, "texts": number, "q": real, "q_reason": text, "explanation": number,
                     "promoted": pa.list_(text), "suppressed": pa.list_(text), "histogram_edges": pa.list_(real),
                     "histogram_counts": pa.list_(number)},
        "explanations": {"id": number, "state": text, "text": text, "reason": text, "method": text, "model": text,
                         "prompt_version": text, "language": text, "rating": whole, "rating_reason": text, **tokens,
                         "run": text},
        "tags": {"explanation": number, "rank": whole, "domain": text, "concept": text},
        "simulations": {"explanation": number, "level": text, "method": text, "model": text, "prompt_version": text,
                        **_estimate_types("correlation", text, real), **_estimate_types("accuracy", text, real),
                        "n_texts": number, "n_units": number, "n_failed": number, **tokens, "run": text},
        "ratings": {"rater": text, "rating": whole, "reason": text, "run": text},
        "evidence": {"kind": text, **_estimate_types("value", text, real), "n": number, "run": text},
        "neighbours": {"rank": whole, "other_sae": text, "other_latent": number, "cosine": real},
        "contexts": {"rank": whole, "kind": text, "level": whole, "half": text, "name": text, "tokens": pa.list_(text),
                     "activations": pa.list_(pa.float32()), "peak": real, "source": text},
    }  # fmt: skip
    schemas = {name: pa.schema([*place, *(pa.field(n, t) for n, t in fields.items())])
               for name, fields in columns.items()}  # fmt: skip
    schemas["runs"] = pa.schema([pa.field(name, text) for name in ("id", "kind", "title", "created", "manifest")])
    return schemas


def _estimate_types(name: str, text: Any, real: Any) -> dict[str, Any]:
    return {name: real, f"{name}_low": real, f"{name}_high": real, f"{name}_reason": text}
