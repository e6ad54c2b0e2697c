"""Any Hugging Face model: loading, hookpoints, reading and changing activations, reward models and their training.

Knows nothing of sparse autoencoders. TRL is imported only when a model is trained.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from seamark.model.batching import Batch, collate, plan_batches
from seamark.model.evaluation import Evaluation, evaluate
from seamark.model.loading import HookedModel, LanguageModel, RewardModel, is_reward_model, load_model
from seamark.model.pretrained import DEFAULT_MODEL, resolve_name
from seamark.model.reading import Reading, apply_at, read
from seamark.model.skipping import BlockCache

if TYPE_CHECKING:
    from seamark.model.training import RewardTraining, TrainingReport, train_reward_model

__all__ = [
    "DEFAULT_MODEL",
    "Batch",
    "BlockCache",
    "Evaluation",
    "HookedModel",
    "LanguageModel",
    "Reading",
    "RewardModel",
    "RewardTraining",
    "TrainingReport",
    "apply_at",
    "collate",
    "evaluate",
    "is_reward_model",
    "load_model",
    "plan_batches",
    "read",
    "resolve_name",
    "train_reward_model",
]


def __getattr__(name: str) -> Any:
    if name not in ("RewardTraining", "TrainingReport", "train_reward_model"):
        raise AttributeError(f"module 'seamark.model' has no attribute {name!r}")
    from seamark.model import training

    return getattr(training, name)
