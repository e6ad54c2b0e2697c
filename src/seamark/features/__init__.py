"""Where model and autoencoder meet: training on activations, the scan, contrastive scores, feature sets."""

from seamark.features.concept_hits import CONTRAST_SCAN
from seamark.features.concepts import ConceptMetrics, concept_metrics
from seamark.features.config import ScanConfig
from seamark.features.context_choice import ContextConfig
from seamark.features.context_sets import (
    ContextHalf,
    FeatureContexts,
    context_sets,
    iter_contexts,
    read_contexts,
    write_contexts,
)
from seamark.features.contexts import Context, TokenScores
from seamark.features.contrast import Contrast, contrast
from seamark.features.controls import random_latents
from seamark.features.effect import direct_effect
from seamark.features.evaluation import EvaluatedSAE, SAEEvalConfig, SAEEvaluation, evaluate_saes
from seamark.features.loss import LossRecovered, loss_recovered, losses_recovered
from seamark.features.plan import PAPER_STAGES, SAESpec, SAETraining, StageConfig, TrainingConfig, make_suite
from seamark.features.promoted import Promoted, promoted_tokens
from seamark.features.reading import Scan, text_scores
from seamark.features.reward_change import RewardChange, RewardShift, reward_change, reward_changes
from seamark.features.scan import merge_scans, scan, scan_shard
from seamark.features.sets import Feature, FeatureSet
from seamark.features.significance import Significance, significance
from seamark.features.suite_ranking import SuiteRanking, rank_suite
from seamark.features.training import TrainedSAE, TrainedSuite, train_sae, train_suite

__all__ = [
    "CONTRAST_SCAN",
    "PAPER_STAGES",
    "ConceptMetrics",
    "Context",
    "ContextConfig",
    "ContextHalf",
    "Contrast",
    "EvaluatedSAE",
    "Feature",
    "FeatureContexts",
    "FeatureSet",
    "LossRecovered",
    "Promoted",
    "RewardChange",
    "RewardShift",
    "SAEEvalConfig",
    "SAEEvaluation",
    "SAESpec",
    "SAETraining",
    "Scan",
    "ScanConfig",
    "Significance",
    "StageConfig",
    "SuiteRanking",
    "TokenScores",
    "TrainedSAE",
    "TrainedSuite",
    "TrainingConfig",
    "concept_metrics",
    "context_sets",
    "contrast",
    "direct_effect",
    "evaluate_saes",
    "iter_contexts",
    "loss_recovered",
    "losses_recovered",
    "make_suite",
    "merge_scans",
    "promoted_tokens",
    "random_latents",
    "rank_suite",
    "read_contexts",
    "reward_change",
    "reward_changes",
    "scan",
    "scan_shard",
    "significance",
    "text_scores",
    "train_sae",
    "train_suite",
    "write_contexts",
]  # fmt: skip
