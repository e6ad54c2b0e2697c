"""Building an atlas from the results of other commands: scans, explanations, simulations, ratings, contrasts, effects.

Every source is a run of the atlas, committed in portions and marked complete in its manifest at the end. After a kill
the same command goes on: what is complete is left alone, the rest is written again, and the same atlas comes out.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from seamark.atlas.nearness import nearness_sources
from seamark.atlas.pair_sources import Effects, contrasts_of
from seamark.atlas.records import Histogram, Record, Run, Sae
from seamark.atlas.rows import FeatureRow
from seamark.atlas.sources import (
    AT_ONCE,
    Explained,
    Known,
    Latents,
    Rated,
    Simulated,
    Source,
    made,
    portions,
    rows_of,
)
from seamark.atlas.writing import AtlasWriter
from seamark.errors import ConfigError, DataError, FormatError
from seamark.features.quantiles import MIN_FIRINGS
from seamark.features.reading import Scan
from seamark.features.sets import FeatureSet
from seamark.model.hookpoints import parse_hookpoint
from seamark.run import digest, progress

if TYPE_CHECKING:
    from seamark.sae import SparseAutoencoder

TOP = 20
"""Texts of a feature that come straight from the scan, where no explanation brought others."""
MOST_BINS = 32
"""Bins of a feature's histogram."""


class BuildSummary(Record):
    """What an atlas holds after a build."""

    path: str
    features: int
    explained: int
    explanations: int
    simulations: int
    ratings: int
    evidence: int
    contexts: int
    neighbours: int
    layouts: tuple[str, ...]
    written: tuple[str, ...]
    """Titles of the runs that were written now."""
    skipped: tuple[str, ...]
    """Titles of those that were complete."""
    notes: tuple[str, ...]


def build_atlas(
    out: str | PathLike[str],
    *,
    scans: Sequence[Scan] = (),
    explained: Sequence[Path] = (),
    simulated: Sequence[Path] = (),
    rated: Sequence[Path] = (),
    contrasts: Sequence[Path] = (),
    effects: Sequence[tuple[str, Path]] = (),
    features: Sequence[FeatureSet] = (),
    suite: Mapping[str, SparseAutoencoder] | None = None,
    everything: bool = False,
    landscape: bool = True,
    seed: int = 0,
) -> BuildSummary:
    """Build an atlas, or add to one. Features that are explained, simulated, rated, contrasted or asked for are in it.

    Args:
        out: the file.
        scans: finished scans: statistics of features, and contexts where no explanation brings some. The first one that
            holds an autoencoder tells of its features. Scans that explanations were made from are found by themselves
            where they still lie there.
        explained: folders of `seamark explain`.
        simulated: folders of `seamark simulate`.
        rated: folders of `seamark ratings import`.
        contrasts: feature sets of `seamark contrast`, files or folders.
        effects: (sae id, effects.json of a run).
        features: other features that are to be in it.
        suite: {sae id: autoencoder}: for nearest features, and the landscape of directions.
        everything: every latent that ever fires in a scan is in it.
        landscape: lay features out in the plane.
        seed: of the landscapes.

    Raises:
        ConfigError: nothing to build from; a folder that is none of a command; an autoencoder of `suite` other than the
            scan's.
        DataError: no feature at all; an autoencoder that no scan knows; two autoencoders of one name; files that do not
            belong together.
        FormatError: a file that cannot be read.
        RunError: another process is writing to the atlas, or the disk is full.
    """
    explanations = [Explained(folder) for folder in explained]
    opened = _with_scans_of(explanations, scans)
    sources: list[Source] = [
        *explanations, *map(Simulated, simulated), *map(Rated, rated), *contrasts_of(contrasts),
        *(Effects(path, sae) for sae, path in effects),
    ]  # fmt: skip
    if not (opened or sources):
        raise ConfigError("nothing to build an atlas from", fix="Give a run (--run), scans or explanations")
    asked = [{f.sae: [f.latent]} for one in features for f in one.features]
    wanted = _together([*(source.latents for source in sources), *asked, *(map(_firing, opened) if everything else ())])
    if not any(wanted.values()):
        raise DataError("no feature is explained, contrasted or asked for", where=str(out),
                        fix="Give explanations, a contrast or features, or take --all that fire")  # fmt: skip
    _check_suite(suite or {}, opened)
    _check_known(wanted, opened, Path(out))
    with_contexts = _together([source.latents for source in explanations if source.has_contexts])
    with AtlasWriter.open(out, create=True) as writer:
        done = _Done(writer)
        for source in (*_scanned(opened, wanted, with_contexts), *sources):
            done.do(source)
        return _finished(done, suite or {}, landscape=landscape, seed=seed)


