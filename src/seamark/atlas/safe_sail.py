"""Safe-SAIL's feature database (arXiv 2509.18127) as its authors released it: read into an atlas, and written again.

A file is one JSON object for one language, `en_db.json` or `cn_db.json`:

    {"17_208": {"explanation": "…", "correlation_score": 0.4, "tag_list": ["violence"]}, …}

Keys are `{layer}_{latent}`. An explanation is a text, `***` (masked by the authors) or null (none could be given); each
has a score and tags of its own. What was imported comes back out unchanged: keys in their order, scores to the last
bit, tags in their order. Any other atlas can be written in this layout too; see `export_safe_sail` for what is lost.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from seamark.atlas.importing import ImportSummary, Rejections, is_number, is_storable, parse_json, read_bytes
from seamark.atlas.records import FeatureDetail, Run, Sae, State, StoredExplanation
from seamark.atlas.rows import ExplanationRow, FeatureRow, SimulationRow
from seamark.atlas.store import Atlas
from seamark.atlas.writing import AtlasWriter
from seamark.errors import ConfigError, DataError, FormatError
from seamark.explain.taxonomy import MAX_NAME, Tag
from seamark.run import digest, disk_errors, write_atomic
from seamark.stats import Estimate

FORMAT = "safe-sail"
MASK = "***"
"""Stands in the released files for explanations that their authors do not show."""
LEVEL = "correlation_score"
"""What the scores are called there; the files do not say how texts were cut."""
FILES = {"en": "en_db.json", "zh": "cn_db.json"}
"""{language: file}, as they were released."""
MAX_WIDTH = 1 << 40
"""Latents that a number of a file's keys can never reach."""
_FIELDS = ("explanation", "correlation_score", "tag_list")
_KEY = re.compile(r"(0|[1-9][0-9]{0,3})_(0|[1-9][0-9]{0,8})")


@dataclass(frozen=True)
class Suite:
    """The autoencoders whose features a file holds: one of a layer each. The default is the one of the paper.

    Raises:
        ConfigError: a pattern that does not name a layer, or a number below 1.
    """

    model: str = "Qwen/Qwen2.5-3B-Instruct"
    hookpoint: str = "layers.{layer}.mlp"
    """Names the autoencoders, too."""
    d_in: int | None = 2048
    d_sae: int | None = 20480
    activation: str | None = "topk_relu"
    k: int | None = 200

    def __post_init__(self) -> None:
        if not self.model.strip():
            raise ConfigError("the model has no name", where="model", fix="Name it as its maker does")
        if self.hookpoint.count("{layer}") != 1 or not self.hookpoint.isprintable():
            raise ConfigError(f"{self.hookpoint!r} does not name a layer", where="hookpoint",
                              fix="Write {layer} once, as in layers.{layer}.mlp")  # fmt: skip
        for name in ("d_in", "d_sae", "k"):
            value = getattr(self, name)
            if value is not None and not 1 <= value <= MAX_WIDTH:
                raise ConfigError(f"{value} is no number from 1 to {MAX_WIDTH:,}", where=name)

    def sae(self, layer: int) -> Sae:
        name = self.hookpoint.replace("{layer}", str(layer))
        return Sae(number=0, id=name, model=self.model, hookpoint=name, layer=layer, d_in=self.d_in, d_sae=self.d_sae,
                   activation=self.activation, k=self.k)  # fmt: skip


class Entry(NamedTuple):
    """What a file says of a feature."""

    layer: int
    latent: int
    state: State
    text: str | None
    score: float | None
    tags: tuple[str, ...]


class _Pairs(list[tuple[str, Any]]):
    """A JSON object as it stands in the file: a key may come twice."""


class Database(NamedTuple):
    """A file that was read."""

    path: Path
    sha256: str
    """Of its JSON, packed or not."""
    entries: Mapping[str, Entry]
    """By key, in the file's order."""


def import_safe_sail(
    writer: AtlasWriter, en: Path | None, zh: Path | None = None, *, suite: Suite | None = None
) -> ImportSummary:
    """Import one or both files; entries of the same key become one feature with an explanation in each language.

    Both files are read and checked before anything is written, and all of it is written or nothing. A file that was
    imported before is left alone.

    Args:
        en: the English file, `.json` or `.json.gz`.
        zh: the Chinese one.
        suite: the autoencoders it speaks of; by default the paper's.

    Raises:
        FormatError: a file is no such database.
        ConfigError: no file is given.
        DataError: the atlas holds other autoencoders of the same names.
    """
    suite = suite or Suite()
    given = {language: path for language, path in (("en", en), ("zh", zh)) if path is not None}
    if not given:
        raise ConfigError("no file to import", fix="Name the English file, the Chinese one, or both")
    rejections = Rejections()
    files = {language: read_safe_sail(path, rejections, d_sae=suite.d_sae) for language, path in given.items()}
    known = {run.id for run in writer.runs()}
    runs = {language: _run(file, language, suite) for language, file in files.items()}
    with writer.transaction():
        for language, file in files.items():
            if runs[language].id not in known:
                _store(writer, file, language, runs[language], suite)
    return ImportSummary(
        files=tuple(str(path) for path in given.values()),
        runs=tuple(run.id for run in runs.values()),
        features=len({key for file in files.values() for key in file.entries}),
        explanations={language: len(file.entries) for language, file in files.items()},
        scores=sum(entry.score is not None for file in files.values() for entry in file.entries.values()),
        rejected=tuple(rejections.first),
        n_rejected=rejections.n,
        already=tuple(str(given[language]) for language, run in runs.items() if run.id in known),
    )


