"""An atlas in the layout of Neuronpedia's bulk exports, with every column that its importer and its exporter know.

    <model>/<source>/{model,release,sourceset,source}.jsonl
    <model>/<source>/{features,explanations,activations}/batch-*.jsonl.gz
    config/*.jsonl                                            kinds of explanations, which the importer looks up

What `neuronpedia.py` carries in, goes out, but for tokens that a feature promotes: Neuronpedia's pages need the logit
of each, which an atlas does not hold, so pos_* and neg_* stay empty. Where Neuronpedia takes no null, its own signs for
"none" stand: frac_nonzero −1, scoreV1 0. Tags, ratings, states and languages go into `notes`, a text's kind and name
into `dataIndex`. Neighbours in other autoencoders are left out. Further: umap_* are the places on the landscape.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
from collections.abc import Sequence
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import IO, Any, Self

from seamark.atlas.exporting import json_line, packed_lines, whole_folder
from seamark.atlas.neuronpedia import HOOKS
from seamark.atlas.records import FeatureDetail, Query, Sae, StoredContext, StoredExplanation
from seamark.atlas.store import Atlas
from seamark.atlas.texts import storable
from seamark.errors import DataError

KIND = "Neuronpedia"
CREATOR = "clkht01d40000jv08hvalcvly"
"""The user to whom Neuronpedia's own tools give what they export by default."""
BATCH = 1024
"""Features of a file, as there."""
CONTEXTS = 100
RELEASE = "seamark"


def export_neuronpedia(
    atlas: Atlas, folder: Path, *, contexts: int = CONTEXTS, query: Query | None = None, creator: str = CREATOR
) -> list[Path]:
    """Write the atlas for Neuronpedia; an earlier export in `folder` is replaced.

    Args:
        contexts: texts of a feature that are written at most.
        query: only features that it finds.
        creator: the user of the Neuronpedia instance to whom everything will belong.

    Returns:
        The folders of the sources.

    Raises:
        DataError: there are no features to write.
        ConfigError: `folder` holds something else.
        RunError: the disk is full or cannot be written.
    """
    names = _names(atlas.saes())
    places = _places(atlas)
    kinds: set[tuple[str, str]] = set()
    written: list[str] = []
    with whole_folder(folder, KIND) as partial, contextlib.ExitStack() as stack:
        source: _Source | None = None
        for feature in atlas.iter_features(query):
            if source is None or source.sae.id != feature.sae.id:
                stack.close()
                source = stack.enter_context(_Source(partial, feature.sae, names[feature.sae.id], creator))
                written.append(source.path)
            texts = atlas.contexts(feature.sae.id, feature.card.latent, limit=contexts) if contexts > 0 else []
            source.write(feature, texts, places.get(feature.card.id, (None, None)))
            kinds |= {(_type(e), e.model) for e in feature.explanations if e.method != "imported"}
            kinds |= {(_type(e), "") for e in feature.explanations}
        if not written:
            raise DataError("no features to export", where=str(atlas.path))
        stack.close()
        _config(partial / "config", kinds, creator)
    return [Path(folder) / path for path in written]


class _Source:
    """The files of a source, a batch after the other."""

    def __init__(self, root: Path, sae: Sae, names: tuple[str, str, str], creator: str) -> None:
        self.sae, self.creator = sae, creator
        self.model, self.id, self.set = names
        self.path = f"{self.model}/{self.id}"
        self._folder = root / self.path
        self._n = 0
        self._files = contextlib.ExitStack()
        self._features: IO[bytes]
        self._explanations: IO[bytes]
        self._activations: IO[bytes]

    def __enter__(self) -> Self:
        self._folder.mkdir(parents=True, exist_ok=True)
        for name, row in _about(self.sae, self.model, self.id, self.set, self.creator).items():
            (self._folder / f"{name}.jsonl").write_bytes(json_line(row))
        return self

    def __exit__(self, *_: object) -> None:
        self._files.close()

    def write(
        self, feature: FeatureDetail, texts: Sequence[StoredContext], place: tuple[float | None, float | None]
    ) -> None:
        if self._n % BATCH == 0:
            self._files.close()
            self._features, self._explanations, self._activations = (
                self._files.enter_context(packed_lines(self._folder / part / f"batch-{self._n // BATCH}.jsonl.gz"))
                for part in ("features", "explanations", "activations")
            )
        self._n += 1
        place_of = {"modelId": self.model, "layer": self.id, "index": str(feature.card.latent)}
        self._features.write(json_line(_feature(feature, place_of, self.set, self.creator)))
        for e in feature.explanations:
            if e.state != "failed":
                row = _explanation(feature, e, place_of, self.creator, place)
                self._explanations.write(json_line(row))
        for n, text in enumerate(texts):
            self._activations.write(json_line(_activation(feature, text, n, place_of, self.creator)))


