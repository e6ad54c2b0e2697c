"""The scan: one pass of a model over preference pairs that gives all that later stages need.

For each text: its reward, and its latents pooled over the scoring positions. For each feature: statistics and Q_f.
For each token of the responses: its latents, in shards, for contexts. Nothing is ever dense in the latents, and
only shards, pooled latents and the texts themselves are held.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from os import PathLike
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import safetensors.numpy
from numpy.typing import NDArray

from seamark.errors import ConfigError, DataError, RunError
from seamark.features.accumulate import RESPONSE, SCORING, Accumulator, Firings, StoredPositions
from seamark.features.config import ScanConfig
from seamark.features.gather import Positions, gather, public_name
from seamark.features.reading import FORMAT_VERSION, MANIFEST, Scan
from seamark.features.shards import ShardWriter
from seamark.model.batching import plan_batches
from seamark.model.loading import HookedModel
from seamark.model.precision import resolve_precision
from seamark.run import digest, disk_errors, progress, read_json, versions, write_atomic, write_json
from seamark.sae import SparseAutoencoder
from seamark.text.pairs import Pairs
from seamark.text.positions import positions
from seamark.text.rendering import Rendered

AUTO_TOKENS_BYTES = 4 << 30
ASSUMED_L0 = 256
"""Latents a position of an autoencoder without k, to foresee the size of its token shards."""


def scan(
    model: HookedModel,
    suite: Mapping[str, SparseAutoencoder],
    pairs: Pairs,
    out: str | PathLike[str],
    *,
    config: ScanConfig | None = None,
) -> Scan:
    """Read every chosen and rejected text once and write what was found into the folder `out`.

    A finished scan of the same model, autoencoders, pairs and config is not made again. Reruns give the same bytes;
    another `batch_tokens` moves numbers by rounding only.

    Args:
        model: a reward model, or any model with `config.rewards` off.
        suite: {sae id: autoencoder}; many may share a hookpoint.
        pairs: one row per (pair, side); a text that occurs twice is read twice.
        out: folder to write.
        config: what to read; the default is `ScanConfig()`.

    Raises:
        DataError: no pairs, no position in any text of a group, NaN or infinite activations.
        ConfigError: no autoencoder, one without hookpoint, or one whose width is not the model's.
        RunError: `out` holds something else than a scan.
    """
    config, out = config or ScanConfig(), Path(out)
    if len(pairs) == 0:
        raise DataError("no pairs to scan", where=str(out), fix="Check the files given as pairs")
    check_suite(model, suite)
    about = {
        "config": config.model_dump(exclude={"batch_tokens"}),
        "model": model.fingerprint(),
        "saes": {sae_id: sae.fingerprint() for sae_id, sae in suite.items()},
        "pairs": pairs.fingerprint(),
        "format_version": FORMAT_VERSION,
    }
    key = digest(about)
    with disk_errors(out):
        if _is_done(out, key):
            return Scan.open(out)
        partial = _prepare(out)
        corpus = _render(model, pairs, config)
        keep = _keep_tokens(config, corpus, suite)
        _read_all(model, suite, corpus, config, partial, keep)
        manifest = about | {
            "key": key, "model_name": public_name(model), "batch_tokens": config.batch_tokens,
            "choices": {"keep_tokens": keep, "precision": resolve_precision(config.precision, model.device.type)},
            "versions": versions(), "n_pairs": len(pairs),
            "groups": {g: len(pairs.group(g)) for g in pairs.groups},
            "sae_configs": {sae_id: sae.config.model_dump() for sae_id, sae in suite.items()},
        }  # fmt: skip
        write_json(partial / MANIFEST, manifest)
        _finish(partial, out)
    return Scan.open(out)


def check_suite(model: HookedModel, suite: Mapping[str, SparseAutoencoder]) -> None:
    """Raise `ConfigError` unless every autoencoder names a hookpoint of this model and has its width."""
    if not suite:
        raise ConfigError("no autoencoder to scan with", fix="Give {name: autoencoder}")
    for sae_id, sae in suite.items():
        hookpoint = sae.config.hookpoint
        if not hookpoint:
            raise ConfigError("the autoencoder names no hookpoint", where=sae_id, fix="Set it in its config.json")
        width = model.d_model(hookpoint)
        if width != sae.config.d_in:
            raise ConfigError(
                f"d_in is {sae.config.d_in} but {hookpoint} of {model.name} is {width} wide", where=sae_id,
                fix="Use the model it was trained on",
            )  # fmt: skip


@dataclass(frozen=True)
class _Corpus:
    """Rendered texts, and for each the stored positions (ascending) with their flags."""

    texts: list[Rendered]
    rows: list[dict[str, Any]]
    positions: list[Positions]
    flags: list[NDArray[np.uint8]]


def _render(model: HookedModel, pairs: Pairs, config: ScanConfig) -> _Corpus:
    renderer = model.renderer(config.max_length)
    corpus = _Corpus([], [], [], [])
    for pair in pairs:
        for side, text in zip(("chosen", "rejected"), renderer.render_pair(pair), strict=True):
            scoring = positions(text, config.positions, config.rule, config.scope)
            stored = scoring
            if config.context_positions == "tokens":
                stored = np.union1d(scoring, positions(text, "tokens")).astype(np.int32)
            start, end = text.response_span
            flags = np.isin(stored, scoring) * SCORING + ((stored >= start) & (stored < end)) * RESPONSE
            corpus.texts.append(text)
            corpus.positions.append(stored)
            corpus.flags.append(flags.astype(np.uint8))
            corpus.rows.append({
                "text_id": text.text_id, "pair_id": pair.id, "side": side, "group": pair.group,
                "n_positions": len(scoring), "n_tokens": len(text), "truncated": text.truncated,
            })  # fmt: skip
    for group in pairs.groups:
        if not any(row["n_positions"] for row in corpus.rows if row["group"] == group):
            raise DataError(
                f"no text of group {group!r} has a position to read", where="scan",
                fix=f"Choose other positions than {config.positions!r} with rule {config.rule!r}",
            )  # fmt: skip
    return corpus


def _keep_tokens(config: ScanConfig, corpus: _Corpus, suite: Mapping[str, SparseAutoencoder]) -> bool:
    if config.keep_tokens != "auto":
        return config.keep_tokens == "always"
    n = sum(len(p) for p in corpus.positions)
    per_position = sum(8 * (sae.config.k or ASSUMED_L0) + 8 for sae in suite.values()) + 9
    return n * per_position <= AUTO_TOKENS_BYTES


def _read_all(
    model: HookedModel, suite: Mapping[str, SparseAutoencoder], corpus: _Corpus, config: ScanConfig,
    folder: Path, keep_tokens: bool,
) -> None:  # fmt: skip
    """The pass itself, batch by batch, and the files it leaves."""
    totals = {sae_id: Accumulator(sae.config.d_sae) for sae_id, sae in suite.items()}
    writer = ShardWriter(folder / "tokens", len(corpus.texts)) if keep_tokens else None
    rewards = np.full(len(corpus.texts), np.nan)
    hookpoints = sorted({sae.config.hookpoint for sae in suite.values()})
    for sae in suite.values():
        sae.to(model.device)
    plan = plan_batches([len(t) for t in corpus.texts], config.batch_tokens)
    with progress("Scan", len(corpus.texts), "texts") as advance:
        for rows in plan:
            chosen = [corpus.positions[r] for r in rows]
            got = gather(model, corpus.texts, rows, chosen, hookpoints, with_rewards=config.rewards,
                         precision=config.precision)  # fmt: skip
            if got.rewards is not None:
                rewards[rows] = got.rewards
            stored = _stored(corpus, rows)
            firings = {i: Firings.of(sae.encode(got.activations[sae.config.hookpoint])) for i, sae in suite.items()}
            for sae_id, total in totals.items():
                total.add(stored, firings[sae_id])
            if writer is not None:
                writer.add(stored, firings)
            advance(len(rows))
    if writer is not None:
        writer.close()
    _write_texts(folder, corpus, rewards if config.rewards else None)
    for sae_id, total in totals.items():
        _write_features(sae_folder(folder, sae_id), total, len(corpus.texts))


def _stored(corpus: _Corpus, rows: Sequence[int]) -> StoredPositions:
    counts = [len(corpus.positions[r]) for r in rows]
    return StoredPositions(
        np.repeat(np.asarray(rows, dtype=np.int32), counts),
        np.concatenate([corpus.positions[r] for r in rows]).astype(np.int32),
        np.concatenate([corpus.flags[r] for r in rows]).astype(np.uint8),
    )


def sae_folder(folder: Path, sae_id: str) -> Path:
    """Where a scan keeps one autoencoder's results; ids may hold any character."""
    return folder / "saes" / quote(sae_id, safe="")


