"""Train autoencoders on a model's activations, in stages, and measure them on texts they have not seen.

One forward pass feeds a whole suite. With a folder, training leaves checkpoints and metrics there, and after a kill the
same call ends in the same weights. Under torchrun the ranks share the passes of the model and the training.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any, Literal

import numpy as np

from seamark.errors import ConfigError, DataError
from seamark.features.activations import ActivationStream
from seamark.features.gather import public_name
from seamark.features.metrics import Metrics, TrackerName, open_tracker
from seamark.features.plan import PAPER_STAGES, SAESpec, SAETraining, StageConfig, TrainingConfig, check_name, make_id
from seamark.features.tokens import TokenTexts, TokenTextsMaker, collect
from seamark.features.training_folder import TrainingFolder
from seamark.features.watched import Watched
from seamark.model.loading import HookedModel
from seamark.model.precision import resolve_precision
from seamark.run import board, ranks, say
from seamark.sae import FitConfig, FitLog, Quality, SAEConfig, SparseAutoencoder, fit
from seamark.sae.measure import choose_encoding
from seamark.sae.quality import qualities
from seamark.text.pairs import hash_unit
from seamark.text.positions import positions
from seamark.text.rendering import Rendered

Texts = Iterable[Rendered] | Mapping[str, Iterable[Rendered]]
"""Texts of all stages, or {stage name: texts}; gone through once, of which token ids and positions are kept."""
Parallel = Literal["data", "spread"]
_NOT_DECISIVE = {"spill", "cache", "buffer_on", "checkpoint_every", "log_every"}


@dataclass(frozen=True)
class TrainedSAE:
    """A trained autoencoder with its measurements."""

    sae: SparseAutoencoder
    quality: Quality | None
    """On held-out texts, at the last stage's positions; None: no text could be held out."""
    stages: tuple[dict[str, Any], ...]
    """For each stage: name, positions seen, first and last loss, held-out quality."""
    log: tuple[FitLog, ...]
    """Logged steps of all stages."""
    choices: dict[str, Any]
    """What was chosen by measurement here: number formats of the model's pass and of the encoder's product."""

    def to_json(self) -> dict[str, Any]:
        return {"sae": self.sae.config, "quality": self.quality, "stages": self.stages, "choices": self.choices}


@dataclass(frozen=True)
class TrainedSuite:
    """Trained autoencoders with their measurements."""

    saes: dict[str, SparseAutoencoder]
    stages: tuple[dict[str, Any], ...]
    """For each stage: name, positions seen, and by autoencoder first and last loss and held-out quality."""
    choices: dict[str, Any]
    """What was chosen by measurement on this machine."""
    log: tuple[FitLog, ...]

    def __getitem__(self, sae_id: str) -> TrainedSAE:
        stages = tuple({"name": s["name"], "positions": s["positions"], **s["saes"][sae_id]} for s in self.stages)
        log = tuple(entry for entry in self.log if entry.name == sae_id)
        choices = {**self.choices, "encoder": self.choices["encoder"][sae_id]}
        return TrainedSAE(self.saes[sae_id], self.quality[sae_id], stages, log, choices)

    @property
    def quality(self) -> dict[str, Quality | None]:
        """By autoencoder, as in `TrainedSAE`."""
        last = self.stages[-1]["saes"]
        return {i: Quality.model_validate(r["quality"]) if r["quality"] else None for i, r in last.items()}

    def to_json(self) -> dict[str, Any]:
        configs = {sae_id: sae.config for sae_id, sae in self.saes.items()}
        return {"saes": configs, "quality": self.quality, "stages": self.stages, "choices": self.choices}


def train_sae(
    model: HookedModel,
    texts: Texts,
    config: SAETraining | None = None,
    stages: Sequence[StageConfig] = PAPER_STAGES,
    *,
    out: str | PathLike[str] | None = None,
    parallel: Parallel | None = None,
    track: TrackerName | None = None,
) -> TrainedSAE:
    """Train one autoencoder, stage after stage, each starting from the weights of the one before.

    Args:
        model: the model whose activations are learnt; it runs no further than the hookpoint.
        texts: the texts of every stage, or {stage name: texts}; any iterables.
        config: what to train.
        stages: SAFER's two (arXiv 2507.00665) unless given.
        out: folder for the finished autoencoder, checkpoints and metrics; as in `train_suite`.
        parallel: as in `train_suite`.
        track: as in `train_suite`.

    Raises:
        DataError: no texts or no positions; NaN or infinite activations (naming hookpoint and text or step).
        ConfigError: k > d_sae, no stage; a folder of another run (naming what changed); a missing tracker.
        ModelError: no such hookpoint.
        RunError: a folder that cannot be written to, or that another process is training into.
    """
    config = config or SAETraining()
    spec = config.spec()
    sae_id = make_id(spec, hookpoint=model.default_hookpoint)
    training = _Training(model, {sae_id: spec}, stages, config.training(), parallel)
    root = None if out is None else Path(out)
    folder = None if root is None or not stages else TrainingFolder(root, stages[-1].name, lambda _: root)
    trained = training.run(texts, folder, track)[sae_id]
    if folder is not None:
        folder.finish(trained.to_json())
    return trained


