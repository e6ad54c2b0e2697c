"""What a stage is told: settings, where texts lie, and where it keeps what it makes."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from seamark.run import read_json, write_json

Row = dict[str, Any]


@dataclass(frozen=True)
class Settings:
    """What is measured, and how much of it."""

    model: str = "seamark/default"
    hookpoints: tuple[str, ...] = ("layers.2.mlp", "layers.4.mlp")
    """Of six blocks one in the middle and a late one: words and their senses against what a text is about. The last
    block is left out, since all of its output is for the mean that becomes the sentence's embedding."""
    ks: tuple[int, ...] = (8, 16, 32, 64, 128, 256)
    d_sae: int = 3072
    positions: int = 1_000_000
    """Positions of training, at most; where the texts have fewer they are gone through again."""
    plain_texts: int = 4200
    """General texts, drawn by hash, that are added to the domain texts: about as many tokens as those have."""
    held_out: float = 0.05
    """Share of the texts, by hash, on which quality is measured."""
    lr: float = 1e-3
    """Twice the default: there are only about a thousand steps."""
    batch: int = 1024
    max_length: int = 128
    scan_texts: int = 11_000
    """Domain texts drawn by hash for the scan."""
    scan_bytes: int = 4 << 30
    """What latents of single tokens may take on disk; fewer texts are scanned where they would take more."""
    features: int = 3072
    """Features of each autoencoder, at most, that are explained for its yield, drawn by hash. All of them take some 20
    minutes for the suite and leave no doubt of drawing: fewer than one in a hundred get a domain and a good score."""
    score: float = 0.2
    """Simulation score from which on a feature with a domain counts (Safe-SAIL's released database)."""
    compare_hookpoint: str = "layers.4.mlp"
    compare_k: int = 32
    compare_features: int = 200
    draws: int = 1000
    """Of the concept metrics' bootstrap."""

    @classmethod
    def of(cls, row: Row) -> Settings:
        fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in row.items()}
        return cls(**fields)

    def with_features(self, n: int) -> Settings:
        """For a trial: so many features wherever features are drawn."""
        return replace(self, features=n, compare_features=n)


TRIAL = Settings(hookpoints=("layers.2.mlp", "layers.4.mlp"), ks=(8, 32), d_sae=768, positions=40_000, plain_texts=150,
                 scan_texts=1500, features=12, compare_features=12, draws=100)  # fmt: skip
"""A few minutes: shows that all stages run. Its numbers say nothing."""


@dataclass(frozen=True)
class Job:
    """One stage to run."""

    stage: str
    folder: str
    """Of all stages; each has its own place in it."""
    settings: Settings = field(default_factory=Settings)
    data: str | None = None
    """Folder of real texts (SEAMARK_DATA); None: the demo's."""

    @property
    def place(self) -> Path:
        """Where this stage keeps what it makes."""
        return self.of(self.stage)

    def of(self, stage: str) -> Path:
        """Where another stage has kept what it made."""
        return Path(self.folder) / stage

    @property
    def about(self) -> Path:
        return self.place / "job.json"

    def write(self) -> Path:
        write_json(self.about, asdict(self))
        return self.about

    @classmethod
    def read(cls, path: str | Path) -> Job:
        row = read_json(Path(path))
        return cls(**row | {"settings": Settings.of(row["settings"])})
