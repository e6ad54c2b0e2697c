"""Contexts of many features at once: the texts an explainer is shown, and others on which its explanation is tested.

As in Safe-SAIL (arXiv 2509.18127, METHODS §2.3), activations fall into levels by their share of Q_f, and texts are
drawn from each level and from those where the feature is silent. Tokens are looked at for the chosen texts only.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from seamark.errors import ConfigError, DataError, FormatError
from seamark.features.config import ScanConfig
from seamark.features.context_choice import Chooser, ChosenRows, ContextConfig, Key, candidates
from seamark.features.contexts import Context, TextsReadAgain, TokenTexts
from seamark.features.quantiles import MIN_FIRINGS
from seamark.features.reading import Scan
from seamark.features.sets import FeatureSet
from seamark.model.loading import HookedModel
from seamark.run import disk_errors, progress, write_atomic
from seamark.sae import SparseAutoencoder

FORMAT_VERSION = 1
BLOCK = 256
"""Latents chosen for together: a larger block passes over the pooled latents less often and takes more memory."""


@dataclass(frozen=True)
class ContextHalf:
    """Contexts of one feature from one half of the texts. A text may be both in `top` and in a level."""

    top: tuple[Context, ...] = ()
    """Strongest first."""
    levels: Mapping[int, tuple[Context, ...]] = field(default_factory=dict)
    """{1 … 10: texts whose strongest activation is of this level}; no levels at all where Q_f is not available."""
    silent: tuple[Context, ...] = ()
    """Texts without the feature, drawn evenly; none that is a near miss."""
    near_miss: tuple[Context, ...] = ()
    """Most alike first."""

    @property
    def contexts(self) -> tuple[Context, ...]:
        """Every text once: top, levels from 10 down, near misses, silent."""
        levels = [c for level in sorted(self.levels, reverse=True) for c in self.levels[level]]
        return tuple({c.text_id: c for c in (*self.top, *levels, *self.near_miss, *self.silent)}.values())


@dataclass(frozen=True)
class FeatureContexts:
    """Contexts of one feature in two halves; no prompt and no text is in one here and in the other for any feature."""

    sae_id: str
    latent: int
    q: float | None
    """Q_f; None: not available, and then there is `top` alone."""
    reason: str
    """Why Q_f is not available; empty where it is."""
    explain: ContextHalf
    simulate: ContextHalf


def context_sets(
    scan: Scan,
    features: FeatureSet | Mapping[str, Sequence[int]],
    config: ContextConfig | None = None,
    *,
    model: HookedModel | None = None,
    suite: Mapping[str, SparseAutoencoder] | None = None,
) -> dict[Key, FeatureContexts]:
    """Contexts of features, chosen by content: neither the order of texts nor their cut into parts changes them.

    Texts with equal content count once, as the one whose id comes first. A text's strength is the feature's largest
    activation over all positions that were read; silent means 0 at all of them. A hash of the prompt puts each text of
    a pair into a half, of the content each plain text; a hash of the content draws within a level and among silent
    texts. Near misses are the silent texts with the largest cosine > 0 between their mean latents and the centroid of
    the feature's top texts of the same half: weighted by strength, less the mean of the half, of what is positive then
    the 128 strongest latents, the feature itself left out (our definition). But for Q_f, which is of the whole scan,
    nothing in one half depends on texts of the other.

    Args:
        scan: a finished scan.
        features: a feature set, or {sae id: latents}.
        config: how many texts of which kinds; the default is `ContextConfig()`.
        model: the scan's model, needed where the scan kept no latents of single tokens: the chosen texts, and only
            they, are then read again, once for all features.
        suite: the scan's autoencoders, {sae id: autoencoder}; needed where `model` is.

    Returns:
        {(sae id, latent): contexts}, in the order asked for.

    Raises:
        ConfigError: no such autoencoder in the scan; another model or autoencoder than the scan's.
        DataError: no such latent or group, a group without any text that was read; latents of single tokens were not
            kept and model or suite are missing; NaN or infinite activations.
    """
    config, latents = config or ContextConfig(), _latents(scan, features)
    source = _source(scan, list(latents), model, suite)
    allowed = candidates(scan, config)
    chosen: dict[Key, tuple[ChosenRows, ...]] = {}
    for sae_id, mine in latents.items():
        for start in range(0, len(mine), BLOCK):
            chosen |= Chooser(scan, sae_id, mine[start : start + BLOCK], allowed, config).choose()
    found = _read(scan, source, chosen)
    return {key: _feature(scan, key, halves, found) for key, halves in chosen.items()}


def _latents(scan: Scan, features: FeatureSet | Mapping[str, Sequence[int]]) -> dict[str, list[int]]:
    """{sae id: latents, each once}, all of them in the scan."""
    if isinstance(features, FeatureSet):
        features = {sae_id: features.latents(sae_id) for sae_id in dict.fromkeys(f.sae for f in features.features)}
    found = {scan.sae_id(sae_id): list(dict.fromkeys(map(int, latents))) for sae_id, latents in features.items()}
    for sae_id, latents in found.items():
        for latent in latents:
            scan.check_latent(sae_id, latent)
    return found


def _source(
    scan: Scan, sae_ids: Sequence[str], model: HookedModel | None, suite: Mapping[str, SparseAutoencoder] | None
) -> TokenTexts | TextsReadAgain:
    """Where activations at single tokens come from: the scan's shards, else model and suite, which must be its own."""
    if scan.manifest["choices"]["keep_tokens"]:
        return scan.token_texts
    where = str(scan.path)
    if model is None or suite is None:
        raise DataError("the scan kept no latents of single tokens", where=where,
                        fix="Scan with keep_tokens: always, or give the scan's model and suite")  # fmt: skip
    if model.fingerprint() != scan.manifest["model"]:
        raise ConfigError(f"{model.name} is not the model of the scan", where=where,
                          fix=f"Give {scan.manifest['model_name']} as it was then")  # fmt: skip
    for sae_id in sae_ids:
        if sae_id not in suite or suite[sae_id].fingerprint() != scan.manifest["saes"][sae_id]:
            raise ConfigError(f"the suite does not hold the scan's autoencoder {sae_id!r}", where=where,
                              fix="Give the suite that was scanned with")  # fmt: skip
    choices = {"batch_tokens": scan.manifest["batch_tokens"], "precision": scan.manifest["choices"]["precision"]}
    config = ScanConfig.model_validate(scan.config | choices)
    return TextsReadAgain(scan.parts, scan.starts, model, {i: suite[i] for i in sae_ids}, config)


