"""What an audit is asked to do."""

from __future__ import annotations

from collections.abc import Iterable

from pydantic import Field, ValidationInfo, field_validator, model_validator

from seamark.explain.dimension import Dimension
from seamark.pipelines.recipe import Files, Part, Rate, Seed


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
    """Folds of reward models that never saw a pair's prompt, at least 2; 0: none."""
    voting: int = Field(1, ge=1, le=20)
    """How often the folds of `crossfit` are drawn anew: so many models judge each pair."""
    judge_pairs: int = Field(100, ge=1)
    """Most suspicious pairs that a language model is asked about."""
    seed: Seed = 0

    @field_validator("crossfit")
    @classmethod
    def _one_fold_leaves_nothing_to_train_on(cls, value: int) -> int:
        if value == 1:
            raise ValueError("with one fold there is nothing to train on; give at least 2 folds, or 0 for none")
        return value

    @field_validator("voting")
    @classmethod
    def _votes_are_of_cross_fitted_models(cls, value: int, info: ValidationInfo) -> int:
        if value > 1 and info.data.get("crossfit") == 0:
            raise ValueError("votes are of cross-fitted models; ask for these with --crossfit 5")
        return value

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
