"""One measured training, in a process of its own: python -m benchmarks.reward_run VARIANT PAIRS."""

from __future__ import annotations

import json
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from seamark.model import DEFAULT_MODEL, RewardModel, RewardTraining, resolve_name, train_reward_model
from seamark.model.training import trainable_part
from seamark.pipelines.recipe import load_recipe
from seamark.text import demo_pairs
from seamark.text.pairs import Pairs, hash_unit

RECIPE = Path(__file__).parents[1] / "recipes" / "safer-demo.yaml"


def main(variant: str, n_pairs: int) -> None:
    all_pairs = demo_pairs("train")
    pairs = all_pairs.with_items(sorted(all_pairs, key=lambda p: (hash_unit(p.id), p.id))[:n_pairs])
    config = load_recipe(RECIPE).reward.model_copy(update={"epochs": 1, "threads": None})
    import trl  # noqa: F401 - before the clock starts, for everybody

    start = time.monotonic()
    tokens, precision = (seamark if variant == "seamark" else with_trl)(variant, pairs, config)
    seconds = time.monotonic() - start
    unit = 2**20 if sys.platform == "darwin" else 2**10
    print(json.dumps({
        "tokens": tokens, "seconds": seconds, "tokens_per_s": tokens / seconds,
        "peak_rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit, "precision": precision,
    }))  # fmt: skip


def seamark(_: str, pairs: Pairs, config: RewardTraining) -> tuple[int, str]:
    report = train_reward_model(DEFAULT_MODEL, pairs, config, progress=False)[1]
    return report.tokens, report.precision


def with_trl(variant: str, pairs: Pairs, config: RewardTraining) -> tuple[int, str]:
    """`RewardTrainer` as its users run it; texts tokenised before, since it cannot with a tokenizer without EOS."""
    from datasets import Dataset
    from transformers import AutoModelForSequenceClassification
    from trl import RewardConfig, RewardTrainer

    frozen = variant == "trl_frozen"
    path = resolve_name(DEFAULT_MODEL)
    attention = {"attn_implementation": config.attention} if frozen and config.attention else {}
    model = AutoModelForSequenceClassification.from_pretrained(path, num_labels=1, dtype=torch.float32, **attention)
    reader = RewardModel.from_base(DEFAULT_MODEL)  # for its renderer: the same texts for all
    rendered = [reader.renderer(config.max_length).render_pair(p) for p in pairs]
    data = Dataset.from_dict({
        "chosen_ids": [c.input_ids.tolist() for c, _ in rendered],
        "rejected_ids": [r.input_ids.tolist() for _, r in rendered],
    })  # fmt: skip
    tokens = sum(len(c.input_ids) + len(r.input_ids) for c, r in rendered)
    options: dict[str, Any] = {
        "trl_default": {},
        "trl_bf16": {"gradient_checkpointing": False},
        "trl_fp32": {"gradient_checkpointing": False, "bf16": False, "disable_dropout": False},
        "trl_frozen": {"gradient_checkpointing": False},
    }[variant]
    with tempfile.TemporaryDirectory() as scratch, trainable_part(model, config.trainable_blocks if frozen else None):
        args = RewardConfig(scratch, use_cpu=not torch.cuda.is_available(), num_train_epochs=1, save_strategy="no",
                            report_to="none", disable_tqdm=True, per_device_train_batch_size=config.batch_size,
                            learning_rate=config.learning_rate, **options)  # fmt: skip
        trainer = RewardTrainer(model=model, args=args, train_dataset=data, processing_class=reader.tokenizer)
        trainer.train()
    return tokens, "bf16" if args.bf16 else "fp32"


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
