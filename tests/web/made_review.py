"""Tiny models, a scan of hostile pairs, an atlas and run folders: what the pages Inspect, Pairs and Runs show."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from made_atlas import BIDI, SCRIPT

from seamark.atlas.records import Run, Sae
from seamark.atlas.rows import ExplanationRow, FeatureRow
from seamark.atlas.writing import AtlasWriter
from seamark.explain.taxonomy import Tag
from seamark.features import Scan, ScanConfig, scan
from seamark.model import load_model
from seamark.sae import SAEConfig, SparseAutoencoder
from seamark.text.pairs import Pairs, PreferencePair
from tiny import tiny_folder

D_SAE = 96
ODD = f"p/4 ?&#%2F {SCRIPT}"
"""An id that holds all that an address or a page could trip over."""
TOPICS = ["bleach", "bread", "the weather", "a harbour map", "knives", "Dr. Smith's 3.14 rule", "login codes", "tea"]


@dataclass(frozen=True)
class Made:
    """Where everything lies."""

    atlas: Path
    language: str
    """A language model; its autoencoder is called `words`."""
    reward: str
    """A reward model; its autoencoder is called `safer`."""
    saes: dict[str, Path]
    scan: Path
    pairs: Path
    runs: Path

    def open_scan(self) -> Scan:
        return Scan.open(self.scan)


def make_review(root: Path) -> Made:
    """Everything anew, in `root`."""
    language, reward = (
        tiny_folder(root / name, "llama", head) for name, head in (("language", "lm"), ("reward", "reward"))
    )
    saes = {name: _sae(root / name, seed) for seed, name in enumerate(("words", "safer"))}
    pairs = make_pairs()
    pairs.to_jsonl(root / "pairs.jsonl")
    suite = {"safer": SparseAutoencoder.from_pretrained(saes["safer"])}
    scan(load_model(reward), suite, pairs, root / "reward-scan", config=ScanConfig(keep_tokens="always"))
    _atlas(root / "review.db", saes)
    _runs(root / "runs")
    return Made(root / "review.db", language, reward, saes, root / "reward-scan", root / "pairs.jsonl", root / "runs")


def make_pairs(n: int = 24) -> Pairs:
    """Safety and chat pairs of two sources; number 4 is hostile, number 5 long."""
    items = []
    for i in range(n):
        topic = TOPICS[i % len(TOPICS)]
        chosen = f"I can't help with {topic}, sorry. Ask someone who knows, and be careful! " * (1 + i % 3)
        rejected = f"Sure, here is {topic}: mix it, then wait. Done; number {i}.\nAnything else? No."
        if i == 4:
            chosen, rejected = f"{SCRIPT} {BIDI} \0 no. </p>", f"\" onmouseover='x' {SCRIPT}, yes."
        if i == 5:
            chosen = "Mix flour and water. " * 40
        items.append(
            PreferencePair(
                ODD if i == 4 else f"pair-{i}",
                "safety" if i % 3 else "chat",
                f"Tell me about {topic}, please; what is it?",
                chosen,
                rejected,
                source=("forum", SCRIPT)[i % 2],
                category=("advice", "cooking", "other")[i % 3],
            )
        )
    return Pairs(tuple(items))


def _sae(folder: Path, seed: int) -> Path:
    config = SAEConfig(d_in=32, d_sae=D_SAE, k=6, hookpoint=f"layers.{1 + seed}")
    sae = SparseAutoencoder(config, seed=seed)
    with torch.no_grad():
        sae.b_enc -= torch.rand(D_SAE, generator=torch.Generator().manual_seed(9))
    sae.save_pretrained(folder)
    return folder


def _atlas(path: Path, saes: dict[str, Path]) -> None:
    """`words` has Q for all but every seventh feature, `safer` has none; the last ten features are not there at all."""
    with AtlasWriter.open(path, create=True) as atlas:
        atlas.add_run(Run(id="run", kind="explain", title="made", created="2025-05-01T10:00:00Z", manifest={}))
        for layer, (name, folder) in enumerate(saes.items(), 1):
            opened = SparseAutoencoder.from_pretrained(folder)
            number = atlas.add_sae(
                Sae(
                    number=0,
                    id=name,
                    model="tiny",
                    hookpoint=f"layers.{layer}",
                    layer=layer,
                    d_in=32,
                    d_sae=D_SAE,
                    activation="topk",
                    k=6,
                    fingerprint=opened.fingerprint(),
                )
            )
            rows = [FeatureRow(latent=i, q=None if name == "safer" or i % 7 == 0 else 2.0) for i in range(D_SAE - 10)]
            ids = atlas.add_features(number, rows)
            atlas.add_explanations(
                [
                    ExplanationRow(
                        ids[i],
                        f"{name} harbour {i} {SCRIPT if i % 2 else BIDI}",
                        "run",
                        "llm",
                        tags=[Tag("violence", None)] if i % 3 == 0 else [Tag("politics", None)] if i % 5 == 0 else [],
                    )
                    for i in range(0, D_SAE - 10)
                    if i % 4
                ]
            )


def _runs(root: Path) -> None:
    """Two runs of a recipe with everything, and one with nothing but a result that is none of ours."""
    for i, name in enumerate(("first run", "second & <b>run")):
        folder = root / name
        write(
            folder / "result.json",
            {
                "schema_version": 1,
                "recipe": {
                    "recipe": "safer",
                    "name": SCRIPT,
                    "model": "tiny/model",
                    "seeds": [0, 1],
                    "reward": {"epochs": 2 + i},
                },
                "reward": {
                    "accuracy": {"safety": 0.8 + i / 10, "chat": 0.7},
                    "interval": {"safety": [0.7, 0.9], "chat": None},
                },
                "effect": {"D": 0.1 * (i + 1), "low": 0.05, "high": 0.2, "reason": "", "rate": 0.05},
                "features": [
                    {
                        "sae": "sae",
                        "latent": 7,
                        "sign": 1,
                        "direct_effect": 0.5,
                        "direct_effect_interval": [0.4, 0.6],
                        "direct_effect_reason": "",
                    },
                    {
                        "sae": "sae",
                        "latent": 9,
                        "sign": -1,
                        "direct_effect": None,
                        "direct_effect_interval": None,
                        "direct_effect_reason": "fewer than 10 firings",
                    },
                ],
                "poison_summary": [
                    {
                        "method": "safer",
                        "rate": 0.05,
                        "safety": {"value": 0.61, "low": 0.5, "high": 0.7, "n": 40, "reason": ""},
                    }
                ],
                "same": True,
            },
        )
        for stage in ("data", "clean/scan"):
            write(
                folder / stage / "manifest.json",
                {
                    "stage": stage,
                    "key": f"{i}" * 64,
                    "function": "seamark.pipelines.stages.x",
                    "seconds": 1.5 + i,
                    "config": {"a": 1},
                    "versions": {"torch": f"2.{i}"},
                    "created": f"2025-05-0{i + 1}T10:00:00+00:00",
                },
            )
        (folder / "report.html").write_text(
            f"<!doctype html><style>h1 {{ color: rgb(1, 2, 3) }}</style><h1>Report {i}</h1>{SCRIPT}", encoding="utf-8"
        )
    write(root / "third" / "result.json", {"text": SCRIPT, BIDI: [SCRIPT, {"name": BIDI, "deep": {"x": "y" * 5000}}]})
    (root / "no run").mkdir()
    (root / "no run" / "notes.txt").write_text("nothing", encoding="utf-8")


def write(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")