def export_safe_sail(atlas: Atlas, folder: Path) -> list[Path]:
    """Write the atlas's explanations as `en_db.json`, `cn_db.json` and `<language>_db.json` into `folder`.

    Of each feature and language the explanation that is shown first is written, with the score of its simulation.
    Imported entries come first, in the order in which they came, then others by layer and latent. Of an atlas of
    Seamark's own, concepts (only domains are written), ratings, statistics, texts and all further explanations are
    left out, and so are explanations that failed; without a simulation the score is null.

    Returns:
        The files written, each whole or not at all.

    Raises:
        ConfigError: two autoencoders lie at one layer, so that a key would not say whose latent it is.
        DataError: there is nothing to write.
    """
    imported = {run.id for run in atlas.runs() if run.manifest.get("format") == FORMAT}
    layers: dict[int, str] = {}
    found: dict[str, list[tuple[tuple[int, ...], str, dict[str, Any]]]] = {}
    for feature in atlas.iter_features():
        card = feature.card
        key = f"{card.layer}_{card.latent}"
        for e in _first_of_each_language(feature):
            if (other := layers.setdefault(card.layer, card.sae)) != card.sae:
                raise ConfigError(f"{other} and {card.sae} both lie at layer {card.layer}: a key {key} could mean a "
                                  "latent of either", fix="Export an atlas with one autoencoder a layer")  # fmt: skip
            place = (0, e.id) if e.run in imported else (1, card.layer, card.latent)
            found.setdefault(e.language, []).append((place, key, _written(feature, e)))
    if not found:
        raise DataError("no explanation to export", where=str(atlas.path), fix="Explain its features first")
    names = _file_names(found)
    for language, rows in found.items():
        rows.sort(key=lambda row: row[0])
        with disk_errors(folder):
            write_atomic(folder / names[language], json.dumps({key: entry for _, key, entry in rows}, allow_nan=False))
    return [folder / names[language] for language in found]


def read_safe_sail(path: Path, rejections: Rejections, *, d_sae: int | None = None) -> Database:
    """Read a file. Entries that are not in order go to `rejections`.

    Args:
        path: `.json` or `.json.gz`.
        d_sae: latents are below it; None: any.

    Raises:
        FormatError: no such database, or none of its entries can be used.
    """
    data = read_bytes(path)
    try:
        found = parse_json(data, _Pairs)
    except FormatError as e:
        raise FormatError(e.what, where=str(path), fix="Name a file such as en_db.json") from None
    if not isinstance(found, _Pairs) or not found:
        raise FormatError("not a Safe-SAIL database: no object of entries", where=str(path),
                          fix="Name a file such as en_db.json")  # fmt: skip
    times: dict[str, int] = {}
    for key, _ in found:
        times[key] = times.get(key, 0) + 1
    entries: dict[str, Entry] = {}
    first = ""
    for key, value in found:
        entry = _entry(key, value, d_sae) if times[key] == 1 else f"the key comes {times[key]} times: which one holds?"
        if isinstance(entry, str):
            first = first or f"{key[:80]!r}: {entry}"
            rejections.add(path, key, entry)
        else:
            entries[key] = entry
    if not entries:
        raise FormatError(f"not a Safe-SAIL database: none of {len(found):,} entries can be used ({first})",
                          where=str(path), fix="Name a file such as en_db.json")  # fmt: skip
    return Database(path, hashlib.sha256(data).hexdigest(), entries)


def _entry(key: str, value: Any, d_sae: int | None) -> Entry | str:
    """The entry, or what is wrong with it."""
    place = _KEY.fullmatch(key)
    if place is None:
        return "the key is not {layer}_{latent}"
    layer, latent = int(place[1]), int(place[2])
    if d_sae is not None and latent >= d_sae:
        return f"latent {latent}, but the autoencoder has {d_sae:,}"
    if not isinstance(value, _Pairs) or len({name for name, _ in value}) != len(value):
        return "not an object with each field once"
    fields = dict(value)
    if set(fields) != set(_FIELDS):
        odd = sorted(set(fields) ^ set(_FIELDS))
        return f"fields missing or unknown: {', '.join(odd)}"
    text, score, tags = (fields[name] for name in _FIELDS)
    wrong = _wrong_text(text) or _wrong_score(score) or _wrong_tags(tags)
    if wrong:
        return wrong
    state: State = "null" if text is None else "masked" if text == MASK else "text"
    return Entry(layer, latent, state, text, None if score is None else float(score), tuple(tags))


