"""What a stage is told."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

from seamark.run import read_json, write_json

FEATURES, FROM_FILES = 100_000, 20_000
"""In the atlas that is searched and browsed, and in the folder that one is built from."""


@dataclass(frozen=True)
class Job:
    """One stage."""

    stage: str
    folder: str
    features: int = FEATURES
    from_files: int = FROM_FILES
    round: int = 0

    @property
    def atlas(self) -> Path:
        """The atlas that is searched and browsed."""
        return Path(self.folder) / "atlas.db"

    @property
    def files(self) -> Path:
        return Path(self.folder) / "explained"

    def write(self) -> Path:
        path = Path(self.folder) / "job.json"
        write_json(path, asdict(self))
        return path

    @classmethod
    def read(cls, path: str | Path) -> Job:
        return cls(**read_json(Path(path)))
