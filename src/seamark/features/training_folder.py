"""The folder of a training run: what was asked, how far it is, what it made.

run.json                   what decides the result, and choices made by measurement
metrics.jsonl              one line for every logged step
checkpoints/<stage>/…      of the stage that is running (see `sae.Checkpoints`)
stages/<stage>/<id>/…      autoencoders after a stage that is not the last
stages/<stage>/done.json   the stage's report, once it is whole
saes/<id>/                 finished autoencoders
result.json
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from seamark.errors import ConfigError
from seamark.features.metrics import merge_metrics
from seamark.run import Run, canonical_json, disk_errors, ranks, read_json, to_jsonable, versions, write_json
from seamark.sae import Checkpoints, SparseAutoencoder

RUN_FILE, METRICS_FILE, RESULT_FILE, DONE_FILE = "run.json", "metrics.jsonl", "result.json", "done.json"


class TrainingFolder:
    """One training run on disk. Rank 0 alone writes; what it finds there is told to the others.

    Args:
        root: the folder.
        last: name of the last stage, whose autoencoders are the finished ones.
        place: where a finished autoencoder goes: `saes/<id>` unless given.
    """

    def __init__(self, root: Path, last: str, place: Callable[[str], Path] | None = None) -> None:
        self.root, self.last = root, last
        self._place = place or (lambda sae_id: root / "saes" / sae_id)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold the folder for this process: another one that trains into it is refused (`RunError`)."""
        run = ranks.together(lambda: Run(self.root) if ranks.rank() == 0 else None)
        try:
            yield
        finally:
            if run is not None:
                run.close()

    def agree(self, asked: Mapping[str, Any], choose: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The choices this folder's run was begun with, or those `choose` makes for a new one.

        Raises:
            ConfigError: the folder belongs to a run that was asked for something else; says what.
        """
        return ranks.told(ranks.together(lambda: self._agree(asked, choose) if ranks.rank() == 0 else {}))

    def _agree(self, asked: Mapping[str, Any], choose: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        file = self.root / RUN_FILE
        if not file.exists():
            choices = choose()
            with disk_errors(self.root):
                write_json(file, {"asked": asked, "choices": choices, "versions": versions()})
            return choices
        stored = read_json(file)
        changed = differences(stored["asked"], to_jsonable(asked))
        if changed:
            raise ConfigError(
                f"this folder holds a run of something else: {'; '.join(changed[:3])}"
                + (f" and {len(changed) - 3} more" if len(changed) > 3 else ""),
                where=str(self.root), fix="Choose another folder, or remove it to start over",
            )  # fmt: skip
        return dict(stored["choices"])

    def report(self, stage: str) -> dict[str, Any] | None:
        """The report of a stage that is whole, else None."""
        done = self._stage(stage) / DONE_FILE
        return ranks.told(dict(read_json(done)) if ranks.rank() == 0 and done.exists() else None)

    def checkpoints(self, stage: str, every: int) -> Checkpoints:
        return Checkpoints(self.root / "checkpoints" / stage, every)

    def progress(self, stage: str, every: int) -> tuple[int, dict[str, int]]:
        """Positions and {id: steps} that the stage's newest checkpoint has behind it; (0, {}) where there is none."""
        place = self.checkpoints(stage, every).latest() if ranks.rank() == 0 else None
        if place is None:
            return ranks.told((0, {}))
        steps = {p.parent.name: int(read_json(p)["step"]) for p in sorted(place.glob("*/state.json"))}
        return ranks.told((int(read_json(place / "fit.json")["consumed"]), steps))

    def metrics_file(self, rank: int) -> Path:
        """Where a rank writes its lines: rank 0 into the file that stays, to which the others' are added at the end."""
        return self.root / (f"metrics-{rank}.jsonl" if rank else METRICS_FILE)

    def merge_metrics(self, stages: Sequence[str], names: Sequence[str]) -> None:
        """Bring what several ranks wrote into one file."""
        others = sorted(self.root.glob("metrics-*.jsonl")) if ranks.rank() == 0 else []
        ranks.by_first(lambda: merge_metrics(self.root / METRICS_FILE, others, stages, names))

    def save(self, stage: str, saes: Mapping[str, SparseAutoencoder], report: Mapping[str, Any]) -> None:
        """Write a stage's autoencoders, then its report, then drop its checkpoints."""
        ranks.by_first(lambda: self._save(stage, saes, report))

    def _save(self, stage: str, saes: Mapping[str, SparseAutoencoder], report: Mapping[str, Any]) -> None:
        with disk_errors(self.root):
            for sae_id, sae in saes.items():
                sae.save_pretrained(self.saved(stage, sae_id))
            write_json(self._stage(stage) / DONE_FILE, report)
            shutil.rmtree(self.root / "checkpoints" / stage, ignore_errors=True)

    def saved(self, stage: str, sae_id: str) -> Path:
        """Where a stage leaves an autoencoder."""
        return self._place(sae_id) if stage == self.last else self._stage(stage) / sae_id

    def finish(self, result: Mapping[str, Any]) -> None:
        """Write the result."""

        def write() -> None:
            with disk_errors(self.root):
                write_json(self.root / RESULT_FILE, result)
                shutil.rmtree(self.root / "checkpoints", ignore_errors=True)

        ranks.by_first(write)

    def _stage(self, stage: str) -> Path:
        return self.root / "stages" / stage


def differences(old: Any, new: Any, path: str = "") -> list[str]:
    """What changed between two values of plain data, as `key.key: old → new`."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        found = []
        for key in dict.fromkeys([*old, *new]):
            found += differences(old.get(key), new.get(key), f"{path}.{key}" if path else str(key))
        return found
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        return [d for i, (a, b) in enumerate(zip(old, new, strict=True)) for d in differences(a, b, f"{path}[{i}]")]
    return [] if old == new else [f"{path}: {_short(old)} → {_short(new)}"]


def _short(value: Any) -> str:
    text = canonical_json(value)
    return text if len(text) <= 40 else text[:37] + "…"