def _wrong_text(text: Any) -> str:
    if text is not None and not isinstance(text, str):
        return "explanation: neither a text nor null"
    if text is not None and not text.strip():
        return "explanation: an empty text"
    return "" if text is None or is_storable(text) else "explanation: holds half a surrogate pair"


def _wrong_score(score: Any) -> str:
    if score is None:
        return ""
    return "" if is_number(score) and -1 <= score <= 1 else "correlation_score: no number between -1 and 1"


def _wrong_tags(tags: Any) -> str:
    if not isinstance(tags, list) or isinstance(tags, _Pairs) or not all(isinstance(t, str) for t in tags):
        return "tag_list: no list of texts"
    if len(set(tags)) != len(tags):
        return "tag_list: a tag comes twice"
    good = all(t.isprintable() and t == t.strip() and 0 < len(t) <= MAX_NAME for t in tags)
    return "" if good else f"tag_list: a tag is printable and of 1 to {MAX_NAME} characters"


def _run(file: Database, language: str, suite: Suite) -> Run:
    return Run(
        id=digest({"format": FORMAT, "language": language, "sha256": file.sha256, "suite": asdict(suite)}),
        kind="import",
        title=f"Safe-SAIL, {language}: {file.path.name}",
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        manifest={"format": FORMAT, "language": language, "file": file.path.name, "sha256": file.sha256,
                  "entries": len(file.entries), "suite": asdict(suite)},
    )  # fmt: skip


def _store(writer: AtlasWriter, file: Database, language: str, run: Run, suite: Suite) -> None:
    writer.add_run(run)
    writer.add_model(suite.model)
    latents: dict[int, list[int]] = {}
    for entry in file.entries.values():
        latents.setdefault(entry.layer, []).append(entry.latent)
    ids = {layer: writer.add_features(writer.add_sae(suite.sae(layer)), (FeatureRow(latent) for latent in found))
           for layer, found in sorted(latents.items())}  # fmt: skip
    entries = list(file.entries.values())
    features = [ids[entry.layer][entry.latent] for entry in entries]
    explanations = writer.add_explanations(
        ExplanationRow(
            feature=feature, text=entry.text, run=run.id, method="imported", state=entry.state, language=language,
            tags=tuple(Tag(domain=tag) for tag in entry.tags),
            reason="none could be given" if entry.state == "null" else "",
        )
        for feature, entry in zip(features, entries, strict=True)
    )  # fmt: skip
    writer.add_simulations(
        SimulationRow(
            feature=feature, explanation=explanation, run=run.id, level=LEVEL, method="imported",
            correlation=Estimate.not_available("the file gives none") if entry.score is None
            else Estimate(value=entry.score),
            accuracy=Estimate.not_available("the file gives none"),
        )
        for feature, explanation, entry in zip(features, explanations, entries, strict=True)
    )  # fmt: skip


def _first_of_each_language(feature: FeatureDetail) -> list[StoredExplanation]:
    found: dict[str, StoredExplanation] = {}
    for e in feature.explanations:  # the one that is shown first comes first
        if e.state != "failed":
            found.setdefault(e.language, e)
    return list(found.values())


def _written(feature: FeatureDetail, e: StoredExplanation) -> dict[str, Any]:
    return {
        "explanation": e.text,
        "correlation_score": _score(feature, e.id),
        "tag_list": list(dict.fromkeys(tag.domain for tag in e.tags)),
    }


def _score(feature: FeatureDetail, explanation: int) -> float | None:
    """Correlation of a simulation of this explanation, by segments if there is one."""
    own = [s for s in feature.simulations if s.explanation == explanation and s.correlation.value is not None]
    own.sort(key=lambda s: ("segment", "token").index(s.level) if s.level in ("segment", "token") else 2)
    return own[0].correlation.value if own else None


def _file_names(languages: Mapping[str, Any]) -> dict[str, str]:
    """{language: file}; languages come from data, and name a file only if they look like one."""
    names = dict(FILES)
    for i, language in enumerate(sorted(languages)):
        if language not in names:
            good = re.fullmatch("[a-z]{2,8}(-[A-Za-z0-9]{1,8}){0,3}", language) and f"{language}_db.json"
            names[language] = good if good and good not in names.values() else f"language-{i}_db.json"
    return names
