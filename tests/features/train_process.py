"""Trains a small suite into a folder, as a process of its own that can be killed or be one of several ranks.

Arguments: the folder; "data" or "spread" for the short training of the tests with ranks; a tracker.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from feature_corpus import tiny
from token_texts import texts

from seamark.features import SAESpec, StageConfig, TrainedSuite, TrainingConfig, train_suite

SUITE = {
    "topk": SAESpec(hookpoint="layers.2", k=6, d_sae=96),
    "aux": SAESpec(hookpoint="layers.1.mlp", k=4, d_sae=64, activation="batch_topk", aux_coefficient=0.03,
                   dead_after=500, batch_size=48),
    "jump": SAESpec(hookpoint="layers.2", d_sae=64, activation="jumprelu", sparsity=0.01, bandwidth=0.1),
}  # fmt: skip
STAGES = (
    StageConfig(name="general", positions="tokens", epochs=3, lr=3e-3, batch_size=64),
    StageConfig(name="safety", positions="clauses", scope="response", epochs=4, lr=1e-3, batch_size=32),
)
CONFIG = TrainingConfig(buffer_tokens=700, batch_tokens=600, held_out=0.2, checkpoint_every=15, log_every=4)
SHORT = (StageConfig(name="general", positions="tokens", epochs=3, lr=1e-3, batch_size=64),)
"""Some 100 steps."""


def train(folder: Path | None, parallel: Any = None, track: Any = None) -> TrainedSuite:
    stages = SHORT if parallel else STAGES
    return train_suite(tiny(), texts(20), SUITE, stages, CONFIG, out=folder, parallel=parallel, track=track)


if __name__ == "__main__":
    import torch

    from seamark.features import activations
    from seamark.run.ranks import joined

    activations.CHUNK = 128
    torch.set_num_threads(1)
    with joined():
        train(Path(sys.argv[1]), *sys.argv[2:])
