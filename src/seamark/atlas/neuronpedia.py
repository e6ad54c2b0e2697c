"""Neuronpedia's bulk exports: JSON lines in batches, read into an atlas (`neuronpedia_export.py` writes them).

    <model>/<source>/source.jsonl                   model.jsonl, sourceset.jsonl and release.jsonl are not needed
    <model>/<source>/features/batch-*.jsonl.gz      a line per feature
    <model>/<source>/explanations/batch-*.jsonl.gz  a line per explanation
    <model>/<source>/activations/batch-*.jsonl.gz   a line per text

A source is an autoencoder; its id begins with the layer (`20-gemmascope-res-16k`). What is carried, by file:

- features: index, frac_nonzero, maxActApprox, freq_hist_data_* (counts; where bins are equally wide), pos_str, neg_str,
  topkCosSim*, hookName. An atlas has no place for logit values and their histogram, neuron alignment, correlated
  neurons and features, decoder weights and vectors, umap_*.
- explanations: index, description, typeName, explanationModelName, and scoreV1, whose default 0 stands for none. Not
  carried: embedding, umap_*, author.
- activations: index, tokens, values, binMin (a text drawn from an interval of activations), dataSource. Not carried:
  dfa*, loss, logit contributions, zIndices.

Neuronpedia names no language; English is assumed. It knows neither tags nor ratings nor states of explanations: exports
by Seamark carry them, with what else it needs to bring its own data back, as JSON in `notes` and `dataIndex`.
"""

from __future__ import annotations

import contextlib
import heapq
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from seamark.atlas.importing import ImportSummary, Rejections, is_number, is_storable, read_lines
from seamark.atlas.neuronpedia_rows import Kind, Text, activation, explanation_row, feature_row, kept_in
from seamark.atlas.records import Run, Sae
from seamark.atlas.rows import ContextRow, ExplanationRow, FeatureRow, NeighbourRow, SimulationRow
from seamark.atlas.writing import AtlasWriter
from seamark.errors import ConfigError, FormatError
from seamark.run import digest, file_digest
from seamark.stats import Estimate

FORMAT = "neuronpedia"
CONTEXTS = 30
"""Texts kept of a feature, of each kind and level the strongest."""
LEVEL = "scoreV1"
HOOKS = {"hook_resid_post": "layers.{}", "hook_mlp_out": "layers.{}.mlp", "hook_attn_out": "layers.{}.attn"}
"""{end of a TransformerLens hook name: hookpoint}"""
_HOOK = re.compile(r"blocks\.(\d{1,4})\.(\w+)")
_SOURCE = re.compile(r"(\d{1,4})(-.*)?", re.DOTALL)
_INDEX = re.compile(r"0|[1-9][0-9]{0,8}")
_MOST = 2**31
_PARTS = ("features", "explanations", "activations")


@dataclass
class _Source:
    """A source while it is imported."""

    folder: Path
    place: tuple[str, str]
    """modelId and layer of its lines."""
    sae: Sae
    number: int
    run: str
    rejections: Rejections
    ids: dict[int, int] = field(default_factory=dict)
    """{latent: feature}"""
    largest: dict[int, float] = field(default_factory=dict)
    """{latent: maxActApprox}"""
    ranks: dict[tuple[int, Kind], int] = field(default_factory=dict)
    """Texts written so far; batches need not part features."""
    explanations: dict[str, int] = field(default_factory=dict)
    scores: int = 0
    contexts: int = 0

    def feature(self, writer: AtlasWriter, latent: int) -> int:
        if latent not in self.ids:
            self.ids |= writer.add_features(self.number, [FeatureRow(latent)])
        return self.ids[latent]


