"""What scoring methods take and give: inputs, the scores of pairs, and what a method says about itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError

from seamark.errors import ConfigError, DataError, FormatError
from seamark.features.reading import Scan
from seamark.features.sets import FeatureSet
from seamark.run import read_json, write_json
from seamark.text.pairs import Pairs, hash_unit

if TYPE_CHECKING:
    from seamark.audit.combine import Combination

T = TypeVar("T")
SCHEMA: Literal[1] = 1
Kind = Literal["features", "baseline", "control", "combination"]


class PairScores(BaseModel):
    """One number per pair id; higher = more clearly right label. Pairs without a number are not in `values`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal[1] = SCHEMA
    method: str
    values: dict[str, float]
    seed: int = 0

    def lowest(self, n: int) -> list[str]:
        """The `n` most suspicious pair ids, worst first; ties by a hash of the id."""
        return sorted(self.values, key=lambda i: (self.values[i], hash_unit(i, self.seed), i))[:n]

    def save(self, path: str | PathLike[str]) -> None:
        write_json(Path(path), self)

    @classmethod
    def load(cls, path: str | PathLike[str]) -> PairScores:
        """Read a file of `save`. Raises `FormatError` on a foreign one."""
        try:
            return cls.model_validate(read_json(Path(path)))
        except ValidationError as e:
            first = e.errors()[0]
            key = ".".join(map(str, first["loc"]))
            raise FormatError(f"not a file of pair scores: {first['msg']}", where=f"{path}, key {key}") from None


@dataclass(frozen=True)
class ScoreInputs:
    """What a scoring method may look at. Each takes what it needs and says so when it is not there."""

    scan: Scan | None = None
    features: FeatureSet | None = None
    pairs: Pairs | None = None
    seed: int = 0
    group: str = "safety"
    """The group that fitted methods fit on and score."""
    sae: str | None = None
    """The autoencoder of `latents`, where the scan holds several."""
    controls: Mapping[str, FeatureSet] = field(default_factory=dict)
    """Feature sets of the controls: `untrained`, `random_latents`."""
    margins: Mapping[str, Sequence[float]] | None = None
    """{pair id: reward margins by models that never saw its prompt}."""
    judged: Mapping[str, float] | None = None
    """{pair id: a language model's judgement, −1 to 1}."""
    combination: Combination | None = None
    signals: Mapping[str, PairScores] = field(default_factory=dict)
    """Scores that the combination takes, by method."""
    folds: int = 5
    """Folds of prompts of cross-fitted methods."""

    @property
    def the_scan(self) -> Scan:
        """The scan; `ConfigError` where there is none."""
        return given(self.scan, "a scan", "--scan")

    @property
    def ids(self) -> Sequence[str]:
        """Ids of the pairs, else of the scan."""
        return self.pairs.ids if self.pairs is not None else list(self.the_scan.rows_by_pair)

    @cached_property
    def members(self) -> Members:
        """The group's pairs in the scan."""
        return Members.of(self.the_scan, self.group)


def given(value: T | None, what: str, option: str) -> T:
    """The value; `ConfigError` where there is none."""
    if value is None:
        raise ConfigError(f"it needs {what}", fix=f"Give one with {option}")
    return value


@dataclass(frozen=True)
class Members:
    """Pairs of a group that have scoring positions on both sides, in the order of the scan."""

    ids: list[str]
    rows: NDArray[np.int64]
    """[pairs, 2]: rows of chosen and of rejected."""
    prompts: list[str]
    """Hash of each pair's prompt."""

    @classmethod
    def of(cls, scan: Scan, group: str) -> Members:
        """Raises `DataError` where the group is unknown, or none of its pairs has positions on both sides."""
        inside, enough = scan.in_group(group), scan.n_positions > 0
        mine = {i: r for i, r in scan.rows_by_pair.items() if inside[r[0]] and enough[list(r)].all()}
        if not mine:
            raise DataError(f"no pair of group {group!r} has positions on both sides", where=str(scan.path))
        prompts = scan.texts["prompt"].to_pylist()
        return cls(list(mine), np.asarray(list(mine.values())), [prompts[chosen] for chosen, _ in mine.values()])

    def values(self, numbers: NDArray[np.float64]) -> dict[str, float]:
        """[pairs] numbers by pair id."""
        return dict(zip(self.ids, numbers.tolist(), strict=True))


Scorer = Callable[[ScoreInputs], Mapping[str, float]]


@dataclass(frozen=True)
class Method:
    """A way to score pairs."""

    name: str
    kind: Kind
    needs: tuple[str, ...]
    """Fields of `ScoreInputs` it takes; `a or b` where either is enough."""
    about: str
    scorer: Scorer
    fitted: bool = False
    """Fitted on the group's pairs, so that it has scores of that group alone."""