def train_suite(
    model: HookedModel,
    texts: Texts,
    suite: Mapping[str, SAESpec],
    stages: Sequence[StageConfig] = PAPER_STAGES,
    config: TrainingConfig | None = None,
    *,
    out: str | PathLike[str] | None = None,
    parallel: Parallel | None = None,
    track: TrackerName | None = None,
) -> TrainedSuite:
    """Train many autoencoders from one pass of the model, each bit-equal to the same one trained alone on the stream.

    Equal bits need equal number formats and threads: where "auto" was measured, give what `choices` says.

    Args:
        model: the model whose activations are learnt; it runs no further than the deepest hookpoint.
        texts: the texts of every stage, or {stage name: texts}; any iterables.
        suite: {id: what to train}; see `make_suite`.
        stages: SAFER's two unless given; every autoencoder goes through all of them.
        config: the stream, held-out texts, checkpoints.
        out: folder for `saes/<id>/`, `metrics.jsonl`, `result.json` and checkpoints. After an interruption, kill −9
            included, the same call goes on and ends in the same weights; a finished run is not done again.
        parallel: under torchrun: "data" splits every batch over the ranks, "spread" deals the autoencoders out. None:
            "spread" where there are as many as ranks. `out` must be a folder that all ranks see.
        track: also send metrics to trackio or wandb, which must be installed. Of ranks that "spread" each sends those
            of its own autoencoders to a run of its own, `<folder>` and `<folder>-rank<r>`.

    Raises:
        As `train_sae`.
    """
    training = _Training(model, suite, stages, config or TrainingConfig(), parallel)
    folder = None if out is None or not stages else TrainingFolder(Path(out), stages[-1].name)
    trained = training.run(texts, folder, track)
    if folder is not None:
        folder.finish(trained.to_json())
    return trained


class _Data:
    """Texts of one stage: those to train on and those to measure on."""

    def __init__(self, texts: TokenTexts, config: TrainingConfig) -> None:
        self.train, self.held_out = split(texts, config.held_out, config.seed)

    def digests(self) -> dict[str, str]:
        return {"train": self.train.digest(), "held_out": self.held_out.digest()}


