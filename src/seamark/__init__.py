"""Seamark finds, explains and repairs safety features in language models and reward models with sparse autoencoders.

The names here are imported when first used, so that `import seamark` and the command line start at once. (It is
`explain_features`, since `seamark.explain` is a package.)
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from seamark.atlas import Atlas
    from seamark.audit import denoise, inject_noise, poison, score_pairs, undo
    from seamark.errors import SeamarkError
    from seamark.explain import explain_features, simulate
    from seamark.features import FeatureSet, Scan, concept_metrics, contrast, direct_effect, scan, train_sae
    from seamark.model import LanguageModel, RewardModel, train_reward_model
    from seamark.sae import SparseAutoencoder
    from seamark.text import Pairs, PreferencePair, demo_pairs, read_pairs

_HOMES = {
    "Atlas": "atlas",
    "FeatureSet": "features",
    "LanguageModel": "model",
    "Pairs": "text",
    "PreferencePair": "text",
    "RewardModel": "model",
    "Scan": "features",
    "SeamarkError": "errors",
    "SparseAutoencoder": "sae",
    "concept_metrics": "features",
    "contrast": "features",
    "demo_pairs": "text",
    "denoise": "audit",
    "direct_effect": "features",
    "explain_features": "explain",
    "inject_noise": "audit",
    "poison": "audit",
    "read_pairs": "text",
    "scan": "features",
    "score_pairs": "audit",
    "simulate": "explain",
    "train_reward_model": "model",
    "train_sae": "features",
    "undo": "audit",
}

__version__ = "0.1.0"
__all__ = [
    "Atlas",
    "FeatureSet",
    "LanguageModel",
    "Pairs",
    "PreferencePair",
    "RewardModel",
    "Scan",
    "SeamarkError",
    "SparseAutoencoder",
    "__version__",
    "concept_metrics",
    "contrast",
    "demo_pairs",
    "denoise",
    "direct_effect",
    "explain_features",
    "inject_noise",
    "poison",
    "read_pairs",
    "scan",
    "score_pairs",
    "simulate",
    "train_reward_model",
    "train_sae",
    "undo",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'seamark' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"seamark.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