def _feature(f: FeatureDetail, place: dict[str, str], source_set: str, creator: str) -> dict[str, Any]:
    edges, counts = (f.histogram.edges, f.histogram.counts) if f.histogram else ((), ())
    near = [n for n in f.neighbours if n.card.sae == f.sae.id]
    hook = next((end for end, name in HOOKS.items() if name.format(f.sae.layer) == f.sae.hookpoint), None)
    empty = ("logits_hist_data_bar_heights", "logits_hist_data_bar_values", "neuron_alignment_indices",
             "neuron_alignment_l1", "neuron_alignment_values", "correlated_neurons_indices", "correlated_neurons_l1",
             "correlated_neurons_pearson", "correlated_features_indices", "correlated_features_l1",
             "correlated_features_pearson", "decoder_weights_dist", "neg_str", "neg_values", "pos_str", "pos_values",
             "vector")  # fmt: skip
    return place | {
        "creatorId": creator,
        "maxActApprox": f.card.max,
        "frac_nonzero": -1 if f.card.share is None else f.card.share,
        "freq_hist_data_bar_heights": list(counts),
        "freq_hist_data_bar_values": [(a + b) / 2 for a, b in pairwise(edges)],
        "sourceSetName": source_set,
        "topkCosSimIndices": [n.card.latent for n in near],
        "topkCosSimValues": [n.cosine for n in near],
        "hookName": None if hook is None else f"blocks.{f.sae.layer}.{hook}",
        "hasVector": False, "vectorLabel": None, "vectorDefaultSteerStrength": None,
        **{name: [] for name in empty},
    }  # fmt: skip


def _explanation(
    f: FeatureDetail, e: StoredExplanation, place: dict[str, str], creator: str,
    at: tuple[float | None, float | None],
) -> dict[str, Any]:  # fmt: skip
    scores = [s.correlation.value for s in f.simulations if s.explanation == e.id and s.correlation.value is not None]
    score = scores[0] if scores else None
    notes = {"state": e.state, "language": e.language, "tags": [[t.domain, t.concept] for t in e.tags],
             "rating": e.rating, "rating_reason": e.rating_reason, "score": score, "method": e.method,
             "prompt_version": e.prompt_version}  # fmt: skip
    return {
        "id": _id(*place.values(), "explanation", e.id), **place,
        "authorId": creator, "description": e.text or "", "embedding": None,
        "typeName": _type(e), "explanationModelName": e.model or None,
        "scoreV1": 0 if score is None else score, "notes": _note(notes),
        "umap_x": at[0], "umap_y": at[1], "umap_cluster": None, "umap_log_feature_sparsity": None,
    }  # fmt: skip


def _activation(f: FeatureDetail, text: StoredContext, n: int, place: dict[str, str], creator: str) -> dict[str, Any]:
    values = list(text.activations)
    low, high, share = _bin(f, text)
    return {
        "id": _id(*place.values(), "activation", n), **place,
        "creatorId": creator, "dataSource": text.source or None,
        "dataIndex": _note({"kind": text.kind, "level": text.level, "half": text.half, "name": text.name}),
        "tokens": list(map(storable, text.tokens)), "values": values, "maxValue": text.peak,
        "minValue": min(values, default=0.0), "maxValueTokenIndex": values.index(max(values)) if values else 0,
        "binMin": low, "binMax": high, "binContains": share,
        "dfaValues": [], "dfaMaxValue": None, "dfaTargetIndex": None, "lossValues": [], "logitContributions": None,
        "qualifyingTokenIndex": None,
    }  # fmt: skip


def _bin(f: FeatureDetail, text: StoredContext) -> tuple[float | None, float | None, float | None]:
    """The interval of activations a text was drawn from; −1 where it is among the strongest, as Neuronpedia has it."""
    if text.kind == "top":
        return -1, f.card.max if f.card.max is not None else text.peak, -1
    if text.kind == "level" and f.card.q is not None:
        return f.card.q * (text.level - 1) / 10, f.card.q * text.level / 10, None
    return None, None, None


def _note(values: dict[str, Any]) -> str:
    return json.dumps({"seamark": values}, allow_nan=False, separators=(",", ":"))


def _id(*of: object) -> str:
    """An id in the form that Neuronpedia gives its rows; the same for the same row."""
    return "c" + hashlib.sha256(json.dumps(of).encode()).hexdigest()[:24]


