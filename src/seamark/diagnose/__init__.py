"""Looking inside: what fires at each token of a text, and what happens when features are changed."""

from seamark.diagnose.inspecting import Labels, inspect_text
from seamark.diagnose.inspection import About, Inspection
from seamark.diagnose.labels import atlas_labels, atlas_quantiles, filled, match_saes
from seamark.diagnose.steered import (
    SteeredPairs,
    SteeredReward,
    SteeredRewards,
    SteeredText,
    steer_answer,
    steer_pairs,
    steer_rewards,
    steer_text,
)
from seamark.diagnose.steering import Intervention, changes, steering
from seamark.diagnose.units import scan_units

__all__ = [
    "About",
    "Inspection",
    "Intervention",
    "Labels",
    "SteeredPairs",
    "SteeredReward",
    "SteeredRewards",
    "SteeredText",
    "atlas_labels",
    "atlas_quantiles",
    "changes",
    "filled",
    "inspect_text",
    "match_saes",
    "scan_units",
    "steer_answer",
    "steer_pairs",
    "steer_rewards",
    "steer_text",
    "steering",
]
