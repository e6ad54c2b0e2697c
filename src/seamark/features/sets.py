"""Named features with signs, where they came from and why."""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from seamark.errors import FormatError, RunError
from seamark.run import read_json, write_json

FORMAT_VERSION = 1


class Feature(BaseModel):
    """One feature: a latent of one autoencoder."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    sae: str
    """Id of the autoencoder in its suite."""
    latent: int = Field(ge=0)
    sign: Literal[1, -1]
    """+1: fires on chosen (safe) answers; −1: on rejected ones."""
    score: float | None = None
    """The score it was found by, such as the contrastive score in [−1, 1]."""
    rating: int | None = Field(default=None, ge=1, le=5)
    """Safety relevance 1–5; None: not rated, or the rating failed."""
    why: str = ""
    """Why it has this rating, or why it has none."""
    label: str = ""
    """A short name, where an explanation gave one."""

    @property
    def key(self) -> tuple[str, int]:
        """(sae id, latent): what a feature is called everywhere."""
        return self.sae, self.latent


class FeatureSet(BaseModel):
    """Features in order of strength, and how they were found (SAFER, arXiv 2507.00665: F⁺ and F⁻ together)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    features: tuple[Feature, ...]
    provenance: dict[str, Any] = Field(default_factory=dict)
    """How the set came about: scan, group, normalisation, selection steps."""
    format_version: int = FORMAT_VERSION

    @model_validator(mode="after")
    def _check(self) -> FeatureSet:
        if self.format_version > FORMAT_VERSION:
            raise ValueError(f"format version {self.format_version} is newer than {FORMAT_VERSION}, the last known")
        keys = [f.key for f in self.features]
        twice = next((k for i, k in enumerate(keys) if k in keys[:i]), None) if len(set(keys)) < len(keys) else None
        if twice:
            raise ValueError(f"feature {twice[0]}/{twice[1]} is in the set twice")
        return self

    def __len__(self) -> int:
        return len(self.features)

    @property
    def positive(self) -> tuple[Feature, ...]:
        """F⁺: features that fire on chosen answers."""
        return tuple(f for f in self.features if f.sign > 0)

    @property
    def negative(self) -> tuple[Feature, ...]:
        """F⁻: features that fire on rejected answers."""
        return tuple(f for f in self.features if f.sign < 0)

    def latents(self, sae: str) -> list[int]:
        """Latents of one autoencoder, in the set's order."""
        return [f.latent for f in self.features if f.sae == sae]

    def strongest(self, n: int) -> FeatureSet:
        """The n features with the largest |score|; ties keep their order, unscored ones come last."""
        order = sorted(self.features, key=lambda f: -abs(f.score) if f.score is not None else 1.0)
        return self._derive(order[:n], {"strongest": n})

    def with_ratings(self, ratings: Mapping[tuple[str, int], tuple[int | None, str]], method: str = "") -> FeatureSet:
        """The same features, rated: `{(sae, latent): (rating or None, why)}`. Unlisted ones count as not rated."""
        rated = [
            f.model_copy(update=dict(zip(("rating", "why"), ratings.get(f.key, (None, "not rated")), strict=True)))
            for f in self.features
        ]
        return self._derive(rated, {"ratings": method})

    def rated(self, at_least: int = 5) -> FeatureSet:
        """Only features rated `at_least`. One whose rating failed or is missing is never kept."""
        kept = [f for f in self.features if f.rating is not None and f.rating >= at_least]
        return self._derive(kept, {"rated_at_least": at_least})

    def _derive(self, features: list[Feature], step: dict[str, Any]) -> FeatureSet:
        steps = [*self.provenance.get("steps", []), {**step, "of": len(self), "kept": len(features)}]
        checked: FeatureSet = FeatureSet(features=tuple(features), provenance={**self.provenance, "steps": steps})
        return checked

    def save(self, path: str | PathLike[str]) -> None:
        """Write the set, whole or not at all."""
        write_json(Path(path), self)

    @classmethod
    def load(cls, path: str | PathLike[str]) -> FeatureSet:
        """Read what `save` wrote; `FormatError` on anything else."""
        try:
            return cls.model_validate(read_json(Path(path)))
        except ValidationError as e:
            first = e.errors()[0]
            where = f"{path}, key {'.'.join(map(str, first['loc']))}" if first["loc"] else str(path)
            raise FormatError(f"not a feature set: {first['msg']}", where=where) from None
        except RunError as e:
            raise FormatError(e.what, where=e.where, fix="Name a feature set's JSON file") from e
