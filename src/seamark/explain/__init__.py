"""Explaining and rating features.

The names here are imported when first used: an atlas, which speaks of tags, is read without waiting for torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from seamark.explain.comparing import compare
    from seamark.explain.dimension import SAFETY, Dimension
    from seamark.explain.drafting import draft_contrast_pairs
    from seamark.explain.explaining import draw_features, explain_features, explain_requests, llm_ratings
    from seamark.explain.human import export_sheet, import_sheet
    from seamark.explain.lexical import explain_lexical
    from seamark.explain.ratings import Rating, statistical_ratings
    from seamark.explain.records import (
        Explanation,
        LexiconEntry,
        Simulation,
        read_explanations,
        read_simulations,
        write_explanations,
        write_simulations,
    )
    from seamark.explain.simulating import SimulationConfig, simulate
    from seamark.explain.taxonomy import Tag, Taxonomy

_HOMES = {
    "SAFETY": "dimension",
    "Dimension": "dimension",
    "Explanation": "records",
    "LexiconEntry": "records",
    "Rating": "ratings",
    "Simulation": "records",
    "SimulationConfig": "simulating",
    "Tag": "taxonomy",
    "Taxonomy": "taxonomy",
    "compare": "comparing",
    "draft_contrast_pairs": "drafting",
    "draw_features": "explaining",
    "explain_features": "explaining",
    "explain_lexical": "lexical",
    "explain_requests": "explaining",
    "export_sheet": "human",
    "import_sheet": "human",
    "llm_ratings": "explaining",
    "read_explanations": "records",
    "read_simulations": "records",
    "simulate": "simulating",
    "statistical_ratings": "ratings",
    "write_explanations": "records",
    "write_simulations": "records",
}

__all__ = [
    "SAFETY", "Dimension", "Explanation", "LexiconEntry", "Rating", "Simulation", "SimulationConfig", "Tag",
    "Taxonomy", "compare", "draft_contrast_pairs", "draw_features", "explain_features", "explain_lexical",
    "explain_requests", "export_sheet", "import_sheet", "llm_ratings", "read_explanations",
    "read_simulations", "simulate", "statistical_ratings", "write_explanations", "write_simulations",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'seamark.explain' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"seamark.explain.{_HOMES[name]}"), name)
    globals()[name] = value
    return value
