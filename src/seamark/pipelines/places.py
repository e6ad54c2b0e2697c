"""What lies around a scan that a SAFER recipe made: its feature set, its scores, its pairs."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

SCAN, FEATURES, SCORES, TRAIN = "scan", "features.json", "scores.json", "train.jsonl"
"""Names as in `pipelines.stages`, which would load all that makes them."""


class Beside(NamedTuple):
    """Files that are there; None: they are not."""

    features: Path | None = None
    scores: Path | None = None
    pairs: Path | None = None


def beside_scan(scan: Path) -> Beside:
    """The files of the same run as the scan's folder, `<run>/<world>/scan/scan`; nothing for a scan made otherwise."""
    scan = scan.resolve()
    if scan.name != SCAN or scan.parent.name != SCAN:
        return Beside()
    world = scan.parent.parent
    pairs = (world / "data" / TRAIN, world.parent / "data" / TRAIN)
    return Beside(_file(world / "features" / FEATURES), _file(world / "features" / SCORES),
                  next((p for p in pairs if p.is_file()), None))  # fmt: skip


def _file(path: Path) -> Path | None:
    return path if path.is_file() else None
