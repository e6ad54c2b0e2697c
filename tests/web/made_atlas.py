"""A small atlas with all that pages show: hostile texts, every state, two layouts, two languages."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from seamark.atlas.records import Histogram, Run, Sae
from seamark.atlas.rows import (
    ContextRow,
    EvidenceRow,
    ExplanationRow,
    FeatureRow,
    NeighbourRow,
    RatingRow,
    SimulationRow,
)
from seamark.atlas.writing import AtlasWriter
from seamark.explain.taxonomy import Tag
from seamark.stats import Estimate
from seamark.web.app import create_app
from seamark.web.state import ServeSettings

BASE = "http://127.0.0.1:8700"
SCRIPT = "<script>window.pwned = 1</script>"
ATTRIBUTE = "\" onmouseover='window.pwned=1' x=\""
BIDI = "abc\u202edef"
SAES = ("layers.0.mlp", "org/deep sae?#%", SCRIPT)
"""Ids; the second holds all that an address could trip over."""
N = 30
"""Features of each autoencoder."""
DOMAINS = ("politics", "terror", "violence")
TOKENS = ("The", " old", " harbour", " light", " shows", " ships", " the", " way", " home", ".")


def make_atlas(path: Path) -> Path:
    """Features 0 to 29 of each of `SAES`. Number 3 holds markup, 4 a million characters, 5 NUL and bidi, 6 nothing."""
    rng = np.random.default_rng(0)
    with AtlasWriter.open(path, create=True) as atlas:
        for number, (kind, title) in enumerate((("scan", "Scan of the demo pairs"), ("explain", SCRIPT))):
            atlas.add_run(Run(id=f"run{number}", kind=kind, title=title, created="2025-05-01T10:00:00Z",
                              manifest={"seed": number, "text": SCRIPT}))  # fmt: skip
        ids: list[int] = []
        for layer, name in enumerate(SAES):
            sae = atlas.add_sae(Sae(number=0, id=name, model="demo/model", hookpoint=f"layers.{layer}.mlp", layer=layer,
                                    d_in=8, d_sae=512, activation="topk", k=8))  # fmt: skip
            found = atlas.add_features(sae, [_feature(i, rng) for i in range(N)])
            features = [found[i] for i in range(N)]
            _explain(atlas, features, rng)
            _show_contexts(atlas, features)
            ids += features
        for name in ("decoder", "explanations"):
            atlas.set_layout(
                name, {"method": "made"}, ids, rng.normal(size=len(ids)), rng.normal(size=len(ids)), "run0"
            )
    return path


def _feature(i: int, rng: np.random.Generator) -> FeatureRow:
    if i == 6:
        return FeatureRow(latent=i, q_reason="it fires at fewer than 10 positions")
    counts = np.sort(rng.integers(0, 5000, 30))[::-1]
    return FeatureRow(
        latent=i, firings=int(counts.sum()), share=0.001 * (i + 1), mean=0.5, max=3.0, texts=40, q=2.0,
        histogram=Histogram(edges=tuple(np.linspace(0, 3, 31).tolist()), counts=tuple(counts.tolist())),
        promoted=(" harbour", SCRIPT) if i % 2 else (), suppressed=(" storm", BIDI) if i % 2 else (),
    )  # fmt: skip


def _label(i: int) -> str:
    special = {3: f"{SCRIPT} {ATTRIBUTE}", 4: "lighthouse " * 100_000, 5: f"{BIDI} \0 end", 29: "plain keeper"}
    return special.get(i, f"mentions of harbour lights, kind {i}")


def _explain(atlas: AtlasWriter, features: list[int], rng: np.random.Generator) -> None:
    rows, simulations = [], []
    for i, feature in enumerate(features):
        if i == 6:
            continue
        tags = [Tag(DOMAINS[i % 3], "crowds" if i % 2 else None)] if i < 12 else []
        if i in (7, 8):
            state, text = ("masked", "***") if i == 7 else ("null", None)
            rows.append(ExplanationRow(feature, text, "run1", "imported", state=state, tags=tags))
            continue
        rows.append(ExplanationRow(
            feature, _label(i), "run1", "llm", model="demo-llm", prompt_version="v1", tags=tags, rating=1 + i % 5,
            rating_reason="made up", tokens_in=900, tokens_out=40, cost=0.0012))  # fmt: skip
    made = atlas.add_explanations(rows)
    atlas.add_explanations([
        ExplanationRow(features[i], f"港口的灯光 第{i}号", "run1", "imported", language="zh")
            for i in range(10) if i not in (6, 7, 8)
    ])  # fmt: skip
    for row, explanation in zip(rows, made, strict=True):
        value = round(float(rng.uniform(-0.1, 0.9)), 4)
        simulations.append(SimulationRow(
            row.feature, "run1", "segment", "llm", Estimate(value=value, low=value - 0.1, high=value + 0.05, n=20),
            Estimate.not_available("no clear cases"), explanation=explanation, n_texts=20, n_units=180))  # fmt: skip
    atlas.add_simulations(simulations)
    atlas.add_ratings([RatingRow(features[0], "human:ann", 4, "run1", reason=SCRIPT),
                       RatingRow(features[0], "statistical", None, "run0", reason="undecided")])  # fmt: skip
    atlas.add_evidence([
        EvidenceRow(features[0], "contrast:safety", Estimate(value=0.31, low=0.2, high=0.4, n=60), "run0"),
        EvidenceRow(features[0], "direct_effect", Estimate.not_available("the model has no reward head"), "run0"),
        EvidenceRow(features[1], "contrast:safety", Estimate(value=-0.2, low=-0.3, high=-0.1, n=60), "run0"),
    ])  # fmt: skip
    atlas.add_neighbours([NeighbourRow(features[0], k, features[k + 1], 0.9 - 0.1 * k) for k in range(5)])


def _show_contexts(atlas: AtlasWriter, features: list[int]) -> None:
    rows = []
    for i, feature in enumerate(features):
        if i == 6:
            continue
        tokens: tuple[str, ...] = TOKENS
        if i == 3:
            tokens = (*TOKENS, SCRIPT, ATTRIBUTE)
        elif i == 4:
            tokens = ("x" * 1_000_000, *TOKENS)
        elif i == 5:
            tokens = (BIDI, "\0", "\ud800", *TOKENS)
        fires = tuple(0.2 * (k % 5) * (1 + i % 3) for k in range(len(tokens)))
        silent = (0.0,) * len(tokens)
        rows += [ContextRow(feature, "top", rank, f"text{rank}", tokens, fires) for rank in range(3)]
        rows += [ContextRow(feature, "level", 0, f"level{level}", tokens, fires, level=level) for level in (10, 5, 1)]
        rows += [ContextRow(feature, "near_miss", 0, "miss", tokens, silent, half="simulate", source="demo"),
                 ContextRow(feature, "silent", 0, "none", tokens, silent, half="explain")]  # fmt: skip
    atlas.add_contexts(rows)


def app_of(path: Path, **settings: Any) -> Any:
    """The application for an atlas."""
    return create_app(ServeSettings(atlas=path, **settings))


def client_of(app: Any, **more: Any) -> Callable[[], httpx.AsyncClient]:
    """Makes asynchronous clients that speak to `app` without a network."""
    return lambda: httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url=BASE, **more)