def _type(e: StoredExplanation) -> str:
    """The kind of an explanation; one of Neuronpedia has its own, without the number that the import may have added."""
    own = re.sub(r" \(\d+\)$", "", e.prompt_version) if e.method == "imported" else ""
    return own or f"seamark_{e.method}"


def _about(sae: Sae, model: str, source: str, source_set: str, creator: str) -> dict[str, dict[str, Any]]:
    """Model, release, source set and source, as their tables have them."""
    now = datetime.now(UTC).isoformat(timespec="seconds")
    owner = sae.model.rpartition("/")[0]
    return {
        "model": {"id": model, "displayNameShort": model, "displayName": sae.model, "creatorId": creator,
                  "tlensId": None, "dimension": None, "visibility": "PRIVATE", "inferenceEnabled": False,
                  "instruct": "instruct" in model or model.endswith("-it"), "layers": 0, "neuronsPerLayer": 0,
                  "owner": owner, "website": None, "createdAt": now, "updatedAt": now},
        "release": {"name": RELEASE, "description": "An atlas made by Seamark", "descriptionShort": None,
                    "visibility": "PRIVATE", "isNewUi": False, "featured": False, "urls": [], "creatorEmail": None,
                    "creatorName": "Seamark", "creatorNameShort": None, "creatorId": creator, "createdAt": now},
        "sourceset": {"modelId": model, "name": source_set, "hasDashboards": True, "visibility": "PRIVATE",
                      "description": sae.hookpoint, "type": "", "creatorName": "Seamark", "urls": [],
                      "creatorEmail": None, "creatorId": creator, "releaseName": RELEASE, "createdAt": now},
        "source": {"id": source, "modelId": model, "setName": source_set, "visibility": "PRIVATE", "creatorId": creator,
                   "hasDashboards": True, "inferenceEnabled": False, "hfRepoId": None, "hfFolderId": None,
                   "num_prompts": None, "num_tokens_in_prompt": None, "dataset": None,
                   "notes": _note({"sae": sae.model_dump(exclude={"number", "features"})}), "createdAt": now},
    }  # fmt: skip


def _config(folder: Path, kinds: set[tuple[str, str]], creator: str) -> None:
    """What the importer looks explanations up in. Kinds and models that Neuronpedia knows already are left alone."""
    types = sorted({name for name, _ in kinds if name.startswith("seamark_")})
    models = sorted({model for _, model in kinds if model})
    rows = {
        "explanation_type": [{"name": t, "displayName": t, "description": "By Seamark", "featured": False,
                              "creatorName": "Seamark", "creatorId": creator} for t in types],
        "explanation_model_type": [{"name": m, "displayName": m, "description": "", "featured": False,
                                    "creatorName": "Seamark"} for m in models],
        "explanation_score_model": [], "explanation_score_type": [], "eval_type": [],
    }  # fmt: skip
    folder.mkdir()
    for name, lines in rows.items():
        (folder / f"{name}.jsonl").write_bytes(b"".join(map(json_line, lines)))


def _names(saes: Sequence[Sae]) -> dict[str, tuple[str, str, str]]:
    """{SAE id: (model, source, source set)} as Neuronpedia and file systems take them, no two alike."""
    models: dict[str, str] = {}
    sources: dict[str, tuple[str, str, str]] = {}
    for sae in saes:
        if sae.model not in models:
            models[sae.model] = _unlike(_slug(sae.model.rpartition("/")[2]).lower(), {"config", *models.values()})
        model = models[sae.model]
        source_set = _slug(sae.id.removeprefix(f"{sae.model}--{sae.layer}-"))  # as `import_neuronpedia` names them
        taken = {source.lower() for other, source, _ in sources.values() if other == model}
        sources[sae.id] = model, _unlike(f"{sae.layer}-{source_set}", taken), source_set
    return sources


def _slug(text: str) -> str:
    return re.sub("[^A-Za-z0-9._-]+", "-", text).strip("-._")[:80] or "unnamed"


def _unlike(name: str, taken: set[str]) -> str:
    """`name`, or with a number where something is called so, in capitals or not."""
    tails = ("", *(f"__{i}" for i in range(1, len(taken) + 1)))
    return next(name + tail for tail in tails if (name + tail).lower() not in taken)


def _places(atlas: Atlas) -> dict[int, tuple[float, float]]:
    """{feature: its place on the landscape of explanations, or on the first one}."""
    layouts = atlas.layouts()
    if not layouts:
        return {}
    points = atlas.points("explanations" if "explanations" in layouts else layouts[0])
    return dict(zip(points.ids.tolist(), zip(points.x.tolist(), points.y.tolist(), strict=True), strict=True))