def import_neuronpedia(
    writer: AtlasWriter, folder: Path, *, contexts: int = CONTEXTS, language: str = "en"
) -> ImportSummary:
    """Import every source that lies in `folder` or below it, each whole or not at all.

    A source that was imported before, with the same files, is left alone. Memory is that of one batch.

    Args:
        folder: a source's folder, a model's, or one above.
        contexts: texts kept of a feature, of each kind and level; 0 leaves them out.
        language: of the explanations, which the files do not name.

    Raises:
        ConfigError: no source lies there.
        FormatError: a file is damaged or cannot be read, or a source does not tell what it is.
        DataError: the atlas holds another autoencoder of the same name.
    """
    folders = _sources(folder)
    if not folders:
        raise ConfigError("no Neuronpedia export here", where=str(folder),
                          fix="Name a folder that holds features/, explanations/ or activations/")  # fmt: skip
    rejections = Rejections()
    known = {run.id for run in writer.runs()}
    runs, already, read = [], [], []
    for each in folders:
        run = _run(each, contexts, language)
        runs.append(run.id)
        if run.id in known:
            already.append(str(each))
            continue
        with writer.transaction():
            read.append(_import(writer, each, run, rejections, contexts, language))
    explanations: dict[str, int] = {}
    for source in read:
        for name, n in source.explanations.items():
            explanations[name] = explanations.get(name, 0) + n
    return ImportSummary(
        files=tuple(map(str, folders)), runs=tuple(runs), features=sum(len(s.ids) for s in read),
        explanations=explanations, scores=sum(s.scores for s in read), contexts=sum(s.contexts for s in read),
        rejected=tuple(rejections.first), n_rejected=rejections.n, already=tuple(already),
    )  # fmt: skip


