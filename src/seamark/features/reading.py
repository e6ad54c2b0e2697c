"""Reading a scan: texts, pooled latents, statistics, contexts, and the scores of texts by a feature set."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import cache, cached_property, lru_cache
from itertools import chain
from os import PathLike
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from scipy.sparse import csc_matrix, csr_matrix, vstack

from seamark.errors import ConfigError, DataError, FormatError, RunError
from seamark.features.accumulate import FeatureStats, Pooled
from seamark.features.arrays import load_arrays, map_arrays, read_table
from seamark.features.contexts import OPEN_PARTS, Context, TokenScores, TokenTexts
from seamark.features.quantiles import LogBins
from seamark.features.sets import FeatureSet
from seamark.run import read_json

FORMAT_VERSION = 2
MANIFEST = "scan.json"
RAW = "raw.safetensors"
"""In each part: mean raw activations of its texts, {hookpoint: float32 [texts, d_in]}."""
HELD_ENTRIES = 1 << 24
"""Pooled latents of an autoencoder that are held in memory, by feature, to make contexts of one feature after another;
of more, a feature's are looked up in all parts."""
Stat = Literal["mean", "sum", "max", "count", "read_max"]
"""How a text's scoring positions become one number; `read_max` is over all positions that were read."""


class Scan:
    """A finished scan. Open one with `Scan.open(folder)`; everything is read when first asked for.

    The folder holds `scan.json`; `saes/<id>/stats.safetensors`; and parts of the corpus, `parts/<number>/`, each with
    `texts.parquet`, `rendered.parquet`, `saes/<id>/pooled.safetensors` and, if kept, `tokens.safetensors` and
    `raw.safetensors`. Rows of texts go through all parts in their order.
    """

    def __init__(self, path: Path, manifest: dict[str, Any]) -> None:
        self.path, self.manifest = path, manifest
        self.config: dict[str, Any] = manifest["config"]
        self.sae_ids: list[str] = list(manifest["sae_configs"])
        self.parts = [path / "parts" / f"{i:05d}" for i in range(len(manifest["rows"]))]
        self.starts: NDArray[np.int64] = np.concatenate([[0], np.cumsum(manifest["rows"])]).astype(np.int64)
        """[parts + 1]: the first row of each part."""
        self._pooled = lru_cache(OPEN_PARTS)(self._load_pooled)
        self.feature_stats = cache(self._load_stats)
        self._bins = cache(self._load_bins)

    @classmethod
    def open(cls, path: str | PathLike[str]) -> Scan:
        """Open a scan's folder; `FormatError` where there is none, or one of a later version."""
        folder = Path(path)
        try:
            manifest = read_json(folder / MANIFEST)
        except RunError as e:
            raise FormatError(f"no finished scan here ({e.what})", where=str(folder), fix="Run the scan first") from e
        if not isinstance(manifest, dict) or manifest.get("format_version") != FORMAT_VERSION:
            raise FormatError("a scan of another format version", where=str(folder), fix="Scan again")
        return cls(folder, manifest)

    @cached_property
    def texts(self) -> pa.Table:
        """A row per text: text_id, pair_id and side (null: a plain text), group, prompt (its hash), content (hash of
        what is shown), n_positions, n_tokens, n_response, truncated, reward (null: not read)."""
        return pa.concat_tables([read_table(part / "texts.parquet") for part in self.parts])

    @cached_property
    def n_positions(self) -> NDArray[np.int64]:
        """Scoring positions of each text, [texts]."""
        counts: NDArray[np.int64] = self.texts["n_positions"].to_numpy()
        return counts

    @cached_property
    def rows_by_pair(self) -> dict[str, tuple[int, int]]:
        """{pair id: (row of chosen, row of rejected)}."""
        found: dict[str, dict[str, int]] = {}
        columns = zip(self.texts["pair_id"].to_pylist(), self.texts["side"].to_pylist(), strict=True)
        for row, (pair_id, side) in enumerate(columns):
            if pair_id is not None:
                found.setdefault(pair_id, {})[side] = row
        return {pair_id: (sides["chosen"], sides["rejected"]) for pair_id, sides in found.items()}

    @property
    def groups(self) -> list[str]:
        return list(self.manifest["groups"])

    def sae_id(self, sae_id: str | None = None) -> str:
        """A known autoencoder's id; without one, the only one there is. `ConfigError` otherwise."""
        if sae_id is None and len(self.sae_ids) == 1:
            return self.sae_ids[0]
        if sae_id not in self.sae_ids:
            what = "the scan holds several autoencoders" if sae_id is None else f"no autoencoder {sae_id!r} in the scan"
            raise ConfigError(what, where=str(self.path), fix=f"Choose one of: {', '.join(self.sae_ids)}")
        return sae_id

    def d_sae(self, sae_id: str | None = None) -> int:
        return int(self.manifest["sae_configs"][self.sae_id(sae_id)]["d_sae"])

    def _load_pooled(self, sae_id: str, part: int) -> Pooled:
        path = self.parts[part] / "saes" / quote(sae_id, safe="") / "pooled.safetensors"
        arrays: dict[str, Any] = map_arrays(path)
        try:
            return Pooled(**arrays)
        except TypeError as e:
            raise FormatError("not the pooled latents of this version", where=str(path), fix="Scan again") from e

    def _load_stats(self, sae_id: str | None = None) -> FeatureStats:
        """Statistics of every feature of one autoencoder."""
        path = self.path / "saes" / quote(self.sae_id(sae_id), safe="") / "stats.safetensors"
        arrays: dict[str, Any] = load_arrays(path)
        return FeatureStats(**{k: v for k, v in arrays.items() if not k.startswith("bin_")})

    def histogram(self, sae_id: str | None, latent: int) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """How often a feature's activation at response tokens lies where: (edges [bins + 1], counts [bins]) in
        logarithmic bins from its least to its largest; both empty where it never fires.

        Raises:
            DataError: no such latent.
        """
        sae_id = self.sae_id(sae_id)
        self.check_latent(sae_id, latent)
        return self._bins(sae_id).histogram(latent)

    def _load_bins(self, sae_id: str) -> LogBins:
        arrays: dict[str, Any] = map_arrays(self.path / "saes" / quote(sae_id, safe="") / "stats.safetensors")
        return LogBins(arrays["bin_keys"], arrays["bin_counts"])

    def q(self, sae_id: str | None = None) -> NDArray[np.float64]:
        """Q_f of every feature [d_sae]; NaN: not available."""
        return self.feature_stats(self.sae_id(sae_id)).q

    def pooled_parts(self, sae_id: str | None = None, stat: Stat = "mean") -> Iterator[tuple[int, csr_matrix]]:
        """(first row, positive activations of each text pooled over its positions, float64 [texts of the part × d_sae])
        of every part: for corpora larger than memory.

        `mean` is over all scoring positions, silent ones too; a text without any has an empty row (see `n_positions`).
        """
        sae_id = self.sae_id(sae_id)
        for part, start in enumerate(self.starts[:-1].tolist()):
            p = self._pooled(sae_id, part)
            if stat == "read_max" and len(p.read_indptr):
                indptr, latent, data = p.read_indptr, p.read_latent, p.read_max.astype(np.float64)
            else:
                name = {"mean": "sum", "read_max": "max"}.get(stat, stat)
                indptr, latent, data = p.indptr, p.latent, getattr(p, name).astype(np.float64)
            if stat == "mean":
                data = data / np.repeat(self.n_positions[start : start + len(indptr) - 1], np.diff(indptr))
            yield start, csr_matrix((data, latent, indptr), shape=(len(indptr) - 1, self.d_sae(sae_id)))

    def pooled(self, sae_id: str | None = None, stat: Stat = "mean", group: str | None = None) -> csr_matrix:
        """`pooled_parts` of all texts at once, [texts × d_sae]; of a group's texts only, in the order of their rows."""
        parts = self.pooled_parts(sae_id, stat)
        if group is None:
            return vstack([m for _, m in parts], format="csr")
        inside = self.in_group(group)
        return vstack([m[inside[start : start + m.shape[0]]] for start, m in parts], format="csr")

    def columns(self, sae_id: str | None, latents: Sequence[int], stat: Stat = "mean") -> csc_matrix:
        """The columns of `pooled` for a few latents, [texts × latents]; a part at a time, so memory stays small.

        Raises:
            DataError: no such latent.
        """
        sae_id = self.sae_id(sae_id)
        for latent in latents:
            self.check_latent(sae_id, latent)
        return vstack([m[:, list(latents)] for _, m in self.pooled_parts(sae_id, stat)], format="csc")

    @property
    def hookpoints(self) -> list[str]:
        """Where the autoencoders read, in the order of names."""
        return sorted({str(config["hookpoint"]) for config in self.manifest["sae_configs"].values()})

    def hookpoint(self, hookpoint: str | None = None) -> str:
        """A known hookpoint; without one, the only one there is. `ConfigError` otherwise."""
        if hookpoint is None and len(self.hookpoints) == 1:
            return self.hookpoints[0]
        if hookpoint not in self.hookpoints:
            what = "the scan read several hookpoints" if hookpoint is None else f"the scan did not read {hookpoint!r}"
            raise ConfigError(what, where=str(self.path), fix=f"Choose one of: {', '.join(self.hookpoints)}")
        return hookpoint

    @property
    def keeps_raw(self) -> bool:
        """Whether mean raw activations were kept."""
        return bool(self.config.get("raw", False))

    def raw_parts(self, hookpoint: str | None = None) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """(first row, mean raw activation of each text over its scoring positions, float32 [texts of the part, d_in])
        of every part, read-only: for corpora larger than memory. As the model gives them, before any normalisation.

        A text without scoring positions has a row of NaN: its mean is not available.

        Raises:
            DataError: the scan kept none.
            ConfigError: no such hookpoint, or several and none is named.
            FormatError: a file is missing or damaged.
        """
        hookpoint = self.hookpoint(hookpoint)
        if not self.keeps_raw:
            raise DataError("the scan kept no raw activations", where=str(self.path), fix="Scan with raw: true")
        return ((start, self._raw(part, hookpoint)) for part, start in enumerate(self.starts[:-1].tolist()))

    def raw(self, hookpoint: str | None = None) -> NDArray[np.float32]:
        """`raw_parts` of all texts at once, float32 [texts, d_in]; errors as there."""
        parts = self.raw_parts(hookpoint)
        _, first = next(parts)
        whole = np.empty((int(self.starts[-1]), first.shape[1]), np.float32)
        for start, means in chain([(0, first)], parts):  # one file is open at a time
            whole[start : start + len(means)] = means
        return whole

    def _raw(self, part: int, hookpoint: str) -> NDArray[np.float32]:
        path, n = self.parts[part] / RAW, self.manifest["rows"][part]
        found: NDArray[np.float32] | None = map_arrays(path).get(hookpoint)
        if found is None or found.ndim != 2 or len(found) != n:
            raise FormatError(f"no activations of {n} texts at {hookpoint} here", where=str(path), fix="Scan again")
        return found

    def in_group(self, group: str) -> NDArray[np.bool_]:
        """[texts]: which texts are of a group. `DataError` where there is no such group."""
        if group not in self.groups:
            raise DataError(f"no group {group!r} in the scan", where=str(self.path),
                            fix=f"Groups: {', '.join(self.groups)}")  # fmt: skip
        found: NDArray[np.bool_] = np.asarray(self.texts["group"].to_pylist(), dtype=object) == group
        return found

    def margins(self) -> dict[str, float]:
        """Reward margin r(chosen) − r(rejected) of every pair. `DataError` where rewards were not read."""
        if not self.config["rewards"]:
            raise DataError("the scan holds no rewards", where=str(self.path), fix="Scan again with rewards on")
        rewards = self.texts["reward"].to_numpy()
        return {pair: float(rewards[c] - rewards[r]) for pair, (c, r) in self.rows_by_pair.items()}

    @cached_property
    def token_texts(self) -> TokenTexts:
        """Texts token by token, with the latents kept of each. `DataError` where none were kept."""
        if not self.manifest["choices"]["keep_tokens"]:
            raise DataError(
                "the scan kept no latents of single tokens", where=str(self.path), fix="Scan with keep_tokens: always"
            )
        return TokenTexts(self.parts, self.starts, prompts=self.config["scope"] == "all")

    def contexts(self, sae_id: str | None, latent: int, n: int = 10, *, group: str | None = None) -> list[Context]:
        """The n texts in which a feature fires most strongly at a scoring position, strongest first.

        Raises:
            DataError: token-level latents were not kept, or there is no such latent.
        """
        sae_id, tokens = self.sae_id(sae_id), self.token_texts
        self.check_latent(sae_id, latent)
        rows, values = self._strength(sae_id, latent)
        if group is not None:
            inside = self.in_group(group)[rows]
            rows, values = rows[inside], values[inside]
        order = np.lexsort((rows, -values))[:n]
        q = float(self.q(sae_id)[latent])
        found = []
        for row in rows[order].tolist():
            text = tokens.read(row)
            about = self.texts.slice(row, 1).to_pylist()[0]
            found.append(Context(
                about["text_id"], about["pair_id"], about["side"], about["group"], text.tokens,
                tokens.activations(text, sae_id, {latent: 1.0}), text.scoring, None if math.isnan(q) else q, text.read,
            ))  # fmt: skip
        return found

    def token_scores(self, text_id: str, features: FeatureSet) -> TokenScores:
        """What each token of a text adds to its alignment score: Σ_{F⁺} max(z, 0) − Σ_{F⁻} max(z, 0) there.

        All tokens whose latents were kept have a value; g(y) is the mean over the scoring ones (see `text_scores`).

        Raises:
            DataError: token-level latents were not kept, or there is no such text or latent.
        """
        row, tokens = self._row(text_id), self.token_texts
        text = tokens.read(row)
        values = np.zeros(len(text.tokens))
        for sae_id in dict.fromkeys(f.sae for f in features.features):
            weights = {f.latent: float(f.sign) for f in features.features if f.sae == self.sae_id(sae_id)}
            for latent in weights:
                self.check_latent(sae_id, latent)
            values += tokens.activations(text, sae_id, weights)
        return TokenScores(text_id, text.tokens, tuple(values.tolist()), text.scoring)

    def check_latent(self, sae_id: str, latent: int) -> None:
        """`DataError` unless the autoencoder has such a latent."""
        if not 0 <= latent < self.d_sae(sae_id):
            raise DataError(f"no latent {latent}; there are {self.d_sae(sae_id)}", where=sae_id)

    @cached_property
    def _rows(self) -> dict[str, int]:
        return {text_id: row for row, text_id in enumerate(self.texts["text_id"].to_pylist())}

    def _row(self, text_id: str) -> int:
        if text_id not in self._rows:
            raise DataError(f"no text {text_id!r} in the scan", where=str(self.path))
        return self._rows[text_id]

    def _strength(self, sae_id: str, latent: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """(rows of the texts in which a latent fires at a scoring position, its maximum there)."""
        if self._entries(sae_id) > HELD_ENTRIES:
            column = self.columns(sae_id, [latent], "max").tocoo()
            return column.row, column.data
        if sae_id not in self._maxima:
            self._maxima[sae_id] = self.pooled(sae_id, "max").T.tocsr()
        line = self._maxima[sae_id][[latent]].tocoo()
        return line.col, line.data

    def _entries(self, sae_id: str) -> int:
        """Pooled latents of all texts."""
        return sum(len(self._pooled(sae_id, part).latent) for part in range(len(self.parts)))

    @cached_property
    def _maxima(self) -> dict[str, csr_matrix]:
        return {}


def text_scores(scan: Scan, features: FeatureSet) -> dict[str, float]:
    """Safety alignment score g(y) of every text (SAFER, arXiv 2507.00665): {text id: score}.

    The mean over a text's scoring positions of Σ_{F⁺} max(z, 0) − Σ_{F⁻} max(z, 0). NaN for a text without scoring
    positions: its score is not available.
    """
    g: NDArray[np.float64] = np.where(scan.n_positions > 0, 0.0, np.nan)
    for sae_id in dict.fromkeys(f.sae for f in features.features):
        mine = [f for f in features.features if f.sae == scan.sae_id(sae_id)]
        weights = np.zeros(scan.d_sae(sae_id))
        for f in mine:
            if f.latent >= len(weights):
                raise DataError(f"no latent {f.latent}; there are {len(weights)}", where=sae_id)
            weights[f.latent] = f.sign
        for start, part in scan.pooled_parts(sae_id, "mean"):
            g[start : start + part.shape[0]] += part @ weights
    return dict(zip(scan.texts["text_id"].to_pylist(), g.tolist(), strict=True))
