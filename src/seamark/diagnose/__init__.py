"""Looking inside: what fires at each token of a text, and what happens when features are changed."""

from seamark.diagnose.causal import causal_effects
from seamark.diagnose.causal_report import CausalReport, write_evidence
from seamark.diagnose.change import change, change_models
from seamark.diagnose.change_report import ChangeReport
from seamark.diagnose.entities import EntityColumns, EntityTexts, count_entities, read_entities
from seamark.diagnose.guard import Guard
from seamark.diagnose.guard_making import export_guard, measure_latency
from seamark.diagnose.inspecting import Labels, inspect_text
from seamark.diagnose.inspection import About, Inspection
from seamark.diagnose.knowledge import KnowledgeConfig, KnowledgeReport, knowledge
from seamark.diagnose.labels import atlas_labels, atlas_quantiles, filled, match_saes
from seamark.diagnose.languages import languages
from seamark.diagnose.languages_report import LanguagesConfig, LanguagesReport
from seamark.diagnose.levels import atlas_examples, first_known, scan_examples
from seamark.diagnose.parallel import ParallelColumns, ParallelPrompts, read_parallel
from seamark.diagnose.risk import RiskConfig, RiskReport, risk, risk_inputs, risk_scan
from seamark.diagnose.risk_texts import LabelledTexts, RiskColumns, read_labelled_texts
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
from seamark.diagnose.trajectory import trace
from seamark.diagnose.trajectory_graph import Tracing, Trajectory
from seamark.diagnose.units import made_with, other_model, scan_units

__all__ = [
    "About",
    "CausalReport",
    "ChangeReport",
    "EntityColumns",
    "EntityTexts",
    "Guard",
    "Inspection",
    "Intervention",
    "KnowledgeConfig",
    "KnowledgeReport",
    "LabelledTexts",
    "Labels",
    "LanguagesConfig",
    "LanguagesReport",
    "ParallelColumns",
    "ParallelPrompts",
    "RiskColumns",
    "RiskConfig",
    "RiskReport",
    "SteeredPairs",
    "SteeredReward",
    "SteeredRewards",
    "SteeredText",
    "Tracing",
    "Trajectory",
    "atlas_examples",
    "atlas_labels",
    "atlas_quantiles",
    "causal_effects",
    "change",
    "change_models",
    "changes",
    "count_entities",
    "export_guard",
    "filled",
    "first_known",
    "inspect_text",
    "knowledge",
    "languages",
    "made_with",
    "match_saes",
    "measure_latency",
    "other_model",
    "read_entities",
    "read_labelled_texts",
    "read_parallel",
    "risk",
    "risk_inputs",
    "risk_scan",
    "scan_examples",
    "scan_units",
    "steer_answer",
    "steer_pairs",
    "steer_rewards",
    "steer_text",
    "steering",
    "trace",
    "write_evidence",
]
