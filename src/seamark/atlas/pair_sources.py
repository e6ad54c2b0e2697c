"""Sources that come from preference pairs: contrasts, and effects on the reward."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import BaseModel, TypeAdapter, ValidationError

from seamark.atlas.records import Run
from seamark.atlas.rows import EvidenceRow, RatingRow
from seamark.atlas.sources import RESULT, Known, Latents, Source, by_sae, made, object_in, result_of
from seamark.errors import FormatError, RunError
from seamark.features.sets import FeatureSet
from seamark.run import MANIFEST, digest, file_digest, read_json
from seamark.stats import Estimate

FEATURES = "features.json"


@dataclass
class Contrasted(Source):
    """Feature sets of one contrast: scores, what doubts there are, and ratings where they were rated."""

    files: Sequence[Path]
    run: Run = field(init=False)
    latents: Latents = field(init=False)

    def __post_init__(self) -> None:
        about = contrast_of(self.sets[0])
        self.latents = by_sae(f.key for one in self.sets for f in one.features)
        digests = sorted({file_digest(path) for path in self.files})
        self.run = Run(id=digest({"contrast": about or digests}), kind="contrast", created=made(self.files[0]),
                       title=f"Contrast on {about['group']}" if about else f"Features of {self.files[0].name}",
                       manifest={**about, "files": digests})  # fmt: skip

    @cached_property
    def sets(self) -> list[FeatureSet]:
        return [FeatureSet.load(path) for path in self.files]

    def write(self, known: Known) -> None:
        kind = f"contrast:{self.run.manifest['group']}" if "group" in self.run.manifest else "score"
        n = int(self.run.manifest.get("n_pairs", 0))
        for path, one in zip(self.files, self.sets, strict=True):
            rater = str(one.provenance.get("rating_method") or "statistical")
            with known.writer.transaction():
                known.writer.add_evidence(
                    EvidenceRow(known.id(f.key), kind, Estimate(value=f.score, n=n), self.run.id)
                    for f in one.features if f.score is not None
                )  # fmt: skip
                known.writer.add_evidence(self._differences(known, path, one, n))
                known.writer.add_ratings(
                    RatingRow(known.id(f.key), rater, f.rating, self.run.id, f.why)
                    for f in one.features if f.rating is not None or f.why
                )  # fmt: skip

    def _differences(self, known: Known, path: Path, one: FeatureSet, n: int) -> Iterator[EvidenceRow]:
        """The mean difference of activation on chosen and rejected answers, with its interval by prompt."""
        doubt = result_of(path.parent).get("significance")
        saes = {f.latent: f.sae for f in one.features}
        if not isinstance(doubt, dict) or "group" not in self.run.manifest:
            return
        try:
            found = _Doubt.model_validate(doubt)
        except ValidationError as e:
            raise FormatError(f"not the result of `seamark contrast` ({e.errors()[0]['msg']})",
                              where=str(path.parent / RESULT), fix="Run it again") from None  # fmt: skip
        why_not = found.reasons.get("interval", "")
        for row in found.features:
            if row.latent in saes and row.effect is not None:
                estimate = Estimate(value=row.effect, low=row.low, high=row.high, n=n, reason=why_not)
                feature = known.id((saes[row.latent], row.latent))
                yield EvidenceRow(feature, f"difference:{self.run.manifest['group']}", estimate, self.run.id)


class _Difference(BaseModel):
    latent: int
    effect: float | None
    low: float | None = None
    high: float | None = None


class _Doubt(BaseModel):
    """What is read of `significance` in a contrast's result.json."""

    features: list[_Difference] = []
    reasons: dict[str, str] = {}


@dataclass
class Effects(Source):
    """effects.json of a run: what raising each of an autoencoder's latents does to the reward."""

    path: Path
    sae: str
    run: Run = field(init=False)
    latents: Latents = field(init=False)

    def __post_init__(self) -> None:
        self.latents = {self.sae: list(self.effects)}
        stage = object_in(self.path.parent / MANIFEST)
        about = {"sae": self.sae, "files": {self.path.name: file_digest(self.path)}}
        self.run = Run(id=digest({"effects": stage.get("key") or about}), kind="effects", title="Direct effects",
                       created=made(self.path), manifest=about)  # fmt: skip

    @cached_property
    def effects(self) -> dict[int, Estimate]:
        try:
            return TypeAdapter(dict[int, Estimate]).validate_python(read_json(self.path))
        except (ValidationError, RunError) as e:
            raise FormatError("not the effects of features", where=str(self.path),
                              fix="Name an effects.json of a run") from e  # fmt: skip

    def write(self, known: Known) -> None:
        known.writer.add_evidence(
            EvidenceRow(known.id((self.sae, latent)), "direct_effect", effect, self.run.id)
            for latent, effect in self.effects.items()
        )  # fmt: skip


def contrast_of(features: FeatureSet) -> dict[str, Any]:
    """What a feature set of a contrast was made from; empty where it does not say that it is one."""
    names = ("group", "normalization", "n_pairs", "scan")
    provenance = features.provenance
    known = provenance.get("method") == "contrast" and all(name in provenance for name in names)
    return {name: provenance[name] for name in names} if known else {}


def contrasts_of(paths: Sequence[Path]) -> list[Contrasted]:
    """Feature sets, those of the same contrast as one source. A folder stands for its features.json."""
    groups: dict[str, list[Path]] = {}
    for given in paths:
        path = given / FEATURES if given.is_dir() else given
        groups.setdefault(digest(contrast_of(FeatureSet.load(path)) or file_digest(path)), []).append(path)
    return [Contrasted(tuple(files)) for files in groups.values()]
