"""The suite: every k at every hookpoint, trained in one pass of the model, and its quality on held-out texts."""

from __future__ import annotations

import shutil

from benchmarks.explaining.job import Job, Row
from benchmarks.explaining.texts import source, training_texts
from seamark.features.evaluation import SAEEvalConfig, evaluate_saes
from seamark.features.plan import StageConfig, TrainingConfig, make_suite
from seamark.features.training import train_suite
from seamark.model.loading import HookedModel, load_model
from seamark.run import write_json
from seamark.sae import SparseAutoencoder

SAES = "training/saes"


def run(job: Job) -> Row:
    """Train (going on where a former run was broken off), then measure."""
    s, model = job.settings, load_model(job.settings.model)
    train, held_out = training_texts(job)
    renderer = model.renderer(s.max_length)
    rendered = [renderer.render_text(text, text_id) for text_id, text in train]
    n = sum(map(len, rendered))
    stage = StageConfig(name="domain", lr=s.lr, batch_size=s.batch, max_positions=s.positions,
                        epochs=max(1, round(s.positions / n)))  # fmt: skip
    variant = {"k": list(s.ks), "activation": "topk_relu", "d_sae": s.d_sae, "normalize": "none", "loss": "squared",
               "scale": "expected_norm", "encoder": "fp32"}  # fmt: skip
    suite = make_suite(s.hookpoints, [variant])
    trained = train_suite(model, rendered, suite, [stage], TrainingConfig(held_out=0.0, checkpoint_every=200),
                          out=job.place / "training")  # fmt: skip
    shutil.rmtree(job.place / "training" / "checkpoints", ignore_errors=True)
    found = evaluate_saes(model, trained.saes, held_out, SAEEvalConfig(max_length=s.max_length))
    write_json(job.place / "evaluation.json", found)
    saes = [
        {"sae": e.name, "hookpoint": e.config.hookpoint, "k": e.config.k, "L0": e.quality.l0, "FVU": e.quality.fvu,
         "dead": e.quality.dead_share}
        for e in found.saes
    ]  # fmt: skip
    return {"source": source(job.data), "texts": len(train), "positions": trained.stages[-1]["positions"],
            "held_out_texts": len(held_out), "held_out_positions": found.saes[0].quality.n,
            "saes": saes}  # fmt: skip


def load(job: Job) -> tuple[HookedModel, dict[str, SparseAutoencoder]]:
    """The model, and the suite that was trained."""
    folders = sorted((job.of("suite") / SAES).iterdir())
    return load_model(job.settings.model), {f.name: SparseAutoencoder.from_pretrained(f) for f in folders}
