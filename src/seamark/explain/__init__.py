"""Explaining and rating features."""

from seamark.explain.comparing import compare
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

__all__ = [
    "Explanation", "LexiconEntry", "Rating", "Simulation", "SimulationConfig", "Tag", "Taxonomy", "compare",
    "draft_contrast_pairs", "draw_features", "explain_features", "explain_lexical", "explain_requests",
    "export_sheet", "import_sheet", "llm_ratings", "read_explanations", "read_simulations", "simulate",
    "statistical_ratings", "write_explanations", "write_simulations",
]  # fmt: skip