def add_landscapes(
    path: str | PathLike[str], suite: Mapping[str, SparseAutoencoder] | None = None, *, seed: int = 0
) -> BuildSummary:
    """What `build_atlas` does last, for any atlas: landscapes, and nearest features where `suite` has autoencoders.

    Raises:
        ConfigError: no such file.
        DataError: an autoencoder of `suite` is narrower than the atlas's of that name.
        FormatError: not an atlas.
        RunError: another process is writing to it, or the disk is full.
    """
    with AtlasWriter.open(path) as writer:
        return _finished(_Done(writer), suite or {}, landscape=True, seed=seed)


def _finished(done: _Done, suite: Mapping[str, SparseAutoencoder], *, landscape: bool, seed: int) -> BuildSummary:
    notes: list[str] = []
    for source in nearness_sources(done.writer, suite, notes, landscape=landscape, seed=seed):
        done.do(source)
    return done.summary(notes)


class _Done:
    """Writes sources that are not complete yet."""

    def __init__(self, writer: AtlasWriter) -> None:
        self.writer, self.known = writer, Known(writer)
        self.written: list[str] = []
        self.skipped: list[str] = []

    def do(self, source: Source) -> None:
        """Write a source, unless it is complete; what a broken attempt left of it goes first."""
        run = source.run
        complete = run.model_copy(update={"manifest": run.manifest | {"complete": True}})
        if any(r.id == run.id and r.manifest == complete.manifest for r in self.writer.runs()):
            self.skipped.append(run.title)
            return
        with self.writer.transaction():
            self.writer.clear_run(run.id)
            self.writer.add_run(run.model_copy(update={"manifest": run.manifest | {"complete": False}}))
            source.prepare(self.known)
        source.write(self.known)
        self.writer.add_run(complete)
        self.written.append(run.title)

    def summary(self, notes: Iterable[str]) -> BuildSummary:
        counts = self.writer.counts()
        names = ("features", "explanations", "simulations", "ratings", "evidence", "contexts", "neighbours")
        return BuildSummary(
            path=str(self.writer.path), explained=counts["explained"], layouts=self.writer.layouts(),
            written=tuple(self.written), skipped=tuple(self.skipped), notes=tuple(notes),
            **{name: counts[name] for name in names},
        )  # fmt: skip


def _with_scans_of(explanations: Sequence[Explained], scans: Sequence[Scan]) -> list[Scan]:
    """The scans, and those that explanations were made from, where they lie where they lay."""
    found = {scan.manifest["key"]: scan for scan in scans}
    for source in explanations:
        key = source.run.manifest.get("settings", {}).get("scan")
        if source.scan is None or key in found:
            continue
        try:
            scan = Scan.open(source.scan)
        except FormatError:
            continue
        if scan.manifest["key"] == key:
            found[key] = scan
    return list(found.values())


def _together(latents: Iterable[Latents]) -> dict[str, list[int]]:
    """{sae id: latents of all of them, ascending}."""
    found: dict[str, set[int]] = {}
    for some in latents:
        for sae, mine in some.items():
            found.setdefault(sae, set()).update(mine)
    return {sae: sorted(mine) for sae, mine in found.items()}


def _firing(scan: Scan) -> dict[str, list[int]]:
    return {sae: np.flatnonzero(scan.feature_stats(sae).count > 0).tolist() for sae in scan.sae_ids}


def _check_suite(suite: Mapping[str, SparseAutoencoder], scans: Sequence[Scan]) -> None:
    for scan in scans:
        for sae_id, fingerprint in scan.manifest["saes"].items():
            if sae_id in suite and suite[sae_id].fingerprint() != fingerprint:
                raise ConfigError(f"{sae_id!r} is not the autoencoder of the scan", where=str(scan.path),
                                  fix="Give the one that was scanned with")  # fmt: skip


def _check_known(wanted: Latents, scans: Sequence[Scan], out: Path) -> None:
    """`DataError` where nothing says what an autoencoder is; before a file is made."""
    known = {sae_id for scan in scans for sae_id in scan.sae_ids}
    if out.is_file():
        with AtlasWriter.open(out) as atlas:  # which brings it up to date
            known |= {sae.id for sae in atlas.saes()}
    if unknown := sorted(set(wanted) - known):
        raise DataError(f"nothing says what the autoencoder {unknown[0]!r} is", where=str(out),
                        fix="Give the scan it is from: --scan")  # fmt: skip