def _sources(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    depths = ("", "*/", "*/*/")
    return sorted({p.parent for part in _PARTS for depth in depths for p in folder.glob(f"{depth}{part}")
                   if _batches(p.parent, part)})  # fmt: skip


def _batches(source: Path, part: str) -> list[Path]:
    files = [p for p in (source / part).glob("*.jsonl*") if p.name.endswith((".jsonl", ".jsonl.gz"))]
    return sorted(files, key=lambda p: [int(d) if d.isdigit() else d for d in re.split(r"(\d+)", p.name)])


def _run(folder: Path, contexts: int, language: str) -> Run:
    files = {f"{part}/{p.name}": file_digest(p) for part in _PARTS for p in _batches(folder, part)}
    asked = {"format": FORMAT, "files": files, "contexts": contexts, "language": language}
    title = f"Neuronpedia: {folder.resolve().parent.name}/{folder.resolve().name}"
    return Run(id=digest({**asked, "name": title}), kind="import", title=title,
               created=datetime.now(UTC).isoformat(timespec="seconds"), manifest=asked)  # fmt: skip


def _import(
    writer: AtlasWriter, folder: Path, run: Run, rejections: Rejections, contexts: int, language: str
) -> _Source:
    place, sae = _sae(folder)
    writer.add_run(run)
    source = _Source(folder, place, sae, writer.add_sae(sae), run.id, rejections)
    near = _features(writer, source)
    _explanations(writer, source, language)
    if contexts > 0:
        for path in _batches(folder, "activations"):
            _activations(writer, source, path, contexts)
    writer.add_neighbours(
        NeighbourRow(feature=source.ids[latent], rank=rank, other=source.ids[other], cosine=cosine)
        for latent, others in near.items()
        for rank, (other, cosine) in enumerate(o for o in others if o[0] in source.ids)
    )
    return source


def _sae(folder: Path) -> tuple[tuple[str, str], Sae]:
    """(modelId, layer) of a source's lines, and the autoencoder that it stands for."""
    unread = Rejections()
    about = folder / "source.jsonl"
    given = next((row for _, row in read_lines(about, unread)), {}) if about.is_file() else {}
    first = next((row for part in _PARTS for p in _batches(folder, part) for _, row in read_lines(p, unread)), {})
    model, source = given.get("modelId", first.get("modelId")), given.get("id", first.get("layer"))
    layer = _SOURCE.fullmatch(source) if isinstance(source, str) else None
    if not isinstance(model, str) or not model.strip() or layer is None or not is_storable(f"{model}{source}"):
        raise FormatError("neither source.jsonl nor the first line tell model and layer", where=str(folder),
                          fix="Name the folder of a Neuronpedia export")  # fmt: skip
    place = model, layer[0]
    told = kept_in(given.get("notes")).get("sae")
    if isinstance(told, dict) and all(abs(v) < _MOST for v in told.values() if isinstance(v, int | float)):
        with contextlib.suppress(ValidationError):  # if Seamark did not write it, what Neuronpedia says counts
            return place, Sae.model_validate({**told, "number": 0, "features": 0})
    hook = _HOOK.fullmatch(str(first.get("hookName")))
    hookpoint = HOOKS.get(hook[2], hook[0]).format(hook[1]) if hook else "unknown"
    return place, Sae(number=0, id=f"{model}--{source}", model=model, hookpoint=hookpoint, layer=int(layer[1]))


def _rows(source: _Source, path: Path) -> Iterator[tuple[str, int, dict[str, Any]]]:
    """(where, latent, row) of each line that belongs to the source and names a latent."""
    for number, row in read_lines(path, source.rejections):
        where = f"line {number}"
        index = row.get("index")
        text = str(index) if isinstance(index, int | str) and not isinstance(index, bool) else ""
        if (row.get("modelId"), row.get("layer")) != source.place:
            source.rejections.add(path, where, f"not of {' / '.join(source.place)}")
        elif not _INDEX.fullmatch(text):
            source.rejections.add(path, where, "index: no number of a latent")
        elif source.sae.d_sae is not None and int(text) >= source.sae.d_sae:
            source.rejections.add(path, where, f"index {text}, but the autoencoder has {source.sae.d_sae:,} latents")
        else:
            yield where, int(text), row


def _features(writer: AtlasWriter, source: _Source) -> dict[int, list[tuple[int, float]]]:
    """Write the features; gives {latent: (other latent, cosine)}."""
    near: dict[int, list[tuple[int, float]]] = {}
    for path in _batches(source.folder, "features"):
        rows: list[FeatureRow] = []
        for where, latent, row in _rows(source, path):
            if latent in source.ids:
                source.rejections.add(path, where, f"index {latent} comes twice")
                continue
            rows.append(feature_row(latent, row))
            source.ids[latent] = -1
            if (largest := rows[-1].max) is not None:
                source.largest[latent] = largest
            others, cosines = row.get("topkCosSimIndices"), row.get("topkCosSimValues")
            if isinstance(others, list) and isinstance(cosines, list) and len(others) == len(cosines):
                near[latent] = [(o, float(c)) for o, c in zip(others, cosines, strict=True)
                                if isinstance(o, int) and o != latent and is_number(c)]  # fmt: skip
        source.ids |= writer.add_features(source.number, rows)
    return near


def _explanations(writer: AtlasWriter, source: _Source, language: str) -> None:
    seen: dict[tuple[int, str, str, str, str], int] = {}
    for path in _batches(source.folder, "explanations"):
        rows: list[tuple[ExplanationRow, float | None]] = []
        for where, latent, row in _rows(source, path):
            found = explanation_row(row, source.feature(writer, latent), source.run, language)
            if isinstance(found, str):
                source.rejections.add(path, where, found)
                continue
            e, score = found
            key = (latent, e.method, e.model, e.prompt_version, e.language)
            seen[key] = seen.get(key, 0) + 1
            if seen[key] > 1:  # a feature may be explained again in the same way
                e = e._replace(prompt_version=f"{e.prompt_version} ({seen[key]})".strip())
            rows.append((e, score))
            source.explanations[e.language] = source.explanations.get(e.language, 0) + 1
        ids = writer.add_explanations(e for e, _ in rows)
        scored = [(e, i, score) for (e, score), i in zip(rows, ids, strict=True) if score is not None]
        source.scores += len(scored)
        writer.add_simulations(
            SimulationRow(feature=e.feature, explanation=i, run=source.run, level=LEVEL, method="imported",
                          correlation=Estimate(value=score),
                          accuracy=Estimate.not_available("Neuronpedia gives none"))
            for e, i, score in scored
        )  # fmt: skip


def _activations(writer: AtlasWriter, source: _Source, path: Path, contexts: int) -> None:
    """Write the strongest texts of a batch, by feature, kind and level."""
    held: dict[tuple[int, Kind], list[Text]] = {}
    for order, (where, latent, row) in enumerate(_rows(source, path)):
        found = activation(row, source.largest.get(latent), -order)
        if isinstance(found, str):
            source.rejections.add(path, where, found)
            continue
        kind, text = found
        waiting = held.setdefault((latent, kind), [])
        heapq.heappush(waiting, text)
        if len(waiting) > contexts:
            heapq.heappop(waiting)  # the weakest, and of equals the last
    writer.add_contexts(
        ContextRow(
            feature=source.feature(writer, latent), kind=kind.kind, name=text.name, level=kind.level, half=kind.half,
            rank=source.ranks.get((latent, kind), 0) + rank, tokens=json.loads(text.tokens), source=text.source,
            activations=text.values.tolist(),
        )
        for (latent, kind), texts in held.items()
        for rank, text in enumerate(sorted(texts, reverse=True))
    )  # fmt: skip
    for key, texts in held.items():
        source.ranks[key] = source.ranks.get(key, 0) + len(texts)
        source.contexts += len(texts)
