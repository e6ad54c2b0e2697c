"""Pair scores: how clearly a pair's label looks right, by several methods behind one door.

Every method gives one number per pair id, higher meaning more clearly right. The highest are what poisoning flips, the
lowest what denoising removes (SAFER, arXiv 2507.00665).

- `safer`: g(chosen) - g(rejected), g being a text's safety alignment score from the features found by contrast.
- `margin`: reward(chosen) - reward(rejected) of the scanned reward model, SAFER's reward-based baseline.
- `random`: a hash of pair id and seed, so that neither order nor company of a pair changes it.
- `length`: how much longer chosen is than rejected, the baseline that knows nothing of content: in characters where the
  pairs are given, else in tokens of the scan.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from seamark.errors import ConfigError, DataError, FormatError
from seamark.features.reading import Scan, text_scores
from seamark.features.sets import FeatureSet
from seamark.run import read_json, write_json
from seamark.text.pairs import Pairs, hash_unit, plain

SCHEMA: Literal[1] = 1


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

    def save(self, path: Path) -> None:
        write_json(path, self)

    @classmethod
    def load(cls, path: Path) -> PairScores:
        """Read a file of `save`. Raises `FormatError` on a foreign one."""
        try:
            return cls.model_validate(read_json(path))
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


Scorer = Callable[[ScoreInputs], Mapping[str, float]]
METHODS: dict[str, Scorer] = {}


def register(name: str) -> Callable[[Scorer], Scorer]:
    """Make a scoring method known by `name`."""

    def add(scorer: Scorer) -> Scorer:
        METHODS[name] = scorer
        return scorer

    return add


def score_pairs(
    scan: Scan | None = None,
    features: FeatureSet | None = None,
    *,
    method: str = "safer",
    pairs: Pairs | None = None,
    seed: int = 0,
) -> PairScores:
    """Score every pair of a scan (or of `pairs`, for methods that read no model).

    Args:
        scan: a scan of the pairs; `safer` and `margin` need it.
        features: the `FeatureSet` that `safer` reads.
        method: one of `METHODS`.
        pairs: the pairs to score; with a scan, the scores of just these.

    Raises:
        ConfigError: an unknown method, or one whose inputs are missing.
        DataError: a pair of `pairs` that the scan does not know.
    """
    if method not in METHODS:
        raise ConfigError(f"no scoring method {method!r}", fix=f"The methods are: {', '.join(sorted(METHODS))}")
    found = METHODS[method](ScoreInputs(scan, features, pairs, seed))
    wanted: Sequence[str] = list(found) if pairs is None else pairs.ids
    missing = [i for i in wanted if i not in found]
    if missing:
        raise DataError(
            f"{len(missing)} of {len(wanted)} pairs were not scanned, the first being {missing[0]!r}",
            fix="Scan the same pairs that are scored",
        )
    values = {i: float(found[i]) for i in wanted if isfinite(found[i])}
    return PairScores(method=method, values=values, seed=seed)


@register("safer")
def _safer(inputs: ScoreInputs) -> Mapping[str, float]:
    if inputs.scan is None or inputs.features is None:
        raise ConfigError("the method 'safer' needs a scan and a feature set")
    if len(inputs.features) == 0:
        raise ConfigError("the feature set is empty", fix="Select features first; with none, every score would be 0")
    g = list(text_scores(inputs.scan, inputs.features).values())
    return {pair: g[chosen] - g[rejected] for pair, (chosen, rejected) in inputs.scan.rows_by_pair.items()}


@register("margin")
def _margin(inputs: ScoreInputs) -> Mapping[str, float]:
    if inputs.scan is None:
        raise ConfigError("the method 'margin' needs a scan of a reward model")
    return inputs.scan.margins()


@register("random")
def _random(inputs: ScoreInputs) -> Mapping[str, float]:
    return {i: hash_unit(i, inputs.seed) for i in _ids(inputs)}


@register("length")
def _length(inputs: ScoreInputs) -> Mapping[str, float]:
    if inputs.pairs is not None:
        return {p.id: float(len(plain(p.chosen)) - len(plain(p.rejected))) for p in inputs.pairs}
    if inputs.scan is None:
        raise ConfigError("the method 'length' needs pairs or a scan")
    tokens = inputs.scan.texts["n_tokens"].to_pylist()  # prompt included; it is the same on both sides
    return {pair: float(tokens[c] - tokens[r]) for pair, (c, r) in inputs.scan.rows_by_pair.items()}


def _ids(inputs: ScoreInputs) -> Sequence[str]:
    if inputs.pairs is not None:
        return inputs.pairs.ids
    if inputs.scan is not None:
        return list(inputs.scan.rows_by_pair)
    raise ConfigError("the method 'random' needs pairs or a scan")
