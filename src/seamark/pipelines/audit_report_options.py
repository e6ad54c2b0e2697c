"""What an audit is asked to do."""

from __future__ import annotations

from collections.abc import Iterable

from pydantic import Field, model_validator

from seamark.explain.dimension import Dimension
from seamark.pipelines.recipe import Files, Part, Rate


class AuditOptions(Part):
    """What is audited, and how far the audit goes."""

    model: str
    """A reward model, or a base that one is trained from: a folder, a Hub name or seamark/default."""
    pairs: Files
    """Files by group."""
    out: str
    group: str = "safety"
    """The group whose labels are audited."""
    dimension: Dimension | None = None
    """What features of that group are about and which groups they are told from; None: safety, or what the group is
    called, against all others."""
    train: bool = False
    """Train a reward model from `model` even if it is one."""
    base: str | None = None
    """What cross-fitted reward models start from, where `model` is a reward model: it has seen the pairs."""
    sae: str | None = None
    """An autoencoder of the model, instead of training one."""
    features: str | None = None
    """A feature set of that autoencoder, instead of finding one."""
    experiment: str | None = None
    """Folder of a `seamark audit experiment` on these pairs: it decides the failure signs that need retraining."""
    remove: Rate = 0.04
    """Share of the group that is taken out of clean.jsonl and flipped in flipped.jsonl."""
    by: str | None = None
    """Scoring method to rank pairs by; None: the mean rank of margin and latents."""
    show: int = Field(25, ge=1, le=200)
    """Pairs on the page; the files have all."""
    crossfit: int = Field(0, ge=0, le=20)
    """Folds of reward models that never saw a pair's prompt; 0: none."""
    voting: int = Field(1, ge=1, le=20)
    """How often the folds are drawn anew: so many models judge each pair."""
    judge_pairs: int = Field(100, ge=1)
    """Most suspicious pairs that a language model is asked about."""
    seed: int = 0

    @model_validator(mode="after")
    def _dimension_is_of_the_group(self) -> AuditOptions:
        if self.dimension is not None and self.dimension.group != self.group:
            raise ValueError(f"dimension {self.dimension.name} is about group {self.dimension.group!r}, "
                             f"the group is {self.group!r}")  # fmt: skip
        return self

    def others(self, groups: Iterable[str]) -> list[str]:
        """Of these groups, those that features are told from."""
        against = self.dimension.against if self.dimension else ()
        return [g for g in groups if g != self.group and (not against or g in against)]