class _Training:
    """One call: what to train, made definite for this model."""

    def __init__(
        self, model: HookedModel, suite: Mapping[str, SAESpec], stages: Sequence[StageConfig], config: TrainingConfig,
        parallel: Parallel | None,
    ) -> None:  # fmt: skip
        _check(suite, stages)
        self.model, self.stages, self.config = model, stages, config
        where = {sae_id: spec.hookpoint or model.default_hookpoint for sae_id, spec in suite.items()}
        self.widths = {hookpoint: model.d_model(hookpoint) for hookpoint in dict.fromkeys(where.values())}
        self.block = config.block(max(self.widths.values()))  # all hookpoints of a model are equally wide
        self.suite = {i: spec.model_copy(update={"hookpoint": where[i]}) for i, spec in suite.items()}
        self.whats = {i: self._what(i) for i in suite}
        self.parallel = parallel or ("spread" if len(suite) >= ranks.world() else "data")

    def _what(self, sae_id: str) -> SAEConfig:
        spec = self.suite[sae_id]
        assert spec.hookpoint is not None  # noqa: S101  (made definite above)
        try:
            return spec.config(self.widths[spec.hookpoint], public_name(self.model), spec.hookpoint)
        except ConfigError as e:
            raise ConfigError(e.what, where=sae_id, fix=e.fix) from e

    def run(self, texts: Texts, folder: TrainingFolder | None, track: TrackerName | None) -> TrainedSuite:
        tracker = ranks.together(lambda: open_tracker(track) if track and self._logs else None)
        data = self._read(texts)
        with folder.held() if folder else contextlib.nullcontext():
            choices = folder.agree(self._asked(data), self._choose) if folder else told_by_first(self._choose)
            if folder:
                folder.merge_metrics([s.name for s in self.stages], list(self.suite))  # of ranks that were killed
            metrics = Metrics(self._metrics_file(folder), self.config.log_every)
            if tracker is not None:
                name = (folder.root.name if folder else "suite") + (f"-rank{ranks.rank()}" if ranks.rank() else "")
                metrics.tracker = tracker("seamark", name, {"suite": self.suite, "stages": self.stages})
            try:
                reports, saes = self._all_stages(data, choices, folder, metrics)
            finally:
                metrics.close()
            if folder:
                folder.merge_metrics([s.name for s in self.stages], list(self.suite))
                metrics.restore([s.name for s in self.stages])
            return TrainedSuite(saes, tuple(reports), choices, metrics.log)

    def _read(self, texts: Texts) -> dict[str, _Data]:
        """Token ids and positions of every stage. Texts that several stages share are gone through once."""
        sources: dict[int, tuple[Iterable[Rendered], list[StageConfig]]] = {}
        for stage in self.stages:
            mine = texts.get(stage.name, ()) if isinstance(texts, Mapping) else texts
            sources.setdefault(id(mine), (mine, []))[1].append(stage)
        found: dict[str, _Data] = {}
        for source, stages in sources.values():
            makers = {s.name: TokenTextsMaker(partial(_prepare, s, self._shorten(s)), s.max_positions) for s in stages}
            collect(source, list(makers.values()))
            for name, maker in makers.items():
                tokens = maker.done()
                if not tokens.seen:
                    raise DataError("no texts to train on", where=f"stage {name}", fix="Give texts for every stage")
                found[name] = _Data(tokens, self.config)
                if not found[name].train.n_positions:
                    raise DataError("the texts have no positions to read", where=f"stage {name}",
                                    fix="Give other texts")  # fmt: skip
        return found

    def _shorten(self, stage: StageConfig) -> Callable[[Rendered], Rendered] | None:
        return self.model.renderer(stage.max_length).truncate if stage.max_length else None

    def _asked(self, data: Mapping[str, _Data]) -> dict[str, Any]:
        """All that decides the weights."""
        return {
            "model": self.model.fingerprint(), "suite": self.suite, "stages": list(self.stages),
            "training": self.config.model_dump(mode="json", exclude=_NOT_DECISIVE)
            | {"cached": self.config.cache is not None}
            | ({} if self.config.buffer_bytes is None else {"block": self.block}),
            "texts": {name: d.digests() for name, d in data.items()},
        }  # fmt: skip

    def _choose(self) -> dict[str, Any]:
        """What "auto" means here, measured once."""
        device = self.model.device
        encoder = {i: choose_encoding(self.whats[i], s.fit(self.stages[0]), device) for i, s in self.suite.items()}
        return {"precision": resolve_precision(self.config.precision, device.type), "encoder": encoder}

    def _metrics_file(self, folder: TrainingFolder | None) -> Path | None:
        return folder.metrics_file(ranks.rank()) if folder and self._logs else None

    @property
    def _logs(self) -> bool:
        """Whether this rank keeps and sends its steps: those of "data" are the same on all, of "spread" its own."""
        return ranks.rank() < (len(self.suite) if self.parallel == "spread" else 1)

    def _all_stages(
        self, data: Mapping[str, _Data], choices: Mapping[str, Any], folder: TrainingFolder | None, metrics: Metrics
    ) -> tuple[list[dict[str, Any]], dict[str, SparseAutoencoder]]:
        reports: list[dict[str, Any]] = []
        for stage in self.stages if folder else ():
            report = folder.report(stage.name) if folder else None
            if report is None:
                break
            reports.append(report)
        n_done = len(reports)
        saes = self._load(folder, self.stages[n_done - 1].name) if folder and n_done else None
        if n_done:
            say_first(f"✓ SAE: {n_done} of {len(self.stages)} stages done before")
        metrics.restore([s.name for s in self.stages[:n_done]])
        for i, stage in enumerate(self.stages[n_done:], n_done):
            saes, report = self._stage(i, data[stage.name], choices, folder, metrics, saes)
            reports.append(report)
        assert saes is not None  # noqa: S101  (there is a stage)
        return reports, saes

    def _load(self, folder: TrainingFolder, stage: str) -> dict[str, SparseAutoencoder]:
        device = self.model.device
        return {i: SparseAutoencoder.from_pretrained(folder.saved(stage, i)).to(device) for i in self.suite}

    def _stage(
        self, i: int, data: _Data, choices: Mapping[str, Any], folder: TrainingFolder | None, metrics: Metrics,
        start: Mapping[str, SparseAutoencoder] | None,
    ) -> tuple[dict[str, SparseAutoencoder], dict[str, Any]]:  # fmt: skip
        """Train one stage, measure it, and keep it."""
        stage, every = self.stages[i], self.config.checkpoint_every
        fits = {n: (self.whats[n], self._fit_config(n, stage, choices)) for n in self.suite}
        consumed, steps = folder.progress(stage.name, every) if folder else (0, {})
        metrics.begin(stage.name, steps, [s.name for s in self.stages[:i]])
        stream = self._stream(data.train, choices, epochs=stage.epochs, seed=self.config.seed + i)
        watched = Watched(stream, stage.name, min(how.batch_size for _, how in fits.values()))
        watched.load(f"SAE, stage {stage.name}: read activations")
        with board(f"SAE, stage {stage.name}", stream.total, "positions", consumed) as shown:
            watched.show(shown)
            metrics.shown = shown.lines
            saes = fit(
                watched, fits, positions=stream.total, init=start, device=self.model.device, log=metrics,
                checkpoints=folder.checkpoints(stage.name, every) if folder else None,
                parallel=self.parallel if ranks.world() > 1 else "none",
            )  # fmt: skip
        report = {"name": stage.name, "positions": stream.total,
                  "saes": self._report(saes, stage, data.held_out, choices, metrics)}  # fmt: skip
        if folder:
            folder.save(stage.name, saes, report)
        return saes, report

    def _fit_config(self, sae_id: str, stage: StageConfig, choices: Mapping[str, Any]) -> FitConfig:
        return self.suite[sae_id].fit(stage).model_copy(update={"encoder": choices["encoder"][sae_id]})

    def _stream(self, texts: TokenTexts, choices: Mapping[str, Any], *, epochs: int, seed: int) -> ActivationStream:
        c = self.config
        return ActivationStream(
            self.model, texts, list(self.widths), epochs=epochs, seed=seed, batch_tokens=c.batch_tokens,
            block=self.block, precision=choices["precision"], spill=c.spill, cache=c.cache,
            device=self.model.device if c.buffer_on == "model" else "cpu",
        )  # fmt: skip

    def _report(
        self, saes: Mapping[str, SparseAutoencoder], stage: StageConfig, held_out: TokenTexts,
        choices: Mapping[str, Any], metrics: Metrics,
    ) -> dict[str, dict[str, Any]]:  # fmt: skip
        """By autoencoder: first and last loss, quality on held-out texts; each rank measures some of them."""
        mine = {i: saes[i] for i in list(saes)[ranks.rank() :: ranks.world()]}
        found: dict[str, Quality] = {}
        if held_out.n_positions:
            check = Watched(self._stream(held_out, choices, epochs=1, seed=0), stage.name, 1)
            check.load("SAE: read held-out texts")
            found = qualities(mine, check)
        parts = ranks.collected({i: q.model_dump(mode="json") for i, q in found.items()})
        measured = {i: q for part in parts for i, q in part.items()}
        known = ranks.collected(metrics.losses(stage.name))
        ends = {i: [part[i] for part in known if i in part] for i in saes}
        return {i: {"first_loss": min(e[0] for e in ends[i])[1], "last_loss": max(e[1] for e in ends[i])[1],
                    "quality": measured.get(i)} for i in saes}  # fmt: skip


