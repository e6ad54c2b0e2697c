"""The atlas: one SQLite file of explained features and of everything that was measured of them."""

from seamark.atlas.records import Card, Evidence, FeatureDetail, Found, Mark, Overview, Query, Run, Sae, StoredContext
from seamark.atlas.rows import (
    ContextRow,
    EvidenceRow,
    ExplanationRow,
    FeatureRow,
    NeighbourRow,
    RatingRow,
    SimulationRow,
)
from seamark.atlas.store import Atlas, Points
from seamark.atlas.writing import AtlasWriter

__all__ = [
    "Atlas",
    "AtlasWriter",
    "Card",
    "ContextRow",
    "Evidence",
    "EvidenceRow",
    "ExplanationRow",
    "FeatureDetail",
    "FeatureRow",
    "Found",
    "Mark",
    "NeighbourRow",
    "Overview",
    "Points",
    "Query",
    "RatingRow",
    "Run",
    "Sae",
    "SimulationRow",
    "StoredContext",
]
