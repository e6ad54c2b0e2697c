"""Looking inside: what fires at each token of a text."""

from seamark.diagnose.inspecting import Labels, inspect_text
from seamark.diagnose.inspection import About, Inspection
from seamark.diagnose.labels import atlas_labels, atlas_quantiles, filled, match_saes

__all__ = [
    "About",
    "Inspection",
    "Labels",
    "atlas_labels",
    "atlas_quantiles",
    "filled",
    "inspect_text",
    "match_saes",
]
