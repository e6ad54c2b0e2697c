"""An atlas of made-up features, with everything that can be in one, and texts that would act if they could."""

from __future__ import annotations

from pathlib import Path

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

HOSTILE = '<script>alert("x")</script>" onmouseover="alert(1)\u202e\x00 =1+1 ]]> &amp; \u2028'
RUN = "made-up"
NONE = Estimate.not_available("not measured")


def sae(layer: int, name: str | None = None, model: str = "lab/Small.Model-2B-it") -> Sae:
    return Sae(number=0, id=name or f"layers.{layer}.mlp", model=model, hookpoint=f"layers.{layer}.mlp", layer=layer,
               d_in=8, d_sae=64, activation="topk", k=4, fingerprint=f"f{layer}{name or ''}")  # fmt: skip


def make(path: Path, *, hostile: str = "calm", n: int = 3) -> Path:
    """`n` features in each of two layers: the first with all there is, the second masked, further ones plain, the last
    one never explained."""
    with AtlasWriter.open(path, create=True) as writer, writer.transaction():
        writer.add_run(Run(id=RUN, kind="explain", title=f"Explanations {hostile}", created="2024-01-01T00:00:00+00:00",
                           manifest={"note": hostile}))  # fmt: skip
        for layer in (3, 7):
            number = writer.add_sae(sae(layer, f"layers.{layer}.{hostile}" if hostile != "calm" else None))
            ids = writer.add_features(number, [_feature(latent, hostile) for latent in range(n)])
            _fill(writer, ids, layer, hostile, n)
            every = list(ids.values())
            x, y = [0.1 * i for i in range(n)], [-0.2 * i for i in range(n)]
            writer.set_layout(f"map {layer}", {"seed": 0}, every, x, y)
    return path


def _feature(latent: int, hostile: str) -> FeatureRow:
    if latent:
        return FeatureRow(latent, share=0.25 / latent, q_reason="fires too rarely")
    return FeatureRow(
        0, firings=60, share=0.125, mean=1.5, max=4.0, texts=9, q=3.5, promoted=[" sea", hostile], suppressed=[" land"],
        histogram=Histogram(edges=(0.0, 1.0, 2.0, 3.0, 4.0), counts=(30, 20, 9, 1)),
    )  # fmt: skip


def _fill(writer: AtlasWriter, ids: dict[int, int], layer: int, hostile: str, n: int) -> None:
    first = ids[0]
    tags = (Tag("violence", "cyber"), Tag("politics"))
    rows = [
        ExplanationRow(first, f"Names of ships {hostile}", RUN, "llm", model="lab/llm-7b", prompt_version="3", rating=5,
                       rating_reason=f"because {hostile}", tags=tags, tokens_in=7, tokens_out=3, cost=0.01),
        ExplanationRow(first, "船的名字", RUN, "llm", model="lab/llm-7b", prompt_version="3", language="zh"),
        *(ExplanationRow(ids[i], f"Words about harbours, number {i}", RUN, "lexical") for i in range(2, n - 1)),
    ]  # fmt: skip
    if n > 1:
        rows.append(ExplanationRow(ids[1], "***", RUN, "imported", state="masked", tags=(Tag("politics"),)))
    explained = writer.add_explanations(rows)
    score = Estimate(value=0.1 * layer, low=0.05, high=0.9, n=40)
    writer.add_simulations([
        SimulationRow(first, RUN, "token", "llm", Estimate(value=0.01), NONE, explanation=explained[0]),
        SimulationRow(first, RUN, "segment", "llm", score, Estimate(value=0.8), explanation=explained[0], n_texts=10),
    ])  # fmt: skip
    writer.add_ratings([RatingRow(first, "human:ann", 4, RUN, f"reason {hostile}")])
    writer.add_evidence([EvidenceRow(first, "contrast:safety", Estimate(value=-0.5, low=-0.6, high=-0.4, n=12), RUN)])
    tokens = ["Ships", " sail", f" {hostile}", "."]
    writer.add_contexts([
        ContextRow(first, "top", 0, "text-1", tokens, [0.0, 2.5, 4.0, 0.0], half="explain", source="plain"),
        ContextRow(first, "top", 1, "text-2", [" boats", " rest"], [0.5, 1.25], half="explain"),
        ContextRow(first, "level", 0, "text-2", [" boats", " rest"], [0.5, 1.25], level=4, half="simulate"),
        ContextRow(first, "near_miss", 0, "text-3", ["a", " car"], [0.0, 0.0]),
        ContextRow(first, "silent", 0, f"text {hostile}", ["the", " moon"], [0.0, 0.0]),
    ])  # fmt: skip
    if n > 2:
        writer.add_neighbours([NeighbourRow(first, 0, ids[2], 0.75), NeighbourRow(first, 1, ids[1], 0.5)])