def _write_texts(folder: Path, corpus: _Corpus, rewards: NDArray[np.float64] | None) -> None:
    table = pa.Table.from_pylist(corpus.rows)
    values = [None] * len(corpus.rows) if rewards is None else rewards
    _write_parquet(table.append_column("reward", pa.array(values, pa.float64())), folder / "texts.parquet")
    rendered = pa.table({
        "text_id": [t.text_id for t in corpus.texts],
        "text": [t.text for t in corpus.texts],
        "input_ids": [t.input_ids for t in corpus.texts],
        "start": [t.offsets[:, 0] for t in corpus.texts],
        "end": [t.offsets[:, 1] for t in corpus.texts],
        "special": [t.special for t in corpus.texts],
        "prompt_span": [list(t.prompt_span) for t in corpus.texts],
        "response_span": [list(t.response_span) for t in corpus.texts],
    })  # fmt: skip
    _write_parquet(rendered, folder / "rendered.parquet")


def _write_parquet(table: pa.Table, path: Path) -> None:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    write_atomic(path, sink.getvalue().to_pybytes())


def _write_features(folder: Path, total: Accumulator, n_texts: int) -> None:
    write_atomic(folder / "pooled.safetensors", safetensors.numpy.save(asdict(total.pooled(n_texts))))
    bins = {"bin_keys": total.bins.keys, "bin_counts": total.bins.counts}
    write_atomic(folder / "stats.safetensors", safetensors.numpy.save(asdict(total.stats()) | bins))