def _read(
    scan: Scan, source: TokenTexts | TextsReadAgain, chosen: Mapping[Key, Sequence[ChosenRows]]
) -> dict[tuple[Key, int], Context]:
    """{(feature, row): context}: every chosen text is looked at once, for all features that want it."""
    wanted: dict[int, dict[str, list[int]]] = {}
    for (sae_id, latent), halves in chosen.items():
        for row in {row for half in halves for row in half.all()}:
            wanted.setdefault(row, {}).setdefault(sae_id, []).append(latent)
    q, found = {key: _q(scan, key) for key in chosen}, {}
    with progress("Contexts", len(wanted), "texts") as advance:
        for text, truth in source.truth(wanted):
            about = scan.texts.slice(text.row, 1).to_pylist()[0]
            text_id, pair_id, side, group = (about[name] for name in ("text_id", "pair_id", "side", "group"))
            for key, activations in truth.items():
                found[key, text.row] = Context(
                    text_id, pair_id, side, group, text.tokens, activations, text.scoring, q[key], text.read,
                    about["prompt"] if pair_id is not None else "",
                )  # fmt: skip
            advance(1)
    return found


def _q(scan: Scan, key: Key) -> float | None:
    q = float(scan.q(key[0])[key[1]])
    return None if np.isnan(q) else q


def _feature(
    scan: Scan, key: Key, halves: Sequence[ChosenRows], found: Mapping[tuple[Key, int], Context]
) -> FeatureContexts:
    def contexts(rows: Sequence[int]) -> tuple[Context, ...]:
        return tuple(found[key, row] for row in rows)

    explain, simulate = (
        ContextHalf(
            contexts(half.top), {level: contexts(rows) for level, rows in half.levels.items()},
            contexts(half.silent), contexts(half.near_miss),
        )
        for half in halves
    )  # fmt: skip
    q = _q(scan, key)
    reason = f"the feature fires at fewer than {MIN_FIRINGS} response tokens" if q is None else ""
    return FeatureContexts(*key, q, reason, explain, simulate)


def write_contexts(sets: Mapping[Key, FeatureContexts] | Iterable[FeatureContexts], path: str | PathLike[str]) -> None:
    """Write contexts as JSON lines, a line per feature, whole or not at all; `read_contexts` gives back the same.
    Features that come one by one need not be in memory together."""
    features: Iterable[FeatureContexts] = sets.values() if isinstance(sets, Mapping) else sets
    lines = (json.dumps(_row(feature), ensure_ascii=False, allow_nan=False) + "\n" for feature in features)
    with disk_errors(Path(path)):
        write_atomic(Path(path), (line.encode("utf-8", "surrogatepass") for line in lines))


def _row(feature: FeatureContexts) -> dict[str, Any]:
    return {"format_version": FORMAT_VERSION} | asdict(feature)


def read_contexts(path: str | PathLike[str]) -> dict[Key, FeatureContexts]:
    """Read what `write_contexts` wrote; `FormatError` on anything else, naming file and line."""
    return {(feature.sae_id, feature.latent): feature for feature in iter_contexts(path)}


def iter_contexts(path: str | PathLike[str]) -> Iterator[FeatureContexts]:
    """The same, feature by feature: only one is in memory at a time."""
    try:
        with Path(path).open("rb") as lines:
            for number, line in enumerate(lines, 1):
                yield _feature_of(line, f"{path}, line {number}")
    except OSError as e:
        raise FormatError(f"cannot be read ({e.strerror})", where=str(path), fix="Name a file of contexts") from e


def _feature_of(line: bytes, where: str) -> FeatureContexts:
    try:
        row = json.loads(line)
        version = row.pop("format_version")
        if version != FORMAT_VERSION:
            raise FormatError(f"contexts of format version {version}, not {FORMAT_VERSION}", where=where)
        return FeatureContexts(**(row | {half: _half(row[half]) for half in ("explain", "simulate")}))
    except (ValueError, TypeError, KeyError, AttributeError) as e:
        raise FormatError(f"not the contexts of a feature ({e})", where=where, fix="Write the file again") from e


def _half(row: dict[str, Any]) -> ContextHalf:
    levels = {int(level): _contexts(rows) for level, rows in row["levels"].items()}
    return ContextHalf(_contexts(row["top"]), levels, _contexts(row["silent"]), _contexts(row["near_miss"]))


def _contexts(rows: Sequence[dict[str, Any]]) -> tuple[Context, ...]:
    """Contexts of a file's rows. Equal tokens, and all zeros, are one object in memory: most of them come often."""
    found = []
    for row in rows:
        lists = {
            "tokens": tuple(map(sys.intern, row["tokens"])), "scoring": tuple(row["scoring"]),
            "activations": tuple(0.0 if z == 0 else z for z in row["activations"]), "read": tuple(row["read"]),
        }  # fmt: skip
        found.append(Context(**(row | lists)))
    return tuple(found)
