"""Texts read at chosen tokens, many hookpoints in one pass: of each text and feature the largest activation there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix, diags

from seamark.diagnose.units import scan_units, units_of
from seamark.errors import ConfigError
from seamark.features.accumulate import Firings
from seamark.features.entries import pool
from seamark.features.gather import Positions, gather_by, public_name
from seamark.features.quantiles import LogBins
from seamark.features.reading import Scan
from seamark.features.scan import BATCH_TOKENS, check_suite
from seamark.model.batching import plan_batches
from seamark.model.loading import HookedModel
from seamark.model.reading import Reader
from seamark.run import progress
from seamark.sae import SparseAutoencoder
from seamark.text.rendering import Rendered

Floats = NDArray[np.float64]
Suite = Mapping[str, SparseAutoencoder]
Where = Literal["scan", "texts"]


@dataclass(frozen=True, eq=False)
class PooledTexts:
    """What one autoencoder's features do in some texts."""

    sae: str
    hookpoint: str
    maximum: csr_matrix
    """Largest positive z of each feature over a text's tokens that were read [texts, d_sae]."""
    counted: Floats
    """Q_f over the tokens of the texts that were to give it [d_sae]; NaN: fires at fewer than 10 of them."""

    def normalised(self, units: Floats) -> csr_matrix:
        """`maximum` / Q_f; features without a Q_f are 0 everywhere."""
        found = (self.maximum @ diags(np.where(np.isfinite(units), 1.0 / np.where(units > 0, units, 1.0), 0.0))).tocsr()
        found.eliminate_zeros()
        return found


def read_pooled(
    model: HookedModel, suite: Suite, texts: Sequence[Rendered], positions: Sequence[Positions], *,
    units_from: NDArray[np.bool_] | None = None, title: str = "Reading", batch_tokens: int | None = None,
) -> dict[str, PooledTexts]:  # fmt: skip
    """Read every text once.

    Args:
        model: any model with hookpoints.
        suite: {sae id: autoencoder}; all their hookpoints are read in the same pass.
        texts: what to read.
        positions: of each text, the tokens that count.
        units_from: [texts] those whose tokens give Q_f; None: all.
        title: of the progress bar.
        batch_tokens: padded tokens of a batch.

    Raises:
        ConfigError: an autoencoder does not fit the model.
        DataError: NaN or infinite activations.
    """
    check_suite(model, suite)
    counts = np.ones(len(texts), np.bool_) if units_from is None else units_from
    kept = {name: _Kept(sae.to(model.device).config.d_sae) for name, sae in suite.items()}
    hookpoints = sorted({sae.config.hookpoint for sae in suite.values()})
    budget = batch_tokens or BATCH_TOKENS["cpu" if model.device.type == "cpu" else "gpu"]
    with Reader(model, hookpoints) as reader, progress(title, len(texts), "texts") as advance:
        for rows in plan_batches([len(t) for t in texts], budget):
            got = gather_by(reader, texts, rows, [positions[row] for row in rows])
            owner = np.repeat(np.asarray(rows, np.int64), [len(positions[row]) for row in rows])
            for name, sae in suite.items():
                kept[name].add(owner, Firings.of(sae.encode(got.activations[sae.config.hookpoint])), counts)
            advance(len(rows))
    return {name: PooledTexts(name, suite[name].config.hookpoint, mine.matrix(len(texts)), mine.quantiles())
            for name, mine in kept.items()}  # fmt: skip


class _Kept:
    """The batches of one autoencoder."""

    def __init__(self, d_sae: int) -> None:
        self.d_sae, self.bins, self.largest = d_sae, LogBins(), np.zeros(d_sae, np.float32)
        self.found: list[tuple[NDArray[np.int64], NDArray[np.int32], NDArray[np.float32]]] = []

    def add(self, owner: NDArray[np.int64], firings: Firings, counts: NDArray[np.bool_]) -> None:
        """`owner` [positions]: the text of each."""
        text = np.repeat(owner, np.diff(firings.bounds))
        mine = counts[text]
        self.bins.add(firings.latent[mine], firings.value[mine])
        np.maximum.at(self.largest, firings.latent[mine], firings.value[mine])
        groups = pool(text, firings.latent, firings.value, self.d_sae)
        self.found.append((groups.owner.astype(np.int64), groups.latent, groups.max))

    def quantiles(self) -> Floats:
        return self.bins.quantiles(self.d_sae, self.largest)

    def matrix(self, n: int) -> csr_matrix:
        if not self.found:
            return csr_matrix((n, self.d_sae))
        row, latent, value = (np.concatenate(column) for column in zip(*self.found, strict=True))
        return csr_matrix((value.astype(np.float64), (row, latent)), shape=(n, self.d_sae))


def choose_units(
    model: HookedModel, suite: Suite, found: Mapping[str, PooledTexts], scan: Scan | None, texts: str
) -> tuple[dict[str, Floats], dict[str, str]]:  # fmt: skip
    """({sae id: Q_f [d_sae]}, {sae id: where it is from}): of the scan, else of the texts just read.

    Args:
        texts: which texts these are, in words.

    Raises:
        ConfigError: the scan was made with another model, or with another autoencoder of a name.
    """
    known = {} if scan is None else scan_units(scan, suite)
    if scan is not None and scan.manifest["model"] != model.fingerprint():
        raise ConfigError("the scan was made with another model", where=str(scan.path), fix="Give that model")
    why = "no scan is given" if scan is None else "the scan does not hold this autoencoder"
    units = {name: units_of(name, suite[name], {name: known.get(name, found[name].counted)}) for name in suite}
    return units, {name: "the scan" if name in known else f"{texts}, because {why}" for name in suite}


def foreign_saes(model: HookedModel, suite: Suite) -> list[str]:
    """A sentence for each autoencoder that says it was trained on a model of another name."""
    mine = public_name(model)
    return [f"{name} was trained on {sae.config.model}, and reads {mine} here: its features mean what they are said "
            f"to mean only if that is the same model." for name, sae in suite.items()
            if sae.config.model and sae.config.model not in (mine, model.name)]  # fmt: skip
