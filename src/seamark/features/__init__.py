"""Where model and autoencoder meet: training on activations, the scan, contrastive scores, feature sets."""

from seamark.features.config import ScanConfig
from seamark.features.contexts import Context, TokenScores
from seamark.features.contrast import Contrast, contrast
from seamark.features.effect import direct_effect
from seamark.features.reading import Scan, text_scores
from seamark.features.scan import scan
from seamark.features.sets import Feature, FeatureSet
from seamark.features.training import PAPER_STAGES, SAETraining, StageConfig, TrainedSAE, train_sae

__all__ = [
    "PAPER_STAGES", "Context", "Contrast", "Feature", "FeatureSet", "SAETraining", "Scan", "ScanConfig", "StageConfig",
    "TokenScores", "TrainedSAE", "contrast", "direct_effect", "scan", "text_scores", "train_sae",
]  # fmt: skip