def _scanned(scans: Sequence[Scan], wanted: Latents, with_contexts: Latents) -> list[Scanned]:
    """The scans, each with the autoencoders that none before it told of."""
    told: set[str] = set()
    found = []
    for scan in scans:
        mine = {sae: wanted[sae] for sae in scan.sae_ids if sae in wanted and sae not in told}
        told |= set(mine)
        found.append(Scanned(scan, mine, {sae: set(with_contexts.get(sae, ())) for sae in mine}))
    return found


@dataclass
class Scanned(Source):
    """A scan: what was measured of features, and texts of those that no explanation brings texts of."""

    scan: Scan
    latents: Latents
    with_contexts: Mapping[str, set[int]]

    def __post_init__(self) -> None:
        about = self.scan.manifest
        names = ("key", "model_name", "config", "choices", "groups", "n_pairs", "tokens", "positions", "versions")
        told = {name: about[name] for name in names}
        told["features"] = {sae: len(list(latents)) for sae, latents in self.latents.items()}
        told["rows"] = digest([self.latents, {sae: sorted(mine) for sae, mine in self.with_contexts.items()}])
        kind = "pairs" if about["n_pairs"] else "texts"
        n = about["n_pairs"] or sum(about["rows"])
        self.run = Run(id=about["key"], kind="scan", title=f"Scan of {n:,} {kind} by {about['model_name']}",
                       created=made(self.scan.path / "scan.json"), manifest=told)  # fmt: skip

    def prepare(self, known: Known) -> None:
        known.writer.add_model(self.scan.manifest["model_name"], self.scan.manifest["model"])
        for sae_id in self.scan.sae_ids:
            known.writer.add_sae(self._sae(sae_id))

    def write(self, known: Known) -> None:
        numbers = {sae.id: sae.number for sae in known.writer.saes()}
        for sae_id, mine in self.latents.items():
            number, latents = numbers[sae_id], list(mine)
            with progress(f"Features of {sae_id}", len(latents), "features") as advance:
                for some in portions(latents, AT_ONCE):
                    self._write_some(known, number, sae_id, some)
                    advance(len(some))

    def _write_some(self, known: Known, number: int, sae_id: str, latents: Sequence[int]) -> None:
        texts = self.scan.manifest["choices"]["keep_tokens"]
        with known.writer.transaction():
            ids = known.writer.add_features(number, (self._row(sae_id, latent) for latent in latents))
            without = known.writer.without_contexts(ids.values())
            known.writer.add_contexts(
                row for latent, i in ids.items() if texts and latent not in self.with_contexts[sae_id] and i in without
                for row in rows_of(i, "top", self.scan.contexts(sae_id, latent, TOP))
            )  # fmt: skip

    def _sae(self, sae_id: str) -> Sae:
        config = self.scan.manifest["sae_configs"][sae_id]
        return Sae(
            number=0, id=sae_id, model=self.scan.manifest["model_name"], hookpoint=config["hookpoint"],
            layer=parse_hookpoint(config["hookpoint"]).layer, d_in=config["d_in"], d_sae=config["d_sae"],
            activation=config["activation"], k=config["k"], fingerprint=self.scan.manifest["saes"][sae_id],
        )  # fmt: skip

    def _row(self, sae_id: str, latent: int) -> FeatureRow:
        self.scan.check_latent(sae_id, latent)
        stats, positions = self.scan.feature_stats(sae_id), sum(self.scan.manifest["positions"].values())
        firings, q = int(stats.count[latent]), float(stats.q[latent])
        silent = np.isnan(q)
        return FeatureRow(
            latent, firings=firings, share=firings / positions if positions else None,
            mean=float(stats.sum[latent]) / firings if firings else None,
            max=float(stats.max[latent]) if firings else None, texts=int(stats.texts[latent]), q=None if silent else q,
            q_reason=f"it fires at fewer than {MIN_FIRINGS} response tokens" if silent else "",
            histogram=coarse(*self.scan.histogram(sae_id, latent)),
        )  # fmt: skip


def coarse(
    edges: np.ndarray[Any, np.dtype[np.float64]], counts: np.ndarray[Any, np.dtype[np.int64]]
) -> Histogram | None:
    """A histogram of at most 32 bins: neighbouring bins joined, equally many each but for the last; None for none."""
    if not len(counts):
        return None
    starts = np.arange(0, len(counts), -(-len(counts) // MOST_BINS))
    joined = np.add.reduceat(counts, starts)
    kept = [*edges[starts].tolist(), float(edges[-1])]
    return Histogram(edges=tuple(float(f"{edge:.6g}") for edge in kept), counts=tuple(joined.tolist()))