def _is_done(out: Path, key: str) -> bool:
    try:
        return bool(read_json(out / MANIFEST).get("key") == key)
    except RunError:
        return False


def _prepare(out: Path) -> Path:
    """An empty scratch folder inside `out`; an older scan there stays until the new one is whole."""
    out.mkdir(parents=True, exist_ok=True)
    strangers = sorted({p.name for p in out.iterdir() if not p.name.startswith(".")} - _PARTS - _OTHERS)
    if strangers and not (out / MANIFEST).exists():
        raise RunError(f"the folder holds {strangers[0]!r} and is no scan", where=str(out), fix="Choose another --out")
    partial = out / ".scan"
    if partial.exists():
        shutil.rmtree(partial)
    partial.mkdir()
    return partial


_PARTS = {MANIFEST, "texts.parquet", "rendered.parquet", "saes", "tokens"}
_OTHERS = {"manifest.json", "result.json"}
"""What a run or a command leaves beside a scan."""


def _finish(partial: Path, out: Path) -> None:
    """Move the new scan into place; its manifest goes first from the old one and comes last with the new one."""
    (out / MANIFEST).unlink(missing_ok=True)
    for name in sorted(_PARTS - {MANIFEST}):
        old = out / name
        shutil.rmtree(old) if old.is_dir() else old.unlink(missing_ok=True)
        if (partial / name).exists():
            (partial / name).rename(old)
    (partial / MANIFEST).rename(out / MANIFEST)
    partial.rmdir()