def _check(suite: Mapping[str, SAESpec], stages: Sequence[StageConfig]) -> None:
    if not suite:
        raise ConfigError("no autoencoder to train", where="train_suite", fix="Give {id: SAESpec}")
    if not stages:
        raise ConfigError("no stage to train", where="train_sae")
    for sae_id in suite:
        check_name(sae_id, "the id")
    for stage in stages:
        check_name(stage.name, "the stage")
    names = [stage.name for stage in stages]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ConfigError(f"two stages are named {twice!r}", where="stages", fix="Give each its own name")


def _prepare(
    stage: StageConfig, shorten: Callable[[Rendered], Rendered] | None, text: Rendered
) -> tuple[Rendered, Any]:
    """The text as a stage reads it, and its positions."""
    text = shorten(text) if shorten else text
    return text, positions(text, stage.positions, stage.rule, stage.scope)


def split(texts: TokenTexts, held_out: float, seed: int) -> tuple[TokenTexts, TokenTexts]:
    """(train, held out), both sides of a pair together; one at least is held out where there are two pairs."""
    # Another hash than that by which `max_pairs` keeps pairs: those would all be held out.
    place = np.asarray([hash_unit(f"held-out:{_unit(texts.name(i))}", seed) for i in range(len(texts))])
    if held_out > 0 and len(np.unique(place)) > 1:
        held_out = max(held_out, float(place.min()) + 1e-12)
    out = place < held_out
    if len(out) and held_out < 1 and out.all():  # by chance, of a few
        out = (place == place.min()) & (place < place.max())
    return texts.subset(np.flatnonzero(~out)), texts.subset(np.flatnonzero(out))


def _unit(text_id: str) -> str:
    pair, _, side = text_id.rpartition(":")
    return pair if side in ("chosen", "rejected") else text_id


def told_by_first(choose: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What rank 0 chooses, on every rank; the others are idle while it measures."""
    return ranks.told(ranks.together(lambda: choose() if ranks.rank() == 0 else {}))


def say_first(text: str) -> None:
    """One line, from rank 0."""
    if ranks.rank() == 0:
        say(text)


__all__ = ["Parallel", "Texts", "TrainedSAE", "TrainedSuite", "split", "train_sae", "train_suite"]
